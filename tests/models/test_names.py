import pytest
import torch
from torch import nn

from offkey.errors import BadValue, UnknownName, UnmappedModel
from offkey.models import Model, Site
from offkey.models.sites import block_numbers
from offkey.testing.random_models import random_model, random_module


@pytest.fixture(scope="module")
def model():
    return random_model("gemma3")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("resid_post.*", "resid_post.0 resid_post.1 resid_post.2 resid_post.3"),
        ("resid_post.1-2", "resid_post.1 resid_post.2"),
        ("resid_post.::2", "resid_post.0 resid_post.2"),
        ("resid_post.-2:", "resid_post.2 resid_post.3"),
        ("resid_post.later", "resid_post.2 resid_post.3"),
        ("resid_post.last-quarter", "resid_post.3"),
        ("z.3, final,embed", "z.3 final embed"),
        (["mlp_out.0", "mlp_out.*"], "mlp_out.0 mlp_out.1 mlp_out.2 mlp_out.3"),
        ([Site("q", 1), "logits"], "q.1 logits"),
        ("module:model.layers.0.mlp:in", "module:model.layers.0.mlp:in"),
    ],
)
def test_ranges(model, pattern, expected):
    assert " ".join(site.name for site in model.sites_at(pattern)) == expected


def test_shapes(model):
    shapes = {site.name: site.shape for site in model.sites}
    assert len(shapes) == 3 + 4 * 14
    assert (shapes["embed"], shapes["logits"]) == ((32,), (61,))
    assert (shapes["q.3"], shapes["k.3"], shapes["z.0"]) == ((4, 12), (2, 12), (4, 12))
    assert shapes["mlp_act.1"] == (48,)
    assert (shapes["attn_in.2"], shapes["head_out.2"]) == ((32,), (4, 32))
    assert model.site("resid_mid.2").shape == (32,)


def test_a_block_that_is_not_there(model):
    with pytest.raises(BadValue) as error:
        model.sites_at("resid_post.31")
    assert str(error.value) == (
        "site resid_post.31: this model has blocks 0-3. "
        "Use --sites 'resid_post.*' or a number up to 3."
    )


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("resid_pots.*", "did you mean resid_post.*"),
        ("resid_post", "a block number is missing"),
        ("resid_post.x", "not a range of blocks"),
        ("resid_post.9:", "holds no block"),
        ("embed.3", "takes no block number"),
        ("module:model.layer.0.mlp", "did you mean module:model.layers.0.mlp"),
    ],
)
def test_names_that_are_wrong(model, pattern, message):
    with pytest.raises((BadValue, UnknownName)) as error:
        model.sites_at(pattern)
    assert message in str(error.value).lower().replace("did you mean", "did you mean")


def test_one_site_is_not_a_range(model):
    with pytest.raises(BadValue, match="names 4 sites"):
        model.site("resid_post.*")


def test_parallel_blocks_have_no_middle():
    with pytest.raises(BadValue, match="in parallel"):
        random_model("gpt_neox").sites_at("resid_mid.*")
    assert "resid_mid.0" in {site.name for site in random_model("gpt_neox_serial").sites}


def test_a_bare_decoder_has_no_logits():
    model = Model(random_module("llama").model, name="bare")
    assert model.n_blocks == 3
    assert model.site("final").shape == (32,)
    with pytest.raises(BadValue, match="no unembedding"):
        model.site("logits")


def test_a_plain_module_names_its_paths():
    model = Model(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), name="mlp")
    assert model.family is None
    assert model.n_blocks is None
    assert [site.name for site in model.sites] == ["module:0", "module:1", "module:2", "logits"]
    with pytest.raises(BadValue, match="plain module has no named sites.*module:0, module:1"):
        model.sites_at("resid_post.3")
    with pytest.raises(UnknownName, match="'module:3'"):
        model.sites_at("module:3")


def test_what_cannot_be_mapped_is_named():
    module = random_module("starcoder2")
    module.config.model_type = "strange"
    for block in module.model.layers:
        block.mlp = nn.Identity()
    model = Model(module, name="strange")

    assert isinstance(model.unmapped, UnmappedModel)
    with pytest.raises(UnmappedModel, match=r"model\.layers\.0: no MLP module .*self_attn"):
        model.sites_at("resid_post.*")
    assert model.site("module:model.norm").path == "model.norm"


def test_a_scaled_residual_is_not_taken_for_a_sum():
    module = random_module("starcoder2")
    module.model.layers[0].self_attn.register_forward_hook(lambda m, a, out: (2 * out[0], out[1]))
    module.model.layers[0].mlp.register_forward_hook(lambda m, a, out: out.clone())
    original = module.model.layers[0].forward

    def scaled(hidden_states, **kwargs):
        return 0.5 * original(hidden_states, **kwargs)

    module.model.layers[0].forward = scaled
    assert "is it scaled?" in str(Model(module, name="scaled").unmapped)


def test_a_moved_part_of_a_listed_family_is_named():
    module = random_module("llama")
    module.model.layers[1].mlp.last = module.model.layers[1].mlp.down_proj
    del module.model.layers[1].mlp.down_proj
    with pytest.raises(UnmappedModel, match=r"layers\.1: no module 'mlp\.down_proj'"):
        Model(module, name="moved").sites_at("embed")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_later_is_the_second_half(count):
    assert block_numbers("later", count, "") == list(range(count // 2, count))


def test_compiled_modules_are_refused():
    linear = nn.Linear(2, 2)
    with pytest.raises(BadValue, match="compiled.*without torch.compile"):
        Model(torch.compile(linear), name="compiled")
    holder = nn.Sequential(nn.Linear(2, 2))
    holder[0].compile()
    with pytest.raises(BadValue, match="module 0: the module was compiled"):
        Model(holder, name="compiled inside")
