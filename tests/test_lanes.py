"""Several streams of one model: the same index as with one, and really side by side."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder
from PIL import Image
from threadpoolctl import threadpool_info, threadpool_limits

import mmsearch
from indexer.embedding import Embed
from indexer.errors import ModelError
from indexer.lanes import Lanes, in_parts
from indexer.reading import IMAGE_BATCH
from indexer.types import Modality


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, a batch is one part, but where a test says otherwise."""
    monkeypatch.setattr("indexer.lanes.PATIENCE", 1e6)


class TwoStreams(ColourEncoder):
    """Gives nothing until a second batch is being computed beside the first, but for the one that warms it up."""

    streams = 2

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.both = threading.Barrier(2)

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        self.names.append(threading.current_thread().name)
        if len(self.names) > 1:
            self.both.wait(timeout=20)
        return super().encode_prepared(batch)


def plainly(encoder: ColourEncoder) -> Embed:
    return lambda prepared: [(vector, None) for vector in encoder.encode_prepared(np.stack(prepared))]


def pictures(count: int) -> list[np.ndarray]:
    return [np.full((3, 8, 8), n / count, np.float32) for n in range(count)]


def test_batches_are_computed_side_by_side_and_come_back_in_order() -> None:
    encoder, plain = TwoStreams(), ColourEncoder()
    prepared = pictures(12)
    with Lanes(plainly(encoder), encoder) as lanes:
        found = in_parts(lanes, prepared, 3)
    assert len(set(encoder.names)) == 2 and len(encoder.names) == 1 + 4
    wanted = plain.encode_prepared(np.stack(prepared))
    assert np.array_equal(np.stack([one[0] for one in found]), wanted)


def test_an_encoder_that_says_nothing_is_asked_by_one_thread() -> None:
    encoder = ColourEncoder()
    with Lanes(plainly(encoder), encoder) as lanes:
        assert lanes.count == 1
        assert len(in_parts(lanes, pictures(5), 2)) == 5


def test_a_model_that_fails_on_everything_is_an_error_in_the_thread_that_asks() -> None:
    def fail(prepared: list[np.ndarray]) -> list[tuple[np.ndarray, None]]:
        raise ValueError("no memory left on the card")

    with Lanes(fail, ColourEncoder()) as lanes, pytest.raises(ModelError, match="no memory left on the card"):
        lanes.submit(pictures(3)).result()


def test_a_stop_waits_for_one_part_of_a_slow_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes more than its patience for a picture is given one at a time, and no other after a stop."""
    monkeypatch.setattr("indexer.lanes.PATIENCE", 1e-9)
    seen: list[int] = []
    third, stopped = threading.Event(), threading.Event()

    def embed(prepared: list[np.ndarray]) -> list[tuple[np.ndarray, None]]:
        seen.append(len(prepared))
        if len(seen) == 3:
            third.set()
            stopped.wait(timeout=20)
        return [(np.zeros(4, np.float32), None) for _ in prepared]

    class Slow(ColourEncoder):
        streams = 2

    lanes = Lanes(embed, Slow())
    stop = lanes._stopping.set
    monkeypatch.setattr(lanes._stopping, "set", lambda: (stop(), stopped.set()))
    with pytest.raises(KeyboardInterrupt), lanes:
        future = lanes.submit(pictures(32))
        assert third.wait(timeout=20)
        raise KeyboardInterrupt
    assert seen == [1, 1, 1] and isinstance(future.exception(), CancelledError)


def test_what_torch_computes_in_a_lane_stays_on_one_core_and_elsewhere_as_it_was() -> None:
    torch = pytest.importorskip("torch")

    def in_new_thread() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    here, elsewhere = torch.get_num_threads(), in_new_thread()
    seen: list[int] = []

    def look(prepared: list[np.ndarray]) -> list[tuple[np.ndarray, None]]:
        seen.append(torch.get_num_threads())
        return [(np.zeros(4, np.float32), None) for _ in prepared]

    with Lanes(look, TwoStreams()) as lanes:
        in_parts(lanes, pictures(4), 1)
    assert seen == [1, 1, 1, 1] and in_new_thread() == elsewhere and torch.get_num_threads() == here


def test_numpy_computes_on_one_core_while_lanes_do_and_then_as_before() -> None:
    def threads() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        with Lanes(plainly(ColourEncoder()), TwoStreams()):
            assert threads() == {1}
        assert threads() == {2}
        with Lanes(plainly(ColourEncoder()), ColourEncoder()):
            assert threads() == {2}


def test_an_index_made_in_two_streams_is_the_one_made_in_one(tmp_path: Path) -> None:
    """Rows stand in the order of the files, whichever batch is done first."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(4 * IMAGE_BATCH):
        Image.new("RGB", (2, 2), (n, 255 - n, 7)).save(folder / f"{n:03}.png")
    rows = []
    for encoder in (ColourEncoder(), TwoStreams()):
        with mmsearch.open(tmp_path / encoder.__class__.__name__, model=encoder) as library:
            assert library.index(folder).added == 4 * IMAGE_BATCH
            with library._need_index().snapshot() as snapshot:
                rows.append(snapshot.vectors[Modality.IMAGE].matrix().copy())
    assert np.array_equal(*rows)
