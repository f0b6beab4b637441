"""Where a training step gets its pictures and texts: what the frozen stages say of them, kept, or computed anew."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from mmsearch.datasets import Picture
from mmsearch.training.augment import Augmentation, PictureAugmentation, drop_words, generator
from mmsearch.training.material import identity
from mmsearch.training.models import DualModel, State

CHUNK = 8
"""Pictures that go through the frozen stages at once: on a CPU their activations should fit the cache."""
TEXT_CHUNK = 128
REPORT_SECONDS = 15.0
DESCRIBED = "store.json"
LARGEST = 65504.0
"""Of float16."""
PLAIN = 0
"""The view of a picture that is the picture as it is; every other number is a random change of it."""

Choice: TypeAlias = "tuple[int, int]"
"""Number of the picture, and of its view."""


class Store:
    """What the frozen stages of a tower say of N inputs: one memory-mapped array for each tensor of their state.

    Real numbers are kept in float16; the few activations beyond its range become its largest number.
    """

    def __init__(self, folder: Path) -> None:
        count = json.loads((folder / DESCRIBED).read_text(encoding="utf-8"))["arrays"]
        self._arrays = [np.load(folder / f"{number}.npy", mmap_mode="r") for number in range(count)]

    def rows(self, numbers: Sequence[int] | np.ndarray) -> State:
        """The states of some inputs, real numbers as float32."""
        state = (torch.from_numpy(array[np.asarray(numbers)]) for array in self._arrays)
        return tuple(part.float() if part.dtype == torch.float16 else part for part in state)

    def __len__(self) -> int:
        return len(self._arrays[0])


def kept(folder: Path, key: str, count: int, states: Callable[[], Iterator[tuple[Sequence[int], State]]]) -> Store:
    """The store beside ``folder`` that was computed under the same ``key``; if there is none, ``states`` computes it.

    Its name is that of ``folder`` and a digest of the key. It appears when it is whole: a run that is killed leaves
    none, and of two runs that compute the same one at a time the first to finish gives it its name.

    Args:
        states: yields the numbers of some inputs and their state; a later part may be shorter than the first in any
            size but that of the rows, and is filled up with zeros.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    place = keyed(folder, key)
    if (place / DESCRIBED).is_file():
        return Store(place)
    with appearing(place) as fresh:
        arrays: list[np.memmap] = []
        for numbers, state in states():
            parts = [part.clamp(-LARGEST, LARGEST).half() if part.is_floating_point() else part for part in state]
            if not arrays:
                for number, part in enumerate(parts):
                    shape = (count, *part.shape[1:])
                    dtype = part.numpy().dtype
                    arrays.append(np.lib.format.open_memmap(fresh / f"{number}.npy", "w+", dtype, shape))
            for array, part in zip(arrays, parts, strict=True):
                places: tuple[Any, ...] = (np.asarray(numbers), *(slice(size) for size in part.shape[1:]))
                array[places] = part.numpy()
        for array in arrays:
            array.flush()
        (fresh / DESCRIBED).write_text(json.dumps({"key": digest, "arrays": len(arrays)}), encoding="utf-8")
    return Store(place)


def keyed(folder: Path, key: str) -> Path:
    """``folder`` with a digest of ``key`` in its name."""
    return folder.with_name(f"{folder.name}-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()[:12]}")


@contextmanager
def appearing(place: Path) -> Iterator[Path]:
    """A new folder to write into, which is called ``place`` once it is whole.

    Of two processes that write the same one at a time the first to finish gives it its name.
    """
    fresh = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    try:
        fresh.rename(place)
    except OSError:  # another run was quicker
        shutil.rmtree(fresh)


class Pictures:
    """The pictures of a split as the trained stages of the image tower read them.

    With ``views`` each picture and ``views - 1`` random changes of it go through the frozen stages once, into
    ``folder``; without, every step decodes and changes its pictures anew.

    Args:
        name: of the split, for the folder and for messages.
        run: what computes the frozen stages, ``tower.trunk`` or a compiled form of it.
    """

    def __init__(
        self,
        model: DualModel,
        pictures: Sequence[Picture],
        *,
        name: str,
        folder: Path,
        views: int,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
        run: Callable[[State], State],
        log: Callable[[str], None],
    ) -> None:
        self._model, self._pictures, self._name = model, pictures, name
        self._change = PictureAugmentation(augmentation, seed)
        self._device, self._run, self._log = device, run, log
        self._views = views
        self._workers = ThreadPoolExecutor(max(2, torch.get_num_threads()))
        content = "\n".join(identity(picture) for picture in pictures)
        frozen = digest(model.image.stages[: model.image.frozen])
        self._stores = [
            kept(
                folder / f"{name}-{view}",
                "\n".join([model.input_key, frozen, "" if view == PLAIN else f"{augmentation} {seed} {view}", content]),
                len(pictures),
                lambda view=view: self._computed(view),  # type: ignore[misc]
            )
            for view in range(views)
        ]

    def __len__(self) -> int:
        return len(self._pictures)

    def steps(self, choices: Sequence[Sequence[Choice]]) -> Iterator[State]:
        """For each step's choice of pictures what the trained stages read, on the device.

        Where pictures are decoded anew, those of the next step are while this one is computed.
        """
        if self._stores:
            for chosen in choices:
                yield self._read(chosen)
            return
        coming = self._submit(choices[0]) if choices else None
        for number in range(len(choices)):
            assert coming is not None
            ready = np.stack([future.result() for future in coming])
            coming = self._submit(choices[number + 1]) if number + 1 < len(choices) else None
            yield self._run((torch.from_numpy(ready).to(self._device),))

    def view(self, rng: np.random.Generator) -> int:
        """A random view: one of those that are kept, or any number where none are."""
        return int(rng.integers(self._views)) if self._views else int(rng.integers(1, 2**31))

    def _read(self, chosen: Sequence[Choice]) -> State:
        numbers, views = np.array([n for n, _ in chosen]), np.array([v for _, v in chosen])
        parts: list[Tensor] = []
        for view in np.unique(views):
            state = self._stores[view].rows(numbers[views == view])
            if not parts:
                parts = [torch.empty(len(chosen), *part.shape[1:], dtype=part.dtype) for part in state]
            for part, rows in zip(parts, state, strict=True):
                part[torch.from_numpy(views == view)] = rows
        return tuple(part.to(self._device) for part in parts)

    def _submit(self, chosen: Sequence[Choice]) -> list:
        return [self._workers.submit(self._prepared, number, view) for number, view in chosen]

    def _prepared(self, number: int, view: int) -> np.ndarray:
        image = self._pictures[number].open()
        if view != PLAIN:
            image = self._change(image, number, view)
        return self._model.prepare(image)

    def _computed(self, view: int) -> Iterator[tuple[Sequence[int], State]]:
        count = len(self._pictures)
        chunks = [list(range(start, min(start + CHUNK, count))) for start in range(0, count, CHUNK)]
        began = reported = time.monotonic()
        coming = self._submit([(number, view) for number in chunks[0]])
        for place, numbers in enumerate(chunks):
            pixels = np.stack([future.result() for future in coming])
            if place + 1 < len(chunks):
                coming = self._submit([(number, view) for number in chunks[place + 1]])
            filled = np.concatenate([pixels, np.repeat(pixels[-1:], CHUNK - len(pixels), axis=0)])
            state = self._run((torch.from_numpy(filled).to(self._device),))  # one shape, for a compiled form
            yield numbers, tuple(part[: len(numbers)].cpu() for part in state)
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                rate = numbers[-1] / (reported - began)
                left = (count - numbers[-1]) / rate
                self._log(
                    f"{self._name}, view {view + 1} of {max(1, self._views)}: {numbers[-1]} of {count} pictures, "
                    f"{rate:.0f} a second, {left:.0f} s left"
                )


class Texts:
    """The texts of a split as the trained stages of the text tower read them.

    The frozen stages run once, into ``folder``; where ``drop`` leaves out words, they run in every step.
    """

    def __init__(
        self,
        model: DualModel,
        texts: Sequence[str],
        *,
        name: str,
        folder: Path,
        device: torch.device,
        drop: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._model, self._texts, self._device = model, texts, device
        self._lengths = np.array([len(text) for text in texts])
        self._drop, self._seed = drop, seed
        if drop:
            return
        key = hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()
        self._store = kept(
            folder / f"{name}-texts",
            "\n".join([model.input_key, digest(model.text.stages[: model.text.frozen]), key]),
            len(texts),
            self._computed,
        )

    def __len__(self) -> int:
        return len(self._texts)

    def rows(self, numbers: Sequence[int] | np.ndarray, epoch: int = 0) -> State:
        """What the trained stages read of some texts, on the device; in another epoch other words are left out."""
        if not self._drop:
            return tuple(part.to(self._device) for part in self._model.trim(self._store.rows(numbers)))
        changed = [
            drop_words(self._texts[number], self._drop, generator("words", self._seed, int(number), epoch))
            for number in numbers
        ]
        return self._trunk(self._model.tokens(changed))

    def parts(self, numbers: np.ndarray, epoch: int = 0) -> tuple[Iterator[State], Tensor]:
        """``rows`` in parts of like length, which need little padding, and the place of each text in all of them."""
        order = np.argsort(self._lengths[numbers], kind="stable")
        chunks = [order[start : start + TEXT_CHUNK] for start in range(0, len(order), TEXT_CHUNK)]
        return (self.rows(numbers[chunk], epoch) for chunk in chunks), torch.from_numpy(np.argsort(order))

    def _computed(self) -> Iterator[tuple[Sequence[int], State]]:
        tokens = self._model.tokens(self._texts)
        lengths = (tokens[0] != 0).sum(dim=1).numpy()
        longest = int(lengths.argmax())
        yield [longest], self._chosen(tokens, [longest])  # first, so that there is room for it
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), TEXT_CHUNK):
            numbers = order[start : start + TEXT_CHUNK].tolist()
            yield numbers, self._chosen(tokens, numbers)

    def _chosen(self, tokens: State, numbers: Sequence[int]) -> State:
        state = self._trunk(self._model.trim(tuple(part[torch.tensor(numbers)] for part in tokens)))
        return tuple(part.cpu() for part in state)

    def _trunk(self, tokens: State) -> State:
        return self._model.text.trunk(tuple(part.to(self._device) for part in tokens))


def digest(stages: Iterable[nn.Module]) -> str:
    """A digest of the weights of some stages, by which their answers are recognised."""
    found = hashlib.blake2b(digest_size=16)
    for number, stage in enumerate(stages):
        for name, tensor in sorted(stage.state_dict().items()):
            found.update(f"{number} {name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
