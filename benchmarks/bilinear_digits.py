"""A bilinear classifier of handwritten digits, decomposed into eigenvectors.

::

    python -m benchmarks.bilinear_digits
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from offkey.estimate.bilinear import Bilinear, Spectrum, effective_rank, in_basis, interactions
from offkey.stats import wilson
from offkey.storage import write_results
from offkey.training import TrainingSettings, train_module

RESULT = Path("docs/results/bilinear_digits.json")
FIGURE = Path("docs/images/bilinear-digits.svg")
SEEDS = (0, 1, 2)
TRAIN = 1200
SIDE = 8
KEPT = (1, 2, 3, 5, 10, 20)
"""Eigenvectors kept of each digit, beside all."""

VARIANTS = {
    "plain": (0.0, 0.0),
    "input noise": (0.0, 0.4),
    "weight decay": (0.5, 0.0),
    "weight decay and input noise": (0.5, 0.4),
}
"""Weight decay of AdamW, and the standard deviation of the noise on pixels of 0 to 1."""


class Classifier(nn.Module):
    """An embedding, a bilinear layer whose outputs are logits, and noise while it trains."""

    def __init__(self, noise: float, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Linear(SIDE * SIDE, 48, bias=False)
        self.layer = Bilinear(48, 96, 10, bias=True, seed=seed)
        self.noise, self.generator = noise, torch.Generator().manual_seed(seed)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        if self.training and self.noise:
            pixels = pixels + self.noise * torch.randn(pixels.shape, generator=self.generator)

        return self.layer(self.embedding(pixels))

    def basis(self) -> Tensor:
        """The input of the layer from the 1 and each pixel."""
        weight = self.embedding.weight.detach().double()
        basis = weight.new_zeros(len(weight) + 1, SIDE * SIDE + 1)
        basis[0, 0], basis[1:, 1:] = 1.0, weight

        return basis


def main() -> None:
    """Writes ``bilinear_digits`` and its figure."""
    rows, drawn = [], {}
    for variant in VARIANTS:
        for seed in SEEDS:
            more, spectrum = measured(variant, seed)
            rows += more
            if seed == SEEDS[0]:
                drawn[variant] = spectrum
    write_results(RESULT, rows, command="python -m benchmarks.bilinear_digits", seeds=list(SEEDS))
    draw({name: drawn[name] for name in ("plain", "weight decay and input noise")})


def measured(variant: str, seed: int) -> tuple[list[dict[str, Any]], Spectrum]:
    """Accuracy with few and with all eigenvectors, over pixels."""
    decay, noise = VARIANTS[variant]
    (train_x, train_y), (test_x, test_y) = split(seed)
    model = Classifier(noise, seed)
    settings = TrainingSettings(steps=1500, batch=100, rate=3e-3, decay=decay, seed=seed)
    train_module(model, train_x, train_y, settings)
    model.eval()
    whole = Spectrum.of(in_basis(interactions(model.layer), model.basis()))
    pixels = torch.cat([torch.ones(len(test_x), 1), test_x], 1)
    with torch.no_grad():
        direct = model(test_x)
    gap = float((whole(pixels) - direct).abs().max() / direct.abs().max())
    common = {
        "variant": variant,
        "seed": seed,
        "train_accuracy": share(model(train_x).argmax(1), train_y),
        "effective_rank": float(effective_rank(whole.values).mean()),
        "largest_error_of_all_eigenvectors": gap,
    }
    rows = []
    for kept in (*KEPT, whole.values.shape[1]):
        guesses = whole.truncated(kept)(pixels).argmax(1)
        right = wilson(int((guesses == test_y).sum()), len(test_y))
        rows.append(
            {
                **common,
                "eigenvectors_of_each_digit": kept,
                "accuracy": right.value,
                "low": right.low,
                "high": right.high,
                "test_digits": len(test_y),
            }
        )

    return rows, whole


def split(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Digits to train on and to test on, pixels from 0 to 1."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    x, y = torch.tensor(data.data[order] / 16).float(), torch.tensor(data.target[order])

    return (x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])


def share(guesses: Tensor, truth: Tensor) -> float:
    """Accuracy."""
    return float((guesses == truth).double().mean())


def draw(spectra: dict[str, Spectrum]) -> None:
    """The most positive and the most negative eigenvector of each digit, pixel by pixel."""
    with rc_context({"svg.hashsalt": "offkey", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(8.4, 4.2))
        grid = figure.subplots(2 * len(spectra), 10, squeeze=False)
        for block, (variant, spectrum) in enumerate(spectra.items()):
            for digit in range(10):
                for side, sign in enumerate((1, -1)):
                    axes = grid[2 * block + side][digit]
                    best = int((sign * spectrum.values[digit]).argmax())
                    _paint(
                        axes, spectrum.vectors[digit, best], float(spectrum.values[digit, best])
                    )
                    if digit == 0:
                        words = f"{variant.replace(' and', chr(10) + 'and')}\n"
                        axes.set_ylabel(words + ("for" if sign > 0 else "against"))
        for digit in range(10):
            grid[0][digit].set_title(f"{digit}", fontsize=10)
        figure.tight_layout(pad=0.6)
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(FIGURE, format="svg", metadata={"Date": None})


def _paint(axes: Any, vector: Tensor, value: float) -> None:
    """One eigenvector over the pixels; its sign is free, so most of it is made positive."""
    image = vector[1:].reshape(SIDE, SIDE)
    image = image * torch.sign(image.pow(3).sum())
    limit = float(image.abs().max())
    axes.imshow(image.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f"λ {value:.2f}", fontsize=7)


if __name__ == "__main__":
    main()
