"""How a run spends its time: what each stage does, how long it waits for the others, and the file that remembers it.

reading (threads) ─► the model (streams) ─► storing (the main thread). A stage that waits little is the one to make
faster.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FILE = "performance.json"
SAVE_SECONDS = 5.0
"""A run that is killed leaves figures that are so old at most."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage did: ``count`` files or pictures in ``seconds`` of work, the sum over its ``workers``.

    ``waited`` is how long these had nothing to do between the beginning of the run and their last piece of work.
    """

    workers: int
    count: int
    seconds: float
    waited: float

    @property
    def rate(self) -> float:
        """Files or pictures a second if it never had to wait; 0 for a stage that did nothing."""
        return self.count * self.workers / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Performance:
    """The figures of one run. ``seconds`` is wall time; without ``finished`` it was stopped, or is still at it."""

    started: str
    seconds: float
    finished: bool
    model: str
    precision: str
    why: str
    """Why it is this precision."""
    reading: Stage
    """Opening, hashing, decoding and resizing, of files; it waits for the model."""
    embedding: Stage
    """The model, of pictures; it waits for pictures."""
    storing: Stage
    """Writing vectors, tokens and the catalogue, of pictures; it waits for both."""

    def as_dict(self) -> dict[str, Any]:
        """The figures in plain values, for JSON."""
        values = asdict(self)
        for name in ("reading", "embedding", "storing"):
            values[name]["rate"] = getattr(self, name).rate
        return values

    def save(self, folder: Path) -> None:
        """Write them beside the index; where that fails, the run is worth more than its figures."""
        fresh = folder / f"{FILE}.new"
        with suppress(OSError):
            fresh.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
            fresh.replace(folder / FILE)


def load(folder: Path) -> Performance | None:
    """The figures of the last run that embedded pictures; None if there are none, or they cannot be read."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        for name in ("reading", "embedding", "storing"):
            values[name].pop("rate")
            values[name] = Stage(**values[name])
        known = {field.name for field in fields(Performance)}  # other versions write others as well
        return Performance(**{name: value for name, value in values.items() if name in known})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class Meter:
    """Counts the work of one stage, whose threads all call it. Thread-safe."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._count = 0
        self._seconds = self._waited = 0.0
        self._began = time.perf_counter()
        self._idle_since: dict[int, float] = {}

    @contextmanager
    def work(self, count: int = 1) -> Iterator[None]:
        """What the block does is work of the calling thread on ``count`` files or pictures."""
        began = time.perf_counter()
        try:
            yield
        finally:
            ended = time.perf_counter()
            thread = threading.get_ident()
            with self._lock:
                self._waited += began - self._idle_since.get(thread, self._began)
                self._seconds += ended - began
                self._count += count
                self._idle_since[thread] = ended

    def stage(self) -> Stage:
        """What was done until now."""
        with self._lock:
            return Stage(self._workers, self._count, round(self._seconds, 6), round(self._waited, 6))
