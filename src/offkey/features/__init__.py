"""Features: one vector per prompt and site, made from a reading of the model.

A feature says what it must read and turns a reading into vectors. ``activations`` is what passes
at a site, ``attribution`` what each attention head adds to the answer; ``lens``,
``probe-trajectory`` and ``probe-shift`` follow the answer through the layers; ``radii``,
``volume`` and ``functional`` run the model again with moved weights, ``tuned-divergence`` a copy
that was tuned; ``max-probability``, ``entropy``, ``energy`` and ``own-answer-loss`` see the output
only, ``bag-of-words`` and ``length`` the input only: a detector is credited for what it adds to
those.
"""

from offkey.features.activations import Activations
from offkey.features.feature import Feature, Learner, learn_together, own_reading
from offkey.features.registry import FEATURES, feature_names, get_feature

__all__ = [
    "FEATURES",
    "Activations",
    "Feature",
    "Learner",
    "feature_names",
    "get_feature",
    "learn_together",
    "own_reading",
]
