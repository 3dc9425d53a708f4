import pytest
import torch

from offkey.errors import BadInput, BadValue
from offkey.models import Model
from offkey.testing.random_models import batch_of, random_module
from tests.models import tiny

ROLES = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@pytest.fixture
def model():
    module = tiny.llama(max_position_embeddings=600)
    return Model(module, tokenizer=tiny.tokenizer(), name="words")


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def test_texts_keep_their_order_over_several_batches(model):
    rows = [[5, 6], list(range(60)) * 9, [1, 2, 3], list(range(60, 0, -1)) * 8, [9, 8, 7, 6]]
    texts = [words(*row) for row in rows]
    run = model.run(texts, "resid_post.*", positions="all")
    last = model.run(texts, ["resid_post.1"])

    assert run.mask.sum(1).tolist() == [2, 540, 3, 480, 4]
    assert run["resid_post.1"].shape == (5, 540, 32)
    assert last["resid_post.1"].shape == (5, 32)
    for place, row in enumerate(rows):
        alone = model.read(batch_of([row]), "resid_post.1", positions="all")["resid_post.1"]
        kept = run["resid_post.1"][place, -len(row) :]
        torch.testing.assert_close(kept, alone[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(last["resid_post.1"][place], alone[0, -1], rtol=1e-4, atol=1e-5)
        assert not run["resid_post.1"][place, : -len(row)].any()


def test_chats(model):
    model.tokenizer.chat_template = ROLES
    chats = [
        [{"role": "user", "content": words(3, 4)}],
        [{"role": "user", "content": words(5)}, {"role": "assistant", "content": words(6, 7)}],
    ]
    run = model.run(chats, "embed", positions="all")
    assert run.mask.sum(1).tolist() == [2, 3]
    weight = model.wiring.embedding.weight
    assert torch.equal(run["embed"][1], weight[[5, 6, 7]])


def test_the_same_text_twice(model):
    run = model.run([words(1, 2)] * 2, "resid_post.0")
    assert torch.equal(run["resid_post.0"][0], run["resid_post.0"][1])


def test_what_cannot_be_run(model):
    with pytest.raises(BadValue, match="texts need a tokenizer"):
        Model(random_module("llama"), name="bare").run(["A"], "embed")
    with pytest.raises(BadInput):
        model.run([words(*range(60)) + " " + words(*range(60)) * 11], "embed")
    with pytest.raises(BadInput):
        model.run([], "embed")
