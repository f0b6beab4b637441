"""Discovery: which files under some folders are pictures or texts, at the price of one stat a file.

Nothing here opens a file, apart from the ``.mmsearchignore`` of a folder, and nothing here knows the catalogue.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from indexer.decode import modality_of
from indexer.errors import UsageError
from indexer.types import Modality, Skipped

IGNORE_FILE = ".mmsearchignore"
_JUNK = frozenset({"#recycle", "$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX", "lost+found"})
"""Folders that file systems and file servers make for themselves; hidden ones need no naming."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file worth opening. ``path`` is absolute, bytes that are not UTF-8 kept as surrogate escapes."""

    path: str
    size: int
    mtime_ns: int
    modality: Modality


class _Rules(NamedTuple):
    """Patterns in gitignore's syntax, and the folder that they are relative to."""

    base: str
    spec: GitIgnoreSpec


class _Folder(NamedTuple):
    """A folder still to be visited; ``rules`` from the innermost ignore file outwards, behind ``--exclude``."""

    path: str
    rules: tuple[_Rules, ...]


class Walk:
    """The pictures and texts below ``roots``, which are folders or single files. Iterate it once.

    Absolute paths, the links in a root's own name kept; within a folder the files by name (bytes), then its folders.
    What is not there: hidden names and the folders that machines make (unless named as a root); what ``exclude`` or a
    ``.mmsearchignore`` names, both as gitignore(5) has it, relative to the root or to the folder of the ignore file,
    ``exclude`` having the last word; the folders ``avoid``, never entered.

    Links to files are followed. A folder is visited once, under its real path if that is below a root, else under the
    link that comes first: so loops end, and a link more or less changes no path.

    After the iteration:

    - ``skipped``: what looked like a file to index and is not, each with its reason.
    - ``blind``: folders and files that could not be looked into. Nothing that was known at or below such a path may be
      held to be gone.

    Raises UsageError at once: no such root, or a pattern that is none.
    """

    def __init__(
        self, roots: Sequence[str | Path], *, exclude: Sequence[str] = (), avoid: Sequence[str | Path] = ()
    ) -> None:
        self.skipped: list[Skipped] = []
        self.blind: list[str] = []
        self._visited: set[tuple[int, int]] = set()  # (st_dev, st_ino) of folders
        self._links: deque[_Folder] = deque()  # to folders, followed when every real folder has been visited
        self._roots = sorted(map(_absolute, roots), key=lambda root: os.path.realpath(root) != root)
        self._exclude, wrong = _spec(exclude)
        if wrong:
            raise UsageError(f"--exclude {exclude[wrong[0]]!r} is not a pattern as gitignore has them")
        for folder in avoid:
            with contextlib.suppress(OSError):  # an index that has not been created yet
                self._visited.add(_identity(os.stat(folder)))

    def __iter__(self) -> Iterator[Found]:
        files: set[str] = set()
        folders: list[str] = []
        for root in self._roots:
            try:
                status = os.stat(root)
            except OSError as exc:
                self._cannot_open(root, exc)
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(root)
            elif root not in files:
                files.add(root)
                yield from self._named(root, status)

        pending = [_Folder(root, (_Rules(root, self._exclude),)) for root in reversed(folders)]
        while pending or self._links:
            folder = pending.pop() if pending else self._links.popleft()
            subfolders: list[_Folder] = []
            for found in self._visit(folder, subfolders):
                if found.path not in files:
                    yield found
            pending.extend(reversed(subfolders))

    def _named(self, root: str, status: os.stat_result) -> Iterator[Found]:
        """A root that is a file."""
        if modality_of(root) is None:
            self._skip(root, "neither a picture nor a text by its name")
        elif not self._ignored(root, (_Rules(os.path.dirname(root), self._exclude),)):
            yield from self._file(root, status)

    def _visit(self, folder: _Folder, subfolders: list[_Folder]) -> Iterator[Found]:
        """The files of one folder; the folders below it go into ``subfolders``, those behind links aside."""
        try:
            identity = _identity(os.stat(folder.path))
            if identity in self._visited:
                return
            self._visited.add(identity)
            rules = self._own_rules(folder.path) + folder.rules
            with os.scandir(folder.path) as scan:
                entries = sorted(scan, key=lambda entry: os.fsencode(entry.name))
        except OSError as exc:
            self._cannot_open(folder.path, exc)
            return
        ruled = len(rules) > 1 or len(self._exclude) > 0
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                linked = entry.is_symlink()
                is_folder = entry.is_dir()
            except OSError as exc:  # only links raise: to themselves, through a file, or through a closed folder
                self._broken(entry, exc)
                continue
            if is_folder:
                if entry.name not in _JUNK and not (ruled and self._ignored(entry.path + os.sep, rules)):
                    (self._links if linked else subfolders).append(_Folder(entry.path, rules))
            elif modality_of(entry.name) and not (ruled and self._ignored(entry.path, rules)):
                try:
                    status = entry.stat()
                except OSError as exc:
                    self._broken(entry, exc)
                else:
                    yield from self._file(entry.path, status)

    def _broken(self, entry: os.DirEntry[str], exc: OSError) -> None:
        """What a folder lists and stat does not give: a link to nowhere, a file removed a moment ago, a fault."""
        if entry.is_symlink() and exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            if modality_of(entry.name):
                self._skip(entry.path, "a link that leads nowhere")
        elif exc.errno == errno.ENOENT:
            self.blind.append(entry.path)  # or its disk was: the next walk will tell
        else:
            self._cannot_open(entry.path, exc)

    def _file(self, path: str, status: os.stat_result) -> Iterator[Found]:
        modality = modality_of(path)
        if not stat.S_ISREG(status.st_mode):
            self._skip(path, "not a regular file")  # opening a FIFO would wait for ever
        elif modality:
            yield Found(path, status.st_size, status.st_mtime_ns, modality)

    def _own_rules(self, folder: str) -> tuple[_Rules, ...]:
        """The folder's ignore file. If it cannot be read, neither may the folder be: OSError."""
        path = os.path.join(folder, IGNORE_FILE)
        try:
            content = Path(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return ()
        lines = os.fsdecode(content.removeprefix(codecs.BOM_UTF8)).split("\n")
        spec, wrong = _spec([line.removesuffix("\r") for line in lines])
        for number in wrong:
            self._skip(path, f"line {number + 1} is not a pattern: {lines[number]!r}")
        return (_Rules(folder, spec),) if len(spec) else ()

    def _ignored(self, path: str, rules: tuple[_Rules, ...]) -> bool:
        """Whether ``path``, a folder's ending in the separator, is left out: the innermost file that names it decides.

        ``exclude``, the last of ``rules``, comes before them all.
        """
        *files, exclude = rules
        for base, spec in (exclude, *files):
            # Patterns know no newline, and the library's expressions do not match across one.
            relative = path[len(base) :].lstrip(os.sep).replace("\n", "\0")
            verdict = spec.check_file(relative).include
            if verdict is not None:
                return verdict
        return False

    def _cannot_open(self, path: str, exc: OSError) -> None:
        self.blind.append(path)
        self._skip(path, f"cannot be opened: {exc.strerror}")

    def _skip(self, path: str, reason: str) -> None:
        self.skipped.append(Skipped(path, reason))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _spec(lines: Sequence[str]) -> tuple[GitIgnoreSpec, list[int]]:
    """The patterns among ``lines``, and the positions of those that are none."""
    patterns: list[str] = []
    wrong: list[int] = []
    for number, line in enumerate(lines):
        try:
            GitIgnoreSpec.from_lines([line])
        except (ValueError, re.error):
            wrong.append(number)
        else:
            patterns.append(line)
    return GitIgnoreSpec.from_lines(patterns), wrong


def _absolute(root: str | Path) -> str:
    try:
        path = os.fspath(root)
        if not path:
            raise FileNotFoundError
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise UsageError(f"there is no file or folder {str(root)!r}") from None
    except OSError:
        pass  # it may well be there: said, and counted as blind, when it is visited
    return os.path.abspath(path)
