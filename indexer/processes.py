"""Several devices for one model: a process for each, which embeds the batches that it is given.

The processes are started afresh ("spawn"), for CUDA does not survive a fork, and each loads the model for itself. A
batch of prepared pictures is written into shared memory, of which each process has two blocks: while it embeds what is
in one, the next batch is written into the other. Vectors and tokens come back through a pipe; they are small.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np

from indexer.embedding import Embed, embed_with, encode_each
from indexer.encoders.load import load_encoder
from indexer.errors import MmsearchError, ModelError
from indexer.lanes import Embedded
from indexer.performance import Meter
from indexer.tokens import Compressor

Say = Callable[[str], None]
Make = Callable[[str, Say], Embed]
"""Loads the model for the device of that name. It goes to another process: a function of a module, with ``partial``."""

_SHARED = Path("/dev/shm")  # where Linux keeps shared memory; in a container often 64 MB
_BLOCKS = 2
_PATIENCE = 10.0
"""Seconds that a process has to end after it was told to."""


class Processes:
    """A process for each of ``devices`` that embeds batches of prepared pictures; takes the place of ``Lanes``.

    ``with`` starts and stops them; where it is left by an error, or by Ctrl-C, what they are at is not waited for. They
    end too when this process does, however that may be. A program that gets here as its main script must have its
    ``if __name__ == "__main__"``, for each process imports that script.

    Args:
        make: loads the model in the process, and is told how to ``say`` something.
        say: is told what the processes say, and on which device.
    """

    def __init__(self, make: Make, devices: Sequence[str], say: Say = lambda _: None) -> None:
        self.count = len(devices)
        self.meter = Meter(self.count)
        self._workers = [_Worker(make, device, say) for device in devices]
        self._blocks: SimpleQueue[_Block] = SimpleQueue()
        self._all = [_Block(worker) for _ in range(_BLOCKS) for worker in self._workers]
        for block in self._all:
            self._blocks.put(block)
        self._pool = ThreadPoolExecutor(len(self._all), thread_name_prefix="mmsearch-device")

    def __enter__(self) -> Processes:
        try:
            for worker in self._workers:
                worker.start()
        except BaseException as exc:
            self._stop(at_once=True)
            if isinstance(exc, (TypeError, AttributeError, OSError)) or type(exc).__name__ == "PicklingError":
                raise ModelError(f"cannot start a process that embeds: {exc}; name one device") from exc
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(at_once=error is not None)

    def _stop(self, *, at_once: bool) -> None:
        if at_once:
            for worker in self._workers:
                worker.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.stop()
        for block in self._all:
            block.free()

    def submit(self, prepared: list[np.ndarray]) -> Future[list[Embedded]]:
        """Embed a batch of pictures, each ``(C, H, W)``, on the next device that is free: one result each.

        The result raises ModelError if the model fails on everything, cannot be loaded, or the process has ended, and
        UsageError if there is no such device.
        """
        return self._pool.submit(self._run, prepared)

    def _run(self, prepared: list[np.ndarray]) -> list[Embedded]:
        block = self._blocks.get()
        try:
            handed_over = block.hand_over(prepared)
            with self.meter.work(len(prepared)):
                found: list[Embedded] = block.worker.ask(handed_over)
            return found
        finally:
            self._blocks.put(block)


class _Worker:
    """One process, as seen from here. Thread-safe."""

    def __init__(self, make: Make, device: str, say: Say) -> None:
        self.device = device
        self._make = make
        self._say = say
        self._process: Any = None
        self._connection: Any = None
        self._ready = False
        self._asking = threading.Lock()

    def start(self) -> None:
        """Start it; it begins to load the model."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._make, self.device), name=f"mmsearch-{self.device}", daemon=True
        )
        try:
            process.start()
            self._process = process
        finally:
            theirs.close()  # so that the end of the process is the end of the pipe

    def ask(self, task: object) -> Any:
        """What the process makes of a task, of which it has one at a time."""
        with self._asking:
            try:
                if not self._ready:
                    self._reply()
                    self._ready = True
                self._connection.send(task)
                return self._reply()
            except (EOFError, OSError) as exc:
                raise ModelError(self._ending()) from exc

    def _reply(self) -> Any:
        while True:
            kind, value = self._connection.recv()
            if kind == "said":
                self._say(f"{self.device}: {value}")
            elif kind == "failed":
                raise value
            else:
                return value

    def _ending(self) -> str:
        self._process.join(_PATIENCE)
        code = self._process.exitcode
        how = f"with exit code {code}"
        if code is not None and code < 0:
            how = f"by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += ", as the system does where memory runs out"
        return (
            f"the process that embedded on {self.device} was ended {how}; what was committed is in the index, and the "
            "same command carries on from there, with fewer devices if you leave this one out"
        )

    def terminate(self) -> None:
        """End it, whatever it is at."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """Let it end, and make sure that it does."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(_PATIENCE)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()


_making = threading.Lock()


class _Block:
    """Shared memory between here and a process, for one batch at a time; it grows with the batches."""

    def __init__(self, worker: _Worker) -> None:
        self.worker = worker
        self._memory: SharedMemory | None = None

    def hand_over(self, prepared: list[np.ndarray]) -> tuple[Any, ...]:
        """Write a batch into the block; what the process is to be told: where, and of which shape and type.

        Where there is no room for the block, or the pictures differ in shape, the pictures themselves.
        """
        first = prepared[0]
        if any(one.shape != first.shape or one.dtype != first.dtype for one in prepared):
            return (prepared,)
        shape = (len(prepared), *first.shape)
        size = len(prepared) * first.nbytes
        if self._memory is None or self._memory.size < size:
            self.free()
            self._memory = _shared(size)
        if self._memory is None:
            return (prepared,)
        np.stack(prepared, out=np.ndarray(shape, first.dtype, buffer=self._memory.buf))
        return self._memory.name, shape, first.dtype.str

    def free(self) -> None:
        """Give the memory back."""
        if self._memory is not None:
            self._memory.close()
            self._memory.unlink()
            self._memory = None


def _shared(size: int) -> SharedMemory | None:
    """So many bytes of shared memory, or None if there is no room.

    The system promises more than there is, and ends who writes into what is not: so it is asked, and then written at
    once, one block after the other.
    """
    with _making:
        if _SHARED.is_dir() and shutil.disk_usage(_SHARED).free < size + (1 << 20):
            return None
        try:
            memory = SharedMemory(create=True, size=size)
        except OSError:
            return None
        np.ndarray((size,), np.uint8, buffer=memory.buf).fill(0)
        return memory


def _serve(connection: Connection, make: Make, device: str) -> None:
    """What the process does: load the model, then embed batch after batch until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the process that was started decides
    try:
        try:
            embed = make(device, lambda line: connection.send(("said", line)))
        except Exception as exc:
            connection.send(("failed", _as_ours(exc, device)))
            return
        connection.send(("ready", None))
        blocks: dict[str, SharedMemory] = {}
        while True:
            pictures = _taken(connection.recv(), blocks)
            try:
                reply: tuple[str, Any] = "done", encode_each(embed, pictures)
            except Exception as exc:
                reply = "failed", _as_ours(exc, device)
            del pictures  # they lie in a block
            connection.send(reply)
    except (EOFError, OSError):
        return


def _as_ours(error: Exception, device: str) -> MmsearchError:
    """``error`` as one that can be sent and is known at the other end."""
    if isinstance(error, MmsearchError):
        return error
    return ModelError(f"the model fails on {device}: {type(error).__name__}: {error}")


def _taken(task: tuple[Any, ...], blocks: dict[str, SharedMemory]) -> list[np.ndarray]:
    """The pictures of a batch, each ``(C, H, W)``."""
    if len(task) == 1:
        pictures: list[np.ndarray] = task[0]
        return pictures
    name, shape, dtype = task
    if name not in blocks:
        blocks[name] = SharedMemory(name)
    return list(np.ndarray(shape, dtype, buffer=blocks[name].buf))


def load_embed(model: str, fingerprint: str, compressor: Compressor | None, device: str, say: Say) -> Embed:
    """How pictures are embedded on ``device`` by the encoder called ``model``, which must have that ``fingerprint``.

    Raises:
        UsageError: there is no such model, or no such device.
        ModelError: the model cannot be loaded, or has other weights by now.
    """
    encoder = load_encoder(model, device)
    if encoder.fingerprint != fingerprint:
        raise ModelError(f"the model {model} was changed while it was loaded; run the same command again")
    return embed_with(encoder, compressor, say)
