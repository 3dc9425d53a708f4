"""Detectors of offkey, fitted and run on the prompts given."""

import torch
from _given import Given, touch
from _timing import serve

import offkey

given = Given()
model = offkey.load(given.model, dtype=torch.bfloat16)
touch(model.module)
trusted, pool, test = (
    offkey.read_prompts(given.data / f"{name}.jsonl") for name in ("trusted", "pool", "test")
)


def scored(score, untrusted=None):
    """Scores of the test prompts by a detector of all blocks."""
    detector = offkey.Detector("activations", score, sites="resid_post.*")
    detector.fit(model, trusted, pool=untrusted)

    return torch.from_numpy(detector.score(model, test).score)


def mahalanobis():
    """Mahalanobis distance, mean over blocks."""
    return scored("mahalanobis")


def que():
    """Quantum entropy with unlabelled prompts, mean over blocks."""
    return scored("que", pool)


serve({"mahalanobis": mahalanobis, "que": que}, {"version": None})
