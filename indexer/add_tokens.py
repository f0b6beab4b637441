"""Image tokens for the pictures that are in the index without: read again, in threads, and committed batch by batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np

from indexer.discover import Found
from indexer.embedding import check_reads_patches_of, check_same_model, encode_each
from indexer.encoders import Encoder, PatchEncoder
from indexer.index import Index
from indexer.reading import IMAGE_BATCH, Read, read_ahead, read_file
from indexer.tokens import Compressor, pack_checked
from indexer.types import Asset, Modality, Progress, Skipped, TokensReport
from indexer.writer import IndexWriter

_ROWS_BATCH = 256


def add_tokens(
    index: Index, encoder: Encoder, compressor: Compressor, progress: Callable[[Progress], None] = lambda _: None
) -> TokensReport:
    """Give every picture in ``index`` the image tokens of ``compressor`` that it does not have.

    Each file is read again and its content compared with the digest in the catalogue; a file that is not as it was when
    its vector was made gets no tokens, for the next update will embed it anyway. Vectors are not touched. Tokens of
    another format are dropped first. Killed or interrupted, the index holds every batch committed so far and the next
    call carries on.

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
        run = _TokenRun(writer, patch_encoder, compressor, progress)
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
    ) -> None:
        self.writer = writer
        self.encoder = encoder
        self.compressor = compressor
        self.progress = progress
        with writer.catalogue.read() as reader:
            without = reader.rows_without_tokens()
            self._rows = np.setdiff1d(without, reader.rows_from_memory(Modality.IMAGE))
            pictures = reader.counts()["items:image"]
        self._counts = dict.fromkeys(("added", "changed", "missing"), 0)
        self._counts["from_memory"] = len(without) - len(self._rows)
        self._counts["present"] = pictures - len(without)
        self._skipped: list[Skipped] = []
        self._reading: deque[int] = deque()
        self._pictures: list[tuple[int, str, np.ndarray]] = []

    def _todo(self) -> Iterator[Asset]:
        """The files of the pictures without tokens, in the order of their rows, which go into ``_reading``."""
        for start in range(0, len(self._rows), _ROWS_BATCH):
            rows = self._rows[start : start + _ROWS_BATCH].tolist()
            with self.writer.catalogue.read() as reader:
                items = reader.items_at(Modality.IMAGE, rows)
            for row in rows:
                self._reading.append(row)
                yield items[row].asset

    def _read(self, asset: Asset) -> Read:
        found = Found(asset.path, asset.size, asset.mtime_ns, asset.modality)
        return read_file(found, self.encoder, lambda digest: digest == asset.digest, max_text_bytes=0)

    def read_and_store(self) -> None:
        """Read, embed and store, a batch at a time."""
        with closing(read_ahead(self._read, self._todo())) as reads:
            for done, read in enumerate(reads, 1):
                self._take(self._reading.popleft(), read)
                self.progress(Progress(done, len(self._rows), len(self._skipped), read.found.path))
        self._flush()

    def _take(self, row: int, read: Read) -> None:
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
        rows, tokens = [], []
        made = encode_each(self._tokens, [prepared for _, _, prepared in pictures])
        for (row, path, _), found in zip(pictures, made, strict=True):
            if isinstance(found, str):
                self._skipped.append(Skipped(path, found))
            else:
                rows.append(row)
                tokens.append(found)
        if rows:
            self.writer.put_tokens(np.array(rows, dtype=np.int64), np.stack(tokens))
            self._counts["added"] += len(rows)

    def _tokens(self, prepared: list[np.ndarray]) -> np.ndarray:
        _, patches = self.encoder.encode_prepared_patches(np.stack(prepared))
        return pack_checked(self.compressor, patches)

    def report(self, seconds: float) -> TokensReport:
        """What was done."""
        return TokensReport(**self._counts, seconds=seconds, skipped=tuple(self._skipped))
