"""A reranker whose logits can be worked out by hand, written as the folder that training writes.

The logit of a pair is the sum, over the words of the text, of the best match among the tokens of the picture, a match
being the product of the word's state, led through a matrix, and the token (the late interaction of Khattab and Zaharia
2020). With the colour encoder that matrix and the projection of patches are the identity: a red patch, less its mean
and over its deviation, is (√2, -√½, -√½), a word "red" is (1, 0, 0), so "red" and a picture with a red quarter give √2.

Attention is the softmax of a word's matches over the tokens, the weights are that of the best matches over the words.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from indexer.encoders import PatchEncoder

CALIBRATION = {
    "text->image": {"dual": 0.5, "fusion": 4.0, "bias": -1.0},
    "image->text": {"dual": 1.0, "fusion": 2.0, "bias": -2.0},
}


def write_reranker(
    folder: Path,
    encoder: PatchEncoder,
    *,
    side: int = 2,
    width: int = 3,
    candidates: int = 50,
    project: np.ndarray | None = None,
    words: np.ndarray | None = None,
    name: str = "sum-of-best",
    explains: bool = True,
) -> Path:
    """Write it for ``encoder`` and return its folder; ``project`` ``(W, F)`` and ``words`` ``(S, W)`` are the identity
    unless given. One that ``explains`` not is one of before there was ``attention``."""
    folder.mkdir(parents=True, exist_ok=True)
    patches, size = encoder.patches
    weights = {
        "norm.weight": np.ones(size, np.float32),
        "norm.bias": np.zeros(size, np.float32),
        "project.weight": np.eye(width, size, dtype=np.float32) if project is None else project,
        "project.bias": np.zeros(width, np.float32),
    }
    save_file(weights, folder / "compressor.safetensors")
    words = np.eye(encoder.state_size, width) if words is None else words
    save_graph(folder / "fusion.onnx", words, side * side, explains=explains)
    (folder / "calibration.json").write_text(json.dumps(CALIBRATION))
    config = {
        "architecture": "fusion",
        "name": name,
        "encoder": encoder.fingerprint,
        "fingerprint": digest(folder / "fusion.onnx"),
        "tokens": {"count": side * side, "width": width, "fingerprint": digest(folder / "compressor.safetensors")},
        "grid": round(patches**0.5),
        "side": side,
        "state_size": encoder.state_size,
        "candidates": candidates,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_graph(path: Path, words: np.ndarray, count: int, *, explains: bool = True) -> None:
    """The joint encoder for word states led through ``words`` ``(S, W)`` and ``count`` tokens."""
    size, width = words.shape
    nodes = [
        helper.make_node("MatMul", ["words", "map"], ["led"]),  # (C, L, W)
        helper.make_node("Gather", ["led", "text"], ["asked"]),  # (K, L, W)
        helper.make_node("Gather", ["mask", "text"], ["real"]),  # (K, L)
        helper.make_node("Gather", ["tokens", "picture"], ["shown"]),  # (K, T, W)
        helper.make_node("Transpose", ["shown"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["asked", "turned"], ["matches"]),  # (K, L, T)
        helper.make_node("ReduceMax", ["matches"], ["best"], axes=[2], keepdims=0),
        helper.make_node("Mul", ["best", "real"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "axis"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["matches"], ["attention"], axis=2),
        helper.make_node("Exp", ["best"], ["strength"]),
        helper.make_node("Mul", ["strength", "real"], ["shares"]),
        helper.make_node("ReduceSum", ["shares", "axis"], ["whole"], keepdims=1),
        helper.make_node("Div", ["shares", "whole"], ["weights"]),
    ]
    outputs = {"logits": ["K"], "attention": ["K", "L", count], "weights": ["K", "L"]}
    real, whole = TensorProto.FLOAT, TensorProto.INT64
    graph = helper.make_graph(
        nodes,
        "sum-of-best",
        [
            helper.make_tensor_value_info("words", real, ["C", "L", size]),
            helper.make_tensor_value_info("mask", real, ["C", "L"]),
            helper.make_tensor_value_info("tokens", real, ["I", count, width]),
            helper.make_tensor_value_info("text", whole, ["K"]),
            helper.make_tensor_value_info("picture", whole, ["K"]),
        ],
        [
            helper.make_tensor_value_info(name, real, shape)
            for name, shape in outputs.items()
            if explains or name == "logits"
        ],
        [
            numpy_helper.from_array(words.astype(np.float32), "map"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
