"""Pictures in folders: with a table of captions (tsv, csv, jsonl), or each with a text file of its own beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmsearch.datasets.model import KIND_OF, Problem
from mmsearch.datasets.rows import Finder, Format, Row, as_list, cells, first_line, json_lines, read_head

IMAGE = ("image", "file", "file_name", "filename", "filepath", "image_path", "path", "img")
CAPTION = ("caption", "captions", "text", "title", "sentence", "sentences")
SPLIT = ("split", "set")
DELIMITERS = "\t,;"


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table hold what, and what stands between them."""

    delimiter: str
    names: tuple[str, ...]
    image: str
    text: str
    split: str | None


def columns(header: str, texts: tuple[str, ...] = CAPTION) -> Columns | None:
    """The columns that a header line names, upper and lower case alike; None if it names no picture or no text."""
    for delimiter in DELIMITERS:
        names = tuple(name.strip().strip('"').lower() for name in header.split(delimiter))
        found = _choose(names, texts)
        if found:
            return Columns(delimiter, names, *found)
    return None


def _choose(names: tuple[str, ...], texts: tuple[str, ...] = CAPTION) -> tuple[str, str, str | None] | None:
    """The columns or keys of the picture, of the caption, and of the split if there is one."""
    image, text, split = (next((n for n in known if n in names), None) for known in (IMAGE, texts, SPLIT))
    return (image, text, split) if image and text else None


def recognises(path: Path, head: str) -> bool:
    if path.suffix.lower() in (".tsv", ".csv"):
        return columns(first_line(head)) is not None
    if path.suffix.lower() == ".jsonl":
        try:
            keys = json.loads(first_line(head))
        except ValueError:
            return False
        return isinstance(keys, dict) and _choose(tuple(keys)) is not None
    return False


def rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    """Each row of a table; one that is passed in by name is read whatever its header says."""
    if path.suffix.lower() == ".jsonl":
        return _json_rows(path, find)
    return table_rows(path, find, CAPTION)


def table_rows(path: Path, find: Finder, texts: tuple[str, ...]) -> Iterator[Row | Problem]:
    """The rows of a table with a header, their captions taken from the first column that is named in ``texts``."""
    layout = columns(first_line(read_head(path)), texts)
    if layout is None:
        yield Problem(f"{path.name}:1", f"no header with a column of pictures and one of: {', '.join(texts)}")
        return
    table = cells(path, layout.delimiter)
    next(table)
    for row in table:
        if isinstance(row, Problem):
            yield row
            continue
        place, values = row
        if len(values) != len(layout.names):
            yield Problem(place, f"{len(values)} cells, and the header has {len(layout.names)}")
            continue
        yield _row(place, dict(zip(layout.names, values, strict=True)), (layout.image, layout.text, layout.split), find)


def _json_rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    """Each line says for itself which keys it has."""
    for line in json_lines(path):
        if isinstance(line, Problem):
            yield line
            continue
        place, values = line
        keys = _choose(tuple(values))
        yield _row(place, values, keys, find) if keys else Problem(place, "no picture or no caption is named")


def _row(place: str, values: Mapping[str, object], keys: tuple[str, str, str | None], find: Finder) -> Row | Problem:
    image, text, split = keys
    name = values[image]
    if not isinstance(name, str) or not name.strip():
        return Problem(place, "no picture is named")
    name = name.strip()
    # A table that was made on Windows has backslashes between folders.
    found = find(name, name.replace("\\", "/")) if "\\" in name else find(name)
    of = values[split] if split else None
    return Row(name, as_list(values[text]), place, found, split=str(of).strip() or None if of is not None else None)


def sidecar_rows(folder: Path) -> Iterator[Row | Problem]:
    """Every picture below ``folder`` that has a text file of the same name: ``photo.jpg`` and ``photo.txt``.

    Each line of a ``.txt`` is a caption; a ``.json`` has them under ``caption``, as downloaders write it. A folder
    directly below, called ``train``, ``val`` or the like, is a split.
    """
    from indexer.decode import IMAGE_EXTENSIONS

    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(here, folder)
        top = Path(below).parts[0].lower() if below != "." else ""
        known = set(files)
        for file in sorted(files):
            stem, extension = os.path.splitext(file)
            if extension[1:].lower() not in IMAGE_EXTENSIONS:
                continue
            name = os.path.normpath(os.path.join(below, file))
            beside = next((stem + end for end in (".txt", ".json") if stem + end in known), None)
            if beside is None:
                yield Problem(name, "there is no text of the same name beside it")
                continue
            text = os.path.normpath(os.path.join(below, beside))
            captions = _sidecar(os.path.join(here, beside))
            if isinstance(captions, str):
                yield Problem(text, captions)
            else:
                yield Row(name, captions, text, os.path.join(here, file), top if top in KIND_OF else None)


def _sidecar(path: str) -> list[object] | str:
    """The captions in the file, or what is wrong with it."""
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    return captions_in(data, path.rpartition(".")[2])


def captions_in(data: bytes, extension: str) -> list[object] | str:
    """The captions in the content of a ``txt`` (one a line) or ``json`` file, or what is wrong with it.

    A JSON object says them under one of ``CAPTION``: a string or a list of them.
    """
    text = data.decode("utf-8-sig", errors="surrogateescape")
    if extension == "txt":
        return [*text.splitlines()]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        return f"not JSON: {exc}"
    key = next((key for key in CAPTION if key in value), None) if isinstance(value, dict) else None
    return as_list(value[key]) if key else f"none of {', '.join(CAPTION)} is in it"


FORMAT = Format(
    "pictures with a table of captions (tsv, csv, jsonl; image, caption, perhaps split), or a .txt beside each",
    recognises,
    rows,
)
