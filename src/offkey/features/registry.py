"""Features by name."""

from offkey.features.feature import Feature
from offkey.registry import Registry

__all__ = ["FEATURES", "feature_names", "get_feature"]

FEATURES: Registry[Feature] = Registry(
    "feature",
    {
        "activation-model": "offkey.features.activation_model:TrackedRelations",
        "activations": "offkey.features.activations:Activations",
        "attribution": "offkey.features.attribution:Attribution",
        "bag-of-words": "offkey.features.inputs:BagOfWords",
        "energy": "offkey.features.outputs:Energy",
        "entropy": "offkey.features.outputs:Entropy",
        "functional": "offkey.features.functional:Functional",
        "length": "offkey.features.inputs:Length",
        "lens": "offkey.features.lens:LensTrajectory",
        "max-probability": "offkey.features.outputs:MaxProbability",
        "own-answer-loss": "offkey.features.outputs:OwnAnswerLoss",
        "probe-shift": "offkey.features.probe_shift:ProbeShift",
        "probe-trajectory": "offkey.features.probe:ProbeTrajectory",
        "radii": "offkey.features.volume:LogRadii",
        "sae": "offkey.features.sae:SparseLatents",
        "tuned-divergence": "offkey.features.tuning:TunedDivergence",
        "volume": "offkey.features.volume:LocalVolume",
    },
    group="offkey.features",
)


def get_feature(name: str, **settings: object) -> Feature:
    """The feature of that name.

    Raises:
        UnknownName: there is none; the error names the nearest.
        BadValue: it has no such setting.
    """
    return FEATURES.make(name, **_with_tuples(settings))


def _with_tuples(settings: dict[str, object]) -> dict[str, object]:
    """Settings with tuples for lists, which is how JSON and the command line give them."""
    return {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}


def feature_names() -> tuple[str, ...]:
    """Every feature that can be named."""
    return FEATURES.names
