"""Linear layers in whole numbers: weights rounded to eight bits by output, what they are given to eight bits by row.

Dettmers et al. 2022 ("LLM.int8()", section 2.1) call it vector-wise quantisation. A row is one token, and each token
has its own scale, so that one with large numbers does not cost the others their digits. Products are summed exactly,
in 32 bits; everything between the layers stays in float32. Chips with VNNI or AMX multiply bytes four times as fast as
float32.
"""

from __future__ import annotations

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 127
SMALLEST_ROW = 1e-12
"""A row of zeros is divided by this instead of by zero."""


class IntegerLinear(nn.Module):
    """``x @ weight.T + bias`` for ``weight`` ``(out, in)`` in float32."""

    int8_original_dtype = torch.float32
    """What open_clip asks a layer for that has no floating-point weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scale = weight.abs().amax(dim=1).clamp_min(SMALLEST_ROW) / LARGEST  # (out,)
        self.register_buffer("rounded", (weight / scale[:, None]).round().to(torch.int8).t())  # (in, out)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", torch.zeros_like(scale) if bias is None else bias.detach().clone())
        self.rounded: Tensor
        self.scale: Tensor
        self.bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST_ROW) / LARGEST  # (R, 1)
        sums = torch._int_mm((rows / scale).round_().to(torch.int8), self.rounded)
        return torch.addcmul(self.bias, sums.float().mul_(scale), self.scale).view(*x.shape[:-1], -1)


class IntegerAttention(nn.Module):
    """``nn.MultiheadAttention`` of a sequence to itself ``(B, L, W)``, without a mask."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if attention.in_proj_weight is None or not attention.batch_first or attention.bias_k is not None:
            raise ValueError("an attention of a kind that is not known in whole numbers")
        self.heads = attention.num_heads
        self.qkv = IntegerLinear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = IntegerLinear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """Called as open_clip calls what this replaces."""
        if key is not x or value is not x or need_weights or attn_mask is not None:
            raise ValueError("an attention to something else, or with a mask")
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v)  # (B, heads, L, W / heads)
        return self.out(seen.transpose(1, 2).reshape(batch, length, width)), None


def in_integers(tower: nn.Module) -> nn.Module:
    """Replace the linear layers of an image tower, of timm or open_clip, in place; other attention stays as it is.

    Raises:
        ValueError: it has none, as a convolutional network.
    """
    if not _replace(tower):
        raise ValueError("it has no linear layers")
    return tower


def _replace(module: nn.Module) -> int:
    """Replace those below ``module``; how many."""
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.MultiheadAttention):
            if isinstance(module, ResidualAttentionBlock):
                setattr(module, name, IntegerAttention(child))
                count += 2
        elif type(child) is nn.Linear:
            setattr(module, name, IntegerLinear(child.weight.detach(), child.bias))
            count += 1
        else:
            count += _replace(child)
    return count
