"""How far a long run is: a bar with rate and time left on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TextIO

from indexer.reports import Progress
from mmsearch.present import display_path, duration

_LOG_SECONDS = 10.0
"""A log gets a line this often."""
_NAME = 32
"""Characters of the name of a file in the middle of which a run is, at most."""


class ProgressLine:
    """Shows ``Progress`` on ``stream``; used with ``with``, called after every file and within long ones."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._last = self._started
        self._drawn = False
        self._live = self._stream.isatty()
        self._begun: tuple[float, Progress] | None = None
        """When something was first heard of the file that the run is in the middle of, and what."""

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
        if not progress.share:
            self._begun = None
        elif self._begun is None or self._begun[1].path != progress.path:
            self._begun = now, progress
        pause = 0.1 if self._live else _LOG_SECONDS
        if now - self._last < pause:
            return
        self._last = now
        if self._begun is None:
            text = describe(progress, now - self._started)
        else:
            began, first = self._begun
            text = describe_within(progress, began - self._started, now - began, progress.share - first.share)
        if self._live:
            self._stream.write(f"\r\x1b[K{_bar(progress)} {text}")
            self._drawn = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def describe(progress: Progress, seconds: float) -> str:
    """``120 of 8,086 files, 31.0/s, 4 min 17 s left, 2 skipped``."""
    rate = progress.done / seconds if seconds > 0 else 0.0
    pace = f"{60 * rate:,.1f}/min" if 0 < rate < 0.1 else f"{rate:,.1f}/s"
    parts = [f"{progress.done:,} of {progress.total:,} files", pace]
    if rate > 0:
        parts.append(f"{duration((progress.total - progress.done) / rate)} left")
    return ", ".join(parts + _skipped(progress))


def describe_within(progress: Progress, before: float, within: float, gone: float) -> str:
    """``120 of 121 files, holiday.mp4 32 %, 1 min 04 s left``: in the middle of a long file.

    The rest of this file takes as long as what was gone through of it says, and each other file as long as one did
    before; where there was none, as long as this one.

    Args:
        before: seconds of the run before it came to this file.
        within: seconds since; ``gone`` is the share of the file that they took it through.
    """
    name = display_path(os.path.basename(progress.path))
    name = name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[1 - _NAME // 2 :]}"
    parts = [f"{progress.done:,} of {progress.total:,} files", f"{name} {100 * progress.share:.0f} %"]
    if within > 0 and gone > 0:
        whole = within / gone
        each = before / progress.done if progress.done else whole
        left = (1 - progress.share) * whole + (progress.total - progress.done - 1) * each
        parts.append(f"{duration(max(left, 0.0))} left")
    return ", ".join(parts + _skipped(progress))


def _skipped(progress: Progress) -> list[str]:
    return [f"{progress.skipped:,} skipped"] if progress.skipped else []


def _bar(progress: Progress, width: int = 24) -> str:
    full = int(width * (progress.done + progress.share) / max(progress.total, 1))
    return "█" * full + "░" * (width - full)
