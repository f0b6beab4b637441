"""The end of torchvision's transforms, from a picture to the numbers that a tower takes, in half of the time.

``ToTensor`` and ``Normalize`` go over the pixels six times, and copy them twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def preparation(transform: Any) -> Callable[[Image], np.ndarray]:
    """What makes of an RGB picture what torchvision's ``transform`` makes of it: float32 ``(3, H, W)``.

    Only if it ends in a normalisation of pixels from 0 to 1, as open_clip's do; another is called as it is.
    """
    from torchvision.transforms import Normalize, ToTensor

    *steps, to_tensor, normalize = getattr(transform, "transforms", [None, None])
    if not (isinstance(to_tensor, ToTensor) and isinstance(normalize, Normalize) and np.shape(normalize.mean) == (3,)):
        return lambda image: np.ascontiguousarray(transform(image).numpy(), dtype=np.float32)
    mean, deviation = (np.asarray(one, np.float64) for one in (normalize.mean, normalize.std))
    factors, offsets = (1 / (255 * deviation)).astype(np.float32), (-mean / deviation).astype(np.float32)

    def prepare(image: Image) -> np.ndarray:
        for step in steps:
            image = step(image)
        pixels = np.empty((3, image.height, image.width), np.float32)
        for colour, band in enumerate(image.split()):
            np.multiply(np.asarray(band), factors[colour], out=pixels[colour])
            pixels[colour] += offsets[colour]
        return pixels

    return prepare
