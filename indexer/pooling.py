"""From the frames of a clip to the one vector that stands for it, and the one frame."""

from __future__ import annotations

import numpy as np


def most_central(vectors: np.ndarray) -> int:
    """Which of the frames ``(T, D)`` is nearest to the mean of all, the earlier of two that are equally near."""
    return int(np.argmax((vectors.astype(np.float64) @ vectors.mean(axis=0, dtype=np.float64)).round(9)))


def mean(vectors: np.ndarray) -> np.ndarray:
    """The mean of the frames ``(T, D)``, at length 1; the most central frame where they cancel each other out."""
    middle = vectors.mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(middle))
    if length < 1e-6:
        return best_frame(vectors)
    pooled: np.ndarray = (middle / length).astype(np.float32)
    return pooled


def best_frame(vectors: np.ndarray) -> np.ndarray:
    """The vector of the most central frame of ``(T, D)``."""
    frame: np.ndarray = vectors[most_central(vectors)]
    return frame


POOL = mean
"""How clips are pooled: unit rows of the frames of a clip ``(T, D)`` to the unit row of the clip ``(D,)``."""
