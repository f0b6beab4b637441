"""Which decoder reads large JPEGs at an eighth: libjpeg, and ``indexer.decode.jpeg_eighth`` once it pays and is ready.

Both give the same pixels, so it does not matter which of them read a file. The second saves some 16 ms for a picture of
12 megapixels, and takes a second to load, or several where it was not compiled before: it is loaded in a thread of its
own after so many large pictures that a run is likely to hold many more.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from indexer.decode.jpeg_header import Scan, read_scan
from indexer.later import Later

BEGIN_AFTER = 32
"""Large pictures after which the faster decoder is loaded: about as many as its loading costs."""

Decode = Callable[[Scan], "np.ndarray | None"]


def load() -> Decode | None:
    """The faster decoder, compiled.

    Raises:
        Exception: whatever numba raises where it is not there, or has no place to keep what it compiles.
    """
    from indexer.decode.jpeg_eighth import decode_eighth

    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "JPEG")
    scan = read_scan(file.getvalue())
    return decode_eighth if scan and decode_eighth(scan) is not None else None


class LargeJpegs:
    """Reads large JPEGs at an eighth, after some of them faster. May be used from several threads."""

    def __init__(self, begin_after: int = BEGIN_AFTER) -> None:
        self.faster: Later[Decode] = Later(load, begin_after, "mmsearch-jpeg")

    def eighth(self, data: bytes) -> np.ndarray | None:
        """``(ceil(H / 8), ceil(W / 8), 3)`` uint8 RGB, without the last axis if grey; None: libjpeg is to read it."""
        decode = self.faster.get()
        if decode is None:
            return None
        scan = read_scan(data)
        return decode(scan) if scan is not None else None
