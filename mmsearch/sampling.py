"""A sample of a library: what its answers to a question stand out from, and how many further on match as well."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np

from indexer.index import Snapshot
from indexer.types import Modality

SIZE = 1024
"""Items of a sample, at most."""
_SIDE_BY_SIDE = 16
"""Items of one place: vectors side by side lie on few pages of the disk."""
LOOKED_AT = 24
"""Items of a sample that are looked at closely to say how many match behind the best."""
TAIL = 10
"""Last ones of the best whose probabilities say whether there are more behind them."""
WORTH = 0.1
"""Mean probability of these from which on it is worth a look."""


class Sample:
    """Items spread over a library, or over the part of it that may answer.

    Attributes:
        rows: theirs ``(S,)``, growing.
        items: how many the library has, or the part.
    """

    def __init__(self, rows: np.ndarray, items: int, fetch: Callable[[np.ndarray], np.ndarray]) -> None:
        self.rows = rows
        self.items = items
        self._fetch = fetch

    @cached_property
    def vectors(self) -> np.ndarray:
        """``(S, D)``; read when they are first asked for, as most questions need only those of pictures."""
        return self._fetch(self.rows)


class Ground:
    """What the answers to one question stand out from: a sample, and its log-odds by the first stage.

    Args:
        direction, offset: a vector's log-odds are its product with ``direction`` ``(D,)`` and ``offset``.
    """

    def __init__(self, sample: Sample, direction: np.ndarray, offset: float) -> None:
        self.sample = sample
        self._direction = direction
        self._offset = offset

    @cached_property
    def logits(self) -> np.ndarray:
        """``(S,)``."""
        return np.asarray(self.sample.vectors.astype(np.float64) @ self._direction + self._offset)


class Samples:
    """The samples of an index, whose vectors are kept until it changes. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Modality, tuple[int, np.ndarray]] = {}

    def of(self, snapshot: Snapshot, modality: Modality, allowed: np.ndarray | None = None) -> Sample:
        """That of one kind; of the rows ``allowed`` ``(A,)``, growing, where not all may answer."""
        if allowed is not None:
            return Sample(allowed[spread_places(len(allowed))], len(allowed), snapshot.vectors[modality].fetch)
        count, dead = snapshot.state.rows[modality], snapshot.dead[modality]
        return Sample(spread_rows(count, dead), count - len(dead), partial(self._vectors, snapshot, modality))

    def _vectors(self, snapshot: Snapshot, modality: Modality, rows: np.ndarray) -> np.ndarray:
        with self._lock:
            version, vectors = self._kept.get(modality, (None, None))
            if vectors is None or version != snapshot.state.version:
                vectors = snapshot.vectors[modality].fetch(rows)
                self._kept[modality] = snapshot.state.version, vectors
            return vectors


def spread_rows(count: int, dead: np.ndarray) -> np.ndarray:
    """At most ``SIZE`` of the rows 0 to ``count`` - 1 that are not ``dead``, growing.

    Where few are dead they are dropped from a sample of all, so that nothing is as long as the index.
    """
    if 2 * len(dead) > count or count <= 2 * SIZE:
        alive = np.setdiff1d(np.arange(count), dead, assume_unique=True)
        return alive[spread_places(len(alive))]
    places = spread_places(count)
    return places[~np.isin(places, dead)]


def spread_places(count: int) -> np.ndarray:
    """At most ``SIZE`` of the places 0 to ``count`` - 1, growing: all of few, and of many short runs spread evenly.

    >>> spread_places(3)
    array([0, 1, 2])
    """
    if count <= SIZE:
        return np.arange(count)
    starts = np.linspace(0, count - _SIDE_BY_SIDE, SIZE // _SIDE_BY_SIDE).astype(np.int64)
    return (starts[:, None] + np.arange(_SIDE_BY_SIDE)).ravel()


def matches_beyond(
    sample: Sample, first: np.ndarray, best: np.ndarray, probabilities: Callable[[np.ndarray], np.ndarray]
) -> float:
    """How many items of the library match, about, that are not among the ``best``.

    The sample without them stands for the rest. How likely its members match falls with their place by the first
    stage, so a few places tell it, close together at the beginning, and what lies between two is read off a line.

    Args:
        first: log-odds of the first stage of the sample ``(S,)``.
        best: rows ``(K,)`` that are counted already.
        probabilities: those of sample members, of which the places ``(C,)`` are given, ``(C,)``.
    """
    rest = np.flatnonzero(~np.isin(sample.rows, best))
    if not len(rest):
        return 0.0
    order = rest[np.argsort(-first[rest], kind="stable")]  # (R,)
    places = np.unique(np.geomspace(1, len(order), LOOKED_AT).round().astype(np.int64)) - 1  # (C,)
    known = probabilities(order[places])
    each = np.interp(np.arange(len(order)), places, known)  # (R,)
    return float(each.mean() * max(sample.items - len(best), 0))
