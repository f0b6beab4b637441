"""Networks run by onnxruntime on the CPU. This is the only module that imports it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def open_session(path: Path, threads: int, weights: Mapping[str, np.ndarray] | None = None) -> Any:
    """The network in ``path``, ready to run from any number of threads.

    Args:
        threads: how many cores one run uses.
        weights: the tensors that the file names and does not hold.

    Raises:
        Exception: it cannot be loaded; the library's errors have no other base.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # between runs others work
    options.log_severity_level = 3  # errors
    if weights is not None:
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(one) for name, one in weights.items()}
        options.add_external_initializers(list(values), list(values.values()))
        options.enable_cpu_mem_arena = False  # it would keep the most that any size of batch ever took
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def quantise_network(
    path: Path, out: Path, inputs: Iterable[Mapping[str, np.ndarray]], *, exact: int, percentile: float
) -> None:
    """Write the convolutional network in ``path`` in eight bits: weights by output channel, activations by layer.

    The file says so by pairs of QuantizeLinear and DequantizeLinear, which sessions turn into products of bytes.

    Args:
        inputs: what the network is given while the ranges of its layers are measured.
        exact: so many of the first convolutions stay in float32.
        percentile: so many per cent of a layer's values fit its range; those beyond are cut.

    Raises:
        ImportError: onnx is not installed.
    """
    import tempfile

    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch:
        folded = Path(scratch, "folded.onnx")
        quant_pre_process(path, folded, skip_symbolic_shape=True)
        convolutions = [node.name for node in onnx.load(folded).graph.node if node.op_type == "Conv"]
        quantize_static(
            folded,
            out,
            _Inputs(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Clip"],
            nodes_to_exclude=convolutions[:exact],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": percentile},
        )


class _Inputs:
    """Inputs as onnxruntime's calibration asks for them: one after the other, then None."""

    def __init__(self, inputs: Iterable[Mapping[str, np.ndarray]]) -> None:
        self._rest = iter(inputs)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next one."""
        return next(self._rest, None)
