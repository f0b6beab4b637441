"""One run: bring an index to what the folders hold now, reading ahead of the model and committing batch by batch.

walk ─► compare with the catalogue ─► read, hash, decode (threads, ahead) ─► embed ─► commit ─► purge what is gone
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer.add_likenesses import add_likenesses
from indexer.add_tokens import add_tokens
from indexer.changes import Piece, Put, Remove, Restamp
from indexer.decode import FPS, TEXT_EXTENSIONS, reads_ocr
from indexer.decode.ocr import Ocr
from indexer.discover import Found, Walk
from indexer.embedding import (
    adopted,
    check_precision,
    check_same_model,
    embed_with,
    encode_each,
    settle_precision,
)
from indexer.encoders import Encoder
from indexer.encoders.precision import FLOAT32
from indexer.fitting import Fitting
from indexer.index import Index
from indexer.lanes import Embedded, Lanes
from indexer.ledger import CHANGES_BATCH, Ledger, asset_of
from indexer.performance import Performance
from indexer.performing import Performing
from indexer.processes import Model, Processes, load_embed
from indexer.reading import IMAGE_BATCH, Read, is_script_file, read_ahead, read_file
from indexer.records import Likeness, Stamp
from indexer.reports import Progress, UpdateReport
from indexer.streams import TEXT_BATCH, Streams
from indexer.tokens import Compressor
from indexer.types import Asset, Modality, Skipped
from indexer.writer import IndexWriter

if TYPE_CHECKING:
    from indexer.background_lists import BackgroundLists

MAX_TEXT_BYTES = 20_000_000
"""A text file above this is skipped unless asked for: 20 MB are some 40,000 passages."""


def update(
    index: Index,
    encoder: Encoder,
    roots: Sequence[str | Path],
    *,
    exclude: Sequence[str] = (),
    max_text_bytes: int = MAX_TEXT_BYTES,
    fps: float = FPS,
    compressor: Compressor | None = None,
    ocr: Ocr | None = None,
    devices: Sequence[str] = (),
    precision: str | None = None,
    lists: BackgroundLists | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> UpdateReport:
    """Make ``index`` say what the folders and files ``roots`` hold.

    Unchanged files cost one ``stat``; changed ones are hashed, and embedded only if their content is new to the index.
    Files that are gone are purged, but never because a folder could not be looked into. A bad file is a line in the
    report. Killed or interrupted, the index holds every batch committed so far and the next run carries on.

    With a ``compressor`` the pictures that are embedded get image tokens, in the same pass of the model, if the index
    holds tokens of its format; an index without a single picture takes that format on first. An index that has
    pictures and no tokens stays without: half of its pictures would be reranked and half not, until ``add_tokens``
    gives it the format and its pictures their tokens. Without a ``compressor`` new pictures have no tokens. What moves,
    or is a copy of what the index has, keeps the tokens that are there, or their absence.

    Of a video at most ``fps`` frames a second are looked at.
    With ``ocr`` the text in pictures and on scanned pages of PDFs is read too, also of those files that are in the
    index and of which it was never read. Without it, what was read stays.
    With several ``devices`` a process for each embeds the pictures, if there are many, with the encoder of that name.
    ``precision`` is that in which pictures are computed; see ``indexer.embedding.settle_precision``.
    ``lists`` makes search lists meanwhile.
    Of pictures that an earlier version indexed it is noted how they look, once.
    ``say`` is told when batches are made smaller, for want of memory, and when the index has another precision than
    this machine computes in.

    Raises:
        UsageError: a root does not exist, or the pictures of the index have another precision.
        ModelMismatch: the index was made by another model, or holds tokens of another compressor, or the compressor
            reads patches of another model.
        IndexBusy, StorageError: the index cannot be written.
        ModelError: the model fails on everything.
    """
    started = time.monotonic()
    check_precision(index, precision)
    with index.writing() as writer:
        run = _Run(writer, encoder, max_text_bytes, fps, ocr, lists, progress, say)
        run.plan(Walk(roots, exclude=exclude, avoid=[str(index.folder.absolute())]), roots)
        if run.todo:
            check_same_model(index, encoder)
        writer.add_roots([os.path.abspath(root) for root in roots])
        if run.todo:
            if precision is not None or any(_is_seen(found) for found in run.todo):
                settle_precision(index, encoder, precision, say)
            taken = adopted(writer, encoder, compressor)
            if len(run.todo) <= IMAGE_BATCH * len(devices):  # done before a second process has loaded the model
                devices = ()
            run.read_and_store(_pool(index, encoder, taken, devices, say))
        run.purge()
        add_likenesses(writer, [os.path.abspath(root) for root in roots], encoder.image_size, progress, say)
        if lists is not None:
            lists.finish(writer)
        return run.report(time.monotonic() - started)


def _is_seen(found: Found) -> bool:
    """Whether a file may hold pictures, and not words alone."""
    return os.path.splitext(found.path)[1][1:].lower() not in TEXT_EXTENSIONS


def _pool(
    index: Index, encoder: Encoder, compressor: Compressor | None, devices: Sequence[str], say: Callable[[str], None]
) -> Lanes | Processes:
    """What embeds the pictures of a run."""
    if len(devices) < 2:
        return Lanes(embed_with(encoder, compressor, say), encoder)
    precision = index.manifest.precision or FLOAT32
    model = Model(encoder.name, encoder.fingerprint, precision, index.ranges())
    return Processes(partial(load_embed, model, compressor), devices, say)


class _Run:
    """The state of one run of ``update``."""

    def __init__(
        self,
        writer: IndexWriter,
        encoder: Encoder,
        max_text_bytes: int,
        fps: float,
        ocr: Ocr | None,
        lists: BackgroundLists | None,
        progress: Callable[[Progress], None],
        say: Callable[[str], None],
    ) -> None:
        self._writer = writer
        self._lists = lists
        self._encoder = encoder
        self._encode_texts: Fitting[np.ndarray] = Fitting(encoder.encode_texts, "texts", say)
        self._max_text_bytes = max_text_bytes
        self._fps = fps
        self._ledger = Ledger(writer, ocr)
        self._progress = progress
        self.todo: list[Found] = []
        self._gone: dict[str, Stamp] = {}
        self._skipped_before = 0
        self._claimed: set[int] = set()
        self._pictures: list[tuple[Read, np.ndarray]] = []
        self._sent: deque[tuple[list[Read], Future[list[Embedded]]]] = deque()
        self._unread: set[str] = set()
        self._figures: Performance | None = None
        self._done = 0

    # -- what is to be done ------------------------------------------------------------------------------------------

    def plan(self, walk: Walk, roots: Sequence[str | Path]) -> None:
        """Walk, and compare what is found with what the catalogue knows."""
        tops = [os.path.abspath(root) for root in roots]
        with self._writer.catalogue.read() as reader:
            self._ledger.stamps = reader.stamps(tops)
            self._ledger.digests = reader.digests()
        seen: set[str] = set()
        for found in walk:
            if found.path in seen:
                continue
            stamp = self._ledger.stamps.get(found.path)
            same = stamp is not None and (stamp.size, stamp.mtime_ns) == (found.size, found.mtime_ns)
            if not (same and stamp and stamp.asset_id is not None) and is_script_file(found.path):
                if found.path in tops:
                    self._ledger.skipped.append(Skipped(found.path, "is the source of a program, and no video"))
                continue
            seen.add(found.path)
            if self._ledger.ocr and stamp and stamp.asset_id is not None and not stamp.ocr and reads_ocr(found.path):
                self._unread.add(found.path)  # its content is known, the text in its pictures is not
                self.todo.append(found)
            elif stamp is None or not stamp.complete or not same:
                self.todo.append(found)
            elif stamp.asset_id is None:
                self._skipped_before += 1
            else:
                self._ledger.counts["unchanged"] += 1
        self._ledger.skipped.extend(walk.skipped)
        blind = list(walk.blind) + self._emptied(tops, seen)
        self._gone = {
            path: stamp
            for path, stamp in self._ledger.stamps.items()
            if path not in seen and not any(_is_below(path, folder) for folder in blind)
        }

    def _emptied(self, tops: Sequence[str], seen: set[str]) -> list[str]:
        """Folders that had files and have none now: rather a drive that is not mounted than a mass deletion."""
        emptied = []
        indexed = [path for path, stamp in self._ledger.stamps.items() if stamp.asset_id is not None]
        for top in filter(os.path.isdir, tops):
            known = sum(_is_below(path, top) for path in indexed)
            if known and not any(_is_below(path, top) for path in seen):
                emptied.append(top)
                reason = (
                    f"holds nothing to index now, but {known:,} of its files are in the index; they are kept in case a "
                    "drive is not mounted ('mmsearch remove' takes them out)"
                )
                self._ledger.skipped.append(Skipped(top, reason))
        return emptied

    # -- reading, ahead of the model, in threads ---------------------------------------------------------------------

    def read_and_store(self, pool: Lanes | Processes) -> None:
        """Read everything that is to be done, in order, and store it batch by batch."""
        with (
            pool as self._lanes,
            closing(Performing(self._writer.folder, self._encoder, self._lanes.meter)) as self._performing,
            closing(read_ahead(self._read, self.todo)) as reads,
        ):
            self._streams = Streams(
                self._ledger, self._encoder, self._encode_texts, self._lanes, self._fps, self._within
            )
            for read in reads:
                self._store(read)
                if self._lists is not None:
                    self._lists.look(self._writer)
            self._send_pictures()
            while self._sent:
                self._store_pictures()
            self._streams.flush()
            self._ledger.flush()
            self._figures = self._performing.finish()

    def _read(self, found: Found) -> Read:
        unread = found.path in self._unread
        with self._performing.reading.work():
            return read_file(
                found,
                self._encoder,
                lambda digest: unread or digest not in self._ledger.digests,
                self._max_text_bytes,
                self._writer.digest,
                self._ledger.ocr,
            )

    # -- storing, in the main thread ---------------------------------------------------------------------------------

    def _store(self, read: Read) -> None:
        path = read.found.path
        if read.vanished:
            if path in self._ledger.stamps:
                self._gone[path] = self._ledger.stamps[path]
        elif read.fault is not None:
            self._ledger.skip(read, read.fault, self._ledger.old(path))
        elif read.unwanted:
            self._store_known(read)
        elif read.prepared is not None:
            self._pictures.append((read, read.prepared))
            if len(self._pictures) >= IMAGE_BATCH:
                self._send_pictures()
        else:
            self._streams.take(read)
        self._done += 1
        self._within(path, 0.0)

    def _within(self, path: str, share: float) -> None:
        """So much of a file, from 0 to 1, has been gone through."""
        self._progress(Progress(self._done, len(self.todo), len(self._ledger.skipped), path, share))

    def _store_known(self, read: Read) -> None:
        """A file whose content the index has: it was touched, moved, or is a copy. The model is not asked."""
        old = self._ledger.old(read.found.path)
        candidates = self._candidates(read)
        if any(asset_id in self._ledger.touched for asset_id, _ in candidates):
            self._ledger.flush()  # what the catalogue says of them is about to change
            candidates = self._candidates(read)
        asset = asset_of(read)
        own = next((c for c in candidates if c[0] in old), None)
        moved = next((c for c in candidates if c[1].path and not os.path.lexists(c[1].path)), None)
        if own:
            self._ledger.queue(Restamp(own[0], replace(own[1], mtime_ns=asset.mtime_ns)))
            self._ledger.counts["unchanged"] += 1
        elif moved:
            self._claimed.add(moved[0])
            self._ledger.queue(Restamp(moved[0], replace(asset, modality=moved[1].modality, taken=moved[1].taken), old))
            self._ledger.counts["moved"] += 1
        elif candidates:
            pieces, vectors, tokens = self._writer.fetch_pieces(candidates[0][0])
            known = candidates[0][1]
            asset = replace(asset, modality=known.modality, taken=known.taken)
            likeness = self._likeness(candidates[0][0])
            self._ledger.queue(Put(asset, pieces, vectors, old, tokens=tokens, likeness=likeness))
            self._ledger.counts["updated" if old else "duplicates"] += 1
            self._ledger.counts["items"] += len(pieces)
        else:
            # Its content left the index during this run (two files changed places): read it as if it were new.
            self._ledger.digests.discard(read.digest)
            self._done -= 1
            self._store(self._read(read.found))

    def _likeness(self, asset_id: int) -> Likeness | None:
        with self._writer.catalogue.read() as reader:
            return reader.likenesses([asset_id]).get(asset_id)

    def _candidates(self, read: Read) -> list[tuple[int, Asset]]:
        with self._writer.catalogue.read() as reader:
            return [c for c in reader.assets_with_digest(read.digest) if _same_kind(c[1], read.found)]

    def _send_pictures(self) -> None:
        """Give the pictures that wait to the model, and store what it has made meanwhile of earlier ones."""
        if self._pictures:
            embedded = self._lanes.submit([array for _, array in self._pictures])
            self._sent.append(([read for read, _ in self._pictures], embedded))
            self._pictures = []
        # One batch more than there are lanes, so that none waits while another's is stored.
        while self._sent and (len(self._sent) > self._lanes.count + 1 or self._sent[0][1].done()):
            self._store_pictures()

    def _store_pictures(self) -> None:
        """Commit the oldest batch of pictures that the model was given, once it is done with it."""
        reads, result = self._sent.popleft()
        of_pictures = result.result()
        with self._performing.storing.work(len(reads)):
            self._store_embedded(reads, of_pictures)
        self._performing.save()

    def _store_embedded(self, reads: list[Read], of_pictures: list[Embedded]) -> None:
        """Commit pictures with what the model made of them; texts that belong to them are embedded first."""
        of_texts = iter(encode_each(self._encode_texts, [text.text for read in reads for text in read.texts]))
        for read, embedded in zip(reads, of_pictures, strict=True):
            texts = [(text, next(of_texts)) for text in read.texts]
            old = self._ledger.old(read.found.path)
            if isinstance(embedded, str):
                self._ledger.skip(read, embedded, old)
                continue
            vector, tokens = embedded
            sound = [(text, one) for text, one in texts if not isinstance(one, str)]
            pieces = [Piece(Modality.IMAGE), *(Piece(Modality.TEXT, t.span, t.text, t.source) for t, _ in sound)]
            vectors = np.stack([vector, *(one for _, one in sound)])
            put = Put(asset_of(read), pieces, vectors, old, tokens=[tokens, *(None for _ in sound)])
            self._ledger.queue(replace(put, ocr=self._ledger.ocr is not None, likeness=read.likeness))
            self._ledger.stored(put.asset)
            self._ledger.counts["items"] += len(pieces)
        self._ledger.flush()

    # -- the end -----------------------------------------------------------------------------------------------------

    def purge(self) -> None:
        """Take out what is gone."""
        gone = [s.asset_id for s in self._gone.values() if s.asset_id is not None and s.asset_id not in self._claimed]
        for start in range(0, len(gone), CHANGES_BATCH):
            self._writer.apply([Remove(gone[start : start + CHANGES_BATCH])])
        self._ledger.counts["removed"] = len(gone)
        self._writer.forget_skipped([path for path, stamp in self._gone.items() if stamp.asset_id is None])

    def report(self, seconds: float) -> UpdateReport:
        """What was done."""
        return UpdateReport(
            **self._ledger.counts,
            seconds=seconds,
            skipped=tuple(self._ledger.skipped),
            skipped_before=self._skipped_before,
            performance=self._figures,
        )


def _same_kind(asset: Asset, found: Found) -> bool:
    """Whether equal bytes mean equal pieces: a table is cut up by other rules than a text."""
    if not asset.path:
        return False
    same_suffix = os.path.splitext(asset.path)[1].lower() == os.path.splitext(found.path)[1].lower()
    return same_suffix or asset.modality is found.modality is Modality.IMAGE


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


__all__ = [
    "IMAGE_BATCH",
    "MAX_TEXT_BYTES",
    "TEXT_BATCH",
    "Progress",
    "add_tokens",
    "check_same_model",
    "update",
]
