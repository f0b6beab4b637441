"""Dual encoders of Hugging Face transformers as training sees them: two rows of stages, layer by layer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import new as new_picture
from torch import Tensor, nn

from indexer.encoders.huggingface import (
    KINDS,
    PREFIX,
    Pair,
    as_pair,
    open_pair,
    reading,
    require_here_or_reachable,
    silence,
)
from indexer.errors import UsageError
from mmsearch.training.models import DualModel, State, Tower

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

AND = "+"
"""Between the vision model and the text model of a new pair."""
LAYERED_VISION = ("clip_vision_model", "siglip_vision_model", "vit")
LAYERED_TEXT = ("align_text_model", "bert", "clip_text_model", "roberta", "siglip_text_model", "xlm-roberta")
"""What ``model_type`` says of the towers that are taken apart; others are one stage below their projection."""
LEGACY_END = 2
"""An ``eos_token_id`` that CLIP's first configurations gave wrongly: there the end of a text is its largest number."""


class HuggingFacePair(DualModel):
    """CLIP, SigLIP, ALIGN or a ``VisionTextDualEncoderModel``, from weights, or a new one from two models.

    ======================  ============================================================================
    ``hf:owner/name``       a repository of the hub (or ``hf:`` and a folder) that holds both towers
    a folder                the same
    ``hf:VISION+TEXT``      two folders or repositories: a vision and a text model, and new projections to
                            512 numbers; both must give a pooled output (ViT, CLIP's, BERT, RoBERTa do)
    ======================  ============================================================================

    CLIP's, SigLIP's and ViT's image towers are the embeddings, each layer, and pooling with projection; so are the
    text towers of CLIP, SigLIP, ALIGN, BERT and RoBERTa. ALIGN's image tower is its stem, each block and pooling. Any
    other vision or text model is one stage and its projection the second. Tested with small random models: these, and
    a DINOv2 for the other kind.

    Raises:
        UsageError: the name is neither a folder with such a model nor could it be a repository, or one half of a
            new pair gives no pooled output.
        ModelError: the weights are neither here nor reachable, or do not fit.
    """

    def __init__(self, start: str) -> None:
        halves = _halves(start)
        pair = open_pair(start) if halves is None else _joined(start, *halves)
        model = pair.model
        # ALIGN keeps what cosines are divided by.
        divided = model.config.model_type == "align"
        scale = 1.0 / model.temperature.item() if divided else model.logit_scale.exp().item()
        bias = model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0
        super().__init__(Tower(_image_stages(model)), Tower(_text_stages(model)), scale, bias)
        self._pair = pair
        self.eval()

    def prepare(self, picture: Image) -> np.ndarray:
        return self._pair.prepare(picture)

    def tokens(self, texts: Sequence[str]) -> State:
        """Token numbers and the mask of those that are read, both ``(B, L)``."""
        return self._pair.tokens(texts)

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        model = self._pair.model
        if model.config.model_type == "align":
            model.temperature.fill_(float((-self.logit_scale).exp()))
        else:
            model.logit_scale.fill_(float(self.logit_scale))
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(float(self.logit_bias))
        with silence():
            for part in (model, self._pair.processor, self._pair.tokenizer):
                part.save_pretrained(folder)


def layered_text(model: Any) -> list[nn.Module] | None:
    """The stages of a BERT-like ``model`` below its pooling, or None where it is of another kind.

    They take token numbers and mask, ``(B, L)``, and give token states ``(B, L, W)``, the mask and the numbers.
    """
    if model.config.model_type not in LAYERED_TEXT:
        return None
    causal = model.config.model_type == "clip_text_model"
    return [_TokenEmbeddings(model.embeddings), *(_TextLayer(layer, causal) for layer in _layers(model))]


def _halves(start: str) -> tuple[str, str] | None:
    """The names of a new pair's two models; None where ``start`` names one model."""
    names = start.removeprefix(PREFIX)
    if AND not in names or not start.startswith(PREFIX) or Path(names).expanduser().is_dir():
        return None
    vision, _, text = names.partition(AND)
    if not vision or not text or AND in text:
        raise UsageError(f"{start!r} does not name a vision and a text model: write {PREFIX}VISION{AND}TEXT")
    return vision, text


def _joined(start: str, vision: str, text: str) -> Pair:
    """A new pair of two models, its projections random."""
    vision, text = expanduser(vision), expanduser(text)
    with reading(start):
        from transformers import AutoConfig, VisionTextDualEncoderModel

        for name in (vision, text):
            require_here_or_reachable(name)
        kinds = [AutoConfig.from_pretrained(name).model_type for name in (vision, text)]
        # Of the models that have both towers, transformers takes only CLIP's vision half out.
        double = [kind for kind, taken in zip(kinds, ("clip", None), strict=True) if kind in KINDS and kind != taken]
        if not double:
            model = VisionTextDualEncoderModel.from_vision_text_pretrained(
                vision, text, vision_use_safetensors=True, text_use_safetensors=True
            )
            pair = as_pair(model, vision, text)
            pooled = _gives_pooled(pair)
    if double:
        raise UsageError(f"{start!r}: a model of the type {double[0]!r} has both towers already; name one of each kind")
    if not all(pooled):
        name = text if pooled[0] else vision
        raise UsageError(f"{start!r}: {name} gives no pooled output to project; ViT, BERT and RoBERTa do")
    return pair


@torch.no_grad()
def _gives_pooled(pair: Pair) -> tuple[bool, bool]:
    """Whether the vision and the text model of a new pair give a pooled output, found by asking them."""
    pixels = torch.from_numpy(pair.prepare(new_picture("RGB", (64, 64))))[None]
    ids, mask = pair.tokens(["a"])
    outputs = (pair.model.vision_model(pixel_values=pixels), pair.model.text_model(input_ids=ids, attention_mask=mask))
    image, text = (getattr(output, "pooler_output", None) is not None for output in outputs)
    return image, text


def _image_stages(model: Any) -> list[nn.Module]:
    vision = model.vision_model
    vision = getattr(vision, "vision_model", vision)  # CLIP's own class has one more shell before version 5
    kind = vision.config.model_type
    projection = getattr(model, "visual_projection", None)
    if model.config.model_type == "align":
        blocks = [_ImageLayer(block) for block in vision.encoder.blocks]
        return [_Embeddings(vision.embeddings), *blocks, _AveragePool(vision.pooler)]
    if kind not in LAYERED_VISION:
        return [_VisionTrunk(model.vision_model), _ImageHead(None, None, projection)]
    before = getattr(vision, "pre_layrnorm", None)
    norm = vision.layernorm if kind == "vit" else vision.post_layernorm
    pooler = {"vit": "pooler", "siglip_vision_model": "head"}.get(kind)
    head = _ImageHead(norm, None if pooler is None else getattr(vision, pooler), projection)
    return [_Embeddings(vision.embeddings, before), *(_ImageLayer(layer) for layer in _layers(vision)), head]


def _text_stages(model: Any) -> list[nn.Module]:
    text = model.text_model
    text = getattr(text, "text_model", text)
    kind = text.config.model_type
    layers = layered_text(text)
    if layers is None:
        return [_TextTrunk(text), _PooledHead(None, model.text_projection)]
    if kind == "clip_text_model":
        return [*layers, _EndHead(text.final_layer_norm, model.text_projection, text.config.eos_token_id)]
    if kind == "siglip_text_model":
        return [*layers, _LastHead(text.final_layer_norm, text.head)]
    pooler = _FirstToken() if model.config.model_type == "align" else text.pooler
    return [*layers, _PooledHead(pooler, model.text_projection)]


def _layers(model: Any) -> nn.ModuleList:
    """The list of layers, wherever the architecture keeps it."""
    within = getattr(model, "encoder", model)
    layers: nn.ModuleList = within.layer if hasattr(within, "layer") else within.layers
    return layers


class _Embeddings(nn.Module):
    """Pixels ``(B, 3, H, W)`` to the first states, ``(B, P, W)`` or a feature map."""

    def __init__(self, module: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.module, self.norm = module, norm

    def forward(self, state: State) -> State:
        hidden = self.module(state[0])
        return (hidden if self.norm is None else self.norm(hidden),)


class _Layer(nn.Module):
    """A layer, whichever version of transformers it is from."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        # Before version 5 CLIP's layers take a second mask, and some layers give a tuple.
        asked = inspect.signature(type(module).forward).parameters
        self.more = {"causal_attention_mask": None} if "causal_attention_mask" in asked else {}
        self.masked = len(asked) > 2  # blocks of convolutions take no mask

    def states(self, hidden: Tensor, blocked: Tensor | None) -> Tensor:
        out = self.module(hidden, blocked, **self.more) if self.masked else self.module(hidden)
        states: Tensor = out[0] if isinstance(out, tuple) else out
        return states


class _ImageLayer(_Layer):
    """One layer of an image tower, states to states."""

    def forward(self, state: State) -> State:
        return (self.states(state[0], None),)


class _AveragePool(nn.Module):
    """ALIGN's last feature map to ``(B, D)``; its image tower has no projection."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, state: State) -> State:
        return (self.module(state[0]).flatten(1),)


class _VisionTrunk(nn.Module):
    """A whole vision model: pixels to its pooled output ``(B, W)``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, state: State) -> State:
        return (self.module(pixel_values=state[0]).pooler_output,)


class _ImageHead(nn.Module):
    """Normalisation, pooling (of the first token where there is no pooler) and projection to ``(B, D)``."""

    def __init__(self, norm: nn.Module | None, pooler: nn.Module | None, projection: nn.Module | None) -> None:
        super().__init__()
        self.norm, self.pooler, self.projection = norm, pooler, projection

    def forward(self, state: State) -> State:
        rows = state[0]
        if self.norm is not None:
            states = self.norm(rows)  # (B, P, W)
            rows = states[:, 0] if self.pooler is None else self.pooler(states)
        return (rows if self.projection is None else self.projection(rows),)


class _TokenEmbeddings(nn.Module):
    """Token numbers and mask, ``(B, L)``, to the first token states ``(B, L, W)``, the mask and the numbers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, state: State) -> State:
        ids, mask = state
        return self.module(input_ids=ids), mask, ids


class _TextLayer(_Layer):
    """One layer of a text tower; in CLIP's, a token sees only those before it."""

    def __init__(self, module: nn.Module, causal: bool) -> None:
        super().__init__(module)
        self.causal = causal

    def forward(self, state: State) -> State:
        hidden, mask, ids = state
        seen = mask[:, None, None, :].bool()  # (B, 1, 1, L)
        if self.causal:
            length = mask.shape[1]
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()  # (B, 1, L, L)
        blocked = torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, torch.finfo(hidden.dtype).min)
        return self.states(hidden, blocked), mask, ids


class _TextTrunk(nn.Module):
    """A whole text model: token numbers and mask to its pooled output ``(B, W)``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, state: State) -> State:
        ids, mask = state
        return (self.module(input_ids=ids, attention_mask=mask).pooler_output,)


class _FirstToken(nn.Module):
    """States ``(B, L, W)`` to those of the first token ``(B, W)``."""

    def forward(self, states: Tensor) -> Tensor:
        return states[:, 0]


class _PooledHead(nn.Module):
    """The model's own pooling, where that is not done yet, and projection to ``(B, D)``."""

    def __init__(self, pooler: nn.Module | None, projection: nn.Module) -> None:
        super().__init__()
        self.pooler, self.projection = pooler, projection

    def forward(self, state: State) -> State:
        rows = state[0] if self.pooler is None else self.pooler(state[0])
        return (self.projection(rows),)


class _EndHead(nn.Module):
    """CLIP's: normalisation and projection of the first token that ends the text."""

    def __init__(self, norm: nn.Module, projection: nn.Module, end: int) -> None:
        super().__init__()
        self.norm, self.projection, self.end = norm, projection, end

    def forward(self, state: State) -> State:
        hidden, _, ids = state
        where = ids.int() if self.end == LEGACY_END else (ids == self.end).int()
        rows = torch.arange(len(ids), device=ids.device)
        return (self.projection(self.norm(hidden)[rows, where.argmax(dim=1)]),)


class _LastHead(nn.Module):
    """SigLIP's: normalisation and projection of the last token, padding or not."""

    def __init__(self, norm: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.norm, self.projection = norm, projection

    def forward(self, state: State) -> State:
        return (self.projection(self.norm(state[0])[:, -1]),)
