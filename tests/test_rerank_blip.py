"""BLIP's and BLIP-2's heads as rerankers: the logits of the plain forward, what is kept, what is said when it fails."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blip_folder import POSITIONS, QUERIES, write_blip, write_blip2
from colour_encoder import LINE, ColourEncoder
from conftest import BLUE, GREEN, RED, SAMPLES
from fusion_folder import CALIBRATION
from PIL import Image
from safetensors.torch import load_file, save_file
from test_cli import loaded_by
from test_cli import mmsearch as command
from transformers import (
    AutoProcessor,
    Blip2ForImageTextRetrieval,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    CLIPConfig,
)

import mmsearch
from indexer.encoders.mini import MiniEncoder
from indexer.errors import DecodeError, ModelError, UsageError
from indexer.types import Modality
from mmsearch import calibration
from mmsearch.library import mini_calibration
from mmsearch.posterior import one_expected
from mmsearch.rerank import PictureSide, TextSide, itm
from mmsearch.rerank.itm import HUB, ItmReranker, RecentFeatures
from mmsearch.rerank.itm_torch import ItmModel
from mmsearch.rerank.load import load_reranker

pytestmark = [
    pytest.mark.slow(reason="loads models of transformers in processes of their own"),
    pytest.mark.usefixtures("log_odds_alone"),
]

PHOTOGRAPHS = ("IMG_0043.jpg", "IMG_0009.jpg", "IMG_0030.jpg")
WORDS = ["a red parrot", "bear", "the balloon and the blue and the red and the green and the bear of a parrot", ""]


def blip2_without_image_token(folder: Path) -> Path:
    return write_blip2(folder, image_token=False)


KINDS: dict[str, Callable[[Path], Path]] = {
    "blip": write_blip,
    "blip-2": write_blip2,
    "blip-2 without image token": blip2_without_image_token,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp("models") / "blip") for name, write in KINDS.items()}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A BLIP that a test may damage."""
    return shutil.copytree(folders["blip"], tmp_path / "blip")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the vision model was given, call by call."""
    counts: list[int] = []
    see = ItmModel.see

    def counting(self: ItmModel, batch: np.ndarray) -> list[torch.Tensor]:
        counts.append(len(batch))
        return see(self, batch)

    monkeypatch.setattr(ItmModel, "see", counting)
    return counts


def photographs() -> list[PictureSide]:
    return [PictureSide(path=str(SAMPLES / "photos" / name)) for name in PHOTOGRAPHS]


def every_pair(texts: int, pictures: int) -> np.ndarray:
    return np.array([[text, picture] for text in range(texts) for picture in range(pictures)])


def plain_logit(folder: Path, words: str, image: Image.Image) -> float:
    """What the model's own forward says of one pair, its own processor before it."""
    processor = AutoProcessor.from_pretrained(folder)
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    cut: dict[str, Any] = {"truncation": True, "return_tensors": "pt"}
    with torch.no_grad():
        if json.loads((folder / "config.json").read_text())["model_type"] == "blip":
            blip = BlipForImageTextRetrieval.from_pretrained(folder)
            scores = blip(**processor(image, words, max_length=POSITIONS, **cut)).itm_score
        else:
            blip2 = Blip2ForImageTextRetrieval.from_pretrained(folder)
            if blip2.config.image_token_index is None:
                inputs = processor.tokenizer(words, max_length=POSITIONS, **cut)
            else:
                inputs = processor(image, words, max_length=POSITIONS + QUERIES, **cut)
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            scores = blip2(pixels, ids, mask, use_image_text_matching_head=True).logits_per_image
    return float(scores[0, 1] - scores[0, 0])


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_the_plain_forward(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, texts and pictures in parts, some pairs twice, and one text far too long."""
    monkeypatch.setattr(itm, "PAIRS", 3)
    monkeypatch.setattr(itm, "PICTURES", 2)
    pictures = [*photographs(), PictureSide(image=Image.new("RGB", (31, 9), RED))]
    pairs = every_pair(len(WORDS), len(pictures))[np.random.default_rng(5).permutation(16)]
    pairs = np.concatenate([pairs, pairs[:2]])
    reranker = ItmReranker(folders[kind], "cpu")
    expected = [plain_logit(folders[kind], WORDS[text], pictures[shown].open(24)) for text, shown in pairs]
    logits = reranker.score([TextSide(words) for words in WORDS], pictures, pairs)
    assert logits.shape == (18,)
    assert np.abs(logits - expected).max() < 1e-5
    by_text = np.array([[one for one, pair in zip(expected, pairs, strict=True) if pair[0] == n][:4] for n in range(4)])
    assert by_text.std(axis=1).min() > 0.01 and by_text.mean(axis=1).std() > 0.01  # words and pictures both count


def test_no_pairs_have_no_logits(folders: dict[str, Path]) -> None:
    assert ItmReranker(folders["blip"]).score([], [], np.zeros((0, 2), np.int64)).tolist() == []


def test_a_word_beyond_the_table_of_words_is_an_unknown_word(folders: dict[str, Path]) -> None:
    """The published tokenizer of BLIP-2 has a number for "<image>", its table of words has no row for it."""
    reranker = ItmReranker(folders["blip-2"], "cpu")
    one, other = reranker.score(
        [TextSide("a <image> bear"), TextSide("a zebra bear")], photographs()[:1], every_pair(2, 1)
    )
    assert one == pytest.approx(other, abs=1e-5)


def test_the_fingerprint_says_which_weights(folders: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    fingerprint = ItmReranker(folders["blip"], "cpu").fingerprint
    assert fingerprint == ItmReranker(folder, "cpu").fingerprint
    assert fingerprint != ItmReranker(write_blip(tmp_path / "other", seed=1), "cpu").fingerprint
    with pytest.raises(UsageError, match="no device is called 'gpu'"):
        _ = ItmReranker(folder, "gpu").fingerprint


def test_logits_that_are_not_finite_are_an_error_and_not_a_missing_picture(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["itm_head.bias"].fill_(math.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"blip gave logits that are not finite for 3 pairs"):
        ItmReranker(folder, "cpu").score([TextSide("bear")], photographs(), every_pair(1, 3))


# -- what is opened and what is kept -----------------------------------------------------------------------------------


def test_a_picture_is_seen_once_however_many_texts_it_is_held_against(
    folders: dict[str, Path], seen: list[int]
) -> None:
    reranker = ItmReranker(folders["blip"], "cpu")
    texts, twice = [TextSide(words) for words in WORDS], [*photographs(), *photographs()]
    logits = reranker.score(texts, twice, every_pair(4, 6)).reshape(4, 6)
    assert seen == [3]
    # Not to the bit: a kernel may sum a row in another order for its place in a batch.
    np.testing.assert_allclose(logits[:, :3], logits[:, 3:], atol=1e-5)
    again = reranker.score(texts, photographs(), every_pair(4, 3)).reshape(4, 3)
    assert seen == [3]
    assert np.abs(again - logits[:, :3]).max() < 1e-5
    images = [PictureSide(image=side.open(24)) for side in photographs()]
    reranker.score(texts, images, every_pair(4, 3))
    reranker.score(texts, [PictureSide(image=side.open(24)) for side in images], every_pair(4, 3))
    assert seen == [3, 3]


def test_features_that_were_not_asked_for_longest_go_first() -> None:
    """The example of the docstring, then a larger one in place of one that is kept."""
    recent = RecentFeatures(8)
    a, b, c = (torch.tensor([number], dtype=torch.float32) for number in (1, 2, 3))
    recent.put("a", a)
    recent.put("b", b)
    assert recent.get("a") is a
    recent.put("c", c)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (a, None, c)
    recent.put("c", torch.zeros(2))
    assert recent.get("a") is None and recent.get("c") is not None
    recent.put("d", torch.zeros(3))
    assert recent.get("c") is None and recent.get("d") is None
    recent.put("a", a)
    recent.put("b", b)
    assert recent.get("a") is a and recent.get("b") is b


def test_what_is_kept_is_bounded(folders: dict[str, Path], seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 3 by 3 patches and a class token has 10 · 16 numbers of 4 bytes; there is room for two."""
    monkeypatch.setattr(itm, "FEATURES_BYTES", 2 * 10 * 16 * 4)
    reranker = ItmReranker(folders["blip"], "cpu")
    first, second, third = photographs()
    for sides in ([first], [second], [first], [third], [first], [second]):
        reranker.score([TextSide("bear")], sides, every_pair(1, 1))
    assert seen == [1, 1, 1, 1]  # the second went for the third


def test_a_file_that_changed_is_seen_again_and_one_that_is_gone_has_no_score(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    reranker = ItmReranker(folders["blip"], "cpu")
    paths = [tmp_path / name for name in ("one.jpg", "two.jpg", "three.jpg")]
    for path, name in zip(paths, PHOTOGRAPHS, strict=True):
        shutil.copy(SAMPLES / "photos" / name, path)
    sides = [PictureSide(path=str(path)) for path in paths]
    before = reranker.score([TextSide("bear")], sides, every_pair(1, 3))
    shutil.copy(paths[1], paths[0])
    paths[1].unlink()
    paths[2].write_bytes(b"no picture at all")
    with pytest.raises(DecodeError):
        sides[2].open(24)
    after = reranker.score([TextSide("bear")], sides, every_pair(1, 3))
    assert after[0] == pytest.approx(before[1], abs=1e-5) and abs(after[0] - before[0]) > 1e-3
    assert np.isnan(after[1:]).tolist() == [True, True]


def test_several_threads_at_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itm, "FEATURES_BYTES", 10 * 16 * 4)
    texts = [TextSide(words) for words in WORDS]
    expected = ItmReranker(folders["blip"], "cpu").score(texts, photographs(), every_pair(4, 3))
    reranker = ItmReranker(folders["blip"], "cpu")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(reranker.score, texts, photographs(), every_pair(4, 3)) for _ in range(8)]
        for one in asked:
            assert np.abs(one.result() - expected).max() < 1e-5


# -- which model -------------------------------------------------------------------------------------------------------


def test_the_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HUB:
        reranker = load_reranker(name, ColourEncoder())
        assert isinstance(reranker, ItmReranker)
        assert (reranker.name, reranker.candidates, reranker.compressor) == (name, 20, None)
    assert HUB["blip2-itm-vit-g"] == "Salesforce/blip2-itm-vit-g"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "blip-itm-base-coco")
    beside = load_reranker("blip-itm-base-coco", ColourEncoder())
    assert beside is not None and beside.name == str(tmp_path / "blip-itm-base-coco")
    for asked in ("blip-itm-bse-coco", "Salesforce/blip-itm-base_coco"):
        with pytest.raises(UsageError, match=f"no reranker is called '{asked}' .* did you mean blip-itm-base-coco"):
            load_reranker(asked, ColourEncoder())
    with pytest.raises(UsageError, match=r"has that name: There are blip-itm-base-coco, .*blip2-itm-vit-g-coco$"):
        load_reranker("nonsense", ColourEncoder())


def test_a_folder_that_is_no_such_model_or_is_damaged(folder: Path, tmp_path: Path) -> None:
    def fails(match: str) -> None:
        reranker = load_reranker(folder, ColourEncoder())
        assert reranker is not None
        with pytest.raises(ModelError, match=match):
            reranker.score([TextSide("bear")], photographs(), every_pair(1, 3))

    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:5000])
    fails(r"cannot load the reranker in .*blip \(.*\); save or copy it again, or leave --reranker out")
    (folder / "model.safetensors").unlink()
    fails("there are no weights beside config.json")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").rename(folder / "lost.json")
    fails("cannot load the reranker in")
    (folder / "lost.json").rename(folder / "tokenizer.json")
    caption = BlipForConditionalGeneration(BlipForImageTextRetrieval.from_pretrained(folder).config)
    caption.save_pretrained(folder)
    fails(r"it has no image-text-matching head: \d+ weights are missing, itm_head.bias first")
    CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(
        UsageError, match=r"no reranker in .*a model of the type 'clip'.*one of the type blip or blip-2"
    ):
        load_reranker(tmp_path / "clip", ColourEncoder())
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        load_reranker(folder, ColourEncoder())


def test_weights_in_torchs_own_format_are_tensors_or_nothing(folder: Path, folders: dict[str, Path]) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "hacked"),)

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    pairs = every_pair(1, 3)
    expected = ItmReranker(folders["blip"], "cpu").score([TextSide("bear")], photographs(), pairs)
    assert ItmReranker(folder, "cpu").score([TextSide("bear")], photographs(), pairs) == pytest.approx(expected)
    torch.save({"x": Hostile()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load the reranker in"):
        ItmReranker(folder, "cpu").score([TextSide("bear")], photographs(), pairs)
    assert not (folder / "hacked").exists()


def test_lines_that_were_measured_replace_the_default(folder: Path) -> None:
    to_image, to_text = (Modality.TEXT, Modality.IMAGE), (Modality.IMAGE, Modality.TEXT)
    default = ItmReranker(folder).calibration
    assert set(default) == {to_image, to_text}
    # The first stage says one in four, the head that a match is thrice as likely as at the third it was trained on.
    odds = default[to_image].log_odds(np.array([math.log(1 / 3)]), np.array([math.log(3 / 2)]))
    assert math.exp(odds[0]) == pytest.approx(1 / 3 * 3)
    (folder / "calibration.json").write_text(json.dumps(CALIBRATION))
    assert ItmReranker(folder).calibration == calibration.read_fused(CALIBRATION)
    (folder / "calibration.json").write_text(json.dumps({"image->text": CALIBRATION["image->text"]}))
    with pytest.raises(ModelError, match="says nothing of text->image"):
        load_reranker(folder, ColourEncoder())
    (folder / "calibration.json").write_text('{"text->image": 3}')
    with pytest.raises(ModelError, match="is damaged"):
        load_reranker(folder, ColourEncoder())


# -- the search --------------------------------------------------------------------------------------------------------


def line(cosine: float) -> float:
    return LINE["slope"] * (cosine - LINE["mean"]) / LINE["std"] + LINE["bias"]


def probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


@pytest.mark.parametrize("kind", KINDS)
def test_words_a_picture_and_both_are_reranked(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """The log-odds of the first stage, plus those of the plain forward, plus log 2; half of that for a question of two
    parts, whose other half is as it was. No file is called by a word of the question: that would add to it."""
    photos, encoder = tmp_path / "photos", ColourEncoder()
    photos.mkdir()
    for name in PHOTOGRAPHS:
        shutil.copy(SAMPLES / "photos" / name, photos)
    (photos / "notes.txt").write_text("a red parrot\n\nthe blue balloon\n\nbear\n")
    passages = ["a red parrot", "the blue balloon", "bear"]
    asked = Image.new("RGB", (16, 16), (200, 90, 30))
    asked.paste(GREEN, (0, 0, 8, 8))
    sides = {path.name: PictureSide(path=str(path)) for path in sorted(photos.glob("*.jpg"))}
    words = encoder.encode_texts(["the red thing"])[0].astype(float)
    shown = encoder.encode_images([asked])[0].astype(float)
    with mmsearch.open(tmp_path / "index", model=encoder, device="cpu", reranker=folders[kind]) as library:
        library.index(photos)
        of_words = library.query("the red thing", kind="image", k=3)
        of_picture = library.query(image=asked, kind="text", k=3)
        of_both = library.query("the red thing", image=asked, kind="image", k=3)
    assert all(hit.reranked for hit in (*of_words, *of_picture, *of_both))
    assert (of_words.not_reranked, of_picture.not_reranked, of_both.not_reranked) == (None, None, None)
    pictures, both = {}, {}
    for name, side in sides.items():
        vector = encoder.encode_images([side.open(encoder.image_size)])[0].astype(float)
        matched = plain_logit(folders[kind], "the red thing", side.open(24)) + math.log(2)
        pictures[name] = probability(line(words @ vector) + matched)
        both[name] = probability((line(words @ vector) + matched + line(shown @ vector)) / 2)
    texts = {
        text: probability(
            line(float(encoder.encode_texts([text])[0].astype(float) @ shown))
            + plain_logit(folders[kind], text, asked)
            + math.log(2)
        )
        for text in passages
    }
    for hits, expected in ((of_words, pictures), (of_both, both)):
        found = {hit.path.name if hit.path else "": hit.score for hit in hits}
        assert found == pytest.approx(expected, abs=1e-3)
        assert list(found) == sorted(expected, key=lambda name: -expected[name])
    assert {hit.text: hit.score for hit in of_picture} == pytest.approx(texts, abs=1e-3)


def test_the_candidates_that_cannot_be_opened_are_said(folders: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    with mmsearch.open(tmp_path / "index", model=ColourEncoder(), reranker=folders["blip-2"]) as library:
        library.index(photos)
        (photos / "green.png").unlink()
        hits = library.query("a red and blue thing", kind="image", k=3)
        assert {hit.path.name: hit.reranked for hit in hits if hit.path} == {
            "red.png": True,
            "blue.png": True,
            "green.png": False,
        }
        assert hits.not_reranked == "1 of the 3 best pictures cannot be opened"
        with pytest.raises(UsageError, match="reads image tokens"):
            library.add_tokens()


def test_texts_are_held_against_one_look_at_the_picture(
    folders: dict[str, Path], photos: Path, tmp_path: Path, seen: list[int]
) -> None:
    with mmsearch.open(tmp_path / "index", model=ColourEncoder(), reranker=folders["blip"]) as library:
        library.index(photos)
        library.query(image=Image.new("RGB", (8, 8), BLUE), kind="text", k=3)
    assert seen == [1]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs and a text by the embedded model; indexing with such a reranker makes no tokens of its own."""
    photos = tmp_path_factory.mktemp("library") / "photos"
    photos.mkdir()
    for name in PHOTOGRAPHS:
        shutil.copy(SAMPLES / "photos" / name, photos)
    (photos / "notes.txt").write_text("a colourful bird\n")
    run = command("index", photos, "--index", photos.parent / "index", "--reranker", folders["blip"])
    assert run.returncode == 0 and run.stdout.startswith("4 added"), run.stderr
    return photos.parent / "index"


def test_the_command_reranks_with_a_folder(index: Path, folders: dict[str, Path]) -> None:
    asked = ["-k", "4", "--json", "--device", "cpu", "--index", index]
    run = command("query", "a tropical bird", *asked, "--reranker", folders["blip-2"])
    assert (run.returncode, run.stderr) == (0, "")
    hits = json.loads(run.stdout)["hits"]
    assert {(hit["kind"], hit["reranked"]) for hit in hits} == {("image", True), ("text", False)}
    reranker = ItmReranker(folders["blip-2"], "cpu")
    logits = reranker.score([TextSide("a tropical bird")], photographs(), every_pair(1, 3))
    scores = {Path(hit["path"]).name: hit["score"] for hit in hits if hit["kind"] == "image"}
    encoder, line = MiniEncoder("cpu"), mini_calibration()[Modality.TEXT, Modality.IMAGE]
    (asked_vector,) = encoder.encode_texts(["a tropical bird"])
    for path, logit in zip(PHOTOGRAPHS, logits.tolist(), strict=True):
        name = Path(path).name
        with Image.open(index.parent / "photos" / name) as image:
            cosine = float(encoder.encode_images([image.convert("RGB")])[0] @ asked_vector)
        log_odds = line.gain * cosine + line.offset + logit + math.log(2)  # at one match in a thousand
        expected = probability(log_odds + one_expected(3).offset)
        assert scores[name] == pytest.approx(expected, rel=0.15), name
    of_picture = command(
        "query", "--image", index.parent / "photos" / PHOTOGRAPHS[0], *asked, "--reranker", folders["blip-2"]
    )
    assert (of_picture.returncode, of_picture.stderr) == (0, "")
    assert {(hit["kind"], hit["reranked"]) for hit in json.loads(of_picture.stdout)["hits"]} == {
        ("image", False),
        ("text", True),
    }


def test_the_command_says_what_there_is_and_what_cannot_be_had(index: Path, tmp_path: Path) -> None:
    run = command("query", "a tropical bird", "--index", index, "--reranker", "blip-itm-base-cocoa")
    assert (run.returncode, run.stdout) == (2, "")
    assert "did you mean blip-itm-base-coco" in run.stderr and "blip2-itm-vit-g" in run.stderr
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    run = command("query", "a tropical bird", "--index", index, "--reranker", "blip-itm-base-coco", env=offline)
    assert (run.returncode, run.stdout) == (1, "")
    (said,) = run.stderr.splitlines()
    assert "the weights of Salesforce/blip-itm-base-coco are not on this machine" in said
    assert "check the network, name a folder with them, or leave --reranker out" in said


def test_a_name_is_a_repository_in_the_cache_of_the_hub(index: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """As a download leaves it; without a network it is enough."""
    cached = tmp_path / "hub" / "hub" / "models--Salesforce--blip-itm-large-flickr"
    shutil.copytree(folders["blip"], cached / "snapshots" / "0123456789")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123456789")
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    asked = ["query", "a tropical bird", "-k", "3", "--json", "--kind", "image", "--index", index, "--device", "cpu"]
    by_name = command(*asked, "--reranker", "blip-itm-large-flickr", env=offline)
    assert (by_name.returncode, by_name.stderr) == (0, "")
    hits = json.loads(by_name.stdout)["hits"]
    assert [hit["reranked"] for hit in hits] == [True, True, True]
    assert by_name.stdout == command(*asked, "--reranker", folders["blip"]).stdout


def test_nothing_is_loaded_before_the_first_pair(index: Path, folders: dict[str, Path]) -> None:
    code = (
        f"import mmsearch; library = mmsearch.open({str(index)!r}, reranker={str(folders['blip'])!r}); "
        "assert len(library.query('a parrot', k=2, rerank=False)) == 2; "
        "assert len(library.query('a parrot', kind='text', k=1)) == 1"
    )
    assert not loaded_by(code) & {"torch", "open_clip", "timm", "transformers", "torchvision"}
