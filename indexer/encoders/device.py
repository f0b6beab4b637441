"""Which chip a model runs on: CUDA, then MPS, then the CPU, or the one that was asked for.

Importing torch takes seconds and half a gigabyte: where a model can do without it, whether there is a chip that it
would need torch for is first asked of the system.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.errors import UsageError

if TYPE_CHECKING:
    import torch

CPUS = Path("/sys/devices/system/cpu")
AMD = Path("/dev/kfd")
_NAME = re.compile(r"(cuda|mps|cpu)(:[0-9]+)?")


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
    names = split_devices(asked)
    if len(names) > 1:
        raise UsageError(f"one device is wanted here, not {asked!r}: several are for `mmsearch index`")
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    lacks = missing(names, cuda, torch.backends.mps.is_available())
    if lacks is not None:
        if asked.startswith("cuda") and not cuda and gpus():
            lacks += " (the GPU is there, but the torch that is installed cannot use it: install one with CUDA)"
        raise UsageError(lacks)
    return torch.device(asked)


def split_devices(asked: str | None) -> tuple[str, ...]:
    """The devices that ``asked`` names: ``cuda:0,cuda:1`` are two, and None is none.

    Raises:
        UsageError: no device can be called so.
    """
    if asked is None:
        return ()
    names = tuple(name.strip() for name in asked.split(","))
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(f"no device is called {name!r}: say cuda, cuda:1, mps or cpu")
    return names


def check_devices(names: Sequence[str]) -> None:
    """Raise UsageError unless all of these are on this machine. The system is asked, not torch; see ``gpus``."""
    cuda = gpus() if any(name.startswith("cuda") for name in names) else 0
    if cuda is None:
        return  # torch will tell
    lacks = missing(names, cuda, sys.platform == "darwin" and platform.machine() == "arm64")
    if lacks is not None:
        raise UsageError(lacks)


def missing(names: Sequence[str], cuda: int, mps: bool) -> str | None:
    """What to say of the first of ``names`` that is not there, with so many GPUs and that other chip; None if all are.

    Of two GPUs the last is ``cuda:1``, and ``cuda`` is the first.
    """
    count = {"cuda": cuda, "mps": int(mps), "cpu": 1}
    for name in names:
        kind, _, number = name.partition(":")
        if int(number or 0) >= count[kind]:
            there = [*(f"cuda:{i}" for i in range(cuda)), *(["mps"] if mps else []), "cpu"]
            return (
                f"there is no device {name!r} on this machine, which has {' and '.join(there)}: name one of these, or "
                "leave the device out"
            )
    return None


def gpu_numbers(names: Sequence[str]) -> tuple[int, ...] | None:
    """Which GPUs these devices are: of ``("cuda:0", "cuda:2")`` 0 and 2. None, for all of them, with plain ``cuda``."""
    if "cuda" in names:
        return None
    return tuple(sorted({int(name.partition(":")[2]) for name in names if name.startswith("cuda:")}))


def gpus() -> int | None:
    """GPUs that torch would call ``cuda``, by the word of the driver; None where only torch knows (AMD's).

    ``CUDA_VISIBLE_DEVICES`` counts.
    """
    if AMD.exists():
        return None
    driver = _nvidia()
    count = ctypes.c_int(0)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


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
    return _nvidia() is not None


def _nvidia() -> ctypes.CDLL | None:
    """The driver's library, if there is one."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


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
