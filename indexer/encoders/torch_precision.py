"""The precision of a model that torch computes: vision transformers in int8, any model in bfloat16.

The weights are converted, once; autocast would convert them again for every batch. Questions in words are not touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from indexer.encoders.precision import BATCH, BFLOAT16, FLOAT32, INT8, LEAST_RACE, Bounds, Precision
from indexer.encoders.race import SECONDS, Heat, Race, run_race

if TYPE_CHECKING:
    from PIL.Image import Image

Compute = Callable[[Any, torch.Tensor], tuple[np.ndarray, ...]]
"""A model and prepared pictures ``(B, 3, H, W)`` to vectors ``(B, D)``, not normalised, and whatever else is wanted."""

ROWS = 128
"""Tokens in a heat, about as many as two pictures have."""
SMALL = (8, 64)
"""Rows, and outputs at most, of the first heat."""


class TorchPrecision(Precision):
    """One torch model in the precision that is fastest here and finds the same; on a CPU alone.

    Args:
        model: computes in float32.
        features: its vectors, and nothing else.
        towers: what the modules of the model are called that pictures go through, the image tower first.
    """

    bounds = Bounds(error=0.1, cosine=0.99)
    pictures = 12

    def __init__(
        self,
        model: Any,
        device: torch.device,
        features: Compute,
        prepare: Callable[[Image], np.ndarray],
        questions: Callable[[], np.ndarray],
        towers: Sequence[str] = ("visual",),
    ) -> None:
        super().__init__(_kinds(device), prepare, questions, f"on {device.type}")
        self._model = model
        self._features = features
        self._device = device
        self._towers = {name: getattr(model, name) for name in towers}
        self._light: dict[str, Any] = {}

    def run(self, batch: np.ndarray, compute: Compute) -> tuple[np.ndarray, ...]:
        """What ``compute`` makes of prepared pictures ``(B, 3, H, W)`` float32. May be called by several threads."""
        return self._run(self.verdict.precision, batch, compute)

    def _run(self, kind: str, batch: np.ndarray, compute: Compute) -> tuple[np.ndarray, ...]:
        pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
        with torch.inference_mode():
            if kind == FLOAT32:
                return compute(self._model, pixels)
            return compute(self._light[kind], pixels.bfloat16() if kind == BFLOAT16 else pixels)

    def _vectors(self, kind: str, batch: np.ndarray) -> np.ndarray:
        return self._run(kind, batch, self._features)[0]

    def _race(self, kind: str) -> Race:
        shapes = _shapes(self._towers.values())
        with torch.inference_mode():
            return run_race(kind, _heats(shapes, _bytes_way if kind == INT8 else _halves_way))

    def _learn(self, kind: str) -> None:
        if kind != INT8:
            return
        from indexer.encoders.integers import observe

        prepared = self.prepared()

        def run() -> np.ndarray:
            parts = (prepared[start : start + BATCH] for start in range(0, len(prepared), BATCH))
            return np.concatenate([self._vectors(FLOAT32, part) for part in parts])

        ranges, self.exact = observe(next(iter(self._towers.values())), run)
        self.ranges = {name: largest.numpy() for name, largest in ranges.items()}

    def _make(self, kind: str) -> None:
        """A copy of the model with towers of such weights, which shares everything else."""
        towers = dict(self._towers)
        first = next(iter(towers))
        if kind == INT8:
            from indexer.encoders.integers import in_integers

            # A copy that shares all weights: those that are rounded are other tensors, the rest stays as it is.
            shared = copy.deepcopy(towers[first], {id(one): one for one in towers[first].parameters()})
            ranges = {name: torch.from_numpy(np.array(largest)) for name, largest in self.ranges.items()}
            towers[first] = in_integers(shared, ranges, self._attention())
        else:
            towers = {name: copy.deepcopy(one).to(torch.bfloat16) for name, one in towers.items()}
        light = copy.copy(self._model)
        light._modules = {**self._model._modules, **towers}
        self._light[kind] = light

    def _release(self) -> None:
        self._light = {kind: light for kind, light in self._light.items() if kind == self.verdict.precision}

    def _attention(self) -> torch.dtype:
        """The type in which queries, keys and values are multiplied beside products of bytes."""
        shapes = _shapes(self._towers.values())[:1]
        with torch.inference_mode():
            halves = run_race(BFLOAT16, _heats(shapes, _halves_way), SECONDS / 4)
            if halves.gain < LEAST_RACE:
                return torch.float32
            out = run_race(BFLOAT16, _heats(shapes, partial(_bytes_way, kind=torch.bfloat16)), SECONDS / 4)
        return torch.bfloat16 if out.gain >= LEAST_RACE else torch.float32


def _kinds(device: torch.device) -> tuple[str, ...]:
    """What is tried on a device. A GPU's own float32 is fast, and nothing else was measured there."""
    if device.type != "cpu":
        return ()
    return (INT8, BFLOAT16) if hasattr(torch.ops.onednn, "qlinear_pointwise") else (BFLOAT16,)


def _shapes(towers: Iterable[nn.Module]) -> list[tuple[int, int]]:
    """The inputs and outputs of the products of ``towers``, each pair once, the smallest first."""
    found = set()
    for tower in towers:
        for module in tower.modules():
            if isinstance(module, nn.Linear):
                found.add((module.in_features, module.out_features))
            elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
                found.add((module.in_proj_weight.shape[1], module.in_proj_weight.shape[0]))
    return sorted(found or {(256, 256)}, key=lambda shape: shape[0] * shape[1])


Way = Callable[[torch.Tensor, torch.Tensor], Callable[[], torch.Tensor]]
"""Rows ``(R, in)`` and a weight ``(out, in)``, both float32, to what multiplies them in another precision."""


def _heats(shapes: Sequence[tuple[int, int]], light: Way) -> Iterator[Heat]:
    """A small part of the smallest product, then each as it is."""
    inner, outer = shapes[0]
    for rows, (width, out), small in [(SMALL[0], (inner, min(outer, SMALL[1])), True)] + [
        (ROWS, shape, False) for shape in shapes
    ]:
        x, weight = torch.full((rows, width), 0.5), torch.full((out, width), 0.25)
        yield Heat(f"{rows}×{width}×{out}", lambda x=x, w=weight: F.linear(x, w), light(x, weight), small)  # type: ignore[misc]


def _bytes_way(x: torch.Tensor, weight: torch.Tensor, kind: torch.dtype = torch.float32) -> Callable[[], torch.Tensor]:
    from indexer.encoders.integers import bytes_times

    rows, packed = x.to(torch.uint8), torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None)
    scale, bias = torch.ones(len(weight)), torch.zeros(len(weight))
    return lambda: bytes_times(rows, packed, scale, bias, kind)


def _halves_way(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    rows, halves = x.bfloat16(), weight.bfloat16()
    return lambda: F.linear(rows, halves)
