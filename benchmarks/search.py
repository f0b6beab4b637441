"""Time, recall, memory and opening of a search among many vectors: ours beside NumPy, plain FAISS kinds and usearch.

    python benchmarks/search.py                        # 10,000 and 100,000 vectors of 512, clustered and not
    python benchmarks/search.py --rows 1000000 --shape clustered --without hnsw usearch

``clustered``: 1,000 centres with noise around them. ``spread``: no clusters, a random rotation of a spectrum that falls
with the root of its place, much like that of an encoder's vectors. Questions are drawn like the vectors, and are not
among them. Recall is that of the best 10 against a scan of all. Each row is the median over the questions, taken in
``--rounds`` rounds in which the kinds take turns. Memory and opening of ours are those of a fresh process that opens
the index, asks 200 questions and ends. ``--vectors FILE.npy`` takes vectors that you have, a tenth of them, at most
200, as questions.

Set OPENBLAS_NUM_THREADS=1, as for a single question; with OMP_NUM_THREADS=1 a long scan of ours stays on one core, too.
Every kind of FAISS holds its own copy of the vectors: leave some out with ``--without`` where memory is short.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from indexer import derive
from indexer.index import Index
from indexer.lists import Lists
from indexer.types import Modality

QUESTIONS = 100
READING = "reading all codes once"
READING_BY_TWO = "the same, by two threads"
"""What no exact scan of them can beat, on one core and on two."""
KINDS = ("numpy", "flat", "sq8", "ivf", "hnsw", "usearch")


def rows_like(shape: str, count: int, dim: int, seed: int) -> np.ndarray:
    """``count`` unit float32 rows ``(count, dim)`` of one ``shape``; the same distribution for every seed."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(1)
    rows = rng.standard_normal((count, dim), dtype=np.float32)
    if shape == "clustered":
        centres = fixed.standard_normal((1000, dim), dtype=np.float32)
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        rows *= 0.05
        rows += centres[rng.integers(0, 1000, count)]
    else:
        rotation = np.linalg.qr(fixed.standard_normal((dim, dim)))[0].astype(np.float32)
        rows = (rows * np.arange(1, dim + 1, dtype=np.float32) ** -0.5) @ rotation
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def make_index(folder: Path, blocks: list[Callable[[], np.ndarray]], dim: int) -> float:
    """An index whose pictures have these vectors, made block by block; the seconds that its lists took."""
    index = Index.create(folder, encoder="benchmark", fingerprint="none", dim=dim)
    with index.writing() as writer:
        file = writer._vectors[Modality.IMAGE]
        for block in blocks:
            file.add(block())
        with writer.catalogue.write() as catalogue:
            catalogue.advance({Modality.IMAGE: file.rows})
    started = time.perf_counter()
    derive.derive(index)
    seconds = time.perf_counter() - started
    index.close()
    return seconds


def peers(matrix: np.ndarray, without: list[str]) -> dict[str, tuple[float, Callable[[np.ndarray, int], np.ndarray]]]:
    """Other ways to search ``matrix``: seconds to build, and what gives the rows of the ``k`` best."""
    import faiss

    faiss.omp_set_num_threads(1)
    count, dim = matrix.shape
    found: dict[str, tuple[float, Callable[[np.ndarray, int], np.ndarray]]] = {}

    def by_faiss(name: str, factory: str, **settings: int) -> None:
        started = time.perf_counter()
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(matrix[: 64 * 1024])
        index.add(matrix)
        seconds = time.perf_counter() - started
        for setting, value in settings.items():
            faiss.ParameterSpace().set_index_parameter(index, setting, value)
        found[name] = (seconds, lambda q, k: index.search(q[None], k)[1][0])

    if "numpy" not in without:
        found["NumPy, float32"] = (0.0, lambda q, k: np.argsort(-(matrix @ q), kind="stable")[:k])
    if "flat" not in without:
        by_faiss("FAISS Flat", "Flat")
    if "sq8" not in without:
        by_faiss("FAISS SQ8", "SQ8")
    if "ivf" not in without:
        lists = derive.list_count(count, dim)
        if lists > 1:
            for probes in (4, 16, 64):
                by_faiss(f"FAISS IVF{lists},SQ8 nprobe {probes}", f"IVF{lists},SQ8", nprobe=probes)
    if "hnsw" not in without:
        by_faiss("FAISS HNSW32 efSearch 256", "HNSW32", efSearch=256)
    if "usearch" not in without:
        try:
            from usearch.index import Index as Usearch
        except ImportError:
            print("usearch is not installed: left out")
        else:
            started = time.perf_counter()
            other = Usearch(ndim=dim, metric="ip", dtype="f16")
            other.add(np.arange(count), matrix, threads=1)
            found["usearch, float16"] = (
                time.perf_counter() - started,
                lambda q, k: np.asarray(other.search(q, k, threads=1).keys),
            )
    return found


def ask(folder: Path, questions: Path) -> None:
    """What a fresh process needs: printed as JSON for the process that started it."""
    asked = np.load(questions)
    before = time.perf_counter()
    index = Index.open(folder)
    with index.snapshot() as snapshot:
        file, dead = snapshot.vectors[Modality.IMAGE], snapshot.dead[Modality.IMAGE]
        opened = time.perf_counter()
        file.search(asked[0], 10, dead=dead)
        first = time.perf_counter()
        for question in asked[np.arange(200) % len(asked)]:
            file.search(question, 10, dead=dead)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    numbers = {name: int(status[name].split()[0]) / 1024 for name in ("VmHWM", "RssAnon", "RssFile")}
    print(json.dumps(numbers | {"open_ms": (opened - before) * 1e3, "first_ms": (first - opened) * 1e3}))


def best_of(matrix: np.ndarray, rows: np.ndarray, questions: np.ndarray) -> list[np.ndarray]:
    """The best ten of these rows for each question, by all of their numbers."""
    scores = questions @ np.asarray(matrix[rows]).T  # (Q, R)
    return [rows[np.argsort(-one, kind="stable")[:10]] for one in scores]


def read(lists: Lists, numbers: range) -> np.ndarray:
    """Read the codes of some lists, and do next to nothing with them."""
    return np.array([lists.codes(number).max() for number in numbers])


def compare(name: str, folder: Path, questions: np.ndarray, rounds: int, without: list[str], built: float) -> None:
    """Print the table of one set of vectors."""
    index = Index.open(folder)
    with index.snapshot() as snapshot, ThreadPoolExecutor(2) as threads:
        file = snapshot.vectors[Modality.IMAGE]
        matrix = np.asarray(file.matrix())
        truth = [np.argsort(-scores, kind="stable")[:10] for scores in (questions @ matrix.T)]
        lists = file.lists
        kinds = peers(matrix, without) if set(without) < set(KINDS) else {}
        rng = np.random.default_rng(0)
        kinds["ours"] = (built, lambda q, k: file.search(q, k)[1][0])
        if lists is not None:
            kinds["ours, all lists"] = (built, lambda q, k: file.search(q, k, probes=lists.count)[1][0])
            kinds[READING] = (0.0, lambda q, k: read(lists, range(lists.count)))
            halves = [range(0, lists.count, 2), range(1, lists.count, 2)]
            kinds[READING_BY_TWO] = (0.0, lambda q, k: np.concatenate([*threads.map(partial(read, lists), halves)]))
        only: dict[str, np.ndarray] = {}
        for allowed in (100, len(matrix) // 100, len(matrix) // 2):
            rows = np.sort(rng.choice(len(matrix), allowed, replace=False))
            only[limited := f"ours, {len(rows):,} rows allowed"] = rows
            kinds[limited] = (built, lambda q, k, rows=rows: file.search(q, k, allowed=rows)[1][0])
        kinds["ours, 50 answers"] = (built, lambda q, k: file.search(q, 50)[1][0])
        kinds["ours, 2,000 answers"] = (built, lambda q, k: file.search(q, 2000)[1][0])
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        recalls = {}
        for kind, (_, search) in kinds.items():
            got = [search(question, 10) for question in questions]
            wanted = truth if kind not in only else best_of(matrix, only[kind], questions)
            hits = [len(set(g[:10].tolist()) & set(t.tolist())) / 10 for g, t in zip(got, wanted, strict=True)]
            recalls[kind] = f"{np.mean(hits):.3f}" if kind not in (READING, READING_BY_TWO) else "–"
        for _ in range(rounds):
            for kind, (_, search) in kinds.items():
                took = []
                for question in questions:
                    started = time.perf_counter()
                    search(question, 10)
                    took.append(time.perf_counter() - started)
                times[kind].append(float(np.median(took)) * 1e3)
        used = (
            "no lists"
            if lists is None
            else f"{lists.count} lists, {lists.header.curve.needed(10, lists.recall)} looked into"
        )
        print(f"\n{name}: {len(matrix):,} × {matrix.shape[1]}, {used}\n")
        print("| | ms, median | least and most of the rounds | recall@10 | built in s |\n|---|---|---|---|---|")
        for kind, values in times.items():
            spread = f"{min(values):.2f}–{max(values):.2f}"
            print(f"| {kind} | {np.median(values):.2f} | {spread} | {recalls[kind]} | {kinds[kind][0]:.0f} |")
    index.close()
    asked = folder / "questions.npy"
    np.save(asked, questions)
    command = [sys.executable, __file__, "--ask", str(folder), str(asked)]
    alone = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"\nA process of its own: opened in {alone['open_ms']:.0f} ms, first question {alone['first_ms']:.0f} ms, at "
        f"most {alone['VmHWM']:.0f} MB after 200 questions ({alone['RssFile']:.0f} MB of it mapped files)"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--shape", nargs="+", choices=("clustered", "spread"), default=["clustered", "spread"])
    parser.add_argument("--vectors", type=Path, help="a .npy file of unit rows, instead of made-up ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", choices=KINDS, default=[], help="peers to leave out")
    parser.add_argument("--folder", type=Path, help="where to make the indexes; else a temporary folder")
    parser.add_argument("--ask", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        ask(*options.ask)
        return
    sets: list[tuple[str, list[Callable[[], np.ndarray]], np.ndarray]] = []
    if options.vectors:
        rows = np.load(options.vectors).astype(np.float32)
        order = np.random.default_rng(0).permutation(len(rows))
        cut = min(200, len(rows) // 10)
        sets.append((options.vectors.name, [lambda: rows[order[cut:]]], rows[order[:cut]]))
    else:
        for count in options.rows:
            for shape in options.shape:
                blocks = [
                    partial(rows_like, shape, min(50_000, count - s), options.dim, 100 + s)
                    for s in range(0, count, 50_000)
                ]
                sets.append((shape, blocks, rows_like(shape, QUESTIONS, options.dim, 7)))
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    for name, blocks, questions in sets:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            built = make_index(Path(folder) / "index", blocks, questions.shape[1])
            compare(name, Path(folder) / "index", questions, options.rounds, options.without, built)


if __name__ == "__main__":
    main()
