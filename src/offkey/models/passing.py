"""A pass: one batch run through a model, read, edited, differentiated and resumed.

Everything of a pass lives on the :class:`Pass`: its edits, its graph, the residuals it keeps.
Nothing of it lives on the model, so that passes of several threads do not meet.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from offkey.data import Batch, Role
from offkey.errors import BadInput, BadValue, NonFinite, check
from offkey.models.edits import Edit, PassContext, TokenPositions, row_positions
from offkey.models.hooks import HookSet, current_call, open_contexts, tensor_of
from offkey.models.network import Network
from offkey.models.outputs import Metric
from offkey.models.sites import Site

__all__ = ["Pass", "Positions", "Reading", "Sites"]

Positions = Literal["last", "mean", "all"] | TokenPositions
"""``"last"`` token, ``"mean"`` over real tokens, ``"all"`` tokens, or numbers of tokens: −1 is the
last of a row, 0 its first; by prompt id where rows differ, of each as many."""

Sites = str | Site | Sequence[str | Site]


@dataclass(frozen=True)
class Reading:
    """Values read inside a model, after any edit at that site, in the dtype computed.

    Attributes:
        batch: what the model was given.
        values: ``[batch, *site]`` for each site, or ``[batch, token, *site]`` if all positions
            were asked for.
        grads: gradient of the summed metric at each site, shaped as ``values``.
        metric: value of the metric for each row, in nats.
        logits: ``[batch, vocab]`` at the read position.
    """

    batch: Batch
    values: Mapping[Site, Tensor]
    grads: Mapping[Site, Tensor] = field(default_factory=dict)
    metric: Float[Tensor, " batch"] | None = None
    logits: Float[Tensor, "batch vocab"] | None = None

    def __getitem__(self, site: Site | str) -> Tensor:
        return self.values[Site.parse(site) if isinstance(site, str) else site]


class Pass:
    """A batch in a model, to be run as often as wanted while it is open.

    Args:
        network: the model.
        batch: prompts, padded on the left; or inputs without a token axis, whose ``mask`` is
            ``None`` and for which positions say nothing.
        edits: changes made in each run, in list order at one site.
        graph: whether runs keep their graph, from the first site read or the first edit whose
            value carries a gradient; then ``tensors`` and ``logits`` are part of it.
        context: what edits know of the pass, where it is not a whole pass over the batch.
        extra: further arguments of the module, such as cached keys and values.

    Attributes:
        batch: the batch, on the model's device.
        tensors: with a graph, what passed each site read, ``[batch, token, *site]``.
        logits: with a graph, logits of the last token, ``[batch, vocab]``, in the last run.
        residuals: outputs of the block before each block that a run was resumed at.

    Raises:
        BadValue: a setting, a block number or an edit does not fit.
        UnknownName: there is no such site.
    """

    def __init__(
        self,
        network: Network,
        batch: Batch,
        edits: Sequence[Edit] = (),
        *,
        graph: bool = False,
        context: PassContext | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.edits, self.graph = network, tuple(edits), graph
        self.batch = batch if _is_on(batch, network.device) else batch.to(network.device)
        self.tensors: dict[Site, Tensor] = {}
        self.logits: Float[Tensor, "batch vocab"] | None = None
        self.residuals: dict[int, Tensor] = {}
        self._context = context
        self._read: dict[int, dict[Site, Tensor]] = {}
        self._extra = dict(extra or {})
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(self.network.occupancy.shared())
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(
        self,
        sites: Sites = (),
        *,
        positions: Positions = "last",
        until: str | Site | None = None,
        metric: Metric | None = None,
        gradients: Sites = (),
        logits: bool = False,
        from_block: int | None = None,
        residual: Float[Tensor, "batch token d"] | None = None,
        allow_nonfinite: bool = False,
    ) -> Reading:
        """Runs the model once and keeps what is asked for, reduced at the hooks.

        The run stops after the last site needed, unless logits, a metric or a graph are. Where
        only some logits are needed, only those are computed.

        Args:
            sites: what to read, by name, range or :class:`Site`.
            positions: the ``"last"`` token (``[batch, *site]``), the ``"mean"`` over real tokens,
                ``"all"`` (``[batch, token, *site]``), or numbers such as ``(-1, -2)`` or ``(0,)``
                (``[batch, k, *site]``); see :data:`Positions`.
            until: goes on at least to this site, where an edit beyond the last reading matters.
            metric: a number for each row, in nats.
            gradients: sites where the gradient of the summed metric is wanted, reduced as values
                are.
            logits: whether to keep logits at the positions read; with ``"mean"``, those of the
                last token.
            from_block: the first block that is run. The blocks before it are run the first time,
                and what they gave is kept in ``residuals``; values are bitwise those of a whole
                run. Edits before the residual have had their effect on it.
            residual: the output of the block before that, instead of what was kept.
            allow_nonfinite: returns NaN and infinity instead of refusing them.

        Raises:
            NonFinite: NaN or infinity at a site; names the site and the prompt.
            BadInput: a prompt is shorter than a position reaches.
            BadValue: a setting, a block number or an edit does not fit.
            UnknownName: there is no such site.
        """
        network = self.network
        request = _Request(
            sites=network.sites_at(sites),
            until=None if until is None else network.site(until),
            positions=positions,
            metric=metric,
            gradients=network.sites_at(gradients),
            logits=logits,
            graph=self.graph,
            allow_nonfinite=allow_nonfinite,
        )
        request.check(self.batch)
        recorder = _Recorder(request, self.batch, set(request.wanted))
        context, output = self._fresh_context(from_block, residual), None

        with torch.inference_mode(False), _mode(request, self.edits):
            hooks = self._hooks(recorder, _Resume(from_block, residual))
            try:
                raw = network.call(
                    self.batch,
                    hooks,
                    context=context,
                    logits_to_keep=request.logits_to_keep(self.batch),
                    **self._extra,
                )
                output = tensor_of(raw) if request.needs_output else None
            except _Reached as reached:
                if reached.recorder is not recorder:
                    raise
            recorder.check_reached()
            if self.graph:
                self._keep_graph(recorder, output)
            with torch.inference_mode(False):
                return _reading(recorder, output)

    def gradients(
        self, of: Tensor | Metric, sites: Sites, cotangent: Tensor | None = None
    ) -> dict[Site, Tensor]:
        """Gradients at sites, all tokens, through the graph of the last run; it is kept.

        Args:
            of: a tensor computed from ``tensors`` or ``logits``, or a metric of the logits.
            sites: read in the last run.
            cotangent: the gradient is of the sum of ``of`` times this; left out, of the sum.

        Raises:
            BadValue: there is no graph, or the site was not read.
            NonFinite: a gradient is NaN or infinite at the last token; names site and prompt.
        """
        check(
            bool(self.tensors),
            "the pass keeps no graph",
            where="gradients",
            mend="Open it with graph=True, and run it first",
        )
        chosen = self.network.sites_at(sites)
        for site in chosen:
            check(site in self.tensors, "it was not read in the last run", where=f"site {site}")
        with torch.inference_mode(False), torch.enable_grad():
            if isinstance(of, Metric):
                assert self.logits is not None  # a run with a graph goes to the end
                of = of(self.logits, self.batch)
            grads = torch.autograd.grad(
                of,
                [self.tensors[site] for site in chosen],
                torch.ones_like(of) if cotangent is None else cotangent,
                retain_graph=True,
                materialize_grads=True,
            )
        by_site = dict(zip(chosen, grads, strict=True))
        named = [("gradient at", str(site), self._at_last(x)) for site, x in by_site.items()]
        _check_finite(named, self.batch, None)

        return by_site

    def _at_last(self, x: Tensor) -> Tensor:
        mask = self.batch.mask
        return x if mask is None or x.shape[:2] != mask.shape else x[:, -1]

    def _hooks(self, recorder: "_Recorder", resume: "_Resume") -> HookSet:
        """The edits, then what is recorded, then what stands in for blocks that are not run."""
        request, hooks = recorder.request, HookSet()
        resume.check(request)
        self.network.add_edits(hooks, self.edits, graph=self.graph)
        for site in sorted(request.wanted):
            self.network.add_hook(hooks, site, recorder.hook(site))
        if resume.block is not None:
            self._resume(hooks, resume.block, resume.residual)

        return hooks

    def _fresh_context(
        self, from_block: int | None, residual: Tensor | None
    ) -> PassContext | None:
        """What a run's edits know, if there are any; what they read before a residual is kept."""
        context = self._context
        if context is None and not (self.edits or open_contexts()):
            return None
        read = {} if from_block is None or residual is not None else self._read.get(from_block, {})

        return replace(context or PassContext.of(self.batch), values=dict(read))

    def _resume(self, hooks: HookSet, block: int, residual: Tensor | None) -> None:
        if residual is None:
            residual = self.residuals.get(block)
        if residual is not None:
            residual = residual.to(self.network.device)
            if self.graph and residual.requires_grad:
                torch.set_grad_enabled(True)  # an edit before it carries a gradient
            hooks.outputs = self.network.resumed_at(block, residual)
            return

        def keep(x: Tensor) -> None:
            with torch.inference_mode(False):
                self.residuals[block] = x.clone()
            call = current_call()
            if call is not None and call.context is not None:
                self._read[block] = dict(call.context.values)

        self.network.keep_residual(hooks, block, keep)

    def _keep_graph(self, recorder: "_Recorder", output: Tensor | None) -> None:
        self.tensors, self.logits = recorder.tracked, None
        if output is not None:
            self.logits = output if self.batch.mask is None else output[:, -1]


@dataclass(frozen=True)
class _Request:
    """What one run is asked for; see :meth:`Pass.run`."""

    sites: tuple[Site, ...]
    until: Site | None = None
    positions: Positions = "last"
    metric: Metric | None = None
    gradients: tuple[Site, ...] = ()
    logits: bool = False
    graph: bool = False
    allow_nonfinite: bool = False

    @property
    def wanted(self) -> set[Site]:
        """The sites that must be reached."""
        until = () if self.until is None else (self.until,)
        return {*self.sites, *self.gradients, *until}

    @property
    def tracked(self) -> frozenset[Site]:
        """The sites that gradients go back to."""
        return frozenset((*self.gradients, *(self.sites if self.graph else ())))

    @property
    def needs_output(self) -> bool:
        """Whether the run must reach the end."""
        return self.logits or self.metric is not None or self.graph

    def check(self, batch: Batch) -> None:
        """Checks the settings once before the run."""
        _check_positions(self.positions, batch)
        check(
            not self.gradients or self.metric is not None,
            "gradients are of a metric, and none was given",
            where="gradients",
            mend="Give metric=offkey.models.default_metric(batch)",
        )

    def logits_to_keep(self, batch: Batch) -> int | None:
        """For how many last tokens logits are needed; ``None`` means all."""
        reach = [1]
        reads_logits = any(site.kind == "logits" for site in (*self.sites, *self.gradients))
        if self.logits or reads_logits:
            if self.positions == "all" or (self.positions == "mean" and reads_logits):
                return None
            if not isinstance(self.positions, str) and batch.mask is not None:
                reach.append(-int(_from_end(self.positions, batch).min()))
        if self.metric is not None and self.metric.positions == "response":
            if batch.roles is None:
                return None
            starts = (batch.roles == Role.RESPONSE).any(0).nonzero()
            first = int(starts[0]) if len(starts) else 1
            reach.append(batch.roles.shape[1] - first + 1)

        return max(reach)


@dataclass(frozen=True)
class _Resume:
    """Where a run starts, and from what."""

    block: int | None
    residual: Tensor | None

    def check(self, request: _Request) -> None:
        if self.block is None:
            what = "a residual is the input of a block"
            check(self.residual is None, what, where="residual", mend="Give from_block too")
            return
        what = f"the run starts at block {self.block}, after it"
        for site in request.wanted:
            check(not self._skips(site), what, where=f"site {site}")

    def _skips(self, site: Site) -> bool:
        block = self.block or 0
        if site.kind == "embed":
            return True
        is_start = site.kind == "resid_post" and site.block == block - 1
        return site.block is not None and site.block < block and not is_start


class _Reached(Exception):
    """Everything that was asked for has been read."""

    def __init__(self, recorder: "_Recorder") -> None:
        super().__init__()
        self.recorder = recorder


@dataclass
class _Recorder:
    """Sees the tensors of a run and keeps what was asked for."""

    request: _Request
    batch: Batch
    pending: set[Site]
    values: dict[Site, Tensor] = field(default_factory=dict)
    tracked: dict[Site, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.is_tracked = self.request.tracked
        self.is_read = frozenset(self.request.sites)

    def hook(self, site: Site) -> Callable[[Tensor], Tensor | None]:
        """The hook that belongs to a site."""
        return partial(self._see, site)

    def _see(self, site: Site, x: Tensor) -> Tensor | None:
        if site not in self.pending:
            raise BadValue("its module runs more than once in a pass", where=f"site {site}")
        self.pending.remove(site)
        tracked = site in self.is_tracked
        if tracked:
            x = self.tracked[site] = _tracked(site, x)
        if site in self.is_read:
            with torch.inference_mode(False), torch.no_grad():
                self.check_tokens(site, x)
                self.values[site] = self.reduced(x.detach())
        if not self.pending and not self.request.needs_output:
            raise _Reached(self)

        return x if tracked else None

    def check_tokens(self, site: Site, x: Tensor) -> None:
        """Refuses to choose tokens of a module's tensor that has no axis of them."""
        mask = self.batch.mask
        if mask is None or site.kind != "module" or self.request.positions == "all":
            return
        if tuple(x.shape[:2]) != tuple(mask.shape):
            raise BadValue(
                f"its tensor {tuple(x.shape)} has no axis of {mask.shape[1]} tokens",
                where=f"site {site}",
                mend="Read it with positions='all', which keeps it as it is",
            )

    @cached_property
    def columns(self) -> Int[Tensor, "#batch k"]:
        """The positions asked for, counted from the end."""
        assert not isinstance(self.request.positions, str)
        return _from_end(self.request.positions, self.batch)

    def reduced(self, x: Tensor, positions: Positions | None = None) -> Tensor:
        """What is kept of ``[batch, token, *site]``, in memory of its own.

        At the positions that were asked for, if none are given; all of it where there are no
        tokens.
        """
        positions = self.request.positions if positions is None else positions
        if positions == "all" or self.batch.mask is None:
            return x.clone()
        if positions == "last":
            return x[:, -1].clone()
        if positions == "mean":
            return _mean(x, self.batch.mask)
        columns = self.columns.to(x.device)
        if len(columns) == 1:
            return x[:, columns[0]]

        return x[torch.arange(len(x), device=x.device)[:, None], columns]

    def check_reached(self) -> None:
        """Refuses a run that ended before it came to a site."""
        if self.pending:
            raise BadValue("the forward pass never gets there", where=f"site {min(self.pending)}")


def _reading(recorder: _Recorder, output: Tensor | None) -> Reading:
    request, batch = recorder.request, recorder.batch
    metric = logits = None
    grads: dict[Site, Tensor] = {}

    if output is not None and request.metric is not None:
        last = batch.mask is not None and request.metric.positions == "last"
        metric = request.metric(output[:, -1] if last else output, batch)
        grads = _gradients(recorder, metric)
        metric = metric.detach()
    if output is not None and request.logits:
        where = "last" if request.positions == "mean" else request.positions
        logits = output.detach()
        logits = recorder.reduced(logits, where)

    values = {site: recorder.values[site] for site in request.sites}
    if not request.allow_nonfinite:
        named = [("site", str(site), x) for site, x in values.items()]
        named += [("gradient at", str(site), x) for site, x in grads.items()]
        named += [("the", "metric", metric)] if metric is not None else []
        named += [("the", "logits", logits)] if logits is not None else []
        _check_finite(named, batch, batch.mask if request.positions == "all" else None)

    return Reading(batch, values, grads, metric, logits)


def _gradients(recorder: _Recorder, metric: Tensor) -> dict[Site, Tensor]:
    sites = recorder.request.gradients
    if not sites:
        return {}
    if not metric.requires_grad:
        raise BadValue("the metric does not depend on the model's output", where="metric")
    tensors = [recorder.tracked[site] for site in sites]
    grads = torch.autograd.grad(
        metric.sum(),
        tensors,
        materialize_grads=True,
        retain_graph=recorder.request.graph or None,
    )

    for site, grad in zip(sites, grads, strict=True):
        recorder.check_tokens(site, grad)

    return {site: recorder.reduced(grad) for site, grad in zip(sites, grads, strict=True)}


def _tracked(site: Site, x: Tensor) -> Tensor:
    """The tensor from which gradients are wanted; a leaf where no other leads to it.

    The pass keeps no graph before the first of them. Parameters are left as they are: freezing
    them would change how products are folded, and with it the last bits.
    """
    torch.set_grad_enabled(True)
    if x.requires_grad and (site.kind in ("attn_in", "mlp_in") or site.side == "in"):
        # Others may use the same tensor: the residual, or the other sublayer of a parallel block.
        return x.view_as(x)
    # What heads add is no tensor of the model's own: no other gradient goes through it.
    if x.requires_grad and site.kind != "head_out":
        return x
    # The residual between attention and MLP goes on past the hook in the same tensor.
    return (x if site.kind == "resid_mid" else x.detach()).requires_grad_()


def _mode(request: _Request, edits: Sequence[Edit]) -> AbstractContextManager[object]:
    # What an edit's function keeps may be trained on, which tensors of inference mode cannot be.
    if request.tracked or request.graph or edits or open_contexts():
        return torch.no_grad()

    return torch.inference_mode()


def _check_finite(
    named: Sequence[tuple[str, str, Tensor]], batch: Batch, mask: Bool[Tensor, "..."] | None
) -> None:
    if not named:
        return
    flags = [value.isfinite().all() for _, _, value in named]
    # One wait for the device, not one a site.
    fine = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    for (what, name, value), ok in zip(named, fine, strict=True):
        if ok or not bool((rows := _bad_rows(value, mask)).any()):
            continue
        raise NonFinite(
            "NaN or infinity",
            where=f"{what} {name}, prompt {batch.ids[int(rows.int().argmax())]}",
            mend="Load the model in float32, or pass allow_nonfinite=True to see the values",
        )


def _bad_rows(value: Tensor, mask: Bool[Tensor, "batch token"] | None) -> Bool[Tensor, " batch"]:
    """Which rows are not finite; padding does not count."""
    bad = ~value.isfinite()
    if mask is not None and tuple(bad.shape[:2]) == tuple(mask.shape):
        bad = bad & mask.to(bad.device).view(*mask.shape, *[1] * (bad.ndim - 2))

    return bad.flatten(1).any(1) if bad.ndim > 1 else bad


def _is_on(batch: Batch, device: torch.device) -> bool:
    return all(value.device == device for value in batch.inputs.values())


def _check_positions(positions: Positions, batch: Batch) -> None:
    """Checks positions once before the run.

    Raises:
        BadValue: they are no positions.
        BadInput: a prompt is shorter than a position reaches.
    """
    if positions in ("last", "mean", "all"):
        return
    if isinstance(positions, str) or not positions:
        raise BadValue(
            f"{positions!r} is no choice of tokens",
            where="positions",
            mend="Use 'last', 'mean', 'all' or numbers such as (-1, -2)",
        )
    if batch.mask is not None:
        _from_end(positions, batch)


def _from_end(positions: TokenPositions, batch: Batch) -> Int[Tensor, "#batch k"]:
    """Where the positions of each row are, counted from the end: −1 is the last token.

    Raises:
        BadInput: a prompt is shorter than a position reaches, or has none.
    """
    if isinstance(positions, Mapping):
        counts = [len(positions.get(name, ())) for name in batch.ids]
        for name, count in zip(batch.ids, counts, strict=True):
            what = f"{count} positions are given for it, and {max(counts)} for others"
            check(count == max(counts) > 0, what, where=f"prompt {name}", error=BadInput)
    assert batch.mask is not None
    numbers = row_positions(positions, batch.ids)
    lengths = batch.mask.sum(1).cpu()[:, None]
    beyond = ((numbers >= lengths) | (numbers < -lengths)).any(1)
    if bool(beyond.any()):
        row = int(beyond.int().argmax())
        of_row = numbers.expand(len(batch), -1)[row].tolist()
        wrong = next(n for n in of_row if not -int(lengths[row]) <= n < int(lengths[row]))
        what = f"it has {int(lengths[row])} tokens, and position {wrong} was asked for"
        raise BadInput(what, where=f"prompt {batch.ids[row]}")
    if bool((numbers < 0).all()):
        return numbers

    return torch.where(numbers < 0, numbers, numbers - lengths)


def _mean(x: Tensor, mask: Bool[Tensor, "batch token"] | None) -> Tensor:
    if mask is None:
        return x.float().mean(1).to(x.dtype)
    real = mask[:, -x.shape[1] :].to(x.device).view(*x.shape[:2], *[1] * (x.ndim - 2))
    total = torch.where(real, x, 0).sum(1, dtype=torch.float32 if x.dtype.itemsize < 4 else None)

    return (total / real.sum(1)).to(x.dtype)
