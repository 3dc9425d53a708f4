"""Tasks × rows × (organism, clean model) → tables."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offkey.bench._arena import Arena
from offkey.bench._cell import Cell
from offkey.bench._credit import credited, site_rows
from offkey.bench._entry import Entry, chosen
from offkey.bench._lineup import ENTRIES
from offkey.bench._organisms import Organisms
from offkey.bench._runner import Runner
from offkey.bench._summary import layer_rows, quirkiness_rows, summary, table1
from offkey.data import Prompts
from offkey.errors import BadInput
from offkey.models import Model, load
from offkey.storage import RunFolder, write_results
from offkey.tasks import BASE, get_task, organism_of

__all__ = ["Bench", "bench"]

Row = dict[str, Any]
Say = Callable[[str], None]
TITLES = ("average", "agrees", "disagrees")
SITE_COLUMNS = ("task", "detector", "site", "auroc")


@dataclass
class Bench:
    """Where a benchmark lies, and what it is run on; models are loaded when they are needed.

    Attributes:
        folder: holds a folder a task, in it one a model.
        tasks: names of the organisms: tasks, with ``-SEED`` for another organism of one.
        seed: of splits and draws.
        tell: is told what is being done.
        organisms: where they are found.
        arenas: tasks whose models are in memory already, by name.
    """

    folder: Path
    tasks: tuple[str, ...]
    seed: int = 0
    tell: Say = field(default=lambda _: None)
    organisms: Organisms = field(default_factory=Organisms)
    arenas: dict[str, Arena] = field(default_factory=dict)
    _loaded: dict[tuple[str, str], Arena] = field(default_factory=dict)
    _clean: dict[str, Model] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        folder: str | Path,
        tasks: Sequence[str] | None,
        seed: int,
        tell: Say = lambda _: None,
        organisms: Organisms | None = None,
        *,
        seeds: bool = False,
    ) -> "Bench":
        """Checks the names of organisms before anything is written.

        Args:
            folder: where it lies.
            tasks: names of organisms; all quirky ones that learned their task if left out.
            seed: of splits and draws.
            tell: is told what is being done.
            organisms: where they are found; the bundled ones if left out.
            seeds: with no names given, further organisms of one task too.

        Raises:
            UnknownName: there is no such task, or no organism of it.
            BadInput: there are no organisms, or one is of another base.
        """
        organisms = organisms or Organisms()
        names = tuple(tasks) if tasks else organisms.names(seeds=seeds)
        if not names:
            raise BadInput(f"no organism of {organisms.base} learned its task",
                           where=str(organisms.folder or "bundled organisms"),
                           mend="Train one with offkey tasks train")  # fmt: skip
        for name in names:
            get_task(organism_of(name)[0])
            organisms.recipe(name)

        return cls(Path(folder), names, seed, tell, organisms)

    def arena(self, task: str, dtype: str = "auto") -> Arena:
        """A task's models and prompts; those of one task are in memory at a time."""
        if task in self.arenas:
            return self.arenas[task]
        if (task, dtype) not in self._loaded:
            if dtype not in self._clean:
                self._clean[dtype] = load(self.organisms.base, dtype=dtype)
            arena = Arena.of(task, self.organisms, clean=self._clean[dtype])
            others = {key: known for key, known in self._loaded.items() if key[0] == task}
            self._loaded = {**others, (task, dtype): arena}

        return self._loaded[task, dtype]

    def trusted(self, task: str) -> Prompts:
        """The trusted prompts of a task; its models are not loaded."""
        known, (name, seed) = self.arenas.get(task), organism_of(task)

        return known.trusted if known else get_task(name).make(seed).trusted

    def runner(self, task: str, model: str, prompts: int = 0, dtype: str = "auto") -> Runner:
        """What runs rows on the ``organism`` or the ``clean`` model of a task.

        Args:
            task: name of the task.
            model: which of the two.
            prompts: at most so many trusted and test prompts; all for 0.
            dtype: what the model is loaded in.
        """
        arena = self.arena(task, dtype).cut(prompts)
        home = self.folder / task.replace(":", "-") / model
        if prompts:
            home = home / f"first-{prompts}"
        if dtype != "auto":
            home = home / dtype

        return Runner(home / f"seed-{self.seed}", getattr(arena, model), arena.trusted,
                      arena.test, arena.pool, self.seed,
                      lambda row: self.tell(f"{task}, {model}: {row}"))  # fmt: skip

    def cells(self, task: str, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Cell, Cell]]:
        """What each row says on the organism and on the clean model; cheap rows first."""
        here = [entry for entry in entries if entry.runs_on(task)]
        for prompts, dtype in sorted({(entry.prompts, entry.dtype) for entry in here}):
            group = [e for e in here if (e.prompts, e.dtype) == (prompts, dtype)]
            told = {model: self.runner(task, model, prompts, dtype).run(group)
                    for model in ("organism", "clean")}  # fmt: skip
            for entry in group:
                yield entry, told["organism"][entry.name], told["clean"][entry.name]


def bench(
    out: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
    seed: int = 0,
    organisms: Organisms | None = None,
    results: str | Path | None = None,
    command: str | None = None,
    tell: Say = lambda _: None,
    entries: Sequence[Entry] = ENTRIES,
    on: Bench | None = None,
) -> list[Row]:
    """Runs every row on every task, on the organism and, refitted, on the clean model.

    What a row's feature recorded and what the row said is kept in ``out`` by task and model:
    the same command goes on where it was stopped, and a row that is added later costs itself
    alone. ``table.parquet`` (detector × average, agrees, disagrees), ``tasks.parquet``,
    ``sites.parquet`` and ``quirkiness.parquet`` hold what was asked for last. A row that fails
    has the reason instead of figures.

    Args:
        out: the bench folder.
        tasks: names of organisms: tasks, with ``-SEED`` for another organism of one; all that
            learned their task if left out.
        rows: names of rows; all if left out.
        without: names of rows that are not run.
        seed: of splits and draws.
        organisms: where they are found; the bundled ones if left out.
        results: a folder for ``table1``, ``layers`` and ``quirkiness_auroc``, which documents
            quote.
        command: what they say made them; the command line that asks for the same if left out.
        tell: is told what is being done.
        entries: the rows that there are.
        on: tasks and models, where they are in memory already.

    Returns:
        A row a detector: ``average``, ``agrees``, ``disagrees``, ``clean`` and ``excess`` with
        ``low`` and ``high``, the number of ``tasks``, ``output_only`` and what it costs.

    Raises:
        UnknownName: there is no such task or row, or no organism; nothing is written then.
    """
    picked = chosen(entries, rows, without)
    where = on or Bench.of(out, tasks, seed, tell, organisms, seeds=True)
    settings = {"bench": "table1", "base": where.organisms.base, "seed": seed}
    with RunFolder.open(out, settings) as run:
        per_task: list[Row] = []
        sites: list[Row] = []
        quirkiness: dict[str, float | None] = {}
        for task in where.tasks:
            quirkiness[task] = where.arena(task).quirkiness
            for entry, organism, clean in where.cells(task, picked):
                test = where.arena(task).cut(entry.prompts).test
                per_task.append(credited(task, entry, organism, clean, test, seed=seed))
                if entry.kind == "internal":
                    sites += site_rows(task, entry, organism, test)
        told = summary(per_task, seed=seed)
        run.write_table("tasks", per_task)
        run.write_table("table", [cell for row in told for cell in _cells(row)])
        run.write_table("sites", sites or dict.fromkeys(SITE_COLUMNS, ()))
        run.write_table("quirkiness",
                        [{"task": t, "quirkiness": q} for t, q in quirkiness.items()])  # fmt: skip
    if results:
        command = command or _command(Path(results), where.organisms, tasks, rows, without)
        shown = {entry.name for entry in picked if entry.published} | {picked[0].name}
        tables = {
            "table1": table1(told),
            "layers": layer_rows([row for row in sites if row["detector"] in shown]),
            "quirkiness_auroc": quirkiness_rows(
                [row for row in per_task if row["detector"] in shown], quirkiness
            ),
        }
        for name, made in tables.items():
            write_results(Path(results) / f"{name}.json", made, command=command, seeds=[seed])

    return told


def _command(
    results: Path,
    organisms: Organisms,
    tasks: Sequence[str] | None,
    rows: Sequence[str] | None,
    without: Sequence[str] | None,
) -> str:
    asked = f"offkey bench table1 --results {results}"
    if organisms.base != BASE:
        asked += f" --base {organisms.base}"
    if organisms.folder:
        asked += f" --organisms {organisms.folder}"
    asked += "".join(f" --task {task}" for task in tasks or ())

    asked += "".join(f' --row "{row}"' for row in rows or ())

    return asked + "".join(f' --without "{row}"' for row in without or ())


def _cells(row: Mapping[str, Any]) -> Iterable[Row]:
    """The long form that the page is made from: one row a detector and column."""
    cost = f"{row['forwards']} forward" + (
        f", {row['backwards']} backward" if row["backwards"] else ""
    )
    for title in TITLES:
        first = title == "average"
        yield {
            "detector": row["detector"], "column": title, "auroc": row[title],
            "low": row[f"{title}_low"], "high": row[f"{title}_high"], "n_tasks": row["tasks"],
            **{f"{key}{end}": row[f"{key}{end}"] if first else None
               for key in ("clean", "excess") for end in ("", "_low", "_high")},
            "mode": row["mode"], "cost": cost, "reason": row["reason"],
        }  # fmt: skip
