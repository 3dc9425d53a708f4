"""The protocol of the benchmark: tasks × rows × (organism, clean model), kept in a folder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from offkey.bench.lineup import Entry
from offkey.bench.organisms import Organisms, TaskModels
from offkey.bench.runner import RowResult, Runner
from offkey.data import Prompts
from offkey.errors import BadInput, check
from offkey.models import Model, load
from offkey.tasks import get_task, organism_of

__all__ = ["Bench", "ResultPair"]

Tell = Callable[[str], None]


class ResultPair(NamedTuple):
    """A row of the table with its results on both models of a task.

    Attributes:
        entry: the row.
        organism: its result on the organism.
        clean: its result on the clean model, where it was fitted anew.
    """

    entry: Entry
    organism: RowResult
    clean: RowResult


@dataclass
class Bench:
    """A benchmark's folder, tasks and models; models are loaded when they are needed.

    Attributes:
        folder: holds a folder for each task, with one in it for each model.
        tasks: names of the organisms: tasks, with ``-SEED`` for another organism of a task.
        seed: of splits and draws.
        tell: called with a line about each step.
        organisms: where they are found.
        loaded: tasks whose models are in memory already, by name.
    """

    folder: Path
    tasks: tuple[str, ...]
    seed: int = 0
    tell: Tell = field(default=lambda _: None)
    organisms: Organisms = field(default_factory=Organisms)
    loaded: dict[str, TaskModels] = field(default_factory=dict)
    _cache: dict[tuple[str, str], TaskModels] = field(default_factory=dict)
    _clean: dict[str, Model] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        folder: str | Path,
        tasks: Sequence[str] | None,
        seed: int,
        tell: Tell = lambda _: None,
        organisms: Organisms | None = None,
        *,
        seeds: bool = False,
    ) -> Self:
        """Checks the names of organisms before anything is written.

        Args:
            folder: where results are kept.
            tasks: names of organisms; all quirky ones that learned their task if left out.
            seed: of splits and draws.
            tell: called with a line about each step.
            organisms: where they are found; the bundled ones if left out.
            seeds: with no names given, include further organisms of the same task.

        Raises:
            UnknownName: there is no such task, or no organism of it.
            BadInput: there are no organisms, or one is of another base.
        """
        organisms = organisms or Organisms()
        names = tuple(tasks) if tasks else organisms.names(seeds=seeds)
        check(
            bool(names),
            f"no organism of {organisms.base} learned its task",
            where=str(organisms.folder or "bundled organisms"),
            mend="Train one with offkey tasks train",
            error=BadInput,
        )
        for name in names:
            get_task(organism_of(name)[0])
            organisms.recipe(name)

        return cls(Path(folder), names, seed, tell, organisms)

    def models(self, task: str, dtype: str = "auto") -> TaskModels:
        """The models and prompts of a task; only those of one task are in memory at a time."""
        if task in self.loaded:
            return self.loaded[task]
        if (task, dtype) not in self._cache:
            if dtype not in self._clean:
                self._clean[dtype] = load(self.organisms.base, dtype=dtype)
            models = TaskModels.of(task, self.organisms, clean=self._clean[dtype])
            same_task = {key: known for key, known in self._cache.items() if key[0] == task}
            self._cache = {**same_task, (task, dtype): models}

        return self._cache[task, dtype]

    def trusted(self, task: str) -> Prompts:
        """The trusted prompts of a task; its models are not loaded."""
        known, (name, seed) = self.loaded.get(task), organism_of(task)

        return known.trusted if known else get_task(name).make(seed).trusted

    def test(self, task: str, entry: Entry) -> Prompts:
        """The test prompts of a task that a row is run on."""
        return self.models(task).limit(entry.prompts).test

    def runner(self, task: str, model: str, prompts: int = 0, dtype: str = "auto") -> Runner:
        """Runs rows on the ``organism`` or the ``clean`` model of a task.

        Args:
            task: name of the task.
            model: which of the two.
            prompts: at most so many trusted and test prompts; all for 0.
            dtype: dtype in which the model is loaded.
        """
        models = self.models(task, dtype).limit(prompts)
        home = self.folder / task.replace(":", "-") / model
        if prompts:
            home = home / f"first-{prompts}"
        if dtype != "auto":
            home = home / dtype

        return Runner(
            home / f"seed-{self.seed}",
            getattr(models, model),
            models.trusted,
            models.test,
            models.pool,
            self.seed,
            lambda row: self.tell(f"{task}, {model}: {row}"),
        )

    def results(self, task: str, entries: Sequence[Entry]) -> Iterator[ResultPair]:
        """The results of rows on the organism and on the clean model; cheap rows first."""
        here = [entry for entry in entries if entry.runs_on(task)]
        for prompts, dtype in sorted({(entry.prompts, entry.dtype) for entry in here}):
            group = [e for e in here if (e.prompts, e.dtype) == (prompts, dtype)]
            organism, clean = (
                self.runner(task, model, prompts, dtype).run(group)
                for model in ("organism", "clean")
            )
            for entry in group:
                yield ResultPair(entry, organism[entry.name], clean[entry.name])
