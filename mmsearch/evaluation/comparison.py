"""Two results question by question: by how much they differ, how sure that is, and on which questions most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.errors import UsageError
from mmsearch.evaluation.bootstrap import Difference, difference
from mmsearch.evaluation.report import headline, names_apart
from mmsearch.evaluation.retrieval import Answer, Result, Way

if TYPE_CHECKING:
    from rich.table import Table

CHANGED = 20
"""Questions of each way that are shown when none says how many."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of one way of asking: the means of both, their ``difference`` B - A, and questions won and lost by B.

    A rank is better when it is lower, all else when it is higher.
    """

    way: str
    measure: str
    a: float
    b: float
    difference: Difference
    better: int
    worse: int


@dataclass(frozen=True, slots=True)
class Change:
    """One question on which the two differ: the rank of its first right answer in each, and their first answers."""

    way: str
    question: str
    picture: str
    rank_a: int
    rank_b: int
    answers_a: tuple[Answer, ...]
    answers_b: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What ``compare`` found; ``names`` are those of A and B."""

    names: tuple[str, str]
    data: str
    ks: tuple[int, ...]
    threshold: float
    rows: tuple[Row, ...]
    changes: tuple[Change, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; differences are B - A."""
        return {
            "a": self.names[0],
            "b": self.names[1],
            "data": self.data,
            "rows": [asdict(row) for row in self.rows],
            "changes": [
                {
                    "way": change.way,
                    "question": change.question,
                    "picture": change.picture,
                    "rank_a": change.rank_a,
                    "rank_b": change.rank_b,
                    "answers_a": [answer.name for answer in change.answers_a],
                    "answers_b": [answer.name for answer in change.answers_b],
                }
                for change in self.changes
            ],
        }

    def table(self) -> Table:
        """A table for ``rich``; of cuts that say nearly the same only the last."""
        from rich.box import SIMPLE
        from rich.table import Table
        from rich.text import Text

        title = Text(f"A: {self.names[0]}, B: {self.names[1]}, on {self.data}")
        table = Table(
            title=title, title_justify="left", caption=CAPTION, caption_justify="left", box=SIMPLE, pad_edge=False
        )
        table.add_column(no_wrap=True)
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for way in dict.fromkeys(row.way for row in self.rows):
            rows = {row.measure: row for row in self.rows if row.way == way}
            table.add_section()
            table.add_row(Text(way, "bold"))
            for name in [*headline(self.ks, self.threshold), "mean rank"]:
                if name in rows:
                    table.add_row(*cells(rows[name]))
        return table


HEADINGS = ("A", "B", "B - A", "95 %", "p", "better", "worse")
CAPTION = (
    "95 %: where 95 of 100 resamples of the pictures lie. p: how often chance alone would make a difference as large; "
    "each is for its own row, not for the best of many. better, worse: questions on which B beats A, or loses."
)


def compare(a: Result, b: Result, *, changed: int = CHANGED, seed: int = 0) -> Comparison:
    """Compare two results on the same questions by paired bootstrap and paired permutation.

    ``changed`` questions of each way are named, those whose reciprocal rank changed most first: from rank 1 to 3 is
    more than from 30 to 300. With a reranker the reranked rankings are compared, and
    ``compare(result.first_stage(), result)`` says what it gave.

    Raises:
        UsageError: they did not answer the same questions, or have no way of asking in common.
    """
    rows: list[Row] = []
    changes: list[Change] = []
    ks = sorted(set(a.ks) & set(b.ks))
    if not ks or a.threshold != b.threshold:
        raise UsageError(
            f"the results have no cut in common or other thresholds ({a.ks} at {a.threshold:g}, {b.ks} at "
            f"{b.threshold:g}); evaluate both with the same --k and --min-prob"
        )
    pairs = [(one, other) for one in a.ways for other in b.ways if one.name == other.name]
    if not pairs:
        raise UsageError(f"{a.model} and {b.model} have no way of asking in common, so there is nothing to compare")
    for one, other in pairs:
        _check_same_questions(one, other)
        rows += _rows(one, other, ks, a.threshold, seed)
        changes += _changes(one, other, changed)
    first, second = names_apart([a, b])
    if a.reranked != b.reranked:
        first, second = first + " reranked" * a.reranked, second + " reranked" * b.reranked
    data = " / ".join(dict.fromkeys((a.data, b.data)))
    return Comparison((first, second), data, tuple(ks), a.threshold, tuple(rows), tuple(changes))


def _check_same_questions(a: Way, b: Way) -> None:
    if a.questions == b.questions and a.pictures == b.pictures:
        if a.gallery != b.gallery:
            raise UsageError(
                f"{a.name}: A chose among {a.gallery:,} and B among {b.gallery:,}, which cannot be compared; "
                "evaluate both on the same gallery"
            )
        return
    pairs = zip(a.questions, b.questions, strict=False)
    at = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    where = "" if at is None else f" (number {at + 1} is {a.questions[at]!r} for A and {b.questions[at]!r} for B)"
    raise UsageError(
        f"{a.name}: A answered {len(a.questions):,} questions and B {len(b.questions):,}, not the same ones{where}; "
        "evaluate both on the same data and split"
    )


def _rows(a: Way, b: Way, ks: Sequence[int], threshold: float, seed: int) -> list[Row]:
    ours, theirs = a.measures(ks, threshold, a.reranked), b.measures(ks, threshold, b.reranked)
    rows = []
    for name in (name for name in ours if name in theirs):
        sign = -1 if name == "rank" else 1
        gain = sign * (theirs[name] - ours[name])
        rows.append(
            Row(
                a.name,
                "mean rank" if name == "rank" else name,
                float(ours[name].mean()),
                float(theirs[name].mean()),
                difference(theirs[name], ours[name], a.groups, seed=seed),
                int((gain > 0).sum()),
                int((gain < 0).sum()),
            )
        )
    return rows


def _changes(a: Way, b: Way, count: int) -> list[Change]:
    judged = [way.reranked if way.reranked is not None else way.judged for way in (a, b)]
    ranks = np.stack([one.ranks[:, 0] for one in judged])  # (2, Q)
    apart = np.abs(1 / ranks[0] - 1 / ranks[1])  # (Q,)
    chosen = [q for q in np.argsort(-apart, kind="stable")[:count].tolist() if apart[q] > 0]
    return [
        Change(
            a.name,
            a.questions[q],
            a.pictures[q],
            int(ranks[0, q]),
            int(ranks[1, q]),
            a.answers[q],
            b.answers[q],
        )
        for q in chosen
    ]


def cells(row: Row) -> tuple[str, ...]:
    """A row as text: shares in per cent, ranks as they are."""
    scale = 1 if row.measure == "mean rank" else 100
    apart = row.difference
    return (
        row.measure,
        f"{scale * row.a:,.1f}",
        f"{scale * row.b:,.1f}",
        f"{scale * apart.value:+,.1f}",
        f"{scale * apart.low:+,.1f} … {scale * apart.high:+,.1f}",
        f"{apart.p:.4f}",
        f"{row.better:,}",
        f"{row.worse:,}",
    )
