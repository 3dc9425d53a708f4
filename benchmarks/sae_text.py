"""Text to train dictionaries on, without a hub: documentation and word books of Debian 12.

The packages are downloaded by ``apt-get download`` and unpacked without being installed; their
checksums are known, so that everybody trains on the same text. It is used for training only and
is not passed on. ::

    python -m benchmarks.sae_text --out out/sae/text.jsonl
"""

import argparse
import gzip
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from offkey.data import Prompts
from offkey.errors import Damaged, Offline
from offkey.storage import sha256_file

__all__ = ["SOURCES", "Source", "pieces", "text_of", "texts"]

PIECE = 4000
HELD_OUT = 20


@dataclass(frozen=True)
class Source:
    """One package and what of it is read.

    Attributes:
        package: its name.
        version: its version.
        sha256: checksum of the downloaded file.
        files: what is read, as a glob from the root.
        read: makes plain text of a file's text.
        characters: how much is taken at most, in pieces spread evenly over it.
    """

    package: str
    version: str
    sha256: str
    files: str
    read: Callable[[str], str]
    characters: int


def prose(text: str) -> str:
    """Paragraphs on one line each, without rules and marks of layout."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text.replace("\r", ""))
    blocks = re.split(r"\n\s*\n", text)
    joined = (re.sub(r"\s+", " ", re.sub(r"[-=~*_]{4,}", " ", block)).strip() for block in blocks)

    return "\n\n".join(block for block in joined if block)


def plain(text: str) -> str:
    """Lines as they are, without trailing blanks and repeated empty lines."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text)

    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def dictionary(text: str) -> str:
    """Entries of a dictd file: paragraphs, without link braces and source marks."""
    text = re.sub(r"\[(1913 Webster|WordNet 1\.5|PJC|Webster 1913 Suppl\.|[^\]]*File)\]", "", text)
    text = re.sub(r"\\[^\\\n]*\\", "", text)

    return prose(text.replace("{", "").replace("}", ""))


def glosses(text: str) -> str:
    """``words: definition`` for each synset of a WordNet data file."""
    entries = []
    for line in text.splitlines():
        head, bar, gloss = line.partition(" | ")
        fields = head.split()
        if line.startswith("  ") or not bar:
            continue
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        names = ", ".join(re.sub(r"\(.*\)", "", word).replace("_", " ") for word in words)
        entries.append(f"{names}: {gloss.strip()}")

    return "\n\n".join("\n".join(entries[n : n + 8]) for n in range(0, len(entries), 8))


def sayings(text: str) -> str:
    """The entries of a fortune file, a paragraph each."""
    return "\n\n".join(prose(entry).replace("\n\n", "\n") for entry in text.split("\n%\n"))


SOURCES = (
    Source(
        "wordnet-base",
        "1:3.0-37",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        "usr/share/wordnet/data.*",
        glosses,
        350_000,
    ),
    Source(
        "dict-gcide",
        "0.48.5+nmu2",
        "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
        "usr/share/dictd/gcide.dict.dz",
        dictionary,
        200_000,
    ),
    Source(
        "dict-foldoc",
        "20230119-1",
        "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
        "usr/share/dictd/foldoc.dict.dz",
        dictionary,
        150_000,
    ),
    Source(
        "fortunes",
        "1:1.99.1-7.3",
        "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5",
        "usr/share/games/fortunes/*[a-z]",
        sayings,
        350_000,
    ),
    Source(
        "jargon-text",
        "4.4.7-4.1",
        "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb",
        "usr/share/doc/jargon-text/jargon.txt.gz",
        prose,
        100_000,
    ),
    Source(
        "debian-reference-en",
        "2.100",
        "9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f",
        "usr/share/debian-reference/debian-reference.en.txt.gz",
        prose,
        100_000,
    ),
    Source(
        "developers-reference",
        "12.18",
        "0dba82f6fa16e373f2a84ad07e7971aa9264ad2e7d2ae46b37edbc9c5fd57e2e",
        "usr/share/developers-reference/developers-reference.txt.gz",
        prose,
        60_000,
    ),
    Source(
        "debian-policy",
        "4.6.2.0",
        "ef9d01b625c3b87c3a845c2cd1b66f1a16e9240b2b9e5bee53472a00e8457a39",
        "usr/share/doc/debian-policy/policy.txt.gz",
        prose,
        60_000,
    ),
    Source(
        "debian-faq",
        "11.1",
        "427426e0cfa6888622fc1d72631071cb4b5a1f86ccde722e7820bcef284de5d0",
        "usr/share/doc/debian/FAQ/debian-faq.en.txt.gz",
        prose,
        50_000,
    ),
    Source(
        "git-doc",
        "1:2.39.5-0+deb12u3",
        "3c89668a11053a6bafade3de1f611f4613db31e082af63f43d8c5b69ad8795ec",
        "usr/share/doc/git-doc/*.txt",
        plain,
        80_000,
    ),
    Source(
        "perl-doc",
        "5.36.0-7+deb12u4",
        "f4269cff4576d6f02a6756df842988e58451c7e945b08517dd235531b24e48f8",
        "usr/share/perl/5.36.0/pod/perl[a-z]*.pod",
        plain,
        80_000,
    ),
)


def main() -> None:
    """Writes the texts as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    texts().to_jsonl(parser.parse_args().out)


def texts(sources: Iterable[Source] = SOURCES) -> Prompts:
    """Pieces of every source in random order, with ``package`` and whether ``held_out``."""
    rows = []
    for source in sources:
        with tempfile.TemporaryDirectory(prefix="offkey-") as place:
            text = text_of(source, fetched(source, Path(place)))
        for number, piece in enumerate(pieces(text, source.characters)):
            name = f"{source.package}:{number}"
            digest = hashlib.sha256(name.encode()).digest()
            rows.append((digest, name, piece, source.package, int(digest[0] % HELD_OUT == 0)))
    _, ids, prompts, packages, held_out = zip(*sorted(rows), strict=True)

    return Prompts({"id": ids, "prompt": prompts, "package": packages, "held_out": held_out})


def fetched(source: Source, place: Path) -> Path:
    """Downloads a package, checks it and unpacks it; the folder it is unpacked in.

    Raises:
        Offline: apt-get could not fetch it.
        Damaged: it is not the file we know.
    """
    wanted = f"{source.package}={source.version}"
    command = ["apt-get", "download", "-q", wanted]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    packages = list(place.glob("*.deb"))
    if done.returncode or len(packages) != 1:
        message = (done.stderr.strip().splitlines() or ["apt-get said nothing"])[-1]
        raise Offline(
            f"apt-get could not fetch {wanted} ({message})",
            where="text",
            mend="Run apt-get update on Debian 12, or use its snapshot",
        )
    if sha256_file(packages[0]) != source.sha256:
        raise Damaged(f"{packages[0].name} is not the file we know", where="text")
    folder = place / "unpacked"
    folder.mkdir()
    subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(folder)], check=True)

    return folder


def text_of(source: Source, folder: Path) -> str:
    """The plain text of an unpacked source."""
    texts = []
    for path in sorted(folder.glob(source.files)):
        if path.is_symlink() or not path.is_file():
            continue
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        texts.append(source.read(raw.decode("utf-8", errors="ignore")))

    return "\n\n".join(texts)


def pieces(text: str, characters: int, size: int = PIECE) -> list[str]:
    """Pieces of about ``size`` characters, cut between paragraphs and spread over the text."""
    parts, part = [], ""
    for paragraph in text.split("\n\n"):
        if part and len(part) + len(paragraph) > size:
            parts.append(part)
            part = ""
        part = f"{part}\n\n{paragraph}" if part else paragraph
    parts.append(part)
    count = min(len(parts), -(-characters // size))

    return [parts[n * len(parts) // count] for n in range(count)]


if __name__ == "__main__":
    main()
