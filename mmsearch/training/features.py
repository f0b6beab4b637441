"""What the frozen towers say about pictures and captions: computed once, kept in the run's folder."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from indexer.encoders.mini import MiniEncoder
from indexer.encoders.mini_torch import pad

BATCH = 32
TEXT_BATCH = 128
REPORT = 30
"""Batches of pictures from one line of progress to the next."""
SMALLEST_CROP = 0.5
"""Part of the area that a crop keeps at least."""
WIDEST_ASPECT = 1 / 0.6
COLOUR = 0.25
"""How far brightness, contrast and saturation of a crop move, up or down."""


def changed(image: Image.Image, view: str, rng: np.random.Generator) -> Image.Image:
    """A view of a picture: ``plain``, ``flip``, or for any other name a random crop of random proportions and colour.

    Crops are random resized crops (Szegedy et al. 2015, section 6); their proportions vary because the model squeezes
    every picture to a square and must not mind.
    """
    if view == "plain":
        return image
    if view == "flip":
        return ImageOps.mirror(image)
    width, height = image.size
    area = rng.uniform(SMALLEST_CROP, 1.0) * width * height
    aspect = math.exp(rng.uniform(-math.log(WIDEST_ASPECT), math.log(WIDEST_ASPECT)))
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    image = image.crop((left, top, left + w, top + h))
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(rng.uniform(1 - COLOUR, 1 + COLOUR))
    return image


class Features:
    """Computes features with the towers of an encoder and remembers them in a folder.

    A remembered file is used again if it was computed from the same towers, files and seed, and recomputed if not.
    """

    def __init__(self, encoder: MiniEncoder, folder: Path, *, seed: int, compiled: bool, log: Callable[[str], None]):
        self._encoder = encoder
        self._folder = folder
        self._seed = seed
        self._compiled = compiled
        self._log = log
        folder.mkdir(parents=True, exist_ok=True)

    def pictures(self, split: str, paths: Sequence[Path], view: str) -> tuple[Tensor, Tensor]:
        """The pooled features ``(N, 1280)`` and the class averages ``(N, 384)`` of one view of each picture."""
        kept = self._kept(
            f"{split}-{view}",
            "\n".join([view, str(self._seed), *(f"{path.name} {path.stat().st_size}" for path in paths)]),
            lambda: self._compute_pictures(paths, view),
        )
        return kept["features"].float(), kept["words"].float()

    def texts(self, split: str, texts: Sequence[str]) -> Tensor:
        """The token means ``(N, 7, 384)`` of the text tower."""
        return self._kept(f"{split}-texts", "\n".join(texts), lambda: self._compute_texts(texts))["pooled"].float()

    def _kept(self, name: str, content: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        key = hashlib.blake2b(f"{self._encoder.towers_digest()}\n{content}".encode(), digest_size=16).hexdigest()
        path = self._folder / f"{name}.safetensors"
        if path.is_file():
            with safe_open(path, "pt") as opened:
                if (opened.metadata() or {}).get("key") == key:
                    return load_file(path)
        self._log(f"computing {name}")
        tensors = {part: tensor.half().contiguous() for part, tensor in compute().items()}
        save_file(tensors, path, {"key": key})
        return tensors

    def _compute_pictures(self, paths: Sequence[Path], view: str) -> dict[str, Tensor]:
        device, tower = self._encoder.image_tower()
        run = torch.compile(tower, options={"freezing": True}) if self._compiled else tower
        features, words = [], []
        began, done = time.monotonic(), 0
        for pixels in self._batches(paths, view):
            count = len(pixels)
            done += count
            if done % (REPORT * BATCH) == 0:
                self._log(f"{done} of {len(paths)} pictures, {done / (time.monotonic() - began):.0f} a second")
            if count < BATCH:  # one shape for all batches: another shape would be compiled again
                pixels = np.concatenate([pixels, np.repeat(pixels[-1:], BATCH - count, axis=0)])
            with torch.inference_mode():
                a, b = run(torch.from_numpy(pixels).to(device))
            features.append(a[:count].cpu())
            words.append(b[:count].cpu())
        return {"features": torch.cat(features), "words": torch.cat(words)}

    def _batches(self, paths: Sequence[Path], view: str) -> Iterator[np.ndarray]:
        """uint8 ``(B, 3, S, S)``, each batch decoded while the one before it is computed."""

        def prepared(number: int) -> np.ndarray:
            rng = np.random.default_rng([self._seed, *view.encode(), number])
            with Image.open(paths[number]) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
            return self._encoder.prepare(changed(upright, view, rng))

        def batch(start: int) -> np.ndarray:
            return np.stack([prepared(number) for number in range(start, min(start + BATCH, len(paths)))])

        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(batch, 0)
            for start in range(BATCH, len(paths) + BATCH, BATCH):
                ready = coming
                if start < len(paths):
                    coming = pool.submit(batch, start)
                yield ready.result()

    def _compute_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        device, tower = self._encoder.text_tower()
        ids = self._encoder.token_ids(texts)
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        pooled = torch.empty(len(ids), 7, 384)
        for start in range(0, len(order), TEXT_BATCH):
            chunk = order[start : start + TEXT_BATCH]
            numbers, mask = pad([ids[number] for number in chunk])
            with torch.inference_mode():
                pooled[chunk] = tower(numbers.to(device), mask.to(device)).cpu()
        return {"pooled": pooled}
