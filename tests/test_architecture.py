"""The shape of the house: one arrow between the packages, one module for each foreign library, one public face."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import mmsearch

SOURCES = sorted([*(ROOT / "indexer").rglob("*.py"), *(ROOT / "mmsearch").rglob("*.py")])


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_indexer_never_looks_up() -> None:
    assert [
        path.name for path in SOURCES if path.is_relative_to(ROOT / "indexer") and "mmsearch" in imports(path)
    ] == []


@pytest.mark.parametrize(
    ("library", "module"),
    [
        ("faiss", "indexer/faiss_lists.py"),
        ("onnxruntime", "indexer/onnx_session.py"),
        ("sqlalchemy", "indexer/catalogue.py"),
    ],
)
def test_one_module_knows_the_library(library: str, module: str) -> None:
    assert [str(path.relative_to(ROOT)) for path in SOURCES if library in imports(path)] == [module]


def test_nothing_unpickles() -> None:
    for path in SOURCES:
        assert not imports(path) & {"pickle", "dill", "joblib", "shelve"}, path


def test_every_file_opens_with_what_it_is() -> None:
    for path in [*SOURCES, *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert mmsearch.__all__ == sorted(mmsearch.__all__)
    for name in mmsearch.__all__:
        assert getattr(mmsearch, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mmsearch.nonsense


def test_the_wheel_holds_both_packages_their_types_and_the_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        str(path.relative_to(ROOT))
        for package in ("indexer", "mmsearch")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"indexer/py.typed", "mmsearch/py.typed", "indexer/weights/mini/calibration.json"} <= names
    assert any(name.endswith("entry_points.txt") for name in names)
