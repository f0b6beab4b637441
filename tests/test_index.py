"""One index folder: what is committed is there, what is removed is gone, damage is found and repaired."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from indexer.changes import Piece, Put, Remove, Restamp, Skip
from indexer.errors import IndexBusy, IndexDamaged, ModelError, NoIndex, StorageError, UsageError
from indexer.index import Index
from indexer.types import Asset, Modality, Span

EYE = np.eye(4, dtype=np.float32)


def picture(path: str, digest: int = 1) -> Asset:
    return Asset(path, Modality.IMAGE, 10, 20, bytes([digest]) * 16)


def put(path: str, vector: np.ndarray, digest: int = 1, **more: object) -> Put:
    return Put(picture(path, digest), [Piece(Modality.IMAGE)], vector[None], **more)  # type: ignore[arg-type]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.create(tmp_path / "index", encoder="colours", fingerprint="c0", dim=4)


def vectors_by_path(index: Index) -> dict[str, list[float]]:
    """What a reader sees: every picture with the vector that stands at its row."""
    found = {}
    with index.snapshot() as snapshot:
        file = snapshot.vectors[Modality.IMAGE]
        rows = sorted(set(range(file.rows)) - set(snapshot.dead[Modality.IMAGE].tolist()))
        for row, item in snapshot.reader.items_at(Modality.IMAGE, rows).items():
            found[item.asset.path] = file.fetch(np.array([row]))[0].tolist()
    return found


def test_what_is_put_is_there_after_reopening(index: Index) -> None:
    text = Put(
        Asset("/t/a.txt", Modality.TEXT, 1, 2, b"t" * 16, taken=5.5),
        [Piece(Modality.TEXT, Span(1, 2), "one"), Piece(Modality.TEXT, Span(3, 3), "two")],
        EYE[:2],
    )
    with index.writing() as writer:
        assert writer.apply([put("/p/a.png", EYE[0]), text]) == [1, 2]
    index.close()
    with Index.open(index.folder) as again, again.snapshot() as snapshot:
        assert vectors_by_path(again) == {"/p/a.png": [1, 0, 0, 0]}
        items = snapshot.reader.items_at(Modality.TEXT, [0, 1])
        assert [(items[r].text, items[r].span) for r in (0, 1)] == [("one", Span(1, 2)), ("two", Span(3, 3))]
        assert items[1].asset == Asset("/t/a.txt", Modality.TEXT, 1, 2, b"t" * 16, taken=5.5)


def test_replacing_removing_and_moving(index: Index) -> None:
    with index.writing() as writer:
        a, b, c = writer.apply([put("/a", EYE[0]), put("/b", EYE[1], 2), put("/c", EYE[2], 3)])
        writer.apply([put("/a", EYE[3], 4, replaces=[a]), Remove([b]), Restamp(c, picture("/moved", 3))])
    assert vectors_by_path(index) == {"/a": [0, 0, 0, 1], "/moved": [0, 0, 1, 0]}


def test_removed_vectors_leave_the_disk_at_once_and_the_file_at_compaction(index: Index) -> None:
    with index.writing() as writer:
        ids = writer.apply([put(f"/{i}", EYE[i], i) for i in range(4)])
        writer.apply([Remove(ids[1:3])])
        file = index.folder / "vectors" / "image-00001.f32"
        on_disk = np.frombuffer(file.read_bytes(), "<f4").reshape(-1, 4)
        np.testing.assert_array_equal(on_disk, [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
        writer.compact()
    assert sorted(path.name for path in (index.folder / "vectors").iterdir()) == [
        f"{kind}-00002.f32" for kind in ("image", "text", "video")
    ]
    on_disk = np.frombuffer((index.folder / "vectors" / "image-00002.f32").read_bytes(), "<f4").reshape(-1, 4)
    np.testing.assert_array_equal(on_disk, EYE[[0, 3]])
    assert vectors_by_path(index) == {"/0": [1, 0, 0, 0], "/3": [0, 0, 0, 1]}
    with index.writing() as writer:
        assert writer.verify().sound
        writer.apply([put("/new", EYE[1], 9)])
    assert vectors_by_path(index)["/new"] == [0, 1, 0, 0]


def test_removed_words_leave_the_database_file(index: Index) -> None:
    text = Put(Asset("/t", Modality.TEXT, 1, 2, b"t" * 16), [Piece(Modality.TEXT, Span(1, 1), "xylophonist")], EYE[:1])
    with index.writing() as writer:
        (asset_id,) = writer.apply([text])
        writer.apply([Remove([asset_id])])
        writer.compact()
    for path in index.folder.glob("catalogue.db*"):
        assert b"xylophonist" not in path.read_bytes()


def test_an_open_snapshot_outlives_a_compaction(index: Index) -> None:
    with index.writing() as writer:
        ids = writer.apply([put(f"/{i}", EYE[i], i) for i in range(4)])
    with index.snapshot() as before:
        with index.writing() as writer:
            writer.apply([Remove([ids[0]])])
            writer.compact()
        _, rows = before.vectors[Modality.IMAGE].search(EYE[3], 1)
        assert before.reader.items_at(Modality.IMAGE, rows[0].tolist())[3].asset.path == "/3"
    assert sorted(vectors_by_path(index)) == ["/1", "/2", "/3"]


def test_a_batch_with_one_unusable_vector_changes_nothing(index: Index) -> None:
    with index.writing() as writer:
        writer.apply([put("/a", EYE[0])])
        with pytest.raises(ModelError, match="/bad"):
            writer.apply([put("/b", EYE[1], 2), put("/bad", EYE[2] * np.nan, 3)])
        assert vectors_by_path(index) == {"/a": [1, 0, 0, 0]}
        assert (index.folder / "vectors" / "image-00001.f32").stat().st_size == 16
        assert writer.verify().sound


def test_a_commit_that_fails_leaves_no_vectors_behind(index: Index) -> None:
    """The second asset has the path of the first: the database refuses it after the vectors were appended."""
    with index.writing() as writer:
        writer.apply([put("/a", EYE[0])])
        with pytest.raises(StorageError):
            writer.apply([put("/b", EYE[1], 2), put("/a", EYE[2], 3)])
        assert (index.folder / "vectors" / "image-00001.f32").stat().st_size == 16
        writer.apply([put("/c", EYE[3], 4)])
    assert vectors_by_path(index) == {"/a": [1, 0, 0, 0], "/c": [0, 0, 0, 1]}


def test_a_skipped_file_is_remembered_until_it_is_taken(index: Index) -> None:
    with index.writing() as writer:
        (a,) = writer.apply([put("/a", EYE[0])])
        writer.apply([Skip("/a", 5, 6, "the file is empty", [a])])
        assert vectors_by_path(index) == {}
        with index.snapshot() as snapshot:
            assert [(s.path, s.reason) for s in snapshot.reader.skipped()] == [("/a", "the file is empty")]
        writer.apply([put("/a", EYE[1])])
    with index.snapshot() as snapshot:
        assert snapshot.reader.skipped() == []


# -- verify ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def four(index: Index) -> Index:
    with index.writing() as writer:
        writer.apply([put(f"/{i}", EYE[i], i) for i in range(4)])
    return index


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def test_verify_finds_a_decayed_vector_and_takes_its_file_out(four: Index) -> None:
    flip(four.folder / "vectors" / "image-00001.f32", 2 * 16 + 11)
    with four.writing() as writer:
        report = writer.verify()
        assert report.vectors == 4
        assert len(report.repaired) == 1 and report.repaired[0].startswith("/2: its vector (row 2")
        assert report.lost == ()
        assert writer.verify().sound
    assert sorted(vectors_by_path(four)) == ["/0", "/1", "/3"]


def test_verify_repairs_a_file_that_lost_its_tail(four: Index) -> None:
    os.truncate(four.folder / "vectors" / "image-00001.f32", 2 * 16 + 5)
    with pytest.raises(IndexDamaged, match="verify"), four.snapshot():
        pass
    with four.writing() as writer:
        report = writer.verify()
        assert [line.split(":")[0] for line in report.repaired[1:]] == ["/2", "/3"]
        assert writer.verify().sound
        writer.apply([put("/2", EYE[2], 2)])
    assert vectors_by_path(four) == {"/0": [1, 0, 0, 0], "/1": [0, 1, 0, 0], "/2": [0, 0, 1, 0]}


def test_verify_erases_a_vector_that_no_row_names(four: Index) -> None:
    with sqlite3.connect(four.folder / "catalogue.db") as database:
        database.execute("DELETE FROM items WHERE row = 1")
        database.execute("DELETE FROM assets WHERE path = ?", (b"/1",))
    database.close()
    with four.writing() as writer:
        report = writer.verify()
        assert report.repaired == (
            "1 vectors in image-00001.f32 belonged to nothing; erased",
            "the word search differed from 1 passages and names; made again",
        )
        assert writer.verify().sound
    on_disk = np.frombuffer((four.folder / "vectors" / "image-00001.f32").read_bytes(), "<f4").reshape(-1, 4)
    assert not on_disk[1].any() and on_disk[[0, 2, 3]].any(axis=1).all()


def test_verify_erases_a_vector_that_should_have_been_erased(four: Index) -> None:
    file = four.folder / "vectors" / "image-00001.f32"
    before = file.read_bytes()
    with four.writing() as writer:
        writer.apply([Remove([2])])
        file.write_bytes(before)
        assert writer.verify().repaired == ("1 vectors in image-00001.f32 outlived their file; erased",)
        assert writer.verify().sound


def test_verify_says_what_is_lost_for_good(index: Index) -> None:
    added = Put(Asset("", Modality.IMAGE, 1, 2, b"x" * 16, key="mine"), [Piece(Modality.IMAGE)], EYE[:1])
    with index.writing() as writer:
        writer.apply([added])
        flip(index.folder / "vectors" / "image-00001.f32", 3)
        report = writer.verify()
    assert len(report.lost) == 1 and report.lost[0].startswith("mine: ")


def test_a_broken_database_is_an_error_in_words(four: Index) -> None:
    four.close()
    (four.folder / "catalogue.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(IndexDamaged, match="is damaged"), Index.open(four.folder).snapshot():
        pass


# -- opening and creating ----------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_in_words(index: Index) -> None:
    with index.writing():
        other = Index.open(index.folder)
        with pytest.raises(IndexBusy, match="another mmsearch process is writing"), other.writing():
            pass
    with Index.open(index.folder).writing() as writer:
        assert writer.verify().sound


def test_no_index_no_answer(tmp_path: Path) -> None:
    with pytest.raises(NoIndex, match="mmsearch index"):
        Index.open(tmp_path)


def test_a_folder_with_other_things_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UsageError, match=r"thesis\.doc"):
        Index.create(tmp_path, encoder="e", fingerprint="f", dim=4)


def test_a_half_made_index_is_made_again(tmp_path: Path) -> None:
    Index.create(tmp_path, encoder="e", fingerprint="f", dim=4).close()
    (tmp_path / "manifest.json").unlink()
    with Index.create(tmp_path, encoder="e", fingerprint="f", dim=4) as index, index.writing() as writer:
        assert writer.verify().sound


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "\x00"])
def test_a_damaged_manifest_is_an_error_in_words(index: Index, text: str) -> None:
    (index.folder / "manifest.json").write_text(text)
    with pytest.raises(IndexDamaged, match=r"manifest\.json is damaged"):
        Index.open(index.folder)


def test_a_newer_format_is_left_alone(index: Index) -> None:
    manifest = json.loads((index.folder / "manifest.json").read_text())
    (index.folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99, "new": 1}))
    with pytest.raises(StorageError, match="format 99"):
        Index.open(index.folder)
