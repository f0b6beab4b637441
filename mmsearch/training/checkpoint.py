"""A run's state in one safetensors file: nested dictionaries and lists of tensors, numbers and words, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from indexer.durable import sync_folder
from indexer.errors import ModelError, StorageError, UsageError

FORMAT = "mmsearch state 1"


def save_state(path: Path, state: Any) -> None:
    """Write ``state``, so that after a crash the file is the former one or the new one, whole.

    Tensors are stored under their key path (``optimiser/state/3/exp_avg``); the structure around them and all other
    values are JSON in the file's metadata:

        3, "x", True, None       as they are; so is a float, nan and the infinities in Python's spelling
        [a, b]                   {"list": [a, b]}
        (a, b)                   {"tuple": [a, b]}
        {3: a}                   {"dict": [[3, a]]}, which keeps the key a number
        a tensor                 {"tensor": "its name"}

    The metadata also has a CRC-32 over the structure and all tensors, as safetensors itself does not see a changed bit.

    Args:
        path: the file; its folder exists.
        state: dictionaries (of str and int keys), lists, tuples, tensors, int, float, str, bool, None. A tensor that is
            there twice is stored twice.

    Raises:
        UsageError: there is something else in it; the message names where.
        StorageError: the file cannot be written, as when the disk is full; the former one is untouched.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_flatten(state, "", tensors))
    metadata = {"format": FORMAT, "structure": structure, "crc32": str(_checksum(structure, tensors))}
    fresh = path.with_name(path.name + ".new")
    try:
        save_file(tensors, fresh, metadata)
        with fresh.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as exc:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {exc}; what was there before is unchanged") from exc


def load_state(path: Path) -> Any:
    """What ``save_state`` was given, tensors on the CPU.

    Raises:
        ModelError: the file is missing, damaged, or was not written by ``save_state``.
    """
    advice = "delete it and resume from another checkpoint, or begin the run again"
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dictionary
    except (OSError, SafetensorError) as exc:
        raise ModelError(f"cannot read the checkpoint {path}: {exc}; {advice}") from exc
    if metadata.get("format") != FORMAT:
        raise ModelError(f"{path} is not a checkpoint that this version of mmsearch reads; {advice}")
    try:
        structure = metadata["structure"]
        if int(metadata["crc32"]) != _checksum(structure, tensors):
            raise ModelError(f"the checkpoint {path} is damaged: its checksum is another; {advice}")
        return _unflatten(json.loads(structure), tensors)
    except (KeyError, ValueError) as exc:
        raise ModelError(f"the checkpoint {path} is damaged ({exc!r}); {advice}") from exc


def _flatten(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON of ``value``; its tensors are put into ``tensors``, each as a contiguous copy of its own on the CPU."""
    if isinstance(value, Tensor):
        name = place.lstrip("/")
        while name in tensors or not name:  # {1: t} beside {"1": t}, {"a/b": t} beside {"a": {"b": t}}, or only t
            name += "#"
        tensors[name] = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
        return {"tensor": name}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        kind = type(value).__name__
        return {kind: [_flatten(item, f"{place}/{number}", tensors) for number, item in enumerate(value)]}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (int, str):
                raise UsageError(f"cannot save the state: {place or '/'} has the key {key!r}, neither str nor int")
        return {"dict": [[key, _flatten(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    raise UsageError(
        f"cannot save the state: {place or '/'} is of type {type(value).__name__}; "
        "it must be a tensor, number, string, bool, None, list, tuple or dictionary"
    )


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in content}
    items = [_unflatten(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _checksum(structure: str, tensors: Mapping[str, Tensor]) -> int:
    checksum = zlib.crc32(structure.encode())
    for piece in _bytes(tensors):
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _bytes(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of all tensors, by name: a file has them in another order than the state."""
    for name in sorted(tensors):
        yield tensors[name].reshape(-1).view(torch.uint8).numpy().data
