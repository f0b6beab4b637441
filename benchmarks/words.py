"""Words beside meaning: what fusing them brings to known items and costs elsewhere; vectors, RRF and the gain in odds.

    python benchmarks/words.py FLICKR8K [--cache DIR]

The first caption of each dev picture asks. *Captions*: for another caption of the same picture. *Pictures*: for the
picture. *Mixed*: for the picture in one list with the captions of 500 other pictures. *Known items*: 300 made invoices
and letters, half of them named by their number and the others by a scanner, beside the same pictures; the question is a
number, a name, a file name. RRF is reciprocal rank fusion with k = 60 and the weight given for the words' list.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from indexer.catalogue import Reader
from indexer.changes import Piece, Put
from indexer.encoders import Encoder
from indexer.encoders.load import load_encoder
from indexer.index import Index
from indexer.types import Asset, Modality, Span
from indexer.words import match_all, phrases
from mmsearch import calibration
from mmsearch.datasets import Captioned, open_dataset
from mmsearch.query import Query, parse_query
from mmsearch.search import Searcher

RRF_K = 60
DEPTH = 200
Ranked = Callable[[Sequence[Query]], list[list[str]]]

NAMES = ["Ziegler", "Okafor", "Lindqvist", "Tanaka", "Moreau", "Petrov", "Hussain", "Kowalski", "Fernandes"]
NAMES += ["Nakamura", "Brandt", "Oyelaran"]
PLACES = ["Garmisch", "Uppsala", "Ibadan", "Sapporo", "Nantes", "Kazan", "Lahore", "Gdansk", "Coimbra", "Kyoto"]
PLACES += ["Ulm", "Aarhus"]
THINGS = ["oak table", "red lamp", "garden hose", "steel shelf", "blue curtain", "ladder", "window frame", "carpet"]


def documents(seed: int = 5) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Texts by their paths, and questions with the path that answers each."""
    rng = random.Random(seed)
    texts: dict[str, str] = {}
    asked: list[tuple[str, str]] = []
    for n in range(240):
        number = f"2024-{n + 100}"
        name, place = rng.choice(NAMES), rng.choice(PLACES)
        body = f"To: {name}, {place}\n{rng.randint(1, 9)} x {rng.choice(THINGS)}\nTotal {rng.randint(20, 900)}.90 EUR"
        if n % 2:
            path = f"/docs/invoice-{number}.txt"
            texts[path] = f"Invoice\n{body}"
        else:
            path = f"/docs/scan_{7000 + n}.txt"
            texts[path] = f"Invoice {number}\n{body}"
        if n % 6 < 2:
            asked.append((f"invoice {number}", path))
        elif n % 6 == 2:
            asked += [(number, path), (f"scan_{7000 + n}.txt", path)]
    for n in range(60):
        surname = f"{rng.choice(NAMES)[:4]}{rng.choice(['burg', 'holm', 'sson', 'escu', 'idis'])}{chr(97 + n % 26)}"
        path = f"/docs/letter{n}.txt"
        texts[path] = f"Dear {surname}, thank you for your letter about the {rng.choice(THINGS)}. We will answer soon."
        asked.append((f"letter to {surname}", path))
    return texts, asked


def build(folder: Path, encoder: Encoder, data: Captioned) -> Index:
    """Pictures below /pictures, all captions but the first below /near or, for the second half, /far, and documents."""
    index = Index.create(folder, encoder=encoder.name, fingerprint=encoder.fingerprint, dim=encoder.dim)
    half = len(data) // 2
    texts = {
        f"/{'near' if i < half else 'far'}/{i}/{n}.txt": caption
        for i, captions in enumerate(data.captions)
        for n, caption in enumerate(captions[1:])
    } | documents()[0]
    vectors = encoded(encoder.encode_texts, list(texts.values()), 256)
    puts = [put(path, Modality.TEXT, vector, text) for (path, text), vector in zip(texts.items(), vectors, strict=True)]
    for start in range(0, len(data), 32):
        images = [Image.open(one.path).convert("RGB") for one in data.pictures[start : start + 32]]
        seen = enumerate(encoder.encode_images(images), start)
        puts += [put(f"/pictures/{i}.jpg", Modality.IMAGE, vector) for i, vector in seen]
    with index.writing() as writer:
        writer.apply(puts)
    return index


def put(path: str, kind: Modality, vector: np.ndarray, text: str | None = None) -> Put:
    piece = Piece(kind, None if text is None else Span(1, 1), text)
    return Put(Asset(path, kind, 1, 1, path.encode()[-16:].rjust(16)), [piece], vector[None])


def encoded(encode: Callable[[list[str]], np.ndarray], texts: list[str], batch: int) -> np.ndarray:
    return np.concatenate([encode(texts[start : start + batch]) for start in range(0, len(texts), batch)])


def fused(searcher: Searcher, weight: float) -> Ranked:
    """Reciprocal rank fusion of the vectors' list and BM25's, Cormack, Clarke and Büttcher 2009."""

    def rank(queries: Sequence[Query]) -> list[list[str]]:
        lists = []
        with searcher.index.snapshot() as snapshot, patch.object(Reader, "has_words", lambda _: False):
            by_vector = searcher.search_many(queries, DEPTH)
            paths = {p.id: p for p in snapshot.reader.pieces(ids=range(1, snapshot.state.rows[Modality.TEXT] + 2000))}
            names = snapshot.reader.asset_names([p.asset_id for p in paths.values()])
            for query, hits in zip(queries, by_vector, strict=True):
                scores = {str(hit.path): 1 / (RRF_K + hit.rank) for hit in hits}
                any_of = " OR ".join(match_all([one]) for one in phrases(query.text or ""))
                found: dict[str, float] = {}
                for i, score in snapshot.reader.ranked_texts(any_of).items():
                    found[names[paths[i].asset_id][0]] = score
                for asset_id, score in snapshot.reader.ranked_names(any_of).items():
                    path = names[asset_id][0]
                    found[path] = found.get(path, 0.0) + score
                allowed = [p for p in found if not query.where.under or p.startswith(query.where.under)]
                if query.kinds:
                    allowed = [p for p in allowed if p.endswith("jpg") == (Modality.IMAGE in query.kinds)]
                for r, path in enumerate(sorted(allowed, key=lambda p: (-found[p], p))[:DEPTH], 1):
                    scores[path] = scores.get(path, 0.0) + weight / (RRF_K + r)
                lists.append(sorted(scores, key=lambda path: -scores[path])[:10])
        return lists

    return rank


def line(name: str, ranked: list[list[str]], right: Callable[[int, str], bool]) -> str:
    recall = [np.mean([any(right(i, p) for p in paths[:k]) for i, paths in enumerate(ranked)]) for k in (1, 5, 10)]
    return f"{name:<12}" + "".join(f"{100 * r:7.1f}" for r in recall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of Flickr8k")
    parser.add_argument("--cache", type=Path, help="where the index is kept")
    parser.add_argument("--weights", type=float, nargs="*", default=[0.1, 0.3, 1.0], help="of the words' list in RRF")
    asked = parser.parse_args()
    data = open_dataset(asked.data).split("dev")
    encoder = load_encoder("mini", None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.cache or Path(scratch) / "index"
        index = Index.open(folder) if Index.exists(folder) else build(folder, encoder, data)
        assert encoder.calibration is not None
        searcher = Searcher(index, encoder, calibration.read(encoder.calibration))

        def searched(queries: Sequence[Query]) -> list[list[str]]:
            return [[str(hit.path) for hit in hits] for hits in searcher.search_many(queries, 10)]

        def by_vectors(queries: Sequence[Query]) -> list[list[str]]:
            with patch.object(Reader, "has_words", lambda _: False):
                return searched(queries)

        ways: dict[str, Ranked] = {"vectors": by_vectors}
        ways |= {f"RRF {weight:g}": fused(searcher, weight) for weight in asked.weights}
        ways["gain"] = searched
        first = [captions[0] for captions in data.captions]
        half, known = len(data) // 2, documents()[1]
        everywhere = ["/pictures", "/near", "/far"]
        tasks: dict[str, tuple[list[Query], Callable[[int, str], bool]]] = {
            "known items": ([parse_query(text) for text, _ in known], lambda i, path: path == known[i][1]),
            "captions": (
                [parse_query(text, kind="text", under=everywhere) for text in first],
                lambda i, path: path.split("/")[2] == str(i),
            ),
            "pictures": (
                [parse_query(text, kind="image") for text in first],
                lambda i, path: path == f"/pictures/{i}.jpg",
            ),
            "mixed": (
                [parse_query(text, under=["/pictures", "/far"]) for text in first[:half]],
                lambda i, path: path == f"/pictures/{i}.jpg",
            ),
        }
        for task, (queries, right) in tasks.items():
            print(f"\n{task}: {len(queries)} questions\n{'':<12}    R@1    R@5   R@10")
            for name, rank in ways.items():
                print(line(name, rank(queries), right), flush=True)
        hits = searcher.search_many([parse_query(text) for text, _ in known], 10)
        own = [
            next((h.score for h in some if str(h.path) == path), 0.0)
            for some, (_, path) in zip(hits, known, strict=True)
        ]
        print(f"\nprobability of known items: quartiles {np.quantile(own, [0.25, 0.5, 0.75]).round(3).tolist()}")


if __name__ == "__main__":
    main()
