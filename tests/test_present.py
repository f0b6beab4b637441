"""What people and programs see: tables, paths, progress, durations."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from indexer.pipeline import Progress
from indexer.types import Asset, Item, Modality, Skipped, Span, UpdateReport
from mmsearch.present import display_path, duration, hits_paths, hits_table, report_lines
from mmsearch.progress import ProgressLine, describe
from mmsearch.search import Hit


def hit(rank: int, score: float, path: str, text: str | None = None) -> Hit:
    kind = Modality.TEXT if text else Modality.IMAGE
    asset = Asset(path, kind, 1, 2, b"")
    return Hit(rank, score, Item(rank, asset, kind, Span(7, 9) if text else None, text))


def test_table_with_a_long_passage_is_cut_at_the_width() -> None:
    hits = [hit(1, 0.987, "/p/cat.jpg"), hit(2, 0.5, "/p/notes.txt", "a cat\nsat on the mat " * 20)]
    lines = hits_table(hits, width=60).splitlines()
    assert lines[0] == " 0.99  image  /p/cat.jpg"
    assert lines[1].startswith(" 0.50  text   /p/notes.txt:7  a cat sat on the mat a cat")
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
