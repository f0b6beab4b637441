"""BLIP and BLIP-2 with an image-text-matching head: the two halves of transformers' forward, the picture's apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from indexer.encoders.device import pick_device
from indexer.encoders.huggingface import Pair, setting, silence
from indexer.encoders.openclip import digest, require_reachable
from indexer.errors import ModelError

WEIGHTS = ("*.safetensors", "*.bin")


class ItmModel:
    """A model in float32 with its image processor and tokenizer; every method by one thread at a time, but ``prepare``.

    Args:
        name: what it is called in messages.
        source: a folder, or a repository of the Hugging Face hub.

    Raises:
        UsageError: there is no such device.
        ModelError: it is neither here nor reachable, is damaged, or has no such head.
    """

    def __init__(self, name: str, source: str, device: str | None) -> None:
        self._device = pick_device(device)
        with _reading(name, source):
            self._pair, self._network = _open(source)
            self._model = self._pair.model.to(self._device)
            self.image_size: int = max(self.prepare(Image.new("RGB", (64, 64))).shape[1:])

    def prepare(self, image: Image.Image) -> np.ndarray:
        """One RGB picture through the model's own image processor: float32 ``(3, H, W)``."""
        return self._pair.prepare(image)

    def see(self, batch: np.ndarray) -> list[torch.Tensor]:
        """Prepared pictures ``(B, 3, H, W)`` to the vision features ``(P, H)`` of each, on the model's device."""
        features = self._model.vision_model(pixel_values=torch.from_numpy(batch).to(self._device))[0]  # (B, P, H)
        return [one.clone() for one in features]  # each may be let go of without the others

    def match(self, words: Sequence[str], features: Sequence[torch.Tensor]) -> np.ndarray:
        """The log-odds ``(B,)`` that each text matches the picture whose features ``(P, H)`` stand at its place."""
        ids, mask = self._pair.tokens(words)  # (B, L)
        # A word such as "<image>" may have a number of its own that the model's table does not reach.
        ids[ids >= self._network.words.num_embeddings] = self._pair.tokenizer.unk_token_id or 0
        scores = self._network.score(ids.to(self._device), mask.to(self._device), torch.stack(list(features)))  # (B, 2)
        logits: np.ndarray = (scores[:, 1] - scores[:, 0]).cpu().numpy()
        return logits

    def digest(self) -> str:
        """Digest of the weights, the architecture, the image processor and the tokenizer."""
        return digest(self._model, setting(self._pair))


class _Network(Protocol):
    """What differs between BLIP and BLIP-2."""

    words: torch.nn.Embedding
    positions: int
    """Tokens that a text may have."""

    def score(self, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Texts ``(B, L)`` and features ``(B, P, H)`` to what the head says for "no" and for "yes" ``(B, 2)``."""


class _Blip:
    """The text encoder attends to the picture; the head reads its first token."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.words: torch.nn.Embedding = model.text_encoder.embeddings.word_embeddings
        self.positions = int(model.config.text_config.max_position_embeddings)

    def score(self, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        states = self._model.text_encoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=features,
            encoder_attention_mask=mask.new_ones(features.shape[:2]),
        )[0]  # (B, L, S)
        scores: torch.Tensor = self._model.itm_head(states[:, 0])
        return scores


class _Blip2:
    """Learned queries attend to the words and to the picture; the head reads each query, and the mean counts."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.words: torch.nn.Embedding = model.embeddings.word_embeddings
        self.positions = int(model.config.qformer_config.max_position_embeddings)

    def score(self, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        queries = self._model.query_tokens.expand(len(ids), -1, -1)  # (B, Q, S)
        count = queries.shape[1]
        states = self._model.qformer(
            query_embeds=self._model.embeddings(input_ids=ids, query_embeds=queries),  # (B, Q + L, S)
            query_length=count,
            attention_mask=torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1),
            encoder_hidden_states=features,
            encoder_attention_mask=mask.new_ones(features.shape[:2]),
        )[0]
        scores: torch.Tensor = self._model.itm_head(states[:, :count]).mean(dim=1)
        return scores


def _open(source: str) -> tuple[Pair, _Network]:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoTokenizer,
        Blip2ForImageTextRetrieval,
        BlipForImageTextRetrieval,
    )

    blip2 = AutoConfig.from_pretrained(source).model_type == "blip-2"
    kind: Any = Blip2ForImageTextRetrieval if blip2 else BlipForImageTextRetrieval
    processors: Any = AutoImageProcessor
    model, found = kind.from_pretrained(source, weights_only=True, output_loading_info=True)
    missing = sorted(set(found["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:  # a captioning model, say; transformers would go on with random numbers
        raise ValueError(f"it has no image-text-matching head: {len(missing)} weights are missing, {missing[0]} first")
    network: _Network = _Blip2(model) if blip2 else _Blip(model)
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="right")
    pair = Pair(
        model.float().eval(),
        processors.from_pretrained(source),
        tokenizer,
        min(network.positions, int(tokenizer.model_max_length)),
        padded=False,
    )
    return pair, network


@contextmanager
def _reading(name: str, source: str) -> Iterator[None]:
    """transformers says nothing while it loads, and whatever goes wrong is one ``ModelError`` that says what to do."""
    local = Path(source).is_dir()
    try:
        with silence():
            if not local:
                require_reachable(source)
            elif not any(path for pattern in WEIGHTS for path in Path(source).glob(pattern)):
                raise FileNotFoundError("there are no weights beside config.json")
            yield
    except Exception as exc:
        reason = " ".join(str(exc).split())
        reason = reason[:160] + "…" if len(reason) > 160 else reason
        if local:
            said = f"cannot load the reranker in {source} ({type(exc).__name__}: {reason}); save or copy it again"
        else:
            said = (
                f"cannot load the reranker {name}: the weights of {source} are not on this machine and could not be "
                f"fetched, or do not fit ({type(exc).__name__}: {reason}); check the network, name a folder with them"
            )
        raise ModelError(f"{said}, or leave --reranker out") from exc
