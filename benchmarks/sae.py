"""Trains the dictionaries of the bundled model and measures them on held-out text.

::

    python -m benchmarks.sae --out out/sae

What is in the folder already (text, activations, checkpoints, dictionaries) is not made again.
With ``--ship`` the TopK dictionary also takes the place of the one that comes with the package.
"""

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.sae_text import SOURCES, texts
from offkey.data import Prompts, read_prompts
from offkey.dictionaries import (
    Dictionary,
    DictionaryRecipe,
    load_dictionary,
    measure,
    save_dictionary,
    train_dictionary,
)
from offkey.models import Model, load
from offkey.passes import ActivationStream, SiteBlocks
from offkey.storage import write_results

RESULTS = Path("docs/results")
SHIPPED = Path("src/offkey/dictionaries/trained")
BASE = "smollm2-135m-instruct"
SITE = "resid_post.15"
RECIPES = {
    "topk": DictionaryRecipe(rows=3_000_000, dead_after=300_000),
    "jumprelu": DictionaryRecipe(kind="jumprelu", rows=3_000_000, dead_after=300_000),
}
COMMAND = "python -m benchmarks.sae"


def main() -> None:
    """Trains, measures and writes ``sae``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/sae"))
    parser.add_argument("--kinds", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--ship", action="store_true", help="put it into the package")
    given = parser.parse_args()
    model = load(BASE)
    train, held_out = split(given.out)
    stream = ActivationStream(model, train, SITE, folder=given.out / "acts-train")
    stream.keep()
    rows = []
    for kind in given.kinds:
        dictionary = trained(kind, stream.at(SITE), given.out)
        rows.append(measured(dictionary, model, held_out))
        if given.ship and kind == "topk":
            shutil.copytree(given.out / f"{SITE}-{kind}", SHIPPED / SITE, dirs_exist_ok=True)
    write_results(
        RESULTS / "sae.json", rows, command=COMMAND, seeds=[RECIPES[k].seed for k in given.kinds]
    )


def split(out: Path) -> tuple[Prompts, Prompts]:
    """The texts to train on, and those held out."""
    path = out / "text.jsonl"
    if not path.is_file():
        texts().to_jsonl(path)
    prompts = read_prompts(path)
    parts = [[i for i, held in enumerate(prompts["held_out"]) if held == one] for one in (0, 1)]

    return prompts.take(parts[0]), prompts.take(parts[1])


def trained(kind: str, blocks: SiteBlocks, out: Path) -> Dictionary:
    """A dictionary, saved in bfloat16 and read back, with what it was trained on."""
    folder = out / f"{SITE}-{kind}"
    if not (folder / "cfg.json").is_file():
        made, run = train_dictionary(
            blocks, RECIPES[kind], folder=out / f"run-{kind}", tell=told(RECIPES[kind].steps)
        )
        about = {**made.about, "text": text_facts(), "seconds": seconds(run.rows)}
        save_dictionary(folder, replace(made, about=about).to(dtype=torch.bfloat16))

    return load_dictionary(folder)


def measured(dictionary: Dictionary, model: Model, held_out: Prompts) -> dict[str, Any]:
    """A row of the results."""
    quality = measure(dictionary, model, held_out)
    recipe = dictionary.about["recipe"]

    return {
        "model": BASE,
        "site": dictionary.site,
        "activation": dictionary.activation,
        "latents": dictionary.latents,
        "trained_on_activations": dictionary.about["rows_to_train_on"],
        "activations_seen": recipe["rows"],
        "training_processor_seconds": dictionary.about["seconds"],
        "dead_in_training": dictionary.about["dead_in_training"],
        **{name: _rounded(value) for name, value in quality.as_row().items()},
    }


def text_facts() -> dict[str, Any]:
    """What was read, as it stands in the dictionary's configuration."""
    return {
        "packages": {one.package: one.version for one in SOURCES},
        "characters_at_most": {one.package: one.characters for one in SOURCES},
        "model_samples": 0,
        "made_by": "python -m benchmarks.sae_text",
    }


def told(steps: int) -> Any:
    """Prints a line every fifty steps."""

    def tell(row: Mapping[str, float]) -> None:
        if row["step"] % 50 == 0:
            print(f"step {row['step']:.0f} of {steps}, loss {row['loss']:.4f}", flush=True)

    return tell


def seconds(rows: Any) -> float:
    """Processor seconds of all steps."""
    return round(sum(row["seconds"] for row in rows), 1)


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
