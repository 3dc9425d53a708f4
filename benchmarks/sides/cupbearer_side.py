"""Detectors of cupbearer, fitted and run on the prompts given."""

from importlib.metadata import PackageNotFoundError, version

import torch
from _given import Given, touch
from _timing import serve
from cupbearer import detectors
from cupbearer.models import HuggingfaceLM
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 32

given = Given()
module = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.bfloat16)
touch(module)
tokenizer = AutoTokenizer.from_pretrained(given.model, padding_side="left")
model = HuggingfaceLM(tokenizer, module.eval(), device="cpu")
names = [f"hf_model.model.layers.{n}.output" for n in range(len(module.model.layers))]
trusted, pool, test = (given.prompts(name) for name in ("trusted", "pool", "test"))


def last(activation, inputs, name):
    """The last token's activation, in a precision in which covariances can be summed."""
    return activation[:, -1].float()


def scored(kind, untrusted=None):
    """Scores of the test prompts by a detector of all blocks."""
    detector = kind(activation_names=names, individual_processing_fn=last)
    detector.train(
        trusted_data=trusted, untrusted_data=untrusted, model=model, batch_size=BATCH, pbar=False
    )
    with torch.no_grad():
        parts = [
            detector.compute_scores(test[start : start + BATCH])
            for start in range(0, len(test), BATCH)
        ]

    return torch.cat(parts)


def mahalanobis():
    """Mahalanobis distance, mean over blocks."""
    return scored(detectors.MahalanobisDetector)


def que():
    """Quantum entropy with unlabelled prompts, mean over blocks."""
    return scored(detectors.QuantumEntropyDetector, pool)


def told():
    """The package's version, where it is installed as one."""
    try:
        return version("cupbearer")
    except PackageNotFoundError:
        return None


serve({"mahalanobis": mahalanobis, "que": que}, {"version": told()})
