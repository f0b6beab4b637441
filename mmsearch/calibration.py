"""Scores that mean the same for every kind of hit: how likely it is that this item is what was asked for.

Cosines are not comparable across modalities: with CLIP-like encoders a caption is nearer to any other sentence than
to its own picture (the modality gap, Liang et al., "Mind the Gap", NeurIPS 2022). So each pair of question and item
modality gets its own straight line through the log-odds, logit = slope · (cosine - mean) / std + bias, with mean and
std those of unrelated pairs and slope and bias fitted to pairs that are known to match (Platt, "Probabilistic outputs
for SVMs", 1999). The prior is one match among a thousand items, whatever is asked; ``mmsearch.posterior`` says what
these log-odds mean for one question and one library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from indexer.types import Modality

_MIN_STD = 0.01
"""Below this the sample of unrelated pairs is too alike to say how far cosines spread."""


@dataclass(frozen=True, slots=True)
class Line:
    """Log-odds of a match as a function of the cosine, for one pair of modalities."""

    mean: float
    std: float
    slope: float
    bias: float

    @property
    def gain(self) -> float:
        """Log-odds per unit of cosine."""
        return self.slope / self.std

    @property
    def offset(self) -> float:
        """Log-odds at cosine 0."""
        return self.bias - self.slope * self.mean / self.std


@dataclass(frozen=True, slots=True)
class FusedLine:
    """Log-odds of a match from both stages, for one pair of modalities: a logistic regression on what each says.

    They are at the same prior as those of ``Line``, so that what was reranked and what was not stand in one list.
    """

    dual: float
    """Weight of the log-odds by the cosine."""
    fusion: float
    """Weight of the reranker's logit."""
    bias: float
    answer: float = 0.0
    """Weight of how near the answer is to the reranker's bank of questions."""
    question: float = 0.0
    """Weight of how near the question is to its bank of answers."""

    def log_odds(
        self,
        dual: np.ndarray,
        logits: np.ndarray,
        answer: np.ndarray | float = 0.0,
        question: np.ndarray | float = 0.0,
    ) -> np.ndarray:
        """Log-odds ``(K,)`` of the first stage, logits ``(K,)`` of the second and nearness to the bank to log-odds."""
        return self.dual * dual + self.fusion * logits + self.answer * answer + self.question * question + self.bias


Calibration = Mapping[tuple[Modality, Modality], Line]
"""A line for each (modality of the question, modality of the item); ``line_for`` reads it."""

_Line = TypeVar("_Line", Line, FusedLine)


def line_for(lines: Mapping[tuple[Modality, Modality], _Line], asked: Modality, answered: Modality) -> _Line:
    """The line for a question and an answer; for a clip that of a picture where none was fitted on clips."""
    if (asked, answered) not in lines and answered is Modality.VIDEO:
        answered = Modality.IMAGE
    return lines[asked, answered]


def read(values: Mapping[str, Mapping[str, float]]) -> dict[tuple[Modality, Modality], Line]:
    """From the form in which a model carries it: ``{"text->image": {"mean": …, "std": …, "slope": …, "bias": …}}``.

    Raises:
        ValueError: an unknown pair or a missing number.
    """
    lines: dict[tuple[Modality, Modality], Line] = {}
    for pair, numbers in values.items():
        asked, _, answered = pair.partition("->")
        lines[Modality(asked), Modality(answered)] = Line(**{k: float(numbers[k]) for k in Line.__slots__})
    return lines


def read_fused(values: Mapping[str, Mapping[str, float]]) -> dict[tuple[Modality, Modality], FusedLine]:
    """From the form in which a reranker carries it: ``{"text->image": {"dual": …, "fusion": …, "bias": …}}``;
    "answer" and "question" may be left out.

    Raises:
        ValueError: an unknown pair.
        KeyError: a missing number.
    """
    lines: dict[tuple[Modality, Modality], FusedLine] = {}
    for pair, numbers in values.items():
        asked, _, answered = pair.partition("->")
        lines[Modality(asked), Modality(answered)] = FusedLine(
            float(numbers["dual"]),
            float(numbers["fusion"]),
            float(numbers["bias"]),
            float(numbers.get("answer", 0)),
            float(numbers.get("question", 0)),
        )
    return lines


def measure(
    texts: np.ndarray, items: Mapping[Modality, np.ndarray], like: Calibration
) -> dict[tuple[Modality, Modality], Line]:
    """A calibration for a model that brings none: its own background, and slope and bias of another one.

    Args:
        texts: vectors ``(Q, D)`` of everyday questions that have nothing to do with each other.
        items: vectors ``(N, D)`` of a sample of the library, by modality.
        like: the calibration whose slopes and biases are taken over; they are in units of the background's spread,
            which differ far less between models than cosines do.
    """
    questions = {Modality.TEXT: texts, Modality.IMAGE: items.get(Modality.IMAGE, np.empty((0, texts.shape[1])))}
    lines: dict[tuple[Modality, Modality], Line] = {}
    for (asked, answered), line in like.items():
        a, b = questions[asked], items.get(answered, np.empty((0, texts.shape[1])))
        cosines = a.astype(np.float64) @ b.T  # (Q, N)
        if asked is answered is Modality.IMAGE:
            cosines = cosines[~np.eye(len(a), dtype=bool)]  # a picture is no unrelated pair with itself
        if cosines.size < 2:
            lines[asked, answered] = line
            continue
        std = max(float(cosines.std()), _MIN_STD)
        lines[asked, answered] = Line(float(cosines.mean()), std, line.slope, line.bias)
    return lines


def everyday_questions() -> list[str]:
    """Short questions about everyday things, unrelated to each other, on which a background is measured."""
    text = Path(__file__).with_name("everyday_questions.json").read_text(encoding="utf-8")
    return list(json.loads(text))


def probability(logit: float) -> float:
    """Log-odds to probability, without overflow."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))
