"""What belongs to a picture in words: in its own file (XMP, IPTC, EXIF), beside it, and in a table of captions.

Words in the picture's file are pieces of that file and go where it goes. Words in another file, ``photo.jpg.txt``,
``photo.txt`` or a row of ``captions.tsv``, are pieces of *that* file, an ordinary text. Which picture they belong to is
not stored but worked out from names when a hit is shown (``picture_of``): nothing has to be undone when either
of the two files changes, moves or goes.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

from PIL import ExifTags, IptcImagePlugin
from PIL.ImageFile import ImageFile

from indexer.decode.image import open_image
from indexer.decode.passages import cut
from indexer.decode.text import Passage
from indexer.types import Asset, Span

_MAX_XMP = 2_000_000
_MAX_WORDS = 20_000
"""Characters of what a picture's file says; whoever writes more hides something else there."""
_MAX_ROW = 1_000_000
"""The line of a table up to which it is read again for the picture of a row."""
_PARENTS = 2
"""Names in a table are relative to its folder, or to one of so many above it."""

_DC = "{http://purl.org/dc/elements/1.1/}"
_PHOTOSHOP = "{http://ns.adobe.com/photoshop/1.0/}"
_DESCRIPTION = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
_NOISE = re.compile(
    r"(?i)^\W*(olympus digital camera|sony dsc|minolta digital camera|kodak digital still camera|samsung( camera)?"
    r"|(jd|hd|fh)?dc?im\d*|digital camera|default|untitled|image description|x-default|\d+|picasa|screenshot)\W*$"
)
"""What cameras and programs write where a person would describe the picture."""

_EXTENSIONS = ("jpg", "jpeg", "png", "heic", "webp", "avif", "tif", "tiff", "gif", "bmp", "heif", "jfif", "jpe", "dib")


def iter_captions(data: bytes, capacity: int, count_tokens: Callable[[str], int]) -> Iterator[Passage]:
    """The passages of what a picture's own file says of it: title and description, then keywords in one list."""
    for text in cut(embedded(data), capacity, count_tokens):
        yield Passage(text, Span(), "caption")


def embedded(data: bytes) -> list[str]:
    """Titles and descriptions, each once, then the keywords, parted by commas. Nothing in it is ever an error."""
    said: list[str] = []
    keywords: list[str] = []
    with contextlib.suppress(Exception), open_image(data) as picture:
        for find in (_xmp, _iptc, _exif, _chunks):
            with contextlib.suppress(Exception):  # broken metadata must not cost the picture, nor the rest of it
                find(picture, said, keywords)
    lines = [" ".join(text.split())[:_MAX_WORDS] for text in said]
    words = [" ".join(word.split())[:200] for word in keywords[:500]]
    unique = dict.fromkeys(line for line in lines if line and not _NOISE.match(line))
    listed = ", ".join(dict.fromkeys(word for word in words if word and not _NOISE.match(word)))
    return [*unique, *([listed] if listed else [])]


def _xmp(picture: ImageFile, said: list[str], keywords: list[str]) -> None:
    """dc:title, dc:description, photoshop:Headline and dc:subject (XMP 1, section 8.3).

    A packet with a document type is not read: XMP has none, and entities that grow are made there.
    """
    packet = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    if isinstance(packet, str):
        packet = packet.encode()
    start, end = packet.find(b"<"), packet.rfind(b">") + 1
    packet = packet[start:end]
    if not packet or len(packet) > _MAX_XMP or b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
        return
    root = ElementTree.fromstring(packet)
    for name in (f"{_DC}title", f"{_PHOTOSHOP}Headline", f"{_DC}description"):
        for element in root.iter(name):
            items = [item.text for item in element.iter() if item.text and item.text.strip()]
            said.extend(items[:1])  # the rest are the same in other languages
        said.extend(value for element in root.iter(_DESCRIPTION) if (value := element.get(name)))
    for element in root.iter(f"{_DC}subject"):
        keywords.extend(item.text for item in element.iter() if item.text and item.text.strip())


def _iptc(picture: ImageFile, said: list[str], keywords: list[str]) -> None:
    """Object name, headline and caption, and keywords: IPTC-IIM 4.2, records 2:05, 2:105, 2:120 and 2:25."""
    found = IptcImagePlugin.getiptcinfo(picture) or {}
    utf8 = found.get((1, 90)) == b"\x1b%G"
    for field, where in (((2, 5), said), ((2, 105), said), ((2, 120), said), ((2, 25), keywords)):
        values = found.get(field, [])
        for value in values if isinstance(values, list) else [values]:
            where.append(_decoded(value, utf8))


def _decoded(value: bytes, utf8: bool) -> str:
    """Many programs write UTF-8 without saying so."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("utf-8" if utf8 else "cp1252", "replace")


def _exif(picture: ImageFile, said: list[str], keywords: list[str]) -> None:
    """ImageDescription, and what Windows writes: XPTitle, XPSubject, XPComment and XPKeywords."""
    exif = picture.getexif()
    description = exif.get(ExifTags.Base.ImageDescription)
    if isinstance(description, str):
        # Pillow reads EXIF's text as Latin-1, in which most programs nevertheless write UTF-8.
        with contextlib.suppress(UnicodeError):
            description = description.encode("latin-1").decode("utf-8")
        said.append(description.strip("\0"))
    for tag in (ExifTags.Base.XPTitle, ExifTags.Base.XPSubject, ExifTags.Base.XPComment):
        said.append(_windows(exif.get(tag)))
    keywords.extend(_windows(exif.get(ExifTags.Base.XPKeywords)).split(";"))


def _windows(value: object) -> str:
    data = bytes(value) if isinstance(value, (bytes, tuple)) else b""
    return data.decode("utf-16-le", "ignore").strip("\0")


def _chunks(picture: ImageFile, said: list[str], keywords: list[str]) -> None:
    """The text chunks of a PNG: Title and Description."""
    for name in ("Title", "Description"):
        value = picture.info.get(name)
        if isinstance(value, str):
            said.append(value)


# --- beside the picture


def picture_of(asset: Asset, span: Span | None, known: Callable[[Sequence[str]], list[str]]) -> str | None:
    """The path of the picture that a passage is the caption of; None where it is not one.

    ``known`` says which of some paths are in the index. The name of a sidecar is that of its picture and ``.txt``, or
    that with the picture's extension left out. A row of a table belongs to the picture that one of its cells names, as
    long as the table is what it was when it was indexed.
    """
    stem, suffix = os.path.splitext(asset.path)
    candidates: list[str] = []
    if suffix.lower() == ".txt":
        if os.path.splitext(stem)[1][1:].lower() in _EXTENSIONS:
            candidates = [stem]
        else:
            candidates = [f"{stem}.{e}" for lower in _EXTENSIONS for e in (lower, lower.upper())]
    elif suffix.lower() in (".tsv", ".csv") and span is not None and span.first_line is not None:
        candidates = _named_in_row(asset, span.first_line)
    found = known(candidates) if candidates else []
    return found[0] if found else None


def _named_in_row(asset: Asset, line: int) -> list[str]:
    """Paths of the pictures that the row of a table may mean, the likelier before."""
    if line > _MAX_ROW:
        return []
    try:
        with Path(asset.path).open(encoding="utf-8-sig", errors="replace", newline="") as file:
            status = os.fstat(file.fileno())
            # A file that was stamped a moment before it was indexed has a nanosecond less in the catalogue.
            if status.st_size != asset.size or not 0 <= status.st_mtime_ns - asset.mtime_ns <= 1:
                return []
            row = next(islice(file, line - 1, line), "")
    except (OSError, ValueError):
        return []
    delimiter = (
        "\t" if asset.path.lower().endswith(".tsv") or "\t" in row else ";" if row.count(";") > row.count(",") else ","
    )
    cells = next(csv.reader(io.StringIO(row), delimiter=delimiter), [])
    names = [re.sub(r"#\d+$", "", cell.strip()) for cell in cells]  # Flickr8k numbers its captions
    names = [name for name in names if os.path.splitext(name)[1][1:].lower() in _EXTENSIONS and len(name) < 1000]
    folders = [os.path.dirname(asset.path)]
    for _ in range(_PARENTS):
        folders.append(os.path.dirname(folders[-1]))
    folders.insert(1, os.path.join(folders[0], "images"))
    return [os.path.normpath(os.path.join(folder, name)) for name in names for folder in folders]
