"""Copies of one file are one answer: same bytes, or a photograph that was saved, resized or encoded again."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder
from conftest import GREEN, RED, SAMPLES
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from test_cli import ask
from test_cli import mmsearch as run

import mmsearch
from indexer.add import Addition
from indexer.decode import decode_image
from indexer.decode.likeness import likeness
from indexer.index import Index
from indexer.records import Likeness
from mmsearch.copies import alike, alike_pairs


class LargerColours(ColourEncoder):
    """As any real model it takes more than the hash needs."""

    image_size = 64


@pytest.fixture
def library(tmp_path: Path) -> Iterator[mmsearch.Library]:
    with mmsearch.open(tmp_path / "index", model=LargerColours()) as library:
        yield library


PHOTOS = sorted((SAMPLES / "photos").rglob("*.jpg"), key=lambda path: (-path.stat().st_size, path.name))
DAY = 86400


def look(path: Path) -> Likeness:
    return likeness(decode_image(path.read_bytes(), size=64))


def photo(number: int) -> Image.Image:
    return Image.open(PHOTOS[number]).convert("RGB")


def save(path: Path, image: Image.Image, days_ago: int = 1, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    stamp = 1_700_000_000 - days_ago * DAY
    os.utime(path, (stamp, stamp))
    return path


def names(hits: Sequence[mmsearch.Hit]) -> list[str]:
    return [Path(str(hit.path or hit.key)).name for hit in hits]


def copies(hit: mmsearch.Hit) -> list[str]:
    return [Path(name).name for name in hit.copies]


# -- the hash ----------------------------------------------------------------------------------------------------------


def resaved(image: Image.Image) -> Iterator[tuple[str, Image.Image, dict[str, object]]]:
    for quality in (30, 60, 95):
        yield f"q{quality}.jpg", image, {"quality": quality}
    for share in (4, 2):
        yield f"r{share}.jpg", image.resize((image.width // share, image.height // share)), {"quality": 85}
    yield "plain.png", image, {}
    yield "small.webp", image.resize((image.width * 3 // 4, image.height * 3 // 4)), {"quality": 60}
    yield "bright.jpg", ImageEnhance.Brightness(image).enhance(1.1), {"quality": 85}
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    yield "turned.jpg", image.transpose(Image.Transpose.ROTATE_90), {"quality": 90, "exif": exif}


def test_a_photograph_is_alike_however_it_is_saved_and_no_other_is(tmp_path: Path) -> None:
    originals = [look(path) for path in PHOTOS]
    for path, original in list(zip(PHOTOS, originals, strict=True))[:6]:
        for name, image, options in resaved(ImageOps.exif_transpose(Image.open(path)).convert("RGB")):
            again = look(save(tmp_path / name, image, **options))
            assert alike(original, again), (path.name, name)
            assert [one for one in originals if alike(one, again)] == [original], (path.name, name)


def test_the_size_is_that_of_the_whole_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = look(save(tmp_path / "a.jpg", photo(0).resize((900, 600)), exif=exif))
    assert (turned.width, turned.height) == (600, 900)


def test_plain_and_tiny_pictures_have_no_hash(tmp_path: Path) -> None:
    for n, image in enumerate(
        [
            Image.new("RGB", (300, 200), RED),
            Image.new("RGB", (300, 200), (250, 250, 250)),
            photo(0).resize((31, 200)),
        ]
    ):
        assert look(save(tmp_path / f"{n}.png", image)).phash is None
    nothing = Likeness(300, 200, None, None)
    assert not alike(nothing, nothing)


def test_pages_of_one_layout_are_not_alike(tmp_path: Path) -> None:
    """Text on white is the hardest: in the 64 bits alone, some of these agree."""
    pages = []
    for n in range(12):
        page, chance = Image.new("RGB", (800, 1100), "white"), random.Random(n)
        draw = ImageDraw.Draw(page)
        for y in range(60, 1040, 22):
            draw.text((60, y), " ".join(chance.choice(("total", "of", "invoice", "a")) for _ in range(18)), "black")
        pages.append(look(save(tmp_path / f"{n}.png", page)))
    assert all(page.phash is not None for page in pages) and alike_pairs(pages) == []


def test_pairs_are_those_of_the_plain_comparison_of_all() -> None:
    """3,000 hashes of few kinds, with 0 to 9 bits changed in either of the two."""
    chance = np.random.default_rng(0)
    seeds = [(int(a), bytes(b)) for a, b in zip(
        chance.integers(0, 1 << 63, 40, dtype=np.uint64), chance.integers(0, 256, (40, 32), dtype=np.uint8), strict=True
    )]  # fmt: skip
    some: list[Likeness | None] = [None, Likeness(1, 1, None, None)]
    for n in range(600):
        phash, detail = seeds[n % 40]
        for bit in chance.integers(0, 64, chance.integers(0, 4)):
            phash ^= 1 << int(bit)
        wide = int.from_bytes(detail, "big")
        for bit in chance.integers(0, 256, chance.integers(0, 20)):
            wide ^= 1 << int(bit)
        some.append(Likeness(1, 1, phash, wide.to_bytes(32, "big")))
    plain = [
        (i, j)
        for j, other in enumerate(some)
        for i, one in enumerate(some[:j])
        if one is not None and other is not None and alike(one, other)
    ]
    assert len(plain) > 1000 and alike_pairs(some) == sorted(plain)


def test_hashes_of_fifty_thousand_pictures_are_compared_in_seconds() -> None:
    """Their bits hang together, as those of photographs do, so that many share a part."""
    chance = np.random.default_rng(0)
    common = chance.normal(size=(50_000, 6)) @ chance.normal(size=(6, 64))
    bits = np.packbits(common + 1.2 * chance.normal(size=(50_000, 64)) > 0, axis=1)  # (50000, 8)
    looks: list[Likeness | None] = [Likeness(1, 1, int.from_bytes(one, "big"), chance.bytes(32)) for one in bits]
    looks += [looks[7], looks[49_999]]
    started = time.monotonic()
    assert alike_pairs(looks) == [(7, 50_000), (49_999, 50_001)]
    assert time.monotonic() - started < 30


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def albums(tmp_path: Path) -> Path:
    """A photograph, its bytes again, two smaller ones of it, and another photograph."""
    folder = tmp_path / "albums"
    original = save(folder / "a" / "original.jpg", photo(0), days_ago=9, quality=95)
    shutil.copy2(original, folder / "again.jpg")
    os.utime(folder / "again.jpg", (1_700_000_000, 1_700_000_000))
    save(folder / "b" / "sent.jpg", photo(0).resize((320, 240)), quality=40)
    save(folder / "b" / "sent.webp", photo(0).resize((400, 300)), quality=70)
    save(folder / "other.jpg", photo(1), quality=95)
    return folder


def test_copies_are_one_answer_and_the_largest_and_oldest_is_shown(library: mmsearch.Library, albums: Path) -> None:
    library.index(albums)
    hits = library.query("red", k=10)
    assert sorted(names(hits)) == ["original.jpg", "other.jpg"]
    (hit,) = (hit for hit in hits if hit.copies)
    assert copies(hit) == ["again.jpg", "sent.webp", "sent.jpg"]
    assert hit.as_dict()["copies"] == list(hit.copies) and hit.rank == hits.index(hit) + 1
    apart = library.query("red", k=10, collapse=False)
    assert sorted(names(apart)) == ["again.jpg", "original.jpg", "other.jpg", "sent.jpg", "sent.webp"]
    assert all(one.copies == () for one in apart)
    assert hit.score == max(one.score for one in apart if one.path and one.path.name != "other.jpg")


def test_a_shorter_list_is_the_beginning_of_a_longer_one(library: mmsearch.Library, albums: Path) -> None:
    """Which copies there are the index says, not how many pieces were looked at."""
    library.index(albums)
    long = library.query("red", k=10)
    assert len(long) == 2
    for k in (1, 2, 5):
        assert library.query("red", k=k) == long[:k]


def test_only_copies_that_may_answer_count(library: mmsearch.Library, albums: Path) -> None:
    library.index(albums)
    (hit,) = library.query("red", under=albums / "b", k=9)
    assert names([hit]) == ["sent.webp"] and copies(hit) == ["sent.jpg"]
    (late,) = (hit for hit in library.query("red", after="2023-11-13", k=9) if hit.copies)
    assert names([late]) == ["again.jpg"] and copies(late) == ["sent.webp", "sent.jpg"]


def test_the_copy_whose_name_was_asked_for_is_shown(library: mmsearch.Library, albums: Path) -> None:
    library.index(albums)
    (hit,) = (hit for hit in library.query("sent", k=9) if hit.copies)
    assert names([hit]) == ["sent.webp"] and copies(hit) == ["sent.jpg", "original.jpg", "again.jpg"]
    (exact,) = library.query("original", exact=True)
    assert names([exact]) == ["original.jpg"] and copies(exact) == ["again.jpg", "sent.webp", "sent.jpg"]
    (exact,) = library.query("again", exact=True)
    assert names([exact]) == ["again.jpg"] and copies(exact) == ["original.jpg", "sent.webp", "sent.jpg"]
    assert names(library.query("sent", exact=True, collapse=False)) == ["sent.jpg", "sent.webp"]


def test_one_colour_is_no_copy_of_another_picture_of_it(library: mmsearch.Library, paint: Callable[..., Path]) -> None:
    paint("a.png", RED, 40)
    folder = paint("b.png", RED, 50).parent
    paint("c.png", (254, 0, 0), 40)
    library.index(folder)
    assert sorted(names(library.query("red", k=9))) == ["a.png", "b.png", "c.png"]


def test_texts_with_the_same_bytes_are_one_answer_passage_by_passage(library: mmsearch.Library, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for n, name in enumerate(("new.txt", "old.txt", "table.csv")):
        (folder / name).write_text("a red thing " * 7 + "\n\n" + "a green thing " * 7 + "\n")
        os.utime(folder / name, (1_700_000_000 - n * DAY,) * 2)
    library.index(folder)
    hits = library.query("red green", kind="text", k=20)
    of_notes = [hit for hit in hits if hit.path and hit.path.name != "table.csv"]  # which is cut up by other rules
    assert len(of_notes) >= 2 and set(names(of_notes)) == {"old.txt"}
    assert [copies(hit) for hit in of_notes] == [["new.txt"]] * len(of_notes)
    assert len({hit.text for hit in of_notes}) == len(of_notes)


def test_pictures_from_memory_are_copies_too(library: mmsearch.Library, albums: Path) -> None:
    library.index(albums / "b")
    library.add([Addition("mine", image=photo(0)), Addition("plain", image=Image.new("RGB", (90, 90)))])
    hits = library.query("red", k=9)
    assert sorted(names(hits)) == ["mine", "plain"]
    assert [copies(hit) for hit in hits if hit.key == "mine"] == [["sent.webp", "sent.jpg"]]


def test_what_is_removed_or_moved_is_no_copy_any_more(library: mmsearch.Library, albums: Path) -> None:
    library.index(albums)
    (albums / "b" / "sent.jpg").rename(albums / "moved.jpg")
    (albums / "again.jpg").unlink()
    library.index(albums)
    (hit,) = (hit for hit in library.query("red", k=9) if hit.copies)
    assert copies(hit) == ["sent.webp", "moved.jpg"]
    library.remove(albums / "a")
    (hit,) = (hit for hit in library.query("red", k=9) if hit.copies)
    assert names([hit]) == ["sent.webp"] and copies(hit) == ["moved.jpg"]


def test_many_copies_do_not_keep_others_out(library: mmsearch.Library, paint: Callable[..., Path]) -> None:
    for n in range(60):
        folder = paint(f"{n:02}.png", RED).parent
    paint("green.png", GREEN)
    library.index(folder)
    hits = library.query("red", k=2)
    assert names(hits) == ["00.png", "green.png"] and len(hits[0].copies) == 59


# -- an index without hashes ------------------------------------------------------------------------------------------


def make_old(folder: Path) -> None:
    """As an earlier version wrote it."""
    with sqlite3.connect(folder / "catalogue.db") as database:
        database.execute("DROP TABLE pictures")
        database.execute("UPDATE meta SET value = 4 WHERE name = 'schema'")
    database.close()


def test_an_index_without_hashes_is_read_and_learns_them_once(
    library: mmsearch.Library, albums: Path, tmp_path: Path
) -> None:
    library.index(albums)
    with Index.open(library.folder) as index, index.snapshot() as snapshot:
        before = snapshot.reader.likenesses(range(1, 6))
    library.close()
    make_old(library.folder)
    seen = library.encoder.images_seen  # type: ignore[attr-defined]
    with mmsearch.open(library.folder, model=library.encoder) as again:
        by_bytes = [copies(hit) for hit in again.query("red", k=9)]
        assert sorted(by_bytes) == [[], [], [], ["again.jpg"]]
        found = again.duplicates()
        assert [group.kind for group in found.groups] == ["identical"] and found.without_hash == 5
        said: list[str] = []
        assert again.index(albums, say=said.append).unchanged == 5
        assert said == [
            "looking once at 5 pictures that an earlier version indexed, so that copies among them are found"
        ]
        assert library.encoder.images_seen == seen  # type: ignore[attr-defined]  # no model takes part
        assert again.duplicates().without_hash == 0
        with again._need_index().snapshot() as snapshot:
            assert snapshot.reader.likenesses(range(1, 6)) == before
        again.index(albums, say=said.append)
        assert len(said) == 1


def test_a_picture_that_changed_since_stays_without(library: mmsearch.Library, albums: Path) -> None:
    """Its hash would not be that of the vector: it is made with the vector, when it is indexed."""
    library.index(albums)
    library.close()
    make_old(library.folder)
    save(albums / "other.jpg", photo(2))
    shutil.copystat(PHOTOS[2], albums / "other.jpg")
    with mmsearch.open(library.folder, model=library.encoder) as again:
        again.index(albums / "a")
        assert again.duplicates().without_hash == 4
        again.index(albums)
        assert again.duplicates().without_hash == 0


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow(reason="runs the command as a process")
def test_the_command_counts_copies_and_lists_them_when_asked(albums: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert run("index", albums, "--index", index).returncode == 0
    shown = run("query", "a photograph", "-k", "9", "--index", index)
    assert shown.returncode == 0
    (line,) = [line for line in shown.stdout.splitlines() if "original.jpg" in line]
    assert line.endswith("original.jpg (+3 copies)") and len(shown.stdout.splitlines()) == 2
    (hit,) = (hit for hit in ask(index, "a photograph", "-k", "9") if "copies" in hit)
    assert [Path(str(name)).name for name in hit["copies"]] == ["again.jpg", "sent.webp", "sent.jpg"]  # type: ignore[attr-defined]
    every = run("query", "a photograph", "-k", "9", "--all", "--index", index)
    assert len(every.stdout.splitlines()) == 5 and "(+" not in every.stdout


def test_a_hit_keeps_its_copies_where_it_leaves_the_process(library: mmsearch.Library, albums: Path) -> None:
    import pickle

    library.index(albums)
    (hit,) = (hit for hit in library.query("red", k=9) if hit.copies)
    assert pickle.loads(pickle.dumps(hit)).copies == hit.copies
    assert json.loads(json.dumps(hit.as_dict()))["copies"] == list(hit.copies)
    assert replace(hit, copies=()) != hit
