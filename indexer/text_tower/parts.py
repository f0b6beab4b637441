"""What an export is made of: a plan, weights, and how words are read. The two that look into torch models fill it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.errors import ModelError
from indexer.text_tower.numpy_tower import Plan

if TYPE_CHECKING:
    import torch


class NoTower(ModelError):
    """NumPy cannot run the text tower of a model; the message says why."""


@dataclass(frozen=True, slots=True)
class WordSettings:
    """How a text becomes token numbers; see ``words``."""

    kind: str
    """``byte-pairs``, whose tables are among the weights, or ``library``, whose JSON lies beside them."""
    clean: str
    limit: int
    without: int | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """A text tower without torch."""

    plan: Plan
    weights: dict[str, np.ndarray]
    words: WordSettings
    tokenizer: str | None
    """The JSON of a tokenizer of the library."""


def array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor in float32, wherever it lies and whatever its precision."""
    plain: np.ndarray = tensor.detach().float().cpu().numpy()
    return plain


def linear(name: str, module: Any) -> dict[str, np.ndarray]:
    """The weights of a linear layer under ``name``, as x @ matrix wants them."""
    weights = {name: array(module.weight).T}
    if module.bias is not None:
        weights[f"{name}.bias"] = array(module.bias)
    return weights


def norm(name: str, module: Any) -> dict[str, np.ndarray]:
    """The weights of a layer norm under ``name``."""
    return {f"{name}.weight": array(module.weight), f"{name}.bias": array(module.bias)}


def attention(i: int, qkv: np.ndarray, bias: np.ndarray, heads: int) -> dict[str, np.ndarray]:
    """The weights ``(3 W, W)`` and bias ``(3 W,)`` of queries, keys and values, as ``NumpyTower`` has them."""
    wide = qkv.shape[1]
    scale = np.ones(3 * wide, np.float32)
    scale[:wide] = (wide // heads) ** -0.5
    return {f"{i}.qkv": (qkv * scale[:, None]).T, f"{i}.qkv.bias": bias * scale}


def separate(i: int, query: Any, key: Any, value: Any, heads: int) -> dict[str, np.ndarray]:
    """The same from three linear layers."""
    parts = (query, key, value)
    matrix, bias = (np.concatenate([array(getattr(part, name)) for part in parts]) for name in ("weight", "bias"))
    return attention(i, matrix, bias, heads)


def library_words(tokenizer: Any, *, clean: str, limit: int, without: int | None = None) -> tuple[WordSettings, str]:
    """How a tokenizer of transformers reads words, and its JSON.

    Raises:
        NoTower: it is not one of the tokenizers library, or fills and cuts on the left.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise NoTower(f"its tokenizer, {type(tokenizer).__name__}, is not one of the tokenizers library")
    if (tokenizer.padding_side, tokenizer.truncation_side) != ("right", "right"):
        raise NoTower("its tokenizer fills or cuts texts on the left")
    return WordSettings("library", clean, limit, without), tokenizer.backend_tokenizer.to_str()


def one_of(names: Mapping[Any, str], found: Any, what: str) -> str:
    """What ``found`` is called here.

    Raises:
        NoTower: it is not among ``names``.
    """
    if found not in names:
        raise NoTower(f"NumPy cannot run its {what} {found}")
    return names[found]
