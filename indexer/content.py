"""How the content of a file is recognised: by a digest of all its bytes, 16 of them, kept in the catalogue."""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import BinaryIO, Protocol

_CHUNK = 1 << 20
_BYTES = 16


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> object: ...
    def digest(self) -> bytes: ...


class Digest(IntEnum):
    """The function by which an index knows the content of its files; the number is what its catalogue says.

    An index stays with the one it was made with: digests of two functions tell nothing of each other, and to replace
    them all would mean to read every file again.
    """

    BLAKE2B = 0
    """Of the indexes of format 3 and before."""
    BLAKE3 = 1
    """Some seven times as fast: of a photograph of 2.5 MB 0.7 ms of a core, where BLAKE2b takes 5."""

    def of(self, data: bytes) -> bytes:
        """The digest of ``data``."""
        hasher = self._hasher()
        hasher.update(data)
        return hasher.digest()[:_BYTES]

    def of_stream(self, file: BinaryIO) -> bytes:
        """The digest of everything that is left of ``file``."""
        hasher = self._hasher()
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
        return hasher.digest()[:_BYTES]

    def _hasher(self) -> _Hasher:
        """What bytes are put into. Of BLAKE3 any first bytes are a digest (its specification, section 2.6)."""
        if self is Digest.BLAKE2B:
            return hashlib.blake2b(digest_size=_BYTES)
        from blake3 import blake3  # a question, which asks only for the number, needs none

        return blake3()
