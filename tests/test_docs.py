"""What is written is run: every block of the README, and every command is explained in it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SAMPLES

pytestmark = pytest.mark.slow(reason="runs every block of the README")

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def session(text: str) -> list[tuple[str, list[str]]]:
    """A console block as (command, lines of output)."""
    steps: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif line:
            steps[-1][1].append(line)
    return steps


def without_numbers(lines: list[str]) -> list[str]:
    """Scores, rates and times vary in their last digit from machine to machine; names and order must not."""
    return [NUMBER.sub("#", line).rstrip() for line in lines]


def scores(lines: list[str]) -> list[float]:
    return [float(line.split()[0]) for line in lines if re.match(r" *[01]\.\d\d  ", line)]


CONSOLE = [step for language, text in BLOCKS if language == "console" for step in session(text)]


def test_the_readme_shows_a_session() -> None:
    assert len(CONSOLE) >= 5


def test_every_command_of_the_readme_prints_what_the_readme_shows(tmp_path: Path) -> None:
    environment = os.environ | {
        "MMSEARCH_INDEX": str(tmp_path / "index"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "110",
    }
    for command, expected in CONSOLE:
        assert shlex.split(command)[0] == "mmsearch"
        run = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        printed = (run.stdout or run.stderr).splitlines()  # a slow machine sees progress on stderr, too
        assert without_numbers(printed) == without_numbers(expected), command
        assert scores(printed) == pytest.approx(scores(expected), abs=0.03), command


def test_the_python_blocks_of_the_readme_run(tmp_path: Path) -> None:
    """One after the other in one namespace, in a folder with the photographs of a reader: the samples."""
    blocks = [text for language, text in BLOCKS if language == "python"]
    assert blocks
    (tmp_path / "photos").symlink_to(SAMPLES / "photos")
    code = "\n".join(blocks)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = re.findall(r"^# → (.*)$", code, re.MULTILINE)
    assert expected, "the library block shows what it prints in '# → ' lines"
    assert without_numbers(run.stdout.splitlines()) == without_numbers(expected)


def test_every_command_and_option_is_explained_in_the_reference() -> None:
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    generated = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "write_cli_reference.py")], capture_output=True, text=True, check=True
    )
    assert reference == generated.stdout, "docs/cli.md is stale: python docs/write_cli_reference.py > docs/cli.md"


def test_links_inside_the_project_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
