"""The end of a transform beside torchvision's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transforms = pytest.importorskip("torchvision.transforms")
open_clip = pytest.importorskip("open_clip")

from indexer.encoders.pixels import preparation  # noqa: E402

SAMPLES = sorted((Path(__file__).parent.parent / "samples").rglob("*.jpg"))[:4]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_pixels_are_those_of_open_clips_transform(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transform = open_clip.image_transform((96, 64), is_train=False, resize_mode=mode, mean=(0.5, 0.4, 0.3))
    prepare = preparation(transform)
    assert len(SAMPLES) == 4
    for path in SAMPLES:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        wanted = transform(image).numpy()
        with monkeypatch.context() as patch:
            patch.setattr(transforms.Normalize, "forward", None)  # it is not asked
            found = prepare(image)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def test_black_and_white_become_what_can_be_reckoned() -> None:
    prepare = preparation(
        transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.25, 0.0), (0.5, 0.5, 2.0))])
    )
    found = prepare(Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)))
    assert found == pytest.approx(np.array([[[-1, 1]], [[-0.5, 1.5]], [[0, 0.5]]]), abs=1e-6)


@pytest.mark.parametrize(
    "transform",
    [
        transforms.Compose([transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32)]),
        transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5, inplace=True)]),
        transforms.ToTensor(),
    ],
)
def test_another_transform_is_called_as_it_is(transform: object) -> None:
    image = Image.radial_gradient("L").convert("RGB")
    np.testing.assert_array_equal(preparation(transform)(image), transform(image).numpy())  # type: ignore[operator]
