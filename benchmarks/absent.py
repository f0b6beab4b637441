"""Questions about what is not there: how often the answer is "nothing matches", and what is lost by answering so.

    python benchmarks/absent.py FLICKR8K [--split test] [--cache DIR]

Asked of the pictures of a split are the 200 questions of `benchmarks/absent.txt`, none of which a picture of Flickr8k's
test split shows, and all captions of the split. A caption keeps its picture where that is likely enough to be shown.
`--model` and `--cache` are as in `mmsearch eval`; `--from` and `--to` say which probabilities are tried.
"""

import argparse
from pathlib import Path

import numpy as np

from indexer.types import Modality
from mmsearch.datasets import open_dataset
from mmsearch.evaluation.gallery import galleries, opened
from mmsearch.query import MATCH, parse_query

QUESTIONS = Path(__file__).parent / "absent.txt"
BATCH = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of Flickr8k")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--reranker")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="a file with a question a line")
    parser.add_argument("--no-rerank", action="store_true")
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    data = open_dataset(asked.data).split(asked.split)
    with opened(asked.model, data, asked.cache, None, lambda *_: None, asked.reranker) as library:
        pictures = galleries(library, data)[Modality.IMAGE]
        shows = dict(zip(pictures.ids.tolist(), pictures.pictures.tolist(), strict=True))

        def probabilities(texts: list[str], owners: list[int]) -> np.ndarray:
            """For each text the likelihood of the best picture, and that of its own among the first ten and at all."""
            rows = []
            for start in range(0, len(texts), BATCH):
                queries = [
                    parse_query(text, kind="image", rerank=not asked.no_rerank) for text in texts[start : start + BATCH]
                ]
                answers = library.searcher().search_many(queries, len(pictures))
                for hits, owner in zip(answers, owners[start : start + BATCH], strict=True):
                    own = next((hit for hit in hits if shows[hit.item.id] == owner), None)
                    rows.append((hits[0].score, own.score if own and own.rank <= 10 else 0, own.score if own else 0))
            return np.array(rows)

        absent = asked.questions.read_text(encoding="utf-8").splitlines()
        nothing = probabilities(absent, [-1] * len(absent))[:, 0]
        captions, owners = data.flat()
        _, ten, whole = probabilities(captions, owners).T
    print(f"{len(absent)} absent questions, {len(captions):,} captions, {len(pictures):,} pictures; shown from {MATCH}")
    print(f"{'shown from':>10}  {'nothing matches':>15}  {'picture kept':>12}  {'of first ten':>12}")
    for least in sorted({MATCH, *np.round(np.quantile(nothing, [0.7, 0.75, 0.8, 0.85, 0.9]), 4).tolist()}):
        kept = 100 * (whole >= least).mean(), 100 * (ten[ten > 0] >= least).mean()
        print(f"{least:10.4f}  {100 * (nothing < least).mean():13.1f} %  {kept[0]:10.1f} %  {kept[1]:10.1f} %")


if __name__ == "__main__":
    main()
