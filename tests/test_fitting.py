"""Out of memory: the batch is halved, the result is the same, and the next batch is no larger."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder
from PIL import Image

import mmsearch
from indexer.embedding import encode_each
from indexer.errors import ModelError
from indexer.fitting import Fitting, is_out_of_memory
from indexer.reading import IMAGE_BATCH
from indexer.types import Modality

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"
)
ORT_MESSAGE = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned: std::bad_alloc"


class Squares:
    """The squares of numbers, as long as they are few enough and none is above 100."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.tried: list[int] = []

    def __call__(self, batch: list[int]) -> list[int]:
        self.tried.append(len(batch))
        if len(batch) > self.most or max(batch) > 100:
            raise self.error
        return [number**2 for number in batch]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError(CPU_MESSAGE), Exception(ORT_MESSAGE), RuntimeError("CUDA out of memory.")]
)
def test_a_batch_is_halved_until_it_fits_and_later_ones_come_in_parts_of_that_size(error: Exception) -> None:
    encode = Squares(20, error)
    said: list[str] = []
    fitting = Fitting(encode, "numbers", said.append)
    assert fitting(list(range(64))) == [n**2 for n in range(64)]
    assert encode.tried == [64, 32, 16, 16, 16, 16]
    assert said == [
        "out of memory with 64 numbers at a time; going on with 32",
        "out of memory with 32 numbers at a time; going on with 16",
    ]
    encode.tried.clear()
    assert fitting(list(range(50))) == [n**2 for n in range(50)]
    assert encode.tried == [16, 16, 16, 2] and len(said) == 2


def test_what_fits_is_tried_once_and_other_errors_pass() -> None:
    encode = Squares(64, ValueError("no number"))
    assert Fitting(encode, "numbers")([3, 4]) == [9, 16] and encode.tried == [2]
    with pytest.raises(ValueError, match="no number"):
        Fitting(encode, "numbers")([101])
    assert Fitting(encode, "numbers")([]) == []


def test_one_that_does_not_fit_alone_is_left_out_with_the_reason() -> None:
    found = encode_each(Fitting(Squares(64, MemoryError("9 GB wanted")), "numbers"), [1, 2, 500, 4])
    assert [found[0], found[1], found[3]] == [1, 4, 16]
    assert "too little memory even for one of the numbers alone (9 GB wanted)" in str(found[2])
    alone = encode_each(Fitting(Squares(64, MemoryError()), "numbers"), [500])
    assert "too little memory" in str(alone[0])


def test_where_not_even_single_ones_fit_the_run_ends_and_says_why() -> None:
    with pytest.raises(ModelError, match=r"too little memory even for one of the numbers alone \(MemoryError\)"):
        encode_each(Fitting(Squares(0, MemoryError()), "numbers"), [1, 2, 3])


def test_threads_that_fail_at_once_halve_once() -> None:
    both = threading.Barrier(2)
    tried: list[int] = []

    def encode(batch: list[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > 4:
            both.wait(timeout=10)
            raise MemoryError
        return batch

    fitting, found = Fitting(encode, "numbers"), []
    threads = [threading.Thread(target=lambda: found.append(fitting(list(range(8))))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(8))] * 2 and sorted(tried) == [4, 4, 4, 4, 8, 8]


def test_memory_errors_are_known_by_class_by_message_and_by_cause() -> None:
    torch = pytest.importorskip("torch")
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA: none left"))
    wrapped = ModelError("the model failed")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(ModelError("the model failed")) and not is_out_of_memory(None)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)  # what torch really says
    assert is_out_of_memory(caught.value)


class SmallMemory(ColourEncoder):
    """Takes five pictures or three texts at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.tried: list[int] = []

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        self.tried.append(len(batch))
        if len(batch) > 5:
            raise RuntimeError(CPU_MESSAGE)
        return super().encode_prepared(batch)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        if len(texts) > 3:
            raise MemoryError
        return super().encode_texts(texts)


def test_an_index_made_with_little_memory_is_the_one_made_with_much(tmp_path: Path) -> None:
    folder = tmp_path / "things"
    folder.mkdir()
    for n in range(2 * IMAGE_BATCH):
        Image.new("RGB", (2, 2), (n, 255 - n, 7)).save(folder / f"{n:03}.png")
    for n, word in enumerate(["red", "green", "blue", "red green", "red blue"]):
        (folder / f"{n}.txt").write_text(word)
    rows, small = [], SmallMemory()
    said: list[str] = []
    for encoder in (ColourEncoder(), small):
        with mmsearch.open(tmp_path / encoder.__class__.__name__, model=encoder) as library:
            assert library.index(folder, say=said.append).added == 2 * IMAGE_BATCH + 5
            with library._need_index().snapshot() as snapshot:
                rows.append([snapshot.vectors[m].matrix().copy() for m in (Modality.IMAGE, Modality.TEXT)])
    for plain, halved in zip(*rows, strict=True):
        np.testing.assert_allclose(halved, plain, atol=1e-6)
    assert small.tried[:4] == [32, 16, 8, 4] and set(small.tried[4:]) == {4}
    assert [line for line in said if "pictures" in line] == [
        f"out of memory with {n} pictures at a time; going on with {n // 2}" for n in (32, 16, 8)
    ]
    assert "out of memory with 5 texts at a time; going on with 2" in said
