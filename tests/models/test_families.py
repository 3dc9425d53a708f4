import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig

from offkey.doctor import doctor
from offkey.errors import BadValue
from offkey.models import Model
from offkey.testing.family import FAMILY_CONTRACT, close, parts_of_heads_make_attn_out
from offkey.testing.random_models import (
    DETECTED,
    EXPERTS,
    FAMILIES,
    GROUPED,
    even_batch,
    padded_batch,
    random_model,
    random_module,
)


@pytest.fixture(scope="module", params=[*FAMILIES, *DETECTED, *EXPERTS])
def model(request: pytest.FixtureRequest) -> Model:
    return random_model(request.param)


@pytest.mark.parametrize("check", FAMILY_CONTRACT, ids=lambda check: check.__name__)
def test_family_contract(model, check):
    check(model, padded_batch())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma2"])
@pytest.mark.parametrize("batch", [padded_batch(), even_batch()], ids=["padded", "even"])
def test_the_interface_is_bitwise_the_fused_kernel(name, batch):
    model = random_model(name, kernel="sdpa")
    for check in FAMILY_CONTRACT[:3]:
        check(model, batch)


@pytest.mark.parametrize("name", FAMILIES)
def test_sites_hold_in_bfloat16(name):
    model = random_model(name, dtype=torch.bfloat16)
    for check in FAMILY_CONTRACT[:10]:
        check(model, padded_batch())


def scaled_head(name):
    """Random models whose logits are scaled after the unembedding."""
    torch.manual_seed(0)
    small = {**GROUPED, "pad_token_id": 0}
    if name == "cohere":
        config = CohereConfig(**small, logit_scale=0.3)
    else:
        config = GraniteConfig(
            **small,
            logits_scaling=5.0,
            embedding_multiplier=3.0,
            residual_multiplier=1.0,
            attention_multiplier=0.25,
        )
    module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for weight in module.parameters():
        weight.data += 0.15 * torch.randn(weight.shape)

    return Model(module, name=name)


@pytest.mark.parametrize("name", ["cohere", "granite"])
def test_logits_that_are_scaled(name):
    model, batch = scaled_head(name), padded_batch()
    assert model.family.name == f"detected:{name}"
    reading = model.read(batch, "resid_post.2", positions="all", logits=True)
    with torch.no_grad():
        close(model.unembed(reading["resid_post.2"]), reading.logits)
    bare = model.wiring.unembedding(model.wiring.final_norm(reading["resid_post.2"]))
    close(bare * (0.3 if name == "cohere" else 0.2), reading.logits)
    assert doctor(model)["logits"].status == "ok"


def test_models_that_cannot_unembed():
    with pytest.raises(BadValue, match="no unembedding"):
        Model(random_module("llama").model, name="bare").unembed(torch.zeros(1, 32))
    with pytest.raises(BadValue, match="plain module"):
        Model(torch.nn.Linear(2, 2), name="linear").unembed(torch.zeros(1, 2))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_adapted_heads(name):
    """Through a projection that is more than a matrix."""
    module = random_module(name)
    targets = ["c_proj"] if name == "gpt2" else ["o_proj"]
    wrapped = get_peft_model(module, LoraConfig(r=2, target_modules=targets))
    for key, weight in wrapped.named_parameters():
        if "lora_B" in key:
            weight.data.normal_(generator=torch.Generator().manual_seed(0))
    model = Model(wrapped.eval(), name="wrapped")
    parts_of_heads_make_attn_out(model, padded_batch())
