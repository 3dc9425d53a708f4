"""Volumes by the public tyche (package basin_volume), on the same tokens as every side.

Its causal estimator requests a CUDA device by name, and its package imports loaders of two
published models. Here the device's name means the processor, and libraries that only those loaders
use are replaced by stand-ins where they are not installed; the estimate itself is unchanged.
"""

import importlib
import sys
import types
from importlib.util import find_spec

import torch
from _given import Given, own
from _timing import serve
from transformers import AutoModelForCausalLM


class Standing(types.ModuleType):
    """A library that is imported and never used."""

    __path__: tuple = ()

    def __getattr__(self, name):
        """Anything that is imported from it."""
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


for name in ("einops", "datasets", "torchvision", "simple_parsing"):
    if find_spec(name) is None:
        for part in (
            name,
            f"{name}.transforms",
            f"{name}.transforms.v2",
            f"{name}.transforms.v2.functional",
        ):
            sys.modules[part] = Standing(part)


def on_processor(plain):
    """The method, for which the device cuda means the processor."""

    def to(self, *args, **kwargs):
        return plain(self, *("cpu" if arg == "cuda" else arg for arg in args), **kwargs)

    return to


torch.Tensor.to = on_processor(torch.Tensor.to)
torch.nn.Module.to = on_processor(torch.nn.Module.to)
estimator = importlib.import_module("basin_volume.estimator")

given = Given()
settings = given.settings
tokens = given.batches[0]["input_ids"]
model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
own(model)


class Tokens:
    """Stands for a tokenizer: the tokens are given, and none is padding."""

    pad_token_id = -1

    def __call__(self, *_, **__):
        """The tokens."""
        return {"input_ids": tokens}


def job(implicit):
    """A run with one kind of its vectors."""

    def run():
        """Evaluations a ray, the mean log weight, the mean radius."""
        config = estimator.VolumeConfig(
            model=model,
            tokenizer=Tokens(),
            dataset={"text": None},
            text_key="text",
            n_samples=settings["directions"],
            cutoff=settings["eps"],
            sigma=settings["sigma"],
            val_size=len(tokens),
            implicit_vectors=implicit,
            tqdm=False,
        )
        made = estimator.VolumeEstimator.from_config(config)
        calls = []
        plain = made.kl_fn

        def counted(a, b):
            calls.append(1)
            return plain(a, b)

        made.kl_fn = counted
        volume = made.run()
        radius = (volume.mults * volume.props).mean()

        return torch.tensor(
            [len(calls) / settings["directions"], float(volume.estimates.mean()), float(radius)]
        ).double()

    return run


serve({"explicit": job(False), "implicit": job(True)}, {"version": settings["peer_version"]})
