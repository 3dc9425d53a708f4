"""What a feature needs from the one pass over prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from offkey.data import Prompts, TensorPrompts
from offkey.errors import BadInput, Mismatch
from offkey.models import Metric, Positions, Site

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """Sites to read and the work it takes; plans that agree share one pass.

    Attributes:
        reads: sites whose values are needed.
        gradients: sites where the gradient of ``metric`` is needed.
        positions: which tokens are read, and how they are reduced.
        metric: the scalar of each prompt, where one is needed.
        logits: whether logits at the read position are needed.
        extra_forwards: forward passes a prompt beyond the shared one.
        extra_backwards: backward passes a prompt beyond the shared one.
        needs: columns of the prompts, or a pool, without which the feature does not apply.
    """

    reads: tuple[Site, ...] = ()
    gradients: tuple[Site, ...] = ()
    positions: Positions = "last"
    metric: Metric | None = None
    logits: bool = False
    extra_forwards: int = 0
    extra_backwards: int = 0
    needs: frozenset[Literal["choices", "target", "pool"]] = frozenset()

    @classmethod
    def union(cls, plans: Iterable["Plan"]) -> "Plan":
        """One plan that serves all of them.

        Raises:
            Mismatch: they read at different positions, or ask for different metrics.
        """
        plans = list(plans)
        positions = {plan.positions for plan in plans if plan.reads or plan.gradients}
        metrics = {plan.metric for plan in plans} - {None}
        if len(positions) > 1 or len(metrics) > 1:
            raise Mismatch("features of different positions or metrics cannot share a pass")
        return cls(
            reads=tuple(sorted({site for plan in plans for site in plan.reads})),
            gradients=tuple(sorted({site for plan in plans for site in plan.gradients})),
            positions=next(iter(positions), "last"),
            metric=next(iter(metrics), None),
            logits=any(plan.logits for plan in plans),
            extra_forwards=sum(plan.extra_forwards for plan in plans),
            extra_backwards=sum(plan.extra_backwards for plan in plans),
            needs=frozenset().union(*(plan.needs for plan in plans)),
        )

    @classmethod
    def groups(cls, plans: Sequence["Plan"]) -> list[list[int]]:
        """Numbers of the plans, in groups that can each share a pass.

        A plan joins the first group that it agrees with.
        """
        groups: list[list[int]] = []
        for number, plan in enumerate(plans):
            for group in groups:
                try:
                    cls.union([*(plans[member] for member in group), plan])
                except Mismatch:
                    continue
                group.append(number)
                break
            else:
                groups.append([number])

        return groups

    @property
    def runs_model(self) -> bool:
        """Whether the shared pass runs the model at all."""
        return bool(self.reads or self.gradients or self.logits or self.metric)

    @property
    def request(self) -> dict[str, Any]:
        """The arguments of :meth:`offkey.models.Model.read` that read what is asked for."""
        return {
            "sites": self.reads,
            "positions": self.positions,
            "metric": self.metric,
            "gradients": self.gradients,
            "logits": self.logits,
        }

    def check(self, prompts: Prompts | TensorPrompts) -> None:
        """Refuses prompts that lack a column that is needed.

        Raises:
            BadInput: names the first such prompt.
        """
        for column in sorted(self.needs - {"pool"}):
            values = prompts[column] if column in prompts else (None,)
            if None in values:
                row = values.index(None)
                raise BadInput(
                    f"prompt {prompts.ids[row]} has no {column!r}, which a feature needs",
                    where=prompts.places[row],
                    mend=f"Give every prompt the column {column!r}, or leave that feature out",
                )
