"""Anomalies in the basis of a dictionary against the basis of neurons.

::

    python -m benchmarks.sparse_basis

For planted features and for layers of two organisms: how well each basis separates anomalous rows
from normal ones, and how many bits of held-out trusted rows it explains beyond what it costs,
with the dictionary's own weights free of charge and charged.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offkey.bench import TaskModels
from offkey.data import Prompts
from offkey.estimate.gaussian import Normal
from offkey.estimate.sparse import (
    IndependentFeatures,
    SparseDictionary,
    basis_surprise,
    fit_dictionary,
    sparse_surprise,
)
from offkey.models import Model, load
from offkey.stats import Moments, auroc, ledoit_wolf, shrink
from offkey.storage import write_results
from offkey.tasks import BASE
from offkey.training import TrainingSettings

RESULT = Path("docs/results/sparse_basis.json")
BLOCKS = {"comparison": (6, 10, 14), "agreement": (4, 20)}
"""Of the organisms, early blocks where neurons do not tell everything already, and a late one."""
SEED = 0
FIT, HELD, TEST = 200, 100, 300
"""Prompts of the organism: fitted on, held out for bits, and scored."""


@dataclass(frozen=True)
class Data:
    """Rows of one kind.

    Attributes:
        name: what they are.
        pool: trusted rows for the dictionary.
        fit: trusted rows for everything else.
        held: trusted rows for bits.
        test: rows to be scored.
        labels: of them, 1 for anomalous.
        latents: of the dictionary.
        truth: the dictionary that made the rows, where it is known.
    """

    name: str
    pool: Tensor
    fit: Tensor
    held: Tensor
    test: Tensor
    labels: Tensor
    latents: int
    truth: IndependentFeatures | None = None


def main() -> None:
    """Writes ``sparse_basis``."""
    clean = load(BASE)
    every = [*planted(), *(data for task in BLOCKS for data in organism(task, clean))]
    rows = [row for data in every for row in measured(data)]
    write_results(RESULT, rows, command="python -m benchmarks.sparse_basis", seeds=[SEED])


def planted() -> Iterator[Data]:
    """96 features in 64 dimensions, each on in 4 of 100 rows; anomalies of three kinds."""
    generator = torch.Generator().manual_seed(SEED)
    count, width = 96, 64
    decoder = torch.randn(count, width, generator=generator, dtype=torch.float64) / width**0.5
    rates = torch.full((count,), 0.04)
    rates[:16] = 0.002
    made = IndependentFeatures(
        rates,
        torch.full((count,), 3.0),
        torch.full((count,), 0.5),
        decoder,
        noise=0.01,
        slab="lognormal",
    )
    rare = made.given(on=range(3), off=range(16, count))
    kinds = {
        "three rare features at once": IndependentFeatures(
            torch.where(torch.arange(count) < 16, 0.19, rates),
            made.means,
            made.variances,
            decoder,
            noise=0.01,
            slab="lognormal",
        ),
        "nothing but rare features": rare,
        "a direction that is no feature": None,
    }
    _, trusted = made.sample(6500, generator)
    for name, odd in kinds.items():
        _, normal = made.sample(500, generator)
        if odd is not None:
            _, other = odd.sample(500, generator)
        else:
            _, other = made.sample(500, generator)
            away = torch.randn(500, width, generator=generator, dtype=torch.float64)
            other = other + 2 * away / away.norm(dim=1, keepdim=True)
        yield Data(
            f"planted: {name}",
            trusted[:6000],
            trusted[:6000],
            trusted[6000:],
            torch.cat([normal, other]),
            torch.arange(1000) // 500,
            128,
            made,
        )


def organism(task: str, clean: Model) -> Iterator[Data]:
    """Layers of an organism at the last token; the dictionary sees every token."""
    models = TaskModels.of(task, clean=clean)
    kept: list[int] = []
    for label in (0, 1):
        found = (k for k, value in enumerate(models.test["label"]) if value == label)
        kept += islice(found, TEST // 2)
    test = models.test.take(kept)
    labels = torch.tensor([int(value) for value in test["label"]])
    trusted = [models.trusted.take(range(FIT)), models.trusted.take(range(FIT, FIT + HELD))]
    sites = [f"resid_post.{block}" for block in BLOCKS[task]]
    runs = [tokens(models.organism, prompts, sites) for prompts in (*trusted, test)]
    for site in sites:
        (pool, fit), (_, held), (_, scored) = (run[site] for run in runs)
        yield Data(f"{task}, {site}", pool, fit, held, scored, labels, 768)


def tokens(
    model: Model, prompts: Prompts, sites: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows of every token but the first, which is far from all others, and of the last."""
    run = model.run(list(prompts["prompt"]), sites, positions="all")
    mask = run.mask.clone()
    mask[torch.arange(len(mask)), mask.int().argmax(1)] = False

    return {site: (run[site][mask].float(), run[site][:, -1].float()) for site in sites}


def measured(data: Data) -> Iterator[dict[str, Any]]:
    """One row a basis and score."""
    steps = TrainingSettings(steps=1500, batch=256, rate=2e-3, seed=SEED)
    dictionary = fit_dictionary(data.pool, data.latents, steps, penalty=0.5)
    codes = dictionary.encode(data.fit)
    features = IndependentFeatures.fit(
        codes,
        dictionary.decoder,
        rows=data.fit,
        offset=dictionary.decoder_bias,
        slab="lognormal",
    )
    about = {
        "data": data.name,
        "width": data.fit.shape[1],
        "latents": data.latents,
        "latents_on": float((codes > 0).double().sum(1).mean()),
        "variance_explained": explained(dictionary, data.held),
        "rows_of_the_dictionary": len(data.pool),
        "rows_fitted": len(data.fit),
        "rows_held": len(data.held),
    }
    for (basis, score), values in scores(data, dictionary, features).items():
        area = auroc(values.tolist(), data.labels.tolist())
        yield {
            **about,
            "basis": basis,
            "score": score,
            "auroc": area.value,
            "low": area.low,
            "high": area.high,
            **bits(data, basis, score, features),
        }


def explained(dictionary: SparseDictionary, rows: Tensor) -> float:
    """Share of variance that the reconstruction holds."""
    rows = rows.double()
    left = (rows - dictionary.decode(dictionary.encode(rows))).square().sum()

    return 1 - float(left / (rows - rows.mean(0)).square().sum())


def scores(
    data: Data, dictionary: SparseDictionary, features: IndependentFeatures
) -> dict[tuple[str, str], Tensor]:
    """Every score of the test rows; higher is more anomalous."""
    test = data.test.double()
    codes, fitted = dictionary.encode(test), dictionary.encode(data.fit)
    neurons, sparse = gaussians(data), features.moments()
    found = {
        ("neurons", "variances"): neurons["variances"].density().mahalanobis(test),
        ("neurons", "covariance"): neurons["covariance"].density().mahalanobis(test),
        ("sparse", "Gaussian of the features"): sparse.density().mahalanobis(test),
        ("sparse", "independent features"): sparse_surprise(dictionary, features, test),
        ("sparse", "which features are on"): on_alone(features, codes),
        ("sparse", "variances of latents"): variances(fitted, codes),
        ("sparse", "reconstruction"): (test - dictionary.decode(codes)).square().sum(1),
    }
    if data.truth is not None:
        found["true features", "Gaussian of the features"] = (
            data.truth.moments().density().mahalanobis(test)
        )

    return found


def on_alone(features: IndependentFeatures, codes: Tensor) -> Tensor:
    """Bits of which latents are on, whatever their strength."""
    on = codes > 0
    rates = features.rates

    return -torch.where(on, rates.log2(), torch.log1p(-rates) / torch.log(torch.tensor(2.0))).sum(
        1
    )


def variances(fitted: Tensor, codes: Tensor) -> Tensor:
    """Squared distance with a variance for each latent; those that never varied count nothing."""
    spread = fitted.var(0)
    varied = spread > 1e-9 * spread.max()

    return ((codes - fitted.mean(0)).square() / torch.where(varied, spread, 1.0))[:, varied].sum(1)


def gaussians(data: Data) -> dict[str, Normal]:
    """Of the neurons: variances alone, and the covariance shrunk by Ledoit and Wolf."""
    moments = Moments()
    moments.update(data.fit, [str(k) for k in range(len(data.fit))])
    covariance = shrink(moments.covariance(), ledoit_wolf(moments).shrinkage)

    return {
        "variances": Normal(moments.mean, moments.variance()),
        "covariance": Normal(moments.mean, (covariance + covariance.T) / 2),
    }


def bits(
    data: Data, basis: str, score: str, features: IndependentFeatures
) -> dict[str, float | None]:
    """Net bits of the held-out rows, where the score has a Gaussian over the same space.

    The values of a Gaussian: a variance a neuron; all variances and covariances; a variance a
    latent and the noise. Means cost the same everywhere and are left out.
    """
    width, latents = data.fit.shape[1], data.latents
    models: dict[tuple[str, str], Callable[[], tuple[Normal, int]]] = {
        ("neurons", "variances"): lambda: (gaussians(data)["variances"], width),
        ("neurons", "covariance"): lambda: (
            gaussians(data)["covariance"],
            width * (width + 1) // 2,
        ),
        ("sparse", "Gaussian of the features"): lambda: (features.moments(), latents + 1),
    }
    if data.truth is not None:
        truth = data.truth
        models["true features", "Gaussian of the features"] = lambda: (
            truth.moments(),
            len(truth.rates) + 1,
        )
    if (basis, score) not in models:
        return {"explained_bits": None, "net_bits": None, "net_bits_dictionary_charged": None}
    normal, values = models[basis, score]()
    empty = gaussians(data)["variances"], width
    held, fitted_on = data.held.double(), len(data.fit)
    free = basis_surprise((normal, values), empty, held, fitted_on)
    weights = width * features.decoder.shape[0] if basis == "sparse" else 0
    if basis == "true features" and data.truth is not None:
        weights = data.truth.decoder.numel()
    charged = basis_surprise((normal, values + weights), empty, held, fitted_on)

    return {
        "explained_bits": free.explained,
        "net_bits": free.net,
        "net_bits_dictionary_charged": charged.net,
    }


if __name__ == "__main__":
    main()
