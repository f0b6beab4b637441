"""What the words of a question say beside its meaning: how much likelier a passage or a file is that holds them.

A vector knows what a text is about and not which number, name or code stands in it. The words know that, and little
else: two captions that share "dog" are hardly likelier to be about the same picture, beyond what their vectors say. So
a word counts by how rare it is. If a share p of all other passages holds it, -ln p is its *surprise*. Measured on the
captions of Flickr8k's dev split (``benchmarks/words.py``), a shared word adds nothing to the log-odds of a match up to
a surprise of 4.6 (one passage in a hundred), and from there on 0.8 for each nat. With S the surprise of the whole
question and s that of the words that a passage holds, f = Σs / S is the share of the question that it covers, and

    gain = f · Σ slope · max(0, s - hinge · (1 - f⁴))

Half of a question lifts little; a question of one rare word, all of which a passage holds, lifts by all its surprise.
What the vector has said already is not counted twice: odds o become o · (1 + (e^gain - 1) / (1 + o / c)), with c one in
ten. A code such as "2024-113" is nothing to a vector, and has no hinge; and what holds all of a question is taken to be
at least as likely as anything before its words are counted (one in a thousand), whatever its vector says: that of a
picture is far from its file name. Where the name of a picture says what a picture may show ("dog", and no number, nor a
person), it is evidence beside what is seen, and no more: it adds ``NAME_OF_PICTURE`` at most, so that a file called
dog.jpg hides no other dogs, and is no dog because it is called so.

The share p is that of the library together with a thousand passages of everyday English: in a library of twenty files a
word is not common because one of them holds it. A folder is named once, however many files lie below it: what its name
says counts for each of them as if it were the only one, unless it is the name of all there are. The files below it that
may gain are those nearest to the question, so the folder decides which are shown, and the pictures in which order.
Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009), in
whose place this stands, knows ranks only, so that "dog" lifts as much as a number, and what it gives is no probability;
the benchmark measures both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

from indexer.exact import distinct
from indexer.reader import Reader
from indexer.records import PieceRow
from indexer.types import VISUAL, Modality
from indexer.words import Phrase, forms, match_all, phrases
from mmsearch.lexicon import common_ranks

HINGE = 4.6
"""Surprise, in nats, up to which a word of a longer question says nothing."""
SLOPE = 0.8
"""Log-odds for each nat above it."""
CODE_SLOPE = 0.9
"""Log-odds for each nat of a code, from the first on."""
NAME_OF_PICTURE = 3.5
"""Log-odds that the name of a picture or a video adds at most, where it says what a picture may show."""
COVERED = 4
"""The power of the covered share by which the hinge goes down."""
PRIOR = math.log(1 / 999)
"""Log-odds of anything before it is looked at, as ``mmsearch.calibration`` has them."""
KNOWN = math.log(0.1)
"""Log-odds from which on the vector has said already what shared words would say again."""
EVERYDAY = 1000
"""Passages of everyday English that are counted with those of the library."""
DEPTH = 1000
"""A word that more passages, or names, hold than this is taken for one that says nothing."""
GAINERS = 300
"""Passages, and files, that may gain by one question: those that hold the most of it."""
MOST_PHRASES = 32
"""Of a question; what is said after them is left to the vectors."""
FIRST_PIECES = 64
"""Pieces of a file, from its beginning, of which the best may gain by its name."""

_SAME = 2
"""Letters with which all forms of a word begin: "use" and "using" have no more in common."""
_PASSAGE = 6.0
"""Chance of the r-th most common word to be in a passage of everyday English: 1 - exp(-6 / r), after Zipf's law."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """A phrase of a question, who holds it, and how surprising that is.

    ``texts`` are the passages that hold it and ``names`` the files whose names do; both are empty for a phrase that is
    too common to be looked for. ``in_folder`` is its surprise in the names of folders, 0 if it is in none. ``most`` is
    the surprise with which it counts in the whole question.
    """

    phrase: Phrase
    code: bool
    texts: np.ndarray
    names: np.ndarray
    in_text: float
    in_name: float
    in_folder: float
    most: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """What words speak for: P pieces, and what each holds of the W phrases of a question, as surprises.

    Attributes:
        in_text: ``(P, W)`` of the phrases in the text of a piece, 0 for one that is not there.
        in_name: ``(P, W)`` of those in the name of its file or its folders.
        shown: ``(P, W)`` which of those in the name of its file a picture may show, and it is one.
        codes: ``(W,)`` which phrases are codes.
        most: ``(W,)`` what each phrase counts for in the whole question.
        total: the surprise of the whole question.
        ends: ``(E,)`` log-odds of the last piece taken of those that hold the same in the names of their folders, where
            there are more.
        in_ends: ``(E, W)`` what these hold.
    """

    pieces: Sequence[PieceRow]
    in_text: np.ndarray
    in_name: np.ndarray
    shown: np.ndarray
    codes: np.ndarray
    most: np.ndarray
    total: float
    ends: np.ndarray
    in_ends: np.ndarray

    def only(self, kept: np.ndarray) -> Evidence:
        """The same for those pieces that are ``kept`` ``(P,)``."""
        pieces = [piece for piece, keep in zip(self.pieces, kept.tolist(), strict=True) if keep]
        return replace(
            self, pieces=pieces, in_text=self.in_text[kept], in_name=self.in_name[kept], shown=self.shown[kept]
        )

    def gains(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each piece gains ``(P,)``, and in how far it holds the whole question ``(P,)``; see ``raised``.

        The name of a file counts for its best piece alone, so that a long text of that name does not fill the list;
        ``logits`` ``(P,)`` say which that is without.
        """
        held = np.maximum(self.in_text, self.in_name)
        with_name = raised(logits, *self._gain(held))  # (P,)
        best: dict[int, int] = {}
        for i, piece in enumerate(self.pieces):
            j = best.setdefault(piece.asset_id, i)
            if with_name[i] > with_name[j]:
                best[piece.asset_id] = i
        chosen = np.isin(np.arange(len(logits)), list(best.values()))
        return self._gain(np.where(chosen[:, None], held, self.in_text))

    def _gain(self, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """That of pieces that hold so much, ``(P, W)``, where what a name of a picture says is shown adds little."""
        gains, whole = self.gain(np.where(self.shown & (self.in_text == 0), 0, held))
        return np.minimum(self.gain(held)[0], gains + NAME_OF_PICTURE), whole

    def gain(self, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for whatever holds so much of each phrase, ``(P, W)``."""
        covered = np.minimum(np.where(held > 0, self.most, 0).sum(axis=1) / self.total, 1)  # (P,)
        whole = covered**COVERED
        hinge = np.where(self.codes, 0, HINGE * (1 - whole[:, None]))  # (P, W)
        slope = np.where(self.codes, CODE_SLOPE, SLOPE)  # (W,)
        return covered * np.sum(slope * np.maximum(held - hinge, 0), axis=1), whole


def raised(logits: np.ndarray, gains: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Log-odds ``(P,)`` with what words add to them: all of it below ``KNOWN``, less and less above."""
    floor = logits + whole * np.maximum(PRIOR - logits, 0)
    return np.asarray(floor + np.log1p(np.expm1(gains) / (1 + np.exp(floor - KNOWN))))


Nearest = Callable[[Modality, np.ndarray], tuple[np.ndarray, np.ndarray, bool]]
"""The items nearest to the question among those of one modality at some rows: their rows ``(N,)`` and their log-odds
``(N,)``, best first, and whether there are more."""


def evidence(
    reader: Reader,
    question: str,
    totals: tuple[int, int],
    nearest: Nearest,
    may_show: Callable[[str], bool],
) -> Evidence | None:
    """What the words of ``question`` speak for among all items; None if they say nothing.

    Args:
        totals: how many passages and how many names there are, ``Reader.word_totals``.
        may_show: whether a picture may show what a word says.
    """
    weighed = weigh(reader, question, totals)
    total = sum(one.most for one in weighed)
    looked = _worth_a_look(weighed, total)
    if not looked:
        return None
    texts = _most([(one.texts, one.in_text) for one in looked])
    names = _most([(one.names, one.in_name) for one in looked])
    folders = {kind: Below.of(reader, kind, looked) for kind in Modality}
    at, ends, in_ends = _nearest_below(folders, nearest)
    pieces = reader.pieces(ids=texts, of=names, first=FIRST_PIECES, at=at)
    ids = np.array([piece.id for piece in pieces])
    assets = np.array([piece.asset_id for piece in pieces])
    in_text = np.stack([np.isin(ids, one.texts) * one.in_text for one in looked], axis=1)  # (P, W)
    in_name = np.stack([np.isin(assets, one.names) * one.in_name for one in looked], axis=1)  # (P, W)
    seen = np.array([not one.code and all(map(may_show, one.phrase)) for one in looked])
    shown = seen & (in_name > 0)
    shown &= np.isin(assets, list(reader.of_kinds(distinct(assets[shown.any(axis=1)]).tolist(), VISUAL)))[:, None]
    for kind, below in folders.items():
        here = np.array([piece.modality is kind for piece in pieces], dtype=bool)
        rows = np.array([piece.row for piece in pieces], dtype=np.int64)[here]
        in_folders = below.held_at(rows)
        in_name[here] = np.maximum(in_name[here], in_folders)
        shown[here] &= in_folders == 0
    return Evidence(
        pieces,
        in_text,
        in_name,
        shown,
        np.array([one.code for one in looked]),
        np.array([one.most for one in looked]),
        total,
        np.array(ends),
        np.reshape(in_ends, (len(ends), len(looked))),
    )


@dataclass(frozen=True, slots=True)
class Below:
    """Items of one modality below folders with telling names: their rows ``(R,)``, growing, and how surprising each of
    the W phrases is in the names of these folders ``(R, W)``, 0 where it is not there."""

    rows: np.ndarray
    held: np.ndarray

    @classmethod
    def of(cls, reader: Reader, modality: Modality, looked: Sequence[Weighed]) -> Below:
        """Those below folders that hold one of the phrases ``looked`` for."""
        nobody = np.zeros(0, dtype=np.int64)
        each = [
            reader.rows_named(modality, match_all([one.phrase], "folders")) if one.in_folder else nobody
            for one in looked
        ]
        rows = distinct(np.concatenate(each))
        held = [np.isin(rows, some) * one.in_folder for some, one in zip(each, looked, strict=True)]
        return cls(rows, np.stack(held, axis=1))

    def held_at(self, rows: np.ndarray) -> np.ndarray:
        """What those at ``rows`` ``(P,)`` hold, ``(P, W)``."""
        if not len(self.rows):
            return np.zeros((len(rows), self.held.shape[1]))
        place = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where((self.rows[place] == rows)[:, None], self.held[place], 0.0)

    def alike(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The rows of all that hold the same phrases, and what that is, ``(W,)``."""
        which = (self.held > 0) @ (1 << np.arange(self.held.shape[1]))  # (R,)
        return [(self.rows[which == one], self.held[which == one][0]) for one in distinct(which)]


def _nearest_below(
    folders: Mapping[Modality, Below], nearest: Nearest
) -> tuple[dict[Modality, list[int]], list[float], list[np.ndarray]]:
    """Rows of the best below folders whose names hold the same phrases, and where and with which they end."""
    at: dict[Modality, list[int]] = {}
    ends: list[float] = []
    in_ends: list[np.ndarray] = []
    for kind, below in folders.items():
        for alike, held in below.alike():
            rows, logits, more = nearest(kind, alike)
            at.setdefault(kind, []).extend(rows.tolist())
            if more:
                ends.append(float(logits[-1]))
                in_ends.append(held)
    return at, ends, in_ends


def _worth_a_look(weighed: Sequence[Weighed], total: float) -> list[Weighed]:
    """The phrases that somebody holds. Those that only folders hold must lift what lies below them, at the best."""
    held = [one for one in weighed if len(one.texts) or len(one.names) or one.in_folder]
    covered = sum(one.most for one in held) / total if held else 0.0
    hinge = HINGE * (1 - min(covered, 1.0) ** COVERED)
    return [one for one in held if len(one.texts) or len(one.names) or one.code or one.in_folder > hinge]


def _most(held: Sequence[tuple[np.ndarray, float]]) -> list[int]:
    """The numbers, at most ``GAINERS``, that hold most of what is asked: of phrases (who holds it, its surprise)."""
    numbers = distinct(np.concatenate([holders for holders, _ in held]))
    mass = np.zeros(len(numbers))
    for holders, said in held:
        mass[np.searchsorted(numbers, holders)] += said
    return [int(number) for number in numbers[np.lexsort((numbers, -mass))[:GAINERS]]]


def weigh(reader: Reader, question: str, totals: tuple[int, int]) -> list[Weighed]:
    """The phrases of a question; joined words that nobody holds so count one by one."""
    nobody = np.zeros(0, dtype=np.int64)
    found: list[Weighed] = []
    waiting = phrases(question)[:MOST_PHRASES]
    while waiting:
        phrase = waiting.pop(0)
        code, everyday = is_code(phrase), _everyday(phrase)
        in_folder = _in_folder(reader, phrase, totals[1], everyday)
        if not code and -math.log(everyday) <= HINGE:
            most = max(in_folder, -math.log(everyday))
            found.append(Weighed(phrase, code, nobody, nobody, 0.0, 0.0, in_folder, most))
            continue
        holders = [
            reader.texts_with(match_all([phrase]), DEPTH + 1),
            reader.names_with(match_all([phrase], "name"), DEPTH + 1),
        ]
        if len(phrase) > 1 and not in_folder and not any(map(len, holders)):
            waiting = [(word,) for word in phrase] + waiting
            continue
        # Of a word that more hold than are counted, the surprise is at most so much.
        said = [surprise(len(some), total, everyday) for some, total in zip(holders, totals, strict=True)]
        least = 0.0 if code else HINGE
        for i, some in enumerate(holders):
            if len(some) > DEPTH or said[i] <= least:
                holders[i] = nobody
        most = max((s for s, some in zip(said, holders, strict=True) if len(some)), default=in_folder or min(said))
        texts, names = holders
        found.append(Weighed(phrase, code, texts, names, said[0], said[1], in_folder, max(most, in_folder)))
    return found


def _in_folder(reader: Reader, phrase: Phrase, names: int, everyday: float) -> float:
    """How surprising a phrase is in the name of a folder; 0 if it is in none, or in that of one around all ``names``.

    What few files hold counts as in their own names; what many do, as if it were one of up to ``EVERYDAY``.
    """
    count = reader.count_names(match_all([phrase], "folders"))
    if not count:
        return 0.0
    alone = 0.0 if count >= names else surprise(1, min(names, EVERYDAY), everyday)
    return max(surprise(count, names, everyday), alone)


def surprise(holders: int, total: int, everyday: float) -> float:
    """-ln of the share of others that hold what ``holders`` of ``total`` hold.

    Where the library alone shows that it is common there (by two standard deviations), its share there counts.

    >>> round(surprise(1, 20, 0.001), 2), round(surprise(17, 20, 0.001), 2)
    (6.93, 0.92)
    """
    others = max(holders - 1, 0)
    surely = max(others - 2 * math.sqrt(others), 0) / max(total, 1)
    share = max(surely, (others + EVERYDAY * everyday) / (total + EVERYDAY))
    return -math.log(min(share, 1.0))


def is_code(phrase: Phrase) -> bool:
    """Whether a phrase is a number or a mark that a vector knows nothing of: three digits at least, or digits joined to
    letters or to other digits, as in "2024-113", "A4711" and "7/12"."""
    digits = sum(c.isdigit() for word in phrase for c in word)
    return digits >= 3 or (digits > 0 and sum(map(len, phrase)) > digits) or (digits > 1 and len(phrase) > 1)


def _everyday(phrase: Phrase) -> float:
    """The share of everyday passages that hold a phrase; one in ``EVERYDAY`` where nothing is known of it."""
    return _everyday_word(phrase[0].lower()) if len(phrase) == 1 else 1 / EVERYDAY


@lru_cache(maxsize=1 << 16)
def _everyday_word(word: str) -> float:
    """That of a word in any of its forms: "dogs" is as common as "dog"."""
    known = _common_words().get(word[:_SAME], [])
    ranks = [known[place][1] for place in forms(word, [one for one, _ in known])] if known else []
    return max(1 - math.exp(-sum(_PASSAGE / rank for rank in ranks)), 1 / EVERYDAY)


@cache
def _common_words() -> dict[str, list[tuple[str, int]]]:
    """The most common words of English and their ranks, from 1 on, by the letters that a stem leaves as they are."""
    found: dict[str, list[tuple[str, int]]] = {}
    for word, rank in common_ranks().items():
        found.setdefault(word[:_SAME], []).append((word, rank))
    return found
