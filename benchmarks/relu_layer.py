"""One ReLU layer of width 1024 with its full covariance, against the matrix products it needs.

::

    python -m benchmarks.relu_layer
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offkey.estimate.gaussian import RELU, Normal, linear, through
from offkey.storage import write_results

from ._timing import interleaved, measured, ratio, row

__all__ = ["beside_matrix_products"]

OUT = Path("docs/results/relu_layer.json")
TARGET = 3.0


def main() -> None:
    """Writes ``relu_layer``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help="results file to write")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        beside_matrix_products(name, normal, options.pairs)
        for name, normal in states(options.width)
    ]
    write_results(options.out, rows, command="python -m benchmarks.relu_layer", seeds=[0])
    for result in rows:
        print(
            f"{result['job']}: {result['ratio']} [{result['low']}, {result['high']}], "
            f"target {result['target']}, {result['note']}"
        )


def beside_matrix_products(name: str, normal: Normal, pairs: int) -> dict[str, Any]:
    """Linear layer and ReLU, over W S Wᵀ; and the largest error among pairs taken at random."""
    weight = random_weight(len(normal.mean), seed=99)
    made: dict[str, Any] = {}

    def ours() -> None:
        made["state"] = through(RELU, linear(normal, weight).state)

    def products() -> None:
        made["plain"] = weight @ normal.covariance @ weight.T

    ours(), products()  # noqa: B018 # the first call is not counted
    runs = interleaved(lambda: measured(ours), lambda: measured(products), pairs)
    before = linear(normal, weight).state
    note = (
        f"float64, {torch.get_num_threads()} threads; largest correlation "
        f"{largest_correlation(before):.2f}; largest error of 10,000 pairs against one by one "
        f"{error_of_pairs(before, made['state']):.1e} of both standard deviations; processor time "
        f"{ratio(runs, 'processor_seconds').median:.2f}"
    )

    return row(
        f"ReLU layer, width {len(normal.mean)}, {name}",
        ratio(runs),
        unit="time",
        at_most=TARGET,
        peer="W S Wᵀ (torch)",
        peer_version=torch.__version__,
        note=note,
    )


def states(width: int) -> list[tuple[str, Normal]]:
    """The input of a first layer, of a sixth, and one whose coordinates all share a cause."""
    first = Normal.standard(width)
    sixth = first
    for depth in range(5):
        sixth = through(RELU, linear(sixth, random_weight(width, seed=depth)).state)
    shared = random_weight(width, seed=50)[:, :8] * (width / 2) ** 0.5
    common = Normal(torch.zeros(width), shared @ shared.T + 0.5 * torch.eye(width))

    return [("first layer", first), ("sixth layer", sixth), ("eight common causes", common)]


def random_weight(width: int, seed: int) -> Tensor:
    """He initialisation."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, width, generator=generator, dtype=torch.float64)

    return drawn * (2 / width) ** 0.5


def largest_correlation(normal: Normal) -> float:
    """Of two different coordinates."""
    rate = normal.variance.rsqrt()
    rho = (normal.covariance * rate[:, None] * rate).fill_diagonal_(0)

    return float(rho.abs().amax())


def error_of_pairs(before: Normal, after: Normal, count: int = 10_000) -> float:
    """Largest error of the covariance, as a share of both standard deviations."""
    generator = torch.Generator().manual_seed(0)
    i, j = torch.randint(len(before.mean), (2, count), generator=generator)
    i, j = i[i != j], j[i != j]
    m, v, s = before.mean, before.variance, before.covariance
    slow = RELU.covariance(m[i], m[j], v[i], v[j], s[i, j])
    scale = (after.variance[i] * after.variance[j]).sqrt()

    return float(((after.covariance[i, j] - slow) / scale).abs().amax())


if __name__ == "__main__":
    main()
