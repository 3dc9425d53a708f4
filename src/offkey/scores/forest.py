"""Isolation forest: how few random cuts set a row apart."""

from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.ensemble import IsolationForest as Forest
from sklearn.tree import ExtraTreeRegressor
from torch import Tensor

from offkey.scores.score import TensorScore, check_number
from offkey.stats import Sample, Statistic

__all__ = ["IsolationForest"]


class IsolationForest(TensorScore):
    r"""Scores a row by how few random cuts set it apart from trusted rows.

    .. math:: s(x) = 2^{-\bar h(x) / c(m)}

    :math:`\bar h` is the mean depth at which the row's leaf lies, each leaf deepened by the
    expected depth of the rows left in it; :math:`c(m)` is that depth for a tree's m rows. Equal
    to scikit-learn's ``-score_samples``; the trees are kept as plain arrays. Higher is more
    anomalous. Unitless, from 0 to 1.

    Args:
        trees: how many trees.
        rows_per_tree: how many rows each is grown on.
        rows: how many trusted rows are kept at most while fitting.

    Raises:
        NotEnoughData: fewer than two trusted rows.

    References:
        Liu, Ting, Zhou, 2008, eq. 1 and 2: Isolation forest.
        https://doi.org/10.1109/ICDM.2008.17
    """

    name = "isolation-forest"
    feature_: Tensor
    threshold_: Tensor
    child_: Tensor
    depth_: Tensor
    root_: Tensor
    scale_: Tensor
    width_: Tensor

    def __init__(self, trees: int = 100, rows_per_tree: int = 256, rows: int = 5000) -> None:
        check_number(f"{self.name} trees", trees, least=1, whole=True)
        check_number(f"{self.name} rows_per_tree", rows_per_tree, least=2, whole=True)
        check_number(f"{self.name} rows", rows, least=2, whole=True)
        self.trees, self.rows_per_tree, self.rows = trees, rows_per_tree, rows

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Grows the trees; ``generator`` draws their seed."""
        assert isinstance(trusted, Sample)
        self._need(trusted, 2)
        rows = trusted.rows
        size = min(self.rows_per_tree, len(rows))
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        forest = Forest(n_estimators=self.trees, max_samples=size, random_state=seed)
        forest.fit(rows.to(torch.float32).numpy())
        self._unpack(forest.estimators_)
        self.scale_ = torch.from_numpy(_expected_depth(np.array(size)))
        self.width_ = torch.tensor(rows.shape[1])

        return self

    def _width(self) -> int:
        return int(self.width_)

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        # Trees are grown on float32 and compare so; a larger number would overflow to infinity.
        most = torch.finfo(torch.float32).max
        x = x.clamp(-most, most).to(torch.float32).to(torch.float64)
        node = self.root_.expand(len(x), -1)
        while (inner := self.child_[node, 0] != node).any():
            right = x.gather(1, self.feature_[node]) > self.threshold_[node]
            node = torch.where(inner, self.child_[node, right.long()], node)

        return torch.exp2(-self.depth_[node].mean(dim=1) / self.scale_)

    def _unpack(self, estimators: list[ExtraTreeRegressor]) -> None:
        """Lays the trees end to end; a leaf is its own child."""
        trees = [estimator.tree_ for estimator in estimators]
        sizes = np.array([tree.node_count for tree in trees])
        starts = np.cumsum(sizes) - sizes
        leaf = np.concatenate([tree.children_left < 0 for tree in trees])
        children = [
            np.stack([tree.children_left, tree.children_right], axis=1) + start
            for tree, start in zip(trees, starts, strict=True)
        ]
        child, itself = np.concatenate(children), np.arange(sizes.sum())[:, None]
        cuts = np.concatenate([tree.compute_node_depths() - 1 for tree in trees])
        left_over = np.concatenate([tree.n_node_samples for tree in trees])
        self.child_ = torch.from_numpy(np.where(leaf[:, None], itself, child).astype(np.int64))
        self.feature_ = torch.from_numpy(
            np.concatenate([tree.feature for tree in trees]).clip(0).astype(np.int64)
        )
        self.threshold_ = torch.from_numpy(np.concatenate([tree.threshold for tree in trees]))
        self.depth_ = torch.from_numpy(cuts + _expected_depth(left_over))
        self.root_ = torch.from_numpy(starts.astype(np.int64))


def _expected_depth(rows: np.ndarray) -> np.ndarray:
    """Mean depth of an unsuccessful search among ``rows`` rows; 0 for one, 1 for two."""
    m = np.maximum(rows, 3).astype(np.float64)
    many = 2 * (np.log(m - 1) + np.euler_gamma) - 2 * (m - 1) / m

    return np.where(rows > 2, many, np.where(rows == 2, 1.0, 0.0))
