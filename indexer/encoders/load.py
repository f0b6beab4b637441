"""From what ``--model`` says to an encoder."""

from __future__ import annotations

from pathlib import Path

from indexer.encoders import Encoder
from indexer.errors import UsageError


def load_encoder(model: str = "mini", device: str | None = None) -> Encoder:
    """The encoder called ``model``: ``mini``, a folder, or an open_clip name; on ``device``, or on the best one here.

    A folder holds either what ``mmsearch train`` wrote or a model in open_clip's format.

    Raises:
        UsageError: no model and no folder has that name, or there is no such device.
        ModelError: the weights are neither here nor reachable, or are damaged.
    """
    from indexer.encoders.mini import MiniEncoder, is_mini_folder

    if model == "mini":
        return MiniEncoder(device)
    folder = Path(model).expanduser().absolute()  # an index remembers it, and may be asked from elsewhere
    if folder.is_dir() and is_mini_folder(folder):
        return MiniEncoder(device, folder)
    from indexer.encoders.openclip import OpenClipEncoder, is_checkpoint_folder

    if folder.is_dir() and not is_checkpoint_folder(folder):
        raise UsageError(
            f"no model in folder {model!r}: it holds neither a run of `mmsearch train` (config.json) "
            "nor an open_clip checkpoint (open_clip_config.json)"
        )
    return OpenClipEncoder(str(folder) if folder.is_dir() else model, device)
