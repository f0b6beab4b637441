"""Subtitles: what is said in a video, as passages with their times, from the tracks inside it or a file beside it.

Neighbouring cues become one passage while they fit the text tower and few seconds: so a phrase is found that is spread
over two cues, and its moment stays short.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import av
import av.error

from indexer.decode.passages import cut
from indexer.decode.streams import Source
from indexer.decode.text import Passage, decoded
from indexer.errors import DecodeError
from indexer.types import Span

if TYPE_CHECKING:
    from av.container import InputContainer

LONGEST = 12.0
"""Seconds of the cues that become one passage, at most; one cue may be longer."""
_PAUSE = 3.0
"""Seconds without words that end a passage."""
_MAX_CHARACTERS = 20_000_000
_TAG = re.compile(r"<[^<>\n]{0,200}>|\{[^{}\n]{0,400}\}")


class Cue(NamedTuple):
    """Some words and when they are shown, in seconds."""

    start: float
    end: float
    text: str


def iter_subtitles(source: Source) -> Iterator[Passage]:
    """The passages of a subtitle file: SubRip, WebVTT or Advanced SubStation Alpha, told apart by what is in it.

    Raises:
        DecodeError: it is empty, too large, no text, or holds no cue.
    """
    text, size = [], 0
    for block in decoded(source.file):
        text.append(block)
        size += len(block)
        if size > _MAX_CHARACTERS:
            raise DecodeError(f"is far too long for subtitles: more than {_MAX_CHARACTERS:,} characters")
    cues = parse("".join(text))
    if not cues:
        raise DecodeError("holds no subtitles (SubRip, WebVTT and SubStation Alpha are known)")
    yield from islice(pack(cues, source.max_tokens, source.count_tokens), source.stored, None)


def iter_embedded(source: Source) -> Iterator[Passage]:
    """The passages of every text track inside a video; none if it has none, or no video can be opened."""
    try:
        with av.open(source.path, metadata_errors="ignore") as container:
            tracks = _tracks(container)
    except (av.error.FFmpegError, ValueError, OSError):
        return  # the decoder of its frames says what is wrong with the file
    for track in tracks:
        yield from pack(track, source.max_tokens, source.count_tokens)


def parse(text: str) -> list[Cue]:
    """The cues of a subtitle file, by their times, as FFmpeg reads them; what is none is left out."""
    kinds = ["webvtt", "srt"] if text.lstrip("\ufeff").startswith("WEBVTT") else ["srt", "webvtt"]
    if re.search(r"^\[Events\]", text, re.MULTILINE | re.IGNORECASE):
        kinds.insert(0, "ass")
    for kind in kinds:
        with suppress(av.error.FFmpegError, ValueError), av.open(BytesIO(text.encode()), format=kind) as container:
            for track in _tracks(container):
                if track:
                    return track
    return []


def _tracks(container: InputContainer) -> list[list[Cue]]:
    """The cues of each text track, by their times."""
    streams = [s for s in container.streams.subtitles if s.codec_context is not None]
    texts = [s for s in streams if s.codec_context.name in ("subrip", "srt", "ass", "ssa", "mov_text", "webvtt")]
    begin = (container.start_time or 0) / 1_000_000
    cues: dict[int, list[Cue]] = {s.index: [] for s in texts}
    for packet in container.demux(texts) if texts else ():
        if packet.pts is None or packet.time_base is None:
            continue
        start = float(packet.pts * packet.time_base) - begin
        end = start + float((packet.duration or 0) * packet.time_base)
        words = _plain(_payload(bytes(packet), packet.stream.codec_context.name))
        if words:
            cues[packet.stream_index].append(Cue(max(0.0, start), max(start, end), words))
    return [sorted(track) for track in cues.values()]


def _payload(data: bytes, codec: str) -> str:
    if codec == "mov_text":  # two bytes of length, then the text, then its styles
        data = data[2 : 2 + int.from_bytes(data[:2], "big")]
    text = data.decode("utf-8", "replace")
    if codec in ("ass", "ssa"):  # ReadOrder, Layer, Style, Name, MarginL, MarginR, MarginV, Effect, Text
        fields = text.split(",", 8)
        text = fields[8] if len(fields) == 9 else ""
    return text


def _plain(text: str) -> str:
    """The words of a cue without its tags, on one line."""
    text = _TAG.sub("", text).replace("\\N", " ").replace("\\n", " ").replace("\\h", " ")
    return " ".join(html.unescape(text).split())


# --- passages


def pack(cues: Iterable[Cue], capacity: int, count_tokens: Callable[[str], int]) -> Iterator[Passage]:
    """Passages of neighbouring cues, in their order, of at most ``capacity`` tokens.

    Words that are shown again while they are still there, as in rolling captions, count once.
    """
    waiting: list[Cue] = []
    for cue in cues:
        if waiting and cue.text == waiting[-1].text and cue.start <= waiting[-1].end + 0.1:
            waiting[-1] = waiting[-1]._replace(end=max(cue.end, waiting[-1].end))
            continue
        text = " ".join([*(c.text for c in waiting), cue.text])
        if waiting and (
            cue.end - waiting[0].start > LONGEST
            or cue.start - waiting[-1].end > _PAUSE
            or count_tokens(text) > capacity
        ):
            yield from _passages(waiting, capacity, count_tokens)
            waiting = []
        waiting.append(cue)
    if waiting:
        yield from _passages(waiting, capacity, count_tokens)


def _passages(cues: list[Cue], capacity: int, count_tokens: Callable[[str], int]) -> Iterator[Passage]:
    """One passage; more of a single cue that is too long; none of signs alone."""
    span = Span(start=round(cues[0].start, 3), end=round(max(cue.end for cue in cues), 3))
    for text in cut([" ".join(cue.text for cue in cues)], capacity, count_tokens):
        yield Passage(text, span, "subtitle")
