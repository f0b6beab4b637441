"""A generator that runs in a thread of its own, a few values ahead of whoever takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_PATIENCE = 0.2
"""Seconds after which a thread that waits looks whether anybody still wants what it has."""


@dataclass(frozen=True, slots=True)
class _End:
    """Nothing comes any more: the generator is done, or raised this."""

    error: BaseException | None = None


def ahead(values: Generator[T, None, None], count: int) -> Generator[T, None, None]:
    """What ``values`` gives, at most ``count`` of it made before it is taken. What it raises is raised here.

    Closing this closes ``values``, in its thread, before it returns.
    """
    ready: queue.Queue[Any] = queue.Queue(count)
    stopped = threading.Event()

    def put(value: object) -> None:
        while not stopped.is_set():
            try:
                ready.put(value, timeout=_PATIENCE)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            with closing(values):
                for value in values:
                    put(value)
                    if stopped.is_set():
                        return
            put(_End())
        except BaseException as exc:
            put(_End(exc))

    thread = threading.Thread(target=work, name="mmsearch-decode", daemon=True)
    thread.start()
    try:
        while not isinstance(value := ready.get(), _End):
            yield value
        if value.error is not None:
            raise value.error
    finally:
        stopped.set()
        thread.join()
