"""A moment of a video as a person takes it away: its best frame as a picture, or the moment itself as a small video."""

from __future__ import annotations

import os
import re
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.decode import modality_of, still, stream_suffix
from indexer.errors import DecodeError, UsageError
from indexer.types import Modality, Span

if TYPE_CHECKING:
    from indexer.reader import Reader

_CLOCK = r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:\.\d*)?)"
_FRAGMENT = re.compile(rf"(.+)#t=(?:npt:)?{_CLOCK}(?:,{_CLOCK})?", re.DOTALL)
_LISTED = re.compile(r"(.+?)\s+((?:\d+:)?\d+:\d\d)\s*[-–]\s*((?:\d+:)?\d+:\d\d)", re.DOTALL)
"""A moment as the list of answers prints it."""
_RATE = 30
"""Frames a second of an exact cut from a file that does not say how many it has."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A stretch of a video, in seconds; ``best`` is the frame that stands for it, if somebody knows."""

    path: str
    start: float
    end: float
    best: float | None = None


def parse_moment(hit: str) -> Moment:
    """``holiday.mp4#t=83,95`` or ``holiday.mp4#t=0:01:23,0:01:35``, a media fragment as W3C has them, to a moment.

    So is ``holiday.mp4  0:01:23–0:01:35``, as it stands in a list of answers, where seconds are cut short.

    Raises:
        UsageError: it is none, or there is no such file.
    """
    moment = split_moment(hit)
    if moment is None:
        raise UsageError(f"{hit!r} names no moment; write FILE#t=START,END as in holiday.mp4#t=83,95")
    if not os.path.isfile(moment.path):
        raise UsageError(f"there is no file {moment.path!r}")
    if modality_of(moment.path) is Modality.TEXT:
        raise UsageError(f"{moment.path!r} is no video")
    return replace(moment, path=os.path.abspath(moment.path))


def split_moment(hit: str) -> Moment | None:
    """The moment that is written so, its path as it stands there; None if it names none. Reads nothing.

    Raises:
        UsageError: it ends before it begins.
    """
    listed = _LISTED.fullmatch(hit.strip())
    found = _FRAGMENT.fullmatch(hit if listed is None else "{}#t={},{}".format(*listed.groups()))
    if not found:
        return None
    start = _seconds(found.groups()[1:4])
    end = start if found[7] is None else _seconds(found.groups()[4:7])
    if end < start:
        raise UsageError(f"the moment {hit!r} ends before it begins")
    return Moment(found[1], start, end)


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds = parts
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)


def with_best_frame(moment: Moment, reader: Reader) -> Moment:
    """The moment with the best frame of the clip in the index that it has most in common with, if there is one."""
    spans = [
        item.span
        for asset_id in reader.asset_ids(under=[moment.path])
        for item in reader.asset_items(asset_id)
        if item.span is not None and item.span.best is not None
    ]

    def common(span: Span) -> float:
        return min(moment.end, span.end or 0.0) - max(moment.start, span.start or 0.0)

    inside = [s for s in spans if s.best is not None and moment.start <= s.best <= moment.end and common(s) > 0]
    return Moment(moment.path, moment.start, moment.end, max(inside, key=common).best) if inside else moment


def save_frame(moment: Moment, out: Path) -> None:
    """Write the best frame of the moment, or else the one in its middle, in full size; the format is that of the name.

    Raises:
        DecodeError: the file is no video, or has no such frame.
        UsageError: the picture cannot be written.
    """
    span = Span(start=moment.start, end=moment.end, best=moment.best)
    try:
        image = still(moment.path, stream_suffix(moment.path, Modality.VIDEO), span, None)
    except OSError as exc:
        raise DecodeError(f"{moment.path} cannot be read: {exc.strerror or exc}") from exc
    try:
        image.save(out)
    except (OSError, ValueError) as exc:
        raise UsageError(f"cannot write the picture {os.fspath(out)!r}: {exc}") from exc


def save_clip(moment: Moment, out: Path, *, exact: bool = False) -> None:
    """Write the moment as a video, with its sound; the container is that of the name.

    Without ``exact`` the streams are copied: nothing is lost, and the video begins at the key frame before the moment.
    With ``exact`` the pictures are encoded again, as H.264, and it begins with the moment.

    Raises:
        DecodeError: the file is no video.
        UsageError: the clip cannot be written, or the moment has no length.
    """
    import av
    import av.error

    from indexer.decode.video import Video

    if moment.end <= moment.start:
        raise UsageError("the moment has no length; name its end as in holiday.mp4#t=83,95")
    try:
        with Video(moment.path) as video:
            try:
                with av.open(os.fspath(out), "w") as target:
                    (_encode if exact else _copy)(video, moment, target)
            except (av.error.FFmpegError, ValueError, OSError) as exc:
                raise UsageError(f"cannot write the clip {os.fspath(out)!r}: {exc}") from exc
    except (DecodeError, UsageError):
        out.unlink(missing_ok=True)
        raise


def _copy(video: Any, moment: Moment, target: Any) -> None:
    """Packets of the video and its first sound from the key frame before the moment to its end."""
    chosen = [video.stream, *video.container.streams.audio[:1]]
    streams = {stream.index: target.add_stream_from_template(stream) for stream in chosen}
    video.container.seek(int((moment.start + video.begin) * 1_000_000), backward=True)
    first: float | None = None
    open_ = set(streams)
    for packet in video.container.demux(chosen):
        if packet.dts is None or packet.pts is None:
            continue
        time = float(packet.dts * packet.time_base) - video.begin
        if first is None and packet.stream_index == video.stream.index:
            first = time
        if first is None or time < first:
            continue  # sound from before the key frame
        if time >= moment.end:
            open_.discard(packet.stream_index)
            if not open_:
                return
            continue
        shift = round((first + video.begin) / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        packet.stream = streams[packet.stream.index]
        target.mux(packet)


def _encode(video: Any, moment: Moment, target: Any) -> None:
    """The frames of the moment, upright, encoded again; its sound copied."""
    import av

    sounds = video.container.streams.audio[:1]
    rate = Fraction(video.stream.average_rate or _RATE).limit_denominator(1001)
    stream = target.add_stream("libx264", rate=rate)
    stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 90_000)
    sound = target.add_stream_from_template(sounds[0]) if sounds else None
    with closing(video.frames(moment.start)) as frames:
        for number, frame in enumerate(frames):
            if frame.time >= moment.end:
                break
            image = video.picture(frame)
            if number == 0:
                stream.width, stream.height = image.width // 2 * 2, image.height // 2 * 2
            shown = av.VideoFrame.from_image(image.crop((0, 0, stream.width, stream.height)))
            shown.pts, shown.time_base = round((frame.time - moment.start) * 90_000), Fraction(1, 90_000)
            target.mux(stream.encode(shown))
    target.mux(stream.encode(None))
    if sound is None:
        return
    video.container.seek(int((moment.start + video.begin) * 1_000_000), backward=True)
    for packet in video.container.demux(sounds[0]):
        if packet.pts is None or packet.dts is None:
            continue
        time = float(packet.pts * packet.time_base) - video.begin
        if time >= moment.end:
            return
        if time >= moment.start:
            shift = round((moment.start + video.begin) / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = sound
            target.mux(packet)
