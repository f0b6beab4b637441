"""What ``mmsearch query`` does once its arguments are known, and a quick way to know the usual ones.

A question from the shell is answered in the time in which a parser of commands is imported. So ``read`` takes the
arguments that most questions consist of by itself, and leaves everything else, mistakes included, to the parser.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from indexer.errors import MmsearchError, UsageError

STDIN = "-"
"""What stands for the questions of standard input."""
_ONE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "-k": ("k", int),
    "--offset": ("offset", int),
    "--index": ("index", Path),
    "--after": ("after", str),
    "--before": ("before", str),
}
_SEVERAL: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--not": ("without", str),
    "--kind": ("kind", str),
    "--under": ("under", Path),
    "--like": ("like", str),
}
_COUNTS = {"-k": 1, "--offset": 0}
"""Options that are numbers, and the least that they may be."""
_ENOUGH = ("kind", "under", "after", "before", "like")
"""What is a question also without words."""
_FLAGS = {
    "--no-rerank": "no_rerank",
    "--only-clear": "only_clear",
    "--exact": "exact",
    "--literal": "literal",
    "--json": "json_",
    "--paths": "paths",
    "-0": "null",
}


def read(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The arguments of a command line, as ``query`` takes them; None if this is no simple question."""
    if not arguments or arguments[0] != "query" or os.name == "nt":  # where the parser expands wildcards, too
        return None
    found: dict[str, Any] = {}
    words: list[str] = []
    rest = iter(arguments[1:])
    for one in rest:
        if one in _FLAGS:
            found[_FLAGS[one]] = True
        elif one in _ONE or one in _SEVERAL:
            value = next(rest, "")
            if not value or value.startswith("-") or (one in _COUNTS and not _counts(value, _COUNTS[one])):
                return None
            if one in _ONE:
                name, convert = _ONE[one]
                found[name] = convert(value)
            else:
                name, convert = _SEVERAL[one]
                found.setdefault(name, []).append(convert(value))
        elif not one or one.startswith("-"):
            return None
        else:
            words.append(one)
    if not words and found.keys().isdisjoint(_ENOUGH):
        return None
    return {"text": " ".join(words) if words else None} | found


def _counts(value: str, least: int) -> bool:
    return value.isascii() and value.isdigit() and int(value) >= least


def query(
    text: str | None,
    *,
    image: Sequence[str] | None = None,
    like: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
    k: int | None = None,
    offset: int = 0,
    kind: Sequence[str] | None = None,
    under: Sequence[Path] | None = None,
    after: str | None = None,
    before: str | None = None,
    min_prob: float | None = None,
    only_clear: bool = False,
    no_rerank: bool = False,
    candidates: int | None = None,
    exact: bool = False,
    literal: bool = False,
    moments: int = 1,
    all_: bool = False,
    reranker: str | None = None,
    json_: bool = False,
    paths: bool = False,
    null: bool = False,
    open_: bool = False,
    index: Path | None = None,
    model: str | None = None,
    device: str | None = None,
) -> Path | None:
    """Answer a question, or those of standard input; with ``open_`` the file of the best answer is given back.

    Raises:
        MmsearchError: see ``Library.query``; and UsageError where options exclude each other.
    """
    if null and not paths:
        raise UsageError("-0 goes with --paths")
    if json_ and paths:
        raise UsageError("--json and --paths exclude each other")
    many = text == STDIN
    if many and open_:
        raise UsageError("--open goes with one question")
    for library_of_numpy in ("OPENBLAS", "MKL", "VECLIB_MAXIMUM"):  # one short question: threads would only wait
        os.environ.setdefault(f"{library_of_numpy}_NUM_THREADS", "1")
    import mmsearch
    from mmsearch import present, weights

    with mmsearch.open(index, model=model, device=device, reranker=reranker) as library:

        def ask(words: str | None) -> Any:
            """Answer one question."""
            asked = weights.read(words, image or (), like or (), literal=literal or exact)
            hits = library.query(
                asked.text,
                image=asked.images or None,
                like=asked.like,
                weights=asked.weights,
                without=without or (),
                k=k,
                offset=offset,
                kind=kind,
                under=under or (),
                after=after,
                before=before,
                min_prob=min_prob,
                only_clear=only_clear,
                rerank=not no_rerank,
                candidates=candidates,
                exact=exact,
                literal=literal,
                moments=moments,
                collapse=not all_,
            )
            if json_:
                print(present.hits_line(hits, words) if many else present.hits_json(hits))
            elif paths:
                sys.stdout.buffer.write(present.hits_paths(hits, end=b"\0" if null else b"\n"))
            else:
                if many and not sys.stdin.isatty():
                    print(f"{words}:")
                if hits and hits[0].probability is not None and not hits.clear:
                    say("no clear match; the nearest are")
                if hits:
                    print(present.hits_table(hits, width=_width()))
            sys.stdout.flush()
            for line in present.understood_lines(hits.understood):
                say(line)
            if hits.foreign:
                say(present.foreign_line(hits.foreign, library.questioner.name))
            if hits.not_reranked:
                say(f"not reranked: {hits.not_reranked}")
            for line in present.ending_lines(hits):
                say(line)
            return hits

        hits = None
        if many:
            _ask_many(ask)
        else:
            hits = ask(text)
        if text is not None and library.slower:
            say(f"words waited for torch, which is slower: {library.slower}")
    if not open_ or not hits:
        return None
    if hits[0].path is None:
        raise UsageError(f"the best answer, {hits[0].key!r}, was added from memory and has no file to open")
    return Path(hits[0].path)


def _ask_many(ask: Callable[[str], Any]) -> None:
    """Answer every question of standard input; one that fails ends it only where nobody sits at the terminal."""
    from mmsearch.questions import at_terminal, questions

    for words in questions():
        try:
            ask(words)
        except KeyboardInterrupt:
            if not at_terminal():
                raise
        except MmsearchError as exc:
            if not at_terminal():
                raise
            say(str(exc))


def _width() -> int:
    """Columns of the terminal; 120 where there is none."""
    import shutil

    return shutil.get_terminal_size((120, 24)).columns


def say(line: str) -> None:
    """Talk, which goes to stderr."""
    print(f"mmsearch: {line}", file=sys.stderr)
