"""The text tower of an open_clip model, taken apart: its own transformers, and those of Hugging Face inside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.text_tower.from_huggingface import bert
from indexer.text_tower.numpy_tower import Plan
from indexer.text_tower.parts import (
    NoTower,
    Parts,
    WordSettings,
    array,
    attention,
    library_words,
    linear,
    norm,
    one_of,
)

POOLS = {"first": "first", "last": "last", "argmax": "highest", "eos": "token"}


def take_apart(model: Any, tokenizer: Any) -> Parts:
    """The text tower of ``model``, an ``open_clip.CLIP`` or ``CustomTextCLIP``, with the tokenizer that belongs to it.

    Raises:
        NoTower: NumPy cannot run it.
    """
    from open_clip.hf_model import HFTextEncoder
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    words, content, tables, pad = _words(tokenizer)
    if isinstance(model, CLIP):
        plan, weights = _own(model, model.text_pool_type, model.text_eos_id, pad, words.limit)
    elif isinstance(model, CustomTextCLIP) and type(model.text) is TextTransformer:
        text = model.text
        if text.cls_emb is not None or text.use_pad_mask:
            raise NoTower("NumPy cannot run a text tower with a class token or masked padding")
        plan, weights = _own(text, text.pool_type, text.eos_id, pad, words.limit)
    elif isinstance(model, CustomTextCLIP) and type(model.text) is HFTextEncoder:
        plan, weights = _hugging_face(model.text, pad, words.limit)
    else:
        text = getattr(model, "text", None)
        raise NoTower(f"NumPy cannot run the text tower of a {type(model).__name__}, a {type(text).__name__}")
    return Parts(Plan(**plan), weights | tables, words, content)


def _own(text: Any, pool: str, eos: int | None, pad: int, limit: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Plan and weights of open_clip's own transformer; ``text`` is what its parts are attributes of."""
    from open_clip.transformer import ResidualAttentionBlock

    blocks = text.transformer.resblocks
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        raise NoTower(f"NumPy cannot run blocks of the kind {type(blocks[0]).__name__}")
    heads = blocks[0].attn.num_heads
    epsilons = {part.eps for block in blocks for part in (block.ln_1, block.ln_2)} | {text.ln_final.eps}
    if len(epsilons) > 1 or blocks[0].attn.in_proj_bias is None:
        raise NoTower("NumPy cannot run layers that differ in their norms, or attention without biases")
    weights = {
        "tokens": array(text.token_embedding.weight),
        "positions": array(text.positional_embedding)[:limit],
        **norm("final_norm", text.ln_final),
    }
    for i, block in enumerate(blocks):
        attn = block.attn
        weights |= attention(i, array(attn.in_proj_weight), array(attn.in_proj_bias), heads)
        weights |= _scaled(linear(f"{i}.out", attn.out_proj), block.ls_1) | linear(f"{i}.up", block.mlp.c_fc)
        weights |= _scaled(linear(f"{i}.down", block.mlp.c_proj), block.ls_2)
        weights |= norm(f"{i}.norm_1", block.ln_1) | norm(f"{i}.norm_2", block.ln_2)
    projection = text.text_projection
    if projection is not None:
        weights |= linear("head.0", projection) if hasattr(projection, "weight") else {"head.0": array(projection)}
    causal = text.attn_mask is not None
    named = one_of(POOLS, pool, "pooling")
    plan = {
        "heads": heads,
        "layers": len(blocks),
        "positions": len(weights["positions"]),
        "norm_first": True,
        "causal": causal,
        "padded": not causal or named == "last",
        "pad": pad,
        "activation": _activation(blocks[0].mlp.gelu),
        "epsilon": epsilons.pop(),
        "pool": named,
        "eos": eos or 0,
        "head": () if projection is None else ("linear",),
    }
    return plan, weights


def _scaled(weights: dict[str, np.ndarray], scale: Any) -> dict[str, np.ndarray]:
    """The weights of a linear layer whose answers are then scaled, or not, by a ``LayerScale``."""
    gamma = getattr(scale, "gamma", None)
    return weights if gamma is None else {name: one * array(gamma) for name, one in weights.items()}


def _activation(module: Any) -> str:
    from open_clip.transformer import QuickGELU
    from torch import nn

    if isinstance(module, nn.GELU):
        return one_of({"none": "gelu", "tanh": "tanh_gelu"}, module.approximate, "activation GELU,")
    return one_of({QuickGELU: "quick_gelu", nn.ReLU: "relu"}, type(module), "activation")


def _hugging_face(text: Any, pad: int, limit: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Plan and weights of a BERT inside an open_clip model."""
    from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, MeanPooler
    from torch import nn

    if text.config.pad_token_id != pad:
        raise NoTower(
            f"its padding is token {pad} for the tokenizer and token {text.config.pad_token_id} for the tower"
        )
    pools: dict[Any, str] = {MeanPooler: "mean", ClsPooler: "first", ClsLastHiddenStatePooler: "first"}
    dense = text.transformer.pooler if getattr(text.pooler, "use_pooler_output", False) else None
    plan, weights = bert(text.transformer, limit, pad, pool=one_of(pools, type(text.pooler), "pooling"), dense=dense)
    for step in text.proj if isinstance(text.proj, nn.Sequential) else [text.proj]:
        if isinstance(step, nn.Linear):
            weights |= linear(f"head.{len(plan['head'])}", step)
            plan["head"] += ("linear",)
        elif not isinstance(step, nn.Identity):
            plan["head"] += (_activation(step),)
    return plan, weights


def _words(tokenizer: Any) -> tuple[WordSettings, str | None, dict[str, np.ndarray], int]:
    """How words are read, the JSON of a tokenizer, tables of byte pairs, and the number of padding."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn

    clean = one_of(
        {get_clean_fn(name): name for name in ("lower", "whitespace", "canonicalize")},
        getattr(tokenizer, "clean_fn", None),
        "cleaning of texts",
    )
    limit = int(tokenizer.context_length)
    if type(tokenizer) is HFTokenizer:
        inner = tokenizer.tokenizer
        if tokenizer.tokenizer_mode:
            raise NoTower(f"NumPy cannot run its tokenizer in the mode {tokenizer.tokenizer_mode}")
        without = inner.sep_token_id if tokenizer.strip_sep_token else None
        return *library_words(inner, clean=clean, limit=limit, without=without), {}, inner.pad_token_id or 0
    if type(tokenizer) is not SimpleTokenizer or tokenizer.reduction_fn or len(tokenizer.all_special_ids) != 2:
        raise NoTower(f"NumPy cannot run a tokenizer of the kind {type(tokenizer).__name__} with these settings")
    return WordSettings("byte-pairs", clean, limit), None, _tables(tokenizer), 0


def _tables(tokenizer: Any) -> dict[str, np.ndarray]:
    """CLIP's merges as sorted numbers; see ``words.BytePairs``."""
    number = tokenizer.encoder
    keys = [number[first] << 16 | number[second] for first, second in tokenizer.bpe_ranks]
    if [number[first + second] for first, second in tokenizer.bpe_ranks] != list(range(512, 512 + len(keys))):
        raise NoTower("its byte pairs are not numbered in the order in which they merge")
    order = np.argsort(np.array(keys, np.uint32))
    letters = [number[tokenizer.byte_encoder[byte]] for byte in range(256)]
    return {
        "words.pairs": np.array(keys, np.uint32)[order],
        "words.ranks": order.astype(np.uint16),
        "words.letters": np.array(letters, np.uint8),
    }
