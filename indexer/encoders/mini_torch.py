"""The towers and the heads of `mini` as torch modules: for pictures, for many texts at once, and for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from indexer.encoders.mini_text import CLASS_WEIGHT, TEXT_LAYERS
from indexer.encoders.quantised import widen

IMAGE_FEATURES = 1280
WORD_SIZE = 384
HEAD_SIZE = 512
HIDDEN_SIZE = 1024
IMAGE_ARCHITECTURE = "tf_efficientnet_lite2"


class ImageTower(nn.Module):
    """EfficientNet-Lite2 (Tan and Le 2019; the Lite variant without squeeze-excitation and swish), through timm."""

    def __init__(self, class_embeddings: Tensor) -> None:
        """``class_embeddings: (1000, 384)``: the sentence embedding of each ImageNet class name, in class order."""
        super().__init__()
        self.net: Any = timm.create_model(IMAGE_ARCHITECTURE, pretrained=False)
        self.register_buffer("class_embeddings", class_embeddings)
        self.class_embeddings: Tensor

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 ``(B, 3, S, S)`` to the average-pooled features ``(B, 1280)`` and the class average ``(B, 384)``.

        The class average is the mean of the class names' embeddings, weighted by the classifier's softmax: what the
        picture shows, said in the text tower's own language (ConSE, Norouzi et al. 2014).
        """
        average, words, _ = self.with_patches(pixels)
        return average, words

    def with_patches(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``forward`` gives, and the map before the last, 1280 wide convolution as patches ``(B, P, 352)``, row by
        row from the top left."""
        x = ((pixels.float() - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)
        features, (patches,) = self.net.forward_intermediates(x, indices=1)  # (B, 1280, 9, 9), (B, 352, 9, 9)
        average = features.mean(dim=(2, 3))
        probabilities = self.net.classifier(average).softmax(dim=1)  # (B, 1000)
        return average, probabilities @ self.class_embeddings, patches.flatten(2).transpose(1, 2)


class TextTower(nn.Module):
    """all-MiniLM-L6-v2 (Wang et al. 2020; Reimers and Gurevych 2019), through transformers' BertModel."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel  # 60 MB that indexing pictures and videos does without

        self.net = BertModel(
            BertConfig(
                vocab_size=30522,
                hidden_size=384,
                num_hidden_layers=6,
                num_attention_heads=12,
                intermediate_size=1536,
                max_position_embeddings=512,
                layer_norm_eps=1e-12,
            ),
            add_pooling_layer=False,
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token numbers and 1 where a token is real, both ``(B, L)``, to the token means ``(B, 7, 384)`` of the
        embeddings and of each layer."""
        return self.with_states(ids, mask)[0]

    def with_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What ``forward`` gives, and the last layer's output ``(B, L, 384)``."""
        states = self.net(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        weights = (mask / mask.sum(dim=1, keepdim=True)).unsqueeze(-1)  # (B, L, 1)
        return torch.stack([(state * weights).sum(dim=1) for state in states], dim=1), states[-1]


class ResidualHead(nn.Module):
    """Pooled features to the shared space: a linear map, and one wide hidden layer that corrects it.

    Its answer stands beside that of the words; with ``size`` a last linear map makes one compact vector of the two.
    """

    def __init__(self, features: int, dropout: float = 0.0, size: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(features, HEAD_SIZE)
        self.up = nn.Linear(features, HIDDEN_SIZE)
        self.down = nn.Linear(HIDDEN_SIZE, HEAD_SIZE)
        self.dropout = nn.Dropout(dropout)
        self.compact = None if size is None else nn.Linear(HEAD_SIZE + WORD_SIZE, size, bias=False)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """``(B, features)`` and the words' answer ``(B, 384)`` to the vector of `mini`, not normalised."""
        head = self.linear(x) + self.down(self.dropout(F.gelu(self.up(x))))  # (B, 512)
        both = two_parts(head, words)  # (B, 896)
        return both if self.compact is None else self.compact(both)


class Heads(nn.Module):
    """The trained part of `mini`: one head for pictures, one for texts.

    Args:
        dropout: of their wide hidden layers.
        size: numbers of a vector; None for the two answers side by side.
    """

    def __init__(self, dropout: float = 0.0, size: int | None = None) -> None:
        super().__init__()
        self.image = ResidualHead(IMAGE_FEATURES, dropout, size)
        self.text = ResidualHead(len(TEXT_LAYERS) * WORD_SIZE, dropout, size)


def text_features(pooled: Tensor) -> Tensor:
    """Token means ``(B, 7, 384)`` to what the text head reads ``(B, 1152)``."""
    return pooled[:, TEXT_LAYERS].flatten(1)


def two_parts(head: Tensor, words: Tensor) -> Tensor:
    """The head's answer ``(B, 512)`` beside the words' answer ``(B, 384)``.

    Of two such vectors the product is the cosine of the heads plus CLASS_WEIGHT times the cosine of the words.
    """
    return torch.cat([F.normalize(head, dim=1), CLASS_WEIGHT**0.5 * F.normalize(words, dim=1)], dim=1)


def load_image_tower(packed: Mapping[str, np.ndarray]) -> ImageTower:
    """The image tower from the tensors of ``image.safetensors``, batch normalisation folded into the convolutions."""
    tensors = {name: torch.from_numpy(tensor.astype(np.float32)) for name, tensor in packed.items()}
    tower = ImageTower(tensors.pop("class_embeddings")).eval()
    tower.net.load_state_dict(tensors, strict=False)  # only BatchNorm's batch counters may be missing: tested
    _fold_batch_norm(tower.net)
    return tower.to(memory_format=torch.channels_last)


def load_text_tower(packed: Mapping[str, np.ndarray]) -> TextTower:
    """The text tower from the tensors of ``text.safetensors``."""
    tower = TextTower().eval()
    tower.net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in widen(packed).items()})
    return tower


def load_heads(packed: Mapping[str, np.ndarray], dropout: float = 0.0) -> Heads:
    """Both heads from the tensors of ``head.safetensors``."""
    compact = packed.get("image.compact.weight")  # (D, 896)
    heads = Heads(dropout, None if compact is None else len(compact)).eval()
    heads.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in widen(packed).items()})
    return heads


def pad(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token numbers of B texts to ``(B, L)`` numbers and the mask of the real ones."""
    length = max(map(len, ids))
    numbers = torch.zeros(len(ids), length, dtype=torch.long)
    mask = torch.zeros(len(ids), length)
    for row, text in enumerate(ids):
        numbers[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return numbers, mask


def _fold_batch_norm(net: nn.Module) -> None:
    """Each normalisation becomes part of the convolution before it: the same function, a third less work."""
    for module in net.modules():
        convolution: tuple[str, nn.Conv2d] | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = name, child
            elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
                setattr(module, convolution[0], fuse_conv_bn_eval(convolution[1], child))
                setattr(module, name, child.act)  # timm's BatchNormAct2d carries the activation
                convolution = None
