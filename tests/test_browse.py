"""Lists without words, and the pages of any question, which put together are its one long list."""

from __future__ import annotations

import io
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from colour_encoder import ColourEncoder, PatchColourEncoder
from fusion_folder import write_reranker
from pdf_writer import pdf, rectangle, words
from PIL import Image

import mmsearch
from indexer.errors import UsageError
from mmsearch import asking
from mmsearch.present import hits_table
from mmsearch.query import parse_query


def at(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=timezone.utc).timestamp()


def dated(path: Path, day: str | None, taken: str | None = None) -> None:
    """A red picture that was changed on a day, in UTC, or nobody knows when, and perhaps taken on another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if taken is not None:
        exif.get_ifd(0x8769)[36867] = taken
    Image.new("RGB", (16, 16), (255, 0, 0)).save(path, exif=exif)
    touch(path, day)


def touch(path: Path, day: str | None) -> None:
    when = 0 if day is None else at(day)
    os.utime(path, (when, when))


@pytest.fixture
def trips(library: mmsearch.Library, tmp_path: Path) -> Path:
    """Pictures with and without a date, and a text, in two folders."""
    folder = tmp_path / "photos"
    dated(folder / "Trips/b.jpg", "2021-05-17T23:30")
    dated(folder / "Trips/a.jpg", "2021-05-17T23:30")
    dated(folder / "Trips/taken.jpg", "2024-01-01", taken="2020:07:02 12:00:00")
    dated(folder / "Trips/old.jpg", "2024-01-01", taken="1965:03:04 12:00:00")
    dated(folder / "Trips/undated.jpg", None)
    dated(folder / "Work/c.jpg", "2022-02-02")
    (folder / "Trips/diary.txt").write_text("first day\n\na red car\n\nlast day\n")
    touch(folder / "Trips/diary.txt", "2021-06-01")
    library.index(folder)
    return folder


def names(hits: Sequence[mmsearch.Hit]) -> list[str]:
    return [hit.path.name if hit.path else str(hit.key) for hit in hits]


# -- lists -------------------------------------------------------------------------------------------------------------


def test_filters_alone_list_files_newest_first(library: mmsearch.Library, trips: Path) -> None:
    hits = library.query(under=trips / "Trips")
    assert names(hits) == ["diary.txt", "a.jpg", "b.jpg", "taken.jpg", "old.jpg", "undated.jpg"]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5, 6]
    assert names(library.query(after="2021", under=trips / "Trips")) == ["diary.txt", "a.jpg", "b.jpg"]
    assert names(library.query(before="2021-06-01", kind="image")) == [
        *("a.jpg", "b.jpg", "taken.jpg", "old.jpg", "undated.jpg")
    ]
    assert names(library.query(kind="text")) == ["diary.txt"]
    assert names(library.query("  ", kind="image,text", k=2)) == ["c.jpg", "diary.txt"]
    assert names(library.query(under=[trips / "Work", trips / "Trips/a.jpg"])) == ["c.jpg", "a.jpg"]


def test_a_listed_file_says_when_it_is_from_and_claims_no_score(library: mmsearch.Library, trips: Path) -> None:
    first, second = library.query(after="2021", before="2021-07", k=2)
    assert (first.listed, first.probability, first.time) == (True, None, at("2021-06-01"))
    assert math.isnan(first.score) and first.text == "first day" and first.lines is None
    assert second.as_dict() == {
        "rank": 2,
        "reranked": False,
        "listed": True,
        "time": at("2021-05-17T23:30"),
        "kind": "image",
        "path": str(trips / "Trips/a.jpg"),
    }
    assert library.query(under=trips)[-1].time is None
    assert library.query(before="1970", kind="image")[0].time == at("1965-03-04T12:00")
    found = library.query("red", k=1)[0]
    assert not found.listed and "time" not in found.as_dict()


def test_the_table_has_dates_instead_of_numbers(
    library: mmsearch.Library, trips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trips)
    assert hits_table(library.query(under=trips / "Trips"), width=60).splitlines() == [
        "2021-06-01  text   Trips/diary.txt    first day",
        "2021-05-17  image  Trips/a.jpg",
        "2021-05-17  image  Trips/b.jpg",
        "2020-07-02  image  Trips/taken.jpg",
        "1965-03-04  image  Trips/old.jpg",
        "no date     image  Trips/undated.jpg",
    ]


def test_what_was_added_from_memory_is_listed_by_its_key(library: mmsearch.Library) -> None:
    library.add([mmsearch.Addition("sku-1", text="a red thing"), mmsearch.Addition("sku-2", text="a blue thing")])
    assert names(library.query(kind="text")) == ["sku-2", "sku-1"]
    assert library.query(kind="image") == []


def test_a_list_needs_no_model(library: mmsearch.Library, trips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(mmsearch.library, "load_encoder", lambda name, _: loaded.append(name) or ColourEncoder())
    with mmsearch.open(library.folder) as plain:
        assert names(plain.query(under=trips / "Work")) == ["c.jpg"] and loaded == []
        assert names(plain.query("red", under=trips / "Work")) == ["c.jpg"] and loaded == ["colours"]
    searcher = library.searcher()
    assert names(searcher.search(parse_query(under=trips / "Work"))) == ["c.jpg"]
    both = searcher.search_many([parse_query(kind="text"), parse_query("red", under=trips / "Work")], k=1)
    assert [names(hits) for hits in both] == [["diary.txt"], ["c.jpg"]]


def test_a_time_alone_lists_what_is_from_then(library: mmsearch.Library, trips: Path) -> None:
    hits = library.query("in 2021")
    assert names(hits) == ["diary.txt", "a.jpg", "b.jpg"] and hits[0].listed
    assert hits.understood is not None and hits.understood.limits == ("2021-01-01", "2022-01-01")
    assert not library.query("in 2021", without="blue", k=1)[0].listed


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "nothing to search for: give words, a picture .* or what to list"),
        ({"without": "people", "kind": "image"}, "--not takes away from what words or a picture find"),
        ({"exact": True, "kind": "image"}, "--exact looks for words"),
        ({"min_prob": 0.5, "kind": "image"}, "no probability that --min-prob"),
        ({"kind": "image", "offset": -1}, "offset is -1"),
        ({"kind": "image", "k": 0}, "k is 0"),
    ],
    ids=str,
)
def test_what_cannot_be_listed(library: mmsearch.Library, trips: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        library.query(**asked)


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> mmsearch.Library:
    """Pictures, texts, and documents whose pages have a look and words, of few colours and few words: many ties."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = random.Random(3)

    def colour() -> tuple[int, int, int]:
        return rng.choice((0, 102, 255)), rng.choice((0, 255)), rng.choice((0, 153, 255))

    def said() -> str:
        return " ".join(rng.sample(["red", "green", "blue", "thing", "a", "house"], rng.randint(1, 4)))

    for n in range(25):
        Image.new("RGB", (8, 8), colour()).save(folder / f"p{n:02}.png")
    for n in range(5):
        (folder / f"t{n}.txt").write_text("\n\n".join(said() for _ in range(5)))
    for n in range(6):
        pages = [
            [rectangle(0, 0, 500, 700, tuple(c / 255 for c in colour())), words(72, 750, said())]  # type: ignore[arg-type]
            for _ in range(4)
        ]
        (folder / f"d{n}.pdf").write_bytes(pdf(pages))
    with mmsearch.open(folder / "index", model=ColourEncoder()) as library:
        assert library.index(folder).added == 36
    return library


@pytest.mark.parametrize(
    "asked",
    [
        {"text": "red"},
        {"text": "blue house", "kind": "text"},
        {"text": "red", "without": "blue"},
        {"text": "t1 red"},
        {"image": Image.new("RGB", (8, 8), (255, 0, 255))},
        {"text": "green", "image": Image.new("RGB", (8, 8), (255, 0, 0)), "weights": [2, 1]},
        {"text": "red", "exact": True},
        {"text": "a house", "exact": True},
        {"kind": "image,text"},
        {"like": "p03.png"},
        {"like": ["d1.pdf", "t0.txt"], "text": "blue"},
    ],
    ids=lambda asked: "-".join(map(str, asked)),
)
@pytest.mark.parametrize("step", [1, 3, 10, 40])
def test_pages_put_together_are_the_long_list(mixed: mmsearch.Library, asked: dict[str, Any], step: int) -> None:
    folder = mixed.folder.parent
    like = asked.get("like", ())
    asked = asked | {"like": [folder / one for one in ([like] if isinstance(like, str) else like)]}
    whole = mixed.query(k=200, **asked)
    assert len(whole) > 4 and [hit.rank for hit in whole] == list(range(1, len(whole) + 1))
    pages = [mixed.query(k=step, offset=offset, **asked) for offset in range(0, len(whole), step)]
    assert [hit.as_dict() for page in pages for hit in page] == [hit.as_dict() for hit in whole]
    assert [page.before for page in pages] == list(range(0, len(whole), step))
    end = mixed.query(k=step, offset=len(whole) + 5, **asked)
    assert (end, end.before) == ([], len(whole))


def test_pages_of_a_reranked_question(tmp_path: Path) -> None:
    """Of three candidates, so that pages begin before, at and behind the last of them."""
    reranker = write_reranker(tmp_path / "reranker", PatchColourEncoder())
    rng = random.Random(5)
    with mmsearch.open(tmp_path / "index", model=PatchColourEncoder(), reranker=reranker) as library:
        library.add(
            [
                mmsearch.Addition(f"{n}", image=Image.new("RGB", (8, 8), tuple(rng.randrange(256) for _ in "rgb")))
                for n in range(12)
            ]
        )
        whole = library.query("red", k=12, candidates=3)
        assert [hit.reranked for hit in whole[:3]] == [True] * 3 and len(whole) == 12
        for step in (1, 2, 3, 5):
            pages = [library.query("red", k=step, offset=o, candidates=3) for o in range(0, 12, step)]
            assert [hit for page in pages for hit in page] == whole


def test_the_second_page_begins_where_the_first_ended(mixed: mmsearch.Library) -> None:
    first, second = mixed.query("red"), mixed.query("red", offset=10)
    assert [*first, *second] == mixed.query("red", k=200)[:20]
    end = mixed.query("red", offset=1000)
    assert end == [] and not end.nothing_else_matches and end.before >= 20


# -- the command -------------------------------------------------------------------------------------------------------


def command(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "mmsearch", "query", *map(str, arguments)]
    return subprocess.run(run, input=stdin, capture_output=True, text=True, timeout=120)


@pytest.mark.slow(reason="runs the command as a process")
def test_the_command_lists_and_turns_pages(library: mmsearch.Library, trips: Path) -> None:
    index = ["--index", library.folder]
    listed = command("--after", "2021", "--under", trips / "Trips", *index)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [
        ["2021-06-01", "text"],
        ["2021-05-17", "image"],
        ["2021-05-17", "image"],
    ]
    page = command("--kind", "image", "-k", "2", "--offset", "2", "--json", *index)
    assert [(hit["rank"], Path(hit["path"]).name) for hit in json.loads(page.stdout)["hits"]] == [
        (3, "b.jpg"),
        (4, "taken.jpg"),
    ]
    end = command("--kind", "image", "--offset", "6", *index)
    said = "mmsearch: no answers after the first 6; --offset leaves out all there are\n"
    assert (end.returncode, end.stdout, end.stderr) == (0, "", said)
    nothing = command("--before", "1900", *index)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "mmsearch: nothing found\n")
    bare = command(*index)
    assert bare.returncode == 2 and "nothing to search for" in bare.stderr


@pytest.mark.slow(reason="runs the command as a process")
def test_a_list_loads_nothing_heavy(library: mmsearch.Library, trips: Path) -> None:
    code = f"import sys, mmsearch; mmsearch.open({str(library.folder)!r}).query(kind='image'); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {"torch", "onnxruntime", "sqlalchemy", "PIL", "faiss", "transformers"}


def test_many_questions_are_paged_each(
    mixed: mmsearch.Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(**options: Any) -> dict[str, list[dict[str, Any]]]:
        monkeypatch.setattr(mmsearch, "open", lambda *_, **__: mixed)
        monkeypatch.setattr(sys, "stdin", io.StringIO("red\na house\n"))
        asking.query(asking.STDIN, json_=True, **options)
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        return {line["question"]: line["hits"] for line in lines}

    whole = asked(k=12)
    pages = [asked(k=4, offset=offset) for offset in (0, 4, 8)]
    assert list(whole) == ["red", "a house"]
    for question, hits in whole.items():
        assert len(hits) == 12 and [hit for page in pages for hit in page[question]] == hits
