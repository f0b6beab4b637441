"""Rows of one size in an append-only file, mapped into memory: what vectors and image tokens have in common.

A file is nothing but its rows, one after the other. Which of them are alive is the catalogue's business: a row that
nothing names was cut off by a crash or belongs to something removed, and holds zeros.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np

from indexer.errors import IndexDamaged, StorageError

_READ_FROM = 50_000_000
"""Bytes from which on a file is large enough not to be mapped whole by and by."""
_READ_MOST = 4096
"""Rows up to which reading them one by one is about as quick as copying them out of the map."""


class RowFile:
    """One file of ``(N, width)`` numbers.

    ``rows`` is how many the catalogue knows of. Whatever lies beyond was written by a run that died before it could
    say so; a writer cuts it off. A file that is shorter than ``rows`` has lost data: see ``missing``.
    """

    noun = "rows"
    """What messages call the rows."""

    def __init__(self, path: Path, dtype: str, width: int, rows: int, *, write: bool = False) -> None:
        """Open ``path``; it need not exist while ``rows`` is 0.

        Raises:
            StorageError: the file cannot be opened, or with ``write`` cannot be cut to ``rows``.
        """
        self.path = path
        self.dtype = np.dtype(dtype)
        self.width = width
        self.rows = rows
        self._map: np.ndarray | None = None
        self._descriptor: int | None = None
        try:
            size = _size(path)
            if write:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                if size > rows * self.row_bytes:
                    os.truncate(path, rows * self.row_bytes)
        except OSError as exc:
            raise StorageError(f"cannot open {path}: {exc.strerror}") from exc
        self.missing = max(0, rows - size // self.row_bytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.dtype.itemsize

    @property
    def present(self) -> int:
        """How many of ``rows`` the file has."""
        return self.rows - self.missing

    def append(self, values: np.ndarray) -> np.ndarray:
        """Append ``(B, width)``, fsync, and return the row numbers ``(B,)``.

        Raises:
            IndexDamaged: the file has lost rows.
            StorageError: the disk is full or the file cannot be written; the file is as long as before.
        """
        if self.missing:
            raise IndexDamaged(f"{self.path} is {self.missing} {self.noun} short; 'mmsearch verify' repairs the index")
        start = self.rows
        try:
            with self.path.open("r+b") as file:
                file.seek(start * self.row_bytes)
                file.write(self._bytes(values))
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            self._cut(start)
            raise StorageError(f"cannot write {self.path}: {exc.strerror}") from exc
        self.rows = start + len(values)
        return np.arange(start, self.rows, dtype=np.int64)

    def _bytes(self, values: np.ndarray) -> bytes:
        return np.ascontiguousarray(values, dtype=self.dtype).tobytes()

    def _cut(self, rows: int) -> None:
        try:
            os.truncate(self.path, rows * self.row_bytes)
        except OSError:
            return  # the next writer cuts it: what no row names is not data

    def overwrite(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Put ``values`` ``(R, width)`` in the place of these rows ``(R,)``, and fsync.

        Raises:
            StorageError: the file cannot be written.
        """
        try:
            with self.path.open("r+b") as file:
                for row, value in zip(rows.tolist(), values, strict=True):
                    file.seek(row * self.row_bytes)
                    file.write(self._bytes(value))
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise StorageError(f"cannot write {self.noun} into {self.path}: {exc.strerror}") from exc

    def remove(self, rows: np.ndarray) -> None:
        """Overwrite these rows ``(R,)`` with zeros, and fsync.

        Raises:
            StorageError: the file cannot be written.
        """
        rows = rows[rows < self.present]
        if len(rows):
            self.overwrite(rows, np.broadcast_to(np.zeros(1, self.dtype), (len(rows), self.width)))

    def fetch(self, rows: np.ndarray) -> np.ndarray:
        """The values ``(R, width)`` of these rows ``(R,)``, as a copy.

        Few of many are read, not taken from the map: the system maps some 64 KB and more around every row that is
        touched, and a process that answers questions would come to hold the whole file.
        """
        matrix = self.matrix()
        if len(rows) > _READ_MOST or self._descriptor is None or len(matrix) * self.row_bytes < _READ_FROM:
            return np.array(matrix[rows])
        values = np.empty((len(rows), self.width), self.dtype)
        for value, row in zip(values, rows.tolist(), strict=True):
            if not 0 <= row < len(matrix):
                raise IndexError(f"row {row} of {len(matrix)} in {self.path}")
            if os.preadv(self._descriptor, [value.data], row * self.row_bytes) != self.row_bytes:
                return np.array(matrix[rows])
        return values

    def matrix(self) -> np.ndarray:
        """All rows, ``(N, width)``, read-only and mapped: nothing is read until it is used."""
        if self._map is None or len(self._map) < self.present:
            if self.present == 0:
                return np.empty((0, self.width), dtype=self.dtype)
            try:
                self._map = np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.present, self.width))
                if self._descriptor is None and hasattr(os, "preadv"):
                    self._descriptor = os.open(self.path, os.O_RDONLY)
                    weakref.finalize(self, os.close, self._descriptor)
            except FileNotFoundError:
                self.missing = self.rows
                return np.empty((0, self.width), dtype=self.dtype)
            except (OSError, ValueError) as exc:
                raise StorageError(f"cannot map {self.path}: {exc}") from exc
        return self._map[: self.present]


def _size(path: Path) -> int:
    """Bytes of a file; 0 if it is not there, or no longer: a compaction may take it away at any moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
