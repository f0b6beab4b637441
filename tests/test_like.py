"""Files of the index as questions: what is stored of them asks, and they are no answers themselves."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, PatchColourEncoder
from conftest import BLUE, GREEN, RED
from fusion_folder import write_reranker
from moving import Scene, write
from pdf_writer import pdf, words
from PIL import Image

import mmsearch
from indexer.errors import UsageError
from indexer.types import Modality
from mmsearch.like import stored

pytestmark = pytest.mark.usefixtures("log_odds_alone")

Paint = Callable[..., Path]


def names(hits: Sequence[mmsearch.Hit]) -> list[str]:
    return [hit.path.name if hit.path else str(hit.key) for hit in hits]


@pytest.fixture
def colours(library: mmsearch.Library, paint: Paint) -> Path:
    """Pictures of several colours, and two texts; PNGs, so that a file says the same whenever it is read."""
    for name, rgb in {"red": RED, "wine": (180, 20, 60), "blue": BLUE, "sky": (60, 120, 255), "green": GREEN}.items():
        folder = paint(f"{name}.png", rgb).parent
    (folder / "sea.txt").write_text("blue\n\nblue green\n")
    (folder / "fire.txt").write_text("red\n")
    library.index(folder)
    return folder


def test_it_finds_what_its_picture_finds_without_itself(library: mmsearch.Library, colours: Path) -> None:
    for name in ("red.png", "sky.png", "green.png"):
        hits = library.query(like=colours / name, k=9)
        twin = [hit for hit in library.query(image=colours / name, k=9) if hit.path != colours / name]
        assert [(hit.item, hit.score) for hit in hits] == [(hit.item, hit.score) for hit in twin]
        assert [hit.rank for hit in hits] == list(range(1, 8)) and name not in names(hits)


def test_nothing_is_opened_or_embedded(library: mmsearch.Library, colours: Path) -> None:
    assert isinstance(library.encoder, ColourEncoder)
    seen = library.encoder.images_seen
    expected = names(library.query(image=colours / "red.png", k=9))[1:]
    (colours / "red.png").unlink()
    before = library.encoder.images_seen
    assert before == seen + 1
    assert names(library.query(like=colours / "red.png", k=9)) == expected
    assert library.encoder.images_seen == before


def test_a_copy_is_another_file(library: mmsearch.Library, colours: Path) -> None:
    (colours / "again.png").write_bytes((colours / "red.png").read_bytes())
    library.index(colours)
    assert names(library.query(like=colours / "red.png", kind="image", k=1)) == ["again.png"]


def test_relative_paths_and_keys(
    library: mmsearch.Library, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.add([mmsearch.Addition("sku-1", image=Image.new("RGB", (8, 8), (250, 0, 10)))])
    assert names(library.query(like="sku-1", k=1)) == ["red.png"]
    assert "sku-1" not in names(library.query(like="sku-1", k=20))
    monkeypatch.chdir(colours)
    assert names(library.query(like="../photos/blue.png", k=20)) == names(
        library.query(like=colours / "blue.png", k=20)
    )
    (tmp_path / "elsewhere.png").write_bytes((colours / "red.png").read_bytes())
    for name in ("elsewhere.png", str(tmp_path / "elsewhere.png"), str(colours), "sku-2", "a#t=1,2"):
        with pytest.raises(UsageError, match="is not in the index; --image asks with a picture that is not"):
            library.query(like=name)


def test_words_pictures_and_files_together(library: mmsearch.Library, colours: Path) -> None:
    by_file = library.query("green", like=colours / "red.png", weights=[1, 3], k=9)
    by_picture = library.query("green", image=colours / "red.png", weights=[1, 3], k=9)
    assert [(hit.item, hit.score) for hit in by_file] == [
        (hit.item, hit.score) for hit in by_picture if hit.path != colours / "red.png"
    ]
    both = library.query(like=[colours / "red.png", colours / "blue.png"], k=9)
    assert names(both)[0] == "wine.png" and not {"red.png", "blue.png"} & set(names(both))
    assert names(library.query(like=colours / "red.png", kind="text", k=1)) == ["fire.txt"]
    assert names(library.query(like=colours / "red.png", without="red", k=1)) != ["wine.png"]


def test_a_text_asks_with_the_mean_of_its_passages(library: mmsearch.Library, colours: Path) -> None:
    hits = library.query(like=colours / "sea.txt", k=9)
    with library.searcher().index.snapshot() as snapshot:
        found = stored(snapshot, str(colours / "sea.txt"))
    blue, both = (np.array([0, g, 1, 0.5]) / math.sqrt(g + 1.25) for g in (0, 1))
    mean = (blue + both) / np.linalg.norm(blue + both)
    assert found.asked is Modality.TEXT and found.vector == pytest.approx(mean, abs=1e-6)
    assert names(hits)[:2] == ["sky.png", "blue.png"] and "sea.txt" not in names(hits)


def test_a_document_asks_with_its_words(library: mmsearch.Library, colours: Path) -> None:
    (colours / "page.pdf").write_bytes(pdf([[words(72, 700, "a red thing")]]))
    library.index(colours)
    assert names(library.query(like=colours / "page.pdf", kind="image", k=1)) == ["red.png"]


def test_exact_words_and_a_file_exclude_each_other(library: mmsearch.Library, colours: Path) -> None:
    with pytest.raises(UsageError, match="has no words to search for"):
        library.query("red", like=colours / "red.png", exact=True)


# -- with a reranker ---------------------------------------------------------------------------------------------------


def test_stored_tokens_are_reranked_as_those_of_the_picture(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16), BLUE)
    picture.paste(RED, (0, 0, 8, 8))
    reranker = write_reranker(tmp_path / "reranker", PatchColourEncoder())
    with mmsearch.open(tmp_path / "index", model=PatchColourEncoder(), reranker=reranker) as library:
        library.add([mmsearch.Addition(text, text=text) for text in ("a red thing", "a green thing", "blue")])
        library.add([mmsearch.Addition("mine", image=picture), mmsearch.Addition("other", image=picture)])
        by_file, by_picture = (
            library.query(**question, collapse=False)
            for question in ({"like": "mine", "k": 4}, {"image": picture, "k": 5})
        )
        expected = [(hit.key, hit.reranked) for hit in by_picture if hit.key != "mine"]
        assert [(hit.key, hit.reranked) for hit in by_file] == expected
        scores = [hit.score for hit in by_picture if hit.key != "mine"]
        assert [hit.score for hit in by_file] == pytest.approx(scores, abs=1e-4)
        assert sum(hit.reranked for hit in by_file) == 3 and by_file.not_reranked is None
        library.add([mmsearch.Addition("bare", image=picture)], tokens=False)
        bare = library.query(like="bare", k=4, kind="text")
        assert bare.not_reranked == "the file that asks has no image tokens; 'mmsearch index --add-tokens' makes them"
        assert not any(hit.reranked for hit in bare)
        assert bare == library.query(like="bare", k=4, kind="text", rerank=False)
        of_text = library.query(like="blue", k=5, collapse=False)
        assert of_text.not_reranked is None and names(of_text)[:2] == ["mine", "other"]


# -- videos ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow(reason="encodes a video")
def test_a_video_and_its_moments(library: mmsearch.Library, paint: Paint, tmp_path: Path) -> None:
    folder = paint("red.png", RED).parent
    paint("green.png", GREEN)
    film = write(folder / "film.mp4", [Scene((255, 30, 30), 4), Scene((30, 255, 30), 6)])
    library.index(folder)
    assert names(library.query(like=f"{film}#t=5,9", k=1)) == ["green.png"]
    assert names(library.query(like=f"{film}#t=1", k=1)) == ["red.png"]
    assert names(library.query(like=f"{film}  0:00:00–0:00:03", k=1)) == ["red.png"]
    whole = library.query(like=film, k=3)
    assert sorted(names(whole)) == ["green.png", "red.png"]
    with library.searcher().index.snapshot() as snapshot:
        parts = [stored(snapshot, f"{film}#t={time}").vector for time in (1, 6)]
        found = stored(snapshot, str(film))
    mean = np.sum(parts, axis=0) / np.linalg.norm(np.sum(parts, axis=0))
    assert found.asked is Modality.IMAGE and found.vector == pytest.approx(mean, abs=1e-6)
    assert found.item.modality is Modality.VIDEO
    for wrong, said in {
        f"{film}#t=90,95": "knows of nothing in",
        f"{film}#t=5,3": "ends before it begins",
        f"{folder / 'red.png'}#t=1,2": "is no video and has no moments",
    }.items():
        with pytest.raises(UsageError, match=said):
            library.query(like=wrong)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow(reason="runs the command as a process")
def test_the_command_asks_with_a_file_of_the_index_and_opens_no_picture(tmp_path: Path) -> None:
    index = tmp_path / "index"
    with mmsearch.open(index) as library:
        folder = tmp_path / "photos"
        folder.mkdir()
        for name, rgb in {"red": RED, "wine": (200, 0, 30), "blue": BLUE}.items():
            Image.new("RGB", (64, 64), rgb).save(folder / f"{name}.png")
        library.index(folder)
    code = "import sys; from mmsearch import asking; asking.query(**asking.read(sys.argv[1:])); print(*sys.modules)"
    arguments = ["query", "--like", str(folder / "red.png"), "-k", "2", "--index", str(index), "--paths"]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    first, _, modules = run.stdout.splitlines()
    assert first == str(folder / "wine.png")
    assert not set(modules.split()) & {"torch", "onnxruntime", "sqlalchemy", "PIL"}
    command = [sys.executable, "-m", "mmsearch", "query", "--index", str(index)]
    missing = subprocess.run([*command, "--like", "no.png"], capture_output=True, text=True)
    assert missing.returncode == 2
    assert missing.stderr == "mmsearch: 'no.png' is not in the index; --image asks with a picture that is not\n"
    weighted = [*command, "--like", f"{folder / 'red.png'}*3", "--like", str(folder / "blue.png"), "--json"]
    answer = json.loads(subprocess.run([*weighted, "-k", "5"], capture_output=True, text=True, check=True).stdout)
    assert [hit["path"] for hit in answer["hits"]] == [str(folder / "wine.png")]
