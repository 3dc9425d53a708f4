"""A Gaussian carried from layer to layer of a model that is a sequence of modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from offkey.errors import BadInput, BadValue, UnmappedModel
from offkey.estimate.gaussian import transitions as steps
from offkey.estimate.gaussian.elementwise import Method
from offkey.estimate.gaussian.functions import for_module
from offkey.estimate.gaussian.normal import Normal, fit
from offkey.estimate.gaussian.transitions import Transition, gated_by
from offkey.models import Model

__all__ = [
    "Masks",
    "Closure",
    "PropagationSettings",
    "Layer",
    "sampled",
    "sampled_error",
    "run",
    "Walking",
    "Rule",
    "Residual",
    "register",
    "rule_for",
    "propagate",
    "Walk",
]

Masks = Mapping[str, Bool[Tensor, "d d"]] | Callable[[str, int], Bool[Tensor, "d d"] | None]
Closure = Callable[[Float[Tensor, "d d"], Bool[Tensor, "d d"]], Float[Tensor, "d d"]]
Layer = nn.Module | Callable[[Float[Tensor, "n d"]], Float[Tensor, "n e"]]


@dataclass(frozen=True)
class PropagationSettings:
    """How a Gaussian is carried through a model.

    Attributes:
        covariance: ``"full"``, or ``"diagonal"``: variances only.
        mask: which covariances are kept at each layer: symmetric matrices by the layer's name
            (``"input"`` before the first), or a function of name and width. A layer without a
            mask keeps all.
        closure: maps a covariance and a mask to the covariance that is kept; ``None`` sets the
            other entries to zero, after which the matrix may not be positive definite.
        method: how pairs go through elementwise functions; see :func:`through`.
        order: last term where ``method="series"``.
        sampled: names of layers that are sampled instead of computed; ``True`` means every
            layer without a rule.
        draws: how many rows are drawn for a sampled layer.
        seed: of the draws.

    Raises:
        BadValue: a setting outside what is allowed.
    """

    covariance: Literal["full", "diagonal"] = "full"
    mask: Masks | None = None
    closure: Closure | None = None
    method: Method = "exact"
    order: int = 8
    sampled: bool | frozenset[str] = frozenset()
    draws: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.sampled, bool):
            object.__setattr__(self, "sampled", frozenset(self.sampled))
        if self.covariance not in ("full", "diagonal"):
            raise BadValue(
                f"there is no covariance {self.covariance!r}",
                where="PropagationSettings",
                mend="Use 'full' or 'diagonal'",
            )
        if self.draws < 2:
            raise BadValue(
                f"{self.draws} draws", where="PropagationSettings", mend="Use two or more"
            )

    def generator(self) -> torch.Generator:
        """A fresh generator of the draws."""
        return torch.Generator().manual_seed(self.seed)

    def draws_through(self, name: str, has_rule: bool) -> bool:
        """Whether a layer is sampled."""
        if isinstance(self.sampled, bool):
            return self.sampled and not has_rule

        return name in self.sampled

    def closed(self, name: str, normal: Normal) -> Normal:
        """A layer's state with only the covariances that are kept.

        Raises:
            BadInput: the mask is not symmetric, or of another width.
        """
        if self.covariance == "diagonal" or normal.is_diagonal:
            return normal if normal.is_diagonal else normal.diagonal()
        mask = self._mask(name, len(normal.mean))
        if mask is None:
            return normal
        try:
            zeroed = normal.masked(mask)
        except BadInput as error:
            raise BadInput(error.what, where=f"mask of layer {name}") from None
        if self.closure is None:
            return zeroed
        keep = mask | torch.eye(len(mask), dtype=torch.bool, device=mask.device)

        return Normal(normal.mean, self.closure(normal.covariance, keep))

    def _mask(self, name: str, width: int) -> Tensor | None:
        if self.mask is None:
            return None
        if isinstance(self.mask, Mapping):
            return self.mask.get(name)

        return self.mask(name, width)


def sampled(layer: Layer, normal: Normal, draws: int, generator: torch.Generator) -> Transition:
    r"""Draws of the state go through the layer, and their moments are the next state.

    Covariances are carried on by the linear regression of outputs on inputs, drawn with the same
    rows. The relative Frobenius error is about :math:`\sqrt{(tr^2 S + tr S^2) / n} / |S|_F`; see
    :func:`sampled_error`.

    Args:
        layer: a module, run in its own dtype, or any function of rows.
        normal: the state; positive semi-definite.
        draws: how many.
        generator: of the draws.

    Raises:
        BadInput: the covariance is not positive semi-definite, or the layer makes no rows.
        NotEnoughData: fewer than two draws.
        NonFinite: the layer gives NaN or infinity.
    """
    rows = normal.sample(draws, generator)
    made = run(layer, rows)
    if made.ndim != 2 or len(made) != draws:
        raise BadInput(f"{draws} rows became {tuple(made.shape)}", where=_layer_name(layer))
    state = fit(made, diagonal=normal.is_diagonal)

    def carry(cross: Tensor) -> Tensor:
        x, y = rows - rows.mean(0), made - made.mean(0)
        slope: Tensor = torch.linalg.lstsq(x, y, driver="gelsd").solution
        return cross @ slope

    return Transition(state, carry)


def sampled_error(normal: Normal, draws: int) -> float:
    r"""Relative error of a covariance from so many draws: Frobenius norm, root mean square."""
    trace, energy = float(normal.variance.sum()), float(normal.covariance.square().sum())

    return float(((trace**2 + energy) / draws / energy) ** 0.5) if energy else 0.0


def run(layer: Layer, rows: Tensor) -> Tensor:
    """Runs rows through a layer in its own dtype; returns float64."""
    if not isinstance(layer, nn.Module):
        return layer(rows).double()
    weight = next((p for p in layer.parameters() if p.dtype.is_floating_point), rows)
    with torch.no_grad():
        made: Tensor = layer(rows.to(weight.device, weight.dtype))

    return made.to(rows.device).double()


def _layer_name(layer: Layer) -> str:
    return type(layer).__name__ if isinstance(layer, nn.Module) else "layer"


class Walking(Protocol):
    """What a rule may use: the settings, and the step through an inner module."""

    settings: PropagationSettings

    def step(self, module: nn.Module, normal: Normal, name: str) -> Transition:
        """One inner module, by its own rule."""
        ...


Rule = Callable[[Any, Normal, Walking, str], Transition]


_RULES: dict[type[nn.Module], Rule] = {}


class Residual(nn.Module):
    """x + g(x).

    Args:
        branch: g.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        made: Tensor = x + self.branch(x)

        return made


def register(kind: type[nn.Module], rule: Rule) -> None:
    """Registers a rule for a type of module and its subclasses.

    Args:
        kind: the type.
        rule: from the module, the state before it, the current walk and the module's name to
            its :class:`Transition`.
    """
    _RULES[kind] = rule


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a module; ``None`` where there is none."""
    for kind in type(module).__mro__:
        if kind in _RULES:
            return _RULES[kind]
    if for_module(module) is not None:
        return _by_function
    if type(module).__name__ == "Conv1D":
        return _transposed
    if "RMSNorm" in type(module).__name__:
        return _rms_norm
    if hasattr(module, "base_layer") and isinstance(module.base_layer, nn.Linear):
        return _adapted
    for names, rule in _BY_PARTS.items():
        if all(hasattr(module, name) for name in names):
            return rule

    return None


def _sequential(module: nn.Sequential, normal: Normal, walk: Walking, name: str) -> Transition:
    made = [steps.identity(normal)]
    for key, child in module.named_children():
        made.append(walk.step(child, made[-1].state, f"{name}.{key}" if name else key))

    return steps.chained(*made)


def _residual(module: Residual, normal: Normal, walk: Walking, name: str) -> Transition:
    branch = walk.step(module.branch, normal, f"{name}.branch" if name else "branch")

    return steps.residual(normal, branch)


def _nothing(module: nn.Module, normal: Normal, walk: Walking, name: str) -> Transition:
    return steps.identity(normal)


def _linear(module: nn.Linear, normal: Normal, walk: Walking, name: str) -> Transition:
    return steps.linear(normal, _data(module.weight), _data(module.bias))


def _transposed(module: Any, normal: Normal, walk: Walking, name: str) -> Transition:
    return steps.linear(normal, _data(module.weight).T, _data(module.bias))


def _adapted(module: Any, normal: Normal, walk: Walking, name: str) -> Transition:
    """A linear layer wrapped by an adapter, read off its response to unit vectors."""
    weight = module.base_layer.weight
    with torch.no_grad():
        none = module(weight.new_zeros(1, weight.shape[1]))
        rows = module(torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device))

    return steps.linear(normal, (rows.double() - none.double()).T, none[0])


def _by_function(module: nn.Module, normal: Normal, walk: Walking, name: str) -> Transition:
    f, settings = for_module(module), walk.settings
    assert f is not None

    return steps.elementwise(f, normal, method=settings.method, order=settings.order)


def _layer_norm(module: nn.LayerNorm, normal: Normal, walk: Walking, name: str) -> Transition:
    return steps.layer_norm(normal, _data(module.weight), _data(module.bias), eps=module.eps)


def _rms_norm(module: Any, normal: Normal, walk: Walking, name: str) -> Transition:
    """Some families add 1 to the weight: the norm of a vector of ones shows the factor in use."""
    eps = next(
        (e for key in ("variance_epsilon", "eps") if (e := getattr(module, key, None))), None
    )
    weight = getattr(module, "weight", None)
    dtype = torch.float32 if weight is None else weight.dtype
    eps = torch.finfo(dtype).eps if eps is None else float(eps)
    with torch.no_grad():
        ones = torch.ones(1, len(normal.mean), dtype=dtype, device=getattr(weight, "device", None))
        weights = module(ones)[0].double() * (1 + eps) ** 0.5

    return steps.rms_norm(normal, weights, eps=eps)


def _batch_norm(module: nn.BatchNorm1d, normal: Normal, walk: Walking, name: str) -> Transition:
    mean, variance = module.running_mean, module.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance.double() + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight.detach().double()
    shift = -mean.double() * scale
    if module.affine:
        shift = shift + module.bias.detach().double()

    return steps.affine(normal, scale, shift)


def _softmax(module: nn.Softmax, normal: Normal, walk: Walking, name: str) -> Transition:
    return steps.softmax(normal)


def _gated(module: Any, normal: Normal, walk: Walking, name: str) -> Transition:
    f = for_module(_activation(module))
    if f is None:
        return walk.step(_activation(module), normal, f"{name}.act_fn")
    gate = walk.step(module.gate_proj, normal, f"{name}.gate_proj")
    up = walk.step(module.up_proj, normal, f"{name}.up_proj")
    inner = gated_by(f, normal, gate, up)

    return steps.chained(inner, walk.step(module.down_proj, inner.state, f"{name}.down_proj"))


def _fused(module: Any, normal: Normal, walk: Walking, name: str) -> Transition:
    f = for_module(_activation(module))
    if f is None:
        return walk.step(_activation(module), normal, f"{name}.activation_fn")
    both = walk.step(module.gate_up_proj, normal, f"{name}.gate_up_proj")
    half = len(both.state.mean) // 2
    gate, up = steps.part(both, slice(0, half)), steps.part(both, slice(half, 2 * half))
    inner = gated_by(f, normal, gate, up)

    return steps.chained(inner, walk.step(module.down_proj, inner.state, f"{name}.down_proj"))


def _in_order(*parts: str) -> Rule:
    def rule(module: Any, normal: Normal, walk: Walking, name: str) -> Transition:
        made = [steps.identity(normal)]
        for part in parts:
            made.append(walk.step(getattr(module, part), made[-1].state, f"{name}.{part}"))
        return steps.chained(*made)

    return rule


def _bilinear(module: Any, normal: Normal, walk: Walking, name: str) -> Transition:
    """D[(Lx) ⊙ (Rx)] with weights as tensors; a wider L and R means a 1 before x."""
    left, right, down = (_data(getattr(module, part)) for part in ("left", "right", "down"))
    before = steps.identity(normal)
    if left.shape[1] == len(normal.mean) + 1:
        before = _with_one(normal)
    inner = steps.bilinear(before.state, left, right)

    return steps.chained(before, inner, steps.linear(inner.state, down))


def _with_one(normal: Normal) -> Transition:
    pad = nn.functional.pad
    shape = (1, 0) if normal.is_diagonal else (1, 0, 1, 0)
    state = Normal(pad(normal.mean, (1, 0), value=1.0), pad(normal.covariance, shape))

    return Transition(state, lambda cross: pad(cross, (1, 0)))


def _activation(module: Any) -> nn.Module:
    activation: nn.Module = getattr(module, "act_fn", None) or module.activation_fn

    return activation


def _data(weight: Any) -> Any:
    return None if weight is None else weight.detach()


_BY_PARTS: dict[tuple[str, ...], Rule] = {
    ("gate_proj", "up_proj", "down_proj"): _gated,
    ("gate_up_proj", "down_proj"): _fused,
    ("c_fc", "act", "c_proj"): _in_order("c_fc", "act", "c_proj"),
    ("dense_h_to_4h", "act", "dense_4h_to_h"): _in_order("dense_h_to_4h", "act", "dense_4h_to_h"),
    ("left", "right", "down"): _bilinear,
}


for _kind, _rule in (
    (nn.Sequential, _sequential),
    (Residual, _residual),
    (nn.Linear, _linear),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _rms_norm),
    (nn.BatchNorm1d, _batch_norm),
    (nn.Softmax, _softmax),
    (nn.Dropout, _nothing),
    (nn.Flatten, _nothing),
    (nn.Identity, _nothing),
):
    register(_kind, _rule)


def propagate(
    model: nn.Module | Model, normal: Normal, settings: PropagationSettings | None = None
) -> dict[str, Normal]:
    """The state after each layer, by the layer's name; ``"input"`` first, the output last.

    Each layer's state is the Gaussian nearest to what its rule makes of the state before (moment
    matching); the first layers that are linear and the first elementwise function are exact.
    Sequences, :class:`Residual`, linear and normalising layers, elementwise functions and MLPs of
    the families of :mod:`offkey.models` have rules; :func:`register` adds one. For the blocks of
    a language model use :func:`through_blocks`.

    Args:
        model: a module made of such layers.
        normal: what goes in.
        settings: which covariances are kept, and how.

    Raises:
        UnmappedModel: a layer has no rule; names it. Or it is a whole language model.
        Mismatch: the state's width is not the layer's.
        BadInput: a mask is not symmetric, or a state that must be sampled is not positive
            semi-definite.
    """
    if isinstance(model, Model) and model.wiring is not None:
        raise UnmappedModel(
            "a language model is no sequence of layers of one vector",
            where=model.name,
            mend="Use through_blocks, or propagate through a part of it",
        )
    walk = Walk(settings or PropagationSettings())
    module = model.module if isinstance(model, Model) else model
    walk.states["input"] = start = walk.settings.closed("input", normal)
    walk.step(module, start, "")

    return walk.states


class Walk:
    """One propagation through a model.

    Attributes:
        settings: of the propagation.
        states: the Gaussian after each layer, by its name.
    """

    def __init__(self, settings: PropagationSettings) -> None:
        self.settings = settings
        self.states: dict[str, Normal] = {}
        self._generator = settings.generator()

    def step(self, module: nn.Module, normal: Normal, name: str) -> Transition:
        """The transition of one module."""
        rule = rule_for(module)
        if self.settings.draws_through(name, rule is not None):
            made = sampled(module, normal, self.settings.draws, self._generator)
        elif rule is None:
            raise UnmappedModel(
                f"there is no rule for {type(module).__name__}",
                where=f"layer {name or 'input'}",
                mend=f"Sample it with PropagationSettings(sampled={{{name!r}}}) or "
                "sampled=True, or register a rule",
            )
        else:
            made = rule(module, normal, self, name)
        if isinstance(module, nn.Sequential) and rule is not None:
            return made
        state = self.settings.closed(name, made.state)
        self.states[name or "output"] = state

        return Transition(state, made.carry)
