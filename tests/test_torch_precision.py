"""The precision of torch models, on small ones that are real: what is converted, what is not, and the race."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from indexer.encoders.precision import BFLOAT16, FLOAT32, INT8  # noqa: E402
from indexer.encoders.race import Race  # noqa: E402
from indexer.encoders.torch_precision import TorchPrecision  # noqa: E402

SIDE, WIDTH = 8, 16


class Model(torch.nn.Module):
    """Pictures ``(B, 3, 8, 8)`` to vectors ``(B, 16)``: 4 by 4 patches, a block of a vision transformer, the mean."""

    def __init__(self, block: torch.nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = torch.nn.ModuleDict(
            {
                "patches": torch.nn.Conv2d(3, WIDTH, 4, 4),
                "block": block or open_clip.transformer.ResidualAttentionBlock(WIDTH, 2),
            }
        ).eval()


class OnlyFloat32(torch.nn.Linear):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.dtype is not torch.float32:
            raise RuntimeError("no kernel for this type")
        return super().forward(pixels)


def features(model: Model, pixels: torch.Tensor) -> tuple[np.ndarray, ...]:
    tokens = model.visual["patches"](pixels).flatten(2).transpose(1, 2)  # (B, 4, 16)
    return (model.visual["block"](tokens).mean(dim=1).float().numpy(),)


def prepare(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize((SIDE, SIDE)), np.float32).transpose(2, 0, 1) / 64 - 2


def made(model: Model, device: str = "cpu") -> TorchPrecision:
    questions = np.random.default_rng(1).normal(size=(3, WIDTH)).astype(np.float32)
    return TorchPrecision(model, torch.device(device), features, prepare, lambda: questions)


def wins(kind: str) -> Race:
    return Race(kind, 2.0, 0.1, "a: 1 ms, in float32 2 ms")


@pytest.mark.parametrize("kind", [INT8, BFLOAT16])
def test_a_model_is_converted_when_its_precision_is_adopted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model itself stays as it is; what is adopted again with the same ranges says the same."""
    model = Model()
    precision = made(model)
    if kind not in precision.kinds:
        pytest.skip("this torch has no products of bytes")
    monkeypatch.setattr(precision, "_race", wins)
    batch = precision.prepared()[:6]
    with torch.inference_mode():
        (exact,) = features(model, torch.from_numpy(batch))
    assert precision.run(batch, features)[0] == pytest.approx(exact, abs=1e-6)
    assert precision.decide(kind) == kind == precision.verdict.precision
    (found,) = precision.run(batch, features)
    assert np.abs(found - exact).max() > 1e-4
    cosines = (found * exact).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosines.min() > 0.99
    with torch.inference_mode():
        assert features(model, torch.from_numpy(batch))[0] == pytest.approx(exact, abs=1e-6)
    again = made(Model())
    monkeypatch.setattr(again, "_race", wins)
    again.adopt(kind, precision.ranges)
    assert again.run(batch, features)[0] == pytest.approx(found, abs=1e-6)
    precision.adopt(FLOAT32, {})
    assert precision._light == {} and precision.run(batch, features)[0] == pytest.approx(exact, abs=1e-6)


def test_ranges_are_those_of_the_calibration_pictures() -> None:
    """One range by hand: that of the pixels, cut into patches."""
    precision = made(Model())
    if INT8 not in precision.kinds:
        pytest.skip("this torch has no products of bytes")
    precision._learn(INT8)
    pixels = precision.prepared()
    assert pixels.shape == (12, 3, SIDE, SIDE)
    rows = pixels.reshape(12, 3, 2, 4, 2, 4).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 48)
    assert np.array_equal(precision.ranges["patches.patches"], np.abs(rows).max(axis=0))
    assert precision.ranges.keys() == {"patches.patches", *(f"block.{name}" for name in ("qkv", "out", "up", "down"))}
    assert precision.exact is not None and precision.exact == pytest.approx(
        precision._vectors(FLOAT32, pixels), abs=1e-5
    )


def test_a_model_without_known_blocks_is_had_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    precision = made(Model(torch.nn.Linear(WIDTH, WIDTH)))
    monkeypatch.setattr(precision, "_race", wins)
    monkeypatch.setattr("indexer.encoders.precision.LEAST_GAIN", 0.0)
    assert precision.decide() == BFLOAT16


def test_a_model_that_has_no_bfloat16_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    precision = made(Model(OnlyFloat32(WIDTH, WIDTH)))
    monkeypatch.setattr(precision, "_race", wins)
    assert precision.decide() == FLOAT32
    assert "the model cannot be had in bfloat16 (no kernel for this type)" in precision.verdict.why


def test_numbers_that_need_more_digits_than_bfloat16_has_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are near 1,000, where bfloat16 has only multiples of 4."""
    block = torch.nn.Linear(WIDTH, WIDTH)
    block.bias.data.fill_(1000.0)
    precision = made(Model(block))
    monkeypatch.setattr(precision, "_race", wins)
    assert precision.decide() == FLOAT32 and "bfloat16 does not find the same: cosine 1.0" in precision.verdict.why


def test_nothing_is_tried_on_other_devices() -> None:
    assert made(Model(), "meta").decide() == FLOAT32


def test_races_of_real_products_are_given_up_or_have_a_gain() -> None:
    for kind in made(Model()).kinds:
        race = made(Model())._race(kind)
        assert race.kind == kind and race.gain >= 0
        assert race.figures.startswith(("8×", "128×"))


def test_the_shapes_of_a_race_are_those_of_the_model() -> None:
    from indexer.encoders.torch_precision import _halves_way, _heats, _shapes

    assert _shapes([Model().visual]) == [(16, 16), (16, 48), (16, 64), (64, 16)]
    assert _shapes([torch.nn.ReLU()]) == [(256, 256)]
    names = [heat.name for heat in _heats([(16, 96), (96, 128)], _halves_way)]
    assert names == ["8×16×64", "128×16×96", "128×96×128"]
    for heat in _heats([(16, 96)], _halves_way):
        exact, light = heat.exact(), heat.light()
        assert exact.shape == light.shape  # type: ignore[attr-defined]
