"""Sparse autoencoders trained by SAELens, with its own trainer on the same rows."""

from functools import partial
from importlib.metadata import version

import torch
from _rows import Given
from _timing import serve
from sae_lens import (
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

given = Given()


def batches():
    """Rows in random order, again and again."""
    while True:
        order = torch.randperm(len(given.train), generator=torch.Generator().manual_seed(0))
        for part in order.split(given.batch):
            yield given.train[part]


def trained(make, config, **settings):
    """One run over all rows; the decoder."""
    common = {"d_in": given.train.shape[1], "d_sae": given.latents}
    sae = make(config(**common, normalize_activations="expected_average_only_in", **settings))
    steps = -(-len(given.train) // given.batch)
    how = SAETrainerConfig(
        total_training_samples=steps * given.batch,
        train_batch_size_samples=given.batch,
        lr=3e-4,
        lr_end=3e-4,
        n_batches_for_norm_estimate=1,
        logger=LoggingConfig(log_to_wandb=False),
    )

    return SAETrainer(how, sae, batches()).fit().W_dec.detach()


topk = partial(trained, TopKTrainingSAE, TopKTrainingSAEConfig, k=given.active)
jobs = {
    "topk": topk,
    "topk-sparse": partial(topk, use_sparse_activations=True, rescale_acts_by_decoder_norm=False),
    "jumprelu": partial(trained, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
}
serve(jobs, {"version": version("sae-lens")})
