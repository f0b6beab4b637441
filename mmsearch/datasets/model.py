"""What a dataset of captioned pictures is, whatever it was read from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.errors import DecodeError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

WHOLE = 1 << 24
"""A size beyond that of any picture: it asks the decoder for every pixel."""

Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels of the upright picture."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a dataset, or a region of one; nothing is read before ``read`` or ``open``."""

    name: str
    """As the data names it; unique within the dataset."""
    path: Path
    """The file that holds it: a picture, or a tar archive."""
    box: Box | None = None
    """The region that the captions speak of; None for the whole picture."""
    member: tuple[int, int] | None = None
    """First byte and number of bytes within a tar archive; None if the file is the picture."""

    def read(self) -> bytes:
        """The encoded picture as it lies on the disk; a region comes with the whole picture around it.

        Raises:
            DecodeError: the file cannot be read, or ends before the picture does.
        """
        try:
            if self.member is None:
                return self.path.read_bytes()
            offset, size = self.member
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as exc:
            raise DecodeError(f"the file cannot be read: {exc.strerror}") from exc
        if len(data) < size:
            raise DecodeError(f"the archive ends after {len(data)} of the picture's {size} bytes")
        return data

    def open(self) -> Image:
        """The picture in RGB, upright, every pixel of it, cut to its box where it has one.

        Raises:
            DecodeError: it cannot be read or decoded, or its box lies outside of it; the message is the reason alone.
        """
        from indexer.decode.image import decode_image

        image = decode_image(self.read(), size=WHOLE).image
        if self.box is None:
            return image
        left, top, width, height = self.box
        corners = (max(0, left), max(0, top), min(image.width, left + width), min(image.height, top + height))
        if corners[0] >= corners[2] or corners[1] >= corners[3]:
            raise DecodeError(f"the region {self.box} is not in a picture of {image.width} x {image.height} pixels")
        return image.crop(corners)


@dataclass(frozen=True, slots=True)
class Captioned:
    """Pictures and what was said about each: ``captions[i]`` belongs to ``pictures[i]`` and is never empty."""

    pictures: list[Picture]
    captions: list[list[str]]

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.pictures)

    def flat(self) -> tuple[list[str], list[int]]:
        """All captions in a row, and for each the number of its picture.

        Captions ``[["a", "b"], ["c"]]`` give ``(["a", "b", "c"], [0, 0, 1])``.
        """
        texts = [caption for some in self.captions for caption in some]
        owner = [number for number, some in enumerate(self.captions) for _ in some]
        return texts, owner

    def subset(self, numbers: Iterable[int]) -> Captioned:
        """The pictures with these numbers, in this order."""
        chosen = list(numbers)
        return Captioned([self.pictures[n] for n in chosen], [self.captions[n] for n in chosen])


@dataclass(frozen=True, slots=True)
class Problem:
    """One row, file or picture that could not be used."""

    place: str
    """``captions.tsv:12``, ``00003.tar/000030017`` or the like."""
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


_KINDS = {
    "train": ("train", "training"),
    "dev": ("dev", "val", "valid", "validation", "development"),
    "test": ("test", "testing"),
}
KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
"""The many names of the three splits: ``validation`` to ``dev`` and so on."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as it was read. Data without splits has the one split ``all``."""

    format: str
    path: Path
    problems: list[Problem]
    splits: dict[str, Captioned]
    """In the order train, dev, test, others; under the names that the data uses."""

    def split(self, name: str) -> Captioned:
        """The split of this name, or the only one that goes by another name of the same: ``dev`` finds ``val``.

        Raises:
            UsageError: there is none; the message names those there are.
        """
        if name in self.splits:
            return self.splits[name]
        alike = [other for other in self.splits if name in KIND_OF and KIND_OF.get(other) == KIND_OF[name]]
        if len(alike) != 1:
            raise UsageError(f"{self.path} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[alike[0]]

    def divided(self, dev: float = 0.1, seed: int = 0) -> tuple[Captioned, Captioned]:
        """Pictures to train on and pictures to choose by.

        These are the splits train and dev where the data has both. Otherwise its train split, or its only one, is
        divided by a hash of each picture's name: a picture stays on its side when others are added, and all regions of
        one picture are on the same side. A split ``test`` beside others is never touched.

        Args:
            dev: about this part of the pictures is for choosing, and at least one picture; ignored where the data
                has a dev split.
            seed: another number gives another division.

        Raises:
            UsageError: there is nothing to train on, or fewer than two pictures to divide.
        """
        kinds = {KIND_OF.get(name, name): name for name in reversed(list(self.splits))}
        if "train" in kinds and "dev" in kinds:
            return self.splits[kinds["train"]], self.splits[kinds["dev"]]
        if "train" not in kinds and len(self.splits) > 1:
            raise UsageError(f"{self.path} has no split to train on; it has {', '.join(self.splits)}")
        if not 0 < dev < 1:
            raise UsageError(f"the part for choosing must lie between 0 and 1; it is {dev}")
        whole = self.splits[kinds["train"]] if "train" in kinds else next(iter(self.splits.values()))
        group = [_group(picture) for picture in whole.pictures]
        place = {name: _hash(f"{seed}:{name}") for name in group}
        if len(place) < 2:
            raise UsageError(f"{self.path} has a single picture, which cannot be divided into train and dev")
        chosen = {name for name, at in place.items() if at < dev} or {min(place, key=lambda name: place[name])}
        if len(chosen) == len(place):
            chosen.remove(max(place, key=lambda name: place[name]))
        numbers = range(len(whole))
        return (
            whole.subset(n for n in numbers if group[n] not in chosen),
            whole.subset(n for n in numbers if group[n] in chosen),
        )


def _group(picture: Picture) -> str:
    """What is divided as one: the picture's name, or for a region, named ``picture#region``, that of its picture."""
    return picture.name.rpartition("#")[0] if picture.box is not None else picture.name


def _hash(text: str) -> float:
    """Evenly spread in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48
