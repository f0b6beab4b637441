"""Copies: files with the same bytes, and one picture saved, resized or encoded again, which are one answer.

A picture is a copy of another where their perceptual hashes differ in few bits, see ``indexer.decode.likeness``. The
vectors do not say so: with the embedded model, those of a picture and of one a quarter as large have cosines down to
0. Of 150 photographs (Flickr8k) and what each becomes at JPEG qualities of 30 to 95, at sizes from a quarter, as PNG
and WebP, and a tenth brighter or darker, the hashes differ in at most 4 of 64 bits and 20 of 256; of the 8 million
pairs among 4,000 different photographs none differs in fewer than 8 of 64.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from indexer.reader import BANDS, Reader
from indexer.records import Filter, Likeness
from indexer.types import Asset, Item, Modality, Span
from mmsearch.query import Query
from mmsearch.things import Scored, Thing

NEAR = 4
"""Bits of the 64 in which the hashes of two copies may differ: they then share one of ``indexer.reader.BANDS``, as in
multi-index hashing (Norouzi et al., "Fast search in Hamming space with multi-index hashing", 2012)."""
NEAR_DETAIL = 24
"""Bits of the 256: 40 pages of text on white differ in 64 and more, 40 screens of one program in 42 and more."""

_AT_ONCE = 1 << 20
"""Candidates that are compared at once."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of the index that may have copies: its number, and how it looks if it is a picture."""

    asset_id: int
    asset: Asset
    likeness: Likeness | None = None

    @property
    def name(self) -> str:
        """Its path; for what was added from memory its key."""
        return self.asset.path or self.asset.key or ""

    def order(self) -> tuple[float, ...]:
        """What puts the best of several copies first: the largest, with the time it was taken, the oldest."""
        pixels = 0 if self.likeness is None else self.likeness.width * self.likeness.height
        return -pixels, float(self.asset.taken is None), self.asset.mtime_ns, self.asset_id


def alike(one: Likeness, other: Likeness) -> bool:
    """Whether two pictures are copies of each other by their hashes."""
    if one.phash is None or other.phash is None or one.detail is None or other.detail is None:
        return False
    if _differing(one.phash, other.phash) > NEAR:
        return False
    return _differing(int.from_bytes(one.detail, "big"), int.from_bytes(other.detail, "big")) <= NEAR_DETAIL


def collapse(reader: Reader, query: Query, found: Sequence[Thing], k: int) -> list[Thing]:
    """The first ``k`` of ``found``, best first, with their ``copies``, which are no answers of their own.

    Which copies there are the index says, whether or not they were found. Of one answer the best copy is shown: that
    whose name holds most of the words of the question, then the first by ``File.order``.
    """
    if not query.collapse:
        return list(found)
    answers: list[Thing] = []
    taken: dict[str, list[Item]] = {}
    for start in range(0, len(found), k):
        some = found[start : start + k]
        families = _families(reader, some)
        for thing in some:
            item = thing.best.item
            name = _name(item.asset)
            if any(_same_place(item, other) for other in taken.get(name, ())):
                continue
            family = [file for file in families[name] if _passes(file.asset, query)]
            for file in family:
                if file.name != name:  # what else is found of one file is another part of it
                    taken.setdefault(file.name, []).append(item)
            answers.append(_shown(thing, family, query))
            if len(answers) == k:
                return answers
    return answers


def _families(reader: Reader, found: Iterable[Thing]) -> dict[str, list[File]]:
    """The files of which each thing is a part, itself and its copies, by the name of its file."""
    of = {_name(thing.best.item.asset): thing.best.item.asset for thing in found}
    same = reader.assets_with_digests(sorted({asset.digest for asset in of.values()}))
    numbers = {_name(asset): asset_id for asset_id, asset in same.items()}
    pictures = [numbers[name] for name in of if name in numbers and of[name].modality is Modality.IMAGE]
    likenesses = reader.likenesses(pictures)
    near = _look_alikes(reader, likenesses)
    others = reader.assets(sorted({number for found in near.values() for number in found} - same.keys()))
    by_content: dict[Hashable, dict[int, Asset]] = {}
    for i, other in same.items():
        by_content.setdefault(content(other), {})[i] = other
    families: dict[str, list[File]] = {}
    for name, asset in of.items():
        equal = dict(by_content.get(content(asset), {}))
        looks = near.get(numbers.get(name, -1), {})
        equal |= {i: same[i] if i in same else others[i] for i in looks}
        families[name] = [File(i, equal[i], looks.get(i) or likenesses.get(i)) for i in sorted(equal)]
    return families


def _look_alikes(reader: Reader, of: Mapping[int, Likeness]) -> dict[int, dict[int, Likeness]]:
    """The pictures of the index that look like each of these, itself included, by the numbers of their files."""
    hashed = {asset_id: one.phash for asset_id, one in of.items() if one.phash is not None}
    numbers, hashes = reader.sharing_bands(sorted(set(hashed.values())))
    near = {asset_id: numbers[_count_bits(hashes ^ np.uint64(phash)) <= NEAR] for asset_id, phash in hashed.items()}
    looks = reader.likenesses(sorted({i for some in near.values() for i in some.tolist()}))
    return {
        asset_id: {i: looks[i] for i in numbers.tolist() if alike(of[asset_id], looks[i])}
        for asset_id, numbers in near.items()
    }


def content(asset: Asset) -> Hashable:
    """What tells the content of a file from all others: a table is not cut up as a text of equal bytes is."""
    if asset.modality is Modality.IMAGE:
        return asset.digest, asset.modality
    return asset.digest, asset.modality, os.path.splitext(asset.path)[1].lower() if asset.path else ".txt"


def _name(asset: Asset) -> str:
    return asset.path or asset.key or ""


def _same_place(item: Item, other: Item) -> bool:
    """Whether two pieces stand at the same place of files that are the same: anywhere in a picture, on one page of a
    document, in one stretch of a video, in the same lines of a text."""
    if item.asset.modality is Modality.IMAGE:
        return True
    here, there = item.span or Span(), other.span or Span()
    if here.page is not None or there.page is not None:
        return here.page == there.page
    if here.start is not None and there.start is not None:
        first, second = sorted([(here.start, here.end or here.start), (there.start, there.end or there.start)])
        return second[0] < first[1] or first[0] == second[0]
    return (here.first_line, here.last_line, item.text) == (there.first_line, there.last_line, other.text)


def _passes(asset: Asset, query: Query) -> bool:
    """Whether a file may answer."""
    where: Filter = query.where
    moment = asset.mtime_ns / 1e9 if asset.taken is None else asset.taken
    below = any(asset.path == folder or asset.path.startswith(folder.rstrip("/") + "/") for folder in where.under)
    return (
        (below or not where.under)
        and (where.after is None or moment >= where.after)
        and (where.before is None or moment < where.before)
        and (not query.kinds or asset.modality in query.kinds)
    )


def _shown(thing: Thing, family: Sequence[File], query: Query) -> Thing:
    """The thing as a piece of the best of its copies, with the names of the others."""
    if len(family) < 2:
        return thing
    words = re.findall(r"\w{2,}", (query.text or "").casefold())
    order = sorted(family, key=lambda file: (-sum(word in file.name.casefold() for word in words), *file.order()))
    best = order[0].asset
    copies = tuple(file.name for file in order[1:])
    return Thing(
        Scored(thing.best.score, replace(thing.best.item, asset=best), thing.best.reranked),
        thing.worded and replace(thing.worded, asset=best),
        thing.seen and replace(thing.seen, asset=best),
        copies,
    )


def _differing(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def alike_pairs(likenesses: Sequence[Likeness | None]) -> list[tuple[int, int]]:
    """The places of every two pictures that are ``alike``, the smaller first, sorted."""
    hashed = [(i, one) for i, one in enumerate(likenesses) if one is not None and one.phash is not None]
    candidates = _candidates(np.array([one.phash for _, one in hashed], np.uint64))
    return sorted({(hashed[i][0], hashed[j][0]) for i, j in candidates if alike(hashed[i][1], hashed[j][1])})


def _candidates(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Every two of the hashes ``(N,)`` that are ``NEAR``, the smaller first, each once or more often."""
    for shift, mask in BANDS:
        parts = (hashes >> np.uint64(shift)) & np.uint64(mask)
        order = np.argsort(parts, kind="stable")
        rising = parts[order]
        ends = np.searchsorted(rising, rising, side="right")
        for some, places in _expanded(np.arange(1, len(order) + 1), ends):
            one, other = order[some], order[places]  # of equal parts the order is that of the places
            near = _count_bits(hashes[one] ^ hashes[other]) <= NEAR
            yield from zip(one[near].tolist(), other[near].tolist(), strict=True)


def _expanded(starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each ``i`` with every place from ``starts[i]`` to before ``ends[i]``, as two arrays, some millions at once."""
    counts = ends - starts
    total = np.concatenate([[0], np.cumsum(counts)])
    shifts = starts - total[:-1]
    first = 0
    while first < len(counts):
        last = max(first + 1, int(np.searchsorted(total, total[first] + _AT_ONCE, side="right")) - 1)
        repeats = counts[first:last]
        places = np.arange(total[first], total[last]) + np.repeat(shifts[first:last], repeats)
        yield np.repeat(np.arange(first, last), repeats), places
        first = last


_BITS = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


def _count_bits(numbers: np.ndarray) -> np.ndarray:
    """How many bits are set in each of these ``(N,)``."""
    counts: np.ndarray = _BITS[numbers.view(np.uint16)].reshape(-1, 4).sum(axis=1)
    return counts
