"""What an explanation holds, and the file of explanations in a run folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Self

from offkey.errors import Mismatch, check, check_at_least
from offkey.storage import Record, read_record

__all__ = [
    "EXPLANATIONS_FILE",
    "Detail",
    "Explanation",
    "Explanations",
    "FlaggedWord",
    "HeadShare",
    "LatentShare",
    "Neighbour",
    "ReadOut",
    "SiteShare",
    "Swap",
    "Token",
    "read_explanations",
]

EXPLANATIONS_FILE = "explanations.json"
FORMAT = 1


@dataclass(frozen=True)
class Detail:
    """How much an explanation says, and at what cost.

    Attributes:
        top: most heads, latents, swaps and tokens listed.
        layers: sites of the largest shares that are read out, beside the last one.
        nearest: how many of the nearest trusted prompts are shown.
        background: most trusted prompts that are read: one forward pass each for the detector's
            feature, and one forward and backward pass each for heads.
        rare: a latent is listed where at most this share of the trusted prompts has it active.
        dictionary: of the latents, ``bundled:SITE`` or a folder; if left out, the bundled one
            where the model is the one it was trained on.
        swaps: whether the prompt is scored again with words of its nearest trusted prompts.
        redact: leave out the texts of prompts, and swaps, which quote them.
    """

    top: int = 5
    layers: int = 3
    nearest: int = 3
    background: int = 128
    rare: float = 0.02
    dictionary: str | None = None
    swaps: bool = True
    redact: bool = False

    def __post_init__(self) -> None:
        for name in ("top", "layers", "nearest", "background"):
            check_at_least(name, getattr(self, name), 1)
        check(0 <= self.rare <= 1, f"{self.rare} is not between 0 and 1", where="rare")


class SiteShare(Record):
    """One site of the detector.

    Attributes:
        site: its name.
        standardised: the score there, in robust spreads of the trusted prompts.
        share: what it adds to the combined score; the shares sum to the score.
    """

    site: str
    standardised: float
    share: float


class HeadShare(Record):
    """One attention head.

    Attributes:
        site: where its output was read, such as ``z.17``.
        head: its number in the block, from 0.
        effect: attribution towards the answer at ``z``, in nats: what its mean ablation would do
            to the metric, to first order.
        usual: median effect on the trusted prompts, in nats.
        standardised: effect less usual, in robust spreads of the trusted prompts; null where
            those do not vary.
    """

    site: str
    head: int
    effect: float
    usual: float
    standardised: float | None


class LatentShare(Record):
    """One latent of a sparse autoencoder.

    Attributes:
        site: where the dictionary was trained.
        latent: its number.
        activation: how active it is.
        trusted: share of the trusted prompts on which it is active.
        promotes: tokens that its direction raises most, read out as a residual stream is.
    """

    site: str
    latent: int
    activation: float
    trusted: float
    promotes: tuple[str, ...]


class Token(Record):
    """A token and its probability in a read-out."""

    token: str
    probability: float


class ReadOut(Record):
    """What the logit lens reads at a layer.

    Attributes:
        site: the residual stream that was read.
        tokens: the most probable next tokens there.
        beside: the same for each of the nearest trusted prompts, in their order.
    """

    site: str
    tokens: tuple[Token, ...]
    beside: tuple[tuple[Token, ...], ...]


class Neighbour(Record):
    """A trusted prompt, and how far it is by the detector's own feature.

    Attributes:
        id: of the trusted prompt.
        text: as a person reads it; null for arrays.
        distance: root mean square difference of the feature's coordinates, each in standard
            deviations of the trusted prompts, over all sites.
    """

    id: str
    text: str | None
    distance: float


class Swap(Record):
    """Words of the prompt, and what its score is with the words of near trusted prompts there.

    Attributes:
        words: as they stand in the prompt; empty where the trusted prompts have words more.
        instead: what was put there, one for each way in which near trusted prompts differ.
        score: the score then, the mean over these.
        share: how much lower that is.
    """

    words: str
    instead: tuple[str, ...]
    score: float
    share: float


class Explanation(Record):
    """Why one prompt has its score.

    Attributes:
        id: of the prompt.
        text: as a person reads it; null for arrays.
        detector: name of the detector.
        combine: how it combines sites.
        score: the combined score.
        p_value: share of calibration prompts at least as odd; null in transductive mode.
        flagged: whether the p-value is at most alpha.
        sites: every site of the detector, in the model's order.
        heads: the heads whose attribution differs most from trusted prompts.
        latents: latents active here and rarely on trusted prompts.
        read_outs: what the logit lens reads at the sites of the largest shares, and the last.
        nearest: the nearest trusted prompts.
        swaps: the words whose exchange for those of near trusted prompts lowers the score most.
        notes: why a part is missing, by its name.
    """

    id: str
    text: str | None
    detector: str
    combine: str
    score: float
    p_value: float | None
    flagged: bool | None
    sites: tuple[SiteShare, ...]
    heads: tuple[HeadShare, ...]
    latents: tuple[LatentShare, ...]
    read_outs: tuple[ReadOut, ...]
    nearest: tuple[Neighbour, ...]
    swaps: tuple[Swap, ...]
    notes: Mapping[str, str]

    @property
    def drivers(self) -> tuple[SiteShare, ...]:
        """The sites by their share, largest first."""
        return tuple(sorted(self.sites, key=lambda site: -site.share))


class FlaggedWord(Record):
    """A word whose prompts score higher than those with neither it nor a word listed before it.

    Attributes:
        word: in lower case.
        prompts: prompts that hold it and none of the words before.
        flagged: flagged ones among them.
        score: their median score.
        others: median score of the prompts that are left.
        p_value: of the one-sided test of Mann and Whitney, times the number of words tested.
    """

    word: str
    prompts: int
    flagged: int
    score: float
    others: float
    p_value: float


class Explanations(Record):
    """What ``explanations.json`` holds.

    Attributes:
        format: version of the file's layout.
        prompts: one explanation a prompt and detector.
        words: words that go with high scores, the least probable by chance first.
    """

    format: int
    prompts: tuple[Explanation, ...]
    words: tuple[FlaggedWord, ...]

    @classmethod
    def make(cls, prompts: tuple[Explanation, ...], words: tuple[FlaggedWord, ...]) -> Self:
        """Explanations in the present layout."""
        return cls(format=FORMAT, prompts=prompts, words=words)


def read_explanations(folder: str | PathLike[str]) -> Explanations | None:
    """The explanations in a run's folder; null where none were asked for yet.

    Raises:
        Damaged: the file was truncated or edited.
        Mismatch: a newer version wrote it.
    """
    path = Path(folder) / EXPLANATIONS_FILE
    if not path.exists():
        return None
    explanations = read_record(Explanations, path, mend="Delete it and explain again")
    if explanations.format > FORMAT:
        raise Mismatch(
            f"format {explanations.format} is later than this version's {FORMAT}",
            where=str(path),
            mend="Use the offkey version that wrote it",
        )

    return explanations
