"""What people and programs see: tables, paths, progress, durations."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from indexer.reports import Progress, UpdateReport
from indexer.types import Asset, Item, Modality, Skipped, Span
from mmsearch.hits import Hit
from mmsearch.present import display_path, duration, hits_paths, hits_table, report_lines
from mmsearch.progress import ProgressLine, describe, describe_within


def hit(rank: int, score: float, path: str, text: str | None = None) -> Hit:
    kind = Modality.TEXT if text else Modality.IMAGE
    asset = Asset(path, kind, 1, 2, b"")
    return Hit(rank, score, Item(rank, asset, kind, Span(7, 9) if text else None, text))


def test_table_with_a_long_passage_is_cut_at_the_width() -> None:
    hits = [hit(1, 0.987, "/p/cat.jpg"), hit(2, 0.5, "/p/notes.txt", "a cat\nsat on the mat " * 20)]
    lines = hits_table(hits, width=60).splitlines()
    assert lines[0] == " 99% clear   image  /p/cat.jpg"
    assert lines[1].startswith(" 50% likely  text   /p/notes.txt:7  a cat sat on the mat")
    assert len(lines[1]) == 60 and lines[1].endswith("…")


def test_paths_come_as_the_file_system_has_them_each_once() -> None:
    odd = os.fsdecode(b"/p/\xe9\n.jpg")
    hits = [hit(1, 0.9, odd), hit(2, 0.8, "/p/a.txt", "x"), hit(3, 0.7, "/p/a.txt", "y")]
    assert hits_paths(hits, end=b"\0") == b"/p/\xe9\n.jpg\0/p/a.txt\0"


def test_paths_for_people_are_relative_and_printable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert display_path(str(tmp_path / "a" / "b.jpg")) == "a/b.jpg"
    assert display_path(str(tmp_path) + "-other/b.jpg") == str(tmp_path) + "-other/b.jpg"
    assert display_path("/x/new\nline\x1b[2J.jpg") == "/x/new\\nline\\x1b[2J.jpg"
    assert display_path(os.fsdecode(b"/x/\xe9.jpg")) == "/x/\\udce9.jpg"
    assert display_path("/x/🐈 é.jpg") == "/x/🐈 é.jpg"


def test_report() -> None:
    report = UpdateReport(added=1200, removed=1, items=1300, seconds=65.0, skipped=(Skipped("/p/x.jpg", "is empty"),))
    assert report_lines(report) == [
        "skipped /p/x.jpg: is empty",
        "1,200 added, 1 removed, 1 skipped in 1 min 05 s, 20.0 items/s",
    ]
    assert report_lines(UpdateReport(seconds=0.04)) == ["nothing there to index in 0.0 s"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (12.3, "12 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_progress_in_words() -> None:
    assert describe(Progress(120, 8086, 2, "x"), 4.0) == "120 of 8,086 files, 30.0/s, 4 min 26 s left, 2 skipped"
    assert describe(Progress(0, 5, 0, "x"), 0.0) == "0 of 5 files, 0.0/s"


def test_progress_within_a_film() -> None:
    """Ten seconds for a fifth of it: forty for the rest; two more files at half a second, as the 120 before took."""
    film = Progress(120, 123, 0, "/v/film.mp4", 0.2)
    assert describe_within(film, 60.0, 10.0, 0.2) == "120 of 123 files, film.mp4 20 %, 41 s left"
    alone = Progress(0, 2, 1, "/v/film.mp4", 0.75)  # resumed at half of it; the other one is taken for as long
    assert describe_within(alone, 0.0, 10.0, 0.25) == "0 of 2 files, film.mp4 75 %, 50 s left, 1 skipped"
    begun = Progress(0, 1, 0, f"/v/{'a' * 20}{'b' * 20}.mp4", 0.01)
    assert describe_within(begun, 0.0, 0.0, 0.0) == f"0 of 1 files, {'a' * 16}…{'b' * 11}.mp4 1 %"


def test_the_line_moves_within_a_film(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    log = io.StringIO()
    with ProgressLine(log) as progress:
        progress(Progress(1, 3, 0, "x"))
        for n in range(1, 5):
            progress(Progress(1, 3, 0, "film.mp4", n / 4))
        progress(Progress(2, 3, 0, "film.mp4"))
    assert log.getvalue().splitlines() == [
        "1 of 3 files, 0.1/s, 20 s left",
        "1 of 3 files, film.mp4 25 %",
        "1 of 3 files, film.mp4 50 %, 40 s left",
        "1 of 3 files, film.mp4 75 %, 30 s left",
        "1 of 3 files, film.mp4 100 %, 20 s left",
        "2 of 3 files, 2.0/min, 30 s left",
    ]


def test_a_log_gets_a_plain_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files come every 4 seconds for 40 seconds: a line after each ten seconds, without any escape code."""
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    log = io.StringIO()
    with ProgressLine(log) as progress:
        for n in range(1, 11):
            progress(Progress(n, 10, 0, "x"))
    assert log.getvalue().splitlines() == [
        "3 of 10 files, 0.2/s, 28 s left",
        "6 of 10 files, 0.2/s, 16 s left",
        "9 of 10 files, 0.2/s, 4.0 s left",
    ]
