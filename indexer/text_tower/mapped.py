"""A safetensors file mapped into memory: nothing of a tensor is read until it is used, and only what is used."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import ModelError

_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "|i1", "U8": "|u1", "U16": "<u2", "U32": "<u4", "I32": "<i4", "I64": "<i8"}
_MAX_HEADER = 100_000_000
"""What the safetensors library accepts, too."""


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of ``path``, read-only, by name.

    The format is eight bytes with the length of a header, the header (JSON: name to type, shape, and first and last
    byte), and the bytes. The safetensors library would copy them.

    Raises:
        ModelError: the file cannot be read, or its header does not describe what it holds.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header: Mapping[str, Mapping[str, Any]] = json.loads(file.read(length))
        content = np.memmap(path, np.uint8, "r", offset=8 + length)
        return {name: _tensor(content, entry) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"cannot read the weights {path}: {exc}") from exc


def _tensor(content: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """One tensor of the mapped ``content``, as its entry in the header describes it."""
    shape, (first, last) = entry["shape"], entry["data_offsets"]
    kind = np.dtype(_TYPES[str(entry["dtype"])])
    if not 0 <= first <= last <= len(content) or last - first != math.prod(shape) * kind.itemsize:
        raise ValueError("its header names bytes that are not there")
    return content[first:last].view(kind).reshape(shape).view(np.ndarray)
