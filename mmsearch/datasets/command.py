"""`mmsearch data`: what is in a dataset of captioned pictures, before anything is trained on it or measured by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmsearch.datasets import Captioned, Dataset

app = typer.Typer(no_args_is_help=True)

PROBLEMS_SHOWN = 10


@app.callback()
def data() -> None:
    """Look at datasets of captioned pictures."""


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder, a file, or a pattern such as 'shards/*.tar'.")
    ],
    format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The format, where it is not recognised; a wrong name lists them all."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of the pictures, if they are elsewhere.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Only this split, such as dev.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Pictures that are shown of each split, spread over it.")] = 10,
    json_: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Say which format a dataset has, what its splits hold, what cannot be used, and show some of it.

    Example: mmsearch data inspect annotations/captions_val2017.json --images val2017
    """
    from rich.console import Console

    from mmsearch.datasets import open_dataset

    with Console(stderr=True).status(f"reading {path}"):
        dataset = open_dataset(path, format=format, images=images)
    chosen = dataset.splits if split is None else {split: dataset.split(split)}
    described = {name: describe(part, samples) for name, part in chosen.items()}
    if json_:
        print(json.dumps(_report(dataset, described), indent=2))
        return
    for line in lines(dataset, described):
        print(line.encode(errors="backslashreplace").decode())


def describe(part: Captioned, samples: int) -> dict[str, Any]:
    """The counts of a split, and ``samples`` of its pictures at equal distances, opened to see that they can be."""
    from indexer.errors import DecodeError

    texts, _ = part.flat()
    count = min(samples, len(part))
    shown = []
    for number in (i * len(part) // count for i in range(count)):
        picture = part.pictures[number]
        sample: dict[str, Any] = {"name": picture.name, "path": str(picture.path), "captions": part.captions[number]}
        try:
            sample["size"] = list(picture.open().size)
        except DecodeError as exc:
            sample["error"] = str(exc)
        shown.append(sample)
    return {
        "pictures": len(part),
        "captions": len(texts),
        "captions_per_picture": len(texts) / len(part),
        "words_per_caption": sum(len(text.split()) for text in texts) / len(texts),
        "samples": shown,
    }


def _report(dataset: Dataset, described: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "path": str(dataset.path),
        "format": dataset.format,
        "splits": described,
        "problem_count": len(dataset.problems),
        "problems": [{"place": p.place, "what": p.what} for p in dataset.problems[:PROBLEMS_SHOWN]],
    }


def lines(dataset: Dataset, described: dict[str, dict[str, Any]]) -> list[str]:
    """The report as people read it."""
    width = max(len("split"), *(len(name) for name in described))
    found = [
        f"{dataset.path}: format {dataset.format}",
        "",
        f"{'split':<{width}}  {'pictures':>9}  {'captions':>9}  {'a picture':>9}  {'words each':>10}",
    ]
    for name, part in described.items():
        found.append(
            f"{name:<{width}}  {part['pictures']:>9,}  {part['captions']:>9,}"
            f"  {part['captions_per_picture']:>9.2f}  {part['words_per_caption']:>10.1f}"
        )
    count = len(dataset.problems)
    found += ["", "no problems" if not count else "1 problem" if count == 1 else f"{count:,} problems"]
    found += [f"  {problem}" for problem in dataset.problems[:PROBLEMS_SHOWN]]
    if count > PROBLEMS_SHOWN:
        found.append(f"  and {count - PROBLEMS_SHOWN:,} more")
    for name, part in described.items():
        for sample in part["samples"]:
            size = sample.get("size")
            found += ["", f"{name}: {sample['name']} ({f'{size[0]} x {size[1]}' if size else sample['error']})"]
            found += [f"  {' '.join(caption.split())}" for caption in sample["captions"]]
    return found
