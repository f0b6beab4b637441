"""What looking again costs a question: milliseconds of a warm library with and without it, by the number of candidates.

    python benchmarks/reranking.py FOLDER

FOLDER holds pictures; they are indexed first, into a folder that is gone afterwards. Answers are pictures only.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import mmsearch

QUESTIONS = (
    "people on a beach",
    "a dog runs through the snow",
    "two children play on a swing",
    "a man in a red shirt climbs a rock",
    "a brown dog with a ball in its mouth on the grass near a fence",
)
ROUNDS = 8


def asked_once(library: mmsearch.Library, question: str, candidates: int | None) -> float:
    began = time.perf_counter()
    library.query(question, kind="image", k=10, rerank=candidates is not None, candidates=candidates)
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as place, mmsearch.open(Path(place) / "index") as library:
        library.index(folder)
        print("candidates  first stage alone  reranked   (ms, medians)")
        for candidates in (10, 20, 50, 100):
            times: dict[int | None, list[float]] = {None: [], candidates: []}
            for _ in range(ROUNDS + 1):
                for question in QUESTIONS:
                    for depth, found in times.items():
                        found.append(asked_once(library, question, depth))
            alone, again = (statistics.median(found[len(QUESTIONS) :]) for found in times.values())
            print(f"{candidates:10}  {alone:17.1f}  {again:8.1f}")


if __name__ == "__main__":
    main()
