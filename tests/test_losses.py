"""The losses against pencil and paper and against plain twins in loops."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmsearch.training.losses import multi_positive_info_nce, sigmoid_loss, triplet_loss


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


BATCHES = [(1, [4]), (2, [0, 1]), (5, [3, 1, 3, 3, 2]), (6, [7] * 6), (7, [0, 1, 2, 3, 4, 5, 6]), (9, [1, 1, 2] * 3)]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def plain_sigmoid(image: list, text: list, group: list[int], scale: float, bias: float) -> float:
    """Each pair by itself: log(1 + exp(-z · logit)), all of them by the number of rows."""
    total = 0.0
    for i, picture in enumerate(image):
        for j, words in enumerate(text):
            sign = 1 if group[i] == group[j] else -1
            total += math.log(1 + math.exp(-sign * (scale * cosine(picture, words) + bias)))
    return total / len(group)


def plain_triplet(image: list, text: list, group: list[int], margin: float, hardest: bool) -> float:
    """Each row's own pair against every row of another group, both ways."""
    total = 0.0
    for i in range(len(group)):
        own = cosine(image[i], text[i])
        others = [j for j in range(len(group)) if group[j] != group[i]]
        texts = [max(0.0, margin + cosine(image[i], text[j]) - own) for j in others]
        images = [max(0.0, margin + cosine(image[j], text[i]) - own) for j in others]
        total += max(texts, default=0.0) + max(images, default=0.0) if hardest else sum(texts) + sum(images)
    return total / len(group)


def numeric_gradient(value: Callable[[list[list[float]]], float], at: list[list[float]]) -> list[list[float]]:
    """Central differences, one coordinate at a time."""
    step = 1e-6
    slopes = [[0.0] * len(row) for row in at]
    for i, row in enumerate(at):
        for k in range(len(row)):
            ahead, behind = [list(r) for r in at], [list(r) for r in at]
            ahead[i][k] += step
            behind[i][k] -= step
            slopes[i][k] = (value(ahead) - value(behind)) / (2 * step)
    return slopes


LOSSES = {
    "multi-positive InfoNCE": (lambda i, t, g: multi_positive_info_nce(i, t, g, 6.5), plain_twin, (6.5,)),
    "sigmoid": (lambda i, t, g: sigmoid_loss(i, t, g, 6.5, -2.0), plain_sigmoid, (6.5, -2.0)),
    "triplet": (lambda i, t, g: triplet_loss(i, t, g, 0.3), plain_triplet, (0.3, True)),
    "all triplets": (lambda i, t, g: triplet_loss(i, t, g, 0.3, hardest=False), plain_triplet, (0.3, False)),
}


@pytest.mark.parametrize(("batch", "groups"), BATCHES)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_equal_the_plain_twin(name: str, batch: int, groups: list[int]):
    loss, plain, numbers = LOSSES[name]
    generator = torch.Generator().manual_seed(100 + batch)
    rows = F.normalize(torch.randn(2, batch, 3, generator=generator, dtype=torch.float64), dim=2)
    image, text = (part.clone().requires_grad_() for part in rows)
    value = loss(image, text, torch.tensor(groups))
    value.backward()
    first, second = rows.tolist()
    assert value.item() == pytest.approx(plain(first, second, groups, *numbers), abs=1e-9)
    by_image = numeric_gradient(lambda at: plain(at, second, groups, *numbers), first)
    by_text = numeric_gradient(lambda at: plain(first, at, groups, *numbers), second)
    assert image.grad is not None and text.grad is not None
    assert image.grad.numpy() == pytest.approx(np.array(by_image), abs=1e-6)
    assert text.grad.numpy() == pytest.approx(np.array(by_text), abs=1e-6)


def test_sigmoid_by_hand():
    """Scale 10, bias -10: two matches of logit 0 at log 2, two others of logit -10 at log(1 + exp(-10)), by 2 rows."""
    eye = torch.eye(2)
    loss = sigmoid_loss(eye, eye, torch.tensor([0, 1]), 10.0, -10.0)
    assert loss.item() == pytest.approx(0.693193, abs=1e-6)


def test_sigmoid_of_two_captions_of_one_picture_by_hand():
    """All four pairs match and have the logit 10 - 10 = 0: 4 log 2 by 2 rows. As negatives they would cost the same, so
    the slope by the bias must tell: it is -4 · 1/2 by 2 rows = -1, and not 0."""
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    bias = torch.tensor(-10.0, requires_grad=True)
    loss = sigmoid_loss(same, same, torch.tensor([5, 5]), 10.0, bias)
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-6)
    assert bias.grad == pytest.approx(-1.0, abs=1e-6)


def test_sigmoid_stays_finite_where_exp_does_not():
    """Every answer wrong at logits of ±200, exp of which is no float32: 200 for each of 4 pairs, by 2 rows."""
    image = torch.eye(2)
    loss = sigmoid_loss(image, 1 - image, torch.tensor([0, 1]), 400.0, -200.0)
    assert loss.item() == pytest.approx(400.0, rel=1e-6)


def test_triplets_by_hand():
    """Cosines [[1, 0.6], [0, 0.8]], margin 0.5: over it are 0.1 (second text) and 0.3 (first picture), by 2 rows."""
    image, text = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert triplet_loss(image, text, torch.tensor([0, 1]), 0.5).item() == pytest.approx(0.2, abs=1e-6)
    assert triplet_loss(image, text, torch.tensor([3, 3]), 0.5).item() == 0.0  # two captions of one picture


def test_only_the_hardest_triplet_counts():
    """The first picture has two equally wrong texts, 0.3 + 0.8 - 1 = 0.1 each: one of them counts, or both."""
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6]])
    group = torch.tensor([0, 1, 1])
    # The texts of the other two: own cosine 0.6, the first picture is at 0.8, so 0.3 + 0.8 - 0.6 = 0.5 each.
    assert triplet_loss(image, text, group, 0.3).item() == pytest.approx((0.1 + 0.5 + 0.5) / 3, abs=1e-6)
    everything = triplet_loss(image, text, group, 0.3, hardest=False)
    assert everything.item() == pytest.approx((0.2 + 0.5 + 0.5) / 3, abs=1e-6)
