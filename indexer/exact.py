"""Exact search in plain NumPy: which rows of a matrix score best, ties to the smaller row. Arrays in, arrays out.

One pass of the BLAS over the rows gives scores that are right up to rounding; what is within rounding of the k-th best
is scored again in float64 in one order of additions, so that equal vectors tie exactly wherever they stand.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_SCORES_AT_ONCE = 1 << 24
"""Scores held at a time, 64 MB: so many questions are held against all rows together."""
_RANKED_AT_ONCE = 128
"""Vectors scored in float64 at a time: products that stay in the cache."""


def rounding(dim: int) -> float:
    """By how much a float32 sum of ``dim`` products may be off, for vectors of length 1, in whatever order it is taken.

    The classical bound, Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: dim * 2^-24.
    """
    return dim * 2.0**-24


def reach_down(scores: np.ndarray, k: int, slack: float) -> np.ndarray:
    """Where ``scores`` ``(N,)`` are at most ``slack`` below the ``k``-th best: ``(M,)``, ascending; -inf never is.

    ``reach_down([5, 1, 4, 3.9], k=2, slack=0.1)`` is ``[0, 2, 3]``.
    """
    last = float(np.partition(scores, len(scores) - k)[len(scores) - k]) if k < len(scores) else -np.inf
    return np.flatnonzero((scores >= last - slack) & (scores > -np.inf))


def distinct(numbers: np.ndarray) -> np.ndarray:
    """``numbers`` ``(N,)`` in ascending order, each once: ``np.unique`` without the import of ``numpy.ma``."""
    ordered = np.sort(numbers)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def candidates(matrix: np.ndarray, queries: np.ndarray, k: int, banned: np.ndarray | None) -> Iterator[np.ndarray]:
    """For each of ``queries`` ``(Q, D)`` rows ``(M,)`` of ``matrix`` ``(N, D)`` among which its ``k`` best are.

    Args:
        banned: rows that must not answer, as a mask ``(N,)`` or as numbers.
    """
    at_once = max(1, _SCORES_AT_ONCE // max(1, len(matrix)))
    for start in range(0, len(queries), at_once):
        some = queries[start : start + at_once]
        # One question is a matrix times a vector, which the BLAS does at the speed of memory.
        scores = (matrix @ some[0])[None] if len(some) == 1 else some @ matrix.T  # (q, N)
        if banned is not None:
            scores[:, banned] = -np.inf
        for query, of_query in zip(some, scores, strict=True):
            yield reach_down(of_query, k, 2.1 * rounding(len(query)) * float(np.linalg.norm(query)))


def rank(query: np.ndarray, vectors: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores float64 and rows of the ``k`` best of ``vectors`` ``(M, D)``, which stand at ``rows`` ``(M,)``.

    Best first, ties to the smaller row.
    """
    wide = query.astype(np.float64)
    scores = np.empty(len(vectors))  # (M,), each summed in the same order wherever its vector stands
    for start in range(0, len(vectors), _RANKED_AT_ONCE):
        scores[start : start + _RANKED_AT_ONCE] = np.sum(vectors[start : start + _RANKED_AT_ONCE] * wide, axis=1)
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]
