"""The benchmark: tasks × detectors × controls → tables.

Every row is run on the organism and, refitted, on the untouched model with the same prompts and
splits, beside controls that see only the input or only the output: it is credited with what it
adds to them. What was recorded is kept by task, model and feature, so that a table is made again
in minutes and a row that is added later costs its own passes only.
"""

from offkey.bench.averages import Correlation, correlation, over_seeds
from offkey.bench.comparison import compare, demo, demo_rows
from offkey.bench.controls import control_rows
from offkey.bench.lineup import ENTRIES, Entry, default_detector
from offkey.bench.organisms import Organisms, TaskModels, development, held_out
from offkey.bench.promises import false_alarms, trusted_curve
from offkey.bench.protocol import Bench
from offkey.bench.rows import QuirkinessRow, SiteRow, TableRow, TaskRow, read_rows
from offkey.bench.selection import Candidate, candidates, held_out_rows, search
from offkey.bench.supervised import ceiling
from offkey.bench.table import bench, summary, table1

__all__ = [
    "ENTRIES",
    "Bench",
    "Candidate",
    "Correlation",
    "Entry",
    "Organisms",
    "QuirkinessRow",
    "SiteRow",
    "TableRow",
    "TaskModels",
    "TaskRow",
    "bench",
    "candidates",
    "ceiling",
    "compare",
    "control_rows",
    "correlation",
    "default_detector",
    "demo",
    "demo_rows",
    "development",
    "false_alarms",
    "held_out",
    "held_out_rows",
    "over_seeds",
    "read_rows",
    "search",
    "summary",
    "table1",
    "trusted_curve",
]
