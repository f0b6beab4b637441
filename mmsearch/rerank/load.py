"""From what ``--reranker`` says, and the encoder, to a reranker."""

from __future__ import annotations

import os
from pathlib import Path

from indexer.encoders import Encoder, has_patches
from indexer.errors import ModelMismatch, UsageError
from mmsearch.rerank import Reranker
from mmsearch.rerank.fusion_onnx import CONFIG, FusionReranker, read_config

PACKAGED = Path(__file__).parent / "weights"
BESIDE = "reranker"
"""The folder inside that of a model in which its own reranker lies."""


def load_reranker(name: str | os.PathLike[str] | None, encoder: Encoder) -> Reranker | None:
    """The reranker in the folder ``name``; for None the one that was trained for ``encoder``, if there is one.

    That lies in the folder of the model, or in the package.

    Raises:
        UsageError: there is no reranker in that folder.
        ModelMismatch: it reads the patches of another encoder.
        ModelError: it is damaged.
    """
    if name is None:
        return _own(encoder)
    folder = Path(name).expanduser()
    if not (folder / CONFIG).is_file():
        raise UsageError(f"no reranker in {os.fspath(name)!r}: it holds no {CONFIG}; name the folder of one")
    reranker = FusionReranker(folder)
    check_reads(reranker, encoder)
    return reranker


def check_reads(reranker: Reranker, encoder: Encoder) -> None:
    """Raise ModelMismatch unless what ``reranker`` reads is what ``encoder`` gives."""
    compressor = reranker.compressor
    if compressor is not None and not (has_patches(encoder) and compressor.encoder == encoder.fingerprint):
        raise ModelMismatch(
            f"the reranker {reranker.name} was trained for another model than {encoder.name}, or for other weights of "
            "it; leave it out, or use it with the model it was trained for"
        )


def _own(encoder: Encoder) -> Reranker | None:
    if not has_patches(encoder):
        return None
    beside = Path(encoder.name) / BESIDE  # a model in a folder is named by its absolute path
    for folder in ([beside] if beside.is_absolute() else []) + sorted(PACKAGED.glob("*")):
        if (folder / CONFIG).is_file() and read_config(folder).get("encoder") == encoder.fingerprint:
            return FusionReranker(folder)
    return None
