"""Sparse autoencoders trained by offkey."""

from functools import partial

from _rows import Given
from _timing import serve

from offkey.dictionaries import DictionaryRecipe, train_dictionary
from offkey.passes import TensorBlocks

given = Given()


def trained(kind):
    """One run over all rows; the decoder."""
    recipe = DictionaryRecipe(
        latents=given.latents,
        active=given.active,
        kind=kind,
        rows=len(given.train),
        batch=given.batch,
        rate=3e-4,
    )
    dictionary, _ = train_dictionary(TensorBlocks(given.train), recipe)

    return dictionary.decoder


serve({kind: partial(trained, kind) for kind in ("topk", "jumprelu")}, {"version": None})
