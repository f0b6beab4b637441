"""The precision in which a model computes pictures: float32, or fewer bits where the chip is faster and finds the same.

It is decided once, before the first picture of an index is stored, and kept in the index: all its pictures are computed
alike. Fewer bits have to win a short race against float32 first (``indexer.encoders.race``), and then to find the same
as float32 on the pictures of ``indexer/weights/calibration``. On a machine on which they do not win, an index that is
in them is continued in float32: the vectors are the same to what ``Precision.decide`` asked of them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from indexer.encoders.race import Race
from indexer.encoders.rows import unit_rows
from indexer.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

FLOAT32, BFLOAT16, INT8, AUTO = "float32", "bfloat16", "int8", "auto"
PRECISIONS = (FLOAT32, BFLOAT16, INT8)
CALIBRATION = Path(__file__).parent.parent / "weights" / "calibration"
BATCH, TIMED = 4, 2
"""Pictures that are compared at a time, and how many times they are timed."""
LEAST_RACE, LEAST_GAIN = 1.1, 1.1
"""Times as fast as float32 that products, and whole pictures, have to be."""
QUESTIONS = (
    "a dog",
    "a child playing",
    "a group of people at a table",
    "a house with a garden",
    "a car on the road",
    "food on a plate",
    "a screen with text",
    "the sea at night",
)
"""Words are what pictures are searched by, so words ask, too."""

IMPOSSIBLE = (RuntimeError, TypeError, LookupError, ValueError, AttributeError)
"""What a model raises that cannot be had in a precision."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The precision that is used on this machine, and why: in words and figures."""

    precision: str
    why: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What fewer bits have to keep: see ``share_of_error``, and the cosine of a picture's two vectors, at worst.

    `mini` in int8 has an error of 9 % and a cosine of 0.96 at worst, and loses 0.3 points of R@1 (its model card).
    """

    error: float
    cosine: float


class Precision(ABC):
    """One model's precision. ``decide`` or ``adopt`` is called before threads compute, and not while they do.

    Args:
        kinds: what it may be had in beside float32, the best first.
        prepare: one RGB picture as the model wants it.
        questions: the vectors ``(Q, D)`` of ``QUESTIONS``; None to ask with pictures alone.
        where: where it computes, for people: ``on cuda``.
    """

    bounds: ClassVar[Bounds]
    pictures: ClassVar[int]
    """How many pictures are compared."""

    def __init__(
        self,
        kinds: Sequence[str],
        prepare: Callable[[Image], np.ndarray],
        questions: Callable[[], np.ndarray] | None,
        where: str,
    ) -> None:
        self.kinds = tuple(kinds)
        self._prepare = prepare
        self._questions = questions
        self._where = where
        self.verdict = Verdict(FLOAT32, "nothing else was decided")
        self.exact: np.ndarray | None = None
        """Float32's vectors of the calibration pictures ``(N, D)``, once they were computed."""
        self._settled: str | None = None
        self.ranges: Mapping[str, np.ndarray] = {}
        """What int8 has to know of the numbers in this model, by name; kept with an index that is in int8."""

    def decide(self, asked: str = AUTO) -> str:
        """The precision of a new index; ``verdict`` is what is used here.

        Args:
            asked: ``AUTO`` for the fastest that finds the same; else one of ``PRECISIONS``, which is returned, and used
                where it is faster than float32.

        Raises:
            UsageError: there is no such precision, or this model cannot be had in it here.
        """
        if asked not in (AUTO, *PRECISIONS):
            raise UsageError(f"no precision is called {asked!r}: say {', '.join(PRECISIONS)} or {AUTO}")
        if asked == AUTO:
            self.verdict = self._fastest()
            self._settled = self.verdict.precision
            self._release()
            return self.verdict.precision
        if asked != FLOAT32 and asked not in self.kinds:
            raise UsageError(f"this model cannot be computed in {asked} {self._where}; say float32 or auto")
        try:
            self._learn(asked)
        except IMPOSSIBLE as exc:
            raise UsageError(f"this model cannot be computed in {asked}: {_line(exc)}; say float32 or auto") from exc
        self.adopt(asked, self.ranges)
        return asked

    def adopt(self, precision: str, ranges: Mapping[str, np.ndarray]) -> Verdict:
        """Go on in the precision of an index, with its ``ranges``, if that is faster than float32 here."""
        self.ranges = ranges
        self.verdict = self._continued(precision)
        self._settled = precision
        self._release()
        return self.verdict

    def is_settled(self, precision: str, ranges: Mapping[str, np.ndarray]) -> bool:
        """Whether this was decided, or adopted, before."""
        same = ranges.keys() == self.ranges.keys() and all(np.array_equal(ranges[k], self.ranges[k]) for k in ranges)
        return self._settled == precision and same

    def _continued(self, precision: str) -> Verdict:
        """What is used here for an index that is in ``precision``."""
        if precision == FLOAT32:
            return Verdict(FLOAT32, "the index is in float32")
        if precision not in self.kinds:
            why = f"the index is in {precision}, in which this model cannot be computed {self._where}"
            return Verdict(FLOAT32, why)
        try:
            race = self._race(precision)
            if race.gain < LEAST_RACE:
                return Verdict(FLOAT32, f"the index is in {precision}, but {race.said()}")
            if not self.ranges:
                self._learn(precision)
            self._make(precision)
        except IMPOSSIBLE as exc:
            return Verdict(FLOAT32, f"the index is in {precision}, but the model cannot be had in it ({_line(exc)})")
        return Verdict(precision, f"the index is in {precision}: {race.said()}")

    def _fastest(self) -> Verdict:
        """What is fastest here and finds the same; else float32, and why not the others."""
        reasons = []
        for kind in self.kinds:
            try:
                race = self._race(kind)
                if race.gain < LEAST_RACE:
                    reasons.append(race.said())
                    continue
                self._learn(kind)
                self._make(kind)
                verdict = self._compare(kind)
            except IMPOSSIBLE as exc:
                reasons.append(f"the model cannot be had in {kind} ({_line(exc)})")
                continue
            if verdict.precision == kind:
                return Verdict(kind, f"{race.said()}; {verdict.why}")
            reasons.append(verdict.why)
        return Verdict(FLOAT32, "; ".join(reasons) or f"nothing else is tried with this model {self._where}")

    def _compare(self, kind: str) -> Verdict:
        """Whether ``kind`` finds what float32 finds on the calibration pictures, and is faster with them."""
        prepared = self.prepared()
        parts = [prepared[start : start + BATCH] for start in range(0, len(prepared), BATCH)]
        light = np.concatenate([self._vectors(kind, part) for part in parts])
        best = dict.fromkeys((FLOAT32, kind), float("inf"))
        for part in parts[:TIMED]:
            for form in best:
                began = time.perf_counter()
                self._vectors(form, part)
                best[form] = min(best[form], time.perf_counter() - began)
        if self.exact is None:
            self.exact = np.concatenate([self._vectors(FLOAT32, part) for part in parts])
        questions = self._questions() if self._questions else np.zeros((0, light.shape[1]), np.float32)
        return judge(self.exact, light, questions, best[FLOAT32] / best[kind], self.bounds, kind)

    def prepared(self) -> np.ndarray:
        """The calibration pictures as the model wants them, ``(N, C, H, W)``."""
        return np.stack([self._prepare(picture) for picture in calibration_pictures(self.pictures)])

    @abstractmethod
    def _race(self, kind: str) -> Race:
        """The race of ``kind`` against float32."""

    @abstractmethod
    def _learn(self, kind: str) -> None:
        """Find out what ``kind`` has to know of the model, into ``ranges``; and on the way ``exact``, maybe.

        Raises:
            ValueError: the model is of a kind that cannot be had in it.
        """

    @abstractmethod
    def _make(self, kind: str) -> None:
        """Make the model ready to compute in ``kind``."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of what the verdict does not need."""

    @abstractmethod
    def _vectors(self, kind: str, batch: np.ndarray) -> np.ndarray:
        """Prepared pictures ``(B, C, H, W)`` to vectors ``(B, D)``, not normalised."""


def precision_of(encoder: object) -> Precision | None:
    """What decides the precision of an encoder; None if that has float32 alone."""
    found = getattr(encoder, "precision", None)
    return found if isinstance(found, Precision) else None


def calibration_pictures(count: int) -> list[Image]:
    """The first ``count`` pictures on which precisions are compared, in RGB."""
    from PIL import Image

    paths = sorted(path for path in CALIBRATION.iterdir() if path.suffix in (".jpg", ".png"))
    return [Image.open(path).convert("RGB") for path in paths[:count]]


def judge(
    exact: np.ndarray, light: np.ndarray, questions: np.ndarray, gain: float, bounds: Bounds, kind: str
) -> Verdict:
    """Whether the vectors ``light`` ``(N, D)`` can stand for ``exact`` ``(N, D)``, ``gain`` times as fast to have.

    Every picture asks for those like it, and the ``questions`` ``(Q, D)`` ask, too, all in float32.
    """
    if not np.isfinite(light).all() or not light.any(axis=1).all():
        return Verdict(FLOAT32, f"{kind} gives vectors that are zero or not finite")
    exact, light = unit_rows(exact, "image"), unit_rows(light, "image")
    cosines = (exact * light).sum(axis=1)
    others = ~np.eye(len(exact), dtype=bool)  # no picture answers itself
    scores = [[(exact @ rows.T)[others].reshape(len(exact), -1) for rows in (exact, light)]]
    if len(questions):
        scores.append([questions @ rows.T for rows in (exact, light)])
    error = max(share_of_error(*pair) for pair in scores)
    said = (
        f"cosine {cosines.mean():.4f}, at worst {cosines.min():.4f}, error {100 * error:.1f} % of the spread of "
        f"scores, {gain:.1f} times as fast, on {len(exact)} pictures"
    )
    if not (error <= bounds.error and cosines.min() >= bounds.cosine):
        return Verdict(FLOAT32, f"{kind} does not find the same: {said}")
    if gain < LEAST_GAIN:
        return Verdict(FLOAT32, f"{kind} is no faster: {said}")
    return Verdict(kind, f"held against float32: {said}")


def share_of_error(exact: np.ndarray, light: np.ndarray) -> float:
    """How far scores ``(Q, N)`` of the same pictures are apart, beside how far the pictures' own scores are apart.

    For each question the standard deviation of the differences, over that of its scores; the mean of all. What is
    added to all scores of a question changes no order, and does not count.
    """
    return float(((light - exact).std(axis=1) / np.maximum(exact.std(axis=1), 1e-9)).mean())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
