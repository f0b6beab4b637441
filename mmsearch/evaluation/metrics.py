"""Measures of a ranking, one number for each question; arrays in, arrays out.

All that a measure needs to know about a ranking is where the relevant items stand in it. ``judge`` works that out once,
and every measure is a line of arithmetic over the result: ``(Q, R)`` ranks and gains, Q questions, R the most relevant
items that any of them has.

    Three items 0, 1, 2; the ranking is [2, 0, 1]; items 0 and 1 are relevant. They stand at ranks 2 and 3, so

    hit_rate(judged, 1) = 0, hit_rate(judged, 2) = 1        precision(judged, 2) = 1/2, recall(judged, 2) = 1/2
    reciprocal_rank(judged) = 1/2                           average_precision(judged) = (1/2 + 2/3) / 2 = 7/12
    ndcg(judged, 2) = (1 / log2 3) / (1 + 1 / log2 3) = 0.387

A higher score comes first and equal scores go to the smaller number of the item, as in the answers of a search: see
``ranking``. Numbers for a whole set of questions are means (or the median) of these rows; ``bootstrap`` says how sure.

Measures over ranks follow Manning, Raghavan and Schütze, "Introduction to Information Retrieval" (2008), chapter 8, and
agree with trec_eval; nDCG is that of Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques"
(2002), with the gains themselves, not powers of two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Where the relevant items of each question stand.

    ``ranks: (Q, R)`` are float64, count from 1, grow along a row, and are infinite for what was not found; ``gains:
    (Q, R)`` say how relevant, above 0. Rows with fewer than R relevant items end in gains of 0 at infinite ranks.
    """

    ranks: np.ndarray
    gains: np.ndarray

    def __post_init__(self) -> None:
        if self.ranks.shape != self.gains.shape or self.ranks.ndim != 2:
            raise ValueError(f"ranks have shape {self.ranks.shape} and gains {self.gains.shape}; both should be (Q, R)")
        unjudged = np.flatnonzero(~(self.gains > 0).any(axis=1))
        if len(unjudged):
            raise ValueError(f"nothing is relevant to question {unjudged[0]}, so no answer to it can be right or wrong")

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def relevant(self) -> np.ndarray:
        """How many items are relevant to each question: ``(Q,)``."""
        return (self.gains > 0).sum(axis=1)

    @classmethod
    def of(cls, found: Sequence[Sequence[float]]) -> Judged:
        """From the ranks of each question's relevant items, all as relevant: ``Judged.of([[2, 3], [1]])``."""
        return _padded([[(rank, 1.0) for rank in sorted(row)] for row in found])


def _padded(rows: Sequence[Sequence[tuple[float, float]]]) -> Judged:
    """From (rank, gain) of each question, in the order of the ranks."""
    width = max(map(len, rows), default=0)
    ranks, gains = np.full((len(rows), width), np.inf), np.zeros((len(rows), width))
    for q, row in enumerate(rows):
        for r, (rank, gain) in enumerate(row):
            ranks[q, r], gains[q, r] = rank, gain
    return Judged(ranks, gains)


def ranking(scores: np.ndarray) -> np.ndarray:
    """Items in the order of ``scores: (Q, N)``, best first, ties to the smaller number: int64 ``(Q, N)``."""
    return np.argsort(-scores, axis=1, kind="stable")


def judge(rankings: Sequence[Sequence[int]] | np.ndarray, relevant: Sequence[Mapping[int, float]]) -> Judged:
    """Find the ``relevant`` items of each question, ``{item: gain}``, in its ranking of item numbers, best first.

    Rankings may be cut off, and differ in length; what is not in one stands at infinity. Gains of 0 are not relevant.

    Raises:
        ValueError: nothing is relevant to some question, a ranking names an item twice, or their numbers differ.
    """
    rows: list[list[tuple[float, float]]] = []
    for items, gains in zip(rankings, relevant, strict=True):
        place = {int(item): rank for rank, item in enumerate(items, 1)}
        if len(place) != len(items):
            raise ValueError(f"the ranking of question {len(rows)} names an item twice")
        row = [(float(place.get(item, np.inf)), float(gain)) for item, gain in gains.items() if gain > 0]
        rows.append(sorted(row))
    return _padded(rows)


def oracle(judged: Judged, depth: int) -> Judged:
    """The best that any reordering of the first ``depth`` answers could make of a ranking.

    The relevant items among them come first, the most relevant of them at the top; the rest stays where it is. So the
    hit rate of the result is that of ``judged`` at ``depth``, whatever the cut up to there: at depth 10 the ranks 3 and
    40 become 1 and 40.
    """
    ranks, gains = judged.ranks.copy(), judged.gains.copy()
    for q in range(len(judged)):
        count = int((ranks[q] <= depth).sum())
        ranks[q, :count] = np.arange(1, count + 1)
        gains[q, :count] = np.sort(gains[q, :count])[::-1]
    return Judged(ranks, gains)


def _found(judged: Judged, k: int) -> np.ndarray:
    """How many relevant items are among the first ``k``: ``(Q,)``."""
    if k < 1:
        raise ValueError(f"k is {k}; the smallest cut is 1")
    return (judged.ranks <= k).sum(axis=1)


def hit_rate(judged: Judged, k: int) -> np.ndarray:
    """R@K of papers on images and captions: 1 if anything relevant is among the first ``k``, else 0; ``(Q,)``."""
    return (_found(judged, k) > 0).astype(np.float64)


def precision(judged: Judged, k: int) -> np.ndarray:
    """What part of the first ``k`` places holds something relevant: ``(Q,)``; an empty place counts as wrong."""
    return _found(judged, k) / k


def recall(judged: Judged, k: int) -> np.ndarray:
    """What part of the relevant items is among the first ``k``: ``(Q,)``."""
    return _found(judged, k) / judged.relevant


def f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """The harmonic mean of precision and recall, 0 where both are 0: ``(Q,)``."""
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def first_rank(judged: Judged) -> np.ndarray:
    """The rank of the best relevant item, infinite if none was found: ``(Q,)``."""
    return judged.ranks[:, 0]


def reciprocal_rank(judged: Judged) -> np.ndarray:
    """One over the rank of the best relevant item; the mean of it is MRR: ``(Q,)``."""
    return 1 / judged.ranks[:, 0]


def average_precision(judged: Judged) -> np.ndarray:
    """The mean, over all relevant items, of the precision at their ranks; the mean of it is mAP: ``(Q,)``."""
    standing = np.arange(1, judged.ranks.shape[1] + 1) / judged.ranks  # (Q, R), 0 for what was not found
    return standing.sum(axis=1) / judged.relevant


def ndcg(judged: Judged, k: int) -> np.ndarray:
    """Gains among the first ``k``, each divided by log2(1 + rank), over the most that could be: ``(Q,)``."""
    if k < 1:
        raise ValueError(f"k is {k}; the smallest cut is 1")
    within = judged.ranks <= k
    discounts = np.log2(1 + np.where(within, judged.ranks, 1))
    gained = (np.where(within, judged.gains, 0) / discounts).sum(axis=1)
    ideal = -np.sort(-judged.gains, axis=1)[:, :k]  # (Q, min(R, k))
    return gained / (ideal / np.log2(np.arange(2, ideal.shape[1] + 2))).sum(axis=1)


def set_precision(right: np.ndarray, returned: np.ndarray) -> np.ndarray:
    """``right: (Q,)`` of ``returned: (Q,)`` answers are relevant; 0 where nothing was returned."""
    return np.divide(right, returned, out=np.zeros(len(returned)), where=returned > 0)


def set_recall(right: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """``right: (Q,)`` of the ``relevant: (Q,)`` items that there are were returned."""
    return right / relevant


def count_above(scores: np.ndarray, relevant: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Of ``scores: (Q, N)``, how many are at or above ``threshold``, and how many of those are ``relevant: (Q, N)``.

    Returns:
        ``right`` and ``returned``, both ``(Q,)``, as ``set_precision`` takes them.
    """
    above = scores >= threshold
    return (above & relevant).sum(axis=1), above.sum(axis=1)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """By how much probabilities ``(Q,)`` miss how often they are ``right`` ``(Q,)``: 0 is perfect, 1 always wrong.

    The expected calibration error of Guo et al., "On Calibration of Modern Neural Networks" (2017), section 2, over
    bins that hold the same number of questions each, from the least to the most confident (Nixon et al. 2019): the
    distance of mean confidence and share of right ones in a bin, weighted by its size. Of confidences 0.5 and 1, both
    right, in two bins it is (0.5 + 0) / 2.
    """
    order = np.argsort(confidence, kind="stable")
    chunks = [chunk for chunk in np.array_split(order, bins) if len(chunk)]
    gaps = [len(chunk) * abs(float(confidence[chunk].mean()) - float(right[chunk].mean())) for chunk in chunks]
    return sum(gaps) / max(len(order), 1)
