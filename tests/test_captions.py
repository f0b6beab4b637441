"""Words that belong to pictures: in their files, beside them, in tables; found as texts and linked to their picture."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pillow_heif
import pytest
from conftest import BLUE, RED
from PIL import Image, PngImagePlugin

import mmsearch
from indexer.beside import picture_of
from indexer.decode import decode_image
from indexer.decode.captions import embedded
from indexer.types import Asset, Modality, Span

XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/">
<rdf:Description photoshop:Headline="At the fair"><dc:description><rdf:Alt>
<rdf:li xml:lang="x-default">A green ferris wheel</rdf:li><rdf:li xml:lang="de">Ein Riesenrad</rdf:li></rdf:Alt>
</dc:description><dc:subject><rdf:Bag><rdf:li>fair</rdf:li><rdf:li>evening</rdf:li></rdf:Bag></dc:subject>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


def photo(
    colour: tuple[int, int, int] = RED, *, xmp: str = "", iptc: dict[int, list[str]] | None = None, described: str = ""
) -> bytes:
    """A JPEG with metadata of each kind."""
    exif = Image.Exif()
    if described:
        exif[0x010E] = described
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(
        out, "JPEG", quality=95, exif=exif, **({"xmp": xmp.encode()} if xmp else {})
    )
    data = out.getvalue()
    if iptc:
        records = b"".join(
            b"\x1c\x02" + struct.pack(">BH", field, len(value.encode())) + value.encode()
            for field, values in iptc.items()
            for value in values
        )
        block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(records)) + records + b"\0" * (len(records) % 2)
        segment = b"Photoshop 3.0\0" + block
        data = data[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    return data


def said_by(data: bytes) -> list[str]:
    found: list[str] = []
    decode_image(data, size=8, look=lambda picture: found.extend(embedded(picture)))
    return found


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (photo(), []),
        (photo(xmp=XMP), ["At the fair", "A green ferris wheel", "fair, evening"]),
        (photo(iptc={120: ["Two boats"], 25: ["sea", "fog", "sea"], 5: ["Port"]}), ["Port", "Two boats", "sea, fog"]),
        (photo(described="A blue door"), ["A blue door"]),
        (photo(described="OLYMPUS DIGITAL CAMERA         "), []),
        (photo(xmp=XMP, described="A green  ferris wheel"), ["At the fair", "A green ferris wheel", "fair, evening"]),
        (photo(xmp='<!DOCTYPE x [<!ENTITY a "aaaa">]>' + XMP.replace("At the fair", "&a;")), []),
        (photo(xmp=XMP[:300]), []),
    ],
)  # fmt: skip
def test_what_a_file_says_of_its_picture(data: bytes, said: list[str]) -> None:
    assert said_by(data) == said


def test_png_says_it_in_chunks() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Description", "A tower")
    info.add_text("Software", "none of it")
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG", pnginfo=info)
    assert said_by(out.getvalue()) == ["A tower"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "HEIF"])
def test_a_description_is_read_in_every_format_that_has_one(kind: str) -> None:
    """Also of a picture that was shrunk while it was decoded."""
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x010E] = "A tower"
    out = io.BytesIO()
    Image.new("RGB", (400, 300), RED).save(out, kind, exif=exif)
    assert said_by(out.getvalue()) == ["A tower"]


def test_a_caption_inside_goes_where_its_picture_goes(tmp_path: Path, library: mmsearch.Library) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(photo(RED, described="a green thing"))
    library.index(folder)
    (hit,) = library.query("green", k=1)
    assert (hit.kind, hit.path, hit.text, hit.source) == ("image", folder / "a.jpg", "a green thing", "caption")
    (folder / "a.jpg").rename(folder / "b.jpg")
    assert library.index(folder).moved == 1
    assert library.query("green", k=1)[0].path == folder / "b.jpg"
    (folder / "b.jpg").write_bytes(photo(RED, described="a blue thing"))
    library.index(folder)
    assert library.query("green", k=1)[0].text != "a green thing"
    assert library.query("blue", k=1)[0].text == "a blue thing"


def test_sidecars_are_linked_by_their_names(tmp_path: Path, library: mmsearch.Library) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(photo(RED))
    (folder / "b.JPG").write_bytes(photo(RED))
    (folder / "a.jpg.txt").write_text("a green thing")
    (folder / "b.txt").write_text("a blue thing")
    (folder / "notes.txt").write_text("a green blue thing")
    library.index(folder)

    def linked(words: str) -> tuple[str, str | None, str | None]:
        hit = library.query(words, kind="text", k=1)[0]
        return str(hit.text), hit.picture.name if hit.picture else None, hit.source

    assert linked("green") == ("a green thing", "a.jpg", "caption")
    assert linked("blue") == ("a blue thing", "b.JPG", "caption")
    assert linked("green blue") == ("a green blue thing", None, None)
    (folder / "a.jpg.txt").write_text("a green green red thing")  # the words change, the link stays
    library.index(folder)
    assert linked("green red") == ("a green green red thing", "a.jpg", "caption")
    (folder / "a.jpg.txt").rename(folder / "b.JPG.txt")  # the link changes, the words stay
    library.index(folder)
    assert linked("green red") == ("a green green red thing", "b.JPG", "caption")
    (folder / "b.JPG").unlink()
    library.index(folder)
    assert linked("green red") == ("a green green red thing", None, None)


def test_rows_of_a_table_are_linked_to_the_pictures_that_they_name(tmp_path: Path, library: mmsearch.Library) -> None:
    (tmp_path / "photos" / "in").mkdir(parents=True)
    (tmp_path / "photos" / "in" / "a.jpg").write_bytes(photo(BLUE))
    (tmp_path / "photos" / "texts").mkdir()
    table = tmp_path / "photos" / "texts" / "captions.tsv"
    table.write_text("image\tcaption\nin/a.jpg#0\ta green thing\ngone.jpg\ta red thing\n")
    library.index(tmp_path / "photos")
    green, red = (library.query(words, kind="text", k=1)[0] for words in ("green", "red"))
    assert (green.text, green.picture) == ("a green thing", tmp_path / "photos" / "in" / "a.jpg")
    assert (red.text, red.picture) == ("a red thing", None)
    assert green.as_dict()["picture"] == str(tmp_path / "photos" / "in" / "a.jpg")
    table.write_text("image\tcaption\n" + "x" * 60)  # no longer what was indexed: nothing is said of it
    assert library.query("green", kind="text", k=1)[0].picture is None


def test_what_is_no_caption() -> None:
    asset = Asset("/a/notes.md", Modality.TEXT, 1, 1, b"")
    assert picture_of(asset, Span(1, 1), lambda paths: list(paths)) is None
    assert picture_of(Asset("/a/gone.tsv", Modality.TEXT, 1, 1, b""), Span(2, 2), lambda paths: list(paths)) is None
