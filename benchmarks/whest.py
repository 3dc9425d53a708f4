"""WhestBench: expected activations of random networks, beside the benchmark's own baselines.

Networks, operation counter, limits and score are the benchmark's own. The truth is sampled here,
since the benchmark's 1e9 inputs a network take days on a few cores; it grows with each run::

    python -m benchmarks.whest --suite phase2 --networks 2 --samples 1e6
    python -m benchmarks.whest --suite phase2 --networks 2 --samples 4e6  # adds 3e6 to them

A limit on seconds that is broken costs an estimator its prediction, so run it on an idle machine;
``--busy`` lifts those limits where other work cannot be stopped, and the rows say so.

Needs ``pip install offkey[whest]``.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import flopscope.numpy as fnp
import numpy as np
from whestbench import MLP, BaseEstimator
from whestbench.budget import ROUNDS, RoundConfig, mc_flops_per_sample_for_round
from whestbench.estimators import CovariancePropagationEstimator, MeanPropagationEstimator
from whestbench.scoring import ContestData, ContestSpec, evaluate_estimator, make_contest
from whestbench.simulation import run_mlp_all_layers

from offkey.estimate.whest import Sampled, debiased_mse, sampled_activations
from offkey.estimate.whest.entry import Estimator
from offkey.storage import write_results

RESULTS = Path("docs/results/whestbench.json")
SUITES = {"warmup": "v1-warmup", "phase1": "v1-phase1", "phase2": "v2-phase2"}
BLOCKS = 16
"""Rotations between two savings of the truth."""


class Zeros(BaseEstimator):
    """Nothing at all."""

    def predict(self, mlp: MLP, budget: int) -> Any:
        """Zeros, ``[depth, width]``."""
        return fnp.zeros((mlp.depth, mlp.width), dtype=fnp.float32)


@dataclass
class Sampling(BaseEstimator):
    """Independent Gaussian inputs, as many as a share of the budget pays for."""

    settings: RoundConfig
    share: float = 0.1
    chunk: int = 1024

    def predict(self, mlp: MLP, budget: int) -> Any:
        """Means over the inputs, ``[depth, width]``."""
        count = int(self.share * budget / mc_flops_per_sample_for_round(self.settings))
        rng = fnp.random.default_rng(mlp.seed)
        total = fnp.zeros((mlp.depth, mlp.width), dtype=fnp.float32)
        for start in range(0, count, self.chunk):
            size = min(self.chunk, count - start)
            inputs = fnp.array(rng.standard_normal((size, mlp.width), dtype=fnp.float32))
            sums = [fnp.sum(layer, axis=0) for layer in run_mlp_all_layers(mlp, inputs)]
            total = total + fnp.stack(sums)

        return total / count


@dataclass
class Recorded(BaseEstimator):
    """Keeps what an estimator predicted."""

    inner: BaseEstimator
    predicted: list[np.ndarray]

    def predict(self, mlp: MLP, budget: int) -> Any:
        """What the estimator predicts."""
        layers = self.inner.predict(mlp, budget)
        self.predicted.append(np.asarray(layers, dtype=np.float32))

        return layers


def estimators(settings: RoundConfig) -> dict[str, BaseEstimator]:
    """The baselines and ours, by name."""
    return {
        "zeros": Zeros(),
        "mean propagation": MeanPropagationEstimator(),
        "covariance propagation": CovariancePropagationEstimator(),
        "sampling, a tenth of the budget": Sampling(settings),
        "cumulants, memory 1": Estimator(memory=1),
        "cumulants, memory 2": Estimator(memory=2),
        "cumulants": Estimator(),
    }


def main() -> None:
    """Samples the truth, runs every estimator under the benchmark, writes ``whestbench``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=SUITES, default="phase2")
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--samples", type=float, default=1e6, help="inputs of the truth a network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/whest"))
    parser.add_argument("--only", nargs="*", default=(), help="names of estimators")
    parser.add_argument("--busy", action="store_true", help="no limits on seconds")
    given = parser.parse_args()
    settings = ROUNDS[SUITES[given.suite]]
    if given.busy:
        settings = replace(settings, wall_time_limit_s=None, residual_wall_time_limit_s=None)
    data = contest(settings, given.networks, given.seed)
    truths = []
    for index, mlp in enumerate(data.mlps):
        file = given.out / f"{given.suite}-{given.seed}-{index}.npz"
        truths.append(truth(mlp, int(given.samples), [given.seed, index], file))
    for index, told in enumerate(truths):
        data.all_layer_targets[index] = fnp.asarray(told.layers.astype(np.float32))
        data.final_targets[index] = data.all_layer_targets[index][-1]
    rows = []
    for name, estimator in estimators(settings).items():
        if not given.only or name in given.only:
            rows.append(measured(given.suite, name, estimator, data, truths))
            print(json.dumps(rows[-1]), flush=True)
    others = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    kept = [row for row in others if row["suite"] != given.suite]
    order = list(SUITES)
    rows = sorted(kept + rows, key=lambda row: order.index(row["suite"]))
    command = "python -m benchmarks.whest --suite SUITE --networks N --samples N"
    write_results(
        RESULTS, rows, command=command, seeds=[given.seed], packages=["whestbench", "flopscope"]
    )


def contest(settings: RoundConfig, networks: int, seed: int) -> ContestData:
    """The benchmark's networks and limits; its targets are placeholders."""
    spec = ContestSpec(
        settings.width,
        settings.depth,
        networks,
        settings.flop_budget,
        ground_truth_samples=1,
        wall_time_limit_s=settings.wall_time_limit_s,
        residual_wall_time_limit_s=settings.residual_wall_time_limit_s,
        seed=seed,
        lambda_flops_per_second=settings.lambda_flops_per_second,
    )

    return make_contest(spec)


def truth(mlp: MLP, samples: int, seed: list[int], file: Path) -> Sampled:
    """Sampled means, kept in a file that every run adds to."""
    weights = [np.asarray(weight, dtype=np.float32) for weight in mlp.weights]
    stored = load(file)
    while stored is None or stored.inputs < samples:
        done = 0 if stored is None else len(stored.blocks)
        more = sampled_activations(weights, BLOCKS, np.random.default_rng([*seed, done]))
        stored = more if stored is None else stored + more
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".part.npz")
        np.savez(
            aside, layers=stored.layers, blocks=stored.blocks.astype(np.float32), n=stored.inputs
        )
        aside.replace(file)

    return stored


def load(file: Path) -> Sampled | None:
    """What earlier runs sampled."""
    if not file.exists():
        return None
    with np.load(file) as kept:
        return Sampled(kept["layers"], kept["blocks"].astype(np.float64), int(kept["n"]))


def measured(
    suite: str, name: str, estimator: BaseEstimator, data: ContestData, truths: list[Sampled]
) -> dict[str, Any]:
    """One row: the benchmark's own figures, and the error without the truth's noise.

    ``low`` and ``high`` enclose 95 % of what the truth's noise can do to ``mse``; how networks
    differ is not in them.
    """
    recorded = Recorded(estimator, [])
    evaluation = evaluate_estimator(recorded, data)
    each = [debiased_mse(p[-1], t) for p, t in zip(recorded.predicted, truths, strict=True)]
    mse = fmean(one.mse for one in each)
    half = 1.96 * sum(one.deviation**2 for one in each) ** 0.5 / len(each)
    broken = {key: count for key, count in evaluation["failure_breakdown"].items() if count}

    return {
        "suite": suite,
        "estimator": name,
        "mse": mse,
        "low": mse - half,
        "high": mse + half,
        "raw mse": evaluation["final_layer_mse"],
        "raw score": evaluation["adjusted_final_layer_score"],
        "score": mse * evaluation["mean_score_multiplier"],
        "budget share": evaluation["mean_compute_utilization"],
        "limits on seconds": data.spec.wall_time_limit_s is not None,
        "limits broken": ", ".join(f"{key} {count}" for key, count in broken.items()) or None,
        "residual seconds": worst(evaluation, "residual_wall_time_s"),
        "wall seconds": worst(evaluation, "wall_time_s"),
        "networks": len(each),
        "truth samples": min(one.inputs for one in truths),
        "truth error": fmean(one.truth_error for one in each),
    }


def worst(evaluation: dict[str, Any], key: str) -> float:
    """The largest of a figure over the networks."""
    return max(one[key] for one in evaluation["per_mlp"])


if __name__ == "__main__":
    main()
