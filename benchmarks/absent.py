"""Questions about what is not there: how often the answer is "nothing matches", and what is lost by answering so.

    python benchmarks/absent.py FLICKR8K [--split test] [--cache DIR]

Asked of the pictures of a split are the questions of `benchmarks/absent-SPLIT.txt`, none of which a picture of that
split shows, and all captions of the split. A caption keeps its picture where that is likely enough to be shown. With
what is `shown from` another threshold than `mmsearch.query.MATCH` can be compared; it was chosen on dev.
`--model` and `--cache` are as in `mmsearch eval`.
"""

import argparse
from pathlib import Path

import numpy as np

from indexer.types import Modality
from mmsearch.datasets import open_dataset
from mmsearch.evaluation.gallery import galleries, opened
from mmsearch.query import MATCH, Query, least_shown, parse_query

BATCH = 50
THRESHOLDS = (0.05, 0.07, 0.08, 0.1, 0.12, 0.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of Flickr8k")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--reranker")
    parser.add_argument("--questions", type=Path, help="a file with a question a line, in place of absent-SPLIT.txt")
    parser.add_argument("--no-rerank", action="store_true")
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    questions = asked.questions or Path(__file__).parent / f"absent-{asked.split}.txt"
    data = open_dataset(asked.data).split(asked.split)
    with opened(asked.model, data, asked.cache, None, lambda *_: None, asked.reranker) as library:
        pictures = galleries(library, data)[Modality.IMAGE]
        items = sum(library.status().items.values())
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

        absent = questions.read_text(encoding="utf-8").splitlines()
        nothing = probabilities(absent, [-1] * len(absent))[:, 0]
        captions, owners = data.flat()
        best, ten, whole = probabilities(captions, owners).T
    print(f"{len(absent)} absent questions, {len(captions):,} captions, {len(pictures):,} pictures")
    print(f"{'shown from':>10}  {'nothing matches':>15}  {'caption answered':>16}  {'picture kept':>12}  {'in ten':>7}")
    for match in sorted({MATCH, *THRESHOLDS}):
        least = np.array([least_shown(Query("words", match=match), value, items) for value in best])
        parts = [(nothing < match).mean(), (best >= match).mean(), (whole >= least).mean(), (ten >= least).mean()]
        told, answered, kept, first = (100 * part for part in parts)
        used = "  as shipped" if match == MATCH else ""
        print(f"{match:10.2f}  {told:13.1f} %  {answered:14.1f} %  {kept:10.1f} %  {first:5.1f} %{used}")


if __name__ == "__main__":
    main()
