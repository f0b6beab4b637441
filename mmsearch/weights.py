"""Weights as people type them: ``at night*2`` and ``a.jpg*0.5``, where a question has several parts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from indexer.errors import UsageError

_WEIGHT = re.compile(r"(.*\S)\s*\*([+-]?(?:\d+\.?\d*|\.\d+))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Weighted:
    """A question without what was typed of weights, and the weights of its words, its pictures and its files."""

    text: str | None
    images: tuple[str, ...]
    like: tuple[str, ...]
    weights: tuple[float, ...]


def read(text: str | None, images: Sequence[str], like: Sequence[str], *, literal: bool = False) -> Weighted:
    """The parts of a question, a weight at the very end of each taken off; 1 where there is none.

    A file that is really called ``a.jpg*0.5`` is that file.

    Args:
        literal: whether the words are taken as they stand.

    Raises:
        UsageError: a weight is not above 0.

    >>> read("at night*2", ["a.jpg*0.5"], ["b.jpg"])
    Weighted(text='at night', images=('a.jpg',), like=('b.jpg',), weights=(2.0, 0.5, 1.0))
    """
    words = [] if not (text or "").strip() else [(text, 1.0) if literal else split(text or "")]
    pictures, files = ([(one, 1.0) if os.path.lexists(one) else split(one) for one in some] for some in (images, like))
    weights = tuple(weight for _, weight in [*words, *pictures, *files])
    text = words[0][0] if words else None
    return Weighted(text, tuple(one for one, _ in pictures), tuple(one for one, _ in files), weights)


def split(typed: str) -> tuple[str, float]:
    """What was typed without the weight at its end, and that; 1 if it has none.

    Raises:
        UsageError: the weight is not above 0.
    """
    found = _WEIGHT.fullmatch(typed.rstrip())
    if found is None:
        return typed, 1.0
    weight = float(found[2])
    if not (weight > 0 and math.isfinite(weight)):
        raise UsageError(f"the weight in {typed!r} is {found[2]}; it must be above 0, as in 'at night*2' or a.jpg*0.5")
    return found[1], weight
