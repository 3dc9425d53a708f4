"""Feature by score: fit, score, combine sites, calibrate, save and load; many in one pass.

A :class:`Detector` says how unusual a prompt is handled inside a model, given trusted prompts.
Trusted prompts are split by source: 60 % fit the score, 20 % bring sites to one scale, 20 %
calibrate p-values. Labels cannot be reached from fitting. Every figure carries its mode.

A :class:`Session` is the engine behind it: it lets features learn, records rows, fits and scores
many detectors at once, in memory or in a folder. :class:`DetectionRun` is the run of
``offkey detect``, whose folder :func:`read_metrics` reads.
"""

from offkey.detect.detector import Detector
from offkey.detect.evaluation import evaluate, site_aurocs
from offkey.detect.fitting import TrustedSplit, fit_rows
from offkey.detect.records import (
    METRICS_FILE,
    ControlMetrics,
    DetectorMetrics,
    DriftCheck,
    Evaluation,
    MetricInterval,
    Mode,
    RunMetrics,
    SiteMetrics,
    read_metrics,
)
from offkey.detect.run import DetectionRun
from offkey.detect.scores import Scores, text_of
from offkey.detect.scoring import Combine, Fitted, RowScorer, row_name
from offkey.detect.session import Session
from offkey.detect.tokens import score_tokens

__all__ = [
    "METRICS_FILE",
    "Combine",
    "ControlMetrics",
    "DetectionRun",
    "Detector",
    "DetectorMetrics",
    "DriftCheck",
    "Evaluation",
    "Fitted",
    "MetricInterval",
    "Mode",
    "RowScorer",
    "RunMetrics",
    "Scores",
    "Session",
    "SiteMetrics",
    "TrustedSplit",
    "evaluate",
    "fit_rows",
    "read_metrics",
    "row_name",
    "score_tokens",
    "site_aurocs",
    "text_of",
]
