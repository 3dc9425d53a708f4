"""A small classifier trained against a fitted Gaussian, its true risk tracked each round.

::

    python -m benchmarks.adversarial_risk

The classifier answers with the sign of the first of four inputs, and was trained to give a third
answer, the catastrophe, where the second and third are large together. Each round fits the
Gaussian of its margin anew, finds the mean within 2 nats at which failure is likeliest under
that fit, and trains the classifier on draws around it together with ordinary ones.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offkey.estimate.gaussian import Normal
from offkey.estimate.risk import Adversary, harden
from offkey.storage import write_results

RESULTS = Path("docs/results/adversarial_risk.json")
NATS = 2.0
FAR = 4.2
HELD_OUT = 200_000


def main() -> None:
    """Writes ``adversarial_risk``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = tracked(given.rounds, given.seed)
    for row in rows:
        print(row)
    write_results(
        RESULTS, rows, command="python -m benchmarks.adversarial_risk", seeds=[given.seed]
    )


def tracked(rounds: int, seed: int) -> list[dict[str, Any]]:
    """One row before each round of training, and one after the last."""
    network, ordinary = classifier(seed), Normal.standard(4)
    generator = torch.Generator().manual_seed(seed + 1)
    usual, held_out = (ordinary.sample(n, generator) for n in (1024, HELD_OUT))
    counted = [measured(network, held_out)]

    def margin(x: Tensor) -> Tensor:
        logits = network(x)
        return logits[:, 2] - logits[:, :2].amax(1)

    def train(x: Tensor) -> None:
        both = torch.cat([x, usual])
        fit(network, both, (both[:, 0] > 0).long(), 4)
        counted.append(measured(network, held_out))

    results = harden(margin, ordinary, train, Adversary(NATS, 1024, seed), rounds=rounds)

    return [
        {
            "round": number,
            "fitted_probability": result.fitted,
            "fitted_probability_at_shifted_mean": result.fitted_there,
            "true_probability": result.true.value,
            "true_probability_error": result.true.error,
            "effective_samples": result.true.effective_samples,
            "status": result.true.status,
            "counted_probability": share,
            "counted_inputs": HELD_OUT,
            "accuracy": accuracy,
            "nats": NATS,
        }
        for number, (result, (share, accuracy)) in enumerate(zip(results, counted, strict=True))
    ]


def classifier(seed: int) -> nn.Module:
    """The network with the planted catastrophe."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 3)).double()
    x = 2 * torch.randn(1024, 4).double()
    fit(network, x, torch.where(x[:, 1] + x[:, 2] > FAR, 2, (x[:, 0] > 0).long()), 150)

    return network


def fit(network: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """Trains for some steps on all rows."""
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()


def measured(network: nn.Module, x: Tensor) -> tuple[float, float]:
    """Shares of rows with the catastrophe, and with the right answer, by counting."""
    with torch.no_grad():
        answer = network(x).argmax(1)

    return float((answer == 2).double().mean()), float((answer == (x[:, 0] > 0)).double().mean())


if __name__ == "__main__":
    main()
