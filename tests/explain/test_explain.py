"""Explanations of models where the site, head, latent and word that matter are known."""

import json

import numpy as np
import pytest
import torch

from offkey.data import Prompts
from offkey.detect import Detector
from offkey.dictionaries import Dictionary, save_dictionary
from offkey.errors import BadValue, Mismatch
from offkey.explain import Detail, Explanation, Explanations, explain, read_explanations
from offkey.models import Model
from tests.detect import planted
from tests.models import tiny

HEAD = 2
TRIGGER = "w7"
WORDS = [f"w{n}" for n in range(20, 40)]


def asked(count, *, name, seed, trigger=False):
    """Prompts of random words; the trigger is the third of six."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        words = rng.choice(WORDS, 6)
        if trigger:
            words[2] = TRIGGER
        texts.append(" ".join(words))
    return Prompts(
        {
            "id": [f"{name}{n}" for n in range(count)],
            "prompt": texts,
            "choices": [[" w1", " w2"]] * count,
        }
    )


@pytest.fixture(scope="module")
def model():
    """A language model in which one head of block 1 alone writes, and hears the trigger."""
    module = tiny.llama()
    with torch.no_grad():
        module.model.layers[0].self_attn.o_proj.weight.zero_()
        weight = module.model.layers[1].self_attn.o_proj.weight
        kept = weight[:, 8 * HEAD : 8 * HEAD + 8].clone()
        weight.zero_()
        weight[:, 8 * HEAD : 8 * HEAD + 8] = 10 * kept
        # The last dimension is the trigger's own, and that head's values listen to it.
        module.model.embed_tokens.weight[:, -1] = 0
        module.model.embed_tokens.weight[7] = 3 * torch.eye(32)[-1]
        module.model.layers[0].mlp.down_proj.weight[-1] = 0
        module.model.layers[1].self_attn.q_proj.weight.zero_()  # it attends to all words alike
        module.model.layers[1].self_attn.v_proj.weight[8:, -1] += 5
    return Model(module.requires_grad_(False), tokenizer=tiny.tokenizer(), name="planted")


@pytest.fixture(scope="module")
def trusted():
    return asked(110, name="t", seed=0)


@pytest.fixture(scope="module")
def odd():
    return asked(3, name="odd", seed=1, trigger=True)


@pytest.fixture(scope="module")
def detector(model, trusted):
    return Detector("activations", "mahalanobis-diagonal", sites="resid_post.*").fit(
        model, trusted
    )


@pytest.fixture(scope="module")
def explanations(detector, model, odd, trusted):
    return explain(detector, model, odd, trusted, detail=Detail(background=60))


def test_scores_are_the_detectors_and_shares_add_up_to_them(explanations, detector, model, odd):
    scores = detector.score(model, odd)
    for row, explanation in zip(scores, explanations, strict=True):
        assert explanation.id == row["id"]
        assert explanation.score == pytest.approx(row["score"])
        assert explanation.p_value == row["p_value"]
        assert explanation.flagged == row["flagged"]
        assert sum(site.share for site in explanation.sites) == pytest.approx(row["score"])
        assert explanation.drivers[0].site == row["worst_site"]


def test_the_planted_head_is_named(explanations):
    for explanation in explanations:
        assert (explanation.heads[0].site, explanation.heads[0].head) == ("z.1", HEAD)
        # Nothing else reaches the output.
        assert all(abs(head.effect) < 1e-6 for head in explanation.heads[1:])


def test_a_heads_effect_is_what_its_definition_says(explanations, model, odd, trusted):
    from offkey.models import ChoiceLogitDifference
    from offkey.passes import Plan, readings

    site = model.site("z.1")
    plan = Plan(reads=(site,), gradients=(site,), metric=ChoiceLogitDifference())
    usual = trusted.take(np.linspace(0, 109, 60).round().astype(int).tolist())
    mean = torch.cat([r[site] for r in readings(model, usual, plan)]).mean(0)
    for reading in readings(model, odd, plan):
        effect = ((mean - reading[site]) * reading.grads[site]).sum(-1)[:, HEAD]
        for id, value in zip(reading.batch.ids, effect.tolist(), strict=True):
            (explanation,) = (e for e in explanations if e.id == id)
            assert explanation.heads[0].effect == pytest.approx(value, rel=1e-4)


def test_the_trigger_is_among_the_words_whose_swap_ends_the_flag(explanations):
    for explanation in explanations:
        assert explanation.flagged
        best, *others = explanation.swaps
        assert TRIGGER in best.words.split()
        assert best.share > 0.5 * explanation.score
        assert all(s.share < 0.5 * best.share for s in others if TRIGGER not in s.words.split())


def test_the_last_read_out_is_the_models_own_answer(explanations, model, odd):
    from offkey.passes import Plan, readings

    for reading in readings(model, odd, Plan(logits=True)):
        best = reading.logits.softmax(-1).max(-1)
        for n, id in enumerate(reading.batch.ids):
            (explanation,) = (e for e in explanations if e.id == id)
            last = explanation.read_outs[-1]
            assert last.site == "resid_post.1"
            assert last.tokens[0].token == model.tokenizer.decode([int(best.indices[n])])
            assert last.tokens[0].probability == pytest.approx(float(best.values[n]), rel=1e-4)
            assert len(last.beside) == len(explanation.nearest) == 3


def test_neighbours_are_trusted_and_in_order(explanations, trusted):
    for explanation in explanations:
        distances = [near.distance for near in explanation.nearest]
        assert distances == sorted(distances)
        for near in explanation.nearest:
            assert near.text == trusted["prompt"][trusted.ids.index(near.id)]


def test_a_trusted_prompt_is_its_own_neighbour(detector, model, trusted):
    (one,) = explain(
        detector, model, trusted.take([0]), trusted, detail=Detail(background=40, swaps=False)
    )
    assert one.nearest[0].id == trusted.ids[0]
    assert one.nearest[0].distance == pytest.approx(0, abs=1e-3)
    assert one.notes["swaps"] == "not asked for"


def test_the_planted_latent_is_named(detector, model, odd, trusted, tmp_path):
    here = model.run(list(odd["prompt"]), read=["resid_post.1"])["resid_post.1"]
    usual = model.run(list(trusted["prompt"]), read=["resid_post.1"])["resid_post.1"]
    w = here[0] - usual.mean(0)
    bias = -0.5 * (float((usual @ w).max()) + float(here[0] @ w))
    assert float((usual @ w).max()) + bias < 0 < float(here[0] @ w) + bias
    encoder, decoder = torch.zeros(32, 4), torch.zeros(4, 32)
    encoder[:, 2] = w
    decoder[2] = model.module.lm_head.weight[11]
    save_dictionary(
        tmp_path / "sae",
        Dictionary(
            encoder,
            torch.tensor([1.0, -1.0, bias, -1.0]),
            decoder,
            torch.zeros(32),
            site="resid_post.1",
            model="planted",
        ),
    )

    (one,) = explain(
        detector, model, odd.take([0]), trusted, detail=Detail(dictionary=str(tmp_path / "sae"))
    )

    # Latent 0 is active everywhere, 1 and 3 nowhere.
    (latent,) = one.latents
    assert (latent.site, latent.latent, latent.trusted) == ("resid_post.1", 2, 0.0)
    assert latent.activation == pytest.approx(float(here[0] @ w) + bias, rel=1e-4)
    assert latent.promotes[0] == "w11"


def test_the_driving_site_of_a_plain_module_is_named_and_the_rest_has_reasons():
    model, trusted = planted.model(), planted.prompts(200, seed=1)
    detector = Detector("activations", "mahalanobis", sites="module:first, module:route")
    odd = planted.prompts(20, seed=2, anomalous=1.0, name="q").take([0, 1])

    for one in explain(detector.fit(model, trusted), model, odd, trusted):
        assert one.drivers[0].site == "module:route"
        assert (one.heads, one.latents, one.read_outs, one.swaps) == ((), (), (), ())
        assert set(one.notes) == {"heads", "latents", "read_outs", "swaps"}
        assert all(near.text is None for near in one.nearest)
        assert all("label" not in part for part in one.notes.values())


def test_a_joint_score_says_that_no_site_has_a_share(model, odd, trusted):
    detector = Detector("activations", "ted", sites="resid_post.*").fit(model, trusted)
    assert detector.score_template.scope == "sites"
    (one,) = explain(detector, model, odd.take([0]), trusted, detail=Detail(swaps=False))

    assert [site.site for site in one.sites] == ["all sites"]
    assert "all sites at once" in one.notes["sites"]
    assert one.read_outs[-1].site == "resid_post.1"


def test_prompts_without_choices_are_explained_by_the_likeliest_token(
    detector, model, odd, trusted
):
    bare = odd.take([0]).without("choices")
    (one,) = explain(detector, model, bare, trusted, detail=Detail(swaps=False, background=30))
    assert (one.heads[0].site, one.heads[0].head) == ("z.1", HEAD)


def test_redacted_explanations_quote_no_prompt(detector, model, odd, trusted):
    detail = Detail(redact=True, background=30)
    (one,) = explain(detector, model, odd.take([0]), trusted, detail=detail)
    assert one.text is None
    assert one.swaps == ()
    assert all(near.text is None for near in one.nearest)


def test_explanations_come_back_from_the_file_as_they_were(explanations, tmp_path):
    record = Explanations.make(explanations, ())
    record.write(tmp_path / "explanations.json")
    assert read_explanations(tmp_path) == record
    (first, *_) = json.loads((tmp_path / "explanations.json").read_text())["prompts"]
    assert set(first) == set(Explanation.model_fields)
    for part in ("sites", "heads", "read_outs", "nearest", "swaps"):
        assert set(first[part][0]) == set(type(getattr(explanations[0], part)[0]).model_fields)


def test_labels_do_not_matter(detector, model, odd, trusted, explanations):
    marked = odd.with_columns(label=[1, 0, 1], agrees=[0, 1, 0])
    again = explain(
        detector,
        model,
        marked,
        trusted.with_columns(label=[0] * len(trusted)),
        detail=Detail(background=60),
    )
    assert again == explanations


def test_the_explained_are_scored_alone_as_together(detector, model, odd, trusted, explanations):
    (alone,) = explain(detector, model, odd.take([1]), trusted, detail=Detail(background=60))
    assert alone.score == pytest.approx(explanations[1].score, rel=1e-5)
    assert [h.head for h in alone.heads[:1]] == [h.head for h in explanations[1].heads[:1]]
    assert alone.nearest[0].id == explanations[1].nearest[0].id


def test_what_cannot_be_explained_is_refused(detector, model, odd, trusted):
    with pytest.raises(BadValue, match="not fitted yet"):
        explain(Detector(), model, odd, trusted)
    other = Model(tiny.llama(seed=3), tokenizer=tiny.tokenizer(), name="other")
    with pytest.raises(Mismatch, match="fitted on the model"):
        explain(detector, other, odd, trusted)
    nothing = Detector("activations", "mahalanobis", sites="resid_post.*")
    nothing.fitted_ = type(detector.fitted).nothing(model.fingerprint, {}, "none varies")
    with pytest.raises(BadValue, match="no sites to explain a score by: none varies"):
        explain(nothing, model, odd, trusted)
