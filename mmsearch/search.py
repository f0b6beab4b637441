"""From a question to hits: embed, search each kind, bring the scores onto one scale, merge."""

from __future__ import annotations

import threading
from collections.abc import Mapping
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
class _Part:
    """One thing that was asked for: the modality it was asked in, its vector ``(D,)``, its weight."""

    asked: Modality
    vector: np.ndarray
    weight: float


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
        if k < 1:
            raise UsageError(f"k is {k}; ask for at least 1 answer")
        wanted, unwanted = self._embed(query)
        with self.index.snapshot() as snapshot:
            best: list[tuple[float, Item]] = []
            for answered in query.kinds or tuple(Modality):
                best += self._search_kind(snapshot, answered, query, wanted, unwanted, k)
        best.sort(key=lambda found: (-found[0], found[1].id))
        hits = [Hit(rank, probability(logit), item) for rank, (logit, item) in enumerate(best[:k], 1)]
        return [hit for hit in hits if query.min_score is None or hit.score >= query.min_score]

    def _embed(self, query: Query) -> tuple[list[_Part], list[_Part]]:
        """What is wanted, with weights that add up to 1, and what is not."""
        wanted: list[_Part] = []
        count = (query.text is not None) + (query.image is not None)
        with self._encoding:
            texts = ([query.text] if query.text is not None else []) + list(query.without)
            vectors = iter(self.encoder.encode_texts(texts)) if texts else iter(())
            if query.text is not None:
                wanted.append(_Part(Modality.TEXT, next(vectors), 1 / count))
            if query.image is not None:
                vector = self.encoder.encode_images([query.image.convert("RGB")])[0]
                wanted.append(_Part(Modality.IMAGE, vector, 1 / count))
            unwanted = [_Part(Modality.TEXT, vector, 1.0) for vector in vectors]
        return wanted, unwanted

    def _search_kind(
        self,
        snapshot: Snapshot,
        answered: Modality,
        query: Query,
        wanted: list[_Part],
        unwanted: list[_Part],
        k: int,
    ) -> list[tuple[float, Item]]:
        """The ``k`` best items of one kind with the log-odds that they match."""
        store = snapshot.vectors[answered]
        if not snapshot.state.rows[answered]:
            return []
        allowed = None if query.where.is_open else snapshot.reader.rows(answered, query.where)
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
        items = snapshot.reader.items_at(answered, found.tolist())
        return [(float(logit), items[row]) for logit, row in zip(logits, found.tolist(), strict=True)]


def _sample(snapshot: Snapshot, modality: Modality) -> np.ndarray:
    """Vectors ``(S, D)`` of items spread evenly over the library."""
    store = snapshot.vectors[modality]
    alive = np.setdiff1d(np.arange(store.rows), snapshot.dead[modality], assume_unique=True)
    return store.fetch(alive[np.linspace(0, len(alive) - 1, min(len(alive), EXCLUSION_SAMPLE)).astype(int)])


def _penalty(vectors: np.ndarray, library: np.ndarray, unwanted: list[_Part]) -> np.ndarray:
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
