"""The benchmark: tasks × detectors × controls → tables.

Every row is run on the organism and, refitted, on the untouched model with the same prompts and
splits, beside controls that see only the input or only the output: it is credited with what it
adds to them. What was recorded is kept by task, model and feature, so that a table is made again
in minutes and a row that is added later costs its own passes only.
"""

from offkey.bench.averages import Correlation, correlation, over_seeds, over_tasks
from offkey.bench.comparison import Comparison, DemoRow, compare, demo, demo_rows
from offkey.bench.controls import CONTROLLED, ControlRow, control_rows
from offkey.bench.lineup import (
    CONTROLS,
    DEFAULT,
    ENTRIES,
    Entry,
    control_detectors,
    default_detector,
)
from offkey.bench.organisms import (
    DEVELOPMENT_FAMILIES,
    Organisms,
    TaskModels,
    development,
    held_out,
)
from offkey.bench.promises import FalseAlarmRow, TrustedRow, false_alarms, trusted_curve
from offkey.bench.protocol import Bench, ResultPair
from offkey.bench.rows import (
    LayerRow,
    QuirkinessRow,
    SiteRow,
    SummaryRow,
    TableRow,
    TaskRow,
    read_rows,
)
from offkey.bench.runner import RowResult
from offkey.bench.selection import (
    Candidate,
    CandidateMean,
    HeldOutMean,
    HeldOutTask,
    candidates,
    held_out_rows,
    search,
)
from offkey.bench.supervised import ceiling
from offkey.bench.table import Credit, bench, credit, summary, table1

__all__ = [
    "CONTROLLED",
    "CONTROLS",
    "DEFAULT",
    "DEVELOPMENT_FAMILIES",
    "ENTRIES",
    "Bench",
    "Candidate",
    "CandidateMean",
    "Comparison",
    "ControlRow",
    "Correlation",
    "Credit",
    "DemoRow",
    "Entry",
    "FalseAlarmRow",
    "HeldOutMean",
    "HeldOutTask",
    "LayerRow",
    "Organisms",
    "QuirkinessRow",
    "ResultPair",
    "RowResult",
    "SiteRow",
    "SummaryRow",
    "TableRow",
    "TaskModels",
    "TaskRow",
    "TrustedRow",
    "bench",
    "candidates",
    "ceiling",
    "compare",
    "control_rows",
    "control_detectors",
    "correlation",
    "credit",
    "default_detector",
    "demo",
    "demo_rows",
    "development",
    "false_alarms",
    "held_out",
    "held_out_rows",
    "over_seeds",
    "over_tasks",
    "read_rows",
    "search",
    "summary",
    "table1",
    "trusted_curve",
]
