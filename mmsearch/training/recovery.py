"""Two exercises for a reranker that is being trained: hidden words and hidden tokens are to be found again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmsearch.rerank.fusion import MASKED, SPREAD, Fusion, Layer

WORDS, TOKENS = 0.15, 0.5
"""Parts of the words (BERT, Devlin et al. 2018) and of the tokens (Geng et al. 2022, M3AE) that are hidden."""
SHARPNESS = 10.0
"""What cosines are multiplied by where a word is to be picked out."""
ALIKE = 0.9
"""Two hidden words whose states have a larger cosine are the same word."""


class Recovery(nn.Module):
    """What finds hidden words and tokens again; it is trained beside the fusion model and thrown away.

    Which word was hidden is asked by contrast, among all words that are hidden in the batch: what is known of words
    are their states, whatever text tower they come from, and not their numbers in a vocabulary. The states of the other
    words were computed with the hidden one in sight, so part of the answer is in them; the picture has the rest.
    """

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        shape = fusion.shape
        self.hidden_word = nn.Parameter(SPREAD * torch.randn(shape.size))  # (D,)
        self.guess = nn.Linear(shape.size, shape.size)
        self.truth = nn.Sequential(nn.LayerNorm(shape.state_size), nn.Linear(shape.state_size, shape.size))
        self.hidden_token = nn.Parameter(SPREAD * torch.randn(shape.width))  # (W,)
        self.layer = Layer(shape.size, shape.heads, 0.0)
        self.patch = nn.Sequential(nn.LayerNorm(shape.size), nn.Linear(shape.size, shape.patch_size))

    def words(self, fusion: Fusion, words: Tensor, mask: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """The loss of picking out hidden words (masked language modelling as in ALBEF, Li et al. 2021, section 3.2).

        A hidden word looks at its picture with the mean of the words that can be seen.

        Args:
            words, mask, tokens: of matching texts and pictures, ``(B, L, S)``, ``(B, L)``, ``(B, T, W)``.
            hidden: which real words are hidden, bool ``(B, L)``.

        Returns:
            The mean over the hidden words, in nats; 0 if there are none.
        """
        if not hidden.any():
            return words.new_zeros(())
        x, y = fusion.sides(words, tokens)  # (B, L, D), (B, T, D)
        seen = mask * (~hidden).to(mask.dtype)  # (B, L)
        context = (x * seen[..., None]).sum(dim=1) / seen.sum(dim=1, keepdim=True).clamp_min(1)  # (B, D)
        x = torch.where(hidden[..., None], context[:, None] + self.hidden_word, x)
        guesses = F.normalize(self.guess(fusion.matched(x, mask, y)[hidden]), dim=-1)  # (R, D)
        truth = F.normalize(self.truth(words[hidden]), dim=-1)  # (R, D)
        states = F.normalize(words[hidden], dim=-1)  # (R, S)
        same = (states @ states.T > ALIKE) & ~torch.eye(len(states), dtype=torch.bool, device=states.device)
        logits = (SHARPNESS * guesses @ truth.T).masked_fill(same, -torch.inf)  # (R, R)
        return F.cross_entropy(logits, torch.arange(len(states), device=states.device))

    def tokens(
        self, fusion: Fusion, words: Tensor, mask: Tensor, tokens: Tensor, truth: Tensor, hidden: Tensor
    ) -> Tensor:
        """The loss of guessing what the patches behind hidden tokens are, from the words and the other tokens.

        Args:
            words, mask, tokens: as for ``words``.
            truth: the patches, pooled as the tokens are, ``(B, T, F)``; each is normalised first (MAE, He et al. 2022).
            hidden: which tokens are hidden, bool ``(B, T)``.

        Returns:
            The mean squared error over the hidden tokens; 0 if there are none.
        """
        if not hidden.any():
            return tokens.new_zeros(())
        x, y = fusion.sides(words, torch.where(hidden[..., None], self.hidden_token, tokens))
        padding = torch.cat([(1 - mask) * MASKED, torch.zeros_like(y[:, :, 0])], dim=1)  # (B, L + T)
        stream, _ = self.layer(torch.cat([x, y], dim=1), padding)
        guesses = self.patch(stream[:, x.shape[1] :][hidden])  # (R, F)
        return F.mse_loss(guesses, F.layer_norm(truth[hidden], truth.shape[-1:]))
