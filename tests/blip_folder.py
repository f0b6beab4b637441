"""Small random models of BLIP's and BLIP-2's architectures with an image-text-matching head, saved to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessor,
    BlipProcessor,
    PreTrainedTokenizerFast,
)

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "red",
    "green",
    "blue",
    "parrot",
    "balloon",
    "bear",
    "and",
    "the",
    "of",
]
POSITIONS = 12
QUERIES = 3
SIZE = 24
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 20,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
    "encoder_hidden_size": 16,
    "pad_token_id": 0,
}


def write_blip(folder: Path, seed: int = 0) -> Path:
    """BLIP with two layers on each side."""
    text = {**TEXT, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=8, image_text_hidden_size=8)
    stirred(BlipForImageTextRetrieval(config), seed).save_pretrained(folder)
    BlipProcessor(image_processor(), tokenizer()).save_pretrained(folder)
    return folder


def write_blip2(folder: Path, seed: int = 0, *, image_token: bool = True) -> Path:
    """BLIP-2's first stage with three queries; ``image_token``: the text begins with places for them, as published."""
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**TEXT, "cross_attention_frequency": 2, "use_qformer_text_input": True},
        text_config={"model_type": "opt", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1},
        num_query_tokens=QUERIES,
        image_text_hidden_size=8,
        image_token_index=len(WORDS) if image_token else None,  # beyond the table of words, as published
    )
    stirred(Blip2ForImageTextRetrieval(config), seed).save_pretrained(folder)
    processor = Blip2Processor(image_processor(), tokenizer(), num_query_tokens=QUERIES if image_token else None)
    processor.save_pretrained(folder)
    return folder


def stirred(model: nn.Module, seed: int) -> Any:
    """The model with matrices so large that words and pictures change the score."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5)
    return model.eval()


def image_processor() -> BlipImageProcessor:
    return BlipImageProcessor(size={"height": SIZE, "width": SIZE})


def tokenizer() -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.normalizer = normalizers.Lowercase()
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=512, **special)
