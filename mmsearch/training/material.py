"""What a run trains on and what it is judged by: datasets opened, parted, joined, and rid of what cannot be read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from indexer.errors import DecodeError, UsageError
from mmsearch.datasets import Captioned, Dataset, Picture, open_dataset
from mmsearch.datasets.model import KIND_OF
from mmsearch.training.run import Data
from mmsearch.training.settings import CombineSettings, DualSettings, RerankSettings


def gathered(
    settings: DualSettings | CombineSettings | RerankSettings, log: Callable[[str], None]
) -> tuple[Captioned, list[tuple[str, Captioned]], list[Data]]:
    """What is trained on, what is judged by (dev first), and what a model card says of them."""
    dataset = open_dataset(settings.data, images=settings.images or None)
    train, dev = dataset.divided(seed=settings.seed)
    more = [open_dataset(path) for path in settings.also]
    others = [open_dataset(path) for path in settings.judges]
    for each in (dataset, *more, *others):
        if each.problems:
            log(f"{each.path}: {len(each.problems)} rows or pictures are left out, the first: {each.problems[0]}")
    parts = [("train", train), *(("train", _training_part(each)) for each in more)]
    judged = [("dev", dev), *((each.path.stem, _judging_part(each)) for each in others)]
    named = [dataset, *more, dataset, *others]
    data = [
        Data(name=each.path.name, split=split, pictures=len(part), captions=sum(map(len, part.captions)))
        for each, (split, part) in zip(named, (*parts, *judged), strict=True)
    ]
    return _joined([part for _, part in parts]), judged, data


def readable(data: Captioned, cache: Path, log: Callable[[str], None]) -> Captioned:
    """The pictures that can be decoded, with their captions; each of the others is named in the log.

    What was found is remembered in ``cache``, as a large set takes minutes.

    Raises:
        UsageError: none can be decoded.
    """
    key = hashlib.blake2b("\n".join(map(identity, data.pictures)).encode(), digest_size=16).hexdigest()
    path = cache / f"unreadable-{key}.json"
    if path.is_file():
        reasons = {int(number): reason for number, reason in json.loads(path.read_text(encoding="utf-8")).items()}
    else:
        with ThreadPoolExecutor(max(2, torch.get_num_threads())) as pool:
            found = list(pool.map(_reason, data.pictures))
        reasons = {number: reason for number, reason in enumerate(found) if reason}
        cache.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")  # several processes may find out at the same time
        fresh.write_text(json.dumps(reasons), encoding="utf-8")
        fresh.replace(path)
    for number, reason in reasons.items():
        log(f"left out: {data.pictures[number].name}: {reason}")
    if len(reasons) == len(data):
        raise UsageError(f"none of the {len(data)} pictures can be read; the first: {next(iter(reasons.values()), '')}")
    return data.subset(number for number in range(len(data)) if number not in reasons)


def _reason(picture: Picture) -> str:
    """Why a picture cannot be decoded; empty if it can."""
    try:
        picture.open()
    except (DecodeError, OSError) as exc:
        return str(exc)
    return ""


def identity(picture: Picture) -> str:
    """What tells whether a picture is still the same, without reading it."""
    return f"{picture.name} {picture.path.stat().st_size} {picture.box} {picture.member}"


def fold_of(picture: Picture, count: int) -> int:
    """The part, from 1 to ``count``, to which a picture belongs: by its name, whatever else is in the data."""
    digest = hashlib.blake2b(picture.name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count + 1


def _joined(parts: Sequence[Captioned]) -> Captioned:
    return Captioned(
        [picture for part in parts for picture in part.pictures], [some for part in parts for some in part.captions]
    )


def _training_part(dataset: Dataset) -> Captioned:
    """All of a dataset but what is for judging."""
    kept = [part for name, part in dataset.splits.items() if KIND_OF.get(name) not in ("dev", "test")]
    if not kept:
        raise UsageError(f"{dataset.path} has nothing to train on, only {', '.join(dataset.splits)}")
    return _joined(kept)


def _judging_part(dataset: Dataset) -> Captioned:
    """The dev split of a dataset, or all of it if it has no splits."""
    return dataset.splits["all"] if list(dataset.splits) == ["all"] else dataset.split("dev")
