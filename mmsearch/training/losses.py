"""The losses of pairs of pictures and texts: pure torch, tensors in, one number out.

    multi_positive_info_nce    which of the batch belongs to this one?     softmax over a row
    sigmoid_loss               do these two belong together?               every pair by itself
    triplet_loss               is the own one nearer than the others?      a margin, mostly to the hardest

In each of them, rows of one ``group`` show the same picture and are never negatives of each other.
"""

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


def sigmoid_loss(
    image: Tensor, text: Tensor, group: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float
) -> Tensor:
    """Every picture with every text of the batch as a question of its own: do they belong together?

    SigLIP, Zhai et al. 2023, section 3.1 and algorithm 1: with ``z_ij`` = 1 where row i and row j show the same picture
    and -1 elsewhere, ``-1/B Σ_i Σ_j log σ(z_ij (logit_scale · image_i · text_j + logit_bias))``. The sum is over all B²
    pairs and divided by the rows, not by the pairs. As most pairs are negatives, the bias begins at -10 there (and the
    scale at 10), so that the first steps do not go into learning that.

    Args:
        image: unit rows ``(B, D)``.
        text: unit rows ``(B, D)``; row i belongs to row i of ``image``.
        group: ``(B,)`` integers; rows with the same number show the same picture.
        logit_scale: what the cosines are multiplied by.
        logit_bias: what is added to the products.

    Returns:
        The sum over all pairs by row, in nats.

    Example: two unrelated pairs that match perfectly, at scale 10 and bias -10. The logits of the matches are 0 and
    cost log 2 = 0.693147 each, those of the others are -10 and cost log(1 + exp(-10)) = 0.000045 each: 0.693193 a row.
    """
    logits = logit_scale * image @ text.T + logit_bias  # (B, B)
    sign = 2 * (group[:, None] == group[None, :]).to(logits.dtype) - 1  # (B, B)
    return -F.logsigmoid(sign * logits).sum() / len(group)


def triplet_loss(image: Tensor, text: Tensor, group: Tensor, margin: float = 0.2, hardest: bool = True) -> Tensor:
    """How far other pictures and texts come within ``margin`` of a row's own pair.

    VSE++, Faghri et al. 2018: with ``[x] = max(x, 0)`` and s the cosine, a pair (i, c) costs
    ``max_c' [margin + s(i, c') - s(i, c)] + max_i' [margin + s(i', c) - s(i, c)]`` (eq. 6); without ``hardest`` it is
    the sums over c' and i' instead of the maxima (eq. 5). The negatives c' and i' are those of other pictures; a row
    without any costs nothing. Of negatives that are equally hard, each takes an equal part of the gradient.

    Args:
        image: unit rows ``(B, D)``.
        text: unit rows ``(B, D)``; row i belongs to row i of ``image``.
        group: ``(B,)`` integers; rows with the same number show the same picture.
        margin: a cosine.
        hardest: only the hardest negative of each direction counts, as in eq. 6.

    Returns:
        The mean over the rows.

    Example: pictures (1, 0) and (0, 1), texts (1, 0) and (0.6, 0.8), margin 0.5. The cosines are 1 and 0.6 for the
    first picture, 0 and 0.8 for the second. The second text is within the margin of the first picture by
    0.5 + 0.6 - 1 = 0.1, the first picture within that of the second text by 0.5 + 0.6 - 0.8 = 0.3. The loss is
    (0.1 + 0.3) / 2 = 0.2.
    """
    scores = image @ text.T  # (B, B)
    own = scores.diagonal()  # (B,)
    same = group[:, None] == group[None, :]  # (B, B)
    wrong_text = (margin + scores - own[:, None]).clamp_min(0).masked_fill(same, 0)  # (B, B) along a row
    wrong_image = (margin + scores - own[None, :]).clamp_min(0).masked_fill(same, 0)  # (B, B) along a column
    if hardest:
        cost = wrong_text.amax(dim=1) + wrong_image.amax(dim=0)  # (B,)
    else:
        cost = wrong_text.sum(dim=1) + wrong_image.sum(dim=0)  # (B,)
    return cost.mean()
