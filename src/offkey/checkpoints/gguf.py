"""Reading a GGUF file, the format of llama.cpp, as plain weights through transformers."""

import contextlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offkey.errors import BadInput

__all__ = ["Unpacked", "quiet", "read_gguf"]


@dataclass(frozen=True)
class Unpacked:
    """The contents of a GGUF file, dequantised, and no longer marked as quantised."""

    architecture: type[Any]
    config: Any
    generation: Any
    weights: dict[str, Tensor]
    tokenizer: Any

    def model(self, dtype: torch.dtype, **options: Any) -> Any:
        """A fresh model with these weights, which can be saved, merged and cast."""
        with quiet():
            model = self.architecture.from_pretrained(
                None, config=self.config, state_dict=self.weights, dtype=dtype, **options
            )
        model.generation_config = self.generation
        return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from drawing progress bars, and leaves its setting as it was."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        # its bar for dequantising obeys no setting
        with contextlib.nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def read_gguf(path: Path, dtype: torch.dtype = torch.float32) -> Unpacked:
    """Reads and dequantises a GGUF file.

    Args:
        path: the file.
        dtype: what the dequantised values are rounded to.

    Raises:
        BadInput: not a GGUF file, or of an architecture that transformers does not read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BadInput("not a GGUF file (its first bytes are wrong)", where=str(path))
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
    except (ValueError, KeyError, RuntimeError, IndexError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"cannot be read ({reason})",
            where=str(path),
            mend="Give a safetensors checkpoint of the model instead",
        ) from error

    config = model.config
    del config.quantization_config  # a config so marked cannot be loaded as plain weights
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    return Unpacked(
        type(model), config, model.generation_config, _rounded(model, dtype), tokenizer
    )


def _rounded(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    return {
        name: value.detach().to(dtype).contiguous()
        for name, value in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name in tied)
    }
