"""Networks in ONNX by NumPy: operators worked out by hand, the reranker that ships, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mmsearch.rerank.load as rerank
from indexer.onnx_numpy import Network, Unsupported
from mmsearch.rerank.fusion_onnx import INPUTS, MODEL, OUTPUTS, open_session


def network(folder: Path, nodes: Sequence[Any], weights: dict[str, np.ndarray], outputs: Sequence[str]) -> Network:
    """The network of ``nodes``, whose input is ``x``."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(one, name) for name, one in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "small.onnx")
    return Network(folder / "small.onnx")


def apply(folder: Path, kind: str, x: Any, *more: Any, **settings: Any) -> Any:
    """One operation of ``x`` and weights."""
    weights = {f"w{i}": np.asarray(one) for i, one in enumerate(more)}
    node = helper.make_node(kind, ["x", *weights], ["y"], **settings)
    (found,) = network(folder, [node], weights, ["y"]).run(["y"], {"x": np.asarray(x)})
    return found.tolist()


def test_operators_by_hand(tmp_path: Path) -> None:
    square = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    assert apply(tmp_path, "Slice", square, [1], [9], [1]) == [[2], [4]]
    assert apply(tmp_path, "Slice", square, [-1], [-9], [0], [-1]) == [[3, 4], [1, 2]]
    assert apply(tmp_path, "Reshape", square, [0, -1, 1]) == [[[1], [2]], [[3], [4]]]
    assert apply(tmp_path, "Transpose", square, perm=[1, 0]) == [[1, 3], [2, 4]]
    assert apply(tmp_path, "Gather", square, np.array([1, 1, 0]), axis=0) == [[3, 4], [3, 4], [1, 2]]
    assert apply(tmp_path, "Clip", square, np.float32(2), np.float32(3)) == [[2, 2], [3, 3]]
    assert apply(tmp_path, "ReduceSum", square, [1], keepdims=0) == [3, 7]
    assert apply(tmp_path, "ReduceMean", square, axes=[0]) == [[2, 3]]
    assert apply(tmp_path, "ReduceL2", np.array([[3, 4]], np.float32), axes=[1], keepdims=0) == [5]
    assert apply(tmp_path, "Expand", np.array([[1], [2]], np.float32), [1, 3]) == [[1, 1, 1], [2, 2, 2]]
    assert apply(tmp_path, "Softmax", np.log(np.array([[1, 3]], np.float32)), axis=-1)[0] == pytest.approx([0.25, 0.75])
    assert apply(tmp_path, "Gemm", square, square, np.float32([1, 1]), transB=1) == [[6, 12], [12, 26]]
    # mean 2, variance 1: -1 and 1, twice that, and 1 more
    normed = apply(tmp_path, "LayerNormalization", [[1.0, 3.0]], np.float32([2, 2]), np.float32([1, 1]), epsilon=0.0)
    assert normed == [[-1, 3]]
    assert apply(tmp_path, "Div", np.array([-7, 7]), np.array([2, 2])) == [-3, 3]
    assert apply(tmp_path, "Mod", np.array([-7, 7]), np.array([4, 4])) == [1, 3]
    assert apply(tmp_path, "Erf", np.array([0.5], np.float32)) == pytest.approx([0.5204999], abs=1e-6)
    assert apply(tmp_path, "Cast", np.array([2.7], np.float32), to=TensorProto.INT64) == [2]
    assert apply(tmp_path, "Shape", square) == [2, 2]


def test_several_outputs_and_what_is_not_needed(tmp_path: Path) -> None:
    """The second output divides by zero, which nobody sees who asks for the first."""
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=0),
        helper.make_node("Add", ["a", "one"], ["y"]),
        helper.make_node("Div", ["b", "none"], ["z"]),
    ]
    weights = {"sizes": np.array([1, 2]), "one": np.float32([1]), "none": np.float32([0])}
    found = network(tmp_path, nodes, weights, ["y", "z"])
    assert found.outputs == ["y", "z"]
    assert found.run(["y"], {"x": np.float32([1, 2, 3])})[0].tolist() == [2]
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        z, y = found.run(["z", "y"], {"x": np.float32([1, 2, 3])})
    assert (z.tolist(), y.tolist()) == ([np.inf, np.inf], [2])


def test_the_reranker_that_ships_says_what_it_says_through_onnxruntime() -> None:
    path = rerank.PACKAGED / "mini" / MODEL
    session = open_session(path)
    shapes = {one.name: one.shape for one in session.get_inputs()}
    rng = np.random.default_rng(0)
    mask = np.ones((3, 7), np.float32)
    mask[1, 4:] = 0
    given = {
        "words": rng.normal(size=(3, 7, shapes["words"][2])).astype(np.float32),
        "mask": mask,
        "tokens": rng.normal(size=(5, *shapes["tokens"][1:])).astype(np.float32),
        "text": rng.integers(0, 3, 11),
        "picture": rng.integers(0, 5, 11),
    }
    assert set(given) == set(INPUTS)
    expected, found = session.run(list(OUTPUTS), given), Network(path).run(OUTPUTS, given)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and np.abs(one - other).max() < 2e-5


def test_what_it_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="not known here, ReduceMax"):
        network(tmp_path, [helper.make_node("ReduceMax", ["x"], ["y"])], {}, ["y"])
    whole = (rerank.PACKAGED / "mini" / MODEL).read_bytes()
    for end in (0, 10, 1000, len(whole) - 1):
        (tmp_path / "cut.onnx").write_bytes(whole[:end])
        with pytest.raises(Unsupported, match=r"cut\.onnx cannot be read"):
            Network(tmp_path / "cut.onnx")
