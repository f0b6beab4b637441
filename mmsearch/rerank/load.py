"""From what ``--reranker`` says, and the encoder, to a reranker."""

from __future__ import annotations

import os
from pathlib import Path

from indexer.encoders import Encoder, has_patches
from indexer.errors import ModelMismatch, UsageError
from mmsearch.rerank import Reranker
from mmsearch.rerank.folder import CONFIG, read_json
from mmsearch.rerank.fusion_onnx import FusionReranker, read_config

PACKAGED = Path(__file__).parent / "weights"
BESIDE = "reranker"
"""The folder inside that of a model in which its own reranker lies."""


def load_reranker(name: str | os.PathLike[str] | None, encoder: Encoder, device: str | None = None) -> Reranker | None:
    """The reranker ``name``; for None the one that was trained for ``encoder``, if there is one.

    ======================  ======================================================================================
    a folder                a fusion model that was trained for ``encoder``, or a BLIP or BLIP-2 model with a head
    ``blip-itm-base-coco``  a model of the Hugging Face hub, as ``mmsearch.rerank.itm.HUB`` lists them
    None                    the fusion model in the folder of the encoder, or in the package
    ======================  ======================================================================================

    BLIP and BLIP-2 run on ``device``, or on the best one here; a fusion model runs on the CPU.

    Raises:
        UsageError: there is no reranker of that name or in that folder.
        ModelMismatch: it reads the patches of another encoder.
        ModelError: it is damaged.
    """
    if name is None:
        return _own(encoder)
    from mmsearch.rerank.itm import HUB, KINDS, ItmReranker

    asked = os.fspath(name)
    folder = Path(asked).expanduser()
    if (folder / CONFIG).is_file():
        kind = read_json(folder / CONFIG).get("model_type")  # transformers' word; a fusion model has an architecture
        if kind in KINDS:
            return ItmReranker(folder, device)
        if kind is not None:
            raise UsageError(
                f"no reranker in {asked!r}: it holds a model of the type {kind!r}, and what reranks is a model that "
                f"mmsearch trained for that, or one of the type {' or '.join(KINDS)}"
            )
        reranker = FusionReranker(folder)
        check_reads(reranker, encoder)
        return reranker
    if asked in HUB:
        return ItmReranker(asked, device)
    names = ", ".join(HUB)
    if folder.is_dir():
        raise UsageError(
            f"no reranker in {asked!r}: it holds no {CONFIG}; name the folder of one, or one of these: {names}"
        )
    import difflib

    close = difflib.get_close_matches(asked.rpartition("/")[2], HUB, n=2)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UsageError(f"no reranker is called {asked!r} and no folder has that name: {hint}There are {names}")


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
