"""Decoding: what a file becomes before a model sees it, and which files are worth opening at all."""

from __future__ import annotations

import os

from indexer.decode.image import MAX_PIXELS, DecodedImage, decode_image
from indexer.decode.text import Passage, iter_passages
from indexer.types import Modality

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "TEXT_EXTENSIONS",
    "DecodedImage",
    "Passage",
    "decode_image",
    "iter_passages",
    "modality_of",
]

IMAGE_EXTENSIONS = frozenset(
    {"avif", "bmp", "dib", "gif", "heic", "heif", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp"}
)
TEXT_EXTENSIONS = frozenset({"csv", "markdown", "md", "tsv", "txt"})

_MODALITIES = dict.fromkeys(IMAGE_EXTENSIONS, Modality.IMAGE) | dict.fromkeys(TEXT_EXTENSIONS, Modality.TEXT)


def modality_of(path: str) -> Modality | None:
    """What a file of this name holds, by its extension alone; None for a file that is nobody's business here."""
    return _MODALITIES.get(os.path.splitext(path)[1][1:].lower())
