"""Vectors on disk: append-only files of float32 unit rows, and the search among them.

A file is a ``RowFile`` of ``(N, D)`` little-endian float32. While it is small all of it is scanned; a large one has
``Lists`` beside it, of which a question looks into some, and only what is newer than those is scanned.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from indexer.errors import ModelError, UsageError
from indexer.exact import candidates, rank
from indexer.gpu import GpuSearch
from indexer.lists import Lists
from indexer.rowfile import RowFile
from indexer.types import Modality

UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a stored vector may be."""

_GATHER_FRACTION = 0.1
"""Below this share of allowed rows, copying them out and searching the copy beats testing every row of the file."""

_FEW = 2048
"""So many allowed rows are copied out and searched exactly even where there are lists."""


def check_vectors(vectors: np.ndarray, dim: int, source: str) -> np.ndarray:
    """Return ``vectors`` as contiguous float32 ``(B, D)``, or raise.

    Raises:
        ModelError: wrong shape, or a row that is not finite or not of length 1 (a NaN in the index would poison
            every later search); ``source`` is named.
    """
    vectors = np.ascontiguousarray(vectors, dtype="<f4")
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ModelError(f"{source} gave vectors of shape {vectors.shape}; the index holds rows of {dim}")
    lengths = np.linalg.norm(vectors, axis=1)  # (B,)
    bad = ~(np.abs(lengths - 1) <= UNIT_TOLERANCE)  # written so that NaN counts as bad
    if bad.any():
        where = int(np.flatnonzero(bad)[0])
        raise ModelError(f"{source} gave an unusable vector (row {where} has length {lengths[where]:.3g}, not 1)")
    return vectors


def checksum(vector: np.ndarray) -> int:
    """CRC-32 of one vector's bytes, kept in the catalogue to notice decay of the file."""
    return zlib.crc32(np.ascontiguousarray(vector, dtype="<f4").tobytes())


def vector_path(folder: Path, modality: Modality, generation: int) -> Path:
    """Where the index in ``folder`` keeps the vectors of one modality."""
    return folder / "vectors" / f"{modality}-{generation:05d}.f32"


class VectorFile(RowFile):
    """The vectors of one modality in one file."""

    noun = "vectors"

    def __init__(self, path: Path, dim: int, rows: int, *, write: bool = False) -> None:
        """Open ``path``; it need not exist while ``rows`` is 0.

        Raises:
            StorageError: the file cannot be opened, or with ``write`` cannot be cut to ``rows``.
        """
        super().__init__(path, "<f4", dim, rows, write=write)
        self.dim = dim
        self.lists: Lists | None = None
        """What spares a question most of the file; they need not cover its newest rows."""
        self.gpu: GpuSearch | None = None
        """A copy of the rows on GPUs, where that was asked for."""

    def add(self, vectors: np.ndarray) -> np.ndarray:
        """Append ``(B, D)`` unit rows, fsync, and return their row numbers ``(B,)``.

        Raises:
            ModelError: a row is not a finite unit vector of this size; nothing was written.
            IndexDamaged: the file has lost rows.
            StorageError: the disk is full or the file cannot be written; the file is as long as before.
        """
        return self.append(check_vectors(vectors, self.dim, "the model"))

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        allowed: np.ndarray | None = None,
        dead: np.ndarray | None = None,
        probes: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best rows for each of ``queries`` ``(Q, D)`` by inner product.

        Exactly, unless there are ``lists`` and the file is large enough for more than one of them. Then the answers are
        the exact ones among the rows of the lists that were looked into, and of all rows newer than the lists: each
        score is right and ties are broken as ever, but a few of the best may be missing (``recall`` of the lists says
        how many at most, on the whole), and a longer list may hold one that the shorter one missed.

        Args:
            allowed: the rows that may answer, ``(R,)`` sorted; all of them if None. Few of them are searched exactly.
            dead: rows that must not answer, ``(R,)``: the erased ones.
            probes: look into so many lists, instead of as many as the recall of the lists needs.

        Returns:
            ``scores`` float64 ``(Q, k)`` and ``rows`` int64 ``(Q, k)``, best first, ties to the smaller row. Where
            there are fewer than ``k`` answers, the rest is ``-inf`` and ``-1``.

        Raises:
            UsageError: ``k`` below 1 or queries of another size.
        """
        if k < 1:
            raise UsageError(f"k is {k}; ask for at least 1 answer")
        queries = np.ascontiguousarray(np.atleast_2d(queries), dtype="<f4")
        if queries.shape[1] != self.dim:
            raise UsageError(f"the question has {queries.shape[1]} numbers, the vectors in {self.path} have {self.dim}")
        count = len(self.matrix())
        dead = np.zeros(0, np.int64) if dead is None else dead[dead < count]
        if allowed is not None:
            allowed = np.setdiff1d(allowed[allowed < count], dead, assume_unique=True)
        scores = np.full((len(queries), k), -np.inf)  # (Q, k)
        rows = np.full((len(queries), k), -1, dtype=np.int64)  # (Q, k)
        pools = self._on_gpu(queries, k, dead) if self.gpu is not None and allowed is None else None
        if pools is None:
            pools = self._candidates(queries, k, allowed, dead, probes)
        for q, (query, found) in enumerate(zip(queries, pools, strict=True)):
            best, where = rank(query, self.fetch(found), found, k)
            scores[q, : len(best)] = best
            rows[q, : len(best)] = where
        return scores, rows

    def _on_gpu(self, queries: np.ndarray, k: int, dead: np.ndarray) -> Iterator[np.ndarray] | None:
        """``_candidates`` from the GPUs, or None if they cannot answer every question."""
        assert self.gpu is not None
        pools = []
        for query in queries:
            found = self.gpu.candidates(self, query, k, dead)
            if found is None:
                return None
            rows, first = found
            (new,) = candidates(self.matrix()[first:], query[None], k, dead[dead >= first] - first)
            pools.append(np.concatenate([rows, new + first]))
        return iter(pools)

    def _candidates(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None, dead: np.ndarray, probes: int | None
    ) -> Iterator[np.ndarray]:
        """For each question rows ``(M,)`` among which its answers are."""
        count = self.present
        lists = self.lists if self.lists is not None and self.lists.rows <= count else None
        if allowed is not None and len(allowed) <= max(_FEW, 0 if lists else int(_GATHER_FRACTION * count)):
            for found in candidates(self.fetch(allowed), queries, k, None):
                yield allowed[found]
            return
        first = 0 if lists is None else lists.rows
        banned: np.ndarray | None = dead[dead >= first] - first if len(dead) else None
        if allowed is not None:
            banned = np.ones(count - first, dtype=bool)
            banned[allowed[allowed >= first] - first] = False
        newest = candidates(self.matrix()[first:], queries, k, banned)
        if lists is None:
            yield from newest
            return
        for query, new in zip(queries, newest, strict=True):
            old = lists.candidates(query, k, allowed=allowed, dead=dead, probes=probes)
            yield np.concatenate([old, new + first])
