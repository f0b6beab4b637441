"""Several streams of one model at a time: while one computes, another does, and the index is written meanwhile.

A batch of pictures that is spread over the cores of a CPU waits at each layer for the slowest of them. Batches that are
computed side by side, each on one core, wait for nothing. On a GPU one stream suffices, and writing goes on beside it.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol

import numpy as np

from indexer.embedding import Embed, encode_each
from indexer.encoders import Encoder, streams
from indexer.performance import Meter

Embedded = tuple[np.ndarray, np.ndarray | None] | str
"""The vector ``(D,)`` and packed tokens of a picture, or why the model does not take it."""


class Pool(Protocol):
    """What embeds several batches at a time: ``Lanes``, or ``indexer.processes.Processes``."""

    count: int
    """Batches that are computed at a time."""
    meter: Meter

    def submit(self, prepared: list[np.ndarray]) -> Future[list[Embedded]]: ...


PATIENCE = 1.0
"""Seconds for which a stop has to wait for what is being computed, or as long as one picture takes."""

_number_of_threads = threading.Lock()  # torch's default, while it is one for the thread that is being set up


class Lanes:
    """Threads that embed batches of prepared pictures, one for each stream of ``encoder`` and no more than ``most``.

    A single one computes on all cores. ``with`` stops them; where it is left by an error, or by Ctrl-C, a batch is
    given up within ``PATIENCE``: a slow model is given its pictures in parts that take no longer.
    """

    def __init__(self, embed: Embed, encoder: Encoder, most: int = sys.maxsize) -> None:
        self._embed = embed
        self.count = min(streams(encoder), most)
        self.meter = Meter(self.count)
        self._limits = ExitStack()
        self._seconds: float | None = None
        """That one picture took, of late."""
        self._warming = threading.Lock()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(
            self.count, thread_name_prefix="mmsearch-model", initializer=one_core if self.count > 1 else None
        )

    def __enter__(self) -> Lanes:
        if self.count > 1:
            from threadpoolctl import threadpool_limits

            # Else NumPy's products take all cores, too, and wait for them: twice the processor time with `mini`.
            self._limits.enter_context(threadpool_limits(1, user_api="blas"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._limits.close()

    def submit(self, prepared: list[np.ndarray]) -> Future[list[Embedded]]:
        """Embed a batch of pictures, each ``(C, H, W)``, in the next lane that is free: one result each.

        The result raises ModelError if the model fails on everything.
        """
        return self._pool.submit(self._run, prepared)

    def _run(self, prepared: list[np.ndarray]) -> list[Embedded]:
        if self._seconds is None and self.count > 1 < len(prepared):
            with self._warming:  # one picture loads the weights, and only once; other lanes wait no longer than that
                if self._seconds is None:
                    with self.meter.work(0):
                        self._embed_part(prepared[:1])
        with self.meter.work(len(prepared)):
            results: list[Embedded] = []
            while len(results) < len(prepared):
                size = int(PATIENCE / self._seconds) if self._seconds else len(prepared)
                results += self._embed_part(prepared[len(results) : len(results) + max(1, size)])
            return results

    def _embed_part(self, part: list[np.ndarray]) -> list[Embedded]:
        if self._stopping.is_set():
            raise CancelledError
        began = time.perf_counter()
        found = encode_each(self._embed, part)
        self._seconds = (time.perf_counter() - began) / len(part)
        return found


def in_parts(lanes: Pool, batch: list[np.ndarray], size: int) -> list[Embedded]:
    """Pictures, each ``(C, H, W)``, embedded in parts of ``size`` in all lanes, in their order."""
    parts = [lanes.submit(batch[start : start + size]) for start in range(0, len(batch), size)]
    return [one for part in parts for one in part.result()]


def one_core() -> None:
    """Let what torch computes in this thread stay in it, and what it computes elsewhere as it was.

    The number is the calling thread's own once that has computed something (OpenMP's ICV), but also the default of
    threads that have not: that is put back. A model that computes with torch has imported it by now.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    with _number_of_threads:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.zeros(1).add_(1)
        thread = threading.Thread(target=torch.set_num_threads, args=(before,))
        thread.start()
        thread.join()
