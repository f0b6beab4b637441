"""From pieces to things: what a person looks for has several pieces in the index, and is one answer. Pure.

A picture is found by its look, by the words in it, by its caption; a page by its look and by its words. The best piece
gives the score, the best piece of text says what is read and where.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from indexer.types import VISUAL, Item, Modality


@dataclass(frozen=True, slots=True)
class Scored:
    """A piece that was found, and its log-odds or whatever else it is ordered by.

    ``late`` is what came after the first so many of its kind: it may be an answer, and adds nothing to others, for that
    would depend on how many answers were asked for.
    """

    score: float
    item: Item
    reranked: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class Thing:
    """One answer: its best piece, its best piece of text and its best piece that is seen, if it has them."""

    best: Scored
    worded: Item | None
    seen: Item | None
    copies: tuple[str, ...] = ()
    """The paths, or the keys, of other files that are the same; see ``mmsearch.copies``."""


def thing_of(item: Item) -> Hashable:
    """What tells the thing that a piece belongs to from all others.

    All pieces of a picture file are one, and all of a page; of a text without pages each passage is one by itself. So
    is each moment of a video.
    """
    asset = item.asset
    file = (asset.path, asset.key)
    if asset.modality is Modality.IMAGE:
        return file
    if asset.modality is Modality.TEXT and item.span is not None and item.span.page is not None:
        return (*file, item.span.page)
    return item.id


def things(pieces: Iterable[Scored]) -> list[Thing]:
    """Each thing once, best first; ties to what is seen, then to the smaller item."""
    found: dict[Hashable, Thing] = {}
    for piece in sorted(pieces, key=lambda one: (-one.score, one.item.modality not in VISUAL, one.item.id)):
        key = thing_of(piece.item)
        thing = found.get(key) or Thing(piece, None, None)
        worded = thing.worded or (piece.item if piece.item.text is not None else None)
        seen = thing.seen or (piece.item if piece.item.modality in VISUAL else None)
        found[key] = Thing(thing.best, worded, seen)
    return list(found.values())
