"""Fitting what the log-odds of an answer mean for a question and a library: see ``mmsearch.posterior``.

    fitted = fit_posterior("mini", [open_dataset("flickr8k").split("dev")], rerank=True)

Libraries of several sizes are drawn from captioned pictures. Asked are everyday words for what is there and for what is
not, and captions; a picture matches an everyday word when two of its captions say it, and a caption when its captions
together say all of it (``mmsearch.evaluation.everyday``).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from indexer.encoders import Encoder
from indexer.encoders.load import load_encoder
from indexer.errors import UsageError
from indexer.types import Modality
from mmsearch.datasets import Captioned, open_dataset
from mmsearch.datasets.model import KIND_OF
from mmsearch.evaluation.everyday import AGREE, Judge, Question
from mmsearch.evaluation.gallery import Progress, indexed
from mmsearch.evaluation.kinds import everyday_kinds
from mmsearch.evaluation.libraries import draws, library_of, name_of, read_pool
from mmsearch.library import Library
from mmsearch.posterior import Posterior
from mmsearch.query import Query
from mmsearch.rerank.load import load_reranker

SIZES = (12, 50, 250, 1000)
SHARES = {"present": 0.5, "absent": 0.15, "captions": 0.35}
"""What questions of each role count for, of all that are asked of libraries of one size: people mostly ask for what
they have."""
FIRST = 3.0
"""What the first answer of a list counts for; the one at place r counts for 1 / (1 + r / 10)."""
BOUNDS = (0.005, 0.995)
"""Quantiles of each sign between which what was fitted holds."""
UNITS, STEPS, RATE, DECAY = 8, 1500, 0.02, 0.1
"""Of the hidden layer, and of the fit: chosen by what is said of kinds of things that had no part in it."""


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


def read_data(named: str) -> Captioned:
    """The pictures of ``FOLDER:SPLIT``, or those of ``FOLDER``: of all its splits but the one for tests.

    Raises:
        UsageError: there is no such data, or no such split.
    """
    folder, colon, split = named.rpartition(":")
    if colon and not Path(named).exists():
        return open_dataset(Path(folder)).split(split)
    splits = [part for name, part in open_dataset(Path(named)).splits.items() if KIND_OF.get(name) != "test"]
    return Captioned([p for part in splits for p in part.pictures], [c for part in splits for c in part.captions])


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


def fitted(observed: Sequence[Observed], *, seed: int = 0) -> Posterior:
    """The network that makes what was observed likeliest.

    Raises:
        UsageError: nothing matches, or everything does.
    """
    torch.manual_seed(seed)
    signs, logits, right, weight = (torch.tensor(part) for part in _arrays(observed))  # (Q, F), (Q, K) each
    low, high = (torch.quantile(signs, bound, dim=0) for bound in BOUNDS)
    signs = signs.clamp(low, high)
    mean, std = signs.mean(dim=0), signs.std(dim=0)
    std[std < 1e-3] = 1.0  # a sign that is always the same: nearness without a bank
    values = (signs - mean) / std
    among = weight > 0
    centre, spread = logits[among].mean(), logits[among].std()
    hidden = nn.Linear(signs.shape[1], UNITS, dtype=torch.float64)
    out = nn.Linear(UNITS, 2, dtype=torch.float64)
    optimiser = torch.optim.AdamW([*hidden.parameters(), *out.parameters()], lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        slope, offset = out(torch.tanh(hidden(values))).split(1, dim=1)
        log_odds = F.softplus(slope) * (logits - centre) / spread + offset
        loss = (F.binary_cross_entropy_with_logits(log_odds, right, reduction="none") * weight).sum()
        loss.backward()
        optimiser.step()
        schedule.step()
    weights = (hidden.weight, hidden.bias, out.weight, out.bias)
    parts = (low, high, mean, std, *weights, torch.stack([centre, spread]))
    return Posterior(*(part.detach().numpy() for part in parts))


def _arrays(observed: Sequence[Observed]) -> tuple[np.ndarray, ...]:
    """Signs ``(Q, F)``, and of each answer its log-odds, whether it matches, and what it counts for, ``(Q, K)`` each.

    Raises:
        UsageError: nothing matches, or everything does.
    """
    counts = Counter((one.source, one.question.role) for one in observed)
    most = max(len(one.logits) for one in observed)
    place = np.arange(most)
    by_place = np.where(place == 0, FIRST, 1 / (1 + place / 10))
    logits, right, weight = (np.zeros((len(observed), most)) for _ in range(3))
    for i, one in enumerate(observed):
        count, role = len(one.logits), one.question.role
        logits[i, :count], right[i, :count] = one.logits, one.right
        weight[i, :count] = SHARES[role] / counts[one.source, role] * by_place[:count]
    matching = right[weight > 0]
    if matching.all() or not matching.any():
        raise UsageError("of what was asked nothing matches, or everything; other pictures are needed")
    return np.array([one.signs for one in observed]), logits, right, weight / weight.sum()
