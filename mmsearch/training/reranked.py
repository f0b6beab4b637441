"""How good a reranker is behind a dual encoder, and how both become one: arrays in, recalls and lines out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mmsearch.calibration import FusedLine, Line
from mmsearch.training.calibrate import LIBRARY, fit_logistic
from mmsearch.training.retrieval import CUTS, Recall

WEIGHTS = (0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 100.0)
"""What a cosine may count beside a logit."""
DECIMALS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The best of the first stage's answers to Q questions, K each."""

    answers: np.ndarray
    """Numbers ``(Q, K)``."""
    cosines: np.ndarray
    """``(Q, K)``, falling."""
    own: np.ndarray
    """Whether an answer belongs to the question, bool ``(Q, K)``."""
    rank: np.ndarray
    """Where the first stage puts the best right answer, from 0, ``(Q,)``; an equal score counts as better."""
    shares: tuple[float, float]
    """The parts of all right and of all wrong pairs of the gallery that are among the candidates."""


def best_candidates(scores: np.ndarray, own: np.ndarray, count: int) -> Candidates:
    """The ``count`` best of N answers by ``scores: (Q, N)``, of which ``own: (Q, N)`` are right."""
    answers = np.argsort(-scores, axis=1, kind="stable")[:, :count]  # (Q, K)
    taken = np.take_along_axis(own, answers, axis=1)
    best = np.where(own, scores, -np.inf).max(axis=1)  # (Q,)
    rank = ((scores >= best[:, None]) & ~own).sum(axis=1)
    shares = float(taken.sum() / own.sum()), float((~taken).sum() / max(1, (~own).sum()))
    return Candidates(answers, np.take_along_axis(scores, answers, axis=1), taken, rank, shares)


def ranks(candidates: Candidates, scores: np.ndarray) -> np.ndarray:
    """Where the best right answer stands, from 0, ``(Q,)``, once the candidates are ordered by ``scores: (Q, K)``.

    An equal score counts as better. What is no candidate stays behind all of them, in its place.
    """
    own = candidates.own
    best = np.where(own, scores, -np.inf).max(axis=1)  # (Q,)
    among = ((scores >= best[:, None]) & ~own).sum(axis=1)
    found: np.ndarray = np.where(own.any(axis=1), among, np.maximum(candidates.rank, own.shape[1]))
    return found


def recall(text_ranks: np.ndarray, image_ranks: np.ndarray) -> Recall:
    """From the ranks of pictures that texts ask for, and of texts that pictures ask for."""

    def at(rank: np.ndarray) -> tuple[float, float, float]:
        one, five, ten = (100 * float((rank < cut).mean()) for cut in CUTS)
        return one, five, ten

    return Recall(at(text_ranks), at(image_ranks))


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What both stages say of the candidates of one dataset, asked for in words and with pictures."""

    name: str
    text: Candidates
    text_logits: np.ndarray
    """``(Q, K)``."""
    image: Candidates
    image_logits: np.ndarray

    def dual(self) -> Recall:
        """That of the first stage."""
        return recall(self.text.rank, self.image.rank)

    def fused(self, weight: float) -> Recall:
        """That of logit + ``weight`` · cosine."""
        return recall(
            ranks(self.text, self.text_logits + weight * self.text.cosines),
            ranks(self.image, self.image_logits + weight * self.image.cosines),
        )


def best_weight(scored: Sequence[Scored], weights: Iterable[float] = WEIGHTS) -> tuple[float, float]:
    """What a cosine should count beside a logit, and the mean recall over all datasets with it.

    Of weights that are equally good the smallest.
    """
    values = {weight: float(np.mean([each.fused(weight).mean for each in scored])) for weight in weights}
    best = max(values, key=lambda weight: values[weight])
    return best, values[best]


def fused_line(candidates: Candidates, logits: np.ndarray, weight: float, line: Line) -> FusedLine | None:
    """The log-odds of a match that logit + ``weight`` · cosine stands for, where one item in a hundred matches.

    Fitted as the dual encoder's are, by maximum likelihood with matched and unrelated pairs weighted as 1 to 100 (Platt
    1999), but on the candidates alone: they are what it is applied to. Of the one and of the hundred they have the
    shares that they are of all matched and of all unrelated pairs.

    Args:
        logits: of the candidates, ``(Q, K)``.
        line: the dual encoder's, from whose log-odds the cosine is had again.

    Returns:
        None if no candidate matches or none does not, or if a higher score is no better sign.
    """
    value = (logits + weight * candidates.cosines).ravel().astype(np.float64)
    label = candidates.own.ravel().astype(np.float64)
    matched, unrelated = label.sum(), (1 - label).sum()
    if not matched or not unrelated or not line.gain:
        return None
    right, wrong = candidates.shares
    odds = np.where(label > 0, right / matched, LIBRARY * wrong / unrelated)
    mean, std = value.mean(), max(float(value.std()), 1e-6)
    slope, bias = fit_logistic((value - mean) / std, label, odds)
    if slope <= 0:
        return None
    gain = slope / std
    # weight · cosine is weight · (log-odds - offset) / gain of the dual encoder
    dual = gain * weight / line.gain
    bias = bias - gain * mean - dual * line.offset
    return FusedLine(round(dual, DECIMALS), round(gain, DECIMALS), round(bias, DECIMALS))
