"""Packages that are not always installed: a file that needs one is skipped with the command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from indexer.errors import DecodeError

PIP_INSTALL = "pip install 'mmsearch["
"""What a reason says that ends with the package's being installed."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Imports that may fail: DecodeError says that ``what`` needs ``pip install 'mmsearch[extra]'``."""
    try:
        yield
    except ImportError as exc:
        raise DecodeError(f"{what} needs a package that is not installed ({exc.name}): {PIP_INSTALL}{extra}]'") from exc
