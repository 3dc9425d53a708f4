"""Costs of perturbing parameters, and the cost of a plain function.

A cost is zero at the anchor, the parameters to which nothing was added.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from offkey.errors import BadValue, check

__all__ = ["Cost", "FunctionCost"]

Array = np.ndarray


class Cost(ABC):
    """A function of a perturbation that is zero at the anchor.

    Attributes:
        block: how many perturbations are evaluated side by side.
        evaluations: how many perturbations were evaluated so far.
        forwards: how many forward passes of a model they took.
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
        """What its values depend on, as JSON values."""

    @property
    def is_single(self) -> bool:
        """Whether it is one number, not one for each example."""
        return True

    def __call__(
        self, delta: Mapping[str, Tensor], among: Bool[Array, " n"] | None = None
    ) -> Float64[Array, " m"]:
        """Costs of one perturbation, in nats where the cost has a unit; counted.

        Args:
            delta: what is added to the parameters.
            among: the examples whose costs are wanted, where each example has one.
        """
        self.evaluations += 1

        return self.evaluate(delta, among)

    def many(self, deltas: Mapping[str, Tensor]) -> Float64[Array, " m"]:
        """Costs of perturbations stacked along a leading axis, for a ``block`` above 1."""
        raise NotImplementedError(f"{type(self).__name__} evaluates one perturbation at a time")

    def curvature(self, delta: Mapping[str, Tensor]) -> float:
        r"""Second derivative of the cost along a direction, :math:`\delta^\top H \delta`.

        Raises:
            BadValue: the cost has no derivative.
        """
        raise BadValue(
            "the cost has no derivative", where="search start jvp", mend="Use start='median'"
        )

    def check_moving(self, names: tuple[str, ...]) -> None:
        """Refuses parameters whose movement this cost cannot register."""


class FunctionCost(Cost):
    """A plain function of the perturbed parameters, for cases whose answer is known.

    Args:
        function: takes the perturbed parameters, a tensor or a mapping of tensors as ``anchor``
            is, and returns a number; with ``batched`` it takes many, stacked along a leading
            axis, and returns as many numbers.
        anchor: the unperturbed parameters.
        batched: whether the function takes many perturbations at once.
        name: identifies the function when a stored run is compared with a new one.

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
            check(
                value.is_floating_point() and bool(value.isfinite().all()),
                "the anchor must consist of finite floats",
                where=f"parameter {key!r}",
            )
        self.block = 256 if batched else 1

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The anchor."""
        return self._parameters

    def evaluate(
        self, delta: Mapping[str, Tensor], among: Bool[Array, " n"] | None = None
    ) -> Float64[Array, " m"]:
        """The function's value at one perturbation; there are no examples to choose from."""
        if self.block > 1:
            return self._values({name: value[None] for name, value in delta.items()}, lead=1)

        return self._values(delta, lead=None)

    def many(self, deltas: Mapping[str, Tensor]) -> Float64[Array, " m"]:
        """The function's values at many perturbations."""
        lead = len(next(iter(deltas.values())))
        self.evaluations += lead

        return self._values(deltas, lead=lead)

    def fingerprint(self) -> dict[str, Any]:
        """The function's name and a digest of the anchor."""
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
            values = torch.as_tensor(self.function(moved[""] if self._flat else moved))
        check(
            values.numel() == (lead or 1),
            f"returned {values.numel()} numbers for {lead or 1} perturbations",
            where=f"cost {self.name}",
        )

        return values.detach().cpu().double().reshape(-1).numpy()
