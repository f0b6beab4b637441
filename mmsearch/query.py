"""A question: words, a picture, both, what must not be in it, and which items may answer. Pure: reads nothing."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from indexer.errors import UsageError
from indexer.records import Filter
from indexer.types import Modality

if TYPE_CHECKING:
    from PIL.Image import Image

MATCH = 0.09
"""How likely the best answer must be when nobody says how many are wanted: below it nothing matches. There the captions
of Flickr8k's dev split are answered as often as questions about what is not there are not (`benchmarks/absent.py`)."""
FALL = 100.0
"""An answer less likely than ``MATCH`` still ends no list if its odds are at least those of the best over this."""

LIBRARY = 1000
"""Items of a library in which one in a thousand matches: to fewer, ``MATCH`` is fitted; see ``least_shown``."""
FEWEST = 160

_PARTIAL_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?")


@dataclass(frozen=True, slots=True)
class Query:
    """One question; ``parse_query`` makes it from what people type.

    Words and a picture together ask for what fits both. ``without`` are things that must not be in an answer.
    """

    text: str | None = None
    image: Image | None = None
    without: tuple[str, ...] = ()
    kinds: tuple[Modality, ...] = ()
    """Only what is in files of these kinds; in any if empty."""
    where: Filter = field(default_factory=Filter)
    min_prob: float | None = None
    """Nothing that is less likely to match; whatever there is if None."""
    match: float | None = None
    """Nothing at all if the best answer is less likely to match, and else what is so likely, or has odds of at least
    those of the best over ``FALL``; whatever there is if None."""
    rerank: bool = True
    """Whether a reranker, if there is one, looks again at the first answers."""
    candidates: int | None = None
    """How many of the first answers of each kind it looks at; as many as its model says if None."""
    exact: bool = False
    """Whether words alone count: an answer holds all of them, and no model takes part."""
    moments: int = 1
    """How many moments of one video may be among the answers."""
    collapse: bool = True
    """Whether copies of one file are one answer."""


def parse_query(
    text: str | None = None,
    *,
    image: Image | None = None,
    without: Sequence[str] = (),
    kind: str | Sequence[str] | None = None,
    under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    after: str | datetime | None = None,
    before: str | datetime | None = None,
    min_prob: float | None = None,
    match: float | None = None,
    rerank: bool = True,
    candidates: int | None = None,
    exact: bool = False,
    moments: int = 1,
    collapse: bool = True,
) -> Query:
    """Check what was asked and put it into one form.

    Args:
        kind: ``image``, ``video``, ``text``, or several of them, in a list or with commas.
        after, before: a ``datetime``, or ``2021``, ``2021-05``, ``2021-05-17`` or a whole ISO time; ``after`` counts
            from its first moment on, ``before`` ends at it. Without a time zone it is UTC.

    Raises:
        UsageError: nothing is asked, or one of the values makes no sense; it is named.
    """
    text = text.strip() if text is not None else None
    if not text and image is None:
        raise UsageError("nothing to search for: give words, a picture (--image FILE) or both")
    if min_prob is not None and not 0 <= min_prob <= 1:
        raise UsageError(f"a probability lies between 0 and 1; the smallest asked for is {min_prob}")
    if candidates is not None and candidates < 1:
        raise UsageError(f"candidates is {candidates}; rerank at least 1 answer, or switch reranking off")
    if exact and image is not None:
        raise UsageError("a picture has no words to search for: leave --exact out, or the picture")
    if exact and min_prob is not None:
        raise UsageError("--exact gives no probability that --min-prob could be held against")
    if moments < 1:
        raise UsageError(f"moments is {moments}; let a video have at least 1 moment among the answers")
    kinds = [word.strip() for one in ([kind] if isinstance(kind, str) else kind or ()) for word in one.split(",")]
    folders = [under] if isinstance(under, (str, os.PathLike)) else list(under)
    where = Filter(
        tuple(os.path.abspath(folder) for folder in folders),
        None if after is None else parse_time(after),
        None if before is None else parse_time(before),
    )
    without = tuple(words.strip() for words in without if words.strip())
    return Query(
        text or None,
        image,
        without,
        tuple(dict.fromkeys(map(_modality, kinds))),
        where,
        min_prob,
        match,
        rerank,
        candidates,
        exact,
        moments,
        collapse,
    )


def least_shown(query: Query, best: float, items: int) -> float:
    """The probability that an answer needs to be shown, where the best has the probability ``best``; inf for none.

    Example, in a large library: with ``match`` 0.09 and a best of 0.5, the odds of which are 1 : 1, an answer of
    1 : 100 is shown, or 0.0099; with a best of 0.99 odds of 99 : 100 would be needed, but 0.09 suffices.

    Args:
        items: pieces in the library. A probability is that where one item in a thousand matches. Among fewer items the
            best of those that do not match is less likely by as much as they are fewer, so less is asked of the best
            that does; but no less than among ``FEWEST``.
    """
    least = query.min_prob or 0.0
    if query.match is None:
        return least
    match = _scaled(query.match, min(1.0, max(items, FEWEST) / LIBRARY))
    if best < match:
        return math.inf
    return max(least, min(match, _scaled(best, 1 / FALL)))


def _scaled(probability: float, factor: float) -> float:
    """The probability whose odds are ``factor`` times as high."""
    odds = factor * probability / max(1 - probability, 1e-12)
    return odds / (1 + odds)


def parse_time(when: str | datetime) -> float:
    """The first moment of a date, in seconds since 1970: ``"2021"`` is midnight of its first of January, UTC.

    Raises:
        UsageError: it is not a date.
    """
    if isinstance(when, str):
        partial = _PARTIAL_DATE.fullmatch(when.strip())
        try:
            if partial:
                year, month, day = (int(part) if part else 1 for part in partial.groups())
                when = datetime(year, month, day)
            else:
                when = datetime.fromisoformat(when.strip().replace("Z", "+00:00"))
        except ValueError as exc:
            raise UsageError(f"{when!r} is not a date; write 2021, 2021-05, 2021-05-17 or 2021-05-17T08:00") from exc
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return when.timestamp()


def _modality(name: str) -> Modality:
    try:
        return Modality(name)
    except ValueError as exc:
        raise UsageError(f"{name!r} is not a kind; there are {', '.join(str(m) for m in Modality)}") from exc
