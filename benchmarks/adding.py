"""How long `library.add` takes for pictures in memory, beside indexing the same pictures from their files.

    python benchmarks/adding.py ../shared/data/flickr8k/images --files 1000
    python benchmarks/adding.py FOLDER --files 300 --one-by-one 50

Both in this process, with the model loaded, taking turns, each into a new index in the same precision. Files are
decoded when they are indexed; what is added was decoded before, and then is prepared and embedded alike.
``--one-by-one N`` also adds so many pictures in a call each.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

import mmsearch


def seconds(do: Callable[[mmsearch.Library], object], folder: Path, model: str) -> float:
    """What ``do`` takes with a new index in ``folder`` whose model is loaded and whose precision is decided."""
    shutil.rmtree(folder, ignore_errors=True)
    with mmsearch.open(folder, model=model) as library:
        library.add([mmsearch.Addition("first", image=Image.new("RGB", (64, 64)))])
        began = time.perf_counter()
        do(library)
        return time.perf_counter() - began


def one_by_one(items: Sequence[mmsearch.Addition]) -> Callable[[mmsearch.Library], object]:
    """Adds each in a call of its own."""
    return lambda library: [library.add([item]) for item in items]


def main() -> None:
    """Take turns, print medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--one-by-one", type=int, default=0, metavar="N")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch, "files")
        files.mkdir()
        for path in sorted(asked.folder.iterdir())[: asked.files]:
            shutil.copy(path, files)
        items = [
            mmsearch.Addition(path.name, image=Image.open(path).convert("RGB")) for path in sorted(files.iterdir())
        ]
        ways: dict[str, Callable[[mmsearch.Library], object]] = {
            "indexed from files": lambda library: library.index(files),
            "added from memory": lambda library: library.add(items),
        }
        if asked.one_by_one:
            ways["added one by one"] = one_by_one(items[: asked.one_by_one])
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(asked.runs):
            for name, do in ways.items():
                taken[name].append(seconds(do, Path(scratch, "index"), asked.model))
    for name, values in taken.items():
        count = asked.one_by_one if name == "added one by one" else len(items)
        middle = statistics.median(values)
        print(f"{name:20} {middle:6.2f} s, {count / middle:6.1f} a second (medians of {asked.runs}, {count} pictures)")


if __name__ == "__main__":
    main()
