"""The process that test_survival.py kills: it indexes a folder, compacts, and says on stdout what it has committed.

python kill_child.py FOLDER INDEX
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from colour_encoder import ColourEncoder

import mmsearch
from indexer.index import Change, IndexWriter, Put

_apply = IndexWriter.apply


def apply_and_say(writer: IndexWriter, changes: Sequence[Change]) -> list[int]:
    """Commit, and only then print the paths that are now safe."""
    done = _apply(writer, changes)
    for change in changes:
        if isinstance(change, Put) and change.complete:
            print("safe", change.asset.path)
    sys.stdout.flush()
    return done


def main(folder: str, index: str) -> None:
    """Run to the end, unless killed."""
    IndexWriter.apply = apply_and_say  # type: ignore[method-assign]
    with mmsearch.open(index, model=ColourEncoder()) as library:
        print("ready", flush=True)
        library.index(folder)
        library.compact()
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
