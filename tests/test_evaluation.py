"""Judging through a real index, with an encoder whose every rank can be worked out by hand, once with the real one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from colour_encoder import ColourEncoder, PatchColourEncoder
from conftest import BLUE, GREEN, RED, SAMPLES
from fusion_folder import write_reranker
from PIL import Image
from typer.testing import CliRunner

import mmsearch
from indexer.encoders import load
from indexer.errors import UsageError
from indexer.types import Modality
from mmsearch.calibration import FusedLine
from mmsearch.datasets import Captioned, Picture
from mmsearch.evaluation import Report, Result, cost, evaluate, metrics
from mmsearch.evaluation.command import app
from mmsearch.evaluation.retrieval import Way
from mmsearch.query import Query
from mmsearch.rerank import PictureSide, TextSide

pytestmark = [pytest.mark.slow(reason="evaluates real models"), pytest.mark.usefixtures("log_odds_alone")]

Paint = Callable[..., Path]


def captioned(pictures: dict[Path, list[str]]) -> Captioned:
    return Captioned([Picture(path.name, path) for path in pictures], list(pictures.values()))


@pytest.fixture
def data(paint: Paint) -> Captioned:
    """The blue picture is described as the red one is: these words are right for both, and blue is hard to find."""
    return captioned(
        {
            paint("red.png", RED): ["a red thing", "red"],
            paint("green.png", GREEN): ["a green wall"],
            paint("blue.png", BLUE): ["a  red thing"],
        }
    )


def ranks(way: Way) -> list[list[float]]:
    return [row[np.isfinite(row)].tolist() for row in way.judged.ranks]


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_captions_and_pictures_ask_with_ranks_worked_out_by_hand(data: Captioned) -> None:
    """Alike is cosine 1 and any two colours are 0.2, so what is not the first in line stands in the order of the data.

    "a red thing" gives red, green, blue, of which the first and third are right. The texts are, in order: a red thing,
    red, a green wall, a red thing. Red finds its own two and the one of blue first; blue finds all four equally far.
    """
    result = evaluate(ColourEncoder(), data, name="colours", ks=(3, 1, 3))
    to_image, to_text = result.ways
    assert (result.model, result.data, result.ks, result.skipped) == ("colours", "colours", (1, 3), ())
    assert (to_image.name, to_image.gallery) == ("text→image", 3)
    assert to_image.questions == ("a red thing", "red", "a green wall", "a red thing")
    assert to_image.pictures == ("red.png", "red.png", "green.png", "blue.png")
    assert to_image.groups.tolist() == [0, 0, 1, 2]
    assert ranks(to_image) == [[1, 3], [1], [1], [1, 3]]
    assert [answer.name for answer in to_image.answers[0]] == ["red.png", "green.png", "blue.png"]
    assert [answer.right for answer in to_image.answers[0]] == [True, False, True]
    assert (to_text.name, to_text.gallery) == ("image→text", 4)
    assert to_text.questions == to_text.pictures == ("red.png", "green.png", "blue.png")
    assert ranks(to_text) == [[1, 2, 3], [1], [1, 4]]
    assert [answer.name for answer in to_text.answers[2]] == ["a red thing", "red", "a green wall", "a red thing"]


def test_what_is_likelier_than_the_threshold_is_returned(data: Captioned) -> None:
    """Cosine 1 is a probability of 0.98, cosine 0.2 one of 0.000006: alike is returned and nothing else."""
    to_image, to_text = evaluate(ColourEncoder(), data).ways
    assert (to_image.returned.tolist(), to_image.right.tolist()) == ([1, 1, 1, 1], [1, 1, 1, 1])
    assert (to_text.returned.tolist(), to_text.right.tolist()) == ([3, 1, 0], [3, 1, 0])
    values = to_text.measures((1,), 0.5)
    assert values["precision≥0.5"].tolist() == [1, 1, 0]
    assert to_image.measures((1,), 0.5)["recall≥0.5"].tolist() == [0.5, 1, 1, 0.5]
    strict = evaluate(ColourEncoder(), data, threshold=0.99).ways[0]
    assert strict.returned.tolist() == [0, 0, 0, 0]


def test_measures_of_a_way_are_those_of_its_ranks(data: Captioned) -> None:
    """Ranks [1, 3], [1], [1], [1, 3]: both right ones of the first are found among three, one of two among one."""
    values = evaluate(ColourEncoder(), data, ks=(1, 3)).ways[0].measures((1, 3), 0.5)
    assert values["R@1"].tolist() == [1, 1, 1, 1]
    assert values["recall@1"].tolist() == [0.5, 1, 1, 0.5]
    assert values["precision@3"].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert values["F1@3"].tolist() == pytest.approx([0.8, 0.5, 0.5, 0.8])
    assert values["mAP"].tolist() == pytest.approx([5 / 6, 1, 1, 5 / 6])
    assert values["rank"].tolist() == [1, 1, 1, 1]


# -- the plain twin ----------------------------------------------------------------------------------------------------


def test_equals_asking_one_by_one_for_everything(tmp_path: Path, paint: Paint) -> None:
    """70 pictures of few colours, so ties abound; the twin adds each and asks for all answers, the judged asks for 5.

    Words that describe two pictures are right for both.
    """
    rng = np.random.default_rng(5)
    words = ["red", "green", "blue", "red green", "blue green", "grey", "a red door", "red"]
    levels = (0, 90, 255)
    pictures = {}
    for n in range(70):
        colour = tuple(int(levels[i]) for i in rng.integers(0, 3, 3))
        pictures[paint(f"{n:02}.png", colour)] = [words[i] for i in rng.integers(0, 8, rng.integers(1, 4))]  # type: ignore[arg-type]
    data = captioned(pictures)
    result = evaluate(ColourEncoder(), data, ks=(1, 2))
    texts, _ = data.flat()
    with mmsearch.open(tmp_path / "twin", model=ColourEncoder()) as twin:
        twin.add([mmsearch.Addition(f"{n}", image=Image.open(path)) for n, path in enumerate(pictures)])
        twin.add([mmsearch.Addition(f"caption {n}", text=text) for n, text in enumerate(texts)])
        to_image, to_text = result.ways
        assert (to_image.gallery, to_text.gallery) == (70, len(texts))
        for question, found in zip(to_image.questions, ranks(to_image), strict=True):
            hits = twin.query(question, k=70, kind="image", collapse=False)
            assert found == [hit.rank for hit in hits if question in data.captions[int(hit.key or "")]]
        for n, found in enumerate(ranks(to_text)):
            hits = twin.query(image=data.pictures[n].path, k=len(texts), kind="text", collapse=False)
            assert found == [hit.rank for hit in hits if hit.text in data.captions[n]]


def test_many_questions_at_once_are_answered_as_one_by_one(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    red, blue = Image.new("RGB", (9, 9), RED), Image.new("RGB", (9, 9), BLUE)
    queries = [
        Query("red"),
        Query(image=blue),
        Query("green", kinds=(Modality.IMAGE,)),
        Query("blue", image=red, without=("green", "red")),
        Query("red", without=("blue",), kinds=(Modality.TEXT,), min_prob=0.5),
        Query(image=red, min_prob=0.999),
    ]
    searcher = library.searcher()
    together = searcher.search_many(queries, 4)
    assert together == [searcher.search(query, 4) for query in queries]
    assert [len(hits) for hits in together] == [4, 4, 3, 4, 1, 0]
    assert searcher.search_many([], 4) == []
    with pytest.raises(UsageError, match="k is 0"):
        searcher.search_many(queries, 0)


# -- pictures of every kind --------------------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_read_is_named_and_its_captions_do_not_take_part(
    data: Captioned, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pictures = [*data.pictures, Picture("bad", tmp_path / "bad.png"), Picture("gone", tmp_path / "gone.png")]
    more = Captioned(pictures, [*data.captions, ["a blue thing"], ["blue"]])
    result = evaluate(ColourEncoder(), more)
    assert [one.path for one in result.skipped] == ["bad", "gone"]
    assert "not a picture" in result.skipped[0].reason and "No such file" in result.skipped[1].reason
    assert [way.gallery for way in result.ways] == [3, 4]
    assert result.ways[0].judged.ranks.tolist() == evaluate(ColourEncoder(), data).ways[0].judged.ranks.tolist()
    with pytest.raises(UsageError, match=r"holds no picture of the data: bad .*not a picture"):
        evaluate(ColourEncoder(), more.subset([3]))


def test_regions_and_parts_of_archives_are_pictures(tmp_path: Path, paint: Paint) -> None:
    """Two regions of one picture share a group; two names of one file are two items."""
    both = Image.new("RGB", (20, 10), RED)
    both.paste(BLUE, (10, 0, 20, 10))
    both.save(tmp_path / "both.png")
    green = paint("green.png", GREEN)
    (tmp_path / "archive").write_bytes(b"12345" + green.read_bytes() + b"rest")
    data = Captioned(
        [
            Picture("left", tmp_path / "both.png", box=(0, 0, 10, 10)),
            Picture("right", tmp_path / "both.png", box=(10, 0, 10, 10)),
            Picture("packed", tmp_path / "archive", member=(5, green.stat().st_size)),
            Picture("file", green),
            Picture("again", green),
        ],
        [["red"], ["blue"], ["green"], ["a green one"], ["one green thing"]],
    )
    to_image, to_text = evaluate(ColourEncoder(), data).ways
    assert to_image.groups.tolist() == [0, 0, 1, 2, 2]
    assert ranks(to_image) == [[1], [1], [1], [2], [3]]
    assert to_text.questions == ("left", "right", "packed", "file", "again")
    assert ranks(to_text) == [[1], [1], [1], [2], [3]]


# -- the index ---------------------------------------------------------------------------------------------------------


def test_an_index_in_the_cache_is_used_again_while_model_and_data_are_the_same(data: Captioned, tmp_path: Path) -> None:
    """Three pictures are embedded to be found, and three to ask; the second time, only those that ask."""
    encoder, cache = ColourEncoder(), tmp_path / "cache"
    first = evaluate(encoder, data, cache=cache)
    assert encoder.images_seen == 6
    again = evaluate(encoder, data, cache=cache)
    assert encoder.images_seen == 9
    assert again.as_dict() == first.as_dict()
    assert len(list(cache.iterdir())) == 1
    evaluate(encoder, Captioned(data.pictures, [["red"], ["green"], ["other"]]), cache=cache)
    assert encoder.images_seen == 15

    class Newer(ColourEncoder):
        fingerprint = "newer"

    newer = Newer()
    evaluate(newer, data, cache=cache)
    assert newer.images_seen == 6
    Image.new("RGB", (40, 40), GREEN).save(data.pictures[0].path)
    changed = evaluate(newer, data, cache=cache)
    assert newer.images_seen == 12
    assert ranks(changed.ways[0])[2] == [2]  # the red picture has become green, too, and comes before


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--model colours`` is the colour encoder."""

    def load_encoder(model: str, device: str | None = None) -> object:
        return ColourEncoder() if model == "colours" else load.load_encoder(model, device)

    monkeypatch.setattr("mmsearch.evaluation.gallery.load_encoder", load_encoder)
    monkeypatch.setattr("mmsearch.library.load_encoder", load_encoder)


@pytest.mark.usefixtures("colours")
def test_an_index_that_is_there_is_judged_with_all_that_is_in_it(
    library: mmsearch.Library, photos: Path, paint: Paint, tmp_path: Path
) -> None:
    """The index holds blue, green, orange and red, in this order, and notes with three passages.

    Orange, (1, 0.5, 0), is nearer to "green" than red and blue are, and further from no colour at all.
    """
    paint("orange.png", (255, 128, 0))
    library.index(photos)
    (tmp_path / "link").symlink_to(photos)  # the data knows the pictures by another way to them
    data = Captioned(
        [Picture(f"{name}.png", tmp_path / "link" / f"{name}.png") for name in ("red", "blue", "violet")],
        [["a red thing", "a green thing"], ["said nowhere"], ["violet"]],
    )
    result = evaluate(library.folder, data)
    to_image, to_text = result.ways
    assert (to_image.gallery, to_text.gallery) == (4, 3)
    assert [(one.path, one.reason) for one in result.skipped] == [("violet.png", "is not in the index")]
    assert to_image.questions == ("a red thing", "a green thing", "said nowhere")
    assert ranks(to_image) == [[1], [4], [1]]
    names = [str(photos / "green.png"), str(photos / "orange.png"), "blue.png", "red.png"]
    assert [(answer.name, answer.right) for answer in to_image.answers[1]] == [
        (name, name == "red.png") for name in names
    ]
    assert to_text.questions == ("red.png",)  # no text says of blue what the data says
    assert ranks(to_text) == [[1, 2]]
    (photos / "red.png").unlink()
    without = evaluate(library.folder, data)
    assert [way.name for way in without.ways] == ["text→image"] and ranks(without.ways[0]) == ranks(to_image)
    assert [one.path for one in without.skipped] == ["violet.png", "red.png"]
    assert "cannot ask" in without.skipped[1].reason
    with pytest.raises(UsageError, match="holds no picture of the data: violet"):
        evaluate(library.folder, data.subset([2]))


# -- a reranker --------------------------------------------------------------------------------------------------------


class Backwards:
    """A reranker that thinks the opposite of the first stage."""

    name = "backwards"
    fingerprint = "bac4"
    candidates = 2
    bank = None
    compressor = None
    calibration: ClassVar = {
        (Modality.TEXT, Modality.IMAGE): FusedLine(-1.0, 1.0, 0.0),
        (Modality.IMAGE, Modality.TEXT): FusedLine(-1.0, 1.0, 0.0),
    }

    def score(self, texts: Sequence[TextSide], pictures: Sequence[PictureSide], pairs: np.ndarray) -> np.ndarray:
        return np.zeros(len(pairs))


def test_a_reranker_stands_beside_the_first_stage_and_the_best_it_could_be(data: Captioned) -> None:
    """It turns the first two answers round. "a red thing" had its two at 1 and 3: now 2 and 3, at best 1 and 3.

    The first stage is sure by 0.982 of what is always right; then log-odds of -12 become 12, and are always wrong.
    """
    result = evaluate(ColourEncoder(), data, reranker=Backwards())
    way = result.ways[0]
    assert list(way.stages) == ["dual", "reranked", "oracle@2"]
    assert way.reranked is not None
    assert way.reranked.ranks[0].tolist() == [2, 3] and way.stages["oracle@2"].ranks[0].tolist() == [1, 3]
    assert [answer.name for answer in way.answers[0]] == ["green.png", "red.png", "blue.png"]
    assert [answer.name for answer in way.answers_before[0]] == ["red.png", "green.png", "blue.png"]
    for k in (1, 2):
        best = metrics.hit_rate(way.stages["oracle@2"], k)
        assert best.tolist() == metrics.hit_rate(way.judged, 2).tolist()
    assert way.calibration_error("dual") == pytest.approx(1 - 1 / (1 + math.exp(-4)), abs=1e-6)
    assert way.calibration_error("reranked") == pytest.approx(1, abs=1e-4)
    assert way.calibration_error("oracle@2") is None
    report = Report((result,))
    assert report.columns == ("colours dual", "colours reranked", "colours oracle@2")
    assert "| ECE | 1.8 | 100.0 | – |" in report.markdown()
    errors = report.as_dict()["results"][0]["ways"]["text->image"]["calibration_error"]
    assert list(errors) == ["dual", "reranked"]
    again = Result.from_dict(json.loads(json.dumps(result.as_dict())))
    assert again.as_dict() == result.as_dict()
    assert again.ways[0].stages["reranked"].ranks.tolist() == way.reranked.ranks.tolist()


def test_judged_without_its_reranker_a_model_is_what_it_is_without_one(data: Captioned) -> None:
    plain = evaluate(ColourEncoder(), data)
    assert evaluate(ColourEncoder(), data, reranker=Backwards(), rerank=False).as_dict() == plain.as_dict()
    whole = evaluate(ColourEncoder(), data, reranker=Backwards())
    assert whole.reranked and whole.first_stage().as_dict() == plain.as_dict()
    one = evaluate(ColourEncoder(), data, reranker=Backwards(), candidates=1).ways[0]
    assert one.reranked is not None and one.reranked.ranks.tolist() == one.judged.ranks.tolist()
    with pytest.raises(UsageError, match="candidates is 0"):
        evaluate(ColourEncoder(), data, reranker=Backwards(), candidates=0)


def test_the_index_that_is_built_has_the_tokens_that_are_reranked(data: Captioned, tmp_path: Path) -> None:
    """The blue picture has a red quarter, which its tokens show, and the green one is violet now: "a red thing", right
    for red and blue, finds them first and third, and then, as worked out in test_rerank.py, first and second."""
    image = Image.new("RGB", (16, 16), BLUE)
    image.paste(RED, (0, 0, 8, 8))
    image.save(data.pictures[2].path)
    Image.new("RGB", (16, 16), (255, 0, 255)).save(data.pictures[1].path)
    reranker, cache = write_reranker(tmp_path / "reranker", PatchColourEncoder()), tmp_path / "cache"
    for _ in range(2):
        result = evaluate(PatchColourEncoder(), data, reranker=reranker, cache=cache)
        way = result.ways[0]
        assert way.depth == 50 and way.reranked is not None
        assert (way.judged.ranks[0].tolist(), way.reranked.ranks[0].tolist()) == ([1, 3], [1, 2])
        assert result.not_reranked == ()
    assert len(list(cache.iterdir())) == 1
    evaluate(ColourEncoder(), data, cache=cache)
    assert len(list(cache.iterdir())) == 2


def test_an_index_without_tokens_is_judged_as_far_as_it_can_be(
    data: Captioned, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsearch.library.load_encoder", lambda model, device=None: PatchColourEncoder())
    with mmsearch.open(tmp_path / "index", model=ColourEncoder()) as library:
        library.index(photos)
    named = Captioned(data.pictures, [["a red thing"], ["a green thing"], ["a blue thing"]])
    reranker = write_reranker(tmp_path / "reranker", PatchColourEncoder())
    result = evaluate(tmp_path / "index", named, reranker=reranker)
    assert [way.reranked is None for way in result.ways] == [True, False]
    assert result.not_reranked == (
        "text→image: in 3 of 3 questions not all was reranked: the index holds no image tokens; "
        "'mmsearch index --add-tokens' makes them",
    )
    assert f"colours, {result.not_reranked[0]}" in Report((result,)).notes()


# -- what makes no sense -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"), [({"ks": ()}, "none"), ({"ks": (0, 5)}, "0, 5"), ({"threshold": 1.0}, "threshold is 1")]
)
def test_cuts_and_thresholds_that_make_no_sense(data: Captioned, options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        evaluate(ColourEncoder(), data, **options)  # type: ignore[arg-type]


def test_a_saved_result_comes_back_and_a_damaged_one_is_refused(data: Captioned) -> None:
    result = evaluate(ColourEncoder(), data)
    values = json.loads(json.dumps(result.as_dict()))
    assert Result.from_dict(values).as_dict() == result.as_dict()
    with pytest.raises(UsageError, match="no result"):
        Result.from_dict({"format": 0})
    values["ways"][0]["questions"].pop()
    with pytest.raises(UsageError, match=r"damaged.*3 questions"):
        Result.from_dict(values)


# -- the report --------------------------------------------------------------------------------------------------------


def test_several_models_side_by_side_in_markdown(data: Captioned) -> None:
    """R@1 of image→text is 3 of 3; two columns are told apart by their fingerprints."""

    class Other(ColourEncoder):
        fingerprint = "deadbeef00"

    report = Report((evaluate(ColourEncoder(), data, name="a|b"), evaluate(Other(), data, name="a|b")))
    text = report.markdown()
    assert "| | colours [c0104125] | colours [deadbeef] |" in text
    section = text[text.index("## image→text") :]
    assert "| gallery | 4 | 4 |" in section
    assert "| R@1 | 100.0 (100.0–100.0) | 100.0 (100.0–100.0) |" in section
    assert "| mean rank | 1.0 (1.0–1.0) |" in section
    values = report.as_dict()["results"][0]["ways"]["text->image"]
    assert (values["gallery"], values["questions"]) == (3, 4)
    assert values["stages"]["dual"]["recall@1"]["value"] == 0.75


def test_the_cost_stands_below_and_what_is_not_known_is_a_dash(data: Captioned) -> None:
    spent = cost.Cost(1.5, 2.25, 30.0, 41.0, 12.0, None, 41_500_000, 1_000)
    result = evaluate(ColourEncoder(), data)
    report = Report((result, replace(result, model="other")), (spent, None))
    section = report.markdown().partition("## cost")[2]
    assert "| ms per text question, median / 95 % | 1.5 / 2.2 | – |" in section
    assert "| pictures indexed per second | 12.0 | – |" in section
    assert "| peak memory | – | – |" in section and "| model on disk | 41.5 MB | – |" in section
    assert [one["cost"] is None for one in report.as_dict()["results"]] == [False, True]


def test_percentiles_of_times() -> None:
    assert cost.percentiles([n / 1000 for n in range(1, 101)]) == pytest.approx((50.5, 95.05))


def test_questions_that_warm_up_are_not_timed() -> None:
    asked: list[str] = []
    times = cost._times(asked.append, ["a", "b", "c", "d"])
    assert len(times) == cost.QUESTIONS
    assert asked[: cost.WARM + 2] == ["a", "b", "c", "d", "a"]


def test_the_size_of_a_model_is_that_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "sub" / "b").write_bytes(b"45")
    assert cost.model_bytes(str(tmp_path)) == 5
    packaged = mmsearch.__path__[0] + "/../indexer/weights/mini"
    assert cost.model_bytes("mini") == sum(path.stat().st_size for path in Path(packaged).iterdir())


def test_the_size_of_a_model_from_the_hub_is_what_its_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "weights").write_bytes(b"1234567")
    assert cost.model_bytes("hf-hub:owner/name") == 7
    assert cost.model_bytes("hf-hub:owner/other") is None


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(data: Captioned) -> Path:
    """The data as a table beside the pictures."""
    rows = [f"{p.name}\t{text}" for p, some in zip(data.pictures, data.captions, strict=True) for text in some]
    path = data.pictures[0].path.parent / "captions.tsv"
    path.write_text("image\tcaption\n" + "\n".join(rows) + "\n")
    return path


def run(*arguments: str | Path) -> tuple[int, str, str, BaseException | None]:
    """Exit code, stdout, stderr, and what was raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, result.stderr, result.exception


@pytest.mark.usefixtures("colours")
def test_the_command_goes_on_after_a_model_that_cannot_be_loaded(table: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out, markdown = tmp_path / "results.json", tmp_path / "report.md"
    models = ("--model", tmp_path / "empty", "--model", "colours")
    code, stdout, stderr, _ = run("--data", table, *models, "--no-cost", "--out", out, "--markdown", markdown)
    assert code == 1
    assert "no model in folder" in stderr and "empty was not judged" in stderr.replace("\n", "")
    assert "text→image" in stdout and "100.0 (100.0–100.0)" in stdout
    assert Result.from_dict(json.loads(out.read_text())).model == "colours"
    assert "was not judged" in markdown.read_text()


@pytest.mark.usefixtures("colours")
def test_the_command_answers_in_json_and_judges_an_index(
    table: Path, library: mmsearch.Library, tmp_path: Path
) -> None:
    library.index(table.parent)
    out = tmp_path / "out.json"
    command = ("--data", table, "--model", "colours", "--index", library.folder, "--no-cost", "--json", "--k", "1,2")
    code, stdout, stderr, _ = run(*command, "--out", out)
    assert code == 0, stderr
    one, two = json.loads(stdout)["results"]
    assert one["ways"]["text->image"]["stages"]["dual"]["recall@1"]["value"] == 0.75
    assert two["ways"]["text->image"]["gallery"] == 3
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out-1-colours.json", "out-2-colours.json"]
    code, stdout, stderr, _ = run("--data", table, "--index", tmp_path, "--no-cost")
    assert (code, stdout) == (1, "") and "there is no index in" in stderr


@pytest.mark.usefixtures("colours")
def test_the_command_misused(table: Path) -> None:
    for arguments, said in (
        ((), "--data PATH"),
        (("--data", table, "--k", "1,x"), "whole numbers"),
        (("--data", table, "--split", "test"), "no split 'test'"),
    ):
        error = run(*arguments, "--model", "colours")[3]
        assert isinstance(error, UsageError) and said in str(error)


def test_the_real_model_finds_the_sample_photographs(tmp_path: Path) -> None:
    """Four photographs and their captions, through the command and with the cost, which another process measures."""
    rows = (SAMPLES / "texts" / "captions.tsv").read_text().splitlines()
    chosen = [row for row in rows if row.startswith("image\t") or re.search("retriever|parrot|balloon|Railway", row)]
    (tmp_path / "captions.tsv").write_text("\n".join(chosen) + "\n")
    code, stdout, stderr, _ = run("--data", tmp_path / "captions.tsv", "--images", SAMPLES, "--json")
    assert code == 0, stderr
    (result,) = json.loads(stdout)["results"]
    assert result["model"] == "mini" and result["skipped"] == []
    for way in ("text->image", "image->text"):
        assert result["ways"][way]["gallery"] == 4
        assert result["ways"][way]["stages"]["dual"]["R@1"]["value"] == 1.0
    spent = result["cost"]
    assert 0 < spent["text_ms_p50"] <= spent["text_ms_p95"] and 0 < spent["image_ms_p50"] <= spent["image_ms_p95"]
    assert spent["images_per_second"] > 0 and spent["peak_bytes"] > spent["model_bytes"] > 10_000_000
    assert spent["index_bytes"] > 8 * 4 * 512  # eight vectors


def test_the_cost_of_an_index_that_is_not_there_is_an_error(data: Captioned, tmp_path: Path) -> None:
    with pytest.raises(mmsearch.ModelError, match="NoIndex"):
        cost.measure_cost(tmp_path / "none", data)
