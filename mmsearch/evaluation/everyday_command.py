"""`mmsearch eval everyday`: a translation into ``evaluate_everyday``, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexer.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from mmsearch.datasets import Captioned, Dataset
    from mmsearch.evaluation.everyday import Everyday, Size

_CAPTION = (
    "Shares in per cent; in brackets, where 95 of 100 resamples of the kinds and the captioned pictures lie. ECE: by "
    "how much the probabilities of the first ten answers are off, and of captions that of the first; said and true are "
    "the means of what it compares."
)


def everyday(
    data: Annotated[
        Path, typer.Option("--data", metavar="PATH", help="Captioned pictures, in any format of mmsearch data.")
    ],
    split: Annotated[str, typer.Option(metavar="NAME", help="The pictures that are drawn from.")] = "test",
    model: Annotated[
        str, typer.Option(metavar="NAME", help="mini, an open_clip name, or the folder of a model.")
    ] = "mini",
    sizes: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Pictures of the libraries; other splits fill up the larger ones.")
    ] = "50,250,1000,8000",
    agree: Annotated[
        int, typer.Option(min=1, metavar="N", help="Captions of a picture that must say a thing, or all.")
    ] = 2,
    seed: Annotated[int, typer.Option(help="Another number draws other libraries.")] = 0,
    reranker: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A reranker's folder or name; else that of the model."),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="The format of the data; else it is recognised.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the pictures are, if they are not beside the captions.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the embedded pictures here, and use them again.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cuda, cuda:1, mps or cpu; else the best there is.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Answer in JSON, with every kind by itself.")] = False,
) -> None:
    """Judge how "dogs", "a red shirt" and what is not there are answered, in small libraries and large ones.

    A picture matches where enough of its captions say so. What is shown, how sure it is said to be, and what is refused
    is what mmsearch query answers with its defaults, over pictures that are indexed without captions or telling names.
    The test split fills up no other.

    Example: mmsearch eval everyday --data flickr8k --split dev --sizes 50,250,1000
    """
    from mmsearch.evaluation.command import progress_bars
    from mmsearch.evaluation.everyday import evaluate_everyday

    numbers = _numbers(sizes)
    dataset = _opened(data, format, images)
    with progress_bars(model) as progress:
        found = evaluate_everyday(
            model,
            dataset.split(split),
            filling=_others(dataset, split),
            name=f"{data.absolute().name}, split {split}",
            sizes=numbers,
            agree=agree,
            seed=seed,
            cache=cache,
            reranker=reranker,
            device=device,
            progress=progress,
        )
    if json_:
        print(json.dumps(found.as_dict(), indent=2))
        return
    from rich.console import Console

    Console(highlight=False).print(_table(found))
    for one in found.skipped:
        typer.echo(f"mmsearch: skipped {one.path}: {one.reason}", err=True)


def _opened(data: Path, format: str | None, images: Path | None) -> Dataset:
    from mmsearch.datasets import open_dataset

    dataset = open_dataset(data, format=format, images=images)
    if dataset.problems:
        first = f"the first of {len(dataset.problems):,} problems in {data}: {dataset.problems[0]}"
        typer.echo(f"mmsearch: {first}; 'mmsearch data inspect' names more", err=True)
    return dataset


def _others(dataset: Dataset, split: str) -> Captioned:
    """The pictures of the other splits, except of ``test``: nothing that is chosen may know it."""
    from mmsearch.datasets import Captioned
    from mmsearch.datasets.model import KIND_OF

    asked = dataset.split(split)
    taken = {picture.name for picture in asked.pictures}
    filling = Captioned([], [])
    for name, other in dataset.splits.items():
        if other is asked or KIND_OF.get(name) == "test":
            continue
        for picture, captions in zip(other.pictures, other.captions, strict=True):
            if picture.name not in taken:
                taken.add(picture.name)
                filling.pictures.append(picture)
                filling.captions.append(captions)
    return filling


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as exc:
        raise UsageError(f"--sizes {text!r} should be whole numbers with commas between, for example 50,250") from exc


def _table(found: Everyday) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{found.model}: {found.data}; a picture matches where {found.agree} captions say so")
    table = Table(title=title, title_justify="left", caption=_CAPTION, caption_justify="left", box=SIMPLE)
    table.add_column("pictures", no_wrap=True)
    for size in found.sizes:
        table.add_column(f"{size.pictures:,}", justify="right", overflow="fold")
    columns = [_cells(size) for size in found.sizes]
    for row in dict.fromkeys(name for column in columns for name in column):
        table.add_row(row, *(column.get(row, "–") for column in columns))
    return table


def _cells(size: Size) -> dict[str, str]:
    from mmsearch.evaluation.report import share

    cells = {"libraries": f"{size.libraries:,}"}
    cells |= {f"kinds {name}": f"{count:,}" for name, count in size.kinds.items()}
    cells |= {f"questions, {name}": f"{count:,}" for name, count in size.questions.items()}
    return cells | {name: share(value) for name, value in size.measures.items()}
