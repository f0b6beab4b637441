"""Questions of several parts with weights, as they are typed and as they count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_encoder import PatchColourEncoder, unit
from conftest import BLUE, GREEN, RED
from fusion_folder import write_reranker
from PIL import Image

import mmsearch
from indexer.errors import UsageError
from mmsearch import asking
from mmsearch.query import parse_query
from mmsearch.weights import Weighted, read, split

pytestmark = pytest.mark.usefixtures("log_odds_alone")

COLOURS = {"red": RED, "green": GREEN, "blue": BLUE, "pink": (255, 0, 255), "teal": (0, 255, 255), "grey": (90, 90, 90)}


def plain(name: str) -> Image.Image:
    return Image.new("RGB", (8, 8), COLOURS[name])


def log_odds(hit: mmsearch.Hit) -> float:
    return math.log(hit.score / (1 - hit.score))


@pytest.fixture
def coloured(library: mmsearch.Library) -> mmsearch.Library:
    """A picture of each colour, from memory."""
    library.add([mmsearch.Addition(name, image=plain(name)) for name in COLOURS])
    return library


# -- as they count -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [2, 0.5, 1], [1e-3, 5, 5], [10, 1, 1]], ids=str)
def test_parts_count_by_their_shares(coloured: mmsearch.Library, weights: list[float] | None) -> None:
    """Against a plain twin: the log-odds of each part, 20 · (cosine - 0.5) - 6, weighted and added up."""
    hits = coloured.query("red", image=[plain("blue"), plain("green")], weights=weights, k=6)
    shares = np.array(weights or [1, 1, 1]) / sum(weights or [1, 1, 1])
    parts = unit(np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]))
    items = {name: unit(np.array([rgb]) / 255)[0] for name, rgb in COLOURS.items()}
    expected = {name: float(shares @ (20 * (parts @ vector - 0.5) - 6)) for name, vector in items.items()}
    assert {str(hit.key): log_odds(hit) for hit in hits} == pytest.approx(expected, abs=1e-4)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_one_picture_in_a_list_is_one_picture(coloured: mmsearch.Library) -> None:
    assert coloured.query(image=[plain("pink")], k=6) == coloured.query(image=plain("pink"), k=6)
    assert coloured.query(image=plain("pink"), weights=[7], k=6) == coloured.query(image=plain("pink"), k=6)
    assert coloured.query("red", image=[], weights=[7], k=6) == coloured.query("red", k=6)


def test_a_time_that_is_taken_out_of_the_words_takes_their_weight_along(coloured: mmsearch.Library) -> None:
    hits = coloured.query("since 2020", image=[plain("red"), plain("blue")], weights=[9, 1, 3], k=6)
    assert hits == coloured.query(image=[plain("red"), plain("blue")], weights=[1, 3], after="2020", k=6)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1], "there are 1 weights for 2 parts"),
        ([1, 2, 3], "there are 3 weights for 2 parts"),
        ([1, 0], "a weight is 0; it must be a number above 0"),
        ([-1, 1], "a weight is -1"),
        ([math.nan, 1], "a weight is nan"),
        ([math.inf, 1], "a weight is inf"),
    ],
    ids=str,
)
def test_weights_that_make_no_sense(coloured: mmsearch.Library, weights: list[float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        coloured.query("red", image=plain("blue"), weights=weights)


def test_several_pictures_are_reranked_as_one_after_the_other_would_be(tmp_path: Path) -> None:
    """Log-odds are linear: those of two pictures together are the weighted mean of those of each."""
    texts = ["a red thing", "a green thing", "a blue thing", "blue green"]
    reranker = write_reranker(tmp_path / "reranker", PatchColourEncoder())
    with mmsearch.open(tmp_path / "index", model=PatchColourEncoder(), reranker=reranker) as library:
        library.add([mmsearch.Addition(text, text=text) for text in texts])
        pictures = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), (0, 120, 240))]
        pictures[0].paste(BLUE, (0, 0, 4, 4))
        alone = [{str(hit.key): log_odds(hit) for hit in library.query(image=one, k=4)} for one in pictures]
        both = library.query(image=pictures, weights=[3, 1], k=4)
    assert all(hit.reranked for hit in both)
    expected = {text: 0.75 * alone[0][text] + 0.25 * alone[1][text] for text in texts}
    assert {str(hit.key): log_odds(hit) for hit in both} == pytest.approx(expected, abs=1e-6)


def test_a_question_of_several_pictures_in_one_form() -> None:
    one, two = plain("red"), plain("blue")
    query = parse_query("at night", image=[one, two], weights=[2, 1, 1])
    assert query.images == (one, two) and query.shares == (0.5, 0.25, 0.25)
    assert parse_query(image=one).images == (one,) and parse_query("at night").images == ()
    with pytest.raises(UsageError, match="a picture has no words"):
        parse_query("at night", image=[one, two], exact=True)


# -- as they are typed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("at night", ("at night", 1.0)),
        ("at night*2", ("at night", 2.0)),
        ("at night *.5", ("at night", 0.5)),
        ("at night*2. ", ("at night", 2.0)),
        ("a*b*3", ("a*b", 3.0)),
        ("at night* 2", ("at night* 2", 1.0)),
        ("2*at night", ("2*at night", 1.0)),
        ("*2", ("*2", 1.0)),
        ("at night*two", ("at night*two", 1.0)),
        ("at night*", ("at night*", 1.0)),
        ("cat.jpg*0.5", ("cat.jpg", 0.5)),
    ],
)
def test_a_weight_stands_at_the_very_end(typed: str, meant: tuple[str, float]) -> None:
    assert split(typed) == meant


@pytest.mark.parametrize("typed", ["at night*0", "at night*-2", "a.jpg*0.0", f"a.jpg*{'9' * 400}"])
def test_a_typed_weight_must_be_above_0(typed: str) -> None:
    with pytest.raises(UsageError, match=r"the weight in '.*' is .*; it must be above 0"):
        split(typed)


def test_a_file_that_is_called_so_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg*0.5").write_bytes(b"")
    found = read("at night*2", ["a.jpg*0.5", "b.jpg*0.5"], ["a.jpg*0.5", "c.jpg*4"])
    assert found == Weighted("at night", ("a.jpg*0.5", "b.jpg"), ("a.jpg*0.5", "c.jpg"), (2, 1, 0.5, 1, 4))


def test_literal_words_have_no_weight() -> None:
    assert read("2*2", ["a.jpg*3"], [], literal=True) == Weighted("2*2", ("a.jpg",), (), (1, 3))
    assert read(None, [], []) == read(" ", [], []) == Weighted(None, (), (), ())


@pytest.mark.parametrize(
    ("typed", "options", "asked"),
    [
        ("red*2", {"image": ["a.png*0.5"]}, {"text": "red", "weights": (2, 0.5)}),
        ("red", {"image": ["a.png", "b.png*3"]}, {"text": "red", "weights": (1, 1, 3)}),
        ("red*2", {"image": ["a.png"], "literal": True}, {"text": "red*2", "weights": (1, 1), "literal": True}),
        (None, {"image": ["a.png*2", "b.png"]}, {"weights": (2, 1)}),
    ],
    ids=str,
)
def test_the_command_asks_with_weights(
    coloured: mmsearch.Library,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: str | None,
    options: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    plain("blue").save("a.png")
    plain("green").save("b.png")
    images = [name.partition("*")[0] for name in options["image"]]
    expected = [str(hit.key) for hit in coloured.query(image=images, k=6, **asked)]
    monkeypatch.setattr(mmsearch, "open", lambda *_, **__: coloured)
    asking.query(typed, k=6, paths=True, **options)
    assert capsys.readouterr().out.split() == expected
