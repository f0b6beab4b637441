"""Making the lists of an index while it is being written: a long run can be searched quickly before its end.

Lists are made of what was committed until then, in a thread of their own, and put in their place between
two batches, by the thread that writes. What ``indexer.derive`` finds to do at the end of the run is then little.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from indexer.derive import Made, Say, make, next_of, publish
from indexer.index import Index
from indexer.writer import IndexWriter

EVERY = 10.0
"""Seconds between two looks at whether anything is to be made."""


class BackgroundLists:
    """Looks after the lists of ``index`` during one run. Its methods are called by the thread that writes.

    Args:
        questions: as in ``indexer.derive.derive``; asked by the thread that writes.
        say: told when lists are begun.
    """

    def __init__(
        self,
        index: Index,
        questions: Callable[[], np.ndarray] | None,
        say: Say = lambda _: None,
    ) -> None:
        self._index = index
        self._questions = questions
        self._say = say
        self._next = time.monotonic() + EVERY
        self._thread: threading.Thread | None = None
        self._made: list[Made] = []
        self._failed = False

    def look(self, writer: IndexWriter) -> None:
        """Between two batches: begin with lists that are needed by now, or put those that are made in their place."""
        if self._thread is not None:
            if not self._thread.is_alive():
                self._take(writer)
        elif not self._failed and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            self._begin()

    def finish(self, writer: IndexWriter) -> None:
        """After the last batch: what was begun is ended and put in its place."""
        if self._thread is not None:
            self._thread.join()
            self._take(writer)

    def _begin(self) -> None:
        with self._index.snapshot() as snapshot:
            folder = self._index.folder
            due = {m: next_of(folder, snapshot, m) for m in snapshot.vectors}
        due = {m: found for m, found in due.items() if found[0] in ("build", "extend")}
        if not due:
            return
        for m in due:
            self._say(f"making search lists for {snapshot.vectors[m].rows:,} {m} vectors meanwhile")
        asked = self._questions() if self._questions else None

        def work() -> None:
            try:
                for m, (step, lists) in due.items():
                    old = lists if step == "extend" else None
                    questions = None if asked is None else (lambda: asked)
                    self._made.append(make(folder, snapshot, m, old, questions, lambda _: None))
            except (OSError, MemoryError):
                # A full disk, or a generation that is gone: the end of the run tries again, and says so.
                self._failed = True

        # A run that is broken off waits for nothing: what this leaves behind, the next writer sweeps.
        self._thread = threading.Thread(target=work, name="mmsearch-lists", daemon=True)
        self._thread.start()

    def _take(self, writer: IndexWriter) -> None:
        self._thread = None
        made, self._made = self._made, []
        try:
            with self._index.snapshot() as snapshot:
                taken = [publish(self._index.folder, one, snapshot) for one in made]
        except OSError:
            self._failed = True
            return
        if any(taken):
            writer.announce()
