"""Vectors on GPUs: every row as float16, scanned whole, what may be among the best scored again on the CPU.

A GPU reads a million rows in about the time in which a CPU finds the right lists, so there are no lists here. The file
of vectors stays the truth: a GPU holds a copy, knows of no removal and no filter, and gives at most ``MOST`` answers;
whatever it cannot answer, the CPU does. What decides that, and what goes where, is plain arithmetic; ``load`` alone
touches a GPU.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.faiss_lists import import_faiss

if TYPE_CHECKING:
    from indexer.vectors import VectorFile

MOST = 2048
"""Answers that FAISS gives on a GPU at most (``GPU_MAX_SELECTION_K``)."""

_SCRATCH = 1 << 30
"""Bytes of a GPU that are left to FAISS, 1 GB, beside the vectors."""
_BLOCK = 65536
"""Rows brought to a GPU at a time."""
_MORE = 128
"""Rows fetched beyond k: what is within rounding of the k-th best is usually among them."""
_LOAD_AFTER = 8
"""Questions after which the vectors are brought to the GPUs: a single one would wait for it."""
_TAIL_SHARE = 1 / 16
"""The copy is brought up to date when so large a share of the rows is missing from it."""


def placements(rows: int, dim: int, free: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """What to try, in turn: GPUs, by their places in ``free``, of which each holds an equal part of ``rows`` vectors.

    Those with the most room come first, and no more of them than it takes: questions come one at a time, and a second
    copy would answer none. As memory may be less than the ``free`` bytes of each, more of them are tried then.
    1,000,000 × 512 are 1.02 GB: with 4 and 1.5 GB free, that is the first GPU alone, and then both if its room is gone.
    """
    need = 2 * rows * dim
    room = [bytes_ - _SCRATCH for bytes_ in free]
    largest = sorted(range(len(room)), key=lambda i: (-room[i], i))
    for count in range(1, len(room) + 1):
        if room[largest[count - 1]] >= -(-need // count):
            yield tuple(sorted(largest[:count]))


class HalfScan:
    """FAISS indexes of float16, each with the numbers ``(M,)`` of the rows that it holds, of a file of ``rows``."""

    def __init__(self, parts: Sequence[tuple[Any, np.ndarray]], rows: int) -> None:
        self._parts = parts
        self.rows = rows

    def candidates(self, query: np.ndarray, k: int, dead: np.ndarray) -> np.ndarray | None:
        """Rows among which are the ``k`` best for ``query`` ``(D,)`` that are not ``dead`` ``(R,)``, or None.

        None means that more than ``MOST`` rows would have to be looked at.
        """
        gone = sum(int(np.isin(dead, names).sum()) for _, names in self._parts)
        # Question and vectors are each rounded to float16: twice 2^-11, by the inequality of Cauchy and Schwarz.
        doubt = 2.2 * 2.0**-11 * float(np.linalg.norm(query))
        want = k + gone + _MORE
        while want <= MOST:
            pools, below = [], -np.inf  # what was found, and the best score that what was not found may have
            for index, names in self._parts:
                scores, found = index.search(np.ascontiguousarray(query[None], np.float32), min(want, len(names)))
                pools.append((scores[0], names[found[0]]))
                if want < len(names):
                    below = max(below, float(scores[0, -1]))
            scores, rows = (np.concatenate(arrays) for arrays in zip(*pools, strict=True))
            alive = ~np.isin(rows, dead)
            scores, rows = scores[alive], rows[alive]
            kth = float(np.partition(scores, len(scores) - k)[len(scores) - k]) if k < len(scores) else -np.inf
            if below < kth - 2 * doubt or below == -np.inf:
                good: np.ndarray = rows[scores >= kth - 2 * doubt]
                return good
            want *= 4
        return None


class GpuSearch:
    """The copy of one vector file on GPUs, made once it pays and again as the file grows. Thread-safe."""

    def __init__(self, numbers: Sequence[int] | None = None) -> None:
        """On GPUs of these ``numbers``; on any of them for None."""
        self._numbers = numbers
        self._asked = 0
        self._scan: HalfScan | None = None
        self._impossible_for = -1
        self._lock = threading.Lock()

    def candidates(
        self, file: VectorFile, query: np.ndarray, k: int, dead: np.ndarray
    ) -> tuple[np.ndarray, int] | None:
        """Rows among which are the ``k`` best of the first so many rows, and how many those are; None: ask the CPU."""
        with self._lock:  # FAISS on a GPU serves one thread at a time
            self._asked += 1
            if self._asked <= _LOAD_AFTER or self._impossible_for == file.rows:
                return None
            scan = self._scan
            if scan is None or scan.rows < (1 - _TAIL_SHARE) * file.rows:
                self._scan = None  # room for the next
                scan = self._scan = load(file, dead, self._numbers)
                if scan is None:
                    self._impossible_for = file.rows
                    return None
            if scan.rows > file.rows:
                return None
            found = scan.candidates(query, k, dead)
            return None if found is None else (found, scan.rows)


def load(file: VectorFile, dead: np.ndarray, numbers: Sequence[int] | None = None) -> HalfScan | None:
    """Bring the rows of ``file`` that are not ``dead`` to GPUs of these ``numbers``, or to any of them.

    None without GPUs, their FAISS, or room for it.
    """
    try:
        faiss = import_faiss()
        there = [i for i in range(faiss.get_num_gpus()) if numbers is None or i in numbers]
        resources = {i: faiss.StandardGpuResources() for i in there}
        options = faiss.GpuMultipleClonerOptions()
    except (ImportError, AttributeError, RuntimeError):
        return None
    names = np.setdiff1d(np.arange(file.rows), dead, assume_unique=True)
    options.useFloat16 = True
    for places in placements(len(names), file.dim, _free_memory(there)) if len(names) else ():
        parts = []  # one on each: the shards of FAISS itself cannot be filled block by block
        try:
            for i, part in zip((there[place] for place in places), np.array_split(names, len(places)), strict=True):
                index = faiss.index_cpu_to_gpu_multiple_py([resources[i]], faiss.IndexFlatIP(file.dim), options, [i])
                for start in range(0, len(part), _BLOCK):
                    index.add(file.fetch(part[start : start + _BLOCK]))
                parts.append((index, part))
        except RuntimeError:  # out of memory after all: there never was so much, or somebody else took it
            continue
        return HalfScan(parts, file.rows)
    return None


def _free_memory(numbers: Sequence[int]) -> list[int]:
    """Free bytes of each of these GPUs. FAISS does not tell; torch does, where it is loaded; else it is tried."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return [1 << 62] * len(numbers)
    return [int(torch.cuda.mem_get_info(i)[0]) for i in numbers]
