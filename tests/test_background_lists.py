"""Search lists that are made while an index is being written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_lists import DIM, _small, asset, brute, current, lists_of, make, put, vectors

import mmsearch
from indexer import background_lists, derive
from indexer.background_lists import BackgroundLists
from indexer.changes import Piece, Put, Remove
from indexer.lists import header_path, read_header
from indexer.types import Modality

pytestmark = pytest.mark.slow(reason="makes indexes of many rows")

__all__ = ["_small"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_lists, "EVERY", 0.0)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Lists stop half-way: the first event is set when they do, and the second lets them go on."""
    begun, go_on = threading.Event(), threading.Event()
    measure = derive._measure

    def held_measure(*arguments: object) -> object:
        begun.set()
        assert go_on.wait(60)
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(derive, "_measure", held_measure)
    return begun, go_on


def more(rows: np.ndarray, key: str) -> Put:
    return Put(asset(key), [Piece(Modality.IMAGE)] * len(rows), rows)


def test_rows_come_and_go_while_lists_are_made(tmp_path: Path, held: tuple[threading.Event, threading.Event]) -> None:
    rng = np.random.default_rng(0)
    first, secret, later = vectors(rng, 2500), vectors(rng, 5), vectors(rng, 300)
    index = make(tmp_path, first)
    removed = put(index, "secret", secret)
    said: list[str] = []
    lists = BackgroundLists(index, lambda: vectors(rng, 4), said.append)
    query = vectors(rng, 1)[0]
    alive = np.setdiff1d(np.arange(2805), np.arange(2500, 2505))
    with index.writing() as writer:
        lists.look(writer)
        assert held[0].wait(60)
        writer.apply([Remove([removed])])
        writer.apply([more(later, "later")])
        lists.look(writer)
        assert current(index)[0].lists is None
        held[1].set()
        lists.finish(writer)
    assert said == ["making search lists for 2,505 image vectors meanwhile"]
    made = lists_of(index)
    assert made.rows == 2505 and made.faults() == []
    owners = made.owners()
    for row in range(2500, 2505):
        codes = made.codes(int(owners[row]))[made.ids(int(owners[row])) == row]
        assert codes.shape == (1, DIM) and not codes.any()
    file, dead = current(index)
    everything = np.concatenate([first, secret, later])
    _, found = file.search(query, 10, dead=dead, probes=made.count)
    assert found[0].tolist() == brute(everything, query, 10, alive)[1]
    with index.writing() as writer:
        assert writer.verify().sound
    index.close()


def test_they_are_put_in_place_between_two_batches(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    index = make(tmp_path, vectors(rng, 2500))
    other = type(index).open(tmp_path)
    lists = BackgroundLists(index, None)
    with index.writing() as writer:
        lists.look(writer)
        assert lists._thread is not None
        lists._thread.join()
        assert current(other)[0].lists is None
        lists.look(writer)
        assert lists_of(other).rows == 2500
        writer.apply([more(vectors(rng, 300), "more")])
        lists.look(writer)  # the tail is long enough
        lists.finish(writer)
    assert lists_of(other).rows == 2800 and len(list((tmp_path / "lists").glob("*.lists"))) == 1
    assert not derive.derive(index)
    other.close()
    index.close()


def test_lists_of_a_generation_that_is_gone_are_thrown_away(
    tmp_path: Path, held: tuple[threading.Event, threading.Event]
) -> None:
    rng = np.random.default_rng(2)
    index = make(tmp_path, vectors(rng, 2500))
    removed = put(index, "gone", vectors(rng, 10))
    lists = BackgroundLists(index, None)
    with index.writing() as writer:
        lists.look(writer)
        assert held[0].wait(60)
        writer.apply([Remove([removed])])
        writer.compact()
        held[1].set()
        lists.finish(writer)
    assert current(index)[0].lists is None and not list((tmp_path / "lists").glob("*.lists"))
    assert derive.derive(index)
    assert lists_of(index).rows == 2500
    index.close()


def test_a_full_disk_leaves_it_to_the_end_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make(tmp_path, vectors(np.random.default_rng(3), 2500))
    lists = BackgroundLists(index, None)
    fill = derive._fill

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(derive, "_fill", full)
    with index.writing() as writer:
        lists.look(writer)
        lists.finish(writer)
        lists.look(writer)
        assert lists._thread is None
    monkeypatch.setattr(derive, "_fill", fill)
    assert derive.derive(index)
    index.close()


def test_an_index_run_makes_them_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "BYTES_FROM", 50 * 512)
    monkeypatch.setattr(derive, "LISTS_FROM", 100 * 512)
    made: list[int] = []
    publish: Callable[..., bool] = derive.publish

    def publishing(folder: Path, one: derive.Made, snapshot: object) -> bool:
        made.append(one.header.rows)
        return publish(folder, one, snapshot)

    monkeypatch.setattr(background_lists, "publish", publishing)
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(400):
        (texts / f"{i}.txt").write_text(f"the number {i} and its square {i * i}", encoding="utf-8")
    said: list[str] = []
    with mmsearch.Library(tmp_path / "index", model="mini") as library:
        report = library.index(texts, say=said.append)
        assert report.added == 400
        assert made and made[0] < 400 and "meanwhile" in said[0]
        header = read_header(header_path(tmp_path / "index", Modality.TEXT, 1))
        assert derive.next_step(400, 400, 512, header) == "keep"
        (first,) = library.query("the number 17 and its square 289", k=1)
        assert first.path == texts / "17.txt"
