"""How far a long run is: a bar with rate and time left on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from indexer.pipeline import Progress
from mmsearch.present import duration

_LOG_SECONDS = 10.0
"""A log gets a line this often."""


class ProgressLine:
    """Shows ``Progress`` on ``stream``; used with ``with``, called for every file."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._last = self._started
        self._drawn = False
        self._live = self._stream.isatty()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        pause = 0.1 if self._live else _LOG_SECONDS
        if now - self._last < pause:
            return
        self._last = now
        text = describe(progress, now - self._started)
        if self._live:
            self._stream.write(f"\r\x1b[K{_bar(progress)} {text}")
            self._drawn = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def describe(progress: Progress, seconds: float) -> str:
    """``120 of 8,086 files, 31.0/s, 4 min 17 s left, 2 skipped``."""
    rate = progress.done / seconds if seconds > 0 else 0.0
    parts = [f"{progress.done:,} of {progress.total:,} files", f"{rate:,.1f}/s"]
    if rate > 0:
        parts.append(f"{duration((progress.total - progress.done) / rate)} left")
    if progress.skipped:
        parts.append(f"{progress.skipped:,} skipped")
    return ", ".join(parts)


def _bar(progress: Progress, width: int = 24) -> str:
    full = width * progress.done // max(progress.total, 1)
    return "█" * full + "░" * (width - full)
