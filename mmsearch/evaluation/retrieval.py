"""How well a model finds: every caption asks for its picture and every picture for its captions, through a real index.

The first answers come from the same ``Searcher`` that answers ``mmsearch query``, without its reranker and, if it has
one, with it; only where the right one is not among them is its rank worked out from the stored vectors, by the same
rule: higher cosine first, ties to the smaller item.
What is relevant is decided by words: every picture that has a caption of exactly these words is a right answer to them,
and every caption of these words is a right answer to the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders import Encoder
from indexer.errors import DecodeError, StorageError, UsageError
from indexer.types import Modality, Skipped
from mmsearch.evaluation import metrics
from mmsearch.evaluation.gallery import Gallery, Progress, galleries, one_line, opened, read_picture, skipped
from mmsearch.evaluation.metrics import Judged
from mmsearch.query import Query

if TYPE_CHECKING:
    from mmsearch.datasets import Captioned
    from mmsearch.library import Library
    from mmsearch.rerank import Reranker
    from mmsearch.search import Searcher

KS = (1, 5, 10)
THRESHOLD = 0.5
ANSWERS = 5
"""Answers of each question that a result keeps by name."""
FORMAT = 2
"""Of a saved result."""

_TEXT_CHUNK = 1024
_IMAGE_CHUNK = 64
_SCORES = 1 << 23
"""Scores worked out at once: 64 MB."""
_SAME = 9
"""Decimals of a cosine that count: two that differ only beyond are a tie, as equal vectors may do."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One of the first answers to a question: the name of a picture or the words of a text, and whether it is right."""

    name: str
    right: bool


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """One direction of asking, question by question; Q questions.

    Attributes:
        asked, answered: ``text`` and ``image``, or the other way round.
        gallery: how many items competed.
        questions: the words of the caption, or the name of the picture, that asks.
        pictures: the name of the picture that each question is about.
        groups: ``(Q,)`` numbers; questions about one file (two regions of it, say) share one and are not independent.
        judged: the ranks of the right answers.
        right, returned: ``(Q,)`` how many answers are at least as likely as the threshold, and right ones among them.
        answers: the first few, reranked if there was a reranker.
        reranked: the ranks after a reranker has ordered the first ``depth`` answers, if there was one.
        depth: how many those were, else 0.
        answers_before: with a reranker, the first few of the first stage.
        confidence: for ``dual`` and ``reranked``, the probability ``(Q,)`` that the search gives its first answer.
    """

    asked: str
    answered: str
    gallery: int
    questions: tuple[str, ...]
    pictures: tuple[str, ...]
    groups: np.ndarray
    judged: Judged
    right: np.ndarray
    returned: np.ndarray
    answers: tuple[tuple[Answer, ...], ...]
    reranked: Judged | None = None
    depth: int = 0
    answers_before: tuple[tuple[Answer, ...], ...] = ()
    confidence: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``text→image``."""
        return f"{self.asked}→{self.answered}"

    @property
    def stages(self) -> dict[str, Judged]:
        """The rankings to be measured by name: ``dual``, and with a reranker ``reranked`` and ``oracle@depth``.

        The oracle is the best that any reranker of so many answers could do.
        """
        if self.reranked is None:
            return {"dual": self.judged}
        return {
            "dual": self.judged,
            "reranked": self.reranked,
            f"oracle@{self.depth}": metrics.oracle(self.judged, self.depth),
        }

    def calibration_error(self, stage: str) -> float | None:
        """How far the probability of the first answer is off (``metrics.calibration_error``); None for an oracle."""
        if stage not in self.confidence:
            return None
        return metrics.calibration_error(self.confidence[stage], self.stages[stage].ranks[:, 0] == 1)

    def first_stage(self) -> Way:
        """The same as it would be without a reranker."""
        if self.reranked is None:
            return self
        confidence = {stage: rows for stage, rows in self.confidence.items() if stage != "reranked"}
        return replace(
            self, reranked=None, depth=0, answers=self.answers_before, answers_before=(), confidence=confidence
        )

    def measures(self, ks: Sequence[int], threshold: float, judged: Judged | None = None) -> dict[str, np.ndarray]:
        """Every measure, question by question ``(Q,)``, of the ranking ``judged`` (the first stage if None).

        The measures of what is above the threshold do not depend on an order and belong to the first stage alone.
        """
        ranks = self.judged if judged is None else judged
        values: dict[str, np.ndarray] = {f"R@{k}": metrics.hit_rate(ranks, k) for k in ks}
        values |= {"MRR": metrics.reciprocal_rank(ranks), "mAP": metrics.average_precision(ranks)}
        values |= {f"nDCG@{k}": metrics.ndcg(ranks, k) for k in ks}
        for k in ks:
            precision, recall = metrics.precision(ranks, k), metrics.recall(ranks, k)
            values |= {f"precision@{k}": precision, f"recall@{k}": recall, f"F1@{k}": metrics.f1(precision, recall)}
        if judged is None or judged is self.judged:
            precision = metrics.set_precision(self.right, self.returned)
            recall = metrics.set_recall(self.right, self.judged.relevant)
            mark = f"≥{threshold:g}"
            values |= {f"precision{mark}": precision, f"recall{mark}": recall}
            values[f"F1{mark}"] = metrics.f1(precision, recall)
        values["rank"] = metrics.first_rank(ranks)
        return values


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """How one model did on one split; ``as_dict`` and ``from_dict`` carry it through a file.

    ``skipped`` are the pictures that could not be read, or that an existing index does not hold; neither they nor their
    captions ask or answer. ``not_reranked`` says what was in the way of a reranker, if anything was.
    """

    model: str
    fingerprint: str
    data: str
    ks: tuple[int, ...]
    threshold: float
    ways: tuple[Way, ...]
    skipped: tuple[Skipped, ...] = ()
    not_reranked: tuple[str, ...] = ()

    @property
    def reranked(self) -> bool:
        """Whether a reranker took part."""
        return any(way.reranked is not None for way in self.ways)

    def first_stage(self) -> Result:
        """The same as it would be without a reranker."""
        return replace(self, ways=tuple(way.first_stage() for way in self.ways), not_reranked=())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, question by question."""
        return {
            "format": FORMAT,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "data": self.data,
            "ks": list(self.ks),
            "threshold": self.threshold,
            "skipped": [[one.path, one.reason] for one in self.skipped],
            "not_reranked": list(self.not_reranked),
            "ways": [_way_as_dict(way) for way in self.ways],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """What ``as_dict`` gave.

        Raises:
            UsageError: it is something else, or of another version of this program.
        """
        if values.get("format") != FORMAT or "ways" not in values:
            raise UsageError("this is no result that 'mmsearch eval --out' of this version wrote; write it again")
        try:
            return cls(
                str(values["model"]),
                str(values["fingerprint"]),
                str(values["data"]),
                tuple(values["ks"]),
                float(values["threshold"]),
                tuple(_way_from_dict(way) for way in values["ways"]),
                tuple(Skipped(path, reason) for path, reason in values["skipped"]),
                tuple(values["not_reranked"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise UsageError(f"the saved result is damaged ({type(exc).__name__}: {exc}); write it again") from exc


def evaluate(
    subject: str | Path | Encoder,
    data: Captioned,
    *,
    name: str = "",
    cache: Path | None = None,
    ks: Sequence[int] = KS,
    threshold: float = THRESHOLD,
    rerank: bool = True,
    candidates: int | None = None,
    reranker: str | Path | Reranker | None = None,
    device: str | None = None,
    progress: Progress = lambda *_: None,
) -> Result:
    """Judge a model, or an index that is there, on captioned pictures, both ways.

        data = open_dataset("flickr8k").split("test")
        result = evaluate("mini", data)
        result.ways[0].measures(result.ks, result.threshold)["R@5"].mean()   # of captions that find their picture

    A model is judged over an index that is built for it, of all pictures and all captions. In an index that is there
    everything competes, also what the data says nothing of; pictures are known by their paths and captions by their
    words. Those that it does not hold as texts are no answers, and where it holds none pictures do not ask.

    Args:
        subject: the folder of an index, or ``mini``, an open_clip name, the folder of a model, or an ``Encoder``.
        name: what the data is called in the result.
        cache: where the index of a model is kept, to be found again by the next call with this model and this data.
        ks: cuts of the ranking.
        threshold: the probability from which on an answer counts as returned, for precision and recall of that set.
        rerank: whether the ranks after reranking are judged as well, where the model has a reranker.
        candidates: how many answers are reranked; as many as the reranker says if None.
        reranker: the folder or name of a reranker, or a ``Reranker``; the one that was trained for the model if None.

    Raises:
        UsageError, ModelError: there is no such model, or it cannot be loaded; no picture of the data is in the index;
            a cut or the threshold makes no sense.
        StorageError: the index cannot be read or written.
    """
    with opened(subject, data, cache, device, progress, reranker) as library:
        return evaluate_library(
            library,
            data,
            name=name,
            ks=ks,
            threshold=threshold,
            rerank=rerank,
            candidates=candidates,
            progress=progress,
        )


def evaluate_library(
    library: Library,
    data: Captioned,
    *,
    name: str = "",
    ks: Sequence[int] = KS,
    threshold: float = THRESHOLD,
    rerank: bool = True,
    candidates: int | None = None,
    progress: Progress = lambda *_: None,
) -> Result:
    """``evaluate`` for a library that is open.

    Raises:
        UsageError, ModelError, StorageError: as in ``evaluate``.
    """
    if not ks or min(ks) < 1:
        raise UsageError(f"the cuts are {', '.join(map(str, ks)) or 'none'}; each is at least 1, for example 1,5,10")
    if not 0 < threshold < 1:
        raise UsageError(f"the threshold is {threshold:g}; a probability between 0 and 1 can be reached and missed")
    if candidates is not None and candidates < 1:
        raise UsageError(f"candidates is {candidates}; rerank at least 1 answer, or none at all")
    searcher = library.searcher()
    items = galleries(library, data)
    left_out = skipped(library, data, items[Modality.IMAGE])
    if len(left_out) == len(data.pictures):
        reason = f": {left_out[0].path} {left_out[0].reason}" if left_out else ""
        raise UsageError(f"the index in {library.folder} holds no picture of the data{reason}")
    cuts = tuple(sorted(set(ks)))
    depth = 0 if not rerank or searcher.reranker is None else candidates or searcher.reranker.candidates
    asking = _Asking(searcher, items, data, max(*cuts, ANSWERS, depth), threshold, depth)
    ways = [way for way in (asking.by_captions(progress), asking.by_pictures(progress)) if way is not None]
    return Result(
        searcher.encoder.name,
        searcher.encoder.fingerprint,
        name,
        cuts,
        threshold,
        tuple(ways),
        left_out + tuple(asking.unread),
        tuple(asking.not_reranked),
    )


@dataclass(frozen=True, slots=True)
class _Question:
    """One question: how it reads, the picture it is about, and the places in the gallery of its right answers."""

    text: str
    picture: int
    relevant: frozenset[int]


class _Asking:
    """Everything that both ways of asking share."""

    def __init__(
        self,
        searcher: Searcher,
        items: Mapping[Modality, Gallery],
        data: Captioned,
        answers: int,
        threshold: float,
        depth: int,
    ) -> None:
        self.searcher = searcher
        self.items = items
        self.data = data
        self.answers = answers
        self.logit = math.log(threshold / (1 - threshold))
        self.depth = depth
        self.unread: list[Skipped] = []
        self.not_reranked: list[str] = []
        self.captions = [[one_line(caption) for caption in some] for some in data.captions]
        files = [(picture.path, picture.member) for picture in data.pictures]
        number = {file: i for i, file in enumerate(dict.fromkeys(files))}
        self.groups = [number[file] for file in files]
        self.here = sorted({int(picture) for picture in items[Modality.IMAGE].pictures if picture >= 0})

    def by_captions(self, progress: Progress) -> Way | None:
        """Every caption asks for its picture."""
        places = _places(self.items[Modality.IMAGE].pictures.tolist())
        described: dict[str, set[int]] = {}
        for picture in self.here:
            for caption in self.captions[picture]:
                described.setdefault(caption, set()).update(places[picture])
        questions = [
            _Question(caption, picture, frozenset(described[caption]))
            for picture in self.here
            for caption in self.captions[picture]
        ]
        return self._ask(Modality.TEXT, Modality.IMAGE, questions, progress)

    def by_pictures(self, progress: Progress) -> Way | None:
        """Every picture asks for its captions, if the gallery holds one of them."""
        places = _places([one_line(text) for text in self.items[Modality.TEXT].names])
        questions = [
            _Question(
                self.data.pictures[picture].name,
                picture,
                frozenset(place for caption in self.captions[picture] for place in places.get(caption, ())),
            )
            for picture in self.here
        ]
        right = [question for question in questions if question.relevant]
        return self._ask(Modality.IMAGE, Modality.TEXT, right, progress)

    def _ask(self, asked: Modality, answered: Modality, questions: list[_Question], progress: Progress) -> Way | None:
        """Ask all that can be asked; None if that is nothing."""
        gallery = self.items[answered]
        place = {number: i for i, number in enumerate(gallery.ids.tolist())}
        first, second, right, returned, answers, before = [], [], [], [], [], []
        confidence: dict[str, list[float]] = {"dual": [], "reranked": []}
        obstacles: list[str] = []
        looked = False
        answered_questions: list[_Question] = []
        progress(f"asking {asked}→{answered}", 0, len(questions))
        done = 0
        for size, chunk, queries in self._queries(asked, answered, questions):
            done += size
            progress(f"asking {asked}→{answered}", done, len(questions))
            if not chunk:
                continue
            answered_questions += chunk
            embedded = self.searcher.embed(queries)
            plain = [replace(one, query=replace(one.query, rerank=False)) for one in embedded]
            hits = self.searcher.answer(plain, self.answers)
            again = self.searcher.answer(embedded, self.answers) if self.depth else hits
            vectors = np.stack([one.wanted[0].vector for one in embedded])  # (B, D)
            cosines = _cosines(vectors, gallery.vectors)  # (B, N)
            line = self.searcher.calibration[asked, answered]
            likely = line.gain * cosines + line.offset >= self.logit  # (B, N)
            order = metrics.ranking(cosines)
            for b, question in enumerate(chunk):
                if any(hit.item.id not in place for hit in [*hits[b], *again[b]]):
                    raise StorageError(
                        f"the index in {self.searcher.index.folder} changed while it was judged; run again"
                    )
                found = [place[hit.item.id] for hit in hits[b]]
                ranks = _ranks(found, order[b], question.relevant)
                first.append(sorted(ranks.values()))
                before.append(tuple(Answer(gallery.names[i], i in question.relevant) for i in found[:ANSWERS]))
                found = [place[hit.item.id] for hit in again[b]]
                ranks |= {item: rank for rank, item in enumerate(found, 1) if item in question.relevant}
                second.append(sorted(ranks.values()))
                confidence["dual"].append(hits[b][0].score)
                confidence["reranked"].append(again[b][0].score)
                obstacles += filter(None, [again[b].not_reranked])
                looked = looked or any(hit.reranked for hit in again[b])
                right.append(int(likely[b, list(question.relevant)].sum()))
                answers.append(tuple(Answer(gallery.names[i], i in question.relevant) for i in found[:ANSWERS]))
            returned.append(likely.sum(axis=1))
        if not answered_questions:
            return None
        if obstacles:
            self.not_reranked.append(
                f"{asked}→{answered}: in {len(obstacles):,} of {len(first):,} questions not all was reranked: "
                f"{obstacles[0]}"
            )
        return Way(
            asked.value,
            answered.value,
            len(gallery),
            tuple(question.text for question in answered_questions),
            tuple(self.data.pictures[question.picture].name for question in answered_questions),
            np.array([self.groups[question.picture] for question in answered_questions]),
            Judged.of(first),
            np.array(right),
            np.concatenate(returned),
            tuple(answers),
            Judged.of(second) if looked else None,
            self.depth if looked else 0,
            tuple(before) if looked else (),
            {stage: np.array(rows) for stage, rows in confidence.items() if looked or stage == "dual"},
        )

    def _queries(
        self, asked: Modality, answered: Modality, questions: Sequence[_Question]
    ) -> Iterator[tuple[int, list[_Question], list[Query]]]:
        """The questions in chunks that fit into memory: how many, and those that can be asked, ready to be."""
        most = _TEXT_CHUNK if asked is Modality.TEXT else _IMAGE_CHUNK
        size = max(1, min(most, _SCORES // max(1, len(self.items[answered]))))
        for start in range(0, len(questions), size):
            chunk = questions[start : start + size]
            ready = [(question, self._query(asked, answered, question)) for question in chunk]
            pairs = [(question, query) for question, query in ready if query is not None]
            yield len(chunk), [question for question, _ in pairs], [query for _, query in pairs]

    def _query(self, asked: Modality, answered: Modality, question: _Question) -> Query | None:
        """None for a picture that can no longer be read; it is remembered."""
        if asked is Modality.TEXT:
            return Query(
                question.text, kinds=(answered,), rerank=self.depth > 0, candidates=self.depth or None, collapse=False
            )
        picture = self.data.pictures[question.picture]
        try:
            image = read_picture(picture, self.searcher.encoder.image_size)
            return Query(
                image=image, kinds=(answered,), rerank=self.depth > 0, candidates=self.depth or None, collapse=False
            )
        except (DecodeError, OSError) as exc:
            self.unread.append(Skipped(picture.name, f"is in the index and cannot ask: {exc}"))
            return None


def _places(names: Sequence[Any]) -> dict[Any, list[int]]:
    """Where in a gallery each name stands."""
    places: dict[Any, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return places


def _cosines(vectors: np.ndarray, gallery: np.ndarray, *, block: int = 8192) -> np.ndarray:
    """Cosines ``(B, N)`` of unit rows ``(B, D)`` and ``(N, D)``, rounded: equal vectors tie wherever they stand."""
    wide = vectors.astype(np.float64)
    parts = [wide @ gallery[start : start + block].astype(np.float64).T for start in range(0, len(gallery), block)]
    return np.concatenate(parts, axis=1).round(_SAME)


def _ranks(found: Sequence[int], order: np.ndarray, relevant: frozenset[int]) -> dict[int, int]:
    """The rank of each relevant item: its place in what the search ``found``, else that in the whole ``order: (N,)``.

    What the search did not find stands behind all that it did.
    """
    first = {item: rank for rank, item in enumerate(found, 1)}
    ranks = {item: first[item] for item in relevant if item in first}
    last = len(found)
    for place, item in sorted((int(np.flatnonzero(order == item)[0]), item) for item in relevant - ranks.keys()):
        ranks[item] = last = max(place + 1, last + 1)
    return ranks


def _way_as_dict(way: Way) -> dict[str, Any]:
    values: dict[str, Any] = {
        "asked": way.asked,
        "answered": way.answered,
        "gallery": way.gallery,
        "questions": list(way.questions),
        "pictures": list(way.pictures),
        "groups": way.groups.tolist(),
        "ranks": _ranks_as_lists(way.judged),
        "right": way.right.tolist(),
        "returned": way.returned.tolist(),
        "answers": _answers_as_lists(way.answers),
        "confidence": {stage: rows.round(6).tolist() for stage, rows in way.confidence.items()},
    }
    if way.reranked is not None:
        values |= {
            "reranked": _ranks_as_lists(way.reranked),
            "depth": way.depth,
            "answers_before": _answers_as_lists(way.answers_before),
        }
    return values


def _way_from_dict(values: Mapping[str, Any]) -> Way:
    way = Way(
        values["asked"],
        values["answered"],
        int(values["gallery"]),
        tuple(values["questions"]),
        tuple(values["pictures"]),
        np.array(values["groups"], dtype=np.int64),
        Judged.of(values["ranks"]),
        np.array(values["right"], dtype=np.int64),
        np.array(values["returned"], dtype=np.int64),
        _answers_from_lists(values["answers"]),
        Judged.of(values["reranked"]) if "reranked" in values else None,
        int(values.get("depth", 0)),
        _answers_from_lists(values.get("answers_before", ())),
        {stage: np.array(rows, dtype=np.float64) for stage, rows in values["confidence"].items()},
    )
    lengths = {len(way.pictures), len(way.groups), len(way.judged), len(way.right), len(way.returned), len(way.answers)}
    if lengths != {len(way.questions)}:
        raise ValueError(f"{len(way.questions)} questions have {sorted(lengths)} entries")
    return way


def _ranks_as_lists(judged: Judged) -> list[list[int]]:
    return [[int(rank) for rank in row[np.isfinite(row)]] for row in judged.ranks]


def _answers_as_lists(answers: Sequence[Sequence[Answer]]) -> list[list[list[Any]]]:
    return [[[answer.name, answer.right] for answer in some] for some in answers]


def _answers_from_lists(values: Sequence[Sequence[Sequence[Any]]]) -> tuple[tuple[Answer, ...], ...]:
    return tuple(tuple(Answer(name, bool(right)) for name, right in some) for some in values)
