"""How likely a match is in this library: from log-odds at one prior for all questions to a probability of this one.

The log-odds of both stages (``mmsearch.calibration``) are at a prior of one match in a thousand, whatever is asked. But
a word that half of the pictures show, a sentence that is meant for one of them, and a thing that is not there differ in
how many match, and so do libraries of fifty and of fifty thousand. What the best answers look like beside the rest says
which of them it is. So a match has the log-odds ``slope * logit + offset``, where both are linear in *signs* of the
question and of the library, fitted by logistic regression over captions, everyday questions and things that are not
there, in libraries of several sizes (``mmsearch.training.posterior``). It is monotone in ``logit``: the order of one
kind stays.

An estimate of the share of matches alone, by expectation maximisation over two distributions (Saerens, Latinne and
Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities", 2002), was measured beside it and
is further off, because the log-odds of what matches and of what does not overlap; see the lab book.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from indexer.types import Modality

SEEN = 50
"""Best answers of the first stage in which the signs are seen."""
AHEAD = 10
"""Best answers of the first stage that are compared with the library."""
SIGNS = (
    "length", "one word", "median", "rivals", "rivals of long", "ahead", "spread", "nearness",
)  # fmt: skip
"""What is looked at: the logarithm of how many words a question has; whether it is one; the median of the log-odds of
the answers seen; the logarithm of the sum of their odds, also times the length; how many standard deviations
the best stand above the library, and how large such a deviation is; how near the question is to a reranker's bank."""
LONGEST = 32
"""Words of a question that count as its length, at most."""
CLEAR = 0.7
"""Probability from which on an answer is called a clear match; chosen so on dev that 85 % of them are right."""
LIKELY = 0.35
"""Probability from which on it is called likely, and below which it is called weak."""
PRIOR_ODDS = math.log(999)
"""The odds against a match before anything is seen, which the log-odds of ``mmsearch.calibration`` have in them."""
FEWEST, MOST = 20, 1000
"""Items of a library in which one match is expected where nothing was fitted, at least and at most."""

Direction = tuple[Modality, Modality]


def level(probability: float) -> str:
    """What a probability means in a word: ``clear``, ``likely`` or ``weak``."""
    return "clear" if probability >= CLEAR else "likely" if probability >= LIKELY else "weak"


@dataclass(frozen=True, slots=True)
class Scale:
    """The line from the log-odds of ``mmsearch.calibration`` to those of a match in this library."""

    slope: float
    offset: float

    def log_odds(self, logits: np.ndarray) -> np.ndarray:
        """Those of a match ``(K,)``, of ``logits`` ``(K,)``."""
        return self.slope * logits + self.offset

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The same as probabilities ``(K,)``."""
        return np.asarray(1 / (1 + np.exp(-np.clip(self.log_odds(logits), -500, 500))))


def one_expected(items: int) -> Scale:
    """The scale where nothing was fitted: one match is expected among ``items``, within ``FEWEST`` and ``MOST``."""
    return Scale(1.0, PRIOR_ODDS - math.log(min(max(items, FEWEST), MOST) - 1))


@dataclass(frozen=True, slots=True)
class Posterior:
    """What was fitted: ``slope`` at length 0, what each unit of length adds to it, and ``weights`` ``(F,)`` of SIGNS.

    Signs outside of ``low`` ``(F,)`` and ``high`` ``(F,)``, between which it was fitted, count as these.
    """

    slope: float
    slope_of_length: float
    bias: float
    weights: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def scale(self, signs: np.ndarray) -> Scale:
        """The line for a question with ``signs`` ``(F,)``, as ``signs_of`` gives them."""
        clipped = np.clip(signs, self.low, self.high)
        slope = max(self.slope + self.slope_of_length * float(clipped[0]), 0.05)
        return Scale(slope, float(clipped @ np.array(self.weights)) + self.bias)


def signs_of(words: int, logits: np.ndarray, first: np.ndarray, background: np.ndarray, nearness: float) -> np.ndarray:
    """The ``SIGNS`` of a question, ``(F,)``.

    Args:
        words: how many it has.
        logits: log-odds of the best answers of the first stage, at most ``SEEN``, after all stages ``(K,)``.
        first: those of the first stage of the same answers ``(K,)``.
        background: those of the first stage of a sample of the library ``(S,)``.
        nearness: of the question to the reranker's bank of answers; 0 without one.
    """
    length = math.log(min(max(words, 1), LONGEST))
    highest = float(logits.max())
    rivals = highest + math.log(float(np.exp(logits - highest).sum()))
    spread = max(float(background.std()), 1e-6)
    ahead = (float(np.sort(first)[::-1][:AHEAD].mean()) - float(background.mean())) / spread
    return np.array(
        [length, float(words == 1), float(np.median(logits)), rivals, rivals * length, ahead, spread, nearness]
    )


def read(values: Mapping[str, Mapping[str, object]]) -> dict[Direction, Posterior]:
    """From the form in which a file carries it, ``{"text->image": {"slope": …, "weights": {"length": …}, …}}``.

    Raises:
        KeyError, TypeError, ValueError: an unknown direction, or a number is missing or none.
    """
    found: dict[Direction, Posterior] = {}
    for direction, numbers in values.items():
        asked, _, answered = direction.partition("->")
        found[Modality(asked), Modality(answered)] = Posterior(
            float(str(numbers["slope"])),
            float(str(numbers["slope of length"])),
            float(str(numbers["bias"])),
            *(_each(numbers[name]) for name in ("weights", "low", "high")),
        )
    return found


def _each(numbers: object) -> tuple[float, ...]:
    if not isinstance(numbers, Mapping):
        raise TypeError(f"{numbers!r} holds no number for each sign")
    return tuple(float(numbers[sign]) for sign in SIGNS)


def write(posteriors: Mapping[Direction, Posterior]) -> str:
    """The JSON that ``read`` reads."""
    values = {
        f"{asked.value}->{answered.value}": {
            "slope": round(one.slope, 6),
            "slope of length": round(one.slope_of_length, 6),
            "bias": round(one.bias, 6),
            **{name: _named(getattr(one, name)) for name in ("weights", "low", "high")},
        }
        for (asked, answered), one in posteriors.items()
    }
    return json.dumps(values, indent=2) + "\n"


def _named(numbers: Sequence[float]) -> dict[str, float]:
    return {sign: round(number, 6) for sign, number in zip(SIGNS, numbers, strict=True)}


@cache
def first_stage() -> Mapping[Direction, Posterior]:
    """That of answers which no reranker has looked at, for every model: in its own log-odds models differ little."""
    return read(json.loads(Path(__file__).with_name("posterior.json").read_text(encoding="utf-8")))
