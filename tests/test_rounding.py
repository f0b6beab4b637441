"""Real numbers to bytes without a sign, by hand."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from indexer.encoders.rounding import ZERO, Norm, cut, normed, rounded  # noqa: E402


def norm(width: int, seed: int = 0) -> Norm:
    rng = np.random.default_rng(seed)
    weight, bias = (torch.from_numpy(rng.normal(0, size, width).astype(np.float32)) for size in (30, 5))
    return Norm(weight, bias, 1e-5)


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(1, 40, (count, width)).astype(np.float32))


def signed(found: torch.Tensor) -> np.ndarray:
    assert found.dtype is torch.uint8
    return found.numpy().astype(int) - ZERO


def assert_nearest(found: torch.Tensor, exact: np.ndarray) -> None:
    """Each number is the nearest, within what float32 knows of where the middle between two is."""
    assert found.shape == exact.shape
    assert np.abs(signed(found) - exact.clip(-127, 127)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_halves_go_to_the_even_and_what_is_beyond_is_clipped_and_does_not_turn_round(kind: torch.dtype) -> None:
    given = [0.4, 0.5, 0.6, 1.5, 2.5, -0.5, -0.6, -1.5, 126.5, 127.5, 300.0, -300.0, 3e9, -3e38, float("inf")]
    wanted = [0, 0, 1, 2, 2, 0, -1, -2, 126, 127, 127, -127, 127, -127, 127]
    assert signed(rounded(torch.tensor([given], dtype=kind))).tolist() == [wanted]


@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (5, 768), (130, 257)])
def test_a_norm_is_that_of_float64(shape: tuple[int, int]) -> None:
    given, by = rows(*shape), norm(shape[1])
    exact = F.layer_norm(given.double(), given.shape[1:], by.weight.double(), by.bias.double(), by.eps).numpy()
    kept = given.clone()
    assert_nearest(normed(given, by), exact)
    assert torch.equal(given, kept)
    turned = given.t().contiguous().t()  # columns lie in a row: nobody who calls need know
    assert_nearest(normed(turned, by), exact)


def test_a_row_of_equal_numbers_has_a_norm() -> None:
    by = norm(9)
    assert signed(normed(torch.full((2, 9), 3.0), by)).tolist() == 2 * [by.bias.round().int().tolist()]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    given, by = rows(70, 384), norm(384)
    together = normed(given, by)
    for number in range(len(given)):
        assert torch.equal(normed(given[number : number + 1], by), together[number : number + 1])


@pytest.mark.parametrize("side", [(4, 4), (2, 3)])
def test_patches_are_cut_row_by_row_and_colour_by_colour(side: tuple[int, int]) -> None:
    """A row and a column are left over."""
    pixels = rows(2 * 3 * 13, 10).view(2, 3, 13, 10)
    exact = [
        pixels[b, :, y : y + side[0], x : x + side[1]].flatten().numpy()
        for b in range(2)
        for y in range(0, 13 - side[0] + 1, side[0])
        for x in range(0, 10 - side[1] + 1, side[1])
    ]
    found = cut(pixels, side)
    assert found.shape == (2, 13 // side[0], 10 // side[1], 3 * side[0] * side[1])
    assert np.array_equal(found.flatten(0, 2).numpy(), np.array(exact))
