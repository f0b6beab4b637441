"""Localized Narratives (Pont-Tuset et al. 2020): JSON lines that tell at length what a picture shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmsearch.datasets.folder import IMAGE
from mmsearch.datasets.model import Problem
from mmsearch.datasets.rows import Finder, Format, Row, first_line, json_lines, split_in_name

FOLDERS = ("train", "validation", "val", "test", "train2017", "val2017", "flickr30k-images", "flickr30k_images")


def recognises(path: Path, head: str) -> bool:
    line = first_line(head)
    return (
        path.suffix.lower() == ".jsonl"
        and line.startswith("{")
        and '"image_id"' in line
        and '"caption"' in line
        and not any(f'"{key}"' in line for key in IMAGE)
    )


def rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    """Each narrative, line by line: the full files with mouse traces, and the short ones with captions only.

    A picture of Open Images, Flickr30k or ADE20k is ``<image_id>.jpg``, one of COCO has twelve digits.
    """
    named = split_in_name(path.stem)
    for line in json_lines(path):
        if isinstance(line, Problem):
            yield line
            continue
        place, values = line
        image = values.get("image_id")
        if not isinstance(image, (str, int)) or image == "":
            yield Problem(place, "no image_id")
            continue
        names = [f"{image}.jpg"]
        if str(image).isdecimal():
            names.append(f"{int(image):012d}.jpg")
        split = split_in_name(str(values.get("dataset_id", ""))) or named
        yield Row(str(image), [values.get("caption")], place, find(*names), split)


FORMAT = Format("Localized Narratives (jsonl: image_id, caption) of Open Images and others", recognises, rows, FOLDERS)
