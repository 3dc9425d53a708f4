import pytest

from offkey.testing.edit import EDIT_CONTRACT
from offkey.testing.random_models import DETECTED, EXPERTS, FAMILIES, padded_batch, random_model


@pytest.fixture(scope="module", params=[*FAMILIES, *DETECTED, *EXPERTS])
def model(request):
    return random_model(request.param)


@pytest.mark.parametrize("check", EDIT_CONTRACT, ids=lambda check: check.__name__)
def test_edit_contract(model, check):
    check(model, padded_batch())


def test_edits_at_the_fused_kernel():
    model = random_model("llama", kernel="sdpa")
    for check in EDIT_CONTRACT:
        check(model, padded_batch())
