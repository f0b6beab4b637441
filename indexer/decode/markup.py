"""HTML and EPUB: the words that a reader would see, block by block, without scripts, styles and entities from outside.

This is the only module that knows lxml.
"""

from __future__ import annotations

import codecs
import posixpath
import re
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import unquote

from indexer.decode.archive import Archive
from indexer.decode.passages import of_pages
from indexer.decode.streams import Source
from indexer.decode.text import Passage
from indexer.errors import DecodeError
from indexer.extras import needs

MAX_HTML = 32_000_000
"""Bytes of one page, or of one chapter, that are parsed."""
_HEAD = 4096  # bytes among which a page names its encoding

_HIDDEN = frozenset({"head", "iframe", "math", "noscript", "object", "script", "style", "svg", "template"})
_INLINE = frozenset(
    {
        *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i"),
        *("ins", "kbd", "label", "mark", "q", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup"),
        *("time", "tt", "u", "var", "wbr"),
    }
)
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_LATIN = frozenset({"ascii", "iso-8859-1", "iso8859-1", "latin-1", "latin1", "us-ascii"})
_CELLS = frozenset({"td", "th"})


def decode_html(source: Source) -> Iterator[Passage]:
    """The passages of a page, its title first.

    Raises DecodeError: the extra is not there, too large, or no words.
    """
    data = source.file.read(MAX_HTML + 1)
    if len(data) > MAX_HTML:
        raise DecodeError(f"a page of more than {MAX_HTML // 1_000_000} MB is not parsed")
    yield from of_pages(source, [(None, list(_html(data)))])


def decode_epub(source: Source) -> Iterator[Passage]:
    """The passages of a book, chapter by chapter, in the order in which it is read; ``page`` counts its chapters.

    Raises DecodeError: the extra is not there, not a book, encrypted, damaged, or no words.
    """
    yield from of_pages(source, enumerate(_chapters(source.file), 1))


# --- HTML


def encoding_of(data: bytes) -> str:
    """The encoding of a page: its byte order mark, what it says, UTF-8 if it can be, else what it most looks like."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    named = re.search(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]{2,40})""", data[:_HEAD])
    if named:
        name = named[1].decode("ascii").lower()
        try:
            codec = codecs.lookup("cp1252" if name in _LATIN else name)  # as browsers have it
            if not codec.name.startswith(("utf-16", "utf-32")):  # it could be read so far: it is neither
                data[:_HEAD].decode(codec.name, "ignore")
                return codec.name
        except (LookupError, UnicodeError):
            pass  # a name that is none
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        with needs("documents", "HTML"):
            from charset_normalizer import from_bytes
        best = from_bytes(data[:100_000], cp_exclusion=["utf_7"]).best()
        return best.encoding if best else "cp1252"


def _html(data: bytes) -> Iterator[str]:
    """The paragraphs of a page."""
    with needs("documents", "HTML"):
        from lxml import etree
    text = data.decode(encoding_of(data), "replace").replace("\0", " ")
    # What the page says of its encoding is true of its bytes, not of this text.
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    parser = etree.HTMLParser(no_network=True, remove_comments=True, remove_pis=True, recover=True, encoding="utf-8")
    try:
        parser.feed(text.encode("utf-8", "replace"))
        root = parser.close()
    except (etree.LxmlError, ValueError) as exc:
        raise DecodeError(f"it is not HTML: {exc}") from exc
    if root is not None:
        yield from _blocks(root)


def _blocks(root: Any) -> Iterator[str]:
    """The text of each block, in order, without recursion: a hostile page is nested a thousand deep.

    The cells of a row are parted by commas. Alternative texts of pictures belong to what is seen.
    """
    from lxml import etree

    title = root.findtext(".//title")
    if title and title.strip():
        yield " ".join(title.split())
    parts: list[str] = []
    walker = etree.iterwalk(root, events=("start", "end"))
    for event, element in walker:
        tag = element.tag.rpartition("}")[2].lower()
        if tag in _HIDDEN:
            walker.skip_subtree()
        elif tag in _CELLS:
            parts += ["\t"] if event == "end" else []
        elif tag not in _INLINE and tag != "img":
            yield from _ended(parts)
        if event == "start" and tag not in _HIDDEN:
            if tag == "img" and element.get("alt", "").strip():
                parts.append(f" {element.get('alt')} ")
            parts.append(element.text or "")
        elif event == "end" and element is not root:
            parts.append(element.tail or "")
    yield from _ended(parts)


def _ended(parts: list[str]) -> Iterator[str]:
    cells = [" ".join(cell.split()) for cell in "".join(parts).split("\t")] if any(p == "\t" for p in parts) else []
    text = ", ".join(filter(None, cells)) if cells else " ".join("".join(parts).split())
    parts.clear()
    if text:
        yield text


# --- EPUB


def _chapters(file: BinaryIO) -> Iterator[list[str]]:
    with Archive(file, "an EPUB") as book:
        container = _xml(book.read("META-INF/container.xml"))
        rootfile = next((e.get("full-path") for e in container.iter("{*}rootfile")), None)
        if not rootfile or rootfile not in book:
            raise DecodeError("it is damaged: it does not say where its book is")
        locked = _encrypted(book)
        package = _xml(book.read(rootfile))
        folder = posixpath.dirname(rootfile)
        hrefs = {e.get("id"): unquote(e.get("href") or "").partition("#")[0] for e in package.iter("{*}item")}
        spine = [hrefs.get(e.get("idref")) for e in package.iter("{*}itemref")]
        names = [posixpath.normpath(posixpath.join(folder, href)) for href in spine if href]
        if any(name in locked for name in names):
            raise DecodeError("it is encrypted (DRM)")
        for name in names:
            yield list(_html(book.read(name, limit=MAX_HTML))) if name in book else []


def _encrypted(book: Archive) -> set[str]:
    """What of the book is encrypted; fonts often are, which is nobody's loss."""
    if "META-INF/encryption.xml" not in book:
        return set()
    listed = _xml(book.read("META-INF/encryption.xml"))
    return {unquote(e.get("URI") or "") for e in listed.iter("{*}CipherReference")}


def _xml(data: bytes) -> Any:
    """An element from XML in which no entity counts and nothing outside is read."""
    with needs("documents", "EPUB"):
        from lxml import etree
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        return etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as exc:
        raise DecodeError(f"it is damaged: {exc}") from exc
