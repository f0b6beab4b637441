"""What stands in a run's folder at its end: the model, its calibration, its curve and its card."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from indexer.encoders.load import load_encoder
from indexer.encoders.mini import CALIBRATION, MiniEncoder, is_mini_folder
from mmsearch.datasets import Captioned
from mmsearch.training.calibrate import calibrate
from mmsearch.training.models import DualModel
from mmsearch.training.models.mini_int8 import CALIBRATING, write_int8
from mmsearch.training.retrieval import Recall
from mmsearch.training.run import Data, Facts, Quality, RunFolder, Start

CALIBRATED_BY = 3
"""Pictures that the odds of a match are fitted on at least: there have to be pairs that do not match."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model was judged by, and how it did."""

    name: str
    data: Captioned
    recall: Recall


def write_model(
    folder: RunFolder,
    model: DualModel,
    *,
    measured: Sequence[Measured],
    data: Sequence[Data],
    start: str,
    best: Mapping[str, float | int | str],
    command: str,
    device: torch.device,
    seed: int,
    log: Callable[[str], None],
) -> None:
    """Write ``model`` into ``folder``, with what was found out about it.

    Args:
        measured: dev first; it calibrates.
        data: what was trained and chosen on.
        start: what training began with.
        best: how the model was chosen.
        command: what the user typed.
    """
    out = folder.path
    model.save(out)
    dev = measured[0].data
    if len(dev) < CALIBRATED_BY:
        log(f"not calibrated: {len(dev)} dev pictures are too few; an index will take mini's slopes")
    else:
        calibration = calibrate(load_encoder(str(out), device.type), dev, seed=seed)
        (out / CALIBRATION).write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")
    if is_mini_folder(out) and importlib.util.find_spec("onnx") is None:
        log("the image tower is not written in eight bits, which takes onnx; pip install 'mmsearch[train]'")
    elif is_mini_folder(out):
        encoder = MiniEncoder("cpu", out)
        write_int8(out, [encoder.prepare(picture.open()) for picture in dev.pictures[:CALIBRATING]])
    folder.draw_curve()
    quality = [
        Quality(
            data=each.name,
            pictures=len(each.data),
            captions=sum(map(len, each.data.captions)),
            text_to_image=each.recall.text_to_image,
            image_to_text=each.recall.image_to_text,
        )
        for each in measured
    ]
    folder.write_card(
        Facts(
            title=f"{out.name}: a dual encoder trained with mmsearch",
            what="Pictures and texts as vectors of one space. `mmsearch index --model` and `load_encoder` open it.",
            licence=model.licence,
            start=Start(name=start, licence=model.licence),
            data=data,
            command=command,
            best=best,
            quality=quality,
            limits=[
                "The dev split chose the epoch and the weights; measure on another one before comparing.",
                "What the training data does not show or say is known from the start alone.",
            ],
        )
    )
    folder.close()
