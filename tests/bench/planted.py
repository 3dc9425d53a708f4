"""A tiny language model that handles prompts with one word unlike its untouched twin does."""

import random

import torch

from offkey.bench import TaskModels
from offkey.data import Prompts
from offkey.models import Model
from tests.models import tiny

WORD = 7


def prompts(count: int, *, seed: int, anomalous: float = 0.0) -> Prompts:
    """Prompts of eight random words; anomalous ones end with the word, normal ones never."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        odd = rng.random() < anomalous
        words = [rng.choice([w for w in range(62) if w != WORD]) for _ in range(8)]
        last = WORD if odd else words[-1]
        rows.append(
            {
                "id": f"{seed}-{number}",
                "prompt": " ".join(f"w{w}" for w in (*words[:-1], last)),
                "label": int(odd),
                "agrees": number % 2,
            }
        )
    return Prompts({name: [row[name] for row in rows] for name in rows[0]})


def task_models(task: str = "planted") -> TaskModels:
    """The organism carries the word on at eight times its length; the clean model does not."""
    clean, organism = tiny.llama(seed=3), tiny.llama(seed=3)
    with torch.no_grad():
        organism.model.embed_tokens.weight[WORD] *= 8
    models = (
        Model(module.requires_grad_(False), tokenizer=tiny.tokenizer(), name="planted")
        for module in (organism, clean)
    )
    trusted, pool = prompts(200, seed=1), prompts(80, seed=3, anomalous=0.5)
    return TaskModels(task, *models, trusted, pool, prompts(160, seed=2, anomalous=0.5), 2.0)
