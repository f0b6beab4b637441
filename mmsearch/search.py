"""From a question to hits: embed, search each kind, bring the scores onto one scale, merge."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer.encoders import Encoder
from indexer.errors import UsageError
from indexer.index import Index, Snapshot
from indexer.types import Item, Modality, Span
from mmsearch.calibration import Calibration, probability
from mmsearch.query import Query

EXCLUSION_POOL = 2000
"""Answers among which ``without`` chooses: what is left after the unwanted sank is sought in the best so many."""
EXCLUSION_WEIGHT = 3.0
"""Log-odds that an answer loses for each standard deviation by which it shows the unwanted; chosen on Flickr8k dev."""
EXCLUSION_SAMPLE = 1024
"""Items of the library on which that deviation is measured."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer. ``rank`` counts from 1; ``score`` lies between 0 and 1 and means the same for every kind of hit."""

    rank: int
    score: float
    item: Item

    @property
    def path(self) -> Path | None:
        """The file; None for what was added from memory."""
        return Path(self.item.asset.path) if self.item.asset.path else None

    @property
    def key(self) -> str | None:
        """The caller's own id, for what was added from memory."""
        return self.item.asset.key

    @property
    def kind(self) -> str:
        """``image`` or ``text``."""
        return self.item.modality.value

    @property
    def text(self) -> str | None:
        """The passage, for a text."""
        return self.item.text

    @property
    def lines(self) -> Span | None:
        """Where in its file the passage stands."""
        return self.item.span

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the caller said about it when adding it."""
        return self.item.asset.metadata

    def as_dict(self) -> dict[str, Any]:
        """The hit in plain values, for JSON; what does not apply is left out."""
        asset = self.item.asset
        values: dict[str, Any] = {
            "rank": self.rank,
            "score": round(self.score, 4),
            "kind": self.kind,
            "path": asset.path or None,
            "key": asset.key,
            "lines": [self.lines.first_line, self.lines.last_line] if self.lines else None,
            "text": self.text,
            "taken": asset.taken,
            "metadata": dict(asset.metadata) or None,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that was asked for: the modality it was asked in, its vector ``(D,)``, its weight."""

    asked: Modality
    vector: np.ndarray
    weight: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its vectors: what is wanted, with weights that add up to 1, and what is not."""

    query: Query
    wanted: tuple[Part, ...]
    unwanted: tuple[Part, ...]


class Searcher:
    """Answers questions about one index. May be used from several threads."""

    def __init__(self, index: Index, encoder: Encoder, calibration: Calibration) -> None:
        self.index = index
        self.encoder = encoder
        self.calibration = calibration
        self._encoding = threading.Lock()

    def search(self, query: Query, k: int = 10) -> list[Hit]:
        """The ``k`` best answers, best first, ties to the smaller item; fewer if there are no more.

        Raises:
            UsageError: ``k`` is below 1.
            ModelError: the model cannot be loaded.
            StorageError: the index cannot be read.
        """
        return self.search_many([query], k)[0]

    def search_many(self, queries: Sequence[Query], k: int = 10) -> list[list[Hit]]:
        """The answers of ``search`` to each of many questions, embedded together: far quicker than one by one.

        Raises:
            UsageError, ModelError, StorageError: as ``search``.
        """
        return self.answer(self.embed(queries), k)

    def embed(self, queries: Sequence[Query]) -> list[Asked]:
        """The vectors of the parts of each question; the model sees all texts at once, and all pictures.

        Raises:
            ModelError: the model cannot be loaded.
        """
        texts = [text for query in queries for text in ([] if query.text is None else [query.text]) + [*query.without]]
        images = [query.image.convert("RGB") for query in queries if query.image is not None]
        with self._encoding:
            of_text = iter(self.encoder.encode_texts(texts) if texts else ())
            of_image = iter(self.encoder.encode_images(images) if images else ())
        return [_asked(query, of_text, of_image) for query in queries]

    def answer(self, asked: Sequence[Asked], k: int = 10) -> list[list[Hit]]:
        """The ``k`` best answers to each question, all from one moment of the index.

        Raises:
            UsageError: ``k`` is below 1.
            StorageError: the index cannot be read.
        """
        if k < 1:
            raise UsageError(f"k is {k}; ask for at least 1 answer")
        with self.index.snapshot() as snapshot:
            found = [
                {kind: self._search_kind(snapshot, kind, one, k) for kind in one.query.kinds or tuple(Modality)}
                for one in asked
            ]
            items = {
                kind: snapshot.reader.items_at(
                    kind, sorted({row for kinds in found if kind in kinds for _, row in kinds[kind]})
                )
                for kind in Modality
            }
        return [_hits(one.query, kinds, items, k) for one, kinds in zip(asked, found, strict=True)]

    def _search_kind(self, snapshot: Snapshot, answered: Modality, asked: Asked, k: int) -> list[tuple[float, int]]:
        """The rows of the ``k`` best items of one kind with the log-odds that they match."""
        store = snapshot.vectors[answered]
        if not snapshot.state.rows[answered]:
            return []
        wanted, unwanted, where = asked.wanted, asked.unwanted, asked.query.where
        allowed = None if where.is_open else snapshot.reader.rows(answered, where)
        # The log-odds are linear in the cosines, so a question of several parts is still one vector.
        lines = [self.calibration[part.asked, answered] for part in wanted]
        direction = np.sum([p.weight * ln.gain * p.vector for p, ln in zip(wanted, lines, strict=True)], axis=0)  # (D,)
        offset = sum(p.weight * ln.offset for p, ln in zip(wanted, lines, strict=True))
        pool = max(k, EXCLUSION_POOL) if unwanted else k
        scores, rows = store.search(direction, pool, allowed=allowed, dead=snapshot.dead[answered])
        found = rows[0][rows[0] >= 0]  # (K,)
        logits = scores[0][: len(found)] + offset  # (K,)
        if unwanted and len(found):
            logits = logits - _penalty(store.fetch(found), _sample(snapshot, answered), unwanted)
            order = np.lexsort((found, -logits))[:k]
            found, logits = found[order], logits[order]
        return list(zip(logits.tolist(), found.tolist(), strict=True))


def _asked(query: Query, texts: Iterator[np.ndarray], images: Iterator[np.ndarray]) -> Asked:
    """Take the vectors of one question off the two rows in which they stand."""
    wanted: list[Part] = []
    count = (query.text is not None) + (query.image is not None)
    if query.text is not None:
        wanted.append(Part(Modality.TEXT, next(texts), 1 / count))
    if query.image is not None:
        wanted.append(Part(Modality.IMAGE, next(images), 1 / count))
    return Asked(query, tuple(wanted), tuple(Part(Modality.TEXT, next(texts), 1.0) for _ in query.without))


def _hits(
    query: Query,
    found: Mapping[Modality, list[tuple[float, int]]],
    items: Mapping[Modality, Mapping[int, Item]],
    k: int,
) -> list[Hit]:
    """The ``k`` best of what was found of every kind, ties to the smaller item."""
    best = [(logit, items[kind][row]) for kind, pairs in found.items() for logit, row in pairs]
    best.sort(key=lambda pair: (-pair[0], pair[1].id))
    hits = [Hit(rank, probability(logit), item) for rank, (logit, item) in enumerate(best[:k], 1)]
    return [hit for hit in hits if query.min_score is None or hit.score >= query.min_score]


def _sample(snapshot: Snapshot, modality: Modality) -> np.ndarray:
    """Vectors ``(S, D)`` of items spread evenly over the library."""
    store = snapshot.vectors[modality]
    alive = np.setdiff1d(np.arange(store.rows), snapshot.dead[modality], assume_unique=True)
    return store.fetch(alive[np.linspace(0, len(alive) - 1, min(len(alive), EXCLUSION_SAMPLE)).astype(int)])


def _penalty(vectors: np.ndarray, library: np.ndarray, unwanted: Sequence[Part]) -> np.ndarray:
    """By how much the unwanted lowers the log-odds of ``vectors`` ``(K, D)``: ``(K,)``, never negative.

    Whoever says "not people" means what shows people more than the rest of the library does, however well or badly the
    model knows that word; so each vector's cosine with the unwanted is taken in standard deviations above the mean of
    ``library`` ``(S, D)``, and what is below the mean is spared.
    """
    penalty = np.zeros(len(vectors))
    for part in unwanted:
        background = library.astype(np.float64) @ part.vector  # (S,)
        spread = max(float(background.std()), 1e-6)
        above = (vectors.astype(np.float64) @ part.vector - background.mean()) / spread  # (K,)
        penalty += EXCLUSION_WEIGHT * np.maximum(above, 0)
    return penalty
