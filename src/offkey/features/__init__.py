"""One vector per prompt and site: thin adapters over what was read.

A feature says what it must read and turns a reading into vectors. ``activations`` is the internal
one; ``radii``, ``volume`` and ``functional`` run the model again with moved weights,
``tuned-divergence`` a copy that was tuned; ``max-probability``, ``entropy`` and
``own-answer-loss`` see the output only, ``bag-of-words`` and ``length`` the input only: a
detector is credited for what it adds to those.
"""

from offkey.features._feature import Feature
from offkey.features._registry import FEATURES, feature_names, get_feature

__all__ = ["FEATURES", "Feature", "feature_names", "get_feature"]
