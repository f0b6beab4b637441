"""Writes the reference of all commands and options from the commands themselves.

python docs/write_cli_reference.py > docs/cli.md
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TERM"] = "dumb"
os.environ["COLUMNS"] = "100"

import typer

from mmsearch.cli import app


def write(command: Any, name: str, parent: Any = None) -> None:
    """Print the help of a command and of everything below it."""
    context = command.make_context(name.split()[-1], [], parent=parent, resilient_parsing=True)
    depth = 1 + len(name.split())
    print(f"{'#' * depth} {name}\n\n```text\n{command.get_help(context).strip()}\n```\n")
    for sub in command.list_commands(context) if hasattr(command, "list_commands") else ():
        write(command.get_command(context, sub), f"{name} {sub}", context)


if __name__ == "__main__":
    print("# Commands\n\nWritten by `docs/write_cli_reference.py`; a test keeps it true.\n")
    write(typer.main.get_command(app), "mmsearch")
