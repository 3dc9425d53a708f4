"""The rows of the benchmark, and the controls that stand beside them."""

from typing import Any

from offkey.bench._entry import Entry, Kind, Pool
from offkey.detect import Detector
from offkey.features import get_feature

__all__ = ["CONTROLS", "DEFAULT", "ENTRIES", "controls", "default_detector"]

LATER, ALL = "resid_post.later", "resid_post.*"
LAST = "resid_post.last-quarter"
FLOW = (0.7, 0.9)
FEW: dict[str, Any] = {"prompts": 120}
"""Rows that run the model for themselves, some of them backward: all tasks, and few prompts."""

FINE: dict[str, Any] = {"dtype": "float32"}
"""Rows that move weights by less than bfloat16 can show."""

SLOW: dict[str, Any] = {
    **FEW,
    "tasks": ("comparison", "hemisphere", "year", "obfuscated", "obfuscated-attribution"),
}
"""Rows that run the model tens of times a prompt, or train: tasks of short prompts, and few of
them. The last three are tasks of triggers, which no mean over quirky tasks holds."""

SLOWEST: dict[str, Any] = {**FEW, "tasks": ("comparison", "hemisphere")}
"""Rows that take some ten minutes a task even so."""

CONTROLS: dict[str, Kind] = {
    "bag-of-words": "input",
    "length": "input",
    "embed": "input",
    "max-probability": "output",
    "entropy": "output",
    "own-answer-loss": "output",
}
"""Each control and what it sees; the clean model is the other one."""

DEFAULT = "default"
"""Name of the row that is run where the user names no detector."""

PUBLISHED = (
    Entry("activations LOF", score="lof", sites=ALL, published=True),
    Entry("activations Mahalanobis", score="mahalanobis", sites=ALL, published=True),
    Entry("attribution LOF", "attribution", "lof", published=True, **FEW),
    Entry("attribution Mahalanobis", "attribution", "mahalanobis", published=True, **FEW),
    Entry("probe shift LOF", "probe-shift", "lof", published=True, **FEW),
    Entry("probe shift Mahalanobis", "probe-shift", "mahalanobis", published=True, **FEW),
    Entry("flow Laplace", score="flow-laplace", sites=FLOW, published=True),
    Entry("flow Mahalanobis", score="flow-mahalanobis", sites=FLOW, published=True),
    Entry("SAE diagonal Mahalanobis", "sae", "sae-mahalanobis", published=True, **FEW),
    Entry("SAE L0", "sae", "sae-l0", published=True, **FEW),
    Entry("local volume", "volume", published=True, **SLOWEST, **FINE),
    Entry("radii Mahalanobis", "radii", "mahalanobis", published=True, **SLOWEST, **FINE),
)
"""The twelve rows of the published table, by their definitions: all blocks, their mean."""

SCORES = tuple(
    Entry(f"activations/{score}, later half", score=score, sites=LATER)
    for score in (
        "knn", "knn-cosine", "knn-ratio", "lof", "mahalanobis", "mahalanobis-diagonal",
        "mahalanobis-pca", "mahalanobis-relative", "mahalanobis-l2", "isolation-forest",
        "lcf", "trajectory", "ted", "mahalanobis-concatenated",
    )
)  # fmt: skip
"""Scores of the later half of the blocks."""

FITTED = (
    Entry("activations/beatrix", score="beatrix", sites=FLOW),
    Entry("activations/vae", score="vae", sites=FLOW),
    Entry("activations/activation-model", score="activation-model", sites=FLOW, **SLOW),
    Entry("activation model", "activation-model", sites=FLOW, **SLOW),
)
"""Rows that fit more than a covariance, at two depths."""

MODES: tuple[tuple[str, Pool], ...] = (("offline", "untrusted"), ("transductive", "test"))
POOLED = tuple(
    Entry(f"activations/{score}, {mode}", score=score, sites=LATER, pool=pool)
    for score in ("que", "spectral", "likelihood-ratio")
    for mode, pool in MODES
)
"""Rows that learn from unlabelled prompts too."""

ELSEWHERE = (
    Entry("attention outputs/mahalanobis", score="mahalanobis", sites="attn_out.later"),
    Entry("MLP outputs/mahalanobis", score="mahalanobis", sites="mlp_out.later"),
    Entry("activations/mahalanobis, max", score="mahalanobis", sites=LATER, combine="max"),
    Entry("activations/mahalanobis, top 3", score="mahalanobis", sites=LATER, combine="top-3"),
    Entry("attribution zero/lof", "attribution", "lof", settings={"direction": "zero"}, **FEW),
    Entry(
        "attribution components/lof", "attribution", "lof", settings={"direction": "pcs"}, **FEW
    ),
    Entry("gradient norm/lof", "attribution", "lof", settings={"direction": "grad-norm"}, **FEW),
    Entry("probe trajectory/mahalanobis", "probe-trajectory", "mahalanobis", **FEW),
    Entry("lens/mahalanobis", "lens", "mahalanobis", **FEW),
)
"""Other features, places and ways to combine them."""

MANY_PASSES = (
    Entry("functional attribution, gradients", "functional", settings={"kernel": "gradients"},
          **SLOW),
    Entry("functional attribution, weight noise", "functional",
          settings={"kernel": "weight-noise"}, **SLOW),
    Entry("functional attribution, SGLD", "functional", settings={"kernel": "sgld"}, **SLOW),
    Entry("divergence from a tuned copy", "tuned-divergence", **SLOW),
)  # fmt: skip
"""Rows that need many passes a prompt, or a training."""


CEILINGS = (
    Entry("ceiling: activations", sites=FLOW, kind="ceiling"),
    Entry("ceiling: attribution components", "attribution", settings={"direction": "pcs"},
          kind="ceiling", **FEW),
)  # fmt: skip
"""What a classifier that is told the labels makes of a feature; no detectors."""


def _control(name: str, kind: Kind) -> Entry:
    if name == "embed":
        return Entry(name, "activations", "mahalanobis", "embed", {"positions": "mean"}, kind=kind)

    return Entry(name, name, "mahalanobis", kind=kind)


ENTRIES = (
    Entry(DEFAULT, score="knn-cosine", sites=LAST),
    *PUBLISHED,
    *SCORES,
    *FITTED,
    *POOLED,
    *ELSEWHERE,
    *MANY_PASSES,
    *CEILINGS,
    *(_control(name, kind) for name, kind in CONTROLS.items()),
    Entry("energy", "energy", "mahalanobis", kind="output", **FEW),
)
"""Every row of the table. A new one is a line here."""


def default_detector(*, alpha: float = 0.05) -> Detector:
    """The detector that is used where the user names none.

    Cosine distance to the nearest trusted prompts, at the last token of the last quarter of the
    blocks, the mean of the standardised sites. On the development tasks most scores rank almost
    perfectly and differ in what they flag: over the later half this one flagged 27 % of normal
    prompts under unfamiliar names at alpha 0.05, over the last quarter 8 %, at an AUROC of .999
    either way. Four of the candidates that were tried had a higher objective, by up to .025, and
    missed 2 to 15 % of the anomalous prompts of some task, which the objective does not count;
    this one flagged 99.75 % or more of each task's.
    """
    return Detector(alpha=alpha)


def controls() -> list[Detector]:
    """Detectors that see the input or the output only."""
    embed = get_feature("activations", sites="embed", positions="mean")
    features = {name: embed if name == "embed" else get_feature(name) for name in CONTROLS}

    return [Detector(feature, "mahalanobis", name=name) for name, feature in features.items()]
