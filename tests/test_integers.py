"""Linear layers in whole numbers beside the float32 ones they replace."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from torch import nn  # noqa: E402

from indexer.encoders.integers import IntegerAttention, IntegerLinear, in_integers  # noqa: E402
from indexer.encoders.precision import INT8, kinds  # noqa: E402

pytestmark = pytest.mark.skipif(INT8 not in kinds(), reason="this chip, or this torch, has no products of bytes")


def test_a_layer_is_what_rounding_by_hand_gives() -> None:
    rng = np.random.default_rng(0)
    weight, bias, x = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 16), (6,), (2, 5, 16)))
    x[0, 3] = 0  # a row of zeros
    x[1, 0] *= 1e4  # one large token leaves the others their digits
    layer = IntegerLinear(torch.from_numpy(weight), torch.from_numpy(bias))
    found = layer(torch.from_numpy(x)).numpy()
    columns = np.abs(weight).max(axis=1) / 127
    rows = np.maximum(np.abs(x).max(axis=-1), 1e-12)[..., None] / 127
    wanted = np.rint(x / rows) @ np.rint(weight / columns[:, None]).T * rows * columns + bias
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    exact = x @ weight.T + bias
    assert np.abs(found - exact)[0].max() < 0.1 and np.array_equal(found[0, 3], bias)
    without = IntegerLinear(torch.from_numpy(weight), None)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(without + bias, found, rtol=1e-4, atol=1e-2)


def test_attention_is_near_that_of_torch() -> None:
    torch.manual_seed(0)
    exact = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    x = torch.randn(3, 7, 64)
    with torch.inference_mode():
        wanted = exact(x, x, x, need_weights=False)[0]
        found, weights = IntegerAttention(exact)(x, x, x, need_weights=False, attn_mask=None)
    assert weights is None
    assert torch.nn.functional.cosine_similarity(wanted, found, dim=-1).min() > 0.999


@pytest.mark.parametrize("architecture", ["ViT-S-32-alt", "ViT-B-32-quickgelu"])
def test_a_tower_of_open_clip_says_the_same(architecture: str) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model(architecture).eval()
    light = in_integers(copy.deepcopy(model.visual))
    left = [type(m).__name__ for m in light.modules() if isinstance(m, (nn.Linear, nn.MultiheadAttention))]
    assert left == []
    assert any(isinstance(m, nn.MultiheadAttention) for m in model.visual.modules())  # a copy was changed
    pixels = torch.randn(2, 3, *model.visual.image_size)
    with torch.inference_mode():
        wanted = model.visual.forward_intermediates(pixels, indices=1, output_fmt="NLC")
        found = light.forward_intermediates(pixels, indices=1, output_fmt="NLC")
    for one, other in (
        (wanted["image_features"], found["image_features"]),
        (wanted["image_intermediates"][0], found["image_intermediates"][0]),
    ):
        assert torch.nn.functional.cosine_similarity(one, other, dim=-1).min() > 0.999


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="it has no linear layers"):
        in_integers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    with pytest.raises(ValueError, match="an attention of a kind"):
        IntegerAttention(nn.MultiheadAttention(8, 2))
    attention = IntegerAttention(nn.MultiheadAttention(8, 2, batch_first=True))
    x = torch.randn(1, 3, 8)
    with pytest.raises(ValueError, match="to something else, or with a mask"):
        attention(x, x, x, need_weights=False, attn_mask=torch.zeros(3, 3))
