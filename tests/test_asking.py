"""The quick way to read the arguments of a question, held against the parser of commands, its twin."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mmsearch
from indexer.add import Addition
from mmsearch import asking
from mmsearch.__main__ import main
from mmsearch.cli import app

SIMPLE = [
    ["a cat"],
    ["a cat", "-k", "3"],
    ["-k", "12", "a cat", "--index", "somewhere/else"],
    ["--index", "x", "--no-rerank", "a red car at night", "--json"],
    ["cat", "--paths", "-0", "--exact"],
    ["cat", "--not", "people", "--not", "a dog", "--kind", "image,video", "--kind", "text"],
    ["cat", "--under", "a/b", "--under", "c", "--after", "2021", "--before", "2022-05-17"],
    ["cat", "-k", "3", "-k", "4", "--json", "--json"],
    ["cat -k 3"],
    ["  cat ", "--index", "a folder"],
    ["a", "dog", "on", "a", "beach"],
    ["a", "dog", "in", "2019", "--literal"],
    ["a", "-k", "3", "dog", "--json", "on a  beach"],
    ["cat", "-k", "3", "--offset", "6"],
    ["cat", "--offset", "0"],
    ["at night*2", "--like", "a.jpg*0.5", "--like", "film.mp4#t=83,95"],
    ["--like", "a.jpg"],
    ["--after", "2021", "--under", "Trips"],
    ["--kind", "image", "--json", "-k", "5", "--offset", "5"],
    ["--before", "2021-05-17", "--paths", "-0"],
]
OTHER = [
    [],
    ["-"],
    ["--help"],
    ["a", "-", "cat"],
    ["cat", "-people"],
    ["cat", "-k", "none"],
    ["cat", "-k", "0"],
    ["cat", "-k", "-1"],
    ["cat", "-k", "\u0663"],
    ["cat", "-k"],
    ["cat", "-k3"],
    ["cat", "--index="],
    ["cat", "--index", ""],
    ["cat", "--index=x"],
    ["cat", "--", "-k"],
    ["", "-k", "3"],
    ["cat", "--moments", "3"],
    ["cat", "--image", "x.jpg"],
    ["cat", "--offset", "-1"],
    ["cat", "--offset", "none"],
    ["--offset", "5"],
    ["--not", "people"],
    ["--index", "x", "--json"],
    ["cat", "--open"],
    ["cat", "--unheard-of"],
]


def asked(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> dict[str, Any]:
    """What ``asking.query`` is given by the parser of commands."""
    seen: list[dict[str, Any]] = []
    signature = inspect.signature(asking.query)

    def note(*args: Any, **kwargs: Any) -> None:
        seen.append(signature.bind(*args, **kwargs).arguments)

    monkeypatch.setattr(asking, "query", note)
    monkeypatch.delenv("MMSEARCH_INDEX", raising=False)
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    (only,) = seen
    return only


@pytest.mark.parametrize("arguments", SIMPLE, ids=" ".join)
def test_simple_questions_are_read_as_the_parser_reads_them(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asking.read(["query", *arguments])
    assert found is not None
    bound = inspect.signature(asking.query).bind(**found)
    bound.apply_defaults()
    parsed = asked(monkeypatch, ["query", *arguments])
    assert {name: value or None for name, value in bound.arguments.items()} == {
        name: value or None for name, value in parsed.items()
    }


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["a", "dog", "-k", "3", "on", "a beach"], "a dog on a beach"),
        (["a", "--moments", "2", "dog"], "a dog"),
        (["-"], asking.STDIN),
        (["--image", "cat.jpg"], None),
    ],
    ids=str,
)
def test_unquoted_words_are_joined(arguments: list[str], text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = asking.read(["query", *arguments])
    assert quick is None or quick["text"] == text
    assert asked(monkeypatch, ["query", *arguments])["text"] == text


def test_pictures_may_be_several(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(monkeypatch, ["query", "--image", "a.jpg*0.5", "at night*2", "--image", "b.jpg"])
    assert (found["text"], found["image"], found["like"]) == ("at night*2", ["a.jpg*0.5", "b.jpg"], None)


@pytest.mark.parametrize("arguments", OTHER, ids=" ".join)
def test_everything_else_is_left_to_the_parser(arguments: list[str]) -> None:
    assert asking.read(["query", *arguments]) is None


@pytest.mark.parametrize("arguments", [[], ["index", "photos"], ["--version"], ["status", "query", "cat"]])
def test_so_are_the_other_commands(arguments: list[str]) -> None:
    assert asking.read(arguments) is None


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of one note."""
    folder = tmp_path_factory.mktemp("notes") / "index"
    with mmsearch.open(folder) as library:
        library.add([Addition("note", text="a note about a cat")])
    return folder


BOTH_WAYS = pytest.mark.parametrize("way", [[], ["--moments", "1"]], ids=["quick", "parser"])


@BOTH_WAYS
def test_who_stops_reading_is_no_error_that_is_talked_about(notes: Path, way: list[str]) -> None:
    command = [sys.executable, "-m", "mmsearch", "query", "cat", "-k", "1", "--index", str(notes), *way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        try:
            said = run.stderr.read()
        except BaseException:  # the test ran out of time: the process must not hold up the others
            run.kill()
            raise
    assert (run.returncode, said) == (1, b"")


@BOTH_WAYS
def test_an_interrupted_question_ends_at_once(
    way: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(asking, "query", interrupted)
    monkeypatch.setattr(sys, "argv", ["mmsearch", "query", "cat", *way])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (left.value.code, *capsys.readouterr()) == (130, "", "")
