"""What can happen to an index: the changes that its writer makes, several at a time, all or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from indexer.records import Likeness
from indexer.types import Asset, Modality, Span


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an asset that is to be stored; its vector travels beside it."""

    modality: Modality
    span: Span | None = None
    text: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """Store an asset with its pieces, ``vectors`` ``(P, D)``, in place of the assets ``replaces``.

    With ``extends`` the pieces are further ones of an asset that is already there. ``ordinals`` are their places in the
    file, rising; 0, 1, … if not given. ``complete`` says that they are the last. ``tokens`` are the packed image tokens
    ``(P, row_bytes)`` of pieces that are seen, in the format of the index; None where they have none. ``ocr`` says that
    text was looked for in the pictures of a new asset, ``likeness`` how one looks that is a picture.
    """

    asset: Asset
    pieces: Sequence[Piece]
    vectors: np.ndarray
    replaces: Sequence[int] = ()
    extends: int | None = None
    ordinals: Sequence[int] | None = None
    complete: bool = True
    tokens: Sequence[np.ndarray | None] | np.ndarray | None = None
    ocr: bool = False
    likeness: Likeness | None = None


@dataclass(frozen=True, slots=True)
class Restamp:
    """The content of an asset is as it was, its path or stamp is not."""

    asset_id: int
    asset: Asset
    replaces: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """A file could not be read; whatever was known under its path is gone."""

    path: str
    size: int
    mtime_ns: int
    reason: str
    replaces: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Remove:
    """Assets are gone."""

    asset_ids: Sequence[int]


Change = Put | Restamp | Skip | Remove
