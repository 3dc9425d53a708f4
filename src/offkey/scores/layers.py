"""How a prompt moves from layer to layer: step sizes, volatility, neighbours, one long row."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, check_choice
from offkey.scores._whitening import (
    SHRINKAGES,
    diagonal_precision,
    shrunk,
    squared_lengths,
    whiten_definite,
    whiten_kept,
)
from offkey.scores.mahalanobis import Mahalanobis
from offkey.scores.score import SitesScore, check_number
from offkey.stats import Moments, Sample, Statistic, unit_rows

__all__ = [
    "ConcatenatedMahalanobis",
    "LayerwiseConvergence",
    "TopologicalEvolution",
    "TrajectoryVolatility",
]

_RCOND = 1e-5
"""Eigenvalues up to this share of the largest are dropped where a covariance has no inverse."""

_TIE = 1e-9
"""Cosines nearer than this are equal, so that rounding makes no order."""

_BUDGET = 1 << 24
"""Comparisons that a block of queries may hold at once."""


class LayerwiseConvergence(SitesScore):
    r"""Scores a prompt by the sizes of its steps from layer to layer (LCF).

    .. math::
        \delta_l = h_{l+1} - h_l, \qquad
        s_l = \lVert (\delta_l - \mu_l) / \sigma_l \rVert, \qquad
        s(x) = z^\top \Sigma_\lambda^{-1} z, \qquad z_l = (s_l - m_l) / d_l

    :math:`\mu_l, \sigma_l` are the trusted mean and standard deviation of each dimension of a
    step; dimensions that never varied are left out. :math:`m_l, d_l` are those of the trusted
    :math:`s_l`, and :math:`\Sigma_\lambda` is the shrunk covariance of the trusted z. The
    published threshold, from scores with one prompt left out, is not part of it: detectors
    calibrate on prompts that were kept apart. Higher is more anomalous. Unitless.

    Args:
        shrinkage: of the covariance of z, as ``mahalanobis`` has it.
        rows: how many trusted rows are kept at most; a uniform sample where there are more.

    Raises:
        Mismatch: sites of unlike widths.
        NotEnoughData: fewer than two sites, or two trusted prompts.

    References:
        Min, Pham, Sun, 2026: Layerwise convergence fingerprints for runtime misbehavior detection
        in large language models. https://arxiv.org/abs/2604.24542
    """

    name = "lcf"
    mean_: Float[Tensor, "steps d"]
    scale_: Float[Tensor, "steps d"]
    step_mean_: Float[Tensor, " steps"]
    whitening_: Float[Tensor, "steps p"]

    def __init__(self, shrinkage: str | float = "ledoit-wolf", rows: int = 1000) -> None:
        _check_shrinkage(self.name, shrinkage)
        check_number(f"{self.name} rows", rows, least=2, whole=True)
        self.shrinkage, self.rows = shrinkage, rows

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self,
        trusted: Mapping[str, Statistic],
        pool: Mapping[str, Statistic] | None,
        generator: torch.Generator,
    ) -> Self:
        """Learns how large each step is, and how the steps' sizes vary together."""
        self._remember(trusted, 2)
        rows = [row.to(torch.float64) for row in self._aligned(trusted, 2)]
        self._one_width()
        steps = [_moments(after - before, diagonal=True) for before, after in pairwise(rows)]
        self.mean_ = torch.stack([step.mean for step in steps])
        self.scale_ = torch.stack([diagonal_precision(step).sqrt() for step in steps])
        sizes = _moments(self._sizes(rows))
        self.step_mean_ = sizes.mean
        unit = diagonal_precision(sizes).sqrt()
        z = _moments((self._sizes(rows) - sizes.mean) * unit)
        white = whiten_definite(shrunk(z, self.shrinkage), _RCOND)[0]
        self.whitening_ = (unit[:, None] * white).contiguous()

        return self

    def _score(self, x: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " n"]:
        return squared_lengths((self._sizes(x) - self.step_mean_) @ self.whitening_)

    def _sizes(self, x: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "n steps"]:
        steps = [after - before for before, after in pairwise(x)]
        sizes = [
            torch.linalg.vector_norm((step - mean) * scale, dim=1)
            for step, mean, scale in zip(steps, self.mean_, self.scale_, strict=True)
        ]

        return torch.stack(sizes, dim=1)


class TrajectoryVolatility(SitesScore):
    r"""Scores a prompt by how much its distance from trusted prompts changes along the layers.

    .. math:: s(x) = \frac{1}{L - 1} \sum_{l < L} | d_{l+1}(x) - d_l(x) |

    :math:`d_l` is the squared Mahalanobis distance of the l-th site, with shrunk covariance. With
    ``order`` k it is that of the k-th difference of the rows along the sites,
    :math:`\sum_i (-1)^{k-i} \binom{k}{i} h_{l+i}`, whose mean and covariance are those of the
    trusted prompts' own differences. Known as TV score. Higher is more anomalous. Unitless.

    Args:
        order: how often differences are taken.
        shrinkage: as ``mahalanobis`` has it, above 0.
        rows: how many trusted rows are kept at most with an ``order`` above 0.

    Raises:
        Mismatch: sites of unlike widths with an ``order`` above 0.
        NotEnoughData: fewer than ``order`` + 2 sites, or two trusted prompts.

    References:
        Wang et al., 2024: Embedding trajectory for out-of-distribution detection in mathematical
        reasoning. https://arxiv.org/abs/2405.14039
    """

    name = "trajectory"
    mean_: Float[Tensor, " total"]
    whitening_: Float[Tensor, "total p"]

    def __init__(
        self, order: int = 0, shrinkage: str | float = "ledoit-wolf", rows: int = 1000
    ) -> None:
        check_number(f"{self.name} order", order, least=0, most=5, whole=True)
        _check_shrinkage(self.name, shrinkage)
        check_number(f"{self.name} rows", rows, least=2, whole=True)
        self.order, self.shrinkage, self.rows = order, shrinkage, rows

    def statistic(self) -> Statistic:
        """Mean and covariance, or a uniform sample with an ``order`` above 0."""
        return Sample(self.rows) if self.order else Moments()

    def finish(
        self,
        trusted: Mapping[str, Statistic],
        pool: Mapping[str, Statistic] | None,
        generator: torch.Generator,
    ) -> Self:
        """Shrinks and inverts one covariance a site, or a difference of sites."""
        self._remember(trusted, self.order + 2)
        parts = [
            Mahalanobis(self.shrinkage).finish(moments, None, generator)
            for moments in self._learned(trusted)
        ]
        self.mean_ = torch.cat([part.mean_ for part in parts])
        most = max(part.whitening_.shape[1] for part in parts)
        self.whitening_ = torch.cat([_widened(part.whitening_, most) for part in parts])

        return self

    def _score(self, x: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " n"]:
        rows = self._differences(list(x))
        widths = [row.shape[1] for row in rows]
        means, maps = torch.split(self.mean_, widths), torch.split(self.whitening_, widths)
        distances = [
            squared_lengths((row - mean) @ white)
            for row, mean, white in zip(rows, means, maps, strict=True)
        ]

        return torch.stack(distances, dim=1).diff(dim=1).abs().mean(dim=1)

    def _learned(self, trusted: Mapping[str, Statistic]) -> list[Moments]:
        if self.order:
            rows = [row.to(torch.float64) for row in self._aligned(trusted, 2)]
            self._one_width()
            return [_moments(row) for row in self._differences(rows)]
        by_site = [moments for moments in trusted.values() if isinstance(moments, Moments)]
        for moments in by_site:
            self._need(moments, 2)
        self.widths_ = [len(moments.mean) for moments in by_site]

        return by_site

    def _differences(self, rows: list[Tensor]) -> list[Tensor]:
        for _ in range(self.order):
            rows = [after - before for before, after in pairwise(rows)]

        return rows


class ConcatenatedMahalanobis(SitesScore):
    r"""Scores a prompt by its Mahalanobis distance with all sites in one row.

    .. math:: s(x) = y^\top \Sigma_\lambda^{-1} y, \qquad
        y = [V_1^\top (u_1 - \mu_1), \dots, V_L^\top (u_L - \mu_L)], \qquad
        u_l = h_l / \lVert h_l \rVert

    The columns of :math:`V_l` are the leading principal components of the trusted :math:`u_l`, and
    :math:`\Sigma_\lambda` is the shrunk covariance of the trusted y, so that how sites vary
    together counts. The sites are those that it is given; the published method, MM++, chooses
    layers where the entropy of the features drops. Higher is more anomalous. Unitless.

    Args:
        components: how many principal components a site gives at most.
        shrinkage: as ``mahalanobis`` has it, above 0.
        rows: how many trusted rows are kept at most; a uniform sample where there are more.

    Raises:
        NotEnoughData: no site, or fewer than two trusted prompts.

    References:
        Mueller, Hein, 2025 (the scaling to length 1). https://arxiv.org/abs/2505.18032
        MM++, 2026 (the concatenation). https://arxiv.org/abs/2606.17352
    """

    name = "mahalanobis-concatenated"
    mean_: Float[Tensor, " total"]
    axes_: Float[Tensor, "total p"]
    kept_: list[int]
    whitening_: Float[Tensor, "k k"]

    def __init__(
        self, components: int = 16, shrinkage: str | float = "ledoit-wolf", rows: int = 1000
    ) -> None:
        check_number(f"{self.name} components", components, least=1, whole=True)
        _check_shrinkage(self.name, shrinkage)
        check_number(f"{self.name} rows", rows, least=2, whole=True)
        self.components, self.shrinkage, self.rows = components, shrinkage, rows

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self,
        trusted: Mapping[str, Statistic],
        pool: Mapping[str, Statistic] | None,
        generator: torch.Generator,
    ) -> Self:
        """Finds each site's components, and the covariance of all of them together."""
        self._remember(trusted, 1)
        rows = [row.to(torch.float64) for row in self._aligned(trusted, 2)]
        units = [unit_rows(row) for row in rows]
        self.mean_ = torch.cat([unit.mean(dim=0) for unit in units])
        axes = [_principal(unit, self.components) for unit in units]
        self.kept_ = [v.shape[1] for v in axes]
        self.axes_ = torch.cat([_widened(v, max(self.kept_)) for v in axes])
        y = self._components(rows)
        self.whitening_ = (
            whiten_definite(shrunk(_moments(y), self.shrinkage), _RCOND)[0]
            if y.shape[1]
            else y.new_empty(0, 0)
        )

        return self

    def _score(self, x: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " n"]:
        return squared_lengths(self._components(x) @ self.whitening_)

    def _components(self, x: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "n k"]:
        parts = zip(
            x, self._split(self.mean_), self._split(self.axes_, 0), self.kept_, strict=True
        )

        return torch.cat(
            [(unit_rows(row) - mean) @ axes[:, :kept] for row, mean, axes, kept in parts], dim=1
        )


class TopologicalEvolution(SitesScore):
    r"""Scores a prompt by how its nearest trusted prompts rank through the layers (TED).

    .. math:: s(x) = \frac{1}{k} \sum_{j \le k} (r_j - \bar r)^\top C^{+} (r_j - \bar r)

    The k trusted prompts nearest to x by cosine are found at the reference site; :math:`r_j` holds
    the rank of the j-th of them among all trusted prompts at every other site: the share of the
    others that are strictly nearer to x there, 0 for the nearest. :math:`\bar r` and :math:`C` are
    the mean and covariance of the rank vectors of the trusted prompts, each ranked without
    itself; the sum over principal components of squared component over eigenvalue, in which
    components up to ``rcond`` of the largest are dropped, is the outlier score of Shyu et al. The
    published detector looks for neighbours among prompts of the class that was predicted; here
    there is one class. Higher is more anomalous. Unitless.

    Args:
        k: how many neighbours.
        reference: place of the reference site among those that vary; negative from the end.
        rows: how many trusted rows are kept at most; a uniform sample where there are more.
        rcond: eigenvalues up to this share of the largest are dropped.

    Raises:
        BadValue: there is no such reference site.
        NotEnoughData: fewer than two sites, or fewer than k + 2 trusted prompts.

    References:
        Mo et al., 2023: Robust backdoor detection for deep learning via topological evolution
        dynamics. https://arxiv.org/abs/2312.02673
        Shyu, Chen, Sarinnapakorn, Chang, 2003: A novel anomaly detection scheme based on
        principal component classifier.
    """

    name = "ted"
    rows_: Float[Tensor, "m total"]
    mean_: Float[Tensor, " others"]
    whitening_: Float[Tensor, "others p"]

    def __init__(
        self, k: int = 10, reference: int = -1, rows: int = 1000, rcond: float = 1e-9
    ) -> None:
        check_number(f"{self.name} k", k, least=1, whole=True)
        check_number(f"{self.name} reference", reference, least=-1000, most=1000, whole=True)
        check_number(f"{self.name} rows", rows, least=k + 2, whole=True)
        check_number(f"{self.name} rcond", rcond, least=0, most=1)
        self.k, self.reference, self.rows, self.rcond = k, reference, rows, rcond

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self,
        trusted: Mapping[str, Statistic],
        pool: Mapping[str, Statistic] | None,
        generator: torch.Generator,
    ) -> Self:
        """Ranks every trusted prompt's neighbours, and learns how such ranks vary."""
        self._remember(trusted, 2)
        if not -len(trusted) <= self.reference < len(trusted):
            raise BadValue(
                f"no site at place {self.reference} of the {len(trusted)} that vary",
                where=f"{self.name} reference",
                mend=f"Use {-len(trusted)} to {len(trusted) - 1}",
            )
        rows = self._aligned(trusted, self.k + 2)
        self.rows_ = torch.cat(rows, dim=1)
        ranks = self._ranks([row.to(torch.float64) for row in rows], own=True).flatten(0, 1)
        moments = Moments()
        moments.update(ranks, [str(i) for i in range(len(ranks))])
        self.mean_ = moments.mean
        self.whitening_ = whiten_kept(moments, self.rcond)[0]

        return self

    def _score(self, x: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " n"]:
        z = (self._ranks(x) - self.mean_) @ self.whitening_

        return squared_lengths(z).mean(dim=1)

    def _ranks(
        self, x: Sequence[Float[Tensor, "n d"]], *, own: bool = False
    ) -> Float[Tensor, "n k others"]:
        """Ranks of the k neighbours at the sites other than the reference, from 0 to 1."""
        known = [unit_rows(part) for part in self._split(self.rows_.to(torch.float64))]
        step = max(1, _BUDGET // (self.k * len(self.rows_)))
        blocks = []
        for start in range(0, len(x[0]), step):
            closeness = [
                _closeness(unit_rows(part[start : start + step]), rows, start if own else None)
                for part, rows in zip(x, known, strict=True)
            ]
            near = closeness.pop(self.reference).sort(dim=1, descending=True, stable=True)
            chosen = near.indices[:, : self.k]
            nearer = [
                (there[:, None] > there.gather(1, chosen)[:, :, None]).sum(dim=2)
                for there in closeness
            ]
            blocks.append(torch.stack(nearer, dim=2))

        return torch.cat(blocks).to(torch.float64) / (len(self.rows_) - own - 1)


def _check_shrinkage(name: str, shrinkage: str | float) -> None:
    if isinstance(shrinkage, str):
        check_choice(f"{name} shrinkage", shrinkage, SHRINKAGES)
    else:
        check_number(f"{name} shrinkage", shrinkage, least=1e-9, most=1)


def _moments(rows: Float[Tensor, "n d"], *, diagonal: bool = False) -> Moments:
    moments = Moments(diagonal=diagonal)
    moments.update(rows, [str(i) for i in range(len(rows))])

    return moments


def _widened(matrix: Float[Tensor, "d p"], width: int) -> Float[Tensor, "d width"]:
    """The matrix with columns of zeros added."""
    return torch.nn.functional.pad(matrix, (0, width - matrix.shape[1]))


def _principal(rows: Float[Tensor, "n d"], most: int) -> Float[Tensor, "d p"]:
    """Leading principal components, as columns; those of no variance are left out."""
    centred = rows - rows.mean(dim=0)
    values, axes = torch.linalg.svd(centred, full_matrices=False)[1:]
    floor = 1e-9 * float(torch.linalg.matrix_norm(rows))

    kept: Tensor = axes[:most][values[:most] > floor]

    return kept.T.contiguous()


def _closeness(
    x: Float[Tensor, "n d"], rows: Float[Tensor, "m d"], own: int | None
) -> Float[Tensor, "n m"]:
    """Cosines in whole units of a tie; a row's own, ``own`` places off, is the least of all."""
    cosines = (x @ rows.T / _TIE).round()
    if own is not None:
        itself = torch.arange(len(x))
        cosines[itself, itself + own] = -torch.inf

    return cosines
