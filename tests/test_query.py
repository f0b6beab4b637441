"""Questions: what people type becomes a Query or a sentence that says what is wrong with it."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

import pytest
from PIL import Image

from indexer.errors import UsageError
from indexer.records import Filter
from indexer.types import Modality
from mmsearch.query import Query, parse_query, parse_time


def test_words_are_trimmed_and_nothing_else_is_set() -> None:
    assert parse_query("  a cat ") == Query(text="a cat")


def test_everything_at_once() -> None:
    image = Image.new("RGB", (1, 1))
    query = parse_query(
        "at night",
        image=image,
        without=["people", " "],
        kind=["image", "text"],
        under="photos",
        after="2021",
        before=datetime(2022, 1, 1),
        min_prob=0.5,
        only_clear=True,
        unsure=3,
        rerank=False,
        candidates=7,
    )
    where = Filter((os.path.abspath("photos"),), 1609459200.0, 1640995200.0)
    assert query == Query(
        "at night", image, ("people",), (Modality.IMAGE, Modality.TEXT), where, 0.5, True, 3, False, 7
    )


@pytest.mark.parametrize("text", [None, "", "   ", "\n"])
def test_nothing_asked(text: str | None) -> None:
    with pytest.raises(UsageError, match="nothing to search for"):
        parse_query(text)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kind": "sound"}, "'sound' is not a kind; there are image, video, text"),
        ({"min_prob": 1.5}, "between 0 and 1; the smallest asked for is 1.5"),
        ({"candidates": 0}, "candidates is 0; rerank at least 1"),
        ({"after": "yesterday"}, "'yesterday' is not a date; write 2021"),
        ({"before": "2021-13"}, "'2021-13' is not a date"),
        ({"after": "2021-02-30"}, "'2021-02-30' is not a date"),
    ],
)
def test_what_makes_no_sense_is_named(asked: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_query("a cat", **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("2021", datetime(2021, 1, 1)),
        ("2021-05", datetime(2021, 5, 1)),
        ("2021-5-7", datetime(2021, 5, 7)),
        ("2021-05-17", datetime(2021, 5, 17)),
        (" 2021-05-17T08:30 ", datetime(2021, 5, 17, 8, 30)),
        ("2021-05-17T08:30:00Z", datetime(2021, 5, 17, 8, 30)),
        ("2021-05-17T08:30:00+02:00", datetime(2021, 5, 17, 6, 30)),
    ],
)
def test_dates(typed: str, meant: datetime) -> None:
    assert parse_time(typed) == meant.replace(tzinfo=timezone.utc).timestamp()


def test_a_datetime_with_a_zone_keeps_it() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert parse_time(datetime(1970, 1, 1, 9, tzinfo=tokyo)) == 0.0
