"""Search lists: against brute force, with filters, removals, additions; how they are made, damaged, swapped, tuned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from indexer import clustering, derive, faiss_lists, recall
from indexer.changes import Piece, Put, Remove
from indexer.exact import distinct, reach_down
from indexer.faiss_lists import FaissLists
from indexer.index import Index
from indexer.lists import Lists, header_path, open_lists, read_header, write_header
from indexer.recall import Curve
from indexer.types import Asset, Modality
from indexer.vectors import VectorFile, vector_path

pytestmark = pytest.mark.slow(reason="makes indexes of many rows")

DIM = 32
GENERATION = 1


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists from 1,000 vectors on, more than one from 2,000 on, and a tail of 200 or a 16th is added to them."""
    monkeypatch.setattr(derive, "BYTES_FROM", 1000 * DIM)
    monkeypatch.setattr(derive, "LISTS_FROM", 2000 * DIM)
    monkeypatch.setattr(derive, "_TAIL_LEAST", 200 * DIM)
    monkeypatch.setattr(derive, "_TAIL_SHARE", 1 / 16)
    monkeypatch.setattr(derive, "_SAMPLE", 16)  # as in a large corpus, most rows are none that centroids were made of


def vectors(rng: np.random.Generator, count: int, *, clusters: int = 0, equal: int = 0) -> np.ndarray:
    """Unit rows of decaying spectrum, or around ``clusters`` points; the last ``equal`` of them repeat the first."""
    rows = rng.standard_normal((count, DIM)) * np.arange(1, DIM + 1) ** -0.5
    if clusters:
        centres = np.random.default_rng(9).standard_normal((clusters, DIM))
        rows = centres[rng.integers(0, clusters, count)] + 0.3 * rng.standard_normal((count, DIM))
    if equal:
        rows[-equal:] = rows[:equal]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def asset(key: str) -> Asset:
    return Asset("", Modality.IMAGE, 0, 0, b"", key=key)


def put(index: Index, key: str, rows: np.ndarray) -> int:
    """Add one asset with a piece for each row; its number."""
    with index.writing() as writer:
        return writer.apply([Put(asset(key), [Piece(Modality.IMAGE)] * len(rows), rows)])[0]


def make(folder: Path, rows: np.ndarray) -> Index:
    index = Index.create(folder, encoder="e", fingerprint="f", dim=DIM)
    put(index, "first", rows)
    return index


def brute(matrix: np.ndarray, query: np.ndarray, k: int, alive: np.ndarray) -> tuple[list[float], list[int]]:
    """The definition: every alive row scored in float64, best first, ties to the smaller row."""
    scores = np.sum(matrix[alive].astype(np.float64) * query, axis=1)
    order = np.lexsort((alive, -scores))[:k]
    return scores[order].tolist(), alive[order].tolist()


def current(index: Index) -> tuple[VectorFile, np.ndarray]:
    with index.snapshot() as snapshot:
        return snapshot.vectors[Modality.IMAGE], snapshot.dead[Modality.IMAGE]


def lists_of(index: Index) -> Lists:
    file, _ = current(index)
    assert file.lists is not None
    return file.lists


ENGINES = ("numpy", "faiss", "faiss in threads")


def side_by_side(monkeypatch: pytest.MonkeyPatch, engine: str, rows: int) -> None:
    """Let FAISS scan lists of so many rows in three threads, or in one."""
    monkeypatch.setattr(faiss_lists, "cores", lambda: 3 if engine == "faiss in threads" else 1)
    monkeypatch.setattr(faiss_lists, "_PART", rows * DIM // 4)


@pytest.mark.parametrize(("count", "lists"), [(1500, 1), (3000, 64)])
@pytest.mark.parametrize("engine", ENGINES)
def test_all_lists_together_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, lists: int, engine: str
) -> None:
    side_by_side(monkeypatch, engine, count)
    rng = np.random.default_rng(count)
    rows = vectors(rng, count, equal=40)
    index = make(tmp_path, rows)
    assert derive.derive(index)
    file, dead = current(index)
    assert file.lists is not None and file.lists.count == lists
    file.lists._searches = -1000 if engine == "numpy" else 1000
    for query in 3 * vectors(rng, 8):
        for k in (1, 10, 400, count + 5):
            scores, found = file.search(query, k, dead=dead, probes=lists)
            expected_scores, expected = brute(rows, query, k, np.arange(count))
            assert found[0][: len(expected)].tolist() == expected
            np.testing.assert_allclose(scores[0][: len(expected)], expected_scores, atol=1e-12)
            assert (found[0][len(expected) :] == -1).all()
    if engine == "numpy":
        assert file.lists._faiss is None
    else:
        assert isinstance(file.lists._faiss, FaissLists)
        parts = file.lists._faiss._parts(np.arange(lists))
        assert len(parts) == (3 if engine == "faiss in threads" and lists > 1 else 1)
        np.testing.assert_array_equal(np.concatenate(parts), np.arange(lists))
    index.close()


@pytest.mark.parametrize("clusters", [0, 50])
def test_recall_is_what_was_asked_for(tmp_path: Path, clusters: int) -> None:
    rng = np.random.default_rng(clusters)
    rows = vectors(rng, 4000, clusters=clusters)
    index = make(tmp_path, rows)
    for target in (0.9, 0.99, 1.0):
        assert derive.derive(index, recall=target)
        file, dead = current(index)
        queries = vectors(rng, 80, clusters=clusters)
        for k in (10, 50):
            _, found = file.search(queries, k, dead=dead)
            right = [
                len(set(got.tolist()) & set(brute(rows, query, k, np.arange(4000))[1])) / k
                for got, query in zip(found, queries, strict=True)
            ]
            assert np.mean(right) >= target - 0.01
        needed = lists_of(index).header.curve.needed(10, target)
        assert needed == 64 if target == 1 else needed < 45
    index.close()


def test_additions_and_removals_against_brute_force(tmp_path: Path) -> None:
    """Random steps; after each, no removed row answers, every new one can, and what is found is scored right."""
    rng = np.random.default_rng(5)
    index = make(tmp_path, vectors(rng, 2500))
    assets: dict[int, list[int]] = {1: list(range(2500))}
    everything = vectors(np.random.default_rng(5), 2500)
    built = set()
    for step in range(24):
        action = rng.integers(3)
        if action == 0 and len(assets) > 1:
            gone = int(rng.choice([a for a in assets if a != 1]))
            del assets[gone]
            with index.writing() as writer:
                writer.apply([Remove([gone])])
        elif action == 1:
            derive.derive(index)
        else:
            new = vectors(rng, int(rng.integers(1, 300)))
            number = put(index, f"a{step}", new)
            assets[number] = list(range(len(everything), len(everything) + len(new)))
            everything = np.concatenate([everything, new])
        file, dead = current(index)
        alive = np.array(sorted(row for rows in assets.values() for row in rows))
        assert sorted(set(range(len(everything))) - set(alive.tolist())) == dead.tolist()
        if file.lists is not None:
            built.add(file.lists.rows)
        query = vectors(rng, 1)[0]
        scores, found = file.search(query, 10, dead=dead)
        _, expected = brute(everything, query, 10, alive)
        assert len(set(found[0].tolist()) & set(expected)) >= 8
        assert set(found[0].tolist()) <= set(alive.tolist())
        np.testing.assert_allclose(scores[0], everything[found[0]].astype(np.float64) @ query, atol=1e-12)
        _, exact = file.search(query, 10, dead=dead, probes=10**6)
        assert exact[0].tolist() == expected
        keep = np.sort(rng.choice(alive, int(rng.integers(1, len(alive))), replace=False))
        _, filtered = file.search(query, 10, allowed=keep, dead=dead, probes=10**6)
        assert filtered[0].tolist() == (brute(everything, query, 10, keep)[1] + [-1] * 10)[:10]
    assert len(built) > 2  # it was extended or built anew on the way
    index.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_filter_finds_rows_that_are_far_from_the_question(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of the rows may answer, all from the clusters that are farthest from the question."""
    monkeypatch.setattr("indexer.vectors._FEW", 5)
    monkeypatch.setattr("indexer.lists._FILTERED_LEAST", 0)
    side_by_side(monkeypatch, engine, 1000)
    rng = np.random.default_rng(3)
    rows = vectors(rng, 4000, clusters=40)
    index = make(tmp_path, rows)
    derive.derive(index)
    file, dead = current(index)
    assert file.lists is not None
    file.lists._searches = -1000 if engine == "numpy" else 1000
    right = []
    for query in vectors(rng, 30, clusters=40):
        far = np.sort(np.argsort(rows @ query)[:400])
        _, found = file.search(query, 10, allowed=far, dead=dead)
        right.append(len(set(found[0].tolist()) & set(brute(rows, query, 10, far)[1])) / 10)
        few = np.sort(rng.choice(4000, 5, replace=False))
        assert file.search(query, 10, allowed=few)[1][0].tolist() == brute(rows, query, 5, few)[1] + [-1] * 5
    assert np.mean(right) >= 0.97
    index.close()


def test_numpy_and_faiss_find_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    rows = vectors(rng, 3000, equal=500)
    index = make(tmp_path, rows)
    derive.derive(index)
    file, _ = current(index)
    assert file.lists is not None
    for query in vectors(rng, 20):
        dead = np.sort(rng.choice(3000, 300, replace=False))
        answers = []
        for searches in (-1000, 1000):
            file.lists._searches = searches
            answers.append(file.search(query, 25, dead=dead))
        np.testing.assert_array_equal(answers[0][1], answers[1][1])
        np.testing.assert_array_equal(answers[0][0], answers[1][0])
    index.close()


def test_a_removed_vector_leaves_the_lists_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    index = make(tmp_path, vectors(rng, 1500))
    secret = put(index, "secret", vectors(rng, 3))
    derive.derive(index)
    before = lists_of(index)
    assert before.rows == 1503
    kept = before.codes(0)[:1500].copy()
    with index.writing() as writer:
        writer.apply([Remove([secret])])
    lists = open_lists(tmp_path, Modality.IMAGE, GENERATION, DIM)
    assert lists is not None
    assert lists.ids(0)[-3:].tolist() == [1500, 1501, 1502]
    assert not lists.codes(0)[-3:].any()
    np.testing.assert_array_equal(lists.codes(0)[:1500], kept)
    assert lists.faults() == []
    with index.writing() as writer:
        assert writer.verify().sound
    index.close()


def test_a_reader_goes_on_while_lists_are_swapped(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = vectors(rng, 2500)
    index = make(tmp_path, rows)
    derive.derive(index)
    other = Index.open(tmp_path)
    query = vectors(rng, 1)[0]
    with other.snapshot() as snapshot:
        file = snapshot.vectors[Modality.IMAGE]
        old = file.lists
        assert old is not None
        put(index, "more", vectors(rng, 400))
        assert derive.derive(index)
        assert not old.path.exists() or sys.platform == "win32"
        assert file.search(query, 10, probes=64)[1][0].tolist() == brute(rows, query, 10, np.arange(2500))[1]
    with other.snapshot() as snapshot:
        fresh = snapshot.vectors[Modality.IMAGE].lists
        assert fresh is not None and fresh is not old and fresh.rows == 2900
    assert len(list((tmp_path / "lists").glob("*.lists"))) == 1
    other.close()
    index.close()


def damage_codes(folder: Path) -> None:
    (path,) = (folder / "lists").glob("*.lists")
    data = bytearray(path.read_bytes())
    data[-20_000:] = bytes(20_000)
    path.write_bytes(data)


def damage_head(folder: Path) -> None:
    (path,) = (folder / "lists").glob("*.lists")
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    (path,) = (folder / "lists").glob("*.lists")
    path.write_bytes(path.read_bytes()[:-1])


def remove_file(folder: Path) -> None:
    (path,) = (folder / "lists").glob("*.lists")
    path.unlink()


def garble_header(folder: Path) -> None:
    header_path(folder, Modality.IMAGE, GENERATION).write_text('{"file": "x"}', encoding="utf-8")


def name_another_file(folder: Path) -> None:
    path = header_path(folder, Modality.IMAGE, GENERATION)
    values = json.loads(path.read_text(encoding="utf-8"))
    values["file"] = "../../etc/passwd"
    path.write_text(json.dumps(values), encoding="utf-8")


def numbers_out_of_range(folder: Path) -> None:
    """A file whose every row number is one that no row has; header and sizes are right."""
    lists = open_lists(folder, Modality.IMAGE, GENERATION, DIM, write=True)
    assert lists is not None
    for number in range(lists.count):
        lists.ids(number)[:] = 10**12 if number % 2 else -7


@pytest.mark.parametrize(
    "damage",
    [damage_codes, damage_head, cut, remove_file, garble_header, name_another_file, numbers_out_of_range],
)
def test_damaged_lists_fail_no_question_and_are_made_again(tmp_path: Path, damage: object) -> None:
    rng = np.random.default_rng(4)
    rows = vectors(rng, 2500)
    index = make(tmp_path, rows)
    derive.derive(index)
    index.close()
    damage(tmp_path)  # type: ignore[operator]
    query = vectors(rng, 1)[0]
    for searches in (-1000, 1000):
        index = Index.open(tmp_path)
        file, dead = current(index)
        if file.lists is not None:
            file.lists._searches = searches
        scores, found = file.search(query, 10, dead=dead)
        good = found[0][found[0] >= 0]
        np.testing.assert_allclose(scores[0][: len(good)], rows[good].astype(np.float64) @ query, atol=1e-12)
        index.close()
    index = Index.open(tmp_path)
    with index.writing() as writer:
        report = writer.verify()
    assert report.lost == ()
    assert derive.derive(index)
    file, dead = current(index)
    assert file.lists is not None and file.lists.faults() == []
    assert file.search(query, 10, probes=64)[1][0].tolist() == brute(rows, query, 10, np.arange(2500))[1]
    index.close()


def test_lists_of_another_generation_are_swept_and_made_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    rows = vectors(rng, 2600)
    index = make(tmp_path, rows[:2500])
    gone = put(index, "gone", rows[2500:])
    derive.derive(index)
    with index.writing() as writer:
        writer.apply([Remove([gone])])
        writer.compact()
    assert current(index)[0].lists is None
    assert list((tmp_path / "lists").iterdir()) == []
    assert derive.derive(index)
    assert lists_of(index).rows == 2500
    index.close()


def test_what_a_killed_build_left_is_swept(tmp_path: Path) -> None:
    index = make(tmp_path, vectors(np.random.default_rng(7), 1500))
    derive.derive(index, recall=0.9)
    names = sorted(path.name for path in (tmp_path / "lists").iterdir())
    for name in ("image-00001-002.lists.new", "image-00001-002.lists", "image-00001.json.new"):
        (tmp_path / "lists" / name).write_bytes(b"half")
    with index.writing():
        pass
    assert sorted(path.name for path in (tmp_path / "lists").iterdir()) == names
    assert names == ["image-00001-001.lists", "image-00001.json", "recall.json"]
    assert lists_of(index).recall == 0.9
    index.close()


def test_lists_newer_than_a_reader_are_not_used(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    rows = vectors(rng, 1500)
    index = make(tmp_path, rows)
    derive.derive(index)
    file = VectorFile(vector_path(tmp_path, Modality.IMAGE, GENERATION), DIM, 1400)
    file.lists = lists_of(index)
    query = vectors(rng, 1)[0]
    assert file.search(query, 10)[1][0].tolist() == brute(rows, query, 10, np.arange(1400))[1]
    index.close()


def test_when_lists_are_made_extended_and_dropped(tmp_path: Path) -> None:
    index = make(tmp_path, vectors(np.random.default_rng(0), 2500))
    derive.derive(index)
    header = read_header(header_path(tmp_path, Modality.IMAGE, GENERATION))
    assert (header.rows, header.trained, len(header.sizes)) == (2500, 2500, 64)
    step = derive.next_step
    assert step(2500, 2500, DIM, None) == "build"
    assert step(2500, 2500, DIM, header) == "keep"
    assert step(2699, 2699, DIM, header) == "keep"  # 199 newer rows are scanned
    assert step(2700, 2700, DIM, header) == "extend"
    assert step(5001, 5001, DIM, header) == "build"
    assert step(2500, 1999, DIM, header) == "build"  # one list is enough now
    assert step(2500, 999, DIM, header) == "drop"
    assert step(999, 999, DIM, None) == "keep"
    assert step(2499, 2499, DIM, header) == "build"  # of rows that are no more
    assert not derive.derive(index)
    assert derive.list_count(1_000_000, DIM) == 1024
    index.close()


def test_curve_by_hand() -> None:
    """Two questions, two answers each, four lists. The answers of the first stand in its 1st and 2nd list, those of the
    second in its 1st and 4th: recall is 1/2 with one list, 3/4 with two and three, 1 with four."""
    centroid_scores = np.array([[0.9, 0.8, 0.1, 0.0], [0.0, 0.1, 0.8, 0.9]])
    answer_lists = np.array([[0, 1], [3, 0]])
    found = recall.places(centroid_scores, answer_lists)
    assert found.tolist() == [[0, 1], [0, 3]]
    curve = recall.measure([found], 4)
    assert curve.probes == (1, 2, 3, 4)
    assert curve.recalls[0] == (0.5, 0.75, 0.75, 1.0)
    assert curve.errors[0] == (0.0, 0.25 / 2**0.5, 0.25 / 2**0.5, 0.0)
    assert [curve.needed(10, target) for target in (0.3, 0.57, 0.6, 1.0)] == [1, 2, 4, 4]
    assert curve.needed(10_000, 0.3) == 4
    worst = recall.measure([found, np.array([[1, 1]])], 4)
    assert worst.recalls[0] == (0.0, 0.75, 0.75, 1.0)


def test_the_error_of_the_recall_counts() -> None:
    recalls, errors = (0.9, 0.95, 0.993, 1.0), (0.0, 0.0, 0.002, 0.0)
    curve = Curve((1, 4, 8, 16), (recalls,) * len(recall.DEPTHS), (errors,) * len(recall.DEPTHS))
    assert curve.needed(10, 0.99) == 8
    assert curve.needed(10, 0.992) == 16


def test_clusters_by_hand() -> None:
    rows = np.array([[1, 0], [0.96, 0.28], [0, 1], [0.28, 0.96]], np.float32)
    centroids = clustering.cluster(rows, 2, rounds=5)
    owner, scores = clustering.nearest(rows, centroids)
    assert owner[0] == owner[1] != owner[2] == owner[3]
    np.testing.assert_allclose(np.sort(centroids, axis=1), [[0.1414, 0.98995]] * 2, atol=1e-3)
    np.testing.assert_allclose(scores, 0.98995, atol=1e-3)
    equal = clustering.cluster(np.tile(rows[:1], (8, 1)), 3, rounds=3)
    np.testing.assert_allclose(equal, np.tile(rows[:1], (3, 1)), atol=1e-6)


def test_scores_within_reach_by_hand() -> None:
    assert distinct(np.array([5, 1, 5, 3, 1])).tolist() == [1, 3, 5] and distinct(np.zeros(0, np.int64)).tolist() == []
    assert reach_down(np.array([5, 1, 4, 3.9]), 2, 0.15).tolist() == [0, 2, 3]
    assert reach_down(np.array([5, -np.inf, 4]), 3, 0.1).tolist() == [0, 2]


def test_a_header_from_elsewhere_is_not_believed(tmp_path: Path) -> None:
    index = make(tmp_path, vectors(np.random.default_rng(0), 1500))
    derive.derive(index)
    path = header_path(tmp_path, Modality.IMAGE, GENERATION)
    header = read_header(path)
    write_header(path, header)
    assert read_header(path) == header
    assert open_lists(tmp_path, Modality.IMAGE, GENERATION, DIM + 1) is None
    assert open_lists(tmp_path, Modality.IMAGE, GENERATION + 1, DIM) is None
    index.close()


def test_a_short_vector_file_takes_its_lists_along(tmp_path: Path) -> None:
    """Rows that come after the lost ones get their numbers; the lists would speak of other vectors."""
    index = make(tmp_path, vectors(np.random.default_rng(0), 1500))
    derive.derive(index)
    path = vector_path(tmp_path, Modality.IMAGE, GENERATION)
    path.write_bytes(path.read_bytes()[: 1200 * DIM * 4])
    with index.writing() as writer:
        report = writer.verify()
    assert any("search lists" in line for line in report.repaired)
    assert not header_path(tmp_path, Modality.IMAGE, GENERATION).exists()
    index.close()


def test_tune_measures_every_setting(tmp_path: Path) -> None:
    index = make(tmp_path, vectors(np.random.default_rng(0), 2500))
    derive.derive(index)
    (tuning,) = derive.tune(index, rounds=3)
    assert (tuning.rows, tuning.lists, tuning.target) == (2500, 64, 0.99)
    assert [p.probes for p in tuning.points] == list(recall.probe_grid(64))
    recalls = [p.recall for p in tuning.points]
    assert recalls == sorted(recalls) and recalls[-1] == 1.0
    (chosen,) = [p for p in tuning.points if p.chosen]
    assert chosen.probes == lists_of(index).header.curve.needed(10, 0.99)
    assert all(p.milliseconds > 0 for p in tuning.points)
    index.close()


def test_a_cold_question_does_not_load_faiss(tmp_path: Path) -> None:
    index = make(tmp_path, vectors(np.random.default_rng(0), 1500))
    derive.derive(index)
    index.close()
    program = (
        "import sys, numpy as np; from pathlib import Path; from indexer.index import Index; "
        f"index = Index.open(Path({str(tmp_path)!r})); context = index.snapshot(); snapshot = context.__enter__(); "
        "file = next(f for f in snapshot.vectors.values() if f.rows); q = np.eye(32, dtype=np.float32)[0]; "
        "assert file.lists is not None; first = file.search(q, 5)[1]; assert 'faiss' not in sys.modules; "
        "rest = [file.search(q, 5)[1] for _ in range(9)]; assert 'faiss' in sys.modules; "
        "assert all((r == first).all() for r in rest)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_filter_that_keeps_two_of_twenty_thousand_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    rows = vectors(rng, 20_000)
    index = make(tmp_path, rows)
    assert derive.derive(index)
    file, dead = current(index)
    assert file.lists is not None and file.lists.count > 1
    for allowed in (np.array([3, 19_998]), np.array([11]), np.zeros(0, np.int64)):
        for query in vectors(rng, 5):
            scores, found = file.search(query, 10, allowed=allowed, dead=dead)
            expected = brute(rows, query, 10, allowed)
            assert found[0].tolist() == expected[1] + [-1] * (10 - len(allowed))
            np.testing.assert_allclose(scores[0, : len(allowed)], expected[0], atol=1e-6)
    index.close()
