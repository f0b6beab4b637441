"""A dual encoder of Hugging Face transformers as an encoder: CLIP, SigLIP, ALIGN, or a vision beside a text model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders import Encoder
from indexer.encoders.openclip import as_model_error, digest, quiet, require_reachable
from indexer.encoders.precision import QUESTIONS
from indexer.encoders.rows import unit_rows
from indexer.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from indexer.text_tower.parts import Parts

PREFIX = "hf:"
CONFIG = "config.json"
KINDS = ("align", "clip", "siglip", "vision-text-dual-encoder")
"""What ``model_type`` in ``config.json`` says of a model with both towers that this file can read."""
OFFSET_POSITIONS = ("roberta", "xlm-roberta")
"""Text models whose first position is numbered ``pad_token_id + 1``, so that the last numbers of the table are all that
a text can use."""
TEXT_BATCH = 64
SETTINGS_OF_PICTURES = (
    "crop_size",
    "do_center_crop",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "include_top",
    "resample",
    "rescale_factor",
    "rescale_offset",
    "size",
)
"""What a picture's pixels depend on, among the settings of an image processor."""
INCIDENTAL = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""What a model's configuration says of its history and not of its vectors."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A model with both towers, and what pictures and texts go through before it."""

    model: Any
    processor: Any
    tokenizer: Any
    max_tokens: int
    padded: bool
    """Whether every text is padded to ``max_tokens`` and the padding is read like words, as SigLIP was trained."""

    def prepare(self, image: Image) -> np.ndarray:
        """One RGB picture through the model's own image processor: float32 ``(3, H, W)``."""
        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return np.ascontiguousarray(pixels.numpy(), dtype=np.float32)

    def tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token numbers and the mask of those that are read, both ``(B, L)``; what is beyond ``max_tokens`` is cut."""
        import torch

        encoded = self.tokenizer(
            list(texts),
            padding="max_length" if self.padded else "longest",
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids = encoded["input_ids"]
        return ids, torch.ones_like(ids) if self.padded else encoded["attention_mask"]


class HuggingFaceEncoder(Encoder):
    """A transformers model with two towers behind the ``Encoder`` protocol, with its own preprocessing.

    It computes in float32; pictures in bfloat16 where ``indexer.encoders.precision`` decides so.

    ==================  ================================================================================
    ``hf:owner/name``   a repository of the Hugging Face hub with ``config.json`` and ``*.safetensors``
    a folder            the same files, as ``save_pretrained`` or ``mmsearch train`` writes them
    ==================  ================================================================================

    The models are CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023), ALIGN (Jia et al. 2021) and
    ``VisionTextDualEncoderModel``. Tested with small random models of these four, the last of a ViT and a BERT or
    RoBERTa; not with published weights.

    Raises:
        UsageError: the name is neither a folder with such a model nor could it be a repository.
        ModelError: the weights are neither here nor reachable, or do not fit.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        from PIL.Image import new

        from indexer.encoders.device import pick_device, streams_on
        from indexer.encoders.torch_precision import TorchPrecision

        self._device = pick_device(device)
        self.streams = streams_on(self._device)
        self.name = model
        self._pair = open_pair(model)
        self._model = self._pair.model.to(self._device)
        self.max_tokens: int = self._pair.max_tokens
        self.image_size: int = max(self.prepare(new("RGB", (64, 64))).shape[1:])
        self.calibration: Mapping[str, Mapping[str, float]] | None = None
        """None: the scale of this model's cosines is not known in advance."""
        self.dim: int = self._text_features(["a"]).shape[1]
        self.fingerprint: str = digest(self._model, setting(self._pair))
        self.precision = TorchPrecision(
            self._model,
            self._device,
            _features,
            self.prepare,
            lambda: self.encode_texts(QUESTIONS),
            [name for name in ("vision_model", "visual_projection") if hasattr(self._model, name)],
        )

    def prepare(self, image: Image) -> np.ndarray:
        """One RGB picture through the model's own image processor: float32 ``(3, H, W)``."""
        return self._pair.prepare(image)

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        """Prepared pictures ``(B, 3, H, W)`` to float32 unit rows ``(B, D)``."""
        if not len(batch):
            return np.zeros((0, self.dim), np.float32)
        (features,) = self.precision.run(batch, _features)
        return unit_rows(features, "image")

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 unit rows ``(B, D)``; what is beyond ``max_tokens`` is not seen."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        parts = [self._text_features(texts[i : i + TEXT_BATCH]) for i in range(0, len(texts), TEXT_BATCH)]
        return unit_rows(np.concatenate(parts), "text")

    def text_parts(self) -> Parts:
        """The text tower without torch.

        Raises:
            NoTower: NumPy cannot run it.
        """
        from indexer.text_tower.from_huggingface import take_apart

        return take_apart(self._pair)

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` by the model's tokenizer, special tokens counted."""
        return len(self._pair.tokenizer(text, verbose=False)["input_ids"])

    def _text_features(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        ids, mask = self._pair.tokens(texts)  # (B, L)
        with torch.inference_mode():
            out = self._model.get_text_features(input_ids=ids.to(self._device), attention_mask=mask.to(self._device))
        features: np.ndarray = _pooled(out).float().cpu().numpy()
        return features


def _features(model: Any, pixels: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Prepared pictures ``(B, 3, H, W)`` to vectors ``(B, D)``, not normalised."""
    return (_pooled(model.get_image_features(pixel_values=pixels)).float().cpu().numpy(),)


def is_pair_folder(folder: Path) -> bool:
    """Whether ``folder`` holds a transformers model of one of ``KINDS``."""
    return _model_type(folder) in KINDS


def open_pair(model: str) -> Pair:
    """The model called ``model``, a folder or ``hf:owner/name``, in float32 and evaluation mode, on the CPU.

    Raises:
        UsageError: the name is neither a folder with such a model nor could it be a repository.
        ModelError: the weights are neither here nor reachable, or do not fit.
    """
    source = _source(model)
    with reading(model):
        from transformers import AutoConfig, AutoModel

        require_here_or_reachable(source)
        kind = AutoConfig.from_pretrained(source).model_type
        if kind in KINDS:
            whole = AutoModel.from_pretrained(source, use_safetensors=True)
            return as_pair(whole, source, source)
    raise UsageError(
        f"{model!r} is a model of the type {kind!r}, which has no two towers that this program knows "
        f"({', '.join(KINDS)}); a vision model and a text model become one in training: {PREFIX}VISION+TEXT"
    )


def as_pair(model: Any, pictures: str, texts: str) -> Pair:
    """``model`` with the image processor of the folder or repository ``pictures`` and the tokenizer of ``texts``."""
    from transformers import AutoImageProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(texts)
    text = model.config.text_config
    positions = int(text.max_position_embeddings)
    if text.model_type in OFFSET_POSITIONS:
        positions -= text.pad_token_id + 1
    return Pair(
        model.float().eval(),
        AutoImageProcessor.from_pretrained(pictures),
        tokenizer,
        min(positions, int(tokenizer.model_max_length)),
        padded=model.config.model_type == "siglip",
    )


@contextmanager
def reading(model: str) -> Iterator[None]:
    """transformers says nothing while it loads ``model``, and whatever goes wrong is one ``ModelError``."""
    with as_model_error(model), silence():
        yield


@contextmanager
def silence() -> Iterator[None]:
    """transformers shows neither its messages nor its progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def require_here_or_reachable(source: str) -> None:
    """Learn in seconds that there are no weights, rather than after a row of retries."""
    if not Path(source).is_dir():
        require_reachable(source)
    elif not any(Path(source).glob("*.safetensors")):
        raise FileNotFoundError(f"no *.safetensors beside {CONFIG}")


def _source(model: str) -> str:
    """The folder or the repository that ``model`` names."""
    name = model.removeprefix(PREFIX)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / CONFIG).is_file():
            return str(folder)
        raise UsageError(f"no model in folder {name!r}: it has no {CONFIG}")
    if not model.startswith(PREFIX) or len(name.split("/")) != 2 or not all(name.split("/")):
        raise UsageError(f"{model!r} is neither a folder nor a repository of the hub: write {PREFIX}owner/name")
    return name


def _model_type(folder: Path) -> str | None:
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(f"cannot read {path}: {exc}") from exc
    return config.get("model_type") if isinstance(config, dict) else None


def _pooled(output: Any) -> torch.Tensor:
    """What ``get_image_features`` or ``get_text_features`` gives; before version 5 of transformers it is the tensor."""
    features: torch.Tensor = getattr(output, "pooler_output", output)
    return features


def setting(pair: Pair) -> str:
    """Whatever the vectors depend on beside the weights, wherever the files are."""
    pictures = pair.processor.to_dict()
    words = getattr(pair.tokenizer, "backend_tokenizer", None)
    listed = words.to_str() if words is not None else json.dumps(sorted(pair.tokenizer.get_vocab().items()))
    return json.dumps(
        [
            _essential(pair.model.config.to_diff_dict()),
            {name: pictures[name] for name in SETTINGS_OF_PICTURES if pictures.get(name) is not None},
            hashlib.blake2b(listed.encode(), digest_size=16).hexdigest(),
            pair.max_tokens,
        ],
        sort_keys=True,
        default=str,
    )


def _essential(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what is ``INCIDENTAL``, in its parts too."""
    return {
        name: _essential(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in INCIDENTAL
    }
