"""An encoder whose vectors can be worked out by hand: how red, green and blue something is.

A picture is its mean colour, a text the colour words in it; the vector is ``unit((red, green, blue, 0.5))`` with the
first three between 0 and 1. So "red" and a red picture have the same vector, (0.894, 0, 0, 0.447).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from indexer.tokens import TokenFormat

WORDS = ("red", "green", "blue")
LINE = {"mean": 0.5, "std": 0.1, "slope": 2.0, "bias": -6.0}


class ColourEncoder:
    name = "colours"
    fingerprint = "c0104125"
    dim = 4
    image_size = 8
    max_tokens = 16
    calibration: ClassVar = {f"{a}->{b}": LINE for a in ("text", "image") for b in ("text", "image")}

    def __init__(self) -> None:
        self.images_seen = 0

    def prepare(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=np.float32).transpose(2, 0, 1) / 255

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        self.images_seen += len(batch)
        return unit(batch.mean(axis=(2, 3), dtype=np.float64))  # (B, 3)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self.encode_prepared(np.stack([self.prepare(image) for image in images]))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        words = [text.lower().split() for text in texts]
        return unit(np.array([[float(colour in some) for colour in WORDS] for some in words]).reshape(-1, 3))

    def count_tokens(self, text: str) -> int:
        return len(text.split()) + 2


class PatchColourEncoder(ColourEncoder):
    """The patches of a picture are the colours of its 16 tiles, the state of a word says which colour word it is."""

    patches = (16, 3)
    state_size = 3

    def encode_prepared_patches(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tiles = batch.reshape(len(batch), 3, 4, 2, 4, 2).mean(axis=(3, 5))  # (B, 3, 4, 4)
        return self.encode_prepared(batch), tiles.reshape(len(batch), 3, 16).transpose(0, 2, 1)

    def encode_text_states(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        words = [text.lower().split() for text in texts]
        states = [np.array([[word == colour for colour in WORDS] for word in some], np.float32) for some in words]
        return self.encode_texts(texts), states

    def read_text(self, text: str) -> tuple[str, list[tuple[int, int] | None]]:
        return text, [match.span() for match in re.finditer(r"\S+", text)]

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        return 0, 0, 1, 1


class ColourCompressor:
    """Two tokens of a picture, the mean colours of its upper and its lower half, each with a fourth number, 1."""

    encoder = ColourEncoder.fingerprint

    def __init__(self, fingerprint: str = "70e5") -> None:
        self.format = TokenFormat("halves", fingerprint, 2, 4)

    def compress(self, patches: np.ndarray) -> np.ndarray:
        halves = patches.reshape(len(patches), 2, 8, 3).mean(axis=2)  # (B, 2, 3)
        return np.concatenate([halves, np.ones((len(patches), 2, 1))], axis=2).astype(np.float32)


def unit(colours: np.ndarray) -> np.ndarray:
    """Colours ``(B, 3)`` to vectors ``(B, 4)``."""
    rows = np.concatenate([colours, np.full((len(colours), 1), 0.5)], axis=1)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
