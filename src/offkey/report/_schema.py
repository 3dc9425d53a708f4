"""What the JSON files of a run folder say, checked on reading."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ._sites import ranges

__all__ = [
    "FORMAT",
    "Control",
    "DetectorRow",
    "Drift",
    "Explained",
    "Explanations",
    "Interval",
    "Metrics",
    "RunInfo",
    "SiteRow",
]

FORMAT = 1


class _Part(BaseModel):
    # Fields that a later version adds are none of ours; NaN and infinity are never right.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Interval(_Part):
    """A figure and its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None


def _as_interval(value: Any) -> Any:
    if isinstance(value, dict) and value.get("value", 0) is None:
        return None

    return {"value": value} if isinstance(value, (int, float)) else value


Estimate = Annotated[Interval | None, BeforeValidator(_as_interval)]
"""An interval, a bare number, or null."""


def _as_text(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return ", ".join(ranges([str(v) for v in value]))

    return "" if value is None else str(value)


Words = Annotated[str, BeforeValidator(_as_text)]


class DetectorRow(_Part):
    """One detector's line of ``metrics.json``; ``reasons`` says why a figure is null."""

    detector: str
    feature: Words = ""
    score: Words = ""
    sites: Words = ""
    combine: Words = ""
    mode: Words = ""
    cost: Words = ""
    n_trusted: int | None = None
    n_calibration: int | None = None
    n_test: int | None = None
    dropped: int = 0
    auroc: Estimate = None
    agrees: Estimate = None
    disagrees: Estimate = None
    average_precision: Estimate = None
    tpr_at_1pct_fpr: Estimate = None
    flagged: int | None = None
    expected: float | None = None
    seconds: float | None = None
    reasons: dict[str, str] = Field(default_factory=dict)


class Control(_Part):
    """What a detector must beat: the clean model, the input alone, the output alone."""

    control: str
    kind: str
    detector: Words = ""
    auroc: Estimate = None
    excess: Estimate = None
    reasons: dict[str, str] = Field(default_factory=dict)


class SiteRow(_Part):
    """AUROC of one detector at one site."""

    detector: str
    site: str
    auroc: Estimate = None


class Drift(_Part):
    """Whether the test prompts differ from the trusted ones in something plain."""

    what: str
    p_value: float | None = None
    effect: float | None = None
    trusted: float | str | None = None
    test: float | str | None = None
    warn: bool = False


class Metrics(_Part):
    """``metrics.json``."""

    alpha: float
    mode: Words = ""
    detectors: list[DetectorRow] = Field(min_length=1)
    controls: list[Control] = Field(default_factory=list)
    sites: list[SiteRow] = Field(default_factory=list)
    drift: list[Drift] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)

    @property
    def best_control(self) -> Control | None:
        """The control with the highest AUROC; null where none has one."""
        known = [c for c in self.controls if c.auroc is not None]

        return max(known, key=lambda c: c.auroc.value if c.auroc else 0.0, default=None)


class RunInfo(_Part):
    """``run.json``: every setting, version and digest that made the run."""

    format: int
    status: str
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    started: str | None = None
    finished: str | None = None
    seconds: dict[str, float | None] | float | None = None


class SiteShare(_Part):
    """What one site adds to a score."""

    site: str
    standardised: float
    share: float


class HeadShare(_Part):
    """One attention head's effect on the answer, in nats."""

    site: str
    head: int
    effect: float
    usual: float
    standardised: float | None = None


class LatentShare(_Part):
    """One latent, and how often trusted prompts have it."""

    site: str
    latent: int
    activation: float
    trusted: float
    promotes: list[str] = Field(default_factory=list)


class Token(_Part):
    """A token and its probability."""

    token: str
    probability: float


class ReadOut(_Part):
    """The logit lens at one layer, beside the nearest trusted prompts."""

    site: str
    tokens: list[Token]
    beside: list[list[Token]] = Field(default_factory=list)


class Neighbour(_Part):
    """A trusted prompt near by."""

    id: str
    text: str | None = None
    distance: float


class Swap(_Part):
    """Words exchanged, and the score then."""

    words: str
    instead: list[str]
    score: float
    share: float


class Explained(_Part):
    """Why one prompt has its score."""

    id: str
    text: str | None = None
    detector: str
    combine: str
    score: float
    p_value: float | None = None
    flagged: bool | None = None
    sites: list[SiteShare]
    heads: list[HeadShare]
    latents: list[LatentShare]
    read_outs: list[ReadOut]
    nearest: list[Neighbour]
    swaps: list[Swap]
    notes: dict[str, str] = Field(default_factory=dict)


class TellingWord(_Part):
    """A word that goes with high scores."""

    word: str
    prompts: int
    flagged: int
    score: float
    others: float
    p_value: float


class Explanations(_Part):
    """``explanations.json``."""

    format: int
    prompts: list[Explained]
    words: list[TellingWord] = Field(default_factory=list)
