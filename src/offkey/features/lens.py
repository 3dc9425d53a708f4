"""What each layer would answer, were it the last: the trajectory of the logit lens."""

from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from offkey.errors import BadInput, BadValue, UnmappedModel
from offkey.features._feature import Feature
from offkey.models import Model, Reading, Site
from offkey.models.metrics import wide
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
        if quantity not in get_args(Quantity):
            raise BadValue(f"{quantity!r} is none of {', '.join(get_args(Quantity))}",
                           where=f"feature {self.name}, quantity")  # fmt: skip
        self.sites, self.quantity = sites, quantity

    def plan(self, model: Model) -> Plan:
        """Reads the residuals.

        Raises:
            UnmappedModel: the model has no unembedding whose rows can be taken.
            BadValue: a site is not a residual.
        """
        sites = model.sites_at(self.sites)
        _unembedding(model, self.name)
        for site in sites:
            if not site.kind.startswith("resid"):
                raise BadValue("the lens reads residuals only", where=f"site {site}",
                               mend="Use resid_post.* or some of them")  # fmt: skip

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
        logits = choice_logits(model, reading, self.name)
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
            raise BadInput("the lens reads the log-odds of two choices or more, and it has "
                           f"{int(counts.min())}", where=f"prompt {ids[int(counts.argmin())]}",
                           mend="Give the prompts a column 'choices'")  # fmt: skip
        if self.quantity == "log-probabilities" and not bool(exist.all()):
            raise BadInput("it has fewer choices than others, and vectors have one length",
                           where=f"prompt {ids[int(counts.argmin())]}",
                           mend="Use quantity='log-odds'")  # fmt: skip

        return exist


def choice_logits(model: Model, reading: Reading, who: str) -> Float[Tensor, "layer batch choice"]:
    """Logits of each prompt's choices, read off each residual; −∞ where a choice is missing.

    In float32 or better; only the unembedding's rows of the choices are touched.
    """
    head = _unembedding(model, who)
    assert reading.batch.choices is not None
    device = head.weight.device
    choices = reading.batch.choices.to(device)
    with torch.no_grad():
        h = torch.stack([value.to(device) for value in reading.values.values()])
        normed = wide(_normed(model, h))
        rows = head.weight[choices.clamp(min=0)].to(normed.dtype)
        logits = torch.einsum("lbd,bcd->lbc", normed, rows)
        if head.bias is not None:
            logits = logits + head.bias[choices.clamp(min=0)].to(normed.dtype)
        logits = _capped(model, logits)

    return logits.masked_fill(choices < 0, -torch.inf)


def lens_logits(
    model: Model, h: Float[Tensor, "*batch d"], who: str = "lens"
) -> Float[Tensor, "*batch vocab"]:
    """Logits of every token, read off residuals; in float32 or better, without gradients.

    Raises:
        UnmappedModel: the model has no unembedding whose rows can be taken.
    """
    head = _unembedding(model, who)
    with torch.no_grad():
        h = h.to(head.weight.device, head.weight.dtype)

        return _capped(model, wide(head(_normed(model, h))))


def _normed(model: Model, h: Tensor) -> Tensor:
    """Residuals after the final norm, where there is one."""
    norm = model.wiring.final_norm if model.wiring else None

    return h if norm is None else norm(h)


def _capped(model: Model, logits: Tensor) -> Tensor:
    """Logits with the model's soft cap, where it has one."""
    cap = model.wiring.softcap if model.wiring else None

    return cap * torch.tanh(logits / cap) if cap else logits


def _unembedding(model: Model, who: str) -> nn.Linear:
    """The projection to the vocabulary, whose rows are one token's each."""
    head = model.wiring.unembedding if model.wiring else None
    if type(head) is not nn.Linear:
        found = "has none" if head is None else f"has a {type(head).__name__}"
        raise UnmappedModel(f"the lens needs a plain unembedding, and this model {found}",
                            where=f"feature {who}")  # fmt: skip

    return head
