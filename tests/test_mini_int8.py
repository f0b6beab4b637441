"""The image tower of `mini` in eight bits: near to float32, used where that pays, and never in the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SAMPLES
from PIL import Image

from indexer.encoders import mini_int8
from indexer.encoders.mini import PACKAGED, MiniEncoder
from indexer.encoders.mini_int8 import FILE, WEIGHTS, FastestPictures, file_of, judge
from indexer.encoders.precision import FLOAT32, INT8, kept_verdict
from indexer.errors import UsageError

PHOTOS = sorted((SAMPLES / "photos").rglob("*.jpg"))


def computes_eight_bits() -> bool:
    """Whether this chip adds products of bytes without overflow, as far as the system says what it can do."""
    told = Path("/proc/cpuinfo").read_text(errors="replace") if Path("/proc/cpuinfo").is_file() else ""
    return any(name in told for name in ("avx512_vnni", "avx_vnni", "asimddp"))


EIGHT_BITS = pytest.mark.skipif(not computes_eight_bits(), reason="this chip has no instructions for eight bits")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody has decided yet."""
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mini_int8, "PICTURES", 8)
    return tmp_path / "cache"


# -- the tower ---------------------------------------------------------------------------------------------------------


@EIGHT_BITS
def test_it_says_of_photographs_what_float32_says() -> None:
    model = MiniEncoder("cpu")
    prepared = np.stack([model.prepare(Image.open(path)) for path in PHOTOS[:24]])
    exact, light = model._exact_pictures(), model._light_pictures()
    pairs = [(exact(one[None]), light(one[None])) for one in prepared]

    def cosines(which: int) -> np.ndarray:
        wanted, found = (np.concatenate([side[which] for side in sides]) for sides in zip(*pairs, strict=True))
        return (wanted * found).sum(-1) / np.linalg.norm(wanted, axis=-1) / np.linalg.norm(found, axis=-1)

    assert cosines(0).mean() > 0.995 and cosines(0).min() > 0.97
    assert cosines(1).mean() > 0.99
    assert all(not np.array_equal(one[0], other[0]) for one, other in pairs)


def test_its_file_is_what_the_weights_become(tmp_path: Path) -> None:
    """Rounded weights hardly depend on the pictures on which ranges are measured: a channel's scale does where its bias
    would overflow."""
    import onnx
    from onnx import numpy_helper

    from mmsearch.training.models.mini_int8 import EXACT_CONVOLUTIONS, write_int8

    shutil.copytree(PACKAGED, tmp_path / "model")
    (tmp_path / "model" / FILE).unlink()
    model = MiniEncoder("cpu", tmp_path / "model")
    again = write_int8(tmp_path / "model", [model.prepare(Image.open(path)) for path in PHOTOS[:4]])
    made, packaged = (onnx.load(path, load_external_data=False) for path in (again, PACKAGED / FILE))
    assert [p.value for p in made.metadata_props] == [p.value for p in packaged.metadata_props] == [model.fingerprint]
    tensors = [{one.name: one for one in each.graph.initializer} for each in (made, packaged)]
    assert tensors[0].keys() == tensors[1].keys()
    rounded = [name for name in tensors[0] if name.endswith(".weight_quantized")]
    convolutions = sum(node.op_type == "Conv" for node in packaged.graph.node)
    assert len(rounded) == convolutions - EXACT_CONVOLUTIONS > 50
    for name in rounded:
        one, other = (numpy_helper.to_array(each[name]) for each in tensors)
        assert one.dtype == other.dtype == np.int8 and one.shape == other.shape
        assert (one == other).mean() > 0.9, name
    assert all(not tensors[1][name].raw_data for name in WEIGHTS)
    assert (PACKAGED / FILE).stat().st_size < 6_000_000
    found = MiniEncoder("cpu", tmp_path / "model")._light_pictures()
    assert found.metadata == {"fingerprint": model.fingerprint}


def test_without_pictures_there_are_no_ranges(tmp_path: Path) -> None:
    from mmsearch.training.models.mini_int8 import write_int8

    with pytest.raises(UsageError, match="no pictures to measure the ranges of layers on"):
        write_int8(PACKAGED, [])


# -- when it is used ---------------------------------------------------------------------------------------------------


def test_the_verdict_wants_the_vectors_it_was_made_for_and_wants_them_faster() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(32, 512)).astype(np.float32)
    near = exact + 0.05 * rng.normal(size=exact.shape).astype(np.float32)
    good = judge(exact, 3 * near, 2.0)
    assert good.precision == INT8 and good.pictures == 32 and good.gain == 2.0
    assert good.why.startswith("int8 was held against float32: cosine 0.998")
    assert good.why.endswith(", 2.0 times as fast, on 32 pictures")
    slow = judge(exact, near, 1.05)
    assert slow.precision == FLOAT32 and slow.why.startswith("int8 is no faster here: cosine 0.998")
    wrong = near.copy()
    wrong[5] = exact[6]  # one picture of 32
    assert judge(exact, wrong, 2.0).why.startswith("int8 gives other vectors here: cosine 0.96")
    assert judge(exact, np.full_like(exact, np.nan), 2.0).why == "int8 gives vectors that are not finite here"


class Tower:
    """A tower that says of a picture what its pixels are, and ``factor`` times that as patches; takes ``seconds``."""

    def __init__(self, factor: float, seconds: float = 0.0) -> None:
        self.factor, self.seconds, self.seen = factor, seconds, 0

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.seen += len(pixels)
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return pixels.reshape(len(pixels), -1).astype(np.float32), self.factor * pixels.astype(np.float32)


def made(exact: Tower, light: Callable[[], Any]) -> FastestPictures:
    return FastestPictures(lambda: exact, light, "some weights")  # type: ignore[arg-type,return-value]


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (count, 3, 2, 2), np.uint8)


def test_the_first_pictures_get_float32s_vectors_and_the_next_those_of_eight_bits(cache: Path) -> None:
    exact, light = Tower(1, 0.004), Tower(2)
    tower = made(exact, lambda: light)
    for number in range(4):
        assert tower.verdict.why == "int8 is used once 8 pictures were compared" and not cache.exists()
        given = pixels(2, number)
        rows, patches = tower(given)
        np.testing.assert_array_equal(rows, given.reshape(2, -1))
        np.testing.assert_array_equal(patches, given)
    assert tower.verdict.precision == INT8 and kept_verdict(file_of("some weights")) == tower.verdict
    assert (exact.seen, light.seen) == (8, 8)
    np.testing.assert_array_equal(tower(pixels(3))[1], 2.0 * pixels(3))
    assert (exact.seen, light.seen) == (8, 11)
    other = made(Tower(1), lambda: light)
    assert other.verdict == tower.verdict
    np.testing.assert_array_equal(other(pixels(1))[1], 2.0 * pixels(1))


def test_where_eight_bits_are_no_faster_float32_stays(cache: Path) -> None:
    exact, light = Tower(1), Tower(2, 0.002)
    tower = made(exact, lambda: light)
    tower(pixels(8))
    assert tower.verdict.precision == FLOAT32 and tower.verdict.why.startswith("int8 is no faster here: ")
    np.testing.assert_array_equal(tower(pixels(3))[1], pixels(3))
    assert light.seen == 8


def test_several_threads_decide_once(cache: Path) -> None:
    exact, light = Tower(1, 0.002), Tower(2)
    tower = made(exact, lambda: light)
    threads = [threading.Thread(target=lambda: [tower(pixels(1, n)) for n in range(20)]) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert tower.verdict.precision == INT8 and tower.verdict.pictures == 8
    assert exact.seen <= 8 + len(threads)


def test_a_file_that_cannot_be_opened_is_said_once_and_tried_again_by_the_next_process(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise RuntimeError("no such\n  operator")

    tower = made(Tower(1), broken)
    for _ in range(3):
        np.testing.assert_array_equal(tower(pixels(8))[1], pixels(8))
    assert tower.verdict.precision == FLOAT32
    why = "the tower in int8 cannot be opened (no such operator)"
    assert [record.getMessage() for record in caplog.records] == [f"pictures are computed in float32: {why}"]
    assert not cache.exists()


def test_that_of_other_weights_is_not_used(cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(PACKAGED, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"fingerprint": "another"}))
    model = MiniEncoder("cpu", tmp_path / "model")
    pictures = [Image.open(path) for path in PHOTOS[:2]]
    np.testing.assert_array_equal(model.encode_images(pictures), MiniEncoder("cpu").encode_images(pictures))
    assert "was made of other weights" in caplog.text
    (tmp_path / "model" / FILE).unlink()
    assert MiniEncoder("cpu", tmp_path / "model").precision is None


def test_a_run_says_what_it_computed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, in a new user's cache folder; the next run begins with what the first found out."""
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "mmsearch", *arguments, "--index", str(tmp_path / "index")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for number in range(mini_int8_pictures() + 8):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64)).save(
            tmp_path / "photos" / f"{number:02}.png"
        )
    run("index", str(tmp_path / "photos"), "--device", "cpu")
    verdict = kept_verdict(file_of(MiniEncoder().fingerprint))
    assert verdict is not None and verdict.pictures >= mini_int8_pictures()
    assert verdict.why in run("status", "--performance")


def mini_int8_pictures() -> int:
    """As many as a process compares that the tests did not change."""
    return 32
