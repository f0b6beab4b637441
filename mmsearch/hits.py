"""Answers: what was found, how sure that is, and where it stands in its file. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.errors import UsageError
from indexer.types import Box, Item, Span
from mmsearch.posterior import level

if TYPE_CHECKING:
    from mmsearch.rerank.explanation import Explanation
    from mmsearch.understanding import Understood


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: a picture, a moment of a video, a page, a passage. ``rank`` counts from 1; ``score`` lies between 0
    and 1 and means the same for every kind of hit, except where words alone were asked for (``exact``). Where nothing
    was asked but filters (``listed``) it is NaN: nothing was compared.

    ``item`` is the piece of it that answers best.
    """

    rank: int
    score: float
    item: Item
    reranked: bool = False
    """Whether a reranker has looked at it; else its score is what the first stage says."""
    explaining: Callable[[str | None], Explanation] | None = field(default=None, repr=False, compare=False)
    """What ``explain`` asks: the searcher that found it."""
    exact: bool = False
    """Whether it was found by its words alone: ``score`` is then its BM25 score as a share of the best one's."""
    worded: Item | None = field(default=None, repr=False, compare=False)
    """The best piece of text among what was found of it: words in a picture, say, or those of a page."""
    picture: Path | None = None
    """The picture that this text, in a file of its own, is the caption of."""
    listed: bool = False
    """Whether it is a file of a list, newest first, that was asked for without words and without a picture."""
    copies: tuple[str, ...] = ()
    """The paths, or the keys, of other files that are the same: with equal bytes, or a picture that was saved, resized
    or encoded again."""

    def __reduce__(self) -> tuple[type[Hit], tuple[Any, ...]]:
        """A copy that leaves the process, which the searcher cannot, cannot be explained."""
        found = (self.rank, self.score, self.item, self.reranked, None, self.exact, self.worded, self.picture)
        return Hit, (*found, self.listed, self.copies)

    @property
    def probability(self) -> float | None:
        """How likely it is that this is what was asked for, in this library: what ``score`` says.

        None where words alone were asked for, or nothing but a list.
        """
        return None if self.exact or self.listed else self.score

    @property
    def time(self) -> float | None:
        """When it was taken, or else when its file was changed, in seconds since 1970; None if nobody knows."""
        asset = self.item.asset
        if asset.taken is not None:
            return asset.taken
        return asset.mtime_ns / 1e9 if asset.mtime_ns else None

    @property
    def level(self) -> str:
        """What the probability means in a word: ``clear``, ``likely`` or ``weak``; see ``mmsearch.posterior``.

        What holds all the words that were asked for alone is clear.
        """
        return "clear" if self.exact else level(self.score)

    @property
    def clear(self) -> bool:
        """Whether it is a clear match."""
        return self.level == "clear"

    @property
    def _read(self) -> Item:
        """The piece that says what is read and where."""
        return self.worded or self.item

    @property
    def _span(self) -> Span | None:
        return self._read.span

    @property
    def path(self) -> Path | None:
        """The file; None for what was added from memory."""
        return Path(self.item.asset.path) if self.item.asset.path else None

    @property
    def key(self) -> str | None:
        """The caller's own id, for what was added from memory."""
        return self.item.asset.key

    @property
    def kind(self) -> str:
        """What its file is: ``image``, ``video`` or ``text``."""
        return self.item.asset.modality.value

    @property
    def text(self) -> str | None:
        """The passage, for a text; the words in a picture or on a page, where these were found."""
        return self._read.text

    @property
    def lines(self) -> Span | None:
        """Where in its file the passage stands, if it is one of lines."""
        return self._span if self._span and self._span.first_line is not None else None

    @property
    def page(self) -> int | None:
        """Page, slide or chapter of a document, from 1."""
        return self._span.page if self._span else None

    @property
    def start(self) -> float | None:
        """Where the moment of a video begins, in seconds."""
        return self.item.span.start if self.item.span else None

    @property
    def end(self) -> float | None:
        """Where it ends."""
        return self.item.span.end if self.item.span else None

    @property
    def best(self) -> float | None:
        """The frame that stands for it, in seconds."""
        return self.item.span.best if self.item.span else None

    @property
    def box(self) -> Box | None:
        """The part of a picture that answers."""
        return self._span.box if self._span else None

    @property
    def source(self) -> str | None:
        """What its text is, if not simply that of its file: ``subtitle``, ``ocr`` or ``caption``."""
        return "caption" if self.picture else self._read.source

    @property
    def fragment(self) -> str | None:
        """The moment as a media fragment, W3C Media Fragments 1.0: ``t=83,95``, which goes behind a ``#``."""
        if self.start is None or self.end is None:
            return None
        return f"t={_seconds(self.start)},{_seconds(self.end)}"

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the caller said about it when adding it."""
        return self.item.asset.metadata

    def explain(self, *, method: str | None = None) -> Explanation:
        """Which parts of the picture the words look at: those of the question, or for a picture those of this text.

        The file of a picture is read again. The probability is that of these words and this picture: ``score``, unless
        more than that was asked for, the file has changed, or the reranker has not looked at it.

        Args:
            method: ``attention`` or ``occlusion``; see ``mmsearch.rerank.explanation.METHOD``, which it is for None.

        Raises:
            UsageError: words meet words here, or a picture a picture; or the file is gone, or never was; or there is no
                reranker, or one that cannot explain.
            DecodeError: the file is no picture any more.
            ModelError: the reranker fails, or does not say where words look.
        """
        if self.explaining is None:
            raise UsageError("this hit was copied or made by hand; explain the one that the search gave")
        return self.explaining(method)

    def as_dict(self) -> dict[str, Any]:
        """The hit in plain values, for JSON; what does not apply is left out."""
        asset = self.item.asset
        values: dict[str, Any] = {
            "rank": self.rank,
            "score": None if self.listed else round(self.score, 6),
            "level": None if self.probability is None else self.level,
            "reranked": self.reranked,
            "exact": self.exact or None,
            "listed": self.listed or None,
            "time": self.time if self.listed else None,
            "kind": self.kind,
            "path": asset.path or None,
            "key": asset.key,
            "lines": [self.lines.first_line, self.lines.last_line] if self.lines else None,
            "page": self.page,
            "start": self.start,
            "end": self.end,
            "best": self.best,
            "fragment": self.fragment,
            "box": list(self.box) if self.box else None,
            "text": self.text,
            "source": self.source,
            "picture": str(self.picture) if self.picture else None,
            "taken": asset.taken,
            "metadata": dict(asset.metadata) or None,
            "copies": list(self.copies) or None,
        }
        return {name: value for name, value in values.items() if value is not None}


class Hits(list[Hit]):
    """The answers to one question, best first.

    Attributes:
        nothing_else_matches: the list ends because what follows is less likely than was asked for; an empty list then
            means that nothing is as likely, and else that there was nothing to choose from.
        estimated_matches: how many items of the library match, about; 0 where words alone were asked for.
        not_reranked: what could not be reranked, why, and what to do; None if nothing was in the way or nobody asked.
        understood: the time and the unwanted things that were read out of the words, and which of these were misspelt;
            None if there was nothing.
        foreign: the language, or the script, of the words, where the model does not know it; else None.
        before: how many answers come before these: as many as were to be left out, or all there are.
    """

    def __init__(
        self,
        hits: Iterable[Hit] = (),
        *,
        nothing_else_matches: bool = False,
        not_reranked: str | None = None,
        understood: Understood | None = None,
        foreign: str | None = None,
        estimated_matches: float = 0.0,
        before: int = 0,
    ) -> None:
        super().__init__(hits)
        self.foreign = foreign
        self.before = before
        self.understood = understood
        self.estimated_matches = estimated_matches
        self.nothing_else_matches = nothing_else_matches
        self.not_reranked = not_reranked

    @property
    def clear(self) -> bool:  # type: ignore[override]  # nobody empties a list of answers, and this is what is asked
        """Whether any answer is a clear match."""
        return any(hit.clear for hit in self)

    def page(self, offset: int) -> Hits:
        """The answers after the first ``offset``; each keeps its rank."""
        return Hits(
            self[offset:],
            nothing_else_matches=self.nothing_else_matches,
            not_reranked=self.not_reranked,
            understood=self.understood,
            estimated_matches=self.estimated_matches,
            before=min(offset, len(self)),
        )

    def as_dict(self) -> dict[str, Any]:
        """The list and what is said of it in plain values, for JSON."""
        return {
            "hits": [hit.as_dict() for hit in self],
            "clear": self.clear,
            "estimated_matches": round(self.estimated_matches, 1),
            "nothing_else_matches": self.nothing_else_matches,
            "not_reranked": self.not_reranked,
            "understood": self.understood and self.understood.as_dict(),
            "foreign": self.foreign,
        }


def _seconds(time: float) -> str:
    """``83``, ``83.5``: seconds to the millisecond, without zeros at the end."""
    return f"{time:.3f}".rstrip("0").rstrip(".")
