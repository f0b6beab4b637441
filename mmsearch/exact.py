"""Search by words alone: what holds every word that was asked for, in its text, in the name of its file, or in both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from indexer.errors import StorageError, UsageError
from indexer.index import Snapshot
from indexer.reader import Reader
from indexer.records import PieceRow
from indexer.types import Modality
from indexer.words import Phrase, available, match_all, phrases
from mmsearch.copies import collapse
from mmsearch.moments import merge, videos_beside, with_videos
from mmsearch.query import Query
from mmsearch.things import Scored, Thing, things

_AT_ONCE = 64
"""Pieces of which the texts are read at once."""


def find_exact(snapshot: Snapshot, query: Query, k: int) -> list[Thing]:
    """The ``k`` best things that hold all words of ``query.text``, each scored by BM25 as a share of the best one's.

    Words in quotes, and words joined by signs, must stand side by side. What holds all words of something in
    ``query.without`` is left out.

    Raises:
        UsageError: there is no word in the question.
        StorageError: there is no word search in this index, or in this Python.
    """
    asked = phrases(query.text or "")
    if not asked:
        raise UsageError(f"there is no word in {query.text!r} that could be searched for")
    reader = snapshot.reader
    if not reader.has_words():
        if not available():
            raise StorageError("words cannot be searched: the SQLite of this Python was built without FTS5")
        raise StorageError("this index has no word search yet; 'mmsearch verify' makes it, and so does any indexing")
    scores = _holders(reader, asked)
    pieces = _allowed(snapshot, query, reader.pieces(ids=list(scores)))
    for unwanted in map(phrases, query.without):
        if unwanted:
            texts = set(reader.texts_with(match_all(unwanted)).tolist())
            names = set(reader.names_with(match_all(unwanted)).tolist())
            pieces = [one for one in pieces if one.id not in texts and one.asset_id not in names]
    pieces.sort(key=lambda one: (-scores[one.id], one.id))
    best = scores[pieces[0].id] if pieces else 1.0
    found: list[Scored] = []
    taken: set[int] = set()
    for start in range(0, len(pieces), max(_AT_ONCE, k)):
        some = pieces[start : start + max(_AT_ONCE, k)]
        found += _scored(reader, some, scores, best)
        taken.update(one.asset_id for one in some)
        if len(_complete(reader, found, query, k)) >= k:
            # What else of the same files holds the words says what is read there and how long a moment is.
            rest = [one for one in pieces[start + len(some) :] if one.asset_id in taken]
            found += _scored(reader, rest, scores, best)
            break
    return _complete(reader, found, query, k)


def _scored(reader: Reader, pieces: list[PieceRow], scores: dict[int, float], best: float) -> list[Scored]:
    """The pieces with their scores as shares of the best one's."""
    found: list[Scored] = []
    for modality in Modality:
        rows = {one.row: one.id for one in pieces if one.modality is modality}
        for row, item in reader.items_at(modality, list(rows)).items():
            found.append(Scored(scores[rows[row]] / best, item))
    return found


def _complete(reader: Reader, found: list[Scored], query: Query, k: int) -> list[Thing]:
    videos = videos_beside(reader, (one.item for one in found))
    return collapse(reader, query, things(merge(with_videos(found, videos), query.moments)), k)


def _holders(reader: Reader, asked: list[Phrase]) -> dict[int, float]:
    """The items that hold all phrases, each with its score; where a name helps, the first item of the file."""
    scores = reader.ranked_texts(match_all(asked))
    by_name = reader.ranked_names(match_all(asked))
    for piece in reader.pieces(of=list(by_name), first=1):
        scores[piece.id] = scores.get(piece.id, 0.0) + by_name[piece.asset_id]
    # Some words may stand in the name of a file and the others in its text.
    missing: dict[int, set[Phrase]] = {}
    for phrase in asked:
        for asset_id in reader.names_with(match_all([phrase])).tolist():
            missing.setdefault(asset_id, set(asked)).discard(phrase)
    groups: dict[frozenset[Phrase], set[int]] = {}
    for asset_id, phrases_missing in missing.items():
        if phrases_missing:
            groups.setdefault(frozenset(phrases_missing), set()).add(asset_id)
    for lacking, assets in groups.items():
        texts = reader.ranked_texts(match_all(sorted(lacking)))
        for piece in reader.pieces(ids=list(texts)):
            if piece.asset_id in assets:
                scores.setdefault(piece.id, texts[piece.id])
    return scores


def _allowed(snapshot: Snapshot, query: Query, pieces: list[PieceRow]) -> list[PieceRow]:
    """Those that pass the filters of the question."""
    passing = {kind: allowed_rows(snapshot, kind, query) for kind in {one.modality for one in pieces}}
    kept = {kind: None if rows is None else set(rows.tolist()) for kind, rows in passing.items()}
    return [one for one in pieces if (rows := kept[one.modality]) is None or one.row in rows]


def allowed_rows(snapshot: Snapshot, answered: Modality, query: Query) -> np.ndarray | None:
    """Rows of the items of one modality that may answer, growing; None if all may."""
    where = query.where
    if query.kinds and not snapshot.kinds_of(answered) <= set(query.kinds):
        where = replace(where, kinds=query.kinds)
    return None if where.is_open else snapshot.reader.rows(answered, where)
