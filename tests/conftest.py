"""What many tests need: the sample photographs, plain pictures, a library whose answers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from colour_encoder import ColourEncoder
from PIL import Image

import mmsearch

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def paint(tmp_path: Path) -> Callable[..., Path]:
    """``paint("a/red.png", (255, 0, 0))`` writes a plain picture below ``tmp_path / "photos"`` and returns its path."""

    def _paint(name: str, colour: tuple[int, int, int], size: int = 16) -> Path:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), colour).save(path)
        return path

    return _paint


@pytest.fixture
def photos(paint: Callable[..., Path]) -> Path:
    """A folder with a red, a green and a blue picture and a text about each."""
    paint("red.png", RED)
    paint("green.png", GREEN)
    folder = paint("blue.png", BLUE).parent
    (folder / "notes.txt").write_text("a red thing\n\na green thing\n\na blue thing\n")
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Iterator[mmsearch.Library]:
    """An empty library with the colour encoder."""
    with mmsearch.open(tmp_path / "index", model=ColourEncoder()) as library:
        yield library
