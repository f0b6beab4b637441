"""The files that came with Flickr8k and Flickr30k: ``photo.jpg#0<TAB>caption``, and what Kaggle made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mmsearch.datasets.model import Problem
from mmsearch.datasets.rows import Finder, Format, Row, cells, first_line, open_text

TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")
PIPED = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment")
KAGGLE = "image,caption"

FOLDERS = (
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "Flicker8k_Dataset/Flicker8k_Dataset",
    "flickr30k-images",
    "flickr30k_images",
)


def recognises(path: Path, head: str) -> bool:
    line = first_line(head)
    if TOKEN.fullmatch(line):
        return "lemma" not in path.name  # Flickr8k.lemma.token.txt says the same in base forms, beside the real one
    return bool(PIPED.fullmatch(line.strip())) or (path.suffix.lower() == ".txt" and line.lower() == KAGGLE)


def rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    """Each caption of ``Flickr8k.token.txt``, ``results_20130124.token``, ``captions.txt`` or ``results.csv``.

    ======================================  =========================================
    ``photo.jpg#0<TAB>A dog runs .``        as published, both datasets
    ``photo.jpg,"A dog , it seems ."``      Kaggle's Flickr8k, under ``image,caption``
    ``photo.jpg| 0| A dog runs .``          Kaggle's Flickr30k, under a header too
    ======================================  =========================================
    """
    with open_text(path) as file:
        header = file.readline().strip()
    if header.lower() == KAGGLE:
        yield from _kaggle_rows(path, find)
    else:
        yield from _line_rows(path, find, piped=bool(PIPED.fullmatch(header)))


def _line_rows(path: Path, find: Finder, *, piped: bool) -> Iterator[Row | Problem]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\r\n")
            if not line.strip() or (piped and number == 1):
                continue
            place = f"{path.name}:{number}"
            found = [part.strip() for part in line.split("|", 2)] if piped else TOKEN.fullmatch(line)
            if isinstance(found, list) and len(found) == 3:
                name, caption = found[0], found[2]
            elif isinstance(found, re.Match):
                name, caption = found[1], found[2]
            else:
                form = "image| number| caption" if piped else "image#number<TAB>caption"
                yield Problem(place, f"expected {form}")
                continue
            yield Row(name, [caption], place, find(name))


def _kaggle_rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    table = cells(path, ",")
    next(table)
    for row in table:
        if isinstance(row, Problem):
            yield row
        elif len(row[1]) < 2:
            yield Problem(row[0], "expected image,caption")
        else:
            place, (name, *caption) = row
            yield Row(name, [",".join(caption)], place, find(name))  # some copies leave commas unquoted


FORMAT = Format(
    "Flickr8k.token.txt, results_20130124.token (photo.jpg#0<TAB>caption), Kaggle's captions.txt and results.csv",
    recognises,
    rows,
    FOLDERS,
)
