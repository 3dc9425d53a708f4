import json
import time

import pytest
import torch

from offkey.errors import BadInput, Damaged, Mismatch
from offkey.storage import load_artefact, load_state, save_artefact, save_state

pytestmark = pytest.mark.forks

SETTINGS = {"alpha": 0.05, "sites": ["embed"]}
TENSORS = {"mean": torch.arange(4.0, dtype=torch.float64), "ids": torch.arange(3)}


@pytest.fixture
def folder(tmp_path):
    save_artefact(tmp_path / "detector", SETTINGS, TENSORS, kind="detector", version=2)
    return tmp_path / "detector"


def tensors_of(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def message(folder, kind="detector", version=2):
    with pytest.raises((BadInput, Damaged, Mismatch)) as caught:
        load_artefact(folder, kind, version=version)
    return f"{type(caught.value).__name__} {caught.value}"


def test_load_undoes_save(folder):
    found = load_artefact(folder, "detector", version=3)

    assert found.settings == SETTINGS
    assert found.version == 2
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_the_same_content_gives_the_same_bytes(folder, tmp_path):
    save_artefact(tmp_path / "again", SETTINGS, TENSORS, kind="detector", version=2)

    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_saving_over_replaces(folder):
    save_artefact(folder, {"alpha": 1}, {}, kind="detector", version=2)

    assert load_artefact(folder, "detector", version=2).settings == {"alpha": 1}
    assert len(list(folder.iterdir())) == 2


def test_missing_folder_and_files(folder, tmp_path):
    mend = "Save the detector again, or copy the folder anew."
    assert message(tmp_path / "no") == (
        f"BadInput {tmp_path / 'no'}: no such folder. Give that of a saved detector."
    )
    path = tensors_of(folder)
    path.unlink()
    assert message(folder) == f"Damaged {path}: the file is missing. {mend}"
    (folder / "artefact.json").unlink()
    assert message(folder) == f"Damaged {folder / 'artefact.json'}: the file is missing. {mend}"


def test_truncated_and_edited_tensors(folder):
    mend = "Save the detector again, or copy the folder anew."
    path = tensors_of(folder)
    data = path.read_bytes()

    path.write_bytes(data[:-5])
    assert message(folder) == (
        f"Damaged {path}: the file has {len(data) - 5} of {len(data)} bytes. {mend}"
    )
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert message(folder) == (
        f"Damaged {path}: the file was edited: its checksum differs. {mend}"
    )


def test_truncated_and_edited_index(folder):
    mend = "Save the detector again, or copy the folder anew."
    path = folder / "artefact.json"
    text = path.read_text()

    for broken in (text[:50], "[]", "", "\x80"):
        path.write_text(broken, encoding="latin-1")
        assert message(folder) == f"Damaged {path}: the file was truncated or edited. {mend}"
    path.write_text(text.replace("0.05", "0.5"))
    assert message(folder) == (
        f"Damaged {path}: the file was edited: its checksum differs. {mend}"
    )
    path.write_text(json.dumps(json.loads(text)))
    assert load_artefact(folder, "detector", version=2).settings == SETTINGS, "layout is free"


def test_other_kind_and_newer_version(folder):
    assert message(folder, kind="probe") == (
        f"Mismatch {folder}: this is a saved detector, not a probe. Give the folder of a probe."
    )
    assert message(folder, version=1) == (
        f"Mismatch {folder}: a newer offkey saved this detector: version 2, known is 1. Update "
        "offkey."
    )


def test_every_single_changed_byte_is_found(folder):
    path = tensors_of(folder)
    data = path.read_bytes()
    for i in range(0, len(data), 7):
        path.write_bytes(data[:i] + bytes([data[i] ^ 0x10]) + data[i + 1 :])
        assert message(folder).startswith("Damaged")


def saver(pipe, path):
    pipe.send("ready")
    number = 0
    while True:
        number += 1
        save_state(path, {"n": number, "t": torch.full((1000,), number)}, kind="thing")


@pytest.mark.parametrize("wait", [0.0, 0.01, 0.02, 0.05, 0.1])
def test_kill_while_saving_over_leaves_one_whole(tmp_path, fork, wait):
    save_state(tmp_path, {"n": 0, "t": torch.zeros(1000, dtype=torch.int64)}, kind="thing")
    worker = fork(saver, tmp_path)
    assert worker.heard() == "ready"
    time.sleep(wait)
    worker.kill()

    state = load_state(tmp_path, "thing")
    assert (state["t"] == state["n"]).all()
    save_state(tmp_path, {"n": -1}, kind="thing")
    assert load_state(tmp_path, "thing") == {"n": -1}
    assert len(list(tmp_path.iterdir())) == 2
