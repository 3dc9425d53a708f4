"""Feature by score: fit, score, combine sites, calibrate, save and load; many in one pass.

A :class:`Detector` says how unusual a prompt is handled inside a model, given trusted prompts.
Trusted prompts are split by source: 60 % fit the score, 20 % bring sites to one scale, 20 %
calibrate p-values. Labels cannot be reached from fitting. Every figure carries its mode.
"""

from offkey.detect._combine import Combine
from offkey.detect._detector import Detector
from offkey.detect._fit import Parts, fit_rows
from offkey.detect._fitted import Fitted, row_name
from offkey.detect._job import Job
from offkey.detect._many import fit_all, harvest, score_all
from offkey.detect._prepare import prepare
from offkey.detect._scores import Scores
from offkey.detect._tables import text_of
from offkey.detect._tokens import score_tokens
from offkey.detect.evaluation import drift_checks, evaluate, site_aurocs
from offkey.detect.records import (
    METRICS_FILE,
    ControlMetrics,
    DetectorMetrics,
    DriftCheck,
    Evaluation,
    MetricInterval,
    Mode,
    Record,
    RunMetrics,
    SiteMetrics,
    read_metrics,
)

__all__ = [
    "METRICS_FILE",
    "Combine",
    "ControlMetrics",
    "Detector",
    "DetectorMetrics",
    "DriftCheck",
    "Evaluation",
    "Fitted",
    "Job",
    "MetricInterval",
    "Mode",
    "Parts",
    "Record",
    "RunMetrics",
    "Scores",
    "SiteMetrics",
    "drift_checks",
    "evaluate",
    "fit_all",
    "fit_rows",
    "harvest",
    "prepare",
    "read_metrics",
    "row_name",
    "score_all",
    "score_tokens",
    "site_aurocs",
    "text_of",
]
