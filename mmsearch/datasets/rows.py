"""What the readers of all formats share: the row they give, how text is read, where pictures are looked for."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mmsearch.datasets.model import KIND_OF, Box, Problem

HEAD = 1 << 20
"""Characters of a file by which its format is recognised."""

PICTURE_FOLDERS = ("", "images", "Images")
"""Where pictures lie beside the file that names them, or beside its folder, in any format."""


@dataclass(frozen=True, slots=True)
class Row:
    """One picture and something said about it. Rows that point to the same picture belong together."""

    name: str
    captions: Sequence[object]
    """What stands where captions are expected; whoever gathers the rows checks that it is text."""
    place: str
    path: str | None
    """The file that holds the picture; None if there is no such file."""
    split: str | None = None
    box: Box | None = None
    member: tuple[int, int] | None = None


class Finder:
    """Finds the files of pictures by name in some folders; lists each folder once instead of asking for each file."""

    def __init__(self, roots: Sequence[str | os.PathLike[str]], folders: Iterable[str] = PICTURE_FOLDERS) -> None:
        """``folders`` are below each of ``roots``; those that do not exist hold nothing."""
        self.roots = [os.fspath(root) for root in roots]
        self._folders = list(dict.fromkeys(os.path.join(root, folder) for root in self.roots for folder in folders))
        self._listed: dict[str, frozenset[str]] = {}
        self._last: tuple[tuple[str, ...], str | None] = ((), None)

    def __call__(self, *names: str) -> str | None:
        """The first file that has one of ``names``, which may have folders in them; None if there is none."""
        if names != self._last[0]:  # the captions of a picture mostly follow each other
            self._last = (names, self._find(names))
        return self._last[1]

    def _find(self, names: tuple[str, ...]) -> str | None:
        for name in names:
            for folder in self._folders:
                path = os.path.join(folder, name)
                head, tail = os.path.split(path)
                if head not in self._listed:
                    self._listed[head] = frozenset(files_in(head))
                if tail in self._listed[head]:
                    return path
        return None


def files_in(folder: str | os.PathLike[str]) -> Iterator[str]:
    """The names of the files in a folder; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    yield entry.name
    except OSError:
        return


@dataclass(frozen=True, slots=True)
class Format:
    """A format: how its files are told from others, and how they are read."""

    description: str
    recognises: Callable[[Path, str], bool]
    """Told the path and the first ``HEAD`` characters."""
    rows: Callable[[Path, Finder], Iterator[Row | Problem]]
    folders: tuple[str, ...] = ()
    """Names that folders of pictures have in this format, besides ``PICTURE_FOLDERS``."""


def open_text(path: Path) -> TextIO:
    """A UTF-8 file, with a byte order mark or without; bytes that are not UTF-8 come as lone surrogates.

    Lines end at line feeds only, so that other separators may stand inside of a caption.
    """
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def read_head(path: Path) -> str:
    """The first ``HEAD`` characters, without leading white space."""
    with open_text(path) as file:
        return file.read(HEAD).lstrip()


def first_line(head: str) -> str:
    return head.partition("\n")[0].rstrip("\r")


def is_text(value: str) -> bool:
    """False for what was not UTF-8 in its file, or is half a character of JSON."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def cells(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]] | Problem]:
    """The place and the cells of each row of a table, the header's too; empty lines are passed over.

    Between commas, cells may be quoted and span lines (RFC 4180). Between tabs a quote is a quote, since captions
    begin with them; only a cell that is quoted from its first to its last character is taken out of its quotes.
    """
    with open_text(path) as file:
        reader = csv.reader(
            file, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        )
        while True:
            place = f"{path.name}:{reader.line_num + 1}"
            try:
                row = next(reader, None)
            except csv.Error as exc:
                yield Problem(place, f"not a row of a table: {exc}")
                continue
            if row is None:
                return
            if row:
                yield place, [_unquoted(cell) for cell in row] if delimiter == "\t" else row


_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def _unquoted(cell: str) -> str:
    if cell.startswith('"') and _QUOTED.fullmatch(cell):
        return cell[1:-1].replace('""', '"')
    return cell


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]] | Problem]:
    """The place and the object of each line; empty lines are passed over."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path.name}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as exc:
                yield Problem(place, f"not JSON: {exc}")
                continue
            if isinstance(value, dict):
                yield place, value
            else:
                yield Problem(place, "not a JSON object")


def json_document(path: Path) -> Any | Problem:
    """The content of a JSON file, all of it in memory: the format cannot be read piece by piece."""
    with open_text(path) as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as exc:
            return Problem(path.name, f"not JSON: {exc}")


def entries(document: Any, key: str | None, path: Path) -> Iterator[tuple[str, dict[str, Any]] | Problem]:
    """The place and the object of each entry of the list ``document[key]``, or of ``document`` if there is no key."""
    if isinstance(document, Problem):
        yield document
        return
    found = document if key is None else document.get(key) if isinstance(document, dict) else None
    if not isinstance(found, list):
        yield Problem(path.name, "there is no list in it" if key is None else f"there is no list {key!r} in it")
        return
    label = key or "entry"
    for number, entry in enumerate(found):
        place = f"{path.name}:{label}[{number}]"
        if isinstance(entry, dict):
            yield place, entry
        else:
            yield Problem(place, "not a JSON object")


def as_list(value: object) -> list[object]:
    """One caption or several as a list; nothing for None."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def split_in_name(name: str) -> str | None:
    """The split that a file or folder is of, going by its name: ``captions_val2017.json`` gives ``val``."""
    return next((word for word in re.findall(r"[a-z]+", name.lower()) if word in KIND_OF), None)
