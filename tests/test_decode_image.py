"""Pictures: files written here by Pillow (or byte by byte), and the pixels that must come out of them."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from indexer.decode import MAX_PIXELS, DecodedImage, decode_image, image, modality_of
from indexer.errors import DecodeError
from indexer.types import Modality

# pytest replaces the filter that keeps Pillow's warnings from the terminal; a process of its own is watched below.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Transpose = Image.Transpose
TURNED_BY_CAMERA = {
    1: (),
    2: (Transpose.FLIP_LEFT_RIGHT,),
    3: (Transpose.ROTATE_180,),
    4: (Transpose.FLIP_TOP_BOTTOM,),
    5: (Transpose.ROTATE_90, Transpose.FLIP_TOP_BOTTOM),
    6: (Transpose.ROTATE_90,),
    7: (Transpose.ROTATE_270, Transpose.FLIP_TOP_BOTTOM),
    8: (Transpose.ROTATE_270,),
}
"""How an upright picture is stored so that each orientation undoes it: 6 is shown turned clockwise, 8 the other way."""


def blocks(width: int = 9, height: int = 6, side: int = 16, seed: int = 0) -> Image.Image:
    """Random colours in squares, so that lossy formats keep them; no two turns of it are alike."""
    colours = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(np.kron(colours, np.ones((side, side, 1))).astype(np.uint8))


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(picture).save(file, **options)
    else:
        picture.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes, size: int = 224) -> DecodedImage:
    result = decode_image(data, size=size)
    assert result.image.mode == "RGB"
    assert result.image.info == {}
    return result


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.int64)


def colour(data: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return decoded(data).image.getpixel((x, y))  # type: ignore[return-value]


def close(found: tuple[int, ...], wanted: tuple[int, ...], tolerance: int) -> bool:
    return all(abs(one - other) <= tolerance for one, other in zip(found, wanted, strict=True))


def refusal(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, size=224)
    return str(caught.value)


# --- formats


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_adobe_deflate", "big_tiff": True}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 2),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 2),
        ("WEBP", {"quality": 95}, 8),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}, 3),
        ("HEIF", {"quality": 95, "chroma": 444}, 3),
    ],
)
def test_every_format_gives_the_picture_that_went_in(kind: str, options: dict[str, Any], tolerance: float) -> None:
    picture = blocks()
    result = decoded(saved(picture, kind, **options))
    assert (result.width, result.height, result.taken) == (144, 96, None)
    assert np.abs(pixels(result.image) - pixels(picture)).mean() <= tolerance


def test_a_gif_gives_the_colours_of_its_palette() -> None:
    picture = blocks(4, 3)  # 12 colours
    assert np.array_equal(pixels(decoded(saved(picture, "GIF")).image), pixels(picture))


def test_the_content_decides_and_not_the_name() -> None:
    for data in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"8BPS\0\1" + bytes(40),
        b"%PDF-1.7",
        b"P6 1 1 255\n\0\0\0",
        b"<svg/>",
        b"x",
    ):
        assert refusal(data).startswith("not a picture in a known format (JPEG, PNG,")


def test_other_decoders_of_pillow_are_never_loaded() -> None:
    code = (
        "import sys, io\nfrom PIL import Image\nfrom indexer.decode import decode_image\n"
        "file = io.BytesIO(); Image.new('RGB', (4, 4)).save(file, 'PNG'); decode_image(file.getvalue(), size=2)\n"
        "unwanted = {'PIL.EpsImagePlugin', 'PIL.PsdImagePlugin', 'pillow_heif'}\n"
        "print(sorted(unwanted & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.getcwd())
    assert answer.stdout == "[]\n"


@pytest.mark.parametrize("name", ["a.JPG", "x/b.jpeg", "c.heic", "d.tar.png", "e.dib", "\udcff.avif", "f.WebP"])
def test_names_of_pictures(name: str) -> None:
    assert modality_of(name) is Modality.IMAGE


def test_names_of_texts_and_of_nothing() -> None:
    assert [modality_of(name) for name in ("a.txt", "b.MD", "c.tsv")] == [Modality.TEXT] * 3
    assert [modality_of(name) for name in ("png", ".png", "a.psd", "a.png.bak", "a.", "")] == [None] * 6


# --- orientation and time


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 5),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("AVIF", {"quality": 90}, 6),
        ("HEIF", {"quality": 90}, 6),
    ],
)
def test_all_eight_orientations_come_out_upright(
    kind: str, options: dict[str, Any], tolerance: float, orientation: int
) -> None:
    upright = blocks()
    stored = upright
    for turn in TURNED_BY_CAMERA[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x9003] = "2019:07:31 18:05:59"
    result = decoded(saved(stored, kind, exif=exif.tobytes(), **options))
    assert (result.width, result.height) == result.image.size == (144, 96)
    assert np.abs(pixels(result.image) - pixels(upright)).mean() <= tolerance
    assert result.taken == 1564596359.0  # date -ud '2019-07-31 18:05:59' +%s


def test_orientation_holds_for_a_picture_that_is_shrunk_while_it_is_read() -> None:
    upright = blocks(side=100)  # 900 x 600
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(upright.transpose(Transpose.ROTATE_90), "JPEG", quality=95, exif=exif.tobytes())
    result = decoded(data, size=64)
    assert (result.width, result.height) == (900, 600)
    assert result.image.size == (225, 150)
    assert np.abs(pixels(result.image) - pixels(upright.resize((225, 150), Image.Resampling.BOX))).mean() < 6


def moment(date: str | None, offset: str | None = None) -> float | None:
    exif = Image.Exif()
    if date is not None:
        exif.get_ifd(0x8769)[0x9003] = date
    if offset is not None:
        exif.get_ifd(0x8769)[0x9011] = offset
    return decoded(saved(blocks(), "JPEG", exif=exif.tobytes())).taken


def test_the_time_a_picture_was_taken() -> None:
    assert moment("2019:07:31 18:05:59") == 1564596359.0
    assert moment("2019:07:31 18:05:59", "+02:00") == 1564596359.0 - 2 * 3600
    assert moment("2019:07:31 18:05:59", "-03:30") == 1564596359.0 + 3.5 * 3600
    assert moment("2019:07:31 18:05:59", "  :  ") == 1564596359.0
    assert moment("2019-07-31 18:05:59") == 1564596359.0
    assert moment("1969:12:31 23:59:59") == -1.0
    for unset in (None, "0000:00:00 00:00:00", "    :  :     :  :  ", "2019:13:40 99:00:00", "yesterday"):
        assert moment(unset) is None


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0garbage that is no TIFF at all",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff" * 9,
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0",
    ],
)
def test_broken_exif_does_not_cost_the_picture(exif: bytes) -> None:
    picture = blocks()
    for kind, tolerance in (("JPEG", 5.0), ("PNG", 0.0), ("WEBP", 0.0)):
        options: dict[str, Any] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
        result = decoded(saved(picture, kind, exif=exif, **options))
        assert np.abs(pixels(result.image) - pixels(picture)).mean() <= tolerance
        assert result.taken is None


def test_a_tiff_whose_exif_points_nowhere_is_still_a_picture() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2019:07:31 18:05:59"
    data = bytearray(saved(blocks(), "TIFF", exif=exif.tobytes()))
    entry = data.index(struct.pack("<HHI", 34665, 4, 1))
    data[entry + 8 : entry + 12] = struct.pack("<I", len(data) * 2)
    result = decoded(bytes(data))
    assert np.array_equal(pixels(result.image), pixels(blocks()))
    assert result.taken is None


# --- colour


def test_cmyk_jpegs_are_not_inverted() -> None:
    """Ink where there is ink: Adobe stores CMYK the other way round, Pillow writes and reads it so."""
    for ink, shown in (((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))):
        data = saved(Image.new("CMYK", (32, 32), ink), "JPEG", quality=95)
        assert b"Adobe" in data
        assert close(colour(data, 9, 9), shown, 3)
    assert close(colour(saved(Image.new("CMYK", (9, 9), (255, 0, 0, 0)), "TIFF")), (0, 255, 255), 0)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    deep = np.array([[0, 257, 128 * 257, 300, 60000]], dtype=np.uint16)
    wanted = [0, 1, 128, 1, 233]  # 300 / 257 = 1.17 and 60000 / 257 = 233.46
    for kind in ("PNG", "TIFF"):
        result = decoded(saved(Image.fromarray(deep), kind))
        assert pixels(result.image)[0].tolist() == [[value] * 3 for value in wanted]
    motorola = Image.frombytes("I;16B", (5, 1), deep.astype(">u2").tobytes())
    assert pixels(decoded(saved(motorola, "TIFF")).image)[0, :, 0].tolist() == wanted


def test_long_integers_and_floats_go_from_darkest_to_lightest() -> None:
    """-1000 is 0 and 1,000,000 is 255: 499,500 is half way, 127.5, which rounds to even."""
    longs = np.array([[-1000, 1_000_000, 499_500]], dtype=np.int32)
    assert pixels(decoded(saved(Image.fromarray(longs), "TIFF")).image)[0, :, 0].tolist() == [0, 255, 128]
    short = np.array([[0, 514, 1000]], dtype=np.int32)
    assert pixels(decoded(saved(Image.fromarray(short), "TIFF")).image)[0, :, 0].tolist() == [0, 2, 4]
    floats = np.array([[0.25, 0.75, 0.35, np.nan, np.inf, -np.inf]], dtype=np.float32)
    assert pixels(decoded(saved(Image.fromarray(floats), "TIFF")).image)[0, :, 0].tolist() == [0, 255, 51, 0, 255, 0]
    flat = np.full((2, 2), np.nan, dtype=np.float32)
    assert pixels(decoded(saved(Image.fromarray(flat), "TIFF")).image).max() == 0


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand, for what Pillow does not write; ``rows`` with their filter bytes."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    coded = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def test_sixteen_bit_colour_and_one_bit() -> None:
    rows = b"\0" + struct.pack(">6H", 65535, 32896, 0, 257, 514, 65278)
    assert pixels(decoded(png(2, 1, 16, 2, rows)).image)[0].tolist() == [[255, 128, 0], [1, 2, 254]]
    assert pixels(decoded(png(8, 1, 1, 0, b"\0\xa5")).image)[0, :, 0].tolist() == [255, 0, 255, 0, 0, 255, 0, 255]
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        bits = Image.fromarray(np.array([[0, 255, 255]], dtype=np.uint8)).convert("1")
        assert pixels(decoded(saved(bits, kind)).image)[0, :, 1].tolist() == [0, 255, 255]


def test_what_is_transparent_lies_on_white() -> None:
    half_red = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("AVIF", {"quality": 100})):
        assert close(colour(saved(half_red, kind, **options)), (255, 127, 127), 2)
    assert colour(saved(Image.new("LA", (4, 4), (0, 0)), "PNG")) == (255, 255, 255)
    assert close(colour(saved(Image.new("LA", (4, 4), (0, 64)), "PNG")), (191, 191, 191), 1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        assert pixels(decoded(saved(palette, kind)).image)[0].tolist() == [[10, 20, 30], [0, 0, 0]]
        assert pixels(decoded(saved(palette, kind, transparency=1)).image)[0].tolist() == [[10, 20, 30], [255] * 3]
    keyed = png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", (b"tRNS", struct.pack(">3H", 4, 5, 6)))
    assert pixels(decoded(keyed).image)[0].tolist() == [[1, 2, 3], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16", "F", "CMYK"])
def test_large_pictures_are_shrunk_in_every_mode_and_show_the_same(mode: str) -> None:
    """Left half dark, right half light; shrunk by 5, as 320 / (1.5 * 42) is 5.08, to 96 x 64."""
    grey = np.zeros((320, 480), dtype=np.uint8)
    grey[:, 240:] = 255
    picture = Image.fromarray(grey)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = picture.convert("RGB").convert(mode) if mode in ("CMYK", "RGBA") else picture.convert(mode)
    kind = "TIFF" if mode in ("F", "CMYK") else "PNG"
    result = decoded(saved(picture, kind), size=42)
    assert (result.width, result.height) == (480, 320)
    assert result.image.size == (96, 64)
    assert pixels(result.image)[:, :47].max() <= 1 and pixels(result.image)[:, 49:].min() >= 254


def matrix_profile(swap: bool = False) -> bytes:
    """An ICC profile by hand: sRGB's primaries, red and blue changed over if ``swap``, and a gamma of 2.2."""
    d50 = {b"rXYZ": (0.4361, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971), b"bXYZ": (0.1431, 0.0606, 0.7141)}
    if swap:
        d50[b"rXYZ"], d50[b"bXYZ"] = d50[b"bXYZ"], d50[b"rXYZ"]

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0\0\0\0\1" + struct.pack(">H", round(2.2 * 256)) + b"\0\0"
    tags = {name: xyz(values) for name, values in d50.items()} | {b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("JPEG", {"quality": 95}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("AVIF", {"quality": 100})],
)
def test_an_embedded_profile_is_obeyed(kind: str, options: dict[str, Any]) -> None:
    red = Image.new("RGB", (16, 16), (250, 90, 90))
    assert close(colour(saved(red, kind, icc_profile=matrix_profile(swap=True), **options)), (90, 90, 250), 4)
    assert close(colour(saved(red, kind, icc_profile=matrix_profile(), **options)), (250, 90, 90), 4)


def test_a_profile_of_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.abs(pixels(decoded(saved(blocks(), "PNG", icc_profile=profile)).image) - pixels(blocks())).max() <= 1


def test_a_profile_that_is_broken_or_of_another_kind_is_ignored() -> None:
    for profile in (b"garbage", matrix_profile()[:200], bytes(200)):
        assert np.array_equal(pixels(decoded(saved(blocks(), "PNG", icc_profile=profile)).image), pixels(blocks()))
    rgb_profile = matrix_profile(swap=True)
    assert colour(saved(Image.new("L", (4, 4), 77), "PNG", icc_profile=rgb_profile)) == (77, 77, 77)
    assert close(
        colour(saved(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "TIFF", icc_profile=rgb_profile)), (255, 0, 0), 0
    )


def test_lab_is_shown_in_colour() -> None:
    """L*a*b* of sRGB red is about (53, 80, 67); Pillow has L from 0 to 255 and a, b around 128."""
    lab = Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (round(53.2 * 2.55), 128 + 80, 128 + 67)])
    assert close(colour(saved(lab, "TIFF")), (255, 0, 0), 12)


def test_the_first_frame_of_a_film_and_the_first_page_of_a_document() -> None:
    frames = [Image.new("RGB", (20, 10), name) for name in ("red", "lime", "blue")]
    for kind, options in (
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100}),
    ):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
        assert close(colour(data), (255, 0, 0), 2)


# --- size


def test_only_pictures_three_times_as_large_are_shrunk() -> None:
    """size 32: 95 is left alone, 96 is halved; size 40: 300 x 500 by 300 / 60 = 5."""
    for side, wanted in ((95, 95), (96, 48), (143, 72), (640, 50)):
        assert decoded(saved(Image.new("RGB", (side, side)), "PNG"), size=32).image.size == (wanted, wanted)
    shrunk = decoded(saved(blocks(5, 3, 100), "PNG"), size=40)
    assert (shrunk.image.size, shrunk.width, shrunk.height) == ((100, 60), 500, 300)
    assert np.array_equal(pixels(shrunk.image), pixels(blocks(5, 3, 20)))
    for side, wanted in ((95, 95), (96, 48), (480, 60)):
        assert decoded(saved(Image.new("RGB", (side, side)), "JPEG"), size=32).image.size == (wanted, wanted)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_large_jpeg_is_read_at_an_eighth(options: dict[str, Any]) -> None:
    """Size 60 needs 90 pixels, an eighth of 720. Of 8 x 8 equal pixels one is left: the colours that went in."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = blocks(120, 90, 8)
    result = decoded(saved(picture, "JPEG", quality=95, subsampling=0, exif=exif, **options), size=60)
    assert (result.width, result.height, result.image.size) == (720, 960, (90, 120))
    wanted = blocks(120, 90, 1).transpose(Transpose.ROTATE_270)
    assert np.abs(pixels(result.image) - pixels(wanted)).max() <= 4


def test_extreme_shapes() -> None:
    for width, height in ((1, 1), (1, 5000), (20000, 10)):
        for kind in ("PNG", "JPEG"):
            result = decoded(saved(Image.new("RGB", (width, height), "red"), kind))
            assert (result.image.size, result.width, result.height) == ((width, height), width, height)
            assert close(result.image.getpixel((width - 1, height - 1)), (255, 0, 0), 3)  # type: ignore[arg-type]


def test_a_bomb_is_refused_by_its_header() -> None:
    """In a process of its own, to see that the memory was never taken."""
    code = (
        "import resource, sys\nfrom indexer.decode import decode_image\nfrom indexer.errors import DecodeError\n"
        "data = sys.stdin.buffer.read()\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    decode_image(data, size=224)\nexcept DecodeError as exc:\n    print(exc)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000)"
    )
    bomb = png(60_000, 60_000, 8, 2, bytes(1_000_000))
    answer = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True, check=True, cwd=os.getcwd())
    assert answer.stdout.decode().splitlines() == [
        "the picture is too large: 60000 x 60000 pixels; the limit is 150,000,000 pixels",
        "True",
    ]
    assert answer.stderr == b""
    begin = time.perf_counter()
    refusal(bomb)
    assert time.perf_counter() - begin < 0.1


def header_only(kind: str, width: int, height: int) -> bytes:
    """A small picture whose header claims other dimensions."""
    data = bytearray(
        saved(
            Image.new("RGB", (8, 8)),
            "JPEG" if kind.endswith("JPEG") else kind,
            **({"progressive": True} if kind == "progressive JPEG" else {}),
        )
    )
    if kind.endswith("JPEG"):
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
        at = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
        data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize("kind", ["progressive JPEG", "BMP", "GIF"])
def test_bombs_in_other_formats(kind: str) -> None:
    assert "too large" in refusal(header_only(kind, 65_000, 64_000))
    assert f"{MAX_PIXELS:,}" in refusal(header_only(kind, 65_000, 64_000))
    looked: list[object] = []
    with pytest.raises(DecodeError):
        decode_image(header_only(kind, 65_000, 64_000), size=224, look=looked.append)
    assert not looked  # Pillow reads a whole PNG to find its EXIF


def test_a_baseline_jpeg_counts_as_it_is_decoded() -> None:
    """1.2 thousand million pixels, shrunk by 8 in each direction before they are held, are 18.75 million."""
    result = decoded(header_only("JPEG", 40_000, 30_000))
    assert (result.width, result.height, result.image.size) == (40_000, 30_000, (455, 341))  # 5,000 x 3,750, by 11


def test_one_huge_picture_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0
    guard = threading.Lock()
    to_rgb = image._to_rgb

    def watched(*arguments: Any) -> Image.Image:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        try:
            return to_rgb(*arguments)
        finally:
            with guard:
                inside -= 1

    monkeypatch.setattr(image, "_to_rgb", watched)
    data = saved(blocks(), "PNG")
    for limit, together in ((10**9, 4), (100, 1)):
        monkeypatch.setattr(image, "_HUGE_PIXELS", limit)
        most = 0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: decode_image(data, size=224), range(8)))
        assert most == together if together == 1 else most > 1


# --- damage


def test_an_empty_file() -> None:
    assert refusal(b"") == "the file is empty"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_file_cut_short_is_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 200, 3), dtype=np.uint8))
    data = saved(noise, kind)
    assert refusal(data[: int(share * len(data))]).startswith("the ")
    decoded(data)


def test_a_jpeg_cut_short_is_refused_even_while_it_is_shrunk() -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (600, 800, 3), dtype=np.uint8))
    for progressive in (False, True):
        data = saved(noise, "JPEG", progressive=progressive)
        assert decoded(data, size=32).image.size == (100, 75)
        with pytest.raises(DecodeError, match="cut short"):
            decode_image(data[: len(data) // 2], size=32)


FILES = [
    saved(blocks(3, 2), "JPEG"),
    saved(blocks(3, 2), "PNG"),
    saved(blocks(3, 2), "GIF"),
    saved(blocks(3, 2), "WEBP"),
    saved(blocks(3, 2), "BMP"),
    saved(blocks(3, 2), "TIFF"),
    saved(blocks(3, 2), "TIFF", compression="tiff_lzw"),
    saved(blocks(3, 2), "AVIF"),
    saved(blocks(3, 2), "HEIF"),
]


@given(
    file=st.sampled_from(FILES),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=300)
def test_damage_is_a_decode_error_with_one_short_line_or_a_picture(
    file: bytes, changes: list[tuple[float, int]], share: float
) -> None:
    data = bytearray(file)
    for position, value in changes:
        data[int(position * min(len(data), 600))] = value
    for variant in (bytes(data), bytes(data[: int(share * len(data))])):
        try:
            decoded(variant)
        except DecodeError as exc:
            assert 0 < len(str(exc)) < 200 and "\n" not in str(exc)


def test_nothing_reaches_the_terminal() -> None:
    """libtiff prints to the file descriptor itself, so a process of its own is watched."""
    broken = bytearray(FILES[6])
    broken[20:60] = bytes(range(200, 240))
    code = (
        "import sys\nfrom indexer.decode import decode_image\nfrom indexer.errors import DecodeError\n"
        "data = sys.stdin.buffer.read()\nfor file in data.split(b'--file--'):\n"
        "    try:\n        decode_image(file, size=224)\n    except DecodeError:\n        print('refused')"
    )
    corrupt_exif = saved(
        blocks(), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff" * 9
    )
    large = saved(Image.new("L", (10_000, 9_000)), "PNG")  # beyond the size at which Pillow warns
    answer = subprocess.run(
        [sys.executable, "-c", code],
        input=b"--file--".join([bytes(broken), corrupt_exif, large]),
        capture_output=True,
        check=True,
        cwd=os.getcwd(),
    )
    assert (answer.stdout, answer.stderr) == (b"refused\n", b"")


def test_threads_get_their_own_pictures() -> None:
    profile = matrix_profile(swap=True)
    pictures = [blocks(5, 4, 40, seed) for seed in range(24)]
    files = [
        saved(picture, ("PNG", "TIFF", "WEBP")[seed % 3], **({"lossless": True} if seed % 3 == 2 else {}))
        if seed % 2
        else saved(picture, "PNG", icc_profile=profile)
        for seed, picture in enumerate(pictures)
    ]
    alone = [pixels(decoded(file, 16).image) for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda file: pixels(decoded(file, 16).image), files * 4))
    for index, found in enumerate(together):
        assert np.array_equal(found, alone[index % len(files)])
    assert np.array_equal(alone[1], pixels(pictures[1].reduce(6)))
