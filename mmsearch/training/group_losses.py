"""The losses of a reranker: logits of all pairs inside of groups in, one number out; pure torch.

    list_loss    which of the group belongs to this one?          softmax over a row, and over a column
    hinge_loss   is the own one better than the worst other?      a margin, to the hardest of a row and of a column
    match_loss   do these two belong together?                    every pair by itself

Letters: G groups of n texts and their n pictures. ``logits: (G, n, n)`` are those of text i with picture j; i belongs
to i. ``ignored: (G, n, n)`` are pairs that are neither matches nor mismatches, as what is said of both pictures is
nearly the same; never one of i with i.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NEVER = -1e9
"""The logit of a pair that is ignored."""


def list_loss(logits: Tensor, ignored: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the right answer in the list of all answers (ListNet with one right answer, Cao et al. 2007).

    Args:
        smoothing: the part of the target that is spread evenly over the list (Szegedy et al. 2016, section 7).

    Returns:
        The mean over all texts and all pictures, in nats.

    Example: one group of two, logits ((1, 0), (0, 1)): log(1 + exp(-1)) = 0.3133. With a smoothing of 0.2 the target is
    (0.9, 0.1) and the loss 0.3133 + 0.1 · 1 = 0.4133.
    """
    return (_lists(logits, ignored, smoothing) + _lists(logits.mT, ignored.mT, smoothing)) / 2


def _lists(logits: Tensor, ignored: Tensor, smoothing: float) -> Tensor:
    scores = logits.masked_fill(ignored, NEVER).log_softmax(dim=-1).masked_fill(ignored, 0)  # (G, n, n)
    own = scores.diagonal(dim1=-2, dim2=-1)  # (G, n)
    even = scores.sum(dim=-1) / (~ignored).sum(dim=-1)  # (G, n)
    return -((1 - smoothing) * own + smoothing * even).mean()


def hinge_loss(logits: Tensor, ignored: Tensor, margin: float) -> Tensor:
    """How far the hardest wrong answers come within ``margin`` of the right one (VSE++, Faghri et al. 2018, eq. 6).

    Returns:
        The sum over both directions, the mean over the pairs that belong together; 0 in a group of one.

    Example: one group of two, logits ((1, 0.7), (0, 1)), margin 0.5: text 0 and picture 1 cost 0.5 + 0.7 - 1 = 0.2
    each, text 1 and picture 0 nothing: 0.4 / 2 = 0.2.
    """
    own = logits.diagonal(dim1=-2, dim2=-1)  # (G, n)
    wrong = ~ignored & ~torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    within = (margin + logits).masked_fill(~wrong, NEVER)  # (G, n, n)
    cost = (within.amax(dim=-1) - own).clamp_min(0) + (within.amax(dim=-2) - own).clamp_min(0)  # (G, n)
    return cost.mean()


def match_loss(logits: Tensor, ignored: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of every pair; those that belong together weigh as much in all as those that do not.

    Image-text matching (ALBEF, Li et al. 2021, section 3.2), which takes one wrong partner of each side; here all wrong
    pairs of a group count.

    Args:
        smoothing: by how much the labels 1 and 0 move towards each other, half of it each.

    Example: one group of two, logits ((1, 0), (0, 1)): (log(1 + exp(-1)) + log 2) / 2 = 0.5032.
    """
    match = torch.eye(logits.shape[-1], device=logits.device).expand_as(logits)  # (G, n, n)
    cost = F.binary_cross_entropy_with_logits(logits, match * (1 - smoothing) + smoothing / 2, reduction="none")
    counted = (~ignored).to(logits.dtype)
    wrong = counted * (1 - match)
    return ((cost * match).sum() / match.sum() + (cost * wrong).sum() / wrong.sum().clamp_min(1)) / 2
