"""The dictionary that comes with the package."""

import pytest
import torch

from offkey.dictionaries import bundled_dictionaries, dictionary_folder, load_dictionary
from offkey.errors import UnknownName
from offkey.features import get_feature


def test_it_is_a_topk_dictionary_of_the_bundled_model():
    assert bundled_dictionaries() == ("resid_post.15",)
    folder = dictionary_folder("bundled:resid_post.15")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6
    made = load_dictionary(folder)
    assert (made.width, made.latents, made.k) == (576, 2048, 32)
    assert (made.site, made.model) == ("resid_post.15", "smollm2-135m-instruct")
    assert made.about["text"]["model_samples"] == 0
    assert made.about["text"]["packages"]
    lengths = made.decoder.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(2048), rtol=0, atol=5e-3)


def test_another_name_is_refused_with_what_there_is():
    with pytest.raises(UnknownName, match=r"Did you mean bundled:resid_post\.15"):
        dictionary_folder("bundled:resid_post.16")


@pytest.mark.real
def test_it_fits_the_bundled_model(bundled):
    feature = get_feature("sae")
    (site,) = feature.plan(bundled).reads
    run = bundled.run(
        ["The capital of France is the city of Paris."], "resid_post.15", positions="all"
    )
    x = run["resid_post.15"][0, 1:].float()
    made = load_dictionary(dictionary_folder("bundled:resid_post.15"))
    f = made.encode(x)
    explained = 1 - (x - made(x)).square().sum() / (x - made.decoder_bias).square().sum()
    assert str(site) == "resid_post.15"
    assert ((f > 0).sum(1) <= 32).all()
    assert explained > 0.5
