"""From a question to hits: embed, search each kind, look again at the best, bring all onto one scale, merge."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from indexer.encoders import Encoder
from indexer.errors import UsageError
from indexer.index import Index, Snapshot
from indexer.types import VISUAL, Item, Modality, Span
from mmsearch import moments, posterior
from mmsearch.browse import newest
from mmsearch.calibration import Calibration, line_for, probability
from mmsearch.copies import collapse
from mmsearch.exact import allowed_rows, find_exact
from mmsearch.hits import Hit, Hits
from mmsearch.lexicon import is_everyday
from mmsearch.like import Stored, stored
from mmsearch.posterior import PASSAGES, SEEN, Scale, one_expected, signs_of
from mmsearch.query import Query
from mmsearch.readable import with_texts
from mmsearch.rerank import PictureSide, Reranker, TextSide
from mmsearch.rerank.stage import SecondStage, fused_order
from mmsearch.sampling import TAIL, WORTH, Ground, Samples, matches_beyond
from mmsearch.things import Scored, Thing, things
from mmsearch.words import evidence, raised

if TYPE_CHECKING:
    from mmsearch.rerank.explain import Shown
    from mmsearch.rerank.explanation import Explanation

_MORE = 4
"""So many times more pieces are fetched where the first ones were too few things."""
EXCLUSION_POOL = 2000
"""Answers among which ``without`` chooses: what is left after the unwanted sank is sought in the best so many."""
EXCLUSION_WEIGHT = 3.0
"""Log-odds that an answer loses for each standard deviation by which it shows the unwanted; chosen on Flickr8k dev."""
_NO_TOKENS = "the file that asks has no image tokens; 'mmsearch index --add-tokens' makes them"


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that was asked for: the modality it was asked in, its vector ``(D,)``, its weight.

    ``side`` is what a reranker is given of it; None if nothing is to be reranked.
    """

    asked: Modality
    vector: np.ndarray
    weight: float
    side: TextSide | PictureSide | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its vectors: what is wanted, with weights that add up to 1, and what is not."""

    query: Query
    wanted: tuple[Part, ...]
    unwanted: tuple[Part, ...]
    own: frozenset[tuple[str, str | None]] = frozenset()
    """Path and key of the files of the index that ask; they are no answers."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Answers of one kind: their rows ``(N,)``, the log-odds that they match ``(N,)``, which were reranked ``(N,)``."""

    rows: np.ndarray
    logits: np.ndarray
    reranked: np.ndarray


@dataclass(frozen=True, slots=True)
class _Worded:
    """Items of one kind that the words of a question speak for: their rows ``(W,)``, the log-odds of the first stage
    ``(W,)``, and what the words add to them, as ``mmsearch.words.raised`` takes it, ``(W,)`` each."""

    rows: np.ndarray
    logits: np.ndarray
    gains: np.ndarray
    whole: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The best answers of one kind, best first, their log-odds ``(K,)``, and the signs of the question ``(F,)`` as
    ``mmsearch.posterior.signs_of`` gives them."""

    items: tuple[Item, ...]
    logits: np.ndarray
    signs: np.ndarray


class Searcher:
    """Answers questions about one index. May be used from several threads.

    With a ``reranker`` the best pictures for words, and the best texts for a picture, are looked at again: the part of
    their log-odds that is due to that pair of words and picture is replaced by what both stages together say of it.
    The rest stays: what another part of the question says, and what ``without`` takes away. Pictures for a picture and
    texts for words are not reranked. No picture is opened, unless by a reranker that reads no stored tokens.

    Raises:
        ModelMismatch: the reranker reads the patches of another encoder.
    """

    def __init__(
        self, index: Index, encoder: Encoder, calibration: Calibration, reranker: Reranker | None = None
    ) -> None:
        self.index = index
        self.encoder = encoder
        self.calibration = calibration
        self._encoding = threading.Lock()
        self._second = None if reranker is None else SecondStage(reranker, encoder, self._encoding)
        self._samples = Samples()
        self._word_totals: tuple[int, tuple[int, int]] | None = None

    @property
    def reranker(self) -> Reranker | None:
        """What looks again at the first answers."""
        return None if self._second is None else self._second.reranker

    def search(self, query: Query, k: int = 10, offset: int = 0) -> Hits:
        """The ``k`` best answers after the first ``offset``, best first, ties to the smaller item; fewer if ``query``
        wants only what is likely.

        The first answers of a longer list are the shorter list.

        Raises:
            UsageError: ``k`` is below 1 or ``offset`` below 0, or ``like`` names what is not in the index.
            ModelError: the model cannot be loaded, or the reranker fails; so does whatever else it raises.
            StorageError: the index cannot be read.
        """
        return self.search_many([query], k, offset)[0]

    def search_many(self, queries: Sequence[Query], k: int = 10, offset: int = 0) -> list[Hits]:
        """The answers of ``search`` to each of many questions, embedded together: far quicker than one by one.

        Raises:
            UsageError, ModelError, StorageError: as ``search``.
        """
        check_page(k, offset)
        answers = iter(self.answer(self.embed([query for query in queries if query.compares]), k + offset))
        return [
            next(answers).page(offset) if query.compares else plain_hits(self.index, query, k, offset)
            for query in queries
        ]

    def embed(self, queries: Sequence[Query]) -> list[Asked]:
        """The vectors of the parts of each question; the model sees all texts at once, and all pictures.

        Raises:
            UsageError: ``like`` names what is not in the index.
            ModelError: the model cannot be loaded.
        """
        texts = [text for query in queries for text in ([] if query.text is None else [query.text]) + [*query.without]]
        images = [image.convert("RGB") for query in queries for image in query.images]
        second = self._second if any(query.rerank for query in queries) else None
        with self._encoding:
            of_text: list[tuple[np.ndarray, TextSide | None]] = []
            of_image: list[tuple[np.ndarray, PictureSide | None]] = []
            if texts:
                of_text += _unsided(self.encoder.encode_texts(texts)) if second is None else second.encode_texts(texts)
            if images:
                of_image += (
                    _unsided(self.encoder.encode_images(images)) if second is None else second.encode_images(images)
                )
        text_rows, image_rows = iter(of_text), iter(of_image)
        return [_asked(query, text_rows, image_rows, self._stored(query)) for query in queries]

    def _stored(self, query: Query) -> list[tuple[Stored, PictureSide | None]]:
        """The files of the index that ask, each with what a reranker is given of it."""
        if not query.like:
            return []
        second = self._second if query.rerank else None
        with self.index.snapshot() as snapshot:
            found = [stored(snapshot, name) for name in query.like]
            return [(one, None if second is None else second.stored_side(snapshot, one.row, one.item)) for one in found]

    def answer(self, asked: Sequence[Asked], k: int = 10) -> list[Hits]:
        """The ``k`` best answers to each question, all from one moment of the index.

        Raises:
            UsageError: ``k`` is below 1.
            ModelError: the reranker fails; so does whatever else it raises.
            StorageError: the index cannot be read.
        """
        check_page(k)
        answers: dict[int, Hits] = {}
        with self.index.snapshot() as snapshot:
            has_videos = snapshot.state.rows[Modality.VIDEO] > 0
            # One video may fill a list, and its neighbouring clips are one answer: more are needed than asked for.
            waiting, pool = list(range(len(asked))), max(k, moments.POOL) if has_videos else k
            pool += max((len(one.own) for one in asked), default=0)  # what asks is found, too, and left out
            while waiting:
                # Pieces of one thing are one answer; where that leaves too few, more pieces are fetched.
                tried = self._answer(snapshot, [asked[i] for i in waiting], k, pool)
                answers |= {i: hits for i, (hits, enough) in zip(waiting, tried, strict=True) if enough}
                waiting, pool = [i for i in waiting if i not in answers], _MORE * pool
        return [answers[i] for i in range(len(asked))]

    def _answer(self, snapshot: Snapshot, asked: Sequence[Asked], k: int, pool: int) -> list[tuple[Hits, bool]]:
        """The ``k`` best things among the ``pool`` best pieces of each kind, and whether no other can be among them."""
        first = [
            {kind: self._search_kind(snapshot, kind, one, max(pool, self._depth(one, kind), SEEN)) for kind in Modality}
            for one in asked
        ]
        spoken_for = [self._words(snapshot, one, pool) for one in asked]
        worded = [kinds for kinds, _ in spoken_for]
        items = {
            kind: snapshot.reader.items_at(
                kind,
                sorted(
                    {
                        row
                        for one, kinds in zip(asked, first, strict=True)
                        for row in kinds[kind].rows[: max(pool, self._depth(one, kind))].tolist()
                    }
                    | {row for spoken in worded if kind in spoken for row in spoken[kind].rows.tolist()}
                ),
            )
            for kind in Modality
        }
        videos = moments.videos_beside(snapshot.reader, items[Modality.TEXT].values())
        answers: list[tuple[Hits, bool]] = []
        for one, kinds, (spoken, beyond) in zip(asked, first, spoken_for, strict=True):
            reasons: list[str] = []
            found: list[Scored] = []
            matches, further = 0.0, -np.inf  # the log-odds that a piece which was not fetched may have
            for kind in kinds:
                if not len(kinds[kind].rows):
                    continue
                again = self._look_again(snapshot, kind, one, kinds[kind], items[kind], reasons)
                ground = self._ground(snapshot, kind, one)
                scale = self._scale(one, kind, ground, kinds[kind], again)
                most = max(pool, self._depth(one, kind))
                least = float(again.logits[most - 1]) if len(again.rows) >= most else -np.inf
                further = max(further, float(scale.log_odds(np.array(max(least, beyond)))))
                early = set(again.rows[: max(moments.POOL, self._depth(one, kind))].tolist())
                early.update(spoken[kind].rows.tolist() if kind in spoken else ())
                of_kind = self._with_words(snapshot, kind, one, again, spoken.get(kind), items[kind])
                matches += self._matches(snapshot, kind, one, ground, of_kind, scale)
                found += [
                    Scored(logit, items[kind][row], reranked, row not in early)
                    for logit, row, reranked in zip(
                        scale.log_odds(of_kind.logits).tolist(),
                        of_kind.rows.tolist(),
                        of_kind.reranked.tolist(),
                        strict=True,
                    )
                    if row in items[kind]
                ]
            others = _without(one.own, moments.with_videos(found, videos))
            merged = collapse(snapshot.reader, one.query, things(moments.merge(others, one.query.moments)), k)
            last = merged[k - 1].best.score if len(merged) >= k else np.inf
            enough = further == -np.inf or further <= last < np.inf
            obstacles = "; ".join(dict.fromkeys(reasons)) or None
            shown = with_texts(snapshot.reader, merged[:k], partial(self._logits, snapshot, Modality.TEXT, one))
            hits = _hits(one.query, shown, matches, obstacles, self._explain_hit)
            answers.append((hits, enough))
        return answers

    def _ground(self, snapshot: Snapshot, answered: Modality, asked: Asked) -> Ground:
        """What the answers of one kind stand out from."""
        sample = self._samples.of(snapshot, answered, allowed_rows(snapshot, answered, asked.query))
        return Ground(sample, *self._line(asked, answered))

    def _scale(self, asked: Asked, answered: Modality, ground: Ground, first: _Found, again: _Found) -> Scale:
        """What log-odds of one kind mean for this question and this library.

        Args:
            first, again: what was found, before and after the second stage.
        """
        fitted = self._posteriors(bool(again.reranked.any())).get((Modality.TEXT, _as_trained(answered)))
        if fitted is None or len(asked.wanted) > 1 or asked.query.text is None:
            words_alone = answered is Modality.TEXT and all(part.asked is Modality.TEXT for part in asked.wanted)
            return one_expected(ground.sample.items, PASSAGES if words_alone else 1.0)
        return fitted.scale(self._signs(asked, answered, ground, first, again))

    def _signs(self, asked: Asked, answered: Modality, ground: Ground, first: _Found, again: _Found) -> np.ndarray:
        """What ``signs_of`` says of a question in words."""
        reranked = bool(again.reranked.any())
        near = self._second.nearness(asked.wanted[0].vector, answered) if reranked and self._second else 0.0
        words = len((asked.query.text or "").split())
        return signs_of(words, ground.sample.items, again.logits[:SEEN], first.logits[:SEEN], ground.logits, near)

    def seen(self, query: Query, answered: Modality) -> Seen:
        """What a posterior is fitted to: the best answers of one kind to a question in words, and its signs.

        Raises:
            ModelError, StorageError: as ``search``.
        """
        (asked,) = self.embed([query])
        with self.index.snapshot() as snapshot:
            first = self._search_kind(snapshot, answered, asked, max(SEEN, self._depth(asked, answered)))
            items = snapshot.reader.items_at(answered, first.rows.tolist())
            again = self._look_again(snapshot, answered, asked, first, items, [])
            signs = self._signs(asked, answered, self._ground(snapshot, answered, asked), first, again)
        order = np.lexsort((first.rows, -again.logits))[:SEEN]
        return Seen(tuple(items[row] for row in first.rows[order].tolist()), again.logits[order], signs)

    def _posteriors(self, reranked: bool) -> Mapping[posterior.Direction, posterior.Posterior]:
        if not reranked or self._second is None:
            return posterior.first_stage()
        return getattr(self._second.reranker, "posterior", {})

    def _matches(
        self, snapshot: Snapshot, answered: Modality, asked: Asked, ground: Ground, found: _Found, scale: Scale
    ) -> float:
        """How many items of one kind match, about: the probabilities of the best, and an estimate of what follows."""
        best = np.lexsort((found.rows, -found.logits))[:SEEN]
        likely = scale.probabilities(found.logits[best])
        count = float(likely.sum())
        if len(likely) < SEEN or float(likely[-TAIL:].mean()) < WORTH or asked.unwanted:
            return count
        reranked = bool(found.reranked.any())
        if reranked and (self._second is None or self._second.reranker.compressor is None):
            return count  # its pictures would have to be opened

        def probabilities(places: np.ndarray) -> np.ndarray:
            some = _Found(ground.sample.rows[places], ground.logits[places], np.zeros(len(places), dtype=bool))
            if reranked:
                some = self._look_again(snapshot, answered, asked, some, {}, [], depth=len(places))
            return scale.probabilities(some.logits)

        return count + matches_beyond(ground.sample, ground.logits, found.rows[best], probabilities)

    def _depth(self, asked: Asked, answered: Modality) -> int:
        """How many answers of one kind are looked at again."""
        if self._second is None or not asked.query.rerank or not _across(asked, answered)[1]:
            return 0
        return asked.query.candidates or self._second.reranker.candidates

    def _look_again(
        self,
        snapshot: Snapshot,
        answered: Modality,
        asked: Asked,
        found: _Found,
        items: Mapping[int, Item],
        reasons: list[str],
        depth: int | None = None,
    ) -> _Found:
        """What was found of one kind, the candidates reranked; what is in the way of that is added to ``reasons``.

        Candidates are the first ``depth``, or as many as are looked at of this kind for None.
        """
        parts, sided = _across(asked, answered)
        if not parts or not asked.query.rerank or not len(found.rows):
            return found
        if self._second is None:
            reasons.append(f"there is no reranker for {self.encoder.name}")
            return found
        obstacle = self._second.obstacle(snapshot) if answered in VISUAL else None
        if obstacle is not None:
            reasons.append(obstacle)
            return found
        if len(sided) < len(parts) and answered is Modality.TEXT:
            reasons.append(_NO_TOKENS)
        if not sided:
            return found
        rows = found.rows[: self._depth(asked, answered) if depth is None else depth]  # (C,)
        vectors = snapshot.vectors[answered].fetch(rows).astype(np.float64)  # (C, D)
        again = found.logits[: len(rows)]  # (C,)
        for part, side in sided:  # the log-odds of a question are the weighted sum of those of its parts
            logits = self._second.logits(snapshot, side, rows, items, answered)  # (C,)
            line = line_for(self.calibration, part.asked, answered)
            # Summed in one order whatever the place among the candidates, as by the first stage: equal vectors tie.
            dual = line.gain * np.sum(vectors * part.vector, axis=1) + line.offset  # (C,)
            fused = self._second.log_odds(part.asked, answered, part.vector, vectors, dual, logits)  # (C,)
            again = again + part.weight * (fused - dual)
        scored = np.zeros(len(found.rows), dtype=bool)
        scored[: len(rows)] = ~np.isnan(again)
        missing = len(rows) - int(scored.sum())
        if missing:
            reasons.append(self._second.lack(missing, len(rows)))
        return _Found(found.rows, fused_order(found.logits, again), scored)

    def _search_kind(
        self, snapshot: Snapshot, answered: Modality, asked: Asked, k: int, within: np.ndarray | None = None
    ) -> _Found:
        """The ``k`` best items of one kind by their vectors; of those at the rows ``within`` ``(R,)``, if given."""
        store = snapshot.vectors[answered]
        # What kinds there are costs a look at every file, so only a question that is particular about them asks.
        kinds = snapshot.kinds_of(answered) if asked.query.kinds else frozenset()
        if not snapshot.state.rows[answered] or (asked.query.kinds and kinds.isdisjoint(asked.query.kinds)):
            return _Found(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, dtype=bool))
        allowed = allowed_rows(snapshot, answered, asked.query)
        if within is not None:
            allowed = within if allowed is None else np.intersect1d(within, allowed, assume_unique=True)
        unwanted = asked.unwanted
        direction, offset = self._line(asked, answered)
        pool = max(k, EXCLUSION_POOL) if unwanted else k
        scores, rows = store.search(direction, pool, allowed=allowed, dead=snapshot.dead[answered])
        found = rows[0][rows[0] >= 0]  # (K,)
        logits = scores[0][: len(found)] + offset  # (K,)
        if unwanted and len(found):
            logits = logits - _penalty(store.fetch(found), self._samples.of(snapshot, answered).vectors, unwanted)
            order = np.lexsort((found, -logits))[:k]
            found, logits = found[order], logits[order]
        return _Found(found, logits, np.zeros(len(found), dtype=bool))

    def _line(self, asked: Asked, answered: Modality) -> tuple[np.ndarray, float]:
        """What a vector is multiplied with ``(D,)``, and what is added, to give the log-odds of the first stage."""
        # The log-odds are linear in the cosines, so a question of several parts is still one vector.
        lines = [(part, line_for(self.calibration, part.asked, answered)) for part in asked.wanted]
        direction = np.sum([part.weight * line.gain * part.vector for part, line in lines], axis=0)  # (D,)
        return direction, sum(part.weight * line.offset for part, line in lines)

    def _logits(self, snapshot: Snapshot, answered: Modality, asked: Asked, rows: np.ndarray) -> np.ndarray:
        """The log-odds of the first stage ``(R,)`` of the items of one kind at ``rows`` ``(R,)``."""
        direction, offset = self._line(asked, answered)
        vectors = snapshot.vectors[answered].fetch(rows)
        logits: np.ndarray = np.sum(vectors.astype(np.float64) * direction, axis=1) + offset
        if asked.unwanted:
            logits -= _penalty(vectors, self._samples.of(snapshot, answered).vectors, asked.unwanted)
        return logits

    def _words(self, snapshot: Snapshot, asked: Asked, pool: int) -> tuple[dict[Modality, _Worded], float]:
        """The items that the words of a question speak for, with their log-odds, by their modality.

        Of those that only the names of their folders speak for, the ``pool`` best of each kind; and the log-odds,
        raised, that the next of them may have.
        """
        query, reader = asked.query, snapshot.reader
        if query.text is None or not reader.has_words():
            return {}, -np.inf
        if self._word_totals is None or self._word_totals[0] != snapshot.state.version:
            self._word_totals = snapshot.state.version, reader.word_totals()

        def nearest(kind: Modality, among: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
            most = max(pool, self._depth(asked, kind), SEEN)
            found = self._search_kind(snapshot, kind, asked, most, among)
            return found.rows, found.logits, len(found.rows) == most

        spoken = evidence(reader, query.text, self._word_totals[1], nearest, partial(is_everyday, self.encoder))
        if spoken is None:
            return {}, -np.inf
        rows = np.array([piece.row for piece in spoken.pieces])  # (P,)
        logits = np.full(len(rows), -np.inf)  # (P,), what may not answer stays so
        for kind in Modality:
            here = np.array([piece.modality is kind for piece in spoken.pieces])
            allowed = allowed_rows(snapshot, kind, query) if here.any() else None
            if allowed is not None:
                here &= np.isin(rows, allowed)
            if here.any():
                logits[here] = self._logits(snapshot, kind, asked, rows[here])
        answering = np.isfinite(logits)
        spoken, rows, logits = spoken.only(answering), rows[answering], logits[answering]
        weight = next(part.weight for part in asked.wanted if part.asked is Modality.TEXT)
        gains, whole = (weight * one for one in spoken.gains(logits))
        further, further_whole = (weight * one for one in spoken.gain(spoken.in_ends))
        if asked.unwanted:
            whole[:] = further_whole[:] = 0  # it would make up for what the unwanted took away
        beyond = float(np.max(raised(spoken.ends, further, further_whole), initial=-np.inf))
        found: dict[Modality, _Worded] = {}
        for kind in Modality:
            here = np.array([piece.modality is kind for piece in spoken.pieces], dtype=bool) & (gains > 0)
            if here.any():
                found[kind] = _Worded(rows[here], logits[here], gains[here], whole[here])
        return found, beyond

    def _with_words(
        self,
        snapshot: Snapshot,
        answered: Modality,
        asked: Asked,
        found: _Found,
        worded: _Worded | None,
        items: Mapping[int, Item],
    ) -> _Found:
        """What was found of one kind together with what the words speak for, each with what it gains by them.

        What the words speak for is looked at again like the candidates, up to as many; so it does not matter how far
        down the vectors had put it, nor how many answers are asked for.
        """
        if worded is None:
            return found
        depth = self._depth(asked, answered)
        apart = np.flatnonzero(~np.isin(worded.rows, found.rows[:depth]))  # (A,)
        first = raised(worded.logits, worded.gains, worded.whole)
        apart = apart[np.lexsort((worded.rows[apart], -first[apart]))]
        head, tail = apart[:depth], apart[depth:]
        head = head[np.lexsort((worded.rows[head], -worded.logits[head]))]
        looked = _Found(worded.rows[head], worded.logits[head], np.zeros(len(head), dtype=bool))
        if len(head):
            looked = self._look_again(snapshot, answered, asked, looked, items, [])
        again = _Found(
            np.concatenate([looked.rows, worded.rows[tail]]),
            np.concatenate([looked.logits, worded.logits[tail]]),
            np.concatenate([looked.reranked, np.zeros(len(tail), dtype=bool)]),
        )
        kept = ~np.isin(found.rows, again.rows)
        rows = np.concatenate([found.rows[kept], again.rows])
        logits = np.concatenate([found.logits[kept], again.logits])
        place = {row: i for i, row in enumerate(worded.rows.tolist())}
        spoken = [i for i, row in enumerate(rows.tolist()) if row in place]
        of = [place[row] for row in rows[spoken].tolist()]
        logits[spoken] = raised(logits[spoken], worded.gains[of], worded.whole[of])
        order = np.lexsort((rows, -logits))
        reranked = np.concatenate([found.reranked[kept], again.reranked])
        return _Found(rows[order], logits[order], reranked[order])

    def explain(
        self, text: str, shown: Shown, method: str | None = None, *, asked: Modality = Modality.TEXT
    ) -> Explanation:
        """Which parts of a picture the words of ``text`` look at; ``asked`` is which of the two is the question.

        Raises:
            UsageError: there is no word, no reranker, or one that cannot explain.
            ModelError: the reranker fails, or does not say where words look.
        """
        from mmsearch.rerank.explain import explain, no_reranker
        from mmsearch.rerank.explanation import METHOD

        if self._second is None:
            raise no_reranker(self.encoder)
        method = method or METHOD
        answered = Modality.TEXT if asked is Modality.IMAGE else Modality.IMAGE
        return explain(self._second, text, shown, method, asked=asked, line=line_for(self.calibration, asked, answered))

    def _explain_hit(self, query: Query, item: Item, method: str | None) -> Explanation:
        """The words and the picture among what was asked and what was found."""
        from mmsearch.rerank.explain import Shown, show

        if item.modality in VISUAL and query.text is not None:
            if not item.asset.path:
                raise UsageError(
                    f"{item.asset.key!r} was added from memory, and there is no file to look at again; give the "
                    "picture to Library.explain"
                )
            size = self.encoder.image_size
            if item.asset.modality is Modality.IMAGE:
                return self.explain(query.text, show(item.asset.path, size), method)
            image = PictureSide(path=item.asset.path, span=item.span or Span(), kind=item.asset.modality).open(size)
            return self.explain(query.text, Shown(image, item.asset.path, image.size), method)
        if item.modality is Modality.TEXT and (query.images or query.like):
            shown = show((query.images or query.like)[0], self.encoder.image_size)
            return self.explain(item.text or "", shown, method, asked=Modality.IMAGE)
        raise UsageError(
            f"only words and a picture can be explained; here both the question and the answer are {item.modality}s"
        )


def _as_trained(answered: Modality) -> Modality:
    """The modality that a posterior was fitted on: a clip counts as a picture."""
    return Modality.IMAGE if answered in VISUAL else answered


def _across(asked: Asked, answered: Modality) -> tuple[list[Part], list[tuple[Part, TextSide | PictureSide]]]:
    """The parts of a question that a reranker holds against answers of one kind, words against pictures or reverse; and
    those of them that it can, each with its side."""
    parts = [part for part in asked.wanted if (part.asked is Modality.TEXT) is (answered in VISUAL)]
    return parts, [(part, part.side) for part in parts if part.side is not None]


def _without(own: frozenset[tuple[str, str | None]], pieces: list[Scored]) -> list[Scored]:
    """The pieces that belong to other files than those that ask."""
    return [one for one in pieces if (one.item.asset.path, one.item.asset.key) not in own] if own else pieces


def _unsided(rows: np.ndarray) -> list[tuple[np.ndarray, None]]:
    """Vectors ``(B, D)`` of what no reranker is given."""
    return [(row, None) for row in rows]


def _asked(
    query: Query,
    texts: Iterator[tuple[np.ndarray, TextSide | None]],
    images: Iterator[tuple[np.ndarray, PictureSide | None]],
    files: Sequence[tuple[Stored, PictureSide | None]],
) -> Asked:
    """Take the vectors of one question off the two rows in which they stand, and put those of ``files`` beside them."""
    parts: list[tuple[Modality, np.ndarray, TextSide | PictureSide | None]] = []
    if query.text is not None:
        parts.append((Modality.TEXT, *next(texts)))
    parts += [(Modality.IMAGE, *next(images)) for _ in query.images]
    parts += [(file.asked, file.vector, side) for file, side in files]
    wanted = tuple(
        Part(asked, vector, share, side) for (asked, vector, side), share in zip(parts, query.shares, strict=True)
    )
    unwanted = tuple(Part(Modality.TEXT, next(texts)[0], 1.0) for _ in query.without)
    return Asked(query, wanted, unwanted, frozenset((file.asset.path, file.asset.key) for file, _ in files))


def check_page(k: int, offset: int = 0) -> None:
    """Whether so many answers after so many others can be asked for.

    Raises:
        UsageError: ``k`` is below 1, or ``offset`` below 0.
    """
    if k < 1:
        raise UsageError(f"k is {k}; ask for at least 1 answer")
    if offset < 0:
        raise UsageError(f"offset is {offset}; leave out 0 answers or more")


def plain_hits(index: Index, query: Query, k: int = 10, offset: int = 0) -> Hits:
    """The ``k`` first answers after ``offset`` to a question that needs no model: by words alone, or a list of files.

    Raises:
        UsageError: there is no word in the question, ``k`` is below 1, or ``offset`` below 0.
        StorageError: there is no word search in this index, or in this Python.
    """
    check_page(k, offset)
    if query.exact:
        return exact_hits(index, query, k + offset).page(offset)
    with index.snapshot() as snapshot:
        found, before = newest(snapshot, query, k, offset)
    return Hits((Hit(rank, math.nan, item, listed=True) for rank, item in enumerate(found, offset + 1)), before=before)


def exact_hits(index: Index, query: Query, k: int = 10) -> Hits:
    """The ``k`` best answers by words alone; no model takes part. See ``mmsearch.exact.find_exact``.

    Raises:
        UsageError: there is no word in the question, or ``k`` is below 1.
        StorageError: there is no word search in this index, or in this Python.
    """
    check_page(k)
    with index.snapshot() as snapshot:
        found = find_exact(snapshot, query, k)
    return Hits(
        Hit(rank, thing.best.score, thing.best.item, exact=True, worded=thing.worded, copies=thing.copies)
        for rank, thing in enumerate(found, 1)
    )


def _hits(
    query: Query,
    found: Sequence[Thing],
    matches: float,
    not_reranked: str | None,
    explain_hit: Callable[[Query, Item, str | None], Explanation],
) -> Hits:
    """The things that were found, best first, those that ``query`` wants shown."""

    def explaining(item: Item) -> Callable[[str | None], Explanation]:
        return lambda method: explain_hit(query, item, method)

    hits = []
    for rank, thing in enumerate(found, 1):
        best = thing.best
        looked_at = (thing.seen if query.text is not None else thing.worded) or best.item
        hit = Hit(rank, probability(best.score), best.item, best.reranked, explaining(looked_at), worded=thing.worded)
        hits.append(replace(hit, copies=thing.copies))
    shown = [hit for hit in hits if hit.score >= (query.min_prob or 0.0) and (hit.clear or not query.only_clear)]
    if query.unsure is not None and hits and hits[0].level == "weak":
        shown = shown[: query.unsure]
    return Hits(
        shown,
        nothing_else_matches=len(shown) < len(hits) and (query.min_prob is not None or query.only_clear),
        not_reranked=not_reranked,
        estimated_matches=matches,
    )


def _penalty(vectors: np.ndarray, library: np.ndarray, unwanted: Sequence[Part]) -> np.ndarray:
    """By how much the unwanted lowers the log-odds of ``vectors`` ``(K, D)``: ``(K,)``, never negative.

    Whoever says "not people" means what shows people more than the rest of the library does, however well or badly the
    model knows that word; so each vector's cosine with the unwanted is taken in standard deviations above the mean of
    ``library`` ``(S, D)``, and what is below the mean is spared.
    """
    penalty = np.zeros(len(vectors))
    for part in unwanted:
        background = library.astype(np.float64) @ part.vector  # (S,)
        spread = max(float(background.std()), 1e-6)
        above = (vectors.astype(np.float64) @ part.vector - background.mean()) / spread  # (K,)
        penalty += EXCLUSION_WEIGHT * np.maximum(above, 0)
    return penalty
