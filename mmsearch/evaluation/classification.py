"""Zero-shot classification: the class of a picture is the one whose name, put into sentences, is nearest to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.errors import UsageError
from mmsearch.evaluation.agreement import ranking

if TYPE_CHECKING:
    from indexer.encoders import Encoder
    from mmsearch.datasets import Picture

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a bright photo of a {}.",
    "a dark photo of a {}.",
    "a drawing of a {}.",
)
"""The sentences that stand for a class unless others are given: what varies is what is not the class."""
TOP = 5
_LABELLED = 40  # with more classes, their names would cover each other in the picture of the confusion matrix


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """A folder of class folders: ``names`` of the C classes, the pictures of all, and the class of each picture."""

    names: tuple[str, ...]
    pictures: tuple[Picture, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How one class fares: of the pictures said to be it (precision), and of those that are (recall)."""

    name: str
    pictures: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Classification:
    """How N pictures of C classes were classified; shares from 0 to 1."""

    pictures: int
    accuracy: float
    top5: float | None
    """The right class is among the five nearest; None with five classes or fewer, where it always is."""
    macro_f1: float
    """The mean of the classes' F1: each class counts the same, however many pictures it has."""
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    """``(C, C)``: row is the true class, column the one given."""

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def read_class_folders(folder: Path) -> ClassFolders:
    """The pictures below each folder in ``folder``; its name, ``_`` read as a space, is the name of the class.

    What lies in ``folder`` itself has no class and is left out, and so are hidden files and all that is not a picture
    by its name.

    Raises:
        UsageError: no such folder, fewer than two folders with pictures in it, or two of one name.
    """
    from indexer.discover import Walk
    from indexer.types import Modality
    from mmsearch.datasets import Picture

    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; name one that holds a folder of pictures for each class")
    root = folder.absolute()
    found: dict[str, list[Path]] = {}
    for file in Walk([root]):
        inside = Path(file.path).relative_to(root)
        if file.modality is Modality.IMAGE and len(inside.parts) > 1:
            found.setdefault(inside.parts[0], []).append(inside)
    names = [" ".join(name.replace("_", " ").split()) for name in sorted(found)]
    if len(names) < 2:
        raise UsageError(f"{folder} holds {len(names)} folders with pictures; classes are told apart: give two or more")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"two folders in {folder} both mean the class {doubled[0]!r}; rename one")
    ordered = [(path, label) for label, name in enumerate(sorted(found)) for path in sorted(found[name])]
    return ClassFolders(
        names=tuple(names),
        pictures=tuple(Picture(path.as_posix(), root / path) for path, _ in ordered),
        labels=tuple(label for _, label in ordered),
    )


def read_templates(path: Path) -> tuple[str, ...]:
    """A sentence a line with one ``{}`` where the name of the class goes; empty lines are left out.

    Raises:
        UsageError: the file cannot be read, holds no sentence, or a line has no ``{}`` or more than one.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not text in UTF-8; save it as such") from exc
    for number, line in enumerate(lines, 1):
        if line.strip() and line.count("{}") != 1:
            raise UsageError(f"{path}:{number}: {line.strip()!r} needs one {{}} where the name of the class goes")
    templates = tuple(line.strip() for line in lines if line.strip())
    if not templates:
        raise UsageError(f"{path} holds no sentence; write one a line, as: a photo of a {{}}.")
    return templates


def class_vectors(encoder: Encoder, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> np.ndarray:
    """A unit row for each of C class names: ``(C, D)``.

    The mean of the unit rows of all its sentences, made a unit row again (Radford et al. 2021, section 3.1.4: an
    ensemble in the space of vectors, which costs no more than one sentence once it is made).
    """
    sentences = [template.replace("{}", name) for name in names for template in templates]
    rows = np.concatenate([encoder.encode_texts(sentences[i : i + 256]) for i in range(0, len(sentences), 256)])
    means = rows.reshape(len(names), len(templates), -1).astype(np.float64).mean(axis=1)  # (C, D)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def classify(images: np.ndarray, classes: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Classification:
    """Give each picture the nearest class, and count.

    A class that no picture was given has precision 0, and one without pictures recall 0. Of two classes equally near,
    the first is given.

    Labels (0, 0, 1) and answers (0, 1, 1): accuracy 2/3; class 0 has precision 1 and recall 1/2, class 1 the reverse,
    and both have F1 2/3.

    Args:
        images: ``(N, D)`` unit rows.
        classes: ``(C, D)`` unit rows.
        labels: ``(N,)``, the true classes.
        names: of the C classes.

    Raises:
        UsageError: there is no picture.
    """
    if not len(images):
        raise UsageError("there is no picture to classify")
    order = ranking(images @ classes.T, TOP)  # (N, 5), fewer with fewer classes
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, order[:, 0]), 1)
    right, given, true = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)  # (C,)
    precision, recall = right / np.maximum(given, 1), right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(given + true, 1)
    return Classification(
        pictures=len(images),
        accuracy=float((order[:, 0] == labels).mean()),
        top5=float((order == labels[:, None]).any(axis=1).mean()) if len(names) > TOP else None,
        macro_f1=float(f1.mean()),
        classes=tuple(
            ClassScore(name, int(true[c]), float(precision[c]), float(recall[c]), float(f1[c]))
            for c, name in enumerate(names)
        ),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def draw_confusion(result: Classification, path: Path) -> None:
    """Write the confusion matrix as a PNG: rows are the true classes, a row adds up to 100 %.

    Raises:
        UsageError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: it would look for a screen
    except ImportError as exc:
        raise UsageError("drawing needs matplotlib: pip install 'mmsearch[train]'") from exc

    counts = np.array(result.confusion)  # (C, C)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [score.name for score in result.classes]
    labelled = len(names) <= _LABELLED
    side = 3 + 0.35 * len(names) if labelled else 10.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set(
        xlabel="class given", ylabel="true class", title=f"{result.pictures:,} pictures, {result.accuracy:.1%} right"
    )
    if labelled:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 50 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(drawn, label="% of the true class")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as exc:
        raise UsageError(f"cannot write {path}: {exc.strerror}") from exc
