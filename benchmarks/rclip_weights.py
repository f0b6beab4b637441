"""Give rclip 3 and 4 random weights of the architecture that it uses, for a machine that cannot download its own.

    RCLIP_DATADIR=FOLDER python benchmarks/rclip_weights.py
    RCLIP_DATADIR=OTHER python benchmarks/rclip_weights.py --size 224

Its answers mean nothing then, but cost what they always cost: rclip loads the two ONNX files that it finds in its data
folder, and the time of a network does not depend on its weights. They are open_clip's ViT-B-32-256 in float32; with
``--size 224`` ViT-B-32, for ``indexing.py --rclip-size 224``, which has rclip prepare pictures of that size.

rclip 4 also wants the licences that come with its own weights. Where one is missing every question imports
huggingface_hub and looks for them there: 0.4 s of processor that a question to a complete folder does not take.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch

ARCHITECTURES = {256: "ViT-B-32-256", 224: "ViT-B-32"}
FOLDER = "ViT-B-32-256-datacomp_s34b_b86k"
LICENCES = ("LICENSE", "OPENAI-CLIP-MIT.txt", "README.md", "THIRD_PARTY_NOTICES.md")
"""What ``rclip.model_download`` calls ``MODEL_LEGAL_FILES``."""


class Tower(torch.nn.Module):
    """One of the two methods of a model, as a module."""

    def __init__(self, model: Any, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """A batch to its features ``(B, 512)``."""
        features: torch.Tensor = getattr(self.model, self.method)(batch)
        return features


def main() -> None:
    """Export both towers, copy the vocabulary, and put a line where the licences would be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, choices=sorted(ARCHITECTURES), default=256, help="pixels a side")
    size = parser.parse_args().size
    home = Path(os.environ["RCLIP_DATADIR"])
    (home / FOLDER).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURES[size]).eval()
    for name, method, example in (
        ("visual.onnx", "encode_image", torch.zeros(2, 3, size, size)),
        ("textual.onnx", "encode_text", torch.zeros(2, 77, dtype=torch.int64)),
    ):
        torch.onnx.export(
            Tower(model, method),
            (example,),
            str(home / FOLDER / name),
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
            dynamo=False,
        )
    vocabulary = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    (home / "tokenizer").mkdir(exist_ok=True)
    shutil.copy(vocabulary, home / "tokenizer")
    for name in LICENCES:
        (home / name).write_text("Random weights; see rclip_weights.py.\n", encoding="utf-8")


if __name__ == "__main__":
    main()
