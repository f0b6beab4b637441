"""The reranker in the search: what the network says, what becomes of the order, and what is said when it cannot."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_encoder import LINE, ColourCompressor, ColourEncoder, PatchColourEncoder
from conftest import BLUE, GREEN, RED
from fusion_folder import CALIBRATION, write_reranker
from PIL import Image
from torch import nn
from torch.nn import functional as F

import mmsearch
from indexer.errors import DecodeError, ModelError, ModelMismatch, UsageError
from indexer.tokens import TokenFormat, pack, unpack
from indexer.types import Modality
from mmsearch import calibration
from mmsearch.present import status_lines
from mmsearch.query import parse_query
from mmsearch.rerank import PictureSide, TextSide, fusion_onnx, load, stage
from mmsearch.rerank.fusion_onnx import FusionCompressor, FusionReranker
from mmsearch.rerank.load import load_reranker
from mmsearch.rerank.stage import fused_order

pytestmark = pytest.mark.usefixtures("log_odds_alone")

FUSED = calibration.read_fused(CALIBRATION)
NAN = math.nan
TO_IMAGE, TO_TEXT = (Modality.TEXT, Modality.IMAGE), (Modality.IMAGE, Modality.TEXT)


def names(hits: Sequence[mmsearch.Hit]) -> list[str]:
    return [hit.path.name if hit.path else str(hit.key) for hit in hits]


def picture(*tiles: tuple[int, tuple[int, int, int]], ground: tuple[int, int, int] = BLUE) -> Image.Image:
    """A plain picture with tiles of its 4 by 4 in other colours."""
    image = Image.new("RGB", (16, 16), ground)
    for tile, colour in tiles:
        image.paste(colour, (tile % 4 * 4, tile // 4 * 4, tile % 4 * 4 + 4, tile // 4 * 4 + 4))
    return image


def quarter(colour: tuple[int, int, int]) -> Image.Image:
    """Blue, with the upper left quarter in another colour."""
    return picture(*((tile, colour) for tile in (0, 1, 4, 5)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_reranker(tmp_path / "reranker", PatchColourEncoder())


@pytest.fixture
def fused(tmp_path: Path, folder: Path) -> Iterator[mmsearch.Library]:
    """An empty library with the colour encoder and the reranker whose logits can be worked out by hand."""
    with mmsearch.open(tmp_path / "index", model=PatchColourEncoder(), reranker=folder) as library:
        yield library


# -- the order, by hand ------------------------------------------------------------------------------------------------


def test_the_example_of_the_docstring() -> None:
    order = fused_order(np.array([2.0, 1, 0, -1]), np.array([3, -5, NAN]))
    assert order[:3].tolist() == [3, -5, 0]
    assert order[3] < -5 and order[3] == pytest.approx(-5)


def test_what_was_not_scored_stays_below_a_match_that_stood_before_it() -> None:
    """The second keeps its 4: nothing stood before it that was scored. The fourth stays below the third, a match."""
    order = fused_order(np.array([5.0, 4, 3, 2, 1]), np.array([NAN, NAN, 0.5, NAN, -2]))
    assert order[[0, 1, 2, 4]].tolist() == [5, 4, 0.5, -2]
    assert order[3] < 0.5 and order[3] == pytest.approx(0.5)


def test_what_lies_beyond_keeps_its_own_order_and_distances() -> None:
    order = fused_order(np.array([5.0, 4, 3, 2.5, 2.5, 0]), np.array([-1, -3]))
    assert order[2] < -3
    assert (order[2:] - order[2]).tolist() == pytest.approx([0, -0.5, -0.5, -3])
    assert order[3] == order[4]
    low = fused_order(np.array([5.0, 4, 3, 2.5]), np.array([8, 7]))
    assert low.tolist() == [8, 7, 3, 2.5]


def test_without_any_score_nothing_moves() -> None:
    first = np.array([3.0, 3.0, 1.0, 1.0])
    assert fused_order(first, np.array([NAN, NAN, NAN])) is first


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "side"), [(9, 8), (4, 2), (5, 5), (7, 3)])
def test_the_picture_side_is_what_torch_makes_of_the_same_weights(grid: int, side: int) -> None:
    torch.manual_seed(grid)
    norm, project = nn.LayerNorm(12), nn.Linear(12, 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    weights = {f"norm.{n}": p.detach().numpy() for n, p in norm.named_parameters()}
    weights |= {f"project.{n}": p.detach().numpy() for n, p in project.named_parameters()}
    compressor = FusionCompressor(TokenFormat("t", "f", side * side, 6), "e", weights, grid, side)
    patches = torch.randn(3, grid * grid, 12)
    with torch.no_grad():
        square = project(norm(patches)).transpose(1, 2).reshape(3, 6, grid, grid)
        pooled = F.adaptive_avg_pool2d(square, side).flatten(2).transpose(1, 2)
        expected = F.layer_norm(pooled, (6,))
    tokens = compressor.compress(patches.numpy())
    assert tokens.dtype == np.float32 and tokens.shape == (3, side * side, 6)
    assert np.abs(tokens - expected.numpy()).max() < 1e-5


def test_logits_by_hand(folder: Path) -> None:
    """A pure token is (√2, -√½, -√½) for red. "red blue" against red with a blue quarter: 2 · √2;
    against green: 2 · -√½; against red: √2 - √½."""
    reranker = FusionReranker(folder)
    with_blue = [BLUE if patch in (0, 1, 4, 5) else RED for patch in range(16)]
    colours = np.array([[RED] * 16, with_blue, [GREEN] * 16], np.float32) / 255
    pictures = [PictureSide(tokens) for tokens in reranker.compressor.compress(colours)]
    red, blue, nothing = [1, 0, 0], [0, 0, 1], [0, 0, 0]
    texts = [TextSide("red blue", np.array([red, blue], np.float32)), TextSide("a", np.array([nothing], np.float32))]
    pairs = np.array([[0, 1], [0, 2], [1, 0], [0, 0]])
    root, half = math.sqrt(2), math.sqrt(0.5)
    assert reranker.score(texts, pictures, pairs) == pytest.approx([2 * root, -2 * half, 0, root - half], abs=1e-4)
    assert reranker.score(texts, pictures, np.zeros((0, 2), np.int64)).shape == (0,)


def test_many_pairs_of_texts_of_all_lengths_equal_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_onnx, "PAIRS", 7)
    rng = np.random.default_rng(3)
    reranker = FusionReranker(folder)
    texts = [TextSide("", rng.standard_normal((n, 3)).astype(np.float32)) for n in (1, 9, 4, 2)]
    pictures = [PictureSide(rng.standard_normal((4, 3)).astype(np.float32)) for _ in range(5)]
    pairs = np.array([[t, p] for t in range(4) for p in range(5)])
    expected = [(texts[t].states @ pictures[p].tokens.T).max(axis=1).sum() for t, p in pairs]  # type: ignore[union-attr]
    assert reranker.score(texts, pictures, pairs) == pytest.approx(expected, abs=1e-5)


def test_a_network_that_fails_says_so(folder: Path) -> None:
    reranker = FusionReranker(folder)
    text, one = TextSide("", np.ones((1, 3), np.float32)), np.zeros((1, 2), np.int64)
    with pytest.raises(ModelError, match="sum-of-best gave unusable logits"):
        reranker.score([text], [PictureSide(np.full((4, 3), NAN, np.float32))], one)
    with pytest.raises(ModelError, match="sum-of-best failed on 1 pairs"):
        reranker.score([text], [PictureSide(np.ones((4, 5), np.float32))], one)
    (folder / "fusion.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"cannot load the reranker .*fusion\.onnx"):
        FusionReranker(folder).score([text], [PictureSide(np.ones((4, 3), np.float32))], one)


# -- which reranker ----------------------------------------------------------------------------------------------------


class InFolder(PatchColourEncoder):
    """The colour encoder as a model in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.name = str(folder)  # type: ignore[misc]


class Other(PatchColourEncoder):
    fingerprint = "07e4"


def test_the_reranker_of_a_model_lies_in_its_folder_or_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = InFolder(tmp_path / "model")
    monkeypatch.setattr(load, "PACKAGED", tmp_path / "weights")
    assert load_reranker(None, encoder) is None
    write_reranker(tmp_path / "weights" / "a", Other())
    write_reranker(tmp_path / "weights" / "b", encoder, name="packaged")
    packaged = load_reranker(None, encoder)
    assert packaged is not None and packaged.name == "packaged"
    write_reranker(tmp_path / "model" / "reranker", encoder, name="beside")
    beside = load_reranker(None, encoder)
    assert beside is not None and beside.name == "beside"
    write_reranker(tmp_path / "model" / "reranker", Other())
    again = load_reranker(None, encoder)
    assert again is not None and again.name == "packaged"
    assert load_reranker(None, ColourEncoder()) is None


def test_a_folder_that_is_no_reranker_for_this_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no reranker is called .*none' and no folder has that name"):
        load_reranker(tmp_path / "none", PatchColourEncoder())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no reranker in .*empty.*config\.json"):
        load_reranker(tmp_path / "empty", PatchColourEncoder())
    for encoder in (Other(), ColourEncoder()):
        with pytest.raises(ModelMismatch, match="sum-of-best was trained for another model than colours"):
            load_reranker(folder, encoder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "calibration.json").write_text(json.dumps({"text->image": CALIBRATION["text->image"]}))
    with pytest.raises(ModelError, match="says nothing of image->text"):
        load_reranker(folder, PatchColourEncoder())
    for changed, said in (
        ({"architecture": "else"}, "does not describe a reranker of the kind 'fusion'"),
        ({"grid": "nine"}, "is damaged"),
        ({"tokens": {}}, "is damaged"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(ModelError, match=said):
            load_reranker(folder, PatchColourEncoder())


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["tokens"]["width"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"cannot read the weights .*compressor\.safetensors"):
        load_reranker(folder, PatchColourEncoder())


# -- the search, by hand -----------------------------------------------------------------------------------------------


def probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def test_a_detail_that_the_vector_does_not_show_is_found(fused: mmsearch.Library) -> None:
    """In bytes √2 is within one part in 2,048, and √½ is 63 of its 127 steps.

    Blue with a red quarter is (0.25, 0, 0.75, 0.5): with "red" its cosine is 0.5 / √(1.25 · 0.875) = 0.478, log-odds
    -6.44, behind violet. Its best token is pure red: 0.5 · -6.44 + 4 · √2 - 1 = 1.44; violet has 4 · √½ - 1 and half of
    its log-odds."""
    fused.add(
        [
            mmsearch.Addition("violet", image=Image.new("RGB", (16, 16), (255, 0, 255))),
            mmsearch.Addition("detail", image=quarter(RED)),
            mmsearch.Addition("words", text="a blue thing"),
        ]
    )
    before = fused.query("red", k=3, rerank=False)
    assert names(before) == ["violet", "detail", "words"]
    hits = fused.query("red", k=3)
    assert names(hits) == ["detail", "violet", "words"]
    assert [hit.reranked for hit in hits] == [True, True, False]
    dual = 20 * (0.5 / math.sqrt(1.25 * 0.875) - 0.5) - 6
    assert hits[0].score == pytest.approx(probability(0.5 * dual + 4 * math.sqrt(2) - 1), abs=5e-4)
    dual = 20 * (1.25 / math.sqrt(1.25 * 2.25) - 0.5) - 6
    assert hits[1].score == pytest.approx(probability(0.5 * dual + 4 * math.sqrt(2) * 63 / 127 - 1), abs=5e-4)
    assert hits[2].score == before[2].score
    assert hits.not_reranked is None
    assert hits[0].as_dict()["reranked"] is True


def test_a_picture_finds_the_text_about_its_detail(fused: mmsearch.Library) -> None:
    """Blue with a red quarter: "a red thing" and "a green thing" have log-odds of -6.44 and -13.5 first; -6.44 + 2 · √2
    - 2 then, and green -13.5 - 2 · √½ - 2."""
    fused.add([mmsearch.Addition("green", text="a green thing"), mmsearch.Addition("red", text="a red thing")])
    hits = fused.query(image=quarter(RED), k=2)
    assert names(hits) == ["red", "green"] and all(hit.reranked for hit in hits)
    cosine = 0.5 / math.sqrt(1.25 * 0.875)
    assert hits[0].score == pytest.approx(probability(20 * (cosine - 0.5) - 6 + 2 * math.sqrt(2) - 2), abs=1e-5)


# -- the plain twin ----------------------------------------------------------------------------------------------------

PALETTE = [RED, GREEN, BLUE, (255, 255, 0), (120, 120, 120), (255, 0, 255), (40, 0, 0)]
TEXTS = ["a red thing", "green and blue", "red green", "a grey day", "blue", "red red blue"]


@dataclass
class Thing:
    """One item of the twin: ``tokens`` of a picture that has any."""

    key: str
    vector: np.ndarray
    tokens: np.ndarray | None = None
    text: str | None = None


def line(cosine: float) -> float:
    return LINE["slope"] * (cosine - LINE["mean"]) / LINE["std"] + LINE["bias"]


def best_matches(text: str, tokens: np.ndarray) -> float:
    """The logit of a pair, word by word and token by token."""
    total = 0.0
    for word in text.split():
        state = [float(word == colour) for colour in ("red", "green", "blue")]
        total += max(sum(a * b for a, b in zip(state, token, strict=True)) for token in tokens.tolist())
    return round(total, 4)


def twin(
    pictures: list[Thing], texts: list[Thing], asked: dict[str, object], candidates: int
) -> list[tuple[str, float, bool]]:
    """The whole reranked list, by loops over all items: key, probability, whether reranked."""
    encoder = PatchColourEncoder()
    words, image, without = asked.get("text"), asked.get("image"), asked.get("without", ())
    found: list[tuple[float, int, int, str, bool]] = []
    for kind, things in enumerate((pictures, texts)):
        parts = [encoder.encode_texts([str(words)])[0]] if words else []
        parts += [encoder.encode_images([image])[0]] if image else []  # type: ignore[list-item]
        first = []
        for thing in things:
            value = sum(line(float(np.sum(part.astype(float) * thing.vector))) for part in parts) / len(parts)
            for unwanted in without:  # type: ignore[attr-defined]
                bad = encoder.encode_texts([unwanted])[0].astype(float)
                background = [float(np.sum(bad * other.vector)) for other in things]
                value -= 3 * max(0, (float(np.sum(bad * thing.vector)) - np.mean(background)) / np.std(background))
            first.append(value)
        order = sorted(range(len(things)), key=lambda i: (-round(first[i], 9), i))
        across = parts[0] if kind == 0 and words else parts[-1] if kind == 1 and image else None
        if across is None:
            found += [(-first[i], 0, kind * 1000 + i, things[i].key, False) for i in order]
            continue
        fuse = CALIBRATION["text->image" if kind == 0 else "image->text"]
        shown = None if kind == 0 else tokens_of(image)  # type: ignore[arg-type]
        confirmed, lowest = math.inf, math.inf
        for i in order[:candidates]:
            thing = things[i]
            value, scored = first[i], kind == 1 or thing.tokens is not None
            if scored:
                logit = best_matches(str(words) if kind == 0 else str(thing.text), thing.tokens if kind == 0 else shown)  # type: ignore[arg-type]
                dual = line(float(np.sum(across.astype(float) * thing.vector)))
                value += (fuse["dual"] * dual + fuse["fusion"] * logit + fuse["bias"] - dual) / len(parts)
                if value > 0:
                    confirmed = min(confirmed, value)
            elif value >= confirmed:
                value = confirmed - 1e-12
            lowest = min(lowest, value)
            found.append((-value, 0, kind * 1000 + i, thing.key, scored))
        beyond = order[candidates:]
        lowered = max(0.0, first[beyond[0]] - lowest) if beyond else 0.0
        found += [(-(first[i] - lowered), 1, kind * 1000 + i, things[i].key, False) for i in beyond]
    found.sort(key=lambda one: (round(one[0], 7), one[1:3]))
    return [(key, probability(-value), scored) for value, _, _, key, scored in found]


def tokens_of(image: Image.Image) -> np.ndarray:
    """The tokens of a picture as an index keeps them, worked out patch by patch and quarter by quarter."""
    encoder = PatchColourEncoder()
    patches = encoder.encode_prepared_patches(encoder.prepare(image)[None])[1][0].astype(float)
    normed = [(patch - patch.mean()) / math.sqrt(patch.var() + 1e-5) for patch in patches]
    tokens = []
    for row in (0, 2):
        for column in (0, 2):
            mean = np.mean([normed[4 * (row + y) + column + x] for y in (0, 1) for x in (0, 1)], axis=0)
            tokens.append((mean - mean.mean()) / math.sqrt(mean.var() + 1e-5))
    kept: np.ndarray = unpack(pack(np.array([tokens])), TokenFormat("", "", 4, 3))[0]
    return kept


QUESTIONS: list[dict[str, object]] = [
    {"text": "red"},
    {"text": "a green and blue thing"},
    {"text": "red blue", "without": ["green"]},
    {"text": "nothing of these"},
    {"image": quarter(GREEN)},
    {"image": picture((3, RED), (7, GREEN), ground=(40, 0, 0)), "without": ["blue"]},
    {"text": "red", "image": quarter(GREEN)},
    {"text": "blue red", "image": picture((3, RED)), "without": ["green", "red"]},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[mmsearch.Library, list[Thing], list[Thing]]]:
    """A library of forty pictures of tiles, every fifth without tokens and two of them equal, and texts."""
    rng = np.random.default_rng(11)
    encoder, place = PatchColourEncoder(), tmp_path_factory.mktemp("corpus")
    fused = mmsearch.open(place / "index", model=encoder, reranker=write_reranker(place / "reranker", encoder))
    pictures = []
    for n in range(40):
        tiles = [(int(tile), PALETTE[c]) for tile, c in zip(rng.integers(0, 16, 6), rng.integers(0, 7, 6), strict=True)]
        image = quarter(RED) if n in (7, 30) else picture(*tiles, ground=PALETTE[int(rng.integers(0, 7))])
        fused.add([mmsearch.Addition(f"picture {n}", image=image)], tokens=n % 5 != 3)
        tokens = tokens_of(image) if n % 5 != 3 else None
        pictures.append(Thing(f"picture {n}", encoder.encode_images([image])[0], tokens))
    texts = [
        Thing(f"text {n}", row, text=text)
        for n, (text, row) in enumerate(zip(TEXTS, encoder.encode_texts(TEXTS), strict=True))
    ]
    fused.add([mmsearch.Addition(thing.key, text=thing.text) for thing in texts])
    with fused:
        yield fused, pictures, texts


@pytest.mark.parametrize("candidates", [1, 4, 20, 50])
@pytest.mark.parametrize("question", QUESTIONS, ids=[" ".join(map(str, q)) + str(i) for i, q in enumerate(QUESTIONS)])
def test_equals_a_loop_over_all_pairs(
    corpus: tuple[mmsearch.Library, list[Thing], list[Thing]], question: dict[str, object], candidates: int
) -> None:
    fused, pictures, texts = corpus
    expected = twin(pictures, texts, question, candidates)
    hits = fused.query(**question, k=46, candidates=candidates, collapse=False)  # type: ignore[arg-type]
    assert [(hit.key, hit.reranked) for hit in hits] == [(key, scored) for key, _, scored in expected]
    assert [hit.score for hit in hits] == pytest.approx([value for _, value, _ in expected], abs=2e-4)


@pytest.mark.parametrize("question", QUESTIONS, ids=[" ".join(map(str, q)) + str(i) for i, q in enumerate(QUESTIONS)])
def test_the_beginning_of_a_long_list_is_the_short_list(
    corpus: tuple[mmsearch.Library, list[Thing], list[Thing]], question: dict[str, object]
) -> None:
    fused = corpus[0]
    whole = fused.query(**question, k=46, candidates=12)  # type: ignore[arg-type]
    for k in (1, 3, 11, 12, 13, 30, 45):
        assert fused.query(**question, k=k, candidates=12) == whole[:k]  # type: ignore[arg-type]
    scores = [hit.score for hit in whole]
    assert scores == sorted(scores, reverse=True)


def test_many_questions_at_once_are_answered_as_one_by_one(
    corpus: tuple[mmsearch.Library, list[Thing], list[Thing]],
) -> None:
    fused = corpus[0]
    queries = [parse_query(**question) for question in QUESTIONS]  # type: ignore[arg-type]
    together = fused.searcher().search_many(queries, k=9)
    assert together == [fused.searcher().search(query, k=9) for query in queries]


@pytest.mark.parametrize("question", QUESTIONS, ids=[" ".join(map(str, q)) + str(i) for i, q in enumerate(QUESTIONS)])
def test_without_reranking_the_answers_are_those_of_a_library_that_has_no_reranker(
    corpus: tuple[mmsearch.Library, list[Thing], list[Thing]], question: dict[str, object]
) -> None:
    """Bit for bit, scores and all."""
    fused = corpus[0]
    with mmsearch.open(fused.folder, model=ColourEncoder()) as plain:
        expected = plain.query(**question, k=46)  # type: ignore[arg-type]
        found = fused.query(**question, k=46, rerank=False)  # type: ignore[arg-type]
        assert found == expected and found.not_reranked is None
        assert expected.not_reranked == "there is no reranker for colours"
    assert not any(hit.reranked for hit in found)


# -- what is in the way is said ----------------------------------------------------------------------------------------


def test_an_index_without_tokens_says_so_and_gets_them(fused: mmsearch.Library, photos: Path) -> None:
    fused.index(photos, tokens=False)
    assert (fused.status().tokens, fused.status().without_tokens) == (None, 3)
    before = fused.query("red", k=6)
    assert before.not_reranked == "the index holds no image tokens; 'mmsearch index --add-tokens' makes them"
    assert before == fused.query("red", k=6, rerank=False)
    assert fused.query("red", kind="text").not_reranked is None  # texts for words are never reranked
    of_picture = fused.query(image=photos / "red.png", k=6)
    assert of_picture.not_reranked is None  # the tokens of the picture that asks are made when it asks
    assert {hit.kind for hit in of_picture if hit.reranked} == {"text"}
    assert fused.add_tokens().added == 3
    after = fused.query("red", k=6)
    assert after.not_reranked is None
    assert {hit.kind for hit in after if hit.reranked} == {"image"}


def test_some_pictures_without_tokens_are_counted(fused: mmsearch.Library, photos: Path) -> None:
    fused.index(photos / "red.png", photos / "notes.txt")
    fused.index(photos, tokens=False)
    hits = fused.query("red", kind="image", k=3)
    assert [hit.reranked for hit in hits] == [True, False, False]
    status = fused.status()
    assert (status.tokens, status.without_tokens) == ("sum-of-best", 2)
    assert "tokens     sum-of-best, of 1 of 3 pictures" in status_lines(status)
    said = "2 of the 3 best pictures have no image tokens; 'mmsearch index --add-tokens' makes them"
    assert hits.not_reranked == said
    assert fused.query("red", kind="image", k=3, candidates=1).not_reranked is None


def test_tokens_of_another_reranker_are_said_and_replaced(
    fused: mmsearch.Library, photos: Path, tmp_path: Path
) -> None:
    fused.index(photos)
    newer = write_reranker(
        tmp_path / "newer", PatchColourEncoder(), project=2 * np.eye(3, dtype=np.float32), name="newer"
    )
    with mmsearch.open(fused.folder, model=PatchColourEncoder(), reranker=newer) as library:
        hits = library.query("red", k=6)
        assert hits == fused.query("red", k=6, rerank=False)
        assert hits.not_reranked == (
            "the image tokens in the index are those of sum-of-best, not those of newer as it is here; "
            "'mmsearch index --add-tokens' replaces them"
        )
        Image.new("RGB", (9, 9), (1, 2, 3)).save(photos / "new.png")
        with pytest.raises(ModelMismatch, match=r"sum-of-best.*newer.*--add-tokens"):
            library.index(photos)
        assert library.add_tokens().added == 3
        assert library.index(photos).added == 1
        assert library.query("red", k=6).not_reranked is None


def test_nothing_to_rerank_with_is_nothing_to_make_tokens_with(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    assert library.query("red").not_reranked == "there is no reranker for colours"
    with pytest.raises(UsageError, match="no reranker for colours that reads image tokens"):
        library.add_tokens()


def test_a_reranker_for_another_model_is_refused(tmp_path: Path, photos: Path) -> None:
    other = write_reranker(tmp_path / "other", Other())
    with (
        mmsearch.open(tmp_path / "index", model=PatchColourEncoder(), reranker=other) as library,
        pytest.raises(ModelMismatch, match="trained for another model"),
    ):
        library.index(photos)


# -- rerankers that are not ours ---------------------------------------------------------------------------------------


class Broken:
    """A reranker that gives what it is told to, or raises it."""

    name = "broken"
    fingerprint = "b4d"
    candidates = 50
    bank = None
    calibration = FUSED

    def __init__(self, answer: object) -> None:
        self.compressor = ColourCompressor()
        self.answer = answer

    def score(self, texts: Sequence[TextSide], pictures: Sequence[PictureSide], pairs: np.ndarray) -> np.ndarray:
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.full(len(pairs), self.answer) if np.isscalar(self.answer) else np.array(self.answer)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (RuntimeError("out of memory"), RuntimeError, "out of memory"),
        (ModelError("no weights"), ModelError, "no weights"),
        (math.inf, ModelError, "broken gave unusable logits"),
        (NAN, ModelError, "broken gave unusable logits"),
        ([1.0], ModelError, r"of shape \(1,\) for 3 pairs"),
    ],
)
def test_a_reranker_that_fails_is_an_error(
    tmp_path: Path, photos: Path, answer: object, error: type[Exception], said: str
) -> None:
    with mmsearch.open(tmp_path / "index", model=PatchColourEncoder(), reranker=Broken(answer)) as library:
        library.index(photos)
        for question in ({"text": "red"}, {"image": photos / "red.png"}):
            with pytest.raises(error, match=said):
                library.query(**question)  # type: ignore[arg-type]
        assert names(library.query("red", rerank=False, only_clear=True)) == ["red.png", "notes.txt"]


class Looks:
    """A reranker that opens pictures: how much nearer the mean colour is to the first colour word than to black."""

    name = "looks"
    fingerprint = "100c"
    candidates = 50
    bank = None
    compressor = None
    calibration = FUSED

    def score(self, texts: Sequence[TextSide], pictures: Sequence[PictureSide], pairs: np.ndarray) -> np.ndarray:
        logits = []
        for text, shown in pairs.tolist():
            try:
                colour = np.asarray(pictures[shown].open(64)).mean(axis=(0, 1)) / 255
            except DecodeError:
                logits.append(NAN)
                continue
            words = texts[text].words.split()
            wanted = [float(name in words) for name in ("red", "green", "blue")]
            logits.append(float(np.linalg.norm(colour) - np.linalg.norm(colour - wanted)))
        return np.array(logits)


def test_a_reranker_that_opens_pictures(tmp_path: Path, photos: Path) -> None:
    """It needs no tokens and no patches. Red against red is 1, against blue 1 - √2; what is gone is said."""
    with mmsearch.open(tmp_path / "index", model=ColourEncoder(), reranker=Looks()) as library:
        library.index(photos)
        library.add([mmsearch.Addition("memory", image=Image.new("RGB", (9, 9), RED))])
        (photos / "green.png").unlink()
        hits = library.query("red", kind="image", k=4)
        assert [(name, hit.reranked) for name, hit in zip(names(hits), hits, strict=True)] == [
            ("red.png", True),
            ("memory", False),
            ("blue.png", True),
            ("green.png", False),
        ]
        assert hits[0].score == pytest.approx(probability(0.5 * 4 + 4 * 1 - 1), abs=1e-4)
        assert hits.not_reranked == "2 of the 4 best pictures cannot be opened"
        of_picture = library.query(image=photos / "red.png", kind="text", k=3)
        assert of_picture[0].score == pytest.approx(probability(4 + 2 * 1 - 2), abs=1e-4)
        with pytest.raises(UsageError, match="reads image tokens"):
            library.add_tokens()


def test_the_search_opens_no_picture(fused: mmsearch.Library, photos: Path) -> None:
    fused.index(photos)
    expected = fused.query("red", k=6)
    shutil.rmtree(photos)
    assert fused.query("red", k=6) == expected and expected[0].reranked


class Recorder:
    """Passes questions on to a reranker and keeps the logits."""

    def __init__(self, inner: FusionReranker) -> None:
        self.inner = inner
        self.name, self.fingerprint, self.candidates = inner.name, inner.fingerprint, inner.candidates
        self.compressor, self.calibration, self.bank = inner.compressor, inner.calibration, inner.bank
        self.logits: list[list[float]] = []

    def score(self, texts: Sequence[TextSide], pictures: Sequence[PictureSide], pairs: np.ndarray) -> np.ndarray:
        found = self.inner.score(texts, pictures, pairs)
        self.logits.append(found.tolist())
        return found


def test_a_pair_has_one_logit_whichever_side_asks(folder: Path, tmp_path: Path) -> None:
    """The tokens of the picture that asks are rounded as those in the index are."""
    recorder = Recorder(FusionReranker(folder))
    image = picture((3, (255, 130, 7)), (4, (3, 200, 90)), ground=(77, 99, 13))
    with mmsearch.open(tmp_path / "index", model=PatchColourEncoder(), reranker=recorder) as library:
        library.add([mmsearch.Addition("p", image=image), mmsearch.Addition("t", text="a red and green thing")])
        library.query("a red and green thing", kind="image")
        library.query(image=image, kind="text")
    assert recorder.logits[0] == recorder.logits[1] and len(recorder.logits) == 2


def test_texts_that_were_candidates_lately_are_not_encoded_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(PatchColourEncoder):
        def encode_text_states(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
            seen.append(list(texts))
            return super().encode_text_states(texts)

    seen: list[list[str]] = []
    with mmsearch.open(tmp_path / "index", model=Counting(), reranker=folder) as library:
        library.add([mmsearch.Addition(text, text=text) for text in ("red", "green", "blue")])
        first = library.query(image=quarter(RED), k=3)
        assert library.query(image=quarter(RED), k=3) == first
        assert [sorted(texts) for texts in seen] == [["blue", "green", "red"]]
        monkeypatch.setattr(stage, "STATES_BYTES", 2 * 3 * 4)  # of the next three only the two that came last are kept
        library.query(image=quarter(GREEN), k=3)
        assert library.query(image=quarter(RED), k=3) == first
        assert len(seen) == 2 and len(seen[1]) == 1
