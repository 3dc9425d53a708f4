"""Scores of responses, token by token."""

import numpy as np
import pyarrow as pa
from torch import Tensor

from offkey.data import Prompts, Role
from offkey.detect.scoring import RowScorer, raw_scores
from offkey.errors import BadInput, check
from offkey.features import Activations
from offkey.models import Model, Reading
from offkey.passes import Plan, readings
from offkey.stats import conformal_p_values

__all__ = ["score_tokens"]

TOKENS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("position", pa.int64()),
        ("token", pa.string()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("flagged", pa.bool_()),
        ("worst_site", pa.string()),
    ]
)


def score_tokens(
    detector: RowScorer, model: Model, prompts: Prompts, *, other_model: bool = False
) -> pa.Table:
    """Scores every token of the responses, each as if it were the last.

    P-values compare a token with the last tokens of the calibration prompts; nothing is promised
    of how often normal responses are flagged somewhere.

    Args:
        detector: fitted on activations at the last token.
        model: the model that is watched.
        prompts: with the column ``response``.
        other_model: allow a model other than the one the detector was fitted on.

    Returns:
        One row a token: id, position (0 is the response's first), token, score, p_value, flagged,
        worst_site.

    Raises:
        BadInput: the prompts have no responses.
        BadValue: the detector looks at something else.
    """
    detector.check_model(model, other_model=other_model)
    feature = detector.feature
    reads_last = isinstance(feature, Activations) and feature.positions == "last"
    check(
        reads_last,
        "only detectors of activations at the last token score single tokens",
        where=f"detector {detector.name}",
    )
    if "response" not in prompts:
        raise BadInput(
            "the prompts have no column 'response'",
            where=prompts.places[0],
            mend="Add one, or score the prompts without --tokens",
        )
    order = {id: number for number, id in enumerate(prompts.ids)}
    rows = []
    for reading in readings(model, prompts, Plan(feature.plan(model).reads, positions="all")):
        rows += _token_rows(detector, model, reading)
    rows.sort(key=lambda row: (order[str(row["id"])], row["position"]))

    return pa.Table.from_pylist(rows, schema=TOKENS_SCHEMA)


def _token_rows(detector: RowScorer, model: Model, reading: Reading) -> list[dict[str, object]]:
    """One row for each token of a response in a batch."""
    batch, fitted = reading.batch, detector.fitted
    assert batch.roles is not None
    where = batch.roles == int(Role.RESPONSE)
    if not bool(where.any()):
        return []
    columns = {site: reading[site][where].flatten(1).float().cpu() for site in fitted.sites}
    z = fitted.scale(raw_scores(fitted.scores, columns))
    score = detector.combine(z)
    p_value = conformal_p_values(fitted.calibration, score)
    prompt, column = where.nonzero(as_tuple=True)
    position = (where.cumsum(1) - 1)[where]
    tokens: Tensor = batch.inputs["input_ids"][prompt, column]

    return [
        {
            "id": batch.ids[int(prompt[n])],
            "position": int(position[n]),
            "token": model.tokenizer.decode([int(tokens[n])]),
            "score": float(score[n]),
            "p_value": float(p_value[n]),
            "flagged": bool(p_value[n] <= detector.alpha),
            "worst_site": tuple(fitted.scores)[int(np.argmax(z[n]))],
        }
        for n in range(len(score))
    ]
