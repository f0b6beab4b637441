"""Files are known by a digest of their content; an older index stays with the function it was made with."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from colour_encoder import ColourEncoder
from test_pipeline import counts

import mmsearch
from indexer.content import Digest
from indexer.errors import IndexDamaged

# The test vectors of the BLAKE3 specification, cut to 16 bytes: bytes 0, 1, ... 250, 0, 1, ... of these numbers.
VECTORS = {
    0: "af1349b9f5f9a1a6a0404dea36dcc949",
    1: "2d3adedff11b61f14c886e35afa03673",
    1024: "42214739f095a406f3fc83deb889744a",
}


@pytest.mark.parametrize(("size", "digest"), VECTORS.items())
def test_blake3_is_that_of_its_specification(size: int, digest: str) -> None:
    assert Digest.BLAKE3.of((bytes(range(251)) * 5)[:size]).hex() == digest


@pytest.mark.parametrize("by", Digest)
def test_a_stream_has_the_digest_of_its_bytes(by: Digest) -> None:
    data = bytes(range(256)) * 10_000  # more than a chunk
    assert by.of_stream(io.BytesIO(data)) == by.of(data) != by.of(data[:-1])
    assert Digest.BLAKE2B.of(data) == hashlib.blake2b(data, digest_size=16).digest()


@contextmanager
def catalogue(folder: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / "catalogue.db")) as database, database:
        yield database


def digests(folder: Path) -> dict[str, bytes]:
    with catalogue(folder) as database:
        return {
            Path((path or b"").decode()).name: digest
            for path, digest in database.execute("SELECT path, digest FROM assets")
        }


def number(folder: Path) -> list[tuple[int]]:
    with catalogue(folder) as database:
        return database.execute("SELECT value FROM meta WHERE name = 'digest'").fetchall()


def make_older(folder: Path) -> None:
    """Turn an index of this format into what format 3 made of the same files."""
    with catalogue(folder) as database:
        for id_, path in database.execute("SELECT id, path FROM assets").fetchall():
            digest = hashlib.blake2b(Path(path.decode()).read_bytes(), digest_size=16).digest()
            database.execute("UPDATE assets SET digest = ? WHERE id = ?", (digest, id_))
        database.execute("DELETE FROM meta WHERE name = 'digest'")
        database.execute("UPDATE meta SET value = 3 WHERE name = 'schema'")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 3}))


@pytest.mark.parametrize("older", [False, True])
def test_what_moved_is_known_and_what_is_new_gets_a_digest_of_the_same_kind(
    tmp_path: Path, photos: Path, paint: Callable[..., Path], older: bool
) -> None:
    folder = tmp_path / "index"
    with mmsearch.open(folder, model=ColourEncoder()) as library:
        library.index(photos)
    if older:
        make_older(folder)
    by = Digest.BLAKE2B if older else Digest.BLAKE3
    assert number(folder) == ([] if older else [(1,)])
    (photos / "red.png").rename(photos / "rouge.png")
    (photos / "notes.txt").rename(photos / "memo.txt")
    paint("violet.png", (255, 0, 255))
    with mmsearch.open(folder, model=ColourEncoder()) as library:
        assert counts(library.index(photos)) == {"added": 1, "moved": 2, "unchanged": 2, "items": 1}
        library.add([mmsearch.Addition("key", text="a blue line")])
    found = digests(folder)
    assert found.pop("") == by.of(b"a blue line")
    assert found == {path.name: by.of(path.read_bytes()) for path in photos.iterdir()}
    assert json.loads((folder / "manifest.json").read_text())["format"] == 5
    assert number(folder) == ([] if older else [(1,)])


def test_a_function_that_nobody_knows_is_damage(tmp_path: Path, photos: Path) -> None:
    folder = tmp_path / "index"
    with mmsearch.open(folder, model=ColourEncoder()) as library:
        library.index(photos)
    with catalogue(folder) as database:
        database.execute("UPDATE meta SET value = 9 WHERE name = 'digest'")
    with (
        mmsearch.open(folder, model=ColourEncoder()) as library,
        pytest.raises(IndexDamaged, match="9 is not a valid Digest"),
    ):
        library.query("red")
