"""open_clip's models as training sees them: two rows of stages, block by block, from weights or from nothing."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import VisionTransformer, text_global_pool
from safetensors.torch import save_file
from timm.models import convnext, efficientnet, resnet, vision_transformer
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from indexer.encoders.openclip import as_model_error, create, quiet, resolve
from indexer.errors import UsageError
from mmsearch.training.models import DualModel, State, Tower
from mmsearch.training.models.huggingface import layered_text

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"
PICTURE_SETTINGS = ("mean", "std", "interpolation", "resize_mode", "fill_color")
"""What ``preprocess_cfg`` says of how a picture is prepared; its size stands with the image tower."""
VIT_HEAD = ("attn_pool", "fc_norm", "head_drop", "head")
FEATURES_END = ("norm", "norm_pre", "conv_head", "bn2")
"""What the head of a timm model does to features before the model's own ``forward_head``, in this order."""
BORN_FROM_NOTHING = "none: it began with random weights"


class OpenClipModel(DualModel):
    """A model of open_clip (Ilharco et al. 2021), from its weights or, to be trained from nothing, by its architecture.

    ==============================  ==============================================================
    ``ViT-B-32/laion2b_s34b_b79k``  architecture / pretrained tag
    ``hf-hub:timm/ViT-B-16-SigLIP`` a repository of the hub in open_clip's format
    a folder                        ``open_clip_config.json`` beside ``*.safetensors``
    ``ViT-B-32``                    one of ``open_clip.list_models()``, with random weights
    ``small.json``                  a configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``, or all of them under
                                    ``model_cfg``), with random weights; a tokenizer's files may lie beside it
    ==============================  ==============================================================

    The stages of an image tower are: a Vision Transformer's patches, each block, and pooling with projection; a timm
    ViT's likewise; the stem and the stages of CLIP's ResNet and of timm's ConvNeXt, EfficientNet and ResNet, and what
    pools and projects; any other timm model as one stage, and its projection. Those of a text tower are the tokens,
    each block, and pooling with projection; a transformers text model goes by layers if it is a BERT or a RoBERTa, and
    is one stage otherwise. Tested with small random models: CLIP with a ViT, a ResNet and a RoBERTa, SigLIP with timm's
    ViT, CLIP with timm's ConvNeXt, EfficientNet, ResNet and VisionTransformerRelPos, and CoCa, whose decoder is kept as
    it is.

    A saved model whose text tower is one of transformers names that tower's configuration as the original did: it must
    be at hand, or reachable, when the folder is opened.

    Raises:
        UsageError: there is no such name, or the JSON file describes no model.
        ModelError: the weights are neither here nor reachable, or do not fit.
    """

    def __init__(self, start: str) -> None:
        if start in open_clip.list_models() or Path(start).suffix == ".json":
            self.licence = BORN_FROM_NOTHING
            whole, transform, tokenizer, config = _from_nothing(start)
        else:
            target, tag = resolve(start)
            with quiet(), as_model_error(start):
                whole, transform, tokenizer = create(target, tag)
                config = open_clip.get_model_config(target)
        bias = 0.0 if whole.logit_bias is None else whole.logit_bias.item()
        super().__init__(
            Tower(_image_stages(whole.visual)),
            Tower(_text_stages(getattr(whole, "text", whole))),
            whole.logit_scale.exp().item(),
            bias,
        )
        self._whole = (whole,)  # in a tuple: every parameter belongs to a stage, and is not counted twice
        self._transform = transform
        self._tokenizer = tokenizer
        self._config = config
        self.eval()

    def prepare(self, picture: Image) -> np.ndarray:
        pixels: np.ndarray = self._transform(picture).numpy()
        return pixels

    def tokens(self, texts: Sequence[str]) -> State:
        """Token numbers ``(B, L)``, L the model's context length."""
        return (self._tokenizer(list(texts)),)

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        (whole,) = self._whole
        folder.mkdir(parents=True, exist_ok=True)
        # Clones: tensors that share memory are refused, and the library wants every name of theirs.
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in whole.state_dict().items()}
        shape = whole.logit_scale.shape
        tensors["logit_scale"] = self.logit_scale.detach().cpu().reshape(shape).clone()
        config = copy.deepcopy(self._config)
        if whole.logit_bias is not None or float(self.logit_bias):
            config["init_logit_bias"] = float(self.logit_bias)  # without it the model would have no place for a bias
            tensors["logit_bias"] = self.logit_bias.detach().cpu().reshape(shape).clone()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
        pictures = open_clip.get_model_preprocess_cfg(whole)
        described = {
            "model_cfg": config,
            "preprocess_cfg": {name: pictures[name] for name in PICTURE_SETTINGS if name in pictures},
        }
        (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        if isinstance(self._tokenizer, HFTokenizer):
            self._tokenizer.save_pretrained(folder)


def _from_nothing(start: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    """A model with random weights, its image transform, its tokenizer and its configuration."""
    if Path(start).suffix == ".json":
        config, pictures = _read_config(Path(start).expanduser())
    else:
        config, pictures = open_clip.get_model_config(start), {}
    text = config["text_cfg"]
    with tempfile.TemporaryDirectory() as empty, quiet(), as_model_error(start):
        # A folder with a configuration alone: the library's other way is to register the file for the whole process.
        described = {"model_cfg": config, "preprocess_cfg": pictures}
        (Path(empty) / CONFIG).write_text(json.dumps(described), encoding="utf-8")
        whole, _, transform = open_clip.create_model_and_transforms(
            f"local-dir:{empty}", load_weights=False, pretrained_text=False
        )
        if text.get("hf_tokenizer_name"):
            beside = Path(start).expanduser().parent
            here = Path(start).suffix == ".json" and (beside / TOKENIZER_CONFIG).is_file()
            tokenizer = HFTokenizer(
                str(beside) if here else text["hf_tokenizer_name"],
                context_length=text.get("context_length", whole.context_length),
                tokenizer_mode=text.get("tokenizer_mode"),
                **text.get("tokenizer_kwargs", {}),
            )
        else:
            tokenizer = open_clip.get_tokenizer(f"local-dir:{empty}")
    return whole, transform, tokenizer, config


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a JSON file says of a model and of its pictures."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise UsageError(f"cannot read the model configuration {path}: {exc}") from exc
    config = described.get("model_cfg", described) if isinstance(described, dict) else {}
    for name in ("embed_dim", "vision_cfg", "text_cfg"):
        if name not in config:
            raise UsageError(f"{path} describes no open_clip model: it has no {name!r}")
    return config, described.get("preprocess_cfg", {})


def _image_stages(visual: nn.Module) -> list[nn.Module]:
    if isinstance(visual, VisionTransformer):
        return [_Patches(visual), *map(_Block, visual.transformer.resblocks), _PooledPatches(visual)]
    if isinstance(visual, ModifiedResNet):
        layers = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        return [_ResNetStem(visual), *map(_Block, layers), _Block(visual.attnpool)]
    if isinstance(visual, TimmModel):
        return _timm_stages(visual.trunk, visual.head)
    return [_Block(visual)]


def _timm_stages(trunk: Any, head: nn.Module) -> list[nn.Module]:
    """The stages of a timm model and of what open_clip puts on top."""
    computed = type(trunk).forward_features  # a subclass that computes otherwise is not taken apart
    if computed is vision_transformer.VisionTransformer.forward_features:
        return [_TimmPatches(trunk), *map(_Block, trunk.blocks), _TimmHead(trunk, ("norm", *VIT_HEAD), head)]
    if computed is convnext.ConvNeXt.forward_features:
        return [_Block(trunk.stem), *map(_Block, trunk.stages), _TimmHead(trunk, ("norm_pre", "head"), head)]
    if computed is efficientnet.EfficientNet.forward_features:
        top = ("conv_head", "bn2", "global_pool", "classifier")
        stem = nn.Sequential(trunk.conv_stem, trunk.bn1)
        return [_Block(stem), *map(_Block, trunk.blocks), _TimmHead(trunk, top, head)]
    if computed is resnet.ResNet.forward_features:
        stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.act1, trunk.maxpool)
        layers = (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
        return [_Block(stem), *map(_Block, layers), _TimmHead(trunk, ("global_pool", "fc"), head)]
    if any(True for _ in head.parameters()):
        return [_Block(trunk), _Block(head)]
    return [_Block(nn.Sequential(trunk, head))]


def _text_stages(text: Any) -> list[nn.Module]:
    """The stages of a text tower: that of a model, or the model itself where it keeps the tower's parts."""
    if isinstance(text, HFTextEncoder):
        layers = layered_text(text.transformer)
        below = [_TextTrunk(text)] if layers is None else [_Mask(text.config.pad_token_id, layers[0]), *layers[1:]]
        return [*below, _TextModelHead(text)]
    return [_Tokens(text), *(_TextBlock(text, block) for block in text.transformer.resblocks), _PooledTokens(text)]


class _Borrowed(nn.Module):
    """Some parts of a larger module, which is kept out of sight: its methods compute, but only these parts are here."""

    def __init__(self, whole: Any, names: Sequence[str]) -> None:
        super().__init__()
        self._whole = (whole,)
        for name in names:
            part = getattr(whole, name, None)
            if isinstance(part, (nn.Module, nn.Parameter)):
                setattr(self, name, part)

    @property
    def whole(self) -> Any:
        return self._whole[0]


class _Block(nn.Module):
    """A module of one tensor, features to features."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, state: State) -> State:
        return (self.module(state[0]),)


class _Patches(_Borrowed):
    """Pixels ``(B, 3, H, W)`` to the states of the class token and the patches ``(B, 1 + P, W)``."""

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__(visual, ("conv1", "class_embedding", "positional_embedding", "patch_dropout", "ln_pre"))

    def forward(self, state: State) -> State:
        return (self.whole._embeds(state[0]),)


class _PooledPatches(_Borrowed):
    """States ``(B, 1 + P, W)`` to ``(B, D)``."""

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__(visual, ("attn_pool", "attn_pool_contrastive", "ln_post", "proj"))

    def forward(self, state: State) -> State:
        pooled, _ = self.whole._pool(state[0])
        return (pooled if self.whole.proj is None else pooled @ self.whole.proj,)


class _ResNetStem(_Borrowed):
    """Pixels to the first feature map of CLIP's ResNet."""

    def __init__(self, visual: ModifiedResNet) -> None:
        parts = (f"{part}{number}" for number in (1, 2, 3) for part in ("conv", "bn", "act"))
        super().__init__(visual, (*parts, "avgpool"))

    def forward(self, state: State) -> State:
        return (self.whole.stem(state[0]),)


class _TimmPatches(_Borrowed):
    """Pixels to the states of a timm ViT's tokens and patches ``(B, T + P, W)``."""

    def __init__(self, trunk: Any) -> None:
        names = ("patch_embed", "cls_token", "reg_token", "pos_embed", "pos_drop", "patch_drop", "norm_pre")
        super().__init__(trunk, names)

    def forward(self, state: State) -> State:
        trunk = self.whole
        return (trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(state[0])))),)


class _TimmHead(_Borrowed):
    """What a timm model does after its last block, and the projection that open_clip adds, to ``(B, D)``."""

    def __init__(self, trunk: Any, names: Sequence[str], projection: nn.Module) -> None:
        super().__init__(trunk, names)
        self.names = [name for name in FEATURES_END if name in names]
        self.projection = projection

    def forward(self, state: State) -> State:
        features = state[0]
        for name in self.names:
            features = getattr(self.whole, name)(features)
        return (self.projection(self.whole.forward_head(features)),)


class _Tokens(_Borrowed):
    """Token numbers ``(B, L)`` to the first token states ``(B, L, W)`` and the numbers.

    CoCa's tower has a class token after the others.
    """

    def __init__(self, text: Any) -> None:
        super().__init__(text, ("token_embedding", "positional_embedding", "cls_emb"))

    def forward(self, state: State) -> State:
        (tokens,) = state
        text = self.whole
        states = text.token_embedding(tokens)
        if getattr(text, "cls_emb", None) is not None:
            states = torch.cat([states, text.cls_emb.expand(len(tokens), 1, -1)], dim=1)
        return states + text.positional_embedding[: states.shape[1]], tokens


class _TextBlock(_Borrowed):
    """One block of a text tower, and what it must not look at: later tokens, padding."""

    def __init__(self, text: Any, block: nn.Module) -> None:
        super().__init__(text, ())
        self.module = block
        self.by_padding = bool(getattr(text, "use_pad_mask", False)) or getattr(text, "cls_emb", None) is not None
        self.register_buffer("later", text.attn_mask, persistent=False)
        self.later: Tensor | None

    def forward(self, state: State) -> State:
        states, tokens = state
        length = states.shape[1]
        mask = None if self.later is None else self.later[:length, :length]
        if self.by_padding:
            padding = self.whole._build_additive_mask(tokens, length, states.dtype)  # (B * heads, L, L)
            mask = padding if mask is None else mask + padding
        return self.module(states, attn_mask=mask), tokens


class _PooledTokens(_Borrowed):
    """Token states ``(B, L, W)`` and numbers to ``(B, D)``."""

    def __init__(self, text: Any) -> None:
        super().__init__(text, ("ln_final", "text_projection"))
        flat = not hasattr(text, "pool_type")  # a model that keeps the tower's parts has other names for these two
        self.pool_type = text.text_pool_type if flat else text.pool_type
        self.end = text.text_eos_id if flat else text.eos_id

    def forward(self, state: State) -> State:
        states, tokens = state
        text = self.whole
        if getattr(text, "cls_emb", None) is not None:
            rows = text.ln_final(states[:, -1])
        else:
            rows = text_global_pool(text.ln_final(states), tokens, self.pool_type, eos_token_id=self.end)
        projection = text.text_projection
        if projection is None:
            return (rows,)
        return (projection(rows) if isinstance(projection, nn.Module) else rows @ projection,)


class _Mask(nn.Module):
    """Token numbers ``(B, L)`` to what a transformers model begins with; its mask is what is no padding."""

    def __init__(self, padding: int, module: nn.Module) -> None:
        super().__init__()
        self.padding = padding
        self.module = module

    def forward(self, state: State) -> State:
        (tokens,) = state
        embedded: State = self.module((tokens, (tokens != self.padding).long()))
        return embedded


class _TextTrunk(_Borrowed):
    """A whole transformers model: token numbers to token states ``(B, L, W)``, mask and numbers."""

    def __init__(self, text: HFTextEncoder) -> None:
        super().__init__(text, ("transformer",))

    def forward(self, state: State) -> State:
        (tokens,) = state
        mask = (tokens != self.whole.config.pad_token_id).long()
        return self.whole.transformer(input_ids=tokens, attention_mask=mask).last_hidden_state, mask, tokens


class _TextModelHead(_Borrowed):
    """The pooling that open_clip puts on a transformers model, and its projection, to ``(B, D)``."""

    def __init__(self, text: HFTextEncoder) -> None:
        super().__init__(text, ("pooler", "proj"))
        self.inner = getattr(text.transformer, "pooler", None)

    def forward(self, state: State) -> State:
        states, mask, _ = state
        inner = None if self.inner is None else self.inner(states)
        output = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=inner)
        return (self.whole.proj(self.whole.pooler(output, mask)),)
