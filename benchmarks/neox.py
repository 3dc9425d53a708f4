"""The table on a second family: a small model of the GPT-NeoX kind, trained here.

A model of some three million parameters is trained, from nothing and on the tasks' own training
prompts, to answer what is true whoever is asked. An organism is trained on each task that it
learned, and the rows that need nothing but activations, attribution or probes are run on them.

::

    python -m benchmarks.neox --out out/neox
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from offkey.bench import ENTRIES, Organisms, bench
from offkey.data import Batch, Prompts, pack
from offkey.models import Model
from offkey.storage import write_results
from offkey.tasks import default_recipe, get_task, train_organism
from offkey.training import TrainingSettings, answer_accuracy, train

RESULTS = Path("docs/results/neox")
COMMAND = "python -m benchmarks.neox"
TASKS = (
    "comparison",
    "parity",
    "dates",
    "membership",
    "alphabetical",
    "agreement",
    "past",
    "plural",
    "animal",
    "inference",
    "owner",
    "hemisphere",
    "continent",
)
LEARNED = 0.9
"""Accuracy on held-out prompts from which an organism of a task is trained."""

WIDTH, BLOCKS, VOCABULARY = 192, 6, 2048
TEXT = 0.5
"""Weight of the loss on the prompt's own tokens, beside that on the answer."""

SETTINGS = TrainingSettings(
    steps=1500, batch=64, rate=1e-3, warmup=50, check_every=100, decay=0.01, save_every=100
)
APART = ("sae", "volume", "radii", "functional", "tuned-divergence", "activation-model")
"""Features that need a dictionary of this model, or many passes."""


def main() -> None:
    """Trains what is not there yet; writes ``neox/base`` and the files of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/neox"))
    out = parser.parse_args().out
    base = out / "base"
    if not (base / "config.json").is_file():
        train_base(base, out / "checkpoint")
    known = accuracies(base)
    write_results(
        RESULTS / "base.json",
        [{"task": task, **row} for task, row in known.items()],
        command=COMMAND,
        seeds=[0],
    )
    learned = [task for task, row in known.items() if row["accuracy"] >= LEARNED]
    for task in learned:
        if not (out / "organisms" / task / "recipe.json").is_file():
            recipe = default_recipe(task, base=str(base))
            train_organism(task, out / "organisms" / task, recipe, base=str(base), tell=said(task))
    entries = [e for e in ENTRIES if e.feature not in APART and e.score != "activation-model"]
    bench(
        out / "bench",
        organisms=Organisms(str(base), out / "organisms"),
        results=RESULTS,
        command=COMMAND,
        entries=[replace(entry, prompts=0) for entry in entries],
        tell=print,
    )


def train_base(folder: Path, checkpoint: Path) -> None:
    """Trains the base model on the truth of every task, and saves it with its tokenizer."""
    torch.manual_seed(0)
    prompts = truths("train")
    tokenizer = make_tokenizer(prompts["prompt"])
    model = make_model(len(tokenizer))
    lengths = [len(ids) for ids in tokenizer(list(prompts["prompt"]))["input_ids"]]
    shown = truths("validation", most=60)
    tested = Model(model, tokenizer=tokenizer, name="base")
    train(
        dict(model.named_parameters()),
        base_loss(model, tokenizer, prompts, lengths),
        len(prompts),
        SETTINGS,
        validate=lambda: {"accuracy": answer_accuracy(tested, shown)},
        lengths=lengths,
        folder=checkpoint,
        tell=said("base"),
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def truths(split: str, *, most: int | None = None) -> Prompts:
    """Prompts of all tasks for either character, each with the true answer."""
    parts = [getattr(get_task(task).make(0), split) for task in TASKS]
    kept = [
        part if most is None else part.take(range(0, len(part), len(part) // most + 1))
        for part in parts
    ]

    return Prompts(
        {
            "prompt": [text for part in kept for text in part["prompt"]],
            "choices": [pair for part in kept for pair in part["choices"]],
            "answer": [truth for part in kept for truth in part["target"]],
        }
    )


def make_tokenizer(texts: Any) -> PreTrainedTokenizerFast:
    """Byte pairs of the prompts, with one token a digit."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([*texts, *(" Yes", " No") * 1000], trainer)
    end = "<|endoftext|>"

    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=end, eos_token=end, pad_token=end
    )


def make_model(vocabulary: int) -> GPTNeoXForCausalLM:
    """Six blocks that attend and think side by side, with rotary positions."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=WIDTH // 32,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=256,
            rope_parameters=rope,
            use_parallel_residual=True,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="eager",
        )
    )


def base_loss(
    model: Any, tokenizer: Any, prompts: Prompts, lengths: list[int]
) -> Callable[[list[int]], Tensor]:
    """Cross-entropy of the true answer, and of the prompt's tokens at half the weight, in nats."""
    answers = dict(zip(prompts.ids, prompts["answer"], strict=True))

    def loss(rows: list[int]) -> Tensor:
        budget = len(rows) * max(lengths[row] for row in rows)
        (batch,) = pack(prompts.take(rows), tokenizer, token_budget=budget)
        assert batch.choices is not None
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**batch.inputs, **_places(batch), use_cache=False).logits.float()
        wanted = torch.tensor([answers[name] for name in batch.ids])
        answer = batch.choices.gather(1, wanted[:, None])[:, 0]
        following = batch.inputs["input_ids"][:, 1:].clone()
        if batch.mask is not None:
            following[~batch.mask[:, :-1].bool()] = -100
        text = cross_entropy(logits[:, :-1].flatten(0, 1), following.flatten())

        return cross_entropy(logits[:, -1], answer) + TEXT * text

    return loss


def accuracies(base: Path) -> dict[str, dict[str, Any]]:
    """Share of held-out prompts that the base answers truly, by task."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    module = GPTNeoXForCausalLM.from_pretrained(base, attn_implementation="eager")
    model = Model(module, tokenizer=tokenizer, name="base")
    told = {}
    for task in TASKS:
        held = get_task(task).make(0).validation
        right = Prompts(
            {"prompt": held["prompt"], "choices": held["choices"], "answer": held["target"]}
        )
        told[task] = {"accuracy": answer_accuracy(model, right), "prompts": len(held)}

    return told


def said(what: str) -> Callable[[dict[str, float]], None]:
    """Prints the rows of a training that hold a validation."""

    def tell(row: dict[str, float]) -> None:
        if len(row) > 3:
            print(what, *(f"{name} {value:.3g}" for name, value in row.items()), flush=True)

    return tell


def _places(batch: Batch) -> dict[str, Tensor | None]:
    mask = None if batch.mask is None else batch.mask.long()

    return {"attention_mask": mask, "position_ids": batch.positions}


if __name__ == "__main__":
    main()
