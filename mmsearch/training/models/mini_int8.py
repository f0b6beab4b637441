"""The image tower of `mini` in eight bits: see ``indexer.encoders.mini_int8``, which runs it where that is faster.

``python -m mmsearch.training.models.mini_int8 FOLDER PICTURES`` writes it into a model's folder, with the ranges that
the layers have on some of the PICTURES; a run of ``mmsearch train dual`` does so at its end. Weights are rounded by
output channel, activations by layer, after training (Nagel et al. 2021, "A White Paper on Neural Network Quantization",
section 3), by onnxruntime.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders.mini import IMAGE, MiniEncoder
from indexer.encoders.mini_int8 import FILE, FINGERPRINT, WEIGHTS
from indexer.encoders.mini_onnx import GRAPH, INPUT
from indexer.errors import UsageError
from indexer.onnx_session import quantise_network
from indexer.text_tower.mapped import map_tensors
from mmsearch.rerank.export import check_exportable

if TYPE_CHECKING:
    import onnx

EXACT_CONVOLUTIONS = 6
"""The first ones stay in float32: the stem and two blocks, whose maps are large and whose channels are few."""
CALIBRATING = 128
"""Pictures on which ranges are measured."""
PERCENTILE = 99.999
"""Of a layer's values so many per cent fit its range; the few beyond it are cut."""


def write_int8(folder: Path, pictures: Sequence[np.ndarray]) -> Path:
    """Write the tower of the model in ``folder`` in eight bits.

    Args:
        pictures: prepared, each uint8 ``(3, 260, 260)``; the first ``CALIBRATING`` are looked at.

    Raises:
        UsageError: onnx is not installed, or there are no pictures.
        ModelError: the folder is no such model.
    """
    check_exportable()
    import onnx

    if not len(pictures):
        raise UsageError("no pictures to measure the ranges of layers on")
    fingerprint = MiniEncoder("cpu", folder).fingerprint
    with tempfile.TemporaryDirectory() as scratch:
        whole, made = (Path(scratch, f"{name}.onnx") for name in ("whole", "made"))
        onnx.save(_with_weights(onnx.load(GRAPH, load_external_data=False), folder / IMAGE), whole)
        inputs = ({INPUT: one[None]} for one in pictures[:CALIBRATING])
        quantise_network(whole, made, inputs, exact=EXACT_CONVOLUTIONS, percentile=PERCENTILE)
        model = onnx.load(made)
    _without_weights(model)
    del model.metadata_props[:]
    model.metadata_props.add(key=FINGERPRINT, value=fingerprint)
    onnx.save(model, folder / FILE)
    return folder / FILE


def _with_weights(model: onnx.ModelProto, path: Path) -> Any:
    """The graph with the weights that it names, in float32."""
    from onnx import numpy_helper

    tensors = map_tensors(path)
    for one in model.graph.initializer:
        one.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(tensors[one.name], np.float32), one.name))
    return model


def _without_weights(model: onnx.ModelProto) -> None:
    """Leave of those that stay in float32 as they are their names and shapes."""
    from onnx import TensorProto

    for one in model.graph.initializer:
        if one.name in WEIGHTS:
            one.ClearField("raw_data")
            one.data_location = TensorProto.EXTERNAL
            one.external_data.add(key="location", value=IMAGE)


def main() -> None:
    """Write it for a folder, from the first pictures of another."""
    from PIL import Image

    folder, pictures = map(Path, sys.argv[1:])
    encoder = MiniEncoder("cpu", folder)
    paths = sorted(path for path in pictures.iterdir() if path.is_file())[:CALIBRATING]
    path = write_int8(folder, [encoder.prepare(Image.open(one)) for one in paths])
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
