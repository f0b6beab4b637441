"""A generator that runs in a thread of its own, a few values ahead of whoever takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(values: Generator[T, None, None], count: int) -> Generator[T, None, None]:
    """What ``values`` gives, none of it None, at most ``count`` of it made before it is taken.

    What it raises is raised here. Closing this closes ``values`` before it returns.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="mmsearch-decode")
    waiting: deque[Future[T | None]] = deque()
    try:
        while True:
            while len(waiting) < count:
                waiting.append(thread.submit(next, values, None))
            value = waiting.popleft().result()
            if value is None:
                return
            yield value
    finally:
        thread.shutdown(cancel_futures=True)
        values.close()
