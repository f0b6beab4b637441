"""What the index survives: kill -9, full disks, read-only folders, a second writer, hostile files and names."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_encoder import ColourCompressor, ColourEncoder, PatchColourEncoder
from PIL import Image
from test_pipeline import colour, stored, vector

import mmsearch
from indexer.catalogue import Catalogue, Writer
from indexer.errors import IndexBusy, StorageError
from indexer.index import Index
from indexer.pipeline import add_tokens, update
from indexer.rowfile import RowFile
from indexer.types import VISUAL, Modality

pytestmark = pytest.mark.slow(reason="kills processes again and again")

KILLS = 25
CHILD = Path(__file__).with_name("kill_child.py")
Paint = Callable[..., Path]


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def everything(folder: Path) -> dict[tuple[str, str | None, int | None], tuple[bytes, bytes | None]]:
    """All that an index holds: (path, text, first line) to the bytes of the vector and of the tokens, if it has any."""
    found = {}
    with Index.open(folder) as index, index.snapshot() as snapshot:
        for modality in Modality:
            file = snapshot.vectors[modality]
            rows = np.setdiff1d(np.arange(file.rows), snapshot.dead[modality])
            for row, item in snapshot.reader.items_at(modality, rows.tolist()).items():
                line = item.span.first_line if item.span else None
                here = np.array([row])
                tokens = None
                if modality in VISUAL and snapshot.tokens(here, modality)[1].all():
                    tokens = snapshot.token_files[modality].fetch(here).tobytes()
                found[item.asset.path, item.text, line] = file.fetch(here).tobytes(), tokens
    return found


def with_tokens(index: Path) -> int:
    """How many pictures have sound tokens."""
    return sum(tokens is not None for _, tokens in everything(index).values())


def mutate(folder: Path, rng: random.Random, turn: int) -> None:
    """What people do to a folder between two runs: add, delete, change, move, copy."""
    files = sorted(folder.rglob("*.png"))
    for n in range(rng.randrange(20, 60)):
        sub = folder / f"album{rng.randrange(5)}"
        sub.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), colour(turn * 100 + n)).save(sub / f"{turn}-{n}.png")
    for path in rng.sample(files, min(len(files), 30)):
        match rng.randrange(4):
            case 0:
                path.unlink()
            case 1:
                Image.new("RGB", (9, 9), colour(rng.randrange(10_000))).save(path)
            case 2:
                path.rename(path.with_name(f"moved-{turn}-{path.name}"))
            case 3:
                shutil.copy(path, path.with_name(f"copy-{turn}-{path.name}"))
    for n in range(3):
        lines = (f"{rng.choice(['red', 'green', 'blue'])} thing {i} of turn {turn}" for i in range(rng.randrange(90)))
        (folder / f"notes{n}.txt").write_text("\n\n".join(lines) or "nothing")


def start(folder: Path, index: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(CHILD), str(folder), str(index), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.timeout(600)
def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """Killed at a random moment: the index verifies, all that was reported as committed is there; in the end it is
    equal, vectors and tokens byte by byte, to an index that was never disturbed. Every other run stores its pictures
    without tokens and adds these afterwards."""
    rng = random.Random(20)
    photos, index = tmp_path / "photos", tmp_path / "index"
    photos.mkdir()
    killed, longest = 0, 0.5
    for turn in range(KILLS * 3):
        if killed == KILLS:
            break
        mutate(photos, rng, turn)
        child = start(photos, index, *(["--no-tokens"] if turn % 2 else []))
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        began = time.monotonic()
        time.sleep(rng.uniform(0, longest))
        child.kill()
        said = child.communicate(timeout=60)[0].split("\n")[:-1]  # what follows the last line break was cut by the kill
        if "done" in said:
            longest = max(0.1, 0.9 * (time.monotonic() - began))  # it was too quick for the kill: be quicker
        else:
            killed += 1
        safe = {line.removeprefix("safe ") for line in said if line.startswith("safe ")}
        if not Index.exists(index):
            assert not safe
            continue
        with mmsearch.open(index, model=ColourEncoder()) as library:
            report = library.verify()
            assert report.sound, report
            held = {path for path, _, _ in everything(index)}
            assert safe <= held, f"turn {turn}: committed and lost: {safe - held}"
            added = sum(int(line.removeprefix("tokens ")) for line in said if line.startswith("tokens "))
            assert with_tokens(index) >= added, f"turn {turn}: tokens were committed and lost"
    assert killed == KILLS
    for folder in (index, tmp_path / "undisturbed"):
        run = start(photos, folder)
        assert run.communicate(timeout=250)[0].splitlines()[-1] == "done"
    with mmsearch.open(index, model=ColourEncoder()) as library:
        assert library.verify().sound
    expected = everything(tmp_path / "undisturbed")
    assert len(expected) > 500
    assert with_tokens(tmp_path / "undisturbed") == sum(text is None for _, text, _ in expected)
    assert everything(index) == expected


class Steps:
    """Dies, as by kill -9, at one of the steps that a writer takes, counted: write, fsync, commit, deletion."""

    def __init__(self, last: int) -> None:
        self.left = last
        for holder, name in ((RowFile, "append"), (RowFile, "overwrite"), (os, "fsync"), (Path, "unlink")):
            setattr(holder, name, self._before(getattr(holder, name)))
        Catalogue.write = self._committing(Catalogue.write)  # type: ignore[method-assign]

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os._exit(9)

    def _before(self, do: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **options: object) -> object:
            self.step()
            return do(*args, **options)

        return counted

    def _committing(self, write: Callable[[Catalogue], AbstractContextManager[Writer]]) -> Any:
        @contextmanager
        def counted(catalogue: Catalogue) -> Iterator[Writer]:
            with write(catalogue) as writer:
                yield writer
            self.step()

        return counted


def tend(folder: Path, photos: Path) -> None:
    """One run, the replacement of all tokens by others, and a compaction."""
    encoder = PatchColourEncoder()
    with Index.open(folder) as index:
        with index.snapshot() as snapshot:
            held = snapshot.state.tokens
        first, then = ColourCompressor("f125"), ColourCompressor("7e4")
        update(index, encoder, [photos], compressor=then if held == then.format else first)
        add_tokens(index, encoder, then)
        with index.writing() as writer:
            writer.compact()


def test_a_kill_at_every_step_loses_nothing(tmp_path: Path, paint: Paint) -> None:
    """Files come, change, move and go, tokens are replaced, and the writer dies at its first step, its second, …"""
    base, encoder = tmp_path / "base", PatchColourEncoder()
    for n in range(6):
        photos = paint(f"{n}.png", colour(n)).parent
    with Index.create(base, encoder=encoder.name, fingerprint=encoder.fingerprint, dim=encoder.dim) as index:
        update(index, encoder, [photos], compressor=ColourCompressor("f125"))
    paint("0.png", colour(100))
    (photos / "1.png").unlink()
    (photos / "2.png").rename(photos / "moved.png")
    shutil.copy(photos / "3.png", photos / "copy.png")
    paint("6.png", colour(101))
    shutil.copytree(base, tmp_path / "undisturbed")
    tend(tmp_path / "undisturbed", photos)
    expected = everything(tmp_path / "undisturbed")
    assert len(expected) == with_tokens(tmp_path / "undisturbed") == 7
    for last in itertools.count(1):
        index_folder = tmp_path / "index"
        shutil.copytree(base, index_folder)
        child = os.fork()
        if child == 0:
            try:
                # A lock that another thread held at the fork is never let go of here; who waits for one ends by this.
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(60)
                Steps(last)
                tend(index_folder, photos)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        with Index.open(index_folder) as index, index.writing() as writer:
            assert writer.verify().sound, f"step {last}"
        tend(index_folder, photos)
        assert everything(index_folder) == expected, f"step {last}"
        shutil.rmtree(index_folder)
        if status == 0:
            break
    assert last > 20


# -- other processes, disks, permissions -------------------------------------------------------------------------------


def test_a_second_run_on_the_same_index_is_refused_and_harmless(tmp_path: Path, photos: Path) -> None:
    with mmsearch.open(tmp_path / "index", model=ColourEncoder()) as library:
        library.index(photos)
        with library._need_index().writing():
            run = subprocess.run(
                [sys.executable, str(CHILD), str(photos), str(tmp_path / "index")], capture_output=True, text=True
            )
        assert run.returncode != 0
        assert "IndexBusy: another mmsearch process is writing" in run.stderr
        assert library.verify().sound
        assert len(stored(library)) == 3


def test_questions_are_answered_while_another_run_writes(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    with library._need_index().writing():
        assert library.query("red", kind="image", k=1)[0].path == photos / "red.png"
        with pytest.raises(IndexBusy):
            library.index(photos)


def test_a_disk_that_fills_up_is_said_and_what_was_committed_stays(tmp_path: Path, paint: Paint) -> None:
    """The size of any file is limited to 2 kB while a second folder is indexed: 128 vectors fit, 300 do not."""
    for n in range(100):
        folder = paint(f"first/{n}.png", colour(n)).parent
    for n in range(300):
        more = paint(f"second/{n}.png", colour(1000 + n)).parent
    with mmsearch.open(tmp_path / "index", model=ColourEncoder()) as library:
        library.index(folder)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        vectors = tmp_path / "index" / "vectors" / "image-00001.f32"
        assert vectors.stat().st_size == 1600
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
        try:
            with pytest.raises(StorageError, match="cannot write"):
                library.index(more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert library.verify().sound
        assert set(stored(library)) >= {f"first/{n}.png" for n in range(100)}
        library.index(more)
        assert stored(library)["second/299.png"] == vector(colour(1299))
        assert len(stored(library)) == 400


def test_an_unreadable_file_and_an_unreadable_folder(nobody: Path) -> None:
    """The file is named and skipped; what is known of the folder stays, for nobody can say that it is gone."""
    photos = nobody / "photos"
    (photos / "private").mkdir(parents=True)
    for n, name in enumerate(["a.png", "b.png", "private/c.png"]):
        Image.new("RGB", (9, 9), colour(n)).save(photos / name)
    with mmsearch.open(nobody / "index", model=ColourEncoder()) as library:
        library.index(photos)
        Image.new("RGB", (9, 9), colour(5)).save(photos / "b.png")
        (photos / "b.png").chmod(0)
        (photos / "private").chmod(0)
        report = library.index(photos)
        reasons = {Path(s.path).name: s.reason for s in report.skipped}
        assert "Permission denied" in reasons["b.png"] and "Permission denied" in reasons["private"]
        assert set(stored(library)) == {"a.png", "private/c.png"}
        assert library.query("red", k=1)


def test_a_read_only_index_answers_and_refuses_changes_in_words(nobody: Path) -> None:
    photos, index = nobody / "photos", nobody / "index"
    photos.mkdir()
    Image.new("RGB", (9, 9), (255, 0, 0)).save(photos / "red.png")
    with mmsearch.open(index, model=ColourEncoder()) as library:
        library.index(photos)
    for path in [*index.rglob("*"), index]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with mmsearch.open(index, model=ColourEncoder()) as library:
        assert library.query("red")[0].path == photos / "red.png"
        with pytest.raises(StorageError, match=r"Permission denied.*read-only"):
            library.index(photos)


def test_a_folder_in_which_no_index_can_be_made(nobody: Path) -> None:
    (nobody / "locked").mkdir(mode=0o555)
    (nobody / "photos").mkdir()
    with (
        mmsearch.open(nobody / "locked" / "index", model=ColourEncoder()) as library,
        pytest.raises(StorageError, match=r"cannot make an index in .*Permission denied"),
    ):
        library.index(nobody / "photos")


# -- hostile files -----------------------------------------------------------------------------------------------------


def png_bomb() -> bytes:
    """A PNG that says it is 60,000 × 60,000 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    small = bytearray(buffer.getvalue())
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + bytes(small[24:29])
    small[12:33] = header + struct.pack(">I", zlib.crc32(header))
    return bytes(small)


def test_hostile_files_are_named_and_the_others_go_on(library: mmsearch.Library, paint: Paint, tmp_path: Path) -> None:
    photos = paint("good.png", (255, 0, 0)).parent
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(tmp_path / "noise.jpg")
    (photos / "truncated.jpg").write_bytes((tmp_path / "noise.jpg").read_bytes()[:9000])
    (photos / "bomb.png").write_bytes(png_bomb())
    (photos / "zero.webp").write_bytes(b"")
    (photos / "zero.txt").write_bytes(b"")
    (photos / "words.jpg").write_text("these are words")
    (photos / "binary.txt").write_bytes(bytes(range(256)) * 10)
    with (photos / "huge.txt").open("wb") as file:
        for _ in range(200):
            file.write(b"a red line of words\n" * 50_000)
    os.mkfifo(photos / "pipe.jpg")
    (photos / "folder.jpg").mkdir()
    began = time.monotonic()
    report = library.index(photos)
    assert time.monotonic() - began < 30
    reasons = {Path(s.path).name: s.reason for s in report.skipped}
    assert sorted(reasons) == [
        "binary.txt",
        "bomb.png",
        "huge.txt",
        "pipe.jpg",
        "truncated.jpg",
        "words.jpg",
        "zero.txt",
        "zero.webp",
    ]
    assert reasons["truncated.jpg"] == "the JPEG file is cut short"
    assert "60000 x 60000" in reasons["bomb.png"]
    assert reasons["zero.txt"] == reasons["zero.webp"] == "the file is empty"
    assert reasons["huge.txt"] == "is 200 MB of text, above the limit of 20 MB; --max-text-mb raises it"
    assert set(stored(library)) == {"good.png"}
    assert {s.path for s in library.status().skipped} == {s.path for s in report.skipped} - {str(photos / "pipe.jpg")}


def test_a_text_of_200_mb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """Asked for by the option, it is embedded batch by batch; the test stops it after 20 batches."""

    class Stops(ColourEncoder):
        batches = 0

        def encode_texts(self, texts):  # type: ignore[no-untyped-def]
            self.batches += 1
            if self.batches > 20:
                raise KeyboardInterrupt
            return super().encode_texts(texts)

    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        for _ in range(200):
            file.write(b"a red line of words.\n\n" * 45_455)
    assert path.stat().st_size > 199e6
    with mmsearch.open(tmp_path / "index", model=Stops()) as library:
        tracemalloc.start()
        with pytest.raises(KeyboardInterrupt):
            library.index(path, max_text_bytes=300_000_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30e6
        assert library.status().items["text"] == 20 * 64
        assert library.verify().sound


NAMES = [b"new\nline.png", "emoji 🐈.png".encode(), b"latin-1 \xe9.png", b"-dash.png", b"quo'te\".png", b"tab\t.png"]


def test_odd_names_are_found_under_their_own_name(library: mmsearch.Library, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n, name in enumerate(NAMES):
        Image.new("RGB", (9, 9), colour(n)).save(photos / "x.png")
        os.rename(photos / "x.png", os.path.join(os.fsencode(photos), name))
    library.index(photos)
    for n, name in enumerate(NAMES):
        picture = Image.new("RGB", (9, 9), colour(n))
        (hit,) = library.query(image=picture, k=1)
        assert os.fsencode(hit.item.asset.path) == os.fsencode(photos) + b"/" + name
        assert json.loads(json.dumps(hit.as_dict()))["path"] == os.fsdecode(os.fsencode(photos) + b"/" + name)
    assert library.remove(os.fsdecode(os.path.join(os.fsencode(photos), NAMES[2]))) == 1
    assert library.status().files["image"] == len(NAMES) - 1
