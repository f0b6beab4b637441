"""A zip file that a stranger made: how much it unpacks to is known and limited before anything is unpacked."""

from __future__ import annotations

import zipfile
import zlib
from typing import BinaryIO

from indexer.errors import DecodeError

MAX_MEMBERS = 20_000
MAX_MARKUP = 64_000_000
"""Bytes of a single part that is parsed, or of all parts of markup together where a library parses them all."""
MAX_UNPACKED = 1_000_000_000
_MARKUP = (".xml", ".rels")
_COMPOUND = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # what encrypted Office files are kept in, and those before 2007 were


class Archive:
    """The members of a zip file. Use as a context.

    Args:
        file: it stands anywhere.
        what: what it should be, for messages: ``a Word document``.

    Raises DecodeError: no zip, damaged, encrypted, or beyond all measure.
    """

    def __init__(self, file: BinaryIO, what: str) -> None:
        file.seek(0)
        head = file.read(8)
        if head == _COMPOUND:
            raise DecodeError("it is encrypted, or from before Office 2007; save it again without a password")
        if not head.startswith(b"PK"):
            raise DecodeError(f"not {what} by its first bytes")
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as exc:
            raise DecodeError(f"{what} that is damaged or cut short: {exc}") from exc
        self._members = {info.filename: info for info in self._zip.infolist()}
        if len(self._members) > MAX_MEMBERS:
            raise DecodeError(f"it holds {len(self._members):,} files; the limit is {MAX_MEMBERS:,}")
        unpacked = sum(info.file_size for info in self._members.values())
        if unpacked > MAX_UNPACKED:
            raise DecodeError(f"it would unpack to {unpacked // 1_000_000:,} MB; the limit is 1,000 MB")
        if any(info.flag_bits & 1 for info in self._members.values()):
            raise DecodeError("it is encrypted")

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def check_markup(self) -> None:
        """Raises DecodeError: all its markup together is more than should be parsed at once."""
        size = sum(info.file_size for name, info in self._members.items() if name.lower().endswith(_MARKUP))
        if size > MAX_MARKUP:
            raise DecodeError(f"its text takes {size // 1_000_000:,} MB of markup; the limit is 64 MB")

    def read(self, name: str, *, limit: int = MAX_MARKUP) -> bytes:
        """The content of a member. Raises DecodeError: not there, larger than ``limit``, or damaged."""
        info = self._members.get(name)
        if info is None:
            raise DecodeError(f"it is damaged: {name} is missing")
        if info.file_size > limit:
            raise DecodeError(f"{name} unpacks to {info.file_size // 1_000_000:,} MB, which is too large")
        try:
            return self._zip.read(name)  # never more than the size that it states
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as exc:
            raise DecodeError(f"it is damaged: {name}: {exc}") from exc
