"""Low-rank adapters on the attention of a tower: few numbers are trained, and in the end none of them is left over."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from indexer.errors import UsageError
from mmsearch.training.models import Tower

PROJECTIONS = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "qkv")
"""What attention calls the layers that make queries, keys and values: in BERT, in CLIP, SigLIP and ViT, in DistilBERT,
and in timm, where one layer makes all three."""
ADAPTER = "lora_"
"""Begins the name of an adapter's parameters."""


def add_lora(tower: Tower, rank: int, alpha: float) -> int:
    """Put a low-rank adapter beside each layer that makes queries, keys or values, and freeze all else but the head.

    A layer ``W x`` becomes ``W x + (alpha / rank) B A x`` with A ``(rank, in)`` random and B ``(out, rank)`` zero, so
    that the tower says at first what it said (Hu et al. 2022, section 4.1). The last stage of the tower, the head, is
    trained whole and has no adapters. ``tower.frozen`` becomes the number of stages before the first adapter; where
    there is no attention, as in an EfficientNet, all stages but the head are frozen.

    Call it once, after ``freeze``, which would let the weights themselves be trained. Tested with BERT, with CLIP's and
    ViT's layers of transformers, with timm's ViT and with open_clip's blocks (not with its variants that scale heads
    or normalise queries, which keep their weights in another way and get no adapters).

    Args:
        tower: what is adapted, in place.
        rank: of the adapters, at least 1.
        alpha: their weight, in units of the rank.

    Returns:
        The number of layers that got an adapter.

    Raises:
        UsageError: the rank or the weight is not positive, or peft is not installed.

    Example: a layer of 768 by 768 has 589 824 numbers; its adapter of rank 8 has 8 · (768 + 768) = 12 288.
    """
    if rank < 1 or alpha <= 0:
        raise UsageError(f"rank is {rank} and alpha is {alpha}; the rank must be at least 1 and alpha above 0")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as exc:
        raise UsageError("low-rank adapters need peft: pip install mmsearch[train]") from exc
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha}
    adapted = 0
    first = last = len(tower.stages) - 1
    for number, stage in enumerate(tower.stages[:last]):
        _open_attention(stage)
        names = [
            name
            for name, module in stage.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in PROJECTIONS
        ]
        if not names:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a stage has no configuration to write the base model's name into
            inject_adapter_in_model(LoraConfig(**settings, target_modules=names), stage)
        adapted += len(names)
        first = min(first, number)
    tower.freeze(first)
    for stage in tower.stages[first:last]:
        for name, parameter in stage.named_parameters():
            parameter.requires_grad_(ADAPTER in name)
    return adapted


def merge_lora(tower: Tower) -> None:
    """Fold the adapters into the weights they stand beside, and put the plain layers back: the end of ``add_lora``.

    The tower says what it said with its adapters. Which stages are trained remains as it is.

    Raises:
        UsageError: peft is not installed.
    """
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError as exc:
        raise UsageError("low-rank adapters need peft: pip install mmsearch[train]") from exc
    for stage in tower.stages:
        for name, module in list(stage.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                _replace(stage, name, module.get_base_layer())
        for name, module in list(stage.named_modules()):
            if isinstance(module, _OpenAttention):
                _replace(stage, name, module.plain)


class _OpenAttention(nn.Module):
    """Self-attention that computes as ``nn.MultiheadAttention`` does, with its first projection as a layer.

    That module uses its weights without calling a layer, so an adapter has nothing to stand beside. peft's way is to
    add the adapters to the weights before each call and to subtract them afterwards: the frozen weights become other
    parameters, rounded anew, and a run that is continued with the weights it began from is not the same to the bit.
    Here the parameters are the module's own, and nothing writes to them before the end.

    Args:
        plain: with one size for queries, keys and values, batches first, and neither dropout nor extra keys.
    """

    def __init__(self, plain: nn.MultiheadAttention) -> None:
        super().__init__()
        self._plain = (plain,)  # in a tuple: its parameters are those of the two layers
        self.qkv = nn.Linear(plain.embed_dim, 3 * plain.embed_dim, bias=plain.in_proj_bias is not None, device="meta")
        assert plain.in_proj_weight is not None
        self.qkv.weight = plain.in_proj_weight
        if plain.in_proj_bias is not None:
            self.qkv.bias = plain.in_proj_bias
        self.out_proj = plain.out_proj

    @property
    def plain(self) -> nn.MultiheadAttention:
        return self._plain[0]

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """States ``(B, L, W)``, given three times, and an additive mask ``(L, L)`` or ``(B * heads, L, L)``."""
        heads = self.plain.num_heads
        q, k, v = self.qkv(query).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, L, W / heads)
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (-1, heads))
        states = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(states.transpose(1, 2).flatten(2)), None


def _open_attention(stage: nn.Module) -> None:
    """Replace the attention of open_clip's blocks by ``_OpenAttention``."""
    from open_clip.transformer import ResidualAttentionBlock

    for module in list(stage.modules()):
        if isinstance(module, ResidualAttentionBlock) and not hasattr(module, "ln_1_kv"):  # that has cross-attention
            module.attn = _OpenAttention(module.attn)


def _replace(whole: nn.Module, name: str, module: Any) -> None:
    """Put ``module`` where ``whole`` has a submodule called ``name``."""
    parent, _, last = name.rpartition(".")
    setattr(whole.get_submodule(parent), last, module)
