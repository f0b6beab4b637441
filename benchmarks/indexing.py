"""How fast, and in how much memory, the command indexes a folder; and what it costs when nothing has changed.

    python benchmarks/indexing.py ../shared/data/flickr8k/images

Each run is a process of its own, start-up included; memory is the peak resident size that the operating system counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(arguments: list[str]) -> tuple[float, float, dict[str, object]]:
    """Wall seconds, peak memory in MB and the report of one ``mmsearch index``."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "mmsearch", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - started, usage.ru_maxrss / 1024, json.loads(answer)


def main() -> None:
    """Index once from nothing, then several times unchanged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--again", type=int, default=5, help="runs over the unchanged folder (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ["index", str(options.folder), "--index", scratch, "--model", options.model, "--json"]
        seconds, memory, report = run(arguments)
        files = int(str(report["added"]))
        print(f"{files:,} files in {seconds:.1f} s: {files / seconds:.1f}/s, peak memory {memory:,.0f} MB")
        again = [run(arguments) for _ in range(options.again)]
        assert all(report["unchanged"] == files for _, _, report in again)
        median = statistics.median(seconds for seconds, _, _ in again)
        print(f"again, unchanged: {median:.2f} s (median of {len(again)}), peak memory {again[0][1]:,.0f} MB")


if __name__ == "__main__":
    main()
