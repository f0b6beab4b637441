"""A bank of questions and answers of the past, which tells what fits this question from what fits every question.

In a space of many dimensions some vectors are near to everything (Radovanović et al., "Hubs in Space", JMLR 2010): a
picture of a crowd is a fair answer to any question, and stands before the right one. How near an answer is to a bank of
texts that have nothing to do with the library says how much of its cosine is owed to that, and is taken off it (query
bank normalisation, Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation", CVPR 2022, section 3.2).

    bank.safetensors    text (K, D) and image (M, D), float16: vectors of the encoder
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from indexer.errors import ModelError
from indexer.text_tower.mapped import map_tensors
from indexer.types import Modality

TEMPERATURES: Mapping[Modality, float] = {Modality.TEXT: 14.0, Modality.IMAGE: 20.0}
"""Nearness to a bank's texts, or pictures, is a soft maximum of the cosines, log mean exp(t · cosine) / t. That of
texts was chosen on Flickr8k dev and photographs of COCO together, that of pictures on Flickr8k dev."""


class QueryBank:
    """Vectors of texts ``(K, D)`` and of pictures ``(M, D)``, unit length, as float16 holds them."""

    def __init__(self, vectors: Mapping[Modality, np.ndarray]) -> None:
        self._short = {kind: np.ascontiguousarray(rows, np.float16) for kind, rows in vectors.items()}
        self._vectors = {kind: rows.astype(np.float32) for kind, rows in self._short.items()}

    @classmethod
    def load(cls, path: Path) -> QueryBank:
        """The bank that ``save`` wrote.

        Raises:
            ModelError: it cannot be read.
        """
        try:
            vectors = map_tensors(path)
            return cls({kind: vectors[kind.value] for kind in (Modality.TEXT, Modality.IMAGE)})
        except (ModelError, KeyError, ValueError) as exc:
            raise ModelError(f"cannot read the bank {path}: {exc}") from exc

    def save(self, path: Path) -> None:
        """Write it as ``bank.safetensors``."""
        from safetensors.numpy import save_file

        save_file({kind.value: rows for kind, rows in self._short.items()}, path)

    def nearness(self, vectors: np.ndarray, to: Modality) -> np.ndarray:
        """How near each of ``vectors`` ``(N, D)`` is to the bank's texts, or to its pictures: ``(N,)``, a cosine."""
        cosines = vectors.astype(np.float32) @ self._vectors[to].T  # (N, K)
        highest = cosines.max(axis=1)  # (N,) taken out, so that no sum overflows
        temperature = TEMPERATURES[to]
        rest = np.exp(temperature * (cosines - highest[:, None])).mean(axis=1, dtype=np.float64)
        return highest + np.log(rest) / temperature
