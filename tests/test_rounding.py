"""What is between the products of a tower in whole numbers: by hand, and compiled beside torch."""

from __future__ import annotations

import copy
import sys
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from indexer.encoders import rounding  # noqa: E402
from indexer.encoders.rounding import Best, InTorch, Norm, Rounding  # noqa: E402


@pytest.fixture(params=["torch", "compiled"])
def passes(request: pytest.FixtureRequest) -> Rounding:
    if request.param == "torch":
        return InTorch()
    pytest.importorskip("numba", reason="the compiled passes need numba, which is not installed")
    return rounding.load()


def norm(width: int, seed: int = 0) -> Norm:
    rng = np.random.default_rng(seed)
    weight, bias = (torch.from_numpy(rng.normal(0, size, width).astype(np.float32)) for size in (30, 5))
    return Norm(weight, bias, 1e-5)


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(1, 40, (count, width)).astype(np.float32))


def assert_nearest(found: torch.Tensor, exact: np.ndarray) -> None:
    """Each number is the nearest, within what float32 knows of where the middle between two is."""
    assert found.dtype is torch.int8 and found.shape == exact.shape
    assert np.abs(found.numpy() - exact.clip(-127, 127)).max() <= 0.5 + 1e-3


def test_halves_go_to_the_even_and_what_is_beyond_is_clipped_and_does_not_turn_round(passes: Rounding) -> None:
    given = [0.4, 0.5, 0.6, 1.5, 2.5, -0.5, -0.6, -1.5, 126.5, 127.5, 300.0, -300.0, 3e9, -3e38, float("inf")]
    wanted = [0, 0, 1, 2, 2, 0, -1, -2, 126, 127, 127, -127, 127, -127, 127]
    for kind in (torch.float32, torch.bfloat16):
        assert passes.whole(torch.tensor([given], dtype=kind)).tolist() == [wanted]
    factors = torch.tensor([0.1, 1.0, 2.0])
    for kind in (torch.float32, torch.bfloat16):
        found = passes.scaled(torch.tensor([[16.0, 3.5, 80.0], [-14.0, 4.5, -63.0]], dtype=kind), factors)
        assert found.tolist() == [[2, 4, 127], [-1, 4, -126]]


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 768), (130, 257)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_numbers_are_scaled_by_channel(passes: Rounding, shape: tuple[int, int], kind: torch.dtype) -> None:
    given = rows(*shape).to(kind)
    factors = rows(1, shape[1], 1)[0] / 20
    exact = given.double().numpy() * factors.double().numpy()
    assert_nearest(passes.scaled(given.clone(), factors), exact)
    assert_nearest(passes.whole(given.clone()), given.double().numpy())
    turned = given.t().contiguous().t()  # columns lie in a row: nobody who calls need know
    assert_nearest(passes.scaled(turned, factors), exact)


@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (5, 768), (130, 257)])
def test_a_norm_is_that_of_float64(passes: Rounding, shape: tuple[int, int]) -> None:
    given, by = rows(*shape), norm(shape[1])
    exact = F.layer_norm(given.double(), given.shape[1:], by.weight.double(), by.bias.double(), by.eps).numpy()
    kept = given.clone()
    assert_nearest(passes.normed(given, by), exact)
    assert torch.equal(given, kept)
    before, to = rows(*shape, seed=1), given - rows(*shape, seed=1)
    sums = to + before
    found = passes.added(before, to, by)
    assert torch.equal(to, sums)
    assert_nearest(
        found, F.layer_norm(sums.double(), sums.shape[1:], by.weight.double(), by.bias.double(), 1e-5).numpy()
    )


def test_a_row_of_equal_numbers_has_a_norm(passes: Rounding) -> None:
    by = norm(9)
    assert passes.normed(torch.full((2, 9), 3.0), by).tolist() == 2 * [by.bias.round().int().tolist()]


def test_a_row_does_not_depend_on_its_neighbours(passes: Rounding) -> None:
    given, by = rows(70, 384), norm(384)
    together = passes.normed(given, by)
    for number in range(len(given)):
        assert torch.equal(passes.normed(given[number : number + 1], by), together[number : number + 1])


@pytest.mark.parametrize("side", [(4, 4), (2, 3)])
def test_patches_are_cut_row_by_row_and_colour_by_colour(passes: Rounding, side: tuple[int, int]) -> None:
    """A row and a column are left over."""
    pixels = rows(2 * 3 * 13, 10).view(2, 3, 13, 10)
    factors = rows(1, 3 * side[0] * side[1], 1)[0] / 30
    exact = [
        pixels[b, :, y : y + side[0], x : x + side[1]].flatten().double().numpy() * factors.double().numpy()
        for b in range(2)
        for y in range(0, 13 - side[0] + 1, side[0])
        for x in range(0, 10 - side[1] + 1, side[1])
    ]
    assert_nearest(passes.patches(pixels, side, factors), np.array(exact))


def test_compiled_passes_say_what_torch_says() -> None:
    """All but the numbers that are as near to one whole number as to another."""
    pytest.importorskip("numba", reason="the compiled passes need numba, which is not installed")
    compiled, plain, given, by = rounding.load(), InTorch(), rows(400, 768), norm(768)
    pixels, factors = rows(2 * 3 * 64, 64).view(2, 3, 64, 64), torch.full((3 * 32 * 32,), 0.7)
    for one, other in (
        (compiled.scaled(given.clone(), by.weight), plain.scaled(given.clone(), by.weight)),
        (compiled.normed(given, by), plain.normed(given, by)),
        (compiled.added(given, given.clone(), by), plain.added(given, given.clone(), by)),
        (compiled.patches(pixels, (32, 32), factors), plain.patches(pixels, (32, 32), factors)),
    ):
        off = (one.int() - other.int()).abs()
        assert off.max() <= 1 and (off > 0).float().mean() < 1e-4


def test_the_compiled_passes_take_over_after_so_many_pictures() -> None:
    pytest.importorskip("numba", reason="the compiled passes need numba, which is not installed")
    best = Best(begin_after=10)
    assert isinstance(best.get(), InTorch) and isinstance(best.get(10), InTorch) and best.faster.loading is None
    assert isinstance(best.get(), InTorch) and best.faster.loading is None
    best.get(1)
    loading = best.faster.loading
    assert loading is not None
    loading.join()
    threads = [threading.Thread(target=best.get, args=(1000,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not isinstance(best.get(), InTorch) and best.faster.loading is loading


def test_without_numba_everything_stays_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "indexer.encoders.rounding_compiled", None)
    best = Best(begin_after=0)
    best.get(1)
    assert best.faster.loading is not None
    best.faster.loading.join()
    assert isinstance(best.get(1), InTorch)


def test_a_tower_says_the_same_when_the_compiled_passes_have_taken_over() -> None:
    pytest.importorskip("numba", reason="the compiled passes need numba, which is not installed")
    open_clip = pytest.importorskip("open_clip")
    from indexer.encoders.integers import in_integers, observe
    from indexer.encoders.precision import INT8, kinds

    if INT8 not in kinds():
        pytest.skip("this chip, or this torch, has no products of bytes")
    torch.manual_seed(0)
    tower = open_clip.create_model("ViT-S-32-alt").eval().visual
    pixels = torch.randn(6, 3, tower.image_size[0], tower.image_size[1])
    with torch.inference_mode():
        ranges, _ = observe(tower, lambda: tower(pixels))
        best = Best(begin_after=9)
        light = in_integers(copy.deepcopy(tower), ranges, best=best)
        plain, exact = light(pixels), tower(pixels)
        assert best.faster.loading is None
        light(pixels)
        assert best.faster.loading is not None
        best.faster.loading.join()
        compiled = light(pixels)
        alone = light(pixels[:1])
    assert not torch.equal(plain, compiled)  # bfloat16 in one place: it did take over
    for found in (plain, compiled):
        assert F.cosine_similarity(found, exact).min() > 0.998
    assert F.cosine_similarity(plain, compiled).min() > 0.999
    assert F.cosine_similarity(alone, compiled[:1]).item() > 0.99999
