"""The calibration of a model that brings none: measured on the index, and kept beside it for later questions."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict

import numpy as np

from indexer.index import Index
from indexer.types import Modality
from mmsearch import calibration
from mmsearch.calibration import Calibration

FILE = "background.json"
SAMPLE = 512
"""Rows of each kind that are looked at."""
GROWTH = 2
"""What was measured holds until the index is so many times as large, or as small."""


def measure(index: Index, texts: np.ndarray, like: Calibration) -> Calibration:
    """The calibration of this index by the vectors ``(Q, D)`` of everyday questions; see ``calibration.measure``."""
    items: dict[Modality, np.ndarray] = {}
    with index.snapshot() as snapshot:
        for modality, file in snapshot.vectors.items():
            alive = np.setdiff1d(np.arange(file.rows), snapshot.dead[modality], assume_unique=True)
            if len(alive):
                chosen = alive[np.linspace(0, len(alive) - 1, min(len(alive), SAMPLE)).astype(int)]
                items[modality] = file.fetch(chosen)
    return calibration.measure(texts, items, like)


def rows_of(index: Index) -> int:
    """Rows of every kind, those of removed pieces included."""
    with index.snapshot() as snapshot:
        return sum(snapshot.state.rows.values())


def holds(measured_at: int, rows: int) -> bool:
    """Whether what was measured among so many rows is good for ``rows``."""
    return measured_at <= GROWTH * rows and rows <= GROWTH * measured_at


def read(index: Index, rows: int) -> Calibration | None:
    """What is kept for this index of ``rows``; None if nothing is, or it was measured among far fewer or far more."""
    try:
        values = json.loads((index.folder / FILE).read_text(encoding="utf-8"))
        if values["fingerprint"] != index.manifest.fingerprint or not holds(int(values["rows"]), rows):
            return None
        return calibration.read(values["lines"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def wanted(index: Index) -> bool:
    """Whether there is something to measure, and nothing is kept that holds."""
    rows = rows_of(index)
    return rows > 0 and read(index, rows) is None


def keep(index: Index, texts: np.ndarray, like: Calibration) -> None:
    """Measure, and write it beside the index; where that fails, questions measure for themselves."""
    rows, lines = rows_of(index), measure(index, texts, like)
    values = {
        "fingerprint": index.manifest.fingerprint,
        "rows": rows,
        "lines": {f"{asked}->{answered}": asdict(line) for (asked, answered), line in lines.items()},
    }
    fresh = index.folder / f"{FILE}.new"
    with suppress(OSError):
        fresh.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        fresh.replace(index.folder / FILE)
