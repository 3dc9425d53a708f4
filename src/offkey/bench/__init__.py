"""Tasks × detectors × controls → table.

Every row is run on the organism and, refitted, on the untouched model with the same prompts and
splits, beside controls that see the input or the output only: it is credited for what it adds.
What was recorded is kept by task, model and feature, so that a table is made again in minutes and
a row that is added costs itself alone.
"""

from offkey.bench._arena import Arena
from offkey.bench._bench import Bench, bench
from offkey.bench._ceiling import ceiling
from offkey.bench._controls import CONTROLLED, control_rows
from offkey.bench._curve import trusted_curve
from offkey.bench._demo import demo, demo_rows
from offkey.bench._entry import Entry
from offkey.bench._false_alarms import false_alarms
from offkey.bench._held_out import held_out_rows
from offkey.bench._lineup import CONTROLS, DEFAULT, ENTRIES, controls, default_detector
from offkey.bench._organisms import Organisms
from offkey.bench._search import Candidate, candidates, search
from offkey.bench._split import DEVELOPMENT_FAMILIES, development, held_out
from offkey.bench._summary import summary, table1
from offkey.bench._task import compare

__all__ = [
    "CONTROLLED",
    "CONTROLS",
    "DEFAULT",
    "DEVELOPMENT_FAMILIES",
    "ENTRIES",
    "Arena",
    "Bench",
    "Candidate",
    "Entry",
    "Organisms",
    "bench",
    "candidates",
    "ceiling",
    "compare",
    "control_rows",
    "controls",
    "default_detector",
    "demo",
    "demo_rows",
    "development",
    "false_alarms",
    "held_out",
    "held_out_rows",
    "search",
    "summary",
    "table1",
    "trusted_curve",
]
