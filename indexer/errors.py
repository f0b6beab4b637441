"""Every error this project raises on purpose, in one tree.

    MmsearchError
    ├── UsageError          the call makes no sense: wrong argument, nothing to do        exit code 2
    │   └── ModelMismatch   the index was made by another model than the one asked for
    ├── DecodeError         one file cannot be read as what it claims to be               never ends a run
    ├── ModelError          a model cannot be loaded or gave unusable vectors             exit code 1
    └── StorageError        the index folder cannot be read or written                    exit code 1
        ├── NoIndex         there is no index where one was expected
        ├── IndexBusy       another process is writing to the index
        └── IndexDamaged    the index contradicts itself; `mmsearch verify` says where

A message says what happened, to which thing, and what to do next.
"""

from __future__ import annotations


class MmsearchError(Exception):
    """The root: catching it catches everything that is raised on purpose."""


class UsageError(MmsearchError):
    """The call makes no sense as it stands."""


class ModelMismatch(UsageError):
    """The index holds vectors of another model than the one asked for."""


class DecodeError(MmsearchError):
    """A file is not what it claims to be, or is too large; its message is the reason shown to the user."""


class ModelError(MmsearchError):
    """A model cannot be loaded, or its vectors are not finite unit rows."""


class StorageError(MmsearchError):
    """The index folder cannot be read or written."""


class NoIndex(StorageError):
    """There is no index in the folder."""


class IndexBusy(StorageError):
    """Another process holds the index for writing."""


class IndexDamaged(StorageError):
    """The index contradicts itself."""


def fault_of(error: Exception) -> str:
    """What is wrong with a file of which a decoder, or the system, raised ``error``: a line of the report."""
    if isinstance(error, DecodeError):
        return str(error)
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    return f"cannot be decoded: {type(error).__name__}: {error}"
