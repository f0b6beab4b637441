"""Libraries of many sizes from pictures that are embedded once: real indexes, in which nothing but the look can tell.

A library holds a draw of the pictures under neutral names, ``IMG_0001`` and so on, without captions, so that no words
of a file's name or folder help to find it. Vectors and image tokens are copied; questions are answered by the product.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mmsearch
from indexer.changes import Piece, Put
from indexer.encoders import Encoder
from indexer.index import Index
from indexer.tokens import TokenFormat
from indexer.types import Asset, Modality, Skipped
from mmsearch.datasets import Captioned
from mmsearch.evaluation.gallery import gallery_of
from mmsearch.library import Library
from mmsearch.rerank import Reranker

DRAWN = 1000
"""Pictures that the draws of one size have together, about: a library of 250 is drawn four times."""
MOST_DRAWS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Embedded pictures that libraries are made of.

    Attributes:
        pictures: ``(N,)`` numbers of the pictures in their data.
        vectors: ``(N, D)`` float32 unit rows.
        tokens: ``(N, B)`` packed image tokens of ``format``, B bytes each; None where there are none.
        skipped: the pictures that could not be read, by name.
    """

    pictures: np.ndarray
    vectors: np.ndarray
    tokens: np.ndarray | None
    format: TokenFormat | None
    skipped: tuple[Skipped, ...]


def read_pool(folder: Path, data: Captioned) -> Pool:
    """The pictures of ``data`` that the index in ``folder`` holds, in the order of their numbers there.

    Raises:
        StorageError: the index cannot be read.
    """
    with Index.open(folder) as index, index.snapshot() as snapshot:
        found = gallery_of(snapshot, Modality.IMAGE, data)
        format = snapshot.state.tokens
        tokens = None if format is None else snapshot.token_files[Modality.IMAGE].fetch(found.rows)
        skipped = tuple(snapshot.reader.skipped())
    return Pool(found.pictures, found.vectors, tokens, format, skipped)


def draws(own: Sequence[int], others: Sequence[int], size: int, seed: int) -> list[np.ndarray]:
    """The pictures ``(size,)`` of each library of that size, growing: a draw from ``own``, several where it is small.

    A library larger than ``own`` has all of them, filled up with a draw from ``others``. The same seed draws the same.
    """
    rng = np.random.default_rng([seed, size])
    if size >= len(own):
        filling = rng.choice(np.array(others, dtype=np.int64), size - len(own), replace=False)
        return [np.sort(np.concatenate([np.array(own, dtype=np.int64), filling]))]
    count = max(1, min(MOST_DRAWS, DRAWN // size))
    return [np.sort(rng.choice(np.array(own, dtype=np.int64), size, replace=False)) for _ in range(count)]


def name_of(picture: int) -> str:
    """What a picture is called in its library: ``IMG_0001`` for the number 1."""
    return f"IMG_{picture:04}"


@contextmanager
def library_of(
    pool: Pool, places: np.ndarray, encoder: Encoder, reranker: Reranker | None, scratch: Path
) -> Iterator[Library]:
    """A library of the pictures at ``places: (S,)`` of the pool, below ``scratch``; gone at the end of the block.

    Raises:
        StorageError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        folder = Path(made) / "index"
        index = Index.create(folder, encoder=encoder.name, fingerprint=encoder.fingerprint, dim=encoder.dim)
        with index, index.writing() as writer:
            if pool.format is not None:
                writer.adopt_tokens(pool.format)
            writer.apply([_put(pool, place) for place in places.tolist()])
        with mmsearch.open(folder, model=encoder, reranker=reranker) as library:
            yield library


def _put(pool: Pool, place: int) -> Put:
    name = name_of(int(pool.pictures[place]))
    asset = Asset("", Modality.IMAGE, 0, 0, name.encode(), key=name)
    tokens = None if pool.tokens is None else pool.tokens[place][None]
    return Put(asset, [Piece(Modality.IMAGE)], pool.vectors[place][None], tokens=tokens)
