"""Making the lists of an index: which of its vector files need them, choosing centroids, filling, measuring recall.

None while a file is small (a scan is quick, and exact); one list of bytes where a scan of bytes is (still exact); then
a number of lists that grows with the root of the number of vectors. Lists are made beside the ones in use, and put in
their place by one rename, under the lock of the writer: whoever is asking keeps what it has.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from indexer.clustering import cluster, nearest
from indexer.durable import sync_folder
from indexer.errors import StorageError
from indexer.exact import candidates
from indexer.index import Index, Snapshot
from indexer.lists import (
    TOP,
    Header,
    Layout,
    Lists,
    discard,
    header_path,
    open_lists,
    read_header,
    read_recall,
    write_header,
    write_recall,
    zeroed,
)
from indexer.recall import DEPTHS, Curve, exact_curve, measure, places
from indexer.types import Modality
from indexer.vectors import VectorFile

BYTES_FROM = 25_000_000
"""Numbers from which on a file gets lists: 50,000 vectors of 512, which take some 7 ms to scan as float32."""
LISTS_FROM = 75_000_000
"""Numbers from which on it gets more than one: 150,000 vectors of 512, which take some 4 ms to scan as bytes."""

_BLOCK = 16384
"""Vectors read at a time, 32 MB for vectors of 512."""
_SAMPLE = 64
"""Vectors for each centroid on which the centroids are chosen."""
_REACH = 1.25
"""Room for numbers larger than any in a sample: what is cut off makes every score on bytes less certain."""
_QUESTIONS = 128
"""Vectors of each kind with which recall is measured."""
_TAIL_LEAST, _TAIL_SHARE = 4_000_000, 1 / 64
"""Newer rows are scanned as they are while they are fewer than so many numbers, or than that share of all rows."""
_GROWTH_MEASURE = 1.25
"""The curve is measured again when there are so many times more rows."""
_GROWTH_BUILD = 2
"""Centroids are chosen again when there are so many times more rows, or so many times fewer alive."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the search: lists looked into, their share of all, recall of the best 10, time of a question."""

    probes: int
    share: float
    recall: float
    milliseconds: float
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """Lists that are complete and not in use; ``dead`` are the rows that were not alive when they were begun."""

    modality: Modality
    path: Path
    header: Header
    dead: np.ndarray


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a question costs in the vectors of one modality, for every recall; ``exact`` is a scan as float32."""

    modality: Modality
    rows: int
    lists: int
    target: float
    exact_milliseconds: float
    points: tuple[Point, ...]


def list_count(rows: int, dim: int) -> int:
    """How many lists ``rows`` vectors get: 0, 1, or the power of two next to the root of their number.

    ``list_count(1_000_000, 512)`` is 1024.
    """
    if rows * dim < BYTES_FROM:
        return 0
    return 1 if rows * dim < LISTS_FROM else 2 ** round(math.log2(rows) / 2)


def next_step(rows: int, alive: int, dim: int, header: Header | None) -> str:
    """What the lists of a file of ``rows``, ``alive`` of them, need: ``drop``, ``keep``, ``extend`` or ``build``."""
    count = list_count(alive, dim)
    if count == 0:
        return "drop" if header else "keep"
    if header is None or header.rows > rows or (len(header.sizes) == 1) != (count == 1):
        return "build"
    if alive > _GROWTH_BUILD * header.trained or sum(header.sizes) > _GROWTH_BUILD * alive:
        return "build"
    tail = rows - header.rows
    return "extend" if tail * dim >= _TAIL_LEAST and tail >= _TAIL_SHARE * rows else "keep"


def derive(
    index: Index,
    *,
    recall: float | None = None,
    questions: Callable[[], np.ndarray] | None = None,
    say: Say = lambda _: None,
) -> bool:
    """Give the vectors of ``index`` the lists that they need by now; whether anything was done.

    Args:
        recall: the share of the best 10 that is to be found, from now on; as before if None, and at first 0.99.
        questions: gives vectors ``(Q, D)`` of typical questions, with which recall is measured beside vectors of every
            modality of the index; asked only if needed.

    Raises:
        IndexBusy: another process is writing.
        StorageError: the lists cannot be written; the index is as good as before.
    """
    with index.snapshot() as snapshot:
        other = recall is not None and recall != read_recall(index.folder)
        if not other and all(next_of(index.folder, snapshot, m)[0] == "keep" for m in snapshot.vectors):
            return False
    with index.writing() as writer, index.snapshot() as snapshot:
        try:
            if recall is not None and other:
                write_recall(index.folder, recall)
            for m in snapshot.vectors:
                step, lists = next_of(index.folder, snapshot, m)
                if step == "drop":
                    discard(index.folder, m, snapshot.state.generation)
                elif step != "keep":
                    old = lists if step == "extend" else None
                    publish(index.folder, make(index.folder, snapshot, m, old, questions, say), snapshot)
        except OSError as exc:
            raise StorageError(f"cannot write the search lists of {index.folder}: {exc.strerror}") from exc
        writer.announce()
    return True


def tune(index: Index, questions: Callable[[], np.ndarray] | None = None, rounds: int = 20) -> list[Tuning]:
    """Recall, measured afresh, and time of a question in each modality, over the number of lists looked into.

    Raises:
        StorageError: the index cannot be read.
    """
    found = []
    with index.snapshot() as snapshot:
        for m, file in snapshot.vectors.items():
            if not file.rows:
                continue
            dead = snapshot.dead[m]
            asked = file.fetch(_spread(file, dead, rounds))
            exact = _median_ms(partial(_ask, file, dead, None), asked)
            lists = file.lists
            if lists is None:
                found.append(Tuning(m, file.rows, 0, 1.0, exact, ()))
                continue
            curve = _measure(snapshot, m, lists, questions)
            chosen = curve.needed(10, lists.recall)
            points = []
            for probes, recall in zip(curve.probes, curve.recalls[0], strict=True):
                ms = _median_ms(partial(_ask, file, dead, probes), asked)
                points.append(Point(probes, probes / lists.count, recall, ms, probes == chosen))
            found.append(Tuning(m, file.rows, lists.count, lists.recall, exact, tuple(points)))
    return found


def _ask(file: VectorFile, dead: np.ndarray, probes: int | None, question: np.ndarray) -> None:
    if probes is not None:
        file.search(question, 10, dead=dead, probes=probes)
    else:
        next(candidates(file.matrix(), question[None], 10, dead))


def _median_ms(ask: Callable[[np.ndarray], object], questions: np.ndarray) -> float:
    times = []
    for question in questions:
        started = time.perf_counter()
        ask(question)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def next_of(folder: Path, snapshot: Snapshot, modality: Modality) -> tuple[str, Lists | None]:
    """The step that the lists of one modality need, as ``next_step`` says it, and those in use."""
    file = snapshot.vectors[modality]
    lists = open_lists(folder, modality, snapshot.state.generation, file.dim)
    alive = file.rows - len(snapshot.dead[modality])
    return next_step(file.rows, alive, file.dim, lists.header if lists else None), lists


def make(
    folder: Path,
    snapshot: Snapshot,
    modality: Modality,
    old: Lists | None,
    questions: Callable[[], np.ndarray] | None,
    say: Say,
) -> Made:
    """Make the lists of one modality, or add the newer rows to ``old`` ones; nobody uses them before ``publish``.

    The index may change meanwhile: nothing is read of ``snapshot`` but the files, which may be mapped after its end.

    Raises:
        OSError: they cannot be written, or a vector file is gone because another generation took its place.
    """
    file, dead, generation = snapshot.vectors[modality], snapshot.dead[modality], snapshot.state.generation
    alive = np.ones(file.rows, dtype=bool)
    alive[dead[dead < file.rows]] = False
    what = f"{int(alive.sum()):,} {modality} vectors"
    say(f"adding to the search lists of {what}" if old else f"making search lists for {what}")
    if old is None:
        rotation = _rotation(file.dim)
        centroids = _centroids(file, alive) @ rotation.T
        reach = float(np.abs(_sample(file, alive, _BLOCK) @ rotation.T).max())
        scale, trained, first = TOP / (_REACH * reach), int(alive.sum()), 0
    else:
        rotation, centroids = old.rotation, old.centroids
        scale, trained, first = old.header.scale, old.header.trained, old.rows
    owners = _owners(file, alive, first, centroids @ rotation)
    target = header_path(folder, modality, generation)
    target.parent.mkdir(exist_ok=True)
    path = target.with_name(f"{target.stem}-{_serial(target):03d}.lists")
    fresh = path.with_name(path.name + ".new")
    header = _fill(fresh, file, alive, owners, first, rotation, centroids, scale, old)
    fresh.replace(path)
    sync_folder(path.parent)
    header = replace(header, file=path.name, generation=generation, trained=trained)
    data = np.memmap(path, np.uint8, mode="r")
    lists = Lists(path, header, data)
    if old is not None and file.rows < _GROWTH_MEASURE * old.header.measured:
        curve, measured = old.header.curve, old.header.measured
    else:
        curve, measured = _measure(snapshot, modality, lists, questions), file.rows
    header = replace(header, probes=curve.probes, recalls=curve.recalls, errors=curve.errors, measured=measured)
    return Made(modality, path, header, dead)


def publish(folder: Path, made: Made, snapshot: Snapshot) -> bool:
    """Put lists in the place of those in use, under the lock of the writer; whether they are of this generation still.

    What was removed since they were begun is overwritten first.

    Raises:
        OSError: they cannot be written.
    """
    header = made.header
    if header.generation != snapshot.state.generation:
        made.path.unlink(missing_ok=True)
        return False
    since = np.setdiff1d(snapshot.dead[made.modality], made.dead, assume_unique=True)
    if len(since):
        header = zeroed(Lists(made.path, header, np.memmap(made.path, np.uint8, mode="r+")), since)
    target = header_path(folder, made.modality, header.generation)
    before = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        before = read_header(target).file
    write_header(target, header)
    if before is not None and before != made.path.name:
        target.with_name(before).unlink(missing_ok=True)
    return True


def _serial(target: Path) -> int:
    """A number that no file of lists beside the header ``target`` has."""
    taken = [path.name.removesuffix(".new").removesuffix(".lists") for path in target.parent.glob(f"{target.stem}-*")]
    return 1 + max((int(name[-3:]) for name in taken if name[-3:].isdigit()), default=0) % 999


def _rotation(dim: int) -> np.ndarray:
    """A random orthogonal matrix ``(D, D)`` float32, the same for every index of this size."""
    q, r = np.linalg.qr(np.random.default_rng(dim).standard_normal((dim, dim)))
    return np.ascontiguousarray(q * np.sign(np.diag(r)), dtype="<f4")


def _sample(file: VectorFile, alive: np.ndarray, count: int) -> np.ndarray:
    """``count`` vectors ``(C, D)`` of those that are ``alive``, drawn at random; all if there are no more."""
    rows = np.flatnonzero(alive)
    if len(rows) > count:
        rows = np.sort(np.random.default_rng(0).choice(rows, count, replace=False))
    parts = [file.fetch(rows[start : start + 4096]) for start in range(0, len(rows), 4096)]
    return np.concatenate([np.zeros((0, file.dim), np.float32), *parts])


def _centroids(file: VectorFile, alive: np.ndarray) -> np.ndarray:
    """The centroids ``(L, D)`` of the rows that are ``alive``, not rotated."""
    count = list_count(int(alive.sum()), file.dim)
    if count == 1:
        return np.zeros((1, file.dim), np.float32)
    return cluster(_sample(file, alive, _SAMPLE * count), count)


def _owners(file: VectorFile, alive: np.ndarray, first: int, centroids: np.ndarray) -> np.ndarray:
    """The list of each row from ``first`` on, ``(rows - first,)``; -1 for the dead."""
    owners = np.full(file.rows - first, -1, np.int32)
    for start, vectors in _blocks(file, first):
        if len(centroids) == 1:
            owners[start - first : start - first + len(vectors)] = 0
        else:
            owners[start - first : start - first + len(vectors)] = nearest(vectors, centroids)[0]
    owners[~alive[first:]] = -1
    return owners


def _blocks(file: VectorFile, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """The rows from ``first`` on, block by block, read and not mapped: ``(number of the first, (B, D))``."""
    for start in range(first, file.rows, _BLOCK):
        count = min(_BLOCK, file.rows - start)
        values = np.fromfile(file.path, file.dtype, count * file.dim, offset=start * file.row_bytes)
        yield start, values.reshape(count, file.dim)


def _fill(
    path: Path,
    file: VectorFile,
    alive: np.ndarray,
    owners: np.ndarray,
    first: int,
    rotation: np.ndarray,
    centroids: np.ndarray,
    scale: float,
    old: Lists | None,
) -> Header:
    """Write a file of lists; the header lacks what only the caller knows."""
    count = len(centroids)
    kept = [old.ids(i)[alive[old.ids(i)]] if old else np.zeros(0, np.int64) for i in range(count)]
    cursor = np.array([len(ids) for ids in kept], np.int64)
    sizes = cursor + np.bincount(owners[owners >= 0], minlength=count)
    layout = Layout(file.dim, sizes)
    with path.open("wb") as out:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a crash once the file is mapped
            os.posix_fallocate(out.fileno(), 0, layout.end)
        else:
            out.truncate(layout.end)
    data = np.memmap(path, np.uint8, mode="r+", shape=(layout.end,))
    header = Header(
        file=path.name,
        generation=0,
        dim=file.dim,
        rows=file.rows,
        trained=0,
        measured=0,
        scale=scale,
        clipped=old.header.clipped if old else 0.0,
        probes=exact_curve().probes,
        recalls=exact_curve().recalls,
        errors=exact_curve().errors,
        head=0,
        sizes=tuple(sizes.tolist()),
        checksums=(0,) * count,
    )
    lists = Lists(path, header, data)
    lists.rotation[:], lists.centroids[:] = rotation, centroids
    if old is not None:
        for i, ids in enumerate(kept):
            lists.ids(i)[: len(ids)] = ids
            lists.codes(i)[: len(ids)] = old.codes(i)[alive[old.ids(i)]]
    clipped = header.clipped
    for start, vectors in _blocks(file, first):
        rotated = (vectors @ rotation.T) * np.float32(scale)
        cut = np.clip(rotated, -TOP, TOP)
        beyond = np.flatnonzero((np.abs(rotated) > TOP).any(1))
        if len(beyond):
            clipped = max(clipped, float(np.linalg.norm(rotated[beyond] - cut[beyond], axis=1).max()) / scale)
        codes = (np.rint(cut) + 128).astype(np.uint8)
        of_block = owners[start - first : start - first + len(vectors)]
        order = np.argsort(of_block, kind="stable")
        order = order[np.searchsorted(of_block[order], 0) :]
        numbers, begins = np.unique(of_block[order], return_index=True)
        for number, rows in zip(numbers.tolist(), np.split(order, begins[1:]), strict=True):
            at = int(cursor[number])
            lists.codes(number)[at : at + len(rows)] = codes[rows]
            lists.ids(number)[at : at + len(rows)] = rows + start
            cursor[number] += len(rows)
    data.flush()
    with path.open("rb+") as out:
        os.fsync(out.fileno())
    head = lists.head()
    return replace(header, head=head, clipped=clipped, checksums=tuple(lists.checksum(i) for i in range(count)))


def _spread(file: VectorFile, dead: np.ndarray, count: int) -> np.ndarray:
    """Up to ``count`` rows ``(C,)`` that are alive, spread evenly over the file."""
    rows = np.setdiff1d(np.arange(file.rows), dead, assume_unique=True)
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), count)).astype(np.int64)] if len(rows) else rows


def _measure(snapshot: Snapshot, modality: Modality, lists: Lists, questions: Callable[[], np.ndarray] | None) -> Curve:
    """The curve of ``lists`` for vectors of every modality of the index, and for ``questions``.

    A vector of the file itself does not count among its own answers.
    """
    if lists.count == 1:
        return exact_curve()
    file, dead = snapshot.vectors[modality], snapshot.dead[modality]
    own = _spread(file, dead, _QUESTIONS)
    groups = [file.fetch(own)]
    for m, other in snapshot.vectors.items():
        sample = other.fetch(_spread(other, snapshot.dead[m], _QUESTIONS))
        if m is not modality and len(sample):
            groups.append(sample)
    if questions is not None:
        groups.append(questions())
    asked = np.concatenate(groups).astype(np.float32)  # (Q, D)
    owners = lists.owners()
    answers = _true_answers(file, owners, asked, own, min(DEPTHS[-1], int(lists.layout.sizes.sum()) - 1))
    found = places(asked @ lists.rotation.T @ lists.centroids.T, owners[answers])
    ends = np.cumsum([len(group) for group in groups])
    return measure(np.split(found, ends[:-1]), lists.count)


def _true_answers(file: VectorFile, owners: np.ndarray, asked: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """The ``k`` best rows ``(Q, k)`` of those in lists for each of ``asked`` ``(Q, D)``, best first.

    The first questions are the rows ``own`` ``(O,)``, which do not answer themselves.
    """
    scores = np.full((len(asked), k), -np.inf, np.float32)
    rows = np.zeros((len(asked), k), np.int64)
    for start, vectors in _blocks(file, 0):
        if start >= len(owners):
            break
        block = asked @ vectors[: len(owners) - start].T  # (Q, B)
        block[:, owners[start : start + block.shape[1]] < 0] = -np.inf
        here = np.flatnonzero((own >= start) & (own < start + block.shape[1]))
        block[here, own[here] - start] = -np.inf
        for q, of_query in enumerate(block):
            better = np.flatnonzero(of_query > scores[q, -1])
            if not len(better):
                continue
            both = np.concatenate([scores[q], of_query[better]])
            order = np.argsort(-both, kind="stable")[:k]
            rows[q] = np.concatenate([rows[q], better + start])[order]
            scores[q] = both[order]
    return rows
