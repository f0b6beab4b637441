"""The books of one run: what the catalogue knew of its files, what is to be changed there, what the report counts."""

from __future__ import annotations

import time
from collections.abc import Sequence

from indexer.changes import Change, Remove, Restamp, Skip
from indexer.decode.ocr import Ocr
from indexer.reading import Read
from indexer.records import Stamp
from indexer.types import Asset, Skipped
from indexer.writer import IndexWriter

CHANGES_BATCH = 256
_RACY_NS = 2_000_000_000
"""A file stamped less than this long ago may change again within the same tick of its file system's clock."""


class Ledger:
    """What one run knows and does, but for the model: pictures and files of many pieces are entered alike.

    Args:
        ocr: what looks for text in pictures, if anything does.
    """

    def __init__(self, writer: IndexWriter, ocr: Ocr | None) -> None:
        self.writer = writer
        self.ocr = ocr
        self.stamps: dict[str, Stamp] = {}
        self.digests: set[bytes] = set()
        self.counts = dict.fromkeys(("added", "updated", "moved", "duplicates", "removed", "unchanged", "items"), 0)
        self.skipped: list[Skipped] = []
        self.touched: set[int] = set()
        """Assets of which the catalogue is about to say something else."""
        self._changes: list[Change] = []

    def old(self, path: str) -> list[int]:
        """The assets that stand under ``path`` now and must go when something else takes their place."""
        stamp = self.stamps.get(path)
        return [stamp.asset_id] if stamp is not None and stamp.asset_id is not None else []

    def begun(self, read: Read) -> int | None:
        """The asset that an interrupted run began to write of this very content under this path, if any."""
        stamp = self.stamps.get(read.found.path)
        if stamp is None or stamp.asset_id is None or stamp.complete:
            return None
        with self.writer.catalogue.read() as reader:
            same = reader.asset(stamp.asset_id).digest == read.digest and stamp.ocr == (self.ocr is not None)
            return stamp.asset_id if same else None

    def skip(self, read: Read, reason: str, gone: Sequence[int]) -> None:
        """A file is not to be indexed, and these assets of it must go."""
        self.skipped.append(Skipped(read.found.path, reason))
        self.queue(Skip(read.found.path, read.found.size, read.found.mtime_ns, reason, gone))

    def stored(self, asset: Asset) -> None:
        """A file is in the index as a whole."""
        self.counts["updated" if self.old(asset.path) else "added"] += 1
        self.digests.add(asset.digest)

    def queue(self, change: Change) -> None:
        """Make a change with the next ones."""
        if isinstance(change, Restamp):
            self.touched.add(change.asset_id)
        if not isinstance(change, Remove):
            self.touched.update(change.replaces)
        self._changes.append(change)
        if len(self._changes) >= CHANGES_BATCH:
            self.flush()

    def flush(self) -> None:
        """Make the changes that are queued."""
        if self._changes:
            self.writer.apply(self._changes)
        self._changes.clear()
        self.touched.clear()


def asset_of(read: Read) -> Asset:
    """A file as the catalogue is to know it."""
    found = read.found
    mtime_ns = found.mtime_ns
    if abs(time.time_ns() - mtime_ns) < _RACY_NS:
        mtime_ns -= 1  # looks changed to the next run, which then compares the content
    return Asset(found.path, found.modality, found.size, mtime_ns, read.digest, read.taken)
