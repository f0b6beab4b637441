"""An encoder that knows which colours a picture has, but whose vectors do not say where: a reranker has to look.

A picture shows a colour in each of its corners. Its vector counts its colours, and so does that of a text such as "red
topleft, blue topright". The patches are the colours of the 16 tiles. The state of a word says which colour and which
corner belong together, as the context of a word would.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

COLOURS = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255),
    "yellow": (255, 255, 0), "cyan": (0, 255, 255), "pink": (255, 0, 255),
}  # fmt: skip
CORNERS = ("topleft", "topright", "bottomleft", "bottomright")
PALETTE = np.array(list(COLOURS.values()), np.float32) / 255
LINE = {"mean": 0.7, "std": 0.1, "slope": 2.0, "bias": -6.0}


class CornerEncoder:
    name = "corners"
    dim = 6
    image_size = 8
    max_tokens = 16
    patches = (16, 3)
    state_size = 10
    calibration: ClassVar = {f"{a}->{b}": LINE for a in ("text", "image") for b in ("text", "image")}

    def __init__(self, fingerprint: str = "c0", brightness: float = 1.0) -> None:
        self.fingerprint = fingerprint
        self._brightness = brightness

    def prepare(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=np.float32).transpose(2, 0, 1) / 255

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        return self.encode_prepared_patches(batch)[0]

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self.encode_prepared(np.stack([self.prepare(image) for image in images]))

    def encode_prepared_patches(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tiles = batch.reshape(len(batch), 3, 4, 2, 4, 2).mean(axis=(3, 5)).reshape(len(batch), 3, 16)
        patches = tiles.transpose(0, 2, 1)  # (B, 16, 3)
        nearest = np.abs(patches[:, :, None] - PALETTE).sum(axis=3).argmin(axis=2)  # (B, 16)
        counts = (nearest[..., None] == np.arange(6)).sum(axis=1)  # (B, 6)
        return unit(counts), patches * self._brightness

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.encode_text_states(texts)[0]

    def encode_text_states(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        states = []
        for text in texts:
            rows = []
            for pair in text.split(", "):
                colour, corner = pair.split()
                row = np.zeros(10, np.float32)
                row[list(COLOURS).index(colour)] = row[6 + CORNERS.index(corner)] = 1
                rows += [row, row]
            states.append(np.stack(rows))
        return unit(np.array([rows[:, :6].sum(axis=0) for rows in states])), states

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def unit(counts: np.ndarray) -> np.ndarray:
    rows: np.ndarray = (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)
    return rows


def write_corners(folder: Path, pictures: Sequence[tuple[str, ...]], dev: int) -> Path:
    """Pictures with these colours in their four corners and a caption each; the last ``dev`` are for judging."""
    (folder / "images").mkdir(parents=True)
    rows, names = ["image\tcaption"], []
    for colours in pictures:
        image = Image.new("RGB", (16, 16))
        for corner, colour in enumerate(colours):
            image.paste(
                COLOURS[colour], (8 * (corner % 2), 8 * (corner // 2), 8 + 8 * (corner % 2), 8 + 8 * (corner // 2))
            )
        name = "-".join(colours) + ".png"
        image.save(folder / "images" / name)
        rows.append(f"{name}\t{', '.join(f'{c} {p}' for c, p in zip(colours, CORNERS, strict=True))}")
        names.append(name)
    (folder / "captions.tsv").write_text("\n".join(rows) + "\n")
    (folder / "train.txt").write_text("\n".join(names[:-dev]) + "\n")
    (folder / "dev.txt").write_text("\n".join(names[-dev:]) + "\n")
    return folder
