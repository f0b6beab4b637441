"""Image tokens in the index: packing against a plain twin, one file in step with the vectors, damage, format 1."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from indexer.changes import Piece, Put, Remove, Restamp
from indexer.errors import ModelError, StorageError, UsageError
from indexer.index import FORMAT, Index
from indexer.tokens import MAX_ROW_BYTES, TokenFile, TokenFormat, pack, token_checksum, unpack
from indexer.types import Asset, Modality

EYE = np.eye(4, dtype=np.float32)
FORMAT_A = TokenFormat("a", "aa", 3, 5)
FORMAT_B = TokenFormat("b", "bb", 2, 4)


# -- packing -----------------------------------------------------------------------------------------------------------


def pack_plainly(picture: list[list[float]]) -> bytes:
    """The packed tokens of one picture, number by number."""
    numbers, scales = b"", b""
    for token in picture:
        scale = np.float16(np.float32(max(abs(x) for x in token)) / np.float32(127))
        for x in token:
            steps = round(float(np.float32(x) / np.float32(scale))) if scale else 0
            numbers += max(-127, min(127, steps)).to_bytes(1, "little", signed=True)
        scales += scale.tobytes()
    return numbers + scales


def test_packing_by_hand() -> None:
    """The steps of (127, -63.5, 0.4) are 1: 127, -64 (a half goes to the even number) and 0; 1 as float16 is 3c00."""
    (row,) = pack(np.array([[[127, -63.5, 0.4]]], np.float32))
    assert row.tobytes() == bytes([127, 256 - 64, 0, 0x00, 0x3C])
    assert unpack(row[None], TokenFormat("t", "f", 1, 3)).tolist() == [[[127, -64, 0]]]


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_packing_equals_its_plain_twin(size: float) -> None:
    rng = np.random.default_rng(4)
    tokens = (rng.standard_normal((7, 3, 5)) * size).astype(np.float32)
    tokens[2, 1] = 0
    rows = pack(tokens)
    assert rows.dtype == np.uint8 and rows.shape == (7, FORMAT_A.row_bytes)
    assert [row.tobytes() for row in rows] == [pack_plainly(picture) for picture in tokens.tolist()]


def test_unpacking_is_within_half_a_step() -> None:
    tokens = np.random.default_rng(5).standard_normal((9, 3, 5)).astype(np.float32)
    back = unpack(pack(tokens), FORMAT_A)
    assert back.dtype == np.float32
    step = np.abs(tokens).max(axis=2, keepdims=True) / 127
    assert (np.abs(back - tokens) <= step * (0.5 + 127 / 2048)).all()
    np.testing.assert_array_equal(unpack(pack(back), FORMAT_A), back)


def test_no_pictures_no_rows() -> None:
    rows = pack(np.zeros((0, 3, 5), np.float32))
    assert rows.shape == (0, FORMAT_A.row_bytes)
    assert unpack(rows, FORMAT_A).shape == (0, 3, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e7])
def test_tokens_that_cannot_be_packed_are_refused_by_number(bad: float) -> None:
    tokens = np.ones((3, 2, 4), np.float32)
    tokens[1, 1, 2] = bad
    with pytest.raises(ModelError, match="image 2 of 3"):
        pack(tokens)


def test_tokens_below_what_float16_can_scale_are_zeros() -> None:
    assert not unpack(pack(np.full((1, 2, 4), 1e-6, np.float32)), FORMAT_B).any()


def test_a_format_of_more_than_9000_bytes_is_refused() -> None:
    """90 tokens of 98 numbers are 90 * 100 bytes: just allowed."""
    assert TokenFormat("t", "f", 90, 98).row_bytes == MAX_ROW_BYTES == 9000
    with pytest.raises(UsageError, match=r"90 tokens of 99 numbers are 9,090 bytes"):
        TokenFormat("t", "f", 90, 99)
    with pytest.raises(UsageError, match="cannot have 0 tokens"):
        TokenFormat("t", "f", 0, 8)


def test_formats_are_told_apart_by_fingerprint_not_by_name() -> None:
    assert TokenFormat("here", "f", 2, 4) == TokenFormat("there", "f", 2, 4)
    assert TokenFormat("here", "f", 2, 4) != TokenFormat("here", "g", 2, 4)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_token_file_is_cut_or_filled_to_the_rows_of_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "t"
    rows = np.arange(1, 37, dtype=np.uint8).reshape(3, FORMAT_B.row_bytes)
    TokenFile(path, FORMAT_B, 0, write=True).append(rows)
    with path.open("ab") as file:
        file.write(b"half a row")
    np.testing.assert_array_equal(TokenFile(path, FORMAT_B, 2, write=True).matrix(), rows[:2])
    filled = TokenFile(path, FORMAT_B, 4, write=True)
    assert filled.missing == 0
    np.testing.assert_array_equal(filled.matrix(), np.concatenate([rows[:2], np.zeros_like(rows[:2])]))
    reader = TokenFile(path, FORMAT_B, 5)
    assert (reader.missing, path.stat().st_size) == (1, 4 * FORMAT_B.row_bytes)


def test_rows_are_overwritten_and_erased_in_place(tmp_path: Path) -> None:
    rows = np.arange(1, 37, dtype=np.uint8).reshape(3, FORMAT_B.row_bytes)
    file = TokenFile(tmp_path / "t", FORMAT_B, 0, write=True)
    assert file.append(rows).tolist() == [0, 1, 2]
    file.overwrite(np.array([2, 0]), rows[[0, 1]])
    file.remove(np.array([1, 99]))
    np.testing.assert_array_equal(file.fetch(np.array([0, 1, 2])), [rows[1], np.zeros_like(rows[0]), rows[0]])


# -- in an index -------------------------------------------------------------------------------------------------------


def picture(path: str, digest: int = 1) -> Asset:
    return Asset(path, Modality.IMAGE, 10, 20, bytes([digest]) * 16)


def some_tokens(seed: int, format: TokenFormat = FORMAT_A) -> np.ndarray:
    """Packed tokens of one picture, ``(1, row_bytes)``."""
    return pack(np.random.default_rng(seed).standard_normal((1, format.count, format.width)))


def put(path: str, number: int, tokens: np.ndarray | None, **more: object) -> Put:
    piece, vector = [Piece(Modality.IMAGE)], EYE[number % 4][None]
    return Put(picture(path, number), piece, vector, tokens=tokens, **more)  # type: ignore[arg-type]


def tokens_by_path(index: Index) -> dict[str, list[list[float]] | None]:
    """What a reader sees: the tokens of every picture, None where it has none."""
    with index.snapshot() as snapshot:
        rows = np.setdiff1d(np.arange(snapshot.state.rows[Modality.IMAGE]), snapshot.dead[Modality.IMAGE])
        items = snapshot.reader.items_at(Modality.IMAGE, rows.tolist())
        tokens, present = snapshot.tokens(rows)
        return {
            items[row].asset.path or str(items[row].asset.key): tokens[i].tolist() if present[i] else None
            for i, row in enumerate(rows.tolist())
        }


def wide(*seeds: int, format: TokenFormat = FORMAT_A) -> list[list[list[float]]]:
    return [unpack(some_tokens(seed, format), format)[0].tolist() for seed in seeds]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """/0 to /3, with tokens of seeds 0 to 3 but for /2, which has none."""
    index = Index.create(tmp_path / "index", encoder="colours", fingerprint="c0", dim=4)
    with index.writing() as writer:
        writer.adopt_tokens(FORMAT_A)
        writer.apply([put(f"/{i}", i, None if i == 2 else some_tokens(i)) for i in range(4)])
    return index


def token_file(index: Index, generation: int = 1) -> Path:
    return index.folder / "vectors" / f"image-{generation:05d}.tokens"


def test_tokens_are_there_after_reopening(index: Index) -> None:
    zero, one, three = wide(0, 1, 3)
    index.close()
    with Index.open(index.folder) as again:
        assert tokens_by_path(again) == {"/0": zero, "/1": one, "/2": None, "/3": three}
        with again.snapshot() as snapshot:
            assert snapshot.state.tokens == FORMAT_A and snapshot.state.tokens.name == "a"
            assert snapshot.reader.rows_without_tokens().tolist() == [2]
            tokens, present = snapshot.tokens(np.array([3, 2, 0, 3, 77]))
            assert present.tolist() == [True, False, True, True, False]
            assert tokens.dtype == np.float32
            assert tokens.tolist() == [three, np.zeros((3, 5)).tolist(), zero, three, np.zeros((3, 5)).tolist()]
    assert token_file(index).stat().st_size == 4 * FORMAT_A.row_bytes


def test_an_index_without_a_format_has_no_tokens_and_takes_none(tmp_path: Path) -> None:
    with Index.create(tmp_path / "i", encoder="e", fingerprint="f", dim=4) as index, index.writing() as writer:
        writer.apply([put("/a", 0, None)])
        with pytest.raises(UsageError, match="holds no image tokens"):
            writer.apply([put("/b", 1, some_tokens(1))])
        with index.snapshot() as snapshot:
            tokens, present = snapshot.tokens(np.array([0]))
            assert (tokens.shape, present.tolist()) == ((1, 0, 0), [False])
        assert [path.name for path in sorted((index.folder / "vectors").iterdir())] == [
            "image-00001.f32",
            "text-00001.f32",
            "video-00001.f32",
        ]
        assert writer.verify().sound


@pytest.mark.parametrize("tokens", [some_tokens(0, FORMAT_B), some_tokens(0).astype(np.float32), some_tokens(0)[0]])
def test_tokens_of_another_shape_or_type_are_refused_and_nothing_is_changed(index: Index, tokens: np.ndarray) -> None:
    with index.writing() as writer:
        with pytest.raises(UsageError, match=r"shape \(1, 21\)"):
            writer.apply([put("/new", 0, some_tokens(9)), put("/bad", 1, tokens)])
        with pytest.raises(UsageError, match=r"shape \(1, 21\)"):
            writer.put_tokens(np.array([2]), tokens)
        assert writer.verify().sound
    assert sorted(tokens_by_path(index)) == ["/0", "/1", "/2", "/3"]
    assert tokens_by_path(index)["/2"] is None


def test_tokens_move_with_their_vector_and_are_copied_with_it(index: Index) -> None:
    zero, one, three = wide(0, 1, 3)
    with index.writing() as writer:
        pieces, vectors, tokens = writer.fetch_pieces(1)
        assert writer.fetch_pieces(3)[2] is None
        writer.apply([Put(picture("/copy", 0), pieces, vectors, tokens=tokens), Restamp(4, picture("/moved", 3))])
    assert tokens_by_path(index) == {"/0": zero, "/copy": zero, "/1": one, "/2": None, "/moved": three}


def test_decayed_tokens_are_not_copied_under_a_new_checksum(index: Index) -> None:
    flip(token_file(index), 3)
    with index.writing() as writer:
        assert writer.fetch_pieces(1)[2] is None


def test_tokens_of_removed_and_replaced_pictures_leave_the_disk(index: Index) -> None:
    with index.writing() as writer:
        writer.apply([Remove([1]), put("/1", 1, some_tokens(7), replaces=[2])])
        on_disk = np.frombuffer(token_file(index).read_bytes(), np.uint8).reshape(-1, FORMAT_A.row_bytes)
        blank = np.zeros(FORMAT_A.row_bytes, np.uint8)
        np.testing.assert_array_equal(on_disk, [blank, blank, blank, some_tokens(3)[0], some_tokens(7)[0]])
        writer.compact()
        assert writer.verify().sound
    assert not token_file(index).exists()
    on_disk = np.frombuffer(token_file(index, 2).read_bytes(), np.uint8).reshape(-1, FORMAT_A.row_bytes)
    np.testing.assert_array_equal(on_disk, [blank, some_tokens(3)[0], some_tokens(7)[0]])
    three, seven = wide(3, 7)
    assert tokens_by_path(index) == {"/2": None, "/3": three, "/1": seven}


def test_tokens_given_later(index: Index) -> None:
    zero, one, two, three = wide(0, 1, 2, 3)
    with index.writing() as writer:
        writer.put_tokens(np.array([2]), some_tokens(2))
        assert writer.verify().sound
    assert tokens_by_path(index) == {"/0": zero, "/1": one, "/2": two, "/3": three}


def test_a_process_that_dies_between_tokens_and_commit_leaves_a_picture_without(index: Index) -> None:
    """The bytes are written and nobody says so: the picture has no tokens, that is no damage, and it can get some."""
    with index.writing() as writer:
        TokenFile(token_file(index), FORMAT_A, 4).overwrite(np.array([2]), some_tokens(8))
        assert tokens_by_path(index)["/2"] is None
        writer.compact()
        assert not np.fromfile(token_file(index, 2), np.uint8).reshape(4, -1)[2].any()
        TokenFile(token_file(index, 2), FORMAT_A, 4).overwrite(np.array([2]), some_tokens(8))
        assert writer.verify().sound
        assert not np.fromfile(token_file(index, 2), np.uint8).reshape(4, -1)[2].any()
        writer.put_tokens(np.array([2]), some_tokens(2))
    assert tokens_by_path(index)["/2"] == wide(2)[0]


def test_a_commit_that_fails_leaves_no_tokens_behind(index: Index) -> None:
    """The second asset has a path that is taken: the database refuses it after vectors and tokens were appended."""
    with index.writing() as writer:
        with pytest.raises(StorageError):
            writer.apply([put("/new", 0, some_tokens(5)), put("/0", 1, some_tokens(6))])
        assert token_file(index).stat().st_size == 4 * FORMAT_A.row_bytes
        assert writer.verify().sound
        writer.apply([put("/new", 0, some_tokens(5))])
    assert tokens_by_path(index)["/new"] == wide(5)[0]


def test_a_writer_cuts_tokens_that_were_not_committed(index: Index) -> None:
    with token_file(index).open("ab") as file:
        file.write(b"x" * 30)
    with index.writing():
        assert token_file(index).stat().st_size == 4 * FORMAT_A.row_bytes


def test_a_writer_erases_what_a_dead_one_had_only_marked(index: Index) -> None:
    """Killed after the commit that freed row 1 and before the erasure: both files still have its bytes."""
    tokens, vectors = token_file(index), index.folder / "vectors" / "image-00001.f32"
    before = tokens.read_bytes(), vectors.read_bytes()
    with index.writing() as writer:
        writer.apply([Remove([2])])
    tokens.write_bytes(before[0])
    vectors.write_bytes(before[1])
    with sqlite3.connect(index.folder / "catalogue.db") as database:
        database.execute("UPDATE freed SET erased = 0")
    database.close()
    with index.writing() as writer:
        assert writer.verify().sound
    assert not np.fromfile(tokens, np.uint8).reshape(4, -1)[1].any()
    assert not np.fromfile(vectors, "<f4").reshape(4, -1)[1].any()


def test_another_format_replaces_the_tokens_and_spares_the_vectors(index: Index) -> None:
    with index.snapshot() as before:
        with index.writing() as writer:
            writer.apply([Remove([1])])
            writer.adopt_tokens(FORMAT_B)
            assert writer.token_format == FORMAT_B
            assert writer.verify().sound
        tokens, present = before.tokens(np.array([1, 3]))  # whoever was reading reads on
        assert present.all() and tokens.tolist() == wide(1, 3)
    assert tokens_by_path(index) == dict.fromkeys(["/1", "/2", "/3"])
    assert sorted(path.name for path in (index.folder / "vectors").iterdir()) == [
        "image-00002.f32",
        "image-00002.tokens",
        "text-00002.f32",
        "video-00002.f32",
        "video-00002.tokens",
    ]
    assert token_file(index, 2).read_bytes() == bytes(3 * FORMAT_B.row_bytes)
    np.testing.assert_array_equal(np.fromfile(index.folder / "vectors" / "image-00002.f32", "<f4"), EYE[1:].ravel())
    with index.writing() as writer:
        writer.put_tokens(np.array([0]), some_tokens(4, FORMAT_B))
    assert tokens_by_path(index)["/1"] == wide(4, format=FORMAT_B)[0]


def test_a_snapshot_outlives_a_compaction(index: Index) -> None:
    with index.snapshot() as before:
        with index.writing() as writer:
            writer.apply([Remove([1])])
            writer.compact()
        assert before.tokens(np.array([3]))[0].tolist() == wide(3)
        assert before.tokens(np.array([0]))[1].tolist() == [False]  # erased meanwhile, in the file that is mapped here
    assert tokens_by_path(index)["/3"] == wide(3)[0]


# -- verify ------------------------------------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def test_decayed_tokens_cost_a_picture_its_tokens_and_not_its_place(index: Index) -> None:
    zero, three = wide(0, 3)
    flip(token_file(index), FORMAT_A.row_bytes + 4)
    assert tokens_by_path(index) == {"/0": zero, "/1": None, "/2": None, "/3": three}  # already before any repair
    with index.writing() as writer:
        report = writer.verify()
        assert report.vectors == 4
        (line,) = report.repaired
        assert line.startswith("/1: its tokens (row 1 of image-00001.tokens)") and "--add-tokens" in line
        assert report.lost == ()
        assert not np.fromfile(token_file(index), np.uint8).reshape(4, -1)[1].any()
        assert writer.verify().sound
    with index.snapshot() as snapshot:
        assert snapshot.reader.rows_without_tokens().tolist() == [1, 2]


def test_decayed_tokens_of_a_picture_from_memory_are_lost(index: Index) -> None:
    added = Asset("", Modality.IMAGE, 1, 2, b"x" * 16, key="mine")
    with index.writing() as writer:
        writer.apply([Put(added, [Piece(Modality.IMAGE)], EYE[:1], tokens=some_tokens(5))])
        flip(token_file(index), 4 * FORMAT_A.row_bytes)
        report = writer.verify()
        assert report.repaired == ()
        (line,) = report.lost
        assert line.startswith("mine: its tokens (row 4") and "add it again" in line
        assert writer.verify().sound
    assert tokens_by_path(index)["mine"] is None


def test_a_token_file_that_lost_its_tail_or_is_gone_leaves_the_vectors_searchable(index: Index) -> None:
    zero = wide(0)[0]
    os.truncate(token_file(index), FORMAT_A.row_bytes + 5)
    index.close()
    index = Index.open(index.folder)
    assert tokens_by_path(index) == {"/0": zero, "/1": None, "/2": None, "/3": None}
    with index.writing() as writer:
        assert [line.split(":")[0] for line in writer.verify().repaired] == ["/1", "/3"]
        assert writer.verify().sound
        token_file(index).unlink()
    index.close()
    index = Index.open(index.folder)
    assert tokens_by_path(index) == dict.fromkeys(["/0", "/1", "/2", "/3"])
    with index.writing() as writer:
        assert [line.split(":")[0] for line in writer.verify().repaired] == ["/0"]


def test_a_decayed_vector_takes_its_tokens_with_it(index: Index) -> None:
    flip(index.folder / "vectors" / "image-00001.f32", 16)
    flip(token_file(index), FORMAT_A.row_bytes + 4)
    with index.writing() as writer:
        (line,) = writer.verify().repaired
        assert line.startswith("/1: its vector")
        assert not np.fromfile(token_file(index), np.uint8).reshape(4, -1)[1].any()
        assert writer.verify().sound
    assert sorted(tokens_by_path(index)) == ["/0", "/2", "/3"]


def test_vectors_that_are_short_take_the_tokens_behind_them(index: Index) -> None:
    os.truncate(index.folder / "vectors" / "image-00001.f32", 2 * 16)
    with index.writing() as writer:
        assert [line.split(":")[0] for line in writer.verify().repaired[1:]] == ["/2", "/3"]
        assert token_file(index).stat().st_size == 2 * FORMAT_A.row_bytes
        assert writer.verify().sound
        writer.apply([put("/new", 3, some_tokens(9))])
    zero, one, nine = wide(0, 1, 9)
    assert tokens_by_path(index) == {"/0": zero, "/1": one, "/new": nine}


def test_tokens_that_should_have_been_erased_are_erased(index: Index) -> None:
    before = token_file(index).read_bytes()
    with index.writing() as writer:
        writer.apply([Remove([4])])
        token_file(index).write_bytes(before)
        assert writer.verify().repaired == ("1 tokens in image-00001.tokens outlived their picture; erased",)
        assert writer.verify().sound


# -- format 1 ----------------------------------------------------------------------------------------------------------

SCHEMA_1 = """
CREATE TABLE meta (name VARCHAR(40) NOT NULL, value BIGINT NOT NULL, PRIMARY KEY (name));
CREATE TABLE assets (id INTEGER NOT NULL, path BLOB, "key" TEXT, modality VARCHAR(8) NOT NULL, size BIGINT NOT NULL,
    mtime_ns BIGINT NOT NULL, digest BLOB NOT NULL, taken FLOAT, metadata TEXT, complete BOOLEAN NOT NULL,
    PRIMARY KEY (id), CHECK ((path IS NULL) != (key IS NULL)), UNIQUE (path), UNIQUE ("key"));
CREATE INDEX ix_assets_digest ON assets (digest);
CREATE TABLE items (id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, asset_id INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    modality VARCHAR(8) NOT NULL, "row" BIGINT NOT NULL, crc BIGINT NOT NULL, first_line INTEGER, last_line INTEGER,
    text TEXT, UNIQUE (modality, "row"), UNIQUE (asset_id, ordinal),
    FOREIGN KEY(asset_id) REFERENCES assets (id) ON DELETE CASCADE);
CREATE INDEX ix_items_asset_id ON items (asset_id);
CREATE TABLE skipped (path BLOB NOT NULL, size BIGINT NOT NULL, mtime_ns BIGINT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (path));
CREATE TABLE freed (modality VARCHAR(8) NOT NULL, "row" BIGINT NOT NULL, erased BOOLEAN NOT NULL,
    PRIMARY KEY (modality, "row"));
"""


def make_format_1(folder: Path) -> Path:
    """A folder as the first format had it, made without the code under test: /a.png, /b.png, and a row in between that
    was erased; a text of two passages."""
    (folder / "vectors").mkdir(parents=True)
    manifest = {
        "encoder": "colours",
        "fingerprint": "c0",
        "dim": 4,
        "created": "2025-01-01T00:00:00+00:00",
        "format": 1,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    images, texts = EYE[[0, 1, 2]] * [[1], [0], [1]], EYE[[3, 0]]
    (folder / "vectors" / "image-00001.f32").write_bytes(images.astype("<f4").tobytes())
    (folder / "vectors" / "text-00001.f32").write_bytes(texts.tobytes())
    database = sqlite3.connect(folder / "catalogue.db")
    database.executescript("PRAGMA journal_mode = WAL;" + SCHEMA_1)
    meta = {"schema": 1, "version": 3, "generation": 1, "rows:image": 3, "rows:text": 2}
    database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    for number, (path, modality) in enumerate([(b"/a.png", "image"), (b"/b.png", "image"), (b"/c.txt", "text")], 1):
        row = (number, path, None, modality, 10, 20, bytes([number]) * 16, None, None, True)
        database.execute("INSERT INTO assets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def item(asset: int, ordinal: int, modality: str, row: int, vector: np.ndarray, text: Sequence[object]) -> None:
        values = (asset, ordinal, modality, row, zlib.crc32(vector.astype("<f4").tobytes()), *text)
        names = "asset_id, ordinal, modality, row, crc, first_line, last_line, text"
        database.execute(f"INSERT INTO items ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    item(1, 0, "image", 0, EYE[0], (None, None, None))
    item(2, 0, "image", 2, EYE[2], (None, None, None))
    item(3, 0, "text", 0, EYE[3], (1, 1, "one"))
    item(3, 1, "text", 1, EYE[0], (2, 2, "two"))
    database.execute("INSERT INTO freed VALUES ('image', 1, 1)")
    database.execute("INSERT INTO skipped VALUES (?, 0, 0, 'the file is empty')", (b"/d.png",))
    database.commit()
    database.close()
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return make_format_1(tmp_path / "old")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that is not SQLite's own bookkeeping of readers."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal")))
    return {path.name: path.read_bytes() for path in files}


def check_answers(folder: Path) -> None:
    with Index.open(folder) as index, index.snapshot() as snapshot:
        scores, rows = snapshot.vectors[Modality.IMAGE].search(EYE[2], 3, dead=snapshot.dead[Modality.IMAGE])
        assert (rows.tolist(), scores.tolist()) == ([[2, 0, -1]], [[1, 0, -math.inf]])
        assert snapshot.reader.items_at(Modality.IMAGE, [2])[2].asset.path == "/b.png"
        assert [item.text for item in snapshot.reader.items_at(Modality.TEXT, [0, 1]).values()] == ["one", "two"]
        assert [(item.row, item.asset_id) for item in snapshot.reader.item_rows()] == [(0, 1), (2, 2), (0, 3), (1, 3)]
        assert snapshot.reader.counts()["items:image"] == 2
        assert [one.path for one in snapshot.reader.skipped()] == ["/d.png"]
        assert snapshot.state.tokens is None
        assert snapshot.reader.rows_without_tokens().tolist() == [0, 2]
        tokens, present = snapshot.tokens(np.array([0, 2]))
        assert (tokens.shape, present.tolist()) == ((2, 0, 0), [False, False])


def test_a_folder_of_format_1_is_read_without_a_change(old: Path) -> None:
    before = contents(old)
    check_answers(old)
    assert contents(old) == before
    assert json.loads((old / "manifest.json").read_text())["format"] == 1


def test_a_folder_of_format_1_is_read_where_nothing_can_be_written(nobody: Path) -> None:
    folder = make_format_1(nobody / "index")
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    check_answers(folder)
    with pytest.raises(StorageError, match="read-only"), Index.open(folder).writing():
        pass


def test_the_first_writer_brings_a_folder_to_this_format(old: Path) -> None:
    with Index.open(old) as reader, reader.snapshot() as before:
        with Index.open(old) as index, index.writing() as writer:
            assert writer.verify().sound
            writer.adopt_tokens(FORMAT_A)
            writer.put_tokens(np.array([2]), some_tokens(2))
            writer.apply([put("/new", 3, some_tokens(3))])
            assert index.manifest.format == FORMAT == 5
        assert before.tokens(np.array([2]))[1].tolist() == [False]
        assert before.reader.items_at(Modality.IMAGE, [0])[0].asset.path == "/a.png"
    two, three = wide(2, 3)
    with Index.open(old) as index:
        assert index.manifest.format == 5 and index.manifest.created == "2025-01-01T00:00:00+00:00"
        assert tokens_by_path(index) == {"/a.png": None, "/b.png": two, "/new": three}
        with index.snapshot() as snapshot:
            assert [item.text for item in snapshot.reader.items_at(Modality.TEXT, [0, 1]).values()] == ["one", "two"]
    with sqlite3.connect(old / "catalogue.db") as database:
        assert database.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone() == (5,)
    database.close()


def test_a_migration_that_died_before_the_manifest_is_read_and_finished(old: Path) -> None:
    with Index.open(old) as index, index.writing():
        pass
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    check_answers(old)
    with Index.open(old) as index, index.writing() as writer:
        assert writer.verify().sound
    assert json.loads((old / "manifest.json").read_text()) == manifest


def test_the_checksum_is_that_of_the_bytes() -> None:
    assert token_checksum(np.frombuffer(b"123456789", np.uint8)) == 0xCBF43926  # the check value of CRC-32
