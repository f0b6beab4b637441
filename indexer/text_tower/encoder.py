"""An encoder that answers words from an exported text tower, and for anything else opens the model it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from indexer.encoders import Box, Encoder, Piece, PlacedEncoder

if TYPE_CHECKING:
    from PIL.Image import Image

    from indexer.text_tower.folder import Tower

ALONE = 256
"""Up to so many texts at once go through NumPy: importing torch and a model takes as long as some hundreds of them."""
BESIDE_TORCH = 4
"""Up to so many do once torch is there."""


class ExportedEncoder(Encoder):
    """The encoder ``name``, whose text tower was exported; a ``PlacedEncoder`` if that is one.

    Args:
        origin: opens the model itself, for pictures, many texts and places of words; asked once at most.

    Raises:
        KeyError: the export does not say what the encoder is.
    """

    def __init__(self, name: str, fingerprint: str, tower: Tower, origin: Callable[[], Encoder]) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._tower = tower
        self._open_origin = origin
        about = tower.about["encoder"]
        self.dim: int = about["dim"]
        self.image_size: int = about["image_size"]
        self.max_tokens: int = about["max_tokens"]
        self.calibration: Mapping[str, Mapping[str, float]] | None = about["calibration"]
        if "patches" in about:
            rows, size = about["patches"]
            self.patches: tuple[int, int] = (rows, size)
            self.state_size: int = about["state_size"]

    @cached_property
    def origin(self) -> PlacedEncoder:
        """The model itself, which has the fingerprint, and so the patches and places, of that which was exported.

        Raises:
            ModelError, ModelMismatch: it cannot be loaded, or has other weights by now.
        """
        return cast(PlacedEncoder, self._open_origin())

    def prepare(self, image: Image) -> np.ndarray:
        """See ``Encoder``."""
        return self.origin.prepare(image)

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        """See ``Encoder``."""
        return self.origin.encode_prepared(batch)

    def encode_prepared_patches(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``PatchEncoder``."""
        return self.origin.encode_prepared_patches(batch)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 unit rows ``(B, D)``; what is beyond ``max_tokens`` is not seen."""
        rows = np.empty((len(texts), self.dim), np.float32)
        known = self._tower.remembered
        new = [i for i, text in enumerate(texts) if text not in known]
        for i, text in enumerate(texts):
            if text in known:
                rows[i] = known[text]
        if new:
            encode = self._tower.rows if self._few(len(new)) else self.origin.encode_texts
            rows[new] = encode([texts[i] for i in new])
        return rows

    def encode_text_states(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """See ``PatchEncoder``."""
        if not texts:
            return np.zeros((0, self.dim), np.float32), []
        return self._tower.rows_and_states(texts) if self._few(len(texts)) else self.origin.encode_text_states(texts)

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``, special tokens counted."""
        return self._tower.words.count(text)

    def read_text(self, text: str) -> tuple[str, list[Piece | None]]:
        """See ``PlacedEncoder``."""
        return self.origin.read_text(text)

    def seen(self, width: int, height: int) -> Box:
        """See ``PlacedEncoder``."""
        return self.origin.seen(width, height)

    def _few(self, texts: int) -> bool:
        return texts <= (BESIDE_TORCH if "origin" in self.__dict__ else ALONE)
