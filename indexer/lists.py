"""The derived index of one vector file: the vectors as bytes, rotated, sorted into lists around centroids.

    lists/image-00001.json      what there is: rows covered, scale, sizes, checksums, the curve of recall
    lists/recall.json           the share of the best 10 that is to be found, where it was chosen
    lists/image-00001-003.lists one file, mapped: rotation, centroids, then for each list its codes and row numbers

A question is held against the bytes of the lists whose centroids are nearest to it, and what may be among the best is
scored again on the stored float32 vectors. Bytes lose nothing by that: vectors are rotated at random first, so their
rounding errors are as good as independent, and all that comes within ``CAUTION`` deviations of such an error of the
k-th best is scored again. So the answer is the exact one among the rows of the lists that were looked into; with one
list, or with all, it is the exact one of the corpus. Rows newer than the lists are not here: whoever asks scans them.

Everything here can be made again from the vectors. What is missing, damaged or of another generation is not used, and
no question ever fails for it. Inverted lists: Sivic and Zisserman, Video Google, ICCV 2003; their codes have the layout
of FAISS (8 bits, "direct signed"), which scans them where it is loaded.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from indexer.durable import write_durably
from indexer.errors import StorageError
from indexer.exact import distinct, reach_down, rounding
from indexer.recall import DEFAULT_RECALL, DEPTHS, Curve
from indexer.types import Modality

FORMAT = 1
CAUTION = 7.0
"""Standard deviations of the rounding error that a score on bytes is given: off by more is one score in 10^11."""
TOP = 127
"""Codes are whole numbers from -TOP to TOP, stored plus 128."""

_ALIGN = 64
_NUMPY_BLOCK = 2048
"""Codes turned into float32 at a time, 4 MB for vectors of 512: as much as the cache holds."""
_FILTERED_LEAST, _FILTERED_TIMES = 32768, 2
"""With a filter at least so many allowed rows are looked at, and so many times what would do without one."""
_FASTER_AFTER = 8
"""Searches after which FAISS is loaded: it scans several times faster, and a single question would wait for it."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the JSON beside a file of lists says of it.

    ``rows`` is how many rows of the vector file are covered, erased ones left out of the lists; ``trained`` how many
    there were when the centroids were chosen and ``measured`` when the curve was. ``sizes`` and ``checksums`` are those
    of each list, ``head`` the checksum of rotation and centroids; ``clipped`` is how far beyond the largest code the
    worst vector reaches.
    """

    file: str
    generation: int
    dim: int
    rows: int
    trained: int
    measured: int
    scale: float
    clipped: float
    probes: tuple[int, ...]
    recalls: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...]
    head: int
    sizes: tuple[int, ...]
    checksums: tuple[int, ...]
    format: int = FORMAT

    @property
    def curve(self) -> Curve:
        """Recall over lists looked into."""
        return Curve(self.probes, self.recalls, self.errors)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things stand in a file of lists of these ``sizes``: offsets in bytes."""

    dim: int
    sizes: np.ndarray
    codes: np.ndarray = field(init=False)
    ids: np.ndarray = field(init=False)
    end: int = field(init=False)

    def __post_init__(self) -> None:
        lengths = self.room * self.dim + self.sizes * 8
        first = -(-4 * self.dim * (self.dim + len(self.sizes)) // _ALIGN) * _ALIGN
        ends = first + np.cumsum(lengths)
        object.__setattr__(self, "codes", ends - lengths)
        object.__setattr__(self, "ids", ends - self.sizes * 8)
        object.__setattr__(self, "end", int(ends[-1]))

    @property
    def room(self) -> np.ndarray:
        """Codes for which each list has room: a multiple of 8, so that the row numbers after them are aligned."""
        return -(-self.sizes // 8) * 8


class Lists:
    """The lists of one vector file, mapped. Thread-safe."""

    def __init__(self, path: Path, header: Header, data: np.ndarray) -> None:
        """Use ``open_lists``."""
        self.path = path
        self.header = header
        self.layout = Layout(header.dim, np.array(header.sizes, np.int64))
        self.recall = DEFAULT_RECALL
        self._data = data
        dim, count = header.dim, len(header.sizes)
        self.rotation = _view(data, 0, (dim, dim), "<f4")
        self.centroids = _view(data, 4 * dim * dim, (count, dim), "<f4")
        self._owners: np.ndarray | None = None
        self._faiss: Any = None
        self._searches = 0

    @property
    def count(self) -> int:
        """How many lists there are."""
        return len(self.header.sizes)

    @property
    def rows(self) -> int:
        """How many rows of the vector file are covered."""
        return self.header.rows

    def codes(self, number: int) -> np.ndarray:
        """The codes ``(n, D)`` uint8 of one list."""
        shape = (self.header.sizes[number], self.header.dim)
        return _view(self._data, int(self.layout.codes[number]), shape, np.uint8)

    def ids(self, number: int) -> np.ndarray:
        """The rows ``(n,)`` int64 of one list, ascending."""
        return _view(self._data, int(self.layout.ids[number]), (self.header.sizes[number],), "<i8")

    def owners(self) -> np.ndarray:
        """The list of every row, ``(rows,)``; -1 where a row is in none."""
        if self._owners is None:
            owners = np.full(self.rows, -1, np.int32)
            for number in range(self.count):
                owners[self._covered(self.ids(number))] = number
            self._owners = owners
        return self._owners

    def probes(
        self, rotated: np.ndarray, k: int, *, allowed: np.ndarray | None, dead: np.ndarray, probes: int | None
    ) -> np.ndarray:
        """The lists to look into for ``k`` answers, best first.

        With a filter, more allowed rows are looked at than there would be rows without one, wherever they stand: rows
        of one folder may be far from the question, where centroids say less. Lists without any of them cost nothing.
        """
        if self.count == 1:
            return np.zeros(1, np.int64)
        order = np.argsort(-(self.centroids @ rotated), kind="stable")
        wanted = self.header.curve.needed(k, self.recall) if probes is None else probes
        if wanted >= self.count:
            return order
        if allowed is None:
            alive = self.layout.sizes - self._per_list(dead)
            reached = np.cumsum(alive[order])
            return order[: max(wanted, int(np.searchsorted(reached, k)) + 1)]
        alive = self._per_list(allowed)
        order = order[alive[order] > 0]
        reached = np.cumsum(alive[order])
        enough = max(k, _FILTERED_LEAST, _FILTERED_TIMES * wanted * int(self.layout.sizes.sum()) // self.count)
        return order[: int(np.searchsorted(reached, enough)) + 1]

    def _per_list(self, rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.zeros(self.count, np.int64)
        owners = self.owners()[rows[rows < self.rows]]
        counts: np.ndarray = np.bincount(owners[owners >= 0], minlength=self.count)
        return counts

    def candidates(
        self, query: np.ndarray, k: int, *, allowed: np.ndarray | None, dead: np.ndarray, probes: int | None = None
    ) -> np.ndarray:
        """Rows ``(M,)`` among which are the ``k`` best for ``query`` ``(D,)`` of those in the lists looked into.

        Args:
            allowed: the rows that may answer, ``(R,)``; all if None.
            dead: rows that must not, ``(R,)``; without those, if ``allowed`` is given.
            probes: look into so many lists, instead of as many as the recall that was asked for needs.
        """
        rotated = self.rotation @ query  # (D,)
        chosen = self.probes(rotated, k, allowed=allowed, dead=dead, probes=probes)
        banned = None
        if allowed is not None:
            banned = np.ones(self.rows, dtype=bool)
            banned[allowed[allowed < self.rows]] = False
        elif len(dead):
            banned = np.zeros(self.rows, dtype=bool)
            banned[dead[dead < self.rows]] = True
        faster = self._faster() if rotated.any() else None
        scan = self._scan if faster is None else faster.candidates
        return distinct(self._covered(scan(rotated, k, chosen, banned)))

    def _covered(self, rows: np.ndarray) -> np.ndarray:
        """``rows`` without numbers that no row has, which only a damaged file holds."""
        return rows[(rows >= 0) & (rows < self.rows)]

    def _scan(self, rotated: np.ndarray, k: int, chosen: np.ndarray, banned: np.ndarray | None) -> np.ndarray:
        """``candidates`` in plain NumPy: a block of codes becomes float32 and meets the question in the BLAS."""
        ids = np.concatenate([self.ids(number) for number in chosen] or [np.zeros(0, np.int64)])
        scores = np.empty(len(ids), np.float32)
        buffer = np.empty((_NUMPY_BLOCK, len(rotated)), np.float32)
        done = 0
        for number in chosen:
            codes = self.codes(number)
            for start in range(0, len(codes), _NUMPY_BLOCK):
                block = codes[start : start + _NUMPY_BLOCK]
                into = buffer[: len(block)]
                np.copyto(into, block)
                np.dot(into, rotated, out=scores[done : done + len(block)])
                done += len(block)
        scores = (scores - np.float32(128) * rotated.sum()) / np.float32(self.header.scale)
        if banned is not None:
            scores[np.take(banned, ids, mode="clip")] = -np.inf
        found: np.ndarray = ids[reach_down(scores, k, 2 * self.doubt(rotated, 0.0))]
        return found

    def doubt(self, rotated: np.ndarray, step: float) -> float:
        """By how much a score on codes may be off, for a question whose own numbers are rounded to multiples of
        ``step``: ``CAUTION`` deviations of the two roundings, and what clipping and float32 can do at worst."""
        length = float(np.linalg.norm(rotated))
        deviation = math.hypot(length / self.header.scale, step) / math.sqrt(12)
        # Codes are up to 255 before 128 is taken off; sums of such numbers are where float32 errs.
        summing = rounding(len(rotated)) * (2 + math.sqrt(len(rotated)) * 383 / self.header.scale)
        return CAUTION * deviation + length * (self.header.clipped + summing)

    def _faster(self) -> Any:
        """FAISS over the same mapped bytes, once there have been enough questions; None without."""
        self._searches += 1
        if self._faiss is None and self._searches > _FASTER_AFTER:
            from indexer.faiss_lists import over

            self._faiss = over(self) or False
        return self._faiss or None

    def faults(self) -> list[int]:
        """The lists whose bytes are not the ones that were written."""
        return [i for i, crc in enumerate(self.header.checksums) if self.checksum(i) != crc]

    def checksum(self, number: int) -> int:
        """CRC-32 of the codes and rows of one list."""
        return zlib.crc32(self.ids(number).data, zlib.crc32(self.codes(number).data))

    def head(self) -> int:
        """CRC-32 of rotation and centroids."""
        return zlib.crc32(self.centroids.data, zlib.crc32(self.rotation.data))


def _view(data: np.ndarray, offset: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    view: np.ndarray = np.ndarray(shape, dtype, buffer=data.data, offset=offset)
    return view


def lists_folder(folder: Path) -> Path:
    """Where the index in ``folder`` keeps what is derived from its vectors."""
    return folder / "lists"


def header_path(folder: Path, modality: Modality, generation: int) -> Path:
    """The JSON that says whether there are lists of one modality, and which file holds them."""
    return lists_folder(folder) / f"{modality}-{generation:05d}.json"


def open_lists(folder: Path, modality: Modality, generation: int, dim: int, *, write: bool = False) -> Lists | None:
    """The lists of one modality, or None if there are none that can be used.

    Rotation and centroids are checked here. The lists are not read: a wrong code or row number can only hide a row,
    for what is found is scored again on its vector.
    """
    path = header_path(folder, modality, generation)
    try:
        header = read_header(path)
        if header.format != FORMAT or header.generation != generation or header.dim != dim:
            return None
        layout = Layout(dim, np.array(header.sizes, np.int64))
        file = path.with_name(header.file)
        if file.stat().st_size != layout.end:
            return None
        data = np.memmap(file, np.uint8, mode="r+" if write else "r", shape=(layout.end,))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    found = Lists(file, header, data)
    found.recall = read_recall(folder)
    return found if found.head() == header.head else None


def read_header(path: Path) -> Header:
    """What the JSON at ``path`` says.

    Raises:
        OSError, ValueError, KeyError, TypeError: it cannot be read, or says nothing of the kind.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    checksum = values.pop("checksum")
    if zlib.crc32(json.dumps(values, sort_keys=True).encode()) != checksum:
        raise ValueError(f"{path} is not what was written")
    for name in ("probes", "sizes", "checksums"):
        values[name] = tuple(values[name])
    for name in ("recalls", "errors"):
        values[name] = tuple(tuple(row) for row in values[name])
    header = Header(**values)
    if not re.fullmatch(r"[\w.-]+\.lists", header.file) or not header.sizes or min(header.sizes) < 0:
        raise ValueError(f"{path} names no file of lists")
    curves = (header.recalls, header.errors)
    if any(len(rows) != len(DEPTHS) or {len(row) for row in rows} != {len(header.probes)} for rows in curves):
        raise ValueError(f"{path} has no curve of recall")
    if not header.scale > 0 or len(header.checksums) != len(header.sizes):
        raise ValueError(f"{path} is incomplete")
    return header


def write_header(path: Path, header: Header) -> None:
    """Put the JSON in its place, whole or not at all: from then on the file that it names is the one.

    Raises:
        OSError: it cannot be written.
    """
    values = asdict(header)
    values["checksum"] = zlib.crc32(json.dumps(values, sort_keys=True).encode())
    _write_json(path, values)


def read_recall(folder: Path) -> float:
    """The share of the best 10 that is to be found."""
    try:
        recall = float(json.loads(_recall_path(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return DEFAULT_RECALL
    return recall if 0 < recall <= 1 else DEFAULT_RECALL


def write_recall(folder: Path, recall: float) -> None:
    """Choose the share of the best 10 that is to be found.

    Raises:
        OSError: it cannot be written.
    """
    lists_folder(folder).mkdir(exist_ok=True)
    _write_json(_recall_path(folder), recall)


def _recall_path(folder: Path) -> Path:
    return lists_folder(folder) / "recall.json"


def _write_json(path: Path, values: Any) -> None:
    write_durably(path, json.dumps(values).encode())


def erase(folder: Path, modality: Modality, generation: int, dim: int, rows: np.ndarray) -> None:
    """Overwrite the codes of these rows ``(R,)`` with zeros; where that cannot be done, the lists go.

    Raises:
        StorageError: neither can be done.
    """
    path = header_path(folder, modality, generation)
    if not path.exists():
        return
    lists = open_lists(folder, modality, generation, dim, write=True)
    if lists is None:
        discard(folder, modality, generation)
        return
    try:
        header = zeroed(lists, rows)
        if header is not lists.header:
            write_header(path, header)
    except OSError:
        discard(folder, modality, generation)


def zeroed(lists: Lists, rows: np.ndarray) -> Header:
    """Overwrite the codes of these rows ``(R,)`` in writable lists with zeros; the header that fits, if others do.

    Raises:
        OSError: they cannot be written.
    """
    owners = lists.owners()
    rows = rows[rows < lists.rows]
    rows = rows[owners[rows] >= 0]
    if not len(rows):
        return lists.header
    checksums = list(lists.header.checksums)
    for number in np.unique(owners[rows]).tolist():
        lists.codes(number)[np.isin(lists.ids(number), rows)] = 0
        checksums[number] = lists.checksum(number)
    lists._data.flush()  # type: ignore[attr-defined]  # a memmap
    return replace(lists.header, checksums=tuple(checksums))


def discard(folder: Path, modality: Modality, generation: int) -> None:
    """Remove the lists of one modality; they can be made again.

    Raises:
        StorageError: they cannot be removed.
    """
    try:
        header_path(folder, modality, generation).unlink(missing_ok=True)
        for path in lists_folder(folder).glob(f"{modality}-{generation:05d}-*"):
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise StorageError(f"cannot remove {exc.filename}: {exc.strerror}") from exc


def sweep(folder: Path, generation: int) -> None:
    """Remove what no header of this generation names: lists of older ones, and what a dead process left."""
    if not lists_folder(folder).is_dir():
        return
    keep = {_recall_path(folder).name}
    for m in Modality:
        path = header_path(folder, m, generation)
        try:
            keep |= {path.name, read_header(path).file}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for path in lists_folder(folder).iterdir():
        if path.name not in keep:
            path.unlink(missing_ok=True)
