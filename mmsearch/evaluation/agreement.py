"""How far two models agree on the same questions: which items they find, in which order, and whether those are right.

A ranking is ``(Q, K)``: the numbers of K items for each of Q questions, best first. Higher scores first, ties to the
smaller number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from indexer.errors import UsageError

PERSISTENCE = 0.9
"""p of rank-biased overlap: the first ten places carry 86 % of the weight (Webber et al. 2010)."""
_BLOCK = 256  # questions whose scores stand in memory at once


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two models on the same questions. Shares are of all questions, overlaps and tau means over questions."""

    questions: int
    gallery: int
    k: int
    jaccard: float
    """Common items of both top k, of all items in either: 1 when they find the same, 0 when nothing is common."""
    rank_biased_overlap: float
    """The same with most weight on the first places: 1 for equal lists."""
    kendall_tau: float
    """Of the order of all items in either top k: 1 for equal orders, 0 for unrelated ones, -1 for opposite ones."""
    same_first: float
    both_right: float
    """A right answer is in the top k of both."""
    only_first_right: float
    only_second_right: float
    neither_right: float

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def agreement(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    right: tuple[np.ndarray, np.ndarray],
    *,
    k: int = 10,
) -> Agreement:
    """Compare what two models find for the same questions in the same gallery.

    Args:
        first, second: the rows of the questions ``(Q, D)`` and of the gallery ``(N, D)`` by each model; D may differ.
        right: what each question ``(Q,)`` and each item of the gallery ``(N,)`` is about; a question is answered by
            the items that are about the same.
        k: how many answers are looked at; no more than the gallery has count.

    Raises:
        UsageError: the two do not have the same numbers of questions and items, or there are none.
    """
    questions, gallery = len(first[0]), len(first[1])
    if (questions, gallery) != (len(second[0]), len(second[1])):
        raise UsageError(
            f"the first model was asked {questions} questions about {gallery} items, the second "
            f"{len(second[0])} about {len(second[1])}: only answers to the same questions can be compared"
        )
    if not questions or not gallery:
        raise UsageError(f"{questions} questions about {gallery} items: there is nothing to compare")
    k = min(k, gallery)
    jaccards, overlaps, taus, same, hits = [], [], [], [], []
    for block in blocks(questions):
        one, two = first[0][block] @ first[1].T, second[0][block] @ second[1].T  # (Q, N)
        top_one, top_two = ranking(one, k), ranking(two, k)  # (Q, K)
        jaccards.append(jaccard(top_one, top_two))
        overlaps.append(rank_biased_overlap(top_one, top_two))
        taus.append(kendall_tau(one, two, top_one, top_two))
        same.append(top_one[:, 0] == top_two[:, 0])
        asked = right[0][block][:, None]  # (Q, 1)
        hits.append(np.stack([(right[1][top] == asked).any(axis=1) for top in (top_one, top_two)], axis=1))  # (Q, 2)
    hit = np.concatenate(hits)
    return Agreement(
        questions=questions,
        gallery=gallery,
        k=k,
        jaccard=float(np.concatenate(jaccards).mean()),
        rank_biased_overlap=float(np.concatenate(overlaps).mean()),
        kendall_tau=float(np.concatenate(taus).mean()),
        same_first=float(np.concatenate(same).mean()),
        both_right=float((hit[:, 0] & hit[:, 1]).mean()),
        only_first_right=float((hit[:, 0] & ~hit[:, 1]).mean()),
        only_second_right=float((~hit[:, 0] & hit[:, 1]).mean()),
        neither_right=float((~hit[:, 0] & ~hit[:, 1]).mean()),
    )


def ranking(scores: np.ndarray, k: int | None = None) -> np.ndarray:
    """The numbers of the ``k`` best of ``scores: (Q, N)``, or of all: ``(Q, K)``. (0.2, 0.7, 0.2) gives (1, 0, 2)."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def jaccard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Common items of all items in either, for each pair of rankings ``(Q, K)``: ``(Q,)``.

    (4, 2, 7) and (2, 9, 4) share two of four items: 0.5.
    """
    common = (first[:, :, None] == second[:, None, :]).sum(axis=(1, 2))  # (Q,) no item stands twice in a ranking
    return np.asarray(common / (2 * first.shape[1] - common))


def rank_biased_overlap(first: np.ndarray, second: np.ndarray, *, p: float = PERSISTENCE) -> np.ndarray:
    """Rank-biased overlap of rankings ``(Q, K)``: ``(Q,)``, extrapolated (RBO_EXT of Webber et al. 2010).

    With X_d the number of common items among the first d of both,

        RBO = X_K / K p^K + (1 - p) / p sum_d X_d / d p^d

    (0, 1) and (1, 0) at p = 0.9: X is (0, 2), and 0.81 + 0.1111 * 0.81 = 0.9.
    """
    k = first.shape[1]
    same = first[:, :, None] == second[:, None, :]  # (Q, K, K)
    depth = np.arange(1, k + 1)  # (K,)
    # item i of one and j of the other are common from depth max(i, j) on
    place = np.maximum(depth[:, None], depth)  # (K, K)
    common = np.stack([(same & (place <= d)).sum(axis=(1, 2)) for d in depth], axis=1)  # (Q, K)
    part = common / depth
    return np.asarray(part[:, -1] * p**k + (1 - p) / p * (part * p**depth).sum(axis=1))


def kendall_tau(
    first_scores: np.ndarray, second_scores: np.ndarray, first_top: np.ndarray, second_top: np.ndarray
) -> np.ndarray:
    """Kendall's tau-b (1945, it counts ties) of two models' scores of all items in either top k: ``(Q,)``.

    Where a model gives all of them the same score there is no order to agree with, and tau is 0. A single item is in
    order: 1.

    Args:
        first_scores, second_scores: ``(Q, N)``.
        first_top, second_top: rankings ``(Q, K)``.
    """
    from scipy.stats import kendalltau

    taus = np.ones(len(first_scores))
    for q in range(len(taus)):
        items = np.union1d(first_top[q], second_top[q])
        if len(items) > 1:
            taus[q] = kendalltau(first_scores[q, items], second_scores[q, items]).statistic
    return np.nan_to_num(taus)


def blocks(count: int) -> Iterator[slice]:
    """Slices of all below ``count``, so many questions at a time as their scores fit into memory."""
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))
