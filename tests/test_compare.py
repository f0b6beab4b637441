"""Two results compared: differences worked out by hand, the page as a parser reads it, and the command."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import GREEN, RED
from PIL import Image
from typer.testing import CliRunner

from indexer.errors import UsageError
from mmsearch.datasets import Picture
from mmsearch.evaluation import Comparison, Result, compare
from mmsearch.evaluation.command import app
from mmsearch.evaluation.comparison import cells
from mmsearch.evaluation.metrics import Judged
from mmsearch.evaluation.page import THUMBNAIL, page, thumbnails
from mmsearch.evaluation.retrieval import Answer, Way

QUESTIONS = ("a red <b>door</b>", "a red wall", "a green door")
PICTURES = ("red.png", "red.png", "green.png")


def result(model: str, ranks: list[int], **changed: object) -> Result:
    """Three captions of two pictures among 40, each with one right answer at its rank."""
    answers = tuple(
        (Answer("red.png", rank == 1 and picture == "red.png"), Answer("green.png", picture == "green.png"))
        for rank, picture in zip(ranks, PICTURES, strict=True)
    )
    way = Way(
        "text",
        "image",
        40,
        QUESTIONS,
        PICTURES,
        np.array([0, 0, 1]),
        Judged.of([[rank] for rank in ranks]),
        np.array([1, 0, 0]),
        np.array([1, 1, 0]),
        answers,
    )
    return Result(model, model * 4, "doors", (1, 5), 0.5, (replace(way, **changed),))  # type: ignore[arg-type]


A, B = result("a", [1, 3, 40]), result("b", [2, 1, 10])


def test_differences_by_hand() -> None:
    """R@1: A has question 0, B question 1; they are of one picture, so the picture as a whole does not differ.

    MRR of A: (1 + 1/3 + 1/40) / 3; of B: (1/2 + 1 + 1/10) / 3. Both pictures gain, which 2 of 4 patterns of signs do.
    """
    rows = {row.measure: row for row in compare(A, B).rows}
    first = rows["R@1"]
    assert (first.a, first.b) == pytest.approx((1 / 3, 1 / 3))
    assert (first.difference.value, first.difference.p, first.better, first.worse) == (0.0, 1.0, 1, 1)
    mrr = rows["MRR"]
    assert mrr.difference.value == pytest.approx((1.6 - (4 / 3 + 1 / 40)) / 3)
    assert (mrr.difference.p, mrr.better, mrr.worse) == (0.5, 2, 1)
    # Drawn twice, each picture gives its own mean: red (-1/2 + 2/3) / 2, green 1/10 - 1/40.
    assert mrr.difference.low == pytest.approx(1 / 10 - 1 / 40)
    assert mrr.difference.high == pytest.approx((-1 / 2 + 2 / 3) / 2)
    rank = rows["mean rank"]
    assert (rank.a, rank.b) == pytest.approx((44 / 3, 13 / 3))
    assert (rank.better, rank.worse) == (2, 1)
    assert rows["precision≥0.5"].difference.value == 0


def test_a_row_in_words() -> None:
    row = next(row for row in compare(A, B).rows if row.measure == "mean rank")
    assert cells(row) == ("mean rank", "14.7", "4.3", "-10.3", "-30.0 … -0.5", "0.5000", "2", "1")
    share = next(row for row in compare(A, B).rows if row.measure == "R@5")
    assert cells(share)[:4] == ("R@5", "66.7", "66.7", "+0.0")


def test_what_changed_most_comes_first() -> None:
    """From 3 to 1 is 2/3 of a reciprocal rank, from 1 to 2 a half, from 40 to 10 less than a tenth."""
    changes = compare(A, B).changes
    assert [(c.question, c.rank_a, c.rank_b) for c in changes] == [
        ("a red wall", 3, 1),
        ("a red <b>door</b>", 1, 2),
        ("a green door", 40, 10),
    ]
    assert [c.question for c in compare(A, B, changed=1).changes] == ["a red wall"]
    assert compare(A, A).changes == ()


def test_nothing_differs_from_itself() -> None:
    for row in compare(A, A).rows:
        assert (row.difference.value, row.difference.low, row.difference.high, row.difference.p) == (0, 0, 0, 1)


def test_reranked_rankings_are_compared() -> None:
    better = result("c", [1, 3, 40], reranked=Judged.of([[1], [1], [40]]), depth=3)
    row = next(row for row in compare(A, better).rows if row.measure == "R@1")
    assert (row.a, row.b) == pytest.approx((1 / 3, 2 / 3))


def test_a_model_is_compared_with_its_own_first_stage() -> None:
    """Two questions get better; what the first stage answered is shown beside what became of it."""
    before = tuple((Answer("before.png", False),) for _ in QUESTIONS)
    whole = result("a", [2, 3, 40], reranked=Judged.of([[1], [1], [40]]), depth=3, answers_before=before)
    found = compare(whole.first_stage(), whole)
    assert found.names == ("a", "a reranked")
    row = next(row for row in found.rows if row.measure == "R@1")
    assert (row.a, row.b, row.better, row.worse) == (0, pytest.approx(2 / 3), 2, 0)
    assert [change.question for change in found.changes] == [QUESTIONS[1], QUESTIONS[0]]
    assert found.changes[0].answers_a is before[1] and found.changes[0].answers_b is whole.ways[0].answers[1]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            result("b", [1, 1, 1], questions=("x", *QUESTIONS[1:])),
            "number 1 is 'a red <b>door</b>' for A and 'x' for B",
        ),
        (result("b", [1, 1, 1], gallery=41), "among 40 and B among 41"),
        (result("b", [1, 1, 1], asked="image", answered="text"), "no way of asking in common"),
        (replace(B, ks=(7,)), "no cut in common"),
        (replace(B, threshold=0.9), "other thresholds"),
    ],
)
def test_what_cannot_be_compared(other: Result, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compare(A, other)


# -- the page ----------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects tags with their attributes, texts, and what was left open."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def pictures(paint: Callable[..., Path]) -> dict[str, Picture]:
    return {name: Picture(name, paint(name, colour, 400)) for name, colour in (("red.png", RED), ("green.png", GREEN))}


def test_the_page_shows_pictures_side_by_side_and_loads_nothing(pictures: dict[str, Picture]) -> None:
    read = Reader(page(compare(A, B), thumbnails(pictures)))
    assert read.open == []
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "b>door<"}
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    # Three questions, each with the right picture, two answers of A, two of B.
    assert [image["alt"] for image in images[:5]] == ["red.png", "red.png", "green.png", "red.png", "green.png"]
    assert len(images) == 15
    prefix = "data:image/jpeg;base64,"
    for image in images:
        source = str(image["src"])
        assert source.startswith(prefix)
        opened = Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix))))
        assert opened.size == (THUMBNAIL, THUMBNAIL)
        colour = opened.convert("RGB").getpixel((80, 80))
        expected = RED if image["alt"] == "red.png" else GREEN
        assert isinstance(colour, tuple) and max(map(abs, np.subtract(colour, expected))) < 8
    right = [attributes for tag, attributes in read.tags if tag == "li" and attributes.get("class") == "right"]
    # A: rank 1 of "door" and the green one; B: rank 1 of "wall" and the green one.
    assert len(right) == 4
    assert "“a red <b>door</b>”" in read.texts
    assert "B - A" in read.texts and "mean rank" in read.texts


def test_what_the_data_says_cannot_break_the_page(tmp_path: Path) -> None:
    """Names and words are escaped, also in attributes; a picture that cannot be read is its name."""
    evil = '"><script>alert(1)</script>'
    ours = Answer(evil, False)
    a = result(evil, [1, 1, 1], questions=(evil, *QUESTIONS[1:]), answers=((ours,),) * 3)
    b = result(evil, [2, 1, 1], questions=(evil, *QUESTIONS[1:]), answers=((ours,),) * 3)
    a, b = replace(a, data=evil), replace(b, data=evil)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    known = {"red.png": Picture("red.png", tmp_path / "bad.png")}
    read = Reader(page(compare(a, b), thumbnails(known)))
    assert "script" not in {tag for tag, _ in read.tags} and "img" not in {tag for tag, _ in read.tags}
    assert "red.png" in read.texts and evil in read.texts
    same = Reader(page(compare(A, A), thumbnails({})))
    assert "No question has another rank." in same.texts


def test_a_picture_that_asks_is_shown_and_its_captions_are_words(pictures: dict[str, Picture]) -> None:
    def asking(model: str, rank: int) -> Result:
        way = A.ways[0]
        turned = replace(
            way,
            asked="image",
            answered="text",
            questions=("red.png",),
            pictures=("red.png",),
            groups=np.array([0]),
            judged=Judged.of([[rank]]),
            right=np.array([0]),
            returned=np.array([0]),
            answers=((Answer("a red door", True),),),
        )
        return replace(A, model=model, ways=(turned,))

    read = Reader(page(compare(asking("a", 1), asking("b", 4)), thumbnails(pictures)))
    assert [attributes["alt"] for tag, attributes in read.tags if tag == "img"] == ["red.png"]
    assert read.texts.count("a red door") == 2 and "the question" in read.texts


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> tuple[int, str, BaseException | None]:
    """Exit code, stdout, and what was raised."""
    given = ["compare", *(str(argument) for argument in arguments)]
    done = CliRunner().invoke(app, given, env={"COLUMNS": "140"})
    return done.exit_code, done.stdout, done.exception


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, one in zip(paths, (A, B), strict=True):
        path.write_text(json.dumps(one.as_dict()))
    return paths


def test_saved_results_are_compared_without_models_or_data(saved: tuple[Path, Path]) -> None:
    code, stdout, _ = run(*saved)
    assert code == 0
    assert "text→image" in stdout and "-30.0 … -0.5" in stdout
    assert stdout.splitlines()[-3:] == [
        "text→image      3 →     1  a red wall",
        "text→image      1 →     2  a red <b>door</b>",
        "text→image     40 →    10  a green door",
    ]
    code, stdout, _ = run(*saved, "--json", "--show", "1")
    values = json.loads(stdout)
    assert (values["a"], values["b"], len(values["changes"])) == ("a", "b", 1)
    mrr = next(row for row in values["rows"] if row["measure"] == "MRR")
    assert math.isclose(mrr["difference"]["value"], (1.6 - (4 / 3 + 1 / 40)) / 3)


def test_one_saved_result_is_compared_with_its_own_first_stage(saved: tuple[Path, Path]) -> None:
    whole = result("a", [2, 3, 40], reranked=Judged.of([[1], [1], [40]]), depth=3, answers_before=A.ways[0].answers)
    saved[0].write_text(json.dumps(whole.as_dict()))
    code, stdout, _ = run(saved[0])
    assert code == 0
    assert "A: a, B: a reranked, on doors" in stdout
    assert stdout.splitlines()[-1] == "text→image      2 →     1  a red <b>door</b>"
    error = run(saved[1])[2]
    assert isinstance(error, UsageError) and "was not reranked" in str(error)


def test_the_page_is_written(saved: tuple[Path, Path], pictures: dict[str, Picture], tmp_path: Path) -> None:
    table = pictures["red.png"].path.parent / "captions.tsv"
    table.write_text("image\tcaption\nred.png\ta red door\ngreen.png\ta green door\n")
    code, _, _ = run(*saved, "--data", table, "--html", tmp_path / "page.html")
    assert code == 0
    read = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert sum(tag == "img" for tag, _ in read.tags) == 15


@pytest.mark.parametrize(
    ("content", "said"), [("{", "is no result"), ("[]", "no result"), ('{"format": 2, "ways": []}', "damaged")]
)
def test_files_that_are_no_results(saved: tuple[Path, Path], content: str, said: str) -> None:
    saved[0].write_text(content)
    error = run(*saved)[2]
    assert isinstance(error, UsageError) and said in str(error) and str(saved[0]) in str(error)


def test_data_is_asked_for_where_it_is_needed(saved: tuple[Path, Path], tmp_path: Path) -> None:
    for arguments in ((*saved, "--html", tmp_path / "page.html"), (saved[0], "mini")):
        error = run(*arguments)[2]
        assert isinstance(error, UsageError) and "--data PATH" in str(error)


def test_the_table_of_two_models_of_one_name_tells_them_apart() -> None:
    other = replace(B, model="a", fingerprint="0123456789")
    found = compare(A, other)
    assert isinstance(found, Comparison)
    assert found.names == ("a [aaaa]", "a [01234567]")
