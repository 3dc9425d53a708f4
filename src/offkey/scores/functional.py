"""How little a prompt's row is explained by those of trusted prompts: functional attribution."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import NotEnoughData
from offkey.features.functional import ANSWER
from offkey.scores.score import SitesScore, TensorScore, check_number
from offkey.stats import Sample, Statistic

__all__ = ["ClassConcordance", "MeanConcordance", "MeanCorrelation", "TopConcordance"]

_NOTHING = 1e-12
"""Deviations below this share of a row are rounding."""


class FunctionalScore(TensorScore):
    """Base of the scores that compare a row with every trusted row."""

    rows_: Float[Tensor, "m d"]
    rows: int
    least: int = 2

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Keeps the sample."""
        assert isinstance(trusted, Sample)
        self._need(trusted, self.least)
        self.rows_ = trusted.rows.clone()

        return self

    def _width(self) -> int:
        return int(self.rows_.shape[1])


class MeanCorrelation(FunctionalScore):
    r"""Scores a row by its mean correlation with the trusted rows.

    .. math:: s(x) = 1 - \frac1m \sum_z r(x, z)

    with Pearson's r over the draws of two traces, 0 where one of them does not vary. On sketched
    gradients r is their cosine, as sketches have mean 0. Higher is more anomalous. Unitless, from
    0 to 2.

    Args:
        rows: how many trusted rows are kept at most; a uniform sample where there are more.

    Raises:
        NotEnoughData: fewer than two trusted rows.

    References:
        Keenan, Leckie, Erfani, 2026 (Mean Corr). https://arxiv.org/abs/2604.18970
    """

    name = "functional-mean"

    def __init__(self, rows: int = 5000) -> None:
        check_number(f"{self.name} rows", rows, least=2, whole=True)
        self.rows = rows

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return 1 - _unit(x) @ _unit(self.rows_.to(torch.float64)).mean(dim=0)


class MeanConcordance(FunctionalScore):
    r"""Scores a row by its mean concordance with the trusted rows.

    .. math:: s(x) = 1 - \frac1m \sum_z \mathrm{CCC}(x, z), \qquad
        \mathrm{CCC}(x, z) = \frac{2\,\mathrm{cov}(x, z)}
            {\mathrm{var}(x) + \mathrm{var}(z) + (\bar x - \bar z)^2}

    Concordance asks for the same level and size besides the same shape. Higher is more anomalous.
    Unitless, from 0 to 2.

    Args:
        rows: as in :class:`MeanCorrelation`.

    Raises:
        NotEnoughData: fewer than two trusted rows.

    References:
        Keenan, Leckie, Erfani, 2026 (Mean CCC). https://arxiv.org/abs/2604.18970
        Lin, 1989 (the coefficient). https://doi.org/10.2307/2532051
    """

    name = "functional-mean-ccc"

    def __init__(self, rows: int = 5000) -> None:
        check_number(f"{self.name} rows", rows, least=2, whole=True)
        self.rows = rows

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return 1 - concordance(x, self.rows_.to(torch.float64)).mean(dim=1)


class TopConcordance(FunctionalScore):
    r"""Scores a row by its mean concordance with the k trusted rows it agrees with most.

    .. math:: s(x) = 1 - \frac1k \sum_{z \in \mathrm{top}_k(x)} \mathrm{CCC}(x, z)

    Trusted prompts of several mechanisms need not agree with each other. Higher is more
    anomalous. Unitless, from 0 to 2.

    Args:
        k: how many.
        rows: as in :class:`MeanCorrelation`.

    Raises:
        NotEnoughData: fewer than k trusted rows.
    """

    name = "functional-top-ccc"

    def __init__(self, k: int = 5, rows: int = 5000) -> None:
        check_number(f"{self.name} k", k, least=1, whole=True)
        check_number(f"{self.name} rows", rows, least=max(k, 2), whole=True)
        self.k, self.rows = k, rows
        self.least = max(k, 2)

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        agreement = concordance(x, self.rows_.to(torch.float64))

        return 1 - agreement.topk(self.k, dim=1, sorted=True).values.mean(dim=1)


class ClassConcordance(SitesScore):
    r"""Scores a prompt by its mean concordance with the trusted prompts of one answer.

    .. math:: s(x) = 1 - \max_c \frac{1}{m_c} \sum_{z : \hat y(z) = c} \mathrm{CCC}(x, z)

    :math:`\hat y` is the answer that the model prefers, which the site ``module:answer`` numbers
    (``functional`` with ``answers=True``). Where that site is missing, or is the same for all
    trusted prompts and so was left out, they are one class. Rows of several other sites are
    joined. Higher is more anomalous. Unitless, from 0 to 2.

    Args:
        rows: as in :class:`MeanCorrelation`.

    Raises:
        NotEnoughData: fewer than two trusted prompts.

    References:
        Keenan, Leckie, Erfani, 2026 (CLC). https://arxiv.org/abs/2604.18970
    """

    name = "functional-class-ccc"
    rows_: Float[Tensor, "m d"]
    classes_: Float[Tensor, " m"]

    def __init__(self, rows: int = 5000) -> None:
        check_number(f"{self.name} rows", rows, least=2, whole=True)
        self.rows = rows

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self,
        trusted: Mapping[str, Statistic],
        pool: Mapping[str, Statistic] | None,
        generator: torch.Generator,
    ) -> Self:
        """Keeps the sample, and the answer of each row."""
        self._remember(trusted, 1)
        rows = self._aligned(trusted, 2)
        self.classes_, traces = self._parted([part.to(torch.float64) for part in rows])
        if not traces.shape[1]:
            raise NotEnoughData(
                "only the answers vary among the trusted prompts",
                where=self.name,
                mend="Use a larger scale",
            )
        self.rows_ = traces

        return self

    def _score(self, x: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " n"]:
        agreement = concordance(self._parted(x)[1], self.rows_)
        means = [agreement[:, self.classes_ == c].mean(dim=1) for c in torch.unique(self.classes_)]

        return 1 - torch.stack(means).amax(dim=0)

    def _parted(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The answer of each row, and the rows of all other sites joined."""
        traces = [part for site, part in zip(self.sites_, x, strict=True) if site != str(ANSWER)]
        answers = [part for site, part in zip(self.sites_, x, strict=True) if site == str(ANSWER)]
        classes = answers[0][:, 0].round() if answers else x[0].new_zeros(len(x[0]))

        return classes, torch.cat(traces, dim=1) if traces else x[0].new_zeros(len(x[0]), 0)


def concordance(x: Float[Tensor, "n d"], rows: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Lin's concordance coefficient of each row of one with each of the other; 0 for 0/0."""
    means = x.mean(dim=1, keepdim=True), rows.mean(dim=1, keepdim=True)
    deviations = x - means[0], rows - means[1]
    variances = [d.square().mean(dim=1, keepdim=True) for d in deviations]
    covariance = deviations[0] @ deviations[1].T / x.shape[1]
    whole = variances[0] + variances[1].T + (means[0] - means[1].T).square()

    return torch.where(whole > 0, 2 * covariance / torch.where(whole > 0, whole, 1), 0)


def _unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Each row less its mean, at length 1; 0 where it does not vary."""
    deviation = x - x.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(deviation, dim=1, keepdim=True)
    varies = length > _NOTHING * torch.linalg.vector_norm(x, dim=1, keepdim=True)

    return torch.where(varies, deviation / torch.where(varies, length, 1), 0)
