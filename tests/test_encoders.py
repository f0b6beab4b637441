"""Encoders: values of the embedded model, its NumPy and torch halves against each other, and open_clip's folders."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.encoders import Encoder, PatchEncoder, PlacedEncoder, has_patches
from indexer.encoders.load import load_encoder
from indexer.encoders.mini import CONFIG, HEAD, IMAGE, NUMPY_TEXTS, PACKAGED, TEXT, MiniEncoder, weights_digest
from indexer.encoders.mini_text import CLASS_WEIGHT, NumpyBert, NumpyHead, erf, gelu, layer_norm, softmax
from indexer.encoders.openclip import undrawn
from indexer.encoders.precision import BFLOAT16, INT8, Verdict
from indexer.encoders.quantised import quantise, widen
from indexer.encoders.rows import unit_rows
from indexer.errors import ModelError, UsageError
from indexer.text_tower.mapped import map_tensors

pytestmark = pytest.mark.slow(reason="builds models of every kind")

SAMPLES = Path(__file__).parent.parent / "samples"

TEXTS = [
    "a dog runs on the beach",
    "",
    "Two men in orange vests repair a road; a third one, in a hard hat, watches!",
    "ein Hund läuft — 犬が走る 🐕",
    "word " * 300,
]


@pytest.fixture(scope="module")
def mini() -> MiniEncoder:
    return MiniEncoder("cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Five pictures that have nothing in common: noise, gradients and flat colours, of odd sizes."""
    rng = np.random.default_rng(3)
    made = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((31, 77), (300, 200))]
    ramp = np.linspace(0, 255, 400, dtype=np.uint8)
    made.append(Image.fromarray(np.stack([np.tile(ramp, (90, 1))] * 3, axis=2)))
    made += [Image.new("RGB", (64, 64), colour) for colour in ((200, 30, 30), (20, 20, 20))]
    return made


class TestArithmetic:
    def test_erf_is_the_error_function(self):
        points = np.linspace(-4, 4, 41)
        assert erf(points) == pytest.approx([math.erf(x) for x in points], abs=2e-7)

    def test_layer_norm_by_hand(self):
        """1 and 3 have mean 2 and deviation 1: they become -1 and 1, then times 2 plus 1."""
        assert layer_norm(np.array([[1.0, 3.0]]), np.array([2.0, 2.0]), np.array([1.0, 1.0]), 0.0).tolist() == [[-1, 3]]

    def test_softmax_of_large_numbers(self):
        assert softmax(np.array([1000.0, 1000.0 + math.log(3)])) == pytest.approx([0.25, 0.75])

    def test_quantising_moves_no_value_by_more_than_half_a_step(self):
        matrix = np.random.default_rng(0).normal(size=(7, 50)).astype(np.float32)
        matrix[3] = 0
        back = widen(quantise({"m": matrix, "v": matrix[0]}))
        step = np.abs(matrix).max(axis=1, keepdims=True) / 127
        assert (np.abs(back["m"] - matrix) <= step / 2 + 1e-7).all()
        assert back["m"].dtype == np.float32 and sorted(back) == ["m", "v"]
        assert back["v"].tolist() == matrix[0].tolist()

    def test_quantising_by_column_spares_small_columns(self):
        matrix = np.array([[100.0, 0.5], [-50.0, 0.25]], np.float32)
        back = widen(quantise({"m": matrix}, along=0))["m"]
        assert np.abs(back - matrix).max(axis=0).tolist() <= [100 / 254, 0.5 / 254]
        assert widen(quantise({"m": matrix}))["m"][0, 1] != pytest.approx(0.5, abs=0.1)  # by row, 0.5 is lost

    def test_quantised_tensors_survive_a_file_whatever_their_layout(self, tmp_path: Path):
        """safetensors writes an array's bytes in the order in which they lie, and reads them as rows."""
        from safetensors.numpy import load_file, save_file

        matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
        assert not matrix.flags.c_contiguous
        save_file(quantise({"m": matrix}), tmp_path / "m.safetensors")
        assert widen(load_file(tmp_path / "m.safetensors"))["m"] == pytest.approx(matrix, abs=0.02)

    def test_unit_rows(self):
        assert unit_rows(np.array([[3.0, 4.0]]), "text").tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]

    @pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
    def test_unusable_rows_are_refused_by_number(self, bad: float):
        with pytest.raises(ModelError, match=r"image 2 of 3"):
            unit_rows(np.array([[1.0, 0.0], [bad, 0.0], [0.0, 1.0]]), "image")


class TestMini:
    def test_is_an_encoder_and_says_what_it_is(self, mini: MiniEncoder):
        assert isinstance(mini, Encoder)
        assert (mini.name, mini.dim, mini.image_size, mini.max_tokens) == ("mini", 512, 260, 128)
        assert mini.calibration is not None
        assert sorted(mini.calibration) == ["image->image", "image->text", "text->image", "text->text"]
        for line in mini.calibration.values():
            assert sorted(line) == ["bias", "mean", "slope", "std"]
            assert line["slope"] > 0 and line["std"] > 0

    def test_fingerprint_is_the_digest_of_the_weights(self, mini: MiniEncoder):
        assert mini.fingerprint == weights_digest(PACKAGED)

    def test_package_is_small(self):
        assert sum(path.stat().st_size for path in PACKAGED.iterdir()) < 50_000_000

    def test_numpy_and_torch_agree(self, mini: MiniEncoder):
        ids = mini.token_ids(TEXTS)
        assert max(map(len, ids)) == 128
        by_numpy, by_torch = mini._encode_by_numpy(ids), mini._encode_by_torch(ids)
        assert (by_numpy * by_torch).sum(axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
        assert by_numpy == pytest.approx(by_torch, abs=1e-4)

    def test_the_first_text_is_read_as_the_next_ones(self, mini: MiniEncoder):
        """Its weights are widened a few rows at a time, those of the others are kept."""
        bert, [ids] = NumpyBert(map_tensors(PACKAGED / TEXT)), mini.token_ids(TEXTS[:1])
        (first, states), (second, others) = bert.pooled_and_states(ids), bert.pooled_and_states(ids)
        assert (first == second).all() and (states == others).all()
        assert states.shape == (len(ids), 384) and np.isfinite(states).all()
        head = NumpyHead(map_tensors(PACKAGED / HEAD), "text.")
        pooled = first[None, 4:].reshape(1, -1)
        assert (head(pooled, first[-1:]) == head(pooled, first[-1:])).all()

    @pytest.mark.parametrize("along", [0, 1, None])
    def test_a_head_in_plain_numpy(self, along: int | None):
        """Weights with a scale for each column, for each row, and in float32; more of them than are widened at once."""
        rng = np.random.default_rng(4)
        sizes = {"linear": (512, 1152), "up": (1024, 1152), "down": (512, 1024), "compact": (32, 896)}
        plain = {f"a.{name}.weight": rng.normal(size=size).astype(np.float32) / 30 for name, size in sizes.items()}
        plain |= {
            f"a.{name}.bias": rng.normal(size=sizes[name][0]).astype(np.float32) for name in ("linear", "up", "down")
        }
        packed = plain if along is None else quantise(plain, along=along)
        head, wide = NumpyHead(packed, "a."), widen(packed)
        x, words = rng.normal(size=(3, 1152)).astype(np.float32), rng.normal(size=(3, 384)).astype(np.float32)
        hidden = gelu(x @ wide["a.up.weight"].T + wide["a.up.bias"])
        made = x @ wide["a.linear.weight"].T + wide["a.linear.bias"]
        made += hidden @ wide["a.down.weight"].T + wide["a.down.bias"]
        both = np.concatenate([unit_rows(made, "text"), CLASS_WEIGHT**0.5 * unit_rows(words, "text")], axis=1)
        for _ in range(3):
            assert head(x, words) == pytest.approx(both @ wide["a.compact.weight"].T, abs=1e-5)

    def test_many_texts_give_the_vectors_that_few_give(self, mini: MiniEncoder):
        many = [f"{text} {number}" for number in range(NUMPY_TEXTS) for text in TEXTS[:2]]
        together = mini.encode_texts(many)
        assert together[[0, 41]] == pytest.approx(mini.encode_texts([many[0], many[41]]), abs=1e-4)

    def test_a_question_needs_no_torch(self):
        code = (
            "import sys; from indexer.encoders.load import load_encoder; e = load_encoder();"
            "e.encode_texts(['a dog']); from PIL import Image; e.prepare(Image.new('RGB', (9, 9)));"
            "print(sorted({'torch', 'timm', 'transformers', 'open_clip'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_prepare_squeezes_and_crops_nothing(self, mini: MiniEncoder):
        wide = Image.new("RGB", (800, 100), (255, 0, 0))
        wide.paste((0, 0, 255), (400, 0, 800, 100))
        prepared = mini.prepare(wide)
        assert prepared.shape == (3, 260, 260) and prepared.dtype == np.uint8 and prepared.flags.c_contiguous
        assert prepared[:, 130, 5].tolist() == [255, 0, 0]
        assert prepared[:, 130, 254].tolist() == [0, 0, 255]

    def test_a_vector_does_not_depend_on_its_batch(self, mini: MiniEncoder, pictures: list[Image.Image]):
        together = mini.encode_images(pictures)
        alone = np.concatenate([mini.encode_images([picture]) for picture in pictures])
        assert together == pytest.approx(alone, abs=1e-5)
        assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
        assert (together @ together.T)[0, 3] < 0.9  # the pictures do differ: the test could fail

        sorted_by_length = mini._encode_by_torch(mini.token_ids(TEXTS))
        one_by_one = np.concatenate([mini._encode_by_torch([ids]) for ids in mini.token_ids(TEXTS)])
        assert sorted_by_length == pytest.approx(one_by_one, abs=1e-5)

    def test_empty_batches(self, mini: MiniEncoder):
        for rows in (mini.encode_texts([]), mini.encode_images([]), mini.encode_prepared(np.zeros((0, 3, 260, 260)))):
            assert rows.shape == (0, 512) and rows.dtype == np.float32
        rows, patches = mini.encode_prepared_patches(np.zeros((0, 3, 260, 260), np.uint8))
        assert (rows.shape, patches.shape) == ((0, 512), (0, 81, 352))
        rows, states = mini.encode_text_states([])
        assert (rows.shape, states) == ((0, 512), [])

    def test_what_is_beyond_max_tokens_is_not_seen(self, mini: MiniEncoder):
        long = "a dog " * 63  # 126 tokens and the two special ones
        assert mini.count_tokens(long) == 128
        rows = mini.encode_texts([long + "cat", long + "horse", long.replace("dog", "cat")])
        assert rows[0] == pytest.approx(rows[1], abs=1e-6)
        assert rows[0] @ rows[2] < 0.9

    def test_tokens_are_counted_with_the_special_ones(self, mini: MiniEncoder):
        assert mini.count_tokens("a dog") == 4
        assert mini.count_tokens("a dog " * 200) == 402

    def test_texts_of_one_meaning_are_near(self, mini: MiniEncoder):
        dog, puppy, car = mini.encode_texts(["a dog in the grass", "a puppy on a lawn", "a red sports car"])
        assert dog @ puppy > dog @ car + 0.3

    def test_words_find_pictures(self, mini: MiniEncoder):
        dog, car = (mini.encode_images([Image.open(_sample(word)).convert("RGB")])[0] for word in ("dog", "car"))
        about_dog, about_car = mini.encode_texts(["a dog", "a car on the road"])
        assert about_dog @ dog > about_dog @ car + 0.05
        assert about_car @ car > about_car @ dog + 0.05

    def test_folded_tower_is_the_tower(self, pictures: list[Image.Image], mini: MiniEncoder):
        """Folding batch normalisation into the convolutions changes the work and not the answer."""
        import torch
        from safetensors.torch import load_file

        from indexer.encoders.mini_torch import ImageTower, load_image_tower

        folded = load_image_tower(mini._tensors(IMAGE))
        tensors = {name: tensor.float() for name, tensor in load_file(PACKAGED / IMAGE).items()}
        plain = ImageTower(tensors.pop("class_embeddings")).eval()
        missing, unexpected = plain.net.load_state_dict(tensors, strict=False)
        assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
        pixels = torch.from_numpy(np.stack([mini.prepare(picture) for picture in pictures]))
        with torch.inference_mode():
            expected, got = plain(pixels), folded(pixels)
        for a, b in zip(expected, got, strict=True):
            assert torch.allclose(a, b, atol=1e-3)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())

    def test_patches_are_the_map_before_the_last_convolution(self, pictures: list[Image.Image], mini: MiniEncoder):
        """Against timm's modules one after the other, before anything was folded; patch 9 i + j is row i, column j."""
        import timm
        import torch
        from safetensors.torch import load_file

        assert isinstance(mini, PatchEncoder) and mini.patches == (81, 352)
        net = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
        tensors = {name: tensor.float() for name, tensor in load_file(PACKAGED / IMAGE).items()}
        net.load_state_dict({name: t for name, t in tensors.items() if name != "class_embeddings"}, strict=False)
        prepared = np.stack([mini.prepare(picture) for picture in pictures])
        with torch.inference_mode():
            x = net.bn1(net.conv_stem((torch.from_numpy(prepared).float() - 127.5) / 127.5))
            for stage in net.blocks:
                for block in stage:
                    x = block(x)
        vectors, patches = mini.encode_prepared_patches(prepared)
        assert patches.dtype == np.float32 and patches.shape == (5, 81, 352)
        expected = x.numpy()  # (B, 352, 9, 9)
        for i, j in ((0, 0), (0, 8), (4, 2), (8, 8)):
            assert patches[:, 9 * i + j] == pytest.approx(expected[:, :, i, j], abs=2e-3)
        assert not np.allclose(expected[:, :, 4, 2], expected[:, :, 2, 4], atol=0.1)  # a transposed map would be seen
        assert vectors.tolist() == mini.encode_prepared(prepared).tolist()

    @pytest.mark.parametrize("form", ["compact", "two parts"])
    def test_onnxruntime_and_torch_agree_on_photographs(self, form: str, tmp_path: Path):
        from safetensors.numpy import load_file, save_file

        shutil.copytree(PACKAGED, tmp_path / "run")
        if form == "two parts":
            path = tmp_path / "run" / HEAD
            save_file({name: one for name, one in load_file(path).items() if "compact" not in name}, path)
        model = MiniEncoder("cpu", tmp_path / "run")
        photographs = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.rglob("*.jpg"))[:9]]
        prepared = np.stack([model.prepare(photograph) for photograph in photographs])
        rows, patches = model._onnx_pictures(prepared)
        wanted, wanted_patches = model._pictures_by_torch(prepared)
        assert rows.shape == wanted.shape == (9, 512 if form == "compact" else 896)
        assert (unit_rows(rows, "") * unit_rows(wanted, "")).sum(axis=1) == pytest.approx(np.ones(9), abs=1e-6)
        assert np.abs(patches - wanted_patches).max() <= 1e-3 * np.abs(wanted_patches).max()

    def test_pictures_go_with_the_weights_of_their_folder(self, tmp_path: Path, pictures: list[Image.Image]):
        """The graph is the package's, what it computes is the run's: here one with other batch normalisation."""
        from safetensors.numpy import load_file, save_file

        shutil.copytree(PACKAGED, tmp_path / "run")
        path = tmp_path / "run" / IMAGE
        tensors = load_file(path)
        tensors["bn1.running_mean"] = tensors["bn1.running_mean"] + 0.5
        save_file(tensors, path)
        model = MiniEncoder("cpu", tmp_path / "run")
        prepared = np.stack([model.prepare(picture) for picture in pictures])
        rows, patches = model._onnx_pictures(prepared)
        wanted, wanted_patches = model._pictures_by_torch(prepared)
        assert unit_rows(rows, "") == pytest.approx(unit_rows(wanted, ""), abs=1e-4)
        assert np.abs(patches - wanted_patches).max() <= 1e-3 * np.abs(wanted_patches).max()
        assert not np.allclose(unit_rows(rows, ""), MiniEncoder("cpu").encode_prepared(prepared), atol=1e-2)
        del tensors["conv_head.weight"]
        save_file(tensors, path)
        with pytest.raises(ModelError, match=IMAGE):
            MiniEncoder("cpu", tmp_path / "run").encode_images(pictures[:1])

    def test_the_packaged_graph_is_the_one_that_training_writes(self, tmp_path: Path):
        """Operators and names: the bytes are also those of the versions of torch and onnx that wrote it."""
        import onnx

        from indexer.encoders.mini_onnx import GRAPH
        from mmsearch.training.models.mini_graph import write_graph

        write_graph(tmp_path / "again.onnx")
        made, packaged = (onnx.load(path, load_external_data=False).graph for path in (tmp_path / "again.onnx", GRAPH))
        for graph in (made, packaged):
            assert not any(one.raw_data or one.float_data for one in graph.initializer)
        assert {one.name: list(one.dims) for one in made.initializer} == {
            one.name: list(one.dims) for one in packaged.initializer
        }
        wanted = [node.op_type for node in packaged.node if node.op_type != "Constant"]
        assert [node.op_type for node in made.node if node.op_type != "Constant"] == wanted
        assert GRAPH.stat().st_size < 120_000

    def test_indexing_pictures_and_texts_needs_no_torch(self, tmp_path: Path):
        """A fresh process indexes three pictures and forty texts, with the tokens of the packaged reranker."""
        folder = tmp_path / "things"
        folder.mkdir()
        for word in ("dog", "car", "cat"):
            shutil.copy(_sample(word), folder / f"{word}.jpg")
        for number in range(40):
            (folder / f"{number}.txt").write_text(f"text number {number}")
        code = (
            "import sys; from mmsearch.__main__ import main\n"
            f"sys.argv = ['mmsearch', 'index', {str(folder)!r}, '--index', {str(tmp_path / 'index')!r}, "
            "'--device', 'cpu']\n"
            "try: main()\n"
            "except SystemExit as exc: assert not exc.code\n"
            "print(sorted({'torch', 'torchvision', 'timm', 'transformers', 'open_clip'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", done.stdout
        assert "43 added" in done.stdout + done.stderr

    def test_token_states_by_numpy_and_by_torch_are_those_of_the_text_tower(self, mini: MiniEncoder):
        import torch

        ids = mini.token_ids(TEXTS)
        few, states = mini.encode_text_states(TEXTS)
        assert mini.state_size == 384
        assert few.tolist() == mini.encode_texts(TEXTS).tolist()
        more: list[np.ndarray] = []
        many = mini._encode_by_torch(ids * 7, more)  # 35 texts, of mixed lengths
        assert len(more) == 35
        assert many == pytest.approx(mini.encode_texts(TEXTS * 7), abs=1e-4)
        for number, text in enumerate(ids):
            with torch.inference_mode():
                alone = mini._text_tower.net(input_ids=torch.tensor([text])).last_hidden_state[0].numpy()
            for found in (states[number], more[number], more[30 + number]):
                assert found.dtype == np.float32 and found.shape == (len(text), 384)
                assert found == pytest.approx(alone, abs=1e-3)

    def test_the_characters_of_each_token_state(self, mini: MiniEncoder):
        text = "A dog's unbelievably  naïve, baobab"
        read, pieces = mini.read_text(text)
        assert isinstance(mini, PlacedEncoder) and read == text
        assert len(pieces) == len(mini.token_ids([text])[0]) == len(mini.encode_text_states([text])[1][0])
        assert (pieces[0], pieces[-1]) == (None, None)
        found = [read[slice(*piece)] for piece in pieces if piece]
        assert found[:4] == ["A", "dog", "'", "s"] and "".join(found) == text.replace(" ", "")
        assert len(found) > 7  # some of the words are of several pieces
        cut = mini.read_text("a dog " * 200)[1]
        assert len(cut) == 128 and cut[-2:] == [(374, 377), None]
        assert mini.read_text("")[1] == [None, None]
        assert mini.seen(800, 100) == (0, 0, 1, 1)

    def test_damaged_weights_are_named(self, tmp_path: Path, pictures: list[Image.Image]):
        folder = tmp_path / "run"
        shutil.copytree(PACKAGED, folder)
        for name, use in (
            (TEXT, lambda model: model.encode_texts(["a dog"])),
            (IMAGE, lambda model: model.encode_images(pictures[:1])),
        ):
            (folder / name).write_bytes((folder / name).read_bytes()[:5000])
            with pytest.raises(ModelError, match=name):
                use(MiniEncoder("cpu", folder))
        (folder / CONFIG).write_text("{")
        with pytest.raises(ModelError, match=CONFIG):
            MiniEncoder("cpu", folder)

    def test_a_nan_in_the_weights_reaches_no_index(self, tmp_path: Path):
        from safetensors.numpy import load_file, save_file

        folder = tmp_path / "run"
        shutil.copytree(PACKAGED, folder)
        head = load_file(folder / HEAD)
        head["text.down.bias"][0] = np.nan
        save_file(head, folder / HEAD)
        with pytest.raises(ModelError, match="text 1 of 1"):
            MiniEncoder("cpu", folder).encode_texts(["a dog"])


class TestLoad:
    def test_mini_by_name_and_by_folder(self, tmp_path: Path):
        shutil.copytree(PACKAGED, tmp_path / "run")
        named, found = load_encoder("mini"), load_encoder(str(tmp_path / "run"))
        assert found.name == str(tmp_path / "run")
        assert found.fingerprint == named.fingerprint
        assert found.encode_texts(["a dog"]) == pytest.approx(named.encode_texts(["a dog"]))

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            ("miny", "did you mean mini"),
            ("ViT-B-32", "ViT-B-32/openai"),
            ("ViT-B-32/laion2b", "ViT-B-32/laion2b_e16"),
            ("hf-hub:x", "hf-hub:owner/name"),
            ("hf:x", "hf:owner/name"),
            ("qqqqqqqqqqqqqqq", "open_clip.list_pretrained()"),
        ],
    )
    def test_unknown_names(self, model: str, said: str):
        with pytest.raises(UsageError) as caught:
            load_encoder(model)
        assert said in str(caught.value) and model in str(caught.value)

    def test_folder_without_a_model(self, tmp_path: Path):
        for config in (None, "{}", '{"model_type": "bert"}'):
            if config is not None:
                (tmp_path / CONFIG).write_text(config)
            with pytest.raises(UsageError, match="no model in folder"):
                load_encoder(str(tmp_path))

    @pytest.mark.parametrize(("device", "said"), [("cuda:99", "there is no device"), ("tpu", "no device is called")])
    def test_devices_that_are_not_here(self, device: str, said: str):
        with pytest.raises(UsageError, match=said):
            load_encoder("mini", device).encode_prepared(np.zeros((1, 3, 260, 260), np.uint8))

    def test_the_device_is_the_cpu_exactly_where_torch_would_pick_it(self):
        from indexer.encoders.device import cores, is_cpu, pick_device

        assert is_cpu("cpu") and is_cpu("cpu:0")
        assert is_cpu(None) == (pick_device(None).type == "cpu")
        with pytest.raises(UsageError, match="no device is called"):
            is_cpu("tpu")
        assert 1 <= cores() <= max(os.cpu_count() or 1, int(os.environ.get("OMP_NUM_THREADS") or 1))

    def test_cores_are_those_that_torch_takes(self, monkeypatch: pytest.MonkeyPatch):
        from indexer.encoders.device import cores

        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert cores() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        code = "import torch; print(torch.get_num_threads())"
        unasked = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unasked)
        assert cores() == int(done.stdout)

    @pytest.mark.parametrize("model", ["ViT-B-32/laion2b_s34b_b79k", "hf-hub:timm/ViT-B-16-SigLIP", "hf:openai/clip"])
    def test_no_network_is_one_line_that_names_mini(self, model: str, monkeypatch, tmp_path: Path):
        """The hub is a port on which nobody listens, and its cache is empty."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        began = time.monotonic()
        with pytest.raises(ModelError) as caught:
            load_encoder(model)
        assert time.monotonic() - began < 30
        message = str(caught.value)
        assert model in message and "--model mini" in message and "\n" not in message


CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
SIGLIP = {
    "embed_dim": 192,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 20,
        "hf_tokenizer_name": "local",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 64,
        "heads": 2,
        "layers": 1,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    },
}


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of either class, as open_clip's own checkpoint folder."""
    return _random_model(tmp_path_factory.mktemp(request.param), {"clip": CLIP, "siglip": SIGLIP}[request.param])


class TestOpenClip:
    @pytest.mark.parametrize("kind", [INT8, BFLOAT16])
    def test_fewer_bits_find_what_float32_finds(self, folder: Path, kind: str):
        """Vectors, patches, and the fingerprint that an index holds on to."""
        exact, reduced = load_encoder(str(folder), "cpu"), load_encoder(str(folder), "cpu")
        assert exact.fingerprint == reduced.fingerprint
        if kind not in reduced.precision.kinds:
            pytest.skip("this torch has no products of bytes")
        reduced.precision._learn(kind)
        reduced.precision._make(kind)
        reduced.precision.verdict = Verdict(kind, "the test wants it so")
        batch = exact.precision.prepared()
        theirs, ours = exact.encode_prepared(batch), reduced.encode_prepared(batch)
        assert ours.dtype == np.float32 and not np.array_equal(ours, theirs)
        assert np.linalg.norm(ours, axis=1) == pytest.approx(1, abs=1e-6)
        assert (ours * theirs).sum(axis=1).min() > 0.999
        rows, patches = reduced.encode_prepared_patches(batch)
        wanted = exact.encode_prepared_patches(batch)[1]
        assert (rows * theirs).sum(axis=1).min() > 0.999
        assert patches.dtype == np.float32 and patches.shape == wanted.shape
        lengths = np.linalg.norm(patches, axis=-1) * np.linalg.norm(wanted, axis=-1)
        assert ((patches * wanted).sum(axis=-1) / lengths).min() > 0.99

    def test_folder_gives_the_vectors_of_the_model(self, folder: Path, pictures: list[Image.Image]):
        import open_clip
        import torch

        encoder = load_encoder(str(folder), "cpu")
        assert isinstance(encoder, Encoder)
        assert encoder.calibration is None
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        model.eval()
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a dog", "a red car"])
        with torch.inference_mode():
            text = model.encode_text(tokens, normalize=True).numpy()
            image = model.encode_image(torch.stack([transform(p) for p in pictures]), normalize=True).numpy()
        assert encoder.encode_texts(["a dog", "a red car"]) == pytest.approx(text, abs=1e-5)
        assert encoder.encode_images(pictures) == pytest.approx(image, abs=1e-5)
        assert encoder.dim == text.shape[1] == image.shape[1]
        assert encoder.image_size == model.visual.image_size[0]

    def test_weights_are_not_drawn_before_they_are_read(self):
        import torch

        before = torch.get_rng_state()
        with undrawn():
            layers = torch.nn.Linear(3, 4), torch.nn.MultiheadAttention(4, 2), torch.nn.Embedding(3, 2)
            own = torch.nn.Parameter(torch.empty(3).normal_()), torch.nn.init.xavier_uniform_(torch.ones(2, 3))
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(one.any() for layer in layers for one in layer.parameters()) and not any(
            one.any() for one in own
        )
        assert torch.nn.Linear(3, 4).weight.any() and not torch.equal(torch.get_rng_state(), before)

    def test_tokens_and_their_limit(self, folder: Path):
        encoder = load_encoder(str(folder), "cpu")
        clip = folder.name.startswith("clip")
        assert encoder.max_tokens == (16 if clip else 12)
        assert encoder.count_tokens("a dog") == (4 if clip else 2)  # CLIP's tokenizer has a start and an end token

    def test_fingerprint_follows_the_weights(self, folder: Path, tmp_path: Path):
        same = load_encoder(str(folder), "cpu").fingerprint
        assert load_encoder(str(folder), "cpu").fingerprint == same
        config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        (tmp_path / "other").mkdir()
        assert load_encoder(str(_random_model(tmp_path / "other", config, seed=2)), "cpu").fingerprint != same

    def test_weights_that_are_missing_or_of_another_model(self, folder: Path, tmp_path: Path):
        (tmp_path / "m").mkdir()
        shutil.copy(folder / "open_clip_config.json", tmp_path / "m")
        with pytest.raises(ModelError, match="no weights"):
            load_encoder(str(tmp_path / "m"), "cpu")
        (tmp_path / "m" / "open_clip_model.safetensors").write_bytes(b"not a tensor in sight")
        with pytest.raises(ModelError, match="cannot load model"):
            load_encoder(str(tmp_path / "m"), "cpu")

    def test_empty_batches(self, folder: Path):
        encoder = load_encoder(str(folder), "cpu")
        assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, encoder.dim)
        assert has_patches(encoder)
        rows, patches = encoder.encode_prepared_patches(np.zeros((0, 3, 224, 224), np.float32))
        assert rows.shape == (0, encoder.dim) and patches.shape == (0, *encoder.patches)
        rows, states = encoder.encode_text_states([])
        assert (rows.shape, states) == ((0, encoder.dim), [])

    def test_patches_are_those_before_pooling(self, folder: Path, pictures: list[Image.Image]):
        """open_clip's own tower is asked for its tokens; timm's for its features, of which none is a class token."""
        import open_clip
        import torch

        encoder = load_encoder(str(folder), "cpu")
        assert has_patches(encoder)
        visual = open_clip.create_model(f"local-dir:{folder}").eval().visual
        prepared = np.stack([encoder.prepare(picture) for picture in pictures])
        vectors, patches = encoder.encode_prepared_patches(prepared)
        with torch.inference_mode():
            if folder.name.startswith("clip"):
                visual.output_tokens = True
                expected = visual(torch.from_numpy(prepared))[1]
                assert encoder.patches == (4, 64)
            else:
                expected = visual.trunk.forward_features(torch.from_numpy(prepared))[
                    :, visual.trunk.num_prefix_tokens :
                ]
                assert encoder.patches == (196, 192)
        assert patches.dtype == np.float32 and patches.shape == (5, *encoder.patches)
        assert patches == pytest.approx(expected.numpy(), abs=1e-5)
        assert vectors == pytest.approx(encoder.encode_prepared(prepared), abs=1e-6)

    def test_token_states_are_those_before_pooling_without_padding(self, folder: Path):
        import open_clip
        import torch

        encoder = load_encoder(str(folder), "cpu")
        assert has_patches(encoder)
        texts = ["a dog", "a red car", "", "dog " * 40]
        clip = folder.name.startswith("clip")
        model = open_clip.create_model(f"local-dir:{folder}").eval()
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
        with torch.inference_mode():
            if clip:
                x = model.token_embedding(tokens) + model.positional_embedding
                expected = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
            else:
                model.text.output_tokens = True
                expected = model.text(tokens)[1]
        vectors, states = encoder.encode_text_states(texts)
        assert vectors == pytest.approx(encoder.encode_texts(texts), abs=1e-6)
        assert encoder.state_size == (32 if clip else 64)
        # CLIP's tokenizer adds a start and an end; the other, adding nothing, finds no token in an empty text.
        assert [len(state) for state in states] == ([4, 5, 2, 16] if clip else [2, 3, 1, 12])
        for found, plain in zip(states, expected.numpy(), strict=True):
            assert found.dtype == np.float32
            assert found == pytest.approx(plain[: len(found)], abs=1e-5)

    def test_the_characters_of_each_token_state(self, folder: Path):
        encoder = load_encoder(str(folder), "cpu")
        assert isinstance(encoder, PlacedEncoder)
        texts = ["a dog", "  A  Red  car! ", "", "dog " * 40, "unbelievable 🐶 naïve"]
        for text, states in zip(texts, encoder.encode_text_states(texts)[1], strict=True):
            assert len(encoder.read_text(text)[1]) == len(states), text
        if folder.name.startswith("clip"):
            read, pieces = encoder.read_text(texts[1])
            assert [piece and read[slice(*piece)] for piece in pieces] == [None, "a", "red", "car", "!", None]
            read, pieces = encoder.read_text("unbelievable 🐶")
            assert "".join(read[slice(*piece)] for piece in pieces[1:4] if piece).startswith("unbelievable")
            assert pieces[-2] is not None and read[slice(*pieces[-2])] == "🐶"
            assert encoder.read_text("")[1] == [None, None]
            assert len(encoder.read_text("dog " * 40)[1]) == 16
        else:
            read, pieces = encoder.read_text("A dog, a car")
            assert [piece and read[slice(*piece)] for piece in pieces] == ["a", "dog", "a", "car"]  # no punctuation
            assert encoder.read_text("")[1] == [None]

    @pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
    @pytest.mark.parametrize("size", [(960, 480), (480, 960)])
    def test_what_is_seen_of_a_picture_is_where_its_pixels_are(self, mode: str, size: tuple[int, int], tmp_path: Path):
        """A picture that grows redder to the right and greener downwards says of each pixel where it was."""
        folder = _random_model(tmp_path, CLIP)
        settings = {"resize_mode": mode, "mean": [0, 0, 0], "std": [1, 1, 1]}
        config = {"model_cfg": CLIP, "preprocess_cfg": settings}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        encoder = load_encoder(str(folder), "cpu")
        width, height = size
        pixels = np.zeros((height, width, 3))
        pixels[..., 0], pixels[..., 1] = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
        red, green, _ = encoder.prepare(Image.fromarray((255 * pixels).round().astype(np.uint8)))
        assert isinstance(encoder, PlacedEncoder)
        left, top, right, bottom = encoder.seen(width, height)
        assert (left, top) == pytest.approx((1 - right, 1 - bottom))
        places = (np.arange(len(red)) + 0.5) / len(red)
        across, down = left + (right - left) * places, top + (bottom - top) * places
        inside = ((across > 0.03) & (across < 0.97)), ((down > 0.03) & (down < 0.97))
        middle = len(red) // 2
        assert red[middle][inside[0]] == pytest.approx(across[inside[0]], abs=0.03)
        assert green[:, middle][inside[1]] == pytest.approx(down[inside[1]], abs=0.03)
        outside = (across < -0.05) | (across > 1.05)
        assert (red[middle][outside] == 0).all() and outside.any() == (mode == "longest" and width < height)

    @pytest.mark.parametrize(
        ("vision", "patches"),
        [
            ({"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "avg", "timm_proj": "linear"}, (256, 192)),
            ({"timm_model_name": "resnet18", "timm_pool": "avg", "timm_proj": "linear"}, None),
            ({"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}, None),
            (CLIP["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2}, None),
        ],
        ids=["eva", "timm-convolutional", "convolutional", "attention-pool"],
    )
    def test_towers_with_and_without_patches(
        self, vision: dict, patches: tuple[int, int] | None, tmp_path: Path, pictures: list[Image.Image]
    ):
        config = CLIP | {"vision_cfg": {"image_size": 224} | vision}
        encoder = load_encoder(str(_random_model(tmp_path, config)), "cpu")
        assert has_patches(encoder) == (patches is not None)
        if has_patches(encoder):
            assert encoder.patches == patches
            prepared = encoder.prepare(pictures[0])[None]
            vectors, found = encoder.encode_prepared_patches(prepared)
            assert found.shape == (1, *encoder.patches)
            assert vectors == pytest.approx(encoder.encode_prepared(prepared), abs=1e-6)
        assert encoder.encode_images(pictures[:1]).shape == (1, 24)


_PHOTOGRAPHS = {"dog": "IMG_0045.jpg", "car": "IMG_0046.jpg", "cat": "IMG_0013.jpg"}


def _sample(word: str) -> Path:
    return SAMPLES / "photos" / _PHOTOGRAPHS[word]


def _random_model(folder: Path, config: dict, seed: int = 1) -> Path:
    import torch
    from open_clip import CLIP as Clip
    from open_clip import CustomTextCLIP
    from safetensors.torch import save_model
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "a", "dog", "red", "car"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"})
    )
    torch.manual_seed(seed)
    parts = {name: value for name, value in config.items() if name != "custom_text"}
    model = (CustomTextCLIP if config.get("custom_text") else Clip)(**json.loads(json.dumps(parts)))
    save_model(model, str(folder / "open_clip_model.safetensors"))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder
