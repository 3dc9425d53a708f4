"""Volumes by offkey, on the same tokens as every side."""

import warnings

import torch
from _given import Given, own
from _timing import serve

import offkey
from offkey.data import Batch
from offkey.volume import CrossingSearch, GaussianMeasure, KLCost, LowESS, estimate_volume

warnings.simplefilter("ignore", LowESS)
given = Given()
model = offkey.load(given.model, dtype=torch.float32)
own(model.module)
settings = given.settings
tokens = given.batches[0]["input_ids"]
batches = [
    Batch({"input_ids": row[None]}, (str(number),), mask=torch.ones(1, len(row), dtype=torch.bool))
    for number, row in enumerate(tokens)
]


def run():
    """Evaluations a ray, the mean log weight, the mean radius."""
    cost = KLCost(model, batches)
    volume = estimate_volume(
        cost,
        settings["eps"],
        GaussianMeasure(settings["sigma"]),
        n=settings["directions"],
        search=CrossingSearch(rtol=settings["rtol"]),
    )

    evaluations = cost.evaluations / settings["directions"]
    return torch.tensor([evaluations, volume.mean, float(volume.rays["radius"].mean())]).double()


serve({"run": run}, {"version": None})
