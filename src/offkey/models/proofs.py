"""Proofs of a decoder's site map: what is read at each site must follow from the others.

The cheap ones, which one pass gives in the model's own dtype, are run at load on a family that is
not in the table; :mod:`offkey.doctor` adds the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from offkey.data import Batch, Role
from offkey.errors import BadInput, BadValue, OffkeyError, UnmappedModel
from offkey.models.families import FAMILIES
from offkey.models.model import Model
from offkey.models.sites import Site
from offkey.models.wiring import Block, Wiring

__all__ = [
    "STRUCTURE",
    "Check",
    "Compared",
    "Evidence",
    "attempt",
    "compared",
    "error_of",
    "prove_final",
    "prove_heads",
    "prove_logits",
    "not_applicable",
    "prove_norms",
    "prove_residual_steps",
    "sample_batch",
    "unpadded",
    "verify_map",
]

STRUCTURE = ("residual steps", "residual sum", "norms", "heads", "neurons", "final", "logits")

_TEXTS = (
    "The river rises in the hills and runs to the sea.",
    "Two and two are",
    "She opened the letter, read it twice, and then put it away.",
)
_MOST_TOKENS = 24


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: ``"ok"``, ``"fail"``, or ``"not_applicable"``.
        error: the largest difference, relative to the largest value there; ``None`` where nothing
            was measured.
        tolerance: the largest error that rounding explains.
        detail: what was compared; in a failure, where it is off and what would explain it.
    """

    name: str
    status: Literal["ok", "fail", "not_applicable"]
    error: float | None = None
    tolerance: float | None = None
    detail: str = ""


class Compared(NamedTuple):
    """Two tensors that should be equal, and what it means if they are not.

    With a ``base``, ``rebuilt`` is what is added to it, and the error is relative to the two
    summands number by number: a small contribution is not hidden by a large residual elsewhere.
    """

    rebuilt: Tensor
    actual: Tensor
    meaning: str
    base: Tensor | None = None

    def error(self) -> float:
        """The largest relative difference."""
        if self.base is None:
            return error_of(self.rebuilt, self.actual)
        if self.rebuilt.shape != self.actual.shape:
            return float("inf")
        size = (self.base.double().abs() + self.rebuilt.double().abs()).clamp(min=1e-30)
        off = ((self.base + self.rebuilt).double() - self.actual.double()).abs()
        return float(torch.nan_to_num(off / size, nan=torch.inf).max())

    def explanation(self) -> str:
        """What would explain the difference, where something simple does."""
        if self.rebuilt.shape != self.actual.shape:
            return f" (shapes {tuple(self.rebuilt.shape)} and {tuple(self.actual.shape)})"
        rebuilt = self.rebuilt.double()
        actual = self.actual.double() - (0 if self.base is None else self.base.double())
        scale = float((rebuilt * actual).sum() / rebuilt.square().sum().clamp(min=1e-300))
        is_scaled = (
            error_of(scale * rebuilt, actual) < 1e-2 and min(abs(scale), abs(scale - 1)) > 1e-2
        )
        return f"; it is {scale:.4g} times that" if is_scaled else ""


def error_of(rebuilt: Tensor, actual: Tensor) -> float:
    """Largest difference, relative to the largest actual value; infinite where shapes differ."""
    if rebuilt.shape != actual.shape:
        return float("inf")
    rebuilt, actual = rebuilt.double(), actual.double()
    largest = float(actual.abs().max()) or 1.0
    return float(torch.nan_to_num((rebuilt - actual).abs(), nan=torch.inf).max()) / largest


def compared(name: str, pairs: Iterable[Compared], tolerance: float, detail: str) -> Check:
    """A check that all pairs are equal; a failure names the first that is not."""
    worst = 0.0
    for pair in pairs:
        error = pair.error()
        worst = max(worst, error)
        if not error <= tolerance:
            return Check(name, "fail", error, tolerance, pair.meaning + pair.explanation())
    return Check(name, "ok", worst, tolerance, detail)


def not_applicable(name: str, why: str) -> Check:
    """A check that does not apply to this model."""
    return Check(name, "not_applicable", detail=why)


class Evidence:
    """Everything read in one pass over prompts of equal length, and the modules that made it."""

    def __init__(self, model: Model, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.wiring = cast(Wiring, model.wiring)
        kinds = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "attn_in", "mlp_in")
        names = ["embed", *(f"{kind}.*" for kind in kinds)]
        names += [f"{kind}.*" for kind in ("resid_mid", "mlp_act") if kind in self.wiring.kinds]
        names += [kind for kind in ("final", "logits") if kind in self.wiring.global_kinds]
        self.values = model.read(batch, names, positions="all").values

    def at(self, kind: str, block: int | None = None) -> Tensor:
        """The values at a site, ``[batch, token, *site]``."""
        return self.values[Site(kind, block=block)]

    @property
    def blocks(self) -> Iterator[tuple[int, Block]]:
        """The blocks and their numbers."""
        return iter(enumerate(self.wiring.blocks))

    @property
    def last(self) -> int:
        """Number of the last block."""
        return len(self.wiring.blocks) - 1

    @property
    def eps(self) -> float:
        """Distance of 1 from the next larger number in the model's dtype."""
        return float(torch.finfo(self.at("embed").dtype).eps)

    def path(self, part: str | None, block: int | None = None) -> str:
        """Where the family says a part is."""
        family = self.wiring.family
        place = getattr(family, part) if part else ""
        return place if block is None else f"{family.blocks}.{block}.{place}".rstrip(".")


def verify_map(model: Model) -> None:
    """Proves, at load, the map of a family that is not in the table, by one pass.

    Where a proof fails, the model keeps its ``module:`` sites only, and any other site raises the
    proof's error.
    """
    if model.wiring is None or model.wiring.family in FAMILIES:
        return
    batch = sample_batch(model, None)
    if batch is None:
        return
    checks = attempt(STRUCTURE, lambda: prove_cheaply(Evidence(model, unpadded(batch))))
    failed = [check for check in checks if check.status == "fail"]
    if failed:
        model.unmapped = UnmappedModel(
            f"the sites found are not proved ({failed[0].name}: {failed[0].detail})",
            where=f"{type(model.wiring.top).__name__} as {model.wiring.family.name}",
            mend="Use module: sites, or add a row to offkey.models.families",
        )
        model.wiring = None


def attempt(names: Sequence[str], prove: Callable[[], list[Check]]) -> list[Check]:
    """The checks of a proof; where a site cannot even be read, the first check says why."""
    try:
        return prove()
    except (OffkeyError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(f"{error}".split()) or type(error).__name__
        failed = Check(names[0], "fail", detail=f"cannot be carried out ({reason})")
        return [failed, *(not_applicable(name, f"{names[0]} failed") for name in names[1:])]


def prove_cheaply(evidence: Evidence) -> list[Check]:
    """The proofs that one pass in the model's own dtype gives, for any model at load."""
    with torch.no_grad():
        return [
            prove_residual_steps(evidence),
            prove_norms(evidence),
            prove_heads(evidence, whole=True),
            prove_final(evidence),
            prove_logits(evidence),
        ]


def prove_residual_steps(evidence: Evidence) -> Check:
    """Each block adds ``attn_out`` and ``mlp_out`` to its input, unscaled."""

    def pairs() -> Iterator[Compared]:
        for number, _ in evidence.blocks:
            start, end = evidence.at("resid_pre", number), evidence.at("resid_post", number)
            attn, mlp = evidence.at("attn_out", number), evidence.at("mlp_out", number)
            attn_path, mlp_path = (
                evidence.path("attn_out", number),
                evidence.path("mlp_out", number),
            )
            where = f"block {number}: what is added to the residual"
            if "resid_mid" in evidence.wiring.kinds:
                middle = evidence.at("resid_mid", number)
                meaning = f"{where} before the MLP is not the output of {attn_path}"
                yield Compared(attn, middle, meaning, base=start)
                meaning = f"{where} after attention is not the output of {mlp_path}"
                yield Compared(mlp, end, meaning, base=middle)
            else:
                yield Compared(
                    attn + mlp, end, f"{where} is not {attn_path} + {mlp_path}", base=start
                )
            if number < evidence.last:
                meaning = f"something happens between blocks {number} and {number + 1}"
                yield Compared(evidence.at("resid_pre", number + 1), end, meaning)

    detail = "each block adds attn_out and mlp_out to its input, unscaled"
    return compared("residual steps", pairs(), 4 * evidence.eps, detail)


def prove_norms(evidence: Evidence) -> Check:
    """Attention and MLP are given the norm of the residual."""
    attn_norm = evidence.wiring.family.attn_norm
    middle = "resid_mid" if "resid_mid" in evidence.wiring.kinds else "resid_pre"

    def pairs() -> Iterator[Compared]:
        for number, block in evidence.blocks:
            where = f"block {number}: "
            if attn_norm is not None:
                norm = block.module.get_submodule(attn_norm)
                meaning = (
                    f"{where}attention is not given {evidence.path('attn_norm')} of resid_pre"
                )
                yield Compared(
                    norm(evidence.at("resid_pre", number)), evidence.at("attn_in", number), meaning
                )
            if block.mlp_norm is not None:
                meaning = f"{where}the MLP is not given {evidence.path('mlp_norm')} of {middle}"
                given = block.mlp_norm(evidence.at(middle, number))
                yield Compared(given, evidence.at("mlp_in", number), meaning)

    detail = "sublayers are given the norm of the residual"
    return compared("norms", pairs(), 4 * evidence.eps, detail)


def prove_heads(evidence: Evidence, *, whole: bool = False) -> Check:
    """The heads through the output projection give ``attn_out``.

    Each head goes through alone, and the results are summed; or all at once, if ``whole``.
    """

    def pairs() -> Iterator[Compared]:
        for number, block in evidence.blocks:
            z, plain = evidence.at("z", number), block.attn_out is block.attention
            total = block.o_proj(z.flatten(-2)) if whole else _summed(block.o_proj, z)
            through = evidence.path("o_proj") + (
                "" if plain else f" and {evidence.path('attn_out')}"
            )
            meaning = f"block {number}: the heads through {through} do not give attn_out.{number}"
            rebuilt = total if plain else block.attn_out(total)
            yield Compared(rebuilt, evidence.at("attn_out", number), meaning)

    detail = "the heads through the output projection, summed, give attn_out"
    return compared("heads", pairs(), (4 if whole else 64) * evidence.eps, detail)


def _summed(project: nn.Module, z: Tensor) -> Tensor:
    """The sum of what each head alone adds, and the bias."""
    total = bias = project(torch.zeros_like(z).flatten(-2))
    for head in range(z.shape[-2]):
        alone = torch.zeros_like(z)
        alone[..., head, :] = z[..., head, :]
        total = total + (project(alone.flatten(-2)) - bias)
    return cast(Tensor, total)


def prove_final(evidence: Evidence) -> Check:
    """The final norm of the last residual is ``final``."""
    norm = evidence.wiring.final_norm
    if norm is None:
        return not_applicable("final", "there is no norm after the last block")
    meaning = f"final is not {evidence.path('final_norm')} of resid_post.{evidence.last}"
    pair = Compared(norm(evidence.at("resid_post", evidence.last)), evidence.at("final"), meaning)
    return compared(
        "final", [pair], 4 * evidence.eps, "the final norm of the last residual is final"
    )


def prove_logits(evidence: Evidence) -> Check:
    """The unembedding of ``final`` gives the logits."""
    head = evidence.wiring.unembedding
    if head is None or "final" not in evidence.wiring.global_kinds:
        return not_applicable("logits", "there is no unembedding after a final norm")
    logits = evidence.wiring.capped(head(evidence.at("final")))
    pair = Compared(logits, evidence.at("logits"), "the unembedding of final is not the logits")
    return compared(
        "logits", [pair], 4 * evidence.eps, "the unembedding of final gives the logits"
    )


def sample_batch(model: Model, texts: Sequence[str] | None) -> Batch | None:
    """Prompts to prove a model on: these texts, three sentences, or numbered tokens.

    ``None`` where the inputs are not tokens.

    Raises:
        BadValue: texts are given, and the model reads none or has no tokenizer.
        BadInput: a text has fewer than two tokens.
    """
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


def unpadded(batch: Batch) -> Batch:
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
