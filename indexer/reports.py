"""How far a run is, and what it did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from indexer.performance import Performance
from indexer.types import Skipped


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is: files done out of ``total``, ``skipped`` among them, and the one it is at.

    ``share`` is how much of that one is done, from 0 to 1, while it is in the middle of it: a long video or document.
    """

    done: int
    total: int
    skipped: int
    path: str
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class TokensReport:
    """What one run that adds image tokens did, in pictures; ``seconds`` is wall time.

    ``present`` had their tokens before. ``changed`` and ``missing`` files are left for the next update of the index,
    ``from_memory`` cannot be read again, and ``skipped`` are the files that could not be read or that the model did not
    take; all of these have no tokens.
    """

    added: int = 0
    present: int = 0
    changed: int = 0
    missing: int = 0
    from_memory: int = 0
    seconds: float = 0.0
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one indexing run did, in files; ``seconds`` is wall time and ``items`` counts new vectors.

    ``skipped`` are the files that this run could not take, ``skipped_before`` counts unchanged ones that an earlier run
    could not.
    """

    added: int = 0
    updated: int = 0
    moved: int = 0
    duplicates: int = 0
    removed: int = 0
    unchanged: int = 0
    items: int = 0
    seconds: float = 0.0
    skipped: tuple[Skipped, ...] = ()
    skipped_before: int = 0
    performance: Performance | None = None
    """Where the time went; None for a run that had nothing to read."""


@dataclass(frozen=True, slots=True)
class SkippedAddition:
    """What was given from memory under ``key`` and is not in the index, and why."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class AddReport:
    """What one ``add`` did with what it was given; ``seconds`` is wall time and ``items`` counts vectors.

    ``added`` have new keys. ``updated`` took the place of what stood under their key, in the index or before them in
    the same call. ``skipped`` could not be taken, in the order in which they were given; what stood under their keys
    still does. The three add up to everything that was given.
    """

    added: int = 0
    updated: int = 0
    items: int = 0
    seconds: float = 0.0
    skipped: tuple[SkippedAddition, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report in plain values, for JSON."""
        return asdict(self)
