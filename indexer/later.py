"""What is faster but takes a while to load: it is loaded in a thread of its own, once it was wanted often enough."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


def compiles() -> bool:
    """Whether numba is there, the optional package that compiles what is compiled here."""
    return importlib.util.find_spec("numba") is not None


class Later(Generic[T]):
    """May be used from several threads.

    Args:
        load: makes it; None, or any exception: it cannot be had here, and never will be.
        begin_after: how often it is to be wanted before it is loaded: about as often as its loading costs.
        thread: the name of the thread in which it is loaded.
    """

    def __init__(self, load: Callable[[], T | None], begin_after: int, thread: str) -> None:
        self._load = load
        self._begin_after = begin_after
        self._name = thread
        self._lock = threading.Lock()
        self._wanted = 0
        self._loaded: T | None = None
        self.loading: threading.Thread | None = None

    def get(self, times: int = 1) -> T | None:
        """It, or None as long as it is not there. It was wanted for ``times`` things."""
        if self._loaded is None:
            with self._lock:
                self._wanted += times
                if self._wanted > self._begin_after and self.loading is None:
                    self.loading = threading.Thread(target=self._run, name=self._name)
                    self.loading.start()
        return self._loaded

    def _run(self) -> None:
        # No numba, or no place to keep what it compiles: what is there without it does as well.
        with contextlib.suppress(Exception):
            self._loaded = self._load()
