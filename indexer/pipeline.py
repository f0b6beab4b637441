"""One run: bring an index to what the folders hold now, reading ahead of the model and committing batch by batch.

walk ─► compare with the catalogue ─► read, hash, decode (threads, ahead) ─► embed ─► commit ─► purge what is gone
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from indexer.catalogue import Stamp
from indexer.decode import decode_image, iter_passages
from indexer.discover import Found, Walk
from indexer.encoders import Encoder
from indexer.errors import DecodeError, MmsearchError, ModelError, ModelMismatch, UsageError
from indexer.index import Change, Index, IndexWriter, Piece, Put, Remove, Restamp, Skip
from indexer.types import Asset, Modality, Skipped, UpdateReport

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_BATCH = 32
TEXT_BATCH = 64
MAX_IMAGE_BYTES = 300_000_000
"""A picture file above this is not read: two of them decoding at once must fit beside the model."""
MAX_TEXT_BYTES = 20_000_000
"""A text file above this is skipped unless asked for: 20 MB are some 40,000 passages."""

_CHANGES_BATCH = 256
_READ_CHUNK = 1 << 20
_RACY_NS = 2_000_000_000
"""A file stamped less than this long ago may change again within the same tick of its file system's clock."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is: files done out of ``total``, ``skipped`` among them, and the one it is at."""

    done: int
    total: int
    skipped: int
    path: str


@dataclass(frozen=True, slots=True)
class Addition:
    """An image or a text from memory that is to be searchable under the caller's own ``key``."""

    key: str
    image: Image | None = None
    text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Read:
    """A file as a reading thread leaves it: exactly one of the last four is set."""

    found: Found
    digest: bytes = b""
    taken: float | None = None
    known: bool = False
    prepared: np.ndarray | None = None  # (C, H, W)
    fault: str | None = None
    vanished: bool = False


@dataclass(slots=True)
class _Document:
    """A text on its way: how many of its passages are stored, and which are waiting for the model."""

    asset: Asset
    replaces: list[int]
    asset_id: int | None
    written: int
    waiting: list[Piece] = field(default_factory=list)
    done: bool = False


def update(
    index: Index,
    encoder: Encoder,
    roots: Sequence[str | Path],
    *,
    exclude: Sequence[str] = (),
    max_text_bytes: int = MAX_TEXT_BYTES,
    progress: Callable[[Progress], None] = lambda _: None,
) -> UpdateReport:
    """Make ``index`` say what the folders and files ``roots`` hold.

    Unchanged files cost one ``stat``; changed ones are hashed, and embedded only if their content is new to the index.
    Files that are gone are purged, but never because a folder could not be looked into. A bad file is a line in the
    report. Killed or interrupted, the index holds every batch committed so far and the next run carries on.

    Raises:
        UsageError: a root does not exist.
        ModelMismatch: the index was made by another model.
        IndexBusy, StorageError: the index cannot be written.
        ModelError: the model fails on everything.
    """
    started = time.monotonic()
    with index.writing() as writer:
        run = _Run(writer, encoder, max_text_bytes, progress)
        run.plan(Walk(roots, exclude=exclude, avoid=[str(index.folder.absolute())]), roots)
        if run.todo:
            check_same_model(index, encoder)
            run.read_and_store()
        run.purge()
        return run.report(time.monotonic() - started)


def check_same_model(index: Index, encoder: Encoder) -> None:
    """Raise ModelMismatch unless ``encoder`` made the vectors of ``index``."""
    made = index.manifest
    if made.fingerprint == encoder.fingerprint:
        return
    if made.encoder != encoder.name:
        difference, way_out = f"by {made.encoder}, not by {encoder.name}", f"or use --model {made.encoder}"
    else:
        difference, way_out = f"by {made.encoder} with other weights than the ones here", "and index into that"
    raise ModelMismatch(
        f"the index in {index.folder} was made {difference}, and vectors of two models cannot be compared; nothing was "
        f"changed: name another folder with --index, {way_out}"
    )


def add(index: Index, encoder: Encoder, additions: Sequence[Addition]) -> None:
    """Store objects from memory; one with a key that is there already takes its place.

    Raises:
        UsageError: an addition has no key, or not exactly one of image and text, or metadata that is not JSON.
        ModelMismatch, ModelError, StorageError: as in ``update``; additions before the failing batch are stored.
    """
    check_same_model(index, encoder)
    with index.writing() as writer:
        for start in range(0, len(additions), IMAGE_BATCH):
            batch = {addition.key: addition for addition in additions[start : start + IMAGE_BATCH]}
            puts: list[Change] = [_put_addition(encoder, addition) for addition in batch.values()]
            with index.catalogue.read() as reader:
                replaced = reader.asset_ids(keys=list(batch))
            changes: list[Change] = [Remove(replaced)] if replaced else []
            writer.apply(changes + puts)


def _put_addition(encoder: Encoder, addition: Addition) -> Put:
    if not addition.key or (addition.image is None) == (addition.text is None):
        raise UsageError(f"item {addition.key!r}: give a key and exactly one of image and text")
    if addition.image is not None:
        image = addition.image.convert("RGB")
        digest = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()
        pieces, vectors = [Piece(Modality.IMAGE)], encoder.encode_images([image])
        size = len(image.tobytes())
    else:
        data = str(addition.text).encode()
        digest, size = hashlib.blake2b(data, digest_size=16).digest(), len(data)
        try:
            pieces = list(_passages(encoder, io.BytesIO(data), ".txt"))
        except DecodeError as exc:
            raise UsageError(f"item {addition.key!r}: {exc}") from exc
        vectors = encoder.encode_texts([piece.text or "" for piece in pieces])
    modality = pieces[0].modality
    asset = Asset("", modality, size, time.time_ns(), digest, key=addition.key, metadata=addition.metadata)
    return Put(asset, pieces, vectors)


def _passages(encoder: Encoder, stream: BinaryIO, suffix: str) -> Iterator[Piece]:
    found = iter_passages(stream, suffix=suffix, capacity=encoder.max_tokens, count_tokens=encoder.count_tokens)
    for passage in found:
        yield Piece(Modality.TEXT, passage.span, passage.text)


class _Run:
    """The state of one run of ``update``."""

    def __init__(
        self, writer: IndexWriter, encoder: Encoder, max_text_bytes: int, progress: Callable[[Progress], None]
    ) -> None:
        self.writer = writer
        self.encoder = encoder
        self.max_text_bytes = max_text_bytes
        self.progress = progress
        self.todo: list[Found] = []
        self._stamps: dict[str, Stamp] = {}
        self._gone: dict[str, Stamp] = {}
        self._digests: set[bytes] = set()
        self._counts = dict.fromkeys(("added", "updated", "moved", "duplicates", "removed", "unchanged", "items"), 0)
        self._skipped: list[Skipped] = []
        self._skipped_before = 0
        self._changes: list[Change] = []
        self._touched: set[int] = set()
        self._claimed: set[int] = set()
        self._pictures: list[tuple[_Read, np.ndarray]] = []
        self._documents: list[_Document] = []
        self._done = 0

    # -- what is to be done ------------------------------------------------------------------------------------------

    def plan(self, walk: Walk, roots: Sequence[str | Path]) -> None:
        """Walk, and compare what is found with what the catalogue knows."""
        tops = [os.path.abspath(root) for root in roots]
        with self.writer.catalogue.read() as reader:
            self._stamps = reader.stamps(tops)
            self._digests = reader.digests()
        seen: set[str] = set()
        for found in walk:
            if found.path in seen:
                continue
            seen.add(found.path)
            stamp = self._stamps.get(found.path)
            if stamp is None or not stamp.complete or (stamp.size, stamp.mtime_ns) != (found.size, found.mtime_ns):
                self.todo.append(found)
            elif stamp.asset_id is None:
                self._skipped_before += 1
            else:
                self._counts["unchanged"] += 1
        self._skipped.extend(walk.skipped)
        blind = list(walk.blind) + self._emptied(tops, seen)
        self._gone = {
            path: stamp
            for path, stamp in self._stamps.items()
            if path not in seen and not any(_is_below(path, folder) for folder in blind)
        }

    def _emptied(self, tops: Sequence[str], seen: set[str]) -> list[str]:
        """Folders that had files and have none now: rather a drive that is not mounted than a mass deletion."""
        emptied = []
        for top in filter(os.path.isdir, tops):
            known = sum(_is_below(path, top) for path, stamp in self._stamps.items() if stamp.asset_id is not None)
            if known and not any(_is_below(path, top) for path in seen):
                emptied.append(top)
                reason = (
                    f"holds nothing to index now, but {known:,} of its files are in the index; they are kept in case a "
                    "drive is not mounted ('mmsearch remove' takes them out)"
                )
                self._skipped.append(Skipped(top, reason))
        return emptied

    # -- reading, ahead of the model, in threads ---------------------------------------------------------------------

    def read_and_store(self) -> None:
        """Read everything that is to be done, in order, and store it batch by batch."""
        threads = min(4, os.cpu_count() or 1)
        ahead = IMAGE_BATCH * 2 + threads
        pool = ThreadPoolExecutor(threads, thread_name_prefix="mmsearch-read")
        try:
            waiting: deque[Future[_Read]] = deque()
            for found in self.todo:
                waiting.append(pool.submit(self._read, found))
                if len(waiting) >= ahead:
                    self._store(waiting.popleft().result())
            while waiting:
                self._store(waiting.popleft().result())
            self._flush_pictures()
            self._flush_documents()
            self._flush_changes()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, found: Found) -> _Read:
        """Read one file to the point where the model takes over; runs in a thread and raises nothing for a bad file."""
        try:
            for _ in range(2):  # a file that changes under our eyes gets a second look
                read = self._read_once(found)
                if read is not None:
                    return read
                now = os.stat(found.path)
                found = replace(found, size=now.st_size, mtime_ns=now.st_mtime_ns)
            return _Read(found, fault="it keeps changing while it is read; the next run tries again")
        except DecodeError as exc:
            return _Read(found, fault=str(exc))
        except FileNotFoundError:
            return _Read(found, vanished=True)
        except OSError as exc:
            return _Read(found, fault=f"cannot be read: {exc.strerror or exc}")
        except MemoryError:
            return _Read(found, fault="does not fit into memory")
        except Exception as exc:  # whatever a decoder does with a hostile file, the other files are not its business
            return _Read(found, fault=f"cannot be decoded: {type(exc).__name__}: {exc}")

    def _read_once(self, found: Found) -> _Read | None:
        """None if the file changed meanwhile."""
        with _open_regular(found.path) as file:
            before = os.fstat(file.fileno())
            found = replace(found, size=before.st_size, mtime_ns=before.st_mtime_ns)
            self._check_size(found)
            if found.modality is Modality.IMAGE:
                data = file.read()
                digest = hashlib.blake2b(data, digest_size=16).digest()
            else:
                data = b""
                digest = _digest_stream(file)
            after = os.fstat(file.fileno())
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                return None
        if digest in self._digests:
            return _Read(found, digest, known=True)
        if found.modality is not Modality.IMAGE:
            return _Read(found, digest)
        decoded = decode_image(data, size=self.encoder.image_size)
        return _Read(found, digest, decoded.taken, prepared=self.encoder.prepare(decoded.image))

    def _check_size(self, found: Found) -> None:
        if found.size == 0:
            raise DecodeError("the file is empty")
        if found.modality is Modality.IMAGE:
            if found.size > MAX_IMAGE_BYTES:
                raise DecodeError(
                    f"is {_megabytes(found.size)}; pictures above {_megabytes(MAX_IMAGE_BYTES)} are not read"
                )
        elif found.size > self.max_text_bytes:
            raise DecodeError(
                f"is {_megabytes(found.size)} of text, above the limit of {_megabytes(self.max_text_bytes)}; "
                "--max-text-mb raises it"
            )

    # -- storing, in the main thread ---------------------------------------------------------------------------------

    def _store(self, read: _Read) -> None:
        path = read.found.path
        if read.vanished:
            if path in self._stamps:
                self._gone[path] = self._stamps[path]
        elif read.fault is not None:
            self._skip(read.found, read.fault)
        elif read.known:
            self._store_known(read)
        elif read.prepared is not None:
            self._pictures.append((read, read.prepared))
            if len(self._pictures) >= IMAGE_BATCH:
                self._flush_pictures()
        else:
            self._store_document(read)
        self._done += 1
        self.progress(Progress(self._done, len(self.todo), len(self._skipped), path))

    def _old(self, path: str) -> list[int]:
        """The asset that stands under ``path`` now and must go when something else takes its place."""
        stamp = self._stamps.get(path)
        return [stamp.asset_id] if stamp is not None and stamp.asset_id is not None else []

    def _queue(self, *changes: Change) -> None:
        for change in changes:
            if isinstance(change, Restamp):
                self._touched.add(change.asset_id)
            if not isinstance(change, Remove):
                self._touched.update(change.replaces)
        self._changes.extend(changes)
        if len(self._changes) >= _CHANGES_BATCH:
            self._flush_changes()

    def _flush_changes(self) -> None:
        if self._changes:
            self.writer.apply(self._changes)
        self._changes.clear()
        self._touched.clear()

    def _skip(self, found: Found, reason: str, replaces: Sequence[int] | None = None) -> None:
        self._skipped.append(Skipped(found.path, reason))
        old = self._old(found.path) if replaces is None else replaces
        self._queue(Skip(found.path, found.size, found.mtime_ns, reason, old))

    def _store_known(self, read: _Read) -> None:
        """A file whose content the index has: it was touched, moved, or is a copy. The model is not asked."""
        old = self._old(read.found.path)
        candidates = self._candidates(read)
        if any(asset_id in self._touched for asset_id, _ in candidates):
            self._flush_changes()  # what the catalogue says of them is about to change
            candidates = self._candidates(read)
        asset = _asset(read)
        own = next((c for c in candidates if c[0] in old), None)
        moved = next((c for c in candidates if c[1].path and not os.path.lexists(c[1].path)), None)
        if own:
            self._queue(Restamp(own[0], replace(own[1], mtime_ns=asset.mtime_ns)))
            self._counts["unchanged"] += 1
        elif moved:
            self._claimed.add(moved[0])
            self._queue(Restamp(moved[0], replace(asset, taken=moved[1].taken), old))
            self._counts["moved"] += 1
        elif candidates:
            pieces, vectors = self.writer.fetch_pieces(candidates[0][0])
            self._queue(Put(replace(asset, taken=candidates[0][1].taken), pieces, vectors, old))
            self._counts["updated" if old else "duplicates"] += 1
            self._counts["items"] += len(pieces)
        else:
            # Its content left the index during this run (two files changed places): read it as if it were new.
            self._digests.discard(read.digest)
            self._done -= 1
            self._store(self._read(read.found))

    def _candidates(self, read: _Read) -> list[tuple[int, Asset]]:
        with self.writer.catalogue.read() as reader:
            return [c for c in reader.assets_with_digest(read.digest) if _same_kind(c[1], read.found)]

    def _flush_pictures(self) -> None:
        """Embed and commit the pictures that wait."""
        if not self._pictures:
            return
        reads = [read for read, _ in self._pictures]
        prepared = [array for _, array in self._pictures]
        self._pictures = []
        vectors = _encode(lambda some: self.encoder.encode_prepared(np.stack(some)), prepared)
        for read, vector in zip(reads, vectors, strict=True):
            old = self._old(read.found.path)
            if isinstance(vector, str):
                self._skip(read.found, vector)
                continue
            self._queue(Put(_asset(read), [Piece(Modality.IMAGE)], vector[None], old))
            self._counts["updated" if old else "added"] += 1
            self._counts["items"] += 1
        self._flush_changes()
        self._digests.update(read.digest for read in reads)

    def _store_document(self, read: _Read) -> None:
        """Cut a text into passages and embed them, a batch at a time, together with those of other texts."""
        document = self._begin_document(read)
        try:
            with _open_regular(read.found.path) as file:
                before = os.fstat(file.fileno())
                passages = _passages(self.encoder, file, os.path.splitext(read.found.path)[1].lower())
                for ordinal, piece in enumerate(passages):
                    if ordinal < document.written:
                        continue  # an earlier run that was interrupted has stored it
                    document.waiting.append(piece)
                    if sum(len(d.waiting) for d in self._documents) >= TEXT_BATCH:
                        self._flush_documents()
                after = os.fstat(file.fileno())
            if not (read.found.mtime_ns == before.st_mtime_ns == after.st_mtime_ns and before.st_size == after.st_size):
                raise DecodeError("it changed while it was read; the next run tries again")
        except FileNotFoundError:
            self._abandon(document, read.found, None)
        except OSError as exc:
            self._abandon(document, read.found, f"cannot be read: {exc.strerror or exc}")
        except DecodeError as exc:
            self._abandon(document, read.found, str(exc))
        else:
            document.done = True
            self._counts["updated" if self._old(read.found.path) else "added"] += 1

    def _begin_document(self, read: _Read) -> _Document:
        """A new document, or the rest of one that an interrupted run began."""
        old = self._old(read.found.path)
        stamp = self._stamps.get(read.found.path)
        document = _Document(_asset(read), old, None, 0)
        if old and stamp is not None and not stamp.complete:
            with self.writer.catalogue.read() as reader:
                if reader.asset(old[0]).digest == read.digest:
                    document = _Document(_asset(read), [], old[0], len(reader.asset_items(old[0])))
        self._documents.append(document)
        return document

    def _abandon(self, document: _Document, found: Found, reason: str | None) -> None:
        """Take a text that turned out bad, or vanished, out again."""
        self._documents.remove(document)
        gone = document.replaces + ([document.asset_id] if document.asset_id is not None else [])
        if reason is not None:
            self._skip(found, reason, gone)
        elif gone:
            self._queue(Remove(gone))

    def _flush_documents(self) -> None:
        """Embed and commit the passages that wait, of however many documents."""
        documents = [d for d in self._documents if d.waiting or d.done]
        texts = [piece.text or "" for d in documents for piece in d.waiting]
        vectors = iter(_encode(self.encoder.encode_texts, texts))
        puts: list[Put] = []
        for d in documents:
            pieces, rows = [], []
            for piece in d.waiting:
                vector = next(vectors)
                if isinstance(vector, str):
                    line = piece.span.first_line if piece.span else 0
                    self._skipped.append(Skipped(f"{d.asset.path}:{line}", vector))
                else:
                    pieces.append(piece)
                    rows.append(vector)
            stacked = np.stack(rows) if rows else np.empty((0, self.encoder.dim), np.float32)
            puts.append(Put(d.asset, pieces, stacked, d.replaces, d.asset_id, d.written, d.done))
        self._flush_changes()
        for d, put, asset_id in zip(documents, puts, self.writer.apply(puts), strict=True):
            d.asset_id, d.replaces = asset_id, []
            d.written += len(put.pieces)
            self._counts["items"] += len(put.pieces)
            d.waiting = []
            if d.done:
                self._digests.add(d.asset.digest)
        self._documents = [d for d in self._documents if not d.done]

    # -- the end -----------------------------------------------------------------------------------------------------

    def purge(self) -> None:
        """Take out what is gone."""
        gone = [s.asset_id for s in self._gone.values() if s.asset_id is not None and s.asset_id not in self._claimed]
        for start in range(0, len(gone), _CHANGES_BATCH):
            self.writer.apply([Remove(gone[start : start + _CHANGES_BATCH])])
        self._counts["removed"] = len(gone)
        self.writer.forget_skipped([path for path, stamp in self._gone.items() if stamp.asset_id is None])

    def report(self, seconds: float) -> UpdateReport:
        """What was done."""
        return UpdateReport(
            **self._counts, seconds=seconds, skipped=tuple(self._skipped), skipped_before=self._skipped_before
        )


def _encode(encode: Callable[[list[Any]], np.ndarray], batch: list[Any]) -> list[np.ndarray | str]:
    """Vectors of a batch; where the batch fails, each alone, with the reason in the place of the ones that fail.

    Raises:
        ModelError: every one of several fails, so it is the model and not the pictures.
    """
    if not batch:
        return []
    try:
        return list(encode(batch))
    except MemoryError:
        raise
    except Exception as exc:
        if not isinstance(exc, (ModelError, RuntimeError, ValueError)):
            raise
        first = exc
    results: list[np.ndarray | str] = []
    for one in batch:
        try:
            results.append(encode([one])[0])
        except (ModelError, RuntimeError, ValueError) as exc:
            results.append(f"the model cannot take it: {exc}")
    if len(batch) > 1 and all(isinstance(result, str) for result in results):
        if isinstance(first, MmsearchError):
            raise first
        raise ModelError(f"the model fails on every file: {first}") from first
    return results


def _asset(read: _Read) -> Asset:
    found = read.found
    mtime_ns = found.mtime_ns
    if abs(time.time_ns() - mtime_ns) < _RACY_NS:
        mtime_ns -= 1  # looks changed to the next run, which then compares the content
    return Asset(found.path, found.modality, found.size, mtime_ns, read.digest, read.taken)


def _same_kind(asset: Asset, found: Found) -> bool:
    """Whether equal bytes mean equal pieces: a table is cut up by other rules than a text."""
    if asset.modality is not found.modality or not asset.path:
        return False
    same_suffix = os.path.splitext(asset.path)[1].lower() == os.path.splitext(found.path)[1].lower()
    return found.modality is Modality.IMAGE or same_suffix


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _open_regular(path: str) -> BinaryIO:
    """Open a file for reading, unless it turned into something that reading would block on."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


def _digest_stream(file: BinaryIO) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    while chunk := file.read(_READ_CHUNK):
        digest.update(chunk)
    return digest.digest()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
