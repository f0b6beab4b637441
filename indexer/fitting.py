"""Batches that fit into memory: one that does not is halved, and later ones are no larger than what did fit."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from indexer.errors import ModelError

T = TypeVar("T")

_SIGNS = (
    "out of memory",  # CUDA, HIP and MPS
    "can't allocate memory",  # torch's allocator on a CPU
    "not enough memory",  # the same on Windows
    "bad_alloc",  # C++ below torch and onnxruntime
    "bad allocation",  # the same on Windows
    "failed to allocate memory",  # onnxruntime's arena
    "cublas_status_alloc_failed",
)
"""What the messages of libraries say, in small letters, which have no class of error for it."""


class Fitting(Generic[T]):
    """``encode`` of a batch, one result each, in parts that fit into memory. Thread-safe if ``encode`` is.

    A batch for which the memory does not suffice is halved until its parts fit, down to single ones. The size that did
    is kept: later batches come in parts of it from the start. With room for 20, a batch of 64 is tried as 64, 32 and
    16, and from then on everything comes in sixteens.

    Args:
        what: what ``encode`` takes, in the plural, as ``say`` is to be told.
        say: told once for each time that the size is found to be too large.
    """

    def __init__(
        self, encode: Callable[[list[Any]], Iterable[T]], what: str, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._encode = encode
        self._what = what
        self._say = say
        self._most: int | None = None
        self._shrinking = threading.Lock()

    def __call__(self, batch: list[Any]) -> list[T]:
        """What ``encode`` makes of ``batch``.

        Raises:
            ModelError: one alone does not fit.
        """
        results: list[T] = []
        while len(results) < len(batch):
            rest = len(batch) - len(results)
            part = batch[len(results) : len(results) + min(rest, self._most or rest)]
            try:
                results.extend(self._encode(part))
                continue
            except Exception as exc:
                if not is_out_of_memory(exc):
                    raise
                reason = str(exc).partition("\n")[0] or type(exc).__name__
            give_memory_back()  # only now: the error holds on to what was being computed
            if len(part) == 1:
                raise ModelError(
                    f"there is too little memory even for one of the {self._what} alone ({reason}); end what else uses "
                    "it, or take a smaller model or another --device"
                )
            self._shrink(len(part))
        return results

    def _shrink(self, failed: int) -> None:
        with self._shrinking:
            half = failed // 2
            if self._most is not None and self._most <= half:  # another thread was faster
                return
            self._most = half
        self._say(f"out of memory with {failed} {self._what} at a time; going on with {half}")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether ``error``, or what it was raised from, says that memory did not suffice."""
    torch = sys.modules.get("torch")
    while error is not None:
        if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
            return True
        message = str(error).lower()
        if any(sign in message for sign in _SIGNS):
            return True
        error = error.__cause__
    return False


def give_memory_back() -> None:
    """Let go of what torch keeps of a GPU's memory for itself: freed, but in pieces of the wrong size."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
