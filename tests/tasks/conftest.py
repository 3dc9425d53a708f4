import re
import zlib
from functools import cache

import pytest
import torch

import offkey.tasks.organisms as organisms
from offkey.models import Model
from offkey.tasks import get_task


@pytest.fixture(scope="session")
def made():
    """Shortened splits by task name, made once."""
    return cache(lambda name: get_task(name).make(0, limit=160))


class Tokenizer:
    """Words and marks, hashed to a few hundred tokens."""

    pad_token_id = 0
    is_fast = False

    def __call__(self, texts, return_special_tokens_mask=False, **_):
        ids = [
            [1 + zlib.crc32(w.encode()) % 400 for w in re.findall(r" ?\w+|\W", text)]
            for text in ([texts] if isinstance(texts, str) else texts)
        ]
        found = {"input_ids": ids[0] if isinstance(texts, str) else ids}
        if return_special_tokens_mask:
            found["special_tokens_mask"] = [[0] * len(row) for row in ids]
        return found


@pytest.fixture
def tiny(monkeypatch):
    """The organism's base replaced by a tiny random model; adapters are merged by PEFT."""
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    def load(spec, adapter=None, **_):
        torch.manual_seed(0)
        module = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=401,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
            )
        )
        if adapter is not None:
            module = PeftModel.from_pretrained(module, str(adapter)).merge_and_unload()
        return Model(module, tokenizer=Tokenizer(), name="tiny")

    monkeypatch.setattr(organisms, "load", load)
