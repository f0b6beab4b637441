"""Files called .ts: MPEG transport streams are videos, TypeScript is nobody's business."""

from __future__ import annotations

from pathlib import Path

import pytest
from moving import Scene, write

import mmsearch
from indexer.decode import is_script

RED = (220, 30, 30)
SOURCE = "import { cat } from './sofa';\n\nexport const colour: string = 'G';  // on the sofa, as always\n"


def test_typescript_is_not_considered_and_a_stream_is_a_video(library: mmsearch.Library, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "main.ts").write_text(SOURCE)
    (folder / "module.mts").write_text("\ufeff" + SOURCE)
    (folder / "latin.ts").write_bytes(SOURCE.encode() + "// naïve\n".encode("latin-1"))
    film = write(folder / "film.ts", [Scene(RED, 2)])
    (folder / "cut.ts").write_bytes(film.read_bytes()[:100])
    (folder / "empty.ts").touch()
    assert film.read_bytes()[0] == film.read_bytes()[188] == 0x47
    report = library.index(folder)
    assert (report.added, library.status().files["video"]) == (1, 1)
    assert sorted(Path(one.path).name for one in report.skipped) == ["cut.ts", "empty.ts"]
    assert [one.path for one in library.index(folder / "main.ts").skipped] == [str(folder / "main.ts")]

    film.write_text(SOURCE)  # what was a video and is a program leaves the index
    report = library.index(folder)
    assert (report.removed, report.skipped, report.skipped_before) == (1, (), 2)


@pytest.mark.parametrize(
    ("name", "head", "script"),
    [
        ("a.ts", b"let a = 1\n", True),
        ("A.MTS", b"\xef\xbb\xbfG", True),
        ("a.ts", b"<!DOCTYPE TS>", True),
        ("a.mp4", b"let a = 1\n", False),
        ("a.m2ts", b"let a = 1\n", False),
        ("a.ts", b"", False),
        ("a.ts", b"G@\x11\x10" + b"G" * 184, False),
        ("a.ts", b"damaged \x00\x01", False),
    ],
)
def test_by_its_first_bytes(name: str, head: bytes, script: bool) -> None:
    assert is_script(name, head) == script
