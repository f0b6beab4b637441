"""Conceptual Captions (Sharma et al. 2018): lines of ``caption<TAB>url``, and a folder of what was downloaded."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mmsearch.datasets.folder import CAPTION
from mmsearch.datasets.model import KIND_OF, Problem
from mmsearch.datasets.rows import Finder, Format, Row, cells, first_line, split_in_name

ENOUGH = 100
"""A way of naming that explains so many pictures is the one that was used."""


def recognises(path: Path, head: str) -> bool:
    """By two columns, one of addresses, or with a header that says so, or the second of names of pictures."""
    from indexer.decode import IMAGE_EXTENSIONS

    parts = first_line(head).split("\t")
    if len(parts) != 2 or path.suffix.lower() not in (".tsv", ".csv", ".txt"):
        return False
    if _is_header(parts) or any(_is_address(part) for part in parts):
        return True
    return parts[1].strip().lower().rpartition(".")[2] in IMAGE_EXTENSIONS


def rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    """Each line whose picture is there, under the name that its downloader gave it; see ``NAMINGS``.

    The file is read line by line. Where the second column is a path instead of an address, it is the picture's.
    """
    split = split_in_name(path.stem)
    downloaded = _stems(Path(find.roots[0]), split)
    naming = _naming(path, downloaded)
    for line in _lines(path):
        if isinstance(line, Problem):
            yield line
            continue
        place, number, caption, url = line
        if not _is_address(url):
            found, name = find(url), url
        else:
            found = downloaded.get(naming(number, url))
            name = os.path.relpath(found, find.roots[0]) if found else url
        yield Row(name, [caption], place, found, split)


NAMINGS: tuple[Callable[[int, str], str], ...] = (
    lambda number, url: f"{number:09d}",  # img2dataset, and with shards of another size the next two
    lambda number, url: f"{number:08d}",
    lambda number, url: f"{number:010d}",
    lambda number, url: f"{number}_{_crc(url)}",  # the script that came with ViLBERT: training/12_3735928559
    lambda number, url: str(_crc(url)),  # its variant in VOLTA
    lambda number, url: str(number),  # open_clip's: train/12/12.jpg
    lambda number, url: hashlib.md5(url.encode(errors="surrogateescape"), usedforsecurity=False).hexdigest(),
    lambda number, url: hashlib.sha1(url.encode(errors="surrogateescape"), usedforsecurity=False).hexdigest(),
    lambda number, url: hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest(),
)
"""What downloaders call the picture of the row with this number (from 0, a header not counted) and address.

The row 12 is ``000000012.jpg`` or ``12_<crc32 of the address>``, without extension, and so on.
"""


def _crc(url: str) -> int:
    return zlib.crc32(url.encode(errors="surrogateescape"))


def _naming(path: Path, downloaded: dict[str, str]) -> Callable[[int, str], str]:
    """The way of naming that explains most of the pictures.

    One for the whole file: row numbers and checksums are both just numbers, and would be taken for each other.
    """
    hits = [0] * len(NAMINGS)
    for line in _lines(path) if downloaded else ():
        if isinstance(line, Problem) or not _is_address(line[3]):
            continue
        for which, naming in enumerate(NAMINGS):
            hits[which] += naming(line[1], line[3]) in downloaded
        if max(hits) >= ENOUGH:
            break
    return NAMINGS[hits.index(max(hits))]


def _stems(root: Path, split: str | None) -> dict[str, str]:
    """Every file below ``root`` by its name without extension.

    Folders directly below that are named after another split are passed over: both have a row 12.
    """
    found: dict[str, str] = {}
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.samefile(here, root) and split is not None:
            kind = KIND_OF[split]
            folders[:] = [name for name in folders if KIND_OF.get(split_in_name(name) or split) == kind]
        for file in sorted(files):
            stem, extension = os.path.splitext(file)
            if extension.lower() not in (".txt", ".json", ".tsv", ".csv", ".parquet", ".tar"):
                found.setdefault(stem, os.path.join(here, file))
    return found


def _is_header(parts: list[str]) -> bool:
    """Also the other way round, as the lines of Conceptual 12M are."""
    names = {part.strip().lower() for part in parts}
    return bool(names & set(CAPTION)) and bool(names & {"url", "image_url"})


def _is_address(cell: str) -> bool:
    return cell.lstrip().lower().startswith(("http://", "https://"))


def _lines(path: Path) -> Iterator[tuple[str, int, str, str] | Problem]:
    """Place, number of the row, caption and address or path."""
    number = -1
    for position, row in enumerate(cells(path, "\t")):
        if not isinstance(row, Problem) and position == 0 and len(row[1]) == 2 and _is_header(row[1]):
            continue
        number += 1
        if isinstance(row, Problem):
            yield row
        elif len(row[1]) != 2:
            yield Problem(row[0], f"expected caption<TAB>url, found {len(row[1])} cells")
        else:
            place, (first, second) = row
            swapped = _is_address(first) and not _is_address(second)
            yield place, number, second if swapped else first, (first if swapped else second).strip()


FORMAT = Format("Conceptual Captions (caption<TAB>url or path) with a folder of downloaded pictures", recognises, rows)
