"""Recall over a gallery, both ways: arrays in, percentages out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CUTS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Recall:
    """R@1, R@5 and R@10 in per cent: of captions that find their picture, and of pictures that find a caption."""

    text_to_image: tuple[float, float, float]
    image_to_text: tuple[float, float, float]

    @property
    def mean(self) -> float:
        """Of all six."""
        return (sum(self.text_to_image) + sum(self.image_to_text)) / 6

    def as_dict(self) -> dict[str, list[float]]:
        return {
            "text_to_image": [round(value, 2) for value in self.text_to_image],
            "image_to_text": [round(value, 2) for value in self.image_to_text],
        }


def recalls(image: np.ndarray, text: np.ndarray, owner: np.ndarray) -> Recall:
    """Recall of ``text: (M, D)`` against ``image: (N, D)``, where text m belongs to picture ``owner[m]``.

    A rank counts what scores as high: whoever gives everything the same score finds nothing.
    """
    scores = text @ image.T  # (M, N)
    own = scores[np.arange(len(text)), owner]  # (M,)
    text_rank = (scores >= own[:, None]).sum(axis=1) - 1  # (M,)
    best = np.full(len(image), -np.inf, scores.dtype)
    np.maximum.at(best, owner, own)  # (N,) the best of each picture's own captions
    image_rank = (scores >= best).sum(axis=0)  # (N,) with the best own captions themselves
    np.subtract.at(image_rank, owner, own >= best[owner])

    def at(rank: np.ndarray) -> tuple[float, float, float]:
        one, five, ten = (100 * float((rank < cut).mean()) for cut in CUTS)
        return one, five, ten

    return Recall(at(text_rank), at(image_rank))
