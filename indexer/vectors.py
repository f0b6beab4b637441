"""Vectors on disk: append-only files of float32 unit rows, mapped into memory and searched exactly by FAISS.

A file is a ``RowFile`` of ``(N, D)`` little-endian float32.

This is the only module that imports faiss.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from indexer.errors import ModelError, StorageError, UsageError
from indexer.rowfile import RowFile
from indexer.types import Modality

UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a stored vector may be."""

_GATHER_FRACTION = 0.1
"""Below this share of allowed rows, copying them out and searching the copy beats testing every row of the file."""

_TIE_SLACK = 16
"""Rows fetched beyond k, so that ties at the end of the list are seen without a second search."""


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

    def add(self, vectors: np.ndarray) -> np.ndarray:
        """Append ``(B, D)`` unit rows, fsync, and return their row numbers ``(B,)``.

        Raises:
            ModelError: a row is not a finite unit vector of this size; nothing was written.
            IndexDamaged: the file has lost rows.
            StorageError: the disk is full or the file cannot be written; the file is as long as before.
        """
        return self.append(check_vectors(vectors, self.dim, "the model"))

    def search(
        self, queries: np.ndarray, k: int, *, allowed: np.ndarray | None = None, dead: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best rows for each of ``queries`` ``(Q, D)`` by inner product, exactly.

        Args:
            allowed: the rows that may answer, ``(R,)`` sorted; all of them if None.
            dead: rows that must not answer, ``(R,)``: the erased ones.

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
        matrix = self.matrix()
        if allowed is None and dead is not None and len(dead):
            alive = np.ones(len(matrix), dtype=bool)
            alive[dead[dead < len(matrix)]] = False
            allowed = np.flatnonzero(alive)
        elif allowed is not None and dead is not None and len(dead):
            allowed = np.setdiff1d(allowed, dead, assume_unique=True)
        if allowed is not None:
            allowed = allowed[allowed < len(matrix)]
        total = len(matrix) if allowed is None else len(allowed)
        scores = np.full((len(queries), k), -np.inf)  # (Q, k)
        rows = np.full((len(queries), k), -1, dtype=np.int64)  # (Q, k)
        if total == 0:
            return scores, rows
        if allowed is not None and total <= _GATHER_FRACTION * len(matrix):
            subset, matrix, names = None, np.array(matrix[allowed]), allowed
        else:
            subset, names = allowed, None
        for q, query in enumerate(queries):
            found = _search_one(query, matrix, min(k, total), total, subset)  # (k',) rows of matrix
            # Scored again in one order of additions whatever the row's place in the file: equal vectors tie exactly.
            exact = np.sum(matrix[found].astype(np.float64) * query, axis=1)
            best = np.lexsort((found, -exact))[: min(k, total)]
            scores[q, : len(best)] = exact[best]
            rows[q, : len(best)] = found[best] if names is None else names[found[best]]
        return scores, rows

    def stats(self) -> dict[str, int]:
        """``rows`` in the file (erased ones counted), ``dim``, and ``bytes`` on disk."""
        size = self.path.stat().st_size if self.path.exists() else 0
        return {"rows": self.rows, "dim": self.dim, "bytes": size}


def _search_one(query: np.ndarray, matrix: np.ndarray, k: int, total: int, allowed: np.ndarray | None) -> np.ndarray:
    """Rows of the ``k`` best of ``total`` allowed ones and of everything that ties with the last of them."""
    want = min(total, k + _TIE_SLACK)
    margin = 1e-6 * float(np.linalg.norm(query))
    while True:
        scores, rows = _faiss_knn(query[None], matrix, want, allowed)
        # The same numbers added in another order differ in their last bits: that much is a tie here.
        tied_to_the_end = scores[0, want - 1] >= scores[0, k - 1] - margin
        if want == total or not tied_to_the_end:
            return rows[0]
        want = min(total, want * 8)


def _faiss_knn(
    queries: np.ndarray, matrix: np.ndarray, k: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Brute force over a mapped matrix, without building an index: ``(Q, k)`` scores and rows."""
    faiss = import_faiss()
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    selector: Sequence[object] = ()
    if allowed is not None:
        flags = np.zeros(len(matrix), dtype=bool)
        flags[allowed] = True
        bitmap = np.packbits(flags, bitorder="little")
        selector = (faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap)),)
    faiss.knn_inner_product(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(matrix),
        matrix.shape[1],
        len(queries),
        len(matrix),
        k,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(rows),
        *selector,
    )
    return scores, rows


def import_faiss():  # type: ignore[no-untyped-def]  # a module without stubs
    """The faiss module.

    Raises:
        StorageError: it is not installed.
    """
    try:
        import faiss
    except ImportError as exc:
        raise StorageError(
            'FAISS is not installed; \'pip install "mmsearch[cpu]"\' brings it (or "mmsearch[gpu]" with CUDA)'
        ) from exc
    return faiss
