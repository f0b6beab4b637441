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


@dataclass(frozen=True, slots=True)
class Curve:
    """Recall over lists looked into: ``recalls[i][j]`` of the best ``DEPTHS[i]``, with ``probes[j]`` lists.

    ``errors`` are the standard errors of the recalls, for the questions are a sample.
    """

    probes: tuple[int, ...]
    recalls: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...]

    def needed(self, k: int, target: float) -> int:
        """How many lists to look into for ``k`` answers of which the share ``target`` is right, less the error.

        With recall .95 at 4 lists, .993 ± .002 at 8 and 1 at 16, ``needed(10, .99)`` is 8, and ``needed(10, .992)`` 16.
        """
        depth = next((i for i, most in enumerate(DEPTHS) if k <= most), None)
        if depth is None or target >= 1:
            return self.probes[-1]
        row = zip(self.probes, self.recalls[depth], self.errors[depth], strict=True)
        return next(probes for probes, recall, error in row if recall - error >= target)


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
    recalls, errors = [], []
    for depth in DEPTHS:
        worst = [_worst(groups, depth, p) for p in probes[:-1]]
        recalls.append((*(recall for recall, _ in worst), 1.0))
        errors.append((*(error for _, error in worst), 0.0))
    return Curve(probes, tuple(recalls), tuple(errors))


def exact_curve() -> Curve:
    """That of a single list."""
    return Curve((1,), ((1.0,),) * len(DEPTHS), ((0.0,),) * len(DEPTHS))


def _worst(groups: Sequence[np.ndarray], depth: int, probes: int) -> tuple[float, float]:
    """Recall and its standard error, of the group where they are least sure to be high."""
    of_questions = [(group[:, :depth] < probes).mean(1) for group in groups]  # (Q,) each
    both = [(float(one.mean()), float(one.std() / np.sqrt(len(one)))) for one in of_questions]
    return min(both, key=lambda pair: pair[0] - pair[1])
