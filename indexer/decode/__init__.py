"""Decoding: what a file becomes before a model sees it, and which files are worth opening at all."""

from __future__ import annotations

import os

from indexer.decode.image import MAX_PIXELS, DecodedImage, decode_image, decode_opened, is_picture
from indexer.decode.streams import (
    FPS,
    KINDS,
    TEXT_EXTENSIONS,
    VIDEO_EXTENSIONS,
    Picture,
    Source,
    decode,
    is_moving,
    is_script,
    still,
    stream_suffix,
)
from indexer.decode.text import Passage, iter_passages
from indexer.types import Modality

__all__ = [
    "FPS",
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "TEXT_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "DecodedImage",
    "Passage",
    "Picture",
    "Source",
    "decode",
    "decode_image",
    "decode_opened",
    "is_moving",
    "is_picture",
    "is_script",
    "iter_passages",
    "modality_of",
    "reads_ocr",
    "still",
    "stream_suffix",
]

IMAGE_EXTENSIONS = frozenset(
    {"avif", "bmp", "dib", "gif", "heic", "heif", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp"}
)


def modality_of(path: str) -> Modality | None:
    """What a file of this name holds, by its extension alone; None for a file that is nobody's business here."""
    extension = os.path.splitext(path)[1][1:].lower()
    if extension in IMAGE_EXTENSIONS:
        return Modality.IMAGE
    kind = KINDS.get(extension)
    return kind.modality if kind else None


def reads_ocr(path: str) -> bool:
    """Whether a file of this name may hold pictures in which text is looked for."""
    extension = os.path.splitext(path)[1][1:].lower()
    return extension in IMAGE_EXTENSIONS - KINDS.keys() or extension == "pdf"
