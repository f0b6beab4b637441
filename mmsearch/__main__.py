"""The program: ``mmsearch``, or ``python -m mmsearch``. Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

from indexer.errors import MmsearchError, UsageError
from mmsearch import asking


def main() -> NoReturn:
    """Run the command and leave with its exit code."""
    gc.set_threshold(50_000, 20, 20)  # imports make much that stays, and looking through it takes a question 30 ms
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends a run as Ctrl-C does
    code = 0
    try:
        question = asking.read(sys.argv[1:])
        if question is None:
            from mmsearch.cli import app

            app()
        else:
            asking.query(**question)
    except UsageError as exc:
        asking.say(str(exc))
        code = 2
    except MmsearchError as exc:
        asking.say(str(exc))
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # who read the answers has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    finally:
        gc.freeze()  # nor is it looked through at the end, which takes 20 ms
    sys.exit(code)


if __name__ == "__main__":
    main()
