"""The fusion model in torch: the words of a text and the patches of a picture in, how well they fit together out.

A picture's patches are compressed once, while it is indexed, to T tokens of W numbers (EDJE, Taraday et al. 2025,
arXiv:2510.06820); the words of a text meet those tokens in a small joint encoder. Three ways to meet are here, so that
the choice can be measured:

    cross    words look at the tokens; what each found is compared with what it is, and a gate weighs the words
             (stacked cross attention, Lee et al. 2018; the similarity vectors of SGRAF, Diao et al. 2021)
    merged   one stream of words and tokens, early fusion (ViLT, Kim et al. 2021)
    gated    each side is pooled by itself, a gate mixes the two, late fusion (Arevalo et al. 2017)

All of them end in one number, the logit of image-text matching. Queries run what ``mmsearch.rerank.export`` makes of
this file; nothing that answers them imports it.

Letters: B pictures of P patches with F numbers; I pictures of T tokens with W numbers; C texts of L words with S
numbers; K pairs of a text and a picture; D the width of the joint encoder, H its heads, E = D / H; N the numbers of a
comparison. G groups of n texts and m pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indexer.errors import UsageError

FUSIONS = ("cross", "merged", "gated")
MASKED = -1e9
"""Added to the logit of a word that only pads; finite, so that a text of padding alone gives no NaN."""
SHARPNESS = 2.0
"""The logarithm of what cosines are multiplied by in attention, to begin with."""
FINE = 2.5
"""Likewise of the weighted cosine in the logit."""
SPREAD = 0.02
"""Standard deviation of what is learned from nothing."""


@dataclass(frozen=True, slots=True)
class FusionShape:
    """Sizes of a fusion model.

    Raises:
        UsageError: they do not fit together.
    """

    grid: int
    """The patches of a picture form a square of so many a side: P is its square."""
    patch_size: int
    """F."""
    state_size: int
    """S."""
    side: int = 8
    """The tokens form a square of so many a side: T is its square."""
    width: int = 128
    """W."""
    hidden: int = 0
    """Size of the compressor's hidden layer; 0 for none."""
    fusion: str = "cross"
    """One of ``FUSIONS``."""
    size: int = 192
    """D."""
    layers: int = 1
    """Looks of ``cross``; layers of self-attention of ``merged``, and of each side of ``gated``."""
    heads: int = 4
    """H."""
    products: int = 128
    """N."""

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise UsageError(f"fusion is {self.fusion!r}; it must be one of {', '.join(FUSIONS)}")
        for name in ("grid", "patch_size", "state_size", "side", "width", "size", "layers", "heads", "products"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden < 0:
            raise UsageError(f"hidden is {self.hidden}; it must be 0 (none) or more")
        if self.side > self.grid:
            raise UsageError(f"side is {self.side}, but the patches are only {self.grid} a side; make it smaller")
        if self.size % self.heads:
            raise UsageError(f"size is {self.size}, which {self.heads} heads cannot share; make it a multiple of them")


class Seen(NamedTuple):
    """What is said of K pairs."""

    logits: Tensor
    """``(K,)``, higher is better."""
    attention: Tensor
    """How much of each word's look goes to each token ``(K, L, T)``: the mean over the heads; rows sum to 1."""
    weights: Tensor
    """How much each word counts ``(K, L)``: padding not at all, the real words 1 together."""


class Compressor(nn.Module):
    """Patches ``(B, P, F)`` to tokens ``(B, T, W)``, each of mean 0 and variance 1: eight bits a number lose little.

    They are normalised, projected, pooled from ``grid`` to ``side``, and normalised again. A hidden layer, if there is
    one, adds to the projection.
    """

    def __init__(self, shape: FusionShape) -> None:
        super().__init__()
        self._grid, self._side = shape.grid, shape.side
        self.norm = nn.LayerNorm(shape.patch_size)
        self.project = nn.Linear(shape.patch_size, shape.width)
        if shape.hidden:
            self.up = nn.Linear(shape.patch_size, shape.hidden)
            self.down = nn.Linear(shape.hidden, shape.width, bias=False)
        self._has_hidden = bool(shape.hidden)

    def forward(self, patches: Tensor) -> Tensor:
        normed = self.norm(patches)  # (B, P, F)
        x = self.project(normed)  # (B, P, W)
        if self._has_hidden:
            x = x + self.down(F.gelu(self.up(normed)))
        return F.layer_norm(pooled(x, self._grid, self._side), x.shape[-1:])


def pooled(patches: Tensor, grid: int, side: int) -> Tensor:
    """Patches ``(B, grid², F)``, row by row, averaged to ``(B, side², F)``."""
    if grid == side:
        return patches
    square = torch.unflatten(patches.transpose(1, 2), 2, (grid, grid))  # (B, F, grid, grid)
    return F.adaptive_avg_pool2d(square, side).flatten(2).transpose(1, 2)


class Fusion(nn.Module):
    """How well texts and pictures fit together.

    What either side is alone is computed once for each text and each picture, not for each pair. ``pairs`` and
    ``groups`` say the same of a pair; the first takes any pairs, the second all pairs inside of groups, and where the
    fusion allows it (not the merged one) without a copy of both sides for each pair.
    """

    def __init__(self, shape: FusionShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Sequential(
            nn.LayerNorm(shape.state_size),
            nn.Dropout(dropout),
            nn.Linear(shape.state_size, shape.size),
            nn.Dropout(dropout),
        )
        self.places = nn.Parameter(SPREAD * torch.randn(shape.side**2, shape.width))  # (T, W)
        self.tokens = nn.Sequential(nn.Linear(shape.width, shape.size), nn.LayerNorm(shape.size), nn.Dropout(dropout))
        kind = {"cross": _Cross, "merged": _Merged, "gated": _Gated}[shape.fusion]
        self.meeting: _Meeting = kind(shape, dropout)

    def sides(self, words: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Words ``(…, L, S)`` and tokens ``(…, T, W)`` to ``(…, L, D)`` and ``(…, T, D)``."""
        return self.words(words), self.tokens(tokens + self.places)

    def pairs(self, words: Tensor, mask: Tensor, tokens: Tensor, text: Tensor, picture: Tensor) -> Seen:
        """What is said of the pairs of ``text[k]`` and ``picture[k]``.

        Args:
            words: token states of the texts ``(C, L, S)``.
            mask: 1 where a word is real, else 0, ``(C, L)``.
            tokens: of the pictures, ``(I, T, W)``.
            text, picture: numbers of the two sides of each pair, int64 ``(K,)``.
        """
        x, y = self.sides(words, tokens)  # (C, L, D), (I, T, D)
        return self.meeting.pairs(x, mask, y, text, picture)

    forward = pairs

    def groups(self, words: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """The logits ``(G, n, m)`` of every text of a group with every picture of it.

        Args:
            words: ``(G, n, L, S)``.
            mask: ``(G, n, L)``.
            tokens: ``(G, m, T, W)``.
        """
        x, y = self.sides(words, tokens)  # (G, n, L, D), (G, m, T, D)
        return self.meeting.groups(x, mask, y)

    def matched(self, x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        """What the words of each text know after they have met the picture in the same place: ``(B, L, D)``.

        Args:
            x, y: sides, ``(B, L, D)`` and ``(B, T, D)``.
            mask: ``(B, L)``.

        Raises:
            UsageError: words and patches do not meet in this fusion.
        """
        return self.meeting.matched(x, mask, y)


class _Meeting(nn.Module):
    """How the two sides meet; ``x`` are words ``(…, L, D)``, ``y`` tokens ``(…, T, D)``. See ``Fusion``."""

    def pairs(self, x: Tensor, mask: Tensor, y: Tensor, text: Tensor, picture: Tensor) -> Seen:
        raise NotImplementedError

    def groups(self, x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def matched(self, x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        raise UsageError("in this fusion the words of a text never meet the patches of a picture; use cross or merged")


class _Cross(_Meeting):
    """Words look at the tokens; the logit reads how what each word found compares with what it is.

    A word and what it found are projected to N numbers and to unit length; their products are the comparison, of which
    the sum is a cosine (a similarity vector: Diao et al. 2021, eq. 5). A gate weighs the comparisons of the words, and
    a head reads their weighted and their plain mean. The cosines, weighted by the words alone, go to the logit
    directly.
    """

    def __init__(self, shape: FusionShape, dropout: float) -> None:
        super().__init__()
        self.looks = nn.ModuleList([_Look(shape.size, shape.heads) for _ in range(shape.layers)])
        self.turns = nn.ModuleList([_Turn(shape.size, dropout) for _ in range(shape.layers - 1)])
        self.compare = _Compare(shape, dropout)

    def pairs(self, x: Tensor, mask: Tensor, y: Tensor, text: Tensor, picture: Tensor) -> Seen:
        knowing = x  # (C, L, D); from the second look on words know of a picture, (K, L, D)
        for number, look in enumerate(self._looks()):
            queries = look.queries(knowing)
            if number == 0:
                queries = queries[text]  # (K, H, L, E)
            keys, values = (part[picture] for part in look.memory(y))  # (K, H, T, E)
            attention = look.attention(queries, keys)  # (K, H, L, T)
            found = _joined(attention @ values)  # (K, L, D)
            if number < len(self.turns):
                knowing = self.turns[number](knowing if number else x[text], found)
        word, alone = self.compare.words(x)  # (C, L, N), (C, L)
        logits, weights = self.compare(word[text], alone[text], mask[text], found)
        return Seen(logits, attention.mean(dim=1), weights)

    def groups(self, x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        n, m = x.shape[1], y.shape[1]
        knowing = x[:, :, None]  # (G, n, 1, L, D); from the second look on (G, n, m, L, D)
        for number, look in enumerate(self._looks()):
            keys, values = look.memory(y)  # (G, m, H, T, E)
            queries = look.queries(knowing).permute(0, 2, 3, 1, 4, 5).flatten(3, 4)  # (G, 1 or m, H, n·L, E)
            found = _joined(look.attention(queries, keys) @ values)  # (G, m, n·L, D)
            found = torch.unflatten(found, 2, (n, -1)).transpose(1, 2)  # (G, n, m, L, D)
            if number < len(self.turns):
                knowing = self.turns[number](knowing, found)
        word, alone = self.compare.words(x)  # (G, n, L, N), (G, n, L)
        shape = (-1, -1, m, -1)
        logits: Tensor
        logits, _ = self.compare(
            word[:, :, None], alone[:, :, None].expand(shape), mask[:, :, None].expand(shape), found
        )
        return logits

    def matched(self, x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        knowing = x
        for number, look in enumerate(self._looks()):
            keys, values = look.memory(y)
            found = _joined(look.attention(look.queries(knowing), keys) @ values)  # (B, L, D)
            if number < len(self.turns):
                knowing = self.turns[number](knowing, found)
        return found

    def _looks(self) -> Iterable[_Look]:
        return cast("Iterable[_Look]", self.looks)


class _Look(nn.Module):
    """Attention by cosine, each head with a temperature of its own (Henry et al. 2020, query-key normalisation)."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size, bias=False)
        self.sharpness = nn.Parameter(torch.full((heads,), SHARPNESS))

    def queries(self, x: Tensor) -> Tensor:
        """``(…, L, D)`` to ``(…, H, L, E)``, as long as its head is sharp."""
        return F.normalize(_split(self.query(x), self._heads), dim=-1) * self.sharpness.exp()[:, None, None]

    def memory(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``(…, T, D)`` to unit keys and to values, ``(…, H, T, E)`` each."""
        return F.normalize(_split(self.key(y), self._heads), dim=-1), _split(self.value(y), self._heads)

    def attention(self, queries: Tensor, keys: Tensor) -> Tensor:
        """``(…, H, L, E)`` and ``(…, H, T, E)`` to ``(…, H, L, T)``, whose rows sum to 1."""
        return (queries @ keys.transpose(-1, -2)).softmax(dim=-1)


class _Turn(nn.Module):
    """Between two looks: words take in what they found, and think it over."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.out = nn.Linear(size, size)
        self.think = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size), nn.GELU(), nn.Linear(size, size))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, found: Tensor) -> Tensor:
        """``(…, L, D)`` both ways."""
        x = x + self.dropout(self.out(found))
        turned: Tensor = x + self.dropout(self.think(x))
        return turned


class _Compare(nn.Module):
    """Words and what they found, to a logit and to the weights of the words."""

    def __init__(self, shape: FusionShape, dropout: float) -> None:
        super().__init__()
        size, count = shape.size, shape.products
        self.word = nn.Linear(size, count)
        self.found = nn.Linear(size, count)
        self.alone = nn.Linear(size, 1)
        self.norm = nn.LayerNorm(count)
        self.think = nn.Sequential(nn.Linear(count, 2 * count), nn.GELU(), nn.Linear(2 * count, count))
        self.gate = nn.Linear(count, 1)
        self.head = nn.Sequential(nn.Linear(2 * count, count), nn.GELU(), nn.Dropout(dropout), nn.Linear(count, 1))
        self.fine = nn.Parameter(torch.tensor(FINE))
        self.dropout = nn.Dropout(dropout)

    def words(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of words ``(…, L, D)`` before any picture: unit rows ``(…, L, N)``, and how much each matters
        by itself ``(…, L)``."""
        return F.normalize(self.word(x), dim=-1), self.alone(x).squeeze(-1)

    def forward(self, word: Tensor, alone: Tensor, mask: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(…)`` and weights ``(…, L)`` from what ``words`` gave, the mask ``(…, L)``, and ``(…, L, D)``."""
        products = word * F.normalize(self.found(found), dim=-1)  # (…, L, N)
        y = self.norm(products)
        y = y + self.dropout(self.think(y))
        padding = (1 - mask) * MASKED  # (…, L)
        weights = (self.gate(y).squeeze(-1) + alone + padding).softmax(dim=-1)
        evenly = mask / mask.sum(dim=-1, keepdim=True).clamp_min(1)
        means = torch.cat([_weighted(y, weights), _weighted(y, evenly)], dim=-1)  # (…, 2 N)
        cosine = (products.sum(dim=-1) * (alone + padding).softmax(dim=-1)).sum(dim=-1)  # (…)
        return self.head(means).squeeze(-1) + self.fine.exp() * cosine, weights


class _Merged(_Meeting):
    """Words and tokens in one stream, which attends to itself; the logit reads the words, weighed, and the tokens."""

    def __init__(self, shape: FusionShape, dropout: float) -> None:
        super().__init__()
        size = shape.size
        self.kinds = nn.Parameter(SPREAD * torch.randn(2, size))  # of words, of tokens
        self.layers = nn.ModuleList([Layer(size, shape.heads, dropout) for _ in range(shape.layers)])
        self.norm = nn.LayerNorm(size)
        self.gate = nn.Linear(size, 1)
        self.head = _head(2 * size, size, dropout)

    def pairs(self, x: Tensor, mask: Tensor, y: Tensor, text: Tensor, picture: Tensor) -> Seen:
        real = mask[text]  # (K, L)
        stream, attention = self._met(x[text], real, y[picture])
        length = real.shape[1]
        looks = attention[..., :length, length:].mean(dim=1)  # (K, L, T)
        weights = (self.gate(stream[:, :length]).squeeze(-1) + (1 - real) * MASKED).softmax(dim=-1)  # (K, L)
        means = torch.cat([_weighted(stream[:, :length], weights), stream[:, length:].mean(dim=1)], dim=-1)
        return Seen(self.head(means).squeeze(-1), looks / looks.sum(dim=-1, keepdim=True), weights)

    def groups(self, x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        """Every pair is a stream of its own from the first layer on: nothing can be shared, all are computed."""
        count, n, m = x.shape[0], x.shape[1], y.shape[1]
        group = torch.arange(count, device=x.device)
        text = (group[:, None, None] * n + torch.arange(n, device=x.device)[:, None]).expand(-1, -1, m)  # (G, n, m)
        picture = (group[:, None, None] * m + torch.arange(m, device=x.device)).expand(-1, n, -1)  # (G, n, m)
        seen = self.pairs(x.flatten(0, 1), mask.flatten(0, 1), y.flatten(0, 1), text.flatten(), picture.flatten())
        return torch.unflatten(seen.logits, 0, (count, n, m))

    def matched(self, x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        return self._met(x, mask, y)[0][:, : x.shape[1]]

    def _met(self, x: Tensor, mask: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The stream ``(K, L + T, D)`` after the last layer, and the attention ``(K, H, L + T, L + T)`` there."""
        stream = torch.cat([x + self.kinds[0], y + self.kinds[1]], dim=1)
        padding = torch.cat([(1 - mask) * MASKED, torch.zeros_like(y[:, :, 0])], dim=1)  # (K, L + T)
        for layer in self.layers:
            stream, attention = layer(stream, padding)
        return self.norm(stream), attention


class _Gated(_Meeting):
    """Each side attends to itself and is pooled; a gate says, number by number, how much of either goes into the mix.

    The gated multimodal unit of Arevalo et al. 2017, section 3.1: h = z · tanh(U u) + (1 - z) · tanh(V v) with
    z = σ(Z [u, v]). A mix alone cannot tell whether the sides agree; so the head also reads their product.
    """

    def __init__(self, shape: FusionShape, dropout: float) -> None:
        super().__init__()
        size = shape.size
        self.word_layers = nn.ModuleList([Layer(size, shape.heads, dropout) for _ in range(shape.layers)])
        self.token_layers = nn.ModuleList([Layer(size, shape.heads, dropout) for _ in range(shape.layers)])
        self.word_gate, self.token_gate = nn.Linear(size, 1), nn.Linear(size, 1)
        self.word_pool, self.token_pool = nn.Linear(size, size), nn.Linear(size, size)
        self.word_mix, self.token_mix = nn.Linear(size, size), nn.Linear(size, size, bias=False)
        self.norm = nn.LayerNorm(size)
        self.head = _head(2 * size, size, dropout)

    def pairs(self, x: Tensor, mask: Tensor, y: Tensor, text: Tensor, picture: Tensor) -> Seen:
        text_side, weights = self._text(x, mask)
        picture_side, looks = self._picture(y)
        logits = self._mixed([part[text] for part in text_side], [part[picture] for part in picture_side])
        attention = looks[picture][:, None].expand(-1, x.shape[1], -1)  # (K, L, T): every word sees the same
        return Seen(logits, attention, weights[text])

    def groups(self, x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        text_side, _ = self._text(x.flatten(0, 1), mask.flatten(0, 1))
        picture_side, _ = self._picture(y.flatten(0, 1))
        texts = [torch.unflatten(part, 0, x.shape[:2])[:, :, None] for part in text_side]  # (G, n, 1, D)
        pictures = [torch.unflatten(part, 0, y.shape[:2])[:, None] for part in picture_side]  # (G, 1, m, D)
        return self._mixed(texts, pictures)

    def _text(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """What goes into the mix and into the gate ``(C, D)``, and the weights of the words ``(C, L)``."""
        padding = (1 - mask) * MASKED  # (C, L)
        for layer in self.word_layers:
            x, _ = layer(x, padding)
        weights = (self.word_gate(x).squeeze(-1) + padding).softmax(dim=-1)
        side = _weighted(x, weights)  # (C, D)
        return [torch.tanh(self.word_pool(side)), self.word_mix(side)], weights

    def _picture(self, y: Tensor) -> tuple[list[Tensor], Tensor]:
        """Likewise ``(I, D)``, and the weights of the tokens ``(I, T)``."""
        for layer in self.token_layers:
            y, _ = layer(y, torch.zeros_like(y[:, :, 0]))
        weights = self.token_gate(y).squeeze(-1).softmax(dim=-1)
        side = _weighted(y, weights)  # (I, D)
        return [torch.tanh(self.token_pool(side)), self.token_mix(side)], weights

    def _mixed(self, text: list[Tensor], picture: list[Tensor]) -> Tensor:
        """What ``_text`` and ``_picture`` gave for each pair, ``(…, D)``, to logits ``(…)``."""
        gate = torch.sigmoid(text[1] + picture[1])
        mix = gate * text[0] + (1 - gate) * picture[0]  # (…, D)
        logits: Tensor = self.head(torch.cat([mix, self.norm(text[0] * picture[0])], dim=-1)).squeeze(-1)
        return logits


class Layer(nn.Module):
    """A layer of a transformer (Vaswani et al. 2017), normed before (Xiong et al. 2020)."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(size)
        self.inputs = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.think = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """``(K, L, D)`` and what is added to the logits of attention to each of them ``(K, L)``; to ``(K, L, D)`` and
        the attention ``(K, H, L, L)``."""
        queries, keys, values = (_split(part, self._heads) for part in self.inputs(self.norm(x)).chunk(3, dim=-1))
        scaled = queries * queries.shape[-1] ** -0.5
        attention = (scaled @ keys.transpose(-1, -2) + padding[:, None, None]).softmax(dim=-1)
        x = x + self.dropout(self.out(_joined(attention @ values)))
        return x + self.dropout(self.think(x)), attention


def _head(inputs: int, size: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, size), nn.GELU(), nn.Dropout(dropout), nn.Linear(size, 1))


def _split(x: Tensor, heads: int) -> Tensor:
    """``(…, L, D)`` to ``(…, H, L, E)``."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(-3, -2)


def _joined(x: Tensor) -> Tensor:
    """``(…, H, L, E)`` to ``(…, L, D)``."""
    return x.transpose(-3, -2).flatten(-2)


def _weighted(x: Tensor, weights: Tensor) -> Tensor:
    """The sum of ``(…, L, D)`` by weights ``(…, L)``: ``(…, D)``."""
    return (x * weights[..., None]).sum(dim=-2)
