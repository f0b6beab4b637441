"""Eight bits for the image tower of `mini`, where the chip is faster with them and computes what they were made for.

``image_int8.onnx`` in a model's folder is the tower of ``mini_onnx`` with weights and activations in eight bits (Jacob
et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference").
``mmsearch.training.models.mini_int8`` makes it, and what it costs in recall is measured there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from indexer.encoders.mini_onnx import OnnxPictures
from indexer.encoders.precision import FLOAT32, INT8, Bounds, Precision
from indexer.encoders.race import Heat, Race, run_race
from indexer.errors import MmsearchError

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "image_int8.onnx"
FINGERPRINT = "fingerprint"
"""What the file calls that of the weights it was made of."""
WEIGHTS = ("classifier.weight", "classifier.bias", "class_embeddings")
"""What is as small as it is in float32, and is not in the file but in ``image.safetensors``."""
SIZE = 260


class MiniPrecision(Precision):
    """Prepared pictures to vectors and patches by the tower in float32, or by that in eight bits.

    Args:
        exact, light: open the tower in float32, and in eight bits; None if there is none.
    """

    bounds = Bounds(error=0.2, cosine=0.9)
    pictures = 8

    def __init__(
        self,
        exact: Callable[[], OnnxPictures],
        light: Callable[[], OnnxPictures] | None,
        prepare: Callable[[Image], np.ndarray],
    ) -> None:
        super().__init__((INT8,) if light else (), prepare, None, "with the files that it has")
        self._open_exact = exact
        self._open_light = light

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 ``(B, 3, 260, 260)`` to vectors ``(B, D)``, not yet normalised, and patches ``(B, 81, 352)``. May be
        called by several threads."""
        return (self._light if self.verdict.precision == INT8 else self._exact)(pixels)

    @cached_property
    def _exact(self) -> OnnxPictures:
        return self._open_exact()

    @cached_property
    def _light(self) -> OnnxPictures:
        """The tower in eight bits.

        Raises:
            ValueError: it cannot be opened.
        """
        assert self._open_light is not None
        try:
            return self._open_light()
        except MmsearchError as exc:
            raise ValueError(str(exc)) from exc
        except Exception as exc:  # onnxruntime's errors have no base but this
            raise ValueError(f"its file cannot be opened: {exc}") from exc

    def _race(self, kind: str) -> Race:
        exact, light = self._exact, self._light
        pixels = np.zeros((1, 3, SIZE, SIZE), np.uint8)
        return run_race(kind, [Heat("a picture", lambda: exact(pixels), lambda: light(pixels))])

    def _learn(self, kind: str) -> None:
        """Only whether the file can be opened: the ranges are in it."""
        self._make(kind)

    def _make(self, kind: str) -> None:
        assert self._light is not None  # opens it

    def _release(self) -> None:
        self.__dict__.pop("_exact" if self.verdict.precision == INT8 else "_light", None)

    def _vectors(self, kind: str, batch: np.ndarray) -> np.ndarray:
        tower = self._exact if kind == FLOAT32 else self._light
        return np.concatenate([tower(one[None])[0] for one in batch])
