"""An image tower in whole numbers and in float32, in turn.

    python benchmarks/whole_numbers.py
    python benchmarks/whole_numbers.py --architecture ViT-B-16-SigLIP --pictures 8

Weights are random, and so are pixels: neither matters to speed. One thread, as each stream of an index run has.
"""

import argparse
import copy
import logging
import statistics
import time
from collections.abc import Callable

import open_clip
import torch

from indexer.encoders.integers import in_integers, observe


def main() -> None:
    """Build the towers, run them in turn, print medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--architecture", default="ViT-B-32", help="of open_clip (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=32, help="at once (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=20)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip's, of random weights
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tower = open_clip.create_model(asked.architecture).eval().visual
    size = tower.image_size if isinstance(tower.image_size, tuple) else (tower.image_size, tower.image_size)
    pixels = torch.randn(asked.pictures, 3, *size)
    with torch.inference_mode():
        ranges, exact = observe(tower, lambda: tower(pixels))
        towers: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "float32": tower,
            "int8": in_integers(copy.deepcopy(tower), ranges),
        }
        seconds: dict[str, list[float]] = {name: [] for name in towers}
        for _ in range(asked.runs):
            for name, one in towers.items():
                began = time.perf_counter()
                one(pixels)
                seconds[name].append((time.perf_counter() - began) / asked.pictures)
        for name, one in towers.items():
            cosine = torch.nn.functional.cosine_similarity(one(pixels), exact).min().item()
            taken = [1e3 * value for value in seconds[name]]
            ratio = statistics.median(
                before / now for before, now in zip(seconds["float32"], seconds[name], strict=True)
            )
            print(
                f"{name:8} {statistics.median(taken):6.1f} ms a picture, least {min(taken):6.1f}; "
                f"{ratio:.2f} times as fast as in float32; cosine {cosine:.4f}"
            )


if __name__ == "__main__":
    main()
