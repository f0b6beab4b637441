"""Training: from captions to a model that answers, whole or in parts, in one go or stopped, in one process or two."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from indexer.encoders.load import load_encoder
from indexer.encoders.mini import HEAD, IMAGE, NUMPY_TEXTS, PACKAGED, TEXT, MiniEncoder, weights_digest
from indexer.encoders.mini_int8 import FILE as INT8_IMAGE
from indexer.errors import UsageError
from mmsearch.datasets import open_dataset
from mmsearch.training import combine, dual, finish
from mmsearch.training.calibrate import calibrate, fit_logistic, harmless
from mmsearch.training.checkpoint import load_state
from mmsearch.training.command import app
from mmsearch.training.dual import train_dual
from mmsearch.training.material import fold_of, readable
from mmsearch.training.models.load import load_trainable
from mmsearch.training.models.mini import MiniModel
from mmsearch.training.retrieval import cross_entropy, fitting_scale, recalls
from mmsearch.training.run import read_settings
from mmsearch.training.settings import Augmentation, CombineSettings, DualSettings
from mmsearch.training.sources import kept

pytestmark = pytest.mark.slow(reason="trains models")

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "yellow": (230, 220, 20)}


@pytest.fixture(scope="module", autouse=True)
def rounded() -> Iterator[list[tuple[Path, int]]]:
    """The folders whose towers were to be written in eight bits, and from how many pictures; each takes ten seconds:
    ``test_mini_int8`` writes one."""
    seen: list[tuple[Path, int]] = []

    def note(folder: Path, pictures: list[np.ndarray]) -> None:
        seen.append((folder, len(pictures)))
        shutil.copy(PACKAGED / INT8_IMAGE, folder)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finish, "write_int8", note)
        yield seen


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures to train on and four to judge by: one colour each, of different brightness, two captions each."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    captions, splits = ["image\tcaption"], {"train": [], "dev": [], "test": []}
    for shade in range(4):
        for colour, rgb in COLOURS.items():
            name = f"{colour}{shade}.png"
            Image.new("RGB", (40 + 9 * shade, 50), tuple(c - 5 * shade for c in rgb)).save(folder / "images" / name)
            captions += [f"{name}\ta {colour} wall", f'{name}\tit is "{colour}" all over']
            splits["dev" if shade == 3 else "train"].append(name)
    (folder / "captions.tsv").write_text("\n".join(captions) + "\n")
    for split, names in splits.items():
        if names:
            (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the frozen towers say of ``data``, for all tests that train heads alone."""
    return tmp_path_factory.mktemp("cache")


def settings(data: Path, **more: object) -> DualSettings:
    plain = {
        "train": "heads", "fresh_head": True, "epochs": 8, "batch": 4, "captions": 1, "learning_rate": 1e-3,
        "ema": 0.0, "views": 2, "seed": 5, "noise": 0.1,
    }  # fmt: skip
    return DualSettings(data=str(data), **(plain | more))  # type: ignore[arg-type]


def same(one: object, other: object) -> bool:
    """Whether two states are equal to the last bit, whatever the order of their names."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def events(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """The command as a user would type it."""
    out = tmp_path_factory.mktemp("run") / "mine"
    result = CliRunner().invoke(
        app,
        f"dual --data {data} --out {out} --train heads --fresh-head --epochs 8 --batch 4 --captions 1 "
        f"--learning-rate 1e-3 --ema 0 --views 2 --seed 5 --noise 0.1 --cache {cache} --device cpu".split(),
    )
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout
    return out, events(out)


def in_parts(data: Path) -> DualSettings:
    """What is trained in one go and in two: with an average of the weights, which has to go on as well."""
    return settings(data, epochs=4, ema=0.9, fresh_head=False)


@pytest.fixture(scope="module")
def whole(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_dual(tmp_path_factory.mktemp("whole") / "run", in_parts(data), cache=cache, device="cpu")


class TestRecall:
    def test_by_hand(self):
        """Caption 0 prefers its picture, captions 1 and 2 the other one; picture 1 has only the losing caption 2."""
        image = np.eye(2)
        text = np.array([[1.0, 0.0], [0.4, 0.6], [0.9, 0.1]])
        found = recalls(image, text, np.array([0, 0, 1]))
        assert found.text_to_image == pytest.approx((100 / 3, 100, 100))
        assert found.image_to_text == pytest.approx((50, 100, 100))

    def test_equals_the_plain_twin(self):
        rng = np.random.default_rng(0)
        image, text = rng.integers(0, 3, (13, 4)).astype(float), rng.integers(0, 3, (39, 4)).astype(float)
        owner = rng.permutation(np.repeat(np.arange(13), 3))
        found = recalls(image, text, owner)
        for cut, value in zip((1, 5, 10), found.text_to_image, strict=True):
            hits = 0
            for m, row in enumerate(text):
                others = [row @ image[n] for n in range(13) if n != owner[m]]
                hits += sum(other >= row @ image[owner[m]] for other in others) < cut
            assert value == pytest.approx(100 * hits / 39)
        for cut, value in zip((1, 5, 10), found.image_to_text, strict=True):
            hits = 0
            for n, row in enumerate(image):
                best = max(row @ text[m] for m in range(39) if owner[m] == n)
                hits += sum(row @ text[m] >= best for m in range(39) if owner[m] != n) < cut
            assert value == pytest.approx(100 * hits / 13)

    def test_a_model_that_says_the_same_of_everything_finds_nothing(self):
        found = recalls(np.ones((20, 3)), np.ones((20, 3)), np.arange(20))
        assert found.text_to_image == (0, 0, 0) and found.image_to_text == (0, 0, 0)


class TestSurprise:
    def test_by_hand(self):
        """Captions 0 and 1 are of picture 0, 2 is of 1; their cosines with 0 are 1, 0.6 and 0, with 1 0, 0.8 and 1.

        Captions: log(1 + exp(0 - 1)), log(1 + exp(0.8 - 0.6)), log(1 + exp(0 - 1)). Pictures: of 0 the mean of
        log(e + e^0.6 + 1) - 1 and - 0.6, of 1 log(1 + e^0.8 + e) - 1.
        """
        image, text = np.eye(2), np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        by_text = (2 * math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.2))) / 3
        of_0, of_1 = math.log(math.e + math.exp(0.6) + 1) - 0.8, math.log(1 + math.exp(0.8) + math.e) - 1
        found = cross_entropy(image, text, np.array([0, 0, 1]), 1.0)
        assert found == pytest.approx((by_text + (of_0 + of_1) / 2) / 2)
        assert cross_entropy(image, image, np.arange(2), 1.0) == pytest.approx(0.313262, abs=1e-6)

    def test_the_fitting_scale_is_that_of_least_surprise(self):
        """Right answers want to be sharp, wrong ones blunt; large scales do not overflow."""
        image, wrong = np.eye(3), np.roll(np.eye(3), 1, axis=0)
        assert fitting_scale(image, 0.3 * image, np.arange(3)) == 100
        assert fitting_scale(image, wrong, np.arange(3)) == 10
        assert cross_entropy(image, wrong, np.arange(3), 1e4) == pytest.approx(1e4)


class TestCalibration:
    def test_logistic_fit_by_hand(self):
        """At 0, one of four matches; at 2, three of four: log-odds -log 3 and log 3, so the slope is log 3."""
        (slope,), bias = fit_logistic(
            np.array([0.0, 0, 2, 2])[:, None], np.array([1.0, 0, 1, 0]), np.array([1.0, 3, 3, 1])
        )
        assert (slope, bias) == pytest.approx((math.log(3), -math.log(3)), abs=1e-3)

    def test_logistic_fit_of_what_a_line_separates_stays_finite(self):
        (slope,), bias = fit_logistic(
            np.array([0.0, 1.0, 4.0])[:, None], np.array([0.0, 0, 1]), np.array([500.0, 500, 1])
        )
        assert 1 < slope < 50
        assert 1 < -bias / slope < 4  # even odds lie between the last stranger and the match

    def test_logistic_fit_of_known_odds(self):
        rng = np.random.default_rng(1)
        value = rng.normal(size=200_000)
        label = (rng.random(200_000) < 1 / (1 + np.exp(-(2.5 * value - 4)))).astype(float)
        (slope,), bias = fit_logistic(value[:, None], label, np.ones_like(value))
        assert (slope, bias) == pytest.approx((2.5, -4), abs=0.1)

    def test_harmless_changes_keep_most_of_the_picture(self):
        image = Image.new("RGB", (100, 100), (120, 60, 30))
        rng = np.random.default_rng(0)
        for _ in range(20):
            same = harmless(image, rng)
            assert 0.68 < same.width * same.height / 10_000 <= 1
            assert np.abs(np.asarray(same, int).mean(axis=(0, 1)) - (120, 60, 30)).max() < 60

    def test_matches_score_higher_whatever_is_asked_and_found(self, run: tuple[Path, list[dict]], data: Path):
        lines = calibrate(MiniEncoder("cpu", run[0]), open_dataset(data).split("dev"), seed=5)
        assert sorted(lines) == ["image->image", "image->text", "text->image", "text->text"]
        assert lines["image->text"] == lines["text->image"]
        assert all(line["slope"] > 0 and line["bias"] < 0 for line in lines.values())
        assert lines == json.loads((run[0] / "calibration.json").read_text())


class TestDual:
    def test_the_run_learns_what_it_was_shown(self, run: tuple[Path, list[dict]], data: Path):
        out, log = run
        assert [event["epoch"] for event in log] == list(range(1, 9))
        assert log[-1]["loss"] < log[0]["loss"] / 2
        encoder = load_encoder(str(out), "cpu")
        images = encoder.encode_images([picture.open() for picture in open_dataset(data).split("dev").pictures])
        texts = encoder.encode_texts([f"a {colour} wall" for colour in COLOURS])
        assert (texts @ images.T).argmax(axis=1).tolist() == [0, 1, 2, 3]

    def test_the_run_says_what_it_was_made_with(self, run: tuple[Path, list[dict]], data: Path):
        out, _ = run
        assert read_settings(out / "config.toml", DualSettings) == settings(data)
        assert MiniEncoder("cpu", out).fingerprint == weights_digest(out) != MiniEncoder().fingerprint
        card = (out / "README.md").read_text()
        assert "| train | 12 | 24 |" in card and "| dev | 4 | 8 |" in card
        with Image.open(out / "curve.png") as curve:
            assert curve.width > 300

    def test_the_same_seed_gives_the_same_weights(
        self, run: tuple[Path, list[dict]], data: Path, cache: Path, tmp_path: Path
    ):
        before = (run[0] / HEAD).read_bytes()
        train_dual(tmp_path / "same", settings(data), cache=cache, device="cpu")
        assert (tmp_path / "same" / HEAD).read_bytes() == before
        train_dual(tmp_path / "other", settings(data, seed=6), cache=cache, device="cpu")
        assert (tmp_path / "other" / HEAD).read_bytes() != before

    def test_the_tower_is_written_in_eight_bits_too(
        self, run: tuple[Path, list[dict]], rounded: list[tuple[Path, int]]
    ):
        assert (run[0], 4) in rounded

    @pytest.mark.parametrize("step", [8, 9])
    def test_a_stopped_run_goes_on_bit_for_bit(
        self, step: int, whole: Path, data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """Ctrl-C in the second or in the last of three steps of the third epoch."""
        advance = dual._Run._advance

        def interrupted(self: dual._Run, *arguments: object) -> float:
            if self._step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return advance(self, *arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(dual._Run, "_advance", interrupted)
            train_dual(tmp_path / "parts", in_parts(data), cache=cache, device="cpu")
        assert load_state(tmp_path / "parts" / "checkpoints" / "last.safetensors")["step"] == step
        assert not (tmp_path / "parts" / HEAD).exists()
        result = CliRunner().invoke(
            app, ["dual", "--resume", str(tmp_path / "parts"), "--cache", str(cache), "--device", "cpu"]
        )
        assert result.exit_code == 0, result.output
        for name in (HEAD, "config.json", "calibration.json"):
            assert (tmp_path / "parts" / name).read_bytes() == (whole / name).read_bytes(), name
        states = [load_state(run / "checkpoints" / "last.safetensors") for run in (tmp_path / "parts", whole)]
        assert same(*states)
        runs = (tmp_path / "parts", whole)
        logs = [[{k: v for k, v in event.items() if k != "seconds"} for event in events(run)] for run in runs]
        assert logs[0] == logs[1]

    def test_a_run_is_not_begun_twice_nor_resumed_otherwise(self, run: tuple[Path, list[dict]], data: Path):
        with pytest.raises(UsageError, match="holds a run already"):
            train_dual(run[0], settings(data), device="cpu")
        with pytest.raises(UsageError, match="epochs"):
            train_dual(run[0], settings(data, epochs=9), resume=True, device="cpu")

    @pytest.mark.parametrize("loss", ["infonce", "sigmoid", "triplet"])
    def test_pieces_of_a_batch_give_the_gradient_of_the_whole(self, loss: str, data: Path, cache: Path, tmp_path: Path):
        """One step with plain gradient descent would do; AdamW's first step is the sign, so several are taken."""
        heads = []
        for name, micro in (("whole", 0), ("pieces", 2)):
            wanted = settings(data, loss=loss, micro_batch=micro, captions=2, noise=0.0, dropout=0.0, epochs=2, batch=6)
            train_dual(tmp_path / name, wanted, cache=cache, device="cpu")
            heads.append(load_state(tmp_path / name / "checkpoints" / "last.safetensors"))
        for name, tensor in heads[0]["model"].items():
            assert torch.allclose(tensor, heads[1]["model"][name], atol=2e-4), name
        assert heads[0]["losses"] == pytest.approx(heads[1]["losses"], abs=1e-5)

    def test_two_processes_equal_one(self, data: Path, cache: Path, tmp_path: Path):
        """Under torchrun's environment, over gloo: the same losses and, to rounding, the same weights."""
        wanted = "--train heads --fresh-head --epochs 2 --batch 4 --views 2 --noise 0 --dropout 0 --captions 2"
        common = [*wanted.split(), "--device", "cpu", "--data", str(data), "--cache", str(cache)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}

        def start(out: str, **more: str) -> subprocess.Popen[str]:
            arguments = [sys.executable, "-m", "mmsearch", "train", "dual", "--out", str(tmp_path / out), *common]
            return subprocess.Popen(arguments, env=environment | more, stderr=subprocess.PIPE, text=True)

        processes = [start("two", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
        processes.append(start("one"))
        try:
            for process in processes:
                _, said = process.communicate(timeout=250)
                assert process.returncode == 0, said
        finally:
            for process in processes:
                process.kill()
        one, two = (events(tmp_path / name) for name in ("one", "two"))
        assert [e["loss"] for e in two] == pytest.approx([e["loss"] for e in one], abs=1e-4)
        states = [load_state(tmp_path / name / "checkpoints" / "last.safetensors")["model"] for name in ("one", "two")]
        for name, tensor in states[0].items():
            assert torch.allclose(tensor, states[1][name], atol=2e-4), name

    def test_trained_heads_are_kept_near(self, data: Path, cache: Path, tmp_path: Path):
        """From the packaged heads: epoch 0 is the start, and the answer lies on the line between start and end."""
        wanted = settings(data, fresh_head=False, epochs=1, learning_rate=1e-5)
        log = events(train_dual(tmp_path / "tuned", wanted, cache=cache, device="cpu"))
        assert [event["epoch"] for event in log if "epoch" in event] == [0, 1]
        points = [event for event in log if "alpha" in event]
        assert [event["alpha"] for event in points] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
        best = min(points, key=lambda event: event["cross_entropy"])["alpha"]
        assert f"alpha {best:.4g}" in (tmp_path / "tuned" / "README.md").read_text()
        question = ["a dog runs on the beach"]
        tuned, packaged = MiniEncoder("cpu", tmp_path / "tuned"), MiniEncoder("cpu")
        assert (tuned.encode_texts(question) @ packaged.encode_texts(question).T).item() > 0.97

    def test_last_blocks_move_and_the_others_stay(self, data: Path, tmp_path: Path):
        """What is written is what was trained: the last two blocks of each tower, pictures changed anew each time."""
        wanted = settings(
            data, train="last", image_blocks=2, text_blocks=1, views=0, epochs=1, interpolate=False,
            word_dropout=0.2, tower_rate=1e-3, augmentation=Augmentation(cutout=0.2, grey=0.5),
        )  # fmt: skip
        out = train_dual(tmp_path / "deep", wanted, device="cpu")
        image, first = load_file(out / IMAGE), load_file(PACKAGED / IMAGE)
        moved = {name for name in first if not np.array_equal(image[name], first[name])}
        assert all(name.startswith(("blocks.6.", "conv_head.", "bn2.", "classifier.")) for name in moved)
        assert {"blocks.6.0.conv_pwl.weight", "conv_head.weight", "classifier.weight", "classifier.bias"} <= moved
        text, first = load_file(out / TEXT), load_file(PACKAGED / TEXT)
        moved = {name for name in first if not np.array_equal(text[name], first[name])}
        assert moved and all(name.startswith("encoder.layer.5.") for name in moved)
        model = MiniModel(fresh_head=True)
        model.image.freeze(21)
        model.text.freeze(6)
        trained = dual._Trained(model)
        trained.load_state_dict(load_state(out / "checkpoints" / "best.safetensors")["model"])
        pictures = [picture.open() for picture in open_dataset(data).split("dev").pictures]
        pixels = torch.from_numpy(np.stack([model.prepare(picture) for picture in pictures]))
        encoder = load_encoder(str(out), "cpu")
        with torch.inference_mode():
            rows = model.eval().image((pixels,)).numpy()
            words = model.text(model.tokens(["a red wall", "a dog"])).numpy()
        assert (rows * encoder.encode_images(pictures)).sum(axis=1).min() > 0.9999
        assert (words * encoder.encode_texts(["a red wall", "a dog"])).sum(axis=1).min() > 0.999  # eight bits a weight

    def test_names_teach_words_that_no_caption_has(self, data: Path, tmp_path: Path):
        """Pictures of violet and of brown, in no caption, are told apart by their names after training on them."""
        names = tmp_path / "names"
        (names / "images").mkdir(parents=True)
        things = {"xylophone": (140, 0, 200), "zeppelin": (120, 70, 10)}
        for thing, rgb in things.items():
            Image.new("RGB", (40, 40), rgb).save(names / "images" / f"{thing}.png")
        rows = "".join(f"{thing}.png\tn0\t{thing}\n" for thing in things)
        (names / "labels.tsv").write_text("image\tsynset\tlabel\n" + rows)
        wanted = settings(data, also=(str(names),), judges=(str(names),), batch=7)
        out = train_dual(tmp_path / "named", wanted, device="cpu")
        assert events(out)[-1]["names"]["text_to_image"] == [100, 100, 100]
        encoder = load_encoder(str(out), "cpu")
        images = encoder.encode_images([Image.new("RGB", (40, 40), rgb) for rgb in things.values()])
        texts = encoder.encode_texts([f"a picture of a {thing}" for thing in things])
        assert (texts @ images.T).argmax(axis=1).tolist() == [0, 1]

    def test_export_leaves_features_and_logs_behind(self, run: tuple[Path, list[dict]], tmp_path: Path):
        result = CliRunner().invoke(app, ["export", "--run", str(run[0]), "--out", str(tmp_path / "weights")])
        assert result.exit_code == 0, result.output
        packaged = {path.name for path in PACKAGED.iterdir()} - {"README.md"}
        assert {path.name for path in (tmp_path / "weights").iterdir()} == packaged
        assert load_encoder(str(tmp_path / "weights"), "cpu").fingerprint == MiniEncoder("cpu", run[0]).fingerprint


class TestFolds:
    def test_a_part_that_is_left_out_is_never_seen(self, data: Path, cache: Path, tmp_path: Path):
        """The choices of all steps together are the pictures of the other parts; the parts are all of the data."""
        seen = open_dataset(data).split("train")
        parts = [{n for n, p in enumerate(seen.pictures) if fold_of(p, 2) == part} for part in (1, 2)]
        assert all(parts) and parts[0] | parts[1] == set(range(12)) and not parts[0] & parts[1]
        for part, left_out in enumerate(parts, 1):
            assert set(dual._kept(seen, f"{part}/2").tolist()) == set(range(12)) - left_out
        wanted = settings(data, fold="1/2", epochs=1, batch=2)
        out = train_dual(tmp_path / "half", wanted, cache=cache, device="cpu")
        assert events(out)[0]["step"] == len(parts[1]) // 2
        assert read_settings(out / "config.toml", DualSettings).fold == "1/2"

    @pytest.mark.parametrize("fold", ["2", "0/2", "3/2", "1/1", "a/2", "-1/2"])
    def test_what_is_no_part_is_refused(self, fold: str):
        with pytest.raises(UsageError, match="write 2/4 to leave out the second of four"):
            DualSettings(fold=fold)


@pytest.fixture(scope="module")
def two(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with one start, each without the other's half of the pictures."""
    folder = tmp_path_factory.mktemp("two")
    shared = {"fresh_head": False, "epochs": 2, "learning_rate": 1e-4, "interpolate": False}
    return [
        train_dual(folder / fold[0], settings(data, fold=fold, **shared), cache=cache, device="cpu")
        for fold in ("1/2", "2/2")
    ]


class TestCombine:
    def test_the_command_makes_one_compact_model(self, two: list[Path], data: Path, tmp_path: Path):
        out = tmp_path / "both"
        options = f"--data {data} --out {out} --size 64 --device cpu"
        result = CliRunner().invoke(app, ["combine", *map(str, two), *options.split()])
        assert result.exit_code == 0, result.output
        assert f"averaged: {two[0]}" in result.output or f"averaged: {two[1]}" in result.output
        encoder = load_encoder(str(out), "cpu")
        seen = open_dataset(data).split("train")  # what it was folded by: nothing of it lies outside
        texts, pictures = seen.flat()[0], [picture.open() for picture in seen.pictures]
        long = load_encoder(str(combine.combine(tmp_path / "long", CombineSettings(tuple(map(str, two)), str(data)))))
        assert (encoder.dim, long.dim) == (64, 512)
        one, other = (each.encode_texts(texts) @ each.encode_images(pictures).T for each in (encoder, long))
        assert one == pytest.approx(other, abs=0.01)
        many = texts * NUMPY_TEXTS
        assert encoder.encode_texts(many)[:24] == pytest.approx(encoder.encode_texts(texts), abs=1e-4)
        assert sorted(encoder.calibration or ()) == ["image->image", "image->text", "text->image", "text->text"]
        again = load_trainable(str(out))
        assert again.text(again.tokens(texts)).detach().numpy() == pytest.approx(encoder.encode_texts(texts), abs=1e-4)

    def test_the_soup_is_greedy(self):
        """Alone they are off by 1, 2 and 9 in surprise; the first two cancel out, the third spoils it."""
        states = [{"w": torch.tensor([value])} for value in (2.0, -1.0, 9.0)]
        assert combine._greedy(states, lambda state: abs(state["w"].item() - 0.4)) == [1, 0]

    def test_full_size_changes_no_cosine(self, two: list[Path]):
        model = load_trainable(str(two[0])).eval()
        rng = np.random.default_rng(0)
        image, text = (torch.from_numpy(rng.normal(size=(9, size)).astype(np.float32)) for size in (1280, 3 * 384))
        states = (image, text[:, :384]), (text[:, :384], text[:, 384:768], text[:, 768:])
        model.image.freeze(23)
        model.text.freeze(7)
        with torch.no_grad():
            before = model.image.rest(states[0]) @ model.text.rest(states[1]).T
            model.compact(combine.principal([rng.normal(size=(1000, 512))], 512))
            after = model.image.rest(states[0]) @ model.text.rest(states[1]).T
        assert torch.allclose(before, after, atol=1e-5)

    def test_principal_directions_by_hand(self):
        """Pictures vary along the first axis, texts along the second, little along the third: that one is dropped."""
        image, text = np.diag([3.0, 0.1, 0.2])[[0, 0, 2]], np.diag([0.1, 3.0, 0.2])[[1, 1, 2]]
        found = combine.principal([image, text], 2)
        assert np.abs(found).sum(axis=0) == pytest.approx([1, 1, 0], abs=1e-6)

    def test_only_runs_of_one_model(self, small: Path, two: list[Path], data: Path, tmp_path: Path):
        with pytest.raises(UsageError, match="not of one"):
            combine.combine(tmp_path / "x", CombineSettings((str(two[0]), str(small)), str(data)), device="cpu")
        with pytest.raises(UsageError, match="only its vectors can be made compact"):
            combine.combine(tmp_path / "y", CombineSettings((str(small),), str(data), size=8), device="cpu")
        with pytest.raises(UsageError, match="have 512 numbers; they cannot be folded into 513"):
            combine.combine(tmp_path / "z", CombineSettings((str(two[0]),), str(data), size=513), device="cpu")
        with pytest.raises(UsageError, match="there is no"):
            combine.combine(tmp_path / "w", CombineSettings((str(two[0]),), str(tmp_path / "none")), device="cpu")
        assert not list(tmp_path.iterdir())  # nothing stands in the way of the next try


class TestElsewhere:
    def test_pictures_that_are_not_beside_their_captions(self, data: Path, tmp_path: Path):
        (tmp_path / "mine.tsv").write_text((data / "captions.tsv").read_text())
        wanted = settings(tmp_path / "mine.tsv", images=str(data / "images"), epochs=1, views=1)
        out = train_dual(tmp_path / "run", wanted, device="cpu")
        counted = [line for line in (out / "README.md").read_text().splitlines() if line.startswith("| mine.tsv |")]
        assert [line.split("|")[2].strip() for line in counted] == ["train", "dev"]
        assert sum(int(line.split("|")[3]) for line in counted) == 16  # all pictures, divided by their names


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ("--data DATA", "--out for a new run"),
            ("--out new", "--data FOLDER"),
            ("--data DATA --out new --loss l2", "infonce, sigmoid, triplet"),
            ("--data DATA --out new --train last --image-blocks 0", "image_blocks"),
            ("--data DATA --out new --crop 2", "crop is 2"),
            ("--data DATA --out new --from no-such-model", "no-such-model"),
            ("--data nowhere --out new", "nowhere"),
            ("--resume nowhere", "nowhere"),
        ],
    )
    def test_are_named(self, options: str, said: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        words = [str(data) if word == "DATA" else word for word in options.split()]
        result = CliRunner().invoke(app, ["dual", *words, "--device", "cpu"])
        assert isinstance(result.exception, UsageError), result.output
        assert said in str(result.exception)

    def test_a_broken_picture_is_left_out_by_name(self, tmp_path: Path):
        (tmp_path / "captions.tsv").write_text("image\tcaption\na.png\tred\nb.png\tnothing\n")
        Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
        said: list[str] = []
        whole = open_dataset(tmp_path).splits["all"]
        for _ in range(2):  # the second time it is remembered
            left = readable(whole, tmp_path / "cache", said.append)
            assert [picture.name for picture in left.pictures] == ["a.png"] and left.captions == [["red"]]
        assert len(said) == 2 and said[0] == said[1] and said[0].startswith("left out: b.png: ")


class TestStore:
    def test_is_computed_once_for_one_key_and_filled_up_with_zeros(self, tmp_path: Path):
        calls = []

        def states():
            calls.append(1)
            yield [1], (torch.tensor([[1.5, 2.5, 3.5]]), torch.tensor([7]))
            yield [2, 0], (torch.tensor([[4.0, 5.0], [6.0, 70000.0]]), torch.tensor([8, 9]))

        for _ in range(2):
            store = kept(tmp_path / "s", "one", 3, states)
        numbers, marks = store.rows([0, 1, 2])
        assert numbers.tolist() == [[6, 65504, 0], [1.5, 2.5, 3.5], [4, 5, 0]]  # the largest of float16
        assert marks.tolist() == [9, 7, 8] and len(store) == 3
        assert len(calls) == 1
        kept(tmp_path / "s", "another", 3, states)
        assert len(calls) == 2


class TestMini:
    def test_stages_are_the_encoder(self):
        """Cut anywhere, frozen part and trained part together say what the encoder says."""
        model, encoder = MiniModel().eval(), MiniEncoder("cpu")
        pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 260, 260), dtype=np.uint8)
        texts = ["a dog", "two cats sleep on a red sofa in the sun"]
        rows, words = encoder.encode_prepared(pixels), encoder.encode_texts(texts)
        for cut in (0, 5, 22):
            model.image.freeze(cut)
            model.text.freeze(min(cut, 7))
            with torch.inference_mode():
                assert np.allclose(model.image((torch.from_numpy(pixels),)).numpy(), rows, atol=1e-5)
                assert np.allclose(model.text(model.tokens(texts)).numpy(), words, atol=1e-5)
        assert (len(model.image.stages), len(model.text.stages)) == (24, 8)

    def test_standardised_heads_say_the_same_and_are_written_as_before(self, tmp_path: Path):
        model = MiniModel().eval()
        torch.manual_seed(0)
        image = (3 + torch.rand(40, 1280), torch.rand(40, 384))
        text = tuple(torch.randn(40, 384) for _ in range(3))
        model.image.freeze(23)
        model.text.freeze(7)
        with torch.inference_mode():
            before = model.image.rest(image), model.text.rest(text)
        model.begin(image, text)
        features = (image[0] - model.image.stages[-1].mean) / model.image.stages[-1].std
        assert features.mean(dim=0).abs().max() < 1e-4 and (features.std(dim=0, correction=0) - 1).abs().max() < 1e-3
        with torch.inference_mode():
            after = model.image.rest(image), model.text.rest(text)
        for one, other in zip(before, after, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        model.save(tmp_path)
        for name in (IMAGE, TEXT):
            assert (tmp_path / name).read_bytes() == (PACKAGED / name).read_bytes()
        question = ["a dog runs on the beach"]
        cosine = MiniEncoder("cpu", tmp_path).encode_texts(question) @ MiniEncoder("cpu").encode_texts(question).T
        assert cosine.item() > 0.9999


SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def small(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it trained, in bfloat16, with activations computed again, by the sigmoid loss."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.json").write_text(json.dumps(SMALL))
    wanted = DualSettings(
        data=str(data), start=str(folder / "small.json"), train="all", loss="sigmoid", epochs=12, batch=12,
        captions=2, learning_rate=3e-3, tower_rate=3e-3, layer_decay=1.0, recompute=True, precision="bfloat16",
        ema=0.5, views=0, interpolate=False,
    )  # fmt: skip
    return train_dual(folder / "run", wanted, device="cpu")


class TestOtherModels:
    """A small vision transformer of open_clip, from nothing: every way of training that `mini` has no use for."""

    def test_all_of_a_model_learns_from_nothing(self, small: Path):
        log = events(small)
        assert [event["epoch"] for event in log] == list(range(13))
        assert log[-1]["loss"] < 0.6 * log[1]["loss"]
        assert max(event["text_to_image"][0] for event in log[1:]) >= 50  # one of four by chance
        assert load_encoder(str(small), "cpu").encode_texts(["a red wall"]).shape == (1, 24)
        assert "none: it began with random weights" in (small / "README.md").read_text()

    def test_activations_computed_again_change_nothing(self, small: Path, data: Path, tmp_path: Path):
        plain = DualSettings(
            data=str(data), start=str(small), train="all", epochs=2, batch=12, captions=1, ema=0.0, views=2
        )
        for name, recompute in (("kept", False), ("again", True)):
            train_dual(tmp_path / name, replace(plain, recompute=recompute), device="cpu")
        states = [load_state(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("kept", "again")]
        assert states[0]["losses"] == pytest.approx(states[1]["losses"], abs=1e-6)
        for name, tensor in states[0]["model"].items():
            assert torch.allclose(tensor, states[1]["model"][name], atol=1e-5), name

    def test_low_rank_additions_are_folded_into_the_weights(self, small: Path, data: Path, tmp_path: Path):
        """On random weights that stay what they were: only attention and what projects may differ afterwards."""
        start = small.parent / "small.json"
        wanted = DualSettings(
            data=str(data), start=str(start), train="lora", lora_rank=4, loss="sigmoid", epochs=12, batch=12,
            captions=2, learning_rate=3e-3, tower_rate=1e-2, layer_decay=1.0, views=2, interpolate=False, ema=0.0,
        )  # fmt: skip
        out = train_dual(tmp_path / "lora", wanted, device="cpu")
        torch.manual_seed(wanted.seed)
        load_trainable(str(start)).save(tmp_path / "start")
        before, after = (load_file(folder / "open_clip_model.safetensors") for folder in (tmp_path / "start", out))
        assert after.keys() - before.keys() == {"logit_bias"}  # open_clip has none where no loss asks for it
        moved = {name for name in before if not np.array_equal(before[name], after[name])}
        assert {"transformer.resblocks.0.attn.in_proj_weight", "visual.proj", "text_projection"} <= moved
        assert not any("mlp" in name or "ln_1" in name or "embedding" in name for name in moved)
