"""The contrastive loss against pencil and paper and against a plain twin."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmsearch.training.losses import multi_positive_info_nce


def plain_twin(image: list[list[float]], text: list[list[float]], group: list[int], scale: float) -> float:
    """The definition, in loops: for each row, the mean over its positives of -log softmax."""
    total, count = 0.0, len(group)
    for queries, keys in ((image, text), (text, image)):
        for i in range(count):
            logits = [scale * sum(a * b for a, b in zip(queries[i], key, strict=True)) for key in keys]
            log_sum = math.log(sum(math.exp(x) for x in logits))
            positives = [j for j in range(count) if group[j] == group[i]]
            total += sum(log_sum - logits[j] for j in positives) / len(positives) / count / 2
    return total


def test_two_perfect_pairs_by_hand():
    """Cosines are [[1, 0], [0, 1]]: each row costs -log(e / (e + 1)) = log(1 + 1/e) = 0.31326."""
    eye = torch.eye(2)
    loss = multi_positive_info_nce(eye, eye, torch.tensor([0, 1]), 1.0)
    assert loss.item() == pytest.approx(0.31326, abs=1e-5)


def test_two_captions_of_one_picture_by_hand():
    """The same picture twice, two equal captions: all four cosines are 1, the target (1/2, 1/2), the cost log 2."""
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    grouped = multi_positive_info_nce(same, same, torch.tensor([7, 7]), 5.0)
    assert grouped.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(("batch", "groups"), [(1, [0]), (5, [3, 1, 3, 3, 2]), (7, [0, 1, 2, 3, 4, 5, 6])])
def test_equals_the_plain_twin(batch: int, groups: list[int]):
    generator = torch.Generator().manual_seed(batch)
    image = F.normalize(torch.randn(batch, 6, generator=generator, dtype=torch.float64), dim=1)
    text = F.normalize(torch.randn(batch, 6, generator=generator, dtype=torch.float64), dim=1)
    loss = multi_positive_info_nce(image, text, torch.tensor(groups), 14.3)
    assert loss.item() == pytest.approx(plain_twin(image.tolist(), text.tolist(), groups, 14.3), abs=1e-9)


def test_grouping_is_not_ignored():
    """Were the second caption of a picture a negative, the same batch would cost more."""
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    grouped = multi_positive_info_nce(image, image, torch.tensor([0, 0, 1]), 10.0)
    alone = multi_positive_info_nce(image, image, torch.tensor([0, 1, 2]), 10.0)
    assert grouped.item() == pytest.approx(alone.item(), abs=1e-6)  # uniform targets over equal logits cost the same
    pulled = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    multi_positive_info_nce(image, pulled, torch.tensor([0, 0, 1]), 10.0).backward()
    assert pulled.grad is not None
    assert pulled.grad[1, 0] < 0  # the farther caption is still pulled towards its picture
