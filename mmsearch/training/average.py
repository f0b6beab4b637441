"""Averages of weights: over the steps of a run, and between where it began and where it came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from indexer.errors import ModelError, UsageError


class Ema:
    """The exponential moving average of a model's weights.

    After update number t (from 0) it is ``d · average + (1 - d) · weights`` with ``d = min(decay, (1 + t) / (10 + t))``
    (Polyak and Juditsky 1992; the warm-up of d keeps the first, random weights from staying in it). Whole numbers are
    not averaged but taken over. The average is float32 at least: in bfloat16 a step of 0.001 would round to none.

    Example: with a decay of 0.99, weights that begin at 0 and are 1 from the first update on: d is 0.1, then 2/11; the
    average is 0.9, then 2/11 · 0.9 + 9/11 = 0.98.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"the decay of the average is {decay}; it must be at least 0 and below 1")
        self._decay = decay
        self._updates = 0
        self._average = {name: _wide(tensor) for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's weights as they are after a step of the optimiser."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for name, tensor in model.state_dict().items():
            average = self._average[name]
            if average.is_floating_point():
                average.lerp_(tensor.to(average.dtype), 1 - decay)
            else:
                average.copy_(tensor)
        self._updates += 1

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Within ``with``, the model has the averaged weights; after it its own again, whatever happened inside."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        try:
            model.load_state_dict(self._average)
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on as if nothing had been between: the tensors themselves, no copies."""
        return {"updates": self._updates, "average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict`` of an average of the same model.

        Raises:
            UsageError: it is that of another model.
        """
        check_alike(self._average, state["average"])
        for name, tensor in state["average"].items():
            self._average[name].copy_(tensor)
        self._updates = int(state["updates"])


@dataclass(frozen=True, slots=True)
class BestPoint:
    """The best of the points between two models, and how good each of them was."""

    alpha: float
    value: float
    state: dict[str, Tensor]
    measured: tuple[tuple[float, float], ...]
    """Each alpha with what was measured there, from the smallest alpha to the largest."""


def interpolate(first: Mapping[str, Tensor], last: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The state ``(1 - alpha) · first + alpha · last`` (WiSE-FT, Wortsman et al. 2022, eq. 1).

    At 0 and 1 it is the first and the last, bit for bit. Whole numbers come from the nearer one, from ``first`` in the
    middle. Types and devices are those of ``first``.

    Raises:
        UsageError: the states have different names or shapes.

    Example: a weight of 2 and one of 6 give 3 at alpha 0.25.
    """
    check_alike(first, last)
    point: dict[str, Tensor] = {}
    for name, begin in first.items():
        if begin.is_floating_point():
            wide = _wide(begin)
            point[name] = wide.lerp_(last[name].detach().to(wide), alpha).to(begin.dtype)
        else:
            point[name] = (begin if alpha <= 0.5 else last[name]).clone()
    return point


def mean_state(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several states of one model (Wortsman et al. 2022, "Model soups").

    Whole numbers come from the first; types and devices are those of the first.

    Raises:
        UsageError: there is none, or they have different names or shapes.

    Example: weights of 1, 2 and 6 give 3.
    """
    if not states:
        raise UsageError("name at least one model to average")
    for other in states[1:]:
        check_alike(states[0], other)
    return {
        name: torch.stack([_wide(state[name]).to(first.device) for state in states]).mean(dim=0).to(first.dtype)
        if first.is_floating_point()
        else first.clone()
        for name, first in states[0].items()
    }


def best_point(
    first: Mapping[str, Tensor],
    last: Mapping[str, Tensor],
    alphas: Sequence[float],
    measure: Callable[[dict[str, Tensor]], float],
) -> BestPoint:
    """The point from ``first`` to ``last`` for which ``measure`` gives most; of equals, the one nearer to ``first``.

    Args:
        first, last: two states of one model.
        alphas: where to measure, in any order; 0 is ``first`` and 1 is ``last``.
        measure: takes a state and says how good it is, higher is better.

    Raises:
        UsageError: there is no alpha, or the states have different names or shapes.
        ModelError: the measure was not a number at any point.
    """
    if not alphas:
        raise UsageError("name at least one point between the two models")
    best: tuple[float, float, dict[str, Tensor]] | None = None
    measured: list[tuple[float, float]] = []
    for alpha in sorted(alphas):
        state = interpolate(first, last, alpha)
        value = measure(state)
        measured.append((alpha, value))
        if value > (best[1] if best else -float("inf")):  # false for what is not a number
            best = (alpha, value, state)
    if best is None:
        raise ModelError("no point between the two models could be measured; their weights are not finite")
    return BestPoint(*best, tuple(measured))


def _wide(tensor: Tensor) -> Tensor:
    """A copy, of float32 where it was of less."""
    copy = tensor.detach().clone()
    return copy.float() if copy.is_floating_point() and copy.itemsize < 4 else copy


def check_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Raise UsageError unless two states have the same names and shapes."""
    if one.keys() != other.keys():
        name = min(one.keys() ^ other.keys())
        raise UsageError(f"the two states are not of one model: only one of them has {name!r}")
    for name, tensor in one.items():
        if tensor.shape != other[name].shape:
            raise UsageError(
                f"the two states are not of one model: {name!r} is {tuple(tensor.shape)} in one "
                f"and {tuple(other[name].shape)} in the other"
            )
