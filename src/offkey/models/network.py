"""A module with the names of its places, and calls of it that hooks take part in."""

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from offkey.data import Batch
from offkey.errors import BadValue, UnmappedModel, check
from offkey.models.edits import Edit, PassContext, edited
from offkey.models.families import Family, family_named
from offkey.models.hooks import (
    Hook,
    HookedCall,
    HookSet,
    Occupancy,
    Place,
    current_call,
    hook_modules,
    running,
    unhooked,
    with_tensor,
)
from offkey.models.sites import Site, resolve
from offkey.models.structure import detect_family
from offkey.models.wiring import Wiring, unwrapped, wire

__all__ = ["Network", "check_block"]


class Network:
    """A module under test: the places inside it, and how it is called.

    The module stays as it is, and nothing of a pass lives on it between passes.

    Args:
        module: a causal language model of transformers, bare or in an adapter's wrapping, or any
            ``nn.Module``. It is put into evaluation mode.
        name: what the model is called in tables.

    Attributes:
        top: the module without an adapter's wrapping.
        wiring: the parts of a decoder; ``None`` for a plain module.
        unmapped: for a language model whose parts were not found, the error that says why; it is
            raised when a named site is asked for.

    Raises:
        BadValue: the module was compiled, so that hooks would be ignored.
    """

    def __init__(self, module: nn.Module, *, name: str) -> None:
        _check_not_compiled(module)
        self.module = module.eval()
        self.name = name
        self.top = unwrapped(module)
        self.unmapped: UnmappedModel | None = None
        self.wiring: Wiring | None = None
        if isinstance(self.top, PreTrainedModel):
            try:
                model_type = self.top.config.model_type
                family = family_named(model_type) or detect_family(self.top)
                self.wiring = wire(family, self.top)
            except UnmappedModel as error:
                self.unmapped = error
        self.occupancy = Occupancy.of(self.top)
        self._accepts = frozenset(inspect.signature(self.top.forward).parameters)

    @property
    def family(self) -> Family | None:
        """Where the parts of the decoder are."""
        return self.wiring.family if self.wiring else None

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        weight = next(self.module.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In what the model computes."""
        weights = (p.dtype for p in self.module.parameters() if p.dtype.is_floating_point)
        return next(weights, torch.get_default_dtype())

    @property
    def n_blocks(self) -> int | None:
        """Number of blocks; like the next three ``None`` where there are no named sites."""
        return self.wiring.n_blocks if self.wiring else None

    @property
    def width(self) -> int | None:
        """Width of the residual stream."""
        return self.wiring.width if self.wiring else None

    @property
    def n_heads(self) -> int | None:
        """Number of query heads."""
        return self.wiring.n_heads if self.wiring else None

    @property
    def d_head(self) -> int | None:
        """Width of a head."""
        return self.wiring.d_head if self.wiring else None

    @property
    def context_length(self) -> int | None:
        """How many tokens the model was made for."""
        config = self.wiring.config if self.wiring else getattr(self.top, "config", None)
        return getattr(config, "max_position_embeddings", None)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site, with shapes; for a plain module the outputs of its parts, and ``logits``."""
        if self.wiring is not None:
            return tuple(self.wiring.sites())
        paths = (path for path, _ in self.top.named_modules() if path)
        return (*(Site("module", path=path) for path in paths), Site("logits"))

    def site(self, name: str | Site) -> Site:
        """One site, with its shape where that is known.

        Raises:
            BadValue: the model has no such block, or the name is a range.
            UnknownName: there is no such site; names the nearest.
            UnmappedModel: the parts of the model were not found.
        """
        sites = self.sites_at(name)
        if len(sites) != 1:
            raise BadValue(f"it names {len(sites)} sites, and one is needed", where=f"site {name}")

        return sites[0]

    def sites_at(self, patterns: str | Site | Sequence[str | Site]) -> tuple[Site, ...]:
        """The sites that names and ranges stand for, each once, in the order given.

        Ranges are ``resid_post.*``, ``resid_post.4-12``, ``resid_post.::4`` (as Python slices),
        ``resid_post.later`` and ``resid_post.last-quarter`` (the second half, the last quarter);
        commas separate several. ``module:PATH`` is the output of any module, ``module:PATH:in``
        its first input.

        Raises:
            BadValue: the model has no such block, or it is not a range.
            UnknownName: there is no such site; names the nearest.
            UnmappedModel: the parts of the model were not found.
        """
        return resolve(patterns, self.wiring, (self.top, self.module), self.unmapped)

    def forward(self, batch: Batch, *, logits_to_keep: int | None = None, **extra: Any) -> Any:
        """One plain pass: what the module returns for the batch.

        Texts come with mask and explicit positions, without which left-padded rows go wrong; other
        inputs by name, or by place where there is a single one.

        Args:
            batch: what it is given.
            logits_to_keep: for how many last tokens logits are computed, where the module can
                leave out the others; ``None`` means all.
            extra: further arguments of the module.
        """
        return self.call(batch, HookSet(), logits_to_keep=logits_to_keep, **extra)

    def call(
        self,
        batch: Batch,
        hooks: HookSet,
        *,
        context: PassContext | None = None,
        logits_to_keep: int | None = None,
        **extra: Any,
    ) -> Any:
        """A pass that hooks take part in, after those of the contexts that are open.

        Args:
            batch: what it is given.
            hooks: used for this call alone.
            context: what edits know of the pass.
            logits_to_keep: see :meth:`forward`.
            extra: further arguments of the module.
        """
        if self.wiring and self.wiring.unembedding is not None and batch.mask is not None:
            # Torch multiplies strided rows by a frozen weight row by row, each with its own copy
            # of the weight: 400 times slower on 113 prompts, and 6 GB.
            place = Place(self.wiring.unembedding, "in")
            hooks.add(place, lambda x: None if x.is_contiguous() else x.contiguous(), order=1)
        args, kwargs = self._arguments(batch, logits_to_keep, extra)
        with self.occupancy.shared(), running(hooks, self.top, batch, context):
            return self.module(*args, **kwargs)

    def add_hook(self, hooks: HookSet, site: Site, hook: Hook) -> None:
        """Adds a hook at a site."""
        if site.kind == "module":
            module = self._module_at(cast(str, site.path))
            hooks.add(Place(module, site.side), hook)
        elif self.wiring is not None:
            self.wiring.add_hook(hooks, site, hook)
        else:
            hooks.add(Place(self.top, "out"), hook)

    def add_edits(self, hooks: HookSet, edits: Sequence[Edit], *, graph: bool = False) -> None:
        """Adds hooks that make edits, and note what they ask to be read.

        Args:
            hooks: where they are added.
            edits: in list order at one site.
            graph: whether gradients are to reach the edits' values.
        """
        for edit in edits:
            site = self.site(edit.site)
            reads = tuple(self.site(name) for name in edit.reads)
            for read in reads:
                self.add_hook(hooks, read, partial(_note, read))
            change = partial(self._edited, replace(edit, reads=reads), site, graph)
            self.add_hook(hooks, site, change)

    @contextmanager
    def hooked(self, hooks: Mapping[str | Site, Hook]) -> Iterator[None]:
        """While this is open, hooks see, and may change, what passes sites in this thread.

        They take part in every call of the module by the thread that opened it, also of calls by
        hand, in training, and with a graph.

        Args:
            hooks: functions of the tensor at each site, ``[batch, token, *site]``; what one
                returns, if anything, takes the tensor's place.
        """
        layer = HookSet()
        for name, hook in hooks.items():
            self.add_hook(layer, self.site(name), hook)
        with hook_modules(layer):
            yield

    def attach(self, site: Site, hook: Hook) -> "_Attached":
        """Opens :meth:`hooked` at one site, until the result is removed."""
        attached = _Attached()
        attached.enter_context(self.hooked({site: hook}))
        return attached

    def resumed_at(self, block: int, residual: Tensor) -> dict[nn.Module, Any]:
        """What the blocks before one return instead of being run.

        Args:
            block: the first block that is run.
            residual: the output of the block before it, ``[batch, token, d]``.

        Raises:
            BadValue: the model has no such block, or a block before it.
        """
        blocks = self.wiring.blocks if self.wiring else ()
        check_block(block, len(blocks))
        template = self._block_output
        output = residual if template is None else with_tensor(template, residual)

        return {part.module: output for part in blocks[:block]}

    def keep_residual(self, hooks: HookSet, block: int, keep: Hook) -> None:
        """Lets ``keep`` see the output of the block before one, before any edit there."""
        blocks = self.wiring.blocks if self.wiring else ()
        check_block(block, len(blocks))
        hooks.add(Place(blocks[block - 1].module, "out"), keep, order=-1)

    @cached_property
    def _block_output(self) -> tuple[Any, ...] | None:
        """What a block returns beside the residual; ``None`` where that is all it returns.

        Found by running the first block on one token.
        """
        assert self.wiring is not None
        thread = threading.get_ident()

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                raise _FirstBlock(output)

        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        handle = self.wiring.blocks[0].module.register_forward_hook(stop)
        try:
            with unhooked(), torch.no_grad():
                self.top(input_ids=token, use_cache=False)
        except _FirstBlock as found:
            output = found.output
        finally:
            handle.remove()
        if isinstance(output, Tensor):
            return None

        return (output[0], *(None if isinstance(part, Tensor) else part for part in output[1:]))

    def _arguments(
        self, batch: Batch, logits_to_keep: int | None, extra: Mapping[str, Any]
    ) -> tuple[list[Tensor], dict[str, Any]]:
        """What the module is given by place and by name."""
        if batch.mask is None:
            values = list(batch.inputs.values())
            return (values, {}) if len(values) == 1 else ([], dict(batch.inputs))

        positions = batch.positions
        if positions is None:
            positions = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
        wanted = {
            "attention_mask": batch.mask.long(),
            "position_ids": positions,
            "use_cache": False,
            "logits_to_keep": logits_to_keep or 0,
            **extra,
        }
        known = {name: value for name, value in wanted.items() if name in self._accepts}

        return [], {**known, **batch.inputs}

    def _edited(self, edit: Edit, site: Site, graph: bool, x: Tensor) -> Tensor:
        call = current_call()
        context = _context_of(call) if call is not None and call.top is self.top else None
        if graph and edit.carries_gradient:
            torch.set_grad_enabled(True)
        if torch.is_grad_enabled() and (x.requires_grad or edit.carries_gradient):
            # The residual between attention and MLP is then written in place.
            x = x.clone()
        has_tokens = self._has_tokens(x, site, context)

        return edited(edit, site, x, has_tokens=has_tokens, context=context)

    def _has_tokens(self, x: Tensor, site: Site, context: PassContext | None) -> bool:
        if context is None:
            return self.wiring is not None and x.ndim > 2
        if context.width is None or site.kind != "module":
            return context.width is not None
        return x.ndim > 2 and x.shape[1] == context.width

    def _module_at(self, path: str) -> nn.Module:
        for root in (self.top, self.module):
            modules: dict[str, nn.Module] = dict(root.named_modules())
            if path in modules:
                return modules[path]
        raise KeyError(path)


class _Attached(ExitStack):
    def remove(self) -> None:
        self.close()


class _FirstBlock(Exception):
    """The first block has been run."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _note(site: Site, x: Tensor) -> None:
    call = current_call()
    context = None if call is None else _context_of(call)
    if context is not None:
        context.values[site] = x


def _context_of(call: HookedCall) -> PassContext | None:
    """What is known of the pass that a call belongs to; ``None`` for calls by hand."""
    if call.context is None and call.batch is not None:
        call.context = PassContext.of(call.batch)
    context: PassContext | None = call.context

    return context


def check_block(block: int, count: int) -> None:
    """Refuses a block that a run cannot start at.

    Raises:
        BadValue: the model has no such block, or no block before it.
    """
    check(
        1 <= block < count, f"block {block} of {count} cannot be the first to run", where="start"
    )


def _check_not_compiled(module: nn.Module) -> None:
    """Checks that hooks put on the module will be called.

    Raises:
        BadValue: the module, or a part of it, was compiled.
    """
    for path, part in module.named_modules():
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            raise BadValue(
                "the module was compiled, so that hooks put on it later are ignored",
                where=f"module {path}" if path else type(part).__name__,
                mend="Load it without torch.compile",
            )
