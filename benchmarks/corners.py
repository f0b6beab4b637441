"""Whether explanations point at what was asked for: things laid into the corners of a quiet picture, and looked for.

    python benchmarks/corners.py [--model NAME] [--reranker FOLDER]

Each of ten things, cut from the sample photographs, lies once in each corner of a plain ground. Its name is asked, and
the cell in which the heat of all words together is strongest is in the right quarter of the picture or it is not; by
chance it is in one case of four. Printed is the share of the 40 cases for each method.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from indexer.decode import decode_image
from indexer.encoders import Encoder
from indexer.encoders.load import load_encoder
from mmsearch.rerank import Reranker
from mmsearch.rerank.explain import explain_alone, show
from mmsearch.rerank.explanation import METHODS
from mmsearch.rerank.load import load_reranker

PHOTOS = Path(__file__).resolve().parent.parent / "samples" / "photos"
SIZE, THING, EDGE = 480, 200, 20
"""Pixels a side of a picture and of a thing in it, and between the thing and the edges."""
THINGS = {
    "a dog": ("IMG_0045.jpg", (60, 40, 480, 512)),
    "a cat": ("IMG_0013.jpg", (90, 0, 390, 300)),
    "a goldfish": ("IMG_0028.jpg", (0, 10, 460, 470)),
    "a parrot": ("IMG_0043.jpg", (72, 62, 512, 502)),
    "a panda": ("IMG_0034.jpg", (130, 10, 510, 390)),
    "a sunflower": ("IMG_0008.jpg", (40, 30, 480, 470)),
    "a football": ("IMG_0025.jpg", (270, 140, 512, 480)),
    "a hot air balloon": ("IMG_0009.jpg", (80, 60, 420, 440)),
    "a car": ("IMG_0046.jpg", (0, 130, 420, 450)),
    "a cup of coffee": ("IMG_0017.jpg", (80, 0, 480, 400)),
}
"""Each with its photograph, and where in it the thing is: left, top, right, bottom."""
CORNERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
"""Row and column of the quarter."""


def cut_out() -> dict[str, Image.Image]:
    """The things by their names."""
    return {
        name: decode_image((PHOTOS / photo).read_bytes(), size=SIZE).image.crop(box)
        for name, (photo, box) in THINGS.items()
    }


def laid_out(thing: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """The four quarters, each with the picture that has the thing there; the ground is a sky of pale grey."""
    shades = np.linspace(205, 175, SIZE).astype(np.uint8)
    ground = np.repeat(np.repeat(shades[:, None], SIZE, axis=1)[..., None], 3, axis=2)
    for row, column in CORNERS.values():
        picture = Image.fromarray(ground)
        far = SIZE - EDGE - THING
        picture.paste(
            thing.resize((THING, THING), Image.Resampling.BICUBIC), (far if column else EDGE, far if row else EDGE)
        )
        yield (row, column), picture


def found(
    reranker: Reranker, encoder: Encoder, method: str, things: Mapping[str, Image.Image]
) -> dict[tuple[str, tuple[int, int]], bool]:
    """For each thing and each quarter in which it lay whether the heat is strongest in that quarter.

    Raises:
        UsageError, ModelError: as ``mmsearch.rerank.explain.explain``.
    """
    cases = {}
    for name, thing in things.items():
        for quarter, picture in laid_out(thing):
            heat = explain_alone(encoder, reranker, name, show(picture, encoder.image_size), method).heat
            strongest = divmod(int(heat.argmax()), len(heat))
            beyond = [2 * place + 1 - len(heat) for place in strongest]  # below 0 before the middle, above 0 behind it
            cases[name, quarter] = all(far > 0 if side else far < 0 for far, side in zip(beyond, quarter, strict=True))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--reranker", type=Path, help="folder; else the one that was trained for the model")
    asked = parser.parse_args()
    encoder = load_encoder(asked.model)
    reranker = load_reranker(asked.reranker, encoder)
    if reranker is None:
        parser.error(f"there is no reranker for {encoder.name}; name the folder of one with --reranker")
    for method in METHODS:
        cases = found(reranker, encoder, method, cut_out())
        print(f"{method}: {sum(cases.values())} of {len(cases)} in the right quarter")
        for name in THINGS:
            where = [corner for corner, quarter in CORNERS.items() if not cases[name, quarter]]
            if where:
                print(f"    {name}: not in the {', '.join(where)}")


if __name__ == "__main__":
    main()
