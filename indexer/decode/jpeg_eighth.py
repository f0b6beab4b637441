"""A baseline JPEG at an eighth of its size, 1.8 times as fast as libjpeg reads it, to the same bit.

At an eighth one pixel is left of a block of 8 x 8, its mean, which is the first of the block's 64 coefficients. libjpeg
decodes the Huffman codes of the other 63 one after the other, which is nearly all of its time. Here they are passed
over several at a time: a table says of the next bits how many whole coefficients they hold, and how many bits those
take. Of halved colours libjpeg makes 2 x 2 pixels of a block; their coefficients, few, are decoded.

Sources: ITU-T T.81, F.2.2 (sequential decoding) and A.3.3 (the transform); the integer arithmetic is that of libjpeg,
so that its result is the twin to test against.

This module needs numba, an optional package, and its import and first call take a second, or several where nothing was
compiled before.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

from indexer.decode.jpeg_header import Huffman, Scan, steps

_FAST = 13
"""Bits that are looked up at a time: 16 KB for a table, so that two stay in the cache beside each other."""
_SLOW = 34 + 256
"""Numbers of a table for codes that are longer."""
_PAST_THE_END = 4096
"""Bytes of zeros after the last one: more than the 6 blocks of 64 coefficients of 27 bits that are read unasked."""
_AT_ONCE = np.uint64(128)
_CODE, _SIZE = 31, 5  # an entry of a table of codes: length, then symbol
_BITS, _ADVANCE, _ENDS, _ALONE = 255, 8, 128, 0xFF00  # an entry of a table of skips

_LARGEST = 2047
"""More than a coefficient of 8-bit samples can be (T.81, table F.1); beyond it decoders differ."""

_ZIGZAG = np.array(
    sorted(range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8)), np.int64
)
"""Place in a block, row by row, of each coefficient as they are coded (T.81, figure A.6)."""


def decode_eighth(scan: Scan) -> np.ndarray | None:
    """``(ceil(height / 8), ceil(width / 8), 3)`` uint8 RGB, or without the last axis of a grey picture.

    None if a table or anything in the coded bytes is irregular.
    """
    try:
        tables = _tables(tuple(one.dc for one in scan.components), tuple(one.ac for one in scan.components))
    except ValueError:
        return None
    first, *rest = scan.components
    down = steps(scan.height, 8 * first.down)
    across = steps(scan.width, 8 * first.across)
    doubled = bool(rest) and first.across == first.down == 2
    planes = np.empty((len(scan.components), down * first.down, across * first.across), np.uint8)
    raw = np.frombuffer(scan.coded, np.uint8)
    coded = np.empty(len(raw) + _PAST_THE_END, np.uint8)
    begins, ends = np.zeros(scan.intervals, np.int64), np.zeros(scan.intervals, np.int64)
    size = _unstuff(raw, coded, begins, ends)
    if not size:
        return None
    sound = _decode(
        coded[: size + _PAST_THE_END],
        begins,
        ends,
        scan.interval,
        (down, across),
        (first.down, first.across),
        doubled,
        tables,
        np.concatenate([one.quantisation for one in scan.components]),
        planes,
    )
    if not sound:
        return None
    height, width = steps(scan.height, 8), steps(scan.width, 8)
    if not rest:
        return planes[0, :height, :width]
    rgb = np.empty((height, width, 3), np.uint8)
    _colour(planes, 0 if doubled else first.down - 1, 0 if doubled else first.across - 1, rgb)
    return rgb


@lru_cache(maxsize=8)
def _tables(dc: tuple[Huffman, ...], ac: tuple[Huffman, ...]) -> tuple[np.ndarray, ...]:
    """What ``_decode`` looks up, in its order; kept, as most pictures of a camera have the same.

    Raises ValueError: more codes than there can be.
    """
    dc_codes, ac_codes = [_codes(one) for one in dc], [_codes(one) for one in ac]
    return (
        _differences(dc_codes[0][0]),
        np.concatenate([fast for fast, _ in dc_codes]),
        np.concatenate([slow for _, slow in dc_codes]),
        _skips(ac_codes[0][0]),
        np.concatenate([fast for fast, _ in ac_codes]),
        np.concatenate([slow for _, slow in ac_codes]),
    )


def _codes(table: Huffman) -> tuple[np.ndarray, np.ndarray]:
    """What decodes one symbol: by the next ``_FAST`` bits, and, where the code is longer, by canonical order.

    The second has, for each length, the largest code (-1: none) and what to add to a code to get the place of its
    symbol, and then the symbols themselves, ``(_SLOW,)``.

    Raises ValueError: more codes than there can be.
    """
    if len(table.symbols) > 256:
        raise ValueError("more symbols than there are")
    fast = np.zeros(1 << _FAST, np.uint16)
    slow = np.zeros(_SLOW, np.int64)
    slow[:17] = -1
    symbols = np.frombuffer(table.symbols, np.uint8).astype(np.uint16)
    slow[34 : 34 + len(symbols)] = symbols
    code = place = 0
    for length, count in enumerate(table.counts, 1):
        if code + count > 1 << length:
            raise ValueError("more codes than there can be")
        if count:
            slow[length], slow[17 + length] = code + count - 1, place - code
        if length <= _FAST:
            each = symbols[place : place + count] << _SIZE | length
            begin = code << (_FAST - length)
            fast[begin : begin + (count << (_FAST - length))] = np.repeat(each, 1 << (_FAST - length))
        code, place = (code + count) << 1, place + count
    return fast, slow


@njit(nogil=True, cache=True)
def _skips(fast):  # type: ignore[no-untyped-def]
    """The table of skips of a table of codes of AC coefficients: as many whole ones as ``_FAST`` bits hold.

    An entry is the coefficients times 256 plus the bits, or ``_ALONE`` where not one fits. The end of a block counts as
    one coefficient, as it is only coded where one is left, and as ``_ENDS`` more.
    """
    table = np.empty(1 << _FAST, np.uint16)
    for index in range(1 << _FAST):
        used, advance = 0, 0
        while advance < _ENDS:
            entry = np.int64(fast[(index << used) & ((1 << _FAST) - 1)])
            symbol = entry >> _SIZE
            bits = (entry & _CODE) + (symbol & 15)
            if entry == 0 or used + bits > _FAST:
                break
            if symbol & 15 or symbol == 0xF0:
                advance = min(advance + (symbol >> 4) + 1, 65)
            elif symbol == 0:
                advance += 1 + _ENDS
            else:
                break
            used += bits
        table[index] = advance << _ADVANCE | used if used else _ALONE
    return table


@njit(nogil=True, cache=True)
def _differences(fast):  # type: ignore[no-untyped-def]
    """A table of codes of DC coefficients as one of their values: 256 times the value plus the bits, 0 if longer."""
    table = np.zeros(1 << _FAST, np.int32)
    for index in range(1 << _FAST):
        entry = np.int64(fast[index])
        length, size = entry & _CODE, entry >> _SIZE
        if entry and length + size <= _FAST:
            value = _signed(np.uint64(index << length) << np.uint64(64 - _FAST), size)
            table[index] = value * 256 + length + size
    return table


@njit(nogil=True, cache=True)
def _unstuff(raw, coded, begins, ends):  # type: ignore[no-untyped-def]
    """Copy what is coded without stuffed zeros and markers; how many bytes that makes, 0 if it is irregular.

    Notes where each interval begins and ends, in bits. ``coded`` is ``_PAST_THE_END`` longer than ``raw``; so many
    zeros follow what is coded.
    """
    at, to, part, size = np.uint64(0), np.uint64(0), 0, np.uint64(len(raw))
    while at < size:
        before_ff = np.uint8(_AT_ONCE)
        if at + _AT_ONCE <= size:  # what is copied beyond an FF is overwritten
            for i in range(_AT_ONCE):
                byte = raw[at + i]
                coded[to + i] = byte
                before_ff = min(before_ff, np.uint8(i) if byte == 0xFF else np.uint8(_AT_ONCE))
        else:
            coded[to] = raw[at]
            before_ff = np.uint8(raw[at] != 0xFF)
        at += np.uint64(before_ff)
        to += np.uint64(before_ff)
        if at + np.uint64(1) >= size:
            return 0
        if raw[at] != 0xFF:
            continue
        marker = raw[at + np.uint64(1)]
        at += np.uint64(2)
        if marker == 0:  # a stuffed zero follows an FF that is meant
            coded[to] = 0xFF
            to += np.uint64(1)
            continue
        ends[part] = 8 * np.int64(to)
        part += 1
        if part == len(begins):
            for i in range(np.uint64(_PAST_THE_END)):
                coded[to + i] = 0
            return np.int64(to) if marker == 0xD9 else 0
        if marker != 0xD0 + (part - 1) % 8:
            return 0
        begins[part] = 8 * np.int64(to)
    return 0


@njit(nogil=True, cache=True)
def _ahead(coded, at):  # type: ignore[no-untyped-def]
    """The next 64 bits from ``at`` on, of which the last 7 may be zeros instead."""
    byte = np.uint64(at) >> np.uint64(3)
    bits = np.uint64(0)
    for i in range(np.uint64(8)):  # one load, by the compiler
        bits = bits << np.uint64(8) | np.uint64(coded[byte + i])
    return bits << np.uint64(at & 7)


@njit(nogil=True, cache=True)
def _symbol(fast, slow, component, ahead):  # type: ignore[no-untyped-def]
    """Length and symbol of the next code; 0 and 0 if it is none."""
    entry = np.int64(fast[np.uint64(component << _FAST) | (ahead >> np.uint64(64 - _FAST))])
    if entry:
        return entry & _CODE, entry >> _SIZE
    begin = component * _SLOW
    for length in range(_FAST + 1, 17):
        code = np.int64(ahead >> np.uint64(64 - length))
        if code <= slow[begin + length]:
            return length, slow[begin + 34 + slow[begin + 17 + length] + code]
    return 0, 0


@njit(nogil=True, cache=True)
def _signed(ahead, size):  # type: ignore[no-untyped-def]
    """The number that the next ``size`` bits stand for (T.81, F.2.2.1, EXTEND)."""
    if size == 0:
        return 0
    value = np.int64(ahead >> np.uint64(64 - size))
    return value if value >> (size - 1) else value - (1 << size) + 1


@njit(nogil=True, cache=True)
def _pixel(value):  # type: ignore[no-untyped-def]
    return min(max(value + 128, 0), 255)


@njit(nogil=True, cache=True)
def _odd(block, at, step):  # type: ignore[no-untyped-def]
    return (
        29692 * block[at + step]
        - 10426 * block[at + 3 * step]
        + 6967 * block[at + 5 * step]
        - 5906 * block[at + 7 * step]
    )


@njit(nogil=True, cache=True)
def _two_by_two(block, planes, component, y, x):  # type: ignore[no-untyped-def]
    """A block ``(64,)`` of coefficients as four pixels (jidctred.c of libjpeg, ``jpeg_idct_2x2``); clears the block."""
    for column in (0, 1, 3, 5, 7):
        even, odd = block[column] << 15, _odd(block, column, 8)
        block[column] = (even + odd + (1 << 12)) >> 13
        block[8 + column] = (even - odd + (1 << 12)) >> 13
    for row in range(2):
        even, odd = block[8 * row] << 15, _odd(block, 8 * row, 1)
        planes[component, y + row, x] = _pixel((even + odd + (1 << 19)) >> 20)
        planes[component, y + row, x + 1] = _pixel((even - odd + (1 << 19)) >> 20)
    for i in range(64):
        block[i] = 0


@njit(nogil=True, cache=True)
def _decode(  # type: ignore[no-untyped-def]
    coded,
    begins,
    ends,
    interval,
    mcus,
    sampling,
    doubled,
    tables,
    quantisation,
    planes,
):
    """Fill the planes; whether the coded bytes are regular. Never reads beyond ``coded``.

    In one piece because calls between the two inner loops, a few nanoseconds each, would double its time.
    """
    differences, dc_fast, dc_slow, skips, ac_fast, ac_slow = tables
    limit = 8 * (len(coded) - _PAST_THE_END)
    block = np.zeros(64, np.int64)
    at, part, left, light, blue, red = 0, 0, 0, 0, 0, 0
    for y in range(mcus[0]):
        for x in range(mcus[1]):
            if left == 0:
                if part and not 0 <= ends[part - 1] - at < 8:
                    return False
                at, left, light, blue, red = begins[part], interval, 0, 0, 0
                part += 1
            left -= 1
            if at > limit:
                return False
            for number in range(sampling[0] * sampling[1]):
                ahead = _ahead(coded, at)
                entry = np.int64(differences[ahead >> np.uint64(64 - _FAST)])
                if entry:
                    light += entry >> 8
                    at += entry & _BITS
                    ahead <<= np.uint64(entry & _BITS)
                else:
                    length, size = _symbol(dc_fast, dc_slow, 0, ahead)
                    if length == 0 or size > 11:
                        return False
                    light += _signed(ahead << np.uint64(length), size)
                    at += length + size
                    ahead = _ahead(coded, at)
                mean = light * quantisation[0]
                if not -_LARGEST <= mean <= _LARGEST:
                    return False
                row, column = (number >> 1, number & 1) if sampling[1] == 2 else (number, 0)
                planes[0, y * sampling[0] + row, x * sampling[1] + column] = _pixel((mean + 4) >> 3)
                k = 1
                while True:
                    for _ in range(3):  # after 13 bits, 57 are enough for three looks
                        entry = np.int64(skips[ahead >> np.uint64(64 - _FAST)])
                        k += entry >> _ADVANCE
                        if k >= 64:
                            break
                        at += entry & _BITS
                        ahead <<= np.uint64(entry & _BITS)
                    if k < 64:
                        ahead = _ahead(coded, at)
                        continue
                    if k == 64 or (entry < _ALONE and _ENDS < k <= _ENDS + 64):
                        at += entry & _BITS
                        break
                    k -= entry >> _ADVANCE  # they reach beyond the block, or the next one is too long for the table
                    length, symbol = _symbol(ac_fast, ac_slow, 0, ahead)
                    size = symbol & 15
                    if length == 0 or (size == 0 and symbol != 0 and symbol != 0xF0):
                        return False
                    at += length + size
                    k += (symbol >> 4) + 1
                    if symbol == 0 or k == 64:
                        break
                    if k > 64:
                        return False
                    ahead = _ahead(coded, at)
            for component in range(1, len(planes)):
                ahead = _ahead(coded, at)
                length, size = _symbol(dc_fast, dc_slow, component, ahead)
                if length == 0 or size > 11:
                    return False
                difference = _signed(ahead << np.uint64(length), size)
                at += length + size
                if component == 1:
                    blue += difference
                    mean = blue * quantisation[64]
                else:
                    red += difference
                    mean = red * quantisation[128]
                if not -_LARGEST <= mean <= _LARGEST:
                    return False
                k, some = 1, False
                while k < 64:
                    ahead = _ahead(coded, at)
                    length, symbol = _symbol(ac_fast, ac_slow, component, ahead)
                    size = symbol & 15
                    if length == 0 or (size == 0 and symbol != 0 and symbol != 0xF0):
                        return False
                    at += length + size
                    if symbol == 0:
                        break
                    k += (symbol >> 4) + 1
                    if k > 64:
                        return False
                    if size and doubled:
                        value = _signed(ahead << np.uint64(length), size) * quantisation[64 * component + k - 1]
                        if not -_LARGEST <= value <= _LARGEST:
                            return False
                        block[_ZIGZAG[k - 1]] = value
                        some = True
                if some:
                    block[0] = mean
                    _two_by_two(block, planes, component, 2 * y, 2 * x)
                elif doubled:
                    value = _pixel((mean + 4) >> 3)
                    for i in range(4):
                        planes[component, 2 * y + (i >> 1), 2 * x + (i & 1)] = value
                else:
                    planes[component, y, x] = _pixel((mean + 4) >> 3)
    return part == len(begins) and 0 <= ends[part - 1] - at < 8


@njit(nogil=True, cache=True)
def _colour(planes, down, across, rgb):  # type: ignore[no-untyped-def]
    """YCbCr to RGB, colours as many times halved (jdcolor.c of libjpeg, in whole numbers)."""
    for y in range(rgb.shape[0]):
        for x in range(rgb.shape[1]):
            light = np.int32(planes[0, y, x])
            blue = np.int32(planes[1, y >> down, x >> across]) - np.int32(128)
            red = np.int32(planes[2, y >> down, x >> across]) - np.int32(128)
            rgb[y, x, 0] = min(max(light + ((91881 * red + 32768) >> 16), 0), 255)
            rgb[y, x, 1] = min(max(light + ((-22554 * blue - 46802 * red + 32768) >> 16), 0), 255)
            rgb[y, x, 2] = min(max(light + ((116130 * blue + 32768) >> 16), 0), 255)
