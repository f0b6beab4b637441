"""Draws the terminal session at the top of the README by running it.

python docs/write_session.py docs/session.svg
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "mmsearch index samples",
    'mmsearch query "a golden retriever with its tongue out" -k 3',
    'mmsearch query "an animal in the snow" --not "a tiger" --kind image -k 2',
    "mmsearch query --image samples/photos/IMG_0013.jpg -k 3",
)


def main(target: str) -> None:
    """Run the commands on the sample photographs and write what a terminal shows as SVG."""
    console = Console(record=True, width=96, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as index:
        environment = os.environ | {
            "MMSEARCH_INDEX": f"{index}/index",
            "COLUMNS": "96",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        for command in COMMANDS:
            run = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
            console.print(Text("$ ", "bold green") + Text(command, "bold"))
            console.print(Text(run.stdout))
    drawing = re.sub(r"@font-face \{.*?\}\n", "", console.export_svg(title="mmsearch"), flags=re.DOTALL)  # no web fonts
    Path(target).write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
