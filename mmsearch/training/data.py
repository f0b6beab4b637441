"""A folder of captioned pictures: ``captions.tsv``, ``images/``, and a list of names for each split."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import UsageError


@dataclass(frozen=True, slots=True)
class Captioned:
    """The pictures of one split and what was said about each: ``captions[i]`` belongs to ``pictures[i]``."""

    pictures: list[Path]
    captions: list[list[str]]

    def flat(self) -> tuple[list[str], list[int]]:
        """All captions in a row, and for each the number of its picture."""
        texts = [caption for some in self.captions for caption in some]
        owner = [number for number, some in enumerate(self.captions) for _ in some]
        return texts, owner


def read_split(folder: Path, split: str) -> Captioned:
    """The split called ``split`` (``train``, ``dev`` or ``test``) of the data in ``folder``.

    ``captions.tsv`` has a line ``image<TAB>caption`` at its top and then one for each caption;
    ``<split>.txt`` names one picture of ``images/`` in each line.

    Raises:
        UsageError: a file is missing, or a picture of the split is missing or has no caption.
    """
    captions: dict[str, list[str]] = {}
    for row in csv.reader(_lines(folder / "captions.tsv")[1:], delimiter="\t", quoting=csv.QUOTE_NONE):
        if len(row) != 2:
            raise UsageError(f"{folder / 'captions.tsv'}: expected image<TAB>caption, found {row!r}")
        captions.setdefault(row[0], []).append(row[1])
    names = [name for name in (line.strip() for line in _lines(folder / f"{split}.txt")) if name]
    for name in names:
        if name not in captions:
            raise UsageError(f"{folder / f'{split}.txt'} names {name!r}, of which captions.tsv says nothing")
        if not (folder / "images" / name).is_file():
            raise UsageError(f"{folder / f'{split}.txt'} names {name!r}, which is not in {folder / 'images'}")
    if not names:
        raise UsageError(f"{folder / f'{split}.txt'} names no picture")
    return Captioned([folder / "images" / name for name in names], [captions[name] for name in names])


NAMED = ("{}", "a {}", "a photo of a {}", "a close-up of a {}", "a picture of one {}", "there is a {}")
"""What is said of a picture of which only the name of the thing in it is known."""


def read_names(folder: Path) -> Captioned:
    """Pictures of single things in ``folder``: ``labels.tsv`` (with columns ``image`` and ``label``) and ``images/``.

    Each is described in the words of ``NAMED``.

    Raises:
        UsageError: a file or a column is missing, or a picture that is named.
    """
    rows = list(csv.DictReader(_lines(folder / "labels.tsv"), delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or not {"image", "label"} <= rows[0].keys():
        raise UsageError(f"{folder / 'labels.tsv'} has no rows with the columns image and label")
    pictures = [folder / "images" / row["image"] for row in rows]
    for picture in pictures:
        if not picture.is_file():
            raise UsageError(f"{folder / 'labels.tsv'} names {picture.name!r}, which is not in {folder / 'images'}")
    return Captioned(pictures, [[phrase.format(row["label"]) for phrase in NAMED] for row in rows])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
