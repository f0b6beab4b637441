"""The benchmarks' own arithmetic: what is drawn is what the table says, large pictures are what they are said to be."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
HEAD = "figure\tseries\tx\tvalue\tunit\n"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return module


def test_the_table_of_results_is_read_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    plots = load("plots", monkeypatch)
    table = tmp_path / "results.tsv"
    table.write_text(
        HEAD + "cold\t2,000\tmmsearch\t0.25\tseconds\ncold\t2,000\trclip\t2\tseconds\n"
        "search\tours\t10000\t0.5\tmilliseconds\nsearch\tours\t1000000\t2\tmilliseconds\n"
        "search\tours\t10000\t1\trecall@10\n"
    )
    figures = plots.read(table)
    assert figures == {
        "cold": {"seconds": {"2,000": {"mmsearch": 0.25, "rclip": 2.0}}},
        "search": {"milliseconds": {"ours": {"10000": 0.5, "1000000": 2.0}}, "recall@10": {"ours": {"10000": 1.0}}},
    }
    monkeypatch.setattr(sys, "argv", ["plots.py", "--results", str(table), "--out", str(tmp_path)])
    plots.main()
    for name in figures:
        with Image.open(tmp_path / f"{name}.png") as drawn:
            assert drawn.convert("RGB").getpixel((0, 0)) == (255, 255, 255)  # also where the page is dark
    table.write_text(HEAD + "cold\t2,000\tmmsearch\tfast\tseconds\n")
    with pytest.raises(ValueError, match="line 2: could not convert"):
        plots.read(table)


def test_the_results_that_ship_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    plots = load("plots", monkeypatch)
    for panels in plots.read(BENCHMARKS / "results.tsv").values():
        assert all(value > 0 for series in panels.values() for points in series.values() for value in points.values())


def test_an_enlarged_picture_keeps_its_looks_and_has_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexing = load("indexing", monkeypatch)
    monkeypatch.setattr(indexing, "LARGE", (400, 300))
    Image.new("RGB", (4, 3), (90, 120, 150)).save(tmp_path / "grey.png")
    indexing.enlarge(tmp_path, 7, tmp_path / "grey.png")
    with Image.open(tmp_path / "IMG_0007.jpg") as made:
        pixels = np.asarray(made, np.float32)
    assert pixels.shape == (300, 400, 3)
    assert np.allclose(pixels.mean((0, 1)), (90, 120, 150), atol=1.2)  # JPEG rounds
    assert pixels.mean(2).std() == pytest.approx(indexing.NOISE, abs=0.7)


def test_the_search_benchmark_runs_and_filters_are_exact(tmp_path: Path) -> None:
    """On so few vectors that everything is scanned, recall is 1 also where few rows are allowed."""
    command = [sys.executable, str(BENCHMARKS / "search.py"), "--rows", "3000", "--dim", "32", "--rounds", "1"]
    run = subprocess.run(
        [*command, "--shape", "clustered", "--without", "hnsw", "usearch"],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    rows = [line.split(" | ") for line in run.stdout.splitlines() if line.startswith("| ours")]
    assert [row[0] for row in rows][1:4] == [f"| ours, {n:,} rows allowed" for n in (100, 30, 1500)]
    assert {row[3] for row in rows} == {"1.000"}
