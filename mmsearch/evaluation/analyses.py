"""The analyses beside retrieval: each as a call on a model and its data, and as a subcommand of `mmsearch eval`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexer.errors import DecodeError, UsageError
from indexer.types import Skipped

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from indexer.encoders import Encoder
    from indexer.reports import Progress
    from mmsearch.datasets import Captioned, Dataset, Picture
    from mmsearch.evaluation.agreement import Agreement
    from mmsearch.evaluation.classification import Classification
    from mmsearch.evaluation.consistency import Consistency
    from mmsearch.evaluation.description import Description
    from mmsearch.evaluation.modalities import Modalities

_PICTURES = 64  # embedded at once; twice as many wait decoded
_TEXTS = 256
_NAMED = 10  # skipped pictures that are named on a terminal; --json names all
_WORST = 20  # classes that are shown
_SAMPLES = 5  # descriptions that are shown

Report = Callable[["Progress"], None]
"""Is told after each batch of pictures how far the work is."""


# --- vectors


@dataclass(frozen=True, slots=True)
class EmbeddedPictures:
    """The vectors of those pictures that could be read."""

    views: np.ndarray
    """``(V, N, D)``, unit rows: the picture as it is, then each change of it."""
    numbers: np.ndarray
    """``(N,)``: which of the pictures that were given."""
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class EmbeddedSplit:
    """Captioned pictures as a model sees them: N pictures that can be read, and their M captions."""

    names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    views: np.ndarray
    """``(V, N, D)``, unit rows: the pictures as they are, then each change of them."""
    texts: np.ndarray
    """``(M, D)``, unit rows."""
    owner: np.ndarray
    """``(M,)``: the picture of each caption."""
    skipped: tuple[Skipped, ...]

    @property
    def images(self) -> np.ndarray:
        """``(N, D)``: the pictures as they are."""
        view: np.ndarray = self.views[0]
        return view


def embed_pictures(
    encoder: Encoder,
    pictures: Sequence[Picture],
    *,
    changes: Sequence[Callable[[Image], Image]] = (),
    report: Report | None = None,
) -> EmbeddedPictures:
    """Embed every picture as it is and after each of ``changes``; those that cannot be read are named and left out.

    Raises:
        UsageError: not one picture can be read.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from indexer.reports import Progress

    def prepared(picture: Picture) -> list[np.ndarray] | str:
        try:
            image = picture.open()
        except DecodeError as exc:
            return str(exc)
        return [encoder.prepare(view) for view in (image, *(change(image) for change in changes))]

    rows: list[np.ndarray] = []
    numbers: list[int] = []
    skipped: list[Skipped] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        ahead = pool.map(prepared, pictures[:_PICTURES])
        for start in range(0, len(pictures), _PICTURES):
            some = list(ahead)
            ahead = pool.map(prepared, pictures[start + _PICTURES : start + 2 * _PICTURES])
            views = []
            for number, result in enumerate(some, start):
                if isinstance(result, str):
                    skipped.append(Skipped(pictures[number].name, result))
                else:
                    numbers.append(number)
                    views.append(result)
            for view in zip(*views, strict=True) if views else ():
                rows.append(encoder.encode_prepared(np.stack(view)))  # (B, D)
            if report:
                done = start + len(some)
                report(Progress(done, len(pictures), len(skipped), pictures[done - 1].name))
    if not numbers:
        first = f"; the first is {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise UsageError(f"none of {len(pictures)} pictures can be read{first}")
    count = 1 + len(changes)
    return EmbeddedPictures(
        np.stack([np.concatenate(rows[view::count]) for view in range(count)]), np.array(numbers), tuple(skipped)
    )


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """``(M, D)`` unit rows."""
    import numpy as np

    if not texts:
        return np.zeros((0, encoder.dim), np.float32)
    return np.concatenate([encoder.encode_texts(texts[i : i + _TEXTS]) for i in range(0, len(texts), _TEXTS)])


def embed_split(
    encoder: Encoder,
    data: Captioned,
    *,
    changes: Sequence[Callable[[Image], Image]] = (),
    report: Report | None = None,
) -> EmbeddedSplit:
    """Embed captioned pictures and their captions; a picture that cannot be read is left out with its captions.

    Raises:
        UsageError: not one picture can be read.
    """
    import numpy as np

    pictures = embed_pictures(encoder, data.pictures, changes=changes, report=report)
    captions = tuple(tuple(data.captions[number]) for number in pictures.numbers)
    return EmbeddedSplit(
        names=tuple(data.pictures[number].name for number in pictures.numbers),
        captions=captions,
        views=pictures.views,
        texts=embed_texts(encoder, [caption for some in captions for caption in some]),
        owner=np.repeat(np.arange(len(captions)), [len(some) for some in captions]),
        skipped=pictures.skipped,
    )


# --- the analyses


def measure_modalities(split: EmbeddedSplit) -> Modalities:
    """How the space of the pictures and that of their first captions lie to each other; one pair a picture.

    Raises:
        UsageError: there are too few pairs.
    """
    import numpy as np

    from mmsearch.evaluation.modalities import modalities

    owners, first = np.unique(split.owner, return_index=True)  # (N,)
    return modalities(split.images[owners], split.texts[first])


def measure_agreement(first: EmbeddedSplit, second: EmbeddedSplit, *, k: int = 10) -> dict[str, Agreement]:
    """How far two models agree on the same pictures and captions: ``text->image`` and ``image->text``.

    Raises:
        UsageError: the two were not embedded from the same pictures.
    """
    import numpy as np

    from mmsearch.evaluation.agreement import agreement

    if first.names != second.names or first.captions != second.captions:
        raise UsageError("the two models were given different pictures: embed the same split with both")
    pictures = np.arange(len(first.images))
    return {
        "text->image": agreement(
            (first.texts, first.images), (second.texts, second.images), (first.owner, pictures), k=k
        ),
        "image->text": agreement(
            (first.images, first.texts), (second.images, second.texts), (pictures, first.owner), k=k
        ),
    }


def measure_consistency(
    encoder: Encoder,
    data: Captioned,
    *,
    k: int = 10,
    report: Report | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> tuple[EmbeddedSplit, dict[str, list[Consistency]]]:
    """How a model takes other words and pictures that were saved again; with what it was measured on.

    ``text->image``: a caption asks for its picture in other words, by the rules of ``REWORDINGS``, and as the next
    caption of the same picture. ``image->text`` and ``image->image``: a picture asks for its captions and for itself
    after each of ``ALTERATIONS``. ``report`` is told of pictures, and ``say`` of each change of words as it begins.

    Raises:
        UsageError: not one picture can be read.
    """
    import numpy as np

    from mmsearch.evaluation.consistency import ALTERATIONS, REWORDINGS, consistency, other_captions

    split = embed_split(encoder, data, changes=tuple(ALTERATIONS.values()), report=report)
    pictures = np.arange(len(split.images))
    texts = [caption for some in split.captions for caption in some]
    reworded: dict[str, Sequence[str | None]] = {
        name: [change(text) for text in texts] for name, change in REWORDINGS.items()
    }
    reworded["another caption"] = other_captions(split.captions)
    found: dict[str, list[Consistency | None]] = {"text->image": [], "image->text": [], "image->image": []}
    for name, changed in reworded.items():
        asked = [m for m, (old, new) in enumerate(zip(texts, changed, strict=True)) if new and new != old]
        say(f"asking {len(asked):,} captions again: {name}")
        after = embed_texts(encoder, [str(changed[m]) for m in asked])
        found["text->image"].append(
            consistency(name, split.texts[asked], after, split.images, (split.owner[asked], pictures), k=k)
        )
    for name, view in zip(ALTERATIONS, split.views[1:], strict=True):
        found["image->text"].append(consistency(name, split.images, view, split.texts, (pictures, split.owner), k=k))
        found["image->image"].append(consistency(name, split.images, view, split.images, (pictures, pictures), k=k))
    return split, {way: [one for one in some if one] for way, some in found.items()}


def measure_description(encoder: Encoder, split: EmbeddedSplit, corpus: Sequence[str]) -> Description:
    """How good the captions of ``corpus`` that a model finds for the pictures are as descriptions of them.

    Raises:
        UsageError: the corpus is empty.
    """
    from mmsearch.evaluation.description import describe

    return describe(split.images, split.captions, corpus, embed_texts(encoder, corpus))


def measure_classification(
    encoder: Encoder, folder: Path, *, templates: Sequence[str] | None = None, report: Report | None = None
) -> tuple[Classification, tuple[Skipped, ...]]:
    """Classify the pictures of a folder of class folders by the names of the folders; and what could not be read.

    Raises:
        UsageError: the folder is none of class folders, or not one picture can be read.
    """
    import numpy as np

    from mmsearch.evaluation.classification import TEMPLATES, class_vectors, classify, read_class_folders

    folders = read_class_folders(folder)
    pictures = embed_pictures(encoder, folders.pictures, report=report)
    labels = np.array(folders.labels)[pictures.numbers]
    vectors = class_vectors(encoder, folders.names, TEMPLATES if templates is None else templates)
    return classify(pictures.views[0], vectors, labels, folders.names), pictures.skipped


# --- the commands

_Data = Annotated[
    Path, typer.Option("--data", metavar="PATH", help="Captioned pictures: a folder or a file of captions.")
]
_Split = Annotated[str, typer.Option("--split", metavar="NAME", help="Which part of the data is measured.")]
_Format = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="The data's format; else told by its content.")
]
_Images = Annotated[
    Path | None, typer.Option("--images", metavar="DIR", help="The pictures, where they lie apart from the captions.")
]
_Model = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME", help="mini, an open_clip name such as ViT-B-32/laion2b_s34b_b79k, or a folder."
    ),
]
_Device = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="cuda, cuda:1, mps or cpu; else the best there is.")
]
_Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
_K = Annotated[int, typer.Option("-k", min=1, max=100, help="How many answers to each question are looked at.")]


def register(app: typer.Typer) -> None:
    """Add the analyses to ``app``, each as a subcommand."""
    for name, command in (
        ("modalities", _modalities),
        ("agreement", _agreement),
        ("consistency", _consistency),
        ("describe", _describe),
        ("classify", _classify),
    ):
        app.command(name)(command)


def _modalities(
    data: _Data,
    split: _Split = "test",
    model: _Model = "mini",
    format_: _Format = None,
    images: _Images = None,
    device: _Device = None,
    json_: _Json = False,
) -> None:
    """Say how pictures and texts lie to each other in a model's space: correlations, information, gap.

    Example: mmsearch eval modalities --data flickr8k --split test
    """
    from mmsearch.evaluation.modalities import KNN_COMPONENTS

    captioned = _open(data, format_, images).split(split)
    embedded = _embed(_load(model, device), captioned)
    found = measure_modalities(embedded)
    if json_:
        _print_json(_header(embedded, data, split, model), found.as_dict())
        return
    first = " ".join(f"{value:.3f}" for value in found.correlations[:KNN_COMPONENTS])
    ceiling = f"of {found.infonce_ceiling:.2f} that so many pairs can show"
    _print_table(
        f"{model}: {found.pairs:,} pairs of a picture and its first caption",
        ("measure", "value", ""),
        [
            ("canonical correlations", first, f"the first {KNN_COMPONENTS}, on unseen pairs"),
            ("information, if Gaussian", f"{found.gaussian_information:.2f} nats", "of these directions"),
            ("information, neighbours", f"{found.knn_information:.2f} nats", "of these directions"),
            ("information, InfoNCE", f"≥ {found.infonce_bound:.2f} nats", ceiling),
            ("gap, distance", f"{found.gap.distance:.3f}", "between the centres; 0 is none"),
            ("gap, cosine", f"{found.gap.cosine:.3f}", "of the centres' directions"),
            ("gap, separability", f"{found.gap.separability:.1%}", "on their side of a plane; 50 % is none"),
            ("alignment", f"{found.alignment:.3f}", "squared distance of partners; 0 is best"),
            ("uniformity of pictures", f"{found.image_uniformity:.3f}", "lower is more evenly spread"),
            ("uniformity of texts", f"{found.text_uniformity:.3f}", "lower is more evenly spread"),
        ],
        align="lrl",
    )


def _agreement(
    data: _Data,
    model: Annotated[list[str], typer.Option("--model", metavar="NAME", help="Two models: give this twice.")],
    split: _Split = "test",
    k: _K = 10,
    format_: _Format = None,
    images: _Images = None,
    device: _Device = None,
    json_: _Json = False,
) -> None:
    """Compare what two models find for the same questions: common answers, their order, who is right.

    Example: mmsearch eval agreement --data flickr8k --model mini --model runs/mine
    """
    if len(model) != 2:
        raise UsageError(f"agreement is between two models, and --model was given {len(model)} times: give it twice")
    captioned = _open(data, format_, images).split(split)
    first, second = (_embed(_load(name, device), captioned) for name in model)
    found = measure_agreement(first, second, k=k)
    if json_:
        _print_json(
            {**_header(first, data, split, model[0]), "model": model},
            {way: result.as_dict() for way, result in found.items()},
        )
        return
    rows = [
        ("questions", lambda a: f"{a.questions:,}"),
        ("gallery", lambda a: f"{a.gallery:,}"),
        ("common answers (Jaccard)", lambda a: f"{a.jaccard:.3f}"),
        ("rank-biased overlap", lambda a: f"{a.rank_biased_overlap:.3f}"),
        ("order (Kendall's tau)", lambda a: f"{a.kendall_tau:.3f}"),
        ("same first answer", lambda a: f"{a.same_first:.1%}"),
        ("both right", lambda a: f"{a.both_right:.1%}"),
        (f"only {model[0]} right", lambda a: f"{a.only_first_right:.1%}"),
        (f"only {model[1]} right", lambda a: f"{a.only_second_right:.1%}"),
        ("neither right", lambda a: f"{a.neither_right:.1%}"),
    ]
    _print_table(
        f"{model[0]} and {model[1]}: the first {k} answers",
        ("", *found),
        [(name, *(value(result) for result in found.values())) for name, value in rows],
        align="lrr",
    )


def _consistency(
    data: _Data,
    split: _Split = "test",
    model: _Model = "mini",
    k: _K = 10,
    format_: _Format = None,
    images: _Images = None,
    device: _Device = None,
    json_: _Json = False,
) -> None:
    """Say how a model's answers change with other words, and with pictures that were saved again.

    Example: mmsearch eval consistency --data flickr8k --split dev -k 5
    """
    from mmsearch.progress import ProgressLine

    captioned = _open(data, format_, images).split(split)
    with ProgressLine() as progress:
        embedded, found = measure_consistency(_load(model, device), captioned, k=k, report=progress, say=_say)
    _say_skipped(embedded.skipped)
    if json_:
        _print_json(
            _header(embedded, data, split, model), {way: [one.as_dict() for one in some] for way, some in found.items()}
        )
        return
    for way, some in found.items():
        _print_table(
            f"{model}, {way}: the first {k} answers",
            ("change", "asked", "cosine", "overlap", "right %", "lost %", "rank", "moves"),
            [
                (
                    one.change,
                    f"{one.questions:,}",
                    f"{one.cosine:.3f}",
                    f"{one.overlap:.3f}",
                    f"{100 * one.right_before:.1f}→{100 * one.right_after:.1f}",
                    f"{100 * one.lost:.1f}",
                    f"{one.rank_before:g}→{one.rank_after:g}",
                    f"{one.rank_change:g}",
                )
                for one in some
            ],
            align="lrrrrrrr",
        )


def _describe(
    data: _Data,
    split: _Split = "test",
    corpus: Annotated[
        str, typer.Option(metavar="NAME", help="Where captions come from: another split, or a file with one a line.")
    ] = "train",
    model: _Model = "mini",
    format_: _Format = None,
    images: _Images = None,
    device: _Device = None,
    json_: _Json = False,
) -> None:
    """Describe each picture by the best caption of other pictures, and measure that as captioning is measured.

    Example: mmsearch eval describe --data flickr8k --split test --corpus train
    """
    dataset = _open(data, format_, images)
    captioned = dataset.split(split)
    if corpus not in dataset.splits and Path(corpus).is_file():
        texts = _lines(Path(corpus))
    elif dataset.split(corpus) is captioned:
        raise UsageError(f"the captions of {corpus!r} would describe their own pictures; name another --corpus")
    else:
        texts = dataset.split(corpus).flat()[0]
    encoder = _load(model, device)
    embedded = _embed(encoder, captioned)
    _say(f"reading {len(texts):,} captions to choose from")
    found = measure_description(encoder, embedded, texts)
    if json_:
        _print_json(_header(embedded, data, split, model), {"names": embedded.names, **found.as_dict()})
        return
    _print_table(
        f"{model}: {found.pictures:,} pictures, described by {found.corpus:,} captions",
        ("chosen", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"),
        [
            (name, *(f"{value:.3f}" for value in (*scores.bleu, scores.rouge_l, scores.cider_d)))
            for name, scores in (("nearest", found.top), (f"consensus of {found.candidates}", found.consensus))
        ],
        align="lrrrrrr",
    )
    shown = range(0, found.pictures, max(1, found.pictures // _SAMPLES))[:_SAMPLES]
    _print_table(
        f"{len(shown)} of them:",
        ("picture", "nearest", "consensus"),
        [(embedded.names[n], found.top_captions[n], found.consensus_captions[n]) for n in shown],
        align="lll",
    )


def _classify(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="A folder with a folder of pictures for each class.")
    ],
    model: _Model = "mini",
    templates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sentences, one a line, with {} for the class.")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw which class is taken for which, as a PNG.")
    ] = None,
    device: _Device = None,
    json_: _Json = False,
) -> None:
    """Classify pictures by the names of their folders, without training, and count what is right.

    Example: mmsearch eval classify --data pets --confusion pets.png
    """
    from mmsearch.evaluation.classification import draw_confusion, read_templates
    from mmsearch.progress import ProgressLine

    sentences = None if templates is None else read_templates(templates)
    encoder = _load(model, device)
    with ProgressLine() as progress:
        found, skipped = measure_classification(encoder, data, templates=sentences, report=progress)
    _say_skipped(skipped)
    if confusion is not None:
        draw_confusion(found, confusion)
        _say(f"wrote {confusion}")
    if json_:
        _print_json(
            {"model": model, "data": str(data), "skipped": [{"name": s.path, "reason": s.reason} for s in skipped]},
            found.as_dict(),
        )
        return
    summary = [f"{found.accuracy:.1%} right", f"mean F1 {found.macro_f1:.3f}"]
    if found.top5 is not None:
        summary.insert(1, f"{found.top5:.1%} among the first five")
    worst = sorted(found.classes, key=lambda score: score.f1)[:_WORST]
    _print_table(
        f"{model}: {found.pictures:,} pictures of {len(found.classes):,} classes: {', '.join(summary)}",
        ("class", "pictures", "precision", "recall", "F1"),
        [(s.name, f"{s.pictures:,}", f"{s.precision:.3f}", f"{s.recall:.3f}", f"{s.f1:.3f}") for s in worst],
        align="lrrrr",
    )
    if len(found.classes) > _WORST:
        typer.echo(f"the {_WORST} classes with the lowest F1; --json lists all")


def _open(data: Path, format_: str | None, images: Path | None) -> Dataset:
    from mmsearch.datasets import open_dataset

    dataset = open_dataset(data, format=format_, images=images)
    if dataset.problems:
        _say(f"problems in {data}: {len(dataset.problems):,}; the first is {dataset.problems[0]}")
    return dataset


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not text in UTF-8; save it as such") from exc
    return [line.strip() for line in text.splitlines() if line.strip()]


def _load(model: str, device: str | None) -> Encoder:
    from indexer.encoders.load import load_encoder

    return load_encoder(model, device)


def _embed(encoder: Encoder, data: Captioned) -> EmbeddedSplit:
    from mmsearch.progress import ProgressLine

    _say(f"reading {len(data):,} pictures, then {sum(map(len, data.captions)):,} captions, with {encoder.name}")
    with ProgressLine() as progress:
        embedded = embed_split(encoder, data, report=progress)
    _say_skipped(embedded.skipped)
    return embedded


def _header(embedded: EmbeddedSplit, data: Path, split: str, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "data": str(data),
        "split": split,
        "pictures": len(embedded.images),
        "captions": len(embedded.texts),
        "skipped": [{"name": s.path, "reason": s.reason} for s in embedded.skipped],
    }


def _print_json(header: dict[str, Any], result: dict[str, Any]) -> None:
    typer.echo(json.dumps({**header, **result}, indent=2))


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, align: str) -> None:
    """On stdout; ``align`` has an l or r for each column. Names and captions stand as they are, with their brackets."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for column, side in zip(columns, align, strict=True):
        table.add_column(Text(column), justify="right" if side == "r" else "left", no_wrap=side == "r", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    typer.echo(title)
    Console(highlight=False).print(table)


def _say_skipped(skipped: Sequence[Skipped]) -> None:
    for one in skipped[:_NAMED]:
        _say(f"skipped {one.path}: {one.reason}")
    if len(skipped) > _NAMED:
        _say(f"and {len(skipped) - _NAMED:,} more pictures were skipped; --json names all")


def _say(line: str) -> None:
    typer.echo(f"mmsearch: {line}", err=True)
