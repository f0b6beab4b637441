"""Captions that stand in a file of their own, linked to their pictures when they are shown."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from indexer.index import Index
from mmsearch.hits import Hits

_TEXTS = (".csv", ".tsv", ".txt")


def with_pictures(hits: Hits, index: Index) -> Hits:
    """The same hits, those that are captions with the ``picture`` of the index that they belong to.

    Raises:
        StorageError: the index cannot be read.
    """
    asked = [i for i, hit in enumerate(hits) if os.path.splitext(hit.item.asset.path)[1].lower() in _TEXTS]
    if asked:
        from indexer.beside import picture_of

        with index.snapshot() as snapshot:
            for i in asked:
                hit = hits[i]
                picture = picture_of(hit.item.asset, hit.item.span, snapshot.reader.known_paths)
                if picture is not None:
                    hits[i] = replace(hit, picture=Path(picture))
    return hits
