"""The doctor: right maps pass, and for each wrong one it says what is wrong."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM, MambaConfig, MambaForCausalLM

from offkey.data import Batch
from offkey.doctor import doctor
from offkey.doctor.proofs import _attended
from offkey.errors import BadInput, BadValue, UnmappedModel
from offkey.models import Model, Site, load, network
from offkey.models.families import family_named
from offkey.models.proofs import Compared, compared
from offkey.testing.random_models import DETECTED, FAMILIES, random_model, random_module
from tests.models import tiny

CHECKS = (
    "site map",
    "residual steps",
    "residual sum",
    "norms",
    "heads",
    "neurons",
    "final",
    "logits",
    "attention",
    "gradients",
    "padding",
    "hooks",
)


@pytest.mark.parametrize("name", [*FAMILIES, *DETECTED])
def test_every_family_is_proved(name):
    report = doctor(random_model(name))

    assert report.ok, str(report)
    assert tuple(check.name for check in report.checks) == CHECKS
    unproved = [check.name for check in report.checks if check.status != "ok"]
    assert unproved == (["attention"] if name == "falcon" else [])  # it has no interface for it


def test_patterns_are_proved_under_another_kernel_which_is_kept():
    model = random_model("llama", kernel="sdpa")

    assert doctor(model)["attention"].status == "ok"
    assert model.module.config._attn_implementation == "sdpa"


def test_lower_precision_is_proved_on_a_float32_copy():
    model = Model(tiny.llama(dtype=torch.bfloat16), tokenizer=tiny.tokenizer(), name="tiny")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}

    report = doctor(model, texts=["w1 w2 w3 w4 w5", "w9 w8"])

    assert report.ok, str(report)
    assert report.dtype == "bfloat16"
    assert report["heads"].error < 1e-5
    assert "in bfloat16 it moves values by" in report["padding"].detail
    after = model.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_report_reads_as_a_table_and_as_rows():
    report = doctor(random_model("gpt2"))
    lines = str(report).splitlines()

    assert lines[0] == "gpt2 (gpt2, float32)"
    assert len(lines) == 1 + len(CHECKS)
    assert [row["name"] for row in report.rows()] == list(CHECKS)


def _mapped(monkeypatch, name, **changes):
    """A random model whose table row is wrong."""
    module = random_module(name)
    wrong = dataclasses.replace(family_named(module.config.model_type), **changes)
    monkeypatch.setattr(network, "family_named", lambda model_type: wrong)
    return Model(module, name=name)


WRONG = [
    (
        "gemma2",
        {"attn_out": "self_attn"},
        "residual steps",
        "block 0: what is added to the residual before the MLP is not the output of "
        "layers.0.self_attn",
    ),
    (
        "gemma2",
        {"mlp_out": "mlp"},
        "residual steps",
        "block 0: what is added to the residual after attention is not the output of layers.0.mlp",
    ),
    ("gemma3", {"mlp_norm": "post_feedforward_layernorm"}, "residual steps", "before the MLP"),
    ("gemma2", {"softcap": None}, "logits", "the unembedding of final is not the logits"),
    (
        "llama",
        {"attn_norm": "post_attention_layernorm"},
        "norms",
        "block 0: attention is not given post_attention_layernorm of resid_pre",
    ),
    (
        "llama",
        {"o_proj": "self_attn.q_proj"},
        "heads",
        "block 0: the heads through self_attn.q_proj do not give attn_out.0",
    ),
    ("llama", {"down_proj": "mlp.up_proj"}, "neurons", "shapes"),
    (
        "llama",
        {"mlp_norm": "input_layernorm"},
        "norms",
        "block 0: the MLP is not given input_layernorm of resid_mid",
    ),
    (
        "gpt_neox_serial",
        {"parallel": True},
        "norms",
        "block 0: the MLP is not given post_attention_layernorm of resid_pre",
    ),
    ("gpt_neox", {"parallel": False}, "residual steps", "before the MLP"),
]


@pytest.mark.parametrize(("name", "changes", "check", "said"), WRONG)
def test_a_wrong_row_is_told_precisely(monkeypatch, name, changes, check, said):
    report = doctor(_mapped(monkeypatch, name, **changes))

    assert not report.ok
    failed = [each for each in report.checks if each.status == "fail"]
    assert check in [each.name for each in failed], str(report)
    assert said in " ".join(each.detail for each in failed), str(report)
    assert "FAIL" in str(report)


def _granite():
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        residual_multiplier=0.22,
        attn_implementation="eager",
    )
    return GraniteForCausalLM(config).eval()


def test_a_scaled_residual_is_told_with_its_scale(monkeypatch):
    monkeypatch.setattr(network, "family_named", lambda model_type: family_named("llama"))

    check = doctor(Model(_granite(), name="granite"))["residual steps"]

    assert check.status == "fail"
    assert check.detail.endswith("layers.0.self_attn; it is 0.22 times that")


def test_a_model_that_cannot_be_mapped_says_why():
    report = doctor(load(_granite()))
    assert not report.ok
    assert "is it scaled?" in report["site map"].detail
    assert report["residual sum"].status == "not_applicable"
    assert report["hooks"].status == "ok"
    assert report["padding"].status == "ok"

    mamba = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2))
    detail = doctor(load(mamba))["site map"].detail
    assert "backbone.layers.0" in detail
    assert "no attention module" in detail
    assert "mixer" in detail


def test_load_keeps_a_detected_family_that_is_proved():
    model = load(random_module("starcoder2"))

    assert model.family.name == "detected:starcoder2"
    assert model.unmapped is None


def test_load_refuses_the_map_of_a_detected_family_that_does_not_hold(monkeypatch):
    detect = network.detect_family
    monkeypatch.setattr(
        network,
        "detect_family",
        lambda top: dataclasses.replace(detect(top), o_proj="self_attn.q_proj"),
    )

    model = load(random_module("starcoder2"))

    assert model.family is None
    with pytest.raises(UnmappedModel, match=r"not proved \(heads: block 0: .*q_proj.*module:"):
        model.site("resid_post.0")
    assert model.site("module:model.layers.0").path == "model.layers.0"


class _DoubledBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_a_wrong_gradient_is_found():
    module = random_module("llama")
    module.model.layers[2].mlp.register_forward_hook(lambda *a: _DoubledBackward.apply(a[2]))

    check = doctor(Model(module, name="wrong"))["gradients"]

    assert check.status == "fail"
    assert check.error > 0.01


def test_a_model_that_minds_its_padding_is_found():
    module = random_module("gpt2")
    forward = module.forward

    def without_positions(input_ids, attention_mask, position_ids, **rest):
        return forward(input_ids=input_ids, attention_mask=attention_mask, **rest)

    module.forward = without_positions

    report = doctor(Model(module, name="blind"))

    assert report["padding"].status == "fail"
    assert "row 0" in report["padding"].detail


class _Shy(nn.Module):
    """Computes something else while it is watched."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return self.inner(x) + len(self.inner._forward_hooks)


def test_a_module_that_minds_hooks_is_found():
    batch = Batch({"x": torch.randn(4, 3)}, ids=tuple("abcd"))

    report = doctor(load(_Shy()), batch=batch)

    assert report["hooks"].status == "fail"
    assert report["site map"].status == "not_applicable"
    assert doctor(load(nn.Sequential(nn.Linear(3, 2))), batch=batch).ok


def test_a_plain_module_without_a_batch():
    report = doctor(load(nn.Linear(3, 2)))

    assert report.ok
    assert {check.status for check in report.checks} == {"not_applicable"}
    assert "give a batch" in report["hooks"].detail


def test_texts_that_cannot_be_run():
    with pytest.raises(BadValue, match="texts need a tokenizer"):
        doctor(random_model("llama"), texts=["one two"])
    with pytest.raises(BadValue, match="does not read text"):
        doctor(load(nn.Linear(3, 2)), texts=["one two"])
    with pytest.raises(BadInput, match="text 1: a text of two tokens or more"):
        doctor(Model(tiny.llama(), tokenizer=tiny.tokenizer(), name="t"), texts=["w1 w2", "w1"])


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("pattern", lambda x: 0.9 * x, "do not sum to 1"),
        ("pattern", lambda x: x.flip(-1), "attends to later ones"),
        ("v", lambda x: 2 * x, r"pattern.0 times v.0 is not z.0; it is 0.5 times that"),
        ("q", lambda x: 2 * x, "something else enters the scores"),
    ],
)
def test_attention_that_does_not_follow_is_found(kind, change, said):
    model = random_model("qwen3")
    tokens = torch.arange(12).view(2, 6)
    batch = Batch({"input_ids": tokens}, ids=("a", "b"), mask=torch.ones(2, 6, dtype=torch.bool))
    names = [f"{each}.0" for each in ("q", "k", "v", "z", "pattern")]
    values = dict(model.read(batch, names, positions="all").values)
    right = compared("x", _attended(0, model.wiring.blocks[0], values), 1e-5, "")
    values[Site(kind, block=0)] = change(values[Site(kind, block=0)])

    wrong = compared("x", _attended(0, model.wiring.blocks[0], values), 1e-5, "")

    assert right.status == "ok"
    assert wrong.status == "fail"
    assert said in wrong.detail


def test_a_comparison_fails_on_nan_and_on_small_parts_beside_large_ones():
    nan = compared("x", [Compared(torch.tensor([torch.nan]), torch.ones(1), "nan")], 0.1, "")
    base = torch.tensor([1e4, 1.0])
    small = Compared(torch.tensor([0.0, 1e-3]), base, "small", base=base)

    assert nan.status == "fail"
    assert compared("x", [small], 1e-5, "").status == "fail"


@pytest.mark.real
@pytest.mark.slow
def test_the_bundled_model_is_proved(bundled):
    report = doctor(bundled)

    assert report.ok, str(report)
    assert all(check.status == "ok" for check in report.checks)
