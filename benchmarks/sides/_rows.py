"""The rows that both sides train on."""

import argparse
import sys
from pathlib import Path

from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


class Given:
    """Rows to train on, and the sizes."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--data", type=Path, required=True)
        for name in ("latents", "active", "batch"):
            parser.add_argument(f"--{name}", type=int, required=True)
        options = parser.parse_args()
        self.train = load_file(options.data)["train"]
        self.latents, self.active, self.batch = options.latents, options.active, options.batch
