"""Changed pictures and captions: every change alone, by hand; off is off; the same numbers give the same change."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from indexer.errors import UsageError
from mmsearch.training.augment import (
    PictureAugmentation,
    crop_box,
    cutout_box,
    drop_words,
    generator,
)
from mmsearch.training.settings import Augmentation

OFF = dict.fromkeys(("crop", "aspect", "mirror", "colour", "grey", "cutout"), 0.0)


def augmentation(seed: int = 0, **strengths: float) -> PictureAugmentation:
    """Only the named changes."""
    return PictureAugmentation(Augmentation(**(OFF | strengths)), seed)


class Draws:
    """A generator that gives the draws it was told, in order: what comes of them can be worked out by hand."""

    def __init__(self, *values: float) -> None:
        self._values = list(values)

    def uniform(self, low: float, high: float) -> float:
        value = self._values.pop(0)
        assert low <= value <= high
        return value

    def integers(self, low: int, high: int) -> int:
        value = int(self._values.pop(0))
        assert low <= value < high
        return value


@pytest.fixture
def noise() -> Image.Image:
    """40 × 30 pixels, no two alike."""
    pixels = np.random.default_rng(3).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def test_off_is_off(noise: Image.Image):
    assert all(same(augmentation()(noise, picture, view), noise) for picture in range(5) for view in range(5))


def test_one_view_is_the_same_in_any_order_and_thread(noise: Image.Image):
    change = PictureAugmentation(Augmentation(grey=0.3, cutout=0.3), seed=4)
    places = [(picture, view) for picture in range(6) for view in range(4)]
    in_order = {place: change(noise, *place).tobytes() for place in places}
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda place: change(noise, *place).tobytes(), reversed(places)))
    assert at_once == [in_order[place] for place in reversed(places)]
    assert len(set(in_order.values())) == len(places)  # each picture and each view has its own
    other = PictureAugmentation(Augmentation(grey=0.3, cutout=0.3), seed=5)
    assert other(noise, 0, 0).tobytes() != in_order[0, 0]


def test_picture_and_view_are_not_mixed_up():
    numbers = {generator("picture", 1, n, v).random() for n, v in ((2, 3), (3, 2), (23, 0), (0, 23))}
    assert len(numbers) == 4
    assert generator("caption", 1, 2, 3).random() not in numbers


def test_crop_by_hand():
    """Half of 400 × 300 at 1.5 : 1 is 300 × 200; it may begin at 0..100 and 0..100."""
    assert crop_box(400, 300, 0.5, 1.67, Draws(0.5, math.log(1.5), 100, 7)) == (100, 7, 400, 207)
    # Of all the area at 1.67, 447 would be wider than the picture: cut to 400.
    assert crop_box(400, 300, 0.5, 1.67, Draws(1.0, math.log(1.67), 0, 32)) == (0, 32, 400, 300)
    # Without an aspect the crop has the picture's proportions: a quarter of it is half as wide and half as high.
    assert crop_box(400, 300, 0.75, 0.0, Draws(0.25, 10, 20)) == (10, 20, 210, 170)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (37, 3), (640, 480)])
def test_boxes_stay_within_the_picture(size: tuple[int, int]):
    width, height = size
    for view in range(200):
        rng = generator("picture", 0, 0, view)
        for left, top, right, bottom in (crop_box(*size, 0.9, 3.0, rng), cutout_box(*size, 0.5, rng)):
            assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_crops_have_the_areas_and_proportions_they_should():
    boxes = [crop_box(1000, 1000, 0.5, 1.25, generator("picture", 0, 0, view)) for view in range(2000)]
    areas = np.array([(right - left) * (bottom - top) / 1e6 for left, top, right, bottom in boxes])
    ratios = np.array([(right - left) / (bottom - top) for left, top, right, bottom in boxes])
    assert 0.498 < areas.min() < 0.505 and 0.98 < areas.max() <= 1
    assert areas.mean() == pytest.approx(0.75, abs=0.02)  # a few of the largest are cut to the picture
    assert ratios.min() > 1 / 1.26 and ratios.max() < 1.26
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.01)  # wide as often as high


def test_mirror_and_grey_alone(noise: Image.Image):
    assert same(augmentation(mirror=1.0)(noise, 0, 0), ImageOps.mirror(noise))
    assert same(augmentation(grey=1.0)(noise, 0, 0), ImageOps.grayscale(noise).convert("RGB"))
    mirrored = [same(augmentation(mirror=0.25)(noise, 0, view), noise) for view in range(400)].count(False)
    assert 70 <= mirrored <= 130


def test_colour_alone_moves_within_its_strength(noise: Image.Image):
    """The plain twin: brightness, contrast and saturation by factors drawn in this order."""
    for view in range(5):
        rng = generator("picture", 9, 2, view)
        rng.random()  # the draw for the mirror
        expected = noise
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            factor = rng.uniform(0.6, 1.4)
            assert 0.6 <= factor <= 1.4
            expected = enhancer(expected).enhance(factor)
        assert same(augmentation(seed=9, colour=0.4)(noise, 2, view), expected)


def test_cutout_paints_one_grey_rectangle_and_spares_the_callers_picture():
    white = Image.new("RGB", (100, 80), (255, 255, 255))
    largest = 0.0
    for view in range(50):
        pixels = np.asarray(augmentation(cutout=0.2)(white, 0, view))
        painted = (pixels == 127).all(axis=2)  # (H, W)
        assert (painted | (pixels == 255).all(axis=2)).all()
        rows, columns = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
        assert painted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        largest = max(largest, painted.mean())
    assert 0.15 < largest < 0.22  # edges are rounded to whole pixels
    assert same(white, Image.new("RGB", (100, 80), (255, 255, 255)))


@pytest.mark.parametrize(
    ("strengths", "message"),
    [({"crop": 1.5}, "crop is 1.5"), ({"aspect": 0.5}, "aspect is 0.5"), ({"mirror": -0.1}, "mirror is -0.1")],
)
def test_strengths_out_of_range_are_refused(strengths: dict[str, float], message: str):
    with pytest.raises(UsageError, match=message):
        Augmentation(**strengths)


def test_a_crop_of_everything_leaves_a_pixel():
    tiny = Image.new("RGB", (2, 2))
    assert min(min(augmentation(crop=1.0)(tiny, 0, view).size) for view in range(100)) == 1


# Captions


def test_no_words_are_dropped_at_zero():
    assert drop_words("  a dog \n runs ", 0.0, np.random.default_rng(0)) == "  a dog \n runs "
    assert drop_words("", 0.5, np.random.default_rng(0)) == ""


def test_the_words_that_stay_keep_their_order_and_never_all_go():
    rng = np.random.default_rng(1)
    words = ["one", "two", "three", "four"]
    for _ in range(500):
        left = drop_words("one two three four", 0.8, rng).split()
        assert left and left == [word for word in words if word in left]


def test_word_dropout_has_the_stated_probability():
    """At 0.1 three words stay whole in 0.729 of the draws: 7,290 ± 45 of 10,000."""
    rng = np.random.default_rng(2)
    found = Counter(drop_words("a dog runs", 0.1, rng) for _ in range(10_000))
    assert found["a dog runs"] == pytest.approx(7290, abs=180)
    assert found["dog runs"] == pytest.approx(810, abs=110)


def test_where_all_words_go_each_is_as_likely_to_stay():
    rng = np.random.default_rng(3)
    found = Counter(drop_words("a dog runs", 1.0, rng) for _ in range(3000))
    assert found.keys() == {"a", "dog", "runs"}
    assert min(found.values()) > 880


def test_a_probability_is_one():
    with pytest.raises(UsageError, match=r"1\.5 is no probability"):
        drop_words("a", 1.5, np.random.default_rng(0))
