"""Fine-tuning on a user's own captions: what it brings there and what it costs elsewhere.

    python benchmarks/own.py FLICKR8K OUT

The captions of half of Flickr8k's dev pictures play the user's own. `mmsearch train dual` fine-tunes `mini` on them,
and `mmsearch eval` measures both models on the other half, which nothing saw, and on test. (`mini` itself was chosen,
though not trained, on the whole dev split: its figures there are a little too good, and the gain a little too small.)
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from mmsearch.datasets import Captioned, open_dataset

MMSEARCH = [sys.executable, "-m", "mmsearch"]


def write(part: Captioned, table: Path) -> None:
    """A table as a user would write it: picture and caption, the pictures somewhere else."""
    rows = [
        f"{picture.path.resolve()}\t{caption}"
        for picture, captions in zip(part.pictures, part.captions, strict=True)
        for caption in captions
    ]
    table.write_text("\n".join(["image\tcaption", *rows]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of Flickr8k")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("options", nargs="*", help="for `mmsearch train dual`, after --")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    dev = open_dataset(asked.data).split("dev")
    half = len(dev) // 2
    mine, others = asked.out / "my_captions.tsv", asked.out / "other_captions.tsv"
    write(dev.subset(range(half)), mine)
    write(dev.subset(range(half, len(dev))), others)
    run = asked.out / "run"
    train = ["train", "dual", "--from", "mini", "--data", str(mine), "--out", str(run), *asked.options]
    began = time.monotonic()
    subprocess.run([*MMSEARCH, *train], check=True)
    print(f"mmsearch {' '.join(train)}\n{time.monotonic() - began:.0f} s\n", flush=True)
    for data, split in ((others, "all"), (asked.data, "test")):
        results = asked.out / f"{data.stem}.json"
        judged = ["--data", str(data), "--split", split]
        models = ["--model", "mini", "--model", str(run), "--no-rerank", "--no-cost", "--out", str(results)]
        subprocess.run([*MMSEARCH, "eval", *judged, *models], check=True)
        files = sorted(str(path) for path in asked.out.glob(f"{data.stem}-*.json"))
        subprocess.run([*MMSEARCH, "eval", "compare", *files, *judged], check=True)


if __name__ == "__main__":
    main()
