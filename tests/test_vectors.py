"""The vector file: exact search against ten naive lines, ties, erasing, crashes, unusable vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexer.errors import ModelError, StorageError, UsageError
from indexer.vectors import VectorFile


def unit_rows(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    rows = rng.standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def filled(path: Path, vectors: np.ndarray) -> VectorFile:
    file = VectorFile(path, vectors.shape[1], 0, write=True)
    file.add(vectors)
    return file


def naive_search(matrix: np.ndarray, query: np.ndarray, k: int, allowed: list[int]) -> tuple[list[float], list[int]]:
    scored = []
    for row in allowed:
        score = sum(float(a) * float(b) for a, b in zip(matrix[row], query, strict=True))
        scored.append((-score, row))
    scored.sort()
    best = scored[:k]
    return [-s for s, _ in best] + [-np.inf] * (k - len(best)), [r for _, r in best] + [-1] * (k - len(best))


@pytest.mark.parametrize("n", [1, 7, 100, 333])
@pytest.mark.parametrize("k", [1, 5, 100])
@pytest.mark.parametrize("keep", [None, 0.02, 0.5])
def test_search_equals_the_naive_search(tmp_path: Path, n: int, k: int, keep: float | None) -> None:
    rng = np.random.default_rng(n * 1000 + k)
    matrix = unit_rows(rng, n, 13)
    file = filled(tmp_path / "v", matrix)
    allowed = None if keep is None else np.flatnonzero(rng.random(n) < keep)
    dead = np.flatnonzero(rng.random(n) < 0.1)
    rows = sorted(set(range(n) if allowed is None else allowed.tolist()) - set(dead.tolist()))
    for query in unit_rows(rng, 5, 13):
        scores, found = file.search(query, k, allowed=allowed, dead=dead)
        expected_scores, expected = naive_search(matrix, query, k, rows)
        assert found[0].tolist() == expected
        np.testing.assert_allclose(scores[0], expected_scores, atol=1e-6)


def test_equal_vectors_come_in_the_order_of_their_rows_even_at_the_end_of_the_list(tmp_path: Path) -> None:
    """Rows 0..199 are one and the same vector, 200 is better; the best five are 200 and then 0, 1, 2, 3."""
    rng = np.random.default_rng(1)
    same, better = unit_rows(rng, 2, 64)
    file = filled(tmp_path / "v", np.vstack([np.tile(same, (200, 1)), better[None]]))
    query = better + 0.5 * same
    for _ in range(3):
        _, rows = file.search(query, 5)
        assert rows[0].tolist() == [200, 0, 1, 2, 3]
    _, rows = file.search(query, 3, allowed=np.arange(50, 201))
    assert rows[0].tolist() == [200, 50, 51]


def test_questions_in_one_call_are_answered_each_for_itself(tmp_path: Path) -> None:
    vectors = np.eye(4, dtype=np.float32)
    file = filled(tmp_path / "v", vectors)
    scores, rows = file.search(vectors[[2, 0]], 1)
    assert rows.tolist() == [[2], [0]]
    assert scores.tolist() == [[1.0], [1.0]]


def test_erased_rows_are_zeros_on_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    vectors = unit_rows(rng, 4, 8)
    file = filled(tmp_path / "v", vectors)
    file.remove(np.array([1, 3]))
    on_disk = np.frombuffer((tmp_path / "v").read_bytes(), dtype="<f4").reshape(4, 8)
    np.testing.assert_array_equal(on_disk, vectors * np.array([[1], [0], [1], [0]], np.float32))


@pytest.mark.parametrize(
    "row", [[np.nan, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [np.inf, 0, 0, 0]], ids=["nan", "zero", "long", "inf"]
)
def test_unusable_vectors_are_refused_and_nothing_is_written(tmp_path: Path, row: list[float]) -> None:
    file = filled(tmp_path / "v", np.eye(4, dtype=np.float32))
    with pytest.raises(ModelError, match="unusable vector"):
        file.add(np.array([[1, 0, 0, 0], row], dtype=np.float32))
    assert (tmp_path / "v").stat().st_size == 4 * 4 * 4
    assert file.rows == 4


def test_vectors_of_another_size_are_refused_with_both_numbers(tmp_path: Path) -> None:
    file = filled(tmp_path / "v", np.eye(4, dtype=np.float32))
    with pytest.raises(ModelError, match=r"\(1, 3\).*rows of 4"):
        file.add(np.array([[1, 0, 0]], dtype=np.float32))
    with pytest.raises(UsageError, match=r"3 numbers.*have 4"):
        file.search(np.array([1, 0, 0], dtype=np.float32), 1)


def test_a_writer_cuts_off_what_the_catalogue_does_not_know(tmp_path: Path) -> None:
    filled(tmp_path / "v", np.eye(4, dtype=np.float32))
    with (tmp_path / "v").open("ab") as file:
        file.write(b"half a row")
    reopened = VectorFile(tmp_path / "v", 4, 3, write=True)
    assert (tmp_path / "v").stat().st_size == 3 * 16
    assert reopened.add(np.eye(4, dtype=np.float32)[:1]).tolist() == [3]


def test_a_reader_leaves_the_file_alone_and_sees_only_known_rows(tmp_path: Path) -> None:
    filled(tmp_path / "v", np.eye(4, dtype=np.float32))
    reader = VectorFile(tmp_path / "v", 4, 2)
    assert reader.search(np.array([0, 0, 1, 0]), 4)[1][0].tolist() == [0, 1, -1, -1]
    assert (tmp_path / "v").stat().st_size == 4 * 16


def test_a_short_file_says_how_much_is_missing(tmp_path: Path) -> None:
    filled(tmp_path / "v", np.eye(4, dtype=np.float32))
    file = VectorFile(tmp_path / "v", 4, 9, write=True)
    assert file.missing == 5
    with pytest.raises(StorageError, match="5 vectors short"):
        file.add(np.eye(4, dtype=np.float32))


def test_no_rows_no_answers(tmp_path: Path) -> None:
    file = VectorFile(tmp_path / "none", 4, 0)
    scores, rows = file.search(np.array([1.0, 0, 0, 0]), 3)
    assert rows.tolist() == [[-1, -1, -1]]
    assert np.isneginf(scores).all()
    with pytest.raises(UsageError, match="k is 0"):
        file.search(np.array([1.0, 0, 0, 0]), 0)
