"""The activation stream against single passes, and the buffer that shuffles its rows."""

import pytest
import torch

from offkey.data import Prompts, encode
from offkey.errors import BadValue, Mismatch, NotEnoughData
from offkey.passes import ActivationStream, ShuffleBuffer, TensorBlocks, Windows
from tests.dictionaries.reader import WINDOWS, random_texts, reader, slow_rows


@pytest.fixture(scope="module")
def model():
    return reader()


@pytest.fixture(scope="module")
def texts():
    return random_texts()


def test_a_stream_gives_what_single_passes_give(model, texts):
    stream = ActivationStream(model, texts, "resid_post.0, z.1", windows=WINDOWS, token_budget=48)
    found = [stream.block(n) for n in range(len(stream.counts))]
    rows = torch.cat([block["resid_post.0"] for block in found])
    torch.testing.assert_close(rows, slow_rows(model, texts), rtol=1e-4, atol=1e-5)
    assert len(stream) == len(rows)
    assert found[0]["z.1"].shape == (stream.counts[0], 32)
    assert stream.at("z.1").width == 32


def test_a_stream_kept_on_disk_is_the_same(model, texts, tmp_path):
    fresh = ActivationStream(model, texts, "resid_post.0", windows=WINDOWS)
    kept = ActivationStream(model, texts, "resid_post.0", windows=WINDOWS, folder=tmp_path)
    kept.keep(quiet=True)
    again = ActivationStream(model, texts, "resid_post.0", windows=WINDOWS, folder=tmp_path)
    expected = fresh.at("resid_post.0").block(0)
    assert torch.equal(again.at("resid_post.0").block(0), expected)
    with pytest.raises(Mismatch):
        ActivationStream(model, texts, "resid_post.1", windows=WINDOWS, folder=tmp_path)
    with pytest.raises(BadValue, match="no folder"):
        fresh.keep()
    with pytest.raises(BadValue, match="not read by this stream"):
        fresh.at("resid_post.1")


def test_templates_and_special_tokens_do_not_count(model):
    chat = Prompts({"messages": [[{"role": "user", "content": "Yes No Yes"}]]})
    content = ActivationStream(model, chat, "final", windows=Windows(skip=0))
    everything = ActivationStream(model, chat, "final", windows=Windows(skip=0, roles="all"))
    (encoded,) = encode(chat, model.tokenizer)
    assert len(content) == sum(role == 1 for role in encoded.roles) < len(everything)
    assert len(everything) == len(encoded)
    plain = Prompts({"prompt": ["Yes No"]})
    (encoded,) = encode(plain, model.tokenizer)
    assert encoded.tokens[0] == model.tokenizer.bos_token_id
    assert (
        len(ActivationStream(model, plain, "final", windows=Windows(skip=0))) == len(encoded) - 1
    )


def test_nothing_to_read_is_refused(model):
    with pytest.raises(NotEnoughData, match="no token"):
        ActivationStream(model, Prompts({"prompt": ["a"]}), "final", windows=Windows(skip=9))
    with pytest.raises(BadValue, match="holds nothing"):
        Windows(context=4, skip=4)
    with pytest.raises(BadValue, match="Use 'content' or 'all'"):
        Windows(roles="prompt")


def test_the_buffer_leaves_out_rows_that_are_too_long():
    rows = torch.randn(2048, 16, generator=torch.Generator().manual_seed(0)) + 30
    rows[5] *= 1000
    buffer = ShuffleBuffer(TensorBlocks(rows, 512), batch=256, size=2, longest=10)
    assert buffer.longest < rows[5].norm() / 10
    seen = [buffer[n] for s in range(0, 32, 4) for n in buffer.at(s)]
    assert max(float(part.norm(dim=1).max()) for part in seen) <= buffer.longest


def test_the_buffer_gives_every_row_once_an_epoch():
    rows = torch.arange(1.0, 4097)[:, None]
    buffer = ShuffleBuffer(TensorBlocks(rows, 128), batch=256, size=8, longest=1e9)

    def epoch(start):
        return [buffer[n] for s in range(start, start + 16, 4) for n in buffer.at(s)]

    first, second = torch.cat(epoch(0))[:, 0], torch.cat(epoch(16))[:, 0]
    assert torch.equal(first.sort().values, rows[:, 0])
    assert torch.equal(second.sort().values, rows[:, 0])
    assert not torch.equal(first, second)
    assert not torch.equal(first[:256].sort().values, first[:256])
