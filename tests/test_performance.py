"""Where a run's time goes: the arithmetic by hand, the figures of real runs, and what a stopped one leaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmsearch
from indexer import performing
from indexer.performance import FILE, Meter, Performance, Stage, load
from indexer.reading import IMAGE_BATCH
from indexer.reports import Progress
from mmsearch.present import performance_line, performance_lines

FIGURES = Performance(
    started="2026-01-01T00:00:00+00:00",
    seconds=100.0,
    finished=True,
    model="mini",
    precision="float32",
    why="nothing else is tried with this model",
    reading=Stage(2, 4000, 20.0, 180.0),
    embedding=Stage(2, 4000, 190.0, 10.0),
    storing=Stage(1, 4000, 8.0, 92.0),
)


def test_rates_are_those_of_a_stage_that_never_waits() -> None:
    """Two threads that work 20 seconds together, ten each, on 4,000 files: 400 a second."""
    assert (FIGURES.reading.rate, FIGURES.storing.rate) == (400.0, 500.0)
    assert FIGURES.embedding.rate == pytest.approx(4000 / 95)
    assert Stage(2, 0, 0.0, 0.0).rate == 0.0


def test_for_people() -> None:
    assert performance_lines(FIGURES) == [
        "run        2026-01-01T00:00:00+00:00, 1 min 40 s, 40.0 pictures/s",
        "model      mini, float32: nothing else is tried with this model",
        "reading    4,000 files in 2 threads: 20 s of work, 400.0 files/s, waited 3 min 00 s (90%)",
        "embedding  4,000 pictures in 2 streams: 3 min 10 s of work, 42.1 pictures/s, waited 10 s (5%)",
        "storing    4,000 pictures in 1 thread: 8.0 s of work, 500.0 pictures/s, waited 1 min 32 s (92%)",
    ]
    assert performance_line(FIGURES) == (
        "pictures in float32, 2 streams; of its time the model waited 5% for pictures, and reading 90% for the model"
    )


def test_work_and_waiting_add_up_to_the_time_of_the_threads() -> None:
    meter = Meter(2)
    began = time.perf_counter()
    lasted: list[float] = []
    both = threading.Barrier(2, timeout=30)

    def two_pieces(pause: float) -> None:
        both.wait()
        for _ in range(2):
            with meter.work(3):
                time.sleep(0.02)
            lasted.append(time.perf_counter() - began)
            time.sleep(pause)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(two_pieces, (0.0, 0.05)))
    stage = meter.stage()
    ends = lasted[-1] + max(lasted[:-1]) if lasted[-1] == max(lasted) else None
    assert (stage.workers, stage.count) == (2, 12)
    assert stage.seconds >= 0.08 and stage.waited >= 0.05
    assert ends is not None and stage.seconds + stage.waited == pytest.approx(ends, abs=0.03)


def test_what_fails_was_work_too() -> None:
    meter = Meter(1)
    with pytest.raises(ZeroDivisionError), meter.work():
        _ = 1 // 0
    assert meter.stage().count == 1


def test_figures_survive_their_file_and_damaged_ones_are_none(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    FIGURES.save(tmp_path)
    assert load(tmp_path) == FIGURES
    assert json.loads((tmp_path / FILE).read_text())["reading"]["rate"] == 400.0
    for content in ("", "[]", '{"seconds": 1}'):
        (tmp_path / FILE).write_text(content)
        assert load(tmp_path) is None
    FIGURES.save(tmp_path / "nowhere")  # is no reason to fail


def test_figures_of_a_version_that_wrote_more_are_read(tmp_path: Path) -> None:
    """An earlier one named the decoder of pictures as well."""
    (tmp_path / FILE).write_text(json.dumps(FIGURES.as_dict() | {"decoder": "Pillow 12, libjpeg-turbo 3"}))
    assert load(tmp_path) == FIGURES


def test_a_run_says_what_each_stage_did(photos: Path, library: mmsearch.Library) -> None:
    report = library.index(photos)
    figures = report.performance
    assert figures is not None and figures == library.performance()
    assert figures.finished and figures.model == library.encoder.name and figures.precision == "float32"
    assert (figures.reading.count, figures.embedding.count, figures.storing.count) == (4, 3, 3)
    assert figures.embedding.workers == 1
    for stage in (figures.reading, figures.embedding, figures.storing):
        assert stage.seconds > 0 <= stage.waited
        assert stage.seconds + stage.waited <= stage.workers * figures.seconds + 0.01


def test_a_run_without_new_pictures_leaves_the_figures_of_the_one_before(
    photos: Path, library: mmsearch.Library
) -> None:
    library.index(photos)
    before = library.performance()
    (photos / "more.txt").write_text("an orange thing\n")
    assert library.index(photos).added == 1
    assert before is not None and library.performance() == before


def test_a_killed_run_leaves_the_figures_of_a_moment_ago(
    tmp_path: Path, library: mmsearch.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read here while the run goes on: a kill would leave just these. Ctrl-C leaves the very last."""
    monkeypatch.setattr(performing, "SAVE_SECONDS", 0.0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(5 * IMAGE_BATCH):
        Image.new("RGB", (2, 2), (n, 255 - n, 7)).save(folder / f"{n:03}.png")
    seen: list[Performance] = []

    def look(progress: Progress) -> None:
        if (figures := load(library.folder)) is not None:
            seen.append(figures)
        if progress.done == progress.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.index(folder, progress=look)
    assert seen and not seen[0].finished
    assert seen[0].storing.count % IMAGE_BATCH == 0 and seen[0].storing.count >= IMAGE_BATCH
    last = library.performance()
    assert last is not None and not last.finished and last.seconds > seen[0].seconds


def test_a_model_that_is_quicker_than_the_disk_waits_for_it(
    tmp_path: Path, paint: Callable[..., Path], library: mmsearch.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = library.encoder.prepare

    def slowly(image: Image.Image) -> np.ndarray:
        time.sleep(0.01)
        return prepare(image)

    monkeypatch.setattr(library.encoder, "prepare", slowly)
    for n in range(2 * IMAGE_BATCH):  # fewer than are read ahead, so that reading never waits
        paint(f"{n}.png", (n, 0, 0), 1)
    figures = library.index(tmp_path / "photos").performance
    assert figures is not None
    assert figures.embedding.waited > 0.9 * figures.reading.seconds / figures.reading.workers / 2
    assert figures.reading.seconds >= 0.01 * 2 * IMAGE_BATCH > figures.embedding.seconds
