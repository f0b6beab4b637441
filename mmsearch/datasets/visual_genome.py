"""Visual Genome's ``region_descriptions.json`` (Krishna et al. 2017): a phrase for each of many boxes in a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsearch.datasets.model import Problem
from mmsearch.datasets.rows import Finder, Format, Row, as_list, entries, json_document

FOLDERS = ("VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2")


def recognises(path: Path, head: str) -> bool:
    return path.suffix.lower() == ".json" and head.startswith("[") and '"regions"' in head and '"phrase"' in head


def rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    """Each region as a picture of its own, named ``1.jpg#1382``: picture 1, region 1382.

    The file is read into memory: all 5.4 million regions take several gigabytes.
    """
    for entry in entries(json_document(path), None, path):
        if isinstance(entry, Problem):
            yield entry
            continue
        place, values = entry
        regions = as_list(values.get("regions"))
        image = values.get("id", values.get("image_id"))
        if image is None:
            yield Problem(place, "no id of a picture")
            continue
        found = find(f"{image}.jpg")
        if found is None:
            yield Problem(place, f"there is no picture {f'{image}.jpg'!r}; its {len(regions)} regions are left out")
            continue
        for number, region in enumerate(regions):
            yield _region(region, f"{image}.jpg", f"{place}.regions[{number}]", found)


def _region(region: Any, image: str, place: str, path: str) -> Row | Problem:
    try:
        left, top, width, height = (int(region[side]) for side in ("x", "y", "width", "height"))
        number = region["region_id"] if "region_id" in region else region["id"]  # version 1.0 says id
        phrase = region["phrase"]
    except (KeyError, TypeError, ValueError) as exc:
        return Problem(place, f"not a region with x, y, width, height, region_id and phrase: {exc!r}")
    if width <= 0 or height <= 0:
        return Problem(place, f"a region of {width} x {height} pixels")
    return Row(f"{image}#{number}", [phrase], place, path, box=(left, top, width, height))


FORMAT = Format("Visual Genome's region_descriptions.json with VG_100K/ and VG_100K_2/", recognises, rows, FOLDERS)
