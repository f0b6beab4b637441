"""Which picture a text is the caption of that stands in a file beside it, ``photo.jpg.txt`` or ``photo.txt``, or in a
row of ``captions.tsv``.

Such a text is a piece of *its* file, an ordinary text. Its picture is not stored but worked out from names when a hit
is shown: nothing has to be undone when either of the two files changes, moves or goes. No picture is opened for it.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from indexer.types import Asset, Span

_MAX_ROW = 1_000_000
"""The line of a table up to which it is read again for the picture of a row."""
_PARENTS = 2
"""Names in a table are relative to its folder, or to one of so many above it."""
_EXTENSIONS = ("jpg", "jpeg", "png", "heic", "webp", "avif", "tif", "tiff", "gif", "bmp", "heif", "jfif", "jpe", "dib")


def picture_of(asset: Asset, span: Span | None, known: Callable[[Sequence[str]], list[str]]) -> str | None:
    """The path of the picture that a passage is the caption of; None where it is not one.

    ``known`` says which of some paths are in the index. The name of a sidecar is that of its picture and ``.txt``, or
    that with the picture's extension left out. A row of a table belongs to the picture that one of its cells names, as
    long as the table is what it was when it was indexed.
    """
    stem, suffix = os.path.splitext(asset.path)
    candidates: list[str] = []
    if suffix.lower() == ".txt":
        if os.path.splitext(stem)[1][1:].lower() in _EXTENSIONS:
            candidates = [stem]
        else:
            candidates = [f"{stem}.{e}" for lower in _EXTENSIONS for e in (lower, lower.upper())]
    elif suffix.lower() in (".tsv", ".csv") and span is not None and span.first_line is not None:
        candidates = _named_in_row(asset, span.first_line)
    found = known(candidates) if candidates else []
    return found[0] if found else None


def _named_in_row(asset: Asset, line: int) -> list[str]:
    """Paths of the pictures that the row of a table may mean, the likelier before."""
    if line > _MAX_ROW:
        return []
    try:
        with Path(asset.path).open(encoding="utf-8-sig", errors="replace", newline="") as file:
            status = os.fstat(file.fileno())
            # A file that was stamped a moment before it was indexed has a nanosecond less in the catalogue.
            if status.st_size != asset.size or not 0 <= status.st_mtime_ns - asset.mtime_ns <= 1:
                return []
            row = next(islice(file, line - 1, line), "")
    except (OSError, ValueError):
        return []
    delimiter = (
        "\t" if asset.path.lower().endswith(".tsv") or "\t" in row else ";" if row.count(";") > row.count(",") else ","
    )
    cells = next(csv.reader(io.StringIO(row), delimiter=delimiter), [])
    names = [re.sub(r"#\d+$", "", cell.strip()) for cell in cells]  # Flickr8k numbers its captions
    names = [name for name in names if os.path.splitext(name)[1][1:].lower() in _EXTENSIONS and len(name) < 1000]
    folders = [os.path.dirname(asset.path)]
    for _ in range(_PARENTS):
        folders.append(os.path.dirname(folders[-1]))
    folders.insert(1, os.path.join(folders[0], "images"))
    return [os.path.normpath(os.path.join(folder, name)) for name in names for folder in folders]
