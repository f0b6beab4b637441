"""Spherical k-means in NumPy: directions that stand for the vectors around them. Arrays in, arrays out.

Dhillon and Modha, Concept decompositions for large sparse text data using clustering, Machine Learning 42, 2001.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 4096
"""Vectors held against all centroids at a time."""


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``vectors`` ``(N, D)`` its best of ``centroids`` ``(L, D)`` and the score, ``(N,)`` each; ties to
    the first."""
    best = np.empty(len(vectors), np.int64)
    scores = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK] @ centroids.T  # (b, L)
        chosen = block.argmax(1)
        best[start : start + _BLOCK] = chosen
        scores[start : start + _BLOCK] = block[np.arange(len(block)), chosen]
    return best, scores


def cluster(vectors: np.ndarray, count: int, *, rounds: int = 8, seed: int = 0) -> np.ndarray:
    """``count`` unit float32 centroids ``(count, D)`` of unit ``vectors`` ``(N, D)``, N at least ``count``.

    A centroid that loses all its vectors starts again at the vector that is served worst.
    """
    rng = np.random.default_rng(seed)
    centroids = vectors[np.sort(rng.choice(len(vectors), count, replace=False))].astype(np.float32)
    for _ in range(rounds):
        owner, scores = nearest(vectors, centroids)
        order = np.argsort(owner, kind="stable")
        sizes = np.bincount(owner, minlength=count)
        sums = np.zeros_like(centroids)
        filled = np.flatnonzero(sizes)
        starts = (np.cumsum(sizes) - sizes)[filled]
        sums[filled] = np.add.reduceat(vectors[order], starts, axis=0)
        empty = np.flatnonzero(sizes == 0)
        sums[empty] = vectors[np.argsort(scores, kind="stable")[: len(empty)]]
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = np.where(lengths > 1e-6, sums / np.maximum(lengths, 1e-6), centroids)
    return centroids
