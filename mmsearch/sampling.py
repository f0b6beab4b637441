"""A sample of a library: what its answers to a question stand out from, and how many further on match as well."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Items spread over a library, or over the part of it that may answer.

    Attributes:
        rows: theirs ``(S,)``, growing.
        vectors: ``(S, D)``.
        items: how many the library has, or the part.
    """

    rows: np.ndarray
    vectors: np.ndarray
    items: int


class Samples:
    """The samples of an index, each kept until the index changes. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Modality, tuple[int, Sample]] = {}

    def of(self, snapshot: Snapshot, modality: Modality, allowed: np.ndarray | None = None) -> Sample:
        """That of one kind; of the rows ``allowed`` ``(A,)``, growing, where not all may answer."""
        if allowed is not None:
            return _drawn(snapshot, modality, allowed)
        with self._lock:
            kept = self._kept.get(modality)
            if kept is None or kept[0] != snapshot.state.version:
                rows = snapshot.state.rows[modality]
                alive = np.setdiff1d(np.arange(rows), snapshot.dead[modality], assume_unique=True)
                kept = self._kept[modality] = snapshot.state.version, _drawn(snapshot, modality, alive)
            return kept[1]


def _drawn(snapshot: Snapshot, modality: Modality, rows: np.ndarray) -> Sample:
    chosen = rows[spread_places(len(rows))]
    return Sample(chosen, snapshot.vectors[modality].fetch(chosen), len(rows))


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
