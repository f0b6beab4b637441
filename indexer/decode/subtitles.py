"""Subtitles: what is said in a video, as passages with their times, from the tracks inside it or a file beside it.

Neighbouring cues become one passage while they fit the text tower and few seconds: so a phrase is found that is spread
over two cues, and its moment stays short.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from indexer.decode.passages import cut
from indexer.decode.streams import Source
from indexer.decode.text import Passage, decoded
from indexer.errors import DecodeError
from indexer.types import Span

LONGEST = 12.0
"""Seconds of the cues that become one passage, at most; one cue may be longer."""
_PAUSE = 3.0
"""Seconds without words that end a passage."""
_MAX_CHARACTERS = 20_000_000


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
    for ordinal, passage in enumerate(pack(cues, source.max_tokens, source.count_tokens)):
        if ordinal >= source.stored:
            yield passage


def iter_embedded(source: Source) -> Iterator[Passage]:
    """The passages of every text track inside a video; none if it has none, or no video can be opened."""
    import av
    import av.error

    try:
        with av.open(source.path, metadata_errors="ignore") as container:
            tracks = [s for s in container.streams.subtitles if s.codec_context is not None]
            texts = [s for s in tracks if s.codec_context.name in ("subrip", "srt", "ass", "ssa", "mov_text", "webvtt")]
            if not texts:
                return
            begin = (container.start_time or 0) / 1_000_000
            cues: dict[int, list[Cue]] = {s.index: [] for s in texts}
            for packet in container.demux(texts):
                if packet.pts is None or packet.time_base is None:
                    continue
                start = float(packet.pts * packet.time_base) - begin
                end = start + float((packet.duration or 0) * packet.time_base)
                words = _plain(_payload(bytes(packet), packet.stream.codec_context.name))
                if words:
                    cues[packet.stream_index].append(Cue(max(0.0, start), max(start, end), words))
    except (av.error.FFmpegError, ValueError, OSError):
        return  # the decoder of its frames says what is wrong with the file
    for track in cues.values():
        yield from pack(sorted(track), source.max_tokens, source.count_tokens)


def _payload(data: bytes, codec: str) -> str:
    if codec == "mov_text":  # two bytes of length, then the text, then its styles
        data = data[2 : 2 + int.from_bytes(data[:2], "big")]
    text = data.decode("utf-8", "replace")
    if codec in ("ass", "ssa"):  # ReadOrder, Layer, Style, Name, MarginL, MarginR, MarginV, Effect, Text
        fields = text.split(",", 8)
        text = fields[8] if len(fields) == 9 else ""
    return text


# --- files

_CLOCK = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_CLOCK}\s*-->\s*{_CLOCK}")
_DIALOGUE = re.compile(r"Dialogue:\s*(.*)", re.IGNORECASE)
_TAG = re.compile(r"<[^<>\n]{0,200}>|\{[^{}\n]{0,400}\}")


def parse(text: str) -> list[Cue]:
    """The cues of a subtitle file, by their times; what is none is left out."""
    lines = text.lstrip("\ufeff").split("\n")
    cues = list(_dialogues(lines)) if re.search(r"^\[Events\]", text, re.MULTILINE | re.IGNORECASE) else []
    return sorted(cues or _timed(lines))


def _timed(lines: list[str]) -> Iterator[Cue]:
    """SubRip and WebVTT: a line with two times, and words until a blank line."""
    i = 0
    while i < len(lines):
        times = _TIMES.match(lines[i])
        i += 1
        if not times:
            continue
        words = []
        while i < len(lines) and lines[i].strip() and not _TIMES.match(lines[i]):
            words.append(lines[i])
            i += 1
        if i < len(lines) and words and _TIMES.match(lines[i]) and words[-1].strip().isdigit():
            words.pop()  # the number of the next cue, where the blank line was forgotten
        start, end = _clock(times.groups()[:4]), _clock(times.groups()[4:])
        plain = _plain("\n".join(words))
        if plain:
            yield Cue(start, max(start, end), plain)


def _dialogues(lines: list[str]) -> Iterator[Cue]:
    """SubStation Alpha: the lines of its events, in the order that their format says."""
    order = ["layer", "start", "end", "style", "name", "marginl", "marginr", "marginv", "effect", "text"]
    events = False
    for line in lines:
        if line.startswith("["):
            events = line.strip().casefold() == "[events]"
        elif events and line.casefold().startswith("format:"):
            order = [name.strip().casefold() for name in line.split(":", 1)[1].split(",")]
        elif events and (found := _DIALOGUE.match(line)):
            fields = dict(zip(order, found[1].split(",", len(order) - 1), strict=False))
            times = _TIMES.match(f"{fields.get('start', '')} --> {fields.get('end', '')}")
            plain = _plain(fields.get("text", ""))
            if times and plain:
                start, end = _clock(times.groups()[:4]), _clock(times.groups()[4:])
                yield Cue(start, max(start, end), plain)


def _clock(parts: Iterable[str | None]) -> float:
    hours, minutes, seconds, rest = parts
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(f"0.{rest}")


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
