"""Files of many pieces: which decoder reads which, and what it is given and gives.

A decoder is a generator that goes through a file in bounded memory and gives its passages and pictures in an order that
is the same every time. So a run that was killed is carried on behind the pieces that were stored: the decoder is told
how many there are and where the last one stands, and begins behind it without decoding, as far as it can, what is
before.

A decoder module is loaded with the first file that needs it.
"""

from __future__ import annotations

import codecs
import importlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from indexer.decode.text import Passage, iter_passages
from indexer.errors import DecodeError
from indexer.types import Modality, Span

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from indexer.decode.ocr import Ocr


FPS = 4.0
"""Frames of a video that are looked at in a second unless somebody says otherwise: what finds cuts and dissolves."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A piece that is seen: one picture, or the frames that were taken of a clip.

    ``frames`` are ``(C, H, W)`` each, as ``Source.prepare`` gives them. ``times`` are the seconds of the frames of a
    clip, one each, and empty for a picture; ``span.best`` becomes the time of the frame that stands for the clip.
    """

    span: Span
    frames: Sequence[np.ndarray]
    times: Sequence[float] = ()
    share: float = 0.0
    """Of its file, how much ends with it, from 0 to 1; 0 where that is not known."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A file that is to be decoded, what the model takes, and what is stored of it already.

    ``file`` stands at its beginning. ``stored`` pieces need not come again; ``last`` is the span of the last of them.
    ``report`` takes the reason why a part of the file is missing: the rest is kept.
    """

    path: str
    file: BinaryIO
    suffix: str
    """In lower case, with its dot."""
    prepare: Callable[[Image], np.ndarray]
    image_size: int
    max_tokens: int
    count_tokens: Callable[[str], int]
    report: Callable[[str], None]
    stored: int = 0
    last: Span | None = None
    page_begins: int = 0
    """Which piece of the file, counted from 0, is the first on the page of ``last``."""
    ocr: Ocr | None = None
    """What reads the text in a picture, if it is to be read."""
    fps: float = FPS
    """Frames of a video that are looked at in a second, at most."""


Decoder = Callable[[Source], Iterator[Passage | Picture]]
"""From the piece after ``Source.stored`` on. Raises DecodeError, with the reason, if the file is not to be indexed."""
Still = Callable[[str, Span, "int | None"], "Image"]
"""The RGB picture of a piece that is seen, from its file's path and its span, which may be shrunk to twice so many
pixels a side, if a number is given. Raises DecodeError or OSError."""


class Kind(NamedTuple):
    """A kind of file: what it is, and the names, ``module:function``, of its ``Decoder`` and its ``Still``, if any."""

    modality: Modality
    decoder: str
    still: str | None = None


TEXT_EXTENSIONS = frozenset({"csv", "markdown", "md", "tsv", "txt"})
VIDEO_EXTENSIONS = frozenset(
    {"3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv"}
)
SUBTITLE_EXTENSIONS = frozenset({"ass", "srt", "ssa", "vtt"})

KINDS: dict[str, Kind] = {}
"""The kind of a file by its extension, in lower case and without its dot. Pictures of one frame are not among them: a
GIF or WebP is here for the case that it has more."""
KINDS |= dict.fromkeys(TEXT_EXTENSIONS, Kind(Modality.TEXT, "indexer.decode.streams:iter_texts"))
KINDS |= dict.fromkeys(
    VIDEO_EXTENSIONS | {"gif"}, Kind(Modality.VIDEO, "indexer.decode.video:iter_clips", "indexer.decode.video:still")
)
KINDS |= {"webp": Kind(Modality.VIDEO, "indexer.decode.animation:iter_clips", "indexer.decode.animation:still")}
KINDS |= dict.fromkeys(SUBTITLE_EXTENSIONS, Kind(Modality.VIDEO, "indexer.decode.subtitles:iter_subtitles"))
KINDS |= {
    "pdf": Kind(Modality.TEXT, "indexer.decode.pdf:decode", "indexer.decode.pdf:still"),
    "docx": Kind(Modality.TEXT, "indexer.decode.office:decode_docx"),
    "pptx": Kind(Modality.TEXT, "indexer.decode.office:decode_pptx"),
    "epub": Kind(Modality.TEXT, "indexer.decode.markup:decode_epub"),
}
KINDS |= dict.fromkeys(("htm", "html", "xhtml"), Kind(Modality.TEXT, "indexer.decode.markup:decode_html"))


_SCRIPT_EXTENSIONS = frozenset({"mts", "ts"})
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MOVING = re.compile(
    rb"....ftyp|....moov|....mdat|....wide|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|OggS|\0\0\x01[\xba\xb3]|"
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    re.DOTALL,
)


def is_moving(head: bytes) -> bool:
    """Whether a file that begins so, and is no picture, is a video in a known format."""
    return _MOVING.match(head) is not None


def is_script(path: str, head: bytes) -> bool:
    """Whether a file that is called like an MPEG transport stream and begins so is TypeScript, or another text.

    A stream has packets of 188 bytes that begin with 0x47, and few of their bytes are letters; a damaged one is still
    no text.
    """
    extension = os.path.splitext(path)[1][1:].lower()
    return extension in _SCRIPT_EXTENSIONS and bool(head) and not _CONTROL.search(head.removeprefix(codecs.BOM_UTF8))


def stream_suffix(path: str, modality: Modality) -> str:
    """The suffix, with its dot, of what a file really is: its own, or that of a video which is called otherwise."""
    suffix = os.path.splitext(path)[1].lower()
    kind = KINDS.get(suffix[1:])
    return suffix if kind is not None and kind.modality is modality else ".mp4"


def decode(source: Source) -> Iterator[Passage | Picture]:
    """The pieces of a file, by the decoder of its kind."""
    decoder: Decoder = _load(KINDS[source.suffix[1:]].decoder)
    return decoder(source)


def still(path: str, suffix: str, span: Span, size: int | None) -> Image:
    """The RGB picture of a piece that is seen, which may be shrunk to ``2 * size`` pixels a side, if given.

    Raises:
        DecodeError: the file is no longer what it was, or its kind has no pictures.
        OSError: it cannot be read.
    """
    name = KINDS[suffix[1:]].still
    if name is None:
        raise DecodeError(f"there are no pictures in {path}")
    reader: Still = _load(name)
    return reader(path, span, size)


def iter_texts(source: Source) -> Iterator[Passage]:
    """The passages of a text."""
    passages = iter_passages(
        source.file, suffix=source.suffix, capacity=source.max_tokens, count_tokens=source.count_tokens
    )
    return islice(passages, source.stored, None)


def _load(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
