"""Which chip a model runs on: CUDA, then MPS, then the CPU, or the one that was asked for.

Importing torch takes seconds and half a gigabyte: where a model can do without it, whether there is a chip that it
would need torch for is first asked of the system.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.errors import UsageError

if TYPE_CHECKING:
    import torch

CPUS = Path("/sys/devices/system/cpu")
AMD = Path("/dev/kfd")


def pick_device(asked: str | None) -> torch.device:
    """The device called ``asked`` (``cuda``, ``cuda:1``, ``mps``, ``cpu``), or the best one here for None.

    Raises:
        UsageError: there is no such device on this machine, or no device has such a name.
    """
    import torch

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


def is_cpu(asked: str | None) -> bool:
    """Whether ``pick_device(asked)`` is the CPU; torch is imported only if there may be something else.

    Raises:
        UsageError: as ``pick_device`` does.
    """
    if asked == "cpu" or (asked is None and not _may_have_another()):
        return True
    return pick_device(asked).type == "cpu"


def _may_have_another() -> bool:
    """Whether torch may find a device here that is not the CPU: a driver is installed, or the chip has one built in."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if AMD.exists():
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def cores() -> int:
    """Physical cores that this process may use, or ``OMP_NUM_THREADS``: what torch would take, asked without it.

    Where the system does not say which of its processors share a core, each counts as one.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked):
        return int(asked)
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    """The processors of one core, as Linux lists them."""
    try:
        return (CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def streams_on(device: torch.device) -> int:
    """How many batches are best computed at once on ``device``: one a core of the CPU, and one on anything else."""
    return cores() if device.type == "cpu" else 1
