"""A question: words, pictures, both, what must not be in it, and which items may answer. Pure: reads nothing."""

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

_PARTIAL_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?")


@dataclass(frozen=True, slots=True)
class Query:
    """One question; ``parse_query`` makes it from what people type.

    Words and pictures together ask for what fits all of them. ``without`` are things that must not be in an answer.
    With neither words nor pictures it asks for a list of what passes its filters.
    """

    text: str | None = None
    image: Image | tuple[Image, ...] | None = None
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
    collapse: bool = True
    """Whether copies of one file are one answer."""
    like: tuple[str, ...] = ()
    """Files of the index that ask as pictures do, by their paths or keys; see ``mmsearch.like``."""
    weights: tuple[float, ...] = ()
    """Of the words, of each picture and of each file that it is to be like; all the same if empty."""

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures, however many there are."""
        return () if self.image is None else self.image if isinstance(self.image, tuple) else (self.image,)

    @property
    def lists(self) -> bool:
        """Whether it asks for nothing but a list of what passes its filters."""
        return self.text is None and not self.images and not self.like

    @property
    def compares(self) -> bool:
        """Whether vectors are compared with it, which takes a model."""
        return not (self.exact or self.lists)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights of its parts, as shares that add up to 1."""
        weights = self.weights or (1.0,) * ((self.text is not None) + len(self.images) + len(self.like))
        return tuple(weight / math.fsum(weights) for weight in weights)


def parse_query(
    text: str | None = None,
    *,
    image: Image | Sequence[Image] | None = None,
    like: Sequence[str] = (),
    weights: Sequence[float] | None = None,
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
    collapse: bool = True,
) -> Query:
    """Check what was asked and put it into one form.

    Args:
        weights: of the words, if there are any, of each picture and of each file of ``like``, in this order; they count
            by their shares of the sum. The same for all if None.
        kind: ``image``, ``video``, ``text``, or several of them, in a list or with commas.
        after, before: a ``datetime``, or ``2021``, ``2021-05``, ``2021-05-17`` or a whole ISO time; ``after`` counts
            from its first moment on, ``before`` ends at it. Without a time zone it is UTC.

    Raises:
        UsageError: nothing is asked, or one of the values makes no sense; it is named.
    """
    text = text.strip() if text is not None else None
    if min_prob is not None and not 0 <= min_prob <= 1:
        raise UsageError(f"a probability lies between 0 and 1; the smallest asked for is {min_prob}")
    if candidates is not None and candidates < 1:
        raise UsageError(f"candidates is {candidates}; rerank at least 1 answer, or switch reranking off")
    images = tuple(image) if isinstance(image, Sequence) else () if image is None else (image,)
    if exact and (images or like):
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
    query = Query(
        text or None,
        images[0] if len(images) == 1 else images or None,
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
        collapse,
        tuple(like),
        _weights(weights, bool(text) + len(images) + len(like)),
    )
    if query.lists:
        _check_list(query)
    return query


def _check_list(query: Query) -> None:
    """Whether a question without words and pictures asks for a list that can be made."""
    if query.where.is_open and not query.kinds:
        raise UsageError(
            "nothing to search for: give words, a picture (--image FILE) or both, or what to list "
            "(--after, --before, --under, --kind)"
        )
    if query.exact:
        raise UsageError("nothing to search for: --exact looks for words; give some, or list without it")
    if query.without:
        raise UsageError("--not takes away from what words or a picture find; give some of these, or leave it out")
    if query.min_prob is not None:
        raise UsageError("a list without words or a picture has no probability that --min-prob could be held against")


def _weights(weights: Sequence[float] | None, parts: int) -> tuple[float, ...]:
    """The weights of so many parts of a question, checked."""
    if weights is None:
        return ()
    if len(weights) != parts:
        raise UsageError(f"there are {len(weights)} weights for {parts} parts of the question; give each of them one")
    for weight in weights:
        if not (weight > 0 and math.isfinite(weight)):
            raise UsageError(f"a weight is {weight:g}; it must be a number above 0, as in 'at night*2' or a.jpg*0.5")
    return tuple(map(float, weights))


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
