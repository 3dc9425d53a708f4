"""Latents of a sparse autoencoder."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from offkey.dictionaries import Dictionary, check_fits, dictionary_folder, load_dictionary
from offkey.errors import BadValue, Mismatch
from offkey.features.feature import Feature
from offkey.models import Model, Positions, Reading, Site
from offkey.passes import Plan
from offkey.storage import sha256_file

__all__ = ["SparseLatents"]


class SparseLatents(Feature):
    """Latents of a trained dictionary at its site, one number each; most are 0.

    Args:
        dictionary: a folder in the layout of SAELens, or ``"bundled:SITE"`` for the bundled model
            and what was tuned from it.
        positions: which token is read: ``"last"``, or one offset from the end such as ``(-2,)``.
        any_model: use it on a model of another name than it was trained on.
        sha256: checksum that its weights must have; filled in when a detector is saved.

    Raises:
        BadInput: there is no dictionary.
        Damaged: it cannot be read.
        Mismatch: its weights have another checksum.
    """

    name: ClassVar[str] = "sae"
    default_score: ClassVar[str] = "sae-l0"

    def __init__(
        self,
        dictionary: str = "bundled:resid_post.15",
        positions: Positions = "last",
        any_model: bool = False,
        sha256: str = "",
    ) -> None:
        self.positions = positions
        if self.positions != "last" and not (
            isinstance(self.positions, tuple) and len(self.positions) == 1
        ):
            raise BadValue(
                f"{positions!r} is not one token",
                where=f"feature {self.name}",
                mend="Use last or one offset such as (-2,)",
            )
        folder = dictionary_folder(dictionary)
        self.dictionary, self.any_model = str(dictionary), any_model
        self._values: Dictionary = load_dictionary(folder)
        self.sha256 = sha256_file(folder / "sae_weights.safetensors")
        if sha256 and sha256 != self.sha256:
            raise Mismatch(
                "its weights are not those the detector was made with",
                where=f"dictionary {folder}",
                mend="Give the one it had",
            )

    def plan(self, model: Model) -> Plan:
        """Reads the site that the dictionary was trained at.

        Raises:
            Mismatch: the dictionary is for another width or another model.
            BadValue: the model has no such site.
        """
        known, own = self._values.model, model.name
        if known and not self.any_model and _plain(known) != _plain(own):
            raise Mismatch(
                f"it was trained on {known}, not on {own}",
                where=f"dictionary {self.dictionary}",
                mend="Give one for this model, or any_model=True",
            )

        return Plan(reads=(check_fits(self._values, model),), positions=self.positions)

    def rows(self, model: Model, reading: Reading) -> dict[Site, Float[Tensor, "batch d"]]:
        """The latents of each row."""
        latents = {}
        for site, value in reading.values.items():
            rows = value.flatten(1)
            if self._values.encoder.device != rows.device:
                self._values = self._values.to(device=rows.device)
            latents[site] = self._values.encode(rows)

        return latents


def _plain(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
