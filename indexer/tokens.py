"""Image tokens: what a reranker needs to know of a picture, computed while it is indexed and kept beside its vector.

An encoder's patches ``(P, F)`` become a few narrow tokens ``(T, W)`` by the reranker's picture side, a ``Compressor``.
Packed, the tokens of a picture are one row of bytes: row r of the token file belongs to row r of the vectors of
pictures, and a second file holds those of clips, which are the tokens of their best frames. A picture without tokens
has a row of zeros there, and no checksum in the catalogue.

Tokens that are precomputed and compressed for a small joint encoder: Taraday et al. 2025, arXiv:2510.06820 (EDJE).
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from indexer.errors import ModelError, StorageError, UsageError
from indexer.rowfile import RowFile
from indexer.types import Modality

MAX_ROW_BYTES = 9_000
"""Bytes of tokens a picture: a million pictures are then 9 GB."""
_STEPS = 127
_SCALE_BYTES = 2


@dataclass(frozen=True, slots=True)
class TokenFormat:
    """Whose tokens, ``(T, W)`` of a picture. Formats with the same fingerprint are the same, whatever their names.

    Raises:
        UsageError: a number below 1, or rows of more than ``MAX_ROW_BYTES``.
    """

    name: str = field(compare=False)
    """The reranker, as the user names it."""
    fingerprint: str
    """Hexadecimal digest of whatever the tokens depend on."""
    count: int
    """T: tokens of a picture."""
    width: int
    """W: numbers of a token."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.width < 1:
            raise UsageError(f"{self.name}: a picture cannot have {self.count} tokens of {self.width} numbers")
        if self.row_bytes > MAX_ROW_BYTES:
            raise UsageError(
                f"{self.name}: {self.count} tokens of {self.width} numbers are {self.row_bytes:,} bytes a picture; "
                f"{MAX_ROW_BYTES:,} are allowed: make them fewer or narrower"
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of the packed tokens of one picture."""
        return self.count * (self.width + _SCALE_BYTES)


class Compressor(Protocol):
    """A reranker's picture side, which runs while indexing."""

    format: TokenFormat
    encoder: str
    """The fingerprint of the encoder whose patches it reads."""

    def compress(self, patches: np.ndarray) -> np.ndarray:
        """Patches ``(B, P, F)`` float32 to tokens ``(B, T, W)`` float32."""


def pack(tokens: np.ndarray) -> np.ndarray:
    """Tokens ``(B, T, W)`` to rows of bytes ``(B, T * (W + 2))``: int8, then a float16 scale for each token.

    A number is rounded to the nearest step of max|token| / 127; the step is itself rounded to float16, at most one part
    in 2,048. A token whose numbers all lie below 3.8e-6, where float16 ends, becomes zeros.

    Raises:
        ModelError: a number is not finite, or too large for a float16 scale (8.3 million).
    """
    tokens = np.asarray(tokens, dtype=np.float32)
    batch, count, width = tokens.shape
    with np.errstate(over="ignore"):
        scales = (np.abs(tokens).max(axis=2) / _STEPS).astype("<f2")  # (B, T)
    bad = np.flatnonzero(~np.isfinite(scales).all(axis=1))
    if bad.size:
        raise ModelError(f"unusable image tokens (too large or not finite) for image {bad[0] + 1} of {batch}")
    steps = np.where(scales > 0, scales, np.float16(np.inf)).astype(np.float32)[..., None]  # (B, T, 1)
    numbers = np.clip(np.rint(tokens / steps), -_STEPS, _STEPS).astype(np.int8)
    rows = np.empty((batch, count * (width + _SCALE_BYTES)), dtype=np.uint8)
    rows[:, : count * width] = numbers.view(np.uint8).reshape(batch, count * width)
    rows[:, count * width :] = scales.view(np.uint8)
    return rows


def unpack(rows: np.ndarray, format: TokenFormat) -> np.ndarray:
    """The inverse of ``pack``: rows of bytes ``(B, T * (W + 2))`` to tokens ``(B, T, W)`` float32."""
    end = format.count * format.width
    numbers = np.ascontiguousarray(rows[:, :end]).view(np.int8).reshape(len(rows), format.count, format.width)
    scales = np.ascontiguousarray(rows[:, end:]).view("<f2")  # (B, T)
    return numbers * scales.astype(np.float32)[..., None]


def pack_checked(compressor: Compressor, patches: np.ndarray) -> np.ndarray:
    """The packed tokens ``(B, row_bytes)`` that ``compressor`` makes of patches ``(B, P, F)``.

    Raises:
        ModelError: they are not of its own format, or not finite.
    """
    tokens = compressor.compress(patches)
    format = compressor.format
    if tokens.shape != (len(patches), format.count, format.width):
        raise ModelError(
            f"{format.name} gave image tokens of shape {tokens.shape} for {len(patches)} pictures; its format says "
            f"{format.count} of {format.width} each"
        )
    return pack(tokens)


def token_checksum(row: np.ndarray) -> int:
    """CRC-32 of the packed tokens of one picture, kept in the catalogue to notice decay of the file."""
    return zlib.crc32(row.tobytes())


def token_path(folder: Path, modality: Modality, generation: int) -> Path:
    """Where the index in ``folder`` keeps the tokens of pictures, or of clips."""
    return folder / "vectors" / f"{modality}-{generation:05d}.tokens"


class TokenFile(RowFile):
    """The packed tokens of all pictures in one file.

    A writer fills a file that is too short with zeros: pictures without tokens are no damage, and where tokens are lost
    the checksums tell.
    """

    noun = "tokens"

    def __init__(self, path: Path, format: TokenFormat, rows: int, *, write: bool = False) -> None:
        """Open ``path``.

        Raises:
            StorageError: the file cannot be opened, or with ``write`` cannot be brought to ``rows``.
        """
        super().__init__(path, "u1", format.row_bytes, rows, write=write)
        if write and self.missing:
            try:
                os.truncate(path, rows * self.row_bytes)
            except OSError as exc:
                raise StorageError(f"cannot write {path}: {exc.strerror}") from exc
            self.missing = 0
