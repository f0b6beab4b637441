"""Opening a dataset: which format it has, its rows gathered by picture, its splits."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from indexer.errors import UsageError
from mmsearch.datasets import (
    coco,
    conceptual,
    flickr,
    folder,
    karpathy,
    names,
    narratives,
    visual_genome,
    webdataset,
)
from mmsearch.datasets.model import KIND_OF, Box, Captioned, Dataset, Picture, Problem
from mmsearch.datasets.rows import (
    PICTURE_FOLDERS,
    Finder,
    Format,
    Row,
    files_in,
    is_text,
    open_text,
    read_head,
    split_in_name,
)

READERS: dict[str, Format] = {
    "folder": folder.FORMAT,
    "karpathy": karpathy.FORMAT,
    "flickr": flickr.FORMAT,
    "coco": coco.FORMAT,
    "visual-genome": visual_genome.FORMAT,
    "narratives": narratives.FORMAT,
    "conceptual": conceptual.FORMAT,
    "webdataset": webdataset.FORMAT,
    "names": names.FORMAT,
}
"""The formats, in the order in which a folder that has files of several is taken for one."""

FORMATS: dict[str, str] = {name: reader.description for name, reader in READERS.items()}
"""The names that ``format`` takes, and a line about each."""

ALL = "all"
KIND_ORDER = ("train", "dev", "test")
SHOWN = 3
"""Problems that an error message quotes."""

_SUFFIXES = frozenset({".json", ".jsonl", ".tsv", ".csv", ".txt", ".token", ".tar", ".tgz", ".gz"})
_LIST = re.compile(r"(?:.*[._-])?(train|training|dev|val|valid|validation|test)(?:images)?\.txt", re.IGNORECASE)
"""``train.txt``, ``flickr30k_train.txt``, ``Flickr_8k.trainImages.txt``."""
_SAME = {  # restval is what Karpathy and Fei-Fei add to COCO's training data
    "training": "train",
    "restval": "train",
    "testing": "test",
}


def open_dataset(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    images: str | os.PathLike[str] | None = None,
    splits: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Read a dataset of captioned pictures; which format it has is seen from its content.

    =====================================================  ==========================================================
    ``open_dataset("flickr8k")``                           a folder: what is recognised in it
    ``open_dataset("annotations/captions_val2017.json")``  one file; the pictures are looked for beside it
    ``open_dataset("cc3m.tsv", images="cc3m")``            the pictures are elsewhere
    ``open_dataset("shards/{00000..00009}.tar")``          a pattern; so is ``shards/*.tar``
    =====================================================  ==========================================================

    A row that cannot be used and a picture that is not there are a ``Problem`` of the dataset and nothing more. That a
    picture cannot be decoded is found when it is opened.

    Args:
        path: a folder, a file, or a pattern of files.
        format: one of ``FORMATS``, where several would fit or none is recognised.
        images: the folder of the pictures, if they are not beside the data.
        splits: the folder of lists such as ``train.txt``, which have the name of a picture in each line; otherwise
            the folder of the data. Lists that lie beside the data do not count where the data has splits of its own.

    Raises:
        UsageError: there is nothing there, the format is not recognised, or no picture has a caption.
    """
    if format is not None and format not in READERS:
        raise UsageError(f"there is no format {format!r}; there are {', '.join(READERS)}")
    for what, where in (("images", images), ("splits", splits)):
        if where is not None and not os.path.isdir(where):
            raise UsageError(f"there is no folder {os.fspath(where)!r} for the {what}")
    root = Path(path)
    try:
        name, sources = _recognise(root, _files(root), format)
        gathered = _gather(_read(root, name, sources, images))
        if splits is not None:
            _assign(gathered, Path(splits), asked=True)
        elif set(gathered.splits) == {ALL}:
            _assign(gathered, sources[0].parent if sources else root, asked=False)
    except OSError as exc:
        raise UsageError(f"cannot read {exc.filename or root}: {exc.strerror}") from exc
    _check_any(root, name, gathered, images, by_table=bool(sources))
    ordered = sorted(gathered.splits, key=lambda split: _rank(split))
    return Dataset(
        name,
        root,
        gathered.problems,
        {
            split: Captioned(
                [gathered.pictures[n] for n in gathered.splits[split]], list(gathered.splits[split].values())
            )
            for split in ordered
        },
    )


# --- which files, and of which format


def _files(root: Path) -> list[Path]:
    """The files that may say what the pictures are: the file itself, those of a pattern, or those in a folder.

    In a folder these are its own files, those of ``annotations/`` and those of folders named after splits; the texts
    that lie beside a picture of the same name are not among them.
    """
    if root.is_file():
        return [root]
    if not root.exists():
        found = _expand(os.fspath(root))
        if not found:
            raise UsageError(f"there is no {os.fspath(root)!r}")
        return found
    folders = [root, *sorted(f for f in root.iterdir() if f.is_dir() and _holds_data(f.name))]
    return [file for folder in folders for file in _candidates(folder)]


def _holds_data(name: str) -> bool:
    return name == "annotations" or name.lower() in KIND_OF


def _expand(pattern: str) -> list[Path]:
    """``shards/{00000..00009}.tar`` as a shell reads it, and ``*``, ``?``; what is not there is left out."""
    if not re.search(r"[{*?]", pattern):
        return []
    import bracex

    paths = chain.from_iterable(
        sorted(glob.glob(one, recursive=True)) if glob.has_magic(one) else [one]
        for one in bracex.expand(pattern, keep_escapes=True, limit=0)
    )
    return [Path(path) for path in paths if os.path.isfile(path)]


def _candidates(folder: Path) -> Iterator[Path]:
    from indexer.decode import modality_of
    from indexer.types import Modality

    listed = sorted(files_in(folder))
    pictures = {os.path.splitext(name)[0] for name in listed if modality_of(name) is Modality.IMAGE}
    for name in listed:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in _SUFFIXES and stem not in pictures:
            yield folder / name


def _recognise(root: Path, files: list[Path], format: str | None) -> tuple[str, list[Path]]:
    """The format, and the files of it; without files, it is a folder of pictures with texts beside them."""
    found: dict[str, list[Path]] = {}
    for file in files:
        head = "" if webdataset.recognises(file, "") else read_head(file)
        for name, reader in READERS.items():
            if format in (None, name) and reader.recognises(file, head):
                found.setdefault(name, []).append(file)
                break
    for name in READERS:
        if name in found:
            return name, found[name]
    if format is not None and not root.is_dir():
        return format, files  # the caller knows better
    if format in (None, "folder") and root.is_dir():
        return "folder", []
    if format is not None:
        raise UsageError(f"{root} has no file of the format {format}: {FORMATS[format]}")
    raise _unknown(root)


def _unknown(root: Path) -> UsageError:
    known = "".join(f"\n  {name}: {description}" for name, description in FORMATS.items())
    return UsageError(f"the format of {root} is not recognised; the formats are{known}")


# --- its rows


def _read(root: Path, name: str, sources: list[Path], images: str | os.PathLike[str] | None) -> Iterator[Row | Problem]:
    if not sources:
        yield from folder.sidecar_rows(root)
    finders: dict[Path, Finder] = {}
    for source in sources:
        at = source.parent
        if at not in finders:
            roots = [images] if images is not None else [at, at.resolve().parent]
            finders[at] = Finder(roots, (*PICTURE_FOLDERS, *READERS[name].folders))
        # train.csv says that it is not all there is only where dev.csv lies beside it.
        split = split_in_name(source.stem) if len(sources) > 1 else None
        if split is None and root.is_dir() and at != root and at.name.lower() in KIND_OF:
            split = at.name
        for row in READERS[name].rows(source, finders[at]):
            if split is not None and isinstance(row, Row) and row.split is None:
                row = replace(row, split=split)
            yield row


@dataclass(slots=True)
class _Gathered:
    """Rows by split and picture."""

    problems: list[Problem] = field(default_factory=list)
    pictures: dict[str, Picture] = field(default_factory=dict)
    splits: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Split to name of the picture to captions."""
    missing: set[str] = field(default_factory=set)


def _gather(rows: Iterable[Row | Problem]) -> _Gathered:
    gathered = _Gathered()
    problems = gathered.problems
    known: dict[tuple[str, Box | None, tuple[int, int] | None], str] = {}
    for row in rows:
        if isinstance(row, Problem):
            problems.append(row)
            continue
        captions = [caption.strip() for caption in row.captions if isinstance(caption, str) and caption.strip()]
        if not is_text(row.name) or not all(map(is_text, captions)):
            problems.append(Problem(row.place, "has bytes that are not UTF-8"))
            continue
        if not captions:
            problems.append(Problem(row.place, f"there is no text about {row.name!r}"))
            continue
        if row.path is None:
            if row.name not in gathered.missing:
                gathered.missing.add(row.name)
                problems.append(Problem(row.place, f"there is no picture {row.name!r}"))
            continue
        key = (row.path, row.box, row.member)
        name = known.get(key)
        if name is None:
            name = row.name
            path = Path(row.path)
            if name in gathered.pictures:  # train/1.jpg and test/1.jpg, or the same key in two shards
                name = f"{path.parent.name if row.member is None else path.stem}/{name}"
            if name in gathered.pictures:
                problems.append(Problem(row.place, f"another picture is called {row.name!r} as well"))
                continue
            known[key] = name
            gathered.pictures[name] = Picture(name, path, row.box, row.member)
        split = row.split.lower() if row.split else ALL
        gathered.splits.setdefault(_SAME.get(split, split), {}).setdefault(name, []).extend(captions)
    return gathered


def _rank(split: str) -> int:
    kind = KIND_OF.get(split)
    return KIND_ORDER.index(kind) if kind else len(KIND_ORDER)


def _check_any(
    root: Path, name: str, gathered: _Gathered, images: str | os.PathLike[str] | None, *, by_table: bool
) -> None:
    if any(gathered.splits.values()):
        return
    if not by_table:
        raise _unknown(root)
    first = "".join(f"\n  {problem}" for problem in gathered.problems[:SHOWN])
    count = len(gathered.problems)
    advice = "" if images is not None or name == "webdataset" else "; if the pictures are elsewhere, name their folder"
    raise UsageError(f"no picture with a caption in {root} (format {name}), {count:,} problems{advice}{first}")


# --- lists of names


def _assign(gathered: _Gathered, folder: Path, *, asked: bool) -> None:
    """Make splits of the lists of names in ``folder``, in the order of the lists; a picture may be in several.

    A list counts if it names a picture at all: a ``test.txt`` can be something else. Names stand with or without
    their extension.
    """
    captions: dict[str, list[str]] = {}
    for some in gathered.splits.values():
        for name, texts in some.items():
            captions.setdefault(name, []).extend(texts)
    stems = {os.path.splitext(name)[0]: name for name in captions}
    missing = gathered.missing | {os.path.splitext(name)[0] for name in gathered.missing}
    splits: dict[str, dict[str, list[str]]] = {}
    lists: list[str] = []
    for listed in sorted(files_in(folder)):
        match = _LIST.fullmatch(listed)
        if not match:
            continue
        split: dict[str, list[str]] = {}
        unknown: list[Problem] = []
        with open_text(folder / listed) as opened:
            for number, line in enumerate(opened, 1):
                entry = line.strip()
                known = entry if entry in captions else stems.get(entry)
                if known is not None:
                    split[known] = captions[known]
                elif entry and entry not in missing:
                    unknown.append(Problem(f"{listed}:{number}", f"names {entry!r}, of which the data says nothing"))
        if split:
            kind = match[1].lower()
            splits.setdefault(_SAME.get(kind, kind), {}).update(split)
            lists.append(listed)
            gathered.problems.extend(unknown)
    if not splits:
        if asked:
            raise UsageError(f"no list in {folder} (train.txt, dev.txt, test.txt) names a picture of the data")
        return
    left = len(captions.keys() - set(chain.from_iterable(splits.values())))
    if left:
        gathered.problems.append(Problem(", ".join(lists), f"pictures that are in no list and are left out: {left:,}"))
    gathered.splits = splits
