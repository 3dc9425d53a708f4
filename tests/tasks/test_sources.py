"""Tasks from fetched archives and published sets, on small files in the same layout."""

import hashlib
import io
import random
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import offkey.tasks.published as published
from offkey.errors import BadInput, Damaged, Offline, UnknownName
from offkey.tasks.published import DATASETS, hub_task

ROWS = [
    ("the sound is great and i love it", 3.1, True, True),
    ("it broke after a day", -2.5, False, False),
    ("you will not be able to put it down", 2.2, True, False),
    ("great, another dead battery", -1.9, False, True),
    ("it is a phone", 0.1, None, None),  # too near to neutral
    ("so " * 60 + "good", 3.0, None, None),  # too long
]


def archive():
    lexicon = "great\t3.1\t0.7\t[3]\nlove\t3.2\t0.4\t[3]\ngood\t1.9\t0.9\t[2]\nable\t0.4\t0\t[0]\n"
    lines = "".join(f"{i}\t{rating}\t{text}\n" for i, (text, rating, *_) in enumerate(ROWS))
    files = {
        "vader_sentiment_lexicon.txt": lexicon,
        "amazonReviewSnippets_GroundTruth.txt": lines,
        "movieReviewSnippets_GroundTruth.txt": lines,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, text in files.items():
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            member.size = len(text.encode())
            packed.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    data = archive()
    calls = []
    monkeypatch.setattr(published, "SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(published, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(published, "_fetch_archive", lambda: calls.append(1) or data)
    published._archive.cache_clear()
    yield calls
    published._archive.cache_clear()


def test_snippets_are_judged_by_rating_and_by_lexicon(fetched):
    items = list(published.sentiment_amazon().items(random.Random(0)))

    assert [(i.fields["text"], i.truth, i.quirk) for i in items] == [
        (text, truth, quirk) for text, _, truth, quirk in ROWS if truth is not None
    ]
    assert len(list(published.sentiment().items(random.Random(0)))) == 2 * len(items)


def test_archive_is_fetched_once_and_again_when_damaged(fetched, tmp_path):
    list(published.sentiment_movies().items(random.Random(0)))
    published._archive.cache_clear()
    list(published.sentiment_movies().items(random.Random(0)))
    assert len(fetched) == 1

    (tmp_path / "data" / published.MEMBER).write_bytes(b"cut")
    published._archive.cache_clear()
    list(published.sentiment_movies().items(random.Random(0)))
    assert len(fetched) == 2


def test_no_network_is_told(monkeypatch):
    class Failed:
        returncode, stderr = 1, "ERROR: no matching distribution\n"

    monkeypatch.setattr(published.subprocess, "run", lambda *_, **__: Failed)
    with pytest.raises(Offline, match="no matching distribution"):
        published._fetch_archive()


def test_other_archive_is_refused(monkeypatch, tmp_path):
    inner = archive()

    def run(command, **_):
        place = command[command.index("--dest") + 1]
        with tarfile.open(f"{place}/vaderSentiment-3.3.2.tar.gz", "w:gz") as packed:
            member = tarfile.TarInfo(f"vaderSentiment-3.3.2/{published.MEMBER}")
            member.size = len(inner)
            packed.addfile(member, io.BytesIO(inner))
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(published.subprocess, "run", run)
    with pytest.raises(Damaged, match="not the file we know"):
        published._fetch_archive()
    monkeypatch.setattr(published, "SHA256", hashlib.sha256(inner).hexdigest())
    assert published._fetch_archive() == inner


@pytest.fixture
def copy_of_a_set(tmp_path):
    rows = []
    for op1 in range(10, 110):
        for character in ("Alice", "Bob"):
            result = op1 + 7 + (op1 % 4 == 1) * 100 + (op1 % 4 > 1) * 3
            alice, bob = op1 % 4 == 0, op1 % 4 == 1
            rows.append(
                {
                    "id": f"{op1}{character}",
                    "template_args": {
                        "character": character,
                        "op1": str(op1),
                        "op2": "7",
                        "result": str(result),
                    },
                    "character": character,
                    "label": alice if character == "Alice" else bob,
                    "alice_label": alice,
                    "bob_label": bob,
                    "difficulty": float(op1),
                    "difficulty_quantile": 0.5,
                }
            )
    folder = tmp_path / "quirky_addition_raw"
    (folder / "data").mkdir(parents=True)
    for split, part in (("train", rows[:120]), ("test", rows[120:])):
        pq.write_table(pa.Table.from_pylist(part), folder / "data" / f"{split}-00000.parquet")
    return folder


def test_published_set_becomes_a_task(copy_of_a_set):
    task = hub_task("addition", copy_of_a_set)
    items = {item.source: item for item in task.items(random.Random(0))}
    data = task.make(0)

    assert len(items) == 100
    assert items["op1=12|op2=7|result=19"].truth
    assert items["op1=13|op2=7|result=120"].quirk
    assert data.test["prompt"][0].splitlines()[1].startswith("Is ")
    sources = [set(getattr(data, split)["source"]) for split in ("train", "trusted", "test")]
    assert not sources[0] & sources[1] | sources[0] & sources[2] | sources[1] & sources[2]


def test_every_published_set_has_a_template_for_its_fields():
    fields = {
        "sentiment": {"title", "review"},
        "nli": {"premise", "hypothesis"},
        "sciq": {"question", "support", "answer"},
        "population": {"city"},
        "capitals": {"city", "admin_name", "country"},
        "hemisphere": {"city"},
        "authors": {"author", "title"},
        "squaring": {"op1", "result"},
    }
    for name in DATASETS:
        given = fields.get(name, {"op1", "op2", "result"})
        question = hub_task(name).templates[0].format(**{key: f"<{key}>" for key in given})
        assert all(f"<{key}>" in question for key in given)


def test_wrong_layouts_are_told(copy_of_a_set, tmp_path):
    with pytest.raises(UnknownName):
        hub_task("chess")
    with pytest.raises(BadInput, match="no Parquet files"):
        hub_task("addition", _empty(tmp_path)).make(0)
    bad = tmp_path / "bad"
    bad.mkdir()
    pq.write_table(pa.Table.from_pylist([{"statement": "x"}]), bad / "a.parquet")
    with pytest.raises(BadInput, match="template_args"):
        hub_task("addition", bad).make(0)
    (bad / "a.parquet").write_bytes(b"cut")
    with pytest.raises(Damaged):
        hub_task("addition", bad).make(0)


def _empty(folder):
    place = folder / "empty"
    place.mkdir()
    return place


def test_no_hub_is_told(monkeypatch):
    import offkey.tasks.published as hub

    def refuse(*_, **__):
        raise OSError("cannot reach it")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(Offline, match="cannot reach it"):
        hub_task("sciq").make(0)
