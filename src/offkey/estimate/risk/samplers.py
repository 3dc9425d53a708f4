"""Importance sampling of inputs: token by token, and by Markov chains."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from offkey.errors import BadInput, BadValue
from offkey.estimate.quantities import Estimate
from offkey.estimate.risk.draws import none_accepted
from offkey.estimate.risk.problem import Problem

__all__ = [
    "FEWEST",
    "ITGIS",
    "importance_mean",
    "flag_unreliable",
    "log_normalisers",
    "log_weights",
    "MHIS",
]

FEWEST = 10
"""Effective sample size below which an estimate is called unreliable."""
_MOST = 200
_CLOSE = 1e-9
_APART = 1e-6
"""Least curvature of the objective; below it the constants are not determined."""
_GROUPS = 8
_LEAST_STEPS = 24


@dataclass(frozen=True)
class ITGIS:
    r"""Independent token gradient importance sampling.

    Tokens are drawn from :math:`q_i(v) \propto p_i(v) \exp(s_i(v) / T)`, where s is the moving
    average of the gradient of the target's logit with respect to the one-hot token. A batch is
    drawn with the gradients of earlier batches alone, so the mean of
    :math:`1[\text{event}] \prod_i p_i / q_i` is unbiased.

    Args:
        temperature: T, in logits.
        samples: how many inputs are run.
        batch: how many are drawn from the same q.
        decay: of the moving average, which is divided by the sum of its weights.

    Raises:
        BadValue: a setting is not positive, or the decay is not in [0, 1).

    References:
        Wu and Hilton, 2024: Estimating the probabilities of rare outputs in language models.
    """

    temperature: float = 2.0
    samples: int = 4096
    batch: int = 256
    decay: float = 0.9

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.samples < 1 or self.batch < 1:
            raise BadValue("temperature, samples and batch must be positive", where="ITGIS")
        if not 0 <= self.decay < 1:
            raise BadValue(f"decay {self.decay} is not in [0, 1)", where="ITGIS")

    def __call__(self, problem: Problem, *, seed: int = 0) -> Estimate:
        """Estimates the probability of the event.

        ``effective_samples`` is that of the accepted samples, by their weights.
        """
        generator = torch.Generator().manual_seed(seed)
        inputs = problem.inputs
        slope = torch.zeros_like(inputs.probabilities)
        mass, weights = 0.0, []
        for start in range(0, self.samples, self.batch):
            log_q = _tilted(inputs.probabilities, slope / (mass or 1.0) / self.temperature)
            count = min(self.batch, self.samples - start)
            choices = inputs.draw(count, generator, log_q.exp())
            pull = problem.network.gradients(
                inputs.tokens_of(choices), problem.target, inputs.tokens
            )
            log_ratio = inputs.log_probability(choices) - log_q.T.gather(0, choices).sum(1)
            weights.append(log_ratio.exp() * problem.is_event(pull.finals))
            slope = self.decay * slope + (1 - self.decay) * pull.gradient.mean(0)
            mass = self.decay * mass + (1 - self.decay)

        return importance_mean(torch.cat(weights))


def _tilted(p: Float[Tensor, "k c"], tilt: Float[Tensor, "k c"]) -> Float[Tensor, "k c"]:
    return torch.log_softmax(p.log() + tilt, 1)


def importance_mean(weights: Float[Tensor, " n"]) -> Estimate:
    r"""The mean of importance weights that are 0 where the event was missed.

    Returns:
        The mean with its standard error, and the effective number of accepted samples
        :math:`(\sum w)^2 / \sum w^2`; below 10 the status is ``failed`` but the value is kept.
    """
    n = len(weights)
    total = float(weights.sum())
    if total == 0:
        return none_accepted(n, "no sample was accepted")
    effective = total**2 / float(weights.square().sum())
    error = float(weights.std(correction=0)) / math.sqrt(n)

    return flag_unreliable(total / n, error, effective, n)


def flag_unreliable(value: float, error: float, effective: float, samples: int) -> Estimate:
    """An importance-sampling estimate, with status ``failed`` where few samples carry it."""
    if effective >= FEWEST:
        return Estimate(value, error, effective, 1 / samples)

    return Estimate(
        value,
        error,
        effective,
        1 / samples,
        status="failed",
        reason=f"effective sample size {effective:.1f} is below {FEWEST}: the value hangs on few "
        "samples",
    )


def log_normalisers(
    scores: Float[Tensor, " n"],
    betas: Float[Tensor, " rungs"],
    counts: Float[Tensor, " rungs"],
) -> Float[Tensor, " rungs"]:
    r""":math:`\ln Z(\beta)`, :math:`Z(\beta) = E_p[e^{\beta s}]`, by multistate bridge sampling.

    Args:
        scores: s of every sample, whatever rung it was drawn at.
        betas: of each rung; the first is 0, where Z is 1.
        counts: how many samples were drawn at each rung.

    Raises:
        BadInput: the solution was not found, which is so where rungs do not overlap.

    References:
        Shirts and Chodera, 2008, eq. 11 and appendix C (the convex objective).
    """
    energies = betas[None] * scores[:, None]
    share = counts / counts.sum()

    def value_at(free: Tensor) -> tuple[float, Tensor]:
        shifted = energies - free + share.log()
        total = shifted.logsumexp(1)

        return float(total.mean() + share @ free), (shifted - total[:, None]).exp()

    free = _guess(scores, betas, counts)
    value, members = value_at(free)
    for _ in range(_MOST):
        slope = (share - members.mean(0))[1:]
        curve = torch.diag(members.mean(0)) - members.T @ members / len(scores)
        if float(slope.abs().amax()) < _CLOSE:
            break
        step = torch.linalg.lstsq(curve[1:, 1:], slope[:, None], driver="gelsd").solution[:, 0]
        length = 1.0
        while True:
            tried = free - length * torch.cat([torch.zeros(1).double(), step])
            lower, members = value_at(tried)
            if lower <= value + 1e-12 or length < 1e-6:
                break
            length /= 2
        free, value = tried, lower
    if float(torch.linalg.eigvalsh(curve[1:, 1:])[0]) < _APART:
        raise BadInput(
            "the rungs do not overlap, so that their normalising constants cannot be compared",
            where="bridge sampling",
            mend="Use more rungs or samples",
        )

    return free


def log_weights(
    scores: Float[Tensor, " n"],
    betas: Float[Tensor, " rungs"],
    counts: Float[Tensor, " rungs"],
    free: Float[Tensor, " rungs"],
) -> Float[Tensor, " n"]:
    r"""Of each sample, for means under p: :math:`-\ln \sum_k N_k e^{\beta_k s} / Z_k`."""
    shifted: Tensor = (counts.log() - free)[None] + betas[None] * scores[:, None]

    return -shifted.logsumexp(1)


def _guess(scores: Tensor, betas: Tensor, counts: Tensor) -> Tensor:
    """Rung by rung: the mean score times the step, halfway between neighbours."""
    means = torch.stack([part.mean() for part in torch.split(scores, [int(n) for n in counts])])
    rises = 0.5 * (means[1:] + means[:-1]) * betas.diff()

    return torch.cat([torch.zeros(1).double(), rises.cumsum(0)])


@dataclass(frozen=True)
class MHIS:
    r"""Chains on :math:`q_\beta(x) \propto p(x) \exp(\beta\, \text{logit}(x))`.

    A step proposes another token at a random position, by
    :math:`p_i(v) \exp(\beta\, \partial_v \text{logit})`, and is taken by the full
    Metropolis-Hastings ratio. With ``normaliser="bridge"`` the chains are annealed from
    :math:`\beta = 0`, where inputs are drawn afresh, to :math:`1 / T`; the normalising constants
    of all rungs are then found together by bridge sampling, and every sample of every rung is
    importance_mean against the mixture of rungs.

    Args:
        temperature: T, in logits.
        samples: how many inputs are run, in all chains and rungs together.
        chains: how many run in parallel.
        rungs: how many :math:`\beta` from 0 to :math:`1 / T`; else as many as make the score
            differ by one standard deviation from each to the next. The last takes half of the
            steps.
        normaliser: ``"bridge"``; or ``"compat-harmonic"``, the published estimator
            :math:`\sum 1[\text{event}] e^{-s/T} / \sum e^{-s/T}` at one temperature, whose
            denominator depends on the rarest samples (it was 80 to 380 times too large on a
            planted sum of tokens).

    Raises:
        BadValue: a setting is not positive, or there are too few samples for the rungs.

    References:
        Wu and Hilton, 2024. Shirts and Chodera, 2008: Statistically optimal analysis of samples
        from multiple equilibrium states, eq. 11.
    """

    temperature: float = 1.0
    samples: int = 4096
    chains: int = 32
    rungs: int | None = None
    normaliser: Literal["bridge", "compat-harmonic"] = "bridge"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise BadValue(f"temperature {self.temperature} is not positive", where="MHIS")
        if self.chains < _GROUPS:
            raise BadValue(f"{self.chains} chains", where="MHIS", mend=f"Use at least {_GROUPS}")
        if self.rungs is not None and self.rungs < 2:
            raise BadValue(f"{self.rungs} rungs", where="MHIS", mend="Use at least 2")
        if self.normaliser not in ("bridge", "compat-harmonic"):
            raise BadValue(
                f"unknown normaliser {self.normaliser!r}",
                where="MHIS",
                mend="Use 'bridge' or 'compat-harmonic'",
            )
        if self.samples < _LEAST_STEPS * self.chains:
            raise BadValue(
                f"{self.samples} samples are fewer than {_LEAST_STEPS} a chain", where="MHIS"
            )

    def __call__(self, problem: Problem, *, seed: int = 0) -> Estimate:
        """Estimates the probability of the event.

        The standard error is that of leaving out one eighth of the chains at a time;
        ``effective_samples`` is the smaller of what the weights and that error imply.
        """
        walkers = _Walkers(problem, self.chains, torch.Generator().manual_seed(seed))
        coldest, steps = 1 / self.temperature, self.samples // self.chains - 1
        if self.normaliser == "compat-harmonic":
            walkers.run(coldest, steps // 3)
            path = walkers.run(coldest, steps - steps // 3)
            return _chain_estimate(_harmonic(coldest), [path], self.samples)
        rungs = self.rungs or _rungs(coldest * float(walkers.score.std()), steps)
        betas = torch.linspace(0, coldest, rungs, dtype=torch.float64)
        each = max(2, steps // (2 * (rungs - 1)))
        paths = [walkers.run(beta, each) for beta in betas[:-1].tolist()]
        paths.append(walkers.run(coldest, max(2, steps - each * (rungs - 1))))
        settled = [paths[0], *(path.after(len(path.scores) // 2) for path in paths[1:-1])]
        settled.append(paths[-1].after(len(paths[-1].scores) // 4))

        return _chain_estimate(_bridged(betas), settled, self.samples)


def _rungs(reach: float, steps: int) -> int:
    """Enough for neighbours to overlap, and few enough to leave each some steps."""
    return max(2, min(1 + math.ceil(reach), steps // 8))


@dataclass(frozen=True, eq=False)
class _Path:
    """Scores and hits of the chains at one rung: ``[steps, chains]``."""

    scores: Float[Tensor, "steps chains"]
    hits: Bool[Tensor, "steps chains"]

    def after(self, step: int) -> "_Path":
        return _Path(self.scores[step:], self.hits[step:])

    def of(self, chains: Tensor) -> "_Path":
        return _Path(self.scores[:, chains], self.hits[:, chains])


class _Walkers:
    """Chains that run in parallel."""

    def __init__(self, problem: Problem, chains: int, generator: torch.Generator) -> None:
        self.problem, self.generator, self.chains = problem, generator, chains
        self.log_p = problem.inputs.probabilities.log()
        self._at(problem.inputs.draw(chains, generator))

    def run(self, beta: float, steps: int) -> _Path:
        scores, hits = [], []
        for _ in range(steps):
            if beta == 0:
                self._at(self.problem.inputs.draw(self.chains, self.generator))
            else:
                self._step(beta)
            scores.append(self.score)
            hits.append(self.hit)

        return _Path(torch.stack(scores), torch.stack(hits))

    def _at(self, choices: Int[Tensor, "n k"]) -> None:
        self.choices = choices
        self.score, self.hit, self.slope = self._pull(choices)

    def _pull(self, choices: Int[Tensor, "n k"]) -> tuple[Tensor, Tensor, Tensor]:
        problem, inputs = self.problem, self.problem.inputs
        pull = problem.network.gradients(inputs.tokens_of(choices), problem.target, inputs.tokens)

        return problem.logit(pull.finals), problem.is_event(pull.finals), pull.gradient

    def _step(self, beta: float) -> None:
        n, k = self.choices.shape
        rows = torch.arange(n)
        place = torch.randint(k, (n,), generator=self.generator)
        forth = torch.log_softmax(self.log_p[place] + beta * self.slope[rows, place], 1)
        drawn = torch.multinomial(forth.exp(), 1, generator=self.generator)[:, 0]
        old = self.choices[rows, place]
        proposed = self.choices.clone()
        proposed[rows, place] = drawn
        score, hit, slope = self._pull(proposed)
        back = torch.log_softmax(self.log_p[place] + beta * slope[rows, place], 1)
        log_ratio = (
            self.log_p[place, drawn]
            - self.log_p[place, old]
            + beta * (score - self.score)
            + back[rows, old]
            - forth[rows, drawn]
        )
        coin = torch.rand(n, generator=self.generator, dtype=torch.float64)
        taken = coin.log() < log_ratio
        self.choices = torch.where(taken[:, None], proposed, self.choices)
        self.score = torch.where(taken, score, self.score)
        self.hit = torch.where(taken, hit, self.hit)
        self.slope = torch.where(taken[:, None, None], slope, self.slope)


_Rule = Callable[[list[_Path]], tuple[float, float]]
"""From paths to the estimate and the effective number of samples by their weights."""


def _bridged(betas: Float[Tensor, " rungs"]) -> _Rule:
    def rule(paths: list[_Path]) -> tuple[float, float]:
        scores = torch.cat([path.scores.flatten() for path in paths])
        hits = torch.cat([path.hits.flatten() for path in paths])
        counts = torch.tensor([path.scores.numel() for path in paths], dtype=torch.float64)
        free = log_normalisers(scores, betas, counts)
        accepted = log_weights(scores, betas, counts, free)[hits]
        if not len(accepted):
            return 0.0, 0.0

        return float(accepted.logsumexp(0).exp()), _kish(accepted)

    return rule


def _harmonic(beta: float) -> _Rule:
    def rule(paths: list[_Path]) -> tuple[float, float]:
        log_w = -beta * torch.cat([path.scores.flatten() for path in paths])
        accepted = log_w[torch.cat([path.hits.flatten() for path in paths])]
        if not len(accepted):
            return 0.0, 0.0
        value = float((accepted.logsumexp(0) - log_w.logsumexp(0)).exp())

        return value, min(_kish(log_w), _kish(accepted))

    return rule


def _chain_estimate(rule: _Rule, paths: list[_Path], samples: int) -> Estimate:
    chains = torch.arange(paths[0].scores.shape[1])
    try:
        value, effective = rule(paths)
        if value == 0:
            return none_accepted(samples, "no sample was accepted")
        without = [
            rule([path.of(chains[chains % _GROUPS != group]) for path in paths])[0]
            for group in range(_GROUPS)
        ]
    except BadInput as apart:
        return Estimate(None, status="failed", reason=str(apart))
    spread = torch.tensor(without, dtype=torch.float64).var(correction=0)
    error = math.sqrt((_GROUPS - 1) * float(spread))
    if error > 0:
        effective = min(effective, (value / error) ** 2)

    return flag_unreliable(value, error, effective, samples)


def _kish(log_weights: Float[Tensor, " n"]) -> float:
    return float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp())
