"""Interleaved pairs and their ratios, also where one side needs a process of its own.

Only the standard library is imported, so that a peer's interpreter can import this file too.
"""

import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

__all__ = ["Ratio", "Spent", "Worker", "interleaved", "measured", "ratio", "row", "serve"]

What = Literal["seconds", "processor_seconds", "peak_mib"]


@dataclass(frozen=True)
class Spent:
    """The cost of one run of one side.

    Attributes:
        seconds: wall-clock time.
        processor_seconds: of all threads; less affected by other load on the machine.
        peak_mib: highest resident memory, less what was resident once the weights were loaded
            and less what is mapped from files (weights and libraries), which comes and goes.
    """

    seconds: float
    processor_seconds: float
    peak_mib: float | None = None


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios of pairs, with the least and the greatest."""

    median: float
    low: float
    high: float
    pairs: int


def measured(job: Callable[[], object]) -> Spent:
    """Runs a job once."""
    wall, processor = time.perf_counter(), time.process_time()
    job()

    return Spent(time.perf_counter() - wall, time.process_time() - processor)


def interleaved(
    a: Callable[[], Spent], b: Callable[[], Spent], pairs: int
) -> list[tuple[Spent, Spent]]:
    """Runs a, b, a, b, …, so that a temporary slowdown of the machine affects both."""
    return [(a(), b()) for _ in range(pairs)]


def ratio(pairs: Sequence[tuple[Spent, Spent]], what: What = "seconds") -> Ratio:
    """The ratio of ``what`` between a and b, pair by pair."""
    ratios = [getattr(a, what) / getattr(b, what) for a, b in pairs]

    return Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def row(
    job: str,
    measured_ratio: Ratio,
    *,
    peer: str,
    unit: str,
    note: str,
    at_most: float | None = None,
    at_least: float | None = None,
    peer_version: str | None = None,
) -> dict[str, Any]:
    """One row of the results file."""
    met = None
    if at_most is not None:
        met = measured_ratio.median <= at_most
    if at_least is not None:
        met = measured_ratio.median >= at_least
    sign, bound = ("≤", at_most) if at_most is not None else ("≥", at_least)

    return {
        "job": job,
        "unit": unit,
        "ratio": round(measured_ratio.median, 4),
        "low": round(measured_ratio.low, 4),
        "high": round(measured_ratio.high, 4),
        "target": None if bound is None else f"{sign} {bound:.2f}",
        "met": met,
        "peer": peer,
        "peer_version": peer_version,
        "pairs": measured_ratio.pairs,
        "note": note,
    }


def memory_mib(name: Literal["VmHWM", "RssAnon", "RssFile"]) -> float:
    """Memory of this process: peak resident, anonymous now, or mapped from files now."""
    match = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    if match is None:
        raise OSError(f"this kernel does not report {name}")

    return int(match[1]) / 1024


def forget_peak() -> None:
    """Resets the peak resident memory to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


class Worker:
    """A process that loads once and then runs jobs on request.

    Args:
        command: that starts it; it must end in :func:`serve`.
        environment: variables added to this process's own.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.facts: dict[str, Any] = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, job: str) -> Spent:
        """Runs a job by name."""
        return Spent(**self._ask(job))

    def save(self, path: Path) -> None:
        """Writes the last job's result as float32 ``.npy``."""
        self._ask(f"save {path}")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)

        return answer


def serve(jobs: Mapping[str, Callable[[], Any]], facts: Mapping[str, Any]) -> None:
    """Runs the jobs that a :class:`Worker` names, until it closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with answers

    def answer(fields: Mapping[str, Any]) -> None:
        print(json.dumps(dict(fields)), file=answers, flush=True)

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    loaded = memory_mib("RssAnon")
    result: Any = None
    answer(facts)
    for line in sys.stdin:
        name, _, path = line.strip().partition(" ")
        if name == "save":
            import numpy

            numpy.save(path, result.float().numpy())
            answer({})
            continue
        result = None
        forget_peak()
        wall, processor = time.perf_counter(), time.process_time()
        result = jobs[name]()
        spent = Spent(
            time.perf_counter() - wall,
            time.process_time() - processor,
            memory_mib("VmHWM") - memory_mib("RssFile") - loaded,
        )
        answer(asdict(spent))
