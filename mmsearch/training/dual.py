"""Training the heads of `mini` on captioned pictures, its towers frozen: features once, then minutes of training."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from indexer.encoders.mini import (
    ARCHITECTURE,
    CALIBRATION,
    CONFIG,
    HEAD,
    IMAGE,
    PACKAGED,
    TEXT,
    TOKENIZER,
    MiniEncoder,
    weights_digest,
)
from indexer.encoders.mini_torch import HEAD_SIZE, WORD_SIZE, Heads, ResidualHead, load_heads, text_features, two_parts
from indexer.encoders.quantised import quantise
from indexer.errors import UsageError
from mmsearch.training.calibrate import calibrate
from mmsearch.training.data import Captioned, read_names, read_split
from mmsearch.training.features import Features
from mmsearch.training.losses import multi_positive_info_nce
from mmsearch.training.retrieval import Recall, recalls

LOG, SETTINGS = "log.jsonl", "train.json"
FIRST_SCALE = 14.3
"""The inverse of the first temperature 0.07 (Radford et al. 2021, section 2.4)."""
LARGEST_SCALE = 100.0
SMALLEST_STD = 0.01
"""What a feature that hardly varies is divided by at least, in units of the average standard deviation."""
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class DualSettings:
    """What a run depends on besides the data and the towers; written into the run's folder."""

    epochs: int = 6
    batch: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = 0.1
    feature_noise: float = 0.6
    """Standard deviation of the noise added to each feature, in units of that feature's own."""
    crops: int = 3
    """Random crops of each picture, beside the picture and its mirror image."""
    fresh_head: bool = False
    """Begin with random heads; else with those of the model that is started from, and at the end take the best
    point on the line between them and the trained ones."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """The features of one split: V views of N pictures, M captions."""

    image: Tensor  # (V, N, 1280)
    words: Tensor  # (V, N, 384)
    text: Tensor  # (M, 1152)
    sentence: Tensor  # (M, 384)
    owner: Tensor  # (M,) the picture of each caption


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of the features that a head reads; training sees them standardised."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Spread:
        std = features.std(dim=0, correction=0)
        return cls(features.mean(dim=0), std.clamp_min(SMALLEST_STD * std.mean().item()))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    @torch.no_grad()
    def fold(self, head: ResidualHead) -> None:
        """``head(x)`` becomes what ``head(self(x))`` was: the packaged head reads features as they are."""
        for layer in (head.linear, head.up):
            layer.weight.div_(self.std)
            layer.bias.sub_(layer.weight @ self.mean)

    @torch.no_grad()
    def unfold(self, head: ResidualHead) -> None:
        """The inverse of ``fold``."""
        for layer in (head.linear, head.up):
            layer.bias.add_(layer.weight @ self.mean)
            layer.weight.mul_(self.std)


def train_dual(
    data: Path,
    out: Path,
    settings: DualSettings | None = None,
    *,
    start: Path | None = None,
    names: Path | None = None,
    device: str | None = None,
    compiled: bool = False,
    log: Callable[[str], None] = print,
) -> Path:
    """Train on the data's ``train`` split, choose on ``dev``, and leave a complete model in ``out``.

    The loss is ``multi_positive_info_nce`` over the whole vector, so that the heads learn what the class names do not
    say. Each epoch is measured on dev and the best is kept. Where the run began with trained heads, the result is the
    point on the line from them to the new ones that is best on dev (WiSE-FT, Wortsman et al. 2022).

    Args:
        data: a folder as ``read_split`` describes it, with ``train.txt`` and ``dev.txt``.
        out: the run's folder; features that a former run left there are used again.
        settings: all that the outcome depends on; the defaults for None.
        start: the model whose towers (and heads) are used; the packaged one for None.
        names: a folder as ``read_names`` describes it, trained on beside the data: words for things that captions of
            everyday scenes do not mention.
        device: as for ``MiniEncoder``.
        compiled: run the image tower through ``torch.compile``: needs a C++ compiler, three times faster on a CPU.
        log: takes a line of progress.

    Returns:
        ``out``: a folder that ``load_encoder`` opens, with ``log.jsonl`` and ``train.json`` beside the weights.

    Raises:
        UsageError: the data is incomplete, or a setting makes no sense.
    """
    settings = settings or DualSettings()
    if min(settings.epochs, settings.batch) < 1 or settings.crops < 0:
        raise UsageError("epochs and batch must be at least 1, crops at least 0")
    start = start or PACKAGED
    train, dev = read_split(data, "train"), read_split(data, "dev")
    _lay_out(start, out)
    encoder = MiniEncoder(device, out)
    features = Features(encoder, out / "features", seed=settings.seed, compiled=compiled, log=log)
    views = ["plain", "flip", *(f"crop{number}" for number in range(1, settings.crops + 1))]
    seen, judged = _split(features, "train", train, views), _split(features, "dev", dev, ["plain"])

    if names is not None:
        seen = _joined(seen, _split(features, "names", read_names(names), views))
    (out / SETTINGS).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
    packed = None if settings.fresh_head else load_file(start / HEAD)
    with (out / LOG).open("w", encoding="utf-8") as lines:

        def record(event: dict[str, Any]) -> None:
            lines.write(json.dumps(event) + "\n")
            lines.flush()
            log(" ".join(f"{name} {value}" for name, value in event.items()))

        tensors = _fit(seen, judged, settings, packed, record)
    save_file(tensors, out / HEAD)
    _describe(out)
    calibration = calibrate(MiniEncoder(device, out), dev, seed=settings.seed)
    (out / CALIBRATION).write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")
    return out


def export_mini(run: Path, weights: Path) -> None:
    """Copy what a run's folder holds of the model into the folder of packaged weights."""
    MiniEncoder("cpu", run)  # refuses what is no model
    weights.mkdir(parents=True, exist_ok=True)
    for name in (IMAGE, TEXT, HEAD, TOKENIZER, CONFIG, CALIBRATION):
        shutil.copyfile(run / name, weights / name)


def measure(heads: Heads, split: Split) -> Recall:
    """Retrieval over a split by the plain view of its pictures, with the whole vector."""
    heads.eval()
    with torch.inference_mode():
        image = two_parts(heads.image(split.image[0]), split.words[0])
        text = two_parts(heads.text(split.text), split.sentence)
    return recalls(image.numpy(), text.numpy(), split.owner.numpy())


def _fit(
    seen: Split,
    judged: Split,
    settings: DualSettings,
    packed: dict[str, np.ndarray] | None,
    record: Callable[[dict[str, Any]], None],
) -> dict[str, np.ndarray]:
    """The packed tensors of the best heads; ``packed`` are those to begin with, None for random ones."""
    torch.manual_seed(settings.seed)
    image_spread, text_spread = Spread.of(seen.image[0]), Spread.of(seen.text)
    heads = Heads(settings.dropout)
    if packed is not None:
        heads.load_state_dict(load_heads(packed).state_dict())
        image_spread.unfold(heads.image)
        text_spread.unfold(heads.text)

    def standardised(split: Split) -> Split:
        return Split(image_spread(split.image), split.words, text_spread(split.text), split.sentence, split.owner)

    seen, judged = standardised(seen), standardised(judged)
    first = _copy(heads)
    best, best_recall = first, measure(heads, judged)
    if packed is not None:
        record({"epoch": 0, **best_recall.as_dict()})
    else:
        best_recall = Recall((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
    parameters = [*heads.parameters(), scale]
    steps = max(1, len(seen.owner) // settings.batch)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.epochs * steps + 1, pct_start=0.1
    )
    for epoch in range(1, settings.epochs + 1):
        began, total = time.monotonic(), 0.0
        heads.train()
        order = torch.randperm(len(seen.owner))
        for step in range(steps):
            captions = order[step * settings.batch : (step + 1) * settings.batch]  # (B,)
            owner = seen.owner[captions]
            view = torch.randint(len(seen.image), (len(captions),))
            image = heads.image(_noisy(seen.image[view, owner], settings.feature_noise))
            text = heads.text(_noisy(seen.text[captions], settings.feature_noise))
            loss = multi_positive_info_nce(
                two_parts(image, seen.words[view, owner]),
                two_parts(text, seen.sentence[captions]),
                owner,
                scale.exp().clamp(max=LARGEST_SCALE),
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        recall = measure(heads, judged)
        record(
            {
                "epoch": epoch,
                "loss": round(total / steps, 4),
                "scale": round(scale.exp().item(), 2),
                **recall.as_dict(),
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        if recall.mean > best_recall.mean:
            best, best_recall = _copy(heads), recall
    if packed is not None:
        best = _between(heads, first, best, judged, record)
    heads.load_state_dict(best)
    image_spread.fold(heads.image)
    text_spread.fold(heads.text)
    # By column: folding the spread has made each column as large as its feature is small.
    return quantise({name: tensor.detach().numpy() for name, tensor in heads.state_dict().items()}, along=0)


def _between(
    heads: Heads,
    first: dict[str, Tensor],
    last: dict[str, Tensor],
    judged: Split,
    record: Callable[[dict[str, Any]], None],
) -> dict[str, Tensor]:
    """The best point on dev of (1 - alpha) first + alpha last; of equals, the one nearer to ``first``."""
    found, found_mean = first, -1.0
    for alpha in ALPHAS:
        point = {name: torch.lerp(first[name], last[name], alpha) for name in first}
        heads.load_state_dict(point)
        recall = measure(heads, judged)
        record({"alpha": alpha, **recall.as_dict()})
        if recall.mean > found_mean:
            found, found_mean = point, recall.mean
    return found


def _noisy(features: Tensor, size: float) -> Tensor:
    return features + size * torch.randn_like(features)


def _copy(heads: Heads) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in heads.state_dict().items()}


def _joined(one: Split, other: Split) -> Split:
    """The pictures and captions of both."""
    return Split(
        torch.cat([one.image, other.image], dim=1),
        torch.cat([one.words, other.words], dim=1),
        torch.cat([one.text, other.text]),
        torch.cat([one.sentence, other.sentence]),
        torch.cat([one.owner, other.owner + one.image.shape[1]]),
    )


def _split(features: Features, name: str, data: Captioned, views: list[str]) -> Split:
    texts, owner = data.flat()
    pictures = [features.pictures(name, data.pictures, view) for view in views]
    pooled = features.texts(name, texts)  # (M, 7, 384)
    return Split(
        torch.stack([image for image, _ in pictures]),
        torch.stack([words for _, words in pictures]),
        text_features(pooled),
        pooled[:, -1],
        torch.tensor(owner),
    )


def _lay_out(start: Path, out: Path) -> None:
    """Put the towers of ``start`` into the run's folder."""
    for name in (IMAGE, TEXT, TOKENIZER):
        if not (start / name).is_file():
            raise UsageError(f"no {name} in {start}: it holds no towers to start from")
    out.mkdir(parents=True, exist_ok=True)
    for name in (IMAGE, TEXT, TOKENIZER):
        if start.resolve() != out.resolve():
            shutil.copyfile(start / name, out / name)
    (out / CALIBRATION).unlink(missing_ok=True)
    config = {"architecture": ARCHITECTURE, "dim": HEAD_SIZE + WORD_SIZE, "fingerprint": "unfinished"}
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _describe(out: Path) -> None:
    """``config.json``: what the folder is and the digest of its weights."""
    config = {"architecture": ARCHITECTURE, "dim": HEAD_SIZE + WORD_SIZE, "fingerprint": weights_digest(out)}
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
