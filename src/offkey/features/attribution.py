"""What each attention head adds to the answer, compared with its usual value."""

from math import prod
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from offkey.errors import BadValue, Mismatch, NotEnoughData, UnknownName
from offkey.features.feature import Feature, Learner
from offkey.models import ChoiceLogitDifference, Metric, Model, Reading, Site, TopLogProb
from offkey.passes import Plan
from offkey.stats import Moments

__all__ = ["Attribution"]

Direction = Literal["mean", "zero", "pcs", "grad-norm"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
LEARNED = ("mean", "pcs")
METRICS: dict[str, Metric] = {"choices": ChoiceLogitDifference(), "top": TopLogProb()}
RESOLUTION = torch.finfo(torch.float32).eps
"""Share of the first component's variance below which another is rounding noise."""


class Attribution(Feature):
    r"""What the answer's log odds would gain if a head were ablated, to first order.

    With :math:`z_h` the input of the output projection from head :math:`h` at the last token,
    :math:`g_h = \partial S / \partial z_h`, and :math:`\bar z` the mean over trusted prompts:

    - ``"mean"``: :math:`e_h = (\bar z_h - z_h) \cdot g_h`, one number a head;
    - ``"zero"``: :math:`e_h = -z_h \cdot g_h`;
    - ``"pcs"``: for the :math:`k` strongest principal components :math:`v_k` of all heads of a
      block on trusted prompts, :math:`e_{hk} = v_k \cdot (\bar z - z) \; v_{kh} \cdot g_h`, what
      each head gains if the projection is moved to its mean; head by head, :math:`k` numbers each;
    - ``"grad-norm"``: :math:`\lVert g_h \rVert^2`.

    All heads of all blocks cost one forward and one backward pass on :math:`S`, in nats: the logit
    of the second choice less that of the first. Where :math:`S` is linear in :math:`z_h`, ``mean``
    and ``zero`` are exactly what ablating the head does.

    Published runs sliced the output of the projection, whose slices are not heads, or compared a
    mean of its input with a value of its output, and moved components from the component's own
    position instead of the activation's. Here every value is the input of the output projection.

    Args:
        direction: how a head is ablated.
        sites: names and ranges of ``z`` sites.
        components: how many principal components ``pcs`` takes.
        metric: ``"choices"``, or ``"top"``: the log-probability of the likeliest next token, for
            prompts without choices.

    Raises:
        UnknownName: no such direction or metric.
        BadValue: no components, or the model has no heads or no gradients.
        NotEnoughData: ``pcs`` saw no more trusted prompts than it takes components.

    References:
        EleutherAI, 2024 and 2025: updates on mechanistic anomaly detection.
    """

    name: ClassVar[str] = "attribution"
    default_score: ClassVar[str] = "lof"
    usual_: dict[str, dict[str, Tensor]]

    def __init__(
        self,
        direction: Direction = "mean",
        sites: str | tuple[str, ...] = "z.*",
        components: int = 10,
        metric: Literal["choices", "top"] = "choices",
    ) -> None:
        if direction not in DIRECTIONS:
            raise UnknownName("direction", direction, DIRECTIONS, where=f"feature {self.name}")
        if metric not in METRICS:
            raise UnknownName("metric", metric, METRICS, where=f"feature {self.name}")
        if components < 1:
            raise BadValue("must be at least 1", where=f"feature {self.name}, components")
        self.direction, self.components, self.metric = direction, components, metric
        self.sites = sites
        self.learns = direction in LEARNED

    def plan(self, model: Model) -> Plan:
        """Values and gradients at the heads.

        Raises:
            BadValue: the model has no heads there, no logits or no gradients.
            UnmappedModel: the parts of the model were not found.
        """
        self._need_gradients(model)
        sites = self._heads(model)

        return Plan(
            reads=sites,
            gradients=sites,
            metric=METRICS[self.metric],
            needs=frozenset({"choices"} if self.metric == "choices" else ()),
        )

    def learning_plan(self, model: Model) -> Plan:
        """The values alone."""
        plan = self.plan(model)

        return Plan(reads=plan.reads, needs=plan.needs)

    def learner(self, model: Model) -> Learner:
        """Takes the mean of each site's values, and their strongest components."""
        sums: dict[str, Moments] = {}
        while (reading := (yield)) is not None:
            for site, value in reading.values.items():
                moments = sums.setdefault(str(site), Moments(diagonal=self.direction != "pcs"))
                moments.update(value.flatten(1), reading.batch.ids)
        self.usual_ = {site: self._usual(moments) for site, moments in sums.items()}

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """The attribution of each head, as one vector a site."""
        return {
            site: self._attributed(site, value.float(), reading.grads[site].float())
            for site, value in reading.values.items()
        }

    def _attributed(
        self, site: Site, z: Float[Tensor, "batch head d"], g: Float[Tensor, "batch head d"]
    ) -> Float[Tensor, "batch k"]:
        if self.direction == "grad-norm":
            return g.square().sum(-1)
        if self.direction == "zero":
            return -(z * g).sum(-1)
        usual = self._usual_at(site, z)
        gap = usual["mean"].view_as(z[0]) - z
        if self.direction == "mean":
            return (gap * g).sum(-1)
        v = usual["components"]
        along = torch.einsum("bhd,khd->bhk", g, v.view(-1, *z.shape[1:]))

        return (along * (gap.flatten(1) @ v.T)[:, None]).flatten(1)

    def _usual(self, moments: Moments) -> dict[str, Tensor]:
        """The mean, and the components as rows; zeros where nothing varies."""
        mean = moments.mean.float().cpu()
        if self.direction != "pcs":
            return {"mean": mean}
        if moments.count <= self.components:
            raise NotEnoughData(
                f"{moments.count} trusted prompts, and {self.components} components need more",
                where=f"feature {self.name}",
                mend="Give more trusted prompts, or take fewer components",
            )
        variances, vectors = moments.eigh
        strongest = vectors.flip(1)[:, : self.components].T
        varies = variances.flip(0)[: self.components] > RESOLUTION * variances[-1]

        return {"mean": mean, "components": (strongest * varies[:, None]).float().cpu()}

    def _usual_at(self, site: Site, z: Tensor) -> dict[str, Tensor]:
        usual = self.learned().get("usual_", {}).get(str(site))
        if usual is None:
            raise BadValue(
                f"it has seen no trusted prompts yet at {site}",
                where=f"feature {self.name}",
                mend="Let it learn from some; fitting a detector does",
            )
        if len(usual["mean"]) != z[0].numel():
            raise Mismatch(
                f"its mean has {len(usual['mean'])} numbers, and {site} has {z[0].numel()}",
                where=f"feature {self.name}",
                mend="Fit it on this model",
            )

        return {name: value.to(z.device) for name, value in usual.items()}

    def _heads(self, model: Model) -> tuple[Site, ...]:
        if model.wiring is None and model.unmapped is None:
            raise BadValue(
                "this model has no attention heads that are known",
                where=f"feature {self.name}",
                mend="Use activations",
            )
        model.site("logits")
        sites = model.sites_at(self.sites)
        for site in sites:
            if site.kind != "z":
                raise BadValue(
                    f"{site} is not the place of heads",
                    where=f"feature {self.name}",
                    mend="Use sites such as z.* or z.later",
                )
            if self.direction == "pcs" and prod(site.shape) < self.components:
                raise BadValue(
                    f"{site} has {prod(site.shape)} dimensions and no "
                    f"{self.components} components",
                    where=f"feature {self.name}",
                )

        return sites

    def _need_gradients(self, model: Model) -> None:
        """Refuses weights through which gradients cannot be computed."""
        quantiser = getattr(model.wiring and model.wiring.top, "hf_quantizer", None)
        # What comes from GGUF is dequantised, and marked all the same.
        differentiable = (
            quantiser is None
            or quantiser.is_trainable
            or quantiser.quantization_config.quant_method == "gguf"
        )
        if not differentiable:
            why = "the way in which its weights are quantised has none"
        elif any(weight.is_inference() for weight in model.module.parameters()):
            why = "its weights were made in inference mode"
        else:
            return
        raise BadValue(
            f"gradients of {model.name} cannot be had: {why}",
            where=f"feature {self.name}",
            mend="Load the model in float32 or bfloat16",
        )
