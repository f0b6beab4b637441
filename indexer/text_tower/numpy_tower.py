"""A text transformer in plain NumPy: token numbers to features, over weights that are mapped from a file.

In float32, and of a text only what the architecture needs: where words look only back (CLIP) or padding
is masked (BERT), the question's own tokens; where padding is read like words (SigLIP), all positions. Both are exact.

    tokens (V, W)                       positions (N, W)             embedding_norm, final_norm: weight, bias (W,)
    <i>.qkv (W, 3 W), its bias (3 W,)   <i>.out (W, W), its bias     <i>.norm_1, <i>.norm_2: weight, bias (W,)
    <i>.up (W, U), its bias (U,)        <i>.down (U, W), its bias    head.<n> (W, D), its bias, for each linear step

Matrices stand as x @ matrix wants them, which for ten tokens is a third quicker than transposed. What can be folded in
is: layer scales into what they scale, 1 / sqrt(W / heads) into the queries, segment embeddings into the positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from indexer.encoders.mini_text import gelu, layer_norm, softmax


def quick_gelu(x: np.ndarray) -> np.ndarray:
    """x times the logistic function of 1.702 x, with which OpenAI trained CLIP."""
    return x / (1 + np.exp(np.float32(-1.702) * x))


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form of ``gelu`` (Hendrycks and Gimpel 2016)."""
    return np.float32(0.5) * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)))


def relu(x: np.ndarray) -> np.ndarray:
    """What is positive of x."""
    return np.maximum(x, 0)


ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": gelu,
    "quick_gelu": quick_gelu,
    "tanh_gelu": tanh_gelu,
    "relu": relu,
    "tanh": np.tanh,
}
POOLS = ("first", "last", "highest", "token", "mean")
"""Which state stands for the text: that of the first position, the last, the highest token number, the first ``eos``;
or the mean of all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done with the weights."""

    heads: int
    layers: int
    positions: int
    """Tokens that a text can have."""
    norm_first: bool
    """Whether each part of a layer normalises what it is given (GPT, CLIP), or what it gives (BERT)."""
    causal: bool
    """Whether a token sees only itself and those before it."""
    padded: bool
    """Whether a text is padded to ``positions``, and the padding read like words."""
    pad: int
    activation: str
    epsilon: float
    pool: str
    eos: int
    """What ``pool`` looks for if it is ``token``."""
    head: tuple[str, ...]
    """What makes features of the pooled state: ``linear``, or one of ``ACTIVATIONS``."""

    def __post_init__(self) -> None:
        steps = {self.activation, *self.head} - {"linear"}
        if not steps <= ACTIVATIONS.keys() or self.pool not in POOLS:
            raise ValueError(f"no such step: {', '.join(sorted({*steps, self.pool} - {*ACTIVATIONS, *POOLS}))}")


class NumpyTower:
    """Token numbers of a text to its features and token states.

    Raises:
        KeyError: a tensor is missing.
        ValueError: one has a shape that does not fit the others.
    """

    def __init__(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> None:
        self.plan = plan
        self._weights = weights
        self.width = weights["tokens"].shape[1]
        wide = self.width
        expected: dict[str, tuple[int, ...]] = {"positions": (plan.positions, wide)}
        for i in range(plan.layers):
            hidden = weights[f"{i}.up"].shape[1]
            expected |= {f"{i}.qkv": (wide, 3 * wide), f"{i}.out": (wide, wide)}
            expected |= {f"{i}.up": (wide, hidden), f"{i}.down": (hidden, wide)}
            expected |= {f"{i}.{norm}.weight": (wide,) for norm in ("norm_1", "norm_2")}
        for name, shape in expected.items():
            if weights[name].shape != shape:
                raise ValueError(f"{name} is {weights[name].shape}, not {shape}")
        if wide % plan.heads:
            raise ValueError(f"{wide} numbers cannot be divided among {plan.heads} heads")

    def features_and_states(self, texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Texts of L tokens, special ones included, to features ``(B, D)``, not normalised, and for each the last
        layer's output ``(L, W)``, normalised as the pooled one is; of one without tokens that of its first padding.

        A weight is multiplied with the tokens of all of them at once.
        """
        padded = [self._pad(ids) for ids in texts]
        states = self._states(padded)
        features = [self._head(self._pooled(one, ids)) for one, ids in zip(states, padded, strict=True)]
        return np.stack(features), [one[: max(1, len(ids))] for one, ids in zip(states, texts, strict=True)]

    def _pad(self, ids: Sequence[int]) -> np.ndarray:
        missing = self.plan.positions - len(ids) if self.plan.padded else int(not ids)
        return np.array([*ids, *[self.plan.pad] * missing], np.int64)

    def _pooled(self, states: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The state ``(W,)`` that stands for a text."""
        match self.plan.pool:
            case "mean":
                pooled: np.ndarray = states.mean(axis=0)
                return pooled
            case "first":
                at = 0
            case "last":
                at = len(ids) - 1
            case "highest":
                at = int(ids.argmax())
            case _:
                at = int((ids == self.plan.eos).argmax())
        return states[at]

    def _states(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The last layer's output for each text ``(L, W)``."""
        plan, weights = self.plan, self._weights
        ends = np.cumsum([len(ids) for ids in texts])
        x = np.concatenate(
            [weights["tokens"][ids] + weights["positions"][: len(ids)] for ids in texts]
        )  # (sum of L, W)
        if not plan.norm_first:
            x = self._norm(x, "embedding_norm")
        for i in range(plan.layers):
            x = self._layer(i, x, ends[:-1])
        return np.split(self._norm(x, "final_norm") if plan.norm_first else x, ends[:-1])

    def _layer(self, i: int, x: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        """Layer ``i`` of texts that lie behind each other, divided at ``cuts``."""
        weights, activation = self._weights, ACTIVATIONS[self.plan.activation]
        x = x + self._attention(i, self._norm(x, f"{i}.norm_1") if self.plan.norm_first else x, cuts)
        if self.plan.norm_first:
            hidden = activation(self._norm(x, f"{i}.norm_2") @ weights[f"{i}.up"] + weights[f"{i}.up.bias"])
            return x + (hidden @ weights[f"{i}.down"] + weights[f"{i}.down.bias"])
        x = self._norm(x, f"{i}.norm_1")
        hidden = activation(x @ weights[f"{i}.up"] + weights[f"{i}.up.bias"])
        return self._norm(x + hidden @ weights[f"{i}.down"] + weights[f"{i}.down.bias"], f"{i}.norm_2")

    def _attention(self, i: int, x: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        """Every token of a text in ``x`` is looked at by the text's others."""
        weights = self._weights
        qkv = x @ weights[f"{i}.qkv"] + weights[f"{i}.qkv.bias"]
        seen = np.concatenate([self._looked(*np.split(one, 3, axis=1)) for one in np.split(qkv, cuts)])
        return seen @ weights[f"{i}.out"] + weights[f"{i}.out.bias"]

    def _looked(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """What the queries see of the keys and values of one text, all ``(L, W)``."""
        heads, wide, length = self.plan.heads, self.width, len(k)
        q, k, v = (part.reshape(length, heads, wide // heads).transpose(1, 0, 2) for part in (q, k, v))
        scores = q @ k.transpose(0, 2, 1)  # (heads, L, L)
        if self.plan.causal:
            scores = scores + _causal(length)
        return (softmax(scores) @ v).transpose(1, 0, 2).reshape(length, wide)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], self.plan.epsilon)

    def _head(self, x: np.ndarray) -> np.ndarray:
        for n, step in enumerate(self.plan.head):
            if step != "linear":
                x = ACTIVATIONS[step](x)
                continue
            x = x @ self._weights[f"head.{n}"]
            if f"head.{n}.bias" in self._weights:
                x = x + self._weights[f"head.{n}.bias"]
        return x


@lru_cache(maxsize=128)
def _causal(length: int) -> np.ndarray:
    """``(L, L)``, by which no token sees those after it; every layer asks for the same."""
    return np.triu(np.full((length, length), -np.inf, np.float32), 1)
