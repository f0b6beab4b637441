"""The splits of Karpathy and Fei-Fei (CVPR 2015): ``dataset_coco.json``, ``dataset_flickr8k.json`` and their like."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsearch.datasets.flickr import FOLDERS
from mmsearch.datasets.model import Problem
from mmsearch.datasets.rows import Finder, Format, Row, as_list, entries, json_document


def recognises(path: Path, head: str) -> bool:
    return path.suffix.lower() == ".json" and head.startswith("{") and '"sentences"' in head and '"filename"' in head


def rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    """Each picture with its sentences; the file is read into memory (144 MB for COCO).

    ``restval`` is the part of COCO's validation data that is trained on; it is added to ``train``, as in any format.
    """
    for entry in entries(json_document(path), "images", path):
        if isinstance(entry, Problem):
            yield entry
            continue
        place, image = entry
        file, folder = image.get("filename"), image.get("filepath")
        if not isinstance(file, str):
            yield Problem(place, "no filename")
            continue
        name = f"{folder}/{file}" if isinstance(folder, str) and folder else file
        split = image.get("split")
        yield Row(
            name,
            [_raw(sentence) for sentence in as_list(image.get("sentences"))],
            place,
            find(name, file),
            split if isinstance(split, str) else None,
        )


def _raw(sentence: Any) -> object:
    """What was written; copies that leave it out have the words of it."""
    if not isinstance(sentence, dict):
        return sentence
    tokens = sentence.get("tokens")
    return sentence["raw"] if "raw" in sentence else " ".join(map(str, tokens)) if isinstance(tokens, list) else None


FORMAT = Format("Karpathy's splits (dataset_coco.json, dataset_flickr8k.json)", recognises, rows, FOLDERS)
