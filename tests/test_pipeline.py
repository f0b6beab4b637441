"""One indexing run on real files: added, changed, moved, copied, removed, broken; each with its own vector."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, unit
from PIL import Image

import mmsearch
from indexer import pipeline, reading
from indexer.content import Digest
from indexer.errors import ModelError
from indexer.reading import Read
from indexer.types import Modality

Paint = Callable[..., Path]
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def stored(library: mmsearch.Library) -> dict[str, list[float]]:
    """Every picture in the index, by its path below ``photos``, with its vector."""
    index = library._need_index()
    found: dict[str, list[float]] = {}
    with index.snapshot() as snapshot:
        file = snapshot.vectors[Modality.IMAGE]
        rows = sorted(set(range(file.rows)) - set(snapshot.dead[Modality.IMAGE].tolist()))
        for row, item in snapshot.reader.items_at(Modality.IMAGE, rows).items():
            found[item.asset.path.split("/photos/")[-1]] = file.fetch(np.array([row]))[0].round(4).tolist()
    return found


def passages(library: mmsearch.Library) -> list[tuple[str, str]]:
    index = library._need_index()
    with index.snapshot() as snapshot:
        rows = list(range(snapshot.state.rows[Modality.TEXT]))
        items = snapshot.reader.items_at(Modality.TEXT, rows)
        return [(Path(items[r].asset.path).name, items[r].text or "") for r in sorted(items)]


def counts(report: mmsearch.UpdateReport) -> dict[str, int]:
    """What a report counts, without zeros and without time."""
    names = ("added", "updated", "moved", "duplicates", "removed", "unchanged", "items", "skipped_before")
    found = {name: getattr(report, name) for name in names} | {"skipped": len(report.skipped)}
    return {name: count for name, count in found.items() if count}


def colour(n: int) -> tuple[int, int, int]:
    return (n * 37 % 256, n * 91 % 256, n * 151 % 256)


def vector(rgb: tuple[int, int, int]) -> list[float]:
    return unit(np.array([rgb]) / 255)[0].round(4).tolist()


def test_every_picture_has_its_own_vector_with_broken_ones_in_between(library: mmsearch.Library, paint: Paint) -> None:
    """150 pictures in five batches, every seventh is broken: each good one has the vector of its own colour."""
    expected = {}
    for n in range(150):
        path = paint(f"{n:03}.png", colour(n))
        if n % 7 == 3:
            path.write_bytes(path.read_bytes()[:40])
        else:
            expected[path.name] = vector(colour(n))
    report = library.index(path.parent)
    assert stored(library) == expected
    assert sorted(Path(s.path).name for s in report.skipped) == [f"{n:03}.png" for n in range(150) if n % 7 == 3]
    assert counts(report) == {"added": 129, "items": 129, "skipped": 21}


def test_nothing_changed_nothing_read(library: mmsearch.Library, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in photos.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    library.index(photos)
    opened: list[str] = []
    monkeypatch.setattr(reading, "open_regular", opened.append)
    assert counts(library.index(photos)) == {"unchanged": 4}
    assert opened == []


def test_a_changed_file_takes_its_new_content_and_loses_the_old(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    Image.new("RGB", (16, 16), BLUE).transpose(Image.Transpose.ROTATE_90).save(photos / "red.png", compress_level=1)
    (photos / "notes.txt").write_text("a blue thing\n")
    assert counts(library.index(photos)) == {"updated": 2, "unchanged": 2, "items": 2}
    assert stored(library)["red.png"] == vector(BLUE)
    assert passages(library) == [("notes.txt", "a blue thing")]
    assert all(hit.score < 0.5 for hit in library.query("red"))


def test_same_size_and_a_change_in_the_middle_is_a_change(library: mmsearch.Library, tmp_path: Path) -> None:
    """Two bitmaps of 2 MB, equal in size and at both ends, are two pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.new("RGB", (792, 792), RED)  # which is shrunk by 66, to 12 rows
    image.save(folder / "a.bmp")
    image.paste(GREEN, (0, 396, 792, 594))
    image.save(folder / "b.bmp")
    data = [(folder / name).read_bytes() for name in ("a.bmp", "b.bmp")]
    assert len(data[0]) == len(data[1]) and data[0][:470_000] == data[1][:470_000]
    library.index(folder)
    assert stored(library) == {"a.bmp": vector(RED), "b.bmp": unit(np.array([[3 / 4, 1 / 4, 0]]))[0].round(4).tolist()}


def test_a_rewrite_within_one_clock_tick_is_noticed(library: mmsearch.Library, photos: Path) -> None:
    """Same size and, as on file systems with coarse clocks, the same time stamp."""
    (photos / "notes.txt").write_text("a red thing")
    stamp = os.stat(photos / "notes.txt").st_mtime_ns
    library.index(photos)
    (photos / "notes.txt").write_text("a new thing")
    os.utime(photos / "notes.txt", ns=(stamp, stamp))
    library.index(photos)
    assert passages(library) == [("notes.txt", "a new thing")]


def test_a_touched_file_is_not_embedded_again(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    seen = library.encoder.images_seen  # type: ignore[attr-defined]
    os.utime(photos / "red.png", (1, 1))
    assert counts(library.index(photos)) == {"unchanged": 4}
    assert library.encoder.images_seen == seen  # type: ignore[attr-defined]


def test_moved_and_copied_files_keep_their_vectors(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    seen = library.encoder.images_seen  # type: ignore[attr-defined]
    (photos / "album").mkdir()
    (photos / "red.png").rename(photos / "album" / "rouge.png")
    shutil.copy(photos / "blue.png", photos / "album" / "blue.png")
    (photos / "notes.txt").rename(photos / "album" / "words.txt")
    assert counts(library.index(photos)) == {"moved": 2, "duplicates": 1, "unchanged": 2, "items": 1}
    assert stored(library) == {
        "album/rouge.png": vector(RED),
        "album/blue.png": vector(BLUE),
        "blue.png": vector(BLUE),
        "green.png": vector(GREEN),
    }
    assert {name for name, _ in passages(library)} == {"words.txt"}
    assert library.encoder.images_seen == seen  # type: ignore[attr-defined]
    assert library.verify().sound


def test_two_files_that_change_places(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    (photos / "red.png").rename(photos / "x")
    (photos / "green.png").rename(photos / "red.png")
    (photos / "x").rename(photos / "green.png")
    library.index(photos)
    assert stored(library) == {"red.png": vector(GREEN), "green.png": vector(RED), "blue.png": vector(BLUE)}
    assert library.verify().sound


def test_three_files_that_move_round_in_a_circle(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    for old, new in (("red", "1"), ("green", "2"), ("blue", "3")):
        (photos / f"{old}.png").rename(photos / f"{new}.tmp")
    for old, new in (("1", "green"), ("2", "blue"), ("3", "red")):
        (photos / f"{old}.tmp").rename(photos / f"{new}.png")
    library.index(photos)
    assert stored(library) == {"red.png": vector(BLUE), "green.png": vector(RED), "blue.png": vector(GREEN)}


def test_removed_files_are_purged_and_files_elsewhere_are_not(library: mmsearch.Library, paint: Paint) -> None:
    paint("here/a.png", RED)
    gone = paint("here/b.png", GREEN)
    there = paint("there/c.png", BLUE)
    library.index(gone.parent, there.parent)
    gone.unlink()
    there.unlink()
    assert counts(library.index(gone.parent)) == {"removed": 1, "unchanged": 1}
    assert stored(library) == {"here/a.png": vector(RED), "there/c.png": vector(BLUE)}


def test_an_emptied_folder_may_be_a_drive_that_is_not_mounted(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    for path in photos.iterdir():
        path.unlink()
    report = library.index(photos)
    assert "4 of its files are in the index; they are kept" in report.skipped[0].reason
    assert sorted(stored(library)) == ["blue.png", "green.png", "red.png"]
    assert library.remove(photos) == 4
    assert stored(library) == {}


def test_the_same_name_in_two_folders_is_two_files(library: mmsearch.Library, paint: Paint) -> None:
    paint("2021/IMG_0001.png", RED)
    folder = paint("2022/IMG_0001.png", BLUE).parent.parent
    library.index(folder)
    assert stored(library) == {"2021/IMG_0001.png": vector(RED), "2022/IMG_0001.png": vector(BLUE)}


def test_equal_bytes_under_another_suffix_are_cut_by_its_own_rules(library: mmsearch.Library, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.txt").write_text("image\tcaption\nx.jpg\ta red thing\n")
    shutil.copy(folder / "a.txt", folder / "b.tsv")
    library.index(folder)
    assert [text for name, text in passages(library) if name == "b.tsv"] == ["a red thing"]
    assert [text for name, text in passages(library) if name == "a.txt"] != ["a red thing"]


def test_a_skipped_file_is_not_tried_again_until_it_changes(library: mmsearch.Library, paint: Paint) -> None:
    good = paint("good.png", RED)
    bad = good.with_name("bad.png")
    bad.write_bytes(b"")
    os.utime(bad, (1_000_000_000, 1_000_000_000))
    first = library.index(good.parent)
    assert [(Path(s.path).name, s.reason) for s in first.skipped] == [("bad.png", "the file is empty")]
    assert counts(library.index(good.parent)) == {"unchanged": 1, "skipped_before": 1}
    assert [s.reason for s in library.status().skipped] == ["the file is empty"]
    shutil.copy(good, bad)
    assert counts(library.index(good.parent)) == {"unchanged": 1, "duplicates": 1, "items": 1}
    assert library.status().skipped == ()


def test_a_good_file_that_breaks_is_no_longer_found(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    (photos / "red.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    report = library.index(photos)
    assert len(report.skipped) == 1
    assert sorted(stored(library)) == ["blue.png", "green.png"]


def test_a_file_that_vanishes_while_reading(library: mmsearch.Library, photos: Path) -> None:
    """The pictures are deleted between the walk and the reading; the run ends and purges them."""
    for path in photos.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    library.index(photos)
    for name in ("red.png", "green.png"):
        os.utime(photos / name, (5, 5))
    original = pipeline._Run._read

    def delete_and_read(run: pipeline._Run, found: pipeline.Found) -> Read:
        Path(found.path).unlink()
        return original(run, found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline._Run, "_read", delete_and_read)
        report = library.index(photos)
    assert counts(report) == {"removed": 2, "unchanged": 2}
    assert stored(library) == {"blue.png": vector(BLUE)}


def test_a_file_that_keeps_changing_while_reading(library: mmsearch.Library, photos: Path) -> None:
    log = photos / "log.txt"
    log.write_text("a red line\n")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with log.open("a") as file:
                file.write("a red line\n")
            time.sleep(0.001)

    original = Digest.of_stream

    def slow(by: Digest, file: io.BufferedReader) -> bytes:
        digest = original(by, file)
        time.sleep(0.05)
        return digest

    writer = threading.Thread(target=write)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digest, "of_stream", slow)
        writer.start()
        try:
            report = library.index(log)
        finally:
            stop.set()
            writer.join()
    assert len(report.skipped) == 1 and "changing" in report.skipped[0].reason
    log.write_text("a red line\n")
    assert counts(library.index(photos))["added"] == 5


def test_a_model_that_fails_on_one_picture_fails_on_that_one_only(tmp_path: Path, paint: Paint) -> None:
    class NoGreen(ColourEncoder):
        def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
            vectors = super().encode_prepared(batch)
            if (vectors[:, 1] > 0.8).any():
                raise ModelError("it gave a vector that is not finite")
            return vectors

    paint("red.png", RED)
    paint("green.png", GREEN)
    folder = paint("blue.png", BLUE).parent
    with mmsearch.open(tmp_path / "index", model=NoGreen()) as library:
        report = library.index(folder)
        assert stored(library) == {"red.png": vector(RED), "blue.png": vector(BLUE)}
        assert [s.reason for s in report.skipped] == ["the model cannot take it: it gave a vector that is not finite"]


def test_a_model_that_fails_on_everything_ends_the_run(tmp_path: Path, photos: Path) -> None:
    class Broken(ColourEncoder):
        def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
            raise RuntimeError("out of luck")

    with mmsearch.open(tmp_path / "index", model=Broken()) as library:
        with pytest.raises(ModelError, match="fails on every file: out of luck"):
            library.index(photos)
        assert library.verify().sound


def test_a_long_text_comes_in_batches_and_an_interrupted_one_carries_on(tmp_path: Path) -> None:
    """500 passages, stopped after the third batch; the next run embeds only what is missing."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.txt").write_text(
        "\n\n".join(f"red thing number {n} of many more words to come here" for n in range(500))
    )

    class Counting(ColourEncoder):
        texts = 0
        limit = 3 * pipeline.TEXT_BATCH

        def encode_texts(self, texts):  # type: ignore[no-untyped-def]
            if Counting.texts >= Counting.limit:
                raise KeyboardInterrupt
            Counting.texts += len(texts)
            return super().encode_texts(texts)

    with mmsearch.open(tmp_path / "index", model=Counting()) as library:
        with pytest.raises(KeyboardInterrupt):
            library.index(folder)
        assert library.verify().sound
        assert len(passages(library)) == 192
        Counting.limit = 10_000
        report = library.index(folder)
        assert Counting.texts == 500
        assert report.items == 500 - 192
        assert [text.split()[3] for _, text in passages(library)] == [str(n) for n in range(500)]
        assert counts(library.index(folder)) == {"unchanged": 1}


def test_progress_counts_up_to_the_total(library: mmsearch.Library, photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    library.index(photos, progress=lambda p: seen.append((p.done, p.total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_index_does_not_index_itself(photos: Path) -> None:
    with mmsearch.open(photos / "index", model=ColourEncoder()) as library:
        library.index(photos)
        (photos / "index" / "vectors" / "stray.txt").write_text("a red thing")
        assert counts(library.index(photos)) == {"unchanged": 4}
