"""What shrinking large pictures while they are decoded costs in recall, and what it saves: both ways, side by side.

    python benchmarks/decoding.py FLICKR8K
    python benchmarks/decoding.py FLICKR8K --format png
    python benchmarks/decoding.py FLICKR8K --photographs FOLDER

Flickr8k's photographs are small, and small ones are never shrunk. So each is enlarged first (Lanczos) and saved as a
JPEG or PNG of ``--side`` pixels a side; 780 is the least that is shrunk for `mini`, to 1.5 times what the model takes.
An enlarged photograph lacks fine detail, which is what shrinking could spoil: ``--photographs`` are large ones of your
own, embedded both ways too. Their vectors are compared, and the captions of the dev split that find them.
"""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from indexer.decode import decode_image
from indexer.encoders import Encoder
from indexer.encoders.load import load_encoder
from mmsearch.datasets import Picture, open_dataset

BATCH = 32
Decode = Callable[[bytes], Image.Image]


def enlarged(picture: Picture, side: int, format: str) -> bytes:
    """A picture as a file of ``side`` by ``side`` pixels."""
    with Image.open(io.BytesIO(picture.read())) as opened:
        large = opened.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    large.save(file, format, **({"quality": 92} if format == "jpeg" else {"compress_level": 1}))
    return file.getvalue()


def whole(data: bytes) -> Image.Image:
    """The picture with all its pixels, upright."""
    with Image.open(io.BytesIO(data)) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def both_ways(encoder: Encoder, files: Sequence[Callable[[], bytes]]) -> tuple[list[np.ndarray], list[float]]:
    """Vectors ``(N, D)`` of pictures shrunk and whole, and processor milliseconds a picture until the model has it."""
    ways: list[Decode] = [lambda data: decode_image(data, size=encoder.image_size).image, whole]
    vectors: list[list[np.ndarray]] = [[], []]
    seconds = [0.0, 0.0]
    for start in range(0, len(files), BATCH):
        batch = [read() for read in files[start : start + BATCH]]
        for way, decode in enumerate(ways):
            began = time.thread_time()
            prepared = np.stack([encoder.prepare(decode(data)) for data in batch])
            seconds[way] += time.thread_time() - began
            vectors[way].append(encoder.encode_prepared(prepared))
    return [np.concatenate(rows) for rows in vectors], [1e3 * one / len(files) for one in seconds]


def main() -> None:
    """Embed both ways, ask every caption, print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of Flickr8k")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--side", type=int, default=780)
    parser.add_argument("--format", choices=("jpeg", "png"), default="jpeg")
    parser.add_argument("--pictures", type=int, help="only so many of the dev split")
    parser.add_argument("--photographs", type=Path, help="a folder of large photographs")
    asked = parser.parse_args()
    encoder = load_encoder(asked.model, "cpu")
    split = open_dataset(asked.data).split("dev")
    pictures = split.pictures[: asked.pictures]
    texts = [text for captions in split.captions[: asked.pictures] for text in captions]
    owners = np.repeat(np.arange(len(pictures)), [len(one) for one in split.captions[: asked.pictures]])
    rows, costs = both_ways(encoder, [partial(enlarged, one, asked.side, asked.format) for one in pictures])
    questions = np.concatenate([encoder.encode_texts(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)])
    scores = [questions @ one.T for one in rows]  # (Q, N)
    first = [one.argmax(axis=1) for one in scores]
    best = [np.argsort(-one, axis=1, kind="stable")[:, :10] for one in scores]
    same_ten = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*best, strict=True)])
    print(f"{len(pictures):,} pictures of {asked.side} x {asked.side} as {asked.format}, {len(texts):,} captions")
    print("shrunk / whole")
    print(f"R@1            {' / '.join(f'{100 * (one == owners).mean():.1f}' for one in first)}")
    print(f"R@10           {' / '.join(f'{100 * (b == owners[:, None]).any(axis=1).mean():.1f}' for b in best)}")
    print(f"processor      {' / '.join(f'{one:.1f} ms' for one in costs)} a picture, decoded and resized")
    print(
        f"same answer    {100 * (first[0] == first[1]).mean():.2f} % of captions, {100 * same_ten:.2f} % of the best 10"
    )
    right = [one == owners for one in first]
    print(f"right at once  {(right[0] & ~right[1]).sum()} only shrunk / {(right[1] & ~right[0]).sum()} only whole")
    cosines = (rows[0] * rows[1]).sum(axis=1)
    print(f"cosine         least {cosines.min():.5f}, median {np.median(cosines):.5f}")
    if asked.photographs:
        files = sorted(p for p in asked.photographs.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        (shrunk, full), costs = both_ways(encoder, [file.read_bytes for file in files])
        cosines = (shrunk * full).sum(axis=1)
        places = []
        for ours, theirs in zip(shrunk, full, strict=True):  # how many captions rank it among the dev pictures
            of_captions = np.sort(scores[1], axis=1)[:, -10]
            found = questions @ ours >= of_captions, questions @ theirs >= of_captions
            places.append((found[0] == found[1]).mean())
        print(
            f"{len(files):,} photographs: cosine least {cosines.min():.5f}, median {np.median(cosines):.5f};", end=" "
        )
        print(f"{costs[0]:.0f} / {costs[1]:.0f} ms; among the best 10 or not for the same", end=" ")
        print(f"{100 * np.mean(places):.3f} % of captions")


if __name__ == "__main__":
    main()
