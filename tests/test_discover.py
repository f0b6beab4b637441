"""Discovery against real trees: what is found, what is left out, and what may not be held to be gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.discover import Found, Walk
from indexer.errors import UsageError
from indexer.types import Modality, Skipped

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file names and links")


def plant(root: Path, *names: str) -> None:
    """Files with a byte of content; a name that ends in / is an empty folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")


def found(walk: Walk, root: Path) -> list[str]:
    return [os.path.relpath(file.path, root) for file in walk]


def test_a_file_is_found_with_its_size_its_time_and_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.JPG").write_bytes(b"12345")
    os.utime(tmp_path / "a.JPG", ns=(1, 1_600_000_000_123_456_789))
    (tmp_path / "notes.md").write_bytes(b"1")
    os.utime(tmp_path / "notes.md", ns=(1, 17))
    assert list(Walk([tmp_path])) == [
        Found(str(tmp_path / "a.JPG"), 5, 1_600_000_000_123_456_789, Modality.IMAGE),
        Found(str(tmp_path / "notes.md"), 1, 17, Modality.TEXT),
    ]


def test_the_order_is_by_bytes_files_before_folders(tmp_path: Path) -> None:
    plant(tmp_path, "b/1.png", "b/a/2.png", "z.png", "Z.png", "é.png", "a/3.png", "10.png", "9.png")
    assert found(Walk([tmp_path]), tmp_path) == [
        "10.png", "9.png", "Z.png", "z.png", "é.png", "a/3.png", "b/1.png", "b/a/2.png",
    ]  # fmt: skip


def test_hidden_junk_and_foreign_files_are_left_out_in_silence(tmp_path: Path) -> None:
    plant(
        tmp_path, "kept.png", ".hidden.png", ".cache/a.png", "@eaDir/a.png", "__MACOSX/a.png", "$RECYCLE.BIN/a.png",
        "Thumbs.db", "film.psd", "png", "report.odt", "lost+found/x.jpg",
    )  # fmt: skip
    walk = Walk([tmp_path])
    assert found(walk, tmp_path) == ["kept.png"]
    assert (walk.skipped, walk.blind) == ([], [])


def test_a_hidden_root_is_walked_because_it_was_named(tmp_path: Path) -> None:
    plant(tmp_path, ".private/a.png", ".private/.deeper/b.png")
    assert found(Walk([tmp_path / ".private"]), tmp_path) == [".private/a.png"]


def test_roots_may_be_files_may_overlap_and_come_out_once(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png", "a/b/2.png", "c.txt")
    roots = [tmp_path / "a/b/2.png", tmp_path / "a/b", tmp_path, tmp_path / "a", tmp_path / "c.txt"]
    names = found(Walk(roots), tmp_path)
    assert sorted(names) == ["a/1.png", "a/b/2.png", "c.txt"]


def test_a_relative_root_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "a/1.png")
    monkeypatch.chdir(tmp_path / "a")
    assert [file.path for file in Walk(["../a", "1.png"])] == [str(tmp_path / "a/1.png")]


def test_a_named_file_that_is_of_no_known_kind_is_said(tmp_path: Path) -> None:
    plant(tmp_path, "drawing.psd")
    walk = Walk([tmp_path / "drawing.psd"])
    assert list(walk) == []
    assert walk.skipped == [Skipped(str(tmp_path / "drawing.psd"), "neither a picture nor a text by its name")]


@pytest.mark.parametrize("missing", ["nowhere", "file.png/below", "", "nul\0"])
def test_a_root_that_is_not_there_is_named(tmp_path: Path, missing: str) -> None:
    plant(tmp_path, "file.png")
    root = f"{tmp_path}/{missing}" if missing else ""
    with pytest.raises(UsageError) as caught:
        Walk([tmp_path, root])
    assert repr(root) in str(caught.value)


def test_a_root_that_vanishes_before_the_walk_is_blind(tmp_path: Path) -> None:
    plant(tmp_path, "disk/a.png")
    walk = Walk([tmp_path / "disk"])
    shutil.rmtree(tmp_path / "disk")
    assert list(walk) == []
    assert walk.blind == [str(tmp_path / "disk")]


def test_the_index_itself_is_never_entered(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "index/b.png", "index/c/d.png")
    (tmp_path / "way-in").symlink_to(tmp_path / "index", target_is_directory=True)
    assert found(Walk([tmp_path], avoid=[tmp_path / "index", tmp_path / "not-yet"]), tmp_path) == ["a.png"]


# --- names


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
def test_names_with_newlines_emoji_and_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    names = [b"a\nb.png", "🐈.png".encode(), b"caf\xe9.png", b"new\nline/\xff\xfe.txt"]
    (tmp_path / "new\nline").mkdir()
    for name in names:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    paths = [file.path for file in Walk([tmp_path])]
    assert [os.fsencode(os.path.relpath(path, tmp_path)) for path in paths] == sorted(names[:3]) + names[3:]
    assert all(os.path.exists(path) for path in paths)


@posix
def test_patterns_reach_across_a_newline_in_a_name(tmp_path: Path) -> None:
    plant(tmp_path, "a\nb/x.png", "a\nb/y.jpg", "c.png\n/z.jpg", "c.png\n/z.png")
    assert found(Walk([tmp_path], exclude=["*.png"]), tmp_path) == ["a\nb/y.jpg", "c.png\n/z.jpg"]


# --- links


@posix
def test_links_to_files_are_followed_and_dangling_ones_are_said_if_they_look_like_pictures(tmp_path: Path) -> None:
    plant(tmp_path, "real.png")
    (tmp_path / "real.png").write_bytes(b"123")
    (tmp_path / "link.jpg").symlink_to("real.png")
    (tmp_path / "dangling.jpg").symlink_to("nothing.jpg")
    (tmp_path / "through.jpg").symlink_to("real.png/file.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "self").symlink_to("self")
    walk = Walk([tmp_path])
    assert [(os.path.basename(file.path), file.size) for file in walk] == [("link.jpg", 3), ("real.png", 3)]
    nowhere = [str(tmp_path / name) for name in ("dangling.jpg", "self.jpg", "through.jpg")]
    assert walk.skipped == [Skipped(path, "a link that leads nowhere") for path in nowhere]
    assert walk.blind == []


@posix
def test_a_real_folder_wins_over_the_links_to_it_and_loops_end(tmp_path: Path) -> None:
    plant(tmp_path, "photos/m/cat.png", "photos/m/deep/dog.png")
    (tmp_path / "photos/a-link").symlink_to("m")
    (tmp_path / "photos/m/up").symlink_to("..")
    (tmp_path / "photos/m/deep/self").symlink_to(".")
    before = found(Walk([tmp_path / "photos"]), tmp_path)
    assert before == ["photos/m/cat.png", "photos/m/deep/dog.png"]


@posix
def test_folders_behind_links_are_visited_once_under_the_first_link(tmp_path: Path) -> None:
    plant(tmp_path, "outside/x.png", "outside/sub/y.png", "root/own.png")
    (tmp_path / "root/2-link").symlink_to(tmp_path / "outside")
    (tmp_path / "root/1-link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/sub/back").symlink_to(tmp_path / "root")
    assert found(Walk([tmp_path / "root"]), tmp_path) == ["root/own.png", "root/1-link/x.png", "root/1-link/sub/y.png"]


@posix
def test_a_link_as_root_keeps_its_name_but_a_real_root_wins(tmp_path: Path) -> None:
    plant(tmp_path, "real/x.png")
    (tmp_path / "alias").symlink_to("real")
    assert found(Walk([tmp_path / "alias"]), tmp_path) == ["alias/x.png"]
    assert found(Walk([tmp_path / "alias", tmp_path / "real"]), tmp_path) == ["real/x.png"]


# --- patterns


def test_exclude_is_gitignore_relative_to_the_root(tmp_path: Path) -> None:
    plant(tmp_path, "raw/a.png", "b/raw/c.png", "b/d.png", "b/keep.gif", "e.gif")
    assert found(Walk([tmp_path], exclude=["raw/"]), tmp_path) == ["e.gif", "b/d.png", "b/keep.gif"]
    assert found(Walk([tmp_path], exclude=["/raw"]), tmp_path) == ["e.gif", "b/d.png", "b/keep.gif", "b/raw/c.png"]
    assert found(Walk([tmp_path], exclude=["*.gif", "!keep.gif", "raw"]), tmp_path) == ["b/d.png", "b/keep.gif"]
    assert found(Walk([tmp_path], exclude=["b/**/c.png", "raw/a.*"]), tmp_path) == ["e.gif", "b/d.png", "b/keep.gif"]
    assert found(Walk([tmp_path / "e.gif"], exclude=["*.gif"]), tmp_path) == []


def test_ignore_files_apply_to_their_folder_and_the_inner_one_decides(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "a.gif", "in/b.png", "in/b.gif", "in/deep/c.png", "in/deep/c.gif")
    plant(tmp_path, "gone/d.gif", "gone/in/e.gif")
    (tmp_path / ".mmsearchignore").write_bytes(b"\xef\xbb\xbf# comment\r\n*.png\r\n\r\ngone/\r\n")
    (tmp_path / "in/.mmsearchignore").write_text("!*.png\n/b.gif\n")
    (tmp_path / "in/deep/.mmsearchignore").write_text("c.png\n")
    (tmp_path / "gone/.mmsearchignore").write_text("!*\n")  # never read: as in git, a folder left out is not entered
    walk = Walk([tmp_path])
    assert found(walk, tmp_path) == ["a.gif", "in/b.png", "in/deep/c.gif"]
    assert walk.skipped == []
    assert found(Walk([tmp_path], exclude=["!a.png", "b.png"]), tmp_path) == ["a.gif", "a.png", "in/deep/c.gif"]


def test_ignore_files_agree_with_git(tmp_path: Path) -> None:
    """The plain twin is git itself: the same tree, the same patterns in .gitignore."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    names = ("1.png", "2.png", "note.txt", "[1].gif")
    plant(tmp_path, *(folder + name for folder in ("", "x/", "x/y/", "z/x/", "docs/a/b/") for name in names))
    rules = {"": "2.png\n!/2.png\ndocs/**/note.txt\n\\[1].gif\n", "x/": "y/*\n!y/2.png\nnote.tx?\n", "z/": "/x\n"}
    for folder, lines in rules.items():
        for name in (".gitignore", ".mmsearchignore"):
            (tmp_path / folder / name).write_text(lines)
    subprocess.run([git, "init", "-q"], cwd=tmp_path, check=True)
    listed = subprocess.run(
        [git, "-c", "core.excludesFile=", "ls-files", "-z", "--others", "--exclude-standard"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    wanted = sorted(name for name in listed if name and not name.endswith("ignore"))
    assert sorted(found(Walk([tmp_path]), tmp_path)) == wanted
    assert "x/1.png" in wanted and "x/2.png" not in wanted  # the twin says something


def test_patterns_that_are_none_are_said(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png")
    with pytest.raises(UsageError, match=r"'\[z-a\]'"):
        Walk([tmp_path], exclude=["a.png", "[z-a]"])
    (tmp_path / ".mmsearchignore").write_text("a.png\n!\n")
    walk = Walk([tmp_path])
    assert found(walk, tmp_path) == ["b.png"]
    assert walk.skipped == [Skipped(str(tmp_path / ".mmsearchignore"), "line 2 is not a pattern: '!'")]


# --- what cannot be looked into


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder, and a user for whom permissions count: tests may run as root."""
    with tempfile.TemporaryDirectory() as folder:
        as_root = os.geteuid() == 0
        if as_root:
            os.chmod(folder, 0o777)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if as_root:
                os.seteuid(0)
            for path in Path(folder).rglob("*"):
                if path.is_dir():
                    path.chmod(0o700)


@posix
def test_a_closed_folder_is_skipped_and_blind_and_the_rest_goes_on() -> None:
    with unprivileged() as root:
        plant(root, "a/1.png", "closed/2.png", "z/3.png", "ruled/4.png", "ruled/.mmsearchignore")
        (root / "peek.png").symlink_to("closed/2.png")
        (root / "closed").chmod(0)
        (root / "ruled/.mmsearchignore").chmod(0)
        walk = Walk([root])
        assert found(walk, root) == ["a/1.png", "z/3.png"]
    assert walk.blind == [str(root / name) for name in ("peek.png", "closed", "ruled")]
    assert walk.skipped == [Skipped(path, "cannot be opened: Permission denied") for path in walk.blind]


@posix
def test_a_path_longer_than_the_system_allows_is_blind(tmp_path: Path) -> None:
    name = "d" * 200
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(30):
            os.mkdir(name)
            os.chdir(name)
    finally:
        os.chdir(here)
    plant(tmp_path, "z.png")
    walk = Walk([tmp_path])
    names = found(walk, tmp_path)
    shutil.rmtree(tmp_path / name)
    assert names == ["z.png"]
    assert [skipped.reason for skipped in walk.skipped] == ["cannot be opened: File name too long"]
    assert walk.blind == [walk.skipped[0].path]


@posix
def test_pipes_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    plant(tmp_path, "a.png")
    for root, names in ((tmp_path, ["a.png"]), (tmp_path / "pipe.png", [])):
        walk = Walk([root])
        assert found(walk, tmp_path) == names
        assert walk.skipped == [Skipped(str(tmp_path / "pipe.png"), "not a regular file")]


def test_a_file_that_vanishes_between_the_listing_and_the_stat_is_blind(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png", "c/d.png")
    walk = Walk([tmp_path])
    steps = iter(walk)
    assert next(steps).path == str(tmp_path / "a.png")
    (tmp_path / "b.png").unlink()
    shutil.rmtree(tmp_path / "c")
    assert list(steps) == []
    assert walk.blind == [str(tmp_path / "b.png"), str(tmp_path / "c")]


def test_the_walk_finds_what_a_plain_one_finds_and_is_quick(tmp_path: Path) -> None:
    for folder in range(50):
        plant(tmp_path, *(f"{folder % 7}/{folder}/{name}.{'jpg' if name % 3 else 'raw'}" for name in range(60)))
    begin = time.perf_counter()
    names = found(Walk([tmp_path]), tmp_path)
    seconds = time.perf_counter() - begin
    plain = [os.path.relpath(path, tmp_path) for path in tmp_path.rglob("*.jpg") if stat.S_ISREG(path.stat().st_mode)]
    assert sorted(names) == sorted(plain) and len(plain) == 2000
    assert seconds < 1.0
