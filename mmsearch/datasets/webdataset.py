"""Shards of WebDataset: tar archives in which ``{key}.jpg`` and ``{key}.txt`` or ``{key}.json`` follow each other."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from mmsearch.datasets.folder import captions_in
from mmsearch.datasets.model import KIND_OF, Problem
from mmsearch.datasets.rows import Finder, Format, Row, split_in_name

KEY = re.compile(r"(?:\./)?((?:.*/)?[^./]+)\.([^/]+)")
"""A key ends at the first dot behind the last slash; the rest, in lower case, says what the member is."""
TEXTS = ("txt", "json")
BLOCK = 512
"""Bytes of a block of a tar archive; an empty one ends it (POSIX ustar)."""


def recognises(path: Path, head: str) -> bool:
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def rows(path: Path, find: Finder) -> Iterator[Row | Problem]:
    """Each picture that has captions in its shard; ``find`` is not needed.

    A ``.txt`` has a caption a line, a ``.json`` one or several under ``caption``; where both are there, the ``.txt``
    counts. Nothing is unpacked: a picture is known by its first byte in the archive, which for that reason cannot be
    a compressed one.
    """
    if path.suffix.lower() != ".tar":
        yield Problem(path.name, "compressed; unpack it with gunzip, so that pictures can be read from its middle")
        return
    folder = path.parent.name.lower()
    split = split_in_name(path.stem) or (folder if folder in KIND_OF else None)
    for sample in _samples(path):
        yield sample if isinstance(sample, Problem) else sample.row(path, split)


class _Sample:
    """What belongs to one key: where the picture is, and the captions."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.picture: tuple[int, int] | None = None
        self.texts: dict[str, list[object] | str] = {}

    def row(self, path: Path, split: str | None) -> Row | Problem:
        place = f"{path.name}/{self.key}"
        captions = next((self.texts[kind] for kind in TEXTS if kind in self.texts), None)
        if self.picture is None:
            return Problem(place, "no picture")
        if captions is None:
            return Problem(place, "no .txt or .json with captions")
        if isinstance(captions, str):
            return Problem(place, captions)
        return Row(self.key, captions, place, str(path), split, member=self.picture)


def _samples(path: Path) -> Iterator[_Sample | Problem]:
    from indexer.decode import IMAGE_EXTENSIONS

    size = path.stat().st_size
    sample: _Sample | None = None
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                match = KEY.fullmatch(member.name)
                if not match or not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                key, kind = match[1], match[2].lower()
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key)
                if kind in IMAGE_EXTENSIONS and sample.picture is None:
                    sample.picture = (member.offset_data, member.size)
                elif kind in TEXTS:
                    content = archive.extractfile(member)
                    sample.texts[kind] = captions_in(content.read() if content else b"", kind)
    except (tarfile.TarError, EOFError) as exc:
        yield Problem(path.name, f"not a whole tar archive: {exc}; what stands before the damage is used")
    else:
        with path.open("rb") as file:
            file.seek(end)
            if any(file.read(BLOCK)):  # tarfile takes a header that makes no sense for the end of the archive
                yield Problem(path.name, f"damaged at byte {end}; what stands before is used")
    if sample is not None:
        yield sample


FORMAT = Format("WebDataset shards: tar archives of {key}.jpg with {key}.txt or {key}.json", recognises, rows)
