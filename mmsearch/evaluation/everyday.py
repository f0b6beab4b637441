"""How well everyday questions are answered: words and short phrases, of what is there and of what is not.

    data = open_dataset("flickr8k")
    result = evaluate_everyday("mini", data.split("dev"), sizes=(50, 250))
    result.sizes[0].measures["ECE"].value         # by how much the probabilities of the first ten are off

The questions are those of ``everyday.toml``, and the answers those of ``Library.query``. A picture matches a question
when ``agree`` of its captions say so. A kind is asked as present in a library where at least one picture matches, and
as absent where no caption of any picture mentions it. Captions ask too: of what they say and of which picture is meant.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders import Encoder
from indexer.encoders.load import load_encoder
from indexer.errors import UsageError
from indexer.types import Skipped
from mmsearch.evaluation import metrics
from mmsearch.evaluation.bootstrap import Interval, calibration_interval, interval
from mmsearch.evaluation.gallery import Progress, indexed, one_line
from mmsearch.evaluation.kinds import Kinds, Said, agreeing, everyday_kinds, fits, matches, read_captions
from mmsearch.evaluation.libraries import draws, library_of, name_of, read_pool
from mmsearch.rerank.load import check_reads, load_reranker

if TYPE_CHECKING:
    from mmsearch.datasets import Captioned
    from mmsearch.library import Library
    from mmsearch.rerank import Reranker

SIZES = (50, 250, 1000, 8000)
"""Pictures of the libraries."""
AGREE = 2
"""Captions of a picture that must say a thing, so that the picture is a right answer to it: two of Flickr8k's five. One
alone is often a slip or a guess, and three leave out much that is in plain sight."""
FIRST = 10
"""Answers of each question whose probabilities are judged."""
SURE = 0.5
CAPTIONS = 250
"""Captions that ask of one library, at most; no two of one picture."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a library: as ``present``, ``absent`` or ``captions``, and which pictures of it are right.

    ``group`` is what is asked for: the name of a kind, or that of a picture.
    """

    role: str
    text: str
    group: str
    right: frozenset[int]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to one library and what came of it.

    Attributes:
        group: what is asked for: the name of a kind, or that of a picture. Questions of one group are not independent.
        shown, shown_right: how many answers the list has that ``Library.query`` gives, and right ones among them.
        clear, clear_right: the same of those that are called a clear match.
        first: the picture that is the first answer, shown or not; None where there is none.
        probabilities, right: of each of the first ten.
        ndcg: nDCG@10; 0 where nothing is right.
    """

    text: str
    group: str
    relevant: int
    shown: int
    shown_right: int
    clear: int
    clear_right: int
    first: int | None
    probabilities: tuple[float, ...]
    right: tuple[bool, ...]
    ndcg: float


@dataclass(frozen=True, slots=True)
class Size:
    """All libraries of one size: how many, what was asked, and every measure with its interval.

    Attributes:
        questions: of ``present``, ``absent`` and ``captions``, over all libraries.
        kinds: how many different kinds were asked as ``present`` and as ``absent``.
        measures: by name, fractions of 1; a measure without a question is left out.
        by_kind: for each kind that was asked as present, the means of the measures that a question has alone.
    """

    pictures: int
    libraries: int
    questions: dict[str, int]
    kinds: dict[str, int]
    measures: dict[str, Interval]
    by_kind: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Everyday:
    """How one model did."""

    model: str
    fingerprint: str
    data: str
    agree: int
    sizes: tuple[Size, ...]
    skipped: tuple[Skipped, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: fractions of 1, with 95 % bounds beside each."""
        values = asdict(self)
        values["skipped"] = [{"picture": one.path, "reason": one.reason} for one in self.skipped]
        return values


def evaluate_everyday(
    subject: str | Encoder,
    data: Captioned,
    *,
    filling: Captioned | None = None,
    name: str = "",
    sizes: Sequence[int] = SIZES,
    agree: int = AGREE,
    kinds: Kinds | None = None,
    seed: int = 0,
    cache: Path | None = None,
    reranker: str | Path | Reranker | None = None,
    device: str | None = None,
    progress: Progress = lambda *_: None,
) -> Everyday:
    """Judge a model by everyday questions over libraries of several sizes, drawn from captioned pictures.

    Args:
        subject: ``mini``, an open_clip name, the folder of a model, or an ``Encoder``.
        filling: further pictures for libraries that are larger than ``data``. Their captions ask nothing.
        name: what the data is called in the result.
        sizes: pictures of the libraries; a size above that of all pictures together stands for all of them.
        agree: how many captions of a picture must say a thing; all, of a picture that has fewer.
        kinds: what is asked, if not what ``everyday.toml`` has.
        seed: of the draws.
        cache: where the embedded pictures are kept, to be found again by the next call.
        reranker: the folder or name of a reranker, or a ``Reranker``; the one that was trained for the model if None.

    Raises:
        UsageError, ModelError: there is no such model, or it cannot be loaded; a size or ``agree`` is below 1; no
            picture can be read.
        StorageError: an index cannot be read or written.
    """
    if not sizes or min(sizes) < 1 or agree < 1:
        raise UsageError(f"sizes {', '.join(map(str, sizes)) or 'none'}, agree {agree}: each is at least 1")
    encoder = load_encoder(subject, device) if isinstance(subject, str) else subject
    if reranker is None or isinstance(reranker, (str, Path)):
        reranker = load_reranker(reranker, encoder, device)
    else:
        check_reads(reranker, encoder)
    kinds = everyday_kinds() if kinds is None else kinds
    whole = _filled(data, filling, max(sizes), seed)
    compressor = None if reranker is None else reranker.compressor
    with indexed(encoder, whole, cache, progress, compressor, captions=False) as folder:
        pool = read_pool(folder, whole)
    if not len(pool.pictures):
        raise UsageError(f"none of {len(whole)} pictures can be read{_first(pool.skipped)}")
    own = [place for place, picture in enumerate(pool.pictures.tolist()) if picture < len(data)]
    others = [place for place, picture in enumerate(pool.pictures.tolist()) if picture >= len(data)]
    judge = Judge(whole, len(data), kinds, agree, seed)
    found = []
    with tempfile.TemporaryDirectory(prefix="mmsearch-eval-") as scratch:
        for size in sorted({min(size, len(pool.pictures)) for size in sizes}):
            asked = _Answers()
            drawn = draws(own, others, size, seed)
            for number, places in enumerate(drawn):
                progress(f"asking libraries of {size:,}", number, len(drawn))
                with library_of(pool, places, encoder, reranker, Path(scratch)) as library:
                    judge.ask(library, pool.pictures[places].tolist(), asked)
            progress(f"asking libraries of {size:,}", len(drawn), len(drawn))
            found.append(asked.size(size, len(drawn)))
    return Everyday(encoder.name, encoder.fingerprint, name, agree, tuple(found), pool.skipped)


def _filled(data: Captioned, filling: Captioned | None, most: int, seed: int) -> Captioned:
    """``data``, and as many of ``filling`` as the largest library lacks."""
    from mmsearch.datasets import Captioned

    lacking = min(most - len(data), 0 if filling is None else len(filling))
    if filling is None or lacking <= 0:
        return data
    chosen = np.sort(np.random.default_rng(seed).choice(len(filling), lacking, replace=False)).tolist()
    added = filling.subset(chosen)
    return Captioned([*data.pictures, *added.pictures], [*data.captions, *added.captions])


def _first(skipped: Sequence[Skipped]) -> str:
    return f"; the first is {skipped[0].path}: {skipped[0].reason}" if skipped else ""


class Judge:
    """What the captions of all pictures say, and the questions that follow from it for any library of them."""

    def __init__(self, data: Captioned, own: int, kinds: Kinds, agree: int, seed: int) -> None:
        self.data = data
        self.own = own
        self.kinds = kinds
        self.seed = seed
        self.said: list[Said] = [read_captions(captions, kinds) for captions in data.captions]
        self.matching = {
            kind.name: frozenset(n for n, said in enumerate(self.said) if matches(kind, said, agree))
            for kind in kinds.present
        }
        self.mentioned = {
            kind.name: frozenset(n for n, said in enumerate(self.said) if agreeing(kind, said)) for kind in kinds.absent
        }

    def ask(self, library: Library, pictures: Sequence[int], asked: _Answers) -> None:
        """Ask everything of a library of these pictures."""
        here = {name_of(picture): picture for picture in pictures}
        for question in self.questions(pictures):
            answered = _answered(library, question.text, question.group, here, question.right)
            getattr(asked, question.role).append(answered)
            if question.role == "captions":
                fitting = answered.first is not None and self.fits(question.text, answered.first)
                asked.fitting.append(answered.right[:1] == (True,) or fitting)

    def questions(self, pictures: Sequence[int]) -> Iterator[Question]:
        """Everything that can be asked of a library of these pictures."""
        there = frozenset(pictures)
        for kind in self.kinds.present:
            right = self.matching[kind.name] & there
            if right:
                yield from (Question("present", text, kind.name, right) for text in kind.ask)
        for kind in self.kinds.absent:
            if self.mentioned[kind.name].isdisjoint(there):
                yield from (Question("absent", text, kind.name, frozenset()) for text in kind.ask)
        for picture, caption in self._captions(pictures):
            yield Question("captions", caption, self.data.pictures[picture].name, frozenset([picture]))

    def fits(self, caption: str, picture: int) -> bool:
        """Whether the captions of a picture say all that ``caption`` does."""
        return fits(caption, self.said[picture], self.kinds)

    def _captions(self, pictures: Sequence[int]) -> list[tuple[int, str]]:
        """A caption of each of the pictures that may ask, or of ``CAPTIONS`` of them."""
        rng = np.random.default_rng([self.seed, len(pictures)])
        asking = [picture for picture in pictures if picture < self.own]
        chosen = sorted(rng.permutation(len(asking))[:CAPTIONS].tolist())
        captions = [(asking[n], self.data.captions[asking[n]]) for n in chosen]
        return [(picture, one_line(some[int(rng.integers(len(some)))])) for picture, some in captions]


def _answered(library: Library, text: str, group: str, here: dict[str, int], right: frozenset[int]) -> Asked:
    """Ask as everybody does, and where that shows fewer than ten answers, for ten."""
    shown = library.query(text)
    first = shown[:FIRST] if len(shown) >= FIRST else library.query(text, k=FIRST)
    shown_right = [here[str(hit.key)] in right for hit in shown]
    clear = [hit.clear for hit in shown]
    first_right = [here[str(hit.key)] in right for hit in first]
    ranks = [rank for rank, yes in enumerate(first_right, 1) if yes]
    judged = metrics.Judged.of([[*ranks, *[np.inf] * (len(right) - len(ranks))]]) if right else None
    return Asked(
        text,
        group,
        len(right),
        len(shown),
        sum(shown_right),
        sum(clear),
        sum(yes for yes, sure in zip(shown_right, clear, strict=True) if sure),
        here[str(first[0].key)] if first else None,
        tuple(float(hit.score) for hit in first),
        tuple(first_right),
        0.0 if judged is None else float(metrics.ndcg(judged, FIRST)[0]),
    )


class _Answers:
    """Everything that was asked of the libraries of one size."""

    def __init__(self) -> None:
        self.present: list[Asked] = []
        self.absent: list[Asked] = []
        self.captions: list[Asked] = []
        self.fitting: list[bool] = []
        """For each caption, whether the first answer fits what it says."""

    def size(self, pictures: int, libraries: int) -> Size:
        """What it comes to."""
        questions = {"present": self.present, "absent": self.absent, "captions": self.captions}
        measures = {**_of_present(self.present), **_of_absent(self.absent), **_of_captions(self.captions, self.fitting)}
        return Size(
            pictures,
            libraries,
            {name: len(some) for name, some in questions.items()},
            {name: len({one.group for one in questions[name]}) for name in ("present", "absent")},
            measures,
            _by_kind(self.present),
        )


def _of_present(asked: Sequence[Asked]) -> dict[str, Interval]:
    """Precision counts for questions that show something, or something clear; what shows nothing is ``refused``."""
    if not asked:
        return {}
    return {
        "precision of shown": _share([(one.shown_right / one.shown, one) for one in asked if one.shown]),
        "precision of clear": _share([(one.clear_right / one.clear, one) for one in asked if one.clear]),
        **{name: _share([(value(one), one) for one in asked]) for name, value in _PRESENT.items()},
        **_calibration("ECE", [(p, yes, one) for one in asked for p, yes in _pairs(one)]),
    }


_PRESENT: dict[str, Callable[[Asked], float]] = {
    f"precision@{FIRST}": lambda one: sum(one.right) / FIRST,
    f"nDCG@{FIRST}": lambda one: one.ndcg,
    "refused": lambda one: float(one.shown == 0),
    "nothing clear": lambda one: float(one.clear == 0),
}


def _of_absent(asked: Sequence[Asked]) -> dict[str, Interval]:
    first = [one.probabilities[0] if one.probabilities else 0.0 for one in asked]
    values = {
        "absent answered": [float(one.shown > 0) for one in asked],
        "absent answered as clear": [float(one.clear > 0) for one in asked],
        "absent answered as sure": [float(p >= SURE) for p in first],
    }
    return {name: _share(list(zip(some, asked, strict=True))) for name, some in values.items()} if asked else {}


def _of_captions(asked: Sequence[Asked], fitting: Sequence[bool]) -> dict[str, Interval]:
    answered = [(one, fit) for one, fit in zip(asked, fitting, strict=True) if one.probabilities]
    if not answered:
        return {}
    meant = [(one.probabilities[0], one.right[0], one) for one, _ in answered]
    return {
        "captions R@1": _share([(float(one.right[0]), one) for one, _ in answered]),
        **_calibration("captions ECE, picture meant", meant),
        **_calibration("captions ECE, what is said", [(one.probabilities[0], fit, one) for one, fit in answered]),
    }


def _pairs(asked: Asked) -> Iterator[tuple[float, bool]]:
    return zip(asked.probabilities, asked.right, strict=True)


def _share(values: Sequence[tuple[float, Asked]]) -> Interval:
    """The mean over questions, drawing whole groups; 0 where no question counts."""
    if not values:
        return Interval(0.0, 0.0, 0.0)
    return interval(np.array([value for value, _ in values]), np.array([one.group for _, one in values]))


def _calibration(name: str, answers: Sequence[tuple[float, bool, Asked]]) -> dict[str, Interval]:
    """The expected calibration error, with the mean of what is said and of what is true."""
    said, true = [(p, one) for p, _, one in answers], [(float(yes), one) for _, yes, one in answers]
    error = calibration_interval(
        np.array([p for p, _, _ in answers]),
        np.array([yes for _, yes, _ in answers]),
        np.array([one.group for _, _, one in answers]),
    )
    return {name: error, f"{name}: said": _share(said), f"{name}: true": _share(true)}


def _by_kind(asked: Sequence[Asked]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Asked]] = {}
    for one in asked:
        groups.setdefault(one.group, []).append(one)
    return {
        name: {
            "relevant": float(np.mean([one.relevant for one in some])),
            "shown": float(np.mean([one.shown for one in some])),
            **{measure: float(np.mean([value(one) for one in some])) for measure, value in _PRESENT.items()},
        }
        for name, some in groups.items()
    }
