"""FAISS over lists that are mapped already: the candidates that ``indexer.lists`` finds in NumPy, found faster.

This is the only module that imports faiss. It deserialises nothing: its index is put together from checked arrays, and
its inverted lists are a second map of the same file.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders.device import cores

if TYPE_CHECKING:
    from indexer.lists import Lists

_MORE = 128
"""Rows fetched beyond k at first: what is within rounding of the k-th best is usually among them."""
_PART = 1 << 24
"""Bytes of codes, some 2 ms of scanning, that are worth a thread of their own."""
_MOST_THREADS = 4
"""More would wait for the same memory."""


class FaissLists:
    """An ``IndexIVFScalarQuantizer`` over the file of ``lists``."""

    def __init__(self, lists: Lists) -> None:
        """Map the file again.

        Raises:
            AttributeError, RuntimeError: this FAISS cannot, or the file was replaced meanwhile.
        """
        faiss = import_faiss()
        self._lists = lists
        self._threads = min(_MOST_THREADS, cores())
        header, layout = lists.header, lists.layout
        inverted = faiss.OnDiskInvertedLists()
        inverted.nlist, inverted.code_size = lists.count, header.dim
        inverted.read_only = True
        inverted.filename, inverted.totsize = str(lists.path), layout.end
        for size, room, offset in zip(layout.sizes.tolist(), layout.room.tolist(), layout.codes.tolist(), strict=True):
            one = faiss.OnDiskOneList()
            one.size, one.capacity, one.offset = size, room, offset
            inverted.lists.push_back(one)
        inverted.do_mmap()
        signed = faiss.ScalarQuantizer.QT_8bit_direct_signed
        self._coarse = faiss.IndexFlatIP(header.dim)
        self._index = faiss.IndexIVFScalarQuantizer(
            self._coarse, header.dim, lists.count, signed, faiss.METRIC_INNER_PRODUCT, False
        )
        self._index.is_trained = True
        self._index.ntotal = int(layout.sizes.sum())
        self._index.replace_invlists(inverted, False)
        self._inverted = inverted  # not owned by the index: kept from being freed
        self._faiss = faiss

    def candidates(self, rotated: np.ndarray, k: int, chosen: np.ndarray, banned: np.ndarray | None) -> np.ndarray:
        """Rows ``(M,)`` among which are the ``k`` best for ``rotated`` ``(D,)`` in the lists ``chosen`` ``(P,)``.

        Args:
            banned: a mask ``(rows,)`` of what must not answer.
        """
        first, *others = self._parts(chosen)
        scan = partial(self._scan, rotated, k, banned=banned)
        if not others:
            return scan(first)
        # They wait asleep, unlike the threads of a BLAS: while one is held up, others lose no time to it.
        with ThreadPoolExecutor(len(others), thread_name_prefix="mmsearch-scan") as threads:
            found = threads.map(scan, others)
            return np.concatenate([scan(first), *found])

    def _parts(self, chosen: np.ndarray) -> list[np.ndarray]:
        """``chosen`` in as many parts, alike in size, as threads are to scan them."""
        ends = np.cumsum(self._lists.layout.sizes[chosen]) * self._lists.header.dim
        total = int(ends[-1]) if len(ends) else 0
        count = max(1, min(self._threads, total // _PART))
        parts = np.split(chosen, np.searchsorted(ends, total * np.arange(1, count) / count))
        return [part for part in parts if len(part)] or [chosen]

    def _scan(self, rotated: np.ndarray, k: int, chosen: np.ndarray, *, banned: np.ndarray | None) -> np.ndarray:
        """``candidates`` in this thread."""
        faiss, lists = self._faiss, self._lists
        total = int(lists.layout.sizes[chosen].sum())
        if total == 0:
            return np.zeros(0, np.int64)
        step = float(np.abs(rotated).max()) / 127
        question = np.rint(rotated / step).astype(np.float32)[None]  # FAISS would cut the fractions off
        doubt = lists.doubt(rotated, step)
        unit = step / lists.header.scale
        parameters: dict[str, Any] = {"nprobe": len(chosen)}
        if banned is not None:
            bits = np.packbits(~banned, bitorder="little")
            parameters["sel"] = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        search = faiss.SearchParametersIVF(**parameters)
        assign = np.ascontiguousarray(chosen[None], np.int64)
        nothing = np.zeros((1, len(chosen)), np.float32)
        want = min(total, k + _MORE)
        while True:
            scores = np.empty((1, want), np.float32)
            rows = np.empty((1, want), np.int64)
            self._index.search_preassigned_c(
                1,
                faiss.swig_ptr(question),
                want,
                faiss.swig_ptr(assign),
                faiss.swig_ptr(nothing),
                faiss.swig_ptr(scores),
                faiss.swig_ptr(rows),
                False,
                search,
            )
            bound = float(scores[0, min(k, want) - 1]) * unit - 2 * doubt
            found = rows[0] >= 0
            if want == total or not found.all() or float(scores[0, -1]) * unit < bound:
                good: np.ndarray = rows[0][found & (scores[0] * unit >= bound)]
                return good
            want = min(total, want * 4)


def over(lists: Lists) -> FaissLists | None:
    """FAISS for these lists, or None where it is not installed, cannot map files, or the file was replaced."""
    try:
        return FaissLists(lists)
    except (ImportError, AttributeError, RuntimeError, UnicodeError):
        return None


def import_faiss() -> Any:
    """The faiss module."""
    import faiss

    return faiss
