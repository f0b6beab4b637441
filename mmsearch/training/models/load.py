"""From what a user says training starts from to a model that can be trained."""

from __future__ import annotations

import difflib
from pathlib import Path

from indexer.encoders.huggingface import PREFIX, is_pair_folder
from indexer.encoders.mini import is_mini_folder
from indexer.encoders.openclip import HUB, is_checkpoint_folder
from indexer.errors import UsageError
from mmsearch.training.models import DualModel

MINI = "mini"


def load_trainable(
    start: str = MINI, *, fresh_head: bool = False, dropout: float = 0.1, noise: float = 0.0
) -> DualModel:
    """The model called ``start``, ready to be trained.

    ==============================  ==========================================================================
    ``mini``                        the embedded model
    a folder                        what a run of ``mmsearch train`` wrote, a model in open_clip's format, or
                                    a dual encoder of transformers
    ``ViT-B-32/laion2b_s34b_b79k``  a model of open_clip and its weights; also ``hf-hub:owner/name``
    ``ViT-B-32``, ``small.json``    a model of open_clip from nothing
    ``hf:owner/name``               a dual encoder of transformers
    ``hf:VISION+TEXT``              a new pair of a vision and a text model of transformers
    ==============================  ==========================================================================

    Args:
        start: as above.
        fresh_head, dropout, noise: as ``MiniModel`` has them; other models have no such head.

    Raises:
        UsageError: nothing has that name (the message lists near ones), or a fresh head is wanted of a model that has
            none.
        ModelError: the weights are neither here nor reachable, or are damaged.
    """
    folder = Path(start.removeprefix(PREFIX)).expanduser()
    if start == MINI or (folder.is_dir() and is_mini_folder(folder)):
        from mmsearch.training.models.mini import MiniModel

        place = None if start == MINI else folder
        return MiniModel(place, fresh_head=fresh_head, dropout=dropout, noise=noise)
    if fresh_head:
        raise UsageError(f"only {MINI!r} can begin with a fresh head, and {start!r} is another model; leave it out")
    if folder.is_dir() and is_checkpoint_folder(folder):
        return _open_clip(str(folder))
    if start.startswith(PREFIX) or (folder.is_dir() and is_pair_folder(folder)):
        from mmsearch.training.models.huggingface import HuggingFacePair

        return HuggingFacePair(start)
    if folder.is_dir():
        raise UsageError(
            f"no model in folder {start!r}: it holds neither a run of `mmsearch train`, nor a model of open_clip, "
            "nor a dual encoder of transformers"
        )
    if start.startswith(HUB) or (folder.is_file() and folder.suffix == ".json"):
        return _open_clip(start)
    import open_clip

    known = ["/".join(pair) for pair in open_clip.list_pretrained()]
    if start in known or start in open_clip.list_models():
        return _open_clip(start)
    names = [MINI, *open_clip.list_models(), *known]
    close = difflib.get_close_matches(start, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UsageError(
        f"no model is called {start!r} and no folder or file has that name: {hint}say {MINI}, a folder, "
        f"an architecture of open_clip with or without /tag, a .json file that describes one, or {PREFIX}owner/name"
    )


def _open_clip(start: str) -> DualModel:
    from mmsearch.training.models.openclip import OpenClipModel

    return OpenClipModel(start)
