"""The likeness of a picture: how large it is, and perceptual hashes that survive saving, resizing and re-encoding it.

The hash is pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): of the picture
in grey, a few pixels a side, the coefficients of the discrete cosine transform that lie nearest to the mean, without
those that are constant along a side; a bit for each says whether it is above their median. Two pictures look the same
where few bits differ. The 64 bits of 8 x 8 coefficients find what may be the same; two pages of text, or two screens of
one program, can agree in them, so there are also the 256 bits of 16 x 16.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from indexer.decode.image import DecodedImage
from indexer.records import Likeness

SIDE = 64
"""Pixels a side of what is hashed."""
LEAST = 32
"""A picture with a shorter side has no hash: there is too little of it to tell."""
PLAIN = 5.0
"""Standard deviation, in levels of grey, below which a picture has no hash: a plain one, whose bits are noise."""

_SAMPLES = np.arange(SIDE)
_DCT = np.cos(np.pi * (2 * _SAMPLES + 1) * np.arange(1, 17)[:, None] / (2 * SIDE))
"""Rows 1 to 16 of the DCT-II ``(16, SIDE)``."""


def likeness(decoded: DecodedImage) -> Likeness:
    """The likeness of a picture, from what is decoded of it for the model."""
    return Likeness(decoded.width, decoded.height, *_hashes(decoded.image))


def _hashes(image: Image.Image) -> tuple[int | None, bytes | None]:
    """The hashes of 64 and of 256 bits; None for both of a picture that is plain, or too small."""
    if min(image.size) < LEAST:
        return None, None
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    grey = np.asarray(small, np.float64)  # (SIDE, SIDE)
    if grey.std() < PLAIN:
        return None, None
    coefficients = _DCT @ grey @ _DCT.T  # (16, 16)
    return int.from_bytes(_bits(coefficients[:8, :8]), "big"), _bits(coefficients)


def _bits(coefficients: np.ndarray) -> bytes:
    return np.packbits(coefficients > np.median(coefficients)).tobytes()
