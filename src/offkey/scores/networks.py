"""Scores that train a small network on trusted rows, and the variational autoencoder."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from offkey.errors import NonFinite, check_choice
from offkey.scores._whitening import squared_lengths
from offkey.scores.score import TensorScore, check_number
from offkey.stats import Sample, Statistic
from offkey.training import TrainingSettings, train

__all__ = ["NetworkScore", "VariationalAutoencoder"]

_LEAST = 10
"""Trusted rows without which there is nothing to hold out."""

_HELD_OUT = 5
"""One trusted row in so many is kept from training and chooses when it was best."""

_CHECKS = 20
"""How often in a training the held-out rows are looked at."""

_FLOOR = 1e-12
"""Least squared error, as a share of the rows' own variance, so that its logarithm exists."""

_LOG_VARIANCE = 12.0
"""Largest logarithm of a latent's variance, either way."""


class NetworkScore(TensorScore):
    """A score that trains a network on the principal components of trusted rows.

    A fifth of the trusted rows is held out: of the states that the training passes through, the
    one with the smallest loss on them is kept. Principal components come from the others. A
    subclass builds the network, says its loss, and learns what else it needs from the trained
    network in ``_learn``. Training and initial weights depend on the generator alone.
    """

    mean_: Float[Tensor, " d"]
    axes_: Float[Tensor, "d k"]
    spread_: Float[Tensor, " k"]
    parameters_: Float[Tensor, " p"]
    _network: Any

    components: int
    steps: int
    rate: float
    rows: int

    def _check_training(self) -> None:
        """Checks the settings that all of them have."""
        check_number(f"{self.name} components", self.components, least=1, whole=True)
        check_number(f"{self.name} steps", self.steps, least=1, whole=True)
        check_number(f"{self.name} rate", self.rate, least=1e-9)
        check_number(f"{self.name} rows", self.rows, least=_LEAST, whole=True)

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Trains the network; ``generator`` holds out rows and draws weights and batches."""
        assert isinstance(trusted, Sample)
        self._need(trusted, _LEAST)
        rows = trusted.rows.to(torch.float64)
        order = torch.randperm(len(rows), generator=generator)
        held = len(rows) // _HELD_OUT
        kept, held_out = rows[order[held:]], rows[order[:held]]
        self._reduce(kept)
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = self._build(self.axes_.shape[1])
            self._train(self._coordinates(kept).float(), self._coordinates(held_out).float(), seed)
        vector = parameters_to_vector(self._network.parameters())
        self.parameters_ = vector.detach().clone()
        self._freeze()
        self._learn(rows, held_out)

        return self

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The score that :meth:`state` described."""
        score = super().from_state(state)
        if "parameters_" in state:
            with torch.random.fork_rng(devices=[]):
                score._network = score._build(score.axes_.shape[1])
            vector_to_parameters(score.parameters_, score._network.parameters())
            score._freeze()

        return score

    def _freeze(self) -> None:
        """Makes the network ready to score: a fixed function in float64."""
        self._network.double().requires_grad_(False)

    def _reduce(self, rows: Float[Tensor, "n d"]) -> None:
        """Learns mean and principal axes, and what to divide each component by."""
        self.mean_ = rows.mean(dim=0)
        values, axes = torch.linalg.svd(rows - self.mean_, full_matrices=False)[1:]
        spread = values[: self.components] / len(rows) ** 0.5
        floor = 1e-9 * float(torch.linalg.vector_norm(rows, dim=1).mean())
        varies = spread > floor
        if bool(varies.any()):
            self.axes_ = axes[: self.components][varies].T.contiguous()
            self.spread_ = self._scale(spread[varies])
        else:
            self.axes_ = torch.zeros(rows.shape[1], 1, dtype=rows.dtype)
            self.spread_ = torch.ones(1, dtype=rows.dtype)

    def _coordinates(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return ((x - self.mean_) @ self.axes_) / self.spread_

    def _train(
        self, kept: Float[Tensor, "n k"], held_out: Float[Tensor, "m k"], seed: int
    ) -> None:
        def held_out_loss() -> dict[str, float]:
            with torch.no_grad():
                return {"held out": -float(self._loss(held_out, noisy=False))}

        settings = TrainingSettings(
            steps=self.steps,
            batch=min(len(kept), 256),
            rate=self.rate,
            seed=seed,
            check_every=max(1, self.steps // _CHECKS),
        )
        try:
            train(
                dict(self._network.named_parameters()),
                lambda rows: self._loss(kept[rows], noisy=True),
                len(kept),
                settings,
                validate=held_out_loss,
            )
        except NonFinite as error:
            raise NonFinite(
                error.what, where=f"{self.name} {error.where}", mend="Lower its rate"
            ) from error

    @abstractmethod
    def _scale(self, spread: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The divisor of each component, given its standard deviation."""

    @abstractmethod
    def _build(self, width: int) -> nn.Module:
        """A network with fresh weights for coordinates of this width."""

    @abstractmethod
    def _loss(self, y: Float[Tensor, "n k"], *, noisy: bool) -> Float[Tensor, ""]:
        """Mean loss of coordinates, in nats; ``noisy`` while it trains."""

    @abstractmethod
    def _learn(self, rows: Float[Tensor, "n d"], held_out: Float[Tensor, "m d"]) -> None:
        """Learns what scoring needs besides, from all trusted rows or those held out."""


class _Autoencoder(nn.Module):
    """Width to hidden to latent, and back."""

    def __init__(self, width: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def encode(self, y: Float[Tensor, "n k"]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents."""
        mean, log_variance = self.encoder(y).chunk(2, dim=1)

        return mean, log_variance.clamp(-_LOG_VARIANCE, _LOG_VARIANCE)


class VariationalAutoencoder(NetworkScore):
    r"""Scores a row by how badly a variational autoencoder of trusted rows explains it.

    .. math:: s(x) = \frac{\lVert x - \hat x(m) \rVert^2}{2 \sigma^2}
        + \beta \operatorname{KL}(\mathcal{N}(m, v) \,\Vert\, \mathcal{N}(0, I))

    :math:`m, v` are the latents' mean and variance that the encoder gives x, and :math:`\hat x(m)`
    the row that the decoder makes of the mean. Both work on the leading principal components,
    divided by one number; what these leave of x counts as not rebuilt. The layers are
    width → 2 width → 2 latent and back, with ReLU. Training minimises
    :math:`\tfrac{k}{2} \log \overline{\lVert y - \hat y \rVert^2 / k} + \beta \mathrm{KL}`, the
    evidence bound with the noise at its best value; :math:`\sigma^2` is the mean squared error a
    dimension on trusted rows held out. (Published code adds the KL sum to the mean squared
    error of a dimension instead.) Higher is more anomalous. In nats, up to a constant.

    Args:
        latent: latents.
        beta: weight of the divergence.
        components: how many principal components of the rows it sees at most.
        kind: ``"elbo"`` for both terms, ``"reconstruction"`` for the first.
        steps: of training.
        rate: learning rate.
        rows: how many trusted rows are kept at most; a uniform sample where there are more.

    Raises:
        NotEnoughData: fewer than 10 trusted rows.
        NonFinite: the training diverged; names the step and the loss.

    References:
        Kingma, Welling, 2014, eq. 10. https://arxiv.org/abs/1312.6114
        Rybkin, Daniilidis, Levine, 2021 (the noise). https://arxiv.org/abs/2006.13202
    """

    name = "vae"
    noise_: Float[Tensor, ""]

    def __init__(
        self,
        latent: int = 8,
        beta: float = 1.0,
        components: int = 64,
        kind: Literal["elbo", "reconstruction"] = "elbo",
        steps: int = 80,
        rate: float = 1e-2,
        rows: int = 5000,
    ) -> None:
        check_number(f"{self.name} latent", latent, least=1, whole=True)
        check_number(f"{self.name} beta", beta, least=0)
        check_choice(f"{self.name} kind", kind, ("elbo", "reconstruction"))
        self.latent, self.beta, self.components, self.kind = latent, beta, components, kind
        self.steps, self.rate, self.rows = steps, rate, rows
        self._check_training()

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        y = self._coordinates(x)
        mean, log_variance = self._network.encode(y)
        score = self._error(x, y, self._network.decoder(mean)) / (2 * self.noise_)
        if self.kind == "elbo":
            score = score + self.beta * _divergence(mean, log_variance)

        return score

    def _scale(self, spread: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        return spread.square().mean().sqrt().expand_as(spread).contiguous()

    def _build(self, width: int) -> nn.Module:
        return _Autoencoder(width, 2 * width, self.latent)

    def _loss(self, y: Float[Tensor, "n k"], *, noisy: bool) -> Float[Tensor, ""]:
        z, log_variance = self._network.encode(y)
        divergence = _divergence(z, log_variance).mean()
        if noisy:
            # The generator is the one that the seed of this training set.
            z = z + (log_variance / 2).exp() * torch.randn_like(z)
        rebuilt: Tensor = self._network.decoder(z)
        error = (rebuilt - y).square().mean()

        return y.shape[1] / 2 * (error + _FLOOR).log() + self.beta * divergence

    def _learn(self, rows: Float[Tensor, "n d"], held_out: Float[Tensor, "m d"]) -> None:
        y = self._coordinates(held_out)
        error = self._error(held_out, y, self._network.decoder(self._network.encode(y)[0]))
        floor = _FLOOR * self.spread_.square().mean()
        self.noise_ = (error.mean() / held_out.shape[1]).clamp_min(float(floor))

    def _error(
        self, x: Float[Tensor, "n d"], y: Float[Tensor, "n k"], rebuilt: Float[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        """Squared error of the whole row: within the principal components and beside them."""
        left = x - self.mean_ - (y * self.spread_) @ self.axes_.T

        return squared_lengths((y - rebuilt) * self.spread_) + squared_lengths(left)


def _divergence(
    mean: Float[Tensor, "n latent"], log_variance: Float[Tensor, "n latent"]
) -> Float[Tensor, " n"]:
    """Kullback–Leibler divergence to the standard normal law, in nats."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
