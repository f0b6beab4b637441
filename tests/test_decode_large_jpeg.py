"""Large JPEGs at an eighth: what libjpeg makes of the same file is what must come out, or nothing at all."""

from __future__ import annotations

import io
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from indexer.decode import decode_image, image, large_jpeg
from indexer.decode.jpeg_header import Huffman, read_scan
from indexer.decode.large_jpeg import LargeJpegs

numba = pytest.importorskip("numba", reason="the faster decoder of large JPEGs needs numba, which is not installed")
from indexer.decode.jpeg_eighth import decode_eighth  # noqa: E402

SAMPLES = sorted((Path(__file__).parent.parent / "samples").rglob("*.jpg"))


def photograph(number: int = 0, size: tuple[int, int] = (1003, 757), mode: str = "RGB") -> Image.Image:
    """A real photograph, with a little noise so that all of its coefficients are there."""
    with Image.open(SAMPLES[number]) as opened:
        picture = opened.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(number).normal(0, 6, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def by_libjpeg(data: bytes) -> np.ndarray:
    """The twin: the same file drafted to an eighth by Pillow."""
    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
        picture.draft(picture.mode, (width // 8, height // 8))
        assert picture.size == (-(-width // 8), -(-height // 8))
        return np.asarray(picture)


def here(data: bytes) -> np.ndarray | None:
    scan = read_scan(data)
    return None if scan is None else decode_eighth(scan)


def assert_as_libjpeg(data: bytes) -> None:
    pixels = here(data)
    assert pixels is not None
    np.testing.assert_array_equal(pixels, by_libjpeg(data))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [5, 50, 90, 100])
def test_every_pixel_is_that_of_libjpeg(subsampling: str, quality: int) -> None:
    for number, optimize in ((0, False), (1, True)):
        assert_as_libjpeg(jpeg(photograph(number), quality=quality, subsampling=subsampling, optimize=optimize))


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (16, 16), (17, 31), (640, 8), (15, 400), (401, 399)])
def test_sizes_that_no_block_divides(size: tuple[int, int]) -> None:
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        assert_as_libjpeg(jpeg(photograph(2, size), quality=92, subsampling=subsampling))
    assert_as_libjpeg(jpeg(photograph(2, size, "L"), quality=92))


def test_noise_in_which_every_coefficient_is_large() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (320, 480, 3)).astype(np.uint8) * 255
    for quality in (30, 95, 100):
        assert_as_libjpeg(jpeg(Image.fromarray(noise), quality=quality, subsampling="4:2:0"))


@pytest.mark.parametrize("restart", [{"restart_marker_rows": 1}, {"restart_marker_blocks": 7}])
def test_restart_markers(restart: dict[str, int]) -> None:
    for subsampling in ("4:4:4", "4:2:0"):
        assert_as_libjpeg(jpeg(photograph(3), subsampling=subsampling, **restart))
    assert_as_libjpeg(jpeg(photograph(3, mode="L"), **restart))


def test_what_a_camera_writes_before_and_behind_the_picture() -> None:
    thumbnail = jpeg(photograph(4, (160, 120)))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(photograph(4), exif=exif, comment=b"\xff\xd9 no end \xff\xd8", icc_profile=b"profile" * 20_000)
    assert_as_libjpeg(data)
    assert_as_libjpeg(data + thumbnail)
    assert_as_libjpeg(data[:2] + b"\xff\xff\xff" + data[3:])


def test_what_is_left_to_libjpeg() -> None:
    picture = photograph(5)
    others = {
        "progressive": jpeg(picture, progressive=True),
        "CMYK": jpeg(picture.convert("CMYK")),
        "RGB": jpeg(picture, keep_rgb=True),
        "without an end": jpeg(picture)[:-2],
        "not a JPEG": b"\xff\xd8\xff",
        "nothing": b"",
    }
    assert {name: here(data) for name, data in others.items()} == dict.fromkeys(others)


def test_a_file_cut_anywhere_is_left_to_libjpeg() -> None:
    data = jpeg(photograph(6, (320, 240)), restart_marker_rows=2)
    for end in np.random.default_rng(6).integers(0, len(data) - 2, 300).tolist():
        assert here(data[:end]) is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_file_gives_what_libjpeg_gives_or_nothing() -> None:
    rng = np.random.default_rng(7)
    files = [
        jpeg(photograph(7, (320, 240)), quality=90),
        jpeg(photograph(7, (320, 240)), quality=60, subsampling="4:4:4", restart_marker_rows=1),
        jpeg(photograph(7, (320, 240), "L"), optimize=True),
    ]
    decoded = 0
    for turn in range(900):
        data = bytearray(files[turn % 3])
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(2, len(data)))] = int(rng.integers(0, 256))
        pixels = here(bytes(data))
        if pixels is not None:
            np.testing.assert_array_equal(pixels, by_libjpeg(bytes(data)))
            decoded += 1
    assert 0 < decoded < 900


def test_tables_that_promise_more_than_a_file_has() -> None:
    data = jpeg(photograph(8, (64, 64), "L"))
    at = data.index(b"\xff\xc0")
    huge = data[: at + 5] + b"\xff\xf0\xff\xf0" + data[at + 9 :]  # 65,520 pixels a side
    assert read_scan(huge) is None
    at = data.index(b"\xff\xc4")
    for counts in (b"\xff" * 16, b"\3" + bytes(15), bytes(16)):
        assert here(data[: at + 5] + counts + data[at + 21 :]) is None
    scan = read_scan(data)
    assert scan is not None
    (grey,) = scan.components
    for counts, symbols in (([3] + 15 * [0], 3), (7 * [0] + [255, 60] + 7 * [0], 315)):
        bogus = Huffman(bytes(counts), bytes(symbols))
        assert decode_eighth(replace(scan, components=(replace(grey, ac=bogus),))) is None


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> LargeJpegs:
    readers = LargeJpegs(begin_after=2)
    monkeypatch.setattr(image, "_large_jpegs", readers)
    return readers


def test_the_faster_decoder_takes_over_and_pictures_stay_the_same(large: LargeJpegs) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(photograph(9, (1600, 1200)), exif=exif, quality=92)
    before = [decode_image(data, size=90) for _ in range(3)]
    assert large.faster.loading is not None
    large.faster.loading.join()
    pixels = large.eighth(data)
    assert pixels is not None and pixels.shape == (150, 200, 3)
    after = decode_image(data, size=90)
    assert after.image.size == (150, 200) and (after.width, after.height) == (1200, 1600)
    for one in before:
        np.testing.assert_array_equal(np.asarray(one.image), np.asarray(after.image))


def test_pictures_that_are_not_shrunk_to_an_eighth_do_not_count(large: LargeJpegs) -> None:
    data, progressive = jpeg(photograph(1, (1600, 1200))), jpeg(photograph(1, (1600, 1200)), progressive=True)
    for _ in range(5):
        decode_image(data, size=150)
        decode_image(progressive, size=90)
    assert large.faster.loading is None


def test_several_threads_load_it_once(large: LargeJpegs) -> None:
    data = jpeg(photograph(1, (800, 600)))
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: found.extend(np.asarray(decode_image(data, size=40).image) for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert large.faster.loading is not None
    large.faster.loading.join()
    assert len(found) == 80
    for one in found:
        np.testing.assert_array_equal(one, by_libjpeg(data))


def test_without_numba_libjpeg_reads_everything(large: LargeJpegs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "indexer.decode.jpeg_eighth", None)
    with pytest.raises(ImportError):
        large_jpeg.load()
    data = jpeg(photograph(1, (800, 600)))
    for _ in range(4):
        np.testing.assert_array_equal(np.asarray(decode_image(data, size=40).image), by_libjpeg(data))
    assert large.faster.loading is not None
    large.faster.loading.join()
    assert large.eighth(data) is None
