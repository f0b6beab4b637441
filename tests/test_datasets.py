"""Datasets: each format as it is published, in small; what is wrong with the data; splits; the command."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from indexer.errors import DecodeError, UsageError
from mmsearch.datasets import FORMATS, Captioned, Dataset, Picture, Problem, open_dataset
from mmsearch.datasets.command import app

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


def paint(path: Path, colour: tuple[int, int, int] = GREY, size: tuple[int, int] = (8, 6)) -> Path:
    """A plain picture; PNG whatever its name, so that its colour comes back exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "PNG")
    return path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def said(part: Captioned) -> dict[str, list[str]]:
    """Captions by name of the picture, and every picture is where it is said to be."""
    assert all(picture.path.is_file() for picture in part.pictures)
    return {picture.name: captions for picture, captions in zip(part.pictures, part.captions, strict=True)}


def everything(data: Dataset) -> dict[str, dict[str, list[str]]]:
    return {name: said(part) for name, part in data.splits.items()}


def problems(data: Dataset) -> list[str]:
    return [str(problem) for problem in data.problems]


def colour(picture: Picture) -> object:
    return picture.open().getpixel((0, 0))


class TestFolder:
    def test_captions_images_and_lists(self, tmp_path: Path) -> None:
        """The lists give the order; d is in no list, c has no file, and a quote is a quote."""
        for name in "abd":
            paint(tmp_path / "images" / f"{name}.jpg")
        rows = ["image\tcaption", 'a.jpg\t" ADHD " on a shirt', "b.jpg\ttwo", "a.jpg\tone more", "c.jpg\tx", "c.jpg\ty"]
        write(tmp_path / "captions.tsv", "\n".join([*rows, "d.jpg\tfour", ""]))
        write(tmp_path / "train.txt", "b.jpg\nc.jpg\na.jpg\nb.jpg\n")
        write(tmp_path / "dev.txt", "a\n\nz.jpg\n")
        data = open_dataset(tmp_path)
        assert (data.format, data.path) == ("folder", tmp_path)
        assert everything(data) == {
            "train": {"b.jpg": ["two"], "a.jpg": ['" ADHD " on a shirt', "one more"]},
            "dev": {"a.jpg": ['" ADHD " on a shirt', "one more"]},
        }
        assert list(said(data.split("train"))) == ["b.jpg", "a.jpg"]
        assert problems(data) == [
            "captions.tsv:5: there is no picture 'c.jpg'",
            "dev.txt:3: names 'z.jpg', of which the data says nothing",
            "dev.txt, train.txt: pictures that are in no list and are left out: 1",
        ]

    def test_lists_elsewhere_and_texts_that_are_no_lists(self, tmp_path: Path) -> None:
        paint(tmp_path / "data" / "a.png")
        paint(tmp_path / "data" / "b.png")
        write(tmp_path / "data" / "captions.tsv", "image\tcaption\na.png\tone\nb.png\ttwo\n")
        write(tmp_path / "data" / "test.txt", "remember to test\n")
        assert everything(open_dataset(tmp_path / "data")) == {"all": {"a.png": ["one"], "b.png": ["two"]}}
        write(tmp_path / "lists" / "my_test.txt", "b.png\n")
        write(tmp_path / "lists" / "my_train.txt", "a.png\n")
        data = open_dataset(tmp_path / "data", splits=tmp_path / "lists")
        assert everything(data) == {"train": {"a.png": ["one"]}, "test": {"b.png": ["two"]}}
        with pytest.raises(UsageError, match="no list in"):
            open_dataset(tmp_path / "data", splits=tmp_path / "data")

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("t.csv", '\ufeffimage,caption\r\na.png,"one,\r\n ""two"""\r\nb.png,three\r\n', 'one,\r\n "two"'),
            ("t.csv", "file_name;text\na.png;one, two\nb.png;three\n", "one, two"),
            ("out.csv", "title\tfilepath\none, two\ta.png\nthree\tb.png\n", "one, two"),
            ("t.tsv", 'Caption\tFile\n"say ""hi"""\ta.png\nthree\tb.png\n', 'say "hi"'),
            (
                "metadata.jsonl",
                '{"file_name": "a.png", "text": "one"}\n\n{"path": "b.png", "caption": "three"}\n',
                "one",
            ),
        ],
    )
    def test_tables(self, tmp_path: Path, name: str, content: str, expected: str) -> None:
        """Passed in as a file and found in the folder."""
        paint(tmp_path / "a.png")
        paint(tmp_path / "b.png")
        table = write(tmp_path / name, content)
        for path in (table, tmp_path):
            data = open_dataset(path)
            assert everything(data) == {"all": {"a.png": [expected], "b.png": ["three"]}}
            assert data.format == "folder" and data.problems == []

    def test_split_column_and_lists_of_captions(self, tmp_path: Path) -> None:
        for name in ("sub/a.png", "b.png", "c.png"):
            paint(tmp_path / "pictures" / name)
        rows = [
            {"img": "b.png", "captions": ["three"], "split": "Test"},
            {"img": "sub\\a.png", "captions": ["one ", " two"], "split": "restval"},
            {"img": "c.png", "captions": ["four", ""], "split": "val"},
        ]
        table = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
        data = open_dataset(table, images=tmp_path / "pictures")
        assert everything(data) == {
            "train": {"sub\\a.png": ["one", "two"]},
            "val": {"c.png": ["four"]},
            "test": {"b.png": ["three"]},
        }
        assert list(data.splits) == ["train", "val", "test"]

    def test_image_folder_with_a_table_in_each_split(self, tmp_path: Path) -> None:
        """Both have a 1.png, which are two pictures."""
        for split, shade in (("train", RED), ("test", BLUE)):
            paint(tmp_path / split / "1.png", shade)
            write(tmp_path / split / "metadata.csv", f"file_name,text\n1.png,a {split} picture\n")
        data = open_dataset(tmp_path)
        assert everything(data) == {
            "train": {"train/1.png": ["a train picture"]},
            "test": {"1.png": ["a test picture"]},
        }
        assert [colour(data.split(name).pictures[0]) for name in ("train", "test")] == [RED, BLUE]

    def test_a_table_for_each_split_side_by_side(self, tmp_path: Path) -> None:
        paint(tmp_path / "a.png")
        paint(tmp_path / "b.png")
        write(tmp_path / "train.csv", "image,caption\na.png,one\n")
        write(tmp_path / "dev.csv", "image,caption\nb.png,two\n")
        assert everything(open_dataset(tmp_path)) == {"train": {"a.png": ["one"]}, "dev": {"b.png": ["two"]}}
        assert everything(open_dataset(tmp_path / "dev.csv")) == {"all": {"b.png": ["two"]}}

    def test_bad_rows_are_named_and_the_rest_is_read(self, tmp_path: Path) -> None:
        paint(tmp_path / "a.png")
        write(
            tmp_path / "t.csv",
            b'image,caption\na.png,one\na.png,caf\xe9\na.png\n\na.png,"two\nlines"\na.png, \n,x\na.png,caf\xc3\xa9\n',
        )
        data = open_dataset(tmp_path)
        assert everything(data) == {"all": {"a.png": ["one", "two\nlines", "café"]}}
        assert problems(data) == [
            "t.csv:3: has bytes that are not UTF-8",
            "t.csv:4: 1 cells, and the header has 2",
            "t.csv:8: there is no text about 'a.png'",
            "t.csv:9: no picture is named",
        ]

    def test_bad_lines_of_json(self, tmp_path: Path) -> None:
        paint(tmp_path / "a.png")
        good = {"image": "a.png", "caption": "one"}
        lines = [json.dumps(good), "{", "[1]", '{"image": 3, "caption": "x"}', '{"image": "a.png", "caption": 3}', "{}"]
        write(tmp_path / "t.jsonl", "\n".join([*lines, '{"image": "a.png", "caption": "\\ud800"}']))
        data = open_dataset(tmp_path)
        assert everything(data) == {"all": {"a.png": ["one"]}}
        assert [(p.place, p.what.partition(":")[0]) for p in data.problems] == [
            ("t.jsonl:2", "not JSON"),
            ("t.jsonl:3", "not a JSON object"),
            ("t.jsonl:4", "no picture is named"),
            ("t.jsonl:5", "there is no text about 'a.png'"),
            ("t.jsonl:6", "no picture or no caption is named"),
            ("t.jsonl:7", "has bytes that are not UTF-8"),
        ]

    def test_a_cell_that_never_ends_is_a_problem(self, tmp_path: Path) -> None:
        """The quote swallows more than a cell may hold; what follows the last swallowed line is read again."""
        paint(tmp_path / "a.png")
        write(tmp_path / "t.csv", 'image,caption\na.png,one\na.png,"' + "x" * 140_000 + "\na.png,two\n")
        data = open_dataset(tmp_path)
        assert everything(data) == {"all": {"a.png": ["one", "two"]}}
        assert [p.place for p in data.problems] == ["t.csv:3"]

    def test_a_text_beside_each_picture(self, tmp_path: Path) -> None:
        """As people keep them, and as img2dataset writes files; a.png has no text."""
        paint(tmp_path / "a.png")
        paint(tmp_path / "val" / "b.JPG")
        write(tmp_path / "val" / "b.txt", "\ufefffirst\r\n\r\nsecond\r\n")
        paint(tmp_path / "00000" / "000000000.jpg")
        write(tmp_path / "00000" / "000000000.json", json.dumps({"caption": "third", "url": "http://x", "key": "0"}))
        paint(tmp_path / "00000" / "000000001.jpg")
        write(tmp_path / "00000" / "000000001.json", "{}")
        paint(tmp_path / "train" / "c.png")
        write(tmp_path / "train" / "c.txt", "c.png#0\tlooks like a table\n")
        write(tmp_path / "00000_stats.json", json.dumps({"count": 2, "successes": 2}))
        data = open_dataset(tmp_path)
        assert data.format == "folder"
        assert everything(data) == {
            "train": {"train/c.png": ["c.png#0\tlooks like a table"]},
            "val": {"val/b.JPG": ["first", "second"]},
            "all": {"00000/000000000.jpg": ["third"]},
        }
        assert [p.place for p in data.problems] == ["a.png", "00000/000000001.json"]


class TestNames:
    def test_each_picture_is_described_by_its_name(self, tmp_path: Path) -> None:
        paint(tmp_path / "images" / "a.png")
        write(tmp_path / "labels.tsv", "image\tsynset\tlabel\na.png\tn01\tgreat white shark\nb.png\tn02\tant\n")
        data = open_dataset(tmp_path)
        assert data.format == "names"
        assert said(data.split("all"))["a.png"] == [
            "great white shark",
            "a great white shark",
            "a photo of a great white shark",
            "a close-up of a great white shark",
            "a picture of one great white shark",
            "there is a great white shark",
        ]
        assert problems(data) == ["labels.tsv:3: there is no picture 'b.png'"]

    def test_without_a_label_nothing_is_said(self, tmp_path: Path) -> None:
        paint(tmp_path / "a.png")
        table = write(tmp_path / "labels.tsv", "image\tlabel\na.png\tant\na.png\t \n")
        assert problems(open_dataset(table)) == ["labels.tsv:3: there is no text about 'a.png'"]


def coco(images: list[tuple[int, str]], annotations: list[tuple[int, object]]) -> str:
    """As the file of 2017 has it."""
    return json.dumps(
        {
            "info": {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "year": 2017},
            "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution"}],
            "images": [
                {"license": 4, "file_name": file, "height": 6, "width": 8, "date_captured": "2013-11-14", "id": number}
                for number, file in images
            ],
            "annotations": [
                {"image_id": image, "id": number, "caption": caption}
                for number, (image, caption) in enumerate(annotations)
            ],
        }
    )


class TestCoco:
    def test_the_folder_as_it_is_unpacked(self, tmp_path: Path) -> None:
        """Splits by the names of the files; the boxes of objects beside them are not read."""
        annotations = tmp_path / "annotations"
        paint(tmp_path / "train2017" / "000000000009.jpg", RED)
        paint(tmp_path / "val2017" / "000000397133.jpg", BLUE)
        write(annotations / "captions_train2017.json", coco([(9, "000000000009.jpg")], [(9, "A meal.\n"), (9, "Food")]))
        write(annotations / "captions_val2017.json", coco([(397133, "000000397133.jpg")], [(397133, "A man")]))
        write(annotations / "instances_val2017.json", coco([(397133, "000000397133.jpg")], [(397133, None)]))
        for path in (tmp_path, annotations):
            data = open_dataset(path)
            assert (data.format, data.problems) == ("coco", [])
            assert everything(data) == {
                "train": {"000000000009.jpg": ["A meal.", "Food"]},
                "val": {"000000397133.jpg": ["A man"]},
            }
        one = open_dataset(annotations / "captions_val2017.json", images=tmp_path / "val2017")
        assert [colour(picture) for picture in one.split("dev").pictures] == [BLUE]

    def test_what_does_not_fit_is_named(self, tmp_path: Path) -> None:
        paint(tmp_path / "a.jpg")
        paint(tmp_path / "c.jpg")
        images = [(1, "a.jpg"), (2, "b.jpg"), (3, "c.jpg")]
        said_of = [(1, "one"), (2, "two"), (7, "x"), (1, None)]
        data = open_dataset(write(tmp_path / "captions.json", coco(images, said_of)))
        assert everything(data) == {"all": {"a.jpg": ["one"]}}
        assert problems(data) == [
            "captions.json:annotations[1]: there is no picture 'b.jpg'",
            "captions.json:annotations[2]: image_id 7 is not in the list of images",
            "captions.json:annotations[3]: there is no text about 'a.jpg'",
            "captions.json: c.jpg: the picture has no caption",
        ]

    def test_a_file_cut_short(self, tmp_path: Path) -> None:
        path = write(tmp_path / "captions_val2017.json", coco([(1, "a.jpg")], [(1, "one")])[:-30])
        with pytest.raises(UsageError, match=r"captions_val2017.json: not JSON"):
            open_dataset(path)


class TestFlickr:
    def test_flickr8k_as_published(self, tmp_path: Path) -> None:
        """Its famous row of a picture that does not exist included; the base forms beside it are not read."""
        texts = tmp_path / "Flickr8k_text"
        for name in ("1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg", "1002674143_1b742ab4b8.jpg"):
            paint(tmp_path / "Flicker8k_Dataset" / name)
        tokens = (
            "1000268201_693b08cb0e.jpg#0\tA child in a pink dress is climbing up a set of stairs in an entry way .\n"
            "1000268201_693b08cb0e.jpg#1\tA girl going into a wooden building .\n"
            "1001773457_577c3a7d70.jpg#0\tA black dog and a spotted dog are fighting\n"
            "1002674143_1b742ab4b8.jpg#0\tA little girl covered in paint .\n"
            "2258277193_586949ec62.jpg.1#0\tpeople waiting for the subway\n"
            "no number\n"
        )
        write(texts / "Flickr8k.token.txt", tokens)
        write(texts / "Flickr8k.lemma.token.txt", "1000268201_693b08cb0e.jpg#0\tA child in a pink dress be climb .\n")
        write(texts / "ExpertAnnotations.txt", "1056338697_4f7d7ce270.jpg\t2549968784_39bfbe44f9.jpg#2\t1\t1\t1\n")
        write(texts / "Flickr_8k.trainImages.txt", "1001773457_577c3a7d70.jpg\n")
        write(texts / "Flickr_8k.devImages.txt", "1002674143_1b742ab4b8.jpg\n")
        write(texts / "Flickr_8k.testImages.txt", "1000268201_693b08cb0e.jpg\n")
        data = open_dataset(texts)
        assert data.format == "flickr"
        assert everything(data) == {
            "train": {"1001773457_577c3a7d70.jpg": ["A black dog and a spotted dog are fighting"]},
            "dev": {"1002674143_1b742ab4b8.jpg": ["A little girl covered in paint ."]},
            "test": {
                "1000268201_693b08cb0e.jpg": [
                    "A child in a pink dress is climbing up a set of stairs in an entry way .",
                    "A girl going into a wooden building .",
                ]
            },
        }
        assert problems(data) == [
            "Flickr8k.token.txt:5: there is no picture '2258277193_586949ec62.jpg.1'",
            "Flickr8k.token.txt:6: expected image#number<TAB>caption",
        ]

    def test_flickr30k_with_lists_of_bare_numbers(self, tmp_path: Path) -> None:
        paint(tmp_path / "flickr30k-images" / "1000092795.jpg")
        paint(tmp_path / "flickr30k-images" / "10002456.jpg")
        tokens = "1000092795.jpg#0\tTwo young guys .\n10002456.jpg#0\tSeveral men in hard hats .\n"
        path = write(tmp_path / "results_20130124.token", tokens)
        write(tmp_path / "train.txt", "1000092795\n")
        write(tmp_path / "val.txt", "10002456\n")
        data = open_dataset(path)
        assert everything(data) == {
            "train": {"1000092795.jpg": ["Two young guys ."]},
            "val": {"10002456.jpg": ["Several men in hard hats ."]},
        }

    def test_flickr8k_of_kaggle(self, tmp_path: Path) -> None:
        paint(tmp_path / "Images" / "a.jpg")
        rows = 'image,caption\na.jpg,"A dog , and a ""cat"" ."\na.jpg,A dog , unquoted .\na.jpg\n'
        write(tmp_path / "captions.txt", rows)
        data = open_dataset(tmp_path)
        assert data.format == "flickr"
        assert everything(data) == {"all": {"a.jpg": ['A dog , and a "cat" .', "A dog , unquoted ."]}}
        assert problems(data) == ["captions.txt:4: expected image,caption"]

    def test_flickr30k_of_kaggle(self, tmp_path: Path) -> None:
        """Its row without a second bar included."""
        paint(tmp_path / "flickr30k_images" / "1000092795.jpg")
        rows = (
            "image_name| comment_number| comment\n"
            "1000092795.jpg| 0| Two young guys | or men .\n"
            "1000092795.jpg| 4   A dog runs across the grass .\n"
        )
        data = open_dataset(write(tmp_path / "results.csv", rows))
        assert data.format == "flickr"
        assert everything(data) == {"all": {"1000092795.jpg": ["Two young guys | or men ."]}}
        assert problems(data) == ["results.csv:3: expected image| number| caption"]


class TestKarpathy:
    def test_coco(self, tmp_path: Path) -> None:
        def entry(folder: str, file: str, split: str, *raw: str) -> dict[str, object]:
            sentences = [{"tokens": r.lower().split(), "raw": r, "imgid": 0, "sentid": n} for n, r in enumerate(raw)]
            return {
                "filepath": folder,
                "sentids": list(range(len(raw))),
                "filename": file,
                "imgid": 0,
                "split": split,
                "sentences": sentences,
                "cocoid": 391895,
            }

        images = [
            entry("val2014", "COCO_val2014_000000391895.jpg", "test", "A man with a red helmet.", "A man."),
            entry("val2014", "COCO_val2014_000000060623.jpg", "restval", "A girl."),
            entry("train2014", "COCO_train2014_000000000009.jpg", "train", "Food."),
            entry("val2014", "COCO_val2014_000000000042.jpg", "val", "Shoes."),
        ]
        for image in images[:3]:
            paint(tmp_path / str(image["filepath"]) / str(image["filename"]))
        del images[2]["sentences"][0]["raw"]  # type: ignore[index]
        write(tmp_path / "dataset_coco.json", json.dumps({"images": images, "dataset": "coco"}))
        data = open_dataset(tmp_path)
        assert data.format == "karpathy"
        assert everything(data) == {
            "train": {
                "val2014/COCO_val2014_000000060623.jpg": ["A girl."],
                "train2014/COCO_train2014_000000000009.jpg": ["food."],
            },
            "test": {"val2014/COCO_val2014_000000391895.jpg": ["A man with a red helmet.", "A man."]},
        }
        assert problems(data) == [
            "dataset_coco.json:images[3]: there is no picture 'val2014/COCO_val2014_000000000042.jpg'"
        ]

    def test_flickr8k_comes_before_the_captions_beside_it(self, tmp_path: Path) -> None:
        paint(tmp_path / "Flicker8k_Dataset" / "a.jpg")
        image = {
            "sentids": [0],
            "imgid": 0,
            "sentences": [{"tokens": ["a", "dog"], "raw": "A dog .", "imgid": 0, "sentid": 0}],
            "split": "val",
            "filename": "a.jpg",
        }
        write(tmp_path / "dataset_flickr8k.json", json.dumps({"images": [image, {}], "dataset": "flickr8k"}))
        write(tmp_path / "Flickr8k.token.txt", "a.jpg#0\tA token .\n")
        data = open_dataset(tmp_path)
        assert (data.format, everything(data)) == ("karpathy", {"val": {"a.jpg": ["A dog ."]}})
        assert problems(data) == ["dataset_flickr8k.json:images[1]: no filename"]
        assert everything(open_dataset(tmp_path, format="flickr")) == {"all": {"a.jpg": ["A token ."]}}


class TestVisualGenome:
    @staticmethod
    def region(number: int, phrase: str, x: int, y: int, width: int, height: int) -> dict[str, object]:
        return {
            "region_id": number,
            "width": width,
            "height": height,
            "image_id": 1,
            "phrase": phrase,
            "y": y,
            "x": x,
        }

    def test_regions_are_pictures(self, tmp_path: Path) -> None:
        """Left half red, right half blue; the second box hangs over the edge, the third lies outside."""
        picture = Image.new("RGB", (20, 10), RED)
        picture.paste(BLUE, (10, 0, 20, 10))
        (tmp_path / "VG_100K_2").mkdir()
        picture.save(tmp_path / "VG_100K_2" / "1.jpg", "PNG")
        regions = [
            self.region(1382, "the clock is green", 2, 3, 5, 4),
            self.region(1383, "a wall", 12, -2, 99, 6),
            self.region(1384, "the sky", 40, 0, 5, 5),
            self.region(1385, "nothing", 0, 0, 0, 5),
            {"phrase": "no box"},
        ]
        document = [{"regions": regions, "id": 1}, {"regions": regions[:2], "id": 2}]
        data = open_dataset(write(tmp_path / "region_descriptions.json", json.dumps(document)))
        assert data.format == "visual-genome"
        assert everything(data) == {
            "all": {"1.jpg#1382": ["the clock is green"], "1.jpg#1383": ["a wall"], "1.jpg#1384": ["the sky"]}
        }
        clock, wall, sky = data.split("all").pictures
        assert clock.box == (2, 3, 5, 4)
        assert (clock.open().size, colour(clock)) == ((5, 4), RED)
        assert (wall.open().size, colour(wall)) == ((8, 4), BLUE)
        with pytest.raises(DecodeError, match="is not in a picture of 20 x 10 pixels"):
            sky.open()
        assert [p.place for p in data.problems] == [
            "region_descriptions.json:entry[0].regions[3]",
            "region_descriptions.json:entry[0].regions[4]",
            "region_descriptions.json:entry[1]",
        ]
        assert data.problems[2].what == "there is no picture '2.jpg'; its 2 regions are left out"


URLS = ["http://example.org/a.jpg?x=1", "https://example.org/b", "http://example.org/c.png"]


def crc(url: str) -> int:
    return zlib.crc32(url.encode())


class TestConceptual:
    @pytest.mark.parametrize(
        "names",
        [
            ["00000/000000000.jpg", "00000/000000001.jpg", "00000/000000002.jpg"],
            ["00000000.jpg", "00000001.jpg", "00000002.jpg"],
            [f"training/{number}_{crc(url)}" for number, url in enumerate(URLS)],
            [f"training/{crc(url)}" for url in URLS],
            ["train/0/0.jpg", "train/1/1.jpg", "train/2/2.jpg"],
            [f"{hashlib.md5(url.encode()).hexdigest()}.jpg" for url in URLS],
            [f"{hashlib.sha1(url.encode()).hexdigest()}.webp" for url in URLS],
            [f"{hashlib.sha256(url.encode()).hexdigest()}.png" for url in URLS],
        ],
    )
    @pytest.mark.parametrize("header", ["", "caption\turl\n"])
    def test_names_that_downloaders_give(self, tmp_path: Path, names: list[str], header: str) -> None:
        """Red and blue came down, the second did not; the picture of the other split is not taken for it."""
        table = "".join(f"caption {number}\t{url}\n" for number, url in enumerate(URLS))
        path = write(tmp_path / "Train_GCC-training.tsv", header + table)
        paint(tmp_path / "cc" / names[0], RED)
        paint(tmp_path / "cc" / names[2], BLUE)
        paint(tmp_path / "cc" / "validation" / Path(names[1]).name, GREEN)
        data = open_dataset(path, images=tmp_path / "cc")
        assert data.format == "conceptual"
        assert everything(data) == {"train": {names[0]: ["caption 0"], names[2]: ["caption 2"]}}
        assert [colour(picture) for picture in data.split("train").pictures] == [RED, BLUE]
        assert problems(data) == [f"{path.name}:{3 if header else 2}: there is no picture {URLS[1]!r}"]

    def test_both_files_with_the_folders_of_the_script(self, tmp_path: Path) -> None:
        write(tmp_path / "Train_GCC-training.tsv", f"a dog\t{URLS[0]}\n")
        write(tmp_path / "Validation_GCC-1.1.0-Validation.tsv", f"a cat\t{URLS[0]}\nonly one cell\n")
        paint(tmp_path / "training" / f"0_{crc(URLS[0])}", RED)
        paint(tmp_path / "validation" / f"0_{crc(URLS[0])}", BLUE)
        data = open_dataset(tmp_path)
        assert [captions for part in data.splits.values() for captions in part.captions] == [["a dog"], ["a cat"]]
        assert list(data.splits) == ["train", "validation"]
        assert [colour(part.pictures[0]) for part in data.splits.values()] == [RED, BLUE]
        assert problems(data) == ["Validation_GCC-1.1.0-Validation.tsv:2: expected caption<TAB>url, found 1 cells"]

    def test_conceptual_12m_has_the_address_first(self, tmp_path: Path) -> None:
        paint(tmp_path / "00000" / "000000001.jpg")
        path = write(tmp_path / "cc12m.tsv", f"{URLS[0]}\ta dog\n{URLS[1]}\ta cat\n")
        data = open_dataset(path)
        assert (data.format, everything(data)) == ("conceptual", {"all": {"00000/000000001.jpg": ["a cat"]}})

    def test_a_path_in_the_second_column(self, tmp_path: Path) -> None:
        paint(tmp_path / "cc" / "1.jpg")
        path = write(tmp_path / "cc.tsv", "a dog\tcc/1.jpg\na cat\tcc/2.jpg\n")
        data = open_dataset(path)
        assert (data.format, everything(data)) == ("conceptual", {"all": {"cc/1.jpg": ["a dog"]}})
        assert problems(data) == ["cc.tsv:2: there is no picture 'cc/2.jpg'"]


class TestNarratives:
    @staticmethod
    def line(dataset: str, image: str, caption: str) -> str:
        return json.dumps(
            {
                "dataset_id": dataset,
                "image_id": image,
                "annotator_id": 93,
                "caption": caption,
                "timed_caption": [{"utterance": "In this", "start_time": 0.0, "end_time": 0.4}],
                "traces": [[{"x": 0.2086, "y": -0.0533, "t": 0.022}]],
                "voice_recording": f"coco_val/coco_val_{image}_93.ogg",
            }
        )

    def test_open_images_and_coco(self, tmp_path: Path) -> None:
        paint(tmp_path / "validation" / "000595fe6fee6369.jpg")
        paint(tmp_path / "val2017" / "000000137576.jpg")
        write(
            tmp_path / "open_images_validation_localized_narratives.jsonl",
            self.line("open_images_validation", "000595fe6fee6369", "In this image I can see food.") + "\n",
        )
        write(
            tmp_path / "coco_val_localized_narratives.jsonl",
            self.line("mscoco_val2017", "137576", "There are cows.")
            + "\n"
            + self.line("mscoco_val2017", "137576", "Cows, standing.")
            + "\n{}\n",
        )
        data = open_dataset(tmp_path)
        assert data.format == "narratives"
        assert everything(data) == {
            "val": {"137576": ["There are cows.", "Cows, standing."]},
            "validation": {"000595fe6fee6369": ["In this image I can see food."]},
        }
        assert problems(data) == ["coco_val_localized_narratives.jsonl:3: no image_id"]

    def test_captions_only(self, tmp_path: Path) -> None:
        paint(tmp_path / "train" / "a1.jpg")
        row = {"image_id": "a1", "caption": "A pot."}
        path = write(tmp_path / "open_images_train_v6_captions.jsonl", json.dumps(row) + "\n")
        assert everything(open_dataset(path)) == {"train": {"a1": ["A pot."]}}


def png(shade: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), shade).save(stream, "PNG")
    return stream.getvalue()


def shard(path: Path, members: Mapping[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


class TestWebdataset:
    def test_pictures_are_read_from_the_archive(self, tmp_path: Path) -> None:
        """A caption a line in txt, which comes before json; samples that are not whole are named."""
        path = shard(
            tmp_path / "00000.tar",
            {
                "000000000.jpg": png(RED),
                "000000000.json": json.dumps({"caption": "from json", "url": "http://x", "key": "000000000"}),
                "000000000.txt": "one\ntwo\n",
                "./a.b/k.PNG": png(BLUE),
                "./a.b/k.json": json.dumps({"captions": ["three", "four"]}),
                "only.jpg": png(RED),
                "only.cls": "3",
                "text.txt": "five",
                "bad.jpg": png(RED),
                "bad.json": "{",
                "._x.jpg": b"",
            },
        )
        data = open_dataset(path)
        assert data.format == "webdataset"
        assert everything(data) == {"all": {"000000000": ["one", "two"], "a.b/k": ["three", "four"]}}
        red, blue = data.split("all").pictures
        assert (red.path, red.read(), colour(red)) == (path, png(RED), RED)
        assert (blue.read(), colour(blue)) == (png(BLUE), BLUE)
        assert red.member == (512, len(png(RED)))  # a tar begins with a header of one block
        assert [str(p).partition(": not JSON")[0] for p in data.problems] == [
            "00000.tar/only: no .txt or .json with captions",
            "00000.tar/text: no picture",
            "00000.tar/bad",
        ]

    def test_patterns_and_splits(self, tmp_path: Path) -> None:
        """The same key in two shards is two pictures."""
        for name, shade in (("cc-train-00", RED), ("cc-train-01", GREEN), ("cc-val-00", BLUE)):
            shard(tmp_path / f"{name}.tar", {"0.png": png(shade), "0.txt": name})
        for pattern in ("cc-train-{00..01}.tar", "cc-train-*.tar", "cc-{train,dev}-0?.tar"):
            data = open_dataset(tmp_path / pattern)
            assert everything(data) == {"train": {"0": ["cc-train-00"], "cc-train-01/0": ["cc-train-01"]}}
            assert [colour(picture) for picture in data.split("train").pictures] == [RED, GREEN]
        assert list(open_dataset(tmp_path).splits) == ["train", "val"]
        with pytest.raises(UsageError, match="there is no"):
            open_dataset(tmp_path / "none-{0..3}.tar")

    def test_folders_of_splits(self, tmp_path: Path) -> None:
        shard(tmp_path / "train" / "0.tar", {"a.png": png(RED), "a.txt": "one"})
        shard(tmp_path / "test" / "0.tar", {"b.png": png(BLUE), "b.txt": "two"})
        assert everything(open_dataset(tmp_path)) == {"train": {"a": ["one"]}, "test": {"b": ["two"]}}

    def test_damage_costs_what_lies_behind_it(self, tmp_path: Path) -> None:
        members = {"a.txt": "one", "a.png": png(RED), "b.txt": "two", "b.png": png(BLUE)}
        whole = shard(tmp_path / "whole.tar", members).read_bytes()
        second = whole.index(b"b.txt")
        last = whole.index(b"b.png")
        garbled = write(tmp_path / "garbled.tar", whole[:second] + b"\xff" * 300 + whole[second + 300 :])
        data = open_dataset(garbled)
        assert everything(data) == {"all": {"a": ["one"]}}
        assert problems(data) == [f"garbled.tar: damaged at byte {second}; what stands before is used"]
        short = write(tmp_path / "short.tar", whole[: last + 512 + 20])
        data = open_dataset(short)
        assert everything(data) == {"all": {"a": ["one"]}}
        assert [p.place for p in data.problems] == ["short.tar", "short.tar/b"]

    def test_compressed_shards_are_refused_with_advice(self, tmp_path: Path) -> None:
        inner = shard(tmp_path / "x.tar", {"a.png": png(RED), "a.txt": "one"}).read_bytes()
        path = write(tmp_path / "y" / "x.tar.gz", gzip.compress(inner))
        with pytest.raises(UsageError, match="gunzip"):
            open_dataset(path)


class TestOpening:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there is no"):
            open_dataset(tmp_path / "gone")

    def test_not_recognised(self, tmp_path: Path) -> None:
        """A folder of photographs, a file of something else: the formats are named."""
        paint(tmp_path / "photos" / "a.png")
        write(tmp_path / "notes.txt", "hello\n")
        for path in (tmp_path / "photos", tmp_path / "notes.txt"):
            with pytest.raises(UsageError, match="is not recognised") as caught:
                open_dataset(path)
            assert all(f"\n  {name}: " in str(caught.value) for name in FORMATS)

    def test_no_pair_at_all(self, tmp_path: Path) -> None:
        rows = "".join(f"{number}.jpg\ta thing\n" for number in range(5))
        write(tmp_path / "captions.tsv", "image\tcaption\n" + rows)
        with pytest.raises(UsageError) as caught:
            open_dataset(tmp_path)
        assert str(caught.value) == (
            f"no picture with a caption in {tmp_path} (format folder), 5 problems; if the pictures are elsewhere, "
            "name their folder"
            "\n  captions.tsv:2: there is no picture '0.jpg'"
            "\n  captions.tsv:3: there is no picture '1.jpg'"
            "\n  captions.tsv:4: there is no picture '2.jpg'"
        )

    def test_wrong_arguments(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no format 'cocoa'; there are folder, karpathy"):
            open_dataset(tmp_path, format="cocoa")
        with pytest.raises(UsageError, match=r"no folder .* for the images"):
            open_dataset(tmp_path, images=tmp_path / "gone")
        with pytest.raises(UsageError, match="has no file of the format coco"):
            open_dataset(tmp_path, format="coco")

    def test_a_forced_format_needs_no_recognition(self, tmp_path: Path) -> None:
        paint(tmp_path / "a.jpg")
        path = write(tmp_path / "data.txt", "caption without number\na.jpg#0\tA dog .\n")
        with pytest.raises(UsageError, match="not recognised"):
            open_dataset(path)
        data = open_dataset(path, format="flickr")
        assert everything(data) == {"all": {"a.jpg": ["A dog ."]}}
        assert problems(data) == ["data.txt:1: expected image#number<TAB>caption"]

    def test_two_spellings_of_one_file_are_one_picture(self, tmp_path: Path) -> None:
        paint(tmp_path / "a.png")
        write(tmp_path / "t.csv", f"image,caption\na.png,one\n{tmp_path / 'a.png'},two\n")
        assert everything(open_dataset(tmp_path)) == {"all": {"a.png": ["one", "two"]}}


class TestPicture:
    def test_upright(self, tmp_path: Path) -> None:
        """Orientation 6: the left edge as stored is the upper one as shown; a box is one of the picture as shown."""
        image = Image.new("RGB", (40, 20), RED)
        image.paste(BLUE, (20, 0, 40, 20))
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / "a.png", exif=exif)
        whole = Picture("a", tmp_path / "a.png")
        assert (whole.open().size, whole.open().getpixel((5, 5)), whole.open().getpixel((5, 35))) == (
            (20, 40),
            RED,
            BLUE,
        )
        assert Picture("b", tmp_path / "a.png", box=(0, 30, 20, 10)).open().getcolors() == [(200, BLUE)]

    def test_every_pixel_is_kept(self, tmp_path: Path) -> None:
        assert Picture("a", paint(tmp_path / "a.png", size=(3000, 2000))).open().size == (3000, 2000)

    def test_what_cannot_be_opened(self, tmp_path: Path) -> None:
        broken = write(tmp_path / "b.jpg", b"<html>not found</html>")
        write(tmp_path / "t.csv", "image,caption\nb.jpg,one\n")
        (picture,) = open_dataset(tmp_path).split("all").pictures
        with pytest.raises(DecodeError, match="not a picture"):
            picture.open()
        with pytest.raises(DecodeError, match="ends after 22 of the picture's 30 bytes"):
            Picture("c", broken, member=(0, 30)).read()
        broken.unlink()
        with pytest.raises(DecodeError, match="No such file"):
            picture.open()


def dataset(splits: Mapping[str, list[str]], boxes: bool = False) -> Dataset:
    box = (0, 0, 1, 1) if boxes else None
    parts = {
        split: Captioned([Picture(name, Path(name), box) for name in names], [[f"about {name}"] for name in names])
        for split, names in splits.items()
    }
    return Dataset("folder", Path("data"), [], parts)


def names_of(part: Captioned) -> list[str]:
    return [picture.name for picture in part.pictures]


class TestSplits:
    def test_flat_and_subset(self) -> None:
        pictures = [Picture(name, Path(name)) for name in "abc"]
        part = Captioned(pictures, [["1", "2"], ["3"], ["4", "5"]])
        assert part.flat() == (["1", "2", "3", "4", "5"], [0, 0, 1, 2, 2])
        assert part.subset([2, 0]).flat() == (["4", "5", "1", "2"], [0, 0, 1, 1])
        assert (len(part), names_of(part.subset([2, 0]))) == (3, ["c", "a"])

    def test_a_split_by_its_name_or_another_of_the_same(self) -> None:
        data = dataset({"train": ["a"], "validation": ["b"], "test": ["c"]})
        assert [names_of(data.split(name)) for name in ("train", "dev", "val", "validation")] == [["a"], *[["b"]] * 3]
        with pytest.raises(UsageError, match="no split 'extra'; it has train, validation, test"):
            data.split("extra")
        with pytest.raises(UsageError, match="no split 'valid'"):
            dataset({"dev": ["a"], "val": ["b"]}).split("valid")

    def test_divided_as_the_data_says(self) -> None:
        train, dev = dataset({"train": ["a", "b"], "val": ["c"], "test": ["d"]}).divided()
        assert (names_of(train), names_of(dev)) == (["a", "b"], ["c"])

    def test_divided_by_a_hash_of_the_name(self) -> None:
        """Compared with the sentence that defines it; what is added moves nothing, and the test split stays out."""
        names = [f"{number}.jpg" for number in range(1000)]

        def place(name: str, seed: int) -> float:
            return int(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=6).hexdigest(), 16) / 256**6

        for seed in (0, 1):
            train, dev = dataset({"all": names}).divided(dev=0.2, seed=seed)
            assert names_of(dev) == [name for name in names if place(name, seed) < 0.2]
            assert names_of(train) == [name for name in names if place(name, seed) >= 0.2]
            assert 150 < len(dev) < 250
            assert train.captions[0] == [f"about {train.pictures[0].name}"]
        fewer = dataset({"train": names[::-2], "test": ["t"]}).divided(dev=0.2, seed=1)[1]
        assert set(names_of(fewer)) == set(names_of(dev)) & set(names[::-2])

    @pytest.mark.parametrize("part", [1e-9, 1 - 1e-9])
    @pytest.mark.parametrize("count", [2, 3])
    def test_at_least_one_on_each_side(self, part: float, count: int) -> None:
        train, dev = dataset({"all": [f"{number}" for number in range(count)]}).divided(dev=part)
        assert sorted([len(train), len(dev)]) == [1, count - 1]
        assert sorted(names_of(train) + names_of(dev)) == [f"{number}" for number in range(count)]

    def test_regions_of_a_picture_stay_together(self) -> None:
        regions = [f"{image}.jpg#{number}" for image in range(40) for number in range(5)]
        train, dev = dataset({"all": regions}, boxes=True).divided(dev=0.3)
        images = [{name.partition("#")[0] for name in names_of(part)} for part in (train, dev)]
        assert not images[0] & images[1] and len(images[0] | images[1]) == 40
        assert 0 < len(images[1]) < 25

    def test_what_cannot_be_divided(self) -> None:
        with pytest.raises(UsageError, match="single picture"):
            dataset({"all": ["1.jpg#1", "1.jpg#2"]}, boxes=True).divided()
        with pytest.raises(UsageError, match="no split to train on; it has val, test"):
            dataset({"val": ["a", "b"], "test": ["c"]}).divided()
        with pytest.raises(UsageError, match="between 0 and 1"):
            dataset({"all": ["a", "b"]}).divided(dev=1)


class TestCommand:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """Five pictures to train on, said three and one and one ... words of; one to choose by, which is broken."""
        rows = ["image\tcaption"]
        for number in range(5):
            paint(tmp_path / "images" / f"{number}.png", size=(10 + number, 7))
            rows.append(f"{number}.png\tpicture number {number}")
        write(tmp_path / "images" / "5.png", b"GIF89a")
        rows += ["0.png\tnull", "5.png\tbroken", *(f"gone{number}.png\tx" for number in range(12))]
        write(tmp_path / "captions.tsv", "\n".join(rows))
        write(tmp_path / "train.txt", "".join(f"{number}.png\n" for number in range(5)))
        write(tmp_path / "dev.txt", "5.png\n")
        return tmp_path

    def test_json(self, data: Path) -> None:
        """Train: 5 pictures, 6 captions, 5 · 3 + 1 words. Two samples of five lie at 0 and 2."""
        result = CliRunner().invoke(app, ["inspect", str(data), "--samples", "2", "--json"])
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert (report["path"], report["format"], report["problem_count"]) == (str(data), "folder", 12)
        assert len(report["problems"]) == 10
        assert report["problems"][0] == {"place": "captions.tsv:9", "what": "there is no picture 'gone0.png'"}
        train = report["splits"]["train"]
        assert {key: value for key, value in train.items() if key != "samples"} == {
            "pictures": 5,
            "captions": 6,
            "captions_per_picture": 1.2,
            "words_per_caption": pytest.approx(16 / 6),
        }
        assert [(s["name"], s["size"], s["captions"]) for s in train["samples"]] == [
            ("0.png", [10, 7], ["picture number 0", "null"]),
            ("2.png", [12, 7], ["picture number 2"]),
        ]
        (broken,) = report["splits"]["dev"]["samples"]
        assert "GIF" in broken["error"] and "size" not in broken

    def test_text(self, data: Path) -> None:
        result = CliRunner().invoke(app, ["inspect", str(data), "--samples", "1"])
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert lines[0] == f"{data}: format folder"
        assert lines[3].split() == ["train", "5", "6", "1.20", "2.7"]
        assert lines[4].split() == ["dev", "1", "1", "1.00", "1.0"]
        assert lines[6:8] == ["12 problems", "  captions.tsv:9: there is no picture 'gone0.png'"]
        assert lines[17] == "  and 2 more"
        assert lines[19:22] == ["train: 0.png (10 x 7)", "  picture number 0", "  null"]

    def test_one_split_images_and_format(self, data: Path) -> None:
        (data / "images").rename(data / "elsewhere")
        arguments = ["inspect", str(data), "--images", str(data / "elsewhere"), "--format", "folder"]
        result = CliRunner().invoke(app, [*arguments, "--split", "val", "--samples", "0", "--json"])
        assert result.exit_code == 0, result.output
        assert {name: part["pictures"] for name, part in json.loads(result.stdout)["splits"].items()} == {"val": 1}

    @pytest.mark.parametrize(("option", "said"), [("--split=x", "no split 'x'"), ("--format=x", "no format 'x'")])
    def test_misuse(self, data: Path, option: str, said: str) -> None:
        result = CliRunner().invoke(app, ["inspect", str(data), option])
        assert isinstance(result.exception, UsageError) and said in str(result.exception)

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
    def test_what_cannot_be_printed_is_escaped(self, tmp_path: Path) -> None:
        paint(tmp_path / "a.png")
        write(tmp_path / "a.txt", "a dog")
        (tmp_path / "b\udcff.png").write_bytes(png(RED))
        result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert "  b\\udcff.png: there is no text of the same name beside it" in result.stdout.splitlines()

    def test_nothing_heavy_is_loaded_before_it_is_needed(self) -> None:
        heavy = "{'PIL', 'numpy', 'torch', 'rich', 'bracex'} & set(sys.modules)"
        code = f"import sys, mmsearch.datasets; print({heavy})"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "set()"

    def test_problem_reads_as_a_line(self) -> None:
        assert str(Problem("t.csv:3", "no picture is named")) == "t.csv:3: no picture is named"
