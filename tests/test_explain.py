"""Why a hit: where words look, by hand and by loops; the sheet, the JSON, the command; things in the corners."""

from __future__ import annotations

import io
import json
import math
import pickle
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, PatchColourEncoder
from conftest import BLUE, GREEN, RED, ROOT, SAMPLES
from fusion_folder import write_reranker
from PIL import Image
from test_cli import mmsearch as command
from test_rerank import Looks, picture, quarter, tokens_of

import mmsearch
from indexer.encoders.load import load_encoder
from indexer.encoders.mini import MiniEncoder
from indexer.errors import DecodeError, ModelError, UsageError
from mmsearch.present import explanation_lines
from mmsearch.rerank import PictureSide, Reranker, TextSide
from mmsearch.rerank.explain import Shown, explain_alone, show
from mmsearch.rerank.explanation import (
    METHOD,
    METHODS,
    Explanation,
    attended,
    hidden,
    looks,
    missed,
    spread,
    whole_words,
)
from mmsearch.rerank.fusion_onnx import FusionReranker
from mmsearch.rerank.load import load_reranker
from mmsearch.rerank.overlay import coloured, draw, heated

pytestmark = [pytest.mark.slow(reason="runs the command as a process"), pytest.mark.usefixtures("log_odds_alone")]

ROOT_2, HALF = math.sqrt(2), math.sqrt(0.5)
DOG = SAMPLES / "photos" / "IMG_0045.jpg"
CORNERS = runpy.run_path(str(ROOT / "benchmarks" / "corners.py"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_reranker(tmp_path / "reranker", PatchColourEncoder())


@pytest.fixture
def reranker(folder: Path) -> FusionReranker:
    return FusionReranker(folder)


@pytest.fixture
def fused(tmp_path: Path, folder: Path) -> Iterator[mmsearch.Library]:
    with mmsearch.open(tmp_path / "index", model=PatchColourEncoder(), reranker=folder) as library:
        yield library


@pytest.fixture
def red_corner(tmp_path: Path) -> Path:
    """Blue with a red quarter in the upper left, a file."""
    (tmp_path / "photos").mkdir()
    quarter(RED).save(tmp_path / "photos" / "red-corner.png")
    return tmp_path / "photos" / "red-corner.png"


def softmax(values: list[float]) -> np.ndarray:
    powers = np.exp(values)
    return powers / powers.sum()


def explanation(heat: np.ndarray, **changed: object) -> Explanation:
    values: dict[str, object] = {
        "question": "red",
        "picture": None,
        "size": (90, 60),
        "probability": 0.5,
        "logit": 1.0,
        "method": "attention",
        "seen": (0, 0, 1, 1),
        "words": looks([("red", [0])], heat.reshape(1, -1), np.ones(1)),
        "heat": heat,
        "image": Image.new("RGB", (90, 60)),
    }
    return Explanation(**values | changed)  # type: ignore[arg-type]


# -- the arithmetic ----------------------------------------------------------------------------------------------------


def spans(text: str, pieces: str) -> list[tuple[int, int] | None]:
    """Where each of the pieces, given with spaces between, stands in the text; ``|`` is a special token."""
    found: list[tuple[int, int] | None] = []
    end = 0
    for piece in pieces.split():
        start = text.find(piece, end)
        found.append(None if piece == "|" else (start, start + len(piece)))
        end = end if piece == "|" else start + len(piece)
    return found


@pytest.mark.parametrize(
    ("text", "pieces", "words"),
    [
        ("a dog's nose!", "a dog ' s nose !", [("a", [0]), ("dog's", [1, 2, 3]), ("nose", [4])]),
        ("(red-haired)", "| ( red - hair ed ) |", [("red-haired", [2, 3, 4, 5])]),
        ("wait, “what”?", "| wait , “ what ” ? |", [("wait", [1]), ("what", [4])]),
        ("a 🐶 & one", "a 🐶 & one", [("a", [0]), ("🐶", [1]), ("one", [3])]),
        ("cut off here", "| cut off |", [("cut", [1]), ("off", [2])]),
        ("... !", "| . . . ! |", []),
        ("the the", "the the", [("the", [0]), ("the", [1])]),
    ],
)
def test_pieces_become_words(text: str, pieces: str, words: list[tuple[str, list[int]]]) -> None:
    assert whole_words(text, spans(text, pieces)) == words


def test_pieces_that_bring_the_space_before_them_and_pieces_of_one_letter() -> None:
    assert whole_words("a dog", [(0, 1), (1, 3), (3, 5)]) == [("a", [0]), ("dog", [1, 2])]
    assert whole_words("🐶", [(0, 1), (0, 1), (0, 1)]) == [("🐶", [0, 1, 2])]


def test_weights_and_heat_of_words_by_hand() -> None:
    """Tokens of weight .1, .3 and .2 are left of .1 + .3 + .2 + .4; the second word is of two of them, of weight 3 : 2
    with each other: (3 · 1 + 2 · 0) / 5 and (3 · 0 + 2 · 0.5) / 5."""
    attention = np.array([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    a, b = looks([("a", [0]), ("b", [1, 2])], attention, np.array([0.1, 0.3, 0.2, 0.4]))
    assert (a.word, b.word) == ("a", "b")
    assert (a.weight, b.weight) == pytest.approx((1 / 6, 5 / 6))
    assert a.heat.tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert b.heat == pytest.approx(np.array([[0.6, 0.2], [0.2, 0]]))
    assert attended([a, b]) == pytest.approx(np.array([[3.25, 1.25], [1.25, 0.25]]) / 6)


def test_all_words_together_are_all_tokens_by_their_weights() -> None:
    """The plain twin: a loop over tokens, whatever words they belong to."""
    rng = np.random.default_rng(5)
    attention, weights = rng.dirichlet(np.ones(16), 9), rng.dirichlet(np.ones(9))
    words = [("a", [1]), ("b", [2, 3, 4]), ("c", [7])]
    total = np.zeros(16)
    for token in (1, 2, 3, 4, 7):
        total += weights[token] * attention[token] / sum(weights[i] for i in (1, 2, 3, 4, 7))
    found = looks(words, attention.astype(np.float32), weights.astype(np.float32))
    assert attended(found) == pytest.approx(total.reshape(4, 4), abs=1e-6)
    assert attended(found).sum() == pytest.approx(1) and [word.heat.sum() for word in found] == pytest.approx([1] * 3)


def test_words_that_counted_nothing_count_alike() -> None:
    a, b = looks([("a", [0]), ("b", [1, 2])], np.eye(4)[:3], np.zeros(4))
    assert (a.weight, b.weight) == (0.5, 0.5) and b.heat.tolist() == [[0, 0.5], [0.5, 0]]


def test_heat_is_spread_to_its_neighbours_and_none_is_lost() -> None:
    inside, corner = np.zeros((2, 4, 4))
    inside[1, 2] = corner[0, 0] = 16
    assert spread(inside).tolist() == [[0, 1, 2, 1], [0, 2, 4, 2], [0, 1, 2, 1], [0, 0, 0, 0]]
    assert spread(corner).tolist() == [[9, 3, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_hidden_tokens_are_the_mean_of_all() -> None:
    tokens = np.array([[1.0, 0], [3, 0], [5, 4], [7, 0]])
    assert hidden(tokens)[1].tolist() == [[1, 0], [4, 1], [5, 4], [7, 0]]
    assert hidden(tokens)[3].tolist() == [[1, 0], [3, 0], [5, 4], [4, 1]]
    assert tokens[3].tolist() == [7, 0]


def test_what_is_missed_is_hot_and_what_is_better_gone_is_cold() -> None:
    assert missed(2.0, np.array([1.0, -1, 3, 2])).tolist() == [[0.25, 0.75], [0, 0]]
    assert missed(2.0, np.array([2.0, 3, 3, 2])).tolist() == [[0.25, 0.25], [0.25, 0.25]]


@pytest.mark.parametrize(
    ("cell", "place"),
    [((0, 0), "top left"), ((0, 3), "top"), ((3, 4), "middle"), ((4, 7), "right"), ((7, 0), "bottom left")],
)
def test_places_are_ninths(cell: tuple[int, int], place: str) -> None:
    heat = np.full((8, 8), 0.01)
    heat[cell] = 0.37
    assert explanation(heat).place(heat) == place


def test_places_are_those_of_the_whole_picture() -> None:
    heat = np.array([[1.0, 0], [0, 0]])
    assert explanation(heat).place(heat) == "top left"
    assert explanation(heat, seen=(0.25, 0, 0.75, 1)).place(heat) == "top"
    assert explanation(heat, seen=(-1, 0, 2, 1)).place(heat) == "top left"
    assert explanation(heat).place(np.full((2, 2), 0.25)) == "everywhere"


# -- the network -------------------------------------------------------------------------------------------------------


def test_a_look_by_hand(reranker: FusionReranker) -> None:
    """ "a red" at red, blue, blue, blue: "a" matches all with 0, "red" the first with √2, the others with -√½. The best
    matches are 0 and √2."""
    tokens = np.array([[ROOT_2, -HALF, -HALF]] + [[-HALF, -HALF, ROOT_2]] * 3, np.float32)
    text = TextSide("a red", np.array([[0, 0, 0], [1, 0, 0]], np.float32))
    look = reranker.look(text, PictureSide(tokens))
    assert look.logit == pytest.approx(ROOT_2)
    assert look.attention == pytest.approx(np.stack([[0.25] * 4, softmax([ROOT_2, -HALF, -HALF, -HALF])]), abs=1e-6)
    assert look.weights == pytest.approx(softmax([0, ROOT_2]), abs=1e-6)
    assert look.logit == reranker.score([text], [PictureSide(tokens)], np.zeros((1, 2), np.int64))[0]


def test_a_network_of_before_ranks_and_cannot_explain(tmp_path: Path) -> None:
    old = FusionReranker(write_reranker(tmp_path / "old", PatchColourEncoder(), explains=False))
    text, shown = TextSide("red", np.eye(3, dtype=np.float32)[:1]), PictureSide(np.ones((4, 3), np.float32))
    assert old.score([text], [shown], np.zeros((1, 2), np.int64)) == pytest.approx([1])
    with pytest.raises(ModelError, match=r"sum-of-best cannot explain: .*fusion\.onnx has no outputs that say where"):
        old.look(text, shown)


# -- explanations ------------------------------------------------------------------------------------------------------


def test_an_explanation_by_hand(fused: mmsearch.Library, red_corner: Path) -> None:
    """The tokens are rounded as in an index: see ``tokens_of``. Without an index."""
    red = tokens_of(quarter(RED))[:, 0].tolist()  # what "red" matches of each of the four tokens
    found = fused.explain("A red thing?", red_corner)
    assert (found.question, found.picture, found.size) == ("A red thing?", str(red_corner), (16, 16))
    assert (found.method, found.side, found.seen) == (METHOD, 2, (0, 0, 1, 1))
    assert [word.word for word in found.words] == ["A", "red", "thing"]
    assert [word.weight for word in found.words] == pytest.approx(softmax([0, max(red), 0]).tolist(), abs=1e-6)
    heat = softmax(red).reshape(2, 2)
    assert found.words[0].heat == pytest.approx(np.full((2, 2), 0.25), abs=1e-6)
    assert found.words[1].heat == pytest.approx(heat, abs=1e-6)
    share = found.words[1].weight
    expected = spread(share * heat + (1 - share) * np.full((2, 2), 0.25))
    assert fused.explain("A red thing?", red_corner, method="attention").heat == pytest.approx(expected, abs=1e-6)
    assert found.logit == pytest.approx(max(red), abs=1e-4)
    dual = 20 * (0.5 / math.sqrt(1.25 * 0.875) - 0.5) - 6
    assert found.probability == pytest.approx(1 / (1 + math.exp(-(0.5 * dual + 4 * found.logit - 1))), abs=1e-5)
    assert not fused.folder.exists()


def test_occlusion_hides_one_token_after_the_other(fused: mmsearch.Library, red_corner: Path) -> None:
    """The logit of "red green" is the best match of red and the best of green; only the first token shows red, and
    any three of the others show as much green."""
    tokens = tokens_of(picture((3, GREEN), (2, GREEN), *((tile, RED) for tile in (0, 1, 4, 5))))
    image = picture((3, GREEN), (2, GREEN), *((tile, RED) for tile in (0, 1, 4, 5)))
    image.save(red_corner)
    drops = []
    for number in range(4):
        without = [tokens.mean(axis=0) if i == number else token for i, token in enumerate(tokens)]
        drops.append(sum(max(t[c] for t in tokens) - max(t[c] for t in without) for c in (0, 1)))
    expected = np.maximum(drops, 0) / np.maximum(drops, 0).sum()
    found = fused.explain("red green", red_corner, method="occlusion")
    assert found.heat.ravel() == pytest.approx(expected, abs=1e-5)
    assert found.method == "occlusion" and found.place(found.heat) == "top left"
    by_attention = fused.explain("red green", red_corner, method="attention")
    assert [word.heat.tolist() for word in found.words] == [word.heat.tolist() for word in by_attention.words]
    assert by_attention.heat != pytest.approx(found.heat, abs=0.01)


def test_json_says_it_all(fused: mmsearch.Library, red_corner: Path) -> None:
    found = fused.explain("a red", red_corner, method="attention")
    values = json.loads(json.dumps(found.as_dict()))
    assert list(values) == [
        *("question", "picture", "size", "probability", "logit", "method", "side", "seen", "words", "heat")
    ]
    assert values["picture"] == str(red_corner) and values["side"] == 2 and values["seen"] == [0, 0, 1, 1]
    assert values["probability"] == round(found.probability or 0, 4)
    assert [word["word"] for word in values["words"]] == ["a", "red"]
    assert values["words"][1]["heat"] == found.words[1].heat.round(6).tolist()
    assert np.sum(values["heat"]) == pytest.approx(1, abs=1e-5)


def test_lines_for_people(fused: mmsearch.Library, red_corner: Path) -> None:
    lines = explanation_lines(fused.explain("a red", red_corner, method="attention"))
    assert lines[0] == " 0.81  a red  (top left)"
    assert lines[1:] == ["  20%  a    everywhere", "  80%  red  top left"]


def test_a_hit_explains_itself(fused: mmsearch.Library, red_corner: Path) -> None:
    """Its probability is that of the search: words that ask for pictures, and a picture that asks for words."""
    (red_corner.parent / "notes.txt").write_text("a red thing\n")
    fused.index(red_corner.parent)
    (of_picture,) = fused.query("red", kind="image", k=1)
    found = of_picture.explain()
    assert of_picture.reranked and found.probability == pytest.approx(of_picture.score, abs=1e-6)
    assert (found.question, found.picture) == ("red", str(red_corner))
    assert found.place(found.heat) == "top left"
    (of_text,) = fused.query(image=red_corner, kind="text", k=1)
    found = of_text.explain(method="occlusion")
    assert of_text.reranked and found.probability == pytest.approx(of_text.score, abs=1e-6)
    assert of_text.score != pytest.approx(of_picture.score, abs=0.05)
    assert (found.question, found.picture, found.size) == ("a red thing", None, (16, 16))
    assert [word.word for word in found.words] == ["a", "red", "thing"] and found.place(found.heat) == "top left"
    both = fused.query("red", image=quarter(GREEN), kind="image", k=1)[0]
    assert both.explain().question == "red"


def test_hits_that_cannot_be_explained(fused: mmsearch.Library, red_corner: Path) -> None:
    (red_corner.parent / "notes.txt").write_text("a red thing\n")
    fused.index(red_corner.parent)
    fused.add([mmsearch.Addition("memory", image=quarter(RED))])
    for question, kind, said in (
        ({"text": "red"}, "text", "both the question and the answer are texts"),
        ({"image": red_corner}, "image", "both the question and the answer are images"),
    ):
        with pytest.raises(UsageError, match=said):
            fused.query(**question, kind=kind, k=1)[0].explain()  # type: ignore[arg-type]
    hits = {hit.key: hit for hit in fused.query("red", kind="image", k=2)}
    with pytest.raises(UsageError, match=r"'memory' was added from memory.* Library\.explain"):
        hits["memory"].explain()
    assert fused.explain("red", quarter(RED)).picture is None
    with pytest.raises(UsageError, match="'sideways' is no way to explain; there are attention, occlusion"):
        hits[None].explain(method="sideways")
    copied = pickle.loads(pickle.dumps(hits[None]))
    assert copied == hits[None]
    with pytest.raises(UsageError, match="this hit was copied"):
        copied.explain()
    red_corner.unlink()
    with pytest.raises(UsageError, match=r"cannot read the picture .*red-corner\.png"):
        hits[None].explain()


def test_rerankers_and_models_that_cannot_explain(tmp_path: Path, photos: Path, folder: Path) -> None:
    red = photos / "red.png"
    with mmsearch.open(tmp_path / "index", model=ColourEncoder(), reranker=Looks()) as library:
        library.index(photos)
        (hit,) = library.query("red", kind="image", k=1)
        assert hit.reranked
        for attempt in (hit.explain, lambda: library.explain("red", red)):
            with pytest.raises(UsageError, match="the reranker looks cannot explain: it does not say where words look"):
                attempt()
    with mmsearch.open(tmp_path / "index", model=ColourEncoder()) as library:
        (hit,) = library.query("red", kind="image", k=1)
        with pytest.raises(UsageError, match="there is no reranker for colours"):
            hit.explain()

    class Unplaced(ColourEncoder):
        """It has patches and token states, and does not say where they lie."""

        patches, state_size = PatchColourEncoder.patches, PatchColourEncoder.state_size
        encode_prepared_patches = PatchColourEncoder.encode_prepared_patches
        encode_text_states = PatchColourEncoder.encode_text_states

    class Miscounting(PatchColourEncoder):
        def read_text(self, text: str) -> tuple[str, list[tuple[int, int] | None]]:
            return text, [(0, len(text)), None]

    looking = FusionReranker(folder)
    shown = show(red, 8)
    with pytest.raises(UsageError, match="colours cannot explain: it does not say which words its token states are of"):
        explain_alone(Unplaced(), looking, "red", shown)
    with pytest.raises(ModelError, match="colours gave 1 token states for 2 tokens of 'red'"):
        explain_alone(Miscounting(), looking, "red", shown)
    with pytest.raises(UsageError, match="no word to explain in ' !!'"):
        explain_alone(PatchColourEncoder(), looking, " !!", shown)
    with pytest.raises(DecodeError, match=r"cannot explain .*notes\.txt.*not a picture"):
        show(photos / "notes.txt", 8)


def test_a_model_without_a_calibration_leads_to_no_probability(reranker: FusionReranker) -> None:
    class Uncalibrated(PatchColourEncoder):
        calibration = None  # type: ignore[assignment]

    found = explain_alone(Uncalibrated(), reranker, "red", Shown(quarter(RED), None, (16, 16)))
    assert found.probability is None and found.as_dict()["probability"] is None
    assert explanation_lines(found)[0].startswith("    ?  red")


# -- the sheet ---------------------------------------------------------------------------------------------------------


def test_colours_rise_in_lightness_only() -> None:
    red, green, blue = coloured(np.linspace(0, 1, 101)).T
    lightness = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert (np.diff(lightness) > 0).all()
    found = coloured(np.array([0.0, 0.2, 0.3, 1.0]))
    assert found == pytest.approx(np.array([[0, 0, 4], [66, 10, 104], [106.5, 24, 103.5], [252, 255, 164]]))


def test_heat_lies_where_the_pixels_are() -> None:
    """A wide grey picture of which the middle was seen: its left half is hot, and nothing beside it."""
    grey = Image.new("RGB", (200, 100), (128, 128, 128))
    heat = np.zeros((8, 8))
    heat[:, :4] = 1 / 32
    drawn = np.asarray(heated(grey, heat, (0.25, 0, 0.75, 1)), np.int64)
    cold, hot = drawn[50, 10], drawn[50, 60]
    assert cold.tolist() == [96, 96, 97]  # 0.75 · 128 + 0.25 · (0, 0, 4)
    assert hot.tolist() == [227, 230, 157]  # 0.2 · 128 + 0.8 · (252, 255, 164)
    for x, expected in ((40, cold), (70, hot), (140, cold), (160, cold)):
        assert drawn[50, x].tolist() == expected.tolist(), x
    beyond = np.asarray(heated(grey, heat, (0, -0.5, 1, 1.5)), np.int64)  # padded above and below
    assert (
        beyond[0, 10].tolist() == beyond[99, 10].tolist() == hot.tolist() and beyond[50, 150].tolist() == cold.tolist()
    )


def test_the_sheet_has_a_panel_for_each_of_the_eight_heaviest_words() -> None:
    heat = np.full((2, 2), 0.25)
    sizes = []
    for count in (1, 4, 5, 8, 12):
        words = looks([(f"word{n}", [n]) for n in range(count)], np.full((count, 4), 0.25), np.ones(count))
        buffer = io.BytesIO()
        draw(explanation(heat, words=words, question="a very long question " * 20)).save(buffer, "PNG")
        sizes.append(Image.open(buffer).size)
    assert sizes[0] == sizes[1] and sizes[2] == sizes[3] == sizes[4] and sizes[2][1] > sizes[1][1]
    assert sizes[0][0] == 800 + 24


def test_the_sheet_is_upright_and_never_the_picture_itself(fused: mmsearch.Library, tmp_path: Path) -> None:
    """A camera on its side: stored 40 by 80 with the red on the top right, shown 80 by 40 with the red top left."""
    lying = Image.new("RGB", (40, 80), BLUE)
    lying.paste(RED, (20, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 8  # turn by 90° counter-clockwise to see it
    photo = tmp_path / "photo.png"
    lying.save(photo, exif=exif)
    before = photo.read_bytes()
    found = fused.explain("red", photo, method="attention")
    assert found.size == (80, 40) and found.place(found.heat) == "top left"
    found.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 824
        pixels = np.asarray(sheet.convert("RGB"), np.int64)
    lightness = pixels[36 : 36 + 400, 12:812].sum(axis=2)  # the large picture, 800 by 400
    assert lightness[:200, :400].mean() > 1.5 * max(lightness[:200, 400:].mean(), lightness[200:].mean())
    (tmp_path / "link.png").symlink_to(photo)
    for target in (photo, tmp_path / "link.png"):
        with pytest.raises(UsageError, match="is the picture itself"):
            found.save(target)
    with pytest.raises(UsageError, match=r"must end in \.png"):
        found.save(tmp_path / "sheet.jpg")
    with pytest.raises(mmsearch.StorageError, match=r"cannot write .*: No such file or directory"):
        found.save(tmp_path / "nowhere" / "sheet.png")
    assert photo.read_bytes() == before


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker for the embedded model whose words look somewhere."""
    rng = np.random.default_rng(1)
    return write_reranker(
        tmp_path_factory.mktemp("models") / "reranker",
        MiniEncoder("cpu"),
        side=8,
        width=16,
        project=rng.standard_normal((16, 352)).astype(np.float32),
        words=rng.standard_normal((384, 16)) / 3,
    )


def test_the_command_draws_and_says_where(untrained: Path, tmp_path: Path) -> None:
    """Without an index."""
    run = command("explain", "a dog's tongue", DOG, "--reranker", untrained, "--index", tmp_path / "i", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "mmsearch: wrote IMG_0045.explained.png\n")
    assert not (tmp_path / "i").exists()
    with mmsearch.open(tmp_path / "i", reranker=untrained) as library:
        expected = library.explain("a dog's tongue", DOG)
    assert run.stdout.splitlines() == explanation_lines(expected)
    assert [line.split()[1] for line in run.stdout.splitlines()[1:]] == ["a", "dog's", "tongue"]
    with Image.open(tmp_path / "IMG_0045.explained.png") as sheet:
        assert (sheet.format, sheet.width) == ("PNG", 824)


def test_the_command_in_json_writes_what_it_is_told_to(untrained: Path, tmp_path: Path) -> None:
    options = ["--reranker", untrained, "--model", "mini", "--method", "occlusion", "--json"]
    run = command("explain", "a dog", DOG, *options, cwd=tmp_path)
    assert (run.returncode, run.stderr, list(tmp_path.iterdir())) == (0, "", [])
    values = json.loads(run.stdout)
    assert (values["question"], values["method"], values["side"]) == ("a dog", "occlusion", 8)
    assert [len(row) for row in values["heat"]] == [8] * 8 and np.sum(values["heat"]) == pytest.approx(1, abs=1e-4)
    again = command("explain", "a dog", DOG, *options, "--out", "seen.png", cwd=tmp_path)
    assert (again.stdout, again.stderr) == (run.stdout, "mmsearch: wrote seen.png\n")
    assert [path.name for path in tmp_path.iterdir()] == ["seen.png"]


def test_what_the_command_refuses(untrained: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    photo = tmp_path / "dog.png"
    Image.new("RGB", (9, 9)).save(photo)
    old = write_reranker(tmp_path / "old", MiniEncoder("cpu"), side=8, width=16, explains=False)
    bare = tmp_path / "bare"
    reranker = ["--reranker", untrained]
    for arguments, code, said in (
        ([text, *reranker], 1, f"cannot explain '{text}': not a picture in a known format"),
        ([tmp_path / "none.jpg", *reranker], 2, "cannot read the picture"),
        ([photo, *reranker, "--method", "guess"], 2, "'guess' is no way to explain"),
        ([photo, *reranker, "--out", photo], 2, "is the picture itself"),
        ([photo, "--reranker", old], 1, "sum-of-best cannot explain"),
        ([photo, "--reranker", tmp_path], 2, "no reranker in"),
    ):
        run = command("explain", "a dog", *arguments, "--index", bare, cwd=tmp_path)
        assert (run.returncode, run.stdout) == (code, ""), (arguments, run.stderr)
        assert said in run.stderr and "Traceback" not in run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog.png", "notes.txt", "old"]


def test_a_model_that_has_no_reranker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.rerank.load.PACKAGED", tmp_path)
    with pytest.raises(UsageError, match="there is no reranker for mini, and it is the reranker that explains"):
        mmsearch.open(tmp_path / "index").explain("a dog", DOG)


# -- things in the corners ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_colours_are_found_in_their_corners(reranker: FusionReranker, method: str) -> None:
    things = {f"a {name} thing": Image.new("RGB", (30, 30), colour) for name, colour in (("red", RED), ("blue", BLUE))}
    cases = CORNERS["found"](reranker, PatchColourEncoder(), method, things)
    assert len(cases) == 8 and all(cases.values())
    swapped = CORNERS["found"](reranker, PatchColourEncoder(), method, {"nothing": things["a red thing"]})
    assert sum(swapped.values()) == 1  # heat is everywhere, and the first cell is the top left one


def test_ten_things_are_cut_from_the_samples() -> None:
    things = CORNERS["cut_out"]()
    assert len(things) == 10 and all(min(thing.size) >= CORNERS["THING"] for thing in things.values())
    quarters = dict(CORNERS["laid_out"](things["a parrot"]))
    assert list(quarters) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    parrot = np.asarray(things["a parrot"].resize((200, 200), Image.Resampling.BICUBIC))
    for (row, column), shown in quarters.items():
        x, y = 20 + 240 * column, 20 + 240 * row
        assert (np.asarray(shown)[y : y + 200, x : x + 200] == parrot).all()


def test_the_reranker_of_the_package_looks_into_the_right_corner() -> None:
    """By chance it would in one case of four."""
    encoder = load_encoder("mini", "cpu")
    packaged: Reranker | None = load_reranker(None, encoder)
    if packaged is None:
        pytest.skip("no weights of the reranker in the package")
    cases = CORNERS["found"](packaged, encoder, METHOD, CORNERS["cut_out"]())
    assert len(cases) == 40 and sum(cases.values()) >= 32, [case for case, right in cases.items() if not right]
