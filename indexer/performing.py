"""Takes the figures of a run while it goes on and, once it embeds pictures, keeps them beside the index, also for when
it is killed."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path

from indexer.encoders import Encoder
from indexer.encoders.precision import FLOAT32, precision_of
from indexer.performance import SAVE_SECONDS, Meter, Performance
from indexer.reading import reading_threads


class Performing:
    """The meters of one run over ``encoder``. Closing it saves the last figures, whatever ends the run.

    ``reading`` counts files, ``embedding`` is the meter of the model's streams, ``storing`` counts pictures.
    """

    def __init__(self, folder: Path, encoder: Encoder, embedding: Meter) -> None:
        self._folder = folder
        self._encoder = encoder
        self.reading = Meter(reading_threads())
        self.embedding = embedding
        self.storing = Meter(1)
        self._started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._began = self._saved = time.perf_counter()
        self._seconds: float | None = None

    def finish(self) -> Performance:
        """The run is over, and nothing stopped it."""
        self._seconds = time.perf_counter() - self._began
        return self.figures()

    def save(self) -> None:
        """Keep the figures until now, if the last that were kept are old."""
        now = time.perf_counter()
        if now - self._saved >= SAVE_SECONDS:
            self._saved = now
            self.close()

    def close(self) -> None:
        """Keep the figures until now."""
        figures = self.figures()
        if figures.embedding.count:  # else those of an earlier run say more
            figures.save(self._folder)

    def figures(self) -> Performance:
        """What was measured until now."""
        precision = precision_of(self._encoder)
        verdict = None if precision is None else precision.verdict
        finished = self._seconds is not None
        return Performance(
            started=self._started,
            seconds=round(self._seconds if self._seconds is not None else time.perf_counter() - self._began, 6),
            finished=finished,
            model=self._encoder.name,
            precision=verdict.precision if verdict else FLOAT32,
            why=verdict.why if verdict else "nothing else is tried with this model",
            reading=self.reading.stage(),
            embedding=self.embedding.stage(),
            storing=self.storing.stage(),
        )
