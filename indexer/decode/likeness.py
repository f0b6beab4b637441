"""The likeness of a picture: how large it is, and a perceptual hash that survives saving, resizing and re-encoding it.

The hash is pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): of the picture
in grey, 32 pixels a side, the 8 x 8 coefficients of the discrete cosine transform that lie nearest to the mean, without
those that are constant along a side; a bit for each says whether it is above their median. Two pictures look the same
where few of the 64 bits differ.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from indexer.decode.image import DecodedImage
from indexer.records import Likeness

SIDE = 32
"""Pixels a side of what is hashed. A picture with a shorter side has no hash: there is too little of it to tell."""
KEPT = 8
"""Coefficients a side."""
PLAIN = 8.0
"""Standard deviation of those coefficients below which a picture has no hash: a plain one, whose bits are noise."""

_SAMPLES = np.arange(SIDE)
_DCT = np.cos(np.pi * (2 * _SAMPLES[None] + 1) * _SAMPLES[1 : KEPT + 1, None] / (2 * SIDE)) * np.sqrt(2 / SIDE)
"""Rows 1 to 8 of the orthonormal DCT-II ``(KEPT, SIDE)``."""


def likeness(decoded: DecodedImage) -> Likeness:
    """The likeness of a picture, from what is decoded of it for the model."""
    return Likeness(decoded.width, decoded.height, phash(decoded.image))


def phash(image: Image.Image) -> int | None:
    """The perceptual hash of a picture, 64 bits; None for one that is plain, or smaller than ``SIDE``."""
    if min(image.size) < SIDE:
        return None
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)  # (SIDE, SIDE)
    coefficients = _DCT @ grey @ _DCT.T  # (KEPT, KEPT)
    if coefficients.std() < PLAIN:
        return None
    bits = coefficients > np.median(coefficients)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
