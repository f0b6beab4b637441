"""What it costs that an index is large: a question from the shell, and the rate at which pictures are added.

    python benchmarks/growth.py FOLDER --files 2000
    python benchmarks/growth.py FOLDER --files 2000 --items 10000 1000000 --no-tokens

For each of ``--items`` an index is made of vectors, and tokens for the reranker, that nobody computed. The question is
asked of all of them in turn; then the folder's pictures are added to each in turn, and taken out again. Every run is a
process of its own, start-up included. A million items take 2 GB for the vectors and 8.3 GB for the tokens of `mini`,
which ``--no-tokens`` leaves out; they take a quarter of an hour to write, so ``--indexes`` keeps them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import cold
import indexing

from indexer.index import Index


def ask(where: Path) -> indexing.Run:
    """A question in words."""
    return indexing.run(
        [sys.executable, "-P", "-m", "mmsearch", "query", cold.QUESTION, "--index", str(where), "-k", "10"]
    )


def add(folder: Path, model: str, where: Path) -> indexing.Run:
    """The pictures of ``folder`` into the index, which has none of them before and after."""
    found = indexing.run(indexing.index(folder, where, model))
    report = json.loads(found.said)
    assert report["added"] == sum(1 for _ in folder.iterdir()) and not report["unchanged"], report
    indexing.run([sys.executable, "-P", "-m", "mmsearch", "remove", str(folder), "--index", str(where)])
    return found


def medians(runs: list[indexing.Run]) -> tuple[float, float]:
    """Seconds and megabytes."""
    return statistics.median(one.seconds for one in runs), statistics.median(one.megabytes for one in runs)


def main() -> None:
    """Make the indexes, ask, add, print medians and what they are to those of the smallest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="pictures to add")
    parser.add_argument("--files", type=int, default=2000, help="so many of them (default: %(default)s)")
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-tokens", action="store_true", help="indexes that hold nothing for a reranker")
    parser.add_argument("--indexes", type=Path, help="keep the indexes here, and use those that are there")
    parser.add_argument("--make", action="store_true", help="only make the indexes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wheres = {items: (options.indexes or Path(scratch)) / f"index-{items}" for items in options.items}
        code = "import sys, pathlib, cold; cold.make_index(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])"
        code += f", with_tokens={not options.no_tokens})"
        for items, where in wheres.items():  # by other processes, whose memory does not count for those that follow
            make = [sys.executable, "-c", code, str(where.absolute()), options.model, str(items)]
            if not Index.exists(where):
                indexing.run(make, Path(__file__).parent)
        if options.make:
            return
        paths = sorted(path for path in options.folder.iterdir() if path.is_file())[: options.files]
        added = indexing.links(paths, Path(scratch, "added"))
        turns = {"a question": ask, f"{len(paths):,} pictures added": partial(add, added, options.model)}
        for what, take in turns.items():
            runs: dict[int, list[indexing.Run]] = {items: [] for items in wheres}
            for turn in range(options.runs + (take is ask)):  # the first question is not counted
                for items, where in wheres.items():
                    run = take(where)
                    if turn or take is not ask:
                        runs[items].append(run)
            least = medians(next(iter(runs.values())))[0]
            print(f"{what}, medians of {options.runs}, whole process, taking turns")
            for items, some in runs.items():
                seconds, memory = medians(some)
                print(f"{items:10,} items {seconds:8.2f} s, {seconds / least:5.2f} times {memory:7.0f} MB")


if __name__ == "__main__":
    main()
