"""Fingerprints: the same for the same weights, another for any other."""

import copy
import json
import time

import pytest
import torch
from torch import nn

from offkey.checkpoints import fingerprints
from offkey.checkpoints.fingerprints import fingerprint
from offkey.models import load
from tests.models import tiny


def _slow(module):
    """The definition, without chunks, threads or shared digests."""
    import hashlib

    config = module.config.to_diff_dict()
    kept = {
        key: value
        for key, value in config.items()
        if key not in fingerprints._NOT_COMPUTED_WITH and not key.endswith("_token_id")
    }
    text = json.dumps(kept, sort_keys=True)
    whole = hashlib.sha256(f"offkey fingerprint 1\n{text}\n".encode())
    for name, value in sorted(module.state_dict().items()):
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        data = value.contiguous().view(torch.uint8).numpy().tobytes()
        for start in range(0, len(data), 1 << 25):
            whole.update(hashlib.sha256(data[start : start + (1 << 25)]).digest())
    return whole.hexdigest()


def test_equals_the_slow_one(monkeypatch):
    module = tiny.llama(tie_word_embeddings=True)
    assert fingerprint(module) == _slow(module)


def test_chunks_are_cut_where_the_definition_cuts_them():
    big = nn.Linear(3000, 3000, bias=False)  # 36 MB: two chunks
    other = copy.deepcopy(big)
    with torch.no_grad():
        other.weight[-1, -1] += 1

    assert len(fingerprints._chunks(big.weight)) == 2
    assert fingerprint(big) != fingerprint(other)


def test_the_same_however_it_is_loaded(tmp_path):
    module = tiny.llama()
    module.save_pretrained(tmp_path / "whole")
    module.save_pretrained(tmp_path / "parts", max_shard_size="20KB")

    prints = {
        fingerprint(module),
        fingerprint(copy.deepcopy(module)),
        load(tmp_path / "whole").fingerprint,
        load(tmp_path / "parts").fingerprint,
        load(tmp_path / "whole", attn_implementation="eager").fingerprint,
    }

    assert len(prints) == 1
    assert len(prints.pop()) == 64


def _changed(change):
    module = tiny.llama()
    with torch.no_grad():
        change(module)
    return module


def _swap_rows(module):
    weight = module.model.layers[0].mlp.up_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]]


CHANGES = {
    "one weight": lambda m: m.model.norm.weight[0].add_(1e-6),
    "behind autograd's back": lambda m: m.lm_head.weight.data[3, 4].mul_(-1),
    "two rows swapped": _swap_rows,
    "dtype": lambda m: m.to(torch.bfloat16),
    "a setting": lambda m: setattr(m.config, "rms_norm_eps", 1e-3),
    "another init": lambda m: m.load_state_dict(tiny.llama(seed=5).state_dict()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_another(change):
    module = tiny.llama()
    before = fingerprint(module)

    with torch.no_grad():
        CHANGES[change](module)

    assert fingerprint(module) != before
    assert fingerprint(module) == fingerprint(_changed(CHANGES[change]))


def test_every_single_bit_is_glanced_at():
    weight = torch.randn(70, 33)
    seen = {fingerprints._sum(weight)}
    for place in range(0, weight.numel(), 37):
        other = weight.clone().view(torch.int32)
        other.view(-1)[place] ^= 1
        seen.add(fingerprints._sum(other))
    assert len(seen) == 1 + len(range(0, weight.numel(), 37))


def test_a_plain_module_counts_its_make_and_its_buffers():
    torch.manual_seed(0)
    relu = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.BatchNorm1d(3))
    gelu = nn.Sequential(relu[0], nn.GELU(), relu[2])
    before = fingerprint(relu)
    assert before != fingerprint(gelu)

    relu[2].running_mean += 1
    assert fingerprint(relu) != before


def test_kept_by_file_and_made_again_when_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path / "cache"))
    hashed = []
    digest = fingerprints._digest
    monkeypatch.setattr(fingerprints, "_digest", lambda *a: hashed.append(1) or digest(*a))
    tiny.llama().save_pretrained(tmp_path / "model")

    first = load(tmp_path / "model").fingerprint
    again = load(tmp_path / "model")
    assert again.fingerprint == first
    assert len(hashed) == 1

    with torch.no_grad():
        again.module.lm_head.weight[0, 0] += 1
    assert fingerprint(again.module) != first
    assert len(hashed) == 2
    assert load(tmp_path / "model").fingerprint == first

    tiny.llama(seed=1).save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").fingerprint != first


def test_a_cache_that_is_broken_or_unwritable_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path / "cache"))
    tiny.llama().save_pretrained(tmp_path / "model")
    first = load(tmp_path / "model").fingerprint

    (kept,) = (tmp_path / "cache" / "fingerprints").iterdir()
    kept.write_text("{")
    assert load(tmp_path / "model").fingerprint == first

    monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path / "model" / "config.json"))
    assert load(tmp_path / "model").fingerprint == first


@pytest.mark.real
def test_bundled_model_takes_less_than_half_a_second(bundled):
    tensors = fingerprints._tensors(bundled.module)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        fingerprints._digest(tensors, "")
        times.append(time.perf_counter() - start)
    # 270 MB; five times what two idle cores need, since others may keep them busy
    assert min(times) < 1.0
