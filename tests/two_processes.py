"""What test_processes.py runs in processes of their own, and a program that is interrupted while it has some."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
from colour_encoder import PatchColourEncoder

from indexer.embedding import Embed, embed_with
from indexer.errors import ModelError, UsageError
from indexer.fitting import Fitting
from indexer.processes import Model, Processes, Say
from indexer.tokens import Compressor


def means(device: str, say: Say) -> Embed:
    """A model that makes of a picture its mean, and of its process the tokens."""
    say("loaded")

    def embed(prepared: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        process = np.frombuffer(os.getpid().to_bytes(8, "little"), np.uint8)
        return [(one.mean(axis=(1, 2)), process) for one in prepared]

    return embed


def five_at_most(device: str, say: Say) -> Embed:
    """The same with memory for five pictures."""
    embed = means(device, say)

    def little(prepared: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        if len(prepared) > 5:
            raise MemoryError
        return embed(prepared)

    return Fitting(little, "pictures", say)


def colours(model: Model, compressor: Compressor | None, device: str, say: Say) -> Embed:
    """The encoder of the tests."""
    assert (model.name, model.fingerprint) == (PatchColourEncoder.name, PatchColourEncoder.fingerprint)
    return embed_with(PatchColourEncoder(), compressor, say)


def dying(device: str, say: Say) -> Embed:
    """A model that the system ends in the middle of a batch, on the device of that name."""

    def embed(prepared: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        if device == "ill":
            os.kill(os.getpid(), signal.SIGKILL)
        return means(device, say)(prepared)

    return embed


def missing(device: str, say: Say) -> Embed:
    """A model whose weights are not there."""
    raise ModelError(f"no weights for {device}")


def nowhere(device: str, say: Say) -> Embed:
    """A model on a device that is not there."""
    raise UsageError(f"there is no {device} here")


def broken(device: str, say: Say) -> Embed:
    """A model whose library fails."""
    raise KeyError(device)


def slow(device: str, say: Say) -> Embed:
    """A model that computes for as many seconds as its device is called."""

    def embed(prepared: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        say(f"pid {os.getpid()}")
        time.sleep(float(device))
        return []

    return embed


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without one
    try:
        with Processes(slow, sys.argv[1:], lambda line: print(line, flush=True)) as processes:
            sent = [processes.submit([np.zeros((3, 2, 2), np.float32)]) for _ in range(2)]
            print([one.result() for one in sent])
    except KeyboardInterrupt:
        sys.exit(1)
