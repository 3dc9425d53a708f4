"""Explaining flags of a finished run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

from offkey.data import Prompts, TensorPrompts, read_prompts
from offkey.detect import Detector
from offkey.errors import BadInput, BadValue, Mismatch, OffkeyError, UnknownName, check
from offkey.explain.explaining import explain
from offkey.explain.explanation import (
    EXPLANATIONS_FILE,
    Detail,
    Explanation,
    Explanations,
    read_explanations,
)
from offkey.explain.words import flagged_words
from offkey.models import Model, load
from offkey.storage import read_run, read_table

__all__ = ["explain_run"]

MOST = 5
"""How many flagged prompts are explained where none is named."""

AnyPrompts = Prompts | TensorPrompts


def explain_run(
    folder: str | PathLike[str],
    ids: Sequence[str] = (),
    *,
    detector: str | None = None,
    model: Model | None = None,
    prompts: tuple[AnyPrompts, AnyPrompts] | None = None,
    detail: Detail | None = None,
) -> tuple[Explanation, ...]:
    """Explains prompts of a run, and keeps what it says in ``explanations.json`` there.

    The page of the run shows what the file holds; explanations of other prompts stay in it.

    Args:
        folder: of a finished run.
        ids: test prompts; the flagged ones with the highest scores, at most 5, if left out.
        detector: name of one of the run's detectors; the first if left out.
        model: the model that was watched; loaded by its name if left out.
        prompts: trusted and test prompts, where the run does not keep them.
        detail: how much an explanation says.

    Returns:
        One explanation a prompt; none where no prompt is named and none was flagged.

    Raises:
        BadInput: the run has not ended, or keeps no prompts, or its model cannot be loaded.
        BadValue: the detector learned nothing.
        UnknownName: the run has no such prompt or detector.
        Mismatch: other prompts, or another model, than those of the run.
    """
    run = _FinishedRun.read(Path(folder))
    name = run.detector_name(detector)
    rows = run.scores(name)
    wanted = run.chosen(rows, ids)
    if not wanted:
        return ()
    trusted, test = prompts or run.prompts()
    run.check_prompts(trusted, test)
    fitted = run.load_detector(name)
    detail = detail or Detail()
    detail = replace(detail, redact=detail.redact or bool(run.config["redact"]))
    model = model or run.load_model()
    place = {id: n for n, id in enumerate(test.ids)}
    shown = test.take([place[id] for id in wanted])
    explanations = explain(fitted, model, shown, trusted, detail=detail)
    run.keep(explanations, () if detail.redact else rows)

    return explanations


@dataclass(frozen=True)
class _FinishedRun:
    """A finished run's folder, as far as it is needed to explain."""

    folder: Path
    config: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Self:
        return cls(folder, read_run(folder).config)

    def detector_name(self, name: str | None) -> str:
        """The name of the detector that explains."""
        known = [str(row["name"]) for row in self.config["detectors"]]
        if name is not None and name not in known:
            raise UnknownName("detector", name, known, where=str(self.folder))

        return name or known[0]

    def scores(self, detector: str) -> list[dict[str, Any]]:
        """The rows of the table of scores that are of one detector."""
        rows: list[dict[str, Any]] = read_table(self.folder / "scores.parquet").to_pylist()

        return [row for row in rows if row["detector"] == detector]

    def chosen(self, rows: Sequence[dict[str, Any]], ids: Sequence[str]) -> list[str]:
        """The prompts named, or the flagged ones with the highest scores."""
        test = {row["id"]: row for row in rows if row["role"] == "test"}
        for id in ids:
            if id not in test:
                raise UnknownName("test prompt", id, test, where=str(self.folder))
        flagged = [row for row in test.values() if row["flagged"]]
        flagged.sort(key=lambda row: (-row["score"], row["id"]))

        return list(dict.fromkeys(ids)) or [row["id"] for row in flagged[:MOST]]

    def prompts(self) -> tuple[Prompts, Prompts]:
        """The trusted and the test prompts that the run keeps."""
        paths = [self.folder / "prompts" / f"{name}.jsonl" for name in ("trusted", "test")]
        why = "it was redacted" if self.config["redact"] else "they are not in its folder"
        check(
            all(path.is_file() for path in paths),
            f"the run keeps no prompts: {why}",
            where=str(self.folder),
            mend="Give them by --trusted and --test, or prompts=",
            error=BadInput,
        )
        trusted, test = (read_prompts(str(path)) for path in paths)

        return trusted, test

    def check_prompts(self, trusted: AnyPrompts, test: AnyPrompts) -> None:
        """Refuses other prompts than those of the run."""
        for name, given in (("trusted", trusted), ("test", test)):
            check(
                given.digest == self.config[name]["digest"],
                f"these are not the {name} prompts of the run",
                where=str(self.folder),
                mend="Give the file that the run was given",
                error=Mismatch,
            )

    def load_detector(self, name: str) -> Detector:
        """The detector as it was saved."""
        folder = self.folder / "detector" / name.replace("/", "-")
        if not folder.is_dir():
            raise BadValue(
                "it learned nothing in this run and has no sites to explain by",
                where=f"detector {name}",
                mend="Name another one",
            )

        return Detector.load(folder)

    def load_model(self) -> Model:
        """The model, by the name that the run knows it by."""
        name, adapter = self.config["model"], self.config["adapter"]
        try:
            return load(name, adapter, dtype=self.config["dtype"])
        except OffkeyError as error:
            raise BadInput(
                f"its model {name!r} cannot be loaded by that name ({error.what})",
                where=str(self.folder),
                mend="Give it by --model, or model=",
            ) from error

    def keep(self, explanations: Sequence[Explanation], rows: Sequence[dict[str, Any]]) -> None:
        """Writes explanations beside those that are there already, and the flagged words."""
        before = read_explanations(self.folder)
        earlier = before.prompts if before else ()
        kept = {(each.detector, each.id): each for each in (*earlier, *explanations)}
        tested = [row for row in rows if row["role"] == "test" and row["text"]]
        tested = [row for row in tested if row["score"] is not None]
        columns = ([row[name] for row in tested] for name in ("text", "score", "flagged"))
        record = Explanations.make(tuple(kept.values()), flagged_words(*columns))
        record.write(self.folder / EXPLANATIONS_FILE)
