"""Any open_clip model as an encoder: by its name and tag, from the Hugging Face hub, or from a checkpoint folder."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders import WHOLE, Box, Encoder, Piece, places
from indexer.encoders.pixels import preparation
from indexer.encoders.precision import QUESTIONS
from indexer.encoders.rows import unit_rows
from indexer.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from indexer.text_tower.parts import Parts

HUB = "hf-hub:"
LOCAL = "local-dir:"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".npz")
PROBE_SECONDS = 8.0
"""How long the first word from a server may take before the network counts as absent."""
TEXT_BATCH = 256


class OpenClipEncoder(Encoder):
    """An open_clip model (Ilharco et al. 2021) behind the ``Encoder`` protocol, with its own preprocessing.

    It computes in float32; pictures in int8 or bfloat16 where ``indexer.encoders.precision`` decides so.

    ==============================  ==============================================================
    ``ViT-B-32/laion2b_s34b_b79k``  architecture / pretrained tag, as ``open_clip.list_pretrained()`` has them
    ``hf-hub:timm/ViT-B-16-SigLIP`` a repository of the Hugging Face hub in open_clip's format
    a folder                        ``open_clip_config.json`` beside ``*.safetensors`` (or a pickle-free ``.bin``)
    ==============================  ==============================================================

    With a vision transformer and open_clip's own text transformer it is a ``PlacedEncoder`` too: the patches are the
    last block's, without class token, through the tower's final norm and before pooling; the token states likewise,
    without padding. Other towers have no ``patches``.

    Raises:
        UsageError: no such name; the message lists near ones.
        ModelError: the weights are neither here nor reachable, or do not fit.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        from indexer.encoders.device import pick_device, streams_on
        from indexer.encoders.torch_precision import TorchPrecision

        self._device = pick_device(device)
        self.streams = streams_on(self._device)
        self.name = model
        target, tag = resolve(model)
        with quiet(), as_model_error(model):
            self._model, transform, self._tokenizer = create(target, tag)
        self._prepare = preparation(transform)
        self._model.to(self._device).eval()
        size = self._model.visual.image_size
        self.image_size: int = max(size) if isinstance(size, (tuple, list)) else int(size)
        self.max_tokens: int = int(self._tokenizer.context_length)
        self.calibration: Mapping[str, Mapping[str, float]] | None = None
        """None: the scale of this model's cosines is not known in advance."""
        self.dim: int = self._encode_text_features(["a"]).shape[1]
        patches, state_size = patch_shape(self._model.visual), text_state_size(self._model)
        if patches is not None and state_size is not None:
            self.patches: tuple[int, int] = patches
            self.state_size: int = state_size
        self.fingerprint: str = digest(self._model, f"{target}|{transform}|{self.max_tokens}")
        self.precision = TorchPrecision(
            self._model, self._device, _features, self.prepare, lambda: self.encode_texts(QUESTIONS)
        )

    def prepare(self, image: Image) -> np.ndarray:
        """One RGB picture through the model's own transform: float32 ``(3, H, W)``."""
        return self._prepare(image)

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        """Prepared pictures ``(B, 3, H, W)`` to float32 unit rows ``(B, D)``."""
        if not len(batch):
            return np.zeros((0, self.dim), np.float32)
        (features,) = self.precision.run(batch, _features)
        return unit_rows(features, "image")

    def encode_prepared_patches(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prepared pictures ``(B, 3, H, W)`` to float32 unit rows ``(B, D)`` and patches ``(B, P, F)``."""
        if not len(batch):
            return np.zeros((0, self.dim), np.float32), np.zeros((0, *self.patches), np.float32)
        features, patches = self.precision.run(batch, _features_and_patches)
        return unit_rows(features, "image"), patches

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 unit rows ``(B, D)``; what is beyond ``max_tokens`` is not seen."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        parts = [self._encode_text_features(texts[i : i + TEXT_BATCH]) for i in range(0, len(texts), TEXT_BATCH)]
        return unit_rows(np.concatenate(parts), "text")

    def encode_text_states(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Texts to float32 unit rows ``(B, D)`` and, for each, its token states ``(L, F_t)``.

        A text in which the tokenizer finds nothing at all keeps the first of its padding.
        """
        import torch

        rows, states = [np.zeros((0, self.dim), np.float32)], []
        for start in range(0, len(texts), TEXT_BATCH):
            chunk = texts[start : start + TEXT_BATCH]
            with torch.inference_mode():
                found = self._model.forward_intermediates(
                    text=self._tokenizer(list(chunk)).to(self._device),
                    text_indices=1,
                    normalize=False,
                    normalize_intermediates=True,
                )
            rows.append(unit_rows(found["text_features"].float().cpu().numpy(), "text"))
            padded = found["text_intermediates"][0].float().cpu().numpy()  # (B, max_tokens, F_t)
            states += [one[: max(1, self.count_tokens(text))] for one, text in zip(padded, chunk, strict=True)]
        return np.concatenate(rows), states

    def read_text(self, text: str) -> tuple[str, list[Piece | None]]:
        """``text`` as the tokenizer cleans it, and the characters of each of its tokens; see ``PlacedEncoder``.

        Raises:
            UsageError: the tokenizer is not one that knows them.
        """
        text = self._tokenizer.clean_fn(text)
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is None:
            spans: list[Piece | None] = [None, *_byte_pair_spans(self._tokenizer, text)]
            return text, [*spans[: self.max_tokens - 1], None]
        if not inner.is_fast or getattr(self._tokenizer, "tokenizer_mode", None):
            raise UsageError(f"cannot explain: the tokenizer of {self.name} does not say which words its tokens are of")
        found = inner(
            text,
            truncation=True,
            max_length=self.max_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        return text, places(found["offset_mapping"], found["special_tokens_mask"]) or [None]

    def seen(self, width: int, height: int) -> Box:
        """What the transform leaves of a picture: its middle, all of it, or all of it and a margin."""
        setting = self._model.visual.preprocess_cfg
        if setting["resize_mode"] == "squash":
            return WHOLE
        size = setting["size"]
        rows, columns = size[-2:] if isinstance(size, (tuple, list)) else (size, size)
        fit = min if setting["resize_mode"] == "longest" else max
        scale = fit(columns / width, rows / height)
        across, down = columns / (width * scale) / 2, rows / (height * scale) / 2
        return 0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down

    def text_parts(self) -> Parts:
        """The text tower without torch.

        Raises:
            NoTower: NumPy cannot run it.
        """
        from indexer.text_tower.from_openclip import take_apart

        return take_apart(self._model, self._tokenizer)

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` by the model's tokenizer, special tokens counted."""
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is None:  # CLIP's byte-pair tokenizer: its start and end tokens are added outside `encode`
            return len(self._tokenizer.encode(text)) + 2
        return len(inner(self._tokenizer.clean_fn(text))["input_ids"])

    def _encode_text_features(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            tokens = self._tokenizer(list(texts)).to(self._device)  # (B, L)
            features: np.ndarray = self._model.encode_text(tokens).float().cpu().numpy()
        return features


def _features(model: Any, pixels: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Prepared pictures ``(B, 3, H, W)`` to vectors ``(B, D)``, not normalised."""
    return (model.encode_image(pixels).float().cpu().numpy(),)


def _features_and_patches(model: Any, pixels: torch.Tensor) -> tuple[np.ndarray, ...]:
    """The same, and patches ``(B, P, F)``."""
    found = model.visual.forward_intermediates(pixels, indices=1, normalize_intermediates=True, output_fmt="NLC")
    return found["image_features"].float().cpu().numpy(), found["image_intermediates"][0].float().cpu().numpy()


def _byte_pair_spans(tokenizer: Any, text: str) -> Iterator[Piece]:
    """The characters of ``text``, already cleaned, of which each token of CLIP's tokenizer is.

    A token is a run of bytes, so one character may be in several tokens (Sennrich et al. 2016, over UTF-8). The loop is
    that of ``SimpleTokenizer.encode``.
    """
    for match in tokenizer.pat.finditer(text):
        owner = [match.start() + n for n, one in enumerate(match[0]) for _ in one.encode("utf-8")]  # of each byte
        letters = "".join(tokenizer.byte_encoder[byte] for byte in match[0].encode("utf-8"))
        start = 0
        for piece in tokenizer.bpe(letters).split(" "):
            end = start + len(piece.removesuffix("</w>"))
            yield owner[start], owner[end - 1] + 1
            start = end


def patch_shape(visual: Any) -> tuple[int, int] | None:
    """How many patches of a picture an image tower has and how many numbers each, None if it is no such tower.

    An attention pool with queries of its own (CoCa) leaves no room for a final norm over patches.
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer
    from timm.models import eva, vision_transformer

    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        rows, columns = visual.grid_size
        return rows * columns, visual.conv1.out_channels
    if isinstance(visual, TimmModel):
        trunk = visual.trunk
        computed = type(trunk).forward_features  # a subclass that computes otherwise may have other patches
        if computed in (vision_transformer.VisionTransformer.forward_features, eva.Eva.forward_features):
            return trunk.patch_embed.num_patches, trunk.embed_dim
    return None


def text_state_size(model: Any) -> int | None:
    """How many numbers each token state of a model's text tower has, None if the tower is not open_clip's own."""
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    if isinstance(model, CustomTextCLIP) and isinstance(model.text, TextTransformer):
        return int(model.text.width)
    return int(model.token_embedding.embedding_dim) if isinstance(model, CLIP) else None


def is_checkpoint_folder(folder: Path) -> bool:
    """Whether ``folder`` holds a model in open_clip's format."""
    return (folder / "open_clip_config.json").is_file()


def resolve(model: str) -> tuple[str, str | None]:
    """What open_clip calls the model, and its pretrained tag where that is a second word."""
    import open_clip

    if model.startswith(HUB):
        if len(model.removeprefix(HUB).split("/")) != 2:
            raise UsageError(f"{model!r} is not a repository of the hub: write hf-hub:owner/name")
        return model, None
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not is_checkpoint_folder(folder):
            raise UsageError(f"no model in folder {model!r}: it has no open_clip_config.json")
        return f"{LOCAL}{folder}", None
    known = [f"{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()]
    if model not in known:
        tags = [name for name in known if name.startswith(f"{model}/")]
        close = tags[:5] or difflib.get_close_matches(model, ["mini", *known], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UsageError(
            f"no model is called {model!r} and no folder has that name: {hint}"
            "`mini` is built in, open_clip.list_pretrained() lists the others as architecture/tag"
        )
    architecture, _, tag = model.partition("/")
    return architecture, tag


def create(target: str, tag: str | None) -> tuple[Any, Any, Any]:
    """The model, its image transform and its tokenizer."""
    import open_clip

    repository = _repository(target, tag)
    if repository is not None:
        require_reachable(repository)
    elif not any(path.suffix in WEIGHTS for path in Path(target.removeprefix(LOCAL)).iterdir()):
        raise FileNotFoundError("no weights beside open_clip_config.json")
    with undrawn():
        model, _, transform = open_clip.create_model_and_transforms(target, pretrained=tag, weights_only=True)
    return model, transform, open_clip.get_tokenizer(target)


def undrawn() -> AbstractContextManager[object]:
    """What is random in a new model is zero instead, in this thread, while the ``with`` lasts.

    open_clip draws all weights before it reads the real ones into their place: two seconds of a core for ViT-B/32.
    """
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "").endswith(("normal_", "uniform_", "erfinv_")):
                tensor = args[0] if args else kwargs["tensor"]
                tensor.detach().zero_()
                return tensor
            return func(*args, **(kwargs or {}))

    return Undrawn()


def _repository(target: str, tag: str | None) -> str | None:
    """The repository of the hub that holds the weights; None for a folder."""
    from open_clip.pretrained import get_pretrained_cfg

    if target.startswith(HUB):
        return target.removeprefix(HUB)
    return None if tag is None else "/".join(get_pretrained_cfg(target, tag)["hf_hub"].split("/")[:2])


def require_reachable(repository: str) -> None:
    """One short request, so that a machine without a network learns it in seconds and not after a row of retries.

    Does nothing where the weights, or an older copy of them, are already here.
    """
    from huggingface_hub import HfApi, constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    if not snapshots.is_dir() or not any(path.suffix in WEIGHTS for path in snapshots.rglob("*")):
        HfApi().model_info(repository, timeout=PROBE_SECONDS)


def digest(model: torch.nn.Module, setting: str) -> str:
    """BLAKE2b over the setting and every tensor of the model, by name."""
    digest = hashlib.blake2b(setting.encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def as_model_error(model: str) -> Iterator[None]:
    """Whatever goes wrong while foreign code loads a model becomes one line that says what to do."""
    try:
        yield
    except Exception as exc:
        reason = " ".join(str(exc).split())
        reason = reason[:160] + "…" if len(reason) > 160 else reason
        raise ModelError(
            f"cannot load model {model!r}: its weights are not on this machine and could not be fetched, or do not fit "
            f"({type(exc).__name__}: {reason}); check the network, or use --model mini, which needs none"
        ) from exc


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip and the hub report each step and each retry through logging; the one error afterwards says it all."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
