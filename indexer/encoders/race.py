"""Races between two ways to compute the same: short, smallest first, and given up where one is hopeless.

A library may have no fast kernel for a precision on some chip and compute it thousands of times as slowly, without a
word. So nothing large is computed in a precision before something small was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

SECONDS = 0.25
"""How long one race may take."""
ROUNDS = 3
HOPELESS = 4.0
"""Times as slow as float32 even on a small product, whose fixed costs may be larger."""
FIXED_COSTS = 1e-4
"""Seconds that a call of the light way may take longer, whatever it computes."""


@dataclass(frozen=True, slots=True)
class Heat:
    """One thing that is computed both ways; ``small`` if it is not what a model computes but tells what is hopeless."""

    name: str
    exact: Callable[[], object]
    light: Callable[[], object]
    small: bool = False


@dataclass(frozen=True, slots=True)
class Race:
    """How many times as fast as float32 a precision is here, 0 if that was given up, and how long it took to tell."""

    kind: str
    gain: float
    seconds: float
    figures: str
    """What was computed and how long each way took."""

    def said(self) -> str:
        """One clause for people."""
        how = f"{self.figures}; measured in {self.seconds:.2f} s"
        if not self.gain:
            return f"{self.kind} is far slower than float32 on this chip ({how})"
        return f"products in {self.kind} are {self.gain:.1f} times as fast as in float32 on this chip ({how})"


def run_race(kind: str, heats: Iterable[Heat], seconds: float = SECONDS) -> Race:
    """The two ways of each heat in turn, until all were run or so many ``seconds`` are over.

    The best of ``ROUNDS`` counts, and what the first call sets up does not. After a heat in which the light way is
    hopeless there is no other.
    """
    began = time.perf_counter()
    exact = light = 0.0
    last = "nothing was computed"
    for heat in heats:
        if exact and time.perf_counter() - began > seconds:
            break
        mine, its = _times(heat, began + seconds)
        last = f"{heat.name}: {1e3 * its:.3g} ms, in float32 {1e3 * mine:.3g} ms"
        if its > HOPELESS * mine + (FIXED_COSTS if heat.small else 0):
            return Race(kind, 0.0, time.perf_counter() - began, last)
        if not heat.small:
            exact, light = exact + mine, light + its
    return Race(kind, exact / light if light else 0.0, time.perf_counter() - began, last)


def _times(heat: Heat, deadline: float) -> tuple[float, float]:
    """The least seconds of the exact and of the light way."""
    heat.exact()
    heat.light()
    best = [float("inf"), float("inf")]
    for round in range(ROUNDS):
        if round and time.perf_counter() > deadline:
            break
        for number, compute in enumerate((heat.exact, heat.light)):
            began = time.perf_counter()
            compute()
            best[number] = min(best[number], time.perf_counter() - began)
    return best[0], best[1]
