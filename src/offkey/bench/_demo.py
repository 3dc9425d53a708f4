"""The main job on a real model, with its controls."""

from pathlib import Path
from typing import Any

from offkey.bench._arena import Arena
from offkey.bench._lineup import default_detector
from offkey.bench._task import compare

__all__ = ["demo", "demo_rows"]

TASK = "agreement"


def demo(out: str | Path, *, seed: int = 0, quiet: bool = False) -> dict[str, Any]:
    """Detects the anomalous answers of the bundled organism, and the same on the clean model.

    Args:
        out: the folder that is filled; the organism's run folder is ``out/organism``.
        seed: of the splits and draws.
        quiet: show no progress.

    Returns:
        The metrics, with controls.
    """
    return compare(Arena.of(TASK), [default_detector()], Path(out), seed=seed,
                   quiet=quiet)  # fmt: skip


def demo_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The demo's figures as flat rows: the detector, and each control."""
    told = [{"name": row["detector"], "kind": "detector", **row} for row in metrics["detectors"]]
    told += [{"name": row["control"], **row} for row in metrics["controls"]]

    return [
        {
            "detector": row["name"],
            "kind": row["kind"],
            **{
                name: row["auroc"] and row["auroc"][key]
                for name, key in (("auroc", "value"), ("low", "low"), ("high", "high"))
            },
        }
        for row in told
    ]
