"""The full report: every proof of a model's site map, and trials of its passes."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from offkey.data import Batch
from offkey.doctor.proofs import prove_attention, prove_sums
from offkey.doctor.trials import rows_alone, try_gradients, try_hooks, try_padding
from offkey.models import FAMILIES, Model
from offkey.models.proofs import (
    STRUCTURE,
    Check,
    Evidence,
    attempt,
    not_applicable,
    sample_batch,
    unpadded,
)

__all__ = ["DoctorReport", "doctor"]


@dataclass(frozen=True)
class DoctorReport:
    """The checks of a model and their results.

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
    """Proves the site map of a model by the relations that must hold between its sites.

    The embedding and all contributions rebuild the final residual; heads through the output
    projection (and its norm where there is one) rebuild ``attn_out``; the final norm and the
    unembedding give the logits; patterns follow from queries and keys; gradients agree with
    differences; hooks leave the output bitwise as it was; padding leaves a row's values.

    A model of lower precision is proved on a float32 copy, held in memory meanwhile (4 bytes a
    parameter); that hooks change nothing is proved on the model itself.

    Args:
        model: the model.
        texts: prompts to run; default are three sentences, or numbered tokens if the model has no
            tokenizer.
        batch: what to run instead; needed where the inputs are not tokens.

    Raises:
        BadInput: a text has fewer than two tokens.
    """
    padded = sample_batch(model, texts) if batch is None else batch
    mapped = _map_check(model)
    if padded is None:
        why = "its inputs are not tokens; give a batch"
        rest = (*STRUCTURE, "attention", "gradients", "padding", "hooks")
        return _report(model, [mapped, *(not_applicable(name, why) for name in rest)])

    if model.wiring is None:
        names = (*STRUCTURE, "attention", "gradients")
        checks = [not_applicable(name, "there are no named sites") for name in names]
        checks += attempt(["padding"], lambda: [try_padding(model, padded, rows_alone(padded))])
    else:
        checks = _proved(model, padded)
    checks += attempt(["hooks"], lambda: [try_hooks(model, padded)])
    return _report(model, [mapped, *checks])


def _proved(model: Model, batch: Batch) -> list[Check]:
    precise, even = _precise(model), unpadded(batch)
    return [
        *attempt(STRUCTURE, lambda: prove_sums(Evidence(precise, even))),
        *attempt(["attention"], lambda: [prove_attention(precise, even)]),
        *attempt(["gradients"], lambda: [try_gradients(precise, batch)]),
        *attempt(["padding"], lambda: [_padding(model, precise, batch)]),
    ]


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
    detail = f"{len(model.wiring.blocks)} blocks at {model.wiring.family.blocks}, found {source}"
    return Check("site map", "ok", detail=detail)


def _padding(model: Model, precise: Model, batch: Batch) -> Check:
    alone = rows_alone(batch)
    check = try_padding(precise, batch, alone)
    if precise is model or check.status != "ok":
        return check
    own = try_padding(model, batch, alone)
    dtype = str(model.dtype).removeprefix("torch.")
    detail = f"{check.detail}; in {dtype} it moves values by {own.error:.1g}"
    return Check("padding", own.status, check.error, check.tolerance, detail)


def _precise(model: Model) -> Model:
    if model.dtype in (torch.float32, torch.float64):
        return model
    module = copy.deepcopy(model.module).float()
    return Model(module, tokenizer=model.tokenizer, name=model.name, adapter=model.adapter)


def _line(check: Check) -> str:
    mark = {"ok": "ok", "fail": "FAIL", "not_applicable": "–"}[check.status]
    measured = "" if check.error is None else f"{check.error:.1e} ≤ {check.tolerance:.1e}"
    measured = measured.replace("≤", ">") if check.status == "fail" else measured
    return f"  {mark:4}  {check.name:15} {measured:20} {check.detail}".rstrip()
