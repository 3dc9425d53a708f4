"""What a perturbation of parameters costs."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from offkey.errors import BadValue

__all__ = ["Cost", "FunctionCost"]

Array = np.ndarray


class Cost(ABC):
    """A function of a perturbation that is zero at the anchor.

    Attributes:
        block: how many perturbations are evaluated side by side.
        evaluations: how many perturbations were evaluated so far.
        forwards: how many times a model was run for them.
        is_signed: whether it may be negative.
    """

    block: int = 1
    is_signed: bool = False
    evaluations: int = 0
    forwards: int = 0

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Tensor]:
        """Every parameter that could move, at the anchor."""

    @abstractmethod
    def evaluate(
        self, delta: Mapping[str, Tensor], among: Bool[Array, " n"] | None = None
    ) -> Float64[Array, " m"]:
        """Costs of one perturbation: of the examples in ``among``, of all, or a single one."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What decides its values, as JSON values."""

    @property
    def is_single(self) -> bool:
        """Whether it gives one number."""
        return True

    def __call__(
        self, delta: Mapping[str, Tensor], among: Bool[Array, " n"] | None = None
    ) -> Float64[Array, " m"]:
        """Costs of one perturbation, in nats where the cost has a unit; counted.

        Args:
            delta: what is added to the parameters.
            among: the examples that are asked for, where each has a cost.
        """
        self.evaluations += 1

        return self.evaluate(delta, among)

    def many(self, deltas: Mapping[str, Tensor]) -> Float64[Array, " m"]:
        """Costs of perturbations stacked along a leading axis; for a ``block`` above 1."""
        raise NotImplementedError(f"{type(self).__name__} evaluates one perturbation at a time")

    def curvature(self, delta: Mapping[str, Tensor]) -> float:
        """Twice the cost of a small perturbation per squared multiple of it, where it is known.

        Raises:
            BadValue: this cost cannot tell.
        """
        raise BadValue("the cost has no derivative", where="search start jvp",
                       mend="Use start='median'")  # fmt: skip

    def check_moving(self, names: tuple[str, ...]) -> None:
        """Refuses parameters that this cost cannot see moving."""


class FunctionCost(Cost):
    """A plain function of the perturbed parameters, for cases whose answer is known.

    Args:
        function: takes what ``anchor`` is, a tensor or a mapping of tensors, perturbed, and gives
            a number; with ``batched``, stacked along a leading axis, numbers.
        anchor: the parameters that nothing was added to.
        batched: whether the function takes many perturbations at once.
        name: what it is called where a stored run is compared with a new one.

    Example:
        >>> import torch
        >>> h = torch.tensor([1.0, 4.0], dtype=torch.float64)
        >>> cost = FunctionCost(lambda x: (h * x**2).sum() / 2, torch.zeros_like(h))
        >>> cost({"": torch.ones(2)})
        array([2.5])
    """

    def __init__(
        self,
        function: Callable[[Any], Tensor | float],
        anchor: Tensor | Mapping[str, Tensor],
        *,
        batched: bool = False,
        name: str = "function",
    ) -> None:
        self.function, self.name = function, name
        self._flat = isinstance(anchor, Tensor)
        named = {"": anchor} if isinstance(anchor, Tensor) else dict(anchor)
        self._parameters = {key: value.detach() for key, value in named.items()}
        for key, value in self._parameters.items():
            if not value.is_floating_point() or not bool(value.isfinite().all()):
                raise BadValue("an anchor of finite floats is needed", where=f"parameter {key!r}")
        self.block = 256 if batched else 1

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The anchor."""
        return self._parameters

    def evaluate(
        self, delta: Mapping[str, Tensor], among: Bool[Array, " n"] | None = None
    ) -> Float64[Array, " m"]:
        """The function's value at one perturbation; it has no examples to choose among."""
        if self.block > 1:
            return self._values({name: value[None] for name, value in delta.items()}, lead=1)

        return self._values(delta, lead=None)

    def many(self, deltas: Mapping[str, Tensor]) -> Float64[Array, " m"]:
        """Its values at many."""
        lead = len(next(iter(deltas.values())))
        self.evaluations += lead

        return self._values(deltas, lead=lead)

    def fingerprint(self) -> dict[str, Any]:
        """Its name and a digest of the anchor."""
        hasher = hashlib.sha256()
        for name, value in self._parameters.items():
            hasher.update(f"{name} {tuple(value.shape)}".encode())
            hasher.update(value.cpu().double().contiguous().numpy().tobytes())

        return {"cost": self.name, "anchor": hasher.hexdigest()}

    def _values(self, delta: Mapping[str, Tensor], lead: int | None) -> Float64[Array, " n"]:
        moved = {}
        for name, value in self._parameters.items():
            whole = value if lead is None else value.expand(lead, *value.shape)
            moved[name] = whole + delta[name].to(value.dtype) if name in delta else whole
        with torch.no_grad():
            told = torch.as_tensor(self.function(moved[""] if self._flat else moved))
        if told.numel() != (lead or 1):
            raise BadValue(f"gave {told.numel()} numbers for {lead or 1} perturbations",
                           where=f"cost {self.name}")  # fmt: skip

        return told.detach().cpu().double().reshape(-1).numpy()
