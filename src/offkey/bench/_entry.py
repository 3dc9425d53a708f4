"""A row of the benchmark: which detector, on which tasks, and what it stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from offkey.detect import Detector
from offkey.errors import BadValue, UnknownName
from offkey.features import get_feature
from offkey.models import Model
from offkey.scores import get_score
from offkey.storage import sha256_json

__all__ = ["ALPHA", "Entry", "Kind", "Pool", "chosen"]

ALPHA = 0.05

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
        sites: where it looks, for features that can look anywhere: names of sites, or depths
            between 0 and 1, each of which stands for the output of the block there.
        settings: further settings of the feature.
        score_settings: settings of the score.
        combine: how sites become one score.
        pool: unlabelled prompts that it is fitted on too: ``"untrusted"``, apart from the test
            (offline), or ``"test"``, the test itself without its labels (transductive).
        kind: what it sees: the model's inside, its input, its output; or the labels (a ceiling).
        published: whether it is one of the rows of the published table.
        tasks: the only tasks that it is run on, where it is slow; all if empty.
        prompts: at most so many trusted and so many test prompts, where it is slow; all if 0.
        dtype: what the models are loaded in, where their own weights are too coarse for it.
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
        """The detector, which has learned nothing yet.

        Raises:
            UnknownName: no such feature or score.
            BadValue: a setting that it does not have.
        """
        sites = {} if self.sites is None else {"sites": self._sites(model)}
        feature = get_feature(self.feature, **sites, **self.settings)
        score = get_score(self.score or feature.default_score, **self.score_settings)

        return Detector(feature, score, combine=self.combine, alpha=ALPHA, name=self.name)

    def runs_on(self, task: str) -> bool:
        """Whether the row has a figure for that task."""
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


def chosen(
    entries: Sequence[Entry], names: Sequence[str] | None, without: Sequence[str] | None = None
) -> list[Entry]:
    """The entries of these names, all if none is named; but for those to be left out.

    Raises:
        UnknownName: there is no such row; names the nearest.
        BadValue: two rows have one name.
    """
    known = {entry.name: entry for entry in entries}
    if len(known) < len(entries):
        raise BadValue("two rows have one name", where="rows")
    for name in (*(names or ()), *(without or ())):
        if name not in known:
            raise UnknownName("row", name, known)

    return [known[name] for name in names or known if name not in (without or ())]
