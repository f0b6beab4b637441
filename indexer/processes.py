"""A pool of processes for several devices: each loads the model on its device, and embeds a batch at a time.

The processes are started afresh ("spawn"), for CUDA does not survive a fork. Batches and results go through a pipe to
each, which ends with the process: whoever waits at the other end notices, also in the middle of a batch. (The pool of
``concurrent.futures`` would wait there for ever with Python 3.10, and cannot be told to end what it is at before 3.14.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType

import numpy as np

from indexer.embedding import Embed, embed_with, encode_each
from indexer.encoders.load import load_encoder
from indexer.encoders.precision import precision_of
from indexer.errors import MmsearchError, ModelError
from indexer.lanes import Embedded
from indexer.performance import Meter
from indexer.tokens import Compressor

Say = Callable[[str], None]
Make = Callable[[str, Say], Embed]
"""Loads the model for the device of that name. It goes to another process: a function of a module, with ``partial``."""


class Processes:
    """A process for each of ``devices`` that embeds batches of prepared pictures; takes the place of ``Lanes``.

    ``with`` starts and ends them; where it is left by an error, or by Ctrl-C, what they are at is not waited for. They
    end too when this process does, however that may be. A program that gets here as its main script must have its
    ``if __name__ == "__main__"``, for each process imports that script.

    Args:
        make: loads the model in the process, and is told how to ``say`` something.
        say: is told what the processes say, and on which device.
    """

    def __init__(self, make: Make, devices: Sequence[str], say: Say = lambda _: None) -> None:
        self.count = len(devices)
        self.meter = Meter(self.count)
        self._make, self._devices, self._say = make, devices, say
        self._started = ExitStack()
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="mmsearch-device")

    def __enter__(self) -> Processes:
        with self._started as started:
            for device in self._devices:
                worker = _Worker(self._make, device, self._say)
                started.callback(worker.end)
                self._free.put(worker)
            self._started = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._threads.shutdown()
        self._started.close()
        self._threads.shutdown(cancel_futures=True)

    def submit(self, prepared: list[np.ndarray]) -> Future[list[Embedded]]:
        """Embed a batch of pictures, each ``(C, H, W)``, on the next device that is free: one result each.

        The result raises ModelError if the model fails on everything, cannot be loaded, or the process has ended, and
        UsageError if there is no such device.
        """
        return self._threads.submit(self._run, prepared)

    def _run(self, prepared: list[np.ndarray]) -> list[Embedded]:
        worker = self._free.get()
        try:
            with self.meter.work(len(prepared)):
                return worker.embed(prepared)
        finally:
            self._free.put(worker)


class _Worker:
    """The process of one device, as seen from here; it loads the model when its first batch comes.

    Raises:
        ModelError: the system lets no process be started, or a part of the model cannot be sent to one.
    """

    def __init__(self, make: Make, device: str, say: Say) -> None:
        self._device, self._say = device, say
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, device), daemon=True)
        try:
            self._process.start()
        except Exception as exc:
            raise ModelError(f"cannot start a process that embeds: {exc}; name one device") from exc
        finally:
            theirs.close()  # so that the end of the process is the end of the pipe

    def embed(self, prepared: list[np.ndarray]) -> list[Embedded]:
        """What the process makes of a batch; it has one at a time."""
        try:
            self._connection.send(prepared)
            while isinstance(reply := self._connection.recv(), str):
                self._say(f"{self._device}: {reply}")
        except (EOFError, OSError) as exc:
            self._process.join(timeout=10)
            code = self._process.exitcode or 0
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise ModelError(
                f"the process that embedded on {self._device} was ended {how}; the system does so where memory runs "
                'out, and a script needs its `if __name__ == "__main__":`, for each process imports it. What was '
                "committed is in the index, and the same command carries on from there"
            ) from exc
        if isinstance(reply, MmsearchError):
            raise reply
        found: list[Embedded] = reply
        return found

    def end(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, make: Make, device: str) -> None:
    """What the process does: load the model, then embed batch after batch until it is ended."""

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the process that was started decides
    threading.Thread(target=end_with_parent, daemon=True).start()
    embed: Embed | None = None
    with suppress(EOFError, BrokenPipeError):  # the other end may be gone
        while True:
            batch = connection.recv()
            try:
                embed = embed or make(device, connection.send)
                reply: object = encode_each(embed, batch)
            except MmsearchError as exc:
                reply = exc
            except Exception as exc:
                reply = ModelError(f"the model fails on {device}: {type(exc).__name__}: {exc}")
            connection.send(reply)


@dataclass(frozen=True, slots=True)
class Model:
    """A model as another process is to have it: its name, the digest of its weights, and its precision."""

    name: str
    fingerprint: str
    precision: str
    ranges: Mapping[str, np.ndarray]


def load_embed(model: Model, compressor: Compressor | None, device: str, say: Say) -> Embed:
    """How pictures are embedded on ``device`` by ``model``.

    Raises:
        UsageError: there is no such model, or no such device.
        ModelError: the model cannot be loaded, or has other weights by now.
    """
    encoder = load_encoder(model.name, device)
    if encoder.fingerprint != model.fingerprint:
        raise ModelError(f"the model {model.name} was changed while it was loaded; run the same command again")
    own = precision_of(encoder)
    if own is not None and own.adopt(model.precision, model.ranges).precision != model.precision:
        say(f"pictures are computed in float32 here: {own.verdict.why}")
    return embed_with(encoder, compressor, say)
