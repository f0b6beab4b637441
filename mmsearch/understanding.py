"""What a question says beside what is to be seen: when it was, and what must not be there. Pure; English only.

    understand("the beach in summer 2021", today)    the beach, from 2021-06-01 to 2021-09-01
    understand("a street without people", today)     a street, without people

Only what is certain is taken, for a filter hides: a time stands at the end of a question, or before a comma, a
preposition or an article at its beginning. It has its own preposition ("in 2019") or tells of today ("last summer"), or
is all that is asked. So "invoice 2024" and "trees in autumn" stay words, and so does what is in quotes, and "without"
where a question begins with "how". Seasons are those of the north, by whole months.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, NamedTuple

from indexer.words import MARKS

FIRST_YEAR = 1990
"""A year before it is what something is from, and not when its picture was taken."""
LONGEST, MOST_UNWANTED = 7, 3
"""Words of a time, "between may 2018 and june 2018", and of one thing that must not be there, at most."""


def _all_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october"]
_MONTHS += ["november", "december"]
_SHORT = {name[:3]: number for number, name in enumerate(_MONTHS, 1)} | {"sept": 9}
_SEASONS = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
_WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
_NUMBERS |= {"nine": 9, "ten": 10, "eleven": 11, "twelve": 12}
_UNITS = {"day": 1, "week": 7, "month": 30, "year": 365}
_PREPOSITIONS = {
    "in": {"year", "month", "month of a year", "season", "rolling"},
    "during": {"year", "month", "month of a year", "season", "rolling", "holiday", "relative"},
    "over": {"season", "holiday", "relative"},
    "at": {"holiday"},
    "on": {"day"},
    "from": {"month of a year", "season", "holiday", "day", "relative"},
    "of": {"relative"},
}
"""What each may be followed by, to be certainly a time."""
_BOUNDS = {"before", "after", "since", "until", "till"}
_JOINING = {"and", "or", "nor", "not", "but"}
_COMPARING = {"than", "like", "as", "by", "to", "the", "a", "my", "our", "for", "with", "about", "between"} | _BOUNDS
"""Before "last year" it is no time of its own."""
_TAKEN = _all_of("taken shot made recorded photographed")
_PICTURES = _all_of("photo photos picture pictures pic pics image images video videos clips")
_NOTHING_MORE = _PICTURES | _TAKEN | _all_of("all any some my our the show me find everything of")
_GOES_ON = _all_of("a an the my our his her their at in on with near we i some")
"""What may follow a time at the beginning of a question."""
_ASKING = _all_of("how what why which who whom whose when where can could is are was do does did should will would")
"""Words that a question to a text begins with: "how to live without money"."""
_ARTICLES = {"a", "an", "any", "the"}
_NO_THING = _all_of("too very so as yet only just quite that this it them least forgotten")
"""What nothing that must not be there begins with: "big but not too big"."""
_SAYINGS = _all_of("borders frontiers limits end doubt fail fear cause notice warning words permission you me us")
"""What things are said to be without: "doctors without borders"."""
_BINDING = _all_of("in on at of with to for from by but that who is without")
"""Words that no name of a thing has in it, as far as it is certain where it ends."""
_NEGATIONS = {("but", "not"), ("but", "no"), ("with", "no")}
_THINGS_IN_ING = _all_of("building ceiling clothing painting string")


@dataclass(frozen=True, slots=True)
class Understood:
    """What is left to be looked for, what must not be there, and from which day on up to which, without that.

    ``text`` is empty if a time is all that was asked. ``respelled`` are the misspelt words, each with the one that is
    looked for in its place; see ``mmsearch.spelling``.
    """

    text: str
    without: tuple[str, ...] = ()
    after: date | None = None
    before: date | None = None
    respelled: tuple[tuple[str, str], ...] = ()

    @property
    def limits(self) -> tuple[str | None, str | None]:
        """``after`` and ``before`` as they are typed."""
        return self.after.isoformat() if self.after else None, self.before.isoformat() if self.before else None

    def as_dict(self) -> dict[str, Any]:
        """The same in plain values, for JSON."""
        after, before = self.limits
        values: dict[str, Any] = {"text": self.text, "without": list(self.without), "after": after, "before": before}
        return values | {"respelled": dict(self.respelled)}


class Period(NamedTuple):
    """The days from ``start`` up to ``end``, without that, and how they were said."""

    start: date
    end: date
    kind: str


Limits = tuple[date | None, date | None]


def understand(question: str, today: date, *, dates: bool = True) -> Understood | None:
    """What a question says beside what is to be seen; None if it says nothing but that.

    Args:
        today: where "yesterday" and the last May are counted from.
        dates: whether a time is looked for.

    >>> understand("a dog but not a cat", date(2026, 12, 1))
    Understood(text='a dog', without=('cat',), after=None, before=None)
    """
    words = _split(question)
    words, limits = _without_time(words, today) if dates else (words, None)
    words, without = _without_unwanted(words)
    if dates and without and limits is None:
        words, limits = _without_time(words, today)
    if (limits is None and not without) or (without and not words):
        return None
    nothing_more = not without and all(_plain(word) in _NOTHING_MORE for word in words)
    return Understood("" if nothing_more else " ".join(words), without, *(limits or (None, None)))


def _split(question: str) -> list[str]:
    """The words of a question; what stands in quotes is one."""
    words: list[str] = []
    parts = question.translate(MARKS).split('"')
    for i, part in enumerate(parts):
        if i % 2 == 0 or i == len(parts) - 1:
            words += part.split()
        elif part.strip():
            sign = words.pop() if words and words[-1] == "-" and parts[i - 1].endswith("-") else ""  # -"street lamps"
            words.append(f'{sign}"{part}"')
    return words


def _plain(word: str) -> str:
    """A word as the tables have it; one in quotes is in none of them."""
    return word.lower().replace("’", "'").rstrip(",.;?!")


# -- what must not be there --------------------------------------------------------------------------------------------


def _without_unwanted(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The words that are left, and the things that must not be there."""
    dashed = [word[1:].strip('",') for word in words if _is_dashed(word)]
    kept = [word for word in words if not _is_dashed(word)]
    if not kept:
        return words, ()
    said: tuple[str, ...] = ()
    found = None if _plain(kept[0]) in _ASKING else _said_unwanted(kept)
    while found is not None:
        kept, said = found[0], (*found[1], *said)
        found = _said_unwanted(kept)
    return kept, (*said, *dashed)


def _is_dashed(word: str) -> bool:
    """Whether a word is "-people"; "-5", "-v" and "-n-" are not."""
    bare = word[1:].rstrip(",")
    named = len(bare) > 2 and bare[0].isalpha() and bare.replace("'", "").isalnum()
    return word.startswith("-") and (named or bare.startswith('"'))


def _said_unwanted(words: list[str]) -> tuple[list[str], tuple[str, ...]] | None:
    """What stands before "without people", which is at the end, and what that names."""
    plain = [_plain(word) for word in words]
    for i in range(len(words) - 1, 0, -1):
        length = 1 if plain[i] == "without" else 2 if tuple(plain[i : i + 2]) in _NEGATIONS else 0
        if length:
            things = _things(words[i + length :])
            end = i - 1 if plain[i - 1] == "but" else i
            return None if things is None or end < 1 else ([*words[: end - 1], words[end - 1].rstrip(",")], things)
    return None


def _things(words: Sequence[str]) -> tuple[str, ...] | None:
    """The things in "a cat, dogs or any people"; None if these are not surely things."""
    things: list[list[str]] = [[]]
    for word in words:
        joint = _plain(word) in ("or", "and", "nor")
        if not joint and (things[-1] or _plain(word) not in _ARTICLES):
            things[-1].append(word.rstrip(",.;?!"))
        if joint or word.endswith(","):
            things.append([])
    named = [thing for thing in things if thing]
    certain = named and all(_is_thing([_plain(word) for word in thing]) for thing in named)
    return tuple(" ".join(thing).replace('"', "") for thing in named) if certain else None


def _is_thing(plain: Sequence[str]) -> bool:
    doing = plain[0].endswith("ing") and plain[0] not in _THINGS_IN_ING
    said = plain[0] in _NO_THING or plain[-1] in _SAYINGS
    return len(plain) <= MOST_UNWANTED and not doing and not said and _BINDING.isdisjoint(plain)


# -- when it was -------------------------------------------------------------------------------------------------------


def _without_time(words: list[str], today: date) -> tuple[list[str], Limits | None]:
    """The words that are left, and the days between which it was; None if they do not say."""
    plain = [_plain(word) for word in words]
    if not words:
        return words, None
    whole = _limits(plain, today, plain) or _named(plain, today)
    if whole is not None:
        return [], whole
    for start in range(max(1, len(words) - LONGEST), len(words)):
        limits = None if plain[start - 1] in _JOINING else _limits(plain[start:], today, plain[:start])
        if limits is not None:
            end = start - 1 if plain[start - 1] in _TAKEN and start > 1 else start
            return [*words[: end - 1], words[end - 1].rstrip(",")], limits
    for end in range(min(LONGEST, len(words) - 1), 0, -1):
        limits = _limits(plain[:end], today, [])
        if limits is not None and (words[end - 1].endswith(",") or plain[end] in _GOES_ON):
            return words[end:], limits
    return words, None


def _named(words: Sequence[str], today: date) -> Limits | None:
    """A time without a preposition, where nothing else is asked: "2019", "summer 2021", "christmas 2020"."""
    period = _period(words, today)
    return None if period is None or period.kind == "month" else (period.start, period.end)


def _limits(words: Sequence[str], today: date, before: Sequence[str]) -> Limits | None:
    """The days between which it was, where ``words`` say just that; ``before`` them stands the rest of the question."""
    first, rest = words[0], words[1:]
    if first in _BOUNDS and rest:
        return _bounded(first, rest, today)
    if (first in _PREPOSITIONS or first == "between") and rest:
        return _between(words, today) or _with_preposition(words, today, before)
    period, alone = _period(words, today), not before or before[-1] not in _COMPARING | _PREPOSITIONS.keys()
    return (period.start, period.end) if period and period.kind in ("relative", "rolling") and alone else None


def _bounded(bound: str, words: Sequence[str], today: date) -> Limits | None:
    """What "before 2015" says; a month or a feast without its year is not certain enough for that."""
    period = _period(words, today)
    if period is None or period.kind == "month" or (period.kind == "relative" and bound != "since"):
        return None
    limit = period.start if bound in ("before", "since") else period.end
    return (limit, None) if bound in ("after", "since") else (None, limit)


def _between(words: Sequence[str], today: date) -> Limits | None:
    """What "between 2018 and 2020" says, and "from 2018 to 2020"."""
    joint = {"between": "and", "from": "to"}.get(words[0], "")
    if joint not in words:
        return None
    place = list(words).index(joint)
    first, last = _period(words[1:place], today), _period(words[place + 1 :], today)
    if first is None or last is None or "month" in (first.kind, last.kind) or last.end <= first.start:
        return None
    return first.start, last.end


def _with_preposition(words: Sequence[str], today: date, before: Sequence[str]) -> Limits | None:
    """What "in 2019" says. "A car from 2005" is of that year and "photos from 2005" were taken in it."""
    period = _period(words[1:], today)
    kinds = _PREPOSITIONS.get(words[0], set())
    if words[0] in ("from", "of") and not _PICTURES.isdisjoint(before[:3]):
        kinds = kinds | {"year"}
    return (period.start, period.end) if period and period.kind in kinds else None


def _period(words: Sequence[str], today: date) -> Period | None:
    """The days that ``words``, all of them, name; nothing that has not begun."""
    with_the = len(words) > 1 and words[0] == "the"
    words = list(words[1:] if with_the else words)
    if len(words) == 2 and (words[0] == "past" or (with_the and words[0] == "last")) and words[1] in _UNITS:
        words.insert(1, "one")  # "the last week" are seven days, "last week" is from Monday on
    readings = (reading(words, today) for reading in (_year, _month, _day, _season, _holiday, _relative, _rolling))
    period = next((period for period in readings if period is not None), None)
    return period if period is not None and period.start <= today else None


def _year(words: Sequence[str], today: date) -> Period | None:
    """``2019``, ``the year 2019``."""
    if len(words) == 2 and words[0] == "year":
        words = words[1:]
    year = _number_of_year(words[0], today) if len(words) == 1 else None
    return None if year is None else _months(year, 1, 12, "year")


def _month(words: Sequence[str], today: date) -> Period | None:
    """``may 2021``, and ``may`` for the last that has begun."""
    if len(words) == 1 and words[0] in _MONTHS:
        number = _MONTHS.index(words[0]) + 1
        return _months(today.year - (number > today.month), number, 1, "month")
    month, year = _with_year(words, today)
    number_of_month = _number_of_month(month)
    return None if year is None or number_of_month is None else _months(year, number_of_month, 1, "month of a year")


def _day(words: Sequence[str], today: date) -> Period | None:
    """``17 may 2021``, ``may 17th``, ``the 17th of may``, ``2021-05-17``; the last that has been if no year is said."""
    if len(words) == 1 and words[0].count("-") == 2:
        return _one_day(*words[0].split("-"))
    said = [word for word in words if word != "of"]
    if len(said) not in (2, 3):
        return None
    number, month = (said[0], said[1]) if said[0][:1].isdigit() else (said[1], said[0])
    for ending in ("st", "nd", "rd", "th"):
        number = number.removesuffix(ending)
    of_year = _number_of_month(month)
    if of_year is None or not number.isdecimal():
        return None
    if len(said) == 3:
        return None if _number_of_year(said[2], today) is None else _one_day(said[2], str(of_year), number)
    past = _one_day(str(today.year), str(of_year), number)
    return past if past is None or past.start <= today else _one_day(str(today.year - 1), str(of_year), number)


def _season(words: Sequence[str], today: date) -> Period | None:
    """``summer 2021``, ``summer of 2021``, ``winter 2020/21``. Which winter ``winter 2021`` is nobody knows."""
    if len(words) == 2 and words[0] == "winter":
        first, _, second = words[1].replace("-", "/").partition("/")
        winter = _number_of_year(first, today)
        return None if winter is None or second[-2:] != f"{(winter + 1) % 100:02}" else _months(winter, 12, 3, "season")
    name, year = _with_year(words, today)
    return (
        None if year is None or name not in _SEASONS or name == "winter" else _months(year, _SEASONS[name], 3, "season")
    )


def _holiday(words: Sequence[str], today: date) -> Period | None:
    """``christmas 2020``, ``easter of 2021``."""
    name, year = _with_year(words, today)
    return None if year is None else _holiday_of(name, year)


def _relative(words: Sequence[str], today: date) -> Period | None:
    """``yesterday``, ``last summer``, ``this week``, ``two years ago``."""
    if list(words) == ["yesterday"]:
        return Period(today - timedelta(1), today, "relative")
    if list(words) == ["today"]:
        return Period(today, today + timedelta(1), "day")
    if len(words) == 3 and words[2] == "ago":
        count, unit = _count(words[0]), words[1].removesuffix("s")
        return None if count is None or unit not in _UNITS else _ago(count, unit, today)
    if len(words) != 2 or words[0] not in ("last", "this"):
        return None
    if words[1] in _UNITS and words[1] != "day":
        return _ago(int(words[0] == "last"), words[1], today)
    begun = [period for period in _ever(words[1], today) if period.start <= today]
    if words[0] == "last":
        return max((period for period in begun if period.end <= today), default=None)
    return max((period for period in begun if period.start.year == today.year or today < period.end), default=None)


def _rolling(words: Sequence[str], today: date) -> Period | None:
    """``the last 30 days``, ``the past two weeks``."""
    if len(words) == 3 and words[0] in ("last", "past") and words[1] not in ("a", "an"):
        days = (_count(words[1]) or 0) * _UNITS.get(words[2].removesuffix("s"), 0)
        if days and days <= (today - date(FIRST_YEAR, 1, 1)).days:
            return Period(today - timedelta(days), today + timedelta(1), "rolling")
    return None


def _ago(count: int, unit: str, today: date) -> Period | None:
    """The day, week (from Monday), month or year so many before this one."""
    if unit == "month":
        year, month = divmod(today.year * 12 + today.month - 1 - count, 12)
        return _months(year, month + 1, 1, "relative") if year >= FIRST_YEAR else None
    if unit == "year":
        return _months(today.year - count, 1, 12, "relative") if today.year - count >= FIRST_YEAR else None
    start = today - timedelta(count * _UNITS[unit] + (today.weekday() if unit == "week" else 0))
    return Period(start, start + timedelta(_UNITS[unit]), "relative") if start.year >= FIRST_YEAR else None


def _ever(name: str, today: date) -> Iterator[Period]:
    """The recent days of that name: a month, a season, a feast, a weekend, a weekday."""
    for year in (today.year - 2, today.year - 1, today.year):
        if name in _MONTHS:
            yield _months(year, _MONTHS.index(name) + 1, 1, "relative")
        elif name in _SEASONS:
            yield _months(year, _SEASONS[name], 3, "relative")
        elif (feast := _holiday_of(name, year)) is not None:
            yield feast._replace(kind="relative")
    monday = today - timedelta(today.weekday())
    for start in (monday - timedelta(7), monday):
        if name == "weekend":
            yield Period(start + timedelta(5), start + timedelta(7), "relative")
        elif name in _WEEKDAYS:
            day = start + timedelta(_WEEKDAYS.index(name))
            yield Period(day, day + timedelta(1), "relative")


def _holiday_of(name: str, year: int) -> Period | None:
    """Christmas from its eve to Boxing Day, Easter from Good Friday to Monday, Halloween."""
    if name == "easter":
        return Period(_easter(year) - timedelta(2), _easter(year) + timedelta(2), "holiday")
    if name == "christmas":
        return Period(date(year, 12, 24), date(year, 12, 27), "holiday")
    return Period(date(year, 10, 31), date(year, 11, 1), "holiday") if name == "halloween" else None


def _easter(year: int) -> date:
    """Easter Sunday by the Gregorian algorithm of Meeus, Jones and Butcher.

    >>> _easter(2024)
    datetime.date(2024, 3, 31)
    """
    a, (b, c) = year % 19, divmod(year, 100)
    (d, e), f = divmod(b, 4), (b + 8) // 25
    g = (b - f + 1) // 3
    h = (19 * a + b - d - g + 15) % 30
    i, k = divmod(c, 4)
    m = (32 + 2 * e + 2 * i - h - k) % 7
    n = (a + 11 * h + 22 * m) // 451
    month, day = divmod(h + m - 7 * n + 114, 31)
    return date(year, month, day + 1)


def _months(year: int, month: int, count: int, kind: str) -> Period:
    """So many whole months."""
    years, last = divmod(month - 1 + count, 12)
    return Period(date(year, month, 1), date(year + years, last + 1, 1), kind)


def _one_day(year: str, month: str, day: str) -> Period | None:
    try:
        start = date(int(year), int(month), int(day))
    except ValueError:
        return None
    return Period(start, start + timedelta(1), "day")


def _with_year(words: Sequence[str], today: date) -> tuple[str, int | None]:
    """The name and the year in ``may 2021`` and ``may of 2021``; no year where it is not just that."""
    named = [words[0], words[2]] if len(words) == 3 and words[1] == "of" else words
    return (named[0], _number_of_year(named[1], today)) if len(named) == 2 else ("", None)


def _number_of_month(word: str) -> int | None:
    return _MONTHS.index(word) + 1 if word in _MONTHS else _SHORT.get(word)


def _number_of_year(word: str, today: date) -> int | None:
    year = int(word) if len(word) == 4 and word.isascii() and word.isdigit() else 0
    return year if FIRST_YEAR <= year <= today.year else None


def _count(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdigit() and len(word) < 4 else _NUMBERS.get(word)
