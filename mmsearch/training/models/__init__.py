"""What training sees of a dual encoder: two rows of stages, whatever the architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

State: TypeAlias = "tuple[Tensor, ...]"
"""What one stage hands to the next; the first size of every tensor is B."""


class Tower(nn.Module):
    """One side of a dual encoder as a row of stages, from the input to the shared space.

    A stage is a module from a ``State`` to the next. The first takes the input, the last (the *head*) gives one row
    for each item, ``(B, D)``, of any length. Every way of training is a statement about this row: the stages up to a
    cut are frozen, and what they give can be computed once; the learning rate falls from stage to stage; the
    activations of a stage are computed again instead of kept.
    """

    def __init__(self, stages: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.frozen = 0
        """So many stages, counted from the input, are not trained; they always run in evaluation mode."""
        self.recompute = False
        """Whether a trained stage's activations are computed again in the backward pass (Chen et al. 2016)."""

    def freeze(self, count: int) -> None:
        """Train all stages but the first ``count``."""
        self.frozen = count
        for number, stage in enumerate(self.stages):
            stage.requires_grad_(number >= count)
        self.train(self.training)

    def train(self, mode: bool = True) -> Tower:
        super().train(mode)
        for stage in self.stages[: self.frozen]:
            stage.train(False)
        return self

    def trunk(self, state: State) -> State:
        """The frozen stages: input to what the trained ones read."""
        with torch.no_grad():
            for stage in self.stages[: self.frozen]:
                state = stage(state)
        return state

    def rest(self, state: State) -> Tensor:
        """The trained stages: what ``trunk`` gave to unit rows ``(B, D)``."""
        for stage in self.stages[self.frozen :]:
            again = self.recompute and self.training and torch.is_grad_enabled()
            state = checkpoint(stage, state, use_reentrant=False) if again else stage(state)
        (rows,) = state
        return F.normalize(rows.float(), dim=1)

    def forward(self, state: State) -> Tensor:
        """Input to unit rows ``(B, D)``."""
        return self.rest(self.trunk(state))


class DualModel(nn.Module, ABC):
    """A dual encoder that can be trained: its two towers, its temperature, and how it is written.

    Attributes:
        image, text: the towers.
        logit_scale: the logarithm of what cosines are multiplied by in a contrastive loss (Radford et al. 2021).
        logit_bias: what is added to them in the sigmoid loss (Zhai et al. 2023).
        licence: of the weights that training starts from, for the model card.
        input_key: whatever ``prepare`` and ``tokens`` depend on, in words: with the weights of frozen stages it tells
            whether something was computed from the same.
    """

    licence = "unknown"
    input_key = ""

    def __init__(self, image: Tower, text: Tower, scale: float, bias: float = 0.0) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(scale).log())
        self.logit_bias = nn.Parameter(torch.tensor(bias))

    @abstractmethod
    def prepare(self, picture: Image) -> np.ndarray:
        """One RGB picture as the image tower takes it, ``(C, H, W)``, as when it is indexed."""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> State:
        """Texts as the text tower takes them: tensors ``(B, L)``, L the length of the longest here or fixed."""

    def trim(self, state: State) -> State:
        """Tokens, or what was computed of them, without the columns that only pad; for most models all of them."""
        return state

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model into ``folder`` so that ``load_encoder(folder)`` gives an encoder with the same vectors."""

    def begin(self, image: State, text: State) -> None:
        """Look at a sample of what the heads will read, as the trunks give it, before training starts."""

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the temperature in bounds: a scale of 1 to 100 (Radford et al. 2021, section 2.5)."""
        self.logit_scale.clamp_(0.0, 4.6052)
