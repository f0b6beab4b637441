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
    from indexer.encoders.mini import MiniEncoder

    if model == "mini":
        return MiniEncoder(device)
    if is_mini(model):
        return MiniEncoder(device, _folder(model))
    from indexer.encoders.huggingface import KINDS, PREFIX, HuggingFaceEncoder, is_pair_folder
    from indexer.encoders.openclip import OpenClipEncoder, is_checkpoint_folder

    folder = _folder(model)

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


def is_mini(model: str) -> bool:
    """Whether ``model`` is the one in the package or a folder with another of its kind, which answers words without
    torch by itself."""
    from indexer.encoders.mini import is_mini_folder

    return model == "mini" or is_mini_folder(_folder(model))


def _folder(model: str) -> Path:
    """The folder that ``model`` may name: absolute, for an index remembers it, and may be asked from elsewhere."""
    return Path(model.removeprefix("hf:")).expanduser().absolute()
