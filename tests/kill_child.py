"""The process that test_survival.py kills: it indexes a folder, adds image tokens, compacts, and says on stdout what it
has committed.

python kill_child.py FOLDER INDEX [--no-tokens]

With --no-tokens new pictures are stored without, and get their tokens afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from colour_encoder import ColourCompressor, PatchColourEncoder

from indexer.changes import Change, Put
from indexer.index import Index
from indexer.pipeline import add_tokens, update
from indexer.types import Modality
from indexer.writer import IndexWriter

_apply = IndexWriter.apply
_put_tokens = IndexWriter.put_tokens


def apply_and_say(writer: IndexWriter, changes: Sequence[Change]) -> list[int]:
    """Commit, and only then print the paths that are now safe."""
    done = _apply(writer, changes)
    for change in changes:
        if isinstance(change, Put) and change.complete:
            print("safe", change.asset.path)
    sys.stdout.flush()
    return done


def put_tokens_and_say(writer: IndexWriter, rows: np.ndarray, tokens: np.ndarray, modality: Modality) -> None:
    """Commit, and only then print how many more pictures have tokens."""
    _put_tokens(writer, rows, tokens, modality)
    print("tokens", len(rows), flush=True)


def main(folder: str, index: str, *options: str) -> None:
    """Run to the end, unless killed."""
    IndexWriter.apply = apply_and_say  # type: ignore[method-assign]
    IndexWriter.put_tokens = put_tokens_and_say  # type: ignore[method-assign]
    encoder, compressor = PatchColourEncoder(), ColourCompressor()
    print("ready", flush=True)
    path = Path(index)
    made = {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "dim": encoder.dim}
    with Index.open(path) if Index.exists(path) else Index.create(path, **made) as opened:  # type: ignore[arg-type]
        update(opened, encoder, [folder], compressor=None if "--no-tokens" in options else compressor)
        add_tokens(opened, encoder, compressor)
        with opened.writing() as writer:
            writer.compact()
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
