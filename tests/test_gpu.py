"""Search on GPUs: where vectors go, and the scan of float16 itself, with an index of float16 on the CPU for the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest

from indexer import gpu
from indexer.gpu import GpuSearch, HalfScan, placements
from indexer.vectors import VectorFile

GB = 1 << 30


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ([4 * GB], [(0,)]),
        ([4 * GB, int(1.5 * GB)], [(0,), (0, 1)]),
        ([int(1.6 * GB), 4 * GB, 3 * GB], [(1,), (1, 2), (0, 1, 2)]),
        ([8 * GB, GB], [(0,)]),
        ([int(1.5 * GB), int(1.5 * GB)], [(0, 1)]),
        ([int(1.4 * GB), GB, int(1.4 * GB), int(1.4 * GB)], [(0, 2, 3)]),
        ([int(1.5 * GB)], []),
        ([GB // 2] * 8, []),
        ([], []),
    ],
)
def test_where_a_gigabyte_goes(free: list[int], expected: list[tuple[int, ...]]) -> None:
    """1,000,000 × 512 as float16 are 1.02 GB (0.95 of 2^30), and 2^30 bytes of every GPU are left to FAISS."""
    assert list(placements(1_000_000, 512, free)) == expected


class Gpus:
    """A FAISS with two GPUs, each of which holds so many rows, in an index of float16 on the CPU."""

    StandardGpuResources = object

    class GpuMultipleClonerOptions:
        useFloat16 = False

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.groups: list[tuple[list[int], int]] = []
        self.IndexFlatIP = faiss.IndexFlatIP

    def get_num_gpus(self) -> int:
        return 2

    def index_cpu_to_gpu_multiple_py(
        self, resources: list[object], index: faiss.Index, options: object, gpus: list[int]
    ):
        assert options.useFloat16 and len(resources) == len(gpus)  # type: ignore[attr-defined]
        made = half(np.eye(index.d, dtype=np.float32))
        made.reset()
        return Filling(made, self, gpus)


class Filling:
    """An index that has no room for more than its GPU has."""

    def __init__(self, index: faiss.Index, faiss_: Gpus, gpus: list[int]) -> None:
        self.index, self.faiss, self.gpus = index, faiss_, gpus
        self.search = index.search

    def add(self, rows: np.ndarray) -> None:
        self.index.add(rows)
        self.faiss.groups.append((self.gpus, self.index.ntotal))
        if self.index.ntotal > self.faiss.rows:
            raise RuntimeError("Error in void* allocMemory: cudaMalloc error out of memory")


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        (600, [([0], 598)]),
        (300, [([0], 598), ([0], 299), ([1], 299)]),
        (200, [([0], 598), ([0], 299)]),
    ],
)
def test_vectors_that_do_not_fit_on_one_gpu_are_shared_out(
    rows: int, groups: list[tuple[list[int], int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 600 rows two are gone. Where there is no room for half of them either, the CPU answers."""
    gpus = Gpus(rows)
    monkeypatch.setattr(gpu, "import_faiss", lambda: gpus)
    monkeypatch.setattr(gpu, "_free_memory", lambda there: [1 << 62] * len(there))
    rng = np.random.default_rng(0)
    file = VectorFile(tmp_path / "v", 16, 0, write=True)
    vectors = unit(rng, 600)
    file.add(vectors)
    dead = np.array([5, 9])
    found = gpu.load(file, dead)
    assert gpus.groups == groups
    if rows == 200:
        assert found is None
        return
    assert found is not None
    everything = found.candidates(vectors[3], 600, np.zeros(0, np.int64))
    assert everything is not None and sorted(everything.tolist()) == [i for i in range(600) if i not in dead]
    candidates = found.candidates(vectors[3], 1, dead)
    assert candidates is not None and 3 in candidates


def unit(rng: np.random.Generator, count: int, dim: int = 16) -> np.ndarray:
    rows = rng.standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def half(rows: np.ndarray) -> faiss.Index:
    index = faiss.IndexScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    return index


def scan(rows: np.ndarray, parts: int, dead: np.ndarray) -> HalfScan:
    names = np.setdiff1d(np.arange(len(rows)), dead)
    return HalfScan([(half(rows[part]), part) for part in np.array_split(names, parts)], len(rows))


@pytest.mark.parametrize("parts", [1, 3])
def test_candidates_hold_the_exact_answer(parts: int) -> None:
    rng = np.random.default_rng(parts)
    rows = unit(rng, 3000)
    rows[1500:1900] = rows[:400]  # ties
    before = np.sort(rng.choice(3000, 50, replace=False))
    found = scan(rows, parts, before)
    dead = np.union1d(before, rng.choice(3000, 60, replace=False))
    for query in 5 * unit(rng, 10):
        for k in (1, 10, 150):
            candidates = found.candidates(query, k, dead)
            assert candidates is not None and not set(candidates.tolist()) & set(dead.tolist())
            alive = np.setdiff1d(np.arange(3000), dead)
            scores = rows[alive].astype(np.float64) @ query
            best = alive[np.lexsort((alive, -scores))[:k]]
            assert set(best.tolist()) <= set(candidates.tolist())
        assert found.candidates(query, 2000, dead) is None  # more than a GPU gives
    small = scan(rows[:30], parts, np.zeros(0, np.int64))
    everything = small.candidates(rows[0], 100, np.array([3, 4]))
    assert everything is not None and sorted(everything.tolist()) == [i for i in range(30) if i not in (3, 4)]


def test_a_file_with_a_copy_on_a_gpu_answers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy lacks the newest rows, and what was removed since; filters and long lists go to the CPU."""
    rng = np.random.default_rng(8)
    rows = unit(rng, 2100)
    file = VectorFile(tmp_path / "v", 16, 0, write=True)
    file.add(rows)
    plain = VectorFile(tmp_path / "v", 16, 2100)
    loaded = []

    def load(_file: VectorFile, dead: np.ndarray, numbers: Sequence[int] | None) -> HalfScan:
        assert numbers == (0, 1)
        loaded.append(len(dead))
        return scan(rows[:2000], 2, dead)

    monkeypatch.setattr(gpu, "load", load)
    file.gpu = GpuSearch((0, 1))
    dead = np.array([7, 2050])
    for i, query in enumerate(unit(rng, 12)):
        for keywords in ({}, {"allowed": np.arange(100, 2100)}):
            for k in (10, 2500):
                np.testing.assert_array_equal(
                    file.search(query, k, dead=dead, **keywords)[1], plain.search(query, k, dead=dead, **keywords)[1]
                )
        assert loaded == ([2] if i >= 4 else [])  # two questions a round could go there, and the ninth brings it


def test_without_a_gpu_the_cpu_answers(tmp_path: Path) -> None:
    if faiss.get_num_gpus():
        pytest.skip("there is a GPU")
    rng = np.random.default_rng(0)
    file = VectorFile(tmp_path / "v", 16, 0, write=True)
    file.add(unit(rng, 50))
    file.gpu = GpuSearch()
    expected = VectorFile(tmp_path / "v", 16, 50).search(unit(rng, 1), 5)[1]
    rng = np.random.default_rng(0)
    unit(rng, 50)
    query = unit(rng, 1)
    for _ in range(12):
        np.testing.assert_array_equal(file.search(query, 5)[1], expected)
    assert gpu.load(file, np.zeros(0, np.int64)) is None


def test_a_gpu_finds_what_the_cpu_finds(tmp_path: Path) -> None:
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        pytest.skip("needs faiss-gpu and a GPU; neither is here")
    rng = np.random.default_rng(0)
    file = VectorFile(tmp_path / "v", 16, 0, write=True)
    file.add(unit(rng, 5000))
    plain = VectorFile(tmp_path / "v", 16, 5000)
    file.gpu = GpuSearch()
    for query in unit(rng, 20):
        np.testing.assert_array_equal(file.search(query, 10)[1], plain.search(query, 10)[1])
    assert file.gpu._scan is not None
