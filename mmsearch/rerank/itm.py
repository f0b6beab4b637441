"""The image-text-matching heads of BLIP and BLIP-2 as rerankers: words attend to a picture that is opened again.

torch and transformers are loaded by the first pair, not before.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer.errors import DecodeError, ModelError
from indexer.types import Modality
from mmsearch.calibration import FusedLine
from mmsearch.rerank import PictureSide, TextSide
from mmsearch.rerank.folder import CALIBRATION, DIRECTIONS, read_lines

if TYPE_CHECKING:
    import torch

    from mmsearch.rerank.itm_torch import ItmModel

HUB = {
    name: f"Salesforce/{name}"
    for name in (
        "blip-itm-base-coco",
        "blip-itm-base-flickr",
        "blip-itm-large-coco",
        "blip-itm-large-flickr",
        "blip2-itm-vit-g",
        "blip2-itm-vit-g-coco",
    )
}
"""The repository of the Hugging Face hub for each name."""
KINDS = ("blip", "blip-2")
"""What ``model_type`` in ``config.json`` says of a model that this file can read."""
CANDIDATES = 20
"""How many answers are reranked: each is a picture to be opened and a large vision transformer to be run, 0.1 to 1 s on
a CPU, so that twenty are some seconds and fifty would be most of a minute. Not chosen by a measurement."""
PICTURES = 8
"""Pictures that the vision model is given at once: what it holds in between is then some hundred megabytes."""
PAIRS = 16
"""Pairs that the joint model is given at once; with texts of 512 tokens it holds some hundred megabytes in between."""
FEATURES_BYTES = 256_000_000
"""Vision features of pictures that were candidates lately; one has 1.4 MB (ViT-g at 224 pixels) to 3.8 (at 364)."""
UNCALIBRATED = FusedLine(dual=1.0, fusion=1.0, bias=math.log(2))
"""What follows from how the head was trained, where nothing was measured.

A third of the pairs it was trained on were matches, two thirds near misses by the dual encoder that was trained with it
(Li et al. 2022). So its log-odds plus log 2 are the log-likelihood ratio of a match against a near miss. Candidates are
matches and near misses too, and how likely each is to be a match before the head has looked is what the first stage's
log-odds say. By Bayes' rule the two add up. That takes the stages for independent, and the near misses here for those
of the training; so the order is to be trusted more than the probability.
"""


class ItmReranker:
    """A BLIP or BLIP-2 model with an image-text-matching head, from transformers, behind the ``Reranker`` protocol.

    ===========================  ================================================================================
    ``blip-itm-base-coco``       BLIP (Li et al. 2022, arXiv:2201.12086), ViT-B or ViT-L at 384 pixels, fine-tuned on
    ``blip-itm-large-coco``      COCO or Flickr30k
    ``blip-itm-base-flickr``
    ``blip-itm-large-flickr``
    ``blip2-itm-vit-g``          BLIP-2's first stage (Li et al. 2023, arXiv:2301.12597), ViT-g: 5 GB of memory
    ``blip2-itm-vit-g-coco``     the same fine-tuned on COCO
    a folder                     such a model, as ``save_pretrained`` writes it with its processor
    ===========================  ================================================================================

    The logit of a pair is the head's log-odds of a match: ``itm_score[1] - itm_score[0]`` of transformers' forward,
    in float32, with the model's own preprocessing, texts cut to the positions that it has. As in that forward, the head
    of BLIP reads ``[CLS]``, where the training of the original had a token ``[ENC]`` in its place.

    Vision features are computed once for each picture, however many texts it is held against, and kept for a while; a
    file is looked up by its path, size and time. They are computed by one thread at a time.

    Calibration: none was measured with these models. A ``calibration.json`` in the folder gives the lines (the form is
    that of ``mmsearch.calibration.read_fused``); without it, and for the models of the hub, both are ``UNCALIBRATED``.

    Tested with small random models of both architectures; not with the published weights. Weights are read as
    safetensors or, where a repository has none, by torch's loader that takes tensors and nothing else.

    Args:
        model: one of ``HUB``, or a folder; a ``Path`` is always a folder.
        device: ``cuda``, ``cuda:1``, ``mps`` or ``cpu``; by default the best there is.

    Raises:
        ModelError: the folder's ``calibration.json`` is damaged. What is wrong with the model itself is raised by the
            first pair, as is UsageError where there is no such device.
    """

    compressor = None
    candidates = CANDIDATES
    bank = None

    def __init__(self, model: str | Path, device: str | None = None) -> None:
        repository = HUB.get(model) if isinstance(model, str) else None
        folder = None if repository else Path(model).expanduser().absolute()
        self.name = str(folder or model)
        self._source = repository or str(folder)
        self._device = device
        lines: Mapping[tuple[Modality, Modality], FusedLine] = dict.fromkeys(DIRECTIONS, UNCALIBRATED)
        if folder is not None and (folder / CALIBRATION).is_file():
            lines = read_lines(folder)
        self.calibration = lines
        self._kept = RecentFeatures(FEATURES_BYTES)
        self._working = threading.Lock()
        self._loaded: ItmModel | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights and of all that pictures and texts go through.

        Raises:
            ModelError: the model cannot be loaded.
        """
        return self._model().digest()

    def score(self, texts: Sequence[TextSide], pictures: Sequence[PictureSide], pairs: np.ndarray) -> np.ndarray:
        """The logit of each of ``pairs`` ``(K, 2)``: ``(K,)``, NaN if its picture cannot be opened; see ``Reranker``.

        Raises:
            UsageError: there is no such device.
            ModelError: the model cannot be loaded, fails, or gives a logit that is not finite.
        """
        logits = np.full(len(pairs), np.nan)
        lengths = np.array([len(side.words) for side in texts])
        order = np.lexsort((lengths[pairs[:, 0]], pairs[:, 1]))  # (K,) texts of like length together: less padding
        shown = np.unique(pairs[:, 1])
        for start in range(0, len(shown), PICTURES):
            group = shown[start : start + PICTURES].tolist()
            features = self._features([pictures[i] for i in group])
            there = {i: one for i, one in zip(group, features, strict=True) if one is not None}
            mine = order[np.isin(pairs[order, 1], list(there))]
            for first in range(0, len(mine), PAIRS):
                chunk = mine[first : first + PAIRS]
                words = [texts[i].words for i in pairs[chunk, 0].tolist()]
                logits[chunk] = self._match(words, [there[i] for i in pairs[chunk, 1].tolist()])
        return logits

    def _match(self, words: Sequence[str], features: Sequence[torch.Tensor]) -> np.ndarray:
        """The logits ``(B,)`` of as many texts and pictures."""
        with self._running(f"{len(words)} pairs") as model:
            logits = model.match(words, features)
        if not np.isfinite(logits).all():
            raise ModelError(f"the reranker {self.name} gave logits that are not finite for {len(words)} pairs")
        return logits

    def _features(self, sides: Sequence[PictureSide]) -> list[torch.Tensor | None]:
        """The vision features ``(P, H)`` of each picture, None for one that cannot be opened."""
        model = self._model()
        keys = [_key(side) for side in sides]
        found: dict[Hashable, torch.Tensor] = {}
        new: dict[Hashable, np.ndarray] = {}
        for key, side in zip(keys, sides, strict=True):
            if key is None or key in found or key in new:
                continue
            kept = self._kept.get(key)
            if kept is not None:
                found[key] = kept
                continue
            try:
                new[key] = model.prepare(side.open(model.image_size))
            except DecodeError:
                continue
        if new:
            with self._running(f"{len(new)} pictures"):
                rows = model.see(np.stack(list(new.values())))
            for key, row in zip(new, rows, strict=True):
                self._kept.put(key, row)
                found[key] = row
        return [None if key is None else found.get(key) for key in keys]

    @contextmanager
    def _running(self, what: str) -> Iterator[ItmModel]:
        """The model, for one thread at a time: two would only share the chip, and need twice the memory."""
        import torch

        model = self._model()
        with self._working, torch.inference_mode():
            try:
                yield model
            except Exception as exc:  # what models raise has no base but this
                raise ModelError(f"the reranker {self.name} failed on {what}: {exc}") from exc

    def _model(self) -> ItmModel:
        with self._working:
            if self._loaded is None:
                from mmsearch.rerank.itm_torch import ItmModel

                self._loaded = ItmModel(self.name, self._source, self._device)
            return self._loaded


class RecentFeatures:
    """The tensors that were asked for last, up to ``limit`` bytes. May be used from several threads.

    limit 8, put a (4 bytes), put b (4 bytes), get a, put c (4 bytes): a and c are left
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> torch.Tensor | None:
        """What was put under ``key``; None if it is not kept any more."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Hashable, features: torch.Tensor) -> None:
        """Keep ``features``, and let go of what was not asked for longest."""
        with self._lock:
            before = self._kept.pop(key, None)  # by another thread that saw the same picture
            self._bytes += features.nbytes - (0 if before is None else before.nbytes)
            self._kept[key] = features
            while self._bytes > self._limit:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes


def _key(side: PictureSide) -> Hashable | None:
    """What tells one picture from others: a file by its path, size and time; None if it is gone."""
    if side.image is not None:
        return side.image.size, hashlib.blake2b(side.image.tobytes(), digest_size=16).digest()
    try:
        found = os.stat(side.path)
    except OSError:
        return None
    return side.path, found.st_size, found.st_mtime_ns
