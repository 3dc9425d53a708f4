"""Readings by nnsight, and the whole job written with it."""

from importlib.metadata import version

import nnsight
import torch
from _given import Given, distances, touch
from _timing import serve

given = Given()
model = nnsight.TransformersModel(
    given.model,
    task="text-generation",
    dispatch=True,
    dtype=torch.bfloat16,
    attn_implementation=given.attention,
)
touch(model._module)
layers = model.config.num_hidden_layers


def passes():
    """Every layer's output at the last token, [layer, n, d]."""
    kept = []
    for batch in given.batches:
        with torch.inference_mode(), model.trace(batch):
            rows = nnsight.save([])
            for layer in model.model.layers:
                rows.append(layer.output[:, -1].clone())
        kept.append(torch.stack(rows))

    return torch.cat(kept, dim=1)


def lean():
    """The same, stopped after the last layer."""
    kept = []
    for batch in given.batches:
        with torch.inference_mode(), model.trace(batch) as tracer:
            rows = nnsight.save([])
            for layer in model.model.layers:
                rows.append(layer.output[:, -1].clone())
            tracer.stop()
        kept.append(torch.stack(rows))

    return torch.cat(kept, dim=1)


def read(name):
    """Outputs of the later layers at the last token, 32 prompts at a time in the order given."""
    prompts, kept = given.prompts(name), []
    for start in range(0, len(prompts), 32):
        with torch.inference_mode(), model.trace(prompts[start : start + 32]):
            rows = nnsight.save([])
            for layer in model.model.layers[layers // 2 :]:
                rows.append(layer.output[:, -1].clone())
        kept.append(torch.stack(rows))

    return torch.cat(kept, dim=1)


def whole():
    """From prompts to scores."""
    return distances(read("trusted"), read("test"))


serve(
    {"passes": passes, "lean": lean, "whole": whole},
    {"version": version("nnsight"), "torch": torch.__version__},
)
