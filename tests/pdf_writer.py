"""A small writer of PDF files, so that a test or a benchmark knows every word on a page and where it stands.

    >>> data = pdf([[words(72, 720, "Hello")], [rectangle(100, 100, 200, 50, (1, 0, 0))]])

makes a document of two pages. Text is set in Helvetica, whose letters are about half as wide as high.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from PIL import Image

WIDTH, HEIGHT = 595.0, 842.0
"""A4, in points."""

Part = str | Image.Image


def words(x: float, y: float, text: str, size: float = 11) -> str:
    """A line of text whose baseline begins at ``(x, y)``, in points from the lower left corner of the page."""
    escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return f"BT /F {size:g} Tf 0 g {x:g} {y:g} Td ({escaped}) Tj ET"


def lines(x: float, y: float, texts: Sequence[str], size: float = 11, step: float = 14) -> str:
    """Lines below each other."""
    return "\n".join(words(x, y - i * step, text, size) for i, text in enumerate(texts))


def rectangle(x: float, y: float, width: float, height: float, colour: tuple[float, float, float]) -> str:
    """A filled rectangle."""
    return "{:g} {:g} {:g} rg {:g} {:g} {:g} {:g} re f".format(*colour, x, y, width, height)


def pdf(pages: Sequence[Sequence[Part]], size: tuple[float, float] = (WIDTH, HEIGHT)) -> bytes:
    """A document. A part of a page is drawing instructions, or a picture that fills the page."""
    objects: list[bytes] = [
        b"",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    kids: list[int] = []
    for page in pages:
        content, pictures = [], []
        for part in page:
            if isinstance(part, str):
                content.append(part)
                continue
            part = part.convert("RGB")
            data = zlib.compress(part.tobytes(), 6)
            head = f"/Type /XObject /Subtype /Image /Width {part.width} /Height {part.height} /ColorSpace /DeviceRGB"
            objects.append(_stream(data, f"{head} /BitsPerComponent 8 /Filter /FlateDecode"))
            pictures.append(f"/I{len(objects)} {len(objects)} 0 R")
            content.append(f"q {size[0]:g} 0 0 {size[1]:g} 0 0 cm /I{len(objects)} Do Q")
        objects.append(_stream("\n".join(content).encode("cp1252"), ""))
        resources = f"<< /Font << /F 3 0 R >> /XObject << {' '.join(pictures)} >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size[0]:g} {size[1]:g}] /Resources {resources} "
            f"/Contents {len(objects)} 0 R >>".encode()
        )
        kids.append(len(objects))
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] >>".encode()
    out = bytearray(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def _stream(data: bytes, head: str) -> bytes:
    return f"<< {head} /Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream"
