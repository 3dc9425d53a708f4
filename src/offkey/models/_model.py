"""The model under test, whose inside can be read, edited and differentiated."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from offkey.checkpoints import fingerprint as fingerprint_of
from offkey.data import Batch
from offkey.errors import BadValue, UnmappedModel
from offkey.models._call import Call, check_not_compiled
from offkey.models._detect import detect_family
from offkey.models._editing import Editing
from offkey.models._edits import Edit
from offkey.models._frame import Frame
from offkey.models._generate import Generation, generate
from offkey.models._names import resolve
from offkey.models._positions import Positions
from offkey.models._read import Request, read
from offkey.models._reading import Reading
from offkey.models._run import Run, run
from offkey.models._sites import Site
from offkey.models._taps import Handle, Visit, on_input, on_output
from offkey.models._weights import perturbed
from offkey.models._wiring import Wiring, unwrapped, wire
from offkey.models.families import Family, family_named
from offkey.models.metrics import Metric

__all__ = ["Model"]


class Model:
    """A network and the names of the places inside it.

    The module stays as it is: hooks are put on for a pass and taken off after it, and with no
    edit its outputs are bitwise what they were. It is put into evaluation mode. Decoders have the
    sites of their :class:`~offkey.models.families.Family`; every module has ``module:PATH``.

    Args:
        module: a causal language model of transformers, bare or in an adapter's wrapping, or any
            ``nn.Module``.
        tokenizer: needed to run texts.
        name: what the model is called in tables.
        adapter: what its adapter is called, if it has one.

    Attributes:
        family: where the parts are; ``None`` for a plain module.
        wiring: the parts themselves, found on this module.
        unmapped: for a language model whose parts were not found, the error that says why; it is
            raised when a named site is asked for.

    Raises:
        BadValue: the module was compiled, so that hooks would be ignored.
    """

    def __init__(
        self, module: nn.Module, *, tokenizer: Any = None, name: str, adapter: str | None = None
    ) -> None:
        check_not_compiled(module)
        self.module = module.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.adapter = adapter
        self.unmapped: UnmappedModel | None = None
        self.wiring: Wiring | None = None
        self._top = unwrapped(module)
        self._frame: Frame | None = None
        self._n_edits = 0

        if isinstance(self._top, PreTrainedModel):
            try:
                model_type = self._top.config.model_type
                family = family_named(model_type) or detect_family(self._top)
                self.wiring = wire(family, self._top)
            except UnmappedModel as error:
                self.unmapped = error
        self._call = Call(module, self._top, self.wiring.unembedding if self.wiring else None)

    def __repr__(self) -> str:
        kind = self.family.name if self.family else type(self._top).__name__
        adapter = f", adapter={self.adapter!r}" if self.adapter else ""
        return f"Model({self.name!r}, {kind}{adapter})"

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
        """Number of blocks; like the next four ``None`` where there are no named sites."""
        return len(self.wiring.blocks) if self.wiring else None

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
        config = self.wiring.config if self.wiring else getattr(self._top, "config", None)
        return getattr(config, "max_position_embeddings", None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over configuration and parameters."""
        return fingerprint_of(self.module)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site, with shapes; for a plain module the outputs of its parts, and ``logits``."""
        if self.wiring is not None:
            return tuple(self.wiring.sites())
        paths = (path for path, _ in self._top.named_modules() if path)
        return (*(Site("module", path=path) for path in paths), Site("logits"))

    def site(self, name: str | Site) -> Site:
        """One site, with its shape where that is known.

        Raises:
            BadValue: the model has no such block, or the name is a range.
            UnknownName: there is no such site; names the nearest.
            UnmappedModel: the parts of the model were not found.
        """
        found = self.sites_at(name)
        if len(found) != 1:
            raise BadValue(f"it names {len(found)} sites, and one is needed", where=f"site {name}")

        return found[0]

    def sites_at(self, patterns: str | Site | Sequence[str | Site]) -> tuple[Site, ...]:
        """The sites that names and ranges stand for, each once, in the order given.

        Ranges are ``resid_post.*``, ``resid_post.4-12``, ``resid_post.::4`` (as Python slices)
        and ``resid_post.later`` and ``resid_post.last-quarter`` (the second half, the last
        quarter); commas part several. ``module:PATH`` is the output of any module,
        ``module:PATH:in`` its first input.

        Raises:
            BadValue: the model has no such block, or it is no range.
            UnknownName: there is no such site; names the nearest.
            UnmappedModel: the parts of the model were not found.
        """
        return resolve(patterns, self.wiring, (self._top, self.module), self.unmapped)

    def read(
        self,
        batch: Batch,
        sites: str | Site | Sequence[str | Site],
        *,
        edit: Sequence[Edit] = (),
        until: str | Site | None = None,
        positions: Positions = "last",
        metric: Metric | None = None,
        gradients: str | Site | Sequence[str | Site] = (),
        logits: bool = False,
        allow_nonfinite: bool = False,
    ) -> Reading:
        """Runs the model once on a batch and keeps what is asked for, reduced at the hooks.

        The pass stops after the last site needed, unless logits or a metric are. Where only some
        logits are needed, only those are computed.

        Args:
            batch: prompts, padded on the left; or inputs without a token axis, whose ``mask`` is
                ``None`` and for which ``positions`` say nothing.
            sites: what to read, by name, range or :class:`Site`.
            edit: changes, in list order at one site.
            until: goes on at least to this site, where an edit beyond the last reading matters.
            positions: the ``"last"`` token (``[batch, *site]``), the ``"mean"`` over real tokens,
                ``"all"`` (``[batch, token, *site]``), or offsets from the end such as ``(-1, -2)``
                (``[batch, k, *site]``).
            metric: a number for each row, in nats.
            gradients: sites where the gradient of the summed metric is wanted, reduced as values
                are.
            logits: whether to keep logits at the positions read; with ``"mean"``, those of the
                last token.
            allow_nonfinite: returns NaN and infinity instead of refusing them.

        Raises:
            NonFinite: NaN or infinity at a site; names the site and the prompt.
            BadInput: a prompt is shorter than an offset reaches back.
            BadValue: a setting, a block number or an edit does not fit.
            UnknownName: there is no such site.
        """
        request = Request(
            sites=self.sites_at(sites),
            edit=edit,
            until=None if until is None else self.site(until),
            positions=positions,
            metric=metric,
            gradients=self.sites_at(gradients),
            logits=logits,
            allow_nonfinite=allow_nonfinite,
        )

        return read(self, batch, request)

    def generate(
        self,
        batch: Batch,
        *,
        max_new_tokens: int,
        edit: Sequence[Edit] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """Continues each prompt, token by token, with cached keys and values.

        Args:
            batch: prompts, padded on the left.
            max_new_tokens: at most so many; a row ends at the end-of-text token.
            edit: changes, whose ``positions`` are ``"prompt"``, ``"new"`` or ``"all"`` tokens.
                The last token sampled is never run, so nothing is edited there.
            temperature: 0 takes the most probable token.
            seed: with a temperature, a row's tokens depend on it and the prompt's id alone.
        """
        return generate(self, batch, max_new_tokens, edit=edit, temperature=temperature, seed=seed)

    def run(
        self,
        texts: Sequence[str] | Sequence[Sequence[Mapping[str, str]]],
        read: str | Site | Sequence[str | Site],
        *,
        positions: Literal["last", "all"] = "last",
    ) -> Run:
        """Reads a few texts or chats: ``model.run(["Hello"], "resid_post.3")["resid_post.3"]``.

        Raises:
            BadValue: the model has no tokenizer.
        """
        return run(self, texts, self.sites_at(read), positions)

    @contextmanager
    def edited(self, edits: Sequence[Edit]) -> Iterator["Model"]:
        """While this is open, every pass has the edits; afterwards none is left, come what may.

        Contexts nest: outer edits come first. Edits of single prompts, and functions, need the
        model to be run through :meth:`read` or :meth:`generate`.
        """
        with ExitStack() as stack:
            for edit in edits:
                site = self.site(edit.site)
                handle = self.attach(site, self._editor(edit, site))
                stack.callback(handle.remove)
            self._n_edits += len(edits)
            try:
                yield self
            finally:
                self._n_edits -= len(edits)

    def perturbed(self, delta: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """While this is open, weights have ``delta`` added; afterwards they are bitwise as before.

        Args:
            delta: what to add, by parameter name as in ``module.named_parameters()``.

        Raises:
            UnknownName: there is no such parameter.
            BadValue: a shape does not fit.
        """
        return perturbed(self.module, self._top, delta)

    @property
    def is_edited(self) -> bool:
        """Whether an :meth:`edited` context is open."""
        return self._n_edits > 0

    @contextmanager
    def running(self, frame: Frame) -> Iterator[None]:
        """Tells edits which pass they are part of."""
        before, self._frame = self._frame, frame
        try:
            yield
        finally:
            self._frame = before

    def attach(self, site: Site, visit: Visit) -> Handle:
        """Lets a function see, and change, what passes a site, until the handle is removed."""
        if site.kind == "module":
            module = self._module_at(cast(str, site.path))
            return (on_input if site.side == "in" else on_output)(module, visit)
        if self.wiring is not None:
            return self.wiring.attach(site, visit)
        return on_output(self._top, visit)

    def forward(self, batch: Batch, *, logits_to_keep: int | None = None, **extra: Any) -> Any:
        """One plain pass: what the module returns for the batch."""
        return self._call(batch, logits_to_keep, **extra)

    def _editor(self, edit: Edit, site: Site) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            frame = self._frame
            if torch.is_grad_enabled() and x.requires_grad:
                # The residual between attention and MLP is then written in place.
                x = x.clone()
            return Editing(edit, site, x, self._has_tokens(x, site, frame), frame).result()

        return change

    def _has_tokens(self, x: Tensor, site: Site, frame: Frame | None) -> bool:
        if frame is None:
            return self.wiring is not None and x.ndim > 2
        if frame.width is None or site.kind != "module":
            return frame.width is not None
        return x.ndim > 2 and x.shape[1] == frame.width

    def _module_at(self, path: str) -> nn.Module:
        for root in (self._top, self.module):
            modules: dict[str, nn.Module] = dict(root.named_modules())
            if path in modules:
                return modules[path]
        raise KeyError(path)
