"""Search your own pictures and texts in words or with a picture.

    import mmsearch

    library = mmsearch.open("my-index")
    library.index("photos")
    for hit in library.query("a red car", k=5):
        print(hit.score, hit.path)

Names are loaded when they are first used: importing mmsearch costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexer.add import Addition
    from indexer.errors import (
        DecodeError,
        IndexBusy,
        IndexDamaged,
        MmsearchError,
        ModelError,
        ModelMismatch,
        NoIndex,
        StorageError,
        UsageError,
    )
    from indexer.reports import AddReport, Progress, SkippedAddition, TokensReport, UpdateReport
    from indexer.types import Asset, Item, Modality, Skipped, Span
    from indexer.writer import VerifyReport
    from mmsearch.duplicates import Duplicates
    from mmsearch.hits import Hit, Hits
    from mmsearch.library import Library, Status, open
    from mmsearch.query import Query, parse_query
    from mmsearch.rerank import Reranker
    from mmsearch.rerank.explanation import Explanation
    from mmsearch.search import Searcher

__version__ = "0.1.0"

_HOME = {
    "AddReport": "indexer.reports",
    "Addition": "indexer.add",
    "Asset": "indexer.types",
    "DecodeError": "indexer.errors",
    "Duplicates": "mmsearch.duplicates",
    "Explanation": "mmsearch.rerank.explanation",
    "Hit": "mmsearch.hits",
    "Hits": "mmsearch.hits",
    "IndexBusy": "indexer.errors",
    "IndexDamaged": "indexer.errors",
    "Item": "indexer.types",
    "Library": "mmsearch.library",
    "MmsearchError": "indexer.errors",
    "Modality": "indexer.types",
    "ModelError": "indexer.errors",
    "ModelMismatch": "indexer.errors",
    "NoIndex": "indexer.errors",
    "Progress": "indexer.reports",
    "Query": "mmsearch.query",
    "Reranker": "mmsearch.rerank",
    "Searcher": "mmsearch.search",
    "Skipped": "indexer.types",
    "SkippedAddition": "indexer.reports",
    "Span": "indexer.types",
    "Status": "mmsearch.library",
    "StorageError": "indexer.errors",
    "TokensReport": "indexer.reports",
    "UpdateReport": "indexer.reports",
    "UsageError": "indexer.errors",
    "VerifyReport": "indexer.writer",
    "open": "mmsearch.library",
    "parse_query": "mmsearch.query",
}

__all__ = [
    "AddReport",
    "Addition",
    "Asset",
    "DecodeError",
    "Duplicates",
    "Explanation",
    "Hit",
    "Hits",
    "IndexBusy",
    "IndexDamaged",
    "Item",
    "Library",
    "MmsearchError",
    "Modality",
    "ModelError",
    "ModelMismatch",
    "NoIndex",
    "Progress",
    "Query",
    "Reranker",
    "Searcher",
    "Skipped",
    "SkippedAddition",
    "Span",
    "Status",
    "StorageError",
    "TokensReport",
    "UpdateReport",
    "UsageError",
    "VerifyReport",
    "open",
    "parse_query",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mmsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
