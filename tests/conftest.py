"""What many tests need: the sample photographs, plain pictures, a library whose answers can be worked out by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from colour_encoder import ColourEncoder
from PIL import Image

import mmsearch
from indexer.embedding import DEFAULT_PRECISION
from indexer.encoders.precision import FLOAT32
from mmsearch.posterior import Scale
from mmsearch.search import Searcher

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(autouse=True, scope="session")
def _in_float32() -> None:
    """Pictures are computed in float32 unless a test says otherwise: what is faster is another thing on each machine.
    For the commands that tests run, too."""
    os.environ[DEFAULT_PRECISION] = FLOAT32


@pytest.fixture
def log_odds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are the log-odds of the calibrations, one match in a thousand, and can be worked out by hand; what they
    mean for a question and a library is another matter, see ``test_posterior``."""
    monkeypatch.setattr(Searcher, "_scale", lambda *_: Scale(1.0, 0.0))


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


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder in which permissions count: as root they would not, so the test goes on as nobody."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=True)
        shutil.rmtree(folder)
