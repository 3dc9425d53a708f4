"""Lenses read what a model would say if a residual were its last: tokens, from the inside.

The logit lens applies the model's own final norm and unembedding. After the last block it gives
the model's own logits.
"""

from offkey.lenses.logit import (
    check_readable,
    lens_choice_logits,
    lens_logits,
    promoted_tokens,
    residual_sites,
    top_tokens,
    why_unreadable,
)

__all__ = [
    "check_readable",
    "lens_choice_logits",
    "lens_logits",
    "promoted_tokens",
    "residual_sites",
    "top_tokens",
    "why_unreadable",
]
