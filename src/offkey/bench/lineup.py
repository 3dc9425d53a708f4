"""The line-up of the benchmark: its rows, and the controls beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from offkey.detect import Detector, Mode
from offkey.errors import UnknownName, check
from offkey.features import get_feature
from offkey.models import Model
from offkey.scores import get_score
from offkey.storage import sha256_json

__all__ = [
    "ALPHA",
    "CONTROLS",
    "DEFAULT",
    "ENTRIES",
    "Entry",
    "choose_entries",
    "control_detectors",
    "default_detector",
]

ALPHA = 0.05
"""False-alarm rate at which the rows of the benchmark flag prompts."""

ControlKind = Literal["input", "output"]
Kind = Literal["internal", "input", "output", "ceiling"]
Pool = Literal["", "untrusted", "test"]
Sites = str | tuple[float, ...] | None


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        name: what the table calls it.
        feature: name of a feature.
        score: name of a score; the feature's own if left out.
        sites: where it reads, for features that can read anywhere: names of sites, or depths
            between 0 and 1, each of which stands for the output of the block at that depth.
        settings: further settings of the feature.
        score_settings: settings of the score.
        combine: how sites become one score.
        pool: unlabelled prompts that it is also fitted on: ``"untrusted"``, prompts apart from
            the test (offline), or ``"test"``, the test prompts without labels (transductive).
        kind: what it sees: the inside of the model, its input, its output, or the labels (a
            ceiling).
        published: whether it is one of the rows of the published table.
        tasks: the only tasks that it is run on, where it is slow; all if empty.
        prompts: how many trusted and how many test prompts it is limited to, where it is slow;
            all if 0.
        dtype: dtype of the models, where their own is too coarse for the row.
    """

    name: str
    feature: str = "activations"
    score: str | None = None
    sites: Sites = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    score_settings: Mapping[str, Any] = field(default_factory=dict)
    combine: str = "mean"
    pool: Pool = ""
    kind: Kind = "internal"
    published: bool = False
    tasks: tuple[str, ...] = ()
    prompts: int = 0
    dtype: str = "auto"

    def detector(self, model: Model) -> Detector:
        """The detector, not fitted yet.

        Raises:
            UnknownName: no such feature or score.
            BadValue: a setting that the feature or score does not have.
        """
        sites = {} if self.sites is None else {"sites": self._sites(model)}
        feature = get_feature(self.feature, **sites, **self.settings)
        score = get_score(self.score or feature.default_score, **self.score_settings)

        return Detector(feature, score, combine=self.combine, alpha=ALPHA, name=self.name)

    @property
    def mode(self) -> Mode:
        """How the row stands to the test prompts."""
        if self.kind == "ceiling":
            return "ceiling"
        if self.pool == "test":
            return "transductive"

        return "offline" if self.pool else "online"

    def runs_on(self, task: str) -> bool:
        """Whether the row is run on that task."""
        return not self.tasks or task in self.tasks

    @property
    def digest(self) -> str:
        """SHA-256 of everything that its scores depend on besides model, dtype and prompts."""
        settings = asdict(self)
        for name in ("name", "kind", "published", "tasks", "dtype"):
            del settings[name]

        return sha256_json(settings)

    def _sites(self, model: Model) -> str | tuple[str, ...]:
        if isinstance(self.sites, str):
            return self.sites
        blocks = len(model.sites_at("resid_post.*"))
        places = [min(blocks - 1, round(depth * blocks)) for depth in self.sites or ()]

        return tuple(f"resid_post.{place}" for place in dict.fromkeys(places))


LATER, ALL = "resid_post.later", "resid_post.*"
LAST = "resid_post.last-quarter"
FLOW = (0.7, 0.9)
FEW: dict[str, Any] = {"prompts": 120}
"""Rows that need passes of their own, some of them backward: all tasks, few prompts."""

FINE: dict[str, Any] = {"dtype": "float32"}
"""Rows that move weights by less than bfloat16 can represent."""

SLOW: dict[str, Any] = {
    **FEW,
    "tasks": ("comparison", "hemisphere", "year", "obfuscated", "obfuscated-attribution"),
}
"""Rows that run the model tens of times a prompt, or train it: few prompts, on tasks whose prompts
are short. The last three tasks have triggers, and no mean over quirky tasks includes them."""

SLOWEST: dict[str, Any] = {**FEW, "tasks": ("comparison", "hemisphere")}
"""Rows that take some ten minutes a task even then."""

CONTROLS: dict[str, ControlKind] = {
    "bag-of-words": "input",
    "length": "input",
    "embed": "input",
    "max-probability": "output",
    "entropy": "output",
    "own-answer-loss": "output",
}
"""Each control and what it sees; the clean model is a further control."""

DEFAULT = "default"
"""Name of the row of the detector that is used where the user names none."""

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
"""The twelve rows of the published table, as they were defined: the mean over all blocks."""

SCORES = tuple(
    Entry(f"activations/{score}, later half", score=score, sites=LATER)
    for score in (
        "knn",
        "knn-cosine",
        "knn-ratio",
        "lof",
        "mahalanobis",
        "mahalanobis-diagonal",
        "mahalanobis-pca",
        "mahalanobis-relative",
        "mahalanobis-l2",
        "isolation-forest",
        "lcf",
        "trajectory",
        "ted",
        "mahalanobis-concatenated",
    )
)
"""Scores of activations in the later half of the blocks."""

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
"""Rows that also learn from unlabelled prompts."""

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

KERNELS = {"gradients": "gradients", "weight noise": "weight-noise", "SGLD": "sgld"}
MANY_PASSES = (
    *(
        Entry(f"functional attribution, {name}", "functional", settings={"kernel": kernel}, **SLOW)
        for name, kernel in KERNELS.items()
    ),
    Entry("divergence from a tuned copy", "tuned-divergence", **SLOW),
)
"""Rows that need many passes a prompt, or training."""

CEILINGS = (
    Entry("ceiling: activations", sites=FLOW, kind="ceiling"),
    Entry(
        "ceiling: attribution components",
        "attribution",
        settings={"direction": "pcs"},
        kind="ceiling",
        **FEW,
    ),
)
"""What a classifier that is given the labels achieves on a feature; these are no detectors."""


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
"""Every row of the table. A new row is a line here."""


def choose_entries(
    entries: Sequence[Entry], names: Sequence[str] | None, without: Sequence[str] | None = None
) -> list[Entry]:
    """The entries with these names, or all of them, except those to be left out.

    Raises:
        UnknownName: there is no such row; names the nearest.
        BadValue: two rows have one name.
    """
    known = {entry.name: entry for entry in entries}
    check(len(known) == len(entries), "two rows have one name", where="rows")
    for name in (*(names or ()), *(without or ())):
        if name not in known:
            raise UnknownName("row", name, known)

    return [known[name] for name in names or known if name not in (without or ())]


def default_detector(*, alpha: float = 0.05) -> Detector:
    """The detector that is used where the user names none.

    Cosine distance to the nearest trusted prompts, at the last token of the last quarter of the
    blocks, the mean of the standardised sites. On the development tasks most scores rank almost
    perfectly and differ in what they flag: over the later half of the blocks this one flagged
    27 % of normal prompts under unfamiliar names at alpha 0.05, over the last quarter 8 %, at an
    AUROC of .999 either way. Four of the candidates that were tried had a higher objective, by up
    to .025, but missed 2 to 15 % of the anomalous prompts of some task, which the objective does
    not count; this one flagged at least 99.75 % of those of each task.
    """
    return Detector(alpha=alpha)


def control_detectors() -> list[Detector]:
    """The detectors that see the input or the output only."""
    embed = get_feature("activations", sites="embed", positions="mean")
    features = {name: embed if name == "embed" else get_feature(name) for name in CONTROLS}

    return [Detector(feature, "mahalanobis", name=name) for name, feature in features.items()]
