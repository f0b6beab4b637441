"""A question: words, a picture, both, what must not be in it, and which items may answer. Pure: reads nothing."""

from __future__ import annotations

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
    only_clear: bool = False
    """Nothing that is no clear match, as ``mmsearch.posterior`` has it."""
    unsure: int | None = None
    """How many answers there are at most where not even the best is likely; as many as were asked for if None."""
    rerank: bool = True
    """Whether a reranker, if there is one, looks again at the first answers."""
    candidates: int | None = None
    """How many of the first answers of each kind it looks at; as many as its model says if None."""
    exact: bool = False
    """Whether words alone count: an answer holds all of them, and no model takes part."""
    moments: int = 1
    """How many moments of one video may be among the answers."""


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
    only_clear: bool = False,
    unsure: int | None = None,
    rerank: bool = True,
    candidates: int | None = None,
    exact: bool = False,
    moments: int = 1,
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
    if exact and only_clear:
        raise UsageError("--exact finds what holds every word, which is clear: leave --only-clear out")
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
        only_clear,
        unsure,
        rerank,
        candidates,
        exact,
        moments,
    )


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
