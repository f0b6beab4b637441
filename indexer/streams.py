"""Files of many pieces on their way into the index: decoded one after the other, embedded and committed in batches.

Passages and pictures of several files share a batch, so that many small files cost the model no more than one large
one. What is committed of a file stays: a run that is killed in the middle of one is carried on by the next behind the
last stored piece, if the file is still the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np

from indexer.changes import Piece, Put, Remove
from indexer.decode import Passage, Picture, Source, decode, stream_suffix
from indexer.embedding import encode_each
from indexer.encoders import Encoder
from indexer.errors import DecodeError, fault_of
from indexer.fitting import Fitting
from indexer.lanes import Pool, in_parts
from indexer.ledger import Ledger, asset_of
from indexer.pooling import POOL, most_central
from indexer.reading import IMAGE_BATCH, Read, open_regular
from indexer.types import Asset, Modality, Skipped, Span

TEXT_BATCH = 64


@dataclass(slots=True, eq=False)
class _File:
    """A file on its way: how many of its pieces are stored, and which are waiting for the model, with their places."""

    read: Read
    asset: Asset
    replaces: list[int]
    asset_id: int | None
    last: Span | None = None
    page_begins: int = 0
    seen: int = 0
    """Pieces that came out of the decoder, now or in the run that was interrupted."""
    stored: int = 0
    waiting: list[tuple[int, Passage | Picture]] = field(default_factory=list)
    done: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Embedded:
    """A piece with its vector ``(D,)`` and, if it is seen and tokens are stored, its packed tokens ``(row_bytes,)``."""

    ordinal: int
    piece: Piece
    vector: np.ndarray
    tokens: np.ndarray | None


class Streams:
    """The files of many pieces of one run.

    Args:
        within: told how much of a file, from 0 to 1, has been gone through.
    """

    def __init__(
        self,
        ledger: Ledger,
        encoder: Encoder,
        encode_texts: Fitting[np.ndarray],
        lanes: Pool,
        fps: float,
        within: Callable[[str, float], None],
    ) -> None:
        self._ledger = ledger
        self._encoder = encoder
        self._encode_texts = encode_texts
        self._lanes = lanes
        self._fps = fps
        self._within = within
        self._files: list[_File] = []
        self._texts = 0
        self._frames = 0

    def take(self, read: Read) -> None:
        """Decode a file piece by piece and store it, a batch at a time, together with the pieces of other files.

        Raises:
            ModelError: the model fails on everything.
            StorageError: the index cannot be written.
        """
        file = self._begin(read)
        path = read.found.path
        try:
            with open_regular(path) as stream, closing(self._pieces(file, stream)) as pieces:
                before = os.fstat(stream.fileno())
                for piece in pieces:
                    file.waiting.append((file.seen, piece))
                    file.seen += 1
                    if isinstance(piece, Picture):
                        self._frames += len(piece.frames)
                        if piece.share:
                            self._within(path, piece.share)
                    else:
                        self._texts += 1
                    if self._texts >= TEXT_BATCH or self._frames >= IMAGE_BATCH:
                        self.flush()
                after = os.fstat(stream.fileno())
            if not (read.found.mtime_ns == before.st_mtime_ns == after.st_mtime_ns and before.st_size == after.st_size):
                raise DecodeError("it changed while it was read; the next run tries again")
            if not file.seen:
                raise DecodeError("there is nothing in it to search for")
        except FileNotFoundError:
            self._abandon(file, None)
        except (OSError, DecodeError) as exc:
            self._abandon(file, fault_of(exc))
        else:
            file.done = True

    def _begin(self, read: Read) -> _File:
        """A new file, or the rest of one that an interrupted run began."""
        asset = asset_of(read)
        asset_id = self._ledger.begun(read)
        file = _File(read, asset, self._ledger.old(read.found.path) if asset_id is None else [], asset_id)
        if asset_id is not None:
            with self._ledger.writer.catalogue.read() as reader:
                if (last := reader.last_item(asset_id)) is not None:
                    file.seen = file.stored = last[0] + 1
                    file.last = last[1]
                if file.last is not None and file.last.page is not None:
                    file.page_begins = reader.page_begins(asset_id, file.last.page)
        self._files.append(file)
        return file

    def _pieces(self, file: _File, stream: BinaryIO) -> Generator[Passage | Picture, None, None]:
        """What the decoder gives; whatever it raises on a hostile file is a DecodeError, and only what it raises."""
        path, encoder = file.read.found.path, self._encoder
        source = Source(
            path,
            stream,
            stream_suffix(path, file.read.found.modality),
            encoder.prepare,
            encoder.image_size,
            encoder.max_tokens,
            encoder.count_tokens,
            lambda reason: self._ledger.skipped.append(Skipped(path, reason)),
            file.stored,
            file.last,
            file.page_begins,
            self._ledger.ocr,
            self._fps,
        )
        try:
            yield from decode(source)
        except (DecodeError, OSError):
            raise
        except Exception as exc:
            raise DecodeError(fault_of(exc)) from exc

    def _abandon(self, file: _File, reason: str | None) -> None:
        """Take a file that turned out bad, or vanished, out again."""
        self._files.remove(file)
        self._count_waiting()
        gone = file.replaces + ([file.asset_id] if file.asset_id is not None else [])
        if reason is not None:
            self._ledger.skip(file.read, reason, gone)
        elif gone:
            self._ledger.queue(Remove(gone))

    def _count_waiting(self) -> None:
        waiting = [piece for file in self._files for _, piece in file.waiting]
        self._frames = sum(len(piece.frames) for piece in waiting if isinstance(piece, Picture))
        self._texts = sum(isinstance(piece, Passage) for piece in waiting)

    def flush(self) -> None:
        """Embed and commit the pieces that wait, of however many files."""
        files = [file for file in self._files if file.waiting or file.done]
        waiting = [(file, ordinal, piece) for file in files for ordinal, piece in file.waiting]
        texts = [piece.text for _, _, piece in waiting if isinstance(piece, Passage)]
        frames = [frame for _, _, piece in waiting if isinstance(piece, Picture) for frame in piece.frames]
        of_texts = iter(encode_each(self._encode_texts, texts))
        of_frames = iter(in_parts(self._lanes, frames, max(1, IMAGE_BATCH // self._lanes.count)))
        made: dict[int, list[_Embedded]] = {id(file): [] for file in files}
        for file, ordinal, piece in waiting:
            if isinstance(piece, Picture):
                embedded = _pooled(ordinal, piece, [next(of_frames) for _ in piece.frames])
            else:
                vector = next(of_texts)
                new = Piece(Modality.TEXT, piece.span, piece.text, piece.source)
                embedded = vector if isinstance(vector, str) else _Embedded(ordinal, new, vector, None)
            if isinstance(embedded, str):
                self._ledger.skipped.append(Skipped(_place(file.asset.path, piece.span), embedded))
            else:
                made[id(file)].append(embedded)
        self._store(files, [made[id(file)] for file in files])

    def _store(self, files: Sequence[_File], made: Sequence[Sequence[_Embedded]]) -> None:
        self._ledger.flush()
        puts: list[tuple[_File, Put]] = []
        for file, embedded in zip(files, made, strict=True):
            file.waiting = []
            if embedded or file.asset_id is not None:
                put = _put(file, embedded, self._encoder.dim)
                puts.append((file, replace(put, ocr=self._ledger.ocr is not None)))
            elif file.done:
                self._ledger.skip(file.read, "the model takes nothing of it", file.replaces)
        for (file, put), asset_id in zip(puts, self._ledger.writer.apply([put for _, put in puts]), strict=True):
            file.asset_id, file.replaces = asset_id, []
            self._ledger.counts["items"] += len(put.pieces)
            if file.done:
                self._ledger.stored(file.asset)
        self._files = [file for file in self._files if not file.done]
        self._count_waiting()


def _pooled(
    ordinal: int, picture: Picture, embedded: Sequence[tuple[np.ndarray, np.ndarray | None] | str]
) -> _Embedded | str:
    """One vector from those of the frames, with the tokens of the most central one; else why the model takes none."""
    sound = [(i, one) for i, one in enumerate(embedded) if not isinstance(one, str)]
    if not sound:
        return next((one for one in embedded if isinstance(one, str)), "it has no frame")
    vectors = np.stack([vector for _, (vector, _) in sound])  # (T, D)
    best, (_, tokens) = sound[most_central(vectors)]
    if not picture.times:
        return _Embedded(ordinal, Piece(Modality.IMAGE, picture.span), vectors[0], tokens)
    span = replace(picture.span, best=picture.times[best])
    return _Embedded(ordinal, Piece(Modality.VIDEO, span), POOL(vectors), tokens)


def _put(file: _File, embedded: Sequence[_Embedded], dim: int) -> Put:
    vectors = np.stack([one.vector for one in embedded]) if embedded else np.empty((0, dim), np.float32)
    return Put(
        file.asset,
        [one.piece for one in embedded],
        vectors,
        file.replaces,
        file.asset_id,
        [one.ordinal for one in embedded],
        file.done,
        [one.tokens for one in embedded],
    )


def _place(path: str, span: Span) -> str:
    """A piece of a file, as a line of the report names it."""
    if span.page is not None:
        return f"{path}, page {span.page}"
    if span.start is not None:
        return f"{path}, second {span.start:.1f}"
    return f"{path}:{span.first_line or 0}"
