"""Any PyOD detector as a score, by name, such as ``pyod:LOF``."""

import inspect
import random
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, MissingExtra, NonFinite, UnknownName, nearest
from offkey.scores.score import TensorScore, check_number, largest_dependence
from offkey.stats import Sample, Statistic

__all__ = ["PyOD", "pyod_names", "pyod_score"]

_PROBES = 16
"""Rows on which a detector must show that it scores each by itself."""

_ROUNDING = 1e-4
"""Largest share by which rounding may move a score; some detectors compute in float32."""

_OTHER_INPUT = re.compile(r"pyg_|ts_|audio_|base|embedding|so_gaal_new")
"""Modules whose detectors take graphs, series, sound or text, or that hold none."""

_DETECTOR = re.compile(r"^class (\w+)\(Base(?:DeepLearning)?Detector\)", re.MULTILINE)


class PyOD(TensorScore):
    """Scores a row by a PyOD detector's ``decision_function``.

    Higher is more anomalous. In the detector's own units. The trusted rows and the settings are
    kept, and the detector is fitted anew from them, with the same seed, when it is loaded:
    nothing is pickled.

    Args:
        rows: how many trusted rows are kept at most; a uniform sample where there are more.
        settings: the detector's own, as plain values.

    Raises:
        BadValue: a setting that the detector does not have; a detector that does not learn from
            trusted rows alone, or in which a row's score depends on the rows scored with it.
        MissingExtra: PyOD, or what the detector needs besides, is not installed.
        NotEnoughData: fewer than two trusted rows.

    References:
        Chen et al., 2024: PyOD 2. https://arxiv.org/abs/2412.12154
    """

    name = "pyod"
    detector: ClassVar[type]
    rows_: Float[Tensor, "m d"]
    seed_: Tensor

    def __init__(self, rows: int = 5000, **settings: Any) -> None:
        check_number(f"{self.name} rows", rows, least=2, whole=True)
        own = ["rows", *inspect.signature(self.detector).parameters]
        for setting in settings:
            if setting not in own:
                close = nearest(setting, own) or own
                raise BadValue(
                    f"unknown setting {setting!r}",
                    where=self.name,
                    mend="It has " + ", ".join(close),
                )
        self.rows, self.own_settings = rows, settings

    def settings(self) -> dict[str, Any]:
        """How many rows are kept, and the detector's own settings."""
        return {"rows": self.rows} | self.own_settings

    def statistic(self) -> Statistic:
        """A uniform sample of the trusted rows."""
        return Sample(self.rows)

    def finish(
        self, trusted: Statistic, pool: Statistic | None, generator: torch.Generator
    ) -> Self:
        """Fits the detector and proves that it scores each row by itself."""
        assert isinstance(trusted, Sample)
        self._need(trusted, 2)
        self.rows_ = trusted.rows.clone()
        self.seed_ = torch.randint(2**31 - 1, (), generator=generator)
        self._fit()
        if not np.isfinite(self._fitted.decision_scores_).all():
            raise BadValue(
                "it scores trusted rows with NaN or infinity",
                where=self.name,
                mend="Leave out sites where trusted rows do not vary, or use another score",
            )
        moved = largest_dependence(self, self.rows_[:_PROBES])
        if not moved <= _ROUNDING:
            raise BadValue(
                f"a row's score moves by {moved:.2g} of its size with the rows scored beside it",
                where=self.name,
                mend="Use a score that keeps rows apart, such as lof or isolation-forest",
            )

        return self

    def _width(self) -> int:
        return int(self.rows_.shape[1])

    def _score(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        with self._guarded("scoring"):
            scores = np.array(self._fitted.decision_function(x.numpy()), dtype=np.float64).ravel()
        if not np.isfinite(scores).all():
            raise NonFinite(
                "a row was scored with NaN or infinity", where=self.name, mend="Use another score"
            )

        return torch.from_numpy(scores)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The score that :meth:`state` described, fitted anew."""
        score = super().from_state(state)
        if "rows_" in state:
            score._fit()

        return score

    def _fit(self) -> None:
        own = inspect.signature(self.detector).parameters
        chosen = {"random_state": int(self.seed_), "verbose": 0, "n_jobs": 1}
        quiet = {name: value for name, value in chosen.items() if name in own}
        with self._guarded("fitting"):
            self._fitted: Any = self.detector(**(quiet | self.own_settings))
            self._fitted.fit(self.rows_.to(torch.float64).numpy())

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Seeds the detector, sends its prints to standard error, and explains its errors."""
        try:
            with _seeded(int(self.seed_)), redirect_stdout(sys.stderr):
                yield
        except ImportError as error:
            raise MissingExtra(str(error).splitlines()[0], where=self.name) from error
        except Exception as error:  # whatever a library raises, the user needs the reason
            raise BadValue(
                f"{doing} failed with {len(self.rows_)} trusted rows of width {self._width()} "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]})",
                where=self.name,
                mend="Change its settings, or use another score",
            ) from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators, from which some detectors draw, and gives them back."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - PyOD draws there
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@cache
def _homes() -> dict[str, str]:
    """The module of each detector, read from PyOD's sources without importing them."""
    spec = find_spec("pyod")
    if spec is None or spec.submodule_search_locations is None:
        raise MissingExtra(
            "PyOD is not installed", where="pyod", mend="pip install 'offkey[pyod]'"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "models"

    return {
        name: f"pyod.models.{path.stem}"
        for path in sorted(folder.glob("*.py"))
        if not _OTHER_INPUT.match(path.stem)
        for name in _DETECTOR.findall(path.read_text(encoding="utf-8"))
    }


def pyod_names() -> list[str]:
    """Names of the PyOD detectors that take vectors, such as ``pyod:LOF``.

    Raises:
        MissingExtra: PyOD is not installed.
    """
    return [f"pyod:{name}" for name in sorted(_homes())]


@cache
def pyod_score(name: str) -> type[PyOD]:
    """The score class of a PyOD detector.

    Args:
        name: such as ``"pyod:LOF"``.

    Raises:
        UnknownName: PyOD has no such detector for vectors.
        MissingExtra: PyOD, or what the detector needs besides, is not installed.
    """
    home = _homes().get(name.removeprefix("pyod:"))
    if home is None:
        raise UnknownName("score", name, pyod_names())
    try:
        detector = getattr(import_module(home), name.removeprefix("pyod:"))
    except ImportError as error:
        raise MissingExtra(
            f"it needs {error.name or 'a library'}, which is not installed",
            where=name,
            mend=f"Run pip install {error.name}",
        ) from error

    return type(f"PyOD{detector.__name__}", (PyOD,), {"name": name, "detector": detector})
