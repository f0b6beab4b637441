"""Several models side by side: one report as a table for a terminal, as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mmsearch.evaluation.bootstrap import Interval, interval
from mmsearch.evaluation.cost import Cost
from mmsearch.evaluation.retrieval import Result, Way

if TYPE_CHECKING:
    from rich.table import Table

_SKIPPED_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Failure:
    """A model that could not be judged, and why."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its rows: the name of a measure, and a cell for each column of the report."""

    heading: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What several models did on the same data; ``costs``, if they were measured, has one place for each result."""

    results: tuple[Result, ...]
    costs: tuple[Cost | None, ...] = ()
    failures: tuple[Failure, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain values, for JSON: fractions of 1, ranks, and 95 % bounds beside each value."""
        return {
            "results": [
                {
                    "model": result.model,
                    "fingerprint": result.fingerprint,
                    "data": result.data,
                    "ways": {f"{way.asked}->{way.answered}": _way_values(way, result) for way in result.ways},
                    "skipped": [{"picture": one.path, "reason": one.reason} for one in result.skipped],
                    "cost": asdict(cost) if cost else None,
                }
                for result, cost in self._costed()
            ],
            "failed": [asdict(failure) for failure in self.failures],
        }

    def table(self) -> Table:
        """A table for ``rich``: a column for each model, or for each stage of one that has a reranker."""
        from rich.box import SIMPLE
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(self.title), title_justify="left", caption=_CAPTION, caption_justify="left", box=SIMPLE
        )
        table.add_column(no_wrap=True)
        for column in self.columns:
            table.add_column(Text(column), justify="right", overflow="fold")
        for section in self.sections():
            table.add_section()
            table.add_row(Text(section.heading, "bold"))
            for name, cells in section.rows:
                table.add_row(name, *cells)
        return table

    def markdown(self) -> str:
        """The same as Markdown, a table for each section, with what was left out and what failed."""
        lines = [f"# {self.title}", "", _CAPTION]
        for section in self.sections():
            lines += ["", f"## {section.heading}", ""]
            lines.append("| | " + " | ".join(map(_in_cell, self.columns)) + " |")
            lines.append("|---|" + "---:|" * len(self.columns))
            lines += [
                f"| {_in_cell(name)} | " + " | ".join(map(_in_cell, cells)) + " |" for name, cells in section.rows
            ]
        notes = self.notes()
        return "\n".join([*lines, "", *(f"- {note}" for note in notes), *([""] if notes else [])])

    def notes(self) -> list[str]:
        """What a reader of the numbers should know: pictures left out, answers not reranked, models that failed."""
        notes = []
        for result in self.results:
            if result.skipped:
                shown = "; ".join(f"{one.path}: {one.reason}" for one in result.skipped[:_SKIPPED_SHOWN])
                more = len(result.skipped) - _SKIPPED_SHOWN
                rest = f"; and {more:,} more" if more > 0 else ""
                notes.append(f"{result.model}: {len(result.skipped):,} pictures left out ({shown}{rest})")
            notes += [f"{result.model}, {what}" for what in result.not_reranked]
        return notes + [f"{failure.model} was not judged: {failure.reason}" for failure in self.failures]

    @property
    def title(self) -> str:
        """What was judged on."""
        return ", ".join(dict.fromkeys(result.data for result in self.results)) or "nothing judged"

    @property
    def columns(self) -> tuple[str, ...]:
        """The model of each column, and its stage where there are several."""
        columns: list[str] = []
        for name, result in zip(names_apart(self.results), self.results, strict=True):
            stages = _stages(result)
            columns += [name] if len(stages) == 1 else [f"{name} {stage}" for stage in stages]
        return tuple(columns)

    def sections(self) -> list[Section]:
        """The measures of each way of asking, then the cost."""
        names = dict.fromkeys(way.name for result in self.results for way in result.ways)
        sections = [self._section(name) for name in names]
        return sections + ([self._cost_section()] if any(self.costs) else [])

    def _costed(self) -> list[tuple[Result, Cost | None]]:
        return list(zip(self.results, self.costs or (None,) * len(self.results), strict=True))

    def _section(self, name: str) -> Section:
        columns: list[dict[str, str]] = []
        for result in self.results:
            way = next((way for way in result.ways if way.name == name), None)
            columns += [_cells(way, result, stage) if way else {} for stage in _stages(result)]
        rows = dict.fromkeys(row for column in columns for row in column)
        return Section(name, tuple((row, tuple(column.get(row, "–") for column in columns)) for row in rows))

    def _cost_section(self) -> Section:
        columns: list[dict[str, str]] = []
        for result, cost in self._costed():
            columns += [cost.cells() if cost else {}] + [{} for _ in range(len(_stages(result)) - 1)]
        rows = dict.fromkeys(row for column in columns for row in column)
        return Section("cost", tuple((row, tuple(column.get(row, "–") for column in columns)) for row in rows))


_CAPTION = (
    "R@K: questions with a right answer among the first K. Shares are in per cent; in brackets, where 95 of 100 "
    "resamples of the pictures lie. ECE: by how much the probability of the first answer is off."
)


def summary(way: Way, result: Result, stage: str = "dual") -> dict[str, Interval]:
    """Every measure of one stage over all questions, with its interval; captions of a picture are drawn together."""
    values = way.measures(result.ks, result.threshold, way.stages[stage])
    summed = {name: interval(rows, way.groups) for name, rows in values.items() if name != "rank"}
    summed["median rank"] = interval(values["rank"], way.groups, statistic="median")
    summed["mean rank"] = interval(values["rank"], way.groups)
    return summed


def _stages(result: Result) -> tuple[str, ...]:
    return tuple(dict.fromkeys(stage for way in result.ways for stage in way.stages))


def _way_values(way: Way, result: Result) -> dict[str, Any]:
    stages = {
        stage: {name: asdict(found) for name, found in summary(way, result, stage).items()} for stage in way.stages
    }
    errors = {stage: way.calibration_error(stage) for stage in way.confidence}
    return {"gallery": way.gallery, "questions": len(way.questions), "stages": stages, "calibration_error": errors}


def _cells(way: Way, result: Result, stage: str) -> dict[str, str]:
    """The rows of one column."""
    found = summary(way, result, stage)
    cells = {"questions": f"{len(way.questions):,}", "gallery": f"{way.gallery:,}"}
    cells |= {name: share(found[name]) for name in headline(result.ks, result.threshold) if name in found}
    cells |= {name: _number(found[name]) for name in ("median rank", "mean rank")}
    error = way.calibration_error(stage)
    return cells | ({} if error is None else {"ECE": f"{100 * error:.1f}"})


def headline(ks: Sequence[int], threshold: float) -> list[str]:
    """The measures that a table for people has, all of them shares; of cuts that say nearly the same the last."""
    last = ks[-1]
    names = [f"R@{k}" for k in ks]
    names += ["MRR", "mAP", f"nDCG@{last}", f"precision@{last}", f"recall@{last}", f"F1@{last}"]
    return names + [f"{name}≥{threshold:g}" for name in ("precision", "recall", "F1")]


def share(found: Interval) -> str:
    """``62.3 (60.1–64.5)``, in per cent."""
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def _number(found: Interval) -> str:
    return f"{found.value:,.1f} ({found.low:,.1f}–{found.high:,.1f})"


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


def names_apart(results: Sequence[Result]) -> tuple[str, ...]:
    """The names of the models, with the beginnings of their fingerprints where two are called the same."""
    weights = {(result.model, result.fingerprint) for result in results}
    names = [model for model, _ in weights]
    return tuple(
        result.model if names.count(result.model) == 1 else f"{result.model} [{result.fingerprint[:8]}]"
        for result in results
    )
