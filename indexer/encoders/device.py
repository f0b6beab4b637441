"""Which chip a model runs on: CUDA, then MPS, then the CPU, or the one that was asked for."""

from __future__ import annotations

import torch

from indexer.errors import UsageError


def pick_device(asked: str | None) -> torch.device:
    """The device called ``asked`` (``cuda``, ``cuda:1``, ``mps``, ``cpu``), or the best one here for None.

    Raises:
        UsageError: there is no such device on this machine, or no device has such a name.
    """
    if asked is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = asked.partition(":")
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": 1 if torch.backends.mps.is_available() else 0,
    }.get(kind)
    if count is None or (number and not number.isdecimal()):
        raise UsageError(f"no device is called {asked!r}: say cuda, cuda:1, mps or cpu")
    if int(number or 0) >= count:
        raise UsageError(f"there is no device {asked!r} on this machine: leave the device out, or say cpu")
    return torch.device(asked)


def streams_on(device: torch.device) -> int:
    """How many batches are best computed at once on ``device``: one a core of the CPU, and one on anything else.

    On the CPU it is what torch would spread one batch over: the physical cores, or ``OMP_NUM_THREADS``.
    """
    return torch.get_num_threads() if device.type == "cpu" else 1
