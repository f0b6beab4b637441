"""Videos with known cuts, written by PyAV: scenes that differ in their layout and in their mean colour."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

SIZE = (96, 64)


class Scene(NamedTuple):
    """So many seconds of a picture of one colour, which dissolves out of the one before, and may be zoomed into."""

    rgb: tuple[int, int, int]
    seconds: float
    dissolve: float = 0.0
    zoom: float = 1.0


def picture(rgb: tuple[int, int, int], zoom: float = 1.0) -> np.ndarray:
    """Blocks of this colour and black in a layout of its own, ``(H, W, 3)``; (0, 0, 0) is a black frame."""
    grid = np.random.default_rng(sum(c * 256**i for i, c in enumerate(rgb))).random((8, 12)) > 0.5
    whole = np.kron(grid[..., None] * np.array(rgb), np.ones((16, 16, 1))).astype(np.uint8)  # (128, 192, 3)
    width, height = whole.shape[1] / zoom, whole.shape[0] / zoom
    left, top = (whole.shape[1] - width) / 2, (whole.shape[0] - height) / 2
    image = Image.fromarray(whole).resize(SIZE, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    return np.asarray(image)


def frames(scenes: Sequence[Scene], fps: int) -> list[np.ndarray]:
    """Every frame of the scenes, one after the other."""
    made: list[np.ndarray] = []
    for scene in scenes:
        count, mixed = round(scene.seconds * fps), round(scene.dissolve * fps)
        before = made[-1] if made else None
        for i in range(count):
            frame = picture(scene.rgb, 1 + (scene.zoom - 1) * i / count)
            if i < mixed and before is not None:
                share = (i + 1) / (mixed + 1)
                frame = (share * frame + (1 - share) * before).astype(np.uint8)
            made.append(frame)
    return made


def write(
    path: Path,
    scenes: Sequence[Scene],
    *,
    fps: int = 12,
    codec: str = "libx264",
    times: Sequence[float] | None = None,
    sound: bool = False,
) -> Path:
    """Write a video; ``times`` are those of its frames, where they do not follow from ``fps``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if codec == "libx264":
            stream.options = {"preset": "veryfast", "crf": "20"}
        stream.codec_context.time_base = Fraction(1, 1000) if times is not None else Fraction(1, fps)
        heard = container.add_stream("aac", rate=8000) if sound else None
        for number, frame in enumerate(frames(scenes, fps)):
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            shown.pts = round(times[number] * 1000) if times is not None else number
            shown.time_base = stream.codec_context.time_base
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
        if heard is not None:
            seconds = sum(scene.seconds for scene in scenes)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, int(8000 * seconds)), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            container.mux(heard.encode(silence))
            container.mux(heard.encode(None))
    return path


def srt(cues: Sequence[tuple[float, float, str]]) -> str:
    """The cues as SubRip."""

    def clock(t: float) -> str:
        return f"{int(t // 3600):02d}:{int(t % 3600 // 60):02d}:{int(t % 60):02d},{round(t % 1 * 1000):03d}"

    return "\n".join(f"{n}\n{clock(a)} --> {clock(b)}\n{text}\n" for n, (a, b, text) in enumerate(cues, 1))
