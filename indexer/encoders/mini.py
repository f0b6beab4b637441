"""The embedded model: a small image tower and a small text tower, both in the package, needing no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders import WHOLE, Box, Encoder, Piece, places
from indexer.encoders.rows import unit_rows
from indexer.encoders.word_pieces import WordPieces
from indexer.errors import ModelError
from indexer.text_tower.mapped import map_tensors

if TYPE_CHECKING:
    import tokenizers
    import torch
    from PIL.Image import Image

    from indexer.encoders.mini_int8 import MiniPrecision
    from indexer.encoders.mini_onnx import OnnxPictures
    from indexer.encoders.mini_text import NumpyBert, NumpyHead
    from indexer.encoders.mini_torch import Heads, ImageTower, TextTower

PACKAGED = Path(__file__).parent.parent / "weights" / "mini"
IMAGE, TEXT, HEAD, TOKENIZER = "image.safetensors", "text.safetensors", "head.safetensors", "tokenizer.json"
CONFIG, CALIBRATION = "config.json", "calibration.json"
ARCHITECTURE = "mini-dual"
"""What ``config.json`` says of a folder that this file can read."""
IMAGE_SIZE = 260
MAX_TOKENS = 128
"""What the sentence model was trained with; beyond it, its embeddings wander (Reimers and Gurevych's model card)."""
NUMPY_TEXTS = 32
"""Up to so many texts go through NumPy on any chip, and are cut into tokens without the tokenizers library: a question
must not pay for importing torch. On a CPU all texts go through NumPy, a text at a time without padding: measured with
one thread, 57 to 78 texts a second of 16 tokens, 26 to 34 of 58, 18 to 25 of 127, torch and NumPy within a third."""
PATCHES = (81, 352)
"""The image tower's last feature map is 9 by 9; its last convolution only widens it to what is pooled."""
STATE_SIZE = 384
IMAGE_BATCH = 32
CPU_CHUNK = 1
"""Pictures that the image tower takes at once on a CPU: their activations fit its cache, and memory that was just given
back. Measured in turn, two at work side by side: 24.2 ms of a core for a picture with 1, 24.8 with 2, 28.6 with 4."""
TEXT_BATCH = 128


class MiniEncoder(Encoder):
    """EfficientNet-Lite2 and all-MiniLM-L6-v2, aligned by ``mmsearch train dual``, behind ``PlacedEncoder``.

    A vector is made of two answers: that of a trained head (512 numbers), and, scaled by the square root of three
    quarters, that of the sentence model alone (384 numbers), which for a picture is the average of the embeddings of
    the ImageNet class names that the classifier sees in it. The first knows how people describe scenes, the second has
    names for a thousand things. Where the weights hold a linear map for it, the two become one compact vector.

    The constructor reads two small JSON files. On a CPU pictures go through onnxruntime and texts through NumPy;
    torch is imported only for another chip, by the first picture or the first many texts, never by a question.

    Args:
        device: ``cuda``, ``cuda:1``, ``mps``, ``cpu``, or None for the best one here.
        folder: where the weights are; the package's own for None, else a run of ``mmsearch train dual``.

    Raises:
        ModelError: the folder is no such model, or is damaged.
    """

    def __init__(self, device: str | None = None, folder: Path | None = None) -> None:
        self._asked_device = device
        self._folder = PACKAGED if folder is None else folder
        config = _read_json(self._folder / CONFIG)
        if config.get("architecture") != ARCHITECTURE:
            raise ModelError(f"{self._folder / CONFIG} does not describe a model of the kind {ARCHITECTURE!r}")
        self.name: str = "mini" if folder is None else str(folder)
        self.fingerprint: str = config["fingerprint"]
        self.dim: int = config["dim"]
        self.image_size = IMAGE_SIZE
        self.max_tokens = MAX_TOKENS
        self.patches = PATCHES
        self.state_size = STATE_SIZE
        calibration = self._folder / CALIBRATION
        self.calibration: Mapping[str, Mapping[str, float]] | None = (
            _read_json(calibration) if calibration.is_file() else None
        )
        """For each ``"text->image"`` of modalities the mean and standard deviation of an unrelated pair's cosine, and
        the slope and bias of the log-odds of a match over (cosine - mean) / std."""

    @cached_property
    def streams(self) -> int:
        """See ``indexer.encoders.streams``."""
        from indexer.encoders.device import cores

        return 1 if self._by_torch else cores()

    def prepare(self, image: Image) -> np.ndarray:
        """One picture squeezed to uint8 ``(3, 260, 260)``; the towers were trained on squeezed pictures."""
        from PIL.Image import Resampling

        pixels = np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Resampling.BICUBIC))
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        """Prepared pictures, uint8 ``(B, 3, 260, 260)``, to float32 unit rows ``(B, D)``."""
        return self.encode_prepared_patches(batch)[0]

    def encode_prepared_patches(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prepared pictures, uint8 ``(B, 3, 260, 260)``, to unit rows ``(B, D)`` and patches ``(B, 81, 352)``."""
        parts, patches = [np.zeros((0, self.dim), np.float32)], [np.zeros((0, *PATCHES), np.float32)]
        size, encode = (IMAGE_BATCH, self._pictures_by_torch) if self._by_torch else (CPU_CHUNK, self._onnx_pictures)
        for start in range(0, len(batch), size):
            rows, maps = encode(np.ascontiguousarray(batch[start : start + size]))
            parts.append(rows)
            patches.append(maps)
        return unit_rows(np.concatenate(parts), "image"), np.concatenate(patches)

    def _pictures_by_torch(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What ``mini_onnx.OnnxPictures`` gives, on the device."""
        import torch

        # With cuDNN's TF32 a picture's vector would depend on its neighbours in the batch.
        cuda = self._device.type == "cuda"
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if cuda else nullcontext()
        with torch.inference_mode(), exact:
            features, words, patches = self._image_tower.with_patches(torch.from_numpy(pixels).to(self._device))
            return self._heads.image(features, words).cpu().numpy(), patches.cpu().numpy()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 unit rows ``(B, D)``; what is beyond ``max_tokens`` is not seen."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        ids = self.token_ids(texts)
        return self._encode_ids(ids)

    def encode_text_states(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Texts to float32 unit rows ``(B, D)`` and, for each, the text tower's last layer ``(L, 384)``."""
        states: list[np.ndarray] = []
        if not texts:
            return np.zeros((0, self.dim), np.float32), states
        ids = self.token_ids(texts)
        return self._encode_ids(ids, states), states

    def read_text(self, text: str) -> tuple[str, list[Piece | None]]:
        """``text`` itself, and the characters of each of its tokens; see ``PlacedEncoder``."""
        encoding = self._tokenizer.encode(text)
        spans = places(encoding.offsets, encoding.special_tokens_mask)
        return text, spans if len(spans) <= MAX_TOKENS else [*spans[: MAX_TOKENS - 1], spans[-1]]

    def seen(self, width: int, height: int) -> Box:
        """The whole picture, whatever its shape: it is squeezed."""
        return WHOLE

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``, special tokens counted, also those beyond ``max_tokens``."""
        if len(text) <= MAX_TOKENS - 2:  # a word of a question, which waits for no library
            return len(self.token_ids([text])[0])
        return len(self._tokenizer.encode(text).ids)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token numbers of each text, special tokens included, at most ``max_tokens``; without padding."""
        last = MAX_TOKENS - 1
        if len(texts) <= NUMPY_TEXTS and all(map(WordPieces.can_read, texts)):
            encoded = [self._word_pieces.ids(text) for text in texts]
        else:
            encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        return [ids if len(ids) <= MAX_TOKENS else [*ids[:last], ids[-1]] for ids in encoded]

    def vocabulary(self) -> list[str]:
        """The tokens of the text tower, words and parts of words, in the order of their numbers."""
        numbers = self._tokenizer.get_vocab()
        return sorted(numbers, key=numbers.__getitem__)

    def _encode_ids(self, ids: Sequence[Sequence[int]], states: list[np.ndarray] | None = None) -> np.ndarray:
        """Token numbers to unit rows ``(B, D)``; the last layer of each text is added to ``states``."""
        if len(ids) > NUMPY_TEXTS and self._by_torch:
            return self._encode_by_torch(ids, states)
        return self._encode_by_numpy(ids, states)

    def _encode_by_numpy(self, ids: Sequence[Sequence[int]], states: list[np.ndarray] | None = None) -> np.ndarray:
        """The vectors; the token states of each text are appended to ``states``."""
        from indexer.encoders.mini_text import text_rows

        pooled = []
        for text in ids:
            means, last = self._numpy_bert.pooled_and_states(text)  # (7, 384), (L, 384)
            pooled.append(means)
            if states is not None:
                states.append(last)
        return unit_rows(text_rows(np.stack(pooled), self._numpy_head), "text")

    def _encode_by_torch(self, ids: Sequence[Sequence[int]], states: list[np.ndarray] | None = None) -> np.ndarray:
        """As ``_encode_by_numpy``."""
        import torch

        from indexer.encoders.mini_torch import pad, text_features

        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # neighbours of one length need little padding
        rows = np.empty((len(ids), self.dim), np.float32)
        kept: dict[int, np.ndarray] = {}
        for start in range(0, len(order), TEXT_BATCH):
            chunk = order[start : start + TEXT_BATCH]
            numbers, mask = pad([ids[i] for i in chunk])
            with torch.inference_mode():
                pooled, last = self._text_tower.with_states(numbers.to(self._device), mask.to(self._device))
                rows[chunk] = self._heads.text(text_features(pooled), pooled[:, -1]).cpu().numpy()
            if states is not None:
                kept |= {i: row[: len(ids[i])] for i, row in zip(chunk, last.cpu().numpy(), strict=True)}
        if states is not None:
            states.extend(kept[i] for i in range(len(ids)))
        return unit_rows(rows, "text")

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer

        path = self._folder / TOKENIZER
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:  # the library raises a bare Exception
            raise ModelError(f"cannot read the tokenizer {path}: {exc}") from exc
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def _word_pieces(self) -> WordPieces:
        path = self._folder / TOKENIZER
        try:
            return WordPieces(_read_json(path))
        except (KeyError, TypeError, ValueError) as exc:
            raise ModelError(f"cannot read the tokenizer {path}: {exc}") from exc

    @cached_property
    def _numpy_bert(self) -> NumpyBert:
        from indexer.encoders.mini_text import NumpyBert

        return NumpyBert(map_tensors(self._folder / TEXT))

    @cached_property
    def _numpy_head(self) -> NumpyHead:
        from indexer.encoders.mini_text import NumpyHead

        return NumpyHead(map_tensors(self._folder / HEAD), "text.")

    @cached_property
    def _by_torch(self) -> bool:
        """Whether pictures and many texts go to a chip that torch alone computes on."""
        from indexer.encoders.device import is_cpu

        return not is_cpu(self._asked_device)

    @cached_property
    def precision(self) -> MiniPrecision | None:
        """What computes pictures on a CPU: in float32, or in eight bits where the folder holds the tower in these."""
        from indexer.encoders.mini_int8 import FILE, MiniPrecision

        if self._by_torch:
            return None
        light = self._light_pictures if (self._folder / FILE).is_file() else None
        return MiniPrecision(self._exact_pictures, light, self.prepare)

    def _onnx_pictures(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What ``mini_onnx.OnnxPictures`` gives, on a CPU."""
        assert self.precision is not None
        return self.precision(pixels)

    def _exact_pictures(self) -> OnnxPictures:
        """The image tower in float32."""
        from indexer.encoders.mini_onnx import OnnxPictures

        image, head = map_tensors(self._folder / IMAGE), map_tensors(self._folder / HEAD)
        try:
            return OnnxPictures(image, head)
        except Exception as exc:  # onnxruntime's errors have no base but this
            raise ModelError(f"the weights {self._folder / IMAGE} are not of this model's image tower: {exc}") from exc

    def _light_pictures(self) -> OnnxPictures:
        """The image tower in eight bits.

        Raises:
            Exception: it is not that of these weights, or is damaged; onnxruntime's errors have no other base.
        """
        from indexer.encoders.mini_int8 import FILE, FINGERPRINT, WEIGHTS
        from indexer.encoders.mini_onnx import OnnxPictures

        image = map_tensors(self._folder / IMAGE)
        head = map_tensors(self._folder / HEAD)
        light = OnnxPictures({name: image[name] for name in WEIGHTS}, head, self._folder / FILE)
        if light.metadata.get(FINGERPRINT) != self.fingerprint:
            raise ModelError(f"{self._folder / FILE} was made of other weights")
        return light

    @cached_property
    def _device(self) -> torch.device:
        from indexer.encoders.device import pick_device

        return pick_device(self._asked_device)

    @cached_property
    def _image_tower(self) -> ImageTower:
        from indexer.encoders.mini_torch import load_image_tower

        return load_image_tower(self._tensors(IMAGE)).to(self._device)

    @cached_property
    def _text_tower(self) -> TextTower:
        from indexer.encoders.mini_torch import load_text_tower

        return load_text_tower(self._tensors(TEXT)).to(self._device)

    @cached_property
    def _heads(self) -> Heads:
        from indexer.encoders.mini_torch import load_heads

        return load_heads(self._tensors(HEAD)).to(self._device)

    def _tensors(self, name: str) -> dict[str, np.ndarray]:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self._folder / name
        try:
            return load_file(path)
        except (OSError, SafetensorError) as exc:
            raise ModelError(f"cannot read the weights {path}: {exc}") from exc


def is_mini_folder(folder: Path) -> bool:
    """Whether ``folder`` says of itself that ``MiniEncoder`` can read it."""
    path = folder / CONFIG
    return path.is_file() and _read_json(path).get("architecture") == ARCHITECTURE


def weights_digest(folder: Path) -> str:
    """The ``fingerprint``: a digest of the four files, and of the settings, that vectors depend on."""
    import hashlib

    from indexer.encoders.mini_text import CLASS_WEIGHT

    digest = hashlib.blake2b(f"{ARCHITECTURE} {IMAGE_SIZE} {MAX_TOKENS}{CLASS_WEIGHT}\n".encode(), digest_size=16)
    for name in (IMAGE, TEXT, HEAD, TOKENIZER):
        content = (folder / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(f"cannot read {path}: {exc}") from exc
    return content if isinstance(content, dict) else {}
