import pytest
import torch

from offkey.models import Model
from offkey.testing.family import FAMILY_CONTRACT
from offkey.testing.random_models import (
    DETECTED,
    EXPERTS,
    FAMILIES,
    even_batch,
    padded_batch,
    random_model,
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
    for check in FAMILY_CONTRACT[:7]:
        check(model, padded_batch())
