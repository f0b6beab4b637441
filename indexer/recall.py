"""How many of a corpus's lists a question must look into: recall measured against exact search. Arrays in, arrays out.

The scores within a list are exact (see ``indexer.lists``), so an answer is found if and only if its list is looked
into. Recall is therefore counted, not searched for: of each question's true answers, how many stand in the lists that
come first for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEFAULT_RECALL = 0.99
DEPTHS = (10, 50, 200, 1000, 2000)
"""Lengths of the list of answers for which recall is measured; up to the last, a question takes the next longer one."""
_CAUTION = 0.25
"""Part of the tolerated loss that is kept in reserve, for the questions are a sample."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Recall over lists looked into: ``recalls[i][j]`` of the best ``DEPTHS[i]``, with ``probes[j]`` lists."""

    probes: tuple[int, ...]
    recalls: tuple[tuple[float, ...], ...]

    def needed(self, k: int, target: float) -> int:
        """How many lists to look into for ``k`` answers of which the share ``target`` is right; all if none do.

        With recall .95 at 4 lists, .993 at 8 and 1 at 16, ``needed(10, .99)`` is 8.
        """
        depth = next((i for i, most in enumerate(DEPTHS) if k <= most), None)
        if depth is None or target >= 1:
            return self.probes[-1]
        aim = target + _CAUTION * (1 - target)
        return next(p for p, recall in zip(self.probes, self.recalls[depth], strict=True) if recall >= aim)


def probe_grid(lists: int) -> tuple[int, ...]:
    """Numbers of lists worth trying: each about a fifth more than the one before, up to all of them."""
    grid = [1]
    while grid[-1] < lists:
        grid.append(min(lists, max(grid[-1] + 1, round(grid[-1] * 1.2))))
    return tuple(grid)


def places(centroid_scores: np.ndarray, answer_lists: np.ndarray) -> np.ndarray:
    """At which place, from 0, the list of each true answer comes for its question: ``(Q, K)``.

    Args:
        centroid_scores: of every list for every question, ``(Q, L)``.
        answer_lists: the list in which each true answer stands, ``(Q, K)``.
    """
    order = np.argsort(-centroid_scores, axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(order.shape[1])[None], axis=1)
    return np.take_along_axis(place, answer_lists, axis=1)


def measure(groups: Sequence[np.ndarray], lists: int) -> Curve:
    """The curve of the worst of several groups of questions, each given as its ``places`` ``(Q, K)``.

    Questions in words fall elsewhere than the pictures that they ask for, so a group of each kind is measured.
    """
    probes = probe_grid(lists)
    recalls = [
        (*(min(float((group[:, :depth] < p).mean()) for group in groups) for p in probes[:-1]), 1.0) for depth in DEPTHS
    ]
    return Curve(probes, tuple(recalls))
