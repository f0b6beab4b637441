"""A small network in ONNX, run by NumPy: one question does not wait for onnxruntime's import.

It reads the file itself (Protocol Buffers, a few numbered fields) and knows the operators that small transformers of
float32 are exported to; what it does not know, it refuses at the door, so that onnxruntime can be asked instead.
Operators: https://onnx.ai/onnx/operators, versions 13 to 17.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indexer.encoders.mini_text import erf

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TYPES: Mapping[int, Any] = {
    1: np.float32,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
}
"""NumPy's types by ``TensorProto.DataType``."""

Attributes = Mapping[str, Any]


class Unsupported(ValueError):
    """The file is no ONNX model, or one with something in it that is not known here."""


class Node:
    """One operation: its name, what goes in and comes out by name, and its settings."""

    __slots__ = ("attributes", "inputs", "kind", "outputs")

    def __init__(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Attributes) -> None:
        self.kind, self.inputs, self.outputs, self.attributes = kind, inputs, outputs, attributes


class Network:
    """The network in a file. Thread-safe: nothing is kept between runs but the weights.

    Raises:
        Unsupported: it cannot be run here.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            nodes, self._values, self.outputs = _read_graph(path.read_bytes())
        except (IndexError, KeyError, ValueError, struct.error) as exc:
            raise Unsupported(f"{path} cannot be read: {type(exc).__name__}: {exc}") from exc
        self._nodes: list[Node] = []
        for node in nodes:
            if node.kind == "Constant" and "value" in node.attributes:
                self._values[node.outputs[0]] = node.attributes["value"]
            elif node.kind not in _OPERATORS:
                raise Unsupported(f"{path} has an operation that is not known here, {node.kind}")
            else:
                self._nodes.append(node)
        self._plans: dict[tuple[str, ...], tuple[list[Node], Counter[str]]] = {}

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """What is called ``outputs``, of ``inputs`` by name; what no output needs is not computed."""
        asked = tuple(outputs)
        if asked not in self._plans:
            self._plans[asked] = self._plan(asked)
        nodes, uses = self._plans[asked]
        left = Counter(uses)
        values: dict[str, Any] = {"": None, **self._values, **inputs}
        with np.errstate(over="ignore", under="ignore"):
            for node in nodes:
                given = [values[name] for name in node.inputs]
                made = _OPERATORS[node.kind](given, node.attributes)
                if len(node.outputs) == 1:
                    values[node.outputs[0]] = made
                else:
                    values.update(zip(node.outputs, made, strict=False))
                for name in node.inputs:  # what nobody needs any more gives its memory back
                    left[name] -= 1
                    if not left[name] and name:
                        del values[name]
        return [np.ascontiguousarray(values[name]) for name in asked]

    def _plan(self, asked: Sequence[str]) -> tuple[list[Node], Counter[str]]:
        """The operations that ``asked`` needs, in order, and how often each value is used."""
        needed, nodes = set(asked), []
        for node in reversed(self._nodes):
            if not needed.isdisjoint(node.outputs):
                nodes.append(node)
                needed.update(node.inputs)
        nodes.reverse()
        return nodes, Counter([*asked, *(name for node in nodes for name in node.inputs)])


# --- reading


def _read_graph(data: bytes) -> tuple[list[Node], dict[str, np.ndarray], list[str]]:
    """The operations, the weights by name, and the names of the outputs of a ModelProto."""
    nodes: list[Node] = []
    weights: dict[str, np.ndarray] = {}
    outputs: list[str] = []
    (graph,) = [part for number, part in _fields(memoryview(data)) if number == 7]
    for number, part in _fields(graph):
        if number == 1:
            nodes.append(_read_node(part))
        elif number == 5:
            name, weights_of = _read_tensor(part)
            weights[name] = weights_of
        elif number == 12:
            outputs.append(next(_text(value) for field, value in _fields(part) if field == 1))
    return nodes, weights, outputs


def _read_node(data: memoryview) -> Node:
    inputs, outputs, kind, attributes = [], [], "", {}
    for number, value in _fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            kind = _text(value)
        elif number == 5:
            name, setting = _read_attribute(value)
            attributes[name] = setting
    return Node(kind, inputs, outputs, attributes)


def _read_attribute(data: memoryview) -> tuple[str, Any]:
    name, value, ints = "", None, []
    for number, one in _fields(data):
        if number == 1:
            name = _text(one)
        elif number == 2:
            (value,) = struct.unpack("<f", one)
        elif number == 3:
            value = _signed(one)
        elif number == 4:
            value = _text(one)
        elif number == 5:
            value = _read_tensor(one)[1]
        elif number == 8:
            ints += _numbers(one)
    return name, ints if value is None else value


def _read_tensor(data: memoryview) -> tuple[str, np.ndarray]:
    name, kind, shape, raw, numbers = "", 0, [], None, []
    for number, one in _fields(data):
        if number == 1:
            shape += _numbers(one)
        elif number == 2:
            kind = one
        elif number == 4:
            raw = one  # packed float32
        elif number in (5, 7):
            numbers += _numbers(one)
        elif number == 8:
            name = _text(one)
        elif number == 9:
            raw = one
        elif number in (13, 14):
            raise ValueError(f"the weights {name} are kept in another file")
    if raw is None:
        return name, np.array(numbers, _TYPES[kind]).reshape(shape)
    values = np.frombuffer(raw, np.dtype(_TYPES[kind]).newbyteorder("<"))
    return name, values.reshape(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """The numbered fields of a message: whole numbers as they are, all others as bytes."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"there is no field of the kind {kind}")
        if at + size > end:
            raise ValueError("the file is cut short")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _numbers(value: int | memoryview) -> list[int]:
    """One number, or a packed row of them."""
    if isinstance(value, int):
        return [_signed(value)]
    found, at = [], 0
    while at < len(value):
        one, at = _varint(value, at)
        found.append(_signed(one))
    return found


def _text(data: memoryview) -> str:
    return bytes(data).decode()


# --- operators: the inputs in order, None for one that is left out, and the settings


def _gather(x: list[Any], a: Attributes) -> Any:
    found = np.take(x[0], x[1], axis=a.get("axis", 0))
    return found


def _reshape(x: list[Any], a: Attributes) -> Any:
    shape = x[1].tolist()
    if not a.get("allowzero", 0):
        shape = [x[0].shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x[0].reshape(shape)


def _slice(x: list[Any], _: Attributes) -> Any:
    data, starts, ends, axes, steps = [*x, None, None][:5]
    axes = range(len(starts)) if axes is None else axes.tolist()
    steps = [1] * len(starts) if steps is None else steps.tolist()
    chosen = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        stop = None if step < 0 and end < -data.shape[axis] else end
        chosen[axis] = slice(start, stop, step)
    return data[tuple(chosen)]


def _split(x: list[Any], a: Attributes) -> list[np.ndarray]:
    data, axis = x[0], a.get("axis", 0)
    if len(x) < 2 or x[1] is None:
        raise Unsupported("a split whose parts are not given")
    return np.split(data, np.cumsum(x[1])[:-1].tolist(), axis=axis)


def _axes(x: list[Any], a: Attributes, place: int = 1) -> tuple[int, ...] | None:
    """The axes of a reduction, which are an input or, in older versions, a setting; None for all of them."""
    axes = x[place].tolist() if len(x) > place and x[place] is not None else a.get("axes")
    return tuple(axes) if axes is not None else None


def _kept(a: Attributes) -> bool:
    return bool(a.get("keepdims", 1))


def _l2(x: list[Any], a: Attributes) -> Any:
    found = np.sqrt(np.sum(x[0] * x[0], axis=_axes(x, a), keepdims=_kept(a)))
    return found


def _clip(x: list[Any], _: Attributes) -> Any:
    data, least, most = [*x, None, None][:3]
    if least is not None:
        data = np.maximum(data, least)
    return data if most is None else np.minimum(data, most)


def _expand(x: list[Any], _: Attributes) -> Any:
    shape = np.broadcast_shapes(x[0].shape, tuple(x[1].tolist()))
    return np.broadcast_to(x[0], shape)


def _unsqueeze(x: list[Any], a: Attributes) -> Any:
    return np.expand_dims(x[0], _axes(x, a) or ())


def _layer_norm(x: list[Any], a: Attributes) -> Any:
    data, scale, shift = [*x, None][:3]
    if a.get("axis", -1) not in (-1, data.ndim - 1):
        raise Unsupported("a normalisation over several axes")
    normed = data - data.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", normed, normed)[..., None] / np.float32(data.shape[-1])
    normed /= np.sqrt(variance + np.float32(a.get("epsilon", 1e-5)))
    normed *= scale
    if shift is not None:
        normed += shift
    return normed


def _softmax(x: list[Any], a: Attributes) -> Any:
    axis = a.get("axis", -1)
    found = x[0] - x[0].max(axis=axis, keepdims=True)
    np.exp(found, out=found)
    found /= found.sum(axis=axis, keepdims=True)
    return found


def _gemm(x: list[Any], a: Attributes) -> Any:
    left = x[0].T if a.get("transA", 0) else x[0]
    right = x[1].T if a.get("transB", 0) else x[1]
    found = left @ right
    if a.get("alpha", 1.0) != 1.0:
        found *= np.float32(a["alpha"])
    if len(x) > 2 and x[2] is not None:
        found = found + x[2] * np.float32(a.get("beta", 1.0))
    return found


def _mod(x: list[Any], a: Attributes) -> Any:
    return np.fmod(x[0], x[1]) if a.get("fmod", 0) else np.mod(x[0], x[1])


def _div(x: list[Any], _: Attributes) -> Any:
    left, right = x
    if np.issubdtype(np.asarray(left).dtype, np.integer):
        found = np.asarray(np.fix(left / right)).astype(left.dtype)  # towards zero, as in C
        return found
    return left / right


def _matmul(x: list[Any], _: Attributes) -> Any:
    left, right = x
    if left.ndim > 2 and right.ndim == 2:  # one product in place of one for each row of the batch
        found = (left.reshape(-1, left.shape[-1]) @ right).reshape(*left.shape[:-1], right.shape[-1])
        return found
    return left @ right


def _erf(x: list[Any], _: Attributes) -> Any:
    return erf(x[0]).astype(np.float32)


def _constant_of_shape(x: list[Any], a: Attributes) -> Any:
    value = a.get("value", np.zeros(1, np.float32))
    return np.full(tuple(x[0].tolist()), value[0], value.dtype)


_OPERATORS: Mapping[str, Callable[[list[Any], Attributes], Any]] = {
    "Add": lambda x, _: x[0] + x[1],
    "Cast": lambda x, a: np.asarray(x[0]).astype(_TYPES[a["to"]]),
    "Clip": _clip,
    "Concat": lambda x, a: np.concatenate(x, axis=a["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Div": _div,
    "Equal": lambda x, _: np.equal(x[0], x[1]),
    "Erf": _erf,
    "Exp": lambda x, _: np.exp(x[0]),
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": lambda x, _: x[0],
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "Mod": _mod,
    "Mul": lambda x, _: x[0] * x[1],
    "Pow": lambda x, _: np.power(x[0], x[1]).astype(x[0].dtype),
    "ReduceL2": _l2,
    "ReduceMean": lambda x, a: np.mean(x[0], axis=_axes(x, a), keepdims=_kept(a)),
    "ReduceSum": lambda x, a: np.sum(x[0], axis=_axes(x, a), keepdims=_kept(a)),
    "Reshape": _reshape,
    "Shape": lambda x, _: np.array(x[0].shape, np.int64),
    "Sigmoid": lambda x, _: 1 / (1 + np.exp(-x[0])),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": lambda x, _: np.sqrt(x[0]),
    "Squeeze": lambda x, a: np.squeeze(x[0], _axes(x, a)),
    "Sub": lambda x, _: x[0] - x[1],
    "Tanh": lambda x, _: np.tanh(x[0]),
    "Transpose": lambda x, a: np.transpose(x[0], a.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": lambda x, _: np.where(x[0], x[1], x[2]),
}
