"""Independent features, and how surprising rows are in the basis that they make."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadInput, BadValue, Mismatch, NotEnoughData
from offkey.estimate.gaussian import Normal
from offkey.estimate.quantities import Surprise
from offkey.estimate.sparse.dictionary import SparseDictionary

__all__ = [
    "IndependentFeatures",
    "count_log10",
    "count_log10_gaussian",
    "sparse_surprise",
    "basis_surprise",
]

_LN2 = math.log(2)
_HERE = "IndependentFeatures"


@dataclass(frozen=True, eq=False)
class IndependentFeatures:
    r"""The spike-and-slab distribution of :math:`x = o + \sum_i z_i d_i + \varepsilon`.

    Latent i is on (:math:`z_i \ne 0`) with probability :math:`\pi_i`, and then has mean
    :math:`a_i` and variance :math:`s_i`; latents are independent, and
    :math:`\varepsilon \sim \mathcal N(0, \sigma^2 I)`.

    Attributes:
        rates: :math:`\pi`, ``[m]``.
        means: a, ``[m]``.
        variances: s, ``[m]``.
        decoder: one direction :math:`d_i` a row, ``[m, d]``.
        offset: o, ``[d]``; 0 by default.
        noise: :math:`\sigma^2`.
        slab: how strong a latent is when it is on: Gaussian, or log-normal (never negative, as
            latents of a ReLU are).

    Raises:
        Mismatch: the shapes do not match.
        BadInput: a value is not finite, a rate outside 0 … 1, a negative variance, or a mean
            that is not positive under a log-normal slab.
    """

    rates: Float[Tensor, " m"]
    means: Float[Tensor, " m"]
    variances: Float[Tensor, " m"]
    decoder: Float[Tensor, "m d"]
    offset: Float[Tensor, " d"] = field(default_factory=lambda: torch.zeros(()))
    noise: float = 0.0
    slab: Literal["normal", "lognormal"] = "normal"

    def __post_init__(self) -> None:
        for name in ("rates", "means", "variances", "decoder", "offset"):
            object.__setattr__(self, name, getattr(self, name).double())
        if self.decoder.ndim != 2:
            raise Mismatch(f"decoder of shape {tuple(self.decoder.shape)}", where=_HERE)
        count, width = self.decoder.shape
        if self.offset.ndim == 0:
            object.__setattr__(self, "offset", self.offset.expand(width).clone())
        shapes = [tuple(getattr(self, n).shape) for n in ("rates", "means", "variances", "offset")]
        if shapes != [(count,), (count,), (count,), (width,)]:
            raise Mismatch(f"shapes {shapes} beside a decoder of {(count, width)}", where=_HERE)
        self._check_values()

    @classmethod
    def fit(
        cls,
        latents: Float[Tensor, "n m"],
        decoder: Float[Tensor, "m d"],
        *,
        rows: Float[Tensor, "n d"] | None = None,
        offset: Float[Tensor, " d"] | None = None,
        slab: Literal["normal", "lognormal"] = "normal",
    ) -> "IndependentFeatures":
        r"""Estimates the distribution from sampled latents.

        A latent that was on k of n times has rate :math:`(k + \frac12) / (n + 1)`, so that one
        never seen is rare and not impossible. One seen on fewer than three times takes mean and
        variance of all that were on.

        Args:
            latents: such as :meth:`SparseDictionary.encode` gives.
            decoder: one direction a row.
            rows: the rows that the latents encode; the noise is their residual.
            offset: as above.
            slab: as above.

        Raises:
            NotEnoughData: no latent was ever on.
            Mismatch: latents and decoder of unlike number.
        """
        codes = latents.detach().double()
        if codes.ndim != 2 or codes.shape[1] != len(decoder):
            raise Mismatch(
                f"latents of shape {tuple(codes.shape)} for {len(decoder)} directions", where=_HERE
            )
        if not bool(codes.isfinite().all()):
            raise BadInput("a latent is not finite", where=_HERE)
        on = codes != 0
        count, every = on.sum(0), codes[on]
        if len(every) < 2:
            raise NotEnoughData("no latent was on twice", where=_HERE)
        means = codes.sum(0) / count.clamp_min(1)
        gaps = torch.where(on, codes - means, 0.0)
        variances = gaps.square().sum(0) / (count - 1).clamp_min(1)
        rare = count < 3
        offset = torch.zeros(decoder.shape[1]) if offset is None else offset
        noise = 0.0
        if rows is not None:
            left = rows.double() - offset.double() - codes @ decoder.double()
            noise = float(left.square().mean())

        return cls(
            (count + 0.5) / (len(codes) + 1),
            torch.where(rare, every.mean(), means),
            torch.where(rare, every.var(), variances),
            decoder.detach(),
            offset.detach(),
            noise,
            slab,
        )

    def moments(self) -> Normal:
        r"""The Gaussian with the mean and covariance of x.

        .. math:: o + D^\top (\pi a), \qquad
            D^\top \operatorname{diag}(\pi s + \pi (1 - \pi) a^2) D + \sigma^2 I
        """
        covariance = self.decoder.T @ (self.latent_variances[:, None] * self.decoder)
        covariance = (covariance + covariance.T) / 2
        covariance.diagonal().add_(self.noise)

        return Normal(self.offset + (self.rates * self.means) @ self.decoder, covariance)

    @property
    def latent_variances(self) -> Float[Tensor, " m"]:
        """Variance of each latent, on or off."""
        pi = self.rates

        return pi * self.variances + pi * (1 - pi) * self.means.square()

    def log10_joint(self, latents: Collection[int]) -> float:
        r""":math:`\sum_i \log_{10} \pi_i`: log probability that all these latents are on.

        Raises:
            BadValue: there is no such latent.
        """
        which = sorted(set(latents))
        if which and not (which[0] >= 0 and which[-1] < len(self.rates)):
            raise BadValue(f"latents {which[0]} to {which[-1]} of {len(self.rates)}", where=_HERE)

        return float(self.rates[which].log10().sum())

    def given(self, on: Collection[int] = (), off: Collection[int] = ()) -> "IndependentFeatures":
        """The distribution where some latents are known to be on, and some off."""
        rates = self.rates.clone()
        rates[list(on)], rates[list(off)] = 1.0, 0.0

        return replace(self, rates=rates)

    def sample(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "count m"], Float[Tensor, "count d"]]:
        """Draws latents and the rows they make."""
        shape = (count, len(self.rates))
        on = torch.rand(shape, generator=generator, dtype=torch.float64) < self.rates
        draws = torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.slab == "normal":
            strength = self.means + draws * self.variances.sqrt()
        else:
            mu, tau = self._lognormal()
            strength = (mu + draws * tau).exp()
        latents = torch.where(on, strength, 0.0)
        noise = torch.randn(count, len(self.offset), generator=generator, dtype=torch.float64)

        return latents, self.offset + latents @ self.decoder + noise * math.sqrt(self.noise)

    def surprise(self, latents: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        r""":math:`-\log_2 p(z)` of each row of latents; higher is more anomalous.

        Bits of which latents are on, and density bits of how strong: only differences of the
        latter mean anything.

        Raises:
            Mismatch: rows of another width.
        """
        z = latents.double()
        if z.ndim != 2 or z.shape[1] != len(self.rates):
            raise Mismatch(
                f"latents of shape {tuple(z.shape)} for {len(self.rates)} features", where=_HERE
            )
        on = z != 0
        mu, var, at, jacobian = self.means, self.variances, z, torch.zeros_like(z)
        if self.slab == "lognormal":
            mu, tau = self._lognormal()
            var, jacobian = tau.square(), torch.where(on, z, 1.0).clamp_min(1e-300).log()
            at = jacobian
        var = var.clamp_min(1e-12 * float(self.means.square().max().clamp_min(1e-300)))
        density = -0.5 * ((at - mu).square() / var + (2 * math.pi * var).log()) - jacobian
        log_p = torch.where(on, self.rates.log() + density, torch.log1p(-self.rates))

        return -log_p.sum(1) / _LN2

    def _lognormal(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the logarithm of a latent that is on."""
        tau2 = torch.log1p(self.variances / self.means.square())

        return self.means.log() - tau2 / 2, tau2.sqrt()

    def _check_values(self) -> None:
        for name in ("rates", "means", "variances", "decoder", "offset"):
            if not bool(getattr(self, name).isfinite().all()):
                raise BadInput("a value is not finite", where=f"{_HERE} {name}")
        if bool(((self.rates < 0) | (self.rates > 1)).any()):
            raise BadInput("a rate is not between 0 and 1", where=_HERE)
        if bool((self.variances < 0).any()) or not 0 <= self.noise < math.inf:
            raise BadInput("a variance is negative or not finite", where=_HERE)
        if self.slab not in ("normal", "lognormal"):
            raise BadValue(
                f"{self.slab!r} is not known", where="slab", mend="Use normal or lognormal"
            )
        if self.slab == "lognormal" and bool((self.means <= 0).any()):
            raise BadInput("a mean is not positive", where=f"{_HERE} with a log-normal slab")


def count_log10(rates: Sequence[float], at_least: int) -> float:
    """Log to base 10 of the probability that at least so many independent features are on.

    Exact (Poisson-binomial), summed in logarithms; :math:`O(m^2)`.
    """
    log_p = torch.full((len(rates) + 1,), -math.inf, dtype=torch.float64)
    log_p[0] = 0.0
    for rate in rates:
        off = log_p + (math.log1p(-rate) if rate < 1 else -math.inf)
        on = torch.cat([log_p.new_full((1,), -math.inf), log_p[:-1]])
        log_p = torch.logaddexp(off, on + (math.log(rate) if rate > 0 else -math.inf))

    return (
        float(log_p[max(at_least, 0) :].logsumexp(0)) / math.log(10)
        if at_least <= len(rates)
        else -math.inf
    )


def count_log10_gaussian(rates: Sequence[float], at_least: int) -> float:
    """The same read off a Gaussian with the count's mean and variance: why those fail in tails.

    Raises:
        BadValue: the count does not vary.
    """
    pi = torch.tensor(list(rates), dtype=torch.float64)
    deviation = float((pi * (1 - pi)).sum().sqrt())
    if not deviation > 0:
        raise BadValue("the count does not vary", where="count_log10_gaussian")
    gap = torch.tensor((float(pi.sum()) - at_least) / deviation, dtype=torch.float64)

    return float(torch.special.log_ndtr(gap)) / math.log(10)


def sparse_surprise(
    dictionary: SparseDictionary, features: IndependentFeatures, rows: Float[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    r"""How surprising each row is where latents are independent; higher is more anomalous.

    The bits of its latents (:meth:`IndependentFeatures.surprise`) and those of their
    residual, :math:`\tfrac{\lVert x - \hat x \rVert^2}{2 \sigma^2 \ln 2} + \tfrac d2 \log_2 2 \pi
    \sigma^2`. Density bits: only differences mean anything.

    Args:
        dictionary: gives latents and reconstruction.
        features: fitted to latents of trusted rows, with their noise.
        rows: the rows to score.

    Raises:
        Mismatch: rows or features of another width than the dictionary.
        BadValue: the features have no noise.
    """
    if features.decoder.shape != dictionary.decoder.shape:
        raise Mismatch(
            f"features of shape {tuple(features.decoder.shape)} for a dictionary of "
            f"{tuple(dictionary.decoder.shape)}",
            where="sparse_surprise",
        )
    if not features.noise > 0:
        raise BadValue(
            "the features have no noise", where="sparse_surprise", mend="Fit them with rows"
        )
    latents = dictionary.encode(rows)
    left = (rows.double() - dictionary.decode(latents)).square().sum(1) / features.noise
    scale = rows.shape[1] * math.log(2 * math.pi * features.noise)

    return features.surprise(latents) + (left + scale) / (2 * _LN2)


def basis_surprise(
    argument: tuple[Normal, int],
    empty: tuple[Normal, int],
    rows: Float[Tensor, "n d"],
    fitted_on: int,
) -> Surprise:
    r"""Surprise of rows under an argument's Gaussian, next to that of the empty argument.

    An argument of k values costs :math:`\tfrac k2 \log_2 N` bits, N the rows it was fitted on.
    Both Gaussians are over the same rows, so ``explained`` and ``net`` compare bases: of neurons,
    or of a dictionary's latents (:meth:`IndependentFeatures.moments`), whose own weights are
    among the values where they are charged.

    Args:
        argument: the Gaussian it describes and how many values describe it.
        empty: the same of the empty argument, such as variances of neurons alone.
        rows: the outcome; not among those the Gaussians were fitted on.
        fitted_on: N.

    Raises:
        Mismatch: rows of another width.
        NotEnoughData: a covariance is singular.
    """
    outcomes, costs = [], []
    for normal, values in (argument, empty):
        if rows.shape[1] != len(normal.mean):
            raise Mismatch(
                f"rows of width {rows.shape[1]} for a Gaussian of width {len(normal.mean)}",
                where="basis_surprise",
            )
        outcomes.append(-float(normal.density().log_density(rows).sum()) / _LN2)
        costs.append(values / 2 * math.log2(fitted_on))

    return Surprise(outcomes[0], costs[0], outcomes[1], costs[1])
