"""Reranking on the command line, with the embedded model: tokens left out and added, lists that end, what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES
from fusion_folder import write_reranker
from test_cli import loaded_by, mmsearch

from indexer.encoders.mini import MiniEncoder

PHOTOGRAPHS = ("IMG_0043.jpg", "IMG_0009.jpg", "IMG_0030.jpg")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the embedded model, untrained: it puts pictures into some order."""
    rng = np.random.default_rng(1)
    return write_reranker(
        tmp_path_factory.mktemp("models") / "reranker",
        MiniEncoder("cpu"),
        side=8,
        width=16,
        project=rng.standard_normal((16, 352)).astype(np.float32),
        words=rng.standard_normal((384, 16)) / 100,
    )


@pytest.fixture(scope="module")
def plain_index(reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs and a text, without tokens."""
    folder = tmp_path_factory.mktemp("library")
    for name in PHOTOGRAPHS:
        (folder / "photos").mkdir(exist_ok=True)
        shutil.copy(SAMPLES / "photos" / name, folder / "photos")
    (folder / "photos" / "notes.txt").write_text("a colourful bird\n")
    run = mmsearch("index", folder / "photos", "--no-tokens", "--index", folder / "index", "--reranker", reranker)
    assert run.returncode == 0, run.stderr
    return folder / "index"


@pytest.fixture(scope="module")
def index(plain_index: Path, reranker: Path) -> Path:
    """The same with tokens, which were added later."""
    index = shutil.copytree(plain_index, plain_index.parent / "with-tokens")
    run = mmsearch("index", "--add-tokens", "--index", index, "--reranker", reranker)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("3 pictures got image tokens in ")
    return index


def test_without_tokens_the_answers_are_those_of_the_first_stage_and_a_line_says_so(
    plain_index: Path, reranker: Path
) -> None:
    command = ["query", "a parrot", "-k", "4", "--json", "--index", plain_index, "--reranker", reranker]
    run, plain = mmsearch(*command), mmsearch(*command, "--no-rerank")
    why = "the index holds no image tokens; 'mmsearch index --add-tokens' makes them"
    assert run.returncode == 0 and f"mmsearch: not reranked: {why}\n" in run.stderr
    assert (plain.returncode, plain.stderr) == (0, "")
    found, expected = json.loads(run.stdout), json.loads(plain.stdout)
    assert found["hits"] == expected["hits"] and len(found["hits"]) == 4
    assert (found["not_reranked"], expected["not_reranked"]) == (why, None)


def test_added_tokens_are_reranked(index: Path, plain_index: Path, reranker: Path) -> None:
    command = ["query", "a parrot", "-k", "4", "--json", "--reranker", reranker]
    run = mmsearch(*command, "--index", index)
    assert (run.returncode, run.stderr) == (0, "")
    found = json.loads(run.stdout)
    assert {(hit["kind"], hit["reranked"]) for hit in found["hits"]} == {("image", True), ("text", False)}
    first = [json.loads(mmsearch(*command, "--no-rerank", "--index", one).stdout) for one in (index, plain_index)]
    assert first[0] == first[1] and first[0]["hits"] != found["hits"]
    one = json.loads(mmsearch(*command, "--candidates", "1", "--index", index).stdout)["hits"]
    assert [Path(hit["path"]).name for hit in one if hit["reranked"]] == ["IMG_0043.jpg"]


def test_a_second_time_there_is_nothing_to_add(index: Path, reranker: Path) -> None:
    photos = index.parent / "photos"
    run = mmsearch("index", photos, "--add-tokens", "--json", "--index", index, "--reranker", reranker)
    assert run.returncode == 0, run.stderr
    values = json.loads(run.stdout)
    assert (values["unchanged"], values["tokens"]["added"], values["tokens"]["present"]) == (4, 0, 3)


def test_a_new_index_has_tokens_from_its_first_picture_on(tmp_path: Path, index: Path, reranker: Path) -> None:
    shutil.copy(SAMPLES / "photos" / PHOTOGRAPHS[0], tmp_path / "parrot.jpg")
    command = ["--index", tmp_path / "index", "--reranker", reranker]
    nothing = mmsearch("index", "--add-tokens", *command)
    assert nothing.returncode == 1 and "there is no index in" in nothing.stderr
    run = mmsearch("index", tmp_path / "parrot.jpg", "--add-tokens", *command)
    assert run.returncode == 0 and run.stdout.startswith("1 added"), run.stderr
    (hit,) = json.loads(mmsearch("query", "a parrot", "-k", "9", "--json", *command).stdout)["hits"]
    assert hit["reranked"] is True


def test_lists_that_end(index: Path) -> None:
    command = ["query", "a parrot", "--no-rerank", "--index", index]
    everything = mmsearch(*command, "-k", "4")
    assert len(everything.stdout.splitlines()) == 4
    likely = mmsearch(*command, "--min-prob", "0.3")
    assert "IMG_0043.jpg" in likely.stdout and "IMG_0030.jpg" not in likely.stdout
    assert "mmsearch: nothing else is as likely as that\n" in likely.stderr
    nothing = mmsearch(*command, "-k", "4", "--min-prob", "1")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "mmsearch: nothing is as likely as that\n")
    as_json = mmsearch(*command, "--min-prob", "1", "--json")
    assert as_json.returncode == 0
    values = json.loads(as_json.stdout)
    assert (values["hits"], values["clear"], values["nothing_else_matches"]) == ([], False, True)
    wrong = mmsearch(*command, "--min-prob", "2")
    assert wrong.returncode == 2 and "--min-prob" in wrong.stderr


def test_a_reranker_that_is_none_or_broken(index: Path, reranker: Path, tmp_path: Path) -> None:
    run = mmsearch("query", "a parrot", "--index", index, "--reranker", tmp_path)
    assert run.returncode == 2 and "no reranker in" in run.stderr
    broken = shutil.copytree(reranker, tmp_path / "broken")
    (broken / "fusion.onnx").write_bytes(b"")
    run = mmsearch("query", "a parrot", "--index", index, "--reranker", broken)
    assert (run.returncode, run.stdout) == (1, "") and "cannot load the reranker" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_reranked_question_in_words_never_loads_torch(index: Path, reranker: Path) -> None:
    code = (
        f"import mmsearch; hits = mmsearch.open({str(index)!r}, reranker={str(reranker)!r}).query('a parrot', k=1); "
        "assert hits[0].reranked"
    )
    loaded = loaded_by(code)
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "open_clip", "timm", "transformers", "torchvision"}
