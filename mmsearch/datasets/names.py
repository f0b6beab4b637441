"""Pictures of single things: a table ``labels.tsv`` with columns ``image`` and ``label``, no captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mmsearch.datasets.folder import columns, table_rows
from mmsearch.datasets.model import Problem
from mmsearch.datasets.rows import Finder, Format, Row, first_line

LABEL = ("label",)

NAMED = ("{}", "a {}", "a photo of a {}", "a close-up of a {}", "a picture of one {}", "there is a {}")
"""What is said of a picture of which only the name of the thing in it is known."""


def recognises(path: Path, head: str) -> bool:
    return path.suffix.lower() in (".tsv", ".csv") and columns(first_line(head), LABEL) is not None


def rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    """Each picture, described in the words of ``NAMED``: ``tench`` gives "tench", "a tench" and so on."""
    for row in table_rows(path, find, LABEL):
        if isinstance(row, Row):
            label = str(row.captions[0]).strip()
            row = replace(row, captions=[phrase.format(label) for phrase in NAMED] if label else [])
        yield row


FORMAT = Format("labels.tsv (image, label) with pictures: each is described by its label", recognises, rows)
