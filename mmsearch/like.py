"""Files of the index as questions: what is stored of them asks, and nothing is opened or embedded again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from indexer.errors import UsageError
from indexer.index import Snapshot
from indexer.reader import Reader
from indexer.records import NewItem
from indexer.types import VISUAL, Asset, Item, Modality


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What the index knows of a file that asks: its vector ``(D,)``, in which modality, and the piece nearest to it.

    The vector of several clips, or passages, is the direction of their mean. ``item`` stands at ``row``.
    """

    asset: Asset
    asked: Modality
    vector: np.ndarray
    row: int
    item: Item


def stored(snapshot: Snapshot, name: str) -> Stored:
    """What is stored of the file, or of what was added under the key, ``name``; of a video also as ``FILE#t=83,95``.

    A picture asks as what is seen in it, a video as its clips, or those of the moment; a document or text as its words.

    Raises:
        UsageError: it is not in the index, or has no such moment.
    """
    asset, pieces = _pieces(snapshot.reader, name)
    seen = [piece for piece in pieces if piece.modality in VISUAL]
    read = [piece for piece in pieces if piece.modality is Modality.TEXT]
    if asset.modality is Modality.IMAGE:
        seen = seen[:1]
    asking = (read or seen) if asset.modality is Modality.TEXT else (seen or read)
    modality = asking[0].modality
    rows = np.array([piece.row for piece in asking if piece.modality is modality])  # (R,)
    vectors = snapshot.vectors[modality].fetch(rows)  # (R, D)
    vector = _direction(vectors)
    row = int(rows[np.argmax(vectors @ vector)])
    item = snapshot.reader.items_at(modality, [row])[row]
    return Stored(asset, Modality.TEXT if modality is Modality.TEXT else Modality.IMAGE, vector, row, item)


def _pieces(reader: Reader, name: str) -> tuple[Asset, Sequence[NewItem]]:
    found = reader.named(os.path.abspath(name), name)
    if found is not None:
        return found[1], reader.asset_items(found[0])
    from mmsearch.showing import split_moment  # and Pillow, for the few that ask

    moment = split_moment(name)
    found = None if moment is None else reader.named(os.path.abspath(moment.path), moment.path)
    if found is None or moment is None:
        raise UsageError(f"{name!r} is not in the index; --image asks with a picture that is not")
    number, asset = found
    if asset.modality is not Modality.VIDEO:
        raise UsageError(f"{moment.path!r} is no video and has no moments")
    inside = [one for one in reader.asset_items(number) if one.span and _meets(one, moment.start, moment.end)]
    if not inside:
        raise UsageError(f"the index knows of nothing in {moment.path!r} at that time ({name!r})")
    return asset, inside


def _meets(piece: NewItem, start: float, end: float) -> bool:
    """Whether a piece of a video shares some time with a stretch of it, or is running at that one moment."""
    if piece.span is None or piece.span.start is None:
        return False
    finish = piece.span.start if piece.span.end is None else piece.span.end
    return (piece.span.start < end and start < finish) or piece.span.start <= start == end <= finish


def _direction(vectors: np.ndarray) -> np.ndarray:
    """The direction ``(D,)`` of the mean of unit ``vectors`` ``(R, D)``; of a single one, itself bit for bit."""
    if len(vectors) == 1:
        return vectors[0]
    mean = vectors.mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(mean))
    return (mean / length).astype(np.float32) if length > 0 else vectors[0]
