"""Image tokens for the pictures and clips that are in the index without: read again, and committed batch by batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np

from indexer.discover import Found
from indexer.embedding import check_reads_patches_of, check_same_model, encode_each, settle_precision
from indexer.encoders import Encoder, PatchEncoder
from indexer.fitting import Fitting
from indexer.index import Index
from indexer.reading import IMAGE_BATCH, Read, read_ahead, read_file, read_still
from indexer.reports import Progress, TokensReport
from indexer.tokens import Compressor, pack_checked
from indexer.types import VISUAL, Item, Modality, Skipped, Span
from indexer.writer import IndexWriter

_ROWS_BATCH = 256


def add_tokens(
    index: Index,
    encoder: Encoder,
    compressor: Compressor,
    progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> TokensReport:
    """Give every picture and clip in ``index`` the image tokens of ``compressor`` that it does not have.

    Each file is read again and its content compared with the digest in the catalogue, except that a file of many pieces
    is taken for what it was while its size and time are; a file that is not as it was when its vector was made gets no
    tokens, for the next update will embed it anyway. Of a clip the best frame is read. Vectors are not touched. Tokens
    of another format are dropped first. Killed or interrupted, the index holds every batch committed so far and the
    next call carries on. ``say`` is told when batches are made smaller, for want of memory.

    Raises:
        ModelMismatch: the index was made by another model, or the compressor reads patches of another one.
        IndexBusy, StorageError: the index cannot be written.
        ModelError: the model or the compressor fails on everything.
    """
    started = time.monotonic()
    with index.writing() as writer:
        check_same_model(index, encoder)
        patch_encoder = check_reads_patches_of(encoder, compressor)
        if writer.token_format != compressor.format:
            writer.adopt_tokens(compressor.format)
        settle_precision(index, encoder, None, say)
        run = _TokenRun(writer, patch_encoder, compressor, progress, say)
        run.read_and_store()
        return run.report(time.monotonic() - started)


class _TokenRun:
    """The state of one run of ``add_tokens``."""

    def __init__(
        self,
        writer: IndexWriter,
        encoder: PatchEncoder,
        compressor: Compressor,
        progress: Callable[[Progress], None],
        say: Callable[[str], None],
    ) -> None:
        self.writer = writer
        self.encoder = encoder
        self.compressor = compressor
        self.progress = progress
        self._rows: dict[Modality, np.ndarray] = {}
        self._fitting = Fitting(self._tokens, "pictures", say)
        self._counts = dict.fromkeys(("added", "changed", "missing", "from_memory", "present"), 0)
        with writer.catalogue.read() as reader:
            for m in VISUAL:
                without = reader.rows_without_tokens(m)
                self._rows[m] = np.setdiff1d(without, reader.rows_from_memory(m))
                self._counts["from_memory"] += len(without) - len(self._rows[m])
                self._counts["present"] += reader.counts()[f"items:{m}"] - len(without)
        self._skipped: list[Skipped] = []
        self._reading: deque[tuple[Modality, int]] = deque()
        self._pictures: list[tuple[tuple[Modality, int], str, np.ndarray]] = []

    def _todo(self) -> Iterator[Item]:
        """The pictures and clips without tokens, in the order of their rows, which go into ``_reading``."""
        for m, without in self._rows.items():
            for start in range(0, len(without), _ROWS_BATCH):
                rows = without[start : start + _ROWS_BATCH].tolist()
                with self.writer.catalogue.read() as reader:
                    items = reader.items_at(m, rows)
                for row in rows:
                    self._reading.append((m, row))
                    yield items[row]

    def _read(self, item: Item) -> Read:
        asset = item.asset
        found = Found(asset.path, asset.size, asset.mtime_ns, asset.modality)
        if asset.modality is Modality.IMAGE:
            return read_file(found, self.encoder, lambda digest: digest == asset.digest, 0, self.writer.digest)
        return read_still(found, item.span or Span(), self.encoder, asset.digest, self.writer.digest)

    def read_and_store(self) -> None:
        """Read, embed and store, a batch at a time."""
        total = sum(map(len, self._rows.values()))
        with closing(read_ahead(self._read, self._todo())) as reads:
            for done, read in enumerate(reads, 1):
                self._take(self._reading.popleft(), read)
                self.progress(Progress(done, total, len(self._skipped), read.found.path))
        self._flush()

    def _take(self, row: tuple[Modality, int], read: Read) -> None:
        if read.vanished:
            self._counts["missing"] += 1
        elif read.unwanted:
            self._counts["changed"] += 1
        elif read.prepared is None:
            self._skipped.append(Skipped(read.found.path, str(read.fault)))
        else:
            self._pictures.append((row, read.found.path, read.prepared))
            if len(self._pictures) >= IMAGE_BATCH:
                self._flush()

    def _flush(self) -> None:
        pictures, self._pictures = self._pictures, []
        new: dict[Modality, list[tuple[int, np.ndarray]]] = {m: [] for m in VISUAL}
        made = encode_each(self._fitting, [prepared for _, _, prepared in pictures])
        for ((modality, row), path, _), found in zip(pictures, made, strict=True):
            if isinstance(found, str):
                self._skipped.append(Skipped(path, found))
            else:
                new[modality].append((row, found))
        for modality, pairs in new.items():
            if pairs:
                rows = np.array([row for row, _ in pairs], dtype=np.int64)
                self.writer.put_tokens(rows, np.stack([packed for _, packed in pairs]), modality)
                self._counts["added"] += len(pairs)

    def _tokens(self, prepared: list[np.ndarray]) -> np.ndarray:
        _, patches = self.encoder.encode_prepared_patches(np.stack(prepared))
        return pack_checked(self.compressor, patches)

    def report(self, seconds: float) -> TokensReport:
        """What was done."""
        return TokensReport(**self._counts, seconds=seconds, skipped=tuple(self._skipped))
