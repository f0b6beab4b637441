"""Writes into the README what its commands and its Python print, by running them on the sample photographs.

python docs/write_answers.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
CONSOLE = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"(?<=^```python\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"(?<=^# → ).*$", re.MULTILINE)


def main() -> None:
    """Run every console block, then all Python as one program, as ``tests/test_docs.py`` does."""
    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "MMSEARCH_INDEX": f"{folder}/index",
            "COLUMNS": "110",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

        def session(block: re.Match[str]) -> str:
            answered = ""
            for line in block[0].splitlines():
                if line.startswith("$ "):
                    run = subprocess.run(
                        ["bash", "-c", line[2:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
                    )
                    answered += f"{line}\n{run.stdout or run.stderr}"
            return answered

        text = CONSOLE.sub(session, text)
        (Path(folder) / "photos").symlink_to(ROOT / "samples" / "photos")
        code = [sys.executable, "-c", "\n".join(PYTHON.findall(text))]
        printed = iter(subprocess.run(code, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines())
        text = PRINTED.sub(lambda _: next(printed), text)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
