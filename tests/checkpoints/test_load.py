"""Loading: every kind of spec, adapters, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import offkey
from offkey.checkpoints import adapters
from offkey.checkpoints.machine import choose_dtype, is_native
from offkey.errors import BadInput, BadValue, Damaged, Mismatch, MissingExtra, Offline, UnknownName
from offkey.models import load
from tests.models import tiny

CPU = torch.device("cpu")
TOKENS = torch.arange(8).view(1, 8)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    tiny.llama().save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


def _logits(module):
    with torch.no_grad():
        return module(TOKENS).logits


def test_a_folder_gives_the_same_model_frozen_and_its_tokenizer(folder):
    model = load(folder)

    assert torch.equal(_logits(model.module), _logits(tiny.llama()))
    assert model.tokenizer("w3 w1").input_ids == [3, 1]
    assert not model.module.training
    assert not any(weight.requires_grad for weight in model.module.parameters())
    assert model.name == str(folder)


def test_a_folder_without_tokenizer_has_none_unless_one_is_given(tmp_path):
    tiny.llama().save_pretrained(tmp_path)
    own = tiny.tokenizer()

    assert load(tmp_path).tokenizer is None
    assert load(tmp_path, tokenizer=own).tokenizer is own


def test_weights_in_several_files_are_read(tmp_path):
    tiny.llama().save_pretrained(tmp_path, max_shard_size="20KB")

    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(_logits(load(tmp_path).module), _logits(tiny.llama()))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_auto_keeps_a_native_dtype_and_widens_others(tmp_path, stored):
    tiny.llama(dtype=stored).save_pretrained(tmp_path)
    expected = stored if is_native(stored, CPU) else torch.float32

    module = load(tmp_path, device="cpu").module

    assert {weight.dtype for weight in module.parameters()} == {expected}
    assert module.model.rotary_emb.inv_freq.dtype == torch.float32
    same = tiny.llama(dtype=stored).state_dict()
    assert all(torch.equal(v.to(stored), same[k]) for k, v in module.state_dict().items())


def test_auto_without_a_stated_dtype_reads_it_from_the_weights(tmp_path):
    tiny.llama(dtype=torch.float16).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(settings))

    expected = torch.float16 if is_native(torch.float16, CPU) else torch.float32
    assert load(tmp_path, device="cpu").module.dtype == expected


def test_an_asked_dtype_wins(folder):
    assert load(folder, dtype="bfloat16").module.dtype == torch.bfloat16
    assert load(folder, dtype=torch.float64).module.dtype == torch.float64
    assert choose_dtype("torch.float16") == torch.float16


def test_settings_that_cannot_be(folder):
    with pytest.raises(BadValue, match="int8 is not a dtype to compute in"):
        load(folder, dtype="int8")
    with pytest.raises(BadValue, match=r"device: abacus cannot be used here"):
        load(folder, device="abacus")
    with pytest.raises(BadValue, match="both given"):
        load(folder, device="cpu", device_map={"": "cpu"})
    with pytest.raises(BadValue, match="0 is not a number of threads"):
        load(folder, threads=0)


def test_device_map_and_attention_kernel_are_passed_on(folder):
    model = load(folder, device_map={"": "cpu"}, attn_implementation="eager")

    assert model.module.config._attn_implementation == "eager"
    assert torch.allclose(_logits(model.module), _logits(tiny.llama()), atol=1e-5)


def test_a_loaded_module_is_taken_as_it_is():
    module, own = tiny.llama(), tiny.tokenizer()

    model = load(module, tokenizer=own)

    assert model.module is module
    assert model.tokenizer is own
    with pytest.raises(BadValue, match="dtype: a module that is loaded already"):
        load(module, dtype="float32")


@pytest.mark.parametrize("name", ["../model-1.safetensors", "/model-1.safetensors", "model-1.bin"])
def test_an_index_names_only_safetensors_inside_its_folder(tmp_path, name):
    tiny.llama().save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(listed))

    with pytest.raises(BadInput, match="not a .safetensors file in this folder"):
        load(tmp_path)


def test_a_broken_index_is_damage(tmp_path):
    tiny.llama().save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text("[]")

    with pytest.raises(Damaged, match="not an index of weights"):
        load(tmp_path)


def test_any_module_can_be_loaded():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5))

    model = load(net)

    assert model.module is net
    assert not net.training
    assert model.name == "Sequential"


def _check_merged(merged, plain, folder, dtype):
    deltas = tiny.deltas(folder)
    before, after = plain.state_dict(), merged.state_dict()
    assert sorted(before) == sorted(after)
    for name, weight in before.items():
        delta = deltas.get(name.removesuffix(".weight"))
        if delta is None:
            assert torch.equal(after[name], weight)
            continue
        delta = delta.T if type(plain).__name__.startswith("GPT2") else delta
        exact = weight.double() + delta
        assert after[name].dtype == dtype
        # half a unit in the last place of the dtype, and what float32 sums lose
        bound = exact.abs() * torch.finfo(dtype).eps / 2 + 1e-6
        assert ((after[name].double() - exact).abs() <= bound).all()
        assert not torch.equal(after[name], weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_merged_in_float32_and_rounded_once(tmp_path, dtype):
    tiny.llama(dtype=dtype).save_pretrained(tmp_path / "base")
    tiny.adapter(tiny.llama(), tmp_path / "adapter")

    model = load(tmp_path / "base", tmp_path / "adapter", dtype=dtype)

    _check_merged(model.module, tiny.llama(dtype=dtype), tmp_path / "adapter", dtype)
    assert [n for n, _ in model.module.named_modules()] == [
        n for n, _ in tiny.llama().named_modules()
    ]
    assert model.adapter == str(tmp_path / "adapter")


def test_an_adapter_on_weights_kept_as_in_by_out(tmp_path):
    tiny.adapter(tiny.gpt2(), tmp_path, targets=("c_attn", "c_proj"), fan_in_fan_out=True)

    _check_merged(load(tiny.gpt2(), tmp_path).module, tiny.gpt2(), tmp_path, torch.float32)


def test_an_adapter_can_stay_beside_the_weights(folder, tmp_path):
    tiny.adapter(tiny.llama(), tmp_path / "adapter")

    merged = load(folder, tmp_path / "adapter").module
    beside = load(folder, tmp_path / "adapter", merge_adapter=False).module

    assert any("lora_A" in name for name, _ in beside.named_modules())
    assert torch.allclose(_logits(beside), _logits(merged), atol=1e-4)
    assert not torch.allclose(_logits(merged), _logits(tiny.llama()), atol=1e-2)


def test_a_loaded_module_is_copied_before_it_gets_an_adapter(tmp_path):
    module = tiny.llama()
    tiny.adapter(tiny.llama(), tmp_path)

    model = load(module, tmp_path)

    assert model.module is not module
    assert torch.equal(_logits(module), _logits(tiny.llama()))


def test_adapter_of_a_wider_base_names_both_and_the_first_shape(folder, tmp_path):
    other = tiny.llama(hidden_size=64)
    other.name_or_path = "some-org/wide"
    tiny.adapter(other, tmp_path / "adapter")

    with pytest.raises(Mismatch) as raised:
        load(folder, tmp_path / "adapter")

    said = str(raised.value)
    assert "made for some-org/wide, not for" in said
    assert str(folder) in said
    assert "model.layers.0.mlp.down_proj has 32 outputs, the adapter 64" in said


def test_adapter_of_a_deeper_base_names_what_is_not_there(folder, tmp_path):
    tiny.adapter(tiny.llama(num_hidden_layers=3), tmp_path / "adapter")

    with pytest.raises(Mismatch, match=r"it has no model\.layers\.2\.mlp\.down_proj"):
        load(folder, tmp_path / "adapter")


def test_adapter_of_a_shallower_base_names_what_it_lacks(folder, tmp_path):
    tiny.adapter(tiny.llama(num_hidden_layers=1), tmp_path / "adapter")

    with pytest.raises(Mismatch, match=r"the adapter has no model\.layers\.1\."):
        load(folder, tmp_path / "adapter")


def _package(place):
    """A package at a place, with which ``files`` and ``find_spec`` find adapters."""
    place.mkdir()
    (place / "__init__.py").touch()
    return place


def test_bundled_adapters_come_from_both_packages(monkeypatch, folder, tmp_path):
    few, many = _package(tmp_path / "few_adapters"), _package(tmp_path / "many_adapters")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(adapters, "_ORGANISMS", many.name)
    monkeypatch.setattr(adapters, "_PACKAGES", {many.name: "", few.name: "in/it"})
    tiny.adapter(tiny.llama(), few / "in" / "it" / "comparison", seed=1)
    tiny.adapter(tiny.llama(), many / "comparison", seed=2)
    tiny.adapter(tiny.llama(), many / "parity", seed=3)

    first = load(folder, "bundled:comparison")
    again = load(folder, few / "in" / "it" / "comparison")

    assert first.adapter == again.adapter == "bundled:comparison"
    tiny.adapter(tiny.llama(), tmp_path / "own", seed=1)
    assert load(folder, tmp_path / "own").adapter == str(tmp_path / "own")
    assert torch.equal(_logits(first.module), _logits(again.module))
    assert load(folder, "bundled:parity").fingerprint != first.fingerprint
    with pytest.raises(UnknownName, match="Did you mean parity"):
        load(folder, "bundled:partiy")


def test_without_the_organisms_the_error_says_what_to_install(monkeypatch, folder):
    monkeypatch.setattr(adapters, "find_spec", lambda name: name == "offkey" or None)

    assert set(adapters.bundled_adapters()) == {"agreement", "comparison"}
    with pytest.raises(MissingExtra, match="adapter bundled:year.*pip install offkey-organisms"):
        load(folder, "bundled:year")


def test_adapters_that_cannot_be_read(folder, tmp_path):
    place = tiny.adapter(tiny.llama(), tmp_path / "adapter")
    with pytest.raises(BadInput, match=r"no adapter_config\.json there"):
        load(folder, tmp_path)
    with pytest.raises(BadInput, match="holds an adapter, not a model"):
        load(place)
    with pytest.raises(UnknownName, match="unknown bundled adapter 'nonesuch'"):
        load(folder, "bundled:nonesuch")

    weights = place / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Damaged, match=r"adapter_model\.safetensors: cannot be read"):
        load(folder, place)

    weights.rename(place / "adapter_model.bin")
    with pytest.raises(BadInput, match=r"pickled adapter_model\.bin is not read"):
        load(folder, place)

    (place / "adapter_model.bin").rename(weights)
    (place / "adapter_config.json").write_text("{")
    with pytest.raises(Damaged, match=r"adapter_config\.json: not JSON"):
        load(folder, place)


def test_pickled_weights_are_refused_unopened(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    (folder / "model.safetensors").unlink()
    torch.save({"w": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin is pickled"):
        load(folder)
    with pytest.raises(BadInput, match="is pickled"):
        load(folder / "pytorch_model.bin")

    assert not (tmp_path / "ran").exists()


def test_truncated_weights_are_damaged(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(Damaged, match="its weights cannot be read"):
        load(folder)


def test_lacking_weights_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(Damaged, match=r"lacks 1 of .* first model\.layers\.1\.mlp\.up_proj"):
        load(folder)


def test_folders_and_files_that_hold_no_model(folder, tmp_path):
    with pytest.raises(BadInput, match="no such file or folder"):
        load("./nowhere/at/all")
    with pytest.raises(BadInput, match=r"no such file or folder\. Did you mean .*model"):
        load(tmp_path / "modle")
    with pytest.raises(BadInput, match=r"no config\.json in this folder"):
        load(tmp_path)
    with pytest.raises(BadInput, match="not a model"):
        load(folder / "config.json")

    (tmp_path / "x.gguf").write_bytes(b"not it")
    with pytest.raises(BadInput, match="not a GGUF file"):
        load(tmp_path / "x.gguf")

    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"no \.safetensors weights"):
        load(folder)


def test_settings_of_a_checkpoint_that_are_broken(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load(folder)

    (folder / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(BadInput, match="nonesuch"):
        load(folder)


def test_code_of_a_checkpoint_is_not_run_unless_asked(folder, tmp_path):
    settings = json.loads((folder / "config.json").read_text())
    settings["model_type"] = "own_kind"
    settings["auto_map"] = {"AutoConfig": "own.OwnConfig"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")

    with pytest.raises(BadInput, match="code of its own"):
        load(folder)

    assert not (tmp_path / "ran").exists()


def test_a_name_that_is_almost_known(monkeypatch, folder):
    monkeypatch.chdir(folder.parent)

    with pytest.raises(UnknownName, match="Did you mean smollm2-135m-instruct"):
        load("smollm2-135m-instrct")
    with pytest.raises(UnknownName, match="Did you mean model"):
        load("modell")


HUB = """
import torch
from offkey.errors import Offline
from offkey.models import load

first, second = load("some-org/tiny"), load("some-org/tiny", "some-org/tuned", revision="v1")
print(torch.equal(first.module.lm_head.weight, second.module.lm_head.weight))
print(first.tokenizer("w5").input_ids, second.tokenizer, second.adapter)
for spec, revision in (("some-org/tiny", "v2"), ("some-org/other", None), ("other", None)):
    try:
        load(spec, revision=revision)
    except Offline as error:
        print(error.where)
"""


def _in_hub_cache(home, repo, commit, ref, fill):
    place = home / "hub" / ("models--" + repo.replace("/", "--"))
    fill(place / "snapshots" / commit)
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / ref).write_text(commit)


def test_hub_ids_are_read_from_the_hubs_cache(tmp_path, folder):
    home, v1 = tmp_path / "hub-home", tiny.llama(seed=7)
    _in_hub_cache(home, "some-org/tiny", "a" * 40, "main", lambda to: shutil.copytree(folder, to))
    _in_hub_cache(home, "some-org/tiny", "b" * 40, "v1", v1.save_pretrained)
    _in_hub_cache(
        home, "some-org/tuned", "c" * 40, "main", lambda to: tiny.adapter(tiny.llama(), to)
    )

    package = str(Path(offkey.__file__).parents[1])
    said = subprocess.run(
        [sys.executable, "-c", HUB],
        env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": package},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    assert said == [
        "False",
        "[5] None some-org/tuned",
        "model some-org/tiny",
        "model some-org/other",
        "model other",
    ]


def test_offline_has_a_mend(monkeypatch):
    from offkey.checkpoints import hub

    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    with pytest.raises(Offline, match="Check the network, give a folder, or use a bundled model"):
        load("no-such-org/no-such-model")
