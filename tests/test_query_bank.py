"""The bank of questions: what is near to everything says little about being near to this question."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import PatchColourEncoder
from fusion_folder import CALIBRATION, write_reranker
from PIL import Image
from safetensors.numpy import save_file

import mmsearch
from indexer.errors import ModelError
from indexer.types import Modality
from mmsearch.rerank.bank import TEMPERATURES, QueryBank
from mmsearch.rerank.fusion_onnx import FusionReranker

pytestmark = pytest.mark.usefixtures("log_odds_alone")

QUESTIONS = ["red", "green", "a green and red thing", "blue"]
PICTURES = [(255, 0, 0), (0, 0, 255)]
WEIGHTS = {"text->image": {"answer": -6.0, "question": 0.5}, "image->text": {"answer": -3.0, "question": 0.25}}


def with_bank(folder: Path) -> Path:
    """The reranker of ``fusion_folder`` with a bank, whose nearness its calibration takes into account."""
    encoder = PatchColourEncoder()
    write_reranker(folder, encoder)
    save_file(
        {
            "text": encoder.encode_texts(QUESTIONS).astype(np.float16),
            "image": encoder.encode_images([Image.new("RGB", (16, 16), c) for c in PICTURES]).astype(np.float16),
        },
        folder / "bank.safetensors",
    )
    values = {pair: CALIBRATION[pair] | WEIGHTS[pair] for pair in CALIBRATION}
    (folder / "calibration.json").write_text(json.dumps(values))
    return folder


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_nearness_is_the_logarithm_of_the_mean_of_exponentials() -> None:
    rng = np.random.default_rng(0)
    bank, vectors = rng.normal(size=(7, 5)).astype(np.float16) / 3, rng.normal(size=(4, 5)) / 3
    found = QueryBank({Modality.TEXT: bank, Modality.IMAGE: bank[:2]}).nearness(vectors, Modality.TEXT)
    for value, vector in zip(found, vectors, strict=True):
        sharp = TEMPERATURES[Modality.TEXT]
        plain = math.log(sum(math.exp(sharp * float(row @ vector)) for row in bank) / 7) / sharp
        assert value == pytest.approx(plain, abs=1e-6)


def test_nearness_of_large_products_is_finite() -> None:
    """exp(14 · 100) is no float; next to the largest product the others count for nothing."""
    bank = QueryBank({Modality.TEXT: np.array([[100.0], [1.0]]), Modality.IMAGE: np.array([[1.0]])})
    nearness = bank.nearness(np.ones((1, 1)), Modality.TEXT)[0]
    assert nearness == pytest.approx(100 - math.log(2) / TEMPERATURES[Modality.TEXT], abs=1e-4)


def test_a_picture_that_answers_every_question_stands_behind_one_that_answers_this(tmp_path: Path) -> None:
    """Of "green" the yellow picture knows as much as the cyan one; but the bank asks for red more than for blue."""
    pictures = {"yellow": (255, 255, 0), "cyan": (0, 255, 255)}
    found = {}
    for name, folder in (
        ("without", write_reranker(tmp_path / "without", PatchColourEncoder())),
        ("with", with_bank(tmp_path / "with")),
    ):
        with mmsearch.open(tmp_path / f"index-{name}", model=PatchColourEncoder(), reranker=folder) as library:
            library.add([mmsearch.Addition(key, image=Image.new("RGB", (16, 16), c)) for key, c in pictures.items()])
            found[name] = {hit.key: hit.probability for hit in library.query("green", k=2)}
    assert found["without"]["yellow"] == pytest.approx(found["without"]["cyan"], abs=1e-4)
    assert list(found["with"]) == ["cyan", "yellow"]

    encoder, bank = PatchColourEncoder(), FusionReranker(tmp_path / "with").bank
    assert bank is not None
    asked = float(bank.nearness(encoder.encode_texts(["green"]), Modality.IMAGE)[0])
    for key, colour in pictures.items():
        vector = encoder.encode_images([Image.new("RGB", (16, 16), colour)])
        near = float(bank.nearness(vector, Modality.TEXT)[0])
        moved = log_odds(found["with"][key]) - log_odds(found["without"][key])
        assert moved == pytest.approx(-6 * near + 0.5 * asked, abs=1e-3)


def test_texts_for_a_picture_are_held_against_the_pictures_of_the_bank(tmp_path: Path) -> None:
    question = Image.new("RGB", (16, 16), (200, 60, 90))
    found = {}
    for name, folder in (
        ("without", write_reranker(tmp_path / "without", PatchColourEncoder())),
        ("with", with_bank(tmp_path / "with")),
    ):
        with mmsearch.open(tmp_path / f"index-{name}", model=PatchColourEncoder(), reranker=folder) as library:
            library.add([mmsearch.Addition("text", text="a red thing")])
            found[name] = library.query(image=question, k=1)[0].probability
    encoder, bank = PatchColourEncoder(), FusionReranker(tmp_path / "with").bank
    assert bank is not None
    near = float(bank.nearness(encoder.encode_texts(["a red thing"]), Modality.IMAGE)[0])
    asked = float(bank.nearness(encoder.encode_images([question]), Modality.TEXT)[0])
    moved = log_odds(found["with"]) - log_odds(found["without"])
    assert moved == pytest.approx(-3 * near + 0.25 * asked, abs=1e-3)


def test_an_explanation_takes_the_bank_into_account_as_the_search_does(tmp_path: Path) -> None:
    folder = with_bank(tmp_path / "reranker")
    with mmsearch.open(tmp_path / "index", model=PatchColourEncoder(), reranker=folder) as library:
        path = tmp_path / "yellow.png"
        Image.new("RGB", (16, 16), (255, 255, 0)).save(path)
        library.index(path.parent, exclude=["reranker", "index"])
        hit = library.query("green", k=1)[0]
        assert hit.reranked and hit.explain().probability == pytest.approx(hit.probability, abs=1e-6)
        library.add([mmsearch.Addition("text", text="a red thing")])
        hit = library.query(image=path, k=1, kind="text")[0]
        assert hit.reranked and hit.explain().probability == pytest.approx(hit.probability, abs=1e-6)


def test_a_damaged_bank_is_said(tmp_path: Path) -> None:
    folder = with_bank(tmp_path / "reranker")
    (folder / "bank.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot read the bank"):
        _ = FusionReranker(folder).bank
    save_file({"text": np.zeros((1, 3), np.float16)}, folder / "bank.safetensors")
    with pytest.raises(ModelError, match="image"):
        _ = FusionReranker(folder).bank
