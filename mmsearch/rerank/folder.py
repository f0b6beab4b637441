"""What the folder of every reranker holds beside its weights: what it is, and how its logits become log-odds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from indexer.errors import ModelError
from indexer.types import Modality
from mmsearch import calibration, posterior

CONFIG, CALIBRATION, POSTERIOR = "config.json", "calibration.json", "posterior.json"
DIRECTIONS = ((Modality.TEXT, Modality.IMAGE), (Modality.IMAGE, Modality.TEXT))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if it holds something else.

    Raises:
        ModelError: the file cannot be read, or is no JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(f"cannot read {path}: {exc}") from exc
    return content if isinstance(content, dict) else {}


def read_lines(folder: Path) -> dict[tuple[Modality, Modality], calibration.FusedLine]:
    """The ``calibration.json`` of a reranker: a line for each of ``DIRECTIONS``.

    Raises:
        ModelError: it cannot be read, or lacks a direction or a number.
    """
    path = folder / CALIBRATION
    try:
        lines = calibration.read_fused(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ModelError(f"the reranker in {folder} is damaged ({type(exc).__name__}: {exc})") from exc
    for asked, answered in DIRECTIONS:
        if (asked, answered) not in lines:
            raise ModelError(f"{path} says nothing of {asked}->{answered}")
    return lines


def read_posterior(folder: Path) -> dict[posterior.Direction, posterior.Posterior]:
    """The ``posterior.json`` of a reranker; empty where there is none.

    Raises:
        ModelError: it cannot be read, or lacks a number.
    """
    path = folder / POSTERIOR
    if not path.exists():
        return {}
    try:
        return posterior.read(read_json(path))
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelError(f"the reranker in {folder} is damaged ({path.name}: {type(exc).__name__}: {exc})") from exc
