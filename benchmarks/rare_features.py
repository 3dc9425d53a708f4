"""A dictionary trained on samples, and one on the closed form: which learns rare features?

::

    python -m benchmarks.rare_features

The distribution is known: common features, and rare ones that hardly appear in a sample of this
size. ``samples`` trains on rows, ``samples, rare forced`` on rows of which half have a rare
feature forced on (possible only if the distribution is known). ``Gaussian``
trains on the closed form of the loss over the layer's Gaussian, ``Gaussians, one a rare feature``
over a mixture of those given that each rare feature is on.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offkey.estimate.gaussian import Normal
from offkey.estimate.sparse import (
    IndependentFeatures,
    SparseDictionary,
    expected_loss,
    fit_dictionary,
    fit_to_normals,
)
from offkey.storage import write_results
from offkey.training import TrainingSettings

RESULT = Path("docs/results/rare_features.json")
SEEDS = (0, 1, 2)
COMMON, RARE, WIDTH, LATENTS = 24, 8, 24, 40
ROWS = 5000
RATES = {"common": 0.06, "rare": 2e-5}
PENALTY = 0.2
FORCED = 0.5
"""Weight of the rare features where they are forced."""


def main() -> None:
    """Writes ``rare_features``."""
    rows = [row for seed in SEEDS for row in compared(seed)]
    write_results(RESULT, rows, command="python -m benchmarks.rare_features", seeds=list(SEEDS))


def planted(seed: int) -> IndependentFeatures:
    """Random directions of length 1, strengths of mean 3."""
    generator = torch.Generator().manual_seed(seed)
    count = COMMON + RARE
    decoder = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    rates = torch.full((count,), RATES["common"])
    rates[COMMON:] = RATES["rare"]

    return IndependentFeatures(
        rates,
        torch.full((count,), 3.0),
        torch.full((count,), 0.4),
        decoder / decoder.norm(dim=1, keepdim=True),
        noise=1e-3,
        slab="lognormal",
    )


def parts(made: IndependentFeatures) -> list[tuple[float, Normal]]:
    """The layer's Gaussian, and those given that each rare feature is on."""
    rest = [made.given(on=[k]).moments() for k in range(COMMON, COMMON + RARE)]

    return [(1 - FORCED, made.moments())] + [(FORCED / RARE, normal) for normal in rest]


def forced(made: IndependentFeatures, count: int, generator: torch.Generator) -> Tensor:
    """Rows of the same mixture, drawn."""
    each = int(count * FORCED / RARE)
    rare = [made.given(on=[k]).sample(each, generator)[1] for k in range(COMMON, COMMON + RARE)]

    return torch.cat([made.sample(count - each * RARE, generator)[1], *rare])


def compared(seed: int) -> list[dict[str, Any]]:
    """One row for each method."""
    made = planted(seed)
    generator = torch.Generator().manual_seed(100 + seed)
    latents, rows = made.sample(ROWS, generator)
    with_force = forced(made, ROWS, generator)
    sampled = TrainingSettings(steps=3000, batch=200, rate=3e-3, seed=seed)
    exact = TrainingSettings(steps=300, rate=1e-2, seed=seed)
    methods: dict[str, Callable[[], SparseDictionary]] = {
        "samples": lambda: fit_dictionary(rows, LATENTS, sampled, penalty=PENALTY),
        "samples, rare forced": lambda: fit_dictionary(
            with_force, LATENTS, sampled, penalty=PENALTY
        ),
        "Gaussian": lambda: fit_to_normals(
            [(1.0, made.moments())], LATENTS, exact, penalty=PENALTY
        ),
        "Gaussians, one a rare feature": lambda: fit_to_normals(
            parts(made), LATENTS, exact, penalty=PENALTY
        ),
    }
    rows = []
    for name, fit in methods.items():
        start = time.process_time()
        dictionary = fit()
        rows.append(
            {
                "method": name,
                "seed": seed,
                "rare_rows_in_sample": int((latents[:, COMMON:] > 0).any(1).sum()),
                **judged(made, dictionary, torch.Generator().manual_seed(7)),
                "processor_seconds": time.process_time() - start,
            }
        )

    return rows


def judged(
    made: IndependentFeatures, dictionary: SparseDictionary, generator: torch.Generator
) -> dict[str, float]:
    """Loss on fresh rows, common and with a rare feature on; similarity of the directions."""
    _, common = made.sample(20_000, generator)
    drawn = [made.given(on=[k]).sample(2000, generator) for k in range(COMMON, COMMON + RARE)]
    rare = torch.cat([rows for _, rows in drawn])
    unit = dictionary.decoder / dictionary.decoder.norm(dim=1, keepdim=True).clamp_min(1e-12)
    best = (made.decoder @ unit.T).amax(1)

    return {
        "loss": float(dictionary.loss(common)),
        "loss_by_the_closed_form": float(expected_loss(dictionary, made.moments())),
        "loss_where_a_rare_feature_is_on": float(dictionary.loss(rare)),
        "variance": float(made.moments().full.trace()),
        "cosine_common": float(best[:COMMON].mean()),
        "cosine_rare": float(best[COMMON:].mean()),
        "latents_on": float((dictionary.encode(common) > 0).double().sum(1).mean()),
    }


if __name__ == "__main__":
    main()
