"""Moments: the clips and subtitles of a video that were found, merged into the stretches that a person would watch.

A hit is a moment, not a piece. Pieces of one video that touch or overlap are one moment: it is as likely as the best of
them and has the words of the best text. How long it is the best piece says, with those of its neighbours that are
nearly as likely; a neighbour that is far less likely only disappears in it where they overlap.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from indexer.reader import Reader
from indexer.types import Asset, Item, Modality, Span
from mmsearch.things import Scored

TOUCHING = 0.5
"""Seconds between two pieces that still touch."""
NEARLY = 0.7
"""Log-odds by which a neighbour may be less likely and still belongs to the moment: half the odds."""
LONGEST = 120.0
"""Seconds of a moment that is put together of several pieces, at most."""
POOL = 100
"""Answers of each kind among which neighbours are sought, where an index holds videos."""

_LANGUAGE = re.compile(r"\.[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})?|\.(?:forced|sdh|cc)", re.IGNORECASE)


def with_videos(pieces: Sequence[Scored], videos: Mapping[str, Asset]) -> list[Scored]:
    """The pieces, those of a subtitle file as pieces of the video beside it; ``videos`` says which by their paths."""
    return [
        replace(piece, item=replace(piece.item, asset=videos[piece.item.asset.path]))
        if piece.item.asset.path in videos
        else piece
        for piece in pieces
    ]


def videos_beside(reader: Reader, items: Iterable[Item]) -> dict[str, Asset]:
    """The video beside each subtitle file among the files of ``items``, by the path of the subtitle file."""
    paths = {item.asset.path for item in items if item.asset.modality is Modality.VIDEO}
    candidates = {path: beside(path) for path in sorted(paths)}
    there = reader.assets_at([video for videos in candidates.values() for video in videos])
    found = {path: next((v for v in videos if v in there), None) for path, videos in candidates.items()}
    return {path: there[video] for path, video in found.items() if video is not None}


def merge(pieces: Iterable[Scored], moments: int) -> list[Scored]:
    """The pieces, best first, with those of videos merged into at most ``moments`` moments a video.

    Other pieces are left as they are, and a late one changes no moment. The order stays: best first, ties to the
    smaller item.
    """
    merged: list[Scored] = []
    found: dict[tuple[str, str | None], list[int]] = {}
    absorbed: dict[int, list[Scored]] = {}
    for piece in sorted(pieces, key=lambda one: (-one.score, one.item.id)):
        if not _is_timed(piece.item):
            merged.append(piece)
            continue
        places = found.setdefault((piece.item.asset.path, piece.item.asset.key), [])
        touching = next((i for i in places if _belongs(piece, merged[i])), None)
        home = touching
        if home is None:
            home = next((i for i in places if _overlap(piece.item, merged[i].item)), None)
        if home is None:
            places.append(len(merged))
            merged.append(piece)
        elif not piece.late:
            if touching is not None:
                merged[home] = _extended(merged[home], piece)
            absorbed.setdefault(home, []).append(piece)
    kept = {place for places in found.values() for place in places[:moments]}
    return [
        _worded(piece, absorbed.get(i, ())) for i, piece in enumerate(merged) if i in kept or not _is_timed(piece.item)
    ]


def _is_timed(item: Item) -> bool:
    return item.asset.modality is Modality.VIDEO and item.span is not None and item.span.start is not None


def _times(item: Item) -> tuple[float, float]:
    assert item.span is not None and item.span.start is not None
    return item.span.start, item.span.start if item.span.end is None else item.span.end


def _overlap(item: Item, moment: Item) -> bool:
    (start, end), (begin, finish) = _times(item), _times(moment)
    return min(end, finish) > max(start, begin) + 0.01 or begin <= start <= end <= finish


def _belongs(piece: Scored, moment: Scored) -> bool:
    """Whether a piece makes a moment longer: it touches it, is nearly as likely, and the whole is not too long."""
    (start, end), (begin, finish) = _times(piece.item), _times(moment.item)
    near = start <= finish + TOUCHING and begin <= end + TOUCHING
    return near and moment.score - piece.score <= NEARLY and max(end, finish) - min(start, begin) <= LONGEST


def _extended(moment: Scored, piece: Scored) -> Scored:
    (start, end), (begin, finish) = _times(piece.item), _times(moment.item)
    span = moment.item.span or Span()
    best = span.best
    if best is None and piece.item.span is not None:
        best = piece.item.span.best
    span = replace(span, start=min(start, begin), end=max(end, finish), best=best)
    return replace(moment, item=replace(moment.item, span=span))


def _worded(moment: Scored, others: Sequence[Scored]) -> Scored:
    """The moment with the words of the best text in it, and a frame, if it has none of its own."""
    item = moment.item
    text = next((p.item for p in others if p.item.text is not None), None)
    if item.text is None and text is not None:
        item = replace(item, text=text.text, source=text.source)
    if item.span is not None and item.span.best is None:
        bests = [p.item.span.best for p in others if p.item.span is not None and p.item.span.best is not None]
        if bests:
            item = replace(item, span=replace(item.span, best=bests[0]))
    return replace(moment, item=item)


def beside(path: str) -> list[str]:
    """The paths of the videos that a subtitle file may belong to, the likeliest first: ``holiday.en.srt`` to
    ``holiday.en.mp4`` or ``holiday.mp4``. Empty for any other file."""
    from indexer.decode.streams import SUBTITLE_EXTENSIONS, VIDEO_EXTENSIONS  # and Pillow, for the few that ask

    stem, extension = os.path.splitext(path)
    if extension[1:].lower() not in SUBTITLE_EXTENSIONS:
        return []
    shorter, language = os.path.splitext(stem)
    stems = [stem, shorter] if _LANGUAGE.fullmatch(language) else [stem]
    endings = [case for extension in sorted(VIDEO_EXTENSIONS) for case in (extension, extension.upper())]
    return [f"{one}.{ending}" for one in stems for ending in endings]
