"""How good a reranker is behind a dual encoder, and how both become one: arrays in, recalls and lines out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from indexer.types import Modality
from mmsearch.calibration import FusedLine, Line
from mmsearch.training.calibrate import LIBRARY, fit_logistic
from mmsearch.training.retrieval import CUTS, Recall

ALONE = FusedLine(1.0, 0.0, 0.0)
"""The first stage decides."""
DECIMALS = 6

Direction = tuple[Modality, Modality]
TO_IMAGE, TO_TEXT = (Modality.TEXT, Modality.IMAGE), (Modality.IMAGE, Modality.TEXT)


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
    near: np.ndarray
    """How near the answers are to the bank of questions ``(Q, K)``; zeros without one."""
    asked: np.ndarray
    """How near the questions are to the bank of answers ``(Q,)``."""

    def log_odds(self, logits: np.ndarray, first: Line, fused: FusedLine) -> np.ndarray:
        """Those of a match ``(Q, K)``, with the logits of the second stage ``(Q, K)``."""
        dual = first.gain * self.cosines + first.offset
        return fused.log_odds(dual, logits, self.near, self.asked[:, None])


def best_candidates(
    scores: np.ndarray,
    own: np.ndarray,
    count: int,
    near: np.ndarray | None = None,
    asked: np.ndarray | None = None,
) -> Candidates:
    """The ``count`` best of N answers by ``scores: (Q, N)``, of which ``own: (Q, N)`` are right.

    Args:
        near: how near each answer is to the bank of questions ``(N,)``; None for no bank.
        asked: how near each question is to the bank of answers ``(Q,)``.
    """
    answers = np.argsort(-scores, axis=1, kind="stable")[:, :count]  # (Q, K)
    taken = np.take_along_axis(own, answers, axis=1)
    best = np.where(own, scores, -np.inf).max(axis=1)  # (Q,)
    rank = ((scores >= best[:, None]) & ~own).sum(axis=1)
    shares = float(taken.sum() / own.sum()), float((~taken).sum() / max(1, (~own).sum()))
    return Candidates(
        answers,
        np.take_along_axis(scores, answers, axis=1),
        taken,
        rank,
        shares,
        np.zeros(answers.shape) if near is None else near[answers],
        np.zeros(len(answers)) if asked is None else asked,
    )


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

    def lines(self, first: Mapping[Direction, Line]) -> dict[Direction, FusedLine]:
        """What fits these candidates best, see ``fused_line``; for a direction in which nothing does, ``ALONE``."""
        return {
            TO_IMAGE: fused_line(self.text, self.text_logits, first[TO_IMAGE]) or ALONE,
            TO_TEXT: fused_line(self.image, self.image_logits, first[TO_TEXT]) or ALONE,
        }

    def fused(self, first: Mapping[Direction, Line], lines: Mapping[Direction, FusedLine]) -> Recall:
        """That of both stages together."""
        return recall(
            ranks(self.text, self.text.log_odds(self.text_logits, first[TO_IMAGE], lines[TO_IMAGE])),
            ranks(self.image, self.image.log_odds(self.image_logits, first[TO_TEXT], lines[TO_TEXT])),
        )


def fused_line(candidates: Candidates, logits: np.ndarray, first: Line) -> FusedLine | None:
    """The log-odds of a match by what both stages and the bank say, where one item in a thousand matches.

    A logistic regression over all candidates says what each counts. But of all pairs with some score, those that stand
    first in their list match most often, having no better rival; and nearly all that anyone looks at stand first. So a
    second line through the sum (Platt 1999) is fitted in which the answer at place r has the weight 1 / r. Both are at
    the prior of the gallery, from which the bias is moved.

    Args:
        logits: of the candidates, ``(Q, K)``.
        first: the log-odds by the cosine alone.

    Returns:
        None if no candidate matches or none does not, or if a higher logit or a higher sum is no better sign.
    """
    label = candidates.own.ravel().astype(np.float64)
    matched, unrelated = label.sum(), (1 - label).sum()
    if not matched or not unrelated:
        return None
    dual = first.gain * candidates.cosines + first.offset
    asked = np.broadcast_to(candidates.asked[:, None], logits.shape)
    values = np.stack([dual, logits, candidates.near, asked], axis=-1).reshape(-1, 4).astype(np.float64)
    means, spreads = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-9)
    slopes, bias = fit_logistic((values - means) / spreads, label, np.ones_like(label))
    slopes = slopes / spreads
    total = (values - means) @ slopes + bias  # (Q·K,)
    place = (-total.reshape(logits.shape)).argsort(axis=1, kind="stable").argsort(axis=1)  # (Q, K)
    (slope,), moved = fit_logistic(total[:, None], label, 1 / (1 + place.ravel()))
    if slopes[1] <= 0 or slope <= 0:
        return None
    right, wrong = candidates.shares
    gallery = (matched / right) / (unrelated / wrong)  # the odds of a pair drawn from all
    bias = slope * (bias - means @ slopes) + moved - np.log(LIBRARY * gallery)
    numbers = (slope * slopes[0], slope * slopes[1], bias, slope * slopes[2], slope * slopes[3])
    return FusedLine(*(round(float(number), DECIMALS) for number in numbers))
