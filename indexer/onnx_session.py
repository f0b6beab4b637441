"""Networks run by onnxruntime on the CPU. This is the only module that imports it."""

from __future__ import annotations

from collections.abc import Mapping
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
