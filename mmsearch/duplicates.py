"""Duplicates: the files of an index that are the same or nearly so, in groups. Nothing is deleted.

same bytes ─► of each content one file ─► same picture ─► of each picture one file ─► shots of one thing, minutes apart
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from indexer.index import Snapshot
from indexer.types import Modality
from mmsearch.calibration import Calibration, line_for
from mmsearch.copies import File, alike_pairs, content

MINUTES = 10
"""Between the first and any other of the shots of one thing, at most."""
SIMILAR = 0.8
"""How far the cosine of two shots of one thing lies between that of unrelated pictures, and 1."""
USUAL = 0.5
"""The cosine of unrelated pictures where it was not measured: that of CLIP."""

_AT_ONCE = 512


Kind = Literal["identical", "resaved", "similar"]


@dataclass(frozen=True, slots=True)
class Group:
    """Files that belong together, the best first; ``kind`` says how."""

    kind: Kind
    files: tuple[File, ...]

    def as_dict(self) -> dict[str, Any]:
        """The group in plain values, for JSON; what is not known is left out."""
        return {"kind": self.kind, "files": [_values(file) for file in self.files]}


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The groups, those of one kind after the other, and how many pictures could not be compared by their looks since
    an earlier version indexed them."""

    groups: tuple[Group, ...]
    without_hash: int

    def as_dict(self) -> dict[str, Any]:
        """The groups in plain values, for JSON."""
        return {"groups": [group.as_dict() for group in self.groups], "without_hash": self.without_hash}


def find(snapshot: Snapshot, lines: Calibration | None = None, under: Sequence[str] = ()) -> Duplicates:
    """The duplicates among all files, or those at or below the paths ``under``.

    A file is in one group of each kind at most, and in one of a later kind only as the best of its earlier one. Those
    of a group are all near to its first; among several it could be in, a file is in that with the best first.

    Args:
        lines: the calibration of the model, which says how near unrelated pictures are.
    """
    reader = snapshot.reader
    assets = reader.complete_assets(under)
    likenesses = reader.likenesses([i for i, asset in assets.items() if asset.modality is Modality.IMAGE])
    files = [File(asset_id, asset, likenesses.get(asset_id)) for asset_id, asset in assets.items()]
    files.sort(key=File.order)
    identical, files = _grouped("identical", _bundles(files, [content(file.asset) for file in files]))
    bundles = _bundles(files, [_look(file) for file in files])
    resaved, files = _grouped("resaved", bundles, alike_pairs([bundle[0].likeness for bundle in bundles]))
    similar, _ = _grouped("similar", [[file] for file in files], _similar(snapshot, files, _least_cosine(lines)))
    return Duplicates((*identical, *resaved, *similar), len(reader.without_likeness(under)))


def _look(file: File) -> Hashable:
    """What pictures share that have the same hashes; any other file has it alone."""
    likeness = file.likeness
    return file.asset_id if likeness is None or likeness.phash is None else (likeness.phash, likeness.detail)


def _bundles(files: Sequence[File], keys: Sequence[Hashable]) -> list[list[File]]:
    """The files by their keys, in the order of the first of each."""
    bundles: dict[Hashable, list[File]] = defaultdict(list)
    for file, key in zip(files, keys, strict=True):
        bundles[key].append(file)
    return list(bundles.values())


def _grouped(
    kind: Kind, bundles: Sequence[list[File]], pairs: Iterable[tuple[int, int]] = ()
) -> tuple[list[Group], list[File]]:
    """The groups of several files, and the first file of each group, those of a single file among them.

    A bundle is in one group with all that are paired with it and are in none of an earlier one.
    """
    neighbours: dict[int, list[int]] = defaultdict(list)
    for one, other in pairs:
        neighbours[min(one, other)].append(max(one, other))
    taken: set[int] = set()
    groups: list[Group] = []
    firsts: list[File] = []
    for place, bundle in enumerate(bundles):
        if place in taken:
            continue
        others = [other for other in sorted(set(neighbours[place])) if other not in taken]
        taken.update(others)
        files = bundle
        if others:
            files = sorted([*bundle, *(file for other in others for file in bundles[other])], key=File.order)
        firsts.append(files[0])
        if len(files) > 1:
            groups.append(Group(kind, tuple(files)))
    return groups, firsts


def _least_cosine(lines: Calibration | None) -> float:
    usual = USUAL if lines is None else line_for(lines, Modality.IMAGE, Modality.IMAGE).mean
    return usual + SIMILAR * (1 - usual)


def _similar(snapshot: Snapshot, files: Sequence[File], least: float) -> list[tuple[int, int]]:
    """The places of every two pictures with cosines of at least ``least`` that were taken within ``MINUTES``."""
    rows = snapshot.reader.picture_rows([file.asset_id for file in files if file.asset.taken is not None])
    dated = [(file.asset.taken, i) for i, file in enumerate(files) if file.asset_id in rows]
    dated = sorted((taken, i) for taken, i in dated if taken is not None)
    times = np.array([taken for taken, _ in dated])  # (N,)
    places = [i for _, i in dated]
    vectors = snapshot.vectors[Modality.IMAGE].fetch(np.array([rows[files[i].asset_id] for i in places], np.int64))
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(places), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        last = int(np.searchsorted(times, times[some][-1] + 60 * MINUTES, side="right"))
        for begin in range(start, last, _AT_ONCE):
            others = slice(begin, min(begin + _AT_ONCE, last))
            near = vectors[some] @ vectors[others].T >= least  # (B, B)
            near &= times[others] - times[some, None] <= 60 * MINUTES
            found = ((start + i, begin + j) for i, j in np.argwhere(near).tolist())
            pairs += [(places[i], places[j]) for i, j in found if i < j]
    return pairs


def _values(file: File) -> dict[str, Any]:
    likeness = file.likeness
    values = {
        "path": file.asset.path or None,
        "key": file.asset.key,
        "bytes": file.asset.size,
        "width": None if likeness is None else likeness.width,
        "height": None if likeness is None else likeness.height,
        "taken": file.asset.taken,
    }
    return {name: value for name, value in values.items() if value is not None}
