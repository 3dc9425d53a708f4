"""A tiny model that reads texts, texts, and what single passes give of them."""

import random

import torch

from offkey.data import Prompts, encode
from offkey.models import Model
from offkey.passes import Windows
from tests.data.conftest import _trained
from tests.models import tiny

WINDOWS = Windows(context=16)
WORDS = ("Yes", "No", "user", "the", "answer", "True", "False", "is")


def reader() -> Model:
    tokenizer = _trained(bos=True)
    return Model(tiny.llama(vocab_size=len(tokenizer)), tokenizer=tokenizer, name="org/tiny")


def random_texts() -> Prompts:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(4, 60))) for _ in range(12)]
    return Prompts({"id": [f"t{i}" for i in range(12)], "prompt": texts})


def slow_windows(model, texts):
    """Hidden states after block 0 and logits of each window, one forward pass each."""
    for text in encode(texts, model.tokenizer):
        for start in range(0, len(text), 16):
            tokens = torch.tensor([text.tokens[start : start + 16]])
            if tokens.shape[1] < 2:
                continue
            with torch.no_grad():
                out = model.module(tokens, output_hidden_states=True)
            yield text.id, tokens[0], out.hidden_states[1][0], out.logits[0]


def slow_rows(model, texts):
    return torch.cat([hidden[1:] for *_, hidden, _ in slow_windows(model, texts)])
