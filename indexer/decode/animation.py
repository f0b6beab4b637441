"""Animated WebP as video, by Pillow, which FFmpeg does not read; and whether a picture file moves at all."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import GifImagePlugin, Image, WebPImagePlugin

from indexer.decode.image import MAX_PIXELS
from indexer.decode.shots import THUMB
from indexer.decode.streams import Picture, Source
from indexer.decode.video import Frame, clips_of, still_of
from indexer.errors import DecodeError
from indexer.types import Span

_DEFAULT = 0.1
"""Seconds of a frame that says it is shown for no time, as browsers have it."""
_MAX_BYTES = 300_000_000


def is_animated(data: bytes) -> bool:
    """Whether these bytes are a GIF or a WebP of more than one frame; a damaged one is not."""
    with contextlib.suppress(Exception):  # what is wrong with it, the decoder of pictures says
        if data[:4] == b"GIF8":
            with GifImagePlugin.GifImageFile(io.BytesIO(data)) as gif:
                return bool(gif.is_animated)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            with WebPImagePlugin.WebPImageFile(io.BytesIO(data)) as webp:
                return bool(webp.is_animated)
    return False


class Animation:
    """An animated WebP, as ``Video`` is a video; how long it is, it does not say."""

    def __init__(self, path: str) -> None:
        data = Path(path).read_bytes()
        if len(data) > _MAX_BYTES:
            raise DecodeError(f"is {len(data) / 1e6:,.0f} MB; animations above {_MAX_BYTES / 1e6:,.0f} MB are not read")
        try:
            self._image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
        except (SyntaxError, OSError, ValueError) as exc:
            raise DecodeError(f"the WebP file is damaged: {exc}") from exc
        if self._image.width * self._image.height > MAX_PIXELS:
            raise DecodeError(f"the picture is too large: the limit is {MAX_PIXELS:,} pixels")
        self.damaged = 0
        self.duration: float | None = None
        self.expected: float | None = None
        self.frame_length = _DEFAULT

    def __enter__(self) -> Animation:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._image.close()

    def frames(self, start: float = 0.0, *, fps: float | None = None) -> Iterator[Frame]:
        """As ``Video.frames``."""
        end, due = 0.0, 0.0
        for number in range(self._image.n_frames):
            try:
                self._image.seek(number)
                self._image.load()
            except (EOFError, OSError, SyntaxError, ValueError) as exc:
                self.damaged += 1
                if number == 0:
                    raise DecodeError("no frame of it can be decoded") from exc
                return
            begin = max(end, float(self._image.info.get("timestamp", 0)) / 1000)
            self.frame_length = float(self._image.info.get("duration", 0)) / 1000 or _DEFAULT
            end = begin + self.frame_length
            if end <= start or begin < due:
                continue
            if fps is not None:
                due = (int(begin * fps + 1e-6) + 1) / fps - 1e-3
            yield Frame(begin, self._image.copy(), 1, 0)

    def thumb(self, frame: Frame) -> np.ndarray:
        """As ``Video.thumb``."""
        return np.asarray(self.picture(frame).resize(THUMB, Image.Resampling.BOX))

    def picture(self, frame: Frame, size: int | None = None) -> Image.Image:
        """As ``Video.picture``."""
        image: Image.Image = frame.raw
        if image.mode != "RGB":
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=image.convert("RGBA").getchannel("A"))
            image = white
        factor = min(image.size) // (2 * size) if size else 1
        return image.reduce(factor) if factor > 1 else image


def iter_clips(source: Source) -> Iterator[Picture]:
    """The clips of an animated WebP.

    Raises:
        DecodeError: it is none, or has no frame, or only blank ones.
    """
    with Animation(source.path) as animation:
        yield from clips_of(animation, source)


def still(path: str, span: Span, size: int | None) -> Image.Image:
    """The frame at ``span.best``, or in the middle of the moment."""
    with Animation(path) as animation:
        return still_of(animation, span, size)
