"""A graph of the vectors on a GPU (CAGRA), for corpora of which even a GPU does not read every row in no time.

Ootomo et al. 2024, arXiv:2308.15136. FAISS has it where it was built with cuVS (the package ``faiss-gpu-cuvs``). A
question walks from vector to vector towards its neighbours; how many candidates it keeps on the way decides how many of
the best it finds. That is measured here, on questions whose exact answers the scan of all rows gives, and where no
width finds enough, the scan stays. The graph holds float16; its answers are scored again on the CPU, as those of the
scan are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.faiss_lists import import_faiss
from indexer.recall import DEPTHS

DEGREE, INTERMEDIATE_DEGREE = 64, 128
"""Neighbours of a vector in the graph, and in the one that it is pruned from: FAISS's own choice."""
WIDTHS = (64, 128, 256, 512)
"""Candidates kept on the way; cuVS keeps 512 at most where one block of threads walks for one question."""
PAYS_FROM = 4 << 30
"""Bytes of float16 from which on a graph pays: so much is read in 4 ms at 1 TB/s; 4.2 million rows of 512."""
_BLOCK = 65536
_MORE = 16
"""Candidates fetched beyond k: float16 swaps neighbours."""

Search = Callable[[np.ndarray, int, int], np.ndarray]
"""Questions ``(Q, D)``, how many answers, and how many candidates to keep: places of rows ``(Q, n)``, -1 for none."""


def pays(rows: int, dim: int) -> bool:
    """Whether a graph answers so much sooner than a scan that it is worth building."""
    return 2 * rows * dim >= PAYS_FROM


def needed_bytes(rows: int, dim: int) -> int:
    """Bytes of a GPU that building a graph takes: vectors, and both graphs, whose edges are of 4 bytes.

    5,000,000 × 512 are 5.1 GB and 3.8 GB.
    """
    return rows * (2 * dim + 4 * (DEGREE + INTERMEDIATE_DEGREE))


def roomiest(free: Sequence[int], need: int) -> int | None:
    """The place of the GPU with the most ``free`` bytes, if it has ``need`` of them."""
    best = max(range(len(free)), key=lambda i: (free[i], -i), default=None)
    return best if best is not None and free[best] >= need else None


@dataclass(frozen=True, slots=True)
class Widths:
    """For each of ``DEPTHS`` the width with which so many of the best are found, or None."""

    of_depths: tuple[int | None, ...]

    def needed(self, k: int) -> int | None:
        """The width for ``k`` answers; None if the scan is to find them."""
        return next((width for depth, width in zip(DEPTHS, self.of_depths, strict=True) if k <= depth), None)


def choose_widths(exact: Sequence[np.ndarray], find: Callable[[int, int, int], np.ndarray], target: float) -> Widths:
    """The smallest width for each depth with which every group of questions gets the share ``target``, less the error.

    Args:
        exact: the true answers of each group, best first, ``(Q, K)``; a depth beyond K is not measured.
        find: of a group, by its number, with a depth and a width, what is found ``(Q, depth)``.
    """
    chosen: list[int | None] = []
    for depth in DEPTHS:
        widths = (w for w in WIDTHS if w >= depth + _MORE and all(depth <= rows.shape[1] for rows in exact))
        chosen.append(
            next(
                (w for w in widths if all(_enough(rows, find(g, depth, w), target) for g, rows in enumerate(exact))),
                None,
            )
        )
    return Widths(tuple(chosen))


def _enough(exact: np.ndarray, found: np.ndarray, target: float) -> bool:
    """Whether recall, less its standard error, is ``target``: as ``indexer.recall`` has it."""
    depth = found.shape[1]
    shares = np.array([np.isin(one[:depth], two).mean() for one, two in zip(exact, found, strict=True)])
    return float(shares.mean() - shares.std() / np.sqrt(len(shares))) >= target


class GraphSearch:
    """A graph over the rows ``names`` ``(M,)`` of a file, and how widely it is to be searched."""

    def __init__(self, search: Search, names: np.ndarray, widths: Widths) -> None:
        self._search = search
        self._names = names
        self._widths = widths

    def candidates(self, query: np.ndarray, k: int, dead: np.ndarray) -> np.ndarray | None:
        """Rows among which the ``k`` best for ``query`` ``(D,)`` not ``dead`` ``(R,)`` are on the whole, or None.

        None if the scan is to answer: so many were not measured, or too many of those that were found are dead.
        """
        width = self._widths.needed(k)
        if width is None:
            return None
        places = self._search(query[None], min(width, len(self._names)), width)[0]
        rows: np.ndarray = self._names[places[places >= 0]]
        rows = rows[~np.isin(rows, dead)]
        return rows if len(rows) >= min(k + _MORE, len(self._names)) else None


def available() -> bool:
    """Whether the FAISS that is installed can build such graphs."""
    try:
        faiss = import_faiss()
    except (ImportError, RuntimeError):  # without the libraries of cuVS it is not even imported
        return False
    return "CUVS" in faiss.get_compile_options() and hasattr(faiss, "GpuIndexCagra")


def build(fetch: Callable[[np.ndarray], np.ndarray], names: np.ndarray, dim: int, gpu: int) -> Search | None:
    """A graph over the rows ``names`` that ``fetch`` gives, on the GPU of that number; None if memory does not suffice.

    Raises:
        ImportError, AttributeError: this FAISS has none; see ``available``.
    """
    faiss = import_faiss()
    settings = faiss.GpuIndexCagraConfig()
    settings.device = gpu
    settings.graph_degree, settings.intermediate_graph_degree = DEGREE, INTERMEDIATE_DEGREE
    try:
        vectors = np.empty((len(names), dim), np.float16)
        for start in range(0, len(names), _BLOCK):
            vectors[start : start + _BLOCK] = fetch(names[start : start + _BLOCK])
        resources = faiss.StandardGpuResources()
        index: Any = faiss.GpuIndexCagra(resources, dim, faiss.METRIC_INNER_PRODUCT, settings)
        index.train(vectors, numeric_type=faiss.Float16)
    except (MemoryError, RuntimeError):
        return None

    def search(queries: np.ndarray, count: int, width: int) -> np.ndarray:
        assert resources is not None and vectors is not None  # both live as long as the index
        parameters = faiss.SearchParametersCagra()
        parameters.itopk_size = width
        _, places = index.search(
            np.ascontiguousarray(queries, np.float16), count, params=parameters, numeric_type=faiss.Float16
        )
        found: np.ndarray = places
        return found

    return search
