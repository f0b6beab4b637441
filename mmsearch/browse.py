"""Questions without words: a list of the files that pass the filters, newest first. No model takes part."""

from __future__ import annotations

from dataclasses import replace

from indexer.index import Snapshot
from indexer.types import Item
from mmsearch.query import Query


def newest(snapshot: Snapshot, query: Query, k: int, offset: int = 0) -> tuple[list[Item], int]:
    """The ``k`` newest files after the first ``offset``, and how many come before them, as far as there are so many.

    Each file is listed once, by the time when a picture was taken, or else the file changed; at the same time by path.
    """
    where = replace(query.where, kinds=query.kinds)
    found = snapshot.reader.newest(where, k, offset)
    return found, offset if found else min(offset, snapshot.reader.count_files(where))
