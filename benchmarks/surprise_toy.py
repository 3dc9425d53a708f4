"""Surprise accounting on a Boolean circuit that is always 1: which argument pays, and when.

::

    python -m benchmarks.surprise_toy
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from offkey.estimate import TrackedPairs
from offkey.estimate.arithmetic import (
    ArgumentSearch,
    Circuit,
    Events,
    account,
    bernoulli,
    both,
    exact_mean,
    exhaustive,
    greedy,
    guided,
    negation,
    propagate,
    relaxed,
)
from offkey.storage import write_results

OUT = Path("docs/results/surprise_toy.json")
DRAWS = (16, 40, 64)

FIRST = (("u", "w"), ("w", "not_u"))
"""A: what the mean of ``a`` needs."""

SECOND = (*FIRST, ("v", "w"), ("w", "not_v"), ("o", "not_v"))
"""B: and what the mean of ``b`` needs, as far as it is not 0."""


def boolean_toy() -> Circuit:
    """(u and v) or not u or not v, which is always 1; u is 1 with probability 1/2, v with 3/4."""
    u, v = bernoulli(0.5, name="u"), bernoulli(0.75, name="v")
    w = both(u, v, name="w")
    not_u, not_v = negation(u, name="not_u"), negation(v, name="not_v")
    a = both(w, not_u, name="a")
    o = (w + not_u - a).named("o")
    b = both(o, not_v, name="b")

    return Circuit((o + not_v - b).named("y"))


def arguments(circuit: Circuit) -> dict[str, TrackedPairs]:
    """The four arguments of the table, and two that track nearly everything."""
    everything = list(circuit.candidates())
    odd = circuit.pair("a", "not_v")

    return {
        "none": circuit.tracked(),
        "A": circuit.tracked(FIRST),
        "B": circuit.tracked(SECOND),
        "B and (a, not_v)": circuit.tracked([*SECOND, ("a", "not_v")]),
        "all but (a, not_v)": circuit.tracked(pair for pair in everything if pair != odd),
        "all": circuit.tracked(everything),
    }


def accounts() -> list[dict[str, Any]]:
    """Estimate, lengths and totals of each argument; the common cost of a count is left out."""
    circuit = boolean_toy()
    truth = exact_mean(circuit)
    common = circuit.tracked().bits
    rows = []
    for name, argument in arguments(circuit).items():
        surprise = account(circuit, Events(1), argument)
        row = {
            "kind": "argument",
            "argument": name,
            "tracked_pairs": len(argument),
            "estimate": float(propagate(circuit, argument).estimate()),
            "truth": truth,
            "bits_a_draw": surprise.outcome,
            "argument_bits": surprise.argument - common,
            "common_bits": common,
            "flops": surprise.flops,
        }
        totals = {
            f"total_bits_at_{n}": n * surprise.outcome + surprise.argument - common for n in DRAWS
        }
        rows.append(row | totals)

    return rows


def crossings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """From how many draws on each argument beats the one before it: none, A, B."""
    by_name = {row["argument"]: row for row in rows}

    return [
        {
            "kind": "crossing",
            "argument": f"{before} to {after}",
            "draws": (by_name[after]["argument_bits"] - by_name[before]["argument_bits"])
            / (by_name[before]["bits_a_draw"] - by_name[after]["bits_a_draw"]),
        }
        for before, after in pairwise(("none", "A", "B"))
    ]


def searches() -> list[dict[str, Any]]:
    """What each search finds, and how many arguments it propagates for it."""
    circuit = boolean_toy()
    half = circuit.tracked().candidates["circuit"] // 2
    rows = []
    for draws in DRAWS:
        outcome = Events(draws)
        results: dict[str, ArgumentSearch] = {
            "greedy": greedy(circuit, outcome),
            "greedy, pruned": greedy(circuit, outcome, prune=True),
            "guided by gradients": guided(circuit, outcome),
            "relaxed masks": relaxed(circuit, outcome),
            f"exhaustive, at most {half} pairs": exhaustive(circuit, outcome, at_most=half),
            "exhaustive": exhaustive(circuit, outcome),
        }
        rows += [_searched(circuit, name, draws, search) for name, search in results.items()]

    return rows


def _searched(circuit: Circuit, name: str, draws: int, search: ArgumentSearch) -> dict[str, Any]:
    pairs = sorted(search.argument.tracked["circuit"])
    named = [f"({circuit.label(i)}, {circuit.label(j)})" for i, j in pairs]

    return {
        "kind": "search",
        "search": name,
        "draws": draws,
        "argument": " ".join(named) or "none",
        "tracked_pairs": len(pairs),
        "estimate": float(search.estimate),
        "total_bits": search.surprise.total - circuit.tracked().bits,
        "arguments_tried": search.evaluated,
    }


def main() -> int:
    """Writes ``surprise_toy``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help="results file to write")
    options = parser.parse_args()
    rows = accounts()
    rows += crossings(rows) + searches()
    write_results(options.out, rows, command="python -m benchmarks.surprise_toy", seeds=[0])
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))

    return 0


if __name__ == "__main__":
    sys.exit(main())
