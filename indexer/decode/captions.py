"""What a picture's own file says of it in words: XMP, IPTC, EXIF. They are pieces of that file and go where it goes.

What stands beside it is in ``indexer.beside``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from xml.etree import ElementTree

from PIL import ExifTags, IptcImagePlugin
from PIL.ImageFile import ImageFile

from indexer.decode.passages import cut
from indexer.decode.text import Passage
from indexer.types import Span

_MAX_XMP = 2_000_000
_MAX_WORDS = 20_000
"""Characters of what a picture's file says; whoever writes more hides something else there."""

_DC = "{http://purl.org/dc/elements/1.1/}"
_PHOTOSHOP = "{http://ns.adobe.com/photoshop/1.0/}"
_DESCRIPTION = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
_NOISE = re.compile(
    r"(?i)^\W*(olympus digital camera|sony dsc|minolta digital camera|kodak digital still camera|samsung( camera)?"
    r"|(jd|hd|fh)?dc?im\d*|digital camera|default|untitled|image description|x-default|\d+|picasa|screenshot)\W*$"
)
"""What cameras and programs write where a person would describe the picture."""


def iter_captions(lines: Sequence[str], capacity: int, count_tokens: Callable[[str], int]) -> Iterator[Passage]:
    """The passages of what a picture's own file says of it, which are ``lines`` of ``embedded``."""
    for text in cut(lines, capacity, count_tokens):
        yield Passage(text, Span(), "caption")


def embedded(picture: ImageFile) -> list[str]:
    """Titles and descriptions, each once, then the keywords, parted by commas. Nothing in it is ever an error."""
    said: list[str] = []
    keywords: list[str] = []
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
