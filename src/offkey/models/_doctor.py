"""The doctor: proves on the model itself that its sites are what they are called."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from offkey.data import Batch, Role
from offkey.errors import BadInput, BadValue, OffkeyError, UnmappedModel
from offkey.models._check import Check, not_applicable
from offkey.models._proofs import Evidence, prove_attention, prove_cheaply, prove_sums
from offkey.models._trials import rows_alone, try_gradients, try_hooks, try_padding
from offkey.models.families import FAMILIES
from offkey.models.model import Model

__all__ = ["DoctorReport", "distrust", "doctor"]

_TEXTS = (
    "The river rises in the hills and runs to the sea.",
    "Two and two are",
    "She opened the letter, read it twice, and then put it away.",
)
_MOST_TOKENS = 24
_STRUCTURE = ("residual steps", "residual sum", "norms", "heads", "neurons", "final", "logits")


@dataclass(frozen=True)
class DoctorReport:
    """What the doctor found.

    Attributes:
        model: name of the model.
        family: the table row that maps it, ``detected:…``, or ``None``.
        dtype: what the model computes in.
        checks: every check, in the order run.
    """

    model: str
    family: str | None
    dtype: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "fail" for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def rows(self) -> list[dict[str, Any]]:
        """The checks as flat rows, for tables and JSON."""
        return [asdict(check) for check in self.checks]

    def __str__(self) -> str:
        head = f"{self.model} ({self.family or 'no family'}, {self.dtype})"
        return "\n".join([head, *(_line(check) for check in self.checks)])


def doctor(
    model: Model, *, texts: Sequence[str] | None = None, batch: Batch | None = None
) -> DoctorReport:
    """Proves the site map of a model by what its sites say of each other.

    The embedding and all contributions rebuild the final residual; heads through the output
    projection (and its norm where there is one) rebuild ``attn_out``; the final norm and the
    unembedding give the logits; patterns follow from queries and keys; gradients agree with
    differences; hooks leave the output bitwise as it was; padding leaves a row's values.

    A model of lower precision is proved on a float32 copy, which is held beside it meanwhile
    (4 bytes a parameter); that hooks change nothing is proved on the model itself.

    Args:
        model: the model.
        texts: prompts to run; default are three sentences, or numbered tokens if the model has no
            tokenizer.
        batch: what to run instead; needed where the inputs are not tokens.

    Raises:
        BadInput: a text has fewer than two tokens.
    """
    padded = _batch(model, texts) if batch is None else batch
    mapped = _map_check(model)
    if padded is None:
        why = "its inputs are not tokens; give a batch"
        rest = (*_STRUCTURE, "attention", "gradients", "padding", "hooks")
        return _report(model, [mapped, *(not_applicable(name, why) for name in rest)])

    if model.wiring is None:
        names = (*_STRUCTURE, "attention", "gradients")
        checks = [not_applicable(name, "there are no named sites") for name in names]
        checks += _attempt(["padding"], lambda: [try_padding(model, padded, rows_alone(padded))])
    else:
        checks = _proved(model, padded)
    checks += _attempt(["hooks"], lambda: [try_hooks(model, padded)])
    return _report(model, [mapped, *checks])


def _proved(model: Model, batch: Batch) -> list[Check]:
    precise, even = _precise(model), _even(batch)
    return [
        *_attempt(_STRUCTURE, lambda: prove_sums(Evidence(precise, even))),
        *_attempt(["attention"], lambda: [prove_attention(precise, even)]),
        *_attempt(["gradients"], lambda: [try_gradients(precise, batch)]),
        *_attempt(["padding"], lambda: [_padding(model, precise, batch)]),
    ]


def _attempt(names: Sequence[str], prove: Callable[[], list[Check]]) -> list[Check]:
    """What a proof finds; where a site cannot even be read, the first check says why."""
    try:
        return prove()
    except (OffkeyError, RuntimeError, TypeError, AttributeError) as error:
        said = " ".join(f"{error}".split()) or type(error).__name__
        failed = Check(names[0], "fail", detail=f"cannot be carried out ({said})")
        return [failed, *(not_applicable(name, f"{names[0]} failed") for name in names[1:])]


def distrust(model: Model) -> None:
    """Proves, at load, the map of a family that is not in the table, by one pass.

    Where it does not hold, the model keeps its ``module:`` sites, and a named site raises what was
    found.
    """
    if model.wiring is None or model.wiring.family in FAMILIES:
        return
    batch = _batch(model, None)
    if batch is None:
        return
    checks = _attempt(_STRUCTURE, lambda: prove_cheaply(Evidence(model, _even(batch))))
    failed = [check for check in checks if check.status == "fail"]
    if failed:
        model.unmapped = UnmappedModel(
            f"the sites found are not proved ({failed[0].name}: {failed[0].detail})",
            where=f"{type(model.wiring.top).__name__} as {model.wiring.family.name}",
            mend="Use module: sites, or add a row to offkey.models.families",
        )
        model.wiring = None


def _report(model: Model, checks: Sequence[Check]) -> DoctorReport:
    family = model.family.name if model.family else None
    dtype = str(model.dtype).removeprefix("torch.")
    return DoctorReport(model.name, family, dtype, tuple(checks))


def _map_check(model: Model) -> Check:
    if model.unmapped is not None:
        return Check("site map", "fail", detail=str(model.unmapped))
    if model.wiring is None:
        return not_applicable("site map", "a plain module has no named sites")
    source = "in the table" if model.wiring.family in FAMILIES else "by its structure"
    found = f"{len(model.wiring.blocks)} blocks at {model.wiring.family.blocks}, found {source}"
    return Check("site map", "ok", detail=found)


def _padding(model: Model, precise: Model, batch: Batch) -> Check:
    alone = rows_alone(batch)
    check = try_padding(precise, batch, alone)
    if precise is model or check.status != "ok":
        return check
    own = try_padding(model, batch, alone)
    dtype = str(model.dtype).removeprefix("torch.")
    return Check("padding", own.status, check.error, check.tolerance,
                 f"{check.detail}; in {dtype} it moves values by {own.error:.1g}")  # fmt: skip


def _precise(model: Model) -> Model:
    if model.dtype in (torch.float32, torch.float64):
        return model
    module = copy.deepcopy(model.module).float()
    return Model(module, tokenizer=model.tokenizer, name=model.name, adapter=model.adapter)


def _batch(model: Model, texts: Sequence[str] | None) -> Batch | None:
    if model.wiring is None and not hasattr(model.module, "config"):
        if texts is not None:
            raise BadValue("this model does not read text", where="texts", mend="Give a batch")
        return None
    rows = _rows(model, texts)
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens[number, width - len(row) :] = torch.tensor(row)
        mask[number, width - len(row) :] = True
    return Batch(
        {"input_ids": tokens},
        ids=tuple(f"row {number}" for number in range(len(rows))),
        mask=mask,
        positions=(mask.long().cumsum(1) - 1).clamp(min=0),
        roles=torch.where(mask, Role.PROMPT, Role.PADDING),
    ).to(model.device)


def _rows(model: Model, texts: Sequence[str] | None) -> list[list[int]]:
    if model.tokenizer is None:
        if texts is not None:
            raise BadValue("texts need a tokenizer", where="texts", mend="Load one with the model")
        size: int = getattr(model.module, "config").get_text_config().vocab_size  # noqa: B009
        return [[(7 * n + 3 * row + 5) % size for n in range(5 + 2 * row)] for row in range(3)]
    rows = [list(model.tokenizer(text).input_ids)[:_MOST_TOKENS] for text in texts or _TEXTS]
    for number, row in enumerate(rows):
        if len(row) < 2:
            raise BadInput("a text of two tokens or more is needed", where=f"text {number}")
    return rows


def _even(batch: Batch) -> Batch:
    """The last tokens of each row, as many as the shortest has, so that none is padded."""
    if batch.mask is None:
        return batch
    width = int(batch.mask.sum(1).min())
    mask = torch.ones_like(batch.mask[:, -width:])
    return Batch(
        {name: value[:, -width:] for name, value in batch.inputs.items()},
        ids=batch.ids,
        mask=mask,
        positions=mask.long().cumsum(1) - 1,
    )


def _line(check: Check) -> str:
    mark = {"ok": "ok", "fail": "FAIL", "not_applicable": "–"}[check.status]
    measured = "" if check.error is None else f"{check.error:.1e} ≤ {check.tolerance:.1e}"
    measured = measured.replace("≤", ">") if check.status == "fail" else measured
    return f"  {mark:4}  {check.name:15} {measured:20} {check.detail}".rstrip()
