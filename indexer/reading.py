"""Reading files ahead of the model: bytes, digest and decoded picture, in threads, whatever is wrong with a file."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import BinaryIO, TypeVar

import numpy as np

from indexer.content import Digest
from indexer.decode import (
    TEXT_EXTENSIONS,
    VIDEO_EXTENSIONS,
    Passage,
    decode_image,
    is_moving,
    is_picture,
    is_script,
    still,
    stream_suffix,
)
from indexer.decode.captions import embedded, iter_captions
from indexer.decode.image import MARGIN
from indexer.decode.likeness import likeness
from indexer.decode.ocr import MAX_SIDE, Ocr, read_picture
from indexer.discover import Found
from indexer.encoders import Encoder
from indexer.errors import DecodeError, fault_of
from indexer.lanes import one_core
from indexer.records import Likeness
from indexer.types import Modality, Span

IMAGE_BATCH = 32
"""Pictures that the model is given at once; reading stays twice as many ahead."""
MAX_IMAGE_BYTES = 300_000_000
"""A picture file above this is not read: two of them decoding at once must fit beside the model."""

_HEAD = 4096
"""Bytes by which TypeScript is told from a transport stream: no packet of one is without a control character."""

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Read:
    """A file as a reading thread leaves it: ``unwanted``, ``prepared``, ``fault`` or ``vanished``, or none for a text.

    ``texts`` are those that belong to a picture: what its file says of it, and what was read in it.
    """

    found: Found
    digest: bytes = b""
    taken: float | None = None
    likeness: Likeness | None = None
    unwanted: bool = False
    prepared: np.ndarray | None = None  # (C, H, W)
    texts: Sequence[Passage] = ()
    fault: str | None = None
    vanished: bool = False


def read_ahead(read: Callable[[T], R], todo: Iterable[T]) -> Generator[R, None, None]:
    """``read`` of everything in ``todo``, in order, by threads that stay ahead of whoever takes the results.

    Closing it stops the threads.
    """
    threads = reading_threads()
    ahead = IMAGE_BATCH * 2 + threads
    # What a model's own transform computes with torch would else wait for a core at every step.
    pool = ThreadPoolExecutor(threads, thread_name_prefix="mmsearch-read", initializer=one_core)
    try:
        waiting: deque[Future[R]] = deque()
        for one in todo:
            waiting.append(pool.submit(read, one))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def reading_threads() -> int:
    """How many threads read ahead."""
    return min(4, os.cpu_count() or 1)


def read_file(
    found: Found,
    encoder: Encoder,
    wanted: Callable[[bytes], bool],
    max_text_bytes: int,
    by: Digest,
    ocr: Ocr | None = None,
) -> Read:
    """Read one file to the point where the model takes over; runs in a thread and raises nothing for a bad file.

    Of a file whose content is not ``wanted``, ``by`` its digest, nothing is decoded.
    """
    try:
        for _ in range(2):  # a file that changes under our eyes gets a second look
            read = _read_once(found, encoder, wanted, max_text_bytes, by, ocr)
            if read is not None:
                return read
            now = os.stat(found.path)
            found = replace(found, size=now.st_size, mtime_ns=now.st_mtime_ns)
        return Read(found, fault="it keeps changing while it is read; the next run tries again")
    except FileNotFoundError:
        return Read(found, vanished=True)
    except Exception as exc:  # whatever a decoder does with a hostile file, the other files are not its business
        return Read(found, fault=fault_of(exc))


def read_still(found: Found, span: Span, encoder: Encoder, digest: bytes, by: Digest) -> Read:
    """Read one picture out of a file of many pieces, as ``read_file`` does; ``unwanted`` if the file is another one.

    A file whose size and time are as ``found`` says is not read as a whole to compare it with ``digest``.
    """
    try:
        with open_regular(found.path) as file:
            now = os.fstat(file.fileno())
            # A file that was stamped a moment before it was indexed has a nanosecond less in the catalogue.
            same = now.st_size == found.size and 0 <= now.st_mtime_ns - found.mtime_ns <= 1
            if not same and by.of_stream(file) != digest:
                return Read(found, unwanted=True)
        image = still(found.path, stream_suffix(found.path, found.modality), span, encoder.image_size)
        return Read(found, digest, prepared=encoder.prepare(image))
    except FileNotFoundError:
        return Read(found, vanished=True)
    except Exception as exc:  # whatever a decoder does with a hostile file, the other files are not its business
        return Read(found, fault=fault_of(exc))


def _read_once(
    found: Found,
    encoder: Encoder,
    wanted: Callable[[bytes], bool],
    max_text_bytes: int,
    by: Digest,
    ocr: Ocr | None,
) -> Read | None:
    """None if the file changed meanwhile."""
    with open_regular(found.path) as file:
        before = os.fstat(file.fileno())
        found = replace(found, size=before.st_size, mtime_ns=before.st_mtime_ns)
        found = _by_content(found, file)
        _check_size(found, max_text_bytes)
        if found.modality is Modality.IMAGE:
            data = file.read()
            digest = by.of(data)
        else:
            data = b""
            digest = by.of_stream(file)
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            return None
    if not wanted(digest):
        return Read(found, digest, unwanted=True)
    if found.modality is not Modality.IMAGE:
        return Read(found, digest)
    if data[:3] in (b"GIF", b"RIF"):
        from indexer.decode.animation import is_animated  # a library of videos that most folders never need

        if is_animated(data):
            return Read(replace(found, modality=Modality.VIDEO), digest)
    said: list[str] = []
    decoded = decode_image(data, size=encoder.image_size, look=lambda picture: said.extend(embedded(picture)))
    texts = iter_captions(said, encoder.max_tokens, encoder.count_tokens)
    if ocr is not None:
        # Once more, larger: letters are lost long before a face is.
        large = decode_image(data, size=math.ceil(MAX_SIDE / MARGIN)).image
        texts = chain(texts, read_picture(ocr, large, encoder.max_tokens, encoder.count_tokens))
    prepared = encoder.prepare(decoded.image)
    return Read(found, digest, decoded.taken, likeness(decoded), prepared=prepared, texts=tuple(texts))


def _by_content(found: Found, file: BinaryIO) -> Found:
    """A picture that is called a video, and a video that is called a picture, are what they are."""
    extension = os.path.splitext(found.path)[1][1:].lower()
    if found.modality is not Modality.IMAGE and extension not in VIDEO_EXTENSIONS:
        return found
    head = file.read(64)
    file.seek(0)
    if is_picture(head):
        return replace(found, modality=Modality.IMAGE)
    return replace(found, modality=Modality.VIDEO) if is_moving(head) else found


def _check_size(found: Found, max_text_bytes: int) -> None:
    if found.size == 0:
        raise DecodeError("the file is empty")
    if found.modality is Modality.IMAGE:
        if found.size > MAX_IMAGE_BYTES:
            raise DecodeError(f"is {_megabytes(found.size)}; pictures above {_megabytes(MAX_IMAGE_BYTES)} are not read")
    elif os.path.splitext(found.path)[1][1:].lower() in TEXT_EXTENSIONS and found.size > max_text_bytes:
        raise DecodeError(
            f"is {_megabytes(found.size)} of text, above the limit of {_megabytes(max_text_bytes)}; "
            "--max-text-mb raises it"
        )


def open_regular(path: str) -> BinaryIO:
    """Open a file for reading, unless it turned into something that reading would block on."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


def is_script_file(path: str) -> bool:
    """Whether a file that may be a video by its name is the source of a program; see ``is_script``.

    What cannot be read is none: it is a video that cannot be read.
    """
    if not is_script(path, b" "):
        return False
    try:
        with open_regular(path) as file:
            return is_script(path, file.read(_HEAD))
    except OSError:
        return False


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
