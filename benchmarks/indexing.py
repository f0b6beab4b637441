"""How fast, and in how much memory, the command indexes a folder; and what it costs when nothing has changed.

    python benchmarks/indexing.py ../shared/data/flickr8k/images
    python benchmarks/indexing.py FOLDER --model ViT-B-32 --pictures 2000 --runs 5 --float32 --rclip VENV/bin/rclip

Each run is a process of its own, start-up included; memory is the peak resident size that the operating system counted.
``--model ARCHITECTURE`` without a tag is open_clip's architecture with random weights: speed does not depend on them.
With ``--float32`` and ``--rclip`` all take turns over the same pictures, and each also indexes a few of them, so that
the difference says how fast it is once it is running. rclip finds its weights in ``RCLIP_DATADIR``; see
``rclip_weights.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mmsearch
from mmsearch.present import performance_lines

FLOAT32 = "from indexer.encoders import precision; precision.INSTRUCTIONS = (); from mmsearch.cli import main; main()"
FEW = 64


def run(command: list[str], **options: object) -> tuple[float, float, str]:
    """Wall seconds, peak memory in MB and the output of one process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024, answer


def index(pictures: Path, model: str, folder: Path, start: list[str]) -> tuple[float, float, dict[str, object]]:
    """Wall seconds, peak memory in MB and the report of one ``mmsearch index``."""
    asked = ["index", str(pictures), "--index", str(folder), "--model", model, "--json"]
    seconds, memory, answer = run([sys.executable, *start, *asked])
    return seconds, memory, json.loads(answer)


@contextmanager
def rclip_home() -> Iterator[dict[str, str]]:
    """The environment of an rclip that has weights and no index yet."""
    with tempfile.TemporaryDirectory() as scratch:
        for folder in Path(os.environ["RCLIP_DATADIR"]).iterdir():
            if folder.is_dir():
                Path(scratch, folder.name).symlink_to(folder.absolute())
        yield os.environ | {"RCLIP_DATADIR": scratch}


def once(name: str, pictures: Path, model: str, rclip: Path | None) -> tuple[float, float]:
    """Wall seconds and peak memory of one index made by ``name``."""
    if name == "rclip":
        with rclip_home() as environment:
            return run([str(rclip), "a dog"], cwd=pictures, env=environment)[:2]
    with tempfile.TemporaryDirectory() as scratch:
        start = ["-c", FLOAT32] if name == "float32" else ["-P", "-m", "mmsearch"]
        return index(pictures, model, Path(scratch, "index"), start)[:2]


def compare(names: list[str], many: Path, model: str, rclip: Path | None, runs: int) -> None:
    """All of ``names`` in turn, over all pictures and over a few; print medians and the ratio to ``mmsearch``."""
    count = len(list(many.iterdir()))
    with tempfile.TemporaryDirectory() as scratch:
        for picture in sorted(many.iterdir())[:FEW]:
            shutil.copy(picture, scratch)
        rates: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
        for _ in range(runs):
            for name in names:
                few, _ = once(name, Path(scratch), model, rclip)
                all_, memory = once(name, many, model, rclip)
                rates[name].append((count / all_, (count - FEW) / max(all_ - few, 1e-3), memory))
    print(f"{count:,} pictures, medians of {runs} runs in turn; pictures a second of the process, and once running")
    ours = [statistics.median(column) for column in zip(*rates["mmsearch"], strict=True)]
    for name in names:
        whole, running, memory = (statistics.median(column) for column in zip(*rates[name], strict=True))
        print(
            f"{name:10s} {whole:6.1f}  {running:6.1f}  {memory:6,.0f} MB   mmsearch is {ours[0] / whole:.2f} and "
            f"{ours[1] / running:.2f} times as fast"
        )


def main() -> None:
    """Index once from nothing, then several times unchanged; or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="mini", help="mini, or an architecture of open_clip (default: %(default)s)")
    parser.add_argument("--pictures", type=int, help="only the first so many of the folder")
    parser.add_argument("--again", type=int, default=5, help="runs over the unchanged folder (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="turns of a comparison (default: %(default)s)")
    parser.add_argument("--float32", action="store_true", help="compare with float32")
    parser.add_argument("--rclip", type=Path, help="compare with the command rclip of another environment")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    with tempfile.TemporaryDirectory() as scratch:
        model, pictures = options.model, options.folder
        if model != "mini" and "/" not in model:
            make = "import sys, pathlib, cold; cold.random_checkpoint(pathlib.Path(sys.argv[1]), sys.argv[2])"
            command = [sys.executable, "-c", make, f"{scratch}/model", model]
            subprocess.run(command, check=True, cwd=Path(__file__).parent)  # else torch's memory would count as theirs
            model = f"{scratch}/model"
        if options.pictures:
            pictures = Path(scratch, "pictures")
            pictures.mkdir()
            for picture in sorted(p for p in options.folder.iterdir() if p.is_file())[: options.pictures]:
                shutil.copy(picture, pictures)
        seconds, memory, report = index(pictures, model, Path(scratch, "index"), ["-P", "-m", "mmsearch"])
        files = int(str(report["added"]))
        print(f"{files:,} files in {seconds:.1f} s: {files / seconds:.1f}/s, peak memory {memory:,.0f} MB")
        with mmsearch.open(Path(scratch, "index")) as library:
            print("\n".join(performance_lines(library.performance())))
        names = ["mmsearch", *(["float32"] if options.float32 else []), *(["rclip"] if options.rclip else [])]
        if len(names) > 1:
            compare(names, pictures, model, options.rclip and options.rclip.absolute(), options.runs)
            return
        again = [index(pictures, model, Path(scratch, "index"), ["-P", "-m", "mmsearch"]) for _ in range(options.again)]
        assert all(report["unchanged"] == files for _, _, report in again)
        median = statistics.median(seconds for seconds, _, _ in again)
        print(f"again, unchanged: {median:.2f} s (median of {len(again)}), peak memory {again[0][1]:,.0f} MB")


if __name__ == "__main__":
    main()
