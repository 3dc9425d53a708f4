"""Scores of prompts, and the tables of them that a run leaves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64

from offkey.data import Prompts, TensorPrompts, encode
from offkey.detect.records import Mode
from offkey.models import Model

__all__ = ["Scores", "lengths", "prompt_facts", "prompt_table", "site_table", "text_of"]

Array = np.ndarray
AnyPrompts = Prompts | TensorPrompts

SCORES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("detector", pa.string()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("flagged", pa.bool_()),
        ("worst_site", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)

TABLE_SCHEMA = pa.schema(
    [
        *SCORES_SCHEMA,
        ("role", pa.string()),
        ("label", pa.int8()),
        ("agrees", pa.bool_()),
        ("text", pa.string()),
        ("length", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Scores:
    """Scores of prompts; NaN inside, null in every table.

    Attributes:
        detector: name of the detector.
        mode: ``online``: fitted on trusted prompts only; ``offline``: saw an unlabelled pool too;
            ``transductive``: the pool was these prompts; ``ceiling``: it was given the labels of
            the other prompts, and is no detector.
        alpha: false-alarm rate at which prompts are flagged.
        ids: ids of the prompts.
        score: one a prompt; higher is more anomalous.
        p_value: share of trusted prompts at least as odd, conformal; null in transductive mode.
        sites: names of the sites that were combined.
        by_site: standardised score of each site.
        reasons: why a prompt has no score, by id.
    """

    detector: str
    mode: Mode
    alpha: float
    ids: tuple[str, ...]
    score: Float64[Array, " n"]
    p_value: Float64[Array, " n"]
    sites: tuple[str, ...]
    by_site: Float64[Array, "n sites"]
    reasons: dict[str, str]

    @classmethod
    def missing(
        cls, detector: str, alpha: float, ids: tuple[str, ...], reason: str, mode: Mode = "online"
    ) -> "Scores":
        """Scores that are all missing, for one reason."""
        none = np.full(len(ids), np.nan)
        no_sites = np.empty((len(ids), 0))

        return cls(
            detector, mode, alpha, ids, none, none, (), no_sites, dict.fromkeys(ids, reason)
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def flagged(self) -> Bool[Array, " n"]:
        """Whether the p-value is at most alpha; False where there is none."""
        return np.asarray(self.p_value <= self.alpha)

    @property
    def worst_site(self) -> tuple[str | None, ...]:
        """The site with the highest standardised score of each prompt."""
        return tuple(
            None if not row.size or np.isnan(row).any() else self.sites[int(row.argmax())]
            for row in self.by_site
        )

    def select(self, ids: frozenset[str]) -> "Scores":
        """Scores of some of the prompts, without p-values, as trusted prompts have none."""
        rows = np.array([id in ids for id in self.ids])
        return replace(
            self,
            ids=tuple(id for id in self.ids if id in ids),
            score=self.score[rows],
            p_value=np.full(int(rows.sum()), np.nan),
            by_site=self.by_site[rows],
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One row a prompt: id, detector, score, p_value, flagged, worst_site, status, reason."""
        worst = self.worst_site
        for row, id in enumerate(self.ids):
            reason = self.reasons.get(id)
            p_value = _null(self.p_value[row])
            yield {
                "id": id,
                "detector": self.detector,
                "score": _null(self.score[row]),
                "p_value": p_value,
                "flagged": None if p_value is None else bool(p_value <= self.alpha),
                "worst_site": worst[row],
                "status": "not_applicable" if reason else "ok",
                "reason": reason,
            }

    def table(self) -> pa.Table:
        """The rows as an Arrow table; ``.to_pandas()`` and ``.to_pylist()`` go on from there."""
        return pa.Table.from_pylist(list(self), schema=SCORES_SCHEMA)

    def site_table(self) -> pa.Table:
        """One row a prompt and site: id, detector, site, standardised score."""
        count, sites = self.by_site.shape
        flat = self.by_site.reshape(-1)
        return pa.table(
            {
                "id": np.repeat(np.array(self.ids, dtype=object), sites).tolist(),
                "detector": [self.detector] * flat.size,
                "site": list(self.sites) * count,
                "score": pa.array(flat, mask=np.isnan(flat)),
            }
        )


def prompt_table(
    scores: Mapping[str, Sequence[Scores]], facts: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> pa.Table:
    """Scores of every detector with what is known of each prompt.

    Args:
        scores: by role, ``"test"`` or ``"calibration"``.
        facts: for each role what :func:`prompt_facts` gives, by id.
    """
    rows = [
        {**row, **facts[role][row["id"]], "role": role}
        for role, every in scores.items()
        for one in every
        for row in one
    ]

    return pa.Table.from_pylist(rows, schema=TABLE_SCHEMA)


def site_table(scores: Mapping[str, Sequence[Scores]]) -> pa.Table:
    """Standardised scores of every detector, role, prompt and site."""
    return pa.concat_tables(
        one.site_table().append_column("role", pa.array([role] * one.by_site.size))
        for role, every in scores.items()
        for one in every
        if one.sites
    )


def prompt_facts(model: Model, prompts: AnyPrompts, *, redact: bool) -> dict[str, dict[str, Any]]:
    """Text, length and labels of each prompt, by id; texts are null where they are redacted."""
    texts = [None] * len(prompts) if redact else text_of(prompts)
    columns = (texts, lengths(model, prompts), _values(prompts, "label"))
    rows = zip(prompts.ids, *columns, _values(prompts, "agrees"), strict=True)

    return {
        id: {
            "text": text,
            "length": length,
            "label": label,
            "agrees": None if agrees is None else bool(agrees),
        }
        for id, text, length, label, agrees in rows
    }


def lengths(model: Model, prompts: AnyPrompts) -> list[int | None]:
    """Tokens of each prompt; null for prompts that are arrays.

    Raises:
        BadInput: a prompt cannot be encoded, or is longer than the context.
    """
    if isinstance(prompts, TensorPrompts):
        return [None] * len(prompts)
    encoded = encode(prompts, model.tokenizer, context_length=model.context_length)

    return [len(row) for row in encoded]


def text_of(prompts: AnyPrompts) -> list[str | None]:
    """Each prompt as a person reads it; null for arrays."""
    texts = []
    chats = _values(prompts, "messages")
    for text, chat in zip(_values(prompts, "prompt"), chats, strict=True):
        if text is None and chat is not None:
            text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in chat)
        texts.append(text)

    return texts


def _values(prompts: AnyPrompts, name: str) -> Sequence[Any]:
    return prompts[name] if name in prompts else [None] * len(prompts)


def _null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
