"""Probes: what can be read linearly off activations.

A probe is trained on trusted prompts whose true answer is known. It is surer of the prompts that
it was trained on than of new ones; :class:`CrossFittedProbe` reads each by a probe that never saw
it.
"""

from offkey.probes.linear import (
    PENALTIES,
    CrossFittedProbe,
    LabelledRows,
    Probe,
    check_penalties,
    check_targets,
    fit_probe,
)

__all__ = [
    "PENALTIES",
    "CrossFittedProbe",
    "LabelledRows",
    "Probe",
    "check_penalties",
    "check_targets",
    "fit_probe",
]
