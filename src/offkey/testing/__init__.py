"""Contract suites: what every feature, score, family and edit must keep, to be run on your own.

offkey's own tests run them. Subclass one of the classes and let its fixture ``make`` return a
function that builds your class, or call the checks of a family or of edits on your model::

    from offkey.testing import FeatureContract

    class TestMine(FeatureContract):
        @pytest.fixture
        def make(self):
            return MyFeature

This room alone imports pytest, which the extra ``testing`` installs.
"""

from offkey.errors import MissingExtra

try:
    import pytest
except ImportError:
    raise MissingExtra(
        "pytest is not installed",
        where="offkey.testing",
        mend="Run pip install 'offkey[testing]'",
    ) from None

for _suite in ("edit", "family", "feature", "score", "sites_score"):  # asserts that show values
    pytest.register_assert_rewrite(f"{__name__}.{_suite}")

from offkey.testing.edit import EDIT_CONTRACT
from offkey.testing.family import FAMILY_CONTRACT
from offkey.testing.feature import FeatureContract
from offkey.testing.random_models import batch_of, padded_batch, random_model, random_module
from offkey.testing.score import ScoreContract
from offkey.testing.sites_score import SitesScoreContract

__all__ = [
    "EDIT_CONTRACT",
    "FAMILY_CONTRACT",
    "FeatureContract",
    "ScoreContract",
    "SitesScoreContract",
    "batch_of",
    "padded_batch",
    "random_model",
    "random_module",
]
