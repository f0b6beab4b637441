"""Zero-shot classification: folders of classes, sentences about them, and counts worked out by hand."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from colour_encoder import ColourEncoder
from conftest import BLUE, GREEN, RED, SAMPLES
from PIL import Image
from typer.testing import CliRunner

from indexer.errors import UsageError
from mmsearch.evaluation.analyses import measure_classification, register
from mmsearch.evaluation.classification import (
    TEMPLATES,
    class_vectors,
    classify,
    draw_confusion,
    read_class_folders,
    read_templates,
)


@pytest.fixture
def folder(tmp_path: Path, paint: Callable[..., Path]) -> Path:
    """Walls: two red, one green that is blue, two blue, one picture that is none; and what belongs to no class."""
    paint("red_ wall/a.png", RED)
    paint("red_ wall/deeper/b.png", RED)
    paint("green/c.png", BLUE)
    paint("blue/d.png", BLUE)
    paint("blue/e.png", BLUE)
    root = paint("astray.png", GREEN).parent
    (root / "blue" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "blue" / "notes.txt").write_text("about blue")
    (root / "empty").mkdir()
    return root


class TestFolders:
    def test_names_pictures_and_labels(self, folder: Path) -> None:
        found = read_class_folders(folder)
        assert found.names == ("blue", "green", "red wall")
        assert [picture.name for picture in found.pictures] == [
            "blue/broken.jpg",
            "blue/d.png",
            "blue/e.png",
            "green/c.png",
            "red_ wall/a.png",
            "red_ wall/deeper/b.png",
        ]
        assert found.labels == (0, 0, 0, 1, 2, 2)

    def test_what_is_no_folder_of_classes(self, folder: Path, paint: Callable[..., Path]) -> None:
        with pytest.raises(UsageError, match="is no folder"):
            read_class_folders(folder / "astray.png")
        with pytest.raises(UsageError, match="holds 1 folders with pictures"):
            read_class_folders(folder / "red_ wall")
        paint("red wall/x.png", RED)
        with pytest.raises(UsageError, match="both mean the class 'red wall'"):
            read_class_folders(folder)


class TestTemplates:
    def test_a_sentence_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "sentences.txt"
        path.write_text("\ufeffa photo of a {}.\r\n\r\n  one {} \n", encoding="utf-8")
        assert read_templates(path) == ("a photo of a {}.", "one {}")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"a {}\na photo\n", r"sentences.txt:2: 'a photo' needs one \{\}"),
            (b"{} and {}\n", r"sentences.txt:1: '\{\} and \{\}' needs one"),
            (b"\n \n", "holds no sentence"),
            (b"\xff{}", "not text in UTF-8"),
        ],
    )
    def test_what_is_none(self, tmp_path: Path, content: bytes, reason: str) -> None:
        path = tmp_path / "sentences.txt"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=reason):
            read_templates(path)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"cannot read .*No such file"):
            read_templates(tmp_path / "none")

    def test_every_packaged_template_has_its_place(self) -> None:
        assert [template.count("{}") for template in TEMPLATES] == [1] * len(TEMPLATES)

    def test_class_vectors_by_hand(self) -> None:
        """ "red" is (2, 0, 0, 1) / sqrt 5 and "red blue" (2, 0, 2, 1) / 3: the mean of both, made a unit row.

        "{}" inside a name stays what it is.
        """
        found = class_vectors(ColourEncoder(), ["red", "{}"], ["{}", "{} blue"])
        mean = np.array([2, 0, 0, 1]) / math.sqrt(5) + np.array([2, 0, 2, 1]) / 3
        assert found[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
        plain = np.array([0, 0, 0, 1]) + np.array([0, 0, 2, 1]) / math.sqrt(5)
        assert found[1] == pytest.approx(plain / np.linalg.norm(plain), abs=1e-6)
        assert found.dtype == np.float32

    def test_many_sentences_stay_with_their_class(self) -> None:
        """300 classes of two sentences: more than one call of the encoder."""
        names = [("red", "green", "blue")[number % 3] for number in range(300)]
        found = class_vectors(ColourEncoder(), names, ["a {} wall", "{}"])
        assert found.argmax(axis=1).tolist() == [number % 3 for number in range(300)]


class TestCounts:
    def test_by_hand(self) -> None:
        """Answers 0, 1, 1 for labels 0, 0, 1; the third class has no picture and is given to none."""
        classes = np.eye(3)
        images = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.2, 0.8, 0.1]])
        found = classify(images, classes, np.array([0, 0, 1]), ["a", "b", "c"])
        assert (found.pictures, found.accuracy, found.top5) == (3, pytest.approx(2 / 3), None)
        assert found.confusion == ((1, 1, 0), (0, 1, 0), (0, 0, 0))
        scores = [(one.pictures, one.precision, one.recall, one.f1) for one in found.classes]
        assert scores == [(2, 1, 0.5, pytest.approx(2 / 3)), (1, 0.5, 1, pytest.approx(2 / 3)), (0, 0, 0, 0)]
        assert found.macro_f1 == pytest.approx(4 / 9)

    def test_of_equals_the_first(self) -> None:
        found = classify(np.array([[0.0, 1.0]]), np.array([[1.0, 0], [0, 1.0], [0, 1.0]]), np.array([2]), list("abc"))
        assert found.confusion[2] == (0, 1, 0)

    def test_one_by_one(self) -> None:
        """Eleven classes and sixty pictures, scores with many ties."""
        rng = np.random.default_rng(0)
        scores = rng.integers(0, 9, size=(60, 11)).astype(float)
        labels = rng.integers(0, 10, size=60)
        found = classify(scores, np.eye(11), labels, [str(c) for c in range(11)])
        orders = [sorted(range(11), key=lambda c, row=row: (-row[c], c)) for row in scores]
        assert found.accuracy == np.mean([order[0] == label for order, label in zip(orders, labels, strict=True)])
        assert found.top5 == np.mean([label in order[:5] for order, label in zip(orders, labels, strict=True)])
        for c in range(11):
            right = sum(order[0] == c == label for order, label in zip(orders, labels, strict=True))
            given, true = sum(order[0] == c for order in orders), sum(label == c for label in labels)
            score = found.classes[c]
            assert score.precision == (right / given if given else 0)
            assert score.recall == (right / true if true else 0)
            both = score.precision + score.recall
            assert score.f1 == pytest.approx(2 * score.precision * score.recall / both if both else 0)

    def test_no_picture(self) -> None:
        with pytest.raises(UsageError, match="no picture to classify"):
            classify(np.zeros((0, 2)), np.eye(2), np.zeros(0, int), ["a", "b"])


class TestDrawing:
    def test_dark_is_where_the_pictures_are(self, tmp_path: Path) -> None:
        """Two classes, all pictures on the diagonal: the squares there are dark blue, and the others nearly white."""
        pytest.importorskip("matplotlib")
        found = classify(np.eye(2), np.eye(2), np.arange(2), ["<a>", "$b"])
        path = tmp_path / "confusion.png"
        draw_confusion(found, path)
        with Image.open(path) as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
        dark = (np.abs(pixels - (8, 48, 107)).max(axis=1) < 3).mean()
        light = (np.abs(pixels - (247, 251, 255)).max(axis=1) < 3).mean()
        assert dark > 0.1
        assert dark == pytest.approx(light, rel=0.3)

    def test_where_it_cannot_be_written(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        found = classify(np.eye(2), np.eye(2), np.arange(2), ["a", "b"])
        with pytest.raises(UsageError, match=r"cannot write .*No such file"):
            draw_confusion(found, tmp_path / "none" / "confusion.png")

    def test_without_matplotlib_it_says_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        found = classify(np.eye(2), np.eye(2), np.arange(2), ["a", "b"])
        with pytest.raises(UsageError, match="pip install"):
            draw_confusion(found, tmp_path / "confusion.png")


class TestMeasure:
    def test_colours_by_hand(self, folder: Path) -> None:
        """Two red ones and two blue ones are right, the green one is blue, and the broken one is named."""
        found, skipped = measure_classification(ColourEncoder(), folder, templates=["a {}"])
        assert found.pictures == 5
        assert found.accuracy == 0.8
        assert found.confusion == ((2, 0, 0), (1, 0, 0), (0, 0, 2))
        blue, green, red = found.classes
        assert (blue.precision, blue.recall, green.f1, red.f1) == (pytest.approx(2 / 3), 1, 0, 1)
        assert [one.path for one in skipped] == ["blue/broken.jpg"]
        assert "JPEG" in skipped[0].reason


class TestCommand:
    @pytest.fixture
    def app(self) -> typer.Typer:
        app = typer.Typer()
        register(app)
        return app

    def test_answers_and_talk(self, app: typer.Typer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("indexer.encoders.load.load_encoder", lambda model, device=None: ColourEncoder())
        templates = folder / "sentences.txt"
        templates.write_text("the {} thing\n")
        arguments = ["classify", "--data", str(folder), "--templates", str(templates)]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.stdout.splitlines()[0] == "mini: 5 pictures of 3 classes: 80.0% right, mean F1 0.600"
        lines = [line.split() for line in result.stdout.splitlines()]
        assert ["green", "1", "0.000", "0.000", "0.000"] in lines
        assert ["blue", "2", "0.667", "1.000", "0.800"] in lines
        assert "mmsearch: skipped blue/broken.jpg: " in result.stderr
        found = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
        assert (found["accuracy"], found["top5"]) == (0.8, None)
        assert [one["name"] for one in found["skipped"]] == ["blue/broken.jpg"]

    def test_the_packaged_model_tells_cats_from_cars(self, app: typer.Typer, tmp_path: Path) -> None:
        """The real model on real photographs, and the drawing."""
        pytest.importorskip("matplotlib")
        photos = SAMPLES / "photos"
        for name, picture in {
            "cat": "IMG_0013.jpg",
            "cat ": "IMG_0036.jpg",
            "car": "IMG_0046.jpg",
            "hot-air balloon": "IMG_0009.jpg",
        }.items():
            target = tmp_path / "classes" / name.strip()
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / picture, target)
        drawing = tmp_path / "confusion.png"
        arguments = ["classify", "--data", str(tmp_path / "classes"), "--confusion", str(drawing), "--json"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        found = json.loads(result.stdout)
        assert [one["name"] for one in found["classes"]] == ["car", "cat", "hot-air balloon"]
        assert found["confusion"] == [[1, 0, 0], [0, 2, 0], [0, 0, 1]]
        assert drawing.read_bytes().startswith(b"\x89PNG")
        assert f"wrote {drawing}" in result.stderr
