"""Moments of a long video by words: a built film of known shots against the same photographs as stills.

    python benchmarks/video.py FLICKR8K [--split test] [--seconds 7200] [--clip FILE]... [--pool mean] [--cache DIR]

FLICKR8K holds images/, captions.tsv and test.txt. The film is made of 300 photographs of the split in a random order,
each shown 2 to 20 seconds and again until the film is long enough, most of them slowly zoomed; half of the transitions
are hard cuts, the others dissolves of 0.4 to 1.5 seconds. With --clip real clips stand between them. It is indexed by
`mmsearch index` in a process of its own. Prints cut detection (a cut counts as found within half a second of it, or of
its dissolve), time, memory, and how often a caption of a photograph finds one of its shots with a temporal intersection
over union of at least 0.5, beside how often it finds the photograph itself. As the photographs recur in the film, ten
moments are fewer than ten photographs; "10 photographs" counts a photograph's moments once. Choose by the film of
--split dev; --pool says how the frames of a clip become its vector.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

import mmsearch
from indexer.pooling import POOL
from mmsearch.hits import Hits
from mmsearch.query import parse_query

PHOTOGRAPHS = 300
FPS = 12
SIZE = (320, 240)
TOLERANCE = 0.5
OVERLAP = 0.5
DEPTH = 60
"""Moments that are asked for: enough for ten photographs."""
INDEXING = "from indexer import pooling, streams; streams.POOL = pooling.{}; from mmsearch.__main__ import main; main()"
"""`mmsearch`, with clips pooled in one of the two ways."""


def build(path: Path, photographs: Sequence[Path], clips: Sequence[Path], seconds: float, seed: int = 5) -> None:
    """Write the film, and beside it, as JSON, its cuts (begin and end) and its shots (name, begin, end)."""
    rng = random.Random(seed)
    cuts: list[tuple[float, float]] = []
    shots: list[tuple[str, float, float]] = []
    order: list[Path] = []
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "26"}
        count, before = 0, None
        while count < seconds * FPS:
            if not order:
                order = rng.sample([*photographs, *clips], len(photographs) + len(clips))
            source = order.pop()
            frames = _real(source) if source in clips else _zoomed(source, rng)
            mixed = 0 if before is None or rng.random() < 0.5 else int(rng.uniform(0.4, 1.5) * FPS)
            begin = count / FPS
            if before is not None:
                cuts.append((begin, begin + mixed / FPS))
            for i, frame in enumerate(frames):
                if i < mixed and before is not None:
                    share = (i + 1) / (mixed + 1)
                    frame = (share * frame + (1 - share) * before).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                count += 1
                last = frame
            before = last
            shots.append((source.name, begin, count / FPS))
        container.mux(stream.encode(None))
    path.with_suffix(".json").write_text(json.dumps({"cuts": cuts, "shots": shots}))
    part.replace(path)


def _zoomed(photograph: Path, rng: random.Random):  # type: ignore[no-untyped-def]
    with Image.open(photograph) as opened:
        image = opened.convert("RGB").resize((SIZE[0] * 5 // 4, SIZE[1] * 5 // 4), Image.Resampling.BICUBIC)
    count = int(rng.uniform(2, 20) * FPS)
    zooms = np.linspace(1, rng.choice([1.0, rng.uniform(1.05, 1.3), rng.uniform(1.05, 1.3)]), count)
    for zoom in zooms if rng.random() < 0.5 else zooms[::-1]:
        left, top = (image.width - image.width / zoom) / 2, (image.height - image.height / zoom) / 2
        box = (left, top, image.width - left, image.height - top)
        yield np.asarray(image.resize(SIZE, Image.Resampling.BILINEAR, box=box))


def _real(clip: Path):  # type: ignore[no-untyped-def]
    with av.open(str(clip)) as container:
        due = 0.0
        for frame in container.decode(video=0):
            time = float(frame.time or 0.0)
            while time >= due and due < 20:
                yield frame.reformat(width=SIZE[0], height=SIZE[1], format="rgb24").to_ndarray()
                due += 1 / FPS


def f1(found: Sequence[float], cuts: Sequence[Sequence[float]]) -> tuple[float, int, int]:
    """F1, how many cuts were missed, and how many were found that are none."""
    left, missed = list(found), 0
    for begin, end in cuts:
        near = [cut for cut in left if begin - TOLERANCE <= cut <= end + TOLERANCE]
        if near:
            left.remove(min(near, key=lambda cut: abs(cut - (begin + end) / 2)))
        else:
            missed += 1
    return 2 * (len(cuts) - missed) / (len(cuts) + len(found)), missed, len(left)


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Temporal intersection over union."""
    inside = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return inside / (max(a[1], b[1]) - min(a[0], b[0]))


def judge_moments(
    answers: Sequence[Hits], names: Sequence[str], shots: Sequence[Sequence[object]]
) -> tuple[float, float, float]:
    """Recall@1, Recall@10, and Recall in the moments of the first ten photographs."""
    spans = [(str(name), (float(begin), float(end))) for name, begin, end in shots]  # type: ignore[arg-type]
    first = ten = ten_photographs = 0
    for hits, name in zip(answers, names, strict=True):
        seen: set[str] = set()
        for rank, hit in enumerate(hits):
            moment = (hit.start or 0.0, hit.end or 0.0)
            shot = max(spans, key=lambda one: overlap(moment, one[1]))[0]
            seen.add(shot)
            if len(seen) > 10:
                break
            if any(shown == name and overlap(moment, span) >= OVERLAP for shown, span in spans):
                first, ten, ten_photographs = first + (rank == 0), ten + (rank < 10), ten_photographs + 1
                break
    return first / len(names), ten / len(names), ten_photographs / len(names)


def main() -> None:
    """Build what is not built, index, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--split", choices=("test", "dev"), default="test")
    parser.add_argument("--seconds", type=float, default=7200)
    parser.add_argument("--clip", type=Path, action="append", default=[])
    parser.add_argument("--pool", choices=("mean", "best_frame"), default=POOL.__name__)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mmsearch-video-benchmark")
    arguments = parser.parse_args()
    root: Path = arguments.flickr8k
    names = (root / f"{arguments.split}.txt").read_text().split()
    chosen = sorted(random.Random(8).sample(names, PHOTOGRAPHS))
    photographs = [root / "images" / name for name in chosen]
    captions: dict[str, list[str]] = {}
    for line in (root / "captions.tsv").read_text(encoding="utf-8").splitlines():
        name, _, caption = line.partition("\t")
        captions.setdefault(name.partition("#")[0], []).append(caption)

    folder = arguments.cache / f"film-{arguments.split}-{arguments.seconds:.0f}-{len(arguments.clip)}"
    folder.mkdir(parents=True, exist_ok=True)
    film = folder / "film.mp4"
    if not film.exists():
        build(film, photographs, arguments.clip, arguments.seconds)
    truth = json.loads(film.with_suffix(".json").read_text())
    index = folder / "index"
    shutil.rmtree(index, ignore_errors=True)

    began = time.monotonic()
    command = [sys.executable, "-P", "-c", INDEXING.format(arguments.pool), "index", str(film), "--index", str(index)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    length = truth["shots"][-1][2]
    print(f"film: {length:.0f} s, {len(truth['shots'])} shots of {len({s[0] for s in truth['shots']})} sources")
    print(f"indexed in {seconds:.0f} s, {length / seconds:.0f} x real time ({os.cpu_count()} processors); ", end="")
    print(f"{used.ru_utime + used.ru_stime:.0f} s of processor time; peak memory {used.ru_maxrss / 1e6:.2f} GB")

    shown = {shot[0] for shot in truth["shots"]}
    questions = [(name, caption) for name in chosen if name in shown for caption in captions.get(name, ())]
    asked = [name for name, _ in questions]
    with mmsearch.open(index) as library:
        searcher = library.searcher()
        with searcher.index.snapshot() as snapshot:
            rows = range(snapshot.state.rows[mmsearch.Modality.VIDEO])
            items = snapshot.reader.items_at(mmsearch.Modality.VIDEO, rows)
        starts = sorted(item.span.start or 0.0 for item in items.values() if item.span)
        score, missed, wrong = f1(starts[1:], truth["cuts"])
        print(f"cuts: F1 {score:.3f} ({missed} of {len(truth['cuts'])} missed, {wrong} that are none)")
        for label, rerank in (("first stage", False), ("reranked", True)):
            queries = [parse_query(caption, moments=DEPTH, rerank=rerank) for _, caption in questions]
            answers = [searcher.search(query, DEPTH) for query in queries]
            one, ten, distinct = judge_moments(answers, asked, truth["shots"])
            print(f"moments, {label}: R@1 {one:.3f}  R@10 {ten:.3f}  R in 10 photographs {distinct:.3f}")

    with tempfile.TemporaryDirectory() as scratch, mmsearch.open(scratch + "/stills") as library:
        library.index(*photographs)
        for label, rerank in (("first stage", False), ("reranked", True)):
            searcher = library.searcher()
            answers = [searcher.search(parse_query(caption, rerank=rerank), 10) for _, caption in questions]
            ranks = [
                next((i for i, hit in enumerate(hits) if hit.path and hit.path.name == name), 10)
                for hits, name in zip(answers, asked, strict=True)
            ]
            one, ten = (sum(rank < k for rank in ranks) / len(ranks) for k in (1, 10))
            print(f"stills,  {label}: R@1 {one:.3f}  R@10 {ten:.3f}")
    print(f"{len(questions)} captions")


if __name__ == "__main__":
    main()
