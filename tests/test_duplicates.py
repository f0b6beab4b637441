"""What an index holds twice, in groups: the same bytes, one picture saved again, shots of one thing minutes apart."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import GREEN
from PIL import Image
from test_cli import mmsearch as run
from test_copies import LargerColours, photo, save

import mmsearch
from indexer.changes import Piece, Put
from indexer.index import Index
from indexer.records import Likeness
from indexer.types import Asset, Modality
from mmsearch.copies import File, alike
from mmsearch.duplicates import MINUTES, Duplicates, find

NOON = 1_600_000_000


@pytest.fixture
def library(tmp_path: Path) -> Iterator[mmsearch.Library]:
    with mmsearch.open(tmp_path / "index", model=LargerColours()) as library:
        yield library


def groups(found: Duplicates) -> list[tuple[str, list[str]]]:
    return [(group.kind, [Path(file.name).name for file in group.files]) for group in found.groups]


def shot(path: Path, image: Image.Image, minute: int) -> Path:
    """A photograph of a camera whose clock shows this minute after noon."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = f"2019:07:31 12:{minute:02}:00"
    return save(path, image, exif=exif, quality=95)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    save(folder / "original.jpg", photo(0), days_ago=9, quality=95)
    save(folder / "other.jpg", photo(1), days_ago=9, quality=95)
    for name in ("original.jpg", "other.jpg"):
        (folder / "backup").mkdir(exist_ok=True)
        shutil.copy(folder / name, folder / "backup" / f"backup-{name}")
    save(folder / "sent.jpg", photo(0).resize((320, 240)), quality=50)
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("a green thing\n")
        os.utime(folder / name, (NOON, NOON))
    wide = photo(2).resize((600, 400))
    shot(folder / "shots" / "1.jpg", wide, 0)
    shot(folder / "shots" / "2.jpg", wide.crop((60, 40, 600, 400)).resize((600, 400)), 2)
    shot(folder / "shots" / "3.jpg", wide.crop((0, 0, 540, 360)).resize((600, 400)), 10 + MINUTES)
    return folder


EXPECTED = [
    ("identical", ["original.jpg", "backup-original.jpg"]),
    ("identical", ["other.jpg", "backup-other.jpg"]),
    ("identical", ["a.txt", "b.txt"]),
    ("resaved", ["original.jpg", "sent.jpg"]),
    ("similar", ["1.jpg", "2.jpg"]),
]


def test_three_kinds_of_groups_the_best_of_each_first(library: mmsearch.Library, folder: Path) -> None:
    library.index(folder)
    assert sorted(groups(library.duplicates())) == sorted(EXPECTED)


def test_only_below_a_folder(library: mmsearch.Library, folder: Path) -> None:
    library.index(folder)
    assert groups(library.duplicates(under=folder / "shots")) == [("similar", ["1.jpg", "2.jpg"])]
    assert groups(library.duplicates(under=[folder / "shots", folder / "backup"])) == [("similar", ["1.jpg", "2.jpg"])]
    assert groups(library.duplicates(under=folder / "nowhere")) == []


def test_plain_pictures_are_duplicates_by_their_bytes_alone(library: mmsearch.Library, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    for n, side in enumerate((80, 80, 90)):
        save(folder / f"{n}.png", Image.new("RGB", (side, side), GREEN), days_ago=n)
    library.index(folder)
    assert groups(library.duplicates()) == [("identical", ["1.png", "0.png"])]


def test_without_an_index_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with mmsearch.open(tmp_path / "none") as library, pytest.raises(mmsearch.NoIndex):
        library.duplicates()


# -- many, and the plain twin ------------------------------------------------------------------------------------------


def make(folder: Path, count: int, seed: int = 0) -> Index:
    """An index of made-up pictures, a part of them copies, or shots of one thing."""
    chance = np.random.default_rng(seed)
    phashes = chance.integers(0, 1 << 63, count, dtype=np.uint64).tolist()
    details = [int.from_bytes(chance.bytes(32), "big") for _ in range(count)]
    vectors = chance.normal(size=(count, 8))
    taken = (NOON + chance.uniform(0, 60 * count, count)).tolist()
    puts = []
    for n in range(count):
        like, kind = int(chance.integers(0, n + 1)), chance.uniform()
        digest = n.to_bytes(16, "big")
        if like < n and kind < 0.3:
            phashes[n], details[n], digest = phashes[like], details[like], like.to_bytes(16, "big")
            if kind > 0.1:
                digest = n.to_bytes(16, "big")
                for bit in chance.integers(0, 64, int(chance.integers(0, 4))):
                    phashes[n] ^= 1 << int(bit)
                for bit in chance.integers(0, 256, int(chance.integers(0, 18))):
                    details[n] ^= 1 << int(bit)
        elif like < n and kind < 0.6:
            taken[n] = taken[like] + chance.uniform(-900, 900)
            vectors[n] = vectors[like] + 0.2 * chance.normal(size=8)
        side = int(chance.integers(100, 104))
        look = Likeness(side, side, phashes[n], details[n].to_bytes(32, "big"))
        asset = Asset(f"/{n}", Modality.IMAGE, 1, NOON, digest, taken[n] if n % 7 else None)
        vector = (vectors[n] / np.linalg.norm(vectors[n])).astype(np.float32)
        puts.append(Put(asset, [Piece(Modality.IMAGE)], vector[None], likeness=look))
    index = Index.create(folder, encoder="made-up", fingerprint="f", dim=8)
    with index.writing() as writer:
        for start in range(0, count, 5000):
            writer.apply(puts[start : start + 5000])
    return index


def plain(files: Sequence[File], vectors: dict[int, np.ndarray]) -> list[tuple[str, list[str]]]:
    """Every file compared with every other, the best first; each kind among the first of the groups before."""

    def group(kind: str, files: Sequence[File]) -> tuple[list[tuple[str, list[str]]], list[File]]:
        rest, found, firsts = sorted(files, key=File.order), [], []
        while rest:
            first, near = rest[0], [rest[0]]
            for other in rest[1:]:
                if kind == "identical":
                    same = first.asset.digest == other.asset.digest
                elif kind == "resaved":
                    assert first.likeness and other.likeness
                    same = alike(first.likeness, other.likeness)
                else:
                    dated = first.asset.taken is not None and other.asset.taken is not None
                    same = dated and abs(first.asset.taken - other.asset.taken) <= 60 * MINUTES  # type: ignore[operator]
                    same = same and float(vectors[first.asset_id] @ vectors[other.asset_id]) >= 0.9
                near += [other] if same else []
            rest = [file for file in rest if file not in near]
            firsts.append(first)
            found += [(kind, [file.name for file in near])] if len(near) > 1 else []
        return found, firsts

    identical, files = group("identical", files)
    resaved, files = group("resaved", files)
    return identical + resaved + group("similar", files)[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_groups_are_those_of_comparing_every_two(tmp_path: Path, seed: int) -> None:
    with make(tmp_path / "index", 400, seed) as index, index.snapshot() as snapshot:
        assets = snapshot.reader.complete_assets()
        looks = snapshot.reader.likenesses(list(assets))
        rows = snapshot.reader.picture_rows(list(assets))
        vectors = {i: snapshot.vectors[Modality.IMAGE].fetch(np.array([row]))[0] for i, row in rows.items()}
        expected = plain([File(i, asset, looks[i]) for i, asset in assets.items()], vectors)
        found = [(group.kind, [file.name for file in group.files]) for group in find(snapshot).groups]
        assert {kind for kind, _ in expected} == {"identical", "resaved", "similar"} and len(expected) > 60
        assert found == expected


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow(reason="runs the command as a process")
def test_the_command_lists_groups_and_deletes_nothing(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert run("index", folder, "--index", index).returncode == 0
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    shown = run("duplicates", "--index", index, cwd=folder)
    assert shown.returncode == 0 and shown.stderr == ""
    lines = shown.stdout.splitlines()
    size = (folder / "original.jpg").stat().st_size
    at = lines.index(f"  original.jpg  {photo(0).width} x {photo(0).height}  {size / 1e3:,.0f} kB")
    assert lines[at - 1] == "identical, 2 files:" and lines[at + 1].startswith("  backup/backup-original.jpg  ")
    values = json.loads(run("duplicates", "--json", "--index", index).stdout)
    kinds = [
        (group["kind"], [Path(file["path"]).name for file in group["files"]])
        for group in values["groups"]
        if group["kind"] != "similar"  # what is similar is the model's to say
    ]
    assert sorted(kinds) == sorted(EXPECTED[:4]) and values["without_hash"] == 0
    first = values["groups"][0]["files"][0]
    assert set(first) >= {"path", "bytes"} and first["bytes"] == Path(first["path"]).stat().st_size
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    none = run("duplicates", "--under", tmp_path / "index", "--index", index)
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "mmsearch: nothing is there twice\n")
    missing = run("duplicates", "--index", tmp_path / "nowhere")
    assert missing.returncode == 1 and missing.stdout == ""
