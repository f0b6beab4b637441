"""Blocks of vision transformers in whole numbers beside the float32 ones they replace, on this chip and on weaker ones.

A product of bytes is another kernel on each kind of chip. ``ONEDNN_MAX_CPU_ISA`` makes a strong chip choose as a weaker
one would; on a chip that is no stronger it changes nothing.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from torch import nn  # noqa: E402

from indexer.encoders.integers import (  # noqa: E402
    IntegerBlock,
    IntegerPatches,
    PooledTower,
    Product,
    bytes_times,
    in_integers,
    largest_weight,
    observe,
)
from indexer.encoders.rounding import ZERO, cut  # noqa: E402

pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch.ops.onednn, "qlinear_pointwise"), reason="this torch has no products of bytes"
    ),
    pytest.mark.slow(reason="builds whole vision transformers, and repeats kernels in processes of their own"),
]


def seeded(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    return open_clip.create_model(architecture).eval().visual


def pixels(tower: nn.Module, count: int = 4) -> torch.Tensor:
    size = tower.image_size
    return torch.randn(count, 3, *(size if isinstance(size, tuple) else (size, size)))


def test_a_product_is_what_rounding_by_hand_gives() -> None:
    """One channel is a hundred times as large as the others; by the square root of that it is divided more."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(6, 16)), rng.normal(size=6)
    x = rng.normal(size=(10, 16))
    x[:, 3] *= 100
    largest = np.abs(x).max(axis=0)
    product = Product(*(torch.tensor(one, dtype=torch.float32) for one in (weight, bias, largest)))

    share = largest**0.75 / np.abs(weight).max(axis=0) ** 0.25
    divisor = share * (largest / share).max() / 127
    assert product.divisor.numpy() == pytest.approx(divisor, rel=1e-5)
    assert np.abs(x / divisor).max() == pytest.approx(127)
    scale = np.abs(weight * divisor).max(axis=1) / largest_weight()
    rows = np.rint(x / divisor)
    wanted = rows @ np.rint(weight * divisor / scale[:, None]).T * scale + bias
    found = product(torch.from_numpy(rows + ZERO).to(torch.uint8)).numpy()
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    exact = x @ weight.T + bias
    assert np.abs(found - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize("shape", [(1, 16, 8), (5, 100, 33), (130, 768, 64)])
def test_products_of_bytes_are_exact_up_to_the_largest_weight(shape: tuple[int, int, int]) -> None:
    """Also where all are as large as they may be, and neighbours would not fit into 16 bits."""
    count, inner, outer = shape
    rng, top = np.random.default_rng(0), largest_weight()
    assert top in (63, 127)
    for rows, weight in (
        (rng.integers(0, 256, (count, inner)), rng.integers(-top, top + 1, (outer, inner))),
        (np.full((count, inner), 255), np.full((outer, inner), top)),
        (np.full((count, inner), 255), np.full((outer, inner), -top)),
    ):
        packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(weight).to(torch.int8), None)
        scale, bias = rng.uniform(0.5, 2, outer), rng.normal(size=outer)
        found = bytes_times(
            torch.from_numpy(rows).to(torch.uint8), packed, torch.tensor(scale).float(), torch.tensor(bias).float()
        )
        assert found.numpy() == pytest.approx((rows @ weight.T) * scale + bias, rel=1e-5, abs=0.05)


@pytest.mark.parametrize("architecture", ["ViT-S-32-alt", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP"])
def test_a_tower_says_the_same(architecture: str) -> None:
    """Also of pictures that were not observed, and of each whatever its neighbours are."""
    tower = seeded(architecture)
    ranges, _ = observe(tower, lambda: tower(pixels(tower)))
    light = in_integers(copy.deepcopy(tower), ranges)
    blocks = [one for one in light.modules() if isinstance(one, IntegerBlock)]
    pooled = isinstance(light, PooledTower)  # has the last block twice
    assert pooled is ("SigLIP" not in architecture)
    assert len(ranges) == 4 * (len(blocks) - pooled) + 1 and len(blocks) > 9
    assert not any(isinstance(one, IntegerBlock) for one in tower.modules())  # a copy was changed
    given = pixels(tower)
    with torch.inference_mode():
        wanted, found = tower(given), light(given)
        assert torch.nn.functional.cosine_similarity(wanted, found).min() > 0.998
        assert torch.nn.functional.cosine_similarity(light(given[:1]), found[:1]).item() > 0.99999


def test_a_tower_that_is_pooled_at_its_first_token_need_not_know_the_others() -> None:
    """The last block alone is shortened: what it gives is the first token of what it gives for all."""
    tower = seeded("ViT-B-32")
    given = pixels(tower)
    with torch.inference_mode():
        ranges, _ = observe(tower, lambda: tower(given))
        light = in_integers(copy.deepcopy(tower), ranges, torch.float32)
        assert isinstance(light, PooledTower)
        short, whole = light(given), light._whole(given)
    assert short.shape == whole.shape and torch.nn.functional.cosine_similarity(short, whole).min() > 0.9999


def test_patches_are_those_that_the_tokens_of_a_reranker_are_made_of() -> None:
    tower = seeded("ViT-B-32")
    ranges, _ = observe(tower, lambda: tower(pixels(tower)))
    light = in_integers(copy.deepcopy(tower), ranges, torch.float32)
    given = pixels(tower)
    with torch.inference_mode():
        wanted, found = (one.forward_intermediates(given, indices=1, output_fmt="NLC") for one in (tower, light))
    one, other = wanted["image_intermediates"][0], found["image_intermediates"][0]
    assert torch.nn.functional.cosine_similarity(one, other, dim=-1).min() > 0.998


def test_a_layer_scale_is_in_the_weights() -> None:
    torch.manual_seed(0)
    block = open_clip.transformer.ResidualAttentionBlock(64, 4, ls_init_value=0.1).eval()
    block.ls_1.gamma.data.uniform_(-2, 2)
    block.ls_2.gamma.data.uniform_(-2, 2)
    tower, x = nn.Sequential(block), torch.randn(3, 7, 64)
    with torch.inference_mode():
        ranges, wanted = observe(tower, lambda: tower(x))
        found = in_integers(copy.deepcopy(tower), ranges)(x)
    assert (wanted - found).abs().max() < 0.05 * (wanted - x).abs().max()


def test_a_convolution_that_cuts_into_patches_is_a_product() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 8, 4, 4)
    given = torch.randn(2, 3, 13, 9)  # a row and a column are left over
    largest = cut(given, (4, 4)).flatten(0, 2).abs().amax(dim=0)
    with torch.inference_mode():
        wanted, found = convolution(given), IntegerPatches(convolution, largest)(given)
    assert found.shape == wanted.shape == (2, 8, 3, 2)
    assert (wanted - found).abs().max() < 0.02 * wanted.abs().max()


def test_only_the_thread_that_observes_is_observed() -> None:
    tower = seeded("ViT-S-32-alt")
    small, large = pixels(tower), 100 * pixels(tower)

    def run() -> None:
        with torch.inference_mode():
            tower(small)

    def both() -> None:
        run()
        other = threading.Thread(target=lambda: tower(large))
        other.start()
        other.join()

    alone, beside = observe(tower, run)[0], observe(tower, both)[0]
    assert alone.keys() == beside.keys() and all(torch.equal(alone[name], beside[name]) for name in alone)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="it has no blocks that are known"):
        observe(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), lambda: None)
    torch.manual_seed(0)
    block = open_clip.transformer.ResidualAttentionBlock(16, 2, act_layer=nn.ReLU)
    with pytest.raises(ValueError, match="the activation ReLU is not known"):
        IntegerBlock(block, {}, torch.bfloat16)
    with pytest.raises(ValueError, match="a ResidualAttentionBlock of a kind that is not known"):
        observe(nn.Sequential(open_clip.transformer.ResidualAttentionBlock(16, 2, batch_first=False)), lambda: None)
    block = open_clip.transformer.ResidualAttentionBlock(16, 2)
    ranges, _ = observe(nn.Sequential(block), lambda: nn.Sequential(block)(torch.randn(1, 3, 16)))
    with pytest.raises(ValueError, match="with a mask"):
        in_integers(nn.Sequential(block), ranges)[0](torch.randn(1, 3, 16), attn_mask=torch.zeros(3, 3))
    with pytest.raises(KeyError):
        in_integers(nn.Sequential(block, open_clip.transformer.ResidualAttentionBlock(16, 2)), ranges)


WEAKER = ["AVX2", "AVX512_CORE_VNNI"]
KERNELS = ["test_products_of_bytes_are_exact_up_to_the_largest_weight", "test_a_product_is_what_rounding_by_hand_gives"]
KERNELS += ["test_a_convolution_that_cuts_into_patches_is_a_product", "test_a_tower_says_the_same[ViT-S-32-alt]"]


@pytest.mark.parametrize("chip", WEAKER)
def test_on_weaker_chips(chip: str) -> None:
    """Every kernel, and no reference kernel is among them, which would take for ever."""
    kernels = [f"{__file__}::{name}" for name in KERNELS]
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": chip, "ONEDNN_VERBOSE": "1", "OMP_NUM_THREADS": "1"}
    if chip == "AVX2":
        environment["ATEN_CPU_CAPABILITY"] = "avx2"
    command = [sys.executable, "-m", "pytest", *kernels, "-p", "no:xdist", "-p", "no:cacheprovider", "-s"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:]
    products = [line for line in done.stdout.splitlines() if ",exec,cpu,matmul," in line and "src:u8" in line]
    assert products and not [line for line in products if ",ref" in line]
