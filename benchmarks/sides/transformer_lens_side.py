"""Readings by TransformerLens' bridge, and the whole job written with it."""

from importlib.metadata import version

import torch
from _given import Given, distances, touch
from _timing import serve
from transformer_lens.model_bridge import TransformerBridge

given = Given()
model = TransformerBridge.boot_transformers(given.model, device="cpu", dtype=torch.bfloat16)
touch(model)
layers = model.cfg.n_layers


def is_residual(name):
    """Whether a hook is a block's output."""
    return name.endswith("hook_resid_post")


def run(inputs, blocks=range(layers), **settings):
    """Outputs of blocks at the last token, [layer, n, d]."""
    with torch.inference_mode():
        _, cache = model.run_with_cache(inputs, names_filter=is_residual, pos_slice=-1, **settings)
        return torch.stack([cache["resid_post", block][:, 0] for block in blocks])


def passes(**settings):
    """Every layer's output at the last token, [layer, n, d]."""
    rows = [
        run(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            **settings,
        )
        for batch in given.batches
    ]

    return torch.cat(rows, dim=1)


def lean():
    """The same without logits but the last token's, which are not returned."""
    return passes(return_type=None, logits_to_keep=1)


def whole():
    """From prompts to scores, 32 prompts at a time in the order given."""

    def read(name):
        prompts = given.prompts(name)
        later = range(layers // 2, layers)
        parts = [
            run(prompts[start : start + 32], later, padding_side="left", prepend_bos=False)
            for start in range(0, len(prompts), 32)
        ]
        return torch.cat(parts, dim=1)

    return distances(read("trusted"), read("test"))


serve(
    {"passes": passes, "lean": lean, "whole": whole},
    {"version": version("transformer-lens"), "torch": torch.__version__},
)
