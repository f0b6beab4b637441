"""What a reranker is trained on: the patches of pictures and the token states of texts, computed once and kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indexer.encoders import PatchEncoder
from mmsearch.datasets import Picture
from mmsearch.training.augment import PictureAugmentation
from mmsearch.training.material import identity
from mmsearch.training.models import State
from mmsearch.training.settings import Augmentation
from mmsearch.training.sources import LARGEST, PLAIN, REPORT_SECONDS, appearing, kept, keyed

PICTURE_BATCH = 32
TEXT_BATCH = 512
LONGEST = 32
"""Words of a text that are trained on; a few long ones would make every step dear."""

Reader = tuple[PatchEncoder, np.ndarray]
"""An encoder, and the numbers of the pictures that it reads."""


class Patches:
    """The patches of pictures, float16 ``(N, P, F)`` for each view, read from disk as they are asked for.

    Args:
        readers: which encoder reads which pictures; together they read each picture once.
        name: of the split, for the folder and for messages.
        folder: where they are kept.
        views: that there are of each picture, itself the first.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        pictures: Sequence[Picture],
        *,
        name: str,
        folder: Path,
        views: int,
        augmentation: Augmentation,
        seed: int,
        log: Callable[[str], None],
    ) -> None:
        self._readers, self._pictures, self._name, self._log = readers, pictures, name, log
        self._change = PictureAugmentation(augmentation, seed)
        self._workers = ThreadPoolExecutor(max(2, torch.get_num_threads()))
        who = [f"{encoder.fingerprint} {len(readers)}" for encoder, _ in readers]
        content = "\n".join([*who, *map(identity, pictures)])
        self._stores = [
            kept(
                folder / f"{name}-patches-{view}",
                f"{'' if view == PLAIN else f'{augmentation} {seed} {view}'}\n{content}",
                len(pictures),
                lambda view=view: self._computed(view),  # type: ignore[misc]
            )
            for view in range(views)
        ]

    def __len__(self) -> int:
        return len(self._pictures)

    def rows(self, numbers: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """The patches ``(B, P, F)`` float32 of some pictures, as they are or each in a view of its own."""
        if views is None:
            return self._stores[PLAIN].rows(numbers)[0]
        return torch.cat([self._stores[v].rows([n])[0] for n, v in zip(numbers.tolist(), views.tolist(), strict=True)])

    def vectors(self) -> np.ndarray:
        """The vectors ``(N, D)`` of the pictures as they are; with several readers these have no space in common."""
        return self._stores[PLAIN].rows(np.arange(len(self)))[1].numpy()

    def _computed(self, view: int) -> Iterator[tuple[Sequence[int], State]]:
        began = reported = time.monotonic()
        done = 0
        for encoder, numbers in self._readers:
            chunks = [
                numbers[start : start + PICTURE_BATCH].tolist() for start in range(0, len(numbers), PICTURE_BATCH)
            ]
            for chunk in chunks:
                pixels = self._workers.map(lambda number, e=encoder: self._prepared(e, number, view), chunk)
                rows, patches = encoder.encode_prepared_patches(np.stack(list(pixels)))
                yield chunk, (torch.from_numpy(patches), torch.from_numpy(rows))
                done += len(chunk)
                if time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    rate = done / (reported - began)
                    self._log(
                        f"{self._name}, view {view + 1} of {len(self._pictures)} pictures: {done} done, "
                        f"{rate:.0f} a second, {(len(self._pictures) - done) / rate:.0f} s left"
                    )

    def _prepared(self, encoder: PatchEncoder, number: int, view: int) -> np.ndarray:
        image = self._pictures[number].open()
        return encoder.prepare(image if view == PLAIN else self._change(image, number, view))


class Words:
    """The token states of texts, float16, one after the other, and their vectors; read as they are asked for.

    Kept are ``states.npy`` ``(ΣL, S)``, ``offsets.npy`` ``(M + 1,)`` and ``vectors.npy`` ``(M, D)``.
    """

    def __init__(self, encoder: PatchEncoder, texts: Sequence[str], *, name: str, folder: Path) -> None:
        content = hashlib.blake2b(json.dumps(list(texts)).encode(), digest_size=16).hexdigest()
        place = keyed(folder / f"{name}-words", f"{encoder.fingerprint} {content}")
        if not place.is_dir():
            with appearing(place) as fresh:
                _write_words(fresh, encoder, texts)
        self._states = np.load(place / "states.npy", mmap_mode="r")
        self._offsets = np.load(place / "offsets.npy")
        self.vectors: np.ndarray = np.load(place / "vectors.npy")
        self.lengths: np.ndarray = np.minimum(np.diff(self._offsets), LONGEST)
        """Words of each text that ``rows`` gives."""

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """The states ``(C, L, S)`` float32 of some texts, the longest of L words, and the mask ``(C, L)``."""
        lengths = self.lengths[numbers]
        words = np.zeros((len(numbers), max(1, lengths.max()), self._states.shape[1]), np.float32)
        mask = np.zeros(words.shape[:2], np.float32)
        for row, (number, length) in enumerate(zip(numbers.tolist(), lengths.tolist(), strict=True)):
            start = self._offsets[number]
            words[row, :length] = self._states[start : start + length]
            mask[row, :length] = 1
        return torch.from_numpy(words), torch.from_numpy(mask)


def _write_words(folder: Path, encoder: PatchEncoder, texts: Sequence[str]) -> None:
    vectors, states = [], []
    for start in range(0, len(texts), TEXT_BATCH):
        rows, some = encoder.encode_text_states(texts[start : start + TEXT_BATCH])
        vectors.append(rows)
        states += [one.clip(-LARGEST, LARGEST).astype(np.float16) for one in some]
    np.save(folder / "vectors.npy", np.concatenate(vectors))
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, states)]))
    np.save(folder / "states.npy", np.concatenate(states))


def picture_vectors(encoder: PatchEncoder, pictures: Sequence[Picture], *, name: str, folder: Path) -> np.ndarray:
    """The vectors ``(N, D)`` of pictures as they are, kept beside their patches, which another encoder reads."""

    def computed() -> Iterator[tuple[Sequence[int], State]]:
        with ThreadPoolExecutor(max(2, torch.get_num_threads())) as workers:
            for start in range(0, len(pictures), PICTURE_BATCH):
                chunk = pictures[start : start + PICTURE_BATCH]
                pixels = list(workers.map(lambda picture: encoder.prepare(picture.open()), chunk))
                rows = encoder.encode_prepared(np.stack(pixels))
                yield range(start, start + len(chunk)), (torch.from_numpy(rows),)

    key = "\n".join(["vectors", encoder.fingerprint, *map(identity, pictures)])
    return kept(folder / f"{name}-vectors", key, len(pictures), computed).rows(np.arange(len(pictures)))[0].numpy()
