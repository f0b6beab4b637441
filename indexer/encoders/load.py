"""From what ``--model`` says to an encoder."""

from __future__ import annotations

from pathlib import Path

from indexer.encoders import Encoder
from indexer.errors import UsageError


def load_encoder(model: str = "mini", device: str | None = None) -> Encoder:
    """The encoder called ``model``: ``mini``, a folder, an open_clip name, or ``hf:owner/name`` for a repository of
    Hugging Face transformers; on ``device``, or on the best one here.

    A folder holds what ``mmsearch train`` wrote, a model in open_clip's format, or a dual encoder of transformers.

    Raises:
        UsageError: no model and no folder has that name, or there is no such device.
        ModelError: the weights are neither here nor reachable, or are damaged.
    """
    from indexer.encoders.huggingface import KINDS, PREFIX, HuggingFaceEncoder, is_pair_folder
    from indexer.encoders.mini import MiniEncoder, is_mini_folder

    if model == "mini":
        return MiniEncoder(device)
    folder = (
        Path(model.removeprefix(PREFIX)).expanduser().absolute()
    )  # an index remembers it, and may be asked from elsewhere
    if folder.is_dir() and is_mini_folder(folder):
        return MiniEncoder(device, folder)
    from indexer.encoders.openclip import OpenClipEncoder, is_checkpoint_folder

    if model.startswith(PREFIX) and not folder.is_dir():
        return HuggingFaceEncoder(model, device)
    if folder.is_dir() and not is_checkpoint_folder(folder):
        if is_pair_folder(folder):
            return HuggingFaceEncoder(str(folder), device)
        raise UsageError(
            f"no model in folder {model!r}: it holds neither a run of `mmsearch train` (config.json), "
            "nor an open_clip checkpoint (open_clip_config.json), "
            f"nor a dual encoder of transformers (config.json with a model_type of {', '.join(KINDS)})"
        )
    return OpenClipEncoder(str(folder) if folder.is_dir() else model, device)
