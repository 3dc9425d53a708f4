"""Peak memory of one detection run, on some prompts and on ten times as many."""

import json
import subprocess
import sys
from typing import Any

from ._timing import Spent, forget_peak, interleaved, memory_mib, ratio, row
from .settings import Settings

__all__ = ["ten_times_the_prompts"]


def ten_times_the_prompts(settings: Settings) -> list[dict[str, Any]]:
    """Peak memory of fitting and scoring, each time in a fresh process."""
    few = 2 * settings.prompts
    pairs = min(settings.pairs, 3)
    ends: list[tuple[float, float]] = []

    def spent(prompts: int) -> Spent:
        command = [sys.executable, "-m", "benchmarks.memory", str(prompts)]
        sizes = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        ends.append((sizes["peak_mib"], sizes["peak_mib"] - sizes["loaded_mib"]))
        return Spent(0.0, 0.0, sizes["peak_mib"])

    runs = interleaved(lambda: spent(10 * few), lambda: spent(few), pairs)
    above = [
        (Spent(0, 0, many[1]), Spent(0, 0, less[1]))
        for many, less in zip(ends[::2], ends[1::2], strict=True)
    ]
    note = (
        f"fit and score, {10 * few} trusted and {10 * few // 4} test prompts against {few} and "
        f"{few // 4}; {ends[-2][0]:.0f} MiB against {ends[-1][0]:.0f} MiB"
    )

    return [
        row(
            "ten times the prompts",
            ratio(runs, "peak_mib"),
            unit="peak memory of the process",
            at_most=1.05,
            peer="a tenth of the prompts",
            note=note,
        ),
        row(
            "ten times the prompts",
            ratio(above, "peak_mib"),
            unit="peak memory above the weights",
            peer="a tenth of the prompts",
            note=f"the same runs; {ends[-2][1]:.0f} MiB against {ends[-1][1]:.0f} MiB",
        ),
    ]


def run(prompts: int) -> None:
    """Loads, fits and scores; prints the resident memory after loading and at its peak."""
    import offkey
    from offkey.tasks import get_task

    model = offkey.load("smollm2-135m-instruct")
    for weight in model.module.parameters():
        weight.detach().sum()
    data = get_task("comparison").make(0).train.without("label", "agrees")
    quarter = prompts // 4
    trusted, test = data.take(range(prompts)), data.take(range(len(data) - quarter, len(data)))
    loaded = memory_mib("RssAnon")
    forget_peak()
    detector = offkey.Detector("activations", "mahalanobis", sites="resid_post.*")
    detector.fit(model, trusted).score(model, test)
    loaded += memory_mib("RssFile")  # weights and libraries, whose resident part varies
    print(json.dumps({"loaded_mib": loaded, "peak_mib": memory_mib("VmHWM")}))


if __name__ == "__main__":
    run(int(sys.argv[1]))
