"""`mini` as training sees it: EfficientNet-Lite2 and MiniLM, block by block, and the two heads that read them."""

from __future__ import annotations

import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from indexer.encoders.mini import (
    ARCHITECTURE,
    CALIBRATION,
    CONFIG,
    HEAD,
    IMAGE,
    IMAGE_SIZE,
    MAX_TOKENS,
    PACKAGED,
    TEXT,
    TOKENIZER,
    MiniEncoder,
    weights_digest,
)
from indexer.encoders.mini_int8 import FILE as LIGHT_IMAGE
from indexer.encoders.mini_text import TEXT_LAYERS
from indexer.encoders.mini_torch import (
    HEAD_SIZE,
    IMAGE_ARCHITECTURE,
    WORD_SIZE,
    Heads,
    ResidualHead,
    load_heads,
    load_image_tower,
    load_text_tower,
    pad,
)
from indexer.encoders.quantised import quantise
from indexer.errors import UsageError
from mmsearch.training.models import DualModel, State, Tower

if TYPE_CHECKING:
    from PIL.Image import Image

FIRST_SCALE = 14.3
"""The inverse of the first temperature 0.07 (Radford et al. 2021, section 2.4)."""
SMALLEST_STD = 0.01
"""What a feature that hardly varies is divided by at least, in units of the average standard deviation."""
NORM_EPSILON = 1e-3
"""Of the tower's batch normalisations."""


class MiniModel(DualModel):
    """The embedded model, or a folder that an earlier run made of it.

    Args:
        folder: the weights to start from; the packaged ones for None.
        fresh_head: take only the towers from there, and begin with random heads.
        dropout: of the heads' wide hidden layer.
        noise: standard deviation of what is added in training to each feature that a head reads, in units of that
            feature's own.

    Raises:
        UsageError: the folder holds no towers of `mini`.
    """

    licence = "Apache-2.0"
    input_key = f"mini {IMAGE_SIZE} {MAX_TOKENS}"

    def __init__(
        self, folder: Path | None = None, *, fresh_head: bool = False, dropout: float = 0.1, noise: float = 0.0
    ) -> None:
        folder = folder or PACKAGED
        for name in (IMAGE, TEXT, TOKENIZER, *(() if fresh_head else (HEAD,))):
            if not (folder / name).is_file():
                raise UsageError(f"no {name} in {folder}: it holds no model of the kind {ARCHITECTURE} to start from")
        packed = load_file(folder / IMAGE)
        image, text = load_image_tower(packed), load_text_tower(load_file(folder / TEXT))
        heads = Heads(dropout) if fresh_head else load_heads(load_file(folder / HEAD), dropout)
        net = image.net
        super().__init__(
            Tower(
                [
                    _Stem(net.conv_stem, net.bn1),
                    *(_Block(block) for stage in net.blocks for block in stage),
                    _Pool(net.conv_head, net.bn2, net.classifier, image.class_embeddings),
                    _ImageHead(heads.image, noise),
                ]
            ),
            Tower(
                [
                    _Embeddings(text.net.embeddings),
                    *(_Layer(layer, number) for number, layer in enumerate(text.net.encoder.layer, start=1)),
                    _TextHead(heads.text, noise),
                ]
            ),
            FIRST_SCALE,
        )
        self._tokenizer = folder / TOKENIZER
        self._encoder = MiniEncoder("cpu", PACKAGED)
        self._packed = packed
        self._convolutions = _convolutions(net)
        self._first = {names[0]: module.weight.detach().clone() for names, module in self._convolutions.items()}

    def prepare(self, picture: Image) -> np.ndarray:
        return self._encoder.prepare(picture)

    def tokens(self, texts: Sequence[str]) -> State:
        """Token numbers and the mask of the real ones, both ``(B, L)``."""
        return pad(self._encoder.token_ids(texts))

    def trim(self, state: State) -> State:
        tokens = len(state) == 2 or state[0].ndim == 3  # else only the token means are left
        if not tokens:
            return state
        length = int((state[1] > 0).sum(dim=1).max())
        return tuple(part[:, :length] if number < 2 else part for number, part in enumerate(state))

    @torch.no_grad()
    def begin(self, image: State, text: State) -> None:
        """Let the heads read standardised features, without a change of what they say."""
        for head, tower, state in ((self._heads[0], self.image, image), (self._heads[1], self.text, text)):
            for stage in tower.stages[tower.frozen : -1]:
                state = stage(state)
            head.standardise(head.features(state))

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        compact = self._heads[0].head.compact
        return HEAD_SIZE + WORD_SIZE if compact is None else compact.out_features

    def vocabulary(self) -> list[str]:
        """The plain words of the tokenizer, sorted: what texts can be about, whatever the captions are about."""
        return sorted(word for word in self._encoder.vocabulary() if re.fullmatch("[a-z]{3,}", word))

    @torch.no_grad()
    def compact(self, directions: np.ndarray) -> None:
        """Fold the vectors into fewer numbers: ``directions: (d, D)`` of their present D."""
        for side in self._heads:
            size, head = len(directions), side.head
            fold = nn.Linear(HEAD_SIZE + WORD_SIZE, size, bias=False).to(head.linear.weight)
            before = torch.eye(HEAD_SIZE + WORD_SIZE) if head.compact is None else head.compact.weight.cpu()
            fold.weight.copy_(torch.from_numpy(directions) @ before)
            head.compact = fold

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self._tokenizer.resolve() != (folder / TOKENIZER).resolve():
            shutil.copyfile(self._tokenizer, folder / TOKENIZER)
        save_file(self._packed_image(), folder / IMAGE)
        stages = self.text.stages
        bert = {f"embeddings.{name}": tensor for name, tensor in _inner(stages[0]).state_dict().items()}
        for number, stage in enumerate(stages[1:-1]):
            bert |= {f"encoder.layer.{number}.{name}": t for name, t in _inner(stage).state_dict().items()}
        save_file(quantise(_arrays(bert)), folder / TEXT)
        heads = {
            f"{side}.{name}": tensor
            for side, head in zip(("image", "text"), self._heads, strict=True)
            for name, tensor in head.folded().items()
        }
        # By column: folding the standardisation has made each column as large as its feature is small.
        save_file(quantise(_arrays(heads), along=0), folder / HEAD)
        config = {
            "architecture": ARCHITECTURE,
            "dim": self.dim,
            "fingerprint": weights_digest(folder),
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @property
    def _heads(self) -> tuple[_Head, _Head]:
        image, text = self.image.stages[-1], self.text.stages[-1]
        assert isinstance(image, _Head) and isinstance(text, _Head)
        return image, text

    def _packed_image(self) -> dict[str, np.ndarray]:
        """The image tower as ``image.safetensors`` holds it: matrices in float16, vectors in float32.

        Training has the normalisations folded into the convolutions. In a block that was trained each output channel
        is scaled to a largest weight of 1, so that float16 has digits for all of them, and its normalisation, without
        statistics of its own, scales it back. What was not trained is written as it was read.
        """
        packed = dict(self._packed)
        for (convolution, norm), module in self._convolutions.items():
            if torch.equal(module.weight.detach().cpu(), self._first[convolution]):
                continue
            weight = module.weight.detach().cpu().numpy()  # (out, in, k, k)
            scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), 1e-12).astype(np.float32)
            assert module.bias is not None
            packed[f"{convolution}.weight"] = (weight / scale[:, None, None, None]).astype(np.float16)
            packed[f"{norm}.weight"] = scale
            packed[f"{norm}.bias"] = module.bias.detach().cpu().numpy()
            packed[f"{norm}.running_mean"] = np.zeros_like(scale)
            packed[f"{norm}.running_var"] = np.full_like(scale, 1.0 - NORM_EPSILON)
        pool = self.image.stages[-2]
        assert isinstance(pool, _Pool)
        classifier = {f"classifier.{name}": tensor for name, tensor in pool.classifier.state_dict().items()}
        packed |= {name: array.astype(packed[name].dtype) for name, array in _arrays(classifier).items()}
        return {name: np.ascontiguousarray(tensor) for name, tensor in packed.items()}


def export_mini(run: Path, weights: Path) -> None:
    """Copy what a run's folder holds of the model into the folder of packaged weights."""
    MiniEncoder("cpu", run)  # refuses what is no model
    weights.mkdir(parents=True, exist_ok=True)
    for name in (IMAGE, TEXT, HEAD, TOKENIZER, CONFIG, CALIBRATION):
        shutil.copyfile(run / name, weights / name)
    (weights / LIGHT_IMAGE).unlink(missing_ok=True)
    if (run / LIGHT_IMAGE).is_file():
        shutil.copyfile(run / LIGHT_IMAGE, weights / LIGHT_IMAGE)


class _Stem(nn.Module):
    """uint8 pixels ``(B, 3, S, S)`` to the first feature map."""

    def __init__(self, convolution: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.convolution, self.activation = convolution, activation

    def forward(self, state: State) -> State:
        x = (state[0].float() - 127.5) / 127.5
        return (self.activation(self.convolution(x.contiguous(memory_format=torch.channels_last))),)


class _Block(nn.Module):
    """One block of the tower, feature map to feature map."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, state: State) -> State:
        return (self.module(state[0]),)


class _Pool(nn.Module):
    """The last feature map ``(B, 352, 9, 9)`` to its pooled features ``(B, 1280)`` and class average ``(B, 384)``."""

    def __init__(self, convolution: nn.Module, activation: nn.Module, classifier: nn.Module, classes: Tensor) -> None:
        super().__init__()
        self.convolution, self.activation, self.classifier = convolution, activation, classifier
        self.register_buffer("classes", classes, persistent=False)
        self.classes: Tensor

    def forward(self, state: State) -> State:
        x = state[0].contiguous(memory_format=torch.channels_last)
        average = self.activation(self.convolution(x)).mean(dim=(2, 3))
        return average, self.classifier(average).softmax(dim=1) @ self.classes


class _Embeddings(nn.Module):
    """Token numbers and mask, ``(B, L)``, to the first token states ``(B, L, 384)`` and the mask."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, state: State) -> State:
        ids, mask = state
        return self.module(input_ids=ids), mask


class _Layer(nn.Module):
    """One transformer layer; it adds its token mean where the head reads it, and the last one gives only the means."""

    def __init__(self, module: nn.Module, number: int) -> None:
        super().__init__()
        self.module = module
        self.number = number

    def forward(self, state: State) -> State:
        hidden, mask, *means = state
        blocked = (1.0 - mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min  # (B, 1, 1, L)
        hidden = self.module(hidden, attention_mask=blocked)
        if isinstance(hidden, tuple):  # transformers before version 5
            hidden = hidden[0]
        if self.number not in TEXT_LAYERS:
            return hidden, mask
        weights = (mask / mask.sum(dim=1, keepdim=True)).unsqueeze(-1).to(hidden.dtype)  # (B, L, 1)
        means = [*means, (hidden * weights).sum(dim=1)]
        return tuple(means) if self.number == max(TEXT_LAYERS) else (hidden, mask, *means)


class _Head(nn.Module, ABC):
    """A trained head over standardised, and in training noisy, features; beside its answer that of the words."""

    def __init__(self, head: ResidualHead, noise: float) -> None:
        super().__init__()
        self.head = head
        self.noise = noise
        size = head.linear.in_features
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.mean: Tensor
        self.std: Tensor

    @abstractmethod
    def features(self, state: State) -> Tensor:
        """What the head reads, ``(B, F)``."""

    @abstractmethod
    def words(self, state: State) -> Tensor:
        """What the sentence model says, ``(B, 384)``."""

    def forward(self, state: State) -> State:
        x = (self.features(state).float() - self.mean) / self.std
        if self.training and self.noise:
            x = x + self.noise * torch.randn_like(x)
        return (self.head(x, self.words(state).float()),)

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Take mean and standard deviation from ``features: (N, F)``; the head says what it said before."""
        std = features.std(dim=0, correction=0)
        self.mean.copy_(features.mean(dim=0))
        self.std.copy_(std.clamp_min(SMALLEST_STD * std.mean().item()))
        for layer in (self.head.linear, self.head.up):
            layer.bias.add_(layer.weight @ self.mean)
            layer.weight.mul_(self.std)

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The head's tensors as the package keeps them: for features as they are."""
        tensors = {name: tensor.clone() for name, tensor in self.head.state_dict().items()}
        for layer in ("linear", "up"):
            tensors[f"{layer}.weight"] /= self.std
            tensors[f"{layer}.bias"] -= tensors[f"{layer}.weight"] @ self.mean
        return tensors


class _ImageHead(_Head):
    def features(self, state: State) -> Tensor:
        return state[0]

    def words(self, state: State) -> Tensor:
        return state[1]


class _TextHead(_Head):
    def features(self, state: State) -> Tensor:
        return torch.cat(state, dim=1)

    def words(self, state: State) -> Tensor:
        return state[-1]


def _convolutions(net: Any) -> dict[tuple[str, str], nn.Conv2d]:
    """The convolutions of a tower whose normalisations are folded, by their names and those of their normalisations."""
    pairs = {}
    whole = timm.create_model(IMAGE_ARCHITECTURE, pretrained=False)
    for prefix, module in whole.named_modules():
        convolution = ""
        for name, child in module.named_children():
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(child, nn.Conv2d):
                convolution = path
            elif isinstance(child, nn.BatchNorm2d):
                pairs[convolution, path] = net.get_submodule(convolution)
    return pairs


def _inner(stage: nn.Module) -> nn.Module:
    assert isinstance(stage, (_Embeddings, _Layer))
    return stage.module


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tensor.detach().cpu().float().numpy()) for name, tensor in tensors.items()}
