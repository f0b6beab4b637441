"""Which pictures a model confuses, and groups of them to learn from: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

NOBODY = -1
"""In a row of confused pictures that are fewer than the others'."""
CHUNK = 512


def mean_vectors(text: np.ndarray, owner: np.ndarray, pictures: int) -> np.ndarray:
    """The mean ``(N, D)`` of the vectors of each picture's captions, ``text: (M, D)``; text m is of ``owner[m]``."""
    total = np.zeros((pictures, text.shape[1]), np.float32)
    np.add.at(total, owner, text)
    means: np.ndarray = total / np.bincount(owner, minlength=pictures)[:, None]
    return means


def alike(means: np.ndarray, numbers: np.ndarray, threshold: float) -> np.ndarray:
    """Which pairs of different places of ``numbers (…, n)`` hold pictures that are described alike: ``(…, n, n)``.

    Args:
        means: of ``mean_vectors``.
        threshold: the cosine of two means above which they say the same.
    """
    rows = means[numbers]
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)  # (…, n, D)
    found: np.ndarray = rows @ np.swapaxes(rows, -1, -2) > threshold
    return found & ~np.eye(numbers.shape[-1], dtype=bool)


def confused(image: np.ndarray, means: np.ndarray, count: int, threshold: float) -> np.ndarray:
    """For each picture the ``count`` others that a dual encoder finds nearest to its captions: int32 ``(N, count)``.

    A picture whose captions say the same is no mistake and left out; a row that is short ends with ``NOBODY``.

    Args:
        image: unit rows ``(N, D)``.
        means: of ``mean_vectors``; the mean of cosines is the cosine with the mean.
        threshold: as for ``alike``.
    """
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    near = np.full((len(image), count), NOBODY, np.int32)
    for start in range(0, len(image), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(image)))
        scores = means[rows] @ image.T  # (r, N)
        scores[unit[rows] @ unit.T > threshold] = -np.inf
        scores[np.arange(len(rows)), rows] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]  # (r, count)
        there = np.isfinite(np.take_along_axis(scores, best, axis=1))
        near[rows, : best.shape[1]] = np.where(there, best, NOBODY)
    return near


def drawn_groups(near: np.ndarray, size: int, together: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` groups of ``size`` different pictures ``(count, size)``, some of which are confused with each other.

    A group is filled with seeds, each with up to ``together - 1`` of the pictures that are confused with it. Seeds
    are taken in a random order, each once before any is taken again.

    Args:
        near: of ``confused``.
    """
    seeds = _endless(len(near), rng)
    found = np.empty((count, size), np.int64)
    for group in range(count):
        members: dict[int, None] = {}
        while len(members) < size:
            seed = next(seeds)
            if seed in members:
                continue
            members[seed] = None
            others = [
                other for other in rng.permutation(near[seed]).tolist() if other != NOBODY and other not in members
            ]
            members.update(dict.fromkeys(others[: together - 1]))
        found[group] = list(members)[:size]
    return found


def _endless(count: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(count).tolist()
