"""Streaming mergeable moments, shrinkage, whitening, ranks with intervals, conformal p-values.

Statistics are accumulated centred, in float64. Figures carry their interval, and are null where
there is nothing to compute them from. In every column of numbers, ``None`` and NaN mark a null.
"""

from offkey.stats.conformal import (
    benjamini_hochberg,
    calibration_needed,
    check_alpha,
    combine_p_values,
    conformal_p_values,
    e_values,
    false_positive_bound,
    flag_count,
)
from offkey.stats.covariance import (
    Gaussian,
    analytical_nonlinear,
    ledoit_wolf,
    oas,
    optimal_linear,
    shrink,
    whitener,
)
from offkey.stats.drift import Drift, length_drift, topic_drift
from offkey.stats.intervals import Interval, bootstrap, clopper_pearson, wilson
from offkey.stats.ranks import (
    Difference,
    RocCurve,
    auroc,
    average_precision,
    excess,
    paired_auroc_difference,
    roc_curve,
    tpr_at_fpr,
)
from offkey.stats.streaming import Moments, Sample, Statistic, dense_rows, named_rng, unit_rows

__all__ = [
    "Difference",
    "Drift",
    "Gaussian",
    "Interval",
    "Moments",
    "RocCurve",
    "Sample",
    "Statistic",
    "analytical_nonlinear",
    "auroc",
    "average_precision",
    "benjamini_hochberg",
    "bootstrap",
    "calibration_needed",
    "check_alpha",
    "clopper_pearson",
    "combine_p_values",
    "conformal_p_values",
    "dense_rows",
    "e_values",
    "excess",
    "false_positive_bound",
    "flag_count",
    "ledoit_wolf",
    "length_drift",
    "named_rng",
    "oas",
    "optimal_linear",
    "paired_auroc_difference",
    "roc_curve",
    "shrink",
    "topic_drift",
    "tpr_at_fpr",
    "unit_rows",
    "whitener",
    "wilson",
]
