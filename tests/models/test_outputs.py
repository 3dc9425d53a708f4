from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutput

from offkey.data import Batch, Role
from offkey.errors import BadInput
from offkey.models import (
    ChoiceLogitDifference,
    KLToReference,
    ResponseCrossEntropy,
    TopLogProb,
    choice_logits,
    default_metric,
    kl,
    last_logits,
    log_probabilities,
    logits_of,
    preferred_answer,
)
from offkey.testing.random_models import batch_of


@pytest.fixture
def batch():
    return batch_of([[5, 6, 7], [8, 9, 10]])


@pytest.fixture
def logits():
    return torch.randn(2, 61, generator=torch.Generator().manual_seed(0))


def test_two_choices_are_a_plain_difference_whatever_is_true(batch, logits):
    expected = logits[:, 5] - logits[:, 3]
    for target in (None, torch.tensor([0, 1]), torch.tensor([-1, -1])):
        made = ChoiceLogitDifference()(logits, replace(batch, target=target))
        assert torch.equal(made, expected)


def test_more_choices_are_log_odds_of_the_true_one(batch, logits):
    choices = torch.tensor([[3, 5, 9], [-1, 4, 2]])
    batch = replace(batch, choices=choices, target=torch.tensor([2, 1]))
    made = ChoiceLogitDifference()(logits, batch)
    chances = logits[0, [3, 5, 9]].softmax(0)
    torch.testing.assert_close(made[0], (chances[2] / (1 - chances[2])).log())
    torch.testing.assert_close(made[1], logits[1, 2] - logits[1, 4])

    unknown = replace(batch, target=torch.tensor([-1, -1]))
    best = chances.max()
    made = ChoiceLogitDifference()(logits, unknown)
    torch.testing.assert_close(made[0], (best / (1 - best)).log())


def test_choices_that_are_missing_name_the_prompt(batch, logits):
    with pytest.raises(BadInput, match="prompt 8-9-10: it has 1 choices"):
        ChoiceLogitDifference()(logits, replace(batch, choices=torch.tensor([[1, 2], [3, -1]])))
    with pytest.raises(BadInput, match="prompt 5-6-7: it has 0 choices"):
        ChoiceLogitDifference()(logits, replace(batch, choices=None))


def test_top_log_probability(batch, logits):
    expected = logits.softmax(-1).max(-1).values.log()
    torch.testing.assert_close(TopLogProb()(logits, batch), expected)
    # float16 is added up in float32
    made = TopLogProb()(logits.half(), batch)
    assert made.dtype == torch.float32


def test_cross_entropy_of_the_response(batch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 61, generator=generator, requires_grad=True)
    roles = torch.tensor([[1, 1, 2], [1, 2, 2]])
    made = ResponseCrossEntropy()(logits, replace(batch, roles=roles))
    p = logits.softmax(-1)
    by_hand = torch.stack([-p[0, 1, 7].log(), -(p[1, 0, 9].log() + p[1, 1, 10].log()) / 2])
    torch.testing.assert_close(made, by_hand)
    torch.testing.assert_close(
        torch.autograd.grad(made.sum(), logits, retain_graph=True)[0],
        torch.autograd.grad(by_hand.sum(), logits)[0],
    )
    with pytest.raises(BadInput, match="prompt 5-6-7: it has no response"):
        ResponseCrossEntropy()(logits, replace(batch, roles=torch.tensor([[1, 1, 1], [1, 2, 2]])))
    with pytest.raises(BadInput, match="no response"):
        ResponseCrossEntropy()(logits, replace(batch, roles=None))


def test_divergence_from_reference_logits(batch, logits):
    other = torch.randn(2, 61, generator=torch.Generator().manual_seed(1))
    reference = {"8-9-10": other[1], "5-6-7": other[0]}
    made = KLToReference(reference)(logits, batch)
    p, q = other.softmax(-1), logits.softmax(-1)
    torch.testing.assert_close(made, (p * (p / q).log()).sum(-1))
    same = KLToReference({name: logits[row] for row, name in enumerate(batch.ids)})
    torch.testing.assert_close(same(logits, batch), torch.zeros(2))
    with pytest.raises(BadInput, match="prompt 8-9-10: there are no reference logits"):
        KLToReference({"5-6-7": other[0]})(logits, batch)


def test_metrics_can_be_shared():
    assert len({TopLogProb(), TopLogProb(), ChoiceLogitDifference()}) == 2
    assert len({KLToReference({}), KLToReference({})}) == 2
    assert ResponseCrossEntropy().positions == "response"


def test_the_default(batch):
    assert default_metric(batch) == ChoiceLogitDifference()
    assert default_metric(replace(batch, choices=None)) == TopLogProb()
    assert default_metric({"prompt": [], "choices": []}) == ChoiceLogitDifference()
    assert default_metric(["prompt", "label"]) == TopLogProb()


def test_roles_are_numbers():
    assert [Role.PADDING, Role.TEMPLATE, Role.PROMPT, Role.RESPONSE] == [-1, 0, 1, 2]
    assert isinstance(Batch({}, ids=()), Batch)


def test_logits_in_whatever_a_model_returns(logits):
    several = torch.stack([logits + 1, logits], dim=1)
    for raw in (logits, several, CausalLMOutput(logits=several), SimpleNamespace(logits=logits)):
        assert torch.equal(last_logits(raw), logits)
    assert logits_of(CausalLMOutput(logits=several)) is several
    for wrong in (3, {"x": logits}, None, CausalLMOutput()):
        with pytest.raises(BadInput, match="not logits"):
            last_logits(wrong)
    with pytest.raises(BadInput, match="no logits"):
        last_logits(logits[0])


def test_each_row_prefers_by_itself(logits):
    """Whatever the other rows have: three choices, two, one, or none."""
    rows = logits.repeat(2, 1)
    choices = torch.tensor([[3, 5, 9], [-1, 4, 2], [7, -1, -1], [-1, -1, -1]])
    batch = Batch({}, ids=tuple("abcd"), choices=choices)
    of_choices = choice_logits(rows, batch)
    for row, numbers in enumerate(choices.tolist()):
        for place, token in enumerate(numbers):
            assert of_choices[row, place] == (rows[row, token] if token >= 0 else -torch.inf)
    token, choice = preferred_answer(rows, batch)
    best = [
        max((n for n in row if n >= 0), key=lambda n, r=r: float(rows[r, n]), default=None)
        for r, row in enumerate(choices.tolist())
    ]
    assert token.tolist() == [*best[:3], int(rows[3].argmax())]
    assert choice.tolist() == [
        choices[0].tolist().index(best[0]),
        choices[1].tolist().index(best[1]),
        0,
        token[3],
    ]
    for row in range(4):
        alone = Batch({}, ids=("a",), choices=choices[row : row + 1])
        assert preferred_answer(rows[row : row + 1], alone).token == token[row]
    plain = preferred_answer(rows, Batch({}, ids=tuple("abcd")))
    assert torch.equal(plain.token, rows.argmax(1))
    assert torch.equal(plain.choice, rows.argmax(1))
    with pytest.raises(BadInput, match="prompt a: there are no choices"):
        choice_logits(rows, Batch({}, ids=tuple("abcd")))


def test_divergence_by_its_definition(logits):
    other = torch.randn(2, 61, generator=torch.Generator().manual_seed(1))
    p, q = other.double().softmax(-1), logits.double().softmax(-1)
    expected = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(kl(log_probabilities(other), logits).double(), expected)
    stacked = kl(log_probabilities(torch.stack([other, logits])), torch.stack([logits, other]))
    assert stacked.shape == (2, 2)
    torch.testing.assert_close(stacked[0].double(), expected)
    log_p = log_probabilities(logits)
    assert torch.equal(kl(log_p, log_p), torch.zeros(2))
    assert 0 <= kl(log_p, logits + 3).max() < 1e-12
    far = logits.clone()
    far[:, 0] = 300
    assert torch.equal(kl(log_probabilities(far), far), torch.zeros(2))


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_small_divergences_are_accurate_in_float32(logits, size):
    """Half the variance of the change, where the plain sum has no digit left."""
    change = torch.randn(2, 61, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = (logits.double() + size * change).float()
    p = logits.double().softmax(-1)
    d = moved.double() - logits.double()
    exact = (p * d).sum(-1).neg() + (p * d.exp()).sum(-1).log()
    made = kl(log_probabilities(logits), moved).double()
    torch.testing.assert_close(made, exact, rtol=2e-3 if size > 1e-5 else 0.5, atol=0)


def test_divergence_is_differentiated(logits):
    other = torch.randn(2, 61, generator=torch.Generator().manual_seed(1))
    leaf = logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(kl(log_probabilities(other), leaf).sum(), leaf)
    torch.testing.assert_close(grad, logits.softmax(-1) - other.softmax(-1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sure", [60.0, 110.0, 300.0])
def test_kl_of_sure_distributions_is_finite_with_its_gradient(sure, batch):
    """By the definition in float64; the gradient in the logits is q − p."""
    p = torch.tensor([[sure, 0.0, 1.0], [1.0, 0.0, 1.0]])
    q = torch.tensor([[0.0, sure, 1.0], [0.0, 1.0, 1.0]], requires_grad=True)
    log_p, log_q = p.double().log_softmax(-1), q.detach().double().log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    for made in (
        kl(log_probabilities(p), q),
        KLToReference(dict(zip(batch.ids, p, strict=True)))(q, batch),
    ):
        assert made.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
        (gradient,) = torch.autograd.grad(made.sum(), q)
        assert torch.allclose(gradient.double(), log_q.exp() - log_p.exp(), atol=1e-6)


def test_kl_of_wide_logits_and_of_an_impossible_token():
    generator = torch.Generator().manual_seed(0)
    p = 50 * torch.randn(6, 500, generator=generator)
    q = p + 50 * torch.randn(6, 500, generator=generator)
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert kl(log_probabilities(p), q).tolist() == pytest.approx(expected.tolist(), rel=1e-4)

    never = torch.tensor([[0.0, -torch.inf, 2.0]])
    q = torch.tensor([[0.0, 5.0, 1.0]])
    keep = [0, 2]
    log_p = never[:, keep].double().log_softmax(-1)
    expected = (log_p.exp() * (log_p - q.double().log_softmax(-1)[:, keep])).sum(-1)
    assert kl(log_probabilities(never), q).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
