"""Affine forms against covariances on the same questions: each answer, and the truth.

::

    python -m benchmarks.affine_vs_covariance

Inputs are uniform in a box. Covariances (and a form read as uniform unknowns) estimate the mean,
the spread and the probability of an event; forms and intervals prove a range, and with it bounds
on the probability. The truth is sampled, or exact where stated.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from offkey.estimate import Bound, gaussian
from offkey.estimate.affine import AffineForm, interval_bounds, propagate, tail_bound
from offkey.estimate.bilinear import Bilinear
from offkey.estimate.gaussian import Normal
from offkey.storage import write_results
from offkey.training import TrainingSettings, train_module

RESULT = Path("docs/results/affine_vs_covariance.json")
SEEDS = (0, 1, 2)
SAMPLES = 400_000
BATCH = 50_000
RARE = 1e-3
"""Share of samples above the first threshold of a question."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """A network with one output, and the box its inputs are uniform in.

    Attributes:
        network: its name.
        depth: how many nonlinear layers it has.
        seed: of its weights.
        module: gives ``[n, 1]``.
        centre: of the box.
        radius: of the box, alike in every dimension.
        thresholds: events to use instead of the sampled ones: name, threshold, and the exact
            probability (nan where it is to be sampled).
    """

    network: str
    depth: int
    seed: int
    module: nn.Module
    centre: Array
    radius: float
    thresholds: tuple[tuple[str, float, float], ...] = ()

    @property
    def ends(self) -> tuple[Array, Array]:
        """Of the box."""
        return self.centre - self.radius, self.centre + self.radius


def main() -> None:
    """Writes ``affine_vs_covariance``."""
    rows = [row for question in questions() for row in answers(question)]
    write_results(
        RESULT, rows, command="python -m benchmarks.affine_vs_covariance", seeds=list(SEEDS)
    )


def questions() -> Iterator[Question]:
    """Random, trained and planted networks."""
    for seed in SEEDS:
        for depth in (1, 2, 4, 8):
            for radius in (0.1, 1.0):
                yield random_relu(depth, radius, seed)
        for depth in (1, 2):
            yield random_bilinear(depth, 0.3, seed)
    for radius in (0.01, 0.03, 0.1):
        yield digit_margin(radius)
    yield cancelling()
    yield hidden_identity()
    yield excluding()
    yield twenty_at_once()


def random_relu(depth: int, radius: float, seed: int) -> Question:
    """He-initialised, 16 inputs, width 32."""
    generator = torch.Generator().manual_seed(1000 * depth + seed)
    layers: list[nn.Module] = []
    for k in range(depth):
        layers += [nn.Linear(16 if k == 0 else 32, 32), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(32, 1)).double()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                scale = math.sqrt(2 / layer.in_features)
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * scale)
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.1)
    centre = torch.randn(16, generator=generator).double().numpy()

    return Question("random ReLU, width 32", depth, seed, net, centre, radius)


def random_bilinear(depth: int, radius: float, seed: int) -> Question:
    """Bilinear layers of 16 inputs, with bias."""
    widths = [16] * depth + [1]
    layers = [Bilinear(widths[k], 24, widths[k + 1], seed=seed + k) for k in range(depth)]
    centre = torch.randn(16, generator=torch.Generator().manual_seed(seed)).double().numpy() / 2

    return Question(
        "random bilinear, width 24", depth, seed, nn.Sequential(*layers).double(), centre, radius
    )


def digit_margin(radius: float) -> Question:
    """How much a trained network prefers another digit to the true one, around a test digit."""
    data = load_digits()
    x, y = torch.tensor(data.data / 16).float(), torch.tensor(data.target)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    train_module(net, x[:1200], y[:1200], TrainingSettings(steps=800, batch=100, rate=3e-3))
    net = net.double()
    test = x[1200:].double()
    with torch.no_grad():
        logits = net(test)
    top = logits.topk(2, dim=1)
    right = top.indices[:, 0] == y[1200:]
    gaps = torch.where(right, top.values[:, 0] - top.values[:, 1], math.inf)
    row = int(gaps.argsort()[len(gaps) // 10])
    first, second = top.indices[row].tolist()
    margin = nn.Linear(10, 1, bias=False).double()
    with torch.no_grad():
        margin.weight.zero_()
        margin.weight[0, second], margin.weight[0, first] = 1.0, -1.0

    name, event = f"digits, {second} over {first}", ("another digit wins", 0.0, math.nan)

    return Question(name, 2, 0, nn.Sequential(*net, margin), test[row].numpy(), radius, (event,))


def planted(weights: list[tuple[list[list[float]], list[float]]]) -> nn.Module:
    """A ReLU network with these weights and biases."""
    layers: list[nn.Module] = []
    for k, (weight, bias) in enumerate(weights):
        layer = nn.Linear(len(weight[0]), len(weight)).double()
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
        layers += [layer] + ([nn.ReLU()] if k + 1 < len(weights) else [])

    return nn.Sequential(*layers)


def cancelling() -> Question:
    """Two copies of one value that never crosses 0, less one another: always 0."""
    net = planted([([[1.0, 1.0], [1.0, 1.0]], [4.0, 4.0]), ([[1.0, -1.0]], [0.0])])

    return Question("x - x through an open ReLU", 1, 0, net, np.zeros(2), 1.0)


def hidden_identity() -> Question:
    """ReLU(a) - ReLU(-a) - a, always 0: true, but not visible without knowing the nonlinearity."""
    net = planted(
        [
            ([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]], [0.0, 0.0, 4.0]),
            ([[1.0, -1.0, -1.0]], [4.0]),
        ]
    )

    return Question("ReLU(a) - ReLU(-a) - a", 1, 0, net, np.zeros(2), 1.0)


def excluding() -> Question:
    """The sum of ReLU(a - ½) and ReLU(-a - ½), of which only one is ever on: at most ½."""
    net = planted([([[1.0], [-1.0]], [-0.5, -0.5]), ([[1.0, 1.0]], [0.0])])

    return Question(
        "two that exclude each other",
        1,
        0,
        net,
        np.zeros(1),
        1.0,
        (("sum above 0.75", 0.75, 0.0),),
    )


def twenty_at_once() -> Question:
    """The sum of 20 inputs near its largest value: they must all be large at once."""
    net = planted([([[1.0] * 20], [0.0])])
    corner = 1 / math.factorial(20)

    return Question(
        "sum of 20 inputs",
        0,
        0,
        net,
        np.zeros(20),
        1.0,
        (("sum above 18", 18.0, corner), ("sum above 20.1", 20.1, 0.0)),
    )


def answers(question: Question) -> Iterator[dict[str, Any]]:
    """One row for each event and method."""
    outputs = sampled(question)
    mean, spread = float(outputs.mean()), float(outputs.std())
    high = float(outputs.max())
    rare = float(np.quantile(outputs, 1 - RARE))
    events = (
        (f"above the sampled {1 - RARE:g} quantile", rare, math.nan),
        ("above all samples by their range", 2 * high - float(outputs.min()), math.nan),
    )
    known = question.thresholds or (events if spread > 0 else [("above 1e-9", 1e-9, 0.0)])
    timings = [(name, *timed(method, question)) for name, method in METHODS.items()]
    for event, threshold, exact in known:
        truth = float((outputs > threshold).mean()) if math.isnan(exact) else exact
        for name, (answer, seconds) in ((n, (a, s)) for n, a, s in timings):
            yield {
                "network": question.network,
                "depth": question.depth,
                "seed": question.seed,
                "radius": question.radius,
                "method": name,
                "event": event,
                "threshold": threshold,
                "truth": truth,
                "truth_is": "sampled" if math.isnan(exact) else "exact",
                **answer.about(mean, spread, threshold),
                "range_low": answer.bound and answer.bound.low,
                "range_high": answer.bound and answer.bound.high,
                "sampled_low": float(outputs.min()),
                "sampled_high": high,
                "range_over_sampled": answer.times_wider(outputs),
                "seconds": seconds,
            }


def sampled(question: Question) -> Array:
    """Outputs for inputs drawn from the box."""
    rng, parts = np.random.default_rng(question.seed + 77), []
    for _ in range(SAMPLES // BATCH):
        x = rng.uniform(*question.ends, size=(BATCH, len(question.centre)))
        with torch.no_grad():
            parts.append(question.module(torch.tensor(x))[:, 0].numpy())
    outputs = np.concatenate(parts)

    return np.where(np.abs(outputs) < 1e-12, 0.0, outputs)


@dataclass(frozen=True)
class Answer:
    """The answer of one method: an estimate, or a proof."""

    normal: tuple[float, float] | None = None
    bound: Bound | None = None
    form: AffineForm | None = None

    def about(self, mean: float, spread: float, threshold: float) -> dict[str, Any]:
        """The estimate against the truth, and its probability of the event."""
        if self.normal is not None:
            m, s = self.normal
            return {
                "mean_error_in_deviations": abs(m - mean) / spread if spread else abs(m),
                "deviation_over_truth": s / spread if spread else None,
                "deviation": s,
                "probability": above(m, s, threshold),
                "low": None,
                "high": None,
            }
        assert self.bound is not None
        proved = Bound(float(self.bound.low > threshold), float(self.bound.high > threshold))
        if self.form is not None:
            proved = tail_bound(self.form, threshold)

        unsaid = ("mean_error_in_deviations", "deviation_over_truth", "deviation", "probability")

        return {**dict.fromkeys(unsaid), "low": proved.low, "high": proved.high}

    def times_wider(self, outputs: Array) -> float | None:
        """The proved range as a multiple of the sampled one."""
        width = float(outputs.max() - outputs.min())
        if self.bound is None or not width:
            return None

        return (self.bound.high - self.bound.low) / width


def above(mean: float, deviation: float, threshold: float) -> float:
    """Probability of a Gaussian above a threshold."""
    if deviation < 1e-9:
        return float(mean > threshold)

    return 0.5 * math.erfc((threshold - mean) / deviation / math.sqrt(2))


def timed(method: Callable[[Question], Answer], question: Question) -> tuple[Answer, float]:
    """The answer, and the least of three times."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        answer = method(question)
        times.append(time.perf_counter() - start)

    return answer, min(times)


def by_covariance(question: Question, covariance: Literal["full", "diagonal"] = "full") -> Answer:
    """Mean and covariance from layer to layer, each layer exact for Gaussian inputs."""
    centre = torch.tensor(question.centre)
    start = Normal(centre, torch.eye(len(centre)).double() * question.radius**2 / 3)
    states = gaussian.propagate(
        question.module, start, gaussian.PropagationSettings(covariance=covariance)
    )
    *_, state = states.values()

    return Answer(normal=(float(state.mean[0]), math.sqrt(max(0.0, float(state.variance[0])))))


def by_form(question: Question) -> Answer:
    """A range that is proved, and bounds on the probability from the same form."""
    form = propagate(question.module, AffineForm.box(*question.ends))

    return Answer(bound=form.bound(), form=form)


def by_uniform_unknowns(question: Question) -> Answer:
    """The form read as independent uniform unknowns: an estimate."""
    normal = propagate(question.module, AffineForm.box(*question.ends)).normal()

    return Answer(normal=(float(normal.mean[0]), float(normal.variance[0]) ** 0.5))


def by_intervals(question: Question) -> Answer:
    """A range that is proved without remembering dependence."""
    return Answer(bound=interval_bounds(question.module, *question.ends)[0])


METHODS: dict[str, Callable[[Question], Answer]] = {
    "covariance": by_covariance,
    "variances alone": lambda question: by_covariance(question, "diagonal"),
    "affine, as uniform unknowns": by_uniform_unknowns,
    "affine, proved": by_form,
    "intervals, proved": by_intervals,
}

if __name__ == "__main__":
    main()
