"""Everyday questions, with captions and answers that can be worked out by hand, and the words that come with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, PatchColourEncoder
from conftest import BLUE, GREEN, RED
from fusion_folder import write_reranker
from typer.testing import CliRunner

from indexer.errors import UsageError
from mmsearch.datasets import Captioned, Picture
from mmsearch.evaluation import evaluate_everyday
from mmsearch.evaluation.bootstrap import calibration_interval
from mmsearch.evaluation.command import app
from mmsearch.evaluation.gallery import indexed
from mmsearch.evaluation.kinds import agreeing, everyday_kinds, fits, matches, read_captions, read_kinds, stem
from mmsearch.evaluation.libraries import draws, library_of, read_pool

pytestmark = pytest.mark.usefixtures("log_odds_alone")

Paint = Callable[..., Path]

KINDS = read_kinds(
    {
        "phrases": ["red tape"],
        "empty": ["a", "the", "on"],
        "present": {
            "red": {"ask": ["red", "a red"], "words": ["red", "crimson"]},
            "green": {"ask": ["green"], "words": ["green"]},
        },
        "absent": {
            "blue": {"ask": ["blue"], "words": ["blue"]},
            "wall": {"ask": ["wall"], "words": ["wall", "walls"]},
            "sea": {"ask": ["a sea"], "words": ["sea"]},
        },
    }
)


def captioned(pictures: dict[Path, list[str]]) -> Captioned:
    return Captioned([Picture(path.name, path) for path in pictures], list(pictures.values()))


# -- what captions say -------------------------------------------------------------------------------------------------


def test_captions_agree_on_a_kind_and_a_phrase_hides_its_words() -> None:
    red = KINDS.present[0]
    said = read_captions(["A red door.", "a CRIMSON gate", "red tape", "a redder door"], KINDS)
    assert agreeing(red, said) == 2
    assert (matches(red, said, 2), matches(red, said, 3)) == (True, False)
    assert matches(red, read_captions(["red"], KINDS), 2)  # all of its captions say so


def test_words_of_several_words_stand_side_by_side() -> None:
    kinds = read_kinds({"present": {"red shirt": {"ask": ["red shirt"], "words": ["red shirt", "red t-shirt"]}}})
    said = read_captions(["A red shirt", "a red T-shirt", "a red and white shirt", "shirt red"], kinds)
    assert agreeing(kinds.present[0], said) == 2


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("A dog runs on the beach", True),  # "the shore" says "beach"
        ("Dogs running", True),
        ("An animal", True),  # a dog says so
        ("A puppy", False),  # a dog does not say "puppy"
        ("A dog on a sofa", False),
        ("on the", False),  # says nothing
    ],
)
def test_a_caption_fits_where_all_that_it_says_is_said(caption: str, right: bool) -> None:
    words = {"animal": ["animal", "dog", "puppy"], "dog": ["dog", "dogs", "puppy"], "beach": ["beach", "shore"]}
    kinds = read_kinds(
        {
            "empty": ["a", "an", "on", "the"],
            "present": {name: {"ask": [name], "words": some} for name, some in words.items()},
        }
    )
    assert fits(caption, read_captions(["A dog is running", "the shore"], kinds), kinds) is right


@pytest.mark.parametrize(
    "forms",
    [
        ("run", "runs", "running"),
        ("ride", "rides", "riding"),
        ("puppy", "puppies"),
        ("dress", "dresses"),
        ("bus", "buses"),
    ],
)
def test_forms_of_a_word_have_one_stem(forms: tuple[str, ...]) -> None:
    assert len(set(map(stem, forms))) == 1


def test_the_lists_of_the_package_are_long_enough_and_apart() -> None:
    kinds = everyday_kinds()
    assert len(kinds.present) >= 60 and len(kinds.absent) >= 60
    asked = [text for kind in (*kinds.present, *kinds.absent) for text in kind.ask]
    assert len(set(asked)) == len(asked)
    by_name = {kind.name: kind for kind in kinds.present}
    said = read_captions(["A hot dog on a plate", "two dogs", "Horses graze", "a black dog"], kinds)
    assert [agreeing(by_name[name], said) for name in ("dog", "animal", "food", "black dog")] == [2, 3, 1, 1]
    for kind in (*kinds.present, *kinds.absent):  # whoever writes the first question as a caption says the kind
        assert kind.words and any(agreeing(kind, read_captions([text], kinds)) for text in (kind.name, *kind.ask))


# -- libraries ---------------------------------------------------------------------------------------------------------


def test_small_libraries_are_drawn_several_times_and_large_ones_filled_up() -> None:
    own, others = list(range(100)), list(range(100, 150))
    drawn = draws(own, others, 50, seed=3)
    assert len(drawn) == 8 and all(len(set(some.tolist())) == 50 and some.max() < 100 for some in drawn)
    assert len({tuple(some.tolist()) for some in drawn}) == 8
    assert [some.tolist() for some in drawn] == [some.tolist() for some in draws(own, others, 50, seed=3)]
    assert [some.tolist() for some in draws(own, others, 100, seed=3)] == [own]
    (filled,) = draws(own, others, 120, seed=3)
    assert filled[:100].tolist() == own and len(set(filled.tolist())) == 120
    assert len(draws(list(range(1000)), [], 250, seed=0)) == 4


def test_a_library_answers_as_the_whole_would_and_no_name_tells(paint: Paint, tmp_path: Path) -> None:
    """Vectors and tokens are copies: scores, also of the reranker, are those of the index that was built."""
    encoder = PatchColourEncoder()
    data = captioned({paint(f"a wall {n}.png", c): ["a thing"] for n, c in enumerate((RED, GREEN, BLUE, (200, 40, 0)))})
    from mmsearch.rerank.load import load_reranker

    reranker = load_reranker(write_reranker(tmp_path / "reranker", encoder), encoder, None)
    assert reranker is not None
    said: list[str] = []

    def progress(what: str, _done: int, _total: int) -> None:
        said.append(what)

    with indexed(encoder, data, None, progress, reranker.compressor, captions=False) as folder:
        pool = read_pool(folder, data)
        with library_of(pool, np.arange(4), encoder, reranker, tmp_path) as whole:
            everything = whole.query("red", k=4)
        with library_of(pool, np.array([0, 3]), encoder, reranker, tmp_path) as part:
            found = part.query("red", k=4)
            assert part.status().items == {"image": 2, "video": 0, "text": 0}
            assert part.query("wall", k=4, exact=True) == []
    assert set(said) == {"indexing pictures"}
    assert [hit.key for hit in found] == ["IMG_0000", "IMG_0003"]
    expected = {hit.key: hit.score for hit in everything}
    assert [hit.score for hit in found] == pytest.approx([expected[hit.key] for hit in found])
    assert all(hit.reranked for hit in found)


# -- everything, by hand -----------------------------------------------------------------------------------------------


@pytest.fixture
def data(paint: Paint) -> Captioned:
    """Two red pictures, of which one is not said to be red, and a green one that is said to have a wall."""
    return captioned(
        {
            paint("1.png", RED): ["a red door", "the crimson door"],
            paint("2.png", RED): ["a door", "a house"],
            paint("3.png", GREEN): ["a green wall", "green"],
        }
    )


def test_measures_worked_out_by_hand(data: Captioned) -> None:
    """A cosine of 1 is a probability of 0.9820, one of 0.2 is 0.0000061; words without a colour, (0, 0, 0, 1), are at
    0.447 from all: logit 2 · (0.447 - 0.5) / 0.1 - 6 = -7.06, 0.00086.

    Asked are "red" and "a red" (two clear, the first one right) and "green" (one clear, right), all three shown:
    precision of what is shown 1/3, of what is clear 2/3, of the first ten 0.1, nothing refused. Each of the nine
    answers has 0.982 or next to nothing; in the bin
    of 0.982 are 5, 3 of them right: (5 · 0.982 - 3) / 9. "blue" and "a sea" are absent, "wall" is not.
    """
    result = evaluate_everyday(ColourEncoder(), data, kinds=KINDS, sizes=(3, 50), name="doors")
    assert (result.model, result.data, result.agree, result.skipped) == ("colours", "doors", 2, ())
    (size,) = result.sizes  # three pictures are all there are
    assert (size.pictures, size.libraries) == (3, 1)
    assert size.questions == {"present": 3, "absent": 2, "captions": 3}
    assert size.kinds == {"present": 2, "absent": 2}
    values = {name: found.value for name, found in size.measures.items()}
    assert (values["precision of shown"], values["precision of clear"]) == pytest.approx((1 / 3, 2 / 3))
    assert values["precision@10"] == pytest.approx(0.1)
    assert values["nDCG@10"] == pytest.approx(1)
    assert (values["refused"], values["nothing clear"]) == (0, 0)
    assert values["ECE"] == pytest.approx((5 * 0.98201 - 3) / 9, abs=1e-4)
    assert values["ECE: said"] == pytest.approx(5 * 0.98201 / 9, abs=1e-4)
    assert values["ECE: true"] == pytest.approx(3 / 9)
    # "blue" is at 0.2 from red and green, "a sea" at 0.447: nothing is clear of either
    assert (values["absent answered"], values["absent answered as clear"]) == (1, 0)
    assert values["absent answered as sure"] == 0
    assert size.by_kind["red"]["shown"] == 3 and size.by_kind["red"]["relevant"] == 1


def test_captions_are_judged_by_the_picture_meant_and_by_what_is_said(paint: Paint) -> None:
    """Both pictures are red: "red" of the second finds the first, which is not meant, and which is said to be red."""
    data = captioned({paint("1.png", RED): ["a red"], paint("2.png", RED): ["red"]})
    (size,) = evaluate_everyday(ColourEncoder(), data, kinds=KINDS, sizes=(2,)).sizes
    values = {name: found.value for name, found in size.measures.items()}
    assert values["captions R@1"] == 0.5
    assert values["captions ECE, picture meant"] == pytest.approx(0.98201 - 0.5, abs=1e-4)
    assert values["captions ECE, what is said"] == pytest.approx(1 - 0.98201, abs=1e-4)


def test_what_is_present_and_looks_otherwise_is_not_clear(paint: Paint) -> None:
    """The picture is said to be red and is blue: at 0.2 nothing is clear, and the question "blue" has clear answers."""
    data = captioned({paint("1.png", BLUE): ["red", "a red"], paint("2.png", BLUE): ["a thing", "a thing"]})
    (size,) = evaluate_everyday(ColourEncoder(), data, kinds=KINDS, sizes=(2,)).sizes
    values = {name: found.value for name, found in size.measures.items()}
    assert (values["refused"], values["nothing clear"], values["precision of shown"]) == (0, 1, 0.5)
    assert size.kinds == {"present": 1, "absent": 3}
    assert values["absent answered"] == 1
    assert values["absent answered as clear"] == values["absent answered as sure"] == pytest.approx(1 / 3)


def test_one_caption_may_be_enough(data: Captioned) -> None:
    """That one of two captions says "house" is enough with ``agree`` 1 and not with 2."""
    kinds = read_kinds({"present": {"house": {"ask": ["house"], "words": ["house"]}}})
    once, twice = (evaluate_everyday(ColourEncoder(), data, kinds=kinds, sizes=(3,), agree=n).sizes[0] for n in (1, 2))
    assert (once.kinds["present"], twice.kinds["present"]) == (1, 0)
    assert "refused" not in twice.measures


def test_filling_is_searched_and_asks_nothing(data: Captioned, paint: Paint) -> None:
    filling = captioned({paint("4.png", BLUE): ["a blue sea", "blue"], paint("5.png", RED): ["a red", "red"]})
    small, large = evaluate_everyday(ColourEncoder(), data, filling=filling, kinds=KINDS, sizes=(3, 5)).sizes
    assert (large.pictures, large.questions["captions"]) == (5, 3)
    assert (small.kinds["absent"], large.kinds["absent"]) == (2, 0)
    assert large.by_kind["red"]["relevant"] == 2


def test_a_picture_that_cannot_be_read_is_named(data: Captioned, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    more = Captioned([*data.pictures, Picture("broken.png", broken)], [*data.captions, ["a blue sea", "blue"]])
    result = evaluate_everyday(ColourEncoder(), more, kinds=KINDS, sizes=(4,))
    assert [one.path for one in result.skipped] == ["broken.png"]
    assert result.sizes[0].pictures == 3 and result.sizes[0].kinds["absent"] == 2
    with pytest.raises(UsageError, match=r"none of 1 pictures can be read; the first is broken\.png: not a picture"):
        evaluate_everyday(ColourEncoder(), more.subset([3]), kinds=KINDS)


@pytest.mark.parametrize(("sizes", "agree"), [((), 2), ((0,), 2), ((3,), 0)])
def test_sizes_that_make_no_sense(data: Captioned, sizes: tuple[int, ...], agree: int) -> None:
    with pytest.raises(UsageError, match="each is at least 1"):
        evaluate_everyday(ColourEncoder(), data, kinds=KINDS, sizes=sizes, agree=agree)


# -- the calibration error ---------------------------------------------------------------------------------------------


def test_calibration_by_hand() -> None:
    found = calibration_interval(np.array([0.05, 0.9, 0.92]), np.array([False, True, False]), np.arange(3))
    assert found.value == pytest.approx((0.05 + 2 * 0.41) / 3)
    assert found.low <= found.value <= found.high
    assert calibration_interval(np.array([1.0]), np.array([True]), np.array([0])).value == 0


def test_calibration_as_counted_bin_by_bin() -> None:
    rng = np.random.default_rng(7)
    confidence, groups = rng.random(500), rng.integers(0, 40, 500)
    right = rng.random(500) < confidence**2
    error = 0.0
    for b in range(10):
        inside = (confidence >= b / 10) & (confidence < (b + 1) / 10)
        if inside.any():
            error += inside.sum() * abs(confidence[inside].mean() - right[inside].mean()) / 500
    found = calibration_interval(confidence, right, groups)
    assert found.value == pytest.approx(error)
    assert 0 < found.low < found.high < 0.4


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["everyday", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "110"})
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture
def walls(paint: Paint, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A red and a green picture in dev, a blue one in train and another in test."""
    monkeypatch.setattr("mmsearch.evaluation.everyday.load_encoder", lambda model, device=None: ColourEncoder())
    rows = ["image\tcaption"]
    for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE), ("dark", (0, 0, 99))):
        folder = paint(f"images/{name}.png", colour).parent.parent
        rows += [f"{name}.png\tA {name} wall", f"{name}.png\t{name} paint"]
    (folder / "captions.tsv").write_text("\n".join(rows) + "\n")
    for split, names in (("dev", "red green"), ("train", "blue"), ("test", "dark")):
        (folder / f"{split}.txt").write_text("".join(f"{name}.png\n" for name in names.split()))
    return folder


def test_the_command_fills_up_with_other_splits_but_never_with_test(walls: Path) -> None:
    found = json.loads(run("--data", walls, "--split", "dev", "--sizes", "2,1000", "--json"))
    assert (found["model"], found["data"], found["agree"]) == ("colours", "photos, split dev", 2)
    assert [size["pictures"] for size in found["sizes"]] == [2, 3]
    assert [set(size["by_kind"]) for size in found["sizes"]] == [{"red"}, {"red", "blue"}]
    assert found["sizes"][0]["measures"]["refused"]["value"] == 0
    assert found["sizes"][1]["by_kind"]["blue"]["relevant"] == 1


def test_the_command_shows_a_table(walls: Path) -> None:
    out = run("--data", walls, "--split", "dev", "--sizes", "2,3")
    assert "colours: photos, split dev; a picture matches where 2 captions say so" in out
    (line,) = [line for line in out.splitlines() if line.strip().startswith("refused")]
    assert line.split() == ["refused", "0.0", "(0.0–0.0)", "0.0", "(0.0–0.0)"]
    (line,) = [line for line in out.splitlines() if re.match(r" *pictures +2", line)]
    assert line.split() == ["pictures", "2", "3"]


def test_the_command_misused(walls: Path) -> None:
    with pytest.raises(UsageError, match="whole numbers"):
        run("--data", walls, "--sizes", "2,x")
    with pytest.raises(UsageError, match="no split 'nothing'"):
        run("--data", walls, "--split", "nothing")
