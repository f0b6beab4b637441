"""The joint encoder of the kind that ships, in NumPy: ``fusion.Fusion`` with words that look at tokens, without torch.

Its weights are mapped from ``fusion.safetensors``, in float32 or float16, under their names in torch. A question from
the shell is answered before onnxruntime would have been imported. Letters are those of ``fusion``: I pictures of T
tokens with W numbers; C texts of L words with S numbers; K pairs; D the width, H heads, E = D / H; N products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from indexer.encoders.mini_text import gelu, layer_norm, softmax
from indexer.tokens import TokenFormat

FUSION = "cross"
"""The kind of fusion that this is."""
EPSILON = 1e-5
MASKED = -1e9
"""Added to the logit of a word that only pads, as in ``fusion``, which imports torch."""


class NumpyFusion:
    """Words and tokens to what ``fusion.Seen`` holds of their pairs. Thread-safe: nothing is kept but the weights.

    Raises:
        KeyError: a tensor is missing.
        ValueError: one has a shape that does not fit the others or the tokens, or is none of this fusion.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], tokens: TokenFormat) -> None:
        self._looks = sum(name.endswith(".sharpness") for name in weights)
        expected = _shapes(weights, self._looks, tokens)
        if weights.keys() != expected.keys():
            raise ValueError(f"it lacks, or has too much: {', '.join(sorted(weights.keys() ^ expected.keys()))}")
        for name, shape in expected.items():
            if weights[name].shape != shape:
                raise ValueError(f"{name} is {weights[name].shape}, not {shape}")
        self._weights = {name: tensor.astype(np.float32, copy=False) for name, tensor in weights.items()}

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """What is called ``outputs``, of ``inputs`` by name, as a session of onnxruntime has it."""
        with np.errstate(all="ignore"):  # what is not finite then, the caller refuses
            seen = self._pairs(**inputs)
        return [seen[name] for name in outputs]

    def _pairs(
        self, words: np.ndarray, mask: np.ndarray, tokens: np.ndarray, text: np.ndarray, picture: np.ndarray
    ) -> dict[str, np.ndarray]:
        """``fusion.Fusion.pairs``."""
        x = self._linear(self._norm(words, "words.0"), "words.2")  # (C, L, D)
        y = self._norm(self._linear(tokens + self._weights["places"], "tokens.0"), "tokens.1")  # (I, T, D)
        found, attention = self._look(0, x, y, text, picture)
        knowing = x[text] if self._looks > 1 else x
        for i in range(1, self._looks):
            knowing = self._turn(i - 1, knowing, found)  # (K, L, D)
            found, attention = self._look(i, knowing, y, np.arange(len(text)), picture)
        word, alone = _unit(self._linear(x, "meeting.compare.word")), self._scalar(x, "meeting.compare.alone")
        logits, weights = self._compare(word[text], alone[text], mask[text], found)
        return {"logits": logits, "attention": attention.mean(axis=1), "weights": weights}

    def _look(
        self, i: int, x: np.ndarray, y: np.ndarray, text: np.ndarray, picture: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``fusion._Look``: what the words of each pair found ``(K, L, D)``, and their attention ``(K, H, L, T)``."""
        name = f"meeting.looks.{i}"
        sharpness = np.exp(self._weights[f"{name}.sharpness"])[:, None, None]
        queries = _unit(self._heads(self._linear(x, f"{name}.query"))) * sharpness  # (C, H, L, E)
        keys = _unit(self._heads(self._linear(y, f"{name}.key")))  # (I, H, T, E)
        values = self._heads(self._linear(y, f"{name}.value"))
        attention = softmax(queries[text] @ keys[picture].swapaxes(-1, -2))
        found = (attention @ values[picture]).swapaxes(1, 2)  # (K, L, H, E)
        return found.reshape(*found.shape[:2], -1), attention

    def _turn(self, i: int, x: np.ndarray, found: np.ndarray) -> np.ndarray:
        """``fusion._Turn``: ``(K, L, D)`` both ways."""
        name = f"meeting.turns.{i}"
        x = x + self._linear(found, f"{name}.out")
        hidden = gelu(self._linear(self._norm(x, f"{name}.think.0"), f"{name}.think.1"))
        return x + self._linear(hidden, f"{name}.think.3")

    def _compare(
        self, word: np.ndarray, alone: np.ndarray, mask: np.ndarray, found: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``fusion._Compare``: logits ``(K,)`` and weights ``(K, L)``."""
        name = "meeting.compare"
        products = word * _unit(self._linear(found, f"{name}.found"))  # (K, L, N)
        y = self._norm(products, f"{name}.norm")
        y = y + self._linear(gelu(self._linear(y, f"{name}.think.0")), f"{name}.think.2")
        alone = alone + (1 - mask) * np.float32(MASKED)  # (K, L)
        weights = softmax(self._scalar(y, f"{name}.gate") + alone)
        evenly = mask / np.maximum(mask.sum(axis=-1, keepdims=True), 1)
        means = np.concatenate([_weighted(y, weights), _weighted(y, evenly)], axis=-1)  # (K, 2 N)
        cosine = (products.sum(axis=-1) * softmax(alone)).sum(axis=-1)  # (K,)
        head = self._scalar(gelu(self._linear(means, f"{name}.head.0")), f"{name}.head.3")
        return head + np.exp(self._weights[f"{name}.fine"]) * cosine, weights

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """``(…, D)`` to ``(…, U)``, in one product instead of one for each row of the batch."""
        weight = self._weights[f"{name}.weight"]  # (U, D)
        y = x.reshape(-1, x.shape[-1]) @ weight.T
        if f"{name}.bias" in self._weights:
            y += self._weights[f"{name}.bias"]
        return y.reshape(*x.shape[:-1], len(weight))

    def _scalar(self, x: np.ndarray, name: str) -> np.ndarray:
        """``(…, D)`` to ``(…)``."""
        return self._linear(x, name)[..., 0]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], EPSILON)

    def _heads(self, x: np.ndarray) -> np.ndarray:
        """``(B, L, D)`` to ``(B, H, L, E)``."""
        heads = len(self._weights["meeting.looks.0.sharpness"])
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _shapes(weights: Mapping[str, np.ndarray], looks: int, tokens: TokenFormat) -> dict[str, tuple[int, ...]]:
    """What ``weights`` must be, by the sizes that some of them say."""
    size, states = weights["words.2.weight"].shape
    (heads,) = weights["meeting.looks.0.sharpness"].shape
    count, _ = weights["meeting.compare.word.weight"].shape
    if not heads or size % heads:
        raise ValueError(f"{size} numbers cannot be divided among {heads} heads")
    linears = {"words.2": (size, states), "tokens.0": (size, tokens.width)}
    norms = {"words.0": states, "tokens.1": size, "meeting.compare.norm": count}
    for name, shape in (
        ("word", (count, size)),
        ("found", (count, size)),
        ("alone", (1, size)),
        ("think.0", (2 * count, count)),
        ("think.2", (count, 2 * count)),
        ("gate", (1, count)),
        ("head.0", (count, 2 * count)),
        ("head.3", (1, count)),
    ):
        linears[f"meeting.compare.{name}"] = shape
    expected: dict[str, tuple[int, ...]] = {"places": (tokens.count, tokens.width), "meeting.compare.fine": ()}
    for i in range(looks):
        linears |= {f"meeting.looks.{i}.{name}": (size, size) for name in ("query", "key")}
        expected |= {f"meeting.looks.{i}.value.weight": (size, size), f"meeting.looks.{i}.sharpness": (heads,)}
    for i in range(looks - 1):
        linears |= {f"meeting.turns.{i}.{name}": (size, size) for name in ("out", "think.1", "think.3")}
        norms[f"meeting.turns.{i}.think.0"] = size
    for name, shape in linears.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, length in norms.items():
        expected |= {f"{name}.weight": (length,), f"{name}.bias": (length,)}
    return expected


def _unit(x: np.ndarray) -> np.ndarray:
    """The last axis to unit length; what is nothing stays nothing."""
    squares = np.einsum("...i,...i->...", x, x)[..., None]
    return x / np.maximum(np.sqrt(squares), np.float32(1e-12))


def _weighted(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The sum of ``(K, L, N)`` by weights ``(K, L)``: ``(K, N)``."""
    return (weights[:, None] @ x)[:, 0]
