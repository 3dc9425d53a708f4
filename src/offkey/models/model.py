"""The model under test, whose inside can be read, edited and differentiated."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from offkey.checkpoints import fingerprint as fingerprint_of
from offkey.data import Batch, Prompts, pack
from offkey.errors import BadValue
from offkey.models.edits import Edit
from offkey.models.generation import Generation, Steps, generate
from offkey.models.hooks import HookSet, hook_modules, open_contexts
from offkey.models.network import Network
from offkey.models.outputs import Metric
from offkey.models.passing import Pass, Positions, Reading, Sites
from offkey.models.reruns import CachedPrefix, ResumedForward
from offkey.models.sites import Site
from offkey.models.weights import perturbed

__all__ = ["Model", "TextReadings"]


class Model(Network):
    """A network and the names of the places inside it.

    The module stays as it is: hooks are put on for a pass and taken off after it, and with no
    edit its outputs are bitwise what they were. It is put into evaluation mode. Decoders have the
    sites of their :class:`~offkey.models.families.Family`; every module has ``module:PATH``.

    Several threads may use one model: each gets its own values and edits. What cannot be had at
    once is refused: running it while another thread has its weights perturbed.

    Args:
        module: a causal language model of transformers, bare or in an adapter's wrapping, or any
            ``nn.Module``.
        tokenizer: needed to run texts.
        name: what the model is called in tables.
        adapter: what its adapter is called, if it has one.

    Attributes:
        wiring: the parts of a decoder, found on this module; ``None`` for a plain module.
        unmapped: for a language model whose parts were not found, the error that says why; it is
            raised when a named site is asked for.

    Raises:
        BadValue: the module was compiled, so that hooks would be ignored.
    """

    def __init__(
        self, module: nn.Module, *, tokenizer: Any = None, name: str, adapter: str | None = None
    ) -> None:
        super().__init__(module, name=name)
        self.tokenizer = tokenizer
        self.adapter = adapter

    def __repr__(self) -> str:
        kind = self.family.name if self.family else type(self.top).__name__
        adapter = f", adapter={self.adapter!r}" if self.adapter else ""
        return f"Model({self.name!r}, {kind}{adapter})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over configuration and parameters."""
        return fingerprint_of(self.module)

    def passing(self, batch: Batch, edits: Sequence[Edit] = (), *, graph: bool = False) -> Pass:
        """A pass over a batch, to be opened by ``with`` and run as often as wanted.

        Args:
            batch: prompts, padded on the left; or inputs without a token axis, whose ``mask`` is
                ``None``.
            edits: changes made in each run, in list order at one site.
            graph: whether runs keep their graph, for :meth:`Pass.gradients`.

        Example:
            >>> with model.passing(batch, graph=True) as p:  # doctest: +SKIP
            ...     p.run("resid_post.*")
            ...     grads = p.gradients(TopLogProb(), "resid_post.3")
        """
        return Pass(self, batch, edits, graph=graph)

    def read(
        self,
        batch: Batch,
        sites: Sites,
        *,
        edit: Sequence[Edit] = (),
        until: str | Site | None = None,
        positions: Positions = "last",
        metric: Metric | None = None,
        gradients: Sites = (),
        logits: bool = False,
        allow_nonfinite: bool = False,
    ) -> Reading:
        """Runs the model once on a batch and keeps what is asked for, reduced at the hooks.

        A pass with one run; the arguments and errors are those of :meth:`Pass.run`, and ``edit``
        holds its edits.
        """
        with self.passing(batch, edit) as p:
            return p.run(
                sites,
                positions=positions,
                until=until,
                metric=metric,
                gradients=gradients,
                logits=logits,
                allow_nonfinite=allow_nonfinite,
            )

    def steps(
        self,
        batch: Batch,
        *,
        reads: Sites = (),
        edits: Sequence[Edit] = (),
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Steps:
        """Generation one token at a time; see :class:`Steps`.

        Args:
            batch: prompts, padded on the left.
            reads: sites whose values at the token just run come with each step.
            edits: changes, whose ``positions`` are ``"prompt"``, ``"new"``, ``"all"``, or token
                numbers from 0.
            max_new_tokens: rows end after so many, or at the end-of-text token.
            temperature: 0 takes the most probable token.
            seed: with a temperature, a row's tokens depend on it and the prompt's id alone.
        """
        return Steps(
            self,
            batch,
            tokenizer=self.tokenizer,
            reads=reads,
            edits=edits,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )

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
            edit: as the ``edits`` of :meth:`steps`. The last token sampled is never run, so
                nothing is edited there.
            temperature: 0 takes the most probable token.
            seed: with a temperature, a row's tokens depend on it and the prompt's id alone.
        """
        steps = self.steps(
            batch,
            edits=edit,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )

        return generate(steps)

    def cached_prefix(self, batch: Batch) -> CachedPrefix:
        """The last token again and again, over cached keys and values of those before it."""
        return CachedPrefix(self, batch)

    def resumed_forward(self, block: int) -> ResumedForward:
        """The later blocks again and again, from what the earlier ones gave once."""
        return ResumedForward(self, block)

    def unembed(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch vocab"]:
        """Logits that the model would give if ``h`` were the residual after its last block.

        Final norm, projection with its bias, logit scale and soft cap, as in the model itself; so
        with the last ``resid_post`` these are its logits.

        Raises:
            UnmappedModel: the parts of the model were not found.
            BadValue: the model has no unembedding.
        """
        if self.wiring is None:
            self.site("final")  # says why there is none
            raise BadValue("a plain module has no unembedding", where=f"model {self.name}")

        return self.wiring.unembed(h)

    def run(
        self,
        texts: Sequence[str] | Sequence[Sequence[Mapping[str, str]]],
        read: Sites,
        *,
        positions: Literal["last", "all"] = "last",
    ) -> "TextReadings":
        """Reads a few texts or chats: ``model.run(["Hello"], "resid_post.3")["resid_post.3"]``.

        Raises:
            BadValue: the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise BadValue("texts need a tokenizer", where=f"model {self.name}")
        sites = self.sites_at(read)
        column = "prompt" if all(isinstance(text, str) for text in texts) else "messages"
        prompts = Prompts({"id": [str(n) for n in range(len(texts))], column: list(texts)})
        readings = [
            self.read(batch, sites, positions=positions)
            for batch in pack(prompts, self.tokenizer, context_length=self.context_length)
        ]

        return TextReadings.joined(readings, sites, prompts.ids, positions)

    @contextmanager
    def edited(self, edits: Sequence[Edit]) -> Iterator["Model"]:
        """While this is open, every pass of this thread has the edits; afterwards none is left.

        Other threads run the model without them. Contexts nest: outer edits come first. Edits of
        single prompts, and functions, need a pass of :class:`Model` and not a call by hand.
        """
        hooks = HookSet(edited=self.top)
        self.add_edits(hooks, edits)
        with hook_modules(hooks):
            yield self

    @property
    def is_edited(self) -> bool:
        """Whether this thread has an :meth:`edited` context open."""
        return any(hooks.edited is self.top for hooks in open_contexts())

    def perturbed(self, delta: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """While this is open, weights have ``delta`` added; afterwards they are bitwise as before.

        Args:
            delta: what to add, by parameter name as in ``module.named_parameters()``.

        Raises:
            UnknownName: there is no such parameter.
            BadValue: a shape does not fit.
            ModelBusy: another thread has a pass open; while this is open, its passes are refused.
        """
        return perturbed(self.module, self.top, delta)


@dataclass(frozen=True)
class TextReadings:
    """Values of a few texts, in the order given.

    Attributes:
        values: ``[batch, *site]`` for each site, or ``[batch, token, *site]``; rows are padded
            on the left with zeros.
        mask: True at real tokens.
    """

    values: Mapping[Site, Tensor]
    mask: Bool[Tensor, "batch token"]

    def __getitem__(self, site: Site | str) -> Tensor:
        return self.values[Site.parse(site) if isinstance(site, str) else site]

    @classmethod
    def joined(
        cls,
        readings: Sequence[Reading],
        sites: Sequence[Site],
        ids: Sequence[str],
        positions: Literal["last", "all"],
    ) -> Self:
        """Readings of several batches as one, in the order of ``ids``."""
        order = [name for reading in readings for name in reading.batch.ids]
        back = torch.tensor([order.index(name) for name in ids])
        width = max(_mask(reading).shape[1] for reading in readings)

        def gathered(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(parts))[back.to(parts[0].device)]

        mask = gathered([_padded(_mask(reading), width) for reading in readings])
        values = {}
        for site in sites:
            parts = [reading[site] for reading in readings]
            if positions == "all":
                whole = gathered([_padded(part, width) for part in parts])
                padding = ~mask.view(*mask.shape, *[1] * (whole.ndim - 2))
                values[site] = whole.masked_fill(padding, 0)
            else:
                values[site] = gathered(parts)

        return cls(values, mask)


def _mask(reading: Reading) -> Tensor:
    if reading.batch.mask is None:
        raise BadValue("the batch has no tokens", where="Model.run")
    return reading.batch.mask


def _padded(x: Tensor, width: int) -> Tensor:
    """Puts zeros before the tokens, up to ``width`` of them."""
    missing = width - x.shape[1]

    return torch.cat([x.new_zeros(len(x), missing, *x.shape[2:]), x], dim=1) if missing else x
