"""Changes of pictures and captions that keep their meaning, the same for the same seed, picture and view."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from indexer.errors import UsageError
from mmsearch.training.settings import Augmentation

WIDEST_CUTOUT = 3.3
"""The rectangle that is painted over is up to so many times as wide as high, or as high as wide (Zhong et al. 2020)."""
CUTOUT_COLOUR = (127, 127, 127)


class PictureAugmentation:
    """Changes pictures by the strengths of an ``Augmentation``.

    What becomes of view v of picture n depends on the seed, v and n alone: not on the order of calls, nor on the thread
    or process. (The transforms of torchvision draw from one generator of the whole process, and for pictures of Pillow
    call what is called here.)

    Example: ``PictureAugmentation(Augmentation(), seed=0)(image, picture=17, view=3)``
    """

    def __init__(self, strengths: Augmentation, seed: int) -> None:
        self._strengths = strengths
        self._seed = seed

    def __call__(self, image: Image.Image, picture: int, view: int) -> Image.Image:
        """View ``view`` (from 0) of the RGB picture number ``picture`` (from 0), again RGB."""
        rng = generator("picture", self._seed, picture, view)
        strengths = self._strengths
        if strengths.crop > 0:
            image = image.crop(crop_box(image.width, image.height, strengths.crop, strengths.aspect, rng))
        if rng.random() < strengths.mirror:
            image = ImageOps.mirror(image)
        if strengths.colour > 0:
            for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhancer(image).enhance(rng.uniform(1 - strengths.colour, 1 + strengths.colour))
        if rng.random() < strengths.grey:
            image = ImageOps.grayscale(image).convert("RGB")
        if strengths.cutout > 0:
            image = image.copy()  # the caller's picture stays as it was
            image.paste(CUTOUT_COLOUR, cutout_box(image.width, image.height, strengths.cutout, rng))
        return image


def generator(purpose: str, seed: int, picture: int, view: int) -> np.random.Generator:
    """The random numbers of one purpose (``picture``, ``caption``) for one view of one picture; all numbers from 0.

    Each purpose has its own, or else the same caption would always come with the same crop.
    """
    return np.random.default_rng([seed, *purpose.encode(), picture, view])


def crop_box(
    width: int, height: int, loss: float, aspect: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """The left, upper, right and lower edge, in pixels, of a random crop (Szegedy et al. 2015, section 6).

    Args:
        width, height: of the picture, in pixels.
        loss, aspect: as ``crop`` and ``aspect`` of ``Augmentation``.

    Example: of 400 × 300 pixels, an area of 0.5 and an aspect of 1.5 give a crop of round(√(60,000 · 1.5)) = 300 by
    round(√(60,000 / 1.5)) = 200. What would be wider or higher than the picture is cut to its width or height.
    """
    area = rng.uniform(1 - loss, 1.0) * width * height
    ratio = _log_uniform(aspect, rng) if aspect > 0 else width / height
    return _place(width, height, area, ratio, rng)


def cutout_box(width: int, height: int, largest: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The left, upper, right and lower edge, in pixels, of what is painted over.

    Random erasing (Zhong et al. 2020, algorithm 1) with an area from nothing to ``largest`` of the picture's.
    """
    area = rng.uniform(0.0, largest) * width * height
    return _place(width, height, area, _log_uniform(WIDEST_CUTOUT, rng), rng)


def drop_words(text: str, p: float, rng: np.random.Generator) -> str:
    """``text`` without some of its words, each left out with probability ``p``, the rest joined by single spaces.

    Word dropout (Iyyer et al. 2015, section 3.1). Where all would go, one of them stays, each as likely as another. At
    0 the text comes back as it is; at 1 exactly one word is left. Words are what white space separates.

    Example: "a dog runs" at 0.1 stays whole in 0.9³ = 73 % of all draws.

    Raises:
        UsageError: ``p`` is no probability.
    """
    if not 0 <= p <= 1:
        raise UsageError(f"{p} is no probability of leaving out a word; it must be from 0 to 1")
    words = text.split()
    if p == 0 or not words:
        return text
    kept = rng.random(len(words)) >= p  # (L,)
    if not kept.any():
        kept[rng.integers(len(words))] = True
    return " ".join(word for word, stays in zip(words, kept, strict=True) if stays)


def _log_uniform(widest: float, rng: np.random.Generator) -> float:
    """Between 1/widest and widest, so that twice as wide is as likely as half as wide."""
    return math.exp(rng.uniform(-math.log(widest), math.log(widest)))


def _place(width: int, height: int, area: float, ratio: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A rectangle of about ``area`` square pixels, ``ratio`` times as wide as high, anywhere within the picture."""
    w = min(width, max(1, round(math.sqrt(area * ratio))))
    h = min(height, max(1, round(math.sqrt(area / ratio))))
    left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    return left, top, left + w, top + h
