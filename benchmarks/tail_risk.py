"""How likely is a rare next token? Every risk estimator against the enumerated truth.

::

    python -m benchmarks.tail_risk --out out/tail_risk

The bundled model continues a fixed beginning and four free words of 16 candidates each, drawn
independently and unevenly: 65,536 inputs, all of which are run once, so that the probability of
every next token is exact. The model, the truth and all estimators compute in float32. The folder
keeps the truth and each target's estimates; the same command resumes where it stopped.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from offkey.estimate import Estimate
from offkey.estimate.risk import (
    ITGIS,
    MHIS,
    CachedNetwork,
    Draws,
    LanguageNetwork,
    Problem,
    TokenInputs,
    argmax_probability,
    best_constant,
    gld,
    itakura_saito,
    leave_one_out,
    monte_carlo,
    qld_tails,
)
from offkey.models import Model, load
from offkey.report import truth_svg
from offkey.storage import make_folder, write_json, write_results, write_tensors, write_text

RESULTS = Path("docs/results/tail_risk.json")
FIGURE = Path("docs/images/tail-risk.svg")
MODEL = "smollm2-135m-instruct"
PREFIX = "Once upon a time, in a small village by the sea, the"
WORDS = (
    "old young little happy angry tired lonely famous clever poor rich brave quiet strange lazy "
    "kind",
    "man woman doctor king dog cat teacher farmer soldier child horse lawyer thief bird singer "
    "captain",
    "opened ate drew lost sang bought broke wrote killed heard built sold hid washed climbed read",
    "the a his her and in to for with at from about of that on into",
)
POWER = 2.0
"""The r-th word of a position has a probability proportional to r to the power of minus this."""
LEAST, MOST = 8e-10, 1e-2
ITGIS_T, MHIS_T = 2.0, 1.0
"""In logits; MHIS by the share of accepted states under its own distribution, on ten tokens that
are no targets."""
Method = Callable[[Problem, Draws], Estimate]


def main() -> None:
    """Writes ``tail_risk`` and its figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/tail_risk"))
    parser.add_argument("--samples", type=int, default=1024, help="model calls of each estimate")
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = load(MODEL, dtype="float32")
    inputs, network = rare_words(model)
    finals, first = enumerated(network, inputs, make_folder(given.out))
    truth = truths(inputs, first)
    targets = spread(truth, given.targets)
    draws = drawn(inputs, network, finals, given.samples, given.seed)
    methods = ways(given.samples, given.seed)
    rows = []
    for target in targets:
        word = model.tokenizer.decode([target])
        problem = Problem(CachedNetwork(network), inputs, target)
        for name, way in methods.items():
            slug = name.lower().replace(",", "").replace(" ", "-")
            path = given.out / f"{target}-{slug}-{given.samples}-{given.seed}.json"
            if not path.exists():
                write_json(path, asked(name, way(problem, draws), word, float(truth[target])))
            rows.append(json.loads(path.read_text()))
        print(f"{word!r}: {float(truth[target]):.3g}", flush=True)
    repaired = calibrated(rows)
    command = f"python -m benchmarks.tail_risk --samples {given.samples} --targets {given.targets}"
    write_results(RESULTS, repaired + summary(repaired), command=command, seeds=[given.seed])
    title = "How likely is a rare next token? Estimates against the truth"
    drawn_file = truth_svg(
        repaired, truth="truth", estimate="estimate", series="method", title=title
    )
    write_text(FIGURE, drawn_file)


def rare_words(model: Model) -> tuple[TokenInputs, LanguageNetwork]:
    """The free words with their probabilities, and the model after the fixed beginning."""
    mass = torch.arange(1, 17, dtype=torch.float64) ** -POWER
    tokens = [[_token(model, word) for word in words.split()] for words in WORDS]
    inputs = TokenInputs(torch.tensor(tokens), (mass / mass.sum()).expand(len(WORDS), -1))

    return inputs, LanguageNetwork(model, model.tokenizer(PREFIX)["input_ids"])


def _token(model: Model, word: str) -> int:
    tokens = model.tokenizer.encode(" " + word)
    if len(tokens) != 1:
        raise SystemExit(f"error: {word!r} is not one token")

    return int(tokens[0])


def enumerated(
    network: LanguageNetwork, inputs: TokenInputs, folder: Path
) -> tuple[Tensor, Tensor]:
    """Last activations and the most likely next token of every input, in order; kept on disk."""
    path = folder / "truth.safetensors"
    if not path.exists():
        finals = torch.empty(inputs.count, network.weight.shape[1])
        for choices, activations in network.walk(inputs):
            finals[_number(choices)] = activations
            print(f"enumerated up to {int(_number(choices)[-1]) + 1}", end="\r", flush=True)
        first = Draws(finals, network.weight, network.bias).top_tokens
        write_tensors(path, {"finals": finals, "first": first})
    kept = load_file(path)

    return kept["finals"], kept["first"]


def _number(choices: Tensor) -> Tensor:
    return (choices * 16 ** torch.arange(choices.shape[1] - 1, -1, -1)).sum(1)


def truths(inputs: TokenInputs, first: Tensor) -> Tensor:
    """The exact probability of each token."""
    mass = torch.cat([inputs.log_probability(choices).exp() for choices in inputs.all()])

    return torch.zeros(int(first.max()) + 1, dtype=torch.float64).index_add_(0, first, mass)


def spread(truth: Tensor, count: int) -> list[int]:
    """Targets with log-probabilities spaced as evenly as the tokens allow."""
    known = [int(t) for t in ((truth >= LEAST) & (truth <= MOST)).nonzero()[:, 0]]
    wanted = torch.linspace(math.log(LEAST), math.log(MOST), count)
    chosen: list[int] = []
    for level in wanted.tolist():
        rest = [t for t in known if t not in chosen]
        chosen.append(min(rest, key=lambda t: abs(math.log(float(truth[t])) - level)))

    return chosen


def drawn(
    inputs: TokenInputs, network: LanguageNetwork, finals: Tensor, samples: int, seed: int
) -> Draws:
    """Samples of the inputs, with activations from the enumeration."""
    choices = inputs.draw(samples, torch.Generator().manual_seed(seed))

    return Draws(finals[_number(choices)], network.weight, network.bias)


def ways(samples: int, seed: int) -> Mapping[str, Method]:
    """The methods, each with as many model calls."""
    tails = lru_cache(maxsize=1)(qld_tails)

    return {
        "naive Monte Carlo": lambda p, d: monte_carlo(d, p.target),
        "ITGIS": lambda p, d: ITGIS(ITGIS_T, samples, batch=64)(p, seed=seed),
        "MHIS": lambda p, d: MHIS(MHIS_T, samples, chains=16)(p, seed=seed),
        "QLD": lambda p, d: tails(d, p.target)["empirical"],
        "QLD, Gaussian tail": lambda p, d: tails(d, p.target)["gaussian"],
        "QLD, Pareto tail": lambda p, d: tails(d, p.target)["pareto"],
        "GLD": lambda p, d: gld(d, p.target),
        "layer Gaussian": lambda p, d: argmax_probability(
            d.normal, d.weight, d.bias, p.target, samples=samples, seed=seed
        ),
    }


def asked(method: str, estimate: Estimate, target: str, truth: float) -> dict[str, Any]:
    """One row."""
    return {
        "method": method,
        "target": target,
        "truth": truth,
        "estimate": estimate.value,
        "standard_error": estimate.error,
        "effective_samples": estimate.effective_samples,
        "resolution": estimate.resolution,
        "status": estimate.status,
        "reason": estimate.reason,
        "loss": itakura_saito(truth, estimate.value) if estimate.value else None,
    }


def calibrated(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with the estimate repaired by a fit on the method's other targets."""
    results = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        truth = [row["truth"] for row in own]
        repaired = leave_one_out([row["estimate"] for row in own], truth)
        results += [
            {**row, "calibrated": q, "calibrated_loss": itakura_saito(row["truth"], q)}
            for row, q in zip(own, repaired, strict=True)
        ]

    return results


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method with its mean losses, and the best constant, which it must beat."""
    means = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        answered = [row["loss"] for row in own if row["loss"] is not None]
        means.append(
            _mean(
                method,
                len(own),
                len(answered),
                mean(answered) if answered else None,
                mean(row["calibrated_loss"] for row in own),
            )
        )
    truths = [row["truth"] for row in rows if row["method"] == rows[0]["method"]]
    constant, loss = best_constant(truths)
    left_out = [mean(truths[:i] + truths[i + 1 :]) for i in range(len(truths))]
    losses = [itakura_saito(p, q) for p, q in zip(truths, left_out, strict=True)]
    means.append(_mean("best constant", len(truths), len(truths), loss, mean(losses)))

    return [
        {**row, "estimate": constant if row["method"] == "best constant" else None}
        for row in means
    ]


def _mean(
    method: str, targets: int, answered: int, loss: float | None, calibrated_loss: float
) -> dict[str, Any]:
    return {
        "method": method,
        "target": "mean over targets",
        "targets": targets,
        "answered": answered,
        "loss": loss,
        "calibrated_loss": calibrated_loss,
    }


if __name__ == "__main__":
    main()
