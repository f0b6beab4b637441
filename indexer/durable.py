"""Files and names that are still there after a crash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def write_durably(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write a file so that after a crash it is there whole, or as it was before; ``content`` may be what writes it.

    Raises:
        OSError: it cannot be written.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        if isinstance(content, bytes):
            fresh.write_bytes(content)
        else:
            content(fresh)
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in ``folder`` durable; Windows has no such call and needs none."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
