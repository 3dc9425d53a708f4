"""A run's folder and its record: settings, outcome, versions and machine.

Here are also the results that documents quote, which carry the same facts.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pyarrow as pa
import torch
from pydantic import computed_field

from offkey.errors import BadInput, Damaged, Mismatch, Unwritable, check
from offkey.storage.files import (
    clean_leftovers,
    is_leftover,
    make_folder,
    read_json,
    write_json,
    write_json_once,
)
from offkey.storage.records import Record, RecordType, read_record, refuse_other, validated
from offkey.storage.tables import read_table, write_table

__all__ = [
    "Attempt",
    "Failure",
    "RunFolder",
    "RunRecord",
    "Status",
    "commit",
    "machine",
    "read_run",
    "versions",
    "write_results",
]

Status = Literal["started", "success", "cancelled", "error"]

_INDEX = "run.json"
_FORMAT = 1
_PACKAGES = (
    "offkey",
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "peft",
    "pyarrow",
)


class Attempt(Record):
    """One attempt at a run.

    Attributes:
        started: when, in UTC.
        finished: when, in UTC; ``None`` where the process was killed or still runs.
        status: how it stands or ended.
    """

    started: str
    finished: str | None = None
    status: Status


class Failure(Record):
    """The error that ended a run: its class and its text."""

    type: str
    text: str


class RunRecord(Record):
    """What ``run.json`` holds, and ``started`` and ``finished``.

    Attributes:
        format: version of the file's layout.
        status: how the run stands; a process that was killed leaves ``started``.
        config: every setting that the results depend on.
        seed: the one seed, where the configuration has one.
        versions: of Python and the libraries, at the last attempt.
        machine: system, processor, cores, memory, accelerator, at the last attempt.
        created: when the folder was claimed, in UTC.
        attempts: when each attempt started and finished, and how.
        error: what ended the last attempt, where an error did.
    """

    format: int = _FORMAT
    status: Status
    config: dict[str, Any]
    seed: int | None = None
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
    created: str | None = None
    attempts: tuple[Attempt, ...]
    error: Failure | None = None

    @computed_field
    @property
    def started(self) -> str | None:
        """When the first attempt started, in UTC; ``None`` before it."""
        return self.attempts[0].started if self.attempts else None

    @computed_field
    @property
    def finished(self) -> str | None:
        """When the last attempt finished, in UTC; ``None`` before it did."""
        return self.attempts[-1].finished if self.attempts else None

    def begun(self) -> Self:
        """The record with a new attempt that starts now."""
        attempt = Attempt(started=_now(), status="started")
        return self.model_copy(
            update={
                "status": "started",
                "versions": versions(),
                "machine": machine(),
                "attempts": (*self.attempts, attempt),
                "error": None,
            }
        )

    def ended(self, error: BaseException | None) -> Self:
        """The record with its last attempt finished now, well or by this error."""
        status = _outcome(error)
        last = self.attempts[-1].model_copy(update={"finished": _now(), "status": status})
        failure = None
        if status == "error":
            failure = Failure(type=type(error).__name__, text=str(error))

        return self.model_copy(
            update={
                "status": status,
                "attempts": (*self.attempts[:-1], last),
                "error": failure,
            }
        )

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values; ``error`` only where there is one."""
        values = self.model_dump(mode="json")
        if self.error is None:
            del values["error"]

        return values


class RunFolder:
    """A folder that belongs to one run, used as a context that records the outcome.

    Use :meth:`open` to start or resume a run, and :func:`read_run` to read one.

    Attributes:
        path: the folder.
        record: what ``run.json`` holds.
    """

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path, self.record = path, record

    @classmethod
    def open(
        cls, path: str | PathLike[str], config: Mapping[str, Any], *, resume: bool = True
    ) -> Self:
        """Claims a new or empty folder, or resumes one with the same configuration.

        Args:
            path: the folder.
            config: every setting that the results depend on, as JSON values.
            resume: whether a folder that has this run already is accepted.

        Raises:
            Mismatch: the folder is of another configuration (names the setting), holds other
                files, or has this run and ``resume`` is false.
            Damaged: its ``run.json`` is broken.
            Unwritable: it cannot be written.
        """
        wanted = json.loads(json.dumps(dict(config)))
        folder = Path(path)
        if folder.is_dir() and not (folder / _INDEX).exists():
            _refuse_foreign(folder)
        make_folder(folder)
        clean_leftovers(folder)

        record = _new_record(wanted)
        if write_json_once(folder / _INDEX, record.as_json()):
            return cls(folder, record)

        stored = cls(folder, _read_index(folder))
        refuse_other(folder, stored.config, wanted)
        check(
            resume,
            "the folder already has this run",
            where=str(folder),
            mend="Give another or resume",
            error=Mismatch,
        )

        return stored

    @property
    def status(self) -> Status:
        """How the run stands."""
        return self.record.status

    @property
    def config(self) -> dict[str, Any]:
        """Every setting of the run."""
        return self.record.config

    def file(self, name: str) -> Path:
        """Path of a file or folder of the run."""
        return self.path / name

    def write_table(
        self,
        name: str,
        rows: Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | pa.Table,
        *,
        version: int = 1,
    ) -> None:
        """Writes rows or columns as ``NAME.parquet``, see :func:`write_table`."""
        write_table(self.file(f"{name}.parquet"), rows, version=version)

    def read_table(
        self,
        name: str,
        columns: Iterable[str] = (),
        *,
        leave_out: Sequence[str] = (),
        filters: list[tuple[str, str, Any]] | None = None,
        version: int = 1,
    ) -> pa.Table:
        """Reads ``NAME.parquet``, see :func:`read_table`."""
        path = self.file(f"{name}.parquet")

        return read_table(path, columns, leave_out=leave_out, filters=filters, version=version)

    def read_record(self, kind: type[RecordType], name: str) -> RecordType:
        """Reads ``NAME.json``, see :func:`read_record`."""
        return read_record(kind, self.file(f"{name}.json"))

    def __enter__(self) -> Self:
        self.record = self.record.begun()
        self.record.write(self.path / _INDEX)

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.record = self.record.ended(error)
        try:
            self.record.write(self.path / _INDEX)
        except Unwritable as unwritable:
            if error is None:
                raise
            error.add_note(f"The outcome could not be recorded: {unwritable}")


def read_run(path: str | PathLike[str], *, complete: bool = True) -> RunFolder:
    """A run's folder, to be read.

    Args:
        path: the folder.
        complete: whether a run that has not ended in success is refused.

    Raises:
        BadInput: there is no such folder, it has no ``run.json``, or the run is not complete.
        Damaged: ``run.json`` is broken.
        Mismatch: a newer version wrote it.
    """
    folder = Path(path)
    mend = "Give the folder that --out named"
    check(folder.is_dir(), "no such folder", where=str(folder), mend=mend, error=BadInput)
    run = RunFolder(folder, _read_index(folder))
    check(
        run.status == "success" or not complete,
        f"this run's status is {run.status!r}, so its tables are not complete",
        where=str(folder),
        mend="Give the same command and folder again to resume it",
        error=BadInput,
    )

    return run


def write_results(
    path: str | PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    command: str,
    seeds: Sequence[int],
    packages: Sequence[str] = (),
) -> None:
    """Writes results that documents quote: flat rows, and how they were made.

    Args:
        path: ``docs/results/NAME.json``.
        rows: flat objects; keys are words with units, intervals are ``low`` and ``high``.
        command: what a reader types to make them again.
        seeds: the seeds used.
        packages: further packages whose versions matter.

    Raises:
        BadInput: a row is not flat, or holds NaN or infinity.
    """
    for number, row in enumerate(rows):
        for key, value in row.items():
            flat = value is None or isinstance(value, str | bool | int | float)
            finite = not isinstance(value, float) or math.isfinite(value)
            what = f"{key} of row {number} is {value!r}, not a number, a text or null"
            check(flat and finite, what, where=str(path), error=BadInput)
    write_json(
        path,
        {
            "command": command,
            "commit": commit(Path(path).resolve().parent),
            "machine": machine(),
            "versions": versions(*packages),
            "seeds": list(seeds),
            "finished": _now(),
            "rows": [dict(row) for row in rows],
        },
    )


def versions(*more: str) -> dict[str, str]:
    """Versions of Python and of the installed libraries that results depend on."""
    known = {"python": platform.python_version()}
    for name in (*_PACKAGES, *more):
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue

    return known


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory (GiB) and accelerator; not the machine's name."""
    facts: dict[str, Any] = {
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()

    return facts


def commit(folder: Path) -> str | None:
    """Commit of the repository that a folder is or will be in, ``+`` where files were changed."""
    folder = next(place for place in (folder, *folder.resolve().parents) if place.is_dir())
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None

    return head + ("+" if changed else "")


def _new_record(config: dict[str, Any]) -> RunRecord:
    return RunRecord(
        status="started",
        config=config,
        seed=config.get("seed"),
        versions=versions(),
        machine=machine(),
        created=_now(),
        attempts=(),
    )


def _read_index(folder: Path) -> RunRecord:
    index = folder / _INDEX
    values = read_json(index, mend="Give the folder of a run, or another one to start anew")
    complete = {"format", "status", "config", "attempts"} <= set(values)
    place = {"where": str(index), "mend": "Give another folder"}
    check(complete, "the file was edited", error=Damaged, **place)
    if values["format"] > _FORMAT:
        raise Mismatch(
            f"a newer offkey wrote it, in format {values['format']}",
            where=str(index),
            mend="Update offkey",
        )

    return validated(RunRecord, values, **place)


def _refuse_foreign(folder: Path) -> None:
    foreign = sorted(path.name for path in folder.iterdir() if not is_leftover(path))
    if foreign and not (folder / _INDEX).exists():
        raise Mismatch(
            f"the folder holds other files, such as {foreign[0]!r}",
            where=str(folder),
            mend="Give a new or an empty folder",
        )


def _outcome(error: BaseException | None) -> Status:
    if error is None:
        return "success"
    if isinstance(error, KeyboardInterrupt):
        return "cancelled"

    return "error"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )

    return done.stdout.strip()


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()

    return platform.processor() or platform.machine()
