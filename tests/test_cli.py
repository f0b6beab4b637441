"""The command as a process: answers on stdout, talk on stderr, 0 done, 1 failed, 2 misused."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from conftest import SAMPLES
from PIL import Image
from test_pipeline import colour
from typer.testing import CliRunner

from indexer.index import Index
from indexer.pipeline import IMAGE_BATCH
from mmsearch.cli import app

pytestmark = pytest.mark.slow(reason="runs the command as a process")

COMMAND = [sys.executable, "-m", "mmsearch"]


def mmsearch(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="session")
def samples_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample photographs and texts, indexed once by the command."""
    index = tmp_path_factory.mktemp("samples") / "index"
    run = mmsearch("index", SAMPLES, "--index", index)
    assert run.returncode == 0, run.stderr
    return index


def ask(index: Path, *arguments: str | Path) -> list[dict[str, object]]:
    run = mmsearch("query", *arguments, "--index", index, "--json")
    assert run.returncode == 0, run.stderr
    return list(json.loads(run.stdout)["hits"])


# -- what loads and what helps -----------------------------------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


HEAVY = {"torch", "faiss", "open_clip", "timm", "transformers", "torchvision", "sqlalchemy", "PIL"}


def test_help_loads_nothing_heavy() -> None:
    code = """
from typer.testing import CliRunner
from mmsearch.cli import app
assert "Search your own pictures" in CliRunner().invoke(app, ["--help"]).output
"""
    assert not loaded_by(code) & HEAVY


def test_a_command_is_built_when_it_is_asked_for() -> None:
    group = typer.main.get_command(app)
    names = ["index", "query", "shell", "explain", "show", "duplicates", "status", "remove", "verify", "compact"]
    assert list(group.commands)[: len(names)] == names and {"train", "eval"} <= set(group.commands)
    assert group.commands._built == {}
    query = group.commands["query"]
    assert list(group.commands._built) == ["query"] and group.commands.get("query") is query
    of_shell = {one.name: one.opts for one in group.commands["shell"].params}
    assert of_shell == {one.name: one.opts for one in query.params if one.name not in ("text", "open_")}
    assert group.commands.get("qurey") is None
    run = mmsearch("qurey", "a cat")
    assert run.returncode == 2 and "Did you mean 'query'?" in run.stderr


def test_importing_the_library_loads_nothing_heavy() -> None:
    assert not loaded_by("import mmsearch") & HEAVY


def test_a_question_in_words_never_loads_torch(samples_index: Path) -> None:
    code = f"import mmsearch; assert mmsearch.open({str(samples_index)!r}).query('a cat')"
    assert not loaded_by(code) & {"torch", "open_clip", "timm", "transformers", "torchvision"}


def test_every_command_has_help_with_an_example() -> None:
    top = mmsearch("--help")
    assert top.returncode == 0
    for command in ("index", "query", "explain", "duplicates", "status", "remove", "verify", "compact", "train"):
        assert command in top.stdout
        assert "Example: mmsearch" in mmsearch(command, "--help").stdout or command == "train"


def test_status_says_how_the_last_run_spent_its_time(samples_index: Path, tmp_path: Path) -> None:
    shown = mmsearch("status", "--performance", "--index", samples_index)
    assert shown.returncode == 0
    first, model, *stages = shown.stdout.splitlines()
    assert first.startswith("run        20") and first.endswith(" pictures/s")
    assert model == "model      mini, float32: the index is in float32"
    assert [line.split()[0] for line in stages] == ["reading", "embedding", "storing"]
    figures = json.loads(mmsearch("status", "--performance", "--json", "--index", samples_index).stdout)
    assert figures["finished"] and figures["embedding"]["count"] == figures["storing"]["count"] > 10
    for name in ("reading", "embedding", "storing"):
        stage = figures[name]
        assert stage["seconds"] + stage["waited"] <= stage["workers"] * figures["seconds"] + 0.01
        assert stage["rate"] == pytest.approx(stage["count"] * stage["workers"] / stage["seconds"])
    (samples_index / "performance.json").rename(tmp_path / "performance.json")
    try:
        nothing = mmsearch("status", "--performance", "--index", samples_index)
        assert (nothing.returncode, nothing.stdout.split(";")[0]) == (0, "nothing was measured yet")
        assert mmsearch("status", "--performance", "--json", "--index", samples_index).stdout == "null\n"
    finally:
        (tmp_path / "performance.json").rename(samples_index / "performance.json")


def test_version() -> None:
    run = mmsearch("--version")
    assert (run.returncode, run.stdout) == (0, "mmsearch 0.1.0\n")


# -- the main job, on real photographs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("a polar bear", "IMG_0030.jpg"),
        ("a car", "IMG_0046.jpg"),
        ("a golden retriever with its tongue out", "IMG_0045.jpg"),
        ("a bridge at night", "IMG_0010.jpg"),
        ("a hot air balloon", "IMG_0009.jpg"),
        ("sushi", "IMG_0035.heic"),
        ("a parrot", "IMG_0043.jpg"),
    ],
)
def test_words_find_the_photograph(samples_index: Path, question: str, name: str) -> None:
    best = ask(samples_index, question, "--kind", "image", "-k", "1")[0]
    assert Path(str(best["path"])).name == name


def test_words_find_the_passage(samples_index: Path) -> None:
    best = ask(samples_index, "how to make pancakes", "--kind", "text", "-k", "1")[0]
    assert Path(str(best["path"])).name == "recipes.txt"
    assert "pancake" in str(best["text"]).lower()


def test_pictures_and_texts_share_one_list(samples_index: Path) -> None:
    hits = ask(samples_index, "a golden retriever with its tongue out", "-k", "4")
    assert {hit["kind"] for hit in hits} == {"image", "text"}
    assert "IMG_0045.jpg" in {Path(str(hit["path"])).name for hit in hits}
    scores = [float(str(hit["score"])) for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_a_picture_finds_itself_stored_otherwise_and_its_caption(samples_index: Path, tmp_path: Path) -> None:
    """The photograph, half as large, as PNG: first the photograph, and among the texts its caption."""
    with Image.open(SAMPLES / "photos" / "IMG_0031.jpg") as image:
        image.reduce(2).save(tmp_path / "question.png")
    best = ask(samples_index, "--image", tmp_path / "question.png", "-k", "1")[0]
    assert Path(str(best["path"])).name == "IMG_0031.jpg"
    words = ask(samples_index, "--image", tmp_path / "question.png", "--kind", "text", "-k", "1")[0]
    assert "tiger" in str(words["text"])


def test_the_rotated_photograph_is_found_as_it_is_meant_to_be_seen(samples_index: Path, tmp_path: Path) -> None:
    """Its pixels lie on their side and an EXIF tag says so; the upright pixels without a tag are the same picture."""
    from PIL import ImageOps

    stored = SAMPLES / "photos" / "IMG_0014.jpg"
    with Image.open(stored) as image:
        assert image.getexif()[0x0112] == 6
        ImageOps.exif_transpose(image).save(tmp_path / "upright.png")
        image.save(tmp_path / "sideways.png", exif=b"")
    upright, same, sideways = (
        ask(samples_index, "--image", picture, "--under", stored, "-k", "1")[0]
        for picture in (tmp_path / "upright.png", stored, tmp_path / "sideways.png")
    )
    assert float(str(upright["score"])) == pytest.approx(float(str(same["score"])), abs=0.005)
    assert float(str(sideways["score"])) < float(str(same["score"])) - 0.01


# -- the shapes of an answer -------------------------------------------------------------------------------------------


def test_table(samples_index: Path) -> None:
    run = mmsearch("query", "a polar bear", "-k", "2", "--no-rerank", "--index", samples_index, cwd=SAMPLES)
    percent, word, *rest = run.stdout.splitlines()[0].split()
    assert rest == ["image", "photos/IMG_0030.jpg"]
    assert 0 < int(percent.removesuffix("%")) < 100 and word in ("clear", "likely", "weak")


def test_paths_for_xargs(samples_index: Path) -> None:
    run = mmsearch("query", "a polar bear", "--kind", "image", "-k", "2", "--paths", "--index", samples_index)
    assert run.stdout.splitlines()[0] == str(SAMPLES / "photos" / "IMG_0030.jpg")
    nul = mmsearch("query", "a polar bear", "--kind", "image", "-k", "2", "--paths", "-0", "--index", samples_index)
    assert nul.stdout.split("\0") == [*run.stdout.splitlines(), ""]


def test_filters_on_the_command_line(samples_index: Path) -> None:
    texts = SAMPLES / "texts"
    hits = ask(samples_index, "an animal", "--under", texts, "-k", "100")
    assert {Path(str(hit["path"])).parent for hit in hits} == {texts}
    assert {hit["kind"] for hit in ask(samples_index, "an animal", "--kind", "text", "-k", "50")} == {"text"}


def test_the_unwanted_is_not_among_the_first(samples_index: Path) -> None:
    question = ["an animal in the snow", "--kind", "image", "-k", "2"]
    names = {Path(str(hit["path"])).name for hit in ask(samples_index, *question)}
    assert names == {"IMG_0030.jpg", "IMG_0031.jpg"}
    names = {Path(str(hit["path"])).name for hit in ask(samples_index, *question, "--not", "a tiger")}
    assert "IMG_0030.jpg" in names and "IMG_0031.jpg" not in names


def test_the_same_question_twice_gives_the_same_bytes(samples_index: Path) -> None:
    runs = [mmsearch("query", "a cat", "-k", "50", "--json", "--index", samples_index).stdout for _ in range(2)]
    assert runs[0] == runs[1]


def test_nothing_found_is_said_and_is_no_failure(samples_index: Path) -> None:
    run = mmsearch("query", "a cat", "--before", "1900", "--index", samples_index)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "mmsearch: nothing found\n")
    run = mmsearch("query", "a cat", "--before", "1900", "--json", "--index", samples_index)
    assert run.returncode == 0
    assert json.loads(run.stdout) == {
        "hits": [],
        "clear": False,
        "estimated_matches": 0.0,
        "nothing_else_matches": False,
        "not_reranked": None,
        "understood": None,
        "foreign": None,
    }


def test_status(samples_index: Path) -> None:
    status = json.loads(mmsearch("status", "--json", "--index", samples_index).stdout)
    photographs = [path for path in (SAMPLES / "photos").rglob("*.*") if path.is_file()]
    assert status["files"]["image"] == status["items"]["image"] == len(photographs)
    assert (status["model"], status["skipped"], status["folder"]) == ("mini", [], str(samples_index))
    lines = mmsearch("status", "--index", samples_index).stdout
    assert f"{len(photographs)} image files" in lines


# -- misuse and failure ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["query"], 2, "nothing to search for"),
        (["query", "a", "--kind", "sound"], 2, "'sound' is not a kind"),
        (["query", "a", "--after", "soon"], 2, "'soon' is not a date"),
        (["query", "a", "-k", "0"], 2, "-k"),
        (["query", "a", "--json", "--paths"], 2, "exclude each other"),
        (["query", "a", "-0"], 2, "goes with --paths"),
        (["query", "--image", "none.jpg"], 2, "none.jpg"),
        (["query", "a", "--model", "ViT-B-32/openai"], 2, "was made by mini"),
        (["index"], 2, "nothing to index"),
        (["index", "x", "--no-tokens", "--add-tokens"], 2, "exclude each other"),
        (["index", "no-such-folder"], 2, "there is no 'no-such-folder'"),
        (["index", "no-such-folder", "--frobnicate"], 2, "--frobnicate"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_misuse(samples_index: Path, arguments: list[str], code: int, words: str) -> None:
    run = mmsearch(*arguments, env=os.environ | {"MMSEARCH_INDEX": str(samples_index)})
    assert run.returncode == code
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize("command", [["query", "a cat"], ["status"], ["verify"], ["compact"], ["remove", "x"]])
def test_no_index_yet(tmp_path: Path, command: list[str]) -> None:
    run = mmsearch(*command, "--index", tmp_path / "none")
    assert run.returncode == 1
    assert run.stderr == f"mmsearch: there is no index in {tmp_path / 'none'}; make one with 'mmsearch index FOLDER'\n"


def test_weights_that_are_not_here_and_cannot_be_had(tmp_path: Path) -> None:
    """One line that says so and names the model that needs no network."""
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    (tmp_path / "photos").mkdir()
    run = mmsearch(
        "index", tmp_path / "photos", "--model", "ViT-B-32/laion2b_s34b_b79k", "--index", tmp_path / "i", env=offline
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "ViT-B-32/laion2b_s34b_b79k" in line and "mini" in line


def test_remove_verify_compact(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("IMG_0013.jpg", "IMG_0045.jpg"):
        (photos / name).write_bytes((SAMPLES / "photos" / name).read_bytes())
    index = ["--index", str(tmp_path / "index")]
    assert mmsearch("index", photos, *index).stdout.startswith("2 added")
    run = mmsearch("remove", photos / "IMG_0013.jpg", *index)
    assert (run.returncode, run.stdout) == (0, "1 files removed from the index\n")
    assert mmsearch("verify", *index).stdout == "1 vectors checked: all sound\n"
    assert mmsearch("compact", *index).stdout.endswith("MB given back\n")
    assert json.loads(mmsearch("verify", "--json", *index).stdout) == {
        "vectors": 1,
        "repaired": [],
        "lost": [],
        "sound": True,
    }
    with (tmp_path / "index" / "vectors" / "image-00002.f32").open("r+b") as file:
        file.write(b"decay")
    run = mmsearch("verify", *index)
    assert run.returncode == 0 and run.stdout.endswith("1 vectors checked: 1 repaired, 0 lost\n")
    assert mmsearch("index", photos, *index).stdout.startswith("2 added")


def test_a_second_index_command_is_refused_in_words(samples_index: Path) -> None:
    with Index.open(samples_index).writing():
        run = mmsearch("index", SAMPLES, "--index", samples_index)
        assert run.returncode == 1
        assert run.stderr == (
            f"mmsearch: another mmsearch process is writing to {samples_index}; wait until it has finished, then run "
            "this again\n"
        )
        assert ask(samples_index, "a polar bear", "-k", "1", "--kind", "image")


def test_open_hands_the_best_answer_to_its_program(samples_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    arguments = ["query", "a polar bear", "--kind", "image", "--open", "--index", str(samples_index)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert opened == [str(SAMPLES / "photos" / "IMG_0030.jpg")]


def test_a_bad_file_is_a_line_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "photos" / "good.txt").write_text("a note about nothing much")
    run = mmsearch("index", tmp_path / "photos", "--index", tmp_path / "index", cwd=tmp_path)
    assert run.returncode == 0
    assert run.stderr.startswith("mmsearch: skipped photos/bad.jpg: ")
    assert run.stdout.startswith("1 added, 1 skipped in ")


# -- a long run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(3000):
        Image.new("RGB", (8, 8), colour(n)).save(photos / f"{n:04}.bmp")
    return photos


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_carries_on_later(many: Path, tmp_path: Path, how: signal.Signals) -> None:
    index = tmp_path / "index"
    vectors = index / "vectors" / "image-00001.f32"
    run = subprocess.Popen(
        [*COMMAND, "index", str(many), "--index", str(index)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests that run in the background ignore it
    )
    batch = IMAGE_BATCH * 512 * 4
    wait_for(lambda: vectors.exists() and vectors.stat().st_size > batch)  # the second batch: the first is committed
    run.send_signal(how)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert said.splitlines()[-1].startswith("mmsearch: stopped; what was committed is in the index")
    assert mmsearch("verify", "--index", index).stdout.endswith("all sound\n")
    held = json.loads(mmsearch("status", "--json", "--index", index).stdout)["items"]["image"]
    assert 0 < held < 3000


def test_a_terminal_sees_a_bar_with_rate_and_time_left(many: Path, tmp_path: Path) -> None:
    main, side = pty.openpty()
    run = subprocess.Popen(
        [*COMMAND, "index", str(many), "--index", str(tmp_path / "index")], stdout=subprocess.DEVNULL, stderr=side
    )
    os.close(side)
    seen = b""
    try:
        while b" left" not in seen:
            seen += os.read(main, 4096)
    except OSError as exc:
        assert exc.errno == errno.EIO  # the command has ended
    run.kill()
    run.wait()
    os.close(main)
    line = seen.decode().split("\r")[-1]
    assert "█" in line or "░" in line
    assert "of 3,000 files, " in line and "/s, " in line and " left" in line


# -- search in large indexes -------------------------------------------------------------------------------------------


def test_tune_prints_what_a_question_costs(samples_index: Path) -> None:
    run = mmsearch("index", "--tune", "--index", samples_index)
    assert run.returncode == 0, run.stderr
    first, *_ = run.stdout.splitlines()
    assert re.fullmatch(r"[\d,]+ image vectors: searched exactly; a scan of all takes \d+\.\d ms", first)
    values = json.loads(mmsearch("index", "--tune", "--json", "--index", samples_index).stdout)
    assert {one["modality"]: one["lists"] for one in values["tuning"]} == {"image": 0, "text": 0}


def test_the_recall_is_kept_and_checked(samples_index: Path, tmp_path: Path) -> None:
    index = shutil.copytree(samples_index, tmp_path / "index")
    run = mmsearch("index", "--recall", "0.95", "--index", index)
    assert run.returncode == 0, run.stderr
    assert (index / "lists" / "recall.json").read_text() == "0.95"
    run = mmsearch("index", "--recall", "1.5", "--index", index)
    assert run.returncode == 2
    assert "the recall is 1.5; it is a share, above 0 and at most 1" in run.stderr
