"""Videos: a file to clips, each a stretch of one shot with the frames that say what it shows, in bounded memory.

One pass decodes what it must and no more: frames that no other frame depends on are left out where enough remain, and
of the rest so many a second are looked at as small pictures. Where the shots module finds a cut a clip ends; so it does
where a long shot has come to show something else, and after ``LONGEST`` seconds. A stretch of blank frames is no clip.

Times are seconds from the first moment of the file, by its own clock, whatever its frame rate. Frames are upright. This
is the only module that imports PyAV to read frames.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from indexer.decode.ahead import ahead
from indexer.decode.shots import THUMB, CutFinder, Descriptor, choose, describe, difference
from indexer.decode.streams import Picture, Source
from indexer.decode.text import Passage
from indexer.errors import DecodeError
from indexer.types import Span

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from indexer.decode.animation import Animation

LONGEST = 60.0
"""Seconds of a clip, at most."""
MOST_FRAMES = 4
"""Frames of a clip that the model sees, at most."""

_CHANGE = 0.16
"""Difference from the frames that were chosen above which another frame of a clip says something new."""
_DRIFT = 0.6
"""Difference from the first frames of a clip above which a shot shows something else than at its beginning."""
_SHORTEST = 4.0
"""Seconds before a clip may end for that reason."""
_LASTING = 2.0
"""Seconds that it must last."""
_WARM_UP = 9.0
"""Seconds before the first clip that is not stored yet at which a run goes on."""
_GAP = 3.0
"""Seconds at either end of a gap between two frames that are filled with the first."""
_KEPT = 12
"""Frames of a clip that are held until it ends: so many of the last, for they may belong to the next one, and of those
before them every one, then every second, every fourth …"""
_MARGIN = 0.6
"""Seconds beside a cut in which a frame may show two shots at once; of a short clip, a fifth of it."""
_AHEAD = 4
"""Clips that are decoded before the model takes them."""
_NEAR = 2.0
"""Seconds before the place that is sought at which decoding begins, for some files know their key frames roughly."""
_MAX_PIXELS = 70_000_000
_DAMAGED = 50
"""Packets in a row that cannot be decoded before the rest of a file is given up."""
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,gif,ogg,flv,asf,live_flv,h264,hevc,m4v,apng,"
    "ivf,mjpeg,av1,obu,nut,mxf,dv,rm"
)
"""What a file may be. Playlists and scripts, which name other files, are not among it."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A decoded frame: its time in seconds and how it is to be drawn upright."""

    time: float
    raw: Any
    aspect: Fraction | int
    turn: int
    """Degrees against the clock."""


Footage: TypeAlias = "Video | Animation"
"""What has frames."""


class Video:
    """An open video file; ``close`` it, or use it with ``with``.

    Raises:
        DecodeError: it is no video, or has no picture, or too large a one.
    """

    def __init__(self, path: str) -> None:
        try:
            self.container: InputContainer = av.open(
                path,
                metadata_errors="ignore",
                options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
            )
        except FileNotFoundError:
            raise
        except (av.error.FFmpegError, ValueError, OSError) as exc:
            raise DecodeError(f"cannot be opened as a video: {_reason(exc)}") from exc
        try:
            self.stream = self._choose_stream()
        except BaseException:
            self.container.close()
            raise
        start = self.container.start_time
        self.begin = start / 1_000_000 if start is not None else 0.0
        """Where the clock of the file begins, in seconds."""
        self._reformatter = VideoReformatter()
        self.damaged = 0
        """Parts that could not be decoded."""

    def _choose_stream(self) -> VideoStream:
        streams = [s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            others = self.container.streams.audio
            raise DecodeError("holds sound only" if others else "holds no video")
        stream = streams[0]
        context = stream.codec_context
        if context is None:
            raise DecodeError("is coded in a way that nothing here can decode")
        if context.width * context.height > _MAX_PIXELS:
            raise DecodeError(
                f"has frames of {context.width} x {context.height} pixels; {_MAX_PIXELS:,} pixels are the limit"
            )
        context.thread_count = 1  # the other cores are the model's
        return stream

    def close(self) -> None:
        """Let go of the file."""
        self.container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def frame_length(self) -> float:
        """Seconds that a frame is shown, on the average, and so the last one."""
        rate = self.stream.average_rate
        return float(1 / rate) if rate else 0.04

    @property
    def duration(self) -> float | None:
        """Seconds that the file says it has; None where it only guesses, as a transport stream does by its size."""
        if self.container.format.name in ("mpegts", "mpeg", "mpegvideo", "h264", "hevc"):
            return None
        if self.stream.duration is not None and self.stream.time_base is not None:
            return float(self.stream.duration * self.stream.time_base)
        clock = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", self.stream.metadata.get("DURATION", ""))
        if clock:
            return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
        alone = len(self.container.streams) == 1  # else it may be the sound that lasts longer
        return self.container.duration / 1_000_000 if alone and self.container.duration else None

    @property
    def expected(self) -> float | None:
        """About how many seconds it has, be it a guess by its size; None where nothing is known."""
        return self.duration or (self.container.duration or 0) / 1_000_000 or None

    def frames(self, start: float = 0.0, *, fps: float | None = None) -> Iterator[Frame]:
        """Frames from ``start`` on, in the order of their times; with ``fps`` at most so many a second.

        Packets that cannot be decoded are left out and counted.

        Raises:
            DecodeError: nothing at all can be decoded.
        """
        context = self.stream.codec_context
        rate = self.stream.average_rate or self.stream.guessed_rate
        frugal = fps is not None and rate is not None and float(rate) >= 2 * fps
        context.skip_frame = "NONREF" if frugal else "DEFAULT"
        if start > _NEAR:
            self._seek(start - _NEAR)
        due, last, row, found = start - 1e-3, -1.0, 0, False
        step = float(1 / rate) if rate else 0.04
        for packet in self._packets():
            try:
                decoded = packet.decode()
            except (av.error.FFmpegError, ValueError):
                self.damaged += 1
                row += 1
                if row >= _DAMAGED:
                    break
                continue
            for raw in decoded:
                row = 0
                time = raw.time - self.begin if raw.time is not None else last + step
                time = max(time, 0.0)
                if time <= last or raw.is_corrupt:
                    continue
                if frugal and fps is not None and found and time - last > 1.5 / fps:
                    frugal, context.skip_frame = False, "DEFAULT"  # too few frames of this file are referred to
                last, found = time, True
                if time < due:
                    continue
                if fps is not None:
                    due = (int(time * fps + 1e-6) + 1) / fps - 1e-3
                yield Frame(time, raw, self._aspect(raw), raw.rotation)
        if not found and start == 0:
            raise DecodeError("no frame of it can be decoded" if self.damaged else "holds no frame")

    def _packets(self) -> Iterator[Any]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, ValueError, OSError):
                self.damaged += 1
                return
            if packet is None:
                return
            yield packet

    def _seek(self, start: float) -> None:
        with contextlib.suppress(av.error.FFmpegError, OSError):  # a file without an index is read from its beginning
            self.container.seek(int((start + self.begin) * 1_000_000), backward=True)

    def _aspect(self, raw: VideoFrame) -> Fraction:
        aspect = self.stream.sample_aspect_ratio
        return aspect if aspect and Fraction(1, 8) <= aspect <= 8 else Fraction(1)

    def thumb(self, frame: Frame) -> np.ndarray:
        """The frame as a small picture ``(24, 32, 3)`` uint8, not turned."""
        width, height = THUMB
        small = self._reformatter.reformat(
            frame.raw, width=width, height=height, format="rgb24", interpolation="AREA", threads=1
        )
        return np.ascontiguousarray(small.to_ndarray())

    def picture(self, frame: Frame, size: int | None = None) -> Image.Image:
        """The frame in RGB, upright, on white where it is transparent; shrunk to ``2 * size`` pixels on its shorter
        side, if that is less."""
        raw = frame.raw
        width, height = raw.width * float(frame.aspect), float(raw.height)
        scale = min(1.0, 2 * size / min(width, height)) if size else 1.0
        clear = raw.format.name in ("rgba", "bgra", "argb", "abgr", "pal8", "ya8", "yuva420p", "gbrap")
        turned = self._reformatter.reformat(
            raw,
            width=max(1, round(width * scale)),
            height=max(1, round(height * scale)),
            format="rgba" if clear else "rgb24",
            interpolation="AREA" if scale < 1 else "BICUBIC",
            threads=1,
        )
        image = Image.fromarray(np.ascontiguousarray(turned.to_ndarray()))
        if clear:
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=image.getchannel("A"))
            image = white
        return image.rotate(frame.turn, expand=True) if frame.turn else image


def iter_clips(source: Source) -> Iterator[Passage | Picture]:
    """The passages of the subtitles inside a video, then its clips.

    A clip ends where the next one begins. A file that ends early, or of which parts are damaged, gives what can be
    read of it, and ``source.report`` is told.

    Raises:
        DecodeError: it is no video, or has no frame, or only blank ones.
    """
    from indexer.decode.subtitles import iter_embedded

    if source.last is None or source.last.best is None:
        yield from islice(iter_embedded(source), source.stored, None)
    with closing(ahead(_clips(source), _AHEAD)) as clips:
        yield from clips


def still(path: str, span: Span, size: int | None) -> Image.Image:
    """The frame at ``span.best``, or in the middle of the moment."""
    with Video(path) as video:
        return still_of(video, span, size)


def still_of(video: Footage, span: Span, size: int | None) -> Image.Image:
    """The frame at ``span.best``, or in the middle of the moment.

    Raises:
        DecodeError: there is none.
    """
    time = span.best
    if time is None:
        time = ((span.start or 0.0) + (span.end or span.start or 0.0)) / 2
    before: Frame | None = None
    for frame in video.frames(max(0.0, time - 2.0)):
        if frame.time > time + 1e-3 and before is not None:
            break
        before = frame
    if before is None:
        raise DecodeError(f"holds no frame at {time:.2f} s")
    return video.picture(before, size)


@dataclass(slots=True, eq=False)
class _Candidate:
    time: float
    descriptor: Descriptor
    image: Image.Image


@dataclass(slots=True)
class _Clip:
    """A clip while its frames come in."""

    start: float
    stride: int = 1
    seen: int = 0
    candidates: list[_Candidate] = field(default_factory=list)
    recent: list[_Candidate] = field(default_factory=list)
    first: Descriptor | None = None
    drifted: float | None = None
    """Since when it has shown something else than at its beginning."""

    def take(self, video: Footage, frame: Frame, descriptor: Descriptor, size: int) -> None:
        """Keep the frame if it is one of those that are kept."""
        if self.first is None and frame.time - self.start >= 1.0:
            self.first = descriptor
        if self.first is None or difference(self.first, descriptor) <= _DRIFT:
            self.drifted = None
        elif self.drifted is None:
            self.drifted = frame.time
        self.recent.append(_Candidate(frame.time, descriptor, video.picture(frame, size)))
        if len(self.recent) > _KEPT:
            oldest = self.recent.pop(0)
            if self.seen % self.stride == 0:
                self.candidates.append(oldest)
            self.seen += 1
        if len(self.candidates) > _KEPT:
            self.candidates = self.candidates[::2]
            self.stride *= 2

    def over(self, certain: float) -> float | None:
        """When a clip ends without a cut, for it is long, or has come to show something else; None if it does not.

        Up to ``certain`` there is no cut in it.
        """
        if self.drifted is not None and self.drifted - self.start >= _SHORTEST and certain >= self.drifted + _LASTING:
            return self.drifted
        return self.start + LONGEST if certain >= self.start + LONGEST else None

    def ended(self, end: float, source: Source, whole: float | None) -> list[Picture]:
        """The clip, which ends here; nothing if it shows nothing."""
        margin = min(_MARGIN, 0.2 * (end - self.start))
        shown = self.candidates + self.recent
        clear = [c for c in shown if self.start + margin <= c.time <= end - margin] or shown
        if not clear:
            return []
        chosen = choose([c.descriptor for c in clear], most=MOST_FRAMES, change=_CHANGE)
        frames = [source.prepare(clear[i].image) for i in chosen]
        times = [_ms(clear[i].time) for i in chosen]
        share = min(end / whole, 1.0) if whole else 0.0
        return [Picture(Span(start=_ms(self.start), end=_ms(end)), frames, times, share)]


def _clips(source: Source) -> Generator[Picture, None, None]:
    with Video(source.path) as video:
        yield from clips_of(video, source)


def clips_of(video: Footage, source: Source) -> Iterator[Picture]:
    """The clips of what is open, behind those that are stored.

    Raises:
        DecodeError: it has no frame, or only blank ones.
    """
    start = source.last.end if source.last is not None and source.last.best is not None else None
    shows = start is not None
    clip, finder, whole = _Clip(start or 0.0), CutFinder(source.fps), video.expected
    last, widest = start or 0.0, 0.0
    # A cut is a matter of the seconds around it: a run that goes on begins a little earlier, and finds the same ones.
    for time, descriptor, frame in _looked_at(video, max(0.0, last - _WARM_UP), source.fps):
        cuts = [cut for cut in finder.push(time, descriptor) if start is None or cut > start + 2e-3]
        if frame is not None and time >= clip.start - 1e-3:
            widest, last = max(widest, time - last), time
            if not descriptor.blank:
                shows = True
                clip.take(video, frame, descriptor, source.image_size)
        if not cuts and (over := clip.over(finder.certain)) is not None:
            cuts = [over]
        for cut in cuts:
            clip, pictures = _cut(clip, cut, source, whole)
            yield from pictures
    declared = video.duration
    slack = max(2.0, 2 * widest, 0.02 * (declared or 0.0))
    short = declared is not None and last + slack < declared
    end = max(last + video.frame_length, clip.start)
    if declared is not None and not short:
        end = max(end, declared)
    for cut in finder.flush():
        if cut > clip.start + 2e-3:
            clip, pictures = _cut(clip, cut, source, whole)
            yield from pictures
    yield from clip.ended(end, source, whole)
    if not shows:
        raise DecodeError("every frame of it is blank")
    if short:
        source.report(f"cut short: it says {declared:.0f} s, and ends at {last:.0f} s; that much is indexed")
    elif video.damaged:
        source.report(f"damaged: {video.damaged:,} parts could not be decoded; the rest is indexed")


def _looked_at(video: Footage, start: float, fps: float) -> Iterator[tuple[float, Descriptor, Frame | None]]:
    """Time and descriptor of every frame that is looked at; between two that are far apart the first goes on being
    shown, without a ``Frame``, for as long as a cut is looked for."""
    before: tuple[float, Descriptor] | None = None
    for frame in video.frames(start, fps=fps):
        descriptor = describe(video.thumb(frame))
        if before is not None:
            gaps = int((frame.time - before[0]) * fps + 0.25) - 1
            most = math.ceil(_GAP * fps)
            for i in range(1, gaps + 1):
                if i <= most:
                    yield before[0] + i / fps, before[1], None
                elif i > gaps - most:
                    yield frame.time - (gaps + 1 - i) / fps, before[1], None
        yield frame.time, descriptor, frame
        before = frame.time, descriptor


def _cut(clip: _Clip, end: float, source: Source, whole: float | None) -> tuple[_Clip, list[Picture]]:
    """End a clip at ``end``; the next one has what was seen since."""
    following = _Clip(end, recent=[c for c in clip.recent if c.time >= end])
    clip.recent = [c for c in clip.recent if c.time < end]
    return following, clip.ended(end, source, whole)


def _ms(time: float) -> float:
    return round(time, 3)


def _reason(exc: Exception) -> str:
    words = str(getattr(exc, "strerror", None) or exc)
    return " ".join(words.split())[:120]
