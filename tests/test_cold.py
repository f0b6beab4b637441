"""A question from the shell: what it does not import, where its words are read, many questions in one process."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SAMPLES
from test_text_tower import make

import mmsearch
from indexer.add import Addition
from indexer.errors import ModelMismatch
from indexer.text_tower.encoder import ExportedEncoder
from indexer.text_tower.folder import DESCRIPTION, WEIGHTS
from mmsearch.questions import PROMPT

pytestmark = pytest.mark.slow(reason="asks in processes of their own")

NEVER = {
    "torch",
    "open_clip",
    "timm",
    "torchvision",
    "transformers",
    "scipy",
    "sqlalchemy",
    "PIL",
    "av",
    "pypdfium2",
    "rapidocr",
    "faiss",
    "onnxruntime",
    "pydantic",
    "platformdirs",
    "safetensors",
    "ftfy",
    "regex",
    "rich",
    "pathspec",
    "filelock",
    "huggingface_hub",
    "mmsearch.training",
    "mmsearch.evaluation",
    "indexer.pipeline",
}
"""What a question in plain words has no use for."""
NOTES = {"dog": "a dog in the red car", "sea": "the sea", "car": "a car and the sea"}


def ask(index: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """The command in a process of its own, and the names of all modules that were imported in the end."""
    code = f"""
import sys
sys.argv = ["mmsearch", "query", *{list(arguments)!r}, "--index", {str(index)!r}]
from mmsearch.__main__ import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run, set(run.stderr.splitlines()[-1].split())


@pytest.fixture(scope="module")
def mini_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs and a text."""
    folder = tmp_path_factory.mktemp("mini")
    for path in ("photos/IMG_0013.jpg", "photos/IMG_0045.jpg"):
        (folder / "files").mkdir(exist_ok=True)
        shutil.copy(SAMPLES / path, folder / "files")
    (folder / "files" / "note.txt").write_text("a cat and a dog\n")
    with mmsearch.open(folder / "index") as library:
        assert library.index(folder / "files").added == 3
    return folder / "index"


@pytest.fixture(scope="module", params=["openclip-clip", "openclip-siglip", "hf-bert"])
def noted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index by a small random model, of notes."""
    folder = tmp_path_factory.mktemp("noted")
    model = make(folder, request.param).name
    with mmsearch.open(folder / "index", model=model) as library:
        library.add([Addition(key, text=text) for key, text in NOTES.items()])
    return folder / "index"


def test_a_question_in_plain_words_imports_what_it_needs(mini_index: Path) -> None:
    run, modules = ask(mini_index, "a cat", "-k", "1", "--kind", "image")
    assert "IMG_0013.jpg" in run.stdout
    assert modules & NEVER == set()
    assert "mmsearch.rerank.fusion_numpy" in modules  # the reranker has looked


def test_nor_does_an_answer_in_text_import_more(mini_index: Path) -> None:
    run, modules = ask(mini_index, "a cat and a dog", "-k", "1", "--kind", "text")
    assert "note.txt" in run.stdout
    assert modules & NEVER == set()


def test_so_does_one_to_another_model(noted: Path) -> None:
    run, modules = ask(noted, "the sea", "-k", "1", "--json")
    assert json.loads(run.stdout)["hits"][0]["key"] == "sea"
    assert modules & NEVER == set()
    assert "torch" not in run.stderr.splitlines()[0]


def test_the_answers_are_those_of_torch(noted: Path) -> None:
    questions = ["a dog", "the red car", "sea"]
    with mmsearch.open(noted) as library:
        assert isinstance(library.questioner, ExportedEncoder)
        found = [library.query(question, k=3) for question in questions]
        assert library.slower is None
    with mmsearch.open(noted) as library:
        assert library.questioner is not library.encoder  # from here on the model itself is there, and answers
        for question, hits in zip(questions, found, strict=True):
            again = library.query(question, k=3)
            assert [hit.key for hit in again] == [hit.key for hit in hits]
            assert [hit.score for hit in again] == pytest.approx([hit.score for hit in hits], abs=1e-4)
        assert library.questioner is library.encoder


def test_without_the_export_torch_answers_and_says_so(tmp_path: Path) -> None:
    index = tmp_path / "index"
    with mmsearch.open(index, model=make(tmp_path / "m", "openclip-clip").name) as library:
        library.add([Addition(key, text=text) for key, text in NOTES.items()])
    (index / "text" / DESCRIPTION).unlink()
    run, modules = ask(index, "the sea", "-k", "1", "--json")
    assert json.loads(run.stdout)["hits"][0]["key"] == "sea"
    assert "torch" in modules
    assert run.stderr.startswith("mmsearch: words waited for torch, which is slower: its text tower was not exported")
    with mmsearch.open(index) as library:
        assert library.verify().repaired == (
            "the exported text tower was damaged and is removed; the next 'mmsearch index' exports it again",
        )
        library.add([Addition("dog", text="a dog")])
        assert library.verify().sound
    assert "torch" not in ask(index, "the sea")[1]


def test_damage_is_repaired(noted: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(noted, tmp_path / "index"))
    weights = bytearray((index / "text" / WEIGHTS).read_bytes())
    weights[-9] ^= 1
    (index / "text" / WEIGHTS).write_bytes(weights)
    with mmsearch.open(index) as library:
        report = library.verify()
        assert not report.sound and len(report.repaired) == 1
        library.query("sea")
        assert library.slower is not None and "was not exported" in library.slower


def test_other_weights_under_the_same_name_are_refused_by_a_picture(tmp_path: Path) -> None:
    model = Path(make(tmp_path / "first", "hf-bert").name)
    with mmsearch.open(tmp_path / "index", model=str(model)) as library:
        library.add([Addition("dog", text="a dog")])
    other = Path(make(tmp_path / "second", "hf-align").name)
    shutil.rmtree(model)
    shutil.copytree(other, model)
    with mmsearch.open(tmp_path / "index") as library:
        assert library.query("a dog", k=1)[0].key == "dog"  # the words are read as they were
        with pytest.raises(ModelMismatch, match="other weights"):
            library.query(image=SAMPLES / "photos/IMG_0013.jpg")


# -- many questions ----------------------------------------------------------------------------------------------------


def test_many_questions_from_a_pipe(mini_index: Path) -> None:
    command = [sys.executable, "-m", "mmsearch", "query", "-", "--index", str(mini_index), "-k", "1", "--kind", "image"]
    asked = "a cat\n\n  a dog \n"
    run = subprocess.run([*command, "--json"], input=asked, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(one["question"], Path(one["hits"][0]["path"]).name) for one in answers] == [
        ("a cat", "IMG_0013.jpg"),
        ("a dog", "IMG_0045.jpg"),
    ]
    run = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120)
    heads = run.stdout.splitlines()
    assert heads[::2] == ["a cat:", "a dog:"] and "IMG_0013.jpg" in heads[1] and "IMG_0045.jpg" in heads[3]
    run = subprocess.run([*command, "--open"], input="", capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (2, "mmsearch: --open goes with one question\n")


def test_each_answer_comes_before_the_next_question(mini_index: Path) -> None:
    command = [sys.executable, "-m", "mmsearch", "shell", "--index", str(mini_index), "-k", "1", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            for question in ("a cat", "a dog"):
                process.stdin.write(f"{question}\n")
                process.stdin.flush()
                assert json.loads(process.stdout.readline())["question"] == question
            process.stdin.close()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


def test_a_shell_prompts_and_ctrl_d_leaves_it(mini_index: Path) -> None:
    command = [sys.executable, "-m", "mmsearch", "shell", "--index", str(mini_index), "-k", "1", "--kind", "image"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "dumb"})
    os.close(theirs)
    said = ""

    def until(what: str) -> None:
        nonlocal said
        while what not in said:
            said += os.read(ours, 4096).decode(errors="replace")
        said = said.partition(what)[2]

    until(PROMPT)
    os.write(ours, b"a cat\n")
    until("IMG_0013.jpg")
    until(PROMPT)
    os.write(ours, b"a dog\n")
    until("IMG_0045.jpg")
    until(PROMPT)
    os.write(ours, b"\x04")
    assert process.wait(timeout=60) == 0
    os.close(ours)
