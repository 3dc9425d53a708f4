"""Training a dictionary on blocks of activations."""

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.dictionaries.dictionary import Dictionary
from offkey.dictionaries.recipe import DictionaryRecipe
from offkey.dictionaries.trainees import JumpReLUTrainee, TopKTrainee, Trainee
from offkey.passes import Blocks, ShuffleBuffer, SiteBlocks
from offkey.training import TrainingRun, train

__all__ = ["train_dictionary"]


def train_dictionary(
    blocks: Blocks,
    recipe: DictionaryRecipe,
    *,
    folder: str | PathLike[str] | None = None,
    save_every: int = 200,
    tell: Callable[[dict[str, float]], None] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Dictionary, TrainingRun]:
    """Trains a sparse autoencoder.

    Args:
        blocks: activations to train on: a site of an :class:`offkey.passes.ActivationStream`, or
            :class:`offkey.passes.TensorBlocks`.
        recipe: settings of the training.
        folder: where checkpoints are kept; a run found there is continued, to the same numbers.
        save_every: steps between two checkpoints.
        tell: called with a row a step.
        device: device to train on.

    Raises:
        NonFinite: the loss is not a number; says at which step.
        Mismatch: the checkpoint there is of another run.
        NotEnoughData: fewer rows than a batch.
    """
    buffer = recipe.shuffled(blocks, device)
    generator = torch.Generator().manual_seed(recipe.seed)
    kind = TopKTrainee if recipe.kind == "topk" else JumpReLUTrainee
    trainee: Trainee = kind(recipe, buffer.first(), generator)
    settings = recipe.settings(save_every)

    def loss(batches: list[int]) -> Float[Tensor, ""]:
        trainee.normalise_decoder()

        return trainee.loss(trainee.scaled(buffer[batches[0]]), buffer.step / settings.steps)

    run = train(
        dict(trainee.named_parameters()),
        loss,
        recipe.steps,
        settings,
        curriculum=buffer.at,
        folder=None if folder is None else Path(folder),
        tell=tell,
    )
    made = trainee.to_dictionary()
    if isinstance(blocks, SiteBlocks):
        model = blocks.stream.model
        made = replace(made, site=str(blocks.site), model=model.name)

    return replace(made, about=_about(blocks, recipe, buffer, trainee)), run


def _about(
    blocks: Blocks, recipe: DictionaryRecipe, buffer: ShuffleBuffer, trainee: Trainee
) -> dict[str, object]:
    about: dict[str, object] = {
        "recipe": dict(recipe.as_dict()),
        "rows_to_train_on": sum(blocks.counts),
        "longest_row": buffer.longest,
        "dead_in_training": len(trainee.dead()),
    }
    if isinstance(blocks, SiteBlocks):
        windows = blocks.stream.windows
        about |= {
            "context_size": windows.context,
            "windows": windows.as_dict(),
            "prepend_bos": False,
            "model_fingerprint": blocks.stream.model.fingerprint,
        }

    return about
