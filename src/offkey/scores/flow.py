"""Normalising flows of trusted rows: density under the flow, and distance in its coordinates."""

import math
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from zuko.flows import MAF

from offkey.errors import check_choice
from offkey.scores._whitening import shrunk, squared_lengths, whiten_definite
from offkey.scores.networks import NetworkScore
from offkey.scores.score import check_number
from offkey.stats import Moments

__all__ = ["FlowLaplace", "FlowMahalanobis"]


class _FlowScore(NetworkScore):
    """A masked autoregressive flow, fitted to trusted rows by maximum likelihood."""

    base: str = "laplace"
    transforms: int
    hidden: int

    def _check_flow(self) -> None:
        check_choice(f"{self.name} base", self.base, ("laplace", "normal"))
        check_number(f"{self.name} transforms", self.transforms, least=1, whole=True)
        check_number(f"{self.name} hidden", self.hidden, least=1, whole=True)
        self._check_training()

    def _scale(self, spread: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        return spread

    def _build(self, width: int) -> nn.Module:
        hidden = (self.hidden, self.hidden)
        flow: Any = MAF(width, transforms=self.transforms, hidden_features=hidden)

        return nn.ModuleList([flow.transform])

    def _flowed(self, y: Float[Tensor, "n k"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"]]:
        """Coordinates in the flow's base, and the log-determinant of the map there."""
        z, log_det = self._network[0]().call_and_ladj(y)

        return z, log_det

    def _loss(self, y: Float[Tensor, "n k"], *, noisy: bool) -> Float[Tensor, ""]:
        z, log_det = self._flowed(y)

        return (_surprise(z, self.base) - log_det).mean()


class FlowLaplace(_FlowScore):
    r"""Scores a row by its surprise under a normalising flow with a Laplace prior.

    .. math:: s(x) = -\log p(x) = \sum_i \big(\lvert z_i \rvert + \log 2\big)
        - \log \lvert \det \partial z / \partial x \rvert, \qquad z = f(x)

    f is a masked autoregressive flow of the leading principal components, each divided by its
    standard deviation, fitted to the trusted rows by maximum likelihood; s is the surprise of
    these components, and what they leave of x is not seen. ``log_det=False`` leaves out the last
    term, as the published score does, which is then no density. There the flow is that of the
    base model's activations on other text, at full width; here it is fitted to the trusted
    prompts alone, so that it needs nothing else. Higher is more anomalous. In nats.

    Args:
        log_det: whether the log-determinant counts.
        components: how many principal components of the rows it sees at most.
        transforms: autoregressive maps, one after another.
        hidden: width of the two hidden layers of each.
        steps: of training.
        rate: learning rate.
        rows: how many trusted rows are kept at most; a uniform sample where there are more.

    Raises:
        MissingExtra: zuko is not installed.
        NotEnoughData: fewer than 10 trusted rows.
        NonFinite: the training diverged; names the step and the loss.

    References:
        Papamakarios, Pavlakou, Murray, 2017 (the flow). https://arxiv.org/abs/1705.07057
    """

    name = "flow-laplace"

    def __init__(
        self,
        log_det: bool = True,
        components: int = 32,
        transforms: int = 2,
        hidden: int = 64,
        steps: int = 60,
        rate: float = 5e-3,
        rows: int = 5000,
    ) -> None:
        self.log_det, self.components, self.transforms = bool(log_det), components, transforms
        self.hidden, self.steps, self.rate, self.rows = hidden, steps, rate, rows
        self._check_flow()

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        z, log_det = self._flowed(self._coordinates(x))
        surprise = _surprise(z, self.base)

        return surprise - log_det + self.spread_.log().sum() if self.log_det else surprise

    def _learn(self, rows: Float[Tensor, "n d"], held_out: Float[Tensor, "m d"]) -> None:
        """The flow is all there is."""


class FlowMahalanobis(_FlowScore):
    r"""Scores a row by its Mahalanobis distance in the coordinates of a normalising flow.

    .. math:: s(x) = (z - \mu)^\top \Sigma_\lambda^{-1} (z - \mu), \qquad z = f(x)

    f is the flow of :class:`FlowLaplace`; :math:`\mu, \Sigma_\lambda` are the mean and the
    covariance, shrunk by Ledoit and Wolf's rule, of all trusted rows' z. Higher is more anomalous.
    Unitless.

    Args:
        base: the prior under which the flow is fitted.
        components: how many principal components of the rows it sees at most.
        transforms: autoregressive maps, one after another.
        hidden: width of the two hidden layers of each.
        steps: of training.
        rate: learning rate.
        rows: how many trusted rows are kept at most; a uniform sample where there are more.

    Raises:
        MissingExtra: zuko is not installed.
        NotEnoughData: fewer than 10 trusted rows.
        NonFinite: the training diverged; names the step and the loss.

    References:
        Papamakarios, Pavlakou, Murray, 2017 (the flow). https://arxiv.org/abs/1705.07057
        Lee et al., 2018, eq. 2. https://arxiv.org/abs/1807.03888
    """

    name = "flow-mahalanobis"
    centre_: Float[Tensor, " k"]
    whitening_: Float[Tensor, "k k"]

    def __init__(
        self,
        base: Literal["laplace", "normal"] = "laplace",
        components: int = 32,
        transforms: int = 2,
        hidden: int = 64,
        steps: int = 60,
        rate: float = 5e-3,
        rows: int = 5000,
    ) -> None:
        self.base, self.components, self.transforms = base, components, transforms
        self.hidden, self.steps, self.rate, self.rows = hidden, steps, rate, rows
        self._check_flow()

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        z = self._flowed(self._coordinates(x))[0]

        return squared_lengths((z - self.centre_) @ self.whitening_)

    def _learn(self, rows: Float[Tensor, "n d"], held_out: Float[Tensor, "m d"]) -> None:
        moments = Moments()
        z = self._flowed(self._coordinates(rows))[0]
        moments.update(z, [str(i) for i in range(len(z))])
        self.centre_ = moments.mean
        self.whitening_ = whiten_definite(shrunk(moments, "ledoit-wolf"), 1e-5)[0]


def _surprise(z: Float[Tensor, "n k"], base: str) -> Float[Tensor, " n"]:
    """Minus the log-density of the prior, in nats."""
    if base == "laplace":
        return (z.abs() + math.log(2)).sum(dim=1)

    return (z.square() + math.log(2 * math.pi)).sum(dim=1) / 2
