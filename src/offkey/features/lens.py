"""What each layer would answer, were it the last: the trajectory of the logit lens."""

from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from offkey.errors import BadInput, check, check_choice
from offkey.features.feature import Feature
from offkey.lenses import check_readable, lens_choice_logits
from offkey.models import Model, Reading, Site
from offkey.passes import Plan

__all__ = ["LensTrajectory"]

LOGITS = Site("logits")
Quantity = Literal["log-odds", "log-probabilities"]


class LensTrajectory(Feature):
    r"""The answer that the logit lens reads off the residual after each layer.

    The final norm and the unembedding are applied to the residual of the last token, the latter
    for the first tokens of the choices alone:

    .. math:: \ell_{l,c} = w_c^\top \mathrm{norm}(h_l) + b_c

    with the soft cap that the model's own logits have. All layers make one vector. It holds
    :math:`\ell_{l,\text{last}} - \ell_{l,\text{first}}`, in nats, one number a layer; or the
    log-probability of each choice among the choices, in nats, layer by layer. After the last
    layer these are the model's own.

    Args:
        sites: residuals that are read.
        quantity: ``"log-odds"`` of the last choice against the first, or ``"log-probabilities"``
            of the choices.

    Raises:
        BadValue: there is no such quantity.

    References:
        nostalgebraist, 2020: interpreting GPT, the logit lens.
    """

    name: ClassVar[str] = "lens"
    default_score: ClassVar[str] = "mahalanobis"

    def __init__(
        self, sites: str | tuple[str, ...] = "resid_post.*", quantity: Quantity = "log-odds"
    ) -> None:
        check_choice(f"feature {self.name}, quantity", quantity, get_args(Quantity))
        self.sites, self.quantity = sites, quantity

    def plan(self, model: Model) -> Plan:
        """Reads the residuals.

        Raises:
            UnmappedModel: the model has no unembedding whose rows can be taken.
            BadValue: a site is not a residual.
        """
        sites = model.sites_at(self.sites)
        check_readable(model, self.name)
        for site in sites:
            check(
                site.kind.startswith("resid"),
                "the lens reads residuals only",
                where=f"site {site}",
                mend="Use resid_post.* or some of them",
            )

        return Plan(reads=sites, needs=frozenset({"choices"}))

    def sites_on(self, model: Model) -> tuple[Site, ...]:
        """The logits."""
        return (LOGITS,)

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """One vector a prompt, over all layers.

        Raises:
            BadInput: a prompt has fewer than two choices; for log-probabilities, also where
                prompts have different numbers of them.
        """
        exist = self._choices(reading)
        choices = reading.batch.choices
        assert choices is not None  # _choices saw to it
        logits = lens_choice_logits(model, reading.values.values(), choices)
        if self.quantity == "log-probabilities":
            logp = logits.log_softmax(-1)
            return {LOGITS: logp.transpose(0, 1).flatten(1)}
        first = exist.int().argmax(1)
        last = exist.shape[1] - 1 - exist.int().flip(1).argmax(1)
        rows = torch.arange(len(exist), device=logits.device)
        odds = logits[:, rows, last.to(rows)] - logits[:, rows, first.to(rows)]

        return {LOGITS: odds.T.contiguous()}

    def _choices(self, reading: Reading) -> Bool[Tensor, "batch choice"]:
        """Which choices each prompt has."""
        choices, ids = reading.batch.choices, reading.batch.ids
        exist = torch.zeros(len(ids), 1) > 0 if choices is None else choices >= 0
        counts = exist.sum(1)
        if bool((counts < 2).any()):
            raise BadInput(
                f"the lens reads the log-odds of two choices or more, and it has "
                f"{int(counts.min())}",
                where=f"prompt {ids[int(counts.argmin())]}",
                mend="Give the prompts a column 'choices'",
            )
        if self.quantity == "log-probabilities" and not bool(exist.all()):
            raise BadInput(
                "it has fewer choices than others, and vectors have one length",
                where=f"prompt {ids[int(counts.argmin())]}",
                mend="Use quantity='log-odds'",
            )

        return exist
