"""What is read out of the words of a question: times and unwanted things, and all that must stay words."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
from PIL import Image

import mmsearch
from mmsearch import asking
from mmsearch.present import hits_json, understood_lines
from mmsearch.understanding import Understood, understand

TODAY = date(2026, 12, 1)
"""A Tuesday."""


def day(text: str) -> date | None:
    return date.fromisoformat(text) if text else None


TIMES = [
    # a year, a month, a day
    ("a dog in 2019", "a dog", "2019-01-01", "2020-01-01"),
    ("beach in the year 2019", "beach", "2019-01-01", "2020-01-01"),
    ("a dog in May", "a dog", "2026-05-01", "2026-06-01"),
    ("snow in december", "snow", "2026-12-01", "2027-01-01"),
    ("a dog in may 2021", "a dog", "2021-05-01", "2021-06-01"),
    ("a dog in december of 2021", "a dog", "2021-12-01", "2022-01-01"),
    ("a dog in sept 2021?", "a dog", "2021-09-01", "2021-10-01"),
    ("us on 17 may 2021", "us", "2021-05-17", "2021-05-18"),
    ("us on May 17th, 2021", "us", "2021-05-17", "2021-05-18"),
    ("us on the 3rd of december", "us", "2025-12-03", "2025-12-04"),
    ("us on may 31", "us", "2026-05-31", "2026-06-01"),
    ("us on 2021-02-28", "us", "2021-02-28", "2021-03-01"),
    ("photos from 2019", "", "2019-01-01", "2020-01-01"),
    ("pictures of a dog from 2019", "pictures of a dog", "2019-01-01", "2020-01-01"),
    ("a dog taken in 2019", "a dog", "2019-01-01", "2020-01-01"),
    # seasons and feasts
    ("the beach in summer 2021", "the beach", "2021-06-01", "2021-09-01"),
    ("the beach, in the summer of 2021", "the beach", "2021-06-01", "2021-09-01"),
    ("us during fall 2020", "us", "2020-09-01", "2020-12-01"),
    ("skiing in winter 2020/21", "skiing", "2020-12-01", "2021-03-01"),
    ("family at christmas 2020", "family", "2020-12-24", "2020-12-27"),
    ("family at easter 2024", "family", "2024-03-29", "2024-04-02"),
    # counted from today
    ("cake yesterday", "cake", "2026-11-30", "2026-12-01"),
    ("photos from today", "", "2026-12-01", "2026-12-02"),
    ("lunch last week", "lunch", "2026-11-23", "2026-11-30"),
    ("lunch this week", "lunch", "2026-11-30", "2026-12-07"),
    ("lunch last weekend", "lunch", "2026-11-28", "2026-11-30"),
    ("lunch last tuesday", "lunch", "2026-11-24", "2026-11-25"),
    ("lunch last monday", "lunch", "2026-11-30", "2026-12-01"),
    ("trees last month", "trees", "2026-11-01", "2026-12-01"),
    ("trees last year", "trees", "2025-01-01", "2026-01-01"),
    ("the beach last summer", "the beach", "2026-06-01", "2026-09-01"),
    ("a dog last may", "a dog", "2026-05-01", "2026-06-01"),
    ("dinner last christmas", "dinner", "2025-12-24", "2025-12-27"),
    ("snow last winter", "snow", "2025-12-01", "2026-03-01"),
    ("snow this winter", "snow", "2026-12-01", "2027-03-01"),
    ("a cat 3 days ago", "a cat", "2026-11-28", "2026-11-29"),
    ("a cat two weeks ago", "a cat", "2026-11-16", "2026-11-23"),
    ("a cat a month ago", "a cat", "2026-11-01", "2026-12-01"),
    ("a cat two years ago", "a cat", "2024-01-01", "2025-01-01"),
    ("a cat in the last 30 days", "a cat", "2026-11-01", "2026-12-02"),
    ("a cat in the past two weeks", "a cat", "2026-11-17", "2026-12-02"),
    ("a cat in the last week", "a cat", "2026-11-24", "2026-12-02"),
    # from and to
    ("a dog before 2015", "a dog", "", "2015-01-01"),
    ("a dog after 2018", "a dog", "2019-01-01", ""),
    ("a dog since 2018", "a dog", "2018-01-01", ""),
    ("a dog since last summer", "a dog", "2026-06-01", ""),
    ("a dog until may 2021", "a dog", "", "2021-06-01"),
    ("a dog between 2018 and 2020", "a dog", "2018-01-01", "2021-01-01"),
    ("a dog from may 2018 to june 2018", "a dog", "2018-05-01", "2018-07-01"),
    # at the beginning
    ("in 2019 the dog", "the dog", "2019-01-01", "2020-01-01"),
    ("last summer at the beach", "at the beach", "2026-06-01", "2026-09-01"),
    ("yesterday, cake", "cake", "2026-11-30", "2026-12-01"),
    # nothing else is asked
    ("2019", "", "2019-01-01", "2020-01-01"),
    ("summer 2021", "", "2021-06-01", "2021-09-01"),
    ("in summer 2021", "", "2021-06-01", "2021-09-01"),
    ("Last Christmas", "", "2025-12-24", "2025-12-27"),
    ("christmas 2020", "", "2020-12-24", "2020-12-27"),
    ("in may", "", "2026-05-01", "2026-06-01"),
    ("yesterday", "", "2026-11-30", "2026-12-01"),
    ("show me all my pictures from last summer", "", "2026-06-01", "2026-09-01"),
    # what is quoted stays
    ('"in 2018" in 2019', '"in 2018"', "2019-01-01", "2020-01-01"),
]


@pytest.mark.parametrize(("question", "text", "after", "before"), TIMES)
def test_times_are_taken(question: str, text: str, after: str, before: str) -> None:
    assert understand(question, TODAY) == Understood(text, (), day(after), day(before))
    assert understand(question, TODAY, dates=False) is None


UNWANTED = [
    ("street without people", "street", ["people"]),
    ("a street, without any people", "a street", ["people"]),
    ("street without people or parked cars", "street", ["people", "parked cars"]),
    ("street without people, cars, and a dog", "street", ["people", "cars", "dog"]),
    ("street without people without cars", "street", ["people", "cars"]),
    ("a street with no people", "a street", ["people"]),
    ("a dog but not a cat", "a dog", ["cat"]),
    ("a dog, but not a cat.", "a dog", ["cat"]),
    ("beach but no people", "beach", ["people"]),
    ("beach but without people", "beach", ["people"]),
    ("beach -people", "beach", ["people"]),
    ("beach -people, -dogs", "beach", ["people", "dogs"]),
    ("-people beach -dogs", "beach", ["people", "dogs"]),
    ('beach -"street lamps"', "beach", ["street lamps"]),
    ("beach without “street lamps”", "beach", ["street lamps"]),
    ('"without people" -dogs', '"without people"', ["dogs"]),
    ("beach without a building", "beach", ["building"]),
]


@pytest.mark.parametrize(("question", "text", "without"), UNWANTED)
def test_unwanted_things_are_taken(question: str, text: str, without: list[str]) -> None:
    assert understand(question, TODAY) == Understood(text, tuple(without))


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("street without people in 2019", "street"),
        ("street in 2019 without people", "street"),
        ("in 2019 a street without people", "a street"),
        ("photos without people from 2019", "photos"),
    ],
)
def test_both_are_taken(question: str, text: str) -> None:
    assert understand(question, TODAY) == Understood(text, ("people",), date(2019, 1, 1), date(2020, 1, 1))


LITERAL = [
    "",
    "   ",
    "a dog",
    # numbers that are something else, years in which nothing was taken
    "invoice 2024",
    "invoice 2024-113",
    "report march 2023",
    "blade runner 2049",
    "a dog in 2049",
    "a dog in may 2027",
    "a house from 1920",
    "a house in 1920",
    "a car from 2005",
    "berlin 2019",
    "scan 2021-05-17",
    "room in 2",
    "us on 31 february 2020",
    # what is to be seen
    "may",
    "summer",
    "christmas",
    "christmas tree",
    "trees in autumn",
    "a lake in winter",
    "cookies at christmas",
    "winter 2021",
    "last christmas tree",
    "last year students",
    "last year of school",
    "the last supper",
    "usa today",
    "better than last year",
    "the calendar for last year",
    "not from last summer",
    "in 2019 and 2020",
    "this christmas",
    "before christmas",
    "a long time ago",
    "in",
    "the",
    "from",
    "between 2018",
    # in quotes
    '"in summer 2021"',
    '"street without people"',
    "“a dog in 2019”",
    # without, and nothing surely named
    "doctors without borders",
    "how to live without money",
    "what to do without people",
    "a man without looking",
    "without people",
    "-people",
    "a street without people in the rain",
    "a street without a single living soul around",
    "big but not too big",
    "last but not least",
    "gone but not forgotten",
    "2019 without people",
    "-5 degrees",
    "ls -l",
    "rock -n- roll",
    "a well-known street",
    "beach - people",
    'a - "b"',
    "street without",
    "but not a cat",
]


@pytest.mark.parametrize("question", LITERAL)
def test_everything_else_stays_words(question: str) -> None:
    assert understand(question, TODAY) is None


def test_last_and_this_on_every_day_of_five_years() -> None:
    """Last is over, this has begun and is of now or of this year, and yesterday is one day ago."""
    for number in range(5 * 366):
        today = date(2021, 1, 1) + timedelta(number)
        for name in ("summer", "winter", "may", "christmas", "easter", "weekend", "monday", "week", "month", "year"):
            last, this = understand(f"a dog last {name}", today), understand(f"a dog this {name}", today)
            assert last is not None and last.before is not None and last.after is not None
            assert last.before <= today and (today - last.after).days < 3 * 366
            if this is not None:
                assert this.after is not None and this.before is not None
                assert this.after <= today and (today < this.before or this.after.year == today.year)
        assert understand("a dog yesterday", today) == understand("a dog 1 day ago", today)


def test_what_was_understood_is_shown() -> None:
    start, end = date(2021, 6, 1), date(2021, 9, 1)
    assert understood_lines(None) == []
    assert understood_lines(Understood("a", (), start, end)) == ["only: 2021-06-01 to 2021-09-01"]
    assert understood_lines(Understood("a", (), start)) == ["only: from 2021-06-01"]
    assert understood_lines(Understood("a", ("people", "cars"), None, end)) == [
        "only: before 2021-09-01",
        "without: people, cars",
    ]


@pytest.fixture
def dated(library: mmsearch.Library, tmp_path: Path) -> mmsearch.Library:
    """A red picture and a purple one, taken in June 2021, and a red one of June 2020."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour, taken in (
        ("red", (255, 0, 0), "2021:06:10 12:00:00"),
        ("purple", (255, 0, 255), "2021:06:11 12:00:00"),
        ("old", (250, 0, 0), "2020:06:10 12:00:00"),
    ):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[36867] = taken
        Image.new("RGB", (16, 16), colour).save(folder / f"{name}.jpg", exif=exif)
    library.index(folder)
    return library


def names(hits: mmsearch.Hits) -> list[str]:
    return [hit.path.stem for hit in hits if hit.path]


def test_a_time_is_a_filter(dated: mmsearch.Library) -> None:
    hits = dated.query("red in summer 2021", k=3)
    assert names(hits) == ["red", "purple"] and hits == dated.query("red", k=3, after="2021-06", before="2021-09")
    assert hits.understood == Understood("red", (), date(2021, 6, 1), date(2021, 9, 1))
    literal = dated.query("red in summer 2021", k=3, literal=True)
    assert sorted(names(literal)) == ["old", "purple", "red"] and literal.understood is None
    said = dated.query("red in summer 2021", k=3, after="2020")
    assert sorted(names(said)) == ["old", "purple", "red"] and said.understood is None


def test_a_time_alone_shows_all_of_it(dated: mmsearch.Library) -> None:
    assert sorted(names(dated.query("summer 2021"))) == ["purple", "red"]
    assert names(dated.query("in 2020", image=Image.new("RGB", (8, 8), (0, 0, 255)))) == ["old"]


def test_unwanted_things_are_those_of_not(dated: mmsearch.Library) -> None:
    hits = dated.query("red without blue", k=3)
    assert hits == dated.query("red", k=3, without="blue") and names(hits)[-1] == "purple"
    assert hits.understood == Understood("red", ("blue",))
    assert '"understood": {\n    "text": "red",\n    "without": [\n      "blue"\n    ]' in hits_json(hits)
    assert dated.query("red -blue", k=3, without="green") == dated.query("red", k=3, without=["green", "blue"])
    assert dated.query("red", k=1).as_dict()["understood"] is None
    assert dated.query("red -blue", exact=True).understood is None


@pytest.mark.parametrize(
    ("literal", "said"),
    [(False, ["mmsearch: only: 2021-06-01 to 2021-09-01", "mmsearch: without: blue"]), (True, [])],
    ids=["understood", "literal"],
)
def test_the_command_says_what_it_understood(
    literal: bool,
    said: list[str],
    dated: mmsearch.Library,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mmsearch, "open", lambda *_, **__: dated)
    asking.query("red in summer 2021 without blue", k=1, literal=literal)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "only:" in line or "without:" in line] == said
