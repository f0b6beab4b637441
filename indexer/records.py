"""What goes into the catalogue and comes out of it, in plain values."""

from __future__ import annotations

from dataclasses import dataclass

from indexer.content import Digest
from indexer.tokens import TokenFormat
from indexer.types import Modality, Span


@dataclass(frozen=True, slots=True)
class State:
    """The counters of an index at one moment.

    ``version`` grows by one with every transaction; ``generation`` names the current vector files; ``rows`` counts the
    rows of each; ``tokens`` says whose image tokens are kept beside the vectors of pictures and clips, if any are;
    ``digest`` by what the content of files is recognised.
    """

    version: int
    generation: int
    rows: dict[Modality, int]
    tokens: TokenFormat | None
    digest: Digest


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the catalogue knows of a path without looking at the file: enough to tell whether it changed."""

    asset_id: int | None
    """None for a file that was skipped."""
    size: int
    mtime_ns: int
    complete: bool
    ocr: bool = False
    """Whether text was looked for in its pictures."""


@dataclass(frozen=True, slots=True)
class ItemRow:
    """One item as the vector files see it."""

    id: int
    asset_id: int
    modality: Modality
    row: int
    crc: int


@dataclass(frozen=True, slots=True)
class PieceRow:
    """One item as the search by words sees it: whose it is, and where its vector stands."""

    id: int
    asset_id: int
    modality: Modality
    row: int


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item that is to be written: its place in the asset and the row that already holds its vector.

    ``token_crc`` is the checksum of the tokens in the same row; None if it has none.
    """

    ordinal: int
    modality: Modality
    row: int
    crc: int
    span: Span | None
    text: str | None
    source: str | None
    token_crc: int | None


@dataclass(frozen=True, slots=True)
class Likeness:
    """How a picture looks, in little: its size in pixels, upright, and its perceptual hashes, of 64 and of 256 bits.

    Both are None for a picture that is too plain, or too small, to be known by one; see ``indexer.decode.likeness``.
    """

    width: int
    height: int
    phash: int | None
    detail: bytes | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items may answer. ``under`` is an absolute folder or file; times are seconds since 1970; ``kinds`` are
    those of files, any if empty."""

    under: tuple[str, ...] = ()
    after: float | None = None
    before: float | None = None
    kinds: tuple[Modality, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether every item passes."""
        return not (self.under or self.kinds) and self.after is None and self.before is None
