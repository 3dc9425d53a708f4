"""Tasks × detectors × controls → table.

Every detector is run on the organism and, refitted, on the untouched model with the same prompts
and splits, beside controls that see the input or the output only: it is credited for what it
adds.
"""

from offkey.bench._arena import Arena, learned_tasks
from offkey.bench._bench import bench, published_columns, summary
from offkey.bench._ceiling import ceiling
from offkey.bench._curve import trusted_curve
from offkey.bench._demo import demo, demo_rows
from offkey.bench._false_alarms import false_alarms
from offkey.bench._lineup import CONTROLS, controls, default_detector, lineup
from offkey.bench._task import compare

__all__ = [
    "CONTROLS",
    "Arena",
    "bench",
    "ceiling",
    "compare",
    "controls",
    "default_detector",
    "demo",
    "demo_rows",
    "false_alarms",
    "learned_tasks",
    "lineup",
    "published_columns",
    "summary",
    "trusted_curve",
]
