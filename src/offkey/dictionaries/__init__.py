"""Sparse autoencoders: what a model's activations are made of.

A :class:`Dictionary` never changes, and has the layout of SAELens on disk. It is trained on
activations from an :class:`offkey.passes.ActivationStream` and measured on others. Training is
resumable, to the same numbers.
"""

from offkey.dictionaries.dictionary import Activation, Dictionary
from offkey.dictionaries.figures import Figures, check_fits, measure
from offkey.dictionaries.recipe import DictionaryRecipe
from offkey.dictionaries.saelens import (
    bundled_dictionaries,
    dictionary_folder,
    hook_of,
    load_dictionary,
    save_dictionary,
    site_of,
)
from offkey.dictionaries.training import train_dictionary

__all__ = [
    "Activation",
    "Dictionary",
    "Figures",
    "DictionaryRecipe",
    "bundled_dictionaries",
    "check_fits",
    "dictionary_folder",
    "hook_of",
    "load_dictionary",
    "measure",
    "save_dictionary",
    "site_of",
    "train_dictionary",
]
