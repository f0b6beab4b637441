"""Shots: where a video cuts, what stands still, and which frames say what a stretch shows. Pure arithmetic.

Frames come as small pictures, a few a second. Two frames are compared by what their layouts have in common and by their
colours. A cut lies where the frames on its two sides differ far more than frames of the same distance in time do
nearby: a hard cut between two frames, a dissolve in the middle of the frames that it takes. A slow zoom or a pan
differs as much everywhere, and is no cut. What a dissolve leaves between two frames is small; hence frames are compared
across a window (twin comparison, Zhang, Kankanhalli and Smoliar, "Automatic partitioning of full-motion video", 1993).

T is a number of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THUMB = (32, 24)
"""Width and height of the small pictures."""

_REACH = 0.75
"""Seconds on either side of a boundary that are compared."""
_CUT = 0.34
"""Difference across a cut, at least."""
_RISE = 1.7
"""A cut differs so many times as much as what is next to it, at least."""
_BLANK_SPREAD = 4.0
"""Standard deviation of the brightness, of 255 steps, below which a frame shows nothing."""
_BINS = 4
_CELLS = 2  # pixels of a cell of the layout, a side


@dataclass(frozen=True, slots=True, eq=False)
class Descriptor:
    """What is compared of a frame: its ``layout`` ``(H/2 · W/2,)``, a unit row or zeros, and its ``colours`` ``(64,)``,
    which sum to 1. A ``blank`` frame shows nothing: it is black, white, or of one colour."""

    layout: np.ndarray
    colours: np.ndarray
    blank: bool


def describe(thumb: np.ndarray) -> Descriptor:
    """The descriptor of a small picture ``(H, W, 3)`` uint8."""
    height, width, _ = thumb.shape
    grey = thumb.astype(np.float32).mean(axis=2)  # (H, W)
    cells = grey.reshape(height // _CELLS, _CELLS, width // _CELLS, _CELLS).mean(axis=(1, 3)).ravel()
    cells -= cells.mean()
    length = float(np.linalg.norm(cells))
    bins = (thumb >> 6).reshape(-1, 3).astype(np.int64) @ np.array([_BINS * _BINS, _BINS, 1])
    colours = np.bincount(bins, minlength=_BINS**3) / len(bins)
    blank = float(grey.std()) < _BLANK_SPREAD
    return Descriptor(cells / length if length > 1e-3 and not blank else np.zeros_like(cells), colours, blank)


def difference(a: Descriptor, b: Descriptor) -> float:
    """From 0, the same, to about 1, nothing in common; two blank frames are the same if their colours are."""
    colours = 0.5 * float(np.abs(a.colours - b.colours).sum())
    if a.blank and b.blank:
        return colours
    layout = min(1.0, 1.0 - float(a.layout @ b.layout))
    return 0.6 * layout + 0.4 * colours


class CutFinder:
    """Finds the cuts of a video while its frames come in; keeps those of a few seconds only.

    Args:
        fps: how many frames come for a second, at most.
    """

    def __init__(self, fps: float) -> None:
        self._reach = max(1, round(_REACH * fps))
        self._times: list[float] = []
        self._frames: list[Descriptor] = []
        self._steps: list[float] = []  # [i] between frames i - 1 and i
        self._across: list[float] = []  # [i] across the boundary before frame i, as far as frames are known
        self._next = 1  # the boundary to be judged next
        self._last = -(10**9)  # the frame behind the last cut

    def push(self, time: float, frame: Descriptor) -> list[float]:
        """Take the next frame; return the times of the cuts that are certain now, none of them told before."""
        self._steps.append(difference(self._frames[-1], frame) if self._frames else 0.0)
        self._times.append(time)
        self._frames.append(frame)
        cuts = self._judge(len(self._frames) - 3 * self._reach)
        surplus = self._next - 4 * self._reach
        if surplus > 256:
            self._forget(surplus)
        return cuts

    def flush(self) -> list[float]:
        """The cuts that are left when no frame comes any more."""
        return self._judge(len(self._frames))

    @property
    def certain(self) -> float:
        """The time before which no cut will be told any more."""
        return self._times[self._next - 1] if self._times else 0.0

    def _judge(self, end: int) -> list[float]:
        cuts = []
        while self._next < end:
            cut = self._cut_at(self._next)
            if cut is not None and cut - self._last >= self._reach:
                self._last = cut
                cuts.append((self._times[cut - 1] + self._times[cut]) / 2)
            self._next += 1
        return cuts

    def _difference_across(self, boundary: int) -> float:
        """Of the frames on the two sides of the boundary before frame ``boundary``, a reach away from it."""
        while len(self._across) <= boundary:
            i = len(self._across)
            left, right = max(0, i - self._reach), min(len(self._frames) - 1, i + self._reach - 1)
            self._across.append(difference(self._frames[left], self._frames[right]))
        return self._across[boundary]

    def _cut_at(self, boundary: int) -> int | None:
        """The frame that begins a shot, if the difference across this boundary is the peak of a cut."""
        here = self._difference_across(boundary)
        if here < _CUT:
            return None
        wide = 2 * self._reach
        last = len(self._frames) - 1
        near = {i: self._difference_across(i) for i in range(max(1, boundary - wide), min(last, boundary + wide) + 1)}
        strength = {i: across + self._steps[i] for i, across in near.items()}
        if any(strength[i] > strength[boundary] or (strength[i] == strength[boundary] and i < boundary) for i in near):
            return None
        if self._reach > 1 and min(near.get(i, here) for i in (boundary - 1, boundary + 1)) < 0.7 * _CUT:
            return None  # across a cut all frames differ; here a single one is unlike the others, a flash
        # What surrounds the peak, on the side where more goes on: a shot in motion may end in a cut to a still one.
        left = [near[i] for i in near if i < boundary - self._reach + 1]
        right = [near[i] for i in near if i > boundary + self._reach - 1]
        around = max(min(left, default=0.0), min(right, default=0.0))
        if here < _RISE * around:
            return None
        plateau = range(max(1, boundary - self._reach), min(last, boundary + self._reach) + 1)
        steps = np.array([self._steps[i] for i in plateau])
        if steps.max() >= 0.5 * here:
            return plateau[int(steps.argmax())]
        return plateau[round(float((steps * np.arange(len(steps))).sum() / max(steps.sum(), 1e-9)))]

    def _forget(self, count: int) -> None:
        for kept in (self._times, self._frames, self._steps):
            del kept[:count]
        del self._across[:count]
        self._next -= count
        self._last -= count


def choose(frames: Sequence[Descriptor], *, most: int, change: float) -> list[int]:
    """Which of the frames ``(T,)`` of a stretch are looked at: the middle one, and while there are fewer than ``most``,
    the one that differs most from those, if it does by at least ``change``. In their order; empty only if T is 0."""
    if not frames:
        return []
    chosen = [len(frames) // 2]
    nearest = np.array([difference(frame, frames[chosen[0]]) for frame in frames])  # (T,)
    while len(chosen) < most and nearest.max() >= change:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, [difference(frame, frames[chosen[-1]]) for frame in frames])
    return sorted(chosen)
