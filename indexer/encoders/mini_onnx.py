"""The picture side of `mini` without torch: its image tower through onnxruntime, its head in NumPy.

``mini_image.onnx`` is the tower of ``mini_torch.ImageTower`` for pictures of 260 by 260, without weights: those are the
tensors of the folder's own ``image.safetensors``, under their names. ``mmsearch.training.models.mini_graph`` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from indexer.encoders.mini_text import NumpyHead
from indexer.onnx_session import open_session

GRAPH = Path(__file__).parent / "mini_image.onnx"
INPUT, OUTPUTS = "pixels", ("features", "words", "patches")


class OnnxPictures:
    """Prepared pictures to vectors and patches; several threads may ask at once, each with one core.

    Args:
        image, head: the tensors of ``image.safetensors`` that the graph names, and those of ``head.safetensors``.

    Raises:
        Exception: these are not the tensors of such a tower; the errors of onnxruntime have no other base.
    """

    def __init__(self, image: Mapping[str, np.ndarray], head: Mapping[str, np.ndarray], graph: Path = GRAPH) -> None:
        self._weights = {  # the session points into them
            name: np.ascontiguousarray(tensor, np.float32)
            for name, tensor in image.items()
            if not name.endswith(".num_batches_tracked")
        }
        self._session = open_session(graph, 1, self._weights)
        self._head = NumpyHead(head, "image.")

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the graph says of itself."""
        metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return metadata

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 ``(B, 3, 260, 260)`` to vectors ``(B, D)``, not yet normalised, and patches ``(B, 81, 352)``."""
        features, words, patches = self._session.run(list(OUTPUTS), {INPUT: pixels})
        return self._head(features, words), patches
