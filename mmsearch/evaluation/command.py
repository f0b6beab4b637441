"""`mmsearch eval`: judge models on captioned pictures, and compare two; a translation into calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexer.errors import MmsearchError, NoIndex, UsageError
from mmsearch.evaluation.analyses import register
from mmsearch.evaluation.everyday_command import everyday

if TYPE_CHECKING:
    from rich.table import Table

    from mmsearch.datasets import Captioned
    from mmsearch.evaluation.cost import Cost
    from mmsearch.evaluation.retrieval import Result

app = typer.Typer(invoke_without_command=True)

DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="PATH", help="Captioned pictures, in any format of mmsearch data.")
]
SplitOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The split to judge on; else test, or the only one that there is.")
]
FormatOption = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="The format of the data; else it is recognised.")
]
ImagesOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the pictures are, if they are not beside the captions.")
]
CutsOption = Annotated[str, typer.Option("--k", metavar="NUMBERS", help="Cuts of the ranking.")]
MinProbOption = Annotated[
    float, typer.Option(help="From which probability on an answer counts as returned, for precision and recall.")
]
CacheOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Keep the indexes that are built here, and use them again.")
]
DeviceOption = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="cuda, cuda:1, mps or cpu; else the best there is.")
]
NoRerankOption = Annotated[bool, typer.Option("--no-rerank", help="Judge the first stage alone.")]
CandidatesOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Rerank so many of the first answers; else what pays.")
]
RerankerOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="A reranker's folder, or blip-itm-base-coco and such; else the one trained for the model."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@app.callback()
def judge(
    context: typer.Context,
    data: DataOption = None,
    split: SplitOption = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="mini, an open_clip name, or a folder; repeatable.", show_default="mini"),
    ] = None,
    index: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="An index to judge as it is, with the model that made it; repeatable."),
    ] = None,
    format: FormatOption = None,
    images: ImagesOption = None,
    k: CutsOption = "1,5,10",
    min_prob: MinProbOption = 0.5,
    no_rerank: NoRerankOption = False,
    candidates: CandidatesOption = None,
    reranker: RerankerOption = None,
    cost: Annotated[bool, typer.Option(help="Measure time, memory and size as well, in a process for each.")] = True,
    cache: CacheOption = None,
    json_: JsonOption = False,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as Markdown, too.", dir_okay=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the result question by question, for compare.", dir_okay=False),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Judge how well models find pictures by captions and captions by pictures.

    Each picture and each caption of the split is put into an index, and every one of them asks. A model that has a
    reranker is judged without and with it, beside the best that any order of the candidates could do. With several
    models --out writes a file for each: results-1-mini.json and so on.

    Example: mmsearch eval --data flickr8k --split test --model mini --model runs/mine --out results.json
    """
    if context.invoked_subcommand is not None:
        return
    if data is None:
        raise UsageError("nothing to judge on: name captioned pictures with --data PATH")
    from indexer.index import Index
    from mmsearch.evaluation.report import Failure, Report

    cuts = _cuts(k)
    captioned, name = _open_data(data, split, format, images)
    results: list[Result] = []
    costs: list[Cost | None] = []
    failures: list[Failure] = []
    models = model or ([] if index else ["mini"])
    subjects: list[str | Path] = [*models, *(index or [])]
    for subject in subjects:
        try:
            if isinstance(subject, Path) and not Index.exists(subject):
                raise NoIndex(f"there is no index in {subject}; a model is named with --model")
            result, spent = _result(
                subject,
                captioned,
                name,
                cuts,
                min_prob,
                cache,
                device,
                rerank=not no_rerank,
                candidates=candidates,
                reranker=reranker,
                cost=cost,
            )
            results.append(result)
            costs.append(spent)
        except MmsearchError as exc:
            failures.append(Failure(str(subject), str(exc)))
            _say(f"{subject}: {exc}")
    if not results:
        raise typer.Exit(1)
    report = Report(tuple(results), tuple(costs), tuple(failures))
    if markdown is not None:
        _write(markdown, report.markdown())
    if out is not None:
        for number, result in enumerate(results, 1):
            _write(_out_file(out, number, result.model, len(results)), json.dumps(result.as_dict()))
    if json_:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        _print_table(report.table())
        for note in report.notes():
            _say(note)
    if failures:
        raise typer.Exit(1)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model, an index, or a file that --out wrote.")],
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="B", help="Another one; without it, A reranked against A's first stage.", show_default=False
        ),
    ] = None,
    data: DataOption = None,
    split: SplitOption = None,
    format: FormatOption = None,
    images: ImagesOption = None,
    k: CutsOption = "1,5,10",
    min_prob: MinProbOption = 0.5,
    no_rerank: NoRerankOption = False,
    candidates: CandidatesOption = None,
    reranker: RerankerOption = None,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="How many changed questions of each way to name.")] = 20,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the pictures of changed questions.")
    ] = None,
    cache: CacheOption = None,
    json_: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Say by how much B is better than A, how sure that is, and on which questions most.

    The data is needed where A or B has to be judged first, and for the pictures of the page.

    Example: mmsearch eval compare mini runs/mine --data flickr8k --split test --html page.html
    """
    from mmsearch.evaluation.comparison import compare as compare_results

    subjects = [a] if b is None else [a, b]
    saved = [_saved(subject) for subject in subjects]
    if data is None and (html is not None or None in saved):
        raise UsageError("name the captioned pictures with --data PATH: they are needed to judge, and for the page")
    captioned, name = _open_data(data, split, format, images) if data is not None else (None, "")
    results = []
    for subject, found in zip(subjects, saved, strict=True):
        if found is None:
            assert captioned is not None
            found, _ = _result(
                subject,
                captioned,
                name,
                _cuts(k),
                min_prob,
                cache,
                device,
                rerank=not no_rerank,
                candidates=candidates,
                reranker=reranker,
            )
        results.append(found)
    if b is None:
        if not results[0].reranked:
            raise UsageError(
                f"{a} was not reranked, so there is only one ranking; name another model to compare it with"
            )
        results.insert(0, results[0].first_stage())
    comparison = compare_results(results[0], results[1], changed=show)
    if html is not None and captioned is not None:
        from mmsearch.evaluation.page import page, thumbnails

        pictures = {picture.name: picture for picture in captioned.pictures}
        _write(html, page(comparison, thumbnails(pictures)))
    if json_:
        print(json.dumps(comparison.as_dict(), indent=2))
        return
    _print_table(comparison.table())
    for change in comparison.changes:
        print(f"{change.way}  {change.rank_a:>5,} → {change.rank_b:>5,}  {change.question}")


register(app)
app.command("everyday")(everyday)


def _result(
    subject: str | Path,
    data: Captioned,
    name: str,
    cuts: tuple[int, ...],
    min_prob: float,
    cache: Path | None,
    device: str | None,
    *,
    rerank: bool,
    candidates: int | None,
    reranker: str | None,
    cost: bool = False,
) -> tuple[Result, Cost | None]:
    """Judge one model or index, and measure what it costs while its index is there."""
    from mmsearch.evaluation.cost import measure_cost
    from mmsearch.evaluation.gallery import opened
    from mmsearch.evaluation.retrieval import evaluate_library

    with progress_bars(str(subject)) as progress, opened(subject, data, cache, device, progress, reranker) as library:
        result = evaluate_library(
            library,
            data,
            name=name,
            ks=cuts,
            threshold=min_prob,
            rerank=rerank,
            candidates=candidates,
            progress=progress,
        )
        if not cost:
            return result, None
        _say(f"{subject}: measuring time, memory and size")
        unread = {one.path for one in result.skipped}
        read = data.subset(n for n, picture in enumerate(data.pictures) if picture.name not in unread)
        return result, measure_cost(library.folder, read, device=device, rerank=rerank, reranker=reranker)


def _open_data(path: Path, split: str | None, format: str | None, images: Path | None) -> tuple[Captioned, str]:
    """The split to judge on, and what it is called."""
    from mmsearch.datasets import open_dataset

    dataset = open_dataset(path, format=format, images=images)
    if dataset.problems:
        first = f"the first of {len(dataset.problems):,} problems in {path}: {dataset.problems[0]}"
        _say(f"{first}; 'mmsearch data inspect' names more")
    chosen = split or (next(iter(dataset.splits)) if len(dataset.splits) == 1 else "test")
    return dataset.split(chosen), f"{path.absolute().name}, split {chosen}"


def _saved(subject: str) -> Result | None:
    """The result in a file that --out wrote; None for what is no file."""
    from mmsearch.evaluation.retrieval import Result

    if not Path(subject).is_file():
        return None
    try:
        values = json.loads(Path(subject).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise UsageError(f"{subject} is no result of 'mmsearch eval --out': {exc}") from exc
    try:
        return Result.from_dict(values if isinstance(values, dict) else {})
    except UsageError as exc:
        raise UsageError(f"{subject}: {exc}") from exc


def _cuts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as exc:
        raise UsageError(f"--k {text!r} should be whole numbers with commas between, for example 1,5,10") from exc


def _out_file(out: Path, number: int, name: str, count: int) -> Path:
    """``results.json``, or of several models ``results-1-mini.json``, ``results-2-runs_mine.json``."""
    if count == 1:
        return out
    plain = "".join(c if c.isalnum() or c in "-." else "_" for c in name)
    return out.with_name(f"{out.stem}-{number}-{plain}{out.suffix}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}") from exc
    _say(f"wrote {path}")


@contextmanager
def progress_bars(subject: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal for each thing that is done; in a log, a line when it begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as bar:

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                if not console.is_terminal:
                    _say(f"{subject}: {what}, {total:,}")
                tasks[what] = bar.add_task(f"{subject}: {what}", total=total)
            bar.update(tasks[what], completed=done)

        yield progress


def _print_table(table: Table) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)


def _say(line: str) -> None:
    print(f"mmsearch: {line}", file=sys.stderr)
