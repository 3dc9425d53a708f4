"""Local volume: against its analytic answers, its proposals, the public tyche, and a real model.

::

    python -m benchmarks.volume                 # volume_oracles, volume_proposals
    python -m benchmarks.volume --peer PATH     # volume_peer
    python -m benchmarks.volume --bundled       # volume_bundled
    python -m benchmarks.volume --radii 8,8,256 --radii 16,16,512     # radii_cost

``PATH`` is a checkout's ``src`` folder, or an environment or interpreter with ``basin_volume``.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2, ncx2, norm

import offkey
from offkey.data import Batch, pack
from offkey.models import Model
from offkey.storage import write_results
from offkey.tasks import get_task
from offkey.training import TrainingSettings, train_module
from offkey.volume import (
    Dense,
    Diagonal,
    FunctionCost,
    GaussianMeasure,
    KLCost,
    LebesgueMeasure,
    LowESS,
    Power,
    Proposal,
    Tilted,
    Uniform,
    VolumeResult,
    estimate_volume,
    fisher_dense,
    later_half,
    log_ray_integral,
    radii,
    typical_radius,
)

from ._timing import forget_peak, memory_mib
from .tyche import against_tyche

RESULTS = Path("docs/results")
EPS = 0.01
MLP_SIGMA = 1.3975
SPAN = 64.0
Row = dict[str, Any]


def main() -> None:
    """Runs the chosen parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.volume", description=__doc__)
    parser.add_argument("--rays", type=int, default=20_000, help="rays of each proposal")
    parser.add_argument("--mlp-rays", type=int, default=600, help="rays on the digits network")
    parser.add_argument("--peer", type=Path, metavar="PATH", help="where basin_volume is")
    parser.add_argument(
        "--peer-run",
        action="append",
        metavar="MODEL,WAY,DIRECTIONS,PAIRS",
        help="small or a model's name; explicit or implicit vectors; again for more",
    )
    parser.add_argument("--bundled", action="store_true", help="time and memory of 135M weights")
    parser.add_argument(
        "--radii",
        action="append",
        metavar="DIRECTIONS,GRID,PROMPTS",
        help="time radii vectors of the bundled model; again for more",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", LowESS)
    command = "python -m benchmarks.volume"
    if options.peer is not None:
        asked = options.peer_run or ["small,explicit,3,5", "small,implicit,3,5"]
        rows = []
        for number, one in enumerate(asked, 1):
            rows += against_tyche(options.peer, *one.split(","))
            so_far = f"{command} --peer PATH " + again("peer-run", asked[:number])
            write(options.out, "volume_peer", rows, so_far)
    rows = []
    for number, one in enumerate(options.radii or (), 1):
        rows.append(radii_cost(*map(int, one.split(","))))
        so_far = f"{command} " + again("radii", options.radii[:number])
        write(options.out, "radii_cost", rows, so_far)
    if options.bundled:
        write(options.out, "volume_bundled", [bundled()], f"{command} --bundled")
    if not (options.peer or options.bundled or options.radii):
        write(
            options.out,
            "volume_oracles",
            oracles(options.rays),
            f"{command} --rays {options.rays}",
        )
        rows = [*planted(options.rays), *digits(options.mlp_rays)]
        write(
            options.out,
            "volume_proposals",
            rows,
            f"{command} --rays {options.rays} --mlp-rays {options.mlp_rays}",
        )


def again(option: str, values: list[str]) -> str:
    """An option given several times."""
    return " ".join(f"--{option} {value}" for value in values)


def write(folder: Path, name: str, rows: list[Row], command: str) -> None:
    """Writes a results file and shows its rows."""
    write_results(folder / f"{name}.json", rows, command=command, seeds=[0])
    for row in rows:
        print(
            "  ".join(
                f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in row.items()
            ),
            flush=True,
        )


def quadratic(h: np.ndarray, anchor: np.ndarray | None = None) -> FunctionCost:
    """Half the squared length under curvatures h."""
    h = torch.from_numpy(h)
    anchor = torch.zeros_like(h) if anchor is None else torch.from_numpy(anchor)

    return FunctionCost(lambda x: ((x - anchor) ** 2 @ h) / 2, anchor, batched=True)


def oracle(case: str, exact: float, found: float, error: float | None, digits: float) -> Row:
    """One row; met where the gap is below the printed digits or four standard errors."""
    allowed = digits if error is None else 4 * error

    return {
        "case": case,
        "exact_nats": float(exact),
        "found_nats": float(found),
        "gap_nats": float(abs(found - exact)),
        "standard_error_nats": error,
        "allowed_nats": float(allowed),
        "met": bool(abs(found - exact) <= allowed),
    }


def sampled(case: str, exact: float, volume: VolumeResult) -> Row:
    """One row for a case whose rays differ."""
    low, high = volume.interval
    assert high is not None

    return oracle(case, exact, volume.log_volume, (high - low) / 2 / 1.96, 0.0)


def oracles(rays: int) -> list[Row]:
    """Every case with an analytic answer."""
    rows = []
    for given, exact in (
        ((1, 0.5, 99, 5), 146.585947),
        ((1, 0.5, 99, 50), 183.580337),
        ((2, -3, 11999, 100), 45961.711723),
        ((2, 3, 11999, 100), 46426.467304),
        ((1, 0, 999999, 10), 2302521.277583),
        ((1, -30, 999999, 900), 6370382.761757),
    ):
        volume = float(log_ray_integral(*given)[0])
        rows.append(oracle(f"ray integral (a, b, n, R) = {given}", exact, volume, None, 1e-6))
    for d, exact in ((10, -18.623957), (50, -127.185933), (200, -640.468688)):
        h = np.logspace(-2, 2, d)
        proposal = Diagonal(torch.from_numpy(h))
        volume = estimate_volume(quadratic(h), EPS, LebesgueMeasure(), proposal=proposal, n=1)
        rows.append(oracle(f"ellipsoid, D = {d}, one ray", exact, volume.log_volume, None, 1e-6))
    for d, distance, radius in ((3, 1, 1), (10, 2, 2.5), (50, 1, 6)):
        anchor = np.zeros(d)
        anchor[0] = distance
        volume = estimate_volume(
            quadratic(np.full(d, 2.0), anchor),
            radius**2,
            GaussianMeasure(1.0),
            proposal=Tilted(Diagonal(torch.full((d,), 2.0))),
            n=rays,
        )
        exact = ncx2.logcdf(radius**2, d, distance**2)
        rows.append(
            sampled(f"Gaussian ball, D = {d}, |θ| = {distance}, R = {radius}", exact, volume)
        )
    g, theta = np.array([3.0, -1.0, 2.0]), np.array([0.3, 0.2, -0.5])
    slope, anchor = torch.from_numpy(g), torch.from_numpy(theta)
    half = FunctionCost(lambda x: (x - anchor) @ slope, anchor, batched=True)
    volume = estimate_volume(half, 1.0, GaussianMeasure(1.3), n=rays)
    length = np.linalg.norm(g)
    rows.append(
        sampled(
            "half-space, half of the rays infinite",
            norm.logcdf((1 / length + g @ theta / length) / 1.3),
            volume,
        )
    )
    whole = FunctionCost(lambda x: 0 * x.sum(-1), torch.ones(5).double(), batched=True)
    rows.append(
        oracle(
            "whole space, D = 5, uniform",
            0.0,
            estimate_volume(whole, 1.0, GaussianMeasure(1.0), n=rays).log_volume,
            None,
            0.1,
        )
    )
    rows.append(
        oracle(
            "whole space, D = 5, tilted, 5 rays",
            0.0,
            estimate_volume(whole, 1.0, GaussianMeasure(1.0), proposal=Tilted(), n=5).log_volume,
            None,
            1e-9,
        )
    )
    for k in (5, 50):
        h = np.zeros(10 * k)
        h[:k] = 4
        volume = estimate_volume(
            quadratic(h), EPS, GaussianMeasure(1.0), proposal=Diagonal(torch.from_numpy(h)), n=rays
        )
        rows.append(sampled(f"rank {k} of {10 * k}", chi2.logcdf(2 * EPS / 4, k), volume))

    return rows


def proposed(
    case: str,
    name: str,
    cost: FunctionCost | KLCost,
    proposal: Proposal,
    rays: int,
    sigma: float = 1.0,
    exact: float | None = None,
) -> Row:
    """One row for a proposal, with its effective sample size."""
    start = time.perf_counter()
    volume = estimate_volume(cost, EPS, GaussianMeasure(sigma), proposal=proposal, n=rays)

    return {
        "case": case,
        "proposal": name,
        "effective_sample_fraction": volume.ess / rays,
        "log_prob_nats": volume.log_prob,
        "exact_nats": None if exact is None else float(exact),
        "max_nats": volume.max,
        "std_nats": volume.std,
        "is_bound": volume.is_bound,
        "rays": rays,
        "evaluations_per_ray": float(volume.rays["evaluations"].mean()),
        "seconds": round(time.perf_counter() - start, 2),
    }


def planted(rays: int) -> list[Row]:
    """Effective sample fractions on quadratics."""
    rows = []
    rank = np.zeros(500)
    rank[:50] = 4
    spread = np.logspace(-2, 2, 2000)
    known = {
        "rank 50 of 500": (rank, chi2.logcdf(2 * EPS / 4, 50)),
        "log-spaced, D = 2000": (spread, None),
    }
    for case, (h, exact) in known.items():
        given = torch.from_numpy(h)
        for name, proposal in {
            "uniform": Uniform(),
            "diagonal, eps 0.01": Diagonal(given, Power(0.5, 0.01)),
            "diagonal, prior-damped": Diagonal(given),
        }.items():
            rows.append(proposed(case, name, quadratic(h), proposal, rays, exact=exact))
    h = np.zeros(2000)
    h[:1500] = 4
    theta = np.random.default_rng(0).normal(size=2000)
    exact = ncx2_log(2 * EPS / 4, 1500, float((theta[:1500] ** 2).sum()))
    base = Diagonal(torch.from_numpy(h))
    for name, proposal in {"diagonal, prior-damped": base, "tilted": Tilted(base)}.items():
        rows.append(
            proposed(
                "rank 1500 of 2000, anchor N(0, I)",
                name,
                quadratic(h, theta),
                proposal,
                rays // 4,
                exact=exact,
            )
        )

    return rows


def ncx2_log(x: float, k: int, centre: float) -> float:
    """Log probability of a noncentral chi-square, by its Poisson mixture; far below any float."""
    j = np.arange(4000)
    mixed = -centre / 2 + j * np.log(centre / 2) - torch.lgamma(torch.tensor(j + 1.0)).numpy()

    return float(np.logaddexp.reduce(mixed + log_chi2(x, k + 2 * j)))


def log_chi2(x: float, k: np.ndarray) -> np.ndarray:
    """Log probability of chi-square, from the ray integral and the sphere's area."""
    half = np.asarray(k) / 2
    tail = np.array([float(log_ray_integral(1.0, 0.0, float(n) - 1, np.sqrt(x))[0]) for n in k])

    return tail + (1 - half) * np.log(2) - torch.lgamma(torch.from_numpy(half)).numpy()


def digits(rays: int) -> list[Row]:
    """Proposals on a trained network of 4,810 parameters."""
    cost = digits_cost()
    fisher = fisher_dense(cost)
    diagonal, dense = fisher.diag().clamp(min=0), Dense(fisher)
    values = dense.eigenvalues("")
    rows = []
    named: dict[str, Proposal] = {"uniform": Uniform()}
    for eps in (1e-3, 1e-2, 1e-1):
        named[f"diagonal, eps {eps:g}"] = Diagonal(diagonal, Power(0.5, eps))
        named[f"dense, eps {eps:g}"] = dense.under(Power(0.5, eps))
    named["diagonal, prior-damped"] = Diagonal(diagonal)
    named["dense, prior-damped"] = dense
    named["dense, tilted"] = Tilted(dense)
    for name, proposal in named.items():
        row = proposed("digits network, D = 4810", name, cost, proposal, rays, MLP_SIGMA)
        rows.append({**row, "rank": int((values > 1e-9 * values.max()).sum())})

    return rows


def digits_cost() -> KLCost:
    """A network trained on scikit-learn's digits, with their inputs."""
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(targets)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    decay = 1 / (MLP_SIGMA**2 * len(x))
    train_module(module, x, y, TrainingSettings(steps=1500, batch=128, rate=3e-3, decay=decay))
    some = slice(None, 512)
    batch = Batch({"input": x[some]}, ids=tuple(map(str, range(512))), target=y[some])

    return KLCost(Model(module.requires_grad_(False), name="digits"), [batch])


def bundled() -> Row:
    """The bundled model: 32 directions, 8 sequences of 64 tokens."""
    model = offkey.load("smollm2-135m-instruct", dtype=torch.float32)
    batches = sequences(model, 8, 64)
    for weight in model.module.parameters():
        weight.detach().sum()
    cost = KLCost(model, batches)
    loaded = memory_mib("RssAnon")
    forget_peak()
    start, processor = time.perf_counter(), time.process_time()
    volume = estimate_volume(cost, EPS, GaussianMeasure(0.1), n=32)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    peak = memory_mib("VmHWM") - memory_mib("RssFile") - loaded
    weights = sum(w.numel() for w in model.module.parameters()) * 4 / 2**20

    return {
        "model": model.name,
        "parameters": volume.meta["dimensions"],
        "directions": 32,
        "sequences": 8,
        "tokens_per_sequence": 64,
        "eps_nats": EPS,
        "sigma": 0.1,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "processor_seconds_per_direction": round(processor / 32, 2),
        "peak_mib_above_the_weights": round(peak),
        "weights_mib": round(weights),
        **volume.summary(),
    }


def radii_cost(directions: int, grid: int, prompts: int) -> Row:
    """Radii vectors of prompts of one organism: passes counted, and how long they take."""
    model = offkey.load("smollm2-135m-instruct", "bundled:comparison")
    start, names = later_half(model)
    test = get_task("comparison").make(0).test
    some = test.select([number < prompts for number in range(len(test))])
    batches = list(pack(some, model.tokenizer, token_budget=1 << 20))
    cost = KLCost(model, batches, tokens="last", reduce="per_example", start=start)
    few = list(pack(some.take(range(8)), model.tokenizer, token_budget=1 << 20))
    trial = KLCost(model, few, tokens="last", reduce="per_example", start=start)
    centre = typical_radius(trial, EPS, params=names)
    ends = centre / SPAN**0.5, centre * SPAN**0.5
    began, processor = time.perf_counter(), time.process_time()
    vectors = radii(cost, EPS, directions, np.geomspace(*ends, grid), params=names)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor

    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "directions": directions,
        "grid": grid,
        "prompts": len(vectors.logs),
        "batches": len(batches),
        "tokens": sum(b.inputs["input_ids"].numel() for b in batches),
        "forwards": vectors.forwards,
        "directions_times_grid": directions * grid,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "processor_seconds_per_forward": round(processor / vectors.forwards, 2),
        "median_radius": float(np.median(vectors.values)),
        "censored_share": float((vectors.censored != 0).mean()),
        "spread_of_log_radius_over_prompts": float(vectors.logs.std(0).mean()),
        "threads": torch.get_num_threads(),
    }


def sequences(model: Model, count: int, length: int) -> list[Batch]:
    """Sequences of one length, cut from prompts of a task joined together."""
    texts = "\n".join(get_task("comparison").make(0).train["prompt"][: 4 * count * length])
    tokens = torch.tensor(model.tokenizer(texts, verbose=False)["input_ids"][: count * length])
    mask = torch.ones(1, length, dtype=torch.bool)

    return [
        Batch(
            {"input_ids": row[None]},
            (str(number),),
            mask=mask,
            positions=torch.arange(length)[None],
        )
        for number, row in enumerate(tokens.view(count, length))
    ]


if __name__ == "__main__":
    main()
