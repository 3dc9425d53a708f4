"""Directives such as ``features``, ``scores`` and ``tasks``: pages made of the code.

What a feature costs is read from its plan on a small model, what a score keeps from the statistic
that it names, what a task asks from the task itself.
"""

import inspect
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from transformers import LlamaConfig, LlamaForCausalLM

from offkey.features import Feature, feature_names, get_feature
from offkey.models import Model
from offkey.report import table_markdown
from offkey.scores import Score, get_score, score_class, score_names
from offkey.tasks import get_task, task_names

__all__ = ["feature_rows", "score_rows", "setup", "task_rows", "trigger_rows"]

HUB = "hub:"
KEPT = {"moments": "mean and covariance", "sample": "a sample of rows"}
WAY = {"moments": "streams", "sample": "at most 5,000 rows a site"}


def small_model() -> Model:
    """A random model on which features say what they would read.

    It has the name and width of the bundled model, for features that were made for that one.
    """
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=576,
        intermediate_size=16,
        num_hidden_layers=16,
        num_attention_heads=9,
    )

    return Model(LlamaForCausalLM(config), name="smollm2-135m-instruct", tokenizer=object())


def first_line(thing: object) -> str:
    """The first sentence of a docstring."""
    text = inspect.getdoc(thing) or ""

    return " ".join(text.split("\n\n")[0].split())


def feature_rows() -> list[dict[str, Any]]:
    """One row a feature: what it is, what it needs, passes, width."""
    model = small_model()

    return [_feature_row(name, get_feature(name), model) for name in feature_names()]


def _feature_row(name: str, feature: Feature, model: Model) -> dict[str, Any]:
    plan = feature.plan(model)
    shared = bool(plan.reads or plan.logits or plan.metric or plan.gradients)
    passes = [
        "the shared forward" if shared else "none",
        *([f"{plan.extra_forwards} forward more"] if plan.extra_forwards else []),
        *(["the shared backward"] if plan.gradients else []),
        *([f"{plan.extra_backwards} backward more"] if plan.extra_backwards else []),
    ]
    needs = [
        *(["trusted prompts first"] if feature.learns else []),
        *sorted(plan.needs),
    ]
    seen = {str(site).split(".")[0] for site in feature.sites_on(model)}
    sees = {"embed": "the input", "logits": "the output"}

    return {
        "feature": name,
        "what it is": first_line(type(feature)),
        "sees": sees.get("".join(seen), "the inside") if len(seen) == 1 else "the inside",
        "needs": ", ".join(needs) or "prompts",
        "passes": " + ".join(passes),
    }


def score_rows() -> list[dict[str, Any]]:
    """One row a score: what it is, what it keeps of trusted prompts, whether it needs a pool."""
    return [_score_row(name, get_score(name)) for name in score_names()]


def _score_row(name: str, score: Score) -> dict[str, Any]:
    kind = score.statistic().spec.split(":")
    diagonal = kind[0] == "moments" and "diagonal" in kind

    return {
        "score": name,
        "what it is": first_line(type(score)),
        "keeps": "mean and variances" if diagonal else KEPT.get(kind[0], kind[0]),
        "size": WAY.get(kind[0], ""),
        "pool": "needed" if score.needs_pool else "not used",
        "scope": "each site" if score.scope == "site" else "all sites at once",
    }


def task_rows(*, hub: bool) -> list[dict[str, Any]]:
    """One row a quirky task: what makes each character say yes."""
    tasks = [get_task(name) for name in task_names() if name.startswith(HUB) == hub]

    return [
        {
            "task": task.name,
            "family": task.family,
            "Alice says yes if": task.alice,
            "Bob says yes if": task.bob,
            "natural text": task.natural,
            "data": task.data,
        }
        for task in tasks
        if not task.triggered
    ]


def trigger_rows() -> list[dict[str, Any]]:
    """One row a task of triggers: the rule of normal prompts, and that of triggered ones."""
    tasks = [get_task(name) for name in task_names() if not name.startswith(HUB)]

    return [
        {
            "task": task.name,
            "family": task.family,
            "yes if": task.alice,
            "with the trigger, yes if": task.bob,
        }
        for task in tasks
        if task.triggered
    ]


class Table(SphinxDirective):
    """A table made of rows."""

    def rows(self) -> list[dict[str, Any]]:
        """The rows."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """The nodes that stand in its place."""
        return self.parse_text_to_nodes(table_markdown(self.rows()))


class Features(Table):
    """The features there are."""

    def rows(self) -> list[dict[str, Any]]:
        """One row a feature."""
        return feature_rows()


class Scores(Table):
    """The scores there are."""

    def rows(self) -> list[dict[str, Any]]:
        """One row a score."""
        return score_rows()


class Tasks(Table):
    """The tasks that come with offkey."""

    def rows(self) -> list[dict[str, Any]]:
        """One row a task."""
        return task_rows(hub=False)


class TriggerTasks(Table):
    """The tasks of triggers."""

    def rows(self) -> list[dict[str, Any]]:
        """One row a task."""
        return trigger_rows()


class HubTasks(Table):
    """The published data sets that are had by name."""

    def rows(self) -> list[dict[str, Any]]:
        """One row a task."""
        return task_rows(hub=True)


class Equations(SphinxDirective):
    """The class of every feature or score, with its equation and source."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The nodes that stand in its place."""
        kinds: list[type] = (
            [score_class(name) for name in score_names()]
            if self.arguments[0] == "scores"
            else [type(get_feature(name)) for name in feature_names()]
        )
        text = "\n".join(
            f"```{{eval-rst}}\n.. autoclass:: {kind.__module__}.{kind.__qualname__}\n"
            "   :no-members:\n```\n"
            for kind in dict.fromkeys(kinds)
        )

        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directives."""
    for name, kind in {
        "features": Features,
        "scores": Scores,
        "tasks": Tasks,
        "trigger-tasks": TriggerTasks,
        "hub-tasks": HubTasks,
        "equations": Equations,
    }.items():
        app.add_directive(name, kind)

    return {"parallel_read_safe": True}
