"""Cuts and stretches: hard cuts, dissolves, zooms, motion, and frames that show nothing."""

from __future__ import annotations

import numpy as np
import pytest
from moving import Scene, frames, picture
from PIL import Image

from indexer.decode.shots import THUMB, CutFinder, choose, describe, difference

FPS = 4
COLOURS = [(255, 40, 40), (40, 255, 40), (40, 40, 255), (250, 250, 40), (40, 250, 250), (200, 100, 250)]


def thumb(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize(THUMB, Image.Resampling.BOX))


def found(scenes: list[Scene], fps: int = FPS) -> list[float]:
    finder = CutFinder(fps)
    cuts = [cut for i, frame in enumerate(frames(scenes, fps)) for cut in finder.push(i / fps, describe(thumb(frame)))]
    return cuts + finder.flush()


def test_a_frame_is_like_itself_and_unlike_another() -> None:
    red, same, blue = (describe(thumb(picture(rgb))) for rgb in (COLOURS[0], COLOURS[0], COLOURS[2]))
    assert difference(red, same) == pytest.approx(0, abs=1e-6)
    assert difference(red, blue) > 0.5
    assert difference(red, blue) == difference(blue, red)


def test_black_white_and_plain_frames_are_blank() -> None:
    for shade in ((0, 0, 0), (255, 255, 255), (200, 20, 20)):
        assert describe(np.full((24, 32, 3), shade, np.uint8)).blank
    assert not describe(thumb(picture(COLOURS[0]))).blank
    black, white = (describe(np.full((24, 32, 3), shade, np.uint8)) for shade in (0, 255))
    assert difference(black, black) == 0
    assert difference(black, white) == 1


def test_hard_cuts_lie_between_the_two_frames() -> None:
    scenes = [Scene(rgb, seconds) for rgb, seconds in zip(COLOURS, (3, 2, 5, 8, 2, 4), strict=True)]
    assert found(scenes) == [2.875, 4.875, 9.875, 17.875, 19.875]


def test_a_dissolve_is_one_cut_in_its_middle() -> None:
    cuts = found([Scene(COLOURS[0], 5), Scene(COLOURS[1], 5, dissolve=1), Scene(COLOURS[2], 5, dissolve=1.5)])
    assert cuts == pytest.approx([5.5, 10.75], abs=0.5)


def test_a_zoom_and_a_pan_are_no_cuts() -> None:
    assert found([Scene(COLOURS[3], 20, zoom=1.4)]) == []
    wide = np.concatenate([picture(rgb) for rgb in COLOURS], axis=1)  # (64, 6 * 96, 3)
    finder = CutFinder(FPS)
    cuts = [
        cut
        for i in range(160)
        for cut in finder.push(i / FPS, describe(thumb(np.ascontiguousarray(wide[:, 3 * i : 3 * i + 96]))))
    ]
    assert cuts + finder.flush() == []


def test_a_flash_is_no_cut() -> None:
    shown = frames([Scene(COLOURS[0], 6)], FPS)
    shown[12] = np.full_like(shown[12], 255)
    finder = CutFinder(FPS)
    cuts = [cut for i, frame in enumerate(shown) for cut in finder.push(i / FPS, describe(thumb(frame)))]
    assert cuts + finder.flush() == []


def test_the_same_cuts_come_out_of_a_long_video_as_of_its_parts() -> None:
    """What is forgotten on the way is not missed: 20 minutes, and a cut every ten seconds."""
    scenes = [Scene(COLOURS[i % 6], 10) for i in range(120)]
    assert found(scenes) == [10 * i - 0.125 for i in range(1, 120)]


def test_a_still_stretch_is_seen_once_and_a_changing_one_more_often() -> None:
    still = [describe(thumb(picture(COLOURS[0])))] * 9
    assert choose(still, most=4, change=0.16) == [4]
    turning = [describe(thumb(picture(COLOURS[i // 3]))) for i in range(9)]
    chosen = choose(turning, most=4, change=0.16)
    assert len(chosen) == 3 and {i // 3 for i in chosen} == {0, 1, 2}
    assert len(choose(turning, most=2, change=0.16)) == 2
    assert choose([], most=4, change=0.16) == []
