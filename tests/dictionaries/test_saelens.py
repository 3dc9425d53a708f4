"""The layout on disk, held against what SAELens 6.54 wrote."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from offkey.dictionaries import hook_of, load_dictionary, save_dictionary, site_of
from offkey.errors import BadInput, Damaged, Mismatch
from tests.dictionaries.test_dictionary import dictionary

COMMON = {
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "metadata",
}
FIELDS = {
    "standard": COMMON,
    "topk": COMMON | {"k", "rescale_acts_by_decoder_norm"},
    "jumprelu": COMMON,
}
"""Keys of ``cfg.json``, as SAELens 6.54.12 saves an inference model of each architecture."""
TENSORS = {
    "standard": {"W_enc": (6, 15), "b_enc": (15,), "W_dec": (15, 6), "b_dec": (6,)},
    "topk": {"W_enc": (6, 15), "b_enc": (15,), "W_dec": (15, 6), "b_dec": (6,)},
    "jumprelu": {
        "W_enc": (6, 15),
        "b_enc": (15,),
        "W_dec": (15, 6),
        "b_dec": (6,),
        "threshold": (15,),
    },
}
NAMES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}


def given(activation, **changes):
    made = dictionary(activation)
    fields = {
        **vars(made),
        "site": "resid_post.3",
        "model": "m",
        "about": {"text": "t"},
        **changes,
    }
    return type(made)(**fields)


@pytest.mark.parametrize("activation", NAMES)
def test_what_is_saved_has_the_recorded_layout(activation, tmp_path):
    save_dictionary(tmp_path, given(activation))
    config = json.loads((tmp_path / "cfg.json").read_text())
    name = NAMES[activation]
    assert config["architecture"] == name
    assert set(config) == FIELDS[name]
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (6, 15, "float32")
    assert config["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert {key: tuple(value.shape) for key, value in tensors.items()} == TENSORS[name]


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_then_loaded_is_the_same(activation, dtype, tmp_path):
    one = given(activation).to(dtype=dtype)
    save_dictionary(tmp_path, one)
    again = load_dictionary(tmp_path, dtype=dtype)
    x = torch.randn(5, 6)
    assert torch.equal(again.encode(x), one.encode(x))
    assert torch.equal(again(x), one(x))
    assert (again.site, again.model, again.about) == ("resid_post.3", "m", {"text": "t"})
    assert load_dictionary(tmp_path).dtype == torch.float32


def test_decoder_norms_are_folded_where_latents_are_ranked_by_them(tmp_path):
    one = given("topk")
    save_dictionary(tmp_path, one)
    change(tmp_path, lambda c: c.update(rescale_acts_by_decoder_norm=True))
    x = torch.randn(20, 6)
    z = one.hidden(x) * one.decoder.norm(dim=1)
    values, places = z.topk(4)
    expected = torch.zeros_like(z).scatter(1, places, values.relu())
    again = load_dictionary(tmp_path)
    torch.testing.assert_close(again.encode(x), expected)
    made = (expected / one.decoder.norm(dim=1)) @ one.decoder + one.decoder_bias
    torch.testing.assert_close(again(x), made)


def test_the_flat_layout_before_release_6_is_read(tmp_path):
    one = given("topk")
    save_dictionary(tmp_path, one)
    flat = {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
        "d_in": 6,
        "d_sae": 15,
        "dtype": "float32",
        "model_name": "gpt2-small",
        "hook_name": "blocks.7.hook_resid_pre",
        "normalize_activations": "none",
    }
    (tmp_path / "cfg.json").write_text(json.dumps(flat))
    again = load_dictionary(tmp_path)
    assert (again.site, again.model, again.k) == ("resid_pre.7", "gpt2-small", 4)
    x = torch.randn(5, 6)
    assert torch.equal(again.encode(x), one.encode(x))


@pytest.mark.parametrize(
    "site", ["embed", "final", "resid_post.0", "z.11", "mlp_out.2", "mlp_in.5"]
)
def test_sites_have_hooks_and_back(site):
    assert site_of(hook_of(site)) == site


def test_a_site_without_a_hook_keeps_its_name(tmp_path):
    save_dictionary(tmp_path, given("relu", site="module:layers.0:in"))
    assert load_dictionary(tmp_path).site == "module:layers.0:in"
    assert site_of("blocks.3.hook_strange") == ""


def change(folder, how):
    config = json.loads((folder / "cfg.json").read_text())
    how(config)
    (folder / "cfg.json").write_text(json.dumps(config))


def test_what_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no dictionary is there"):
        load_dictionary(tmp_path)
    save_dictionary(tmp_path, given("topk"))
    change(tmp_path, lambda c: c.update(normalize_activations="layer_norm"))
    with pytest.raises(Mismatch, match="layer_norm"):
        load_dictionary(tmp_path)
    change(tmp_path, lambda c: c.update(architecture="gated"))
    with pytest.raises(Mismatch, match="'gated' is not known"):
        load_dictionary(tmp_path)


def test_damage_is_found(tmp_path):
    save_dictionary(tmp_path, given("topk"))
    path = tmp_path / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "b_dec": tensors["b_dec"] + 1}, path)
    with pytest.raises(Damaged, match="checksum"):
        load_dictionary(tmp_path)
    save_file({name: value for name, value in tensors.items() if name != "b_enc"}, path)
    change(tmp_path, lambda c: c["metadata"].pop("weights_sha256"))
    with pytest.raises(Damaged, match="'b_enc' is missing"):
        load_dictionary(tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(Damaged, match="truncated"):
        load_dictionary(tmp_path)
