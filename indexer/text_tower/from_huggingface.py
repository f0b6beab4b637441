"""The text tower of a transformers model, taken apart: CLIP, SigLIP, ALIGN, and BERT or RoBERTa beside any vision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.text_tower.numpy_tower import Plan
from indexer.text_tower.parts import NoTower, Parts, array, library_words, linear, norm, one_of, separate

if TYPE_CHECKING:
    from indexer.encoders.huggingface import Pair

ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "tanh_gelu",
    "gelu_pytorch_tanh": "tanh_gelu",
    "relu": "relu",
}
BERTS = ("bert", "align_text_model")
ROBERTAS = ("roberta", "xlm-roberta", "camembert")
OLD_EOS = 2
"""What older configurations of CLIP say of the end token, which it is not; the highest number is meant."""


def take_apart(pair: Pair) -> Parts:
    """The text tower of ``pair``.

    Raises:
        NoTower: NumPy cannot run it.
    """
    words, tokenizer = library_words(pair.tokenizer, clean="none", limit=pair.max_tokens)
    kind, text = pair.model.config.model_type, pair.model.text_model
    pad = pair.tokenizer.pad_token_id or 0
    if kind in ("clip", "siglip"):
        plan, weights = _clip(pair, text, pad)
    else:
        pooled = "align" not in kind
        plan, weights = bert(text, pair.max_tokens, pad, pool="first", dense=text.pooler if pooled else None)
        weights |= linear(f"head.{len(plan['head'])}", pair.model.text_projection)
        plan["head"] += ("linear",)
    return Parts(Plan(**plan), weights, words, tokenizer)


def _clip(pair: Pair, text: Any, pad: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config, heads = text.config, text.config.num_attention_heads
    weights = {
        "tokens": array(text.embeddings.token_embedding.weight),
        "positions": array(text.embeddings.position_embedding.weight)[: pair.max_tokens],
        **norm("final_norm", text.final_layer_norm),
        **linear("head.0", text.head if pair.padded else pair.model.text_projection),
    }
    for i, layer in enumerate(text.encoder.layers):
        attn = layer.self_attn
        weights |= separate(i, attn.q_proj, attn.k_proj, attn.v_proj, heads) | linear(f"{i}.out", attn.out_proj)
        weights |= linear(f"{i}.up", layer.mlp.fc1) | linear(f"{i}.down", layer.mlp.fc2)
        weights |= norm(f"{i}.norm_1", layer.layer_norm1) | norm(f"{i}.norm_2", layer.layer_norm2)
    by_token = "highest" if config.eos_token_id == OLD_EOS else "token"
    plan = {
        "heads": heads,
        "layers": len(text.encoder.layers),
        "positions": len(weights["positions"]),
        "norm_first": True,
        "causal": not pair.padded,
        "padded": pair.padded,
        "pad": pad,
        "activation": one_of(ACTIVATIONS, config.hidden_act, "activation"),
        "epsilon": config.layer_norm_eps,
        "pool": "last" if pair.padded else by_token,
        "eos": config.eos_token_id or 0,
        "head": ("linear",),
    }
    return plan, weights


def bert(
    model: Any, positions: int, pad: int, *, pool: str, dense: Any = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Plan, whose head ends before any projection, and weights of a BERT (Devlin et al. 2018) or one of its kin.

    Args:
        dense: BERT's pooler, where the pooled state goes through it.

    Raises:
        NoTower: it is no BERT.
    """
    config = model.config
    if config.model_type not in (*BERTS, *ROBERTAS):
        raise NoTower(f"NumPy cannot run a text model of the type {config.model_type}")
    if getattr(config, "position_embedding_type", "absolute") != "absolute" or getattr(config, "is_decoder", False):
        raise NoTower("NumPy cannot run a BERT with relative positions or as a decoder")
    embeddings, heads = model.embeddings, config.num_attention_heads
    first = config.pad_token_id + 1 if config.model_type in ROBERTAS else 0
    table = array(embeddings.position_embeddings.weight)[first : first + positions]
    weights = {
        "tokens": array(embeddings.word_embeddings.weight),
        "positions": table + array(embeddings.token_type_embeddings.weight)[0],
        **norm("embedding_norm", embeddings.LayerNorm),
    }
    for i, layer in enumerate(model.encoder.layer):
        own, out = layer.attention.self, layer.attention.output
        weights |= separate(i, own.query, own.key, own.value, heads) | linear(f"{i}.out", out.dense)
        weights |= linear(f"{i}.up", layer.intermediate.dense) | linear(f"{i}.down", layer.output.dense)
        weights |= norm(f"{i}.norm_1", out.LayerNorm) | norm(f"{i}.norm_2", layer.output.LayerNorm)
    if dense is not None:
        weights |= linear("head.0", dense.dense)
    plan = {
        "heads": heads,
        "layers": len(model.encoder.layer),
        "positions": len(table),
        "norm_first": False,
        "causal": False,
        "padded": False,
        "pad": pad,
        "activation": one_of(ACTIVATIONS, config.hidden_act, "activation"),
        "epsilon": config.layer_norm_eps,
        "pool": pool,
        "eos": 0,
        "head": () if dense is None else ("linear", "tanh"),
    }
    return plan, weights
