"""Recall@K of the whole way, through the public library: index a captioned folder, ask every caption and every picture.

    python benchmarks/recall.py --data ../shared/data/flickr8k --split test

The data folder holds ``images/``, ``captions.tsv`` (image, caption) and one text file for each split. Text→image asks
each caption among the pictures of the split; image→text asks each picture among its captions, and any of its own
counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import mmsearch

KS = (1, 5, 10)


def read_split(data: Path, split: str) -> list[tuple[str, str]]:
    """The (image, caption) rows of one split, in the order of the captions file."""
    names = set((data / f"{split}.txt").read_text(encoding="utf-8").split())
    with (data / "captions.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["image"], row["caption"]) for row in rows if row["image"] in names]


def recalls(ranks: Iterable[int | None]) -> dict[str, float]:
    """Recall@K in percent from the rank of the right answer, None where it was not among the answers."""
    ranks = list(ranks)
    return {f"R@{k}": round(100 * sum(r is not None and r <= k for r in ranks) / len(ranks), 1) for k in KS}


def main() -> None:
    """Index, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the captioned folder")
    parser.add_argument("--split", default="dev", help="dev to choose by, test to report (default: %(default)s)")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    pairs = read_split(options.data, options.split)
    images = sorted({image for image, _ in pairs})
    with tempfile.TemporaryDirectory() as scratch:
        photos, captions = Path(scratch, "photos"), Path(scratch, "captions.tsv")
        photos.mkdir()
        for image in images:
            (photos / image).symlink_to((options.data / "images" / image).resolve())
        with captions.open("w", encoding="utf-8", newline="") as file:  # a row is a passage; its line says whose
            csv.writer(file, delimiter="\t").writerows([["caption"], *([caption] for _, caption in pairs)])
        with mmsearch.open(Path(scratch, "index"), model=options.model) as library:
            library.index(photos, captions)
            held = library.status().items
            assert held == {"image": len(images), "text": len(pairs)}, held
            started = time.perf_counter()
            to_image: list[int | None] = []
            for image, caption in pairs:
                found = [hit.path.name for hit in library.query(caption, k=max(KS), kind="image") if hit.path]
                to_image.append(found.index(image) + 1 if image in found else None)
            to_text: list[int | None] = []
            for image in images:
                hits = library.query(image=photos / image, k=max(KS), kind="text")
                owners = [pairs[hit.lines.first_line - 2][0] for hit in hits if hit.lines]
                to_text.append(owners.index(image) + 1 if image in owners else None)
            seconds = time.perf_counter() - started
    result = {
        "model": options.model,
        "split": options.split,
        "images": len(images),
        "captions": len(pairs),
        "text->image": recalls(to_image),
        "image->text": recalls(to_text),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.model} on {options.split}: {len(images):,} images, {len(pairs):,} captions")
    for way in ("text->image", "image->text"):
        gallery = len(images) if way == "text->image" else len(pairs)
        numbers = "  ".join(f"{name} {value:5.1f}" for name, value in result[way].items())
        print(f"{way}  {numbers}  (gallery {gallery:,})")
    print(f"{len(pairs) + len(images):,} questions in {seconds:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
