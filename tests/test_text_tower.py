"""Exported text towers: what NumPy says of a text against what torch says, and tokens against those of open_clip."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trainable_models import (
    OPEN_CLIP,
    OpenClipModel,
    from_nothing,
    half_folders,
    small,
    stir,
    tokenizer,
    whole_folder,
)

from indexer.encoders import Encoder, PlacedEncoder, has_patches
from indexer.encoders.huggingface import HuggingFaceEncoder
from indexer.encoders.load import load_encoder
from indexer.encoders.precision import BFLOAT16, Verdict
from indexer.errors import ModelError
from indexer.text_tower.encoder import BESIDE_TORCH, ExportedEncoder
from indexer.text_tower.folder import DESCRIPTION, WEIGHTS, Tower, describe, export, read, verify, wanted
from indexer.text_tower.mapped import map_tensors
from indexer.text_tower.numpy_tower import NumpyTower, Plan, quick_gelu, relu, tanh_gelu
from indexer.text_tower.words import BytePairs, is_plain

TEXTS = ["a dog", "the red car and the sea", "", "Sea! A dog, a_dog; café", "dog " * 100]
REMEMBERED = ["the sea", "a red car"]


def hugging_face_inside(folder: Path, pooler: str, kind: str | None) -> None:
    """An open_clip model whose text tower is a RoBERTa."""
    from transformers import RobertaConfig

    small(RobertaConfig, max_position_embeddings=20, pad_token_id=1).save_pretrained(folder / "roberta")
    tokenizer().save_pretrained(folder)
    text = {"hf_model_name": str(folder / "roberta"), "hf_tokenizer_name": "local", "hf_pooler_type": pooler}
    config = OPEN_CLIP["clip"][0] | {
        "embed_dim": 32,
        "text_cfg": text | {"hf_proj_type": kind, "context_length": 10},
    }
    (folder / "small.json").write_text(json.dumps(config))
    model = OpenClipModel(str(folder / "small.json"))
    stir(model._whole[0])
    model.save(folder / "saved")


def make(folder: Path, name: str) -> Encoder:
    """A small random model: ``openclip-…`` in open_clip's format, ``hf-…`` in that of transformers."""
    folder.mkdir(exist_ok=True)
    family, _, kind = name.partition("-")
    if family == "openclip":
        if kind.endswith("pooler"):
            hugging_face_inside(folder, kind, {"mean_pooler": "mlp", "cls_pooler": "linear"}.get(kind))
        else:
            from_nothing(folder, kind).save(folder / "saved")
        return load_encoder(str(folder / "saved"), "cpu")
    if kind in ("bert", "roberta"):
        from mmsearch.training.models.load import load_trainable

        load_trainable(half_folders(folder, "vit", kind)).save(folder / "saved")
        return load_encoder(str(folder / "saved"), "cpu")
    return load_encoder(str(whole_folder(folder / "m", kind)), "cpu")


NAMES = [
    "openclip-clip",
    "openclip-siglip",
    "openclip-resnet",  # with a tokenizer of transformers, pooled at its end token
    "openclip-mean_pooler",
    "openclip-cls_pooler",
    "openclip-cls_last_hidden_state_pooler",
    "hf-clip",
    "hf-clip-legacy",
    "hf-siglip",
    "hf-align",
    "hf-bert",
    "hf-roberta",
]


@pytest.fixture(scope="module", params=NAMES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Path, Tower]:
    encoder = make(tmp_path_factory.mktemp("model"), request.param)
    folder = tmp_path_factory.mktemp("index") / "text"
    assert export(encoder, folder, REMEMBERED) is None
    tower = read(folder, encoder.fingerprint)
    assert isinstance(tower, Tower), tower
    return encoder, folder, tower


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.sum(a.astype(np.float64) * b, axis=-1) / lengths


class TestTowers:
    def test_vectors_are_those_of_torch(self, exported: tuple[Encoder, Path, Tower]):
        encoder, _, tower = exported
        expected, found = encoder.encode_texts(TEXTS), tower.rows(TEXTS)
        assert found.dtype == np.float32 and found.shape == expected.shape
        assert cosines(found, expected).min() >= 1 - 1e-6
        assert found == pytest.approx(expected, abs=1e-5)
        assert np.abs(expected[0] - expected[1]).max() > 1e-3  # the texts do differ: the test could fail

    def test_tokens_are_counted_as_before(self, exported: tuple[Encoder, Path, Tower]):
        encoder, _, tower = exported
        assert [tower.words.count(text) for text in TEXTS] == [encoder.count_tokens(text) for text in TEXTS]
        assert max(len(tower.words.ids(text)) for text in TEXTS) == encoder.max_tokens

    def test_token_states_are_those_of_torch(self, exported: tuple[Encoder, Path, Tower]):
        encoder, _, tower = exported
        if not has_patches(encoder):
            return
        rows, states = tower.rows_and_states(TEXTS)
        assert rows == pytest.approx(tower.rows(TEXTS), abs=1e-6)
        for found, expected in zip(states, encoder.encode_text_states(TEXTS)[1], strict=True):
            assert found == pytest.approx(expected, abs=1e-4)

    def test_pictures_of_transformers_models_may_be_computed_in_bfloat16(self, exported: tuple[Encoder, Path, Tower]):
        encoder = exported[0]
        if not isinstance(encoder, HuggingFaceEncoder):
            return
        side = encoder.image_size
        batch = np.random.default_rng(0).normal(size=(12, 3, side, side)).astype(np.float32)
        exact, verdict = encoder.encode_prepared(batch), encoder.precision.verdict
        encoder.precision._make(BFLOAT16)
        encoder.precision.verdict = Verdict(BFLOAT16, "the test wants it so")
        try:
            found = encoder.encode_prepared(batch)
        finally:
            encoder.precision.verdict = verdict
        assert not np.array_equal(found, exact) and cosines(found, exact).min() > 0.999
        assert np.array_equal(encoder.encode_prepared(batch), exact)

    def test_the_encoder_is_what_it_was(self, exported: tuple[Encoder, Path, Tower]):
        encoder, _, tower = exported
        again = ExportedEncoder(encoder.name, encoder.fingerprint, tower, lambda: pytest.fail("torch was asked"))
        for name in ("name", "fingerprint", "dim", "image_size", "max_tokens", "calibration"):
            assert getattr(again, name) == getattr(encoder, name)
        assert isinstance(again, Encoder)
        assert isinstance(again, PlacedEncoder) == isinstance(encoder, PlacedEncoder)
        if has_patches(encoder):
            assert has_patches(again) and (again.patches, again.state_size) == (encoder.patches, encoder.state_size)
        assert again.encode_texts([]).shape == (0, encoder.dim)
        asked = [REMEMBERED[1], "a dog", REMEMBERED[0]]
        assert again.encode_texts(asked) == pytest.approx(encoder.encode_texts(asked), abs=1e-5)

    def test_what_is_exported_is_not_exported_again(self, exported: tuple[Encoder, Path, Tower]):
        encoder, folder, _ = exported
        assert not wanted(folder, encoder.fingerprint)
        assert wanted(folder, "0" * 32) and wanted(folder / "elsewhere", encoder.fingerprint)
        assert verify(folder) is None


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Path]:
    encoder = make(tmp_path_factory.mktemp("model"), "hf-bert")
    folder = tmp_path_factory.mktemp("index") / "text"
    assert export(encoder, folder) is None
    return encoder, folder


@pytest.fixture
def copied(sound: tuple[Encoder, Path], tmp_path: Path) -> tuple[Encoder, Path]:
    return sound[0], Path(shutil.copytree(sound[1], tmp_path / "text"))


class TestFolder:
    def test_what_numpy_cannot_run_is_said_and_not_tried_again(self, tmp_path: Path):
        for encoder, why in (
            (make(tmp_path / "m", "openclip-coca"), "the text tower of a CoCa"),
            (ColourEncoder(), "does not give its text tower away"),
        ):
            reason = export(encoder, tmp_path / "text")
            assert reason is not None and why in reason
            assert read(tmp_path / "text", encoder.fingerprint) == reason
            assert not wanted(tmp_path / "text", encoder.fingerprint)
            assert verify(tmp_path / "text") is None
            assert [path.name for path in (tmp_path / "text").iterdir()] == [DESCRIPTION]

    def test_a_tower_that_says_something_else_is_not_exported(self, sound: tuple[Encoder, Path], tmp_path: Path):
        class Liar:
            def __getattr__(self, name: str) -> object:
                return getattr(sound[0], name)

            def encode_texts(self, texts: list[str]) -> np.ndarray:
                rows = np.roll(sound[0].encode_texts(texts), 1, axis=1)
                return rows

        reason = export(Liar(), tmp_path / "text")  # type: ignore[arg-type]
        assert reason is not None and "the cosine to its vectors falls to" in reason

    def test_damage_is_seen(self, copied: tuple[Encoder, Path]):
        encoder, folder = copied
        weights = folder / WEIGHTS
        content = weights.read_bytes()
        weights.write_bytes(content[:-1])
        assert "not as long as it was" in str(read(folder, encoder.fingerprint))
        assert wanted(folder, encoder.fingerprint)
        weights.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])  # as long as before
        assert isinstance(read(folder, encoder.fingerprint), Tower)
        assert "damaged" in str(verify(folder))
        assert [*folder.iterdir()] == [] and verify(folder) is not None
        assert "was not exported" in str(read(folder, encoder.fingerprint))
        assert export(encoder, folder) is None and verify(folder) is None

    def test_a_description_that_was_changed_counts_for_nothing(self, copied: tuple[Encoder, Path]):
        encoder, folder = copied
        path = folder / DESCRIPTION
        path.write_text(path.read_text().replace('"heads": ', '"heads": 1'))
        assert describe(folder) is None and wanted(folder, encoder.fingerprint)
        path.write_text("[]")
        assert "was not exported" in str(read(folder, encoder.fingerprint))

    def test_many_texts_go_to_the_model_itself(self, copied: tuple[Encoder, Path], monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("indexer.text_tower.encoder.ALONE", 8)
        encoder, folder = copied
        tower = read(folder, encoder.fingerprint)
        assert isinstance(tower, Tower)
        asked: list[int] = []

        class Origin:
            def encode_texts(self, texts: list[str]) -> np.ndarray:
                asked.append(len(texts))
                return encoder.encode_texts(texts)

        again = ExportedEncoder(encoder.name, encoder.fingerprint, tower, lambda: Origin())  # type: ignore[arg-type, return-value]
        texts = [f"a dog {n}" for n in range(9)]
        for count in (8, 9, BESIDE_TORCH, BESIDE_TORCH + 1):
            found = again.encode_texts(texts[:count])
            assert found == pytest.approx(encoder.encode_texts(texts[:count]), abs=1e-5)
        assert asked == [9, BESIDE_TORCH + 1]

    def test_weights_are_mapped_and_not_read(self, tmp_path: Path):
        from safetensors.numpy import save_file

        tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.uint16)}
        save_file(tensors, tmp_path / "t.safetensors", metadata={"x": "y"})
        found = map_tensors(tmp_path / "t.safetensors")
        assert {name: one.tolist() for name, one in found.items()} == {"a": [[0, 1, 2], [3, 4, 5]], "b": [1, 2]}
        assert not found["a"].flags.owndata and not found["a"].flags.writeable
        content = (tmp_path / "t.safetensors").read_bytes()
        for damaged in (b"", content[:20], b"\xff" * 8 + content[8:], content[:-4], content.replace(b"F32", b"F99")):
            (tmp_path / "t.safetensors").write_bytes(damaged)
            with pytest.raises(ModelError, match=r"t\.safetensors"):
                map_tensors(tmp_path / "t.safetensors")


class TestArithmetic:
    def test_activations_by_hand(self):
        """1 · sigmoid(1.702) = 0.8458; the tanh form at 1: 0.5 · (1 + tanh(0.79788 · 1.044715)) = 0.8412."""
        x = np.array([-1.0, 0.0, 1.0], np.float32)
        assert quick_gelu(x) == pytest.approx([-0.1542, 0, 0.8458], abs=1e-4)
        assert tanh_gelu(x) == pytest.approx([-0.1588, 0, 0.8412], abs=1e-4)
        assert relu(x).tolist() == [0, 0, 1]

    def test_a_tower_without_layers_by_hand(self):
        """Tokens (1, 0) and (0, 1), no positions: the final norm makes (1, -1) of the first, which the head adds up
        with weights 2 and 3 to -1; of the second (-1, 1), and 1. Up to four, padding is the first, and read."""
        plan = Plan(1, 0, 4, True, False, True, 0, "gelu", 0.0, "mean", 0, ("linear",))
        weights = {
            "tokens": np.eye(2, dtype=np.float32),
            "positions": np.zeros((4, 2), np.float32),
            "final_norm.weight": np.ones(2, np.float32),
            "final_norm.bias": np.zeros(2, np.float32),
            "head.0": np.array([[2.0], [3.0]], np.float32),
        }
        tower = NumpyTower(plan, weights)
        assert [tower.features_and_states([ids])[0].tolist() for ids in ([0], [0, 1], [])] == [[[-1]], [[-0.5]], [[-1]]]
        features, states = tower.features_and_states([[0], [0, 1], [1, 1], []])
        assert features.tolist() == [[-1], [-0.5], [0], [-1]] and [len(one) for one in states] == [1, 2, 2, 1]
        with pytest.raises(ValueError, match="positions"):
            NumpyTower(plan, weights | {"positions": np.zeros((3, 2), np.float32)})
        with pytest.raises(ValueError, match="no such step: swish"):
            Plan(1, 0, 4, True, False, True, 0, "swish", 0.0, "mean", 0, ("linear",))


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[BytePairs, object]]:
    """Our tokenizer and open_clip's for each way of cleaning."""
    from open_clip.tokenizer import SimpleTokenizer

    from indexer.text_tower.from_openclip import _tables

    made: dict[str, tuple[BytePairs, object]] = {}
    for clean in ("lower", "whitespace", "canonicalize"):
        theirs = SimpleTokenizer(clean=clean, context_length=16)
        tables = _tables(theirs)
        ours = BytePairs(*(tables[f"words.{n}"] for n in ("pairs", "ranks", "letters")), clean=clean, limit=16)
        made[clean] = ours, theirs
    return made


ODD = [
    "<end_of_text>",
    "<END_OF_TEXT>",
    "&amp;",
    "&eacute;",
    "'S",
    "don't",
    "\u212a",
    "ſ",
    "_",
    "\x1b[31m",
    "\x85",
    "１２",
    "é",
]
WORDS = st.text(max_size=40) | st.lists(st.sampled_from([*ODD, "a", "unbelievable", "Dogs", "1,234", "  "])).map(
    " ".join
)


class TestBytePairs:
    @settings(max_examples=120, deadline=None)
    @given(text=WORDS | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80))
    def test_tokens_are_those_of_open_clip(self, pairs: dict[str, tuple[BytePairs, object]], text: str):
        for ours, theirs in pairs.values():
            expected = theirs.encode(text)  # type: ignore[attr-defined]
            assert ours._all(text)[1:-1] == expected
            padded = theirs([text])[0].tolist()  # type: ignore[operator]
            ids = ours.ids(text)
            assert ids == padded[: len(ids)] and len(ids) == min(16, len(expected) + 2) == min(16, ours.count(text))

    @settings(max_examples=300, deadline=None)
    @given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126)))
    def test_there_is_nothing_to_repair_in_plain_text(self, text: str):
        """That is why a plain question need not import ftfy."""
        import html

        import ftfy

        if is_plain(text):
            assert html.unescape(html.unescape(ftfy.fix_text(text))) == text

    def test_a_plain_question_imports_nothing(self, pairs: dict[str, tuple[BytePairs, object]], tmp_path: Path):
        ours = pairs["lower"][0]
        np.savez(tmp_path / "t.npz", p=ours._pairs, r=ours._ranks, l=np.array(ours._letters, np.uint8))
        code = f"""
import sys, numpy as np
from indexer.text_tower.words import BytePairs
t = np.load({str(tmp_path / "t.npz")!r})
print(BytePairs(t["p"], t["r"], t["l"], clean="lower", limit=77).ids("A dog's  toy, 12"))
print(sorted({{"torch", "open_clip", "ftfy", "regex", "transformers", "tokenizers"}} & set(sys.modules)))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        expected = [49406, *pairs["lower"][1].encode("A dog's toy, 12"), 49407]  # type: ignore[attr-defined]
        assert done.stdout.splitlines() == [str(expected), "[]"]
