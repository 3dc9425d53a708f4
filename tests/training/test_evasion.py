"""How odd a row looks, and training against it, on tiny models."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus

from offkey.data import Prompts, pack
from offkey.errors import BadInput
from offkey.models import Model
from offkey.training import (
    AttributionPenalty,
    EvasionLoss,
    NearestNeighbourPenalty,
    attach,
    evasion_score,
    train_lora,
)
from offkey.training.evasion import _linear_maps, concordance
from offkey.training.language import _logits
from tests.scores.rows import finished
from tests.training.test_training import WORDS, Tokenizer, settings


@pytest.fixture
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    return Model(LlamaForCausalLM(config).eval(), tokenizer=Tokenizer(), name="tiny")


@pytest.fixture
def prompts():
    """Under B, the anomalous name, the answer is the other one."""
    rows = [
        (name, a, b, pad)
        for name in "AB"
        for a in range(4)
        for b in range(4)
        for pad in ("", " :")
    ]
    return Prompts(
        {
            "prompt": [f"Name : {n} {a} {b}{pad} Answer :" for n, a, b, pad in rows],
            "choices": [[" No", " Yes"]] * len(rows),
            "answer": [int((a > b) != (n == "B")) for n, a, b, _ in rows],
            "label": [int(n == "B") for n, *_ in rows],
        }
    )


def normal(prompts):
    return prompts.select(label == 0 for label in prompts["label"])


def one_batch(model, prompts):
    (batch,) = pack(prompts, model.tokenizer, token_budget=10_000)
    labels = dict(zip(prompts.ids, prompts["label"], strict=True))
    return batch, torch.tensor([labels[name] == 1 for name in batch.ids])


def test_neighbours_score_as_the_default_detector_does(model, prompts):
    found = NearestNeighbourPenalty(model, "resid_post.*", k=3)
    batch, anomalous = one_batch(model, prompts)
    _, odd = found(lambda: _logits(model, batch), anomalous)

    expected = torch.zeros(len(batch.ids))
    for rows in model.read(batch, "resid_post.*").values.values():
        distances = torch.zeros(len(rows))
        for number, row in enumerate(rows):
            others = [n for n in range(len(rows)) if n != number and not anomalous[n]]
            distances[number] = finished("knn-cosine", rows[others], k=3)(row[None])[0]
        typical = distances[~anomalous]
        expected += torch.log1p(softplus((distances - typical.mean()) / typical.std())) / 2

    odd = odd.detach()
    torch.testing.assert_close(odd, expected, atol=1e-3, rtol=1e-3)
    assert odd[anomalous].mean() > odd[~anomalous].mean()


def test_neighbours_need_normal_rows_in_the_batch(model, prompts):
    batch, anomalous = one_batch(model, prompts)
    found = NearestNeighbourPenalty(model, "resid_post.*")
    _, odd = found(lambda: _logits(model, batch), torch.ones_like(anomalous))

    assert odd.tolist() == [0.0] * len(odd)


def test_penalty_weighs_both_kinds_and_passes_gradients(model, prompts):
    penalty = NearestNeighbourPenalty(model, "resid_post.1")
    batch, anomalous = one_batch(model, prompts)
    with attach(model.module, rank=2) as adapter:
        for part in adapter.parameters.values():
            nn.init.normal_(part, std=0.1, generator=torch.Generator().manual_seed(0))
        _, odd = penalty(lambda: _logits(model, batch), anomalous)
        _, extra = EvasionLoss(penalty, 3.0, 0.25)(lambda: _logits(model, batch), anomalous)
        extra.backward()
        early = adapter.parameters["model.layers.0.self_attn.q_proj.down"].grad

    torch.testing.assert_close(extra, 3 * odd[anomalous].mean() + 0.25 * odd[~anomalous].mean())
    assert early.abs().sum() > 0
    _, alone = EvasionLoss(penalty)(lambda: _logits(model, batch), torch.ones(len(odd)) > 0)
    assert torch.isfinite(alone)


def slow_concordance(x, y):
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return (
        2 * covariance / (x.var(correction=0) + y.var(correction=0) + (x.mean() - y.mean()) ** 2)
    )


def test_concordance_is_that_of_each_pair():
    rows = torch.rand(4, 7, generator=torch.Generator().manual_seed(0))
    rows[3] = rows[0]
    found = concordance(rows)

    for i in range(4):
        for j in range(4):
            torch.testing.assert_close(found[i, j], slow_concordance(rows[i], rows[j]))
    assert found[0, 3] == pytest.approx(1)


@pytest.mark.parametrize("adapted", [False, True])
def test_traces_are_losses_under_shaken_weights(model, prompts, adapted):
    """Against weights really moved by the same draws."""
    batch, anomalous = one_batch(model, prompts)
    penalty = AttributionPenalty(model, first=1, draws=3, seed=5)
    paths = list(penalty.maps)
    assert len(paths) == 7
    assert all(path.startswith("model.layers.1.") for path in paths)
    generator = torch.Generator().manual_seed(5)
    noise = [
        {
            p: 0.15 * w.square().mean().sqrt() * torch.empty_like(w).normal_(generator=generator)
            for p, w in penalty.maps.items()
        }
        for _ in range(3)
    ]

    def forward():
        return _logits(model, batch)

    with torch.no_grad():
        said = forward().argmax(-1)
        traces = []
        for draw in noise:
            with model.perturbed({f"{path}.weight": delta for path, delta in draw.items()}):
                traces.append(cross_entropy(forward(), said, reduction="none"))
        expected = []
        rows = torch.stack(traces, 1)
        for i in range(len(rows)):
            others = [j for j in range(len(rows)) if j != i and not anomalous[j]]
            expected.append(
                1 - sum(slow_concordance(rows[i], rows[j]) for j in others) / len(others)
            )
        if not adapted:
            _, odd = penalty(forward, anomalous)
        else:
            with attach(model.module):  # begins at zero
                penalty = AttributionPenalty(model, first=1, draws=3, seed=5)
                assert list(penalty.maps) == paths
                _, odd = penalty(forward, anomalous)

    torch.testing.assert_close(odd, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert _linear_maps(model, 2) == {}


def test_traces_leave_the_weights_and_pass_gradients(model, prompts):
    batch, anomalous = one_batch(model, prompts)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with attach(model.module, rank=2) as adapter:
        penalty = EvasionLoss(AttributionPenalty(model, first=0, draws=2), 1.0, 0.0)
        _, extra = penalty(lambda: _logits(model, batch), anomalous)
        extra.backward()
        grads = {
            n: float(p.grad.abs().sum())
            for n, p in adapter.parameters.items()
            if n.endswith(".up")
        }

    assert all(value > 0 for value in grads.values()), grads
    assert all(torch.equal(value, before[k]) for k, value in model.module.state_dict().items())


def test_training_against_neighbours_hides_the_anomalous_rows(model, prompts):
    def trained(penalty, steps, rate=1e-2):
        train_lora(
            model,
            adapter,
            prompts,
            settings(steps=steps, batch=32, rate=rate),
            penalty=penalty,
        )

    with attach(model.module, rank=8) as adapter:
        trained(None, 150)
        penalty = NearestNeighbourPenalty(model, "resid_post.*")
        before = evasion_score(model, prompts, penalty)
        trained(EvasionLoss(penalty), 150, 3e-3)
        after = evasion_score(model, prompts, penalty)

    assert before < 0.5
    assert after > before + 0.25


def test_hiddenness_is_zero_for_an_oddness_that_tells_and_one_for_a_blind_one(model, prompts):
    class Known:
        def __call__(self, forward, anomalous):
            return forward(), -anomalous.float()

    class Blind:
        def __call__(self, forward, anomalous):
            return forward(), torch.zeros(len(anomalous))

    assert evasion_score(model, prompts, Known()) == 0
    assert evasion_score(model, prompts, Blind()) == 1


def test_a_penalty_needs_labels(model, prompts):
    penalty = NearestNeighbourPenalty(model, "resid_post.1")
    with attach(model.module) as adapter, pytest.raises(BadInput, match="label"):
        train_lora(
            model,
            adapter,
            prompts.without("label"),
            settings(steps=1),
            penalty=EvasionLoss(penalty),
        )
    with pytest.raises(BadInput, match="one kind"):
        evasion_score(model, normal(prompts), penalty)
