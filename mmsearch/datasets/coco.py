"""COCO captions: ``captions_val2017.json``, with its lists ``images`` and ``annotations`` (Chen et al. 2015)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mmsearch.datasets.model import Problem
from mmsearch.datasets.rows import Finder, Format, Row, entries, json_document, split_in_name

OTHERS = re.compile(r"instances_|person_keypoints_|panoptic_|stuff_|image_info_")
"""Files that lie in the same folder and look alike, but have no captions."""


def recognises(path: Path, head: str) -> bool:
    return (
        path.suffix.lower() == ".json"
        and head.startswith("{")
        and ('"annotations"' in head or ('"images"' in head and '"file_name"' in head))
        and not OTHERS.match(path.name)
    )


def rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    """Each annotation, in the order of the file, which is read into memory: 90 MB for train2017.

    Pictures are looked for under ``file_name`` alone and in the folder that the captions are named after:
    ``captions_val2017.json`` speaks of ``val2017/``.
    """
    document = json_document(path)
    files: dict[object, str] = {}
    for image in entries(document, "images", path):
        if isinstance(image, Problem):
            yield image
        elif not isinstance(image[1].get("file_name"), str) or "id" not in image[1]:
            yield Problem(image[0], "no id or no file_name")
        else:
            files[str(image[1]["id"])] = image[1]["file_name"]
    if not files:
        return
    split, folder = split_in_name(path.stem), path.stem.rpartition("_")[2]
    silent = dict(files)
    for annotation in entries(document, "annotations", path):
        if isinstance(annotation, Problem):
            yield annotation
            continue
        place, values = annotation
        name = files.get(str(values.get("image_id")))
        if name is None:
            yield Problem(place, f"image_id {values.get('image_id')!r} is not in the list of images")
            continue
        silent.pop(str(values["image_id"]), None)
        yield Row(name, [values.get("caption")], place, find(name, f"{folder}/{name}"), split)
    for name in silent.values():
        yield Problem(f"{path.name}: {name}", "the picture has no caption")


FORMAT = Format("COCO captions (captions_val2017.json) with val2017/ beside it", recognises, rows)
