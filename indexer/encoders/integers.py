"""Blocks of a vision transformer in whole numbers: weights and what they are multiplied with rounded to eight bits.

Chips multiply bytes three to eight times as fast as float32. Weights have a scale for each output. What they are
multiplied with has one scale for all pictures: so a vector does not depend on its neighbours. In all transformers some
channels are much larger than others, and one scale would leave the small ones no digits. So each channel is divided by
a number of its own first, by which the weights are multiplied (Xiao et al. 2023, "SmoothQuant", section 4). How large
the channels are is observed on the pictures of ``indexer/weights/calibration``. The division is part of the layer norm
before it, or of the weights that make the values, where that can be.

What is between the products stays in float32; attention is bfloat16 where the chip is faster with that.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

import open_clip.transformer
import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers import Attention, Mlp, activations
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from indexer.encoders.rounding import LARGEST, ZERO, Norm, cut, normed, rounded

SMALLEST = 1e-6
"""A channel or a row of weights that is always zero is taken for so large."""
MIGRATION = 0.75
"""How much of the differences between channels the weights take over: SmoothQuant's alpha. Of 0.5, 0.75 and 1 the best
on the sentence model of `mini`, whose channels differ twentyfold."""
LARGEST_WHERE_SUMS_ARE_CUT = 63
"""Of a weight, on chips that add two products in 16 bits and cut what is larger: 2 * 255 * 63 fits into them."""
ROWS = 400
"""Tokens that a feed-forward part takes at once: what is between its two products then stays in a core's cache."""

IN_PRODUCTS = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""Whether oneDNN applies an activation within a product sooner than torch does afterwards: with AVX2 it takes five
times as long."""

Ranges = Mapping[str, Tensor]
"""The largest number seen in each channel, ``(in,)``, of what each product of a tower is given, by name."""
QKV, OUT, UP, DOWN, PATCHES = "qkv", "out", "up", "down", "patches"
"""The products of a block, and that of a tower with its pixels."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the two kinds of blocks call by different names. Weights ``(out, in)``, biases and scales ``(out,)``."""

    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    heads: int
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    activation: nn.Module
    down: tuple[Tensor, Tensor]

    @property
    def post_op(self) -> tuple[str, str, float]:
        """The activation by oneDNN's name, its algorithm, and a gain: it is that of ``gain * x``, over ``gain``."""
        kind = type(self.activation)
        if isinstance(self.activation, nn.GELU):
            return "gelu", self.activation.approximate, 1.0
        if kind is activations.GELU:
            return "gelu", "none", 1.0
        if kind is activations.GELUTanh:
            return "gelu", "tanh", 1.0
        if kind in (open_clip.transformer.QuickGELU, activations.QuickGELU):
            return "swish", "", 1.702  # x sigmoid(1.702 x)
        raise ValueError(f"the activation {kind.__name__} is not known in whole numbers")


def bytes_times(
    rows: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor,
    kind: torch.dtype = torch.float32,
    post_op: str = "none",
    how: str = "",
) -> Tensor:
    """``(rows @ weight.T) * scale + bias`` of uint8 ``rows`` ``(R, in)``, through an activation by oneDNN's name.

    Args:
        packed: the weight, int8 ``(out, in)``, as ``onednn.qlinear_prepack`` returns it.
        scale, bias: float32 ``(out,)``.

    Returns:
        ``(R, out)`` of ``kind``.
    """
    zeros = torch.zeros(len(scale), dtype=torch.int8)
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, 0, packed, scale, zeros, bias, 1.0, 0, kind, post_op, [], how
    )
    return result


@cache
def largest_weight() -> int:
    """The largest whole number that a weight may be for its products to be exact here.

    Chips with AVX2 or AVX512 and without VNNI add the products of neighbours in 16 bits, and what does not fit is cut
    (Intel, "Optimization Reference Manual", on VPMADDUBSW): weights have seven bits there.
    """
    rows, weight = torch.full((16, 64), 255, dtype=torch.uint8), torch.full((16, 64), LARGEST, dtype=torch.int8)
    found = bytes_times(rows, torch.ops.onednn.qlinear_prepack(weight, None), torch.ones(16), torch.zeros(16))
    return LARGEST if bool((found == 255 * LARGEST * 64).all()) else LARGEST_WHERE_SUMS_ARE_CUT


class Product(nn.Module):
    """``x @ weight.T + bias`` for real numbers ``x`` that were divided by ``divisor`` ``(in,)`` and ``rounded``.

    Args:
        weight, bias: ``(out, in)`` and ``(out,)``.
        largest: what was seen of each channel of ``x``, ``(in,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor, largest: Tensor) -> None:
        super().__init__()
        share = largest.clamp_min(SMALLEST) ** MIGRATION
        share = share / weight.abs().amax(dim=0).clamp_min(SMALLEST) ** (1 - MIGRATION)  # (in,)
        self.divisor = share * ((largest / share).max().clamp_min(SMALLEST) / LARGEST)
        weight = weight * self.divisor
        self._scale = weight.abs().amax(dim=1).clamp_min(SMALLEST**2) / largest_weight()  # (out,)
        whole = (weight / self._scale[:, None]).round()
        self._packed = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8).contiguous(), None)
        # The bytes of x are too large by ZERO: what that adds to each output is taken off.
        self._bias = (bias.double() - ZERO * self._scale.double() * whole.double().sum(dim=1)).float()

    def forward(self, rows: Tensor, kind: torch.dtype = torch.float32, post_op: str = "none", how: str = "") -> Tensor:
        """uint8 ``(R, in)`` to ``(R, out)`` of ``kind``, through an activation by oneDNN's name."""
        return bytes_times(rows, self._packed, self._scale, self._bias, kind, post_op, how)


class IntegerBlock(nn.Module):
    """A block of open_clip's or timm's vision transformer in whole numbers.

    Args:
        ranges: of the inputs of ``QKV``, ``OUT``, ``UP`` and ``DOWN``.
        attention: the type in which queries, keys and values are multiplied with each other.

    Raises:
        ValueError: a block of a kind that is not known.
    """

    def __init__(self, block: nn.Module, ranges: Ranges, attention: torch.dtype) -> None:
        super().__init__()
        parts = _parts(block)
        self._heads, self._attention = parts.heads, attention
        self._post_op, self._how, gain = parts.post_op
        width = parts.qkv[0].shape[1]
        self._out = Product(*parts.out, ranges[OUT])
        # Attention averages values: what these are to be divided by, the weights that make them can be.
        root = (width / parts.heads) ** 0.5
        divisor = torch.cat([torch.full((width,), root), torch.ones(width), self._out.divisor])
        self._qkv = Product(parts.qkv[0] / divisor[:, None], parts.qkv[1] / divisor, ranges[QKV])
        self._up = Product(gain * parts.up[0], gain * parts.up[1], ranges[UP])
        self._down = Product(parts.down[0] / gain, parts.down[1], gain * ranges[DOWN])
        self._inverse = 1 / self._down.divisor
        self._wanted: int | None = None  # all tokens
        self._before_qkv, self._before_up = (
            Norm(norm.weight.detach() / product.divisor, norm.bias.detach() / product.divisor, norm.eps)
            for norm, product in zip(parts.norms, (self._qkv, self._up), strict=True)
        )

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """``(B, L, W)`` float32 to as many.

        Raises:
            ValueError: ``attn_mask``, which pictures do not need.
        """
        if attn_mask is not None:
            raise ValueError("an attention with a mask is not known in whole numbers")
        wanted = x[:, : self._wanted]  # (B, R, W)
        rows = self._attend(x)
        for part, before in zip(rows.split(ROWS), wanted.flatten(0, 1).split(ROWS), strict=True):
            active = self._activated(normed(part.add_(before), self._before_up))
            part += self._down(rounded(active.mul_(self._inverse)))
        return rows.view(wanted.shape)

    def of_first(self) -> IntegerBlock:
        """The same block, which gives only the first token, ``(B, 1, W)``; weights are shared."""
        block = copy.copy(self)
        block._wanted = 1
        return block

    def _activated(self, rows: Tensor) -> Tensor:
        """What the activation makes of the first product of the feed-forward part, ``(R, 4 W)`` float32."""
        if IN_PRODUCTS:
            return cast(Tensor, self._up(rows, torch.float32, self._post_op, self._how))
        found = self._up(rows)
        return F.gelu(found, approximate=self._how) if self._post_op == "gelu" else F.silu(found, inplace=True)

    def _attend(self, x: Tensor) -> Tensor:
        """What attention adds to the wanted tokens of ``x`` ``(B, L, W)``: ``(B * R, W)``."""
        batch, length, width = x.shape
        parts = self._qkv(normed(x.reshape(-1, width), self._before_qkv), self._attention)
        q, k, v = parts.view(batch, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, L, W / heads)
        seen = F.scaled_dot_product_attention(q[:, :, : self._wanted], k, v, scale=1.0).transpose(1, 2)
        return cast(Tensor, self._out(rounded(seen.reshape(-1, width))))

    def get_weight_dtype(self) -> torch.dtype:
        """What open_clip asks a block for: the type of what goes in."""
        return torch.float32


class IntegerPatches(nn.Module):
    """A convolution that cuts a picture into patches, in whole numbers."""

    def __init__(self, convolution: nn.Conv2d, largest: Tensor) -> None:
        super().__init__()
        self._side = cast("tuple[int, int]", convolution.kernel_size)
        bias = convolution.bias
        weight = convolution.weight.detach().flatten(1)
        self._product = Product(weight, weight.new_zeros(len(weight)) if bias is None else bias.detach(), largest)
        self._inverse = 1 / self._product.divisor

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, width, rows, columns)``."""
        batch, _, height, width = pixels.shape
        found = self._product(rounded(cut(pixels, self._side).flatten(0, 2) * self._inverse))
        of_each = found.view(batch, height // self._side[0], width // self._side[1], -1)
        return cast(Tensor, of_each.permute(0, 3, 1, 2))


class PooledTower(nn.Module):
    """An image tower of open_clip whose vector is made of the first token alone, of which alone the last block is asked
    then: it has no other reader, and for all tokens it is one block of twelve."""

    def __init__(self, whole: VisionTransformer) -> None:
        super().__init__()
        self._whole = whole
        blocks = whole.transformer.resblocks
        transformer, pooled = copy.copy(whole.transformer), copy.copy(whole)
        transformer._modules = dict(whole.transformer._modules)
        transformer.resblocks = nn.ModuleList([*blocks[:-1], cast(IntegerBlock, blocks[-1]).of_first()])
        pooled._modules = {**whole._modules, "transformer": transformer}
        self._pooled = pooled

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, D)``."""
        return cast(Tensor, self._pooled(pixels))

    def forward_intermediates(self, *given: Any, **settings: Any) -> Any:
        """As that of open_clip's tower: of all tokens."""
        return self._whole.forward_intermediates(*given, **settings)


def observe(tower: nn.Module, run: Callable[[], T]) -> tuple[dict[str, Tensor], T]:
    """How large the numbers are that ``run``, which uses ``tower`` in float32, multiplies in it; and what it returns.

    Raises:
        ValueError: the tower has no blocks that are known.
    """
    seen: dict[str, Tensor] = {}
    ours = threading.get_ident()  # other threads may be using the tower

    def note(name: str, numbers: Tensor) -> None:
        largest = numbers.detach().flatten(0, -2).abs().amax(dim=0)
        seen[name] = torch.maximum(seen[name], largest) if name in seen else largest

    def watched(name: str, module: nn.Module) -> Callable[..., Tensor]:
        plain = module.forward

        def forward(x: Tensor, *given: Any, **settings: Any) -> Tensor:
            if threading.get_ident() != ours:
                return cast(Tensor, plain(x, *given, **settings))
            if not isinstance(module, nn.Conv2d):
                return _step(_parts(module), x, lambda product, numbers: note(f"{name}.{product}", numbers))
            note(f"{name}.{PATCHES}", cut(x, cast("tuple[int, int]", module.kernel_size)))
            return cast(Tensor, plain(x))

        return forward

    watching = _replaceable(tower)
    try:
        for name, module in watching.items():
            module.forward = watched(name, module)
        result = run()
    finally:
        for module in watching.values():
            module.__dict__.pop("forward", None)
    return seen, result


def in_integers(tower: nn.Module, ranges: Ranges, attention: torch.dtype = torch.float32) -> nn.Module:
    """Replace the blocks of an image tower, of timm or open_clip, and what cuts the picture into patches, in place.

    What it returns is used as the tower was.

    Raises:
        ValueError: the tower has no blocks that are known.
        KeyError: ``ranges`` are those of another tower.
    """
    for name, module in _replaceable(tower).items():
        above, _, own = name.rpartition(".")
        if isinstance(module, nn.Conv2d):
            replaced: nn.Module = IntegerPatches(module, ranges[f"{name}.{PATCHES}"])
        else:
            of_block = {product: ranges[f"{name}.{product}"] for product in (QKV, OUT, UP, DOWN)}
            replaced = IntegerBlock(module, of_block, attention)
        setattr(tower.get_submodule(above), own, replaced)
    if type(tower) is VisionTransformer and tower.pool_type == "tok" and not tower.output_tokens:
        return PooledTower(tower)
    return tower


def _replaceable(tower: nn.Module) -> dict[str, nn.Module]:
    """What is known in whole numbers, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in tower.named_modules():
        if isinstance(module, (ResidualAttentionBlock, Block)):
            _parts(module)
            found[name] = module
    if not found:
        raise ValueError("it has no blocks that are known in whole numbers")
    for name, module in tower.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride and module.padding == (0, 0):
            found[name] = module
    return found


def _parts(block: Any) -> _Parts:
    """The parts of a block.

    Raises:
        ValueError: it is not of a kind that is known.
    """
    if type(block) is ResidualAttentionBlock:
        attention = block.attn
        if attention.in_proj_weight is not None and attention.batch_first and not hasattr(block, "ln_1_kv"):
            return _Parts(
                (block.ln_1, block.ln_2),
                attention.num_heads,
                (attention.in_proj_weight.detach(), attention.in_proj_bias.detach()),
                _linear(attention.out_proj, block.ls_1),
                _linear(block.mlp.c_fc),
                block.mlp.gelu,
                _linear(block.mlp.c_proj, block.ls_2),
            )
    if type(block) is Block and type(block.attn) is Attention and type(block.mlp) is Mlp:
        plain = (block.attn.q_norm, block.attn.k_norm, block.attn.norm, block.mlp.norm)
        if all(isinstance(one, nn.Identity) for one in plain) and block.attn.gate is None:
            return _Parts(
                (cast(nn.LayerNorm, block.norm1), cast(nn.LayerNorm, block.norm2)),
                block.attn.num_heads,
                _linear(block.attn.qkv),
                _linear(block.attn.proj, block.ls1),
                _linear(block.mlp.fc1),
                block.mlp.act,
                _linear(block.mlp.fc2, block.ls2),
            )
    raise ValueError(f"a {type(block).__name__} of a kind that is not known in whole numbers")


def _linear(layer: nn.Module, scale: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer, times what a layer scale after it multiplies with."""
    if not isinstance(layer, nn.Linear) or layer.weight.dtype is not torch.float32:
        raise ValueError(f"a {type(layer).__name__} in the place of a linear layer is not known in whole numbers")
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    gamma = getattr(scale, "gamma", None)
    return (weight, bias) if gamma is None else (weight * gamma.detach()[:, None], bias * gamma.detach())


def _step(parts: _Parts, x: Tensor, note: Callable[[str, Tensor], None]) -> Tensor:
    """What a block makes of ``x`` ``(B, L, W)`` in float32; ``note`` is told what each product is given."""
    batch, length, width = x.shape
    y = parts.norms[0](x)
    note(QKV, y)
    q, k, v = F.linear(y, *parts.qkv).view(batch, length, 3, parts.heads, -1).permute(2, 0, 3, 1, 4)
    seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
    note(OUT, seen)
    x = x + F.linear(seen, *parts.out)
    y = parts.norms[1](x)
    note(UP, y)
    y = parts.activation(F.linear(y, *parts.up))
    note(DOWN, y)
    return x + F.linear(y, *parts.down)
