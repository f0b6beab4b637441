"""The fusion model without torch: its picture side in NumPy, its joint encoder in NumPy or through onnxruntime.

A folder holds it:

    config.json             what it is, whose patches and states it reads, T and W, how many candidates
    compressor.safetensors  the picture side: patches (P, F) of a picture to tokens (T, W)
    fusion.safetensors      the joint encoder's weights, for ``mmsearch.rerank.fusion_numpy``; or
    fusion.onnx             the joint encoder itself, of another kind of fusion or exported by an older mmsearch
    bank.safetensors        vectors of texts (K, D) and of pictures (M, D), see ``mmsearch.rerank.bank``; may be missing
    calibration.json        for each direction the log-odds of a match, from those of the first stage and the logit
    posterior.json          what these mean for a question and a library, see ``mmsearch.posterior``; may be missing

The joint encoder leads words (C, L, S), mask (C, L), tokens (I, T, W), text (K,) and picture (K,) to logits (K,),
attention (K, L, T) and weights (K, L); pair k is text[k] with picture[k]. ``attention`` says where in the picture each
word looked (rows sum to 1), ``weights`` how much each word counted (the real ones sum to 1); a search asks for the
logits alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from indexer import onnx_session
from indexer.encoders.mini_text import gelu
from indexer.errors import ModelError, UsageError
from indexer.text_tower.mapped import map_tensors
from indexer.tokens import Compressor, TokenFormat
from indexer.types import Modality
from mmsearch.calibration import FusedLine
from mmsearch.posterior import Posterior
from mmsearch.rerank import Look, PictureSide, TextSide
from mmsearch.rerank.bank import QueryBank
from mmsearch.rerank.folder import CONFIG, read_json, read_lines, read_posterior
from mmsearch.rerank.fusion_numpy import NumpyFusion

ARCHITECTURE = "fusion"
"""What ``config.json`` says of a folder that this file can read."""
COMPRESSOR, BANK = "compressor.safetensors", "bank.safetensors"
WEIGHTS, MODEL = "fusion.safetensors", "fusion.onnx"
INPUTS = ("words", "mask", "tokens", "text", "picture")
OUTPUTS = ("logits", "attention", "weights")
EPSILON = 1e-5
THREADS = 2
"""The model is small, and other work goes on beside it."""
PAIRS = 256
"""Pairs that the model is given at once: what it holds in between is then some hundred megabytes at most."""


class FusionCompressor:
    """The picture side of the fusion model: patches are normalised, projected, pooled and normalised again.

    Each token ends with mean 0 and variance 1, so that 8 bits a number lose little.

    Args:
        weights: ``norm.weight``, ``norm.bias`` ``(F,)``, ``project.weight`` ``(W, F)``, ``project.bias`` ``(W,)``; with
            a hidden layer of size U, which adds to the projection, also ``up.weight`` ``(U, F)``, ``up.bias`` ``(U,)``
            and ``down.weight`` ``(W, U)``.
        grid, side: P is ``grid`` squared and T is ``side`` squared; patches and tokens go row by row from the top left.
        encoder: the fingerprint of the encoder whose patches it reads.
    """

    def __init__(
        self, format: TokenFormat, encoder: str, weights: Mapping[str, np.ndarray], grid: int, side: int
    ) -> None:
        self.format = format
        self.encoder = encoder
        self._scale, self._shift = weights["norm.weight"], weights["norm.bias"]
        self._project, self._bias = weights["project.weight"].T, weights["project.bias"]  # (F, W), (W,)
        shapes = (self._scale.shape, self._shift.shape, self._bias.shape)
        size, width = self._project.shape
        self._hidden: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        if "up.weight" in weights:
            self._hidden = weights["up.weight"].T, weights["up.bias"], weights["down.weight"].T  # (F, U), (U,), (U, W)
        if shapes != ((size,), (size,), (width,)) or (side * side, width) != (format.count, format.width):
            raise ValueError(f"weights for tokens of {width} numbers, {side} x {side}, do not fit {format}")
        line = _pooling(grid, side)
        self._pool = None if side == grid else np.kron(line, line)  # (T, P)

    def compress(self, patches: np.ndarray) -> np.ndarray:
        """Patches ``(B, P, F)`` float32 to tokens ``(B, T, W)`` float32."""
        normed = _normalise(patches) * self._scale + self._shift  # (B, P, F)
        x = normed @ self._project + self._bias  # (B, P, W)
        if self._hidden is not None:
            up, bias, down = self._hidden
            x = x + gelu(normed @ up + bias) @ down
        if self._pool is not None:
            x = self._pool @ x  # (B, T, W)
        return _normalise(x)


def _normalise(x: np.ndarray) -> np.ndarray:
    """The last axis to mean 0 and variance 1 (Ba et al. 2016)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    normed: np.ndarray = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(EPSILON))
    return normed


def _pooling(grid: int, side: int) -> np.ndarray:
    """The matrix ``(side, grid)`` that averages a line of ``grid`` cells to ``side``, as torch's adaptive pooling does:
    cell i is the mean from floor(i · grid / side) up to ceil((i + 1) · grid / side)."""
    matrix = np.zeros((side, grid), np.float32)
    for i in range(side):
        start, end = i * grid // side, -(-(i + 1) * grid // side)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


class FusionReranker:
    """Words attend to the stored tokens of a picture, in one small network: the ``Reranker`` that mmsearch trains.

    The constructor reads two small JSON files. The picture side is loaded by the first picture that is indexed or asks,
    the joint encoder by the first pair.

    Raises:
        ModelError: the folder is no such model, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        config = read_config(folder)
        try:
            self.name: str = config["name"]
            self.fingerprint: str = config["fingerprint"]
            self.encoder: str = config["encoder"]
            self.candidates = int(config["candidates"])
            self._grid, self._side = int(config["grid"]), int(config["side"])
            tokens = config["tokens"]
            self._format = TokenFormat(self.name, tokens["fingerprint"], int(tokens["count"]), int(tokens["width"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise ModelError(f"the reranker in {folder} is damaged ({type(exc).__name__}: {exc})") from exc
        self.calibration: Mapping[tuple[Modality, Modality], FusedLine] = read_lines(folder)
        self.posterior: Mapping[tuple[Modality, Modality], Posterior] = read_posterior(folder)

    @cached_property
    def compressor(self) -> Compressor:
        """The picture side.

        Raises:
            ModelError: its weights cannot be read.
        """
        path = self._folder / COMPRESSOR
        try:
            return FusionCompressor(self._format, self.encoder, map_tensors(path), self._grid, self._side)
        except (KeyError, ValueError) as exc:
            raise ModelError(f"cannot read the weights {path}: {exc}") from exc

    @cached_property
    def bank(self) -> QueryBank | None:
        """The vectors that tell what fits this question from what fits any; None if there is no such file.

        Raises:
            ModelError: they cannot be read.
        """
        path = self._folder / BANK
        return QueryBank.load(path) if path.exists() else None

    def score(self, texts: Sequence[TextSide], pictures: Sequence[PictureSide], pairs: np.ndarray) -> np.ndarray:
        """The logit of each of ``pairs`` ``(K, 2)``: ``(K,)``; see ``Reranker``.

        Raises:
            ModelError: the network cannot be loaded, fails, or gives a logit that is not finite.
        """
        logits = np.empty(len(pairs))
        for start in range(0, len(pairs), PAIRS):
            chunk = pairs[start : start + PAIRS]
            (logits[start : start + PAIRS],) = self._run(OUTPUTS[:1], texts, pictures, chunk)
        return logits

    def look(self, text: TextSide, picture: PictureSide) -> Look:
        """Where the words of one pair looked; see ``LookingReranker``.

        Raises:
            ModelError: the network cannot be loaded, fails, or does not say where its words look.
        """
        network = self.network
        if not isinstance(network, NumpyFusion) and not {one.name for one in network.get_outputs()}.issuperset(OUTPUTS):
            raise ModelError(
                f"the reranker {self.name} cannot explain: {self._folder / MODEL} has no outputs that say where words "
                f"look ({' and '.join(OUTPUTS[1:])}); export it again, or name another one"
            )
        logits, attention, weights = self._run(OUTPUTS, [text], [picture], np.zeros((1, 2), np.int64))
        shape = len(_need(text.states)), len(_need(picture.tokens))
        if attention.shape != (1, *shape) or weights.shape != (1, shape[0]):
            raise ModelError(
                f"the reranker {self.name} cannot explain: it gave attention of shape {attention.shape} and weights of "
                f"shape {weights.shape} for {shape[0]} words and {shape[1]} image tokens"
            )
        return Look(float(logits[0]), attention[0], weights[0])

    def _run(
        self, outputs: Sequence[str], texts: Sequence[TextSide], pictures: Sequence[PictureSide], pairs: np.ndarray
    ) -> list[np.ndarray]:
        """The ``outputs`` of the network, of which the first are the logits."""
        asked, text = np.unique(pairs[:, 0], return_inverse=True)
        shown, picture = np.unique(pairs[:, 1], return_inverse=True)
        words, mask = _pad([_need(texts[i].states) for i in asked])
        inputs = {
            "words": words,
            "mask": mask,
            "tokens": np.stack([_need(pictures[i].tokens) for i in shown]),
            "text": text.astype(np.int64),
            "picture": picture.astype(np.int64),
        }
        count, network = len(pairs), self.network
        try:
            found: list[np.ndarray] = network.run(list(outputs), inputs)
        except Exception as exc:  # onnxruntime's errors have no base but this
            raise ModelError(f"the reranker {self.name} failed on {count} pairs: {exc}") from exc
        if found[0].shape != (count,) or not all(np.isfinite(one).all() for one in found):
            raise ModelError(
                f"the reranker {self.name} gave unusable logits of shape {found[0].shape} for {count} pairs"
            )
        return found

    @cached_property
    def network(self) -> Any:
        """The joint encoder, whose ``run`` is that of ``NumpyFusion``.

        Raises:
            ModelError: it cannot be loaded.
        """
        return open_network(self._folder, self._format)


def open_network(folder: Path, tokens: TokenFormat) -> Any:
    """The joint encoder in ``folder``, which reads ``tokens``: a ``NumpyFusion``, or a session of onnxruntime.

    Raises:
        ModelError: it cannot be loaded.
    """
    path = folder / WEIGHTS
    if not path.exists():
        return open_session(folder / MODEL)
    try:
        return NumpyFusion(map_tensors(path), tokens)
    except (KeyError, ValueError) as exc:
        raise ModelError(f"cannot load the reranker {path} ({type(exc).__name__}: {exc})") from exc


def open_session(path: Path) -> Any:
    """The joint encoder in ``path``, ready to run in onnxruntime.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        return onnx_session.open_session(path, THREADS)
    except Exception as exc:  # the library's errors have no base but this
        raise ModelError(f"cannot load the reranker {path}: {exc}") from exc


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder with a fusion model.

    Raises:
        ModelError: it cannot be read, or describes something else.
    """
    config = read_json(folder / CONFIG)
    if config.get("architecture") != ARCHITECTURE:
        raise ModelError(f"{folder / CONFIG} does not describe a reranker of the kind {ARCHITECTURE!r}")
    return config


def is_reranker_folder(folder: Path) -> bool:
    """Whether ``folder`` says of itself that ``FusionReranker`` can read it."""
    path = folder / CONFIG
    return path.is_file() and read_json(path).get("architecture") == ARCHITECTURE


def _need(given: np.ndarray | None) -> np.ndarray:
    if given is None:
        raise UsageError("a fusion model needs the token states of a text and the tokens of a picture")
    return given


def _pad(states: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Token states, each ``(L, S)``, to ``(C, L, S)`` float32 and the mask ``(C, L)`` of the real ones."""
    length = max(1, *map(len, states))
    words = np.zeros((len(states), length, states[0].shape[1]), np.float32)
    mask = np.zeros((len(states), length), np.float32)
    for row, one in enumerate(states):
        words[row, : len(one)] = one
        mask[row, : len(one)] = 1
    return words, mask
