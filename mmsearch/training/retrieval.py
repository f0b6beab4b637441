"""Recall over a gallery, both ways: arrays in, percentages out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CUTS = (1, 5, 10)
SCALES = (10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0, 100.0)


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


def cross_entropy(image: np.ndarray, text: np.ndarray, owner: np.ndarray, scale: float) -> float:
    """How surprised a model is by the truth, in nats: the loss of CLIP (Radford et al. 2021, fig. 3) over a gallery.

    The mean of both directions of -log of the softmax, over ``scale`` times the cosines, of what belongs together; a
    picture with several captions counts the mean over them. Where few pictures are at hand it says more than recall,
    which only sees a change of rank.

    Args:
        image, text, owner: unit rows as for ``recalls``.
        scale: the inverse of a temperature; ``fitting_scale`` finds one.

    Example: two unrelated pairs that match perfectly, at scale 1: log(1 + exp(-1)) = 0.3133.
    """
    logits = scale * (text @ image.T).astype(np.float64)  # (M, N)
    own = logits[np.arange(len(text)), owner]  # (M,)
    by_text = float((_log_sum_exp(logits, axis=1) - own).mean())
    surprise = _log_sum_exp(logits, axis=0)[owner] - own  # (M,)
    captions = np.bincount(owner, minlength=len(image))
    by_image = float((np.bincount(owner, surprise, len(image)) / captions).mean())
    return (by_text + by_image) / 2


def fitting_scale(image: np.ndarray, text: np.ndarray, owner: np.ndarray) -> float:
    """The one of ``SCALES`` at which a model is surprised least."""
    return min(SCALES, key=lambda scale: cross_entropy(image, text, owner, scale))


def _log_sum_exp(logits: np.ndarray, axis: int) -> np.ndarray:
    largest = logits.max(axis=axis, keepdims=True)
    summed: np.ndarray = (largest + np.log(np.exp(logits - largest).sum(axis=axis, keepdims=True))).squeeze(axis)
    return summed
