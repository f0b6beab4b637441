"""Pictures: the bytes of a file to one upright RGB picture, or a DecodeError that says why not.

Only the formats listed here are ever handed to a decoder, and they are told apart by their first bytes, never by the
name of the file. The picture comes out as a person would see it: turned by its orientation tag, on white where it is
transparent, in sRGB, the first frame where there are several.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import math
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from indexer.errors import DecodeError

MARGIN = 1.5
"""A large picture is shrunk while it is decoded, to no less than so many times what the model takes, a side."""
MAX_PIXELS = 150_000_000
"""Pixels that a picture may have. A baseline JPEG is shrunk while it is read: there, those that are really decoded."""

_HUGE_PIXELS = 25_000_000
_huge = threading.Lock()  # one huge picture at a time: up to 600 MB each, whatever the number of threads

# Pillow reports through warnings and a logger what the reason of a DecodeError says, or what does not matter to a
# reader. A filter is set once because catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One picture, upright and in sRGB.

    ``image`` may be smaller than the file's picture; ``width`` and ``height`` are those of the whole picture as shown,
    after orientation. ``taken`` is EXIF's DateTimeOriginal in seconds since 1970: with OffsetTimeOriginal exactly, and
    without it as if the camera's clock showed UTC, since the zone is then unknown (up to 14 hours off).
    """

    image: Image.Image
    taken: float | None
    width: int
    height: int


def decode_image(data: bytes, *, size: int, look: Callable[[ImageFile], object] | None = None) -> DecodedImage:
    """Decode the content of one picture file.

    ``size`` is what the model takes, in pixels a side: a picture whose shorter side is at least three times as long is
    shrunk by a whole factor (JPEG: while decoding), its shorter side staying at least ``MARGIN * size``. Smaller
    pictures keep their pixels. ``look`` is shown the opened file once its pixels are read, for what else it says.

    Raises DecodeError: empty, not a picture, damaged, cut short, or more than MAX_PIXELS (known from the header,
    before any memory is taken). May be called from several threads.
    """
    if not data:
        raise DecodeError("the file is empty")
    name, open_as = _recognise(data)
    try:
        with open_as(io.BytesIO(data)) as picture:
            decoded = _decode(picture, size)
            if look is not None:  # not before: Pillow decodes a whole PNG to look for its EXIF, however large it is
                look(picture)
            return decoded
    except DecodeError:
        raise
    except Image.DecompressionBombError as exc:
        raise DecodeError(f"the picture is too large: the limit is {MAX_PIXELS:,} pixels") from exc
    except MemoryError as exc:
        raise DecodeError("the picture needs more memory than there is") from exc
    except Exception as exc:  # decoders raise whatever they stumble over: SyntaxError, struct.error, KeyError ...
        reason = " ".join(str(exc).split())[:120]
        if re.search("truncated|end of file", reason) or isinstance(exc, EOFError):
            raise DecodeError(f"the {name} file is cut short") from exc
        raise DecodeError(f"the {name} file is damaged: {reason or type(exc).__name__}") from exc


def decode_opened(picture: Image.Image, *, size: int) -> DecodedImage:
    """A picture that the caller has in memory, as ``decode_image`` makes it of a file.

    What PIL opened is read, and taken for its file: upright, and by its profile. Any other is what its pixels are.
    PIL keeps what it has read in ``picture``, which is otherwise left as it is.

    Raises DecodeError: it has no pixels, or cannot be read, or PIL opened it and it has more than MAX_PIXELS.
    May be called from several threads, but for one picture from one at a time.
    """
    width, height = picture.size
    if not width * height:
        raise DecodeError("the picture has no pixels")
    orientation, taken, profile = 1, None, None
    try:
        if isinstance(picture, ImageFile):
            if width * height > MAX_PIXELS:
                raise DecodeError(f"the picture is too large: {width} x {height} pixels; the limit is {MAX_PIXELS:,}")
            with _huge if width * height > _HUGE_PIXELS else contextlib.nullcontext():
                picture.load()
            orientation, taken = _exif(picture)
            profile = picture.info.get("icc_profile")
        image = _to_rgb(picture, profile, size)
    except DecodeError:
        raise
    except MemoryError as exc:
        raise DecodeError("the picture needs more memory than there is") from exc
    except Exception as exc:  # as above; also what was closed, or is at work elsewhere
        reason = " ".join(str(exc).split())[:120]
        raise DecodeError(f"the picture cannot be read: {reason or type(exc).__name__}") from exc
    image.info = {}
    return _upright(DecodedImage(image, taken, width, height), orientation)


def _decode(picture: ImageFile, size: int) -> DecodedImage:
    width, height = picture.size
    decoded_pixels = width * height
    if isinstance(picture, JpegImagePlugin.JpegImageFile):
        least = math.ceil(MARGIN * size)
        picture.draft(picture.mode, (least, least))
        # A progressive JPEG keeps the coefficients of the whole picture in memory, however small it is drafted.
        if not picture.info.get("progressive"):
            decoded_pixels = picture.size[0] * picture.size[1]
    if decoded_pixels > MAX_PIXELS:
        raise DecodeError(f"the picture is too large: {width} x {height} pixels; the limit is {MAX_PIXELS:,} pixels")
    with _huge if decoded_pixels > _HUGE_PIXELS else contextlib.nullcontext():
        picture.load()
        orientation, taken = _exif(picture)
        image = _to_rgb(picture, picture.info.get("icc_profile"), size)
    image.info = {}  # profile, EXIF and comments would travel through every queue
    return _upright(DecodedImage(image, taken, width, height), orientation)


# --- which decoder


def _heif(stream: io.BytesIO) -> ImageFile:
    import pillow_heif  # 20 MB of libraries that most folders never need

    return pillow_heif.HeifImageFile(stream)


def _tiff(stream: io.BytesIO) -> ImageFile:
    _silence_libtiff()
    return TiffImagePlugin.TiffImageFile(stream)


@lru_cache(maxsize=1)
def _silence_libtiff() -> None:
    """Stop libtiff from printing what is wrong with a file to the terminal: the DecodeError says it.

    Pillow has no call for it, so the handlers are set in the very library that Pillow has loaded.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(Image.core.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


_SIGNATURES: tuple[tuple[re.Pattern[bytes], str, Callable[[io.BytesIO], ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WebP", WebPImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8[79]a"), "GIF", GifImagePlugin.GifImageFile),
    (re.compile(rb"BM"), "BMP", BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF", _tiff),
    (re.compile(rb"....ftyp(?:....)*?avi[fs]", re.DOTALL), "AVIF", AvifImagePlugin.AvifImageFile),
    (re.compile(rb"....ftyp(?:....)*?(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL), "HEIC", _heif),
)


def _recognise(data: bytes) -> tuple[str, Callable[[io.BytesIO], ImageFile]]:
    """The format's name and its opener. Brands of an ISO media file are looked for in its first 64 bytes."""
    for signature, name, open_as in _SIGNATURES:
        if signature.match(data[:64]):
            return name, open_as
    raise DecodeError("not a picture in a known format (JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC, AVIF)")


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so, with 64 bytes, is a picture in a known format."""
    return any(signature.match(head[:64]) for signature, _, _ in _SIGNATURES)


# --- what the camera wrote beside the pixels

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (Exif 2.32, tag 0x0112) to the turn that undoes it."""


def _upright(decoded: DecodedImage, orientation: int) -> DecodedImage:
    """A picture as it is to be shown, from the way in which it is stored."""
    if orientation not in _UPRIGHT:
        return decoded
    width, height = decoded.width, decoded.height
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    return DecodedImage(decoded.image.transpose(_UPRIGHT[orientation]), decoded.taken, width, height)


def _exif(picture: ImageFile) -> tuple[int, float | None]:
    """Orientation and time; 1 and None where EXIF is absent or broken, for that must not cost the picture."""
    orientation, taken = 1, None
    with contextlib.suppress(Exception):
        exif = picture.getexif()
        orientation = int(exif.get(ExifTags.Base.Orientation, 1))
        details = exif.get_ifd(ExifTags.IFD.Exif)
        taken = _moment(details.get(ExifTags.Base.DateTimeOriginal), details.get(ExifTags.Base.OffsetTimeOriginal))
    return orientation, taken


def _moment(date: object, offset: object) -> float | None:
    """``2019:07:31 18:05:59`` and ``+02:00`` to seconds since 1970; None where the date is not one."""
    if date is None:
        return None
    clock = str(date).strip(" \0").replace("-", ":")  # some programs write 2019-07-31
    zone = str(offset).strip(" \0") if offset else "+00:00"
    for text in (f"{clock} {zone}", f"{clock} +00:00"):
        with contextlib.suppress(ValueError):  # 0000:00:00 is a camera whose clock was never set
            return datetime.strptime(text, "%Y:%m:%d %H:%M:%S %z").timestamp()
    return None


# --- colour


def _to_rgb(image: Image.Image, profile: bytes | None, size: int) -> Image.Image:
    """Any of Pillow's modes to RGB in sRGB, shrunk as early as its mode allows, so that the rest is cheap."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    elif image.has_transparency_data and image.mode not in ("LA", "RGBA"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")

    factor = int(min(image.size) / (MARGIN * size))
    if factor > 1:
        image = image.reduce(factor)

    if image.mode in ("LA", "RGBA"):
        opaque = Image.new(image.mode[:-1], image.size, "white")
        opaque.paste(image, mask=image.getchannel("A"))
        image = opaque
    if profile or image.mode == "LAB":
        image = _to_srgb(image, profile)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Deep greyscale to ``L``: 16 bits over their whole range, longer integers and floats from darkest to lightest."""
    values = np.array(image)  # (H, W)
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
        values = np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    else:
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high <= 65535:
            low, high = 0.0, 65535.0
    scale = 255 / (high - low) if high > low else 0.0
    grey = np.empty(values.shape, np.uint8)
    for row, line in enumerate(values):  # a row at a time: no second deep copy of a huge picture
        grey[row] = np.rint((line.astype(np.float64) - low) * scale)
    return Image.fromarray(grey)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as the embedded profile means them; a profile that is broken or of another kind of picture is ignored."""
    transform = _transform(profile if image.mode != "LAB" else None, image.mode)
    return image if transform is None else transform.apply(image)


@lru_cache(maxsize=8)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """A transform to sRGB, or None. Kept, as a folder of photographs holds few profiles; without one, CIE L*a*b*."""
    try:
        source = (
            ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if profile is not None
            else ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        )
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        return ImageCms.ImageCmsTransform(source, target, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
