"""The nouns of the index: what a file is, and what a searchable piece of it is.

Vectors are unit float32 rows, ids are int64, times are seconds since 1970 (UTC).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Modality(str, Enum):
    """What a file is, or what a piece of it is made of; the value is the word the command line uses.

    The two need not agree. A page of a document is an image and a passage in one file, which is a text; a subtitle is a
    text in a file that is a video.
    """

    IMAGE = "image"
    VIDEO = "video"
    TEXT = "text"

    def __str__(self) -> str:
        return self.value


VISUAL = (Modality.IMAGE, Modality.VIDEO)
"""The modalities of pieces that are seen: a reranker holds words against them, and they have image tokens."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as fractions of its width and height."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, or one object that the caller added from memory.

    ``path`` is absolute; bytes of a file name that are not UTF-8 are kept as surrogate escapes (``os.fsencode``
    gives them back). ``key`` is the caller's own id where the asset was added from memory, and ``path`` is then empty.
    """

    path: str
    modality: Modality
    size: int
    mtime_ns: int
    digest: bytes
    taken: float | None = None
    key: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """Where inside its file a piece stands; what does not apply is None."""

    first_line: int | None = None
    last_line: int | None = None
    """Lines of a text, counted from 1."""
    page: int | None = None
    """Page, slide or chapter of a document, counted from 1."""
    start: float | None = None
    end: float | None = None
    best: float | None = None
    """Seconds of a video, from its first moment; ``best`` is the frame that stands for the clip."""
    box: Box | None = None
    """Part of a picture."""


@dataclass(frozen=True, slots=True)
class Item:
    """One searchable piece: an image, a clip of a video, a passage. One catalogue row, one vector.

    ``modality`` says in which vectors it stands, ``asset.modality`` what its file is. ``text`` is set for passages.
    ``source`` says what a text is that is not simply the text of its file: ``subtitle``, ``ocr``, ``caption``.
    """

    id: int
    asset: Asset
    modality: Modality
    span: Span | None = None
    text: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not in the index, and why."""

    path: str
    reason: str
