"""The headers of a JPEG, as far as ``indexer.decode.jpeg_eighth`` needs them (ITU-T T.81, annex B).

Only what nearly all cameras write is understood: baseline Huffman coding, one scan, grey or YCbCr, colour at full
resolution or halved. ``None`` for everything else and for anything irregular: libjpeg reads those, or says what is
wrong with them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

_SAMPLINGS = ((1, 1), (2, 1), (2, 2))
"""Blocks of Y, across and down, for one of Cb: 4:4:4, 4:2:2 and 4:2:0."""

_SOF0, _SOF1, _DHT, _SOS, _DQT, _DRI, _APP0, _APP14 = 0xC0, 0xC1, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE
_PASSED_OVER = frozenset(range(0xE0, 0xF0)) | {0xFE}  # APPn, COM


@dataclass(frozen=True, slots=True)
class Huffman:
    """A Huffman table as a file has it: 16 ``counts`` of the codes of each length, ``symbols`` in order."""

    counts: bytes
    symbols: bytes


@dataclass(frozen=True, slots=True)
class Component:
    """One of Y, Cb and Cr: blocks of an MCU across and down, quantisation ``(64,)`` in zigzag order, and its tables."""

    across: int
    down: int
    quantisation: np.ndarray
    dc: Huffman
    ac: Huffman


@dataclass(frozen=True, slots=True)
class Scan:
    """A whole picture: its size in pixels, its components, and what is coded.

    Attributes:
        interval: MCUs between two restart markers; all of them where there are none.
        intervals: how many times that.
        coded: the coded bytes with their stuffing and restart markers, and what follows them.
    """

    width: int
    height: int
    components: tuple[Component, ...]
    interval: int
    intervals: int
    coded: memoryview


@dataclass(slots=True)
class _Tables:
    quantisation: dict[int, np.ndarray] = field(default_factory=dict)
    huffman: dict[int, Huffman] = field(default_factory=dict)  # class * 16 + number
    frame: bytes = b""
    restart: int = 0
    jfif: bool = False
    adobe: bytes = b""


def read_scan(data: bytes) -> Scan | None:
    """The scan of a JPEG file, or None if it is of another kind or irregular."""
    try:
        return _read(data)
    except (LookupError, ValueError, struct.error):
        return None


def _read(data: bytes) -> Scan | None:
    tables = _Tables()
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        if length < 2 or len(body) != length - 2:
            return None
        at += 2 + length
        if marker == _SOS:
            return _scan(data, at, body, tables)
        if not _take(marker, body, tables):
            return None


def _take(marker: int, body: bytes, tables: _Tables) -> bool:
    """Note what one marker segment says; whether it belongs into a file of this kind."""
    if marker == _DQT:
        while body:
            deep, number = body[0] >> 4, body[0] & 15
            values = np.frombuffer(body, ">u2" if deep else "u1", 64, 1)
            tables.quantisation[number] = values.astype(np.int64)
            body = body[1 + 64 * (1 + (deep > 0)) :]
    elif marker == _DHT:
        while body:
            counts = body[1:17]
            end = 17 + sum(counts)
            if len(counts) < 16 or len(body) < end:
                return False
            tables.huffman[body[0]] = Huffman(counts, body[17:end])
            body = body[end:]
    elif marker in (_SOF0, _SOF1):
        if tables.frame:
            return False
        tables.frame = body
    elif marker == _DRI:
        (tables.restart,) = struct.unpack(">H", body)
    elif marker in _PASSED_OVER:
        tables.jfif |= marker == _APP0 and body.startswith(b"JFIF\0")
        if marker == _APP14 and body.startswith(b"Adobe"):
            tables.adobe = body
    else:
        return False
    return True


def _scan(data: bytes, start: int, body: bytes, tables: _Tables) -> Scan | None:
    precision, height, width, count = struct.unpack_from(">BHHB", tables.frame)
    of_frame = [tables.frame[at : at + 3] for at in range(6, 6 + 3 * count, 3)]
    of_scan = [body[at : at + 2] for at in range(1, 1 + 2 * body[0], 2)]
    ids = bytes(one[0] for one in of_frame)
    if precision != 8 or not width or not height or count not in (1, 3):
        return None
    if bytes(one[0] for one in of_scan) != ids or body[1 + 2 * count :] != b"\0\x3f\0":
        return None
    if count == 3 and not _is_ycbcr(ids, tables):
        return None
    components = []
    for (_, sampling, quantisation), (_, which) in zip(of_frame, of_scan, strict=True):
        across, down = (sampling >> 4, sampling & 15) if count == 3 else (1, 1)  # T.81, A.2.2: one is not interleaved
        dc, ac = tables.huffman[which >> 4], tables.huffman[16 + (which & 15)]
        components.append(Component(across, down, tables.quantisation[quantisation], dc, ac))
    sizes = [(one.across, one.down) for one in components]
    if sizes[0] not in _SAMPLINGS or any(size != (1, 1) for size in sizes[1:]):
        return None
    mcus = steps(width, 8 * sizes[0][0]) * steps(height, 8 * sizes[0][1])
    coded = memoryview(data)[start:]
    if mcus * len(components) > 4 * len(coded):  # a block takes two bits: no memory for a size that is only claimed
        return None
    interval = tables.restart or mcus
    return Scan(width, height, tuple(components), interval, steps(mcus, interval), coded)


def steps(value: int, step: int) -> int:
    """How many steps of that length cover ``value``."""
    return -(-value // step)


def _is_ycbcr(ids: bytes, tables: _Tables) -> bool:
    """Whether three components are surely Y, Cb and Cr, by the rules of libjpeg (``default_decompress_parms``)."""
    if tables.jfif:
        return True
    if tables.adobe:
        return tables.adobe[11:12] == b"\x01"
    return ids == b"\x01\x02\x03"
