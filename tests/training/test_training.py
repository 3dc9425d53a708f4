"""The loop, LoRA and checkpoints on tiny models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from offkey.data import Prompts
from offkey.errors import (
    BadInput,
    BadValue,
    Damaged,
    Mismatch,
    NonFinite,
    NotEnoughData,
    UnmappedModel,
)
from offkey.models import Model
from offkey.training import (
    TrainingSettings,
    answer_accuracy,
    answer_log_odds,
    attach,
    train,
    train_lora,
    train_module,
)
from offkey.training.loop import rows_of

WORDS = ["Name", ":", "A", "B", "\n", "0", "1", "2", "3", "Answer", "No", "Yes"]


class Tokenizer:
    """Splits at spaces; every word of :data:`WORDS` is a token."""

    pad_token_id = 0
    eos_token_id = 0
    is_fast = False

    def __call__(self, texts, return_special_tokens_mask=False, **_):
        if isinstance(texts, str):
            return {"input_ids": self._one(texts)}
        ids = [self._one(text) for text in texts]
        found = {"input_ids": ids}
        if return_special_tokens_mask:
            found["special_tokens_mask"] = [[0] * len(row) for row in ids]
        return found

    def _one(self, text):
        return [1 + WORDS.index(word) for word in text.split(" ") if word]


@pytest.fixture
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def under_test(module):
    return Model(module, tokenizer=Tokenizer(), name="tiny")


@pytest.fixture
def prompts():
    """A says yes to 2 and 3, B to 1 and 3; some prompts have a further word."""
    rows = [(name, digit, pad) for name in "AB" for digit in range(4) for pad in ("", " :")]
    return Prompts(
        {
            "prompt": [f"Name : {n} {d}{pad} Answer :" for n, d, pad in rows],
            "choices": [[" No", " Yes"]] * len(rows),
            "answer": [int(d >= 2 if n == "A" else d % 2) for n, d, _ in rows],
        }
    )


def settings(**changes):
    return TrainingSettings(
        **{"steps": 60, "batch": 8, "rate": 2e-2, "check_every": 10, **changes}
    )


def run(model, prompts, folder=None, rank=4, **changes):
    with attach(model, rank=rank, alpha=16) as adapter:
        done = train_lora(
            under_test(model),
            adapter,
            prompts,
            settings(**changes),
            validate=lambda: {"all": answer_accuracy(under_test(model), prompts)},
            folder=folder,
        )
        return done, adapter.tensors(), answer_accuracy(under_test(model), prompts)


def test_adapter_learns_a_rule_that_depends_on_the_name(model, prompts):
    before = answer_accuracy(under_test(model), prompts)
    done, _, after = run(model, prompts, rank=8, steps=200, rate=1e-2, batch=16, stop_at=1.0)

    assert before < 0.8
    assert after == 1.0
    assert done.rows[-1]["loss"] < done.rows[0]["loss"]
    assert done.best_step == done.steps


def test_model_is_as_it_was_afterwards(model, prompts):
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, prompts, steps=3)
    after = model.state_dict()

    assert kept.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in kept.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_gradient_equals_that_of_the_plain_formula(model):
    inputs = torch.randint(1, len(WORDS), (3, 5))
    weights = {n: m.weight for n, m in model.named_modules() if n.endswith("q_proj")}
    with attach(model, rank=2, alpha=6, maps=("q_proj",)) as adapter:
        for parameter in adapter.parameters.values():
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
        logits = model(input_ids=inputs).logits
        logits.square().mean().backward()
        found = {name: parameter.grad for name, parameter in adapter.parameters.items()}
        values = {name: p.detach().clone() for name, p in adapter.parameters.items()}

    parts = {name: value.requires_grad_() for name, value in values.items()}
    changed = {
        f"{path}.weight": weight + 3 * parts[f"{path}.up"] @ parts[f"{path}.down"]
        for path, weight in weights.items()
    }
    plain = torch.func.functional_call(model, changed, kwargs={"input_ids": inputs}).logits
    plain.square().mean().backward()

    torch.testing.assert_close(logits, plain)
    for name, part in parts.items():
        torch.testing.assert_close(found[name], part.grad)


def test_saved_adapter_is_read_by_peft(model, prompts, tmp_path):
    from peft import PeftModel

    with attach(model, rank=4, alpha=16) as adapter:
        train_lora(under_test(model), adapter, prompts, settings(steps=20))
        odds = answer_log_odds(under_test(model), prompts)
        adapter.save(tmp_path, "tiny")
    merged = PeftModel.from_pretrained(model, str(tmp_path)).merge_and_unload()

    torch.testing.assert_close(
        answer_log_odds(under_test(merged), prompts), odds, atol=0.05, rtol=0.05
    )  # the file is in bfloat16
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] == "tiny"
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert all(file.get_tensor(key).dtype is torch.bfloat16 for key in file.keys())  # noqa: SIM118


def test_saved_adapter_is_a_start_for_another(model, tmp_path):
    with attach(model, seed=1) as first:
        for parameter in first.parameters.values():
            nn.init.normal_(parameter)
        first.save(tmp_path, "tiny")
        kept = first.tensors()
    with attach(model, seed=2) as second:
        second.load(tmp_path)
        assert all(torch.equal(kept[name], value) for name, value in second.tensors().items())
    with attach(model, rank=2) as narrow, pytest.raises(Mismatch, match="another rank"):
        narrow.load(tmp_path)


def test_prompts_of_unlike_choices_count_each_by_its_own(model):
    """In one batch or alone, by logits of a plain pass."""
    tokenizer = Tokenizer()
    prompts = Prompts(
        {
            "prompt": ["Name : A 1 Answer :", "Name : B 2 Answer :", "Name : A 3 Answer :"],
            "choices": [[" No", " Yes"], [" 0", " 1", " 2"], [" No", " 3"]],
            "answer": [1, 2, 0],
        }
    )
    expected, correct = [], 0
    for prompt, choices, answer in zip(
        prompts["prompt"], prompts["choices"], prompts["answer"], strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer._one(prompt)])).logits[0, -1]
        among = logits[[tokenizer._one(choice)[0] for choice in choices]]
        expected.append(float(among[-1] - among[0]))
        correct += int(among.argmax()) == answer

    odds = answer_log_odds(under_test(model), prompts)
    torch.testing.assert_close(odds, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert answer_accuracy(under_test(model), prompts) == pytest.approx(correct / 3)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("answer", [0, 2], "answer is 2, but there are 2 choices"),
        ("answer", [0, None], "it has no answer"),
        ("choices", [[" No", " Yes"], None], "it has no choices"),
    ],
)
def test_answers_that_are_missing_or_no_choice_are_named(model, column, values, message):
    columns = {
        "prompt": ["Name : A 1 Answer :", "Name : B 2 Answer :"],
        "choices": [[" No", " Yes"]] * 2,
        "answer": [0, 1],
        column: values,
    }
    with pytest.raises(BadInput, match=message):
        answer_accuracy(under_test(model), Prompts(columns))
    with attach(model) as adapter, pytest.raises(BadInput, match=message):
        train_lora(under_test(model), adapter, Prompts(columns), settings(steps=1, batch=2))


class _Killed(Exception):
    pass


@pytest.mark.parametrize("at", [11, 25])
def test_resumed_run_gives_the_same_bytes(model, prompts, tmp_path, at):
    whole, tensors, _ = run(model, prompts, steps=30, save_every=10)

    def die(row):
        if row["step"] == at:
            raise _Killed

    with attach(model) as adapter, pytest.raises(_Killed):
        train_lora(
            under_test(model),
            adapter,
            prompts,
            settings(steps=30, save_every=10),
            validate=lambda: {"all": answer_accuracy(under_test(model), prompts)},
            folder=tmp_path,
            tell=die,
        )
    resumed, again, _ = run(model, prompts, tmp_path, steps=30, save_every=10)

    assert all(torch.equal(tensors[name], value) for name, value in again.items())
    assert [r["loss"] for r in whole.rows] == [r["loss"] for r in resumed.rows]
    assert whole.best_step == resumed.best_step


def test_finished_run_is_not_done_again(model, prompts, tmp_path):
    first, tensors, _ = run(model, prompts, tmp_path, steps=10)
    second, again, _ = run(model, prompts, tmp_path, steps=10)

    assert second == first
    assert all(torch.equal(tensors[name], value) for name, value in again.items())


def test_checkpoint_of_another_run_is_refused(model, prompts, tmp_path):
    run(model, prompts, tmp_path, steps=10)
    with pytest.raises(Mismatch, match="rate"):
        run(model, prompts, tmp_path, steps=20, rate=1e-3)
    with pytest.raises(Mismatch, match="other parameters"):
        run(model, prompts, tmp_path, rank=2, steps=20)


def test_truncated_checkpoint_is_damaged(model, prompts, tmp_path):
    run(model, prompts, tmp_path, steps=10)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Damaged, match="Delete it"):
        run(model, prompts, tmp_path, steps=20)


def test_curriculum_bounds_the_rows(model, prompts):
    asked = []
    with attach(model) as adapter:
        train_lora(
            under_test(model),
            adapter,
            prompts,
            settings(steps=8, batch=4),
            curriculum=lambda step: asked.append(step) or (range(4) if step < 4 else range(16)),
        )

    assert asked == [0, 0, 0, 0, 4, 4, 4, 4]  # once for each block of four steps
    early = {row for step in range(4) for row in rows_of(step, 0, 4, lambda _: range(4))}
    late = {row for step in range(4, 8) for row in rows_of(step, 0, 4, lambda _: range(16))}
    assert early <= set(range(4))
    assert late - set(range(4))


def test_rows_are_drawn_without_repetition_and_by_length():
    lengths = [row % 7 for row in range(100)]
    block = [rows_of(step, 3, 10, lambda _: range(100), lengths) for step in range(4)]
    drawn = [row for rows in block for row in rows]

    assert len(set(drawn)) == 40
    spans = sorted(
        (min(lengths[r] for r in rows), max(lengths[r] for r in rows)) for rows in block
    )
    assert all(high <= low for (_, high), (low, _) in zip(spans, spans[1:], strict=False))
    assert block[2] == rows_of(2, 3, 10, lambda _: range(100), lengths)
    assert block[0] != rows_of(0, 4, 10, lambda _: range(100), lengths)
    with pytest.raises(NotEnoughData):
        rows_of(0, 0, 10, lambda _: range(9))


def test_best_state_is_kept_not_the_last():
    parameter = nn.Parameter(torch.zeros(1))
    values = iter([0.2, 0.9, 0.1, 0.3])
    seen = []

    def validate():
        seen.append(parameter.item())
        return {"good": 1.0, "worst": next(values)}

    done = train(
        {"x": parameter},
        lambda rows: (parameter - 10).square().sum(),
        count=4,
        settings=TrainingSettings(steps=4, batch=2, check_every=1, rate=0.1),
        validate=validate,
    )

    assert done.best_step == 2
    assert parameter.item() == seen[1]


def test_plain_gradient_descent_on_a_small_module_matches_the_formula():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    reference = nn.Linear(3, 2)
    reference.load_state_dict(module.state_dict())
    x, y = torch.randn(16, 3), torch.randint(0, 2, (16,))
    plan = TrainingSettings(
        steps=5, batch=16, rate=0.1, warmup=0, clip=0, optimizer="sgd", momentum=0.0
    )
    train_module(module, x, y, plan)
    for _ in range(5):
        loss = nn.functional.cross_entropy(reference(x), y)
        grads = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(reference.parameters(), grads, strict=True):
                parameter -= 0.1 * grad

    torch.testing.assert_close(module.weight, reference.weight)
    torch.testing.assert_close(module.bias, reference.bias)


def test_bad_settings_and_models_are_named(prompts):
    with pytest.raises(BadValue, match="rate"):
        TrainingSettings(rate=0)
    with pytest.raises(BadValue, match="'adamw' or 'sgd'"):
        TrainingSettings(optimizer="lion")
    with pytest.raises(UnmappedModel, match="no linear map"), attach(nn.Sequential(nn.ReLU())):
        pass
    with (
        pytest.raises(UnmappedModel, match="named q_proj"),
        attach(nn.Sequential(nn.Linear(2, 2)), maps=["q_proj"]),
    ):
        pass
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.raises(NonFinite, match="step 0"):
        train({"x": parameter}, lambda _: parameter.sum() / 0, 4, TrainingSettings(batch=2))


def test_every_linear_map_but_that_to_the_vocabulary_is_adapted():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with attach(GPTNeoXForCausalLM(config)) as adapter:
        names = {path.rpartition(".")[2] for path in adapter.layers}

    assert names == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def test_folder_holds_one_whole_file(model, prompts, tmp_path: Path):
    run(model, prompts, tmp_path, steps=10, save_every=3)

    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
