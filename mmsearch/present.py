"""Hits, reports and statuses as a person or a program reads them. Pure: strings and bytes out, nothing printed here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from indexer.types import VISUAL

if TYPE_CHECKING:
    from indexer.derive import Tuning
    from indexer.performance import Performance, Stage
    from indexer.reports import TokensReport, UpdateReport
    from mmsearch.duplicates import Duplicates
    from mmsearch.hits import Hit, Hits
    from mmsearch.library import Status
    from mmsearch.rerank.explanation import Explanation
    from mmsearch.understanding import Understood

_SKIPPED_SHOWN = 20
_WORTH_A_LINE = 100
"""Pictures from which on a run says where its time went."""


def hits_table(hits: Sequence[Hit], *, width: int) -> str:
    """A line for each hit: how likely it is to match and what that means in a word, its kind, where it is, and for a
    text its beginning, which is cut at ``width`` columns. Where words alone were asked for, that is their score.

    A list of files has their dates, in UTC as filters have them, instead of scores.
    """
    where = [_where(hit) + _copies(hit) for hit in hits]
    column = min(max((len(w) for w in where), default=0), max(20, width // 2))
    lines = []
    for hit, place in zip(hits, where, strict=True):
        first = _day(hit.time) if hit.listed else _likely(hit)
        line = f"{first}  {hit.kind:<5}  {place}"
        if hit.text:
            source = f"({hit.source}) " if hit.source else ""
            least = len(line)  # of the text something may be missing, not of where it is
            line = f"{line:<{len(first) + column + 9}}  {source}{' '.join(hit.text.split())}"
            line = line if len(line) <= max(width, least) else line[: max(width - 1, least)] + "…"
        lines.append(line)
    return "\n".join(lines)


def _likely(hit: Hit) -> str:
    """`` 97% clear ``, ``<1% weak  ``."""
    if hit.probability is None:
        return f"{hit.score:5.2f}"
    percent = "<1%" if hit.score < 0.005 else f"{min(hit.score, 0.994):.0%}"
    return f"{percent:>4} {hit.level:<6}"


def _day(time: float | None) -> str:
    """``2021-05-17``, in UTC; as wide where there is none."""
    if time is None:
        return f"{'no date':<10}"
    try:
        return (datetime(1970, 1, 1) + timedelta(seconds=time)).strftime("%Y-%m-%d")
    except OverflowError:
        return f"{'no date':<10}"


def hits_json(hits: Hits) -> str:
    """One JSON object: ``hits``, whether any of them is ``clear``, ``estimated_matches``, whether
    ``nothing_else_matches``, what was ``not_reranked`` and why, or null, what was ``understood`` of the words, or null,
    and the ``foreign`` language that these are in, or null.

    Bytes of a path that are not UTF-8 come as lone surrogates, as ``os.fsdecode`` gives them.
    """
    return json.dumps(hits.as_dict(), indent=2)


def hits_line(hits: Hits, question: str | None) -> str:
    """The same on one line, with the question that it answers."""
    return json.dumps({"question": question} | hits.as_dict())


def understood_lines(understood: Understood | None) -> list[str]:
    """What was read out of the words of a question: ``only: 2021-06-01 to 2021-09-01``, ``without: people``, and which
    of them were misspelt: ``asked as "rabies" (nothing here says "rabeis")``."""
    if understood is None:
        return []
    after, before = understood.after, understood.before
    lines = [f'asked as "{better}" (nothing here says "{word}")' for word, better in understood.respelled]
    if after and before:
        lines.append(f"only: {after} to {before}")
    elif after or before:
        lines.append(f"only: from {after}" if after else f"only: before {before}")
    return lines + ([f"without: {', '.join(understood.without)}"] if understood.without else [])


def ending_lines(hits: Hits) -> list[str]:
    """What is said below a list: how many match in all, where that is more than it shows, and why it ends."""
    if not hits:
        if hits.before:
            return [f"no answers after the first {hits.before:,}; --offset leaves out all there are"]
        return ["nothing is as likely as that" if hits.nothing_else_matches else "nothing found"]
    if hits.nothing_else_matches:
        return ["nothing else is as likely as that"]
    matches = roughly(hits.estimated_matches)
    return [f"about {matches:,} match"] if hits.clear and matches > hits.before + len(hits) else []


def roughly(count: float) -> int:
    """A count as an estimate deserves it, to two digits: 137 gives 140."""
    whole = round(count)
    step = 10 ** max(len(str(whole)) - 2, 0)
    return round(whole / step) * step


def foreign_line(language: str, model: str) -> str:
    """What to make of the answers to a question in a language that the model does not know."""
    return f"{model} knows English; what a question in {language} means is a guess, but --exact finds its words"


def hits_paths(hits: Sequence[Hit], *, end: bytes) -> bytes:
    """The paths as the file system has them, each once and followed by ``end``."""
    paths = dict.fromkeys(hit.item.asset.path or hit.item.asset.key or "" for hit in hits)
    return b"".join(os.fsencode(path) + end for path in paths)


def explanation_lines(explanation: Explanation) -> list[str]:
    """The probability, as in a table of hits, then for each word how much it counts and where it looks most."""
    likely = "    ?" if explanation.probability is None else f"{explanation.probability:5.2f}"
    column = max(len(word.word) for word in explanation.words)
    lines = [f"{likely}  {explanation.question}  ({explanation.place(explanation.heat)})"]
    lines += [
        f"{100 * word.weight:4.0f}%  {word.word:<{column}}  {explanation.place(word.heat)}"
        for word in explanation.words
    ]
    return lines


def display_path(path: str) -> str:
    """A path as people read it: relative to where they are if it lies below, what cannot be printed escaped."""
    here = os.getcwd().rstrip("/") + "/"
    shown = path[len(here) :] if path.startswith(here) else path
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)


def _where(hit: Hit) -> str:
    place = display_path(hit.item.asset.path) if hit.item.asset.path else str(hit.key)
    if hit.page is not None:
        return f"{place}  page {hit.page}"
    if hit.start is not None and hit.end is not None:
        return f"{place}  {clock(hit.start)}–{clock(hit.end)}"
    place = f"{place}:{hit.lines.first_line}" if hit.lines and hit.path else place
    return f"{place} of {display_path(str(hit.picture))}" if hit.picture else place


def _copies(hit: Hit) -> str:
    count = len(hit.copies)
    return f" (+{count} {'copy' if count == 1 else 'copies'})" if count else ""


def duplicates_lines(found: Duplicates) -> list[str]:
    """The groups, a line for each file below one that says what they are."""
    lines: list[str] = []
    for group in found.groups:
        lines.append(f"{group.kind}, {len(group.files)} files:")
        for file in group.files:
            size = "" if file.likeness is None else f"  {file.likeness.width} x {file.likeness.height}"
            lines.append(f"  {display_path(file.name)}{size}  {file.asset.size / 1e3:,.0f} kB")
    return lines


def clock(seconds: float) -> str:
    """``0:01:23``: a place in a video, the second that is running."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def report_lines(report: UpdateReport) -> list[str]:
    """What an indexing run did: the skipped files with their reasons, then one line that counts."""
    lines = [f"skipped {display_path(s.path)}: {s.reason}" for s in report.skipped]
    parts = [
        f"{count:,} {word}"
        for count, word in (
            (report.added, "added"),
            (report.updated, "updated"),
            (report.moved, "moved"),
            (report.duplicates, "duplicates"),
            (report.removed, "removed"),
            (report.unchanged, "unchanged"),
            (len(report.skipped), "skipped"),
            (report.skipped_before, "skipped before and not changed since"),
        )
        if count
    ]
    if report.performance and report.performance.embedding.count >= _WORTH_A_LINE:
        lines.append(performance_line(report.performance))
    rate = f", {report.items / report.seconds:,.1f} items/s" if report.items and report.seconds else ""
    lines.append(f"{', '.join(parts) or 'nothing there to index'} in {duration(report.seconds)}{rate}")
    return lines


def tokens_lines(report: TokensReport) -> list[str]:
    """What a run that adds image tokens did: the skipped files with their reasons, then one line that counts."""
    lines = [f"skipped {display_path(s.path)}: {s.reason}" for s in report.skipped]
    parts = [
        f"{count:,} {word}"
        for count, word in (
            (report.present, "had theirs"),
            (report.changed, "changed since they were indexed"),
            (report.missing, "missing"),
            (report.from_memory, "added from memory and not here to be read again"),
            (len(report.skipped), "skipped"),
        )
        if count
    ]
    rate = f", {report.added / report.seconds:,.1f} pictures/s" if report.added and report.seconds else ""
    count = f"{report.added:,} pictures got image tokens in {duration(report.seconds)}{rate}"
    return [*lines, "; ".join([count, ", ".join(parts)]) if parts else count]


def status_lines(status: Status) -> list[str]:
    """A status for people."""
    files = ", ".join(f"{count:,} {kind} files" for kind, count in status.files.items())
    passages = status.items.get("text", 0)
    lines = [
        f"index      {status.folder}",
        f"model      {status.model} ({status.fingerprint[:12]}), vectors of {status.dim}",
        f"holds      {files} ({passages:,} passages)",
        f"on disk    {status.bytes / 1e6:,.1f} MB",
        f"created    {status.created}",
        f"precision  {status.precision or 'not decided before the first picture'}",
    ]
    if status.tokens is not None:
        pictures = sum(status.items.get(m.value, 0) for m in VISUAL)
        lines.append(f"tokens     {status.tokens}, of {pictures - status.without_tokens:,} of {pictures:,} pictures")
    if status.lists:
        lists = ", ".join(f"{kind} vectors in {count:,}" for kind, count in status.lists.items())
        lines.append(f"lists      {lists}")
    if status.erased:
        lines.append(f"erased     {status.erased:,} vectors; 'mmsearch compact' gives their space back")
    if status.skipped:
        lines.append(f"skipped    {len(status.skipped):,} files")
        lines += [f"  {display_path(s.path)}: {s.reason}" for s in status.skipped[:_SKIPPED_SHOWN]]
        if len(status.skipped) > _SKIPPED_SHOWN:
            lines.append(f"  and {len(status.skipped) - _SKIPPED_SHOWN:,} more (--json lists all)")
    return lines


def performance_line(figures: Performance) -> str:
    """Who waited for whom, in one line."""
    reading, model = figures.reading, figures.embedding
    return (
        f"pictures in {figures.precision}, {_of(model.workers, 'stream')}; of its time the model waited "
        f"{_share(model)} for pictures, and reading {_share(reading)} for the model"
    )


def performance_lines(figures: Performance | None) -> list[str]:
    """How a run spent its time, for people."""
    if figures is None:
        return ["nothing was measured yet; 'mmsearch index FOLDER' does, where there are new pictures"]
    ended = "" if figures.finished else ", not finished"
    pictures = figures.embedding.count
    rate = f", {pictures / figures.seconds:,.1f} pictures/s" if pictures and figures.seconds else ""
    lines = [
        f"run        {figures.started}, {duration(figures.seconds)}{ended}{rate}",
        f"model      {figures.model}, {figures.precision}: {figures.why}",
    ]
    for name, stage, what, worker in (
        ("reading", figures.reading, "files", "thread"),
        ("embedding", figures.embedding, "pictures", "stream"),
        ("storing", figures.storing, "pictures", "thread"),
    ):
        lines.append(
            f"{name:<10} {stage.count:,} {what} in {_of(stage.workers, worker)}: {duration(stage.seconds)} of work, "
            f"{stage.rate:,.1f} {what}/s, waited {duration(stage.waited)} ({_share(stage)})"
        )
    return lines


def _of(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _share(stage: Stage) -> str:
    """The share of its time that a stage waited."""
    whole = stage.seconds + stage.waited
    return f"{stage.waited / whole:.0%}" if whole else "0%"


def tuning_lines(tunings: Sequence[Tuning]) -> list[str]:
    """What a question costs for which recall, as tables; an arrow marks what is used."""
    lines: list[str] = []
    for tuning in tunings:
        if lines:
            lines.append("")
        vectors = f"{tuning.rows:,} {tuning.modality} vectors"
        exact = f"a scan of all takes {tuning.exact_milliseconds:.1f} ms"
        if not tuning.points:
            lines.append(f"{vectors}: searched exactly; {exact}")
            continue
        lines.append(f"{vectors} in {tuning.lists:,} lists, recall {tuning.target:g} asked for; {exact}")
        lines.append("   lists   share   recall@10        ms")
        lines += [
            f"{'→' if p.chosen else ' '} {p.probes:6,}  {p.share:5.1%}   {p.recall:9.4f}  {p.milliseconds:8.2f}"
            for p in tuning.points
        ]
    return lines


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
