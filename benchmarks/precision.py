"""What rounding the weights of `mini` to eight and sixteen bits costs: recall on dev through a real index.

    python benchmarks/precision.py FLICKR8K RUN

RUN is a folder that `mmsearch train combine` wrote. Its model is made again from the runs it was made of, this time
without rounding, and both are asked the same questions.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from indexer.encoders.load import load_encoder
from indexer.encoders.rows import unit_rows
from mmsearch.datasets import open_dataset
from mmsearch.evaluation import evaluate
from mmsearch.training.combine import FEATURES, mixed, open_alike
from mmsearch.training.material import gathered
from mmsearch.training.models import DualModel
from mmsearch.training.run import CONFIG, read_settings
from mmsearch.training.settings import CombineSettings


class Unrounded:
    """The model as it was trained, behind the ``Encoder`` protocol; the rest it takes from its rounded twin."""

    def __init__(self, model: DualModel, twin: object) -> None:
        self._model, self._twin = model.eval(), twin
        self.name, self.fingerprint = "float32", "0" * 32

    def __getattr__(self, name: str) -> object:
        return getattr(self._twin, name)

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            rows = [self._model.image((part,)) for part in torch.from_numpy(batch).split(4)]
        return unit_rows(torch.cat(rows).numpy(), "image")

    def encode_images(self, images: list[Image]) -> np.ndarray:
        return self.encode_prepared(np.stack([self._model.prepare(image) for image in images]))

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        parts = [texts[start : start + 64] for start in range(0, len(texts), 64)]
        with torch.inference_mode():
            rows = [self._model.text(self._model.tokens(part)) for part in parts]
        return unit_rows(torch.cat(rows).numpy(), "text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of Flickr8k")
    parser.add_argument("run", type=Path, help="what `mmsearch train combine` wrote")
    parser.add_argument("--cache", type=Path, help="that of `train combine`, if it had one")
    asked = parser.parse_args()
    settings = read_settings(asked.run / CONFIG, CombineSettings)
    device = torch.device("cpu")
    cache = asked.cache or asked.run / FEATURES
    models, material = open_alike(settings, device), gathered(settings, _to_stderr)
    made = mixed(models, settings, material, cache, device, _to_stderr, lambda _: None)
    rounded = load_encoder(str(asked.run), "cpu")
    dev = open_dataset(asked.data).split("dev")
    before, after = evaluate(Unrounded(made.model, rounded), dev), evaluate(rounded, dev)
    for name, result in (("float32", before), ("as packaged", after)):
        for way in result.ways:
            values = way.measures(result.ks, result.threshold)
            print(f"{name}, {way.name}: " + " / ".join(f"{100 * values[f'R@{k}'].mean():.2f}" for k in result.ks))


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
