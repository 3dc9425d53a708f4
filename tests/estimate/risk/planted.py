"""Problems whose answer is known."""

import math

import torch
from torch import nn

from offkey.estimate.risk import Draws, ModuleNetwork, Problem, TokenInputs

CORNER = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]).double()


class Sum(nn.Module):
    """The sum of the tokens' numbers."""

    def forward(self, hot):
        return (hot * torch.arange(hot.shape[-1]).to(hot)).sum((1, 2))[:, None]


def sum_of_tokens(positions, least, inputs=None):
    """Tokens 0 to 3; logit 0 is their sum, and the largest where that is at least ``least``."""
    head = nn.Linear(1, 2).double()
    head.weight.data = torch.tensor([[1.0], [0.0]]).double()
    head.bias.data = torch.tensor([0.0, least - 0.5]).double()
    network = ModuleNetwork(Sum(), head, 4)

    return Problem(network, inputs or TokenInputs.uniform(positions, range(4)), 0)


def tangled(positions=3, vocabulary=4, outputs=5, seed=0):
    """A random network in which tokens interact."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(positions * vocabulary, 8), nn.Tanh()).double()
    head = nn.Linear(8, outputs).double()
    head.weight.data *= 4

    return ModuleNetwork(trunk, head, vocabulary)


def corner(threshold, samples, seed=0):
    """Standard Gaussians of which both parts should exceed the threshold."""
    drawn = torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed)).double()

    return Draws(drawn, CORNER, torch.tensor([0.0, threshold, threshold]).double())


def upper(threshold):
    """Of a standard Gaussian, the probability above."""
    return 0.5 * math.erfc(threshold / math.sqrt(2))
