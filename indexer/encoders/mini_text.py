"""The text side of `mini` in NumPy: BERT's forward pass and the text head for a question, without torch.

The same arithmetic as ``transformers.BertModel`` (Devlin et al. 2018) and ``mini_torch.ResidualHead`` in float32, one
text at a time and therefore without padding. It exists because importing torch costs seconds and answering a question
does not need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from indexer.encoders.quantised import SCALE, widen

HEADS = 12
LAYERS = 6
EPSILON = 1e-12
TEXT_LAYERS = (4, 5, 6)
"""The layers whose token means the text head reads (0 is the embeddings); the last one is the sentence embedding."""
CLASS_WEIGHT = 0.75
"""What the cosine of the sentence embeddings counts beside the cosine of the heads."""
WORDS = "embeddings.word_embeddings.weight"
SCRATCH = 196_608
"""Weights that are widened at a time for a text that is the only one: what the second cache of a core holds."""


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, within 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26); NumPy has none."""
    t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1.0 - series * np.exp(-x * x))


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function of x: the exact form, not the tanh one."""
    return 0.5 * x * (1.0 + erf(x * np.float32(0.7071067811865476)))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    """Each row of ``x: (L, D)`` to mean 0 and variance 1, then scaled and shifted."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + epsilon) * weight + bias


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


class NumpyBert:
    """Token numbers to the mean of each layer's token features, and to those of the last layer.

    ``packed`` are the tensors of ``text.safetensors``, under the names of ``transformers.BertModel`` and quantised. Of
    the word embeddings, half of the weights, a question needs a dozen rows. Of a layer, some rows are widened when they
    are needed, and all are kept from the second text on: the one text of a question from the shell is done in a third
    of the memory, and in half of the time, for pages of new memory cost more than the arithmetic.
    """

    def __init__(self, packed: Mapping[str, np.ndarray]) -> None:
        self._packed = packed
        self._words, self._scale = packed[WORDS], packed[WORDS + SCALE]  # (V, D) int8, (V, 1)
        wide = widen(
            {
                name: tensor
                for name, tensor in packed.items()
                if name.startswith("embeddings.") and not name.startswith(WORDS)
            }
        )
        self._positions = wide["embeddings.position_embeddings.weight"]
        self._segment = wide["embeddings.token_type_embeddings.weight"][0]
        self._embedding_norm = _weight_and_bias(wide, "embeddings.LayerNorm")
        self._kept: list[_Layer] = []
        self._asked = False

    def _layer(self, i: int) -> _Layer:
        if i < len(self._kept):
            return self._kept[i]
        prefix = f"encoder.layer.{i}."
        layer = _Layer(
            {name.removeprefix(prefix): one for name, one in self._packed.items() if name.startswith(prefix)}
        )
        if self._asked:
            layer.keep()
            self._kept.append(layer)
        return layer

    def pooled_and_states(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """One text of L tokens, its special tokens included, to ``(1 + LAYERS, D)``, the mean over tokens of the
        embedding output and of each layer's output, and to the last layer's output ``(L, D)``."""
        rows = self._words[ids].astype(np.float32) * self._scale[ids]  # (L, D)
        x = rows + self._positions[: len(ids)] + self._segment
        x = layer_norm(x, *self._embedding_norm, EPSILON)
        means = [x.mean(axis=0)]
        scratch = np.empty(SCRATCH, np.float32)
        for i in range(LAYERS):
            x = self._layer(i)(x, scratch)
            means.append(x.mean(axis=0))
        self._asked = True
        return np.stack(means), x


class _Layer:
    """One encoder layer: attention, then the feed-forward part, each added to its input and normalised after."""

    def __init__(self, packed: Mapping[str, np.ndarray]) -> None:
        self._qkv = _Linear(packed, *(f"attention.self.{name}" for name in ("query", "key", "value")))  # (D, 3 D)
        self._out = _Linear(packed, "attention.output.dense")
        self._up = _Linear(packed, "intermediate.dense")
        self._down = _Linear(packed, "output.dense")
        self._attention_norm = _weight_and_bias(packed, "attention.output.LayerNorm")
        self._output_norm = _weight_and_bias(packed, "output.LayerNorm")

    def keep(self) -> None:
        """Widen all weights for good."""
        for one in (self._qkv, self._out, self._up, self._down):
            one.keep()

    def __call__(self, x: np.ndarray, scratch: np.ndarray) -> np.ndarray:
        length, size = x.shape
        qkv = self._qkv(x, scratch).reshape(length, 3, HEADS, size // HEADS)
        q, k, v = qkv.transpose(1, 2, 0, 3)  # each (heads, L, D / heads)
        weights = softmax(q @ k.transpose(0, 2, 1) / np.float32((size // HEADS) ** 0.5))  # (heads, L, L)
        context = (weights @ v).transpose(1, 0, 2).reshape(length, size)  # (L, D)
        x = layer_norm(x + self._out(context, scratch), *self._attention_norm, EPSILON)
        hidden = gelu(self._up(x, scratch))  # (L, 4 D)
        return layer_norm(x + self._down(hidden, scratch), *self._output_norm, EPSILON)


class _Linear:
    """Linear layers side by side: of each the weights ``(N, D)``, and a bias ``(N,)`` if it has one.

    Weights are int8 with a scale for each row ``(N, 1)`` or column ``(1, D)``, by which what comes out or goes in is
    cheaper to multiply; or float32 without one.
    """

    def __init__(self, packed: Mapping[str, np.ndarray], *names: str) -> None:
        self._parts = [
            (packed[f"{name}.weight"], packed.get(f"{name}.weight{SCALE}", _ONE), packed.get(f"{name}.bias", _ZERO))
            for name in names
        ]
        self._wide: list[np.ndarray] | None = None

    def keep(self) -> None:
        """Widen all weights for good."""
        self._wide = [weight.astype(np.float32) for weight, _, _ in self._parts]

    def __call__(self, x: np.ndarray, scratch: np.ndarray) -> np.ndarray:
        """``(L, D)`` to ``(L, N)``, the same whether the weights are kept or widened into ``scratch``."""
        found = []
        for number, (weight, scale, bias) in enumerate(self._parts):
            by_row = scale.shape[1] == 1
            inputs = x if by_row else x * scale
            rows = len(scratch) // weight.shape[1]
            outputs = []
            for start in range(0, len(weight), rows):
                end = min(start + rows, len(weight))
                if self._wide is None:
                    wide = scratch[: (end - start) * weight.shape[1]].reshape(end - start, -1)
                    np.copyto(wide, weight[start:end])
                else:
                    wide = self._wide[number][start:end]
                outputs.append(inputs @ wide.T)
            output = np.concatenate(outputs, axis=1)
            found.append((output * scale[:, 0] if by_row else output) + bias)
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)


_ONE, _ZERO = np.ones((1, 1), np.float32), np.zeros(1, np.float32)


def _weight_and_bias(wide: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The two tensors of the layer called ``name``."""
    return wide[f"{name}.weight"], wide[f"{name}.bias"]


def text_rows(pooled: np.ndarray, head: NumpyHead) -> np.ndarray:
    """Token means ``(B, 7, 384)`` to vectors ``(B, D)``, not yet normalised."""
    return head(pooled[:, TEXT_LAYERS].reshape(len(pooled), -1), pooled[:, -1])


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class NumpyHead:
    """``mini_torch.ResidualHead`` without torch: a linear map, a hidden layer that corrects it, and what makes one
    vector of its answer and that of the words.

    From the second call on weights are kept widened, as in ``NumpyBert``.
    """

    def __init__(self, packed: Mapping[str, np.ndarray], prefix: str) -> None:
        self._linear, self._up, self._down = (_Linear(packed, f"{prefix}{name}") for name in ("linear", "up", "down"))
        self._compact = _Linear(packed, f"{prefix}compact") if f"{prefix}compact.weight" in packed else None
        self._asked = self._kept = False

    def __call__(self, x: np.ndarray, words: np.ndarray) -> np.ndarray:
        """``(B, features)`` and the words' answer ``(B, 384)`` to ``(B, D)``, not normalised."""
        if self._asked and not self._kept:
            for one in (self._linear, self._up, self._down, self._compact):
                if one is not None:
                    one.keep()
            self._kept = True
        self._asked = True
        scratch = np.empty(SCRATCH, np.float32)
        hidden = gelu(self._up(x, scratch))
        head = self._linear(x, scratch) + self._down(hidden, scratch)  # (B, 512)
        both = np.concatenate([_unit(head), np.float32(CLASS_WEIGHT**0.5) * _unit(words)], axis=1)  # (B, 896)
        return both if self._compact is None else self._compact(both, scratch)
