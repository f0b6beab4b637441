"""Training: the data it reads, the numbers it reports, and the command from captions to a model that answers."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from indexer.encoders.load import load_encoder
from indexer.encoders.mini import HEAD, PACKAGED, MiniEncoder, weights_digest
from indexer.encoders.mini_torch import ResidualHead
from indexer.errors import UsageError
from mmsearch.training.calibrate import calibrate, fit_logistic, harmless
from mmsearch.training.command import app
from mmsearch.training.data import read_names, read_split
from mmsearch.training.dual import Spread
from mmsearch.training.features import changed
from mmsearch.training.retrieval import recalls

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "yellow": (230, 220, 20)}


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
    splits["test"] = splits["dev"]
    (folder / "captions.tsv").write_text("\n".join(captions) + "\n")
    for split, names in splits.items():
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def train(data: Path, out: Path, *more: str) -> list[dict]:
    """Run the command as a user would; its log."""
    arguments = ["dual", "--data", str(data), "--out", str(out), "--crops", "1", "--batch", "8", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("run")
    return out, train(data, out, "--fresh-head", "--epochs", "8", "--seed", "5")


class TestData:
    def test_split_as_written(self, data: Path):
        dev = read_split(data, "dev")
        assert [path.name for path in dev.pictures] == ["red3.png", "green3.png", "blue3.png", "yellow3.png"]
        assert dev.captions[1] == ["a green wall", 'it is "green" all over']
        texts, owner = dev.flat()
        assert owner == [0, 0, 1, 1, 2, 2, 3, 3] and texts[4] == "a blue wall"

    @pytest.mark.parametrize(
        ("file", "content", "said"),
        [
            ("dev.txt", "no-such.png\n", "captions.tsv says nothing"),
            ("dev.txt", "gone.png\n", "is not in"),
            ("dev.txt", "\n", "names no picture"),
            ("dev.txt", None, "cannot read"),
            ("captions.tsv", "image\tcaption\na.png\n", "expected image<TAB>caption"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, file: str, content: str | None, said: str):
        (tmp_path / "images").mkdir()
        (tmp_path / "captions.tsv").write_text("image\tcaption\ngone.png\ta thing\n")
        if content is not None:
            (tmp_path / file).write_text(content)
        with pytest.raises(UsageError, match=said) as caught:
            read_split(tmp_path, "dev")
        assert file in str(caught.value)


class TestNames:
    def test_each_picture_is_described_by_its_name(self, tmp_path: Path):
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.png").touch()
        (tmp_path / "labels.tsv").write_text("image\tsynset\tlabel\na.png\tn01\tgreat white shark\n")
        names = read_names(tmp_path)
        assert names.pictures == [tmp_path / "images" / "a.png"]
        assert names.captions[0][:3] == ["great white shark", "a great white shark", "a photo of a great white shark"]

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            ("image\tsynset\n", "columns image and label"),
            ("image\tlabel\nb.png\tb\n", "names 'b.png'"),
            (None, "cannot read"),
        ],
    )
    def test_what_is_missing_is_named(self, tmp_path: Path, table: str | None, words: str):
        if table is not None:
            (tmp_path / "labels.tsv").write_text(table)
        with pytest.raises(UsageError, match=words):
            read_names(tmp_path)


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


class TestParts:
    def test_folded_head_reads_raw_features(self):
        torch.manual_seed(0)
        features = 3 + 2 * torch.randn(50, 6)
        head, spread = ResidualHead(6, 4, 8).eval(), Spread.of(features)
        standardised = spread(features)
        assert standardised.mean(dim=0).tolist() == pytest.approx([0] * 6, abs=1e-5)
        assert standardised.std(dim=0, correction=0).tolist() == pytest.approx([1] * 6, abs=1e-5)
        expected = head(standardised)
        before = head.linear.weight.clone()
        spread.fold(head)
        assert torch.allclose(head(features), expected, atol=1e-5)
        spread.unfold(head)
        assert torch.allclose(head.linear.weight, before, atol=1e-6)
        assert torch.allclose(head(standardised), expected, atol=1e-5)

    def test_views(self):
        """Red on the left, blue on the right: plain keeps that, flip turns it, a crop is smaller and repeatable."""
        image = Image.new("RGB", (100, 80), (255, 0, 0))
        image.paste((0, 0, 255), (50, 0, 100, 80))
        assert changed(image, "plain", np.random.default_rng(0)).getpixel((5, 5)) == (255, 0, 0)
        assert changed(image, "flip", np.random.default_rng(0)).getpixel((5, 5)) == (0, 0, 255)
        crops = [changed(image, "crop1", np.random.default_rng(seed)) for seed in range(30)]
        areas = [crop.width * crop.height / 8000 for crop in crops]
        aspects = [crop.width / crop.height for crop in crops]
        assert 0.4 < min(areas) < 0.7 < max(areas) <= 1
        assert min(aspects) < 1.0 and max(aspects) > 1.5
        again = changed(image, "crop1", np.random.default_rng(7))
        assert again.tobytes() == crops[7].tobytes()


class TestCalibration:
    def test_logistic_fit_by_hand(self):
        """At 0, one of four matches; at 2, three of four: log-odds -log 3 and log 3, so the slope is log 3."""
        slope, bias = fit_logistic(np.array([0.0, 0, 2, 2]), np.array([1.0, 0, 1, 0]), np.array([1.0, 3, 3, 1]))
        assert (slope, bias) == pytest.approx((math.log(3), -math.log(3)), abs=1e-3)

    def test_logistic_fit_of_what_a_line_separates_stays_finite(self):
        slope, bias = fit_logistic(np.array([0.0, 1.0, 4.0]), np.array([0.0, 0, 1]), np.array([500.0, 500, 1]))
        assert 1 < slope < 50
        assert 1 < -bias / slope < 4  # even odds lie between the last stranger and the match

    def test_logistic_fit_of_known_odds(self):
        rng = np.random.default_rng(1)
        value = rng.normal(size=200_000)
        label = (rng.random(200_000) < 1 / (1 + np.exp(-(2.5 * value - 4)))).astype(float)
        slope, bias = fit_logistic(value, label, np.ones_like(value))
        assert (slope, bias) == pytest.approx((2.5, -4), abs=0.1)

    def test_harmless_changes_keep_most_of_the_picture(self):
        image = Image.new("RGB", (100, 100), (120, 60, 30))
        rng = np.random.default_rng(0)
        for _ in range(20):
            same = harmless(image, rng)
            assert 0.68 < same.width * same.height / 10_000 <= 1
            assert np.abs(np.asarray(same, int).mean(axis=(0, 1)) - (120, 60, 30)).max() < 60

    def test_matches_score_higher_whatever_is_asked_and_found(self, run: tuple[Path, list[dict]], data: Path):
        lines = calibrate(MiniEncoder("cpu", run[0]), read_split(data, "dev"), seed=5)
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
        dev = read_split(data, "dev")
        images = encoder.encode_images([Image.open(path).convert("RGB") for path in dev.pictures])
        texts = encoder.encode_texts([f"a {colour} wall" for colour in COLOURS])
        assert (texts @ images.T).argmax(axis=1).tolist() == [0, 1, 2, 3]

    def test_the_run_says_what_it_was_made_with(self, run: tuple[Path, list[dict]]):
        settings = json.loads((run[0] / "train.json").read_text())
        assert settings["epochs"] == 8 and settings["seed"] == 5 and settings["fresh_head"] is True
        encoder = MiniEncoder("cpu", run[0])
        assert encoder.fingerprint == weights_digest(run[0])
        assert encoder.fingerprint != MiniEncoder().fingerprint

    def test_the_same_seed_gives_the_same_weights(self, run: tuple[Path, list[dict]], data: Path, tmp_path: Path):
        before = (run[0] / HEAD).read_bytes()
        shutil.copytree(run[0] / "features", tmp_path / "again" / "features")
        train(data, tmp_path / "again", "--fresh-head", "--epochs", "8", "--seed", "5")
        assert (tmp_path / "again" / HEAD).read_bytes() == before
        train(data, tmp_path / "again", "--fresh-head", "--epochs", "8", "--seed", "6")
        assert (tmp_path / "again" / HEAD).read_bytes() != before

    def test_features_are_computed_once_and_again_when_a_picture_changes(self, data: Path, tmp_path: Path):
        from mmsearch.training.features import Features

        said: list[str] = []
        source = data / "images"
        pictures = [tmp_path / f"{number}.png" for number in range(2)]
        for number, picture in enumerate(pictures):
            picture.write_bytes((source / f"red{number}.png").read_bytes())
        kept = Features(MiniEncoder("cpu"), tmp_path / "kept", seed=0, compiled=False, log=said.append)
        first, words = kept.pictures("train", pictures, "plain")
        second, _ = kept.pictures("train", pictures, "plain")
        assert said == ["computing train-plain"]
        assert torch.equal(first, second) and first.shape == (2, 1280) and words.shape == (2, 384)
        pictures[1].write_bytes((source / "yellow3.png").read_bytes() + b"longer")
        third, _ = kept.pictures("train", pictures, "plain")
        assert len(said) == 2
        assert torch.equal(third[0], first[0]) and not torch.allclose(third[1], first[1], atol=0.1)

    def test_trained_heads_are_kept_near(self, data: Path, tmp_path: Path):
        """From the packaged heads: epoch 0 is the start, and the answer lies on the line between start and end."""
        log = train(data, tmp_path / "tuned", "--epochs", "1", "--learning-rate", "1e-5")
        assert [event["epoch"] for event in log if "epoch" in event] == [0, 1]
        assert [event["alpha"] for event in log if "alpha" in event] == [0.0, 0.25, 0.5, 0.75, 1.0]
        question = ["a dog runs on the beach"]
        tuned, packaged = MiniEncoder("cpu", tmp_path / "tuned"), MiniEncoder("cpu")
        assert (tuned.encode_texts(question) @ packaged.encode_texts(question).T).item() > 0.97

    def test_names_teach_words_that_no_caption_has(self, data: Path, tmp_path: Path):
        """Pictures of violet and of brown, in no caption, are told apart by their names after training on them."""
        names = tmp_path / "names"
        (names / "images").mkdir(parents=True)
        things = {"xylophone": (140, 0, 200), "zeppelin": (120, 70, 10)}
        for thing, rgb in things.items():
            Image.new("RGB", (40, 40), rgb).save(names / "images" / f"{thing}.png")
        rows = "".join(f"{thing}.png\tn0\t{thing}\n" for thing in things)
        (names / "labels.tsv").write_text("image\tsynset\tlabel\n" + rows)
        train(data, tmp_path / "named", "--names", str(names), "--fresh-head", "--epochs", "8", "--seed", "5")
        encoder = load_encoder(str(tmp_path / "named"), "cpu")
        images = encoder.encode_images([Image.new("RGB", (40, 40), rgb) for rgb in things.values()])
        texts = encoder.encode_texts([f"a picture of a {thing}" for thing in things])
        assert (texts @ images.T).argmax(axis=1).tolist() == [0, 1]

    def test_export_leaves_features_and_logs_behind(self, run: tuple[Path, list[dict]], tmp_path: Path):
        result = CliRunner().invoke(app, ["export", "--run", str(run[0]), "--out", str(tmp_path / "weights")])
        assert result.exit_code == 0, result.output
        packaged = {path.name for path in PACKAGED.iterdir()} - {"README.md"}
        assert {path.name for path in (tmp_path / "weights").iterdir()} == packaged
        assert load_encoder(str(tmp_path / "weights"), "cpu").fingerprint == MiniEncoder("cpu", run[0]).fingerprint

    def test_a_start_without_towers_is_refused(self, data: Path, tmp_path: Path):
        result = CliRunner().invoke(
            app, ["dual", "--data", str(data), "--out", str(tmp_path / "o"), "--start", str(tmp_path)]
        )
        assert isinstance(result.exception, UsageError) and "towers" in str(result.exception)
