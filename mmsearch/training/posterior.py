"""Fitting what the log-odds of an answer mean for a question and a library: see ``mmsearch.posterior``.

    fitted = fit_posterior("mini", [open_dataset("flickr8k").split("dev")], rerank=True)

Libraries of several sizes are drawn from captioned pictures. Asked are everyday words for what is there and for what is
not, and captions; a picture matches an everyday word when two of its captions say it, and a caption when its captions
together say all of it (``mmsearch.evaluation.everyday``). All that is seen of the best answers is the evidence of one
logistic regression.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.encoders import Encoder
from indexer.encoders.load import load_encoder
from indexer.errors import UsageError
from indexer.types import Modality
from mmsearch.datasets import Captioned
from mmsearch.evaluation.everyday import AGREE, Judge, Question
from mmsearch.evaluation.gallery import Progress, indexed
from mmsearch.evaluation.kinds import everyday_kinds
from mmsearch.evaluation.libraries import draws, library_of, name_of, read_pool
from mmsearch.library import Library
from mmsearch.posterior import Posterior
from mmsearch.query import Query
from mmsearch.rerank.load import load_reranker
from mmsearch.training.calibrate import fit_logistic

SIZES = (50, 250, 1000)
SHARES = {"present": 0.5, "absent": 0.15, "captions": 0.35}
"""What questions of each role count for, of all that are asked of libraries of one size: people mostly ask for what
they have."""
FIRST = 3.0
"""What the first answer of a list counts for; the one at place r counts for 1 / (1 + r / 10)."""
BOUNDS = (0.005, 0.995)
"""Quantiles of each sign between which what was fitted holds."""
EVIDENCE = 0.2
"""Answers of one list say much the same: so much of an answer each counts for in the regression."""


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """The best answers to one question of one library: log-odds ``(K,)``, whether they match ``(K,)``, and signs."""

    question: Question
    logits: np.ndarray
    right: np.ndarray
    signs: np.ndarray
    source: tuple[int, int]
    """The number of the data, and the size of the library."""


def fit_posterior(
    subject: str | Encoder,
    data: Sequence[Captioned],
    *,
    rerank: bool,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Posterior:
    """What is fitted to answers in words to pictures, with the reranker of a model or without one.

    Raises:
        UsageError: there is no reranker for the model, though one is asked for; or nothing can be asked of the data.
        ModelError: it cannot be loaded.
    """
    encoder = load_encoder(subject, None) if isinstance(subject, str) else subject
    observed = [
        one
        for number, some in enumerate(data)
        for one in observe(encoder, some, number, rerank=rerank, sizes=sizes, seed=seed, cache=cache, progress=progress)
    ]
    return fitted(observed)


def observe(
    encoder: Encoder,
    data: Captioned,
    number: int,
    *,
    rerank: bool,
    sizes: Sequence[int],
    seed: int,
    cache: Path | None,
    progress: Progress,
) -> list[Observed]:
    """What libraries of ``data`` answer to everything that can be asked of them.

    Raises:
        UsageError: there is no reranker for the model, though one is asked for.
    """
    reranker = load_reranker(None, encoder, None)
    if rerank and reranker is None:
        raise UsageError(f"there is no reranker for {encoder.name}; fit what its first stage says, with --no-rerank")
    compressor = None if reranker is None else reranker.compressor
    with indexed(encoder, data, cache, progress, compressor, captions=False) as folder:
        pool = read_pool(folder, data)
    judge = Judge(data, len(data), everyday_kinds(), AGREE, seed)
    found: list[Observed] = []
    with tempfile.TemporaryDirectory(prefix="mmsearch-fit-") as scratch:
        for size in sorted({min(size, len(pool.pictures)) for size in sizes}):
            drawn = draws(list(range(len(pool.pictures))), [], size, seed)
            for done, places in enumerate(drawn):
                progress(f"asking libraries of {size:,}", done, len(drawn))
                with library_of(pool, places, encoder, reranker, Path(scratch)) as library:
                    pictures = pool.pictures[places].tolist()
                    found += _observed(library, judge, pictures, (number, size), rerank)
            progress(f"asking libraries of {size:,}", len(drawn), len(drawn))
    return found


def _observed(
    library: Library, judge: Judge, pictures: Sequence[int], source: tuple[int, int], rerank: bool
) -> list[Observed]:
    here = {name_of(picture): picture for picture in pictures}
    searcher = library.searcher()
    found = []
    for question in judge.questions(pictures):
        seen = searcher.seen(Query(question.text, rerank=rerank), Modality.IMAGE)
        answers = [here[str(item.asset.key)] for item in seen.items]
        right = [one in question.right for one in answers]
        if question.role == "captions":
            right = [yes or judge.fits(question.text, one) for yes, one in zip(right, answers, strict=True)]
        found.append(Observed(question, seen.logits, np.array(right), seen.signs, source))
    return found


def fitted(observed: Sequence[Observed]) -> Posterior:
    """The regression over what was observed.

    Raises:
        UsageError: nothing matches, or everything does.
    """
    signs = np.array([one.signs for one in observed])  # (Q, F)
    low, high = np.quantile(signs, BOUNDS, axis=0)
    signs = np.clip(signs, low, high)
    counts = Counter((one.source, one.question.role) for one in observed)
    each = [SHARES[one.question.role] / counts[one.source, one.question.role] for one in observed]
    places = [np.arange(len(one.logits)) for one in observed]
    of = np.repeat(np.arange(len(observed)), [len(some) for some in places])  # (A,)
    place = np.concatenate(places)
    weight = np.array(each)[of] * np.where(place == 0, FIRST, 1 / (1 + place / 10))
    weight *= EVIDENCE * len(weight) / weight.sum()
    logits = np.concatenate([one.logits for one in observed])
    right = np.concatenate([one.right for one in observed]).astype(np.float64)
    if right.all() or not right.any():
        raise UsageError("of what was asked nothing matches, or everything; other pictures are needed")
    values = np.column_stack([logits, logits * signs[of, 0], signs[of]])  # (A, 2 + F)
    mean, std = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-9)
    slopes, bias = fit_logistic((values - mean) / std, right, weight)
    slopes = slopes / std
    return Posterior(
        float(slopes[0]),
        float(slopes[1]),
        float(bias - mean @ slopes),
        tuple(slopes[2:].tolist()),
        tuple(low.tolist()),
        tuple(high.tolist()),
    )
