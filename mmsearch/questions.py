"""Many questions, one a line: from a pipe, or from whoever sits at the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

PROMPT = "? "


def at_terminal() -> bool:
    """Whether questions are typed and answers are read by somebody."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def questions() -> Iterator[str]:
    """The lines of standard input that are not empty, each as soon as it is there.

    At a terminal there is a prompt, a line can be edited and earlier ones come back (where Python has readline),
    Ctrl-C drops a line, and Ctrl-D ends.
    """
    typed = at_terminal()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # `input` is a line editor from here on
    while True:
        try:
            line = input(PROMPT) + "\n" if typed else sys.stdin.readline()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if not line:
            return
        if line.strip():
            yield line.strip()
