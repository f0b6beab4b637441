"""Fifty pages of PDF, fifty questions: how often the right page is the first answer.

    python benchmarks/pdf.py [--model mini] [--no-ocr] [--keep DIR]

The pages are those of `benchmarks/pdf.tsv`: prose in one and in two columns (drawn line by line across both), tables
(drawn column by column), scans (printed words as nothing but a slightly turned grey picture), bar charts, photographs,
and eight real pages (`tests/media/fasta-guide.pdf`). They are indexed by the command, as seven files of up to eight
pages, and every question of the table is asked through the library in the default way. The bar is 90 %.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

import mmsearch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from pdf_writer import Part, lines, pdf, rectangle, words  # noqa: E402

TABLE = Path(__file__).with_suffix(".tsv")
GUIDE = ROOT / "tests" / "media" / "fasta-guide.pdf"
PHOTOS = ROOT / "samples" / "photos"
FILES = 6
SCAN = (1240, 1754)
"""A4 at 150 dots an inch."""


def page(kind: str, title: str, body: str, rng: random.Random) -> list[Part]:
    """A page of one kind."""
    if kind == "columns":
        whole = textwrap.wrap(body, 42)
        middle = (len(whole) + 1) // 2
        across = [
            part
            for i in range(middle)
            for part in (
                words(60, 740 - 15 * i, whole[i]),
                words(320, 740 - 15 * i, whole[middle + i]) if middle + i < len(whole) else "",
            )
        ]
        return [words(60, 780, title, 16), *across]
    if kind == "table":
        rows = [row.split(",") for row in body.split(";")]
        return [
            words(60, 780, title, 16),
            *(lines(60 + 170 * i, 740, column, step=20) for i, column in enumerate(zip(*rows, strict=True))),
        ]
    if kind == "scan":
        return [scan(title, body, rng)]
    if kind == "chart":
        bars = [bar.split(",") for bar in body.split(";")]
        drawn = [
            rectangle(80 + 70 * i, 300, 45, 4 * float(value), (0.2, 0.4, 0.8)) for i, (_, value) in enumerate(bars)
        ]
        named = [words(80 + 70 * i, 280, name, 10) for i, (name, _) in enumerate(bars)]
        return [words(60, 780, title, 16), *drawn, *named]
    if kind == "photo":
        picture = Image.open(PHOTOS / title).convert("RGB")
        canvas = Image.new("RGB", (1190, 1684), "white")
        picture.thumbnail((1000, 1000))
        canvas.paste(picture, ((1190 - picture.width) // 2, 300))
        return [canvas]
    return [words(60, 780, title, 16), lines(60, 740, textwrap.wrap(body, 85), step=15)]


def scan(title: str, body: str, rng: random.Random) -> Image.Image:
    """Printed words as a scanner leaves them: grey, a little turned, a little blurred."""
    paper = Image.new("L", SCAN, 245)
    draw = ImageDraw.Draw(paper)
    draw.text((140, 150), title, font=ImageFont.load_default(44), fill=30)
    for i, line in enumerate(textwrap.wrap(body, 62)):
        draw.text((140, 260 + 44 * i), line, font=ImageFont.load_default(28), fill=40)
    turned = paper.rotate(rng.uniform(-0.7, 0.7), Image.Resampling.BICUBIC, fillcolor=245)
    return turned.filter(ImageFilter.GaussianBlur(0.6))


def build(folder: Path) -> list[tuple[str, str, str, int]]:
    """Write the files; return kind, question, file and page of each."""
    rng = random.Random(5)
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    made = [row for row in rows if row["kind"] != "real"]
    rng.shuffle(made)
    asked = [(row["kind"], row["question"], row["body"], int(row["title"])) for row in rows if row["kind"] == "real"]
    shutil.copy(GUIDE, folder)
    for number in range(FILES):
        name = f"file-{number + 1}.pdf"
        mine = made[number::FILES]
        (folder / name).write_bytes(pdf([page(row["kind"], row["title"], row["body"], rng) for row in mine]))
        asked += [(row["kind"], row["question"], name, at) for at, row in enumerate(mine, 1)]
    return asked


def main() -> None:
    """Build, index, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--no-ocr", action="store_true", help="leave the words of the scans unread")
    parser.add_argument("--keep", type=Path, help="keep pages and index here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        (folder / "papers").mkdir(parents=True, exist_ok=True)
        asked = build(folder / "papers")
        command = [
            sys.executable,
            "-P",
            "-m",
            "mmsearch",
            "index",
            str(folder / "papers"),
            "--index",
            str(folder / "index"),
        ]
        command += ["--model", options.model, *([] if options.no_ocr else ["--ocr"])]
        started = time.monotonic()
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        print(f"indexed in {time.monotonic() - started:.0f} s")
        right, among = Counter[str](), Counter[str]()
        with mmsearch.open(folder / "index") as library:
            for kind, question, name, number in asked:
                hits = library.query(question, k=10)
                found = [(hit.path.name if hit.path else "", hit.page) for hit in hits]
                place = next((i for i, one in enumerate(found, 1) if one == (name, number)), 0)
                right[kind] += place == 1
                among[kind] += place > 0
                if place != 1:
                    print(f"{kind}: {question!r} wants {name} page {number}, at {place or '-'}; first is {found[:1]}")
    kinds = Counter(kind for kind, *_ in asked)
    for kind, count in kinds.items():
        print(f"{kind:<8} {right[kind]:3} first, {among[kind]:3} among ten, of {count}")
    print(f"the right page is first for {100 * right.total() / len(asked):.0f} % of {len(asked)} questions")


if __name__ == "__main__":
    main()
