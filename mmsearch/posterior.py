"""How likely a match is in this library: from log-odds at one prior for all questions to a probability of this one.

The log-odds of both stages (``mmsearch.calibration``) are at a prior of one match in a thousand, whatever is asked. But
a word that half of the pictures show, a sentence that is meant for one of them, and a thing that is not there differ in
how many match, and so do libraries of fifty and of fifty thousand. What the best answers look like beside each other
and beside the rest says which of them it is. So a match has the log-odds ``slope * logit + offset``, and a small
network says both from *signs* of the question and of the library. It was fitted by maximum likelihood to captions,
everyday questions and things that are not there, in libraries of several sizes (``mmsearch.training.posterior``). It is
monotone in ``logit``: the order of one kind stays.

To estimate the share of matches by expectation maximisation over two distributions (Saerens, Latinne and Decaestecker,
"Adjusting the Outputs of a Classifier to New a Priori Probabilities", 2002) is further off, because the log-odds of
what matches and of what does not overlap; see the lab book.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from indexer.types import Modality

SEEN = 50
"""Best answers of the first stage in which the signs are seen."""
SIGNS = (
    "length", "one word", "items",
    "first", "first 3", "first 10", "16th", "median", "41st",
    "ahead first", "ahead first 3", "ahead first 10", "ahead 21st", "ahead 46th",
    "spread", "nearness",
)  # fmt: skip
"""What is looked at, in this order: the logarithm of how many words a question has, whether it is one, and the
logarithm of how many items may answer; log-odds of the best answers, means of some and those at some places; log-odds
of the first stage likewise, in standard deviations above the library; how large such a deviation is; how near the
question is to a reranker's bank of answers."""
LONGEST = 32
"""Words of a question that count as its length, at most."""
CLEAR = 0.82
"""Probability from which on an answer is called a clear match; chosen so on dev that 85 % of them are right."""
LIKELY = 0.35
"""Probability from which on it is called likely, and below which it is called weak."""
PRIOR_ODDS = math.log(999)
"""The odds against a match before anything is seen, which the log-odds of ``mmsearch.calibration`` have in them."""
PASSAGES = 0.5
"""What the log-odds of a passage for words count for: its vector and the words in it say much the same, and a passage
that names a thing is less often what was meant than a picture that shows it."""
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


def one_expected(items: int, slope: float = 1.0) -> Scale:
    """The scale where nothing was fitted: one match is expected among ``items``, within ``FEWEST`` and ``MOST``.

    With a ``slope`` below 1 the log-odds count for less, where what made them says much the same.
    """
    return Scale(slope, slope * (PRIOR_ODDS - math.log(min(max(items, FEWEST), MOST) - 1)))


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """What was fitted: a network with one hidden layer of H units, from F signs to a slope and an offset.

    Attributes:
        low, high: between which each sign was fitted ``(F,)``; outside it counts as these.
        mean, std: of each sign ``(F,)``.
        hidden, hidden_bias: ``(H, F)`` and ``(H,)``; the units are tanh.
        out, out_bias: ``(2, H)`` and ``(2,)``, of the slope, before softplus, and of the offset.
        centred: mean and spread of log-odds ``(2,)``; slope and offset are those of what is left without them.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    hidden: np.ndarray
    hidden_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray
    centred: np.ndarray

    def scale(self, signs: np.ndarray) -> Scale:
        """The line for a question with ``signs`` ``(F,)``, as ``signs_of`` gives them."""
        values = (np.clip(signs, self.low, self.high) - self.mean) / self.std  # (F,)
        slope, offset = self.out @ np.tanh(self.hidden @ values + self.hidden_bias) + self.out_bias
        centre, spread = self.centred
        slope = float(np.logaddexp(0, slope) / spread)
        return Scale(slope, float(offset - slope * centre))


def signs_of(
    words: int, items: int, logits: np.ndarray, first: np.ndarray, background: np.ndarray, nearness: float
) -> np.ndarray:
    """The ``SIGNS`` of a question, ``(F,)``.

    Args:
        words: how many it has.
        items: how many may answer.
        logits: log-odds of the best answers of the first stage, at most ``SEEN``, after all stages ``(K,)``.
        first: those of the first stage of the same answers ``(K,)``.
        background: those of the first stage of a sample of the library ``(S,)``.
        nearness: of the question to the reranker's bank of answers; 0 without one.
    """
    best = np.sort(logits)[::-1]
    spread = max(float(background.std()), 1e-6)
    ahead = (np.sort(first)[::-1] - background.mean()) / spread
    asked = [math.log(min(max(words, 1), LONGEST)), float(words == 1), math.log(max(items, 1))]
    profile = [_mean(best, 1), _mean(best, 3), _mean(best, 10), _at(best, 16), float(np.median(best)), _at(best, 41)]
    stands_out = [_mean(ahead, 1), _mean(ahead, 3), _mean(ahead, 10), _at(ahead, 21), _at(ahead, 46)]
    return np.array([*asked, *profile, *stands_out, spread, nearness])


def _mean(falling: np.ndarray, count: int) -> float:
    return float(falling[:count].mean())


def _at(falling: np.ndarray, place: int) -> float:
    """The one at a place, from 1, or the last where there are fewer."""
    return float(falling[min(place, len(falling)) - 1])


def read(values: Mapping[str, Mapping[str, Any]]) -> dict[Direction, Posterior]:
    """From the form in which a file carries it, ``{"text->image": {"low": [...], ...}}``.

    Raises:
        KeyError, TypeError, ValueError: an unknown direction, or numbers are missing, or too few or too many.
    """
    found: dict[Direction, Posterior] = {}
    for direction, numbers in values.items():
        asked, _, answered = direction.partition("->")
        arrays = {field.name: np.array(numbers[field.name], dtype=np.float64) for field in fields(Posterior)}
        units, signs = arrays["hidden"].shape
        shapes = [(signs,)] * 4 + [(units, signs), (units,), (2, units), (2,), (2,)]
        if signs != len(SIGNS) or [array.shape for array in arrays.values()] != shapes:
            raise ValueError(f"{direction} is not of {len(SIGNS)} signs")
        if not all(np.isfinite(array).all() for array in arrays.values()) or not (arrays["std"] > 0).all():
            raise ValueError(f"{direction} has numbers that are none, or a std of 0")
        found[Modality(asked), Modality(answered)] = Posterior(**arrays)
    return found


def write(posteriors: Mapping[Direction, Posterior]) -> str:
    """The JSON that ``read`` reads."""
    values = {
        f"{asked.value}->{answered.value}": {
            field.name: getattr(one, field.name).round(5).tolist() for field in fields(Posterior)
        }
        for (asked, answered), one in posteriors.items()
    }
    return json.dumps(values) + "\n"


@cache
def first_stage() -> Mapping[Direction, Posterior]:
    """That of answers which no reranker has looked at, for every model: in its own log-odds models differ little."""
    return read(json.loads(Path(__file__).with_name("posterior.json").read_text(encoding="utf-8")))
