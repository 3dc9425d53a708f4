"""From a covariance known on a mask to one that a Gaussian can have."""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from offkey.errors import BadInput, BadValue, Mismatch, NotEnoughData

__all__ = [
    "Array",
    "Closure",
    "close",
    "check_covariance",
    "check_mask",
    "log2_det",
    "divergence_bits",
]

Array = np.ndarray
Closure = Literal["zero", "maxent", "clip"]
_ASYMMETRY = 1e-9
"""Largest asymmetry, and most negative eigenvalue, taken for rounding; a share of the largest."""
_TOLERANCE = 1e-11
"""Largest change of a correlation in the last sweep."""
_SWEEPS = 2000
_FLOOR = 1e-6
"""Smallest eigenvalue of a clipped correlation matrix."""


def close(
    covariance: Float[Tensor, "d d"],
    mask: Bool[Tensor, "d d"],
    closure: Closure = "maxent",
    *,
    rank: int | None = None,
    tolerance: float = _TOLERANCE,
) -> Float[Tensor, "d d"]:
    r"""Completes a covariance that is known on a mask only.

    Keeping the entries on a mask and putting the others to zero leaves a positive definite matrix
    for every covariance only if the mask is made of blocks.

    - ``"zero"`` does that all the same: fine for formulas of pairs, not for sampling.
    - ``"maxent"`` gives the one positive definite matrix that equals the covariance on the mask
      and whose inverse is zero off it: of all Gaussians with these entries the one of largest
      entropy (covariance selection).
    - ``"clip"`` raises the eigenvalues of the zero-filled correlations to a small positive floor,
      keeps ``rank`` of them plus a diagonal, and restores the variances. Entries on the mask
      move.

    Args:
        covariance: symmetric and positive semi-definite; what lies off the mask is used as a
            feasible start only.
        mask: symmetric; its diagonal counts as true.
        closure: which completion.
        rank: with ``"clip"``, how many eigenvectors are kept; all if left out.
        tolerance: with ``"maxent"``, largest change of a correlation in the last sweep.

    Raises:
        BadInput: the covariance is not symmetric or not positive semi-definite, or the mask is
            not symmetric.
        NotEnoughData: ``"maxent"`` of a covariance with a singular block on the mask.

    References:
        Dempster, 1972: Covariance selection.
        Hastie, Tibshirani, Friedman, 2009: The elements of statistical learning, algorithm 17.1.
    """
    s = check_covariance(covariance, definite=closure == "maxent")
    keep = check_mask(mask, len(s))
    if closure == "zero":
        return s * keep
    if closure not in ("maxent", "clip"):
        raise BadValue(
            f"unknown closure {closure!r}", where="closure", mend="Use 'zero', 'maxent' or 'clip'"
        )
    scale = s.diagonal().sqrt()
    if not bool((scale > 0).all()):
        raise NotEnoughData(
            "it does not vary", where=f"dimension {int(scale.argmin())}", mend="Leave it out"
        )
    r = s / torch.outer(scale, scale)
    r.fill_diagonal_(1.0)
    done = _maxent(r, keep, tolerance) if closure == "maxent" else _clipped(r * keep, rank)

    return done * torch.outer(scale, scale)


def check_covariance(
    covariance: Float[Tensor, "d d"], *, definite: bool = True
) -> Float[Tensor, "d d"]:
    """The matrix in float64, exactly symmetric.

    Raises:
        BadInput: not square, not finite, not symmetric, a negative variance or, if ``definite``
            is asked for, a negative eigenvalue.
    """
    s = covariance.detach().double()
    if s.ndim != 2 or s.shape[0] != s.shape[1] or not len(s):
        raise BadInput(
            f"shape {tuple(s.shape)} is not that of a square matrix", where="covariance"
        )
    if not bool(s.isfinite().all()):
        raise BadInput("an entry is not finite", where="covariance")
    largest = float(s.abs().amax())
    if float((s - s.T).abs().amax()) > _ASYMMETRY * largest:
        raise BadInput("it is not symmetric", where="covariance")
    if float(s.diagonal().amin()) < 0:
        worst = int(s.diagonal().argmin())
        raise BadInput(
            f"variance {float(s[worst, worst]):.3g} is negative",
            where=f"covariance, dimension {worst}",
        )
    s = (s + s.T) / 2
    if definite and int(torch.linalg.cholesky_ex(s)[1]):
        least = float(torch.linalg.eigvalsh(s)[0])
        if least < -_ASYMMETRY * largest:
            raise BadInput(
                f"it is not positive semi-definite (eigenvalue {least:.3g})",
                where="covariance",
                mend="Close it first, with closure 'maxent' or 'clip'",
            )

    return s


def check_mask(mask: Bool[Tensor, "d d"], width: int) -> Bool[Tensor, "d d"]:
    """The mask with a diagonal that is true.

    Raises:
        BadInput: not symmetric, or not of this width.
    """
    if mask.shape != (width, width):
        raise BadInput(f"shape {tuple(mask.shape)} for {width} dimensions", where="mask")
    keep = mask.bool()
    if not bool((keep == keep.T).all()):
        i, j = (int(n) for n in (keep != keep.T).nonzero()[0])
        raise BadInput(
            f"({i}, {j}) and ({j}, {i}) differ",
            where="mask",
            mend="Make it symmetric: a pair is tracked or it is not",
        )

    return keep | torch.eye(width, dtype=torch.bool)


def log2_det(covariance: Float[Tensor, "d d"]) -> float:
    """Base-2 logarithm of the determinant of a positive definite matrix.

    Raises:
        NotEnoughData: it is singular.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        raise NotEnoughData(
            "it is singular",
            where="covariance",
            mend="Give more rows than dimensions, or shrink it",
        )

    return 2 * float(factor.diagonal().log2().sum())


def divergence_bits(
    covariance: Float[Tensor, "d d"],
    closed: Float[Tensor, "d d"],
    gap: Float[Tensor, " d"] | None = None,
) -> float:
    r"""KL divergence from :math:`N(0, S)` to :math:`N(\delta, \hat S)`, in bits.

    .. math:: \tfrac12 \Big[\log_2 \frac{|\hat S|}{|S|}
        + \frac{\operatorname{tr} \hat S^{-1} S + \delta^\top \hat S^{-1} \delta - d}{\ln 2}\Big]

    For ``"maxent"`` closures without a gap the second term is zero.

    Raises:
        NotEnoughData: one of the two is singular.
        Mismatch: they differ in width.
    """
    s, q = covariance.double(), closed.double()
    if s.shape != q.shape:
        raise Mismatch(f"widths {len(s)} and {len(q)}", where="divergence_bits")
    determinants = log2_det(q) - log2_det(s)
    spread = s if gap is None else s + torch.outer(gap.double(), gap.double())
    trace = float(torch.linalg.solve(q, spread).trace()) - len(s)

    return (determinants + trace / math.log(2)) / 2


def _clipped(r: Float[Tensor, "d d"], rank: int | None) -> Float[Tensor, "d d"]:
    """Low rank plus diagonal with diagonal 1."""
    values, vectors = torch.linalg.eigh(r)
    kept = len(r) if rank is None else rank
    if not 0 <= kept <= len(r):
        raise BadValue(f"rank {rank} of {len(r)} dimensions", where="clip")
    values, vectors = values[len(r) - kept :].clamp(min=0), vectors[:, len(r) - kept :]
    part = (vectors * values) @ vectors.T
    # variances that clipping raised are brought back to 1, those that it lowered filled up
    size = (part.diagonal() / (1 - _FLOOR)).clamp(min=1).sqrt()
    low: Tensor = part / torch.outer(size, size)

    low.fill_diagonal_(1.0)

    return low


def _maxent(
    r: Float[Tensor, "d d"], keep: Bool[Tensor, "d d"], tolerance: float
) -> Float[Tensor, "d d"]:
    """Covariance selection of correlations; parts of the mask that do not touch are apart."""
    mask = keep.numpy()
    count, part = connected_components(csr_array(mask), directed=False)
    out = torch.eye(len(r), dtype=r.dtype)
    order = np.argsort(part, kind="stable")
    for block in np.split(order, np.cumsum(np.bincount(part, minlength=count))[:-1]):
        if len(block) == 1:
            continue
        place = torch.from_numpy(block)
        inside = r[place[:, None], place]
        if not bool(keep[place[:, None], place].all()):
            done = _selected(inside.numpy().copy(), mask[np.ix_(block, block)], tolerance)
            inside = torch.from_numpy(done)
        if int(torch.linalg.cholesky_ex(inside)[1]):
            raise NotEnoughData(
                f"the covariance of {len(block)} tracked dimensions is singular",
                where="closure maxent",
                mend="Give more rows, track fewer pairs, or shrink the covariance",
            )
        out[place[:, None], place] = inside

    return out


def _selected(w: Array, mask: Array, tolerance: float) -> Array:
    """Covariance selection on one connected part, starting at the given matrix.

    Dimensions whose neighbours are all tracked with each other depend on the rest through these
    alone: they are removed one after another and restored exactly, so masks without a
    chordless cycle are closed without a sweep.
    """
    peeled, core = _peeled(mask)
    if len(core) > 1:
        inside = np.ix_(core, core)
        w[inside] = _swept(w[inside], mask[inside], tolerance)
    known = list(core)
    for j, near in reversed(peeled):
        far = np.setdiff1d(known, near)
        if len(near):
            w[far, j] = w[j, far] = w[np.ix_(far, near)] @ _solved(w, near, j)
        known.append(j)

    return w


def _peeled(mask: Array) -> tuple[list[tuple[int, Array]], Array]:
    """The removable dimensions in order, each with its neighbours at that point, and the rest."""
    around = [set(np.flatnonzero(row).tolist()) - {j} for j, row in enumerate(mask)]
    left, queue = set(range(len(mask))), set(range(len(mask)))
    peeled = []
    while queue:
        j = min(queue)
        queue.discard(j)
        near = np.array(sorted(around[j]), dtype=np.int64)
        if len(near) > 1 and not mask[np.ix_(near, near)].all():
            continue
        peeled.append((j, near))
        left.discard(j)
        for other in near.tolist():
            around[other].discard(j)
            queue.add(other)

    return peeled, np.array(sorted(left), dtype=np.int64)


def _swept(w: Array, mask: Array, tolerance: float) -> Array:
    """Sweeps of regressions of each dimension on those it is tracked with.

    Entries on the mask never move, and the determinant never falls.
    """
    around = [np.flatnonzero(row) for row in mask & ~np.eye(len(w), dtype=bool)]
    beside = [np.flatnonzero(~row) for row in mask]
    worst = 0.0
    for _ in range(_SWEEPS):
        worst = 0.0
        for j, (near, far) in enumerate(zip(around, beside, strict=True)):
            if not len(far):
                continue
            fresh = w[np.ix_(far, near)] @ _solved(w, near, j)
            worst = max(worst, float(np.abs(fresh - w[far, j]).max()))
            w[far, j] = fresh
            w[j, far] = fresh
        if worst < tolerance:
            return w

    raise NotEnoughData(
        f"the closure still moves by {worst:.2g} after {_SWEEPS} sweeps",
        where="closure maxent",
        mend="The covariance is close to singular: give more rows, or shrink it",
    )


def _solved(w: Array, near: Array, j: int) -> Array:
    """Regression of a dimension on its neighbours."""
    try:
        return np.asarray(np.linalg.solve(w[np.ix_(near, near)], w[near, j]))
    except np.linalg.LinAlgError:
        raise NotEnoughData(
            f"the covariance of {len(near) + 1} tracked dimensions is singular",
            where="closure maxent",
            mend="Give more rows, track fewer pairs, or shrink the covariance",
        ) from None
