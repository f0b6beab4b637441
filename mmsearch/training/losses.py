"""The contrastive loss: pure torch, tensors in, one number out."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def multi_positive_info_nce(image: Tensor, text: Tensor, group: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE in which every text of a picture is a positive of it, and the picture of every one of them.

    InfoNCE is van den Oord et al. 2018 (eq. 4), symmetric as in CLIP (Radford et al. 2021, fig. 3). Where several rows
    of a batch show the same picture, the target of a row is uniform over its positives (Khosla et al. 2020, eq. 2, the
    sum outside the logarithm; Yang et al. 2022, eq. 2-4, over two modalities).

    Args:
        image: rows ``(B, D)`` of one length each.
        text: likewise ``(B, D)``; row i belongs to row i of ``image``.
        group: ``(B,)`` integers; rows with the same number show the same picture.
        logit_scale: what the cosines are multiplied by, the inverse of a temperature.

    Returns:
        The mean over both directions, in nats.

    Example: two unrelated pairs that match perfectly, at scale 1, cost log(1 + exp(-1)) = 0.3133 nats.
    """
    logits = logit_scale * image @ text.T  # (B, B)
    positive = (group[:, None] == group[None, :]).to(logits.dtype)  # (B, B)
    target = positive / positive.sum(dim=1, keepdim=True)  # (B, B), symmetric: both sides have the same groups
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
