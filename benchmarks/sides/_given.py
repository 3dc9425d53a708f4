"""What every side is given, and the detector that a user of a peer writes by hand."""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


class Given:
    """The same packed batches and the same prompts for every side."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--model", required=True)
        parser.add_argument("--data", type=Path, required=True)
        parser.add_argument("--attention", default="sdpa")
        options = parser.parse_args()
        self.model, self.attention, self.data = options.model, options.attention, options.data
        path = options.data / "batches.safetensors"
        tensors = load_file(path) if path.exists() else {}
        count = len({name.partition(".")[0] for name in tensors})
        self.batches = [
            {key: tensors[f"{n}.{key}"] for key in ("input_ids", "attention_mask", "position_ids")}
            for n in range(count)
        ]

    @property
    def settings(self) -> dict:
        """What else a job was told."""
        return json.loads((self.data / "settings.json").read_text())

    def prompts(self, name: str) -> list[str]:
        """The texts of ``trusted`` or ``test``."""
        lines = (self.data / f"{name}.jsonl").read_text().splitlines()

        return [json.loads(line)["prompt"] for line in lines]


def touch(module: torch.nn.Module) -> None:
    """Brings mapped weights into memory, so that they count as loaded."""
    for weight in module.parameters():
        weight.detach().sum()


def own(module: torch.nn.Module) -> None:
    """Copies mapped weights into memory of this process, where writing to them adds none."""
    for weight in module.parameters():
        weight.data = weight.data.clone()


def distances(trusted: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """Mahalanobis distances, standardised by layer and averaged; rows are [layer, n, d]."""
    total = torch.zeros(test.shape[1], dtype=torch.float64)
    for known, new in zip(trusted.double(), test.double(), strict=True):
        mean = known.mean(0)
        covariance = (known - mean).T @ (known - mean) / len(known)
        covariance = 0.9 * covariance
        covariance += 0.1 * covariance.trace() / len(covariance) * torch.eye(len(covariance))
        factor = torch.linalg.cholesky(covariance)

        def distance(x, mean=mean, factor=factor):
            return torch.linalg.solve_triangular(factor, (x - mean).T, upper=False).square().sum(0)

        own = distance(known)
        total += (distance(new) - own.median()) / own.std()

    return total / len(trusted)
