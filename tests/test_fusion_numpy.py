"""The joint encoder in NumPy: beside onnxruntime and torch at odd sizes, the one that ships, and damaged weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLES
from PIL import Image
from safetensors.numpy import load_file, save_file

from indexer.encoders.mini import MiniEncoder
from indexer.errors import ModelError
from indexer.tokens import TokenFormat
from mmsearch.rerank import PictureSide, TextSide, export
from mmsearch.rerank.fusion import Fusion, FusionShape
from mmsearch.rerank.fusion_numpy import NumpyFusion
from mmsearch.rerank.fusion_onnx import OUTPUTS, WEIGHTS, FusionReranker, open_session
from mmsearch.rerank.load import PACKAGED

MINI = PACKAGED / "mini"
Tensors = dict[str, np.ndarray]


def random_fusion(**sizes: int) -> Fusion:
    """With weights large enough to matter: those it begins with say nearly the same of all pairs."""
    torch.manual_seed(sum(sizes.values()))
    made = Fusion(FusionShape(grid=9, patch_size=7, **sizes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


def in_numpy(fusion: Fusion) -> NumpyFusion:
    weights = {name: tensor.detach().numpy() for name, tensor in fusion.state_dict().items()}
    return NumpyFusion(weights, TokenFormat("t", "f", fusion.shape.side**2, fusion.shape.width))


def random_pairs(shape: FusionShape, texts: int, words: int, pictures: int, pairs: int) -> Tensors:
    """Texts of 1 to ``words`` words, and pairs in any order, some of them twice."""
    rng = np.random.default_rng(texts)
    lengths = rng.integers(1, words + 1, texts)
    return {
        "words": rng.standard_normal((texts, words, shape.state_size)).astype(np.float32),
        "mask": (np.arange(words) < lengths[:, None]).astype(np.float32),
        "tokens": rng.standard_normal((pictures, shape.side**2, shape.width)).astype(np.float32),
        "text": rng.integers(0, texts, pairs),
        "picture": rng.integers(0, pictures, pairs),
    }


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        {"state_size": 5, "side": 3, "width": 7, "size": 12, "heads": 3, "products": 11},
        {"state_size": 13, "side": 1, "width": 2, "size": 7, "heads": 7, "products": 1},
        {"state_size": 1, "side": 9, "width": 31, "size": 34, "heads": 2, "products": 65},
    ],
)
def test_onnxruntime_and_torch_say_the_same(sizes: dict[str, int], layers: int, tmp_path: Path) -> None:
    made = random_fusion(layers=layers, **sizes)
    export._write_onnx(tmp_path / "twin.onnx", made)
    session, network = open_session(tmp_path / "twin.onnx"), in_numpy(made)
    for texts, words, pictures, pairs in ((1, 1, 1, 1), (1, 6, 5, 9), (7, 4, 1, 3), (5, 11, 3, 40)):
        given = random_pairs(made.shape, texts, words, pictures, pairs)
        with torch.no_grad():
            by_torch = made.pairs(*(torch.from_numpy(given[name]) for name in export.INPUTS))
        found = network.run(OUTPUTS, given)
        for one, other, third in zip(found, session.run(list(OUTPUTS), given), by_torch, strict=True):
            assert one.dtype == np.float32 and one.shape == other.shape
            for twin in (other, third.numpy()):
                assert np.allclose(one, twin, rtol=1e-5, atol=5e-5)
        (weights,) = network.run(["weights"], given)
        assert (weights == found[2]).all() and (weights[given["mask"][given["text"]] == 0] == 0).all()


def test_a_text_of_padding_alone_gives_no_nan() -> None:
    made = random_fusion(state_size=5, side=3, width=7, size=12, heads=3, products=11)
    given = random_pairs(made.shape, 2, 3, 2, 4) | {"mask": np.zeros((2, 3), np.float32)}
    assert all(np.isfinite(one).all() for one in in_numpy(made).run(OUTPUTS, given))


def test_threads_do_not_disturb_each_other() -> None:
    made = random_fusion(state_size=5, side=3, width=7, size=12, heads=3, products=11)
    network = in_numpy(made)
    given = [random_pairs(made.shape, texts, 6, 3, 20) for texts in range(1, 9)]
    expected = [network.run(["logits"], one)[0] for one in given]
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda n: network.run(["logits"], given[n % 8])[0], range(80)):
            assert any(np.array_equal(found, one) for one in expected)


# -- the one that ships ------------------------------------------------------------------------------------------------


def shipped() -> Fusion:
    """Its weights in torch."""
    made = Fusion(FusionShape(grid=9, patch_size=352, state_size=384)).eval()
    made.load_state_dict({name: torch.from_numpy(one) for name, one in load_file(MINI / WEIGHTS).items()})
    return made


def test_what_ships_says_what_its_graph_said() -> None:
    """The logits are those of the ``fusion.onnx`` in which these weights shipped before, by onnxruntime."""
    waves = np.sin(np.arange(64 * 384, dtype=np.float64) ** 1.5)
    texts = [TextSide("", waves[n * 1536 :][: n * 384].reshape(n, 384).astype(np.float32)) for n in (1, 4, 7)]
    pictures = [PictureSide(waves[n:][: 64 * 128].reshape(64, 128).astype(np.float32)) for n in (0, 999)]
    pairs = np.array([(text, picture) for text in range(3) for picture in range(2)])
    expected = [-6.338911, -7.379214, -6.458149, -8.005122, -9.915758, -7.497756]
    assert FusionReranker(MINI).score(texts, pictures, pairs) == pytest.approx(expected, abs=1e-4)


def test_photographs_and_words_in_both(tmp_path: Path) -> None:
    encoder, reranker = MiniEncoder("cpu"), FusionReranker(MINI)
    export._write_onnx(tmp_path / "twin.onnx", shipped())
    pixels = []
    for name in ("IMG_0013.jpg", "IMG_0043.jpg", "IMG_0009.jpg"):
        with Image.open(SAMPLES / "photos" / name) as photograph:
            pixels.append(encoder.prepare(photograph.convert("RGB")))
    tokens = reranker.compressor.compress(encoder.encode_prepared_patches(np.stack(pixels))[1])
    questions = ["a cat", "a colourful parrot on a branch", "a hot-air balloon in the sky"]
    texts = [TextSide("", states) for states in encoder.encode_text_states(questions)[1]]
    pairs = np.array([(text, picture) for text in range(3) for picture in range(3)])
    logits = reranker.score(texts, [PictureSide(one) for one in tokens], pairs).reshape(3, 3)
    assert logits.argmax(axis=1).tolist() == [0, 1, 2]
    reranker.network = open_session(tmp_path / "twin.onnx")
    twin = reranker.score(texts, [PictureSide(one) for one in tokens], pairs).reshape(3, 3)
    assert np.abs(logits - twin).max() < 1e-4


# -- damage ------------------------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[Tensors], None]:
    return lambda weights: weights.__delitem__(name)


def other(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], None]:
    return lambda weights: weights.update({name: np.ascontiguousarray(change(weights[name]))})


def with_heads(count: int) -> Callable[[Tensors], None]:
    return lambda weights: weights.update({"meeting.looks.0.sharpness": np.ones(count, np.float32)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (dict.clear, "KeyError"),
        (without("words.2.weight"), r"KeyError: 'words\.2\.weight'"),
        (without("meeting.compare.fine"), r"has too much: meeting\.compare\.fine"),
        (without("meeting.looks.0.key.bias"), r"meeting\.looks\.0\.key\.bias"),
        (lambda weights: weights.update(more=np.ones(1, np.float32)), "has too much: more"),
        (other("words.2.weight", np.ravel), "not enough values to unpack"),
        (other("words.2.weight", lambda one: one[:-4]), r"is .*192.*, not .*188"),
        (other("places", lambda one: one[:1]), r"places is \(1, 128\), not \(64, 128\)"),
        (other("tokens.1.bias", lambda one: one[:1]), r"tokens\.1\.bias is \(1,\), not \(192,\)"),
        (other("meeting.looks.0.value.weight", lambda one: one[:, 1:]), "value.weight is"),
        (with_heads(5), "192 numbers cannot be divided among 5 heads"),
        (with_heads(0), "among 0 heads"),
    ],
)
def test_weights_that_do_not_fit_are_refused(damage: Callable[[Tensors], None], message: str, tmp_path: Path) -> None:
    folder = shutil.copytree(MINI, tmp_path / "damaged")
    weights = load_file(MINI / WEIGHTS)
    damage(weights)
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ModelError, match=rf"cannot load the reranker .*fusion\.safetensors.*{message}"):
        score_once(FusionReranker(folder))


def test_a_file_that_is_cut_or_is_none_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(MINI, tmp_path / "damaged")
    whole = (MINI / WEIGHTS).read_bytes()
    header = json.dumps({"places": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    for content in (
        b"",
        whole[:4],
        whole[:100],
        whole[:-1],
        b"\xff" * 100,
        len(header).to_bytes(8, "little") + header + bytes(8),
    ):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(ModelError, match=r"cannot read the weights .*fusion\.safetensors"):
            score_once(FusionReranker(folder))


def test_numbers_that_are_none_give_no_logit(tmp_path: Path) -> None:
    folder = shutil.copytree(MINI, tmp_path / "damaged")
    for number in (np.nan, np.inf):
        save_file(load_file(MINI / WEIGHTS) | {"meeting.compare.fine": np.array(number, np.float32)}, folder / WEIGHTS)
        with pytest.raises(ModelError, match="mini-reranker gave unusable logits"):
            score_once(FusionReranker(folder))


def test_sides_of_another_model_are_named() -> None:
    with pytest.raises(ModelError, match="mini-reranker failed on 1 pairs"):
        score_once(FusionReranker(MINI), states=383)


def score_once(reranker: FusionReranker, states: int = 384) -> np.ndarray:
    text, picture = TextSide("", np.ones((2, states), np.float32)), PictureSide(np.ones((64, 128), np.float32))
    return reranker.score([text], [picture], np.zeros((1, 2), np.int64))
