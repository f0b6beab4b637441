"""Words as the catalogue searches them: two full-text tables beside the items, and how text and questions become words.

    words   a row for each passage, under the number of its item
    names   a row for each file, or key of what was added from memory, under the number of its asset: its name, and the
            folders between it and the one that was indexed, so that it does not matter where a library lies

Both are FTS5 tables of SQLite (BM25 after Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009), cut
into words by ``unicode61`` without diacritics, of which Porter's stemmer ("An algorithm for suffix stripping", 1980)
leaves the stems: "receipt" meets "receipts", and "vaccination" what was "vaccinated". They are written and cleared in
the transactions of the items, so that after a kill they agree with them. Where Python's SQLite has no FTS5 there are no
tables: search is by meaning alone.

What is put in is ``prepare``d: ligatures and wide letters become plain ones, and so do ø, ß and their like, which are
not a letter with a mark. Each sign of a script without spaces is a word of its own, so that a question of several finds
them as a phrase. A question becomes phrases of letters and digits, whatever the user typed; no operator of FTS5 can be
typed.

Everything here that takes a ``connection`` runs in the transaction that is open on it.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache

VERSION = 2
"""Of what stands in the tables; another one in the catalogue, and a writer makes them again."""
READABLE = (1, VERSION)
"""Those that questions can be put to: the words of the first have no stems, and meet only themselves."""
TOKENIZER = "porter unicode61 remove_diacritics 2"
"""How FTS5 makes words of a text; alike for what is stored and what is asked."""
SECURE_DELETE = (3, 42)
"""The SQLite from which on a deleted row leaves no word behind; in older ones the tables are rewritten for that."""

_TABLES = {"words": "text", "names": "name, folders"}
_SIGN = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_SPLIT = re.compile(
    r"(?<=[a-z\u00df-\u00ff])(?=[A-Z\u00c0-\u00de])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])"
)
_PLAIN = str.maketrans(
    {"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"}
    | {"đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "ħ": "h", "Ħ": "H"}
)
_QUOTED = re.compile(r'"([^"]*)"')
MARKS = str.maketrans("“”„‟«»「」『』", '""""""""""')
"""Quotation marks of all languages to plain ones."""

_BEGIN, _MANY = 2, 32
"""Letters of stems that are looked for side by side where there are so many of them."""
_LAST = "\U0010ffff"

Phrase = tuple[str, ...]
"""Words that stand side by side, in this order."""


# -- text to words ---------------------------------------------------------------------------------------------------


def prepare(text: str) -> str:
    """A text as it is put into the tables and as questions are cut up: NFKC, letters plain, signs apart.

    >>> prepare("ﬁle 2024\u00ad-113, Tromsø")
    'file 2024-113, Tromso'
    """
    text = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode().replace("\u00ad", ""))
    return _SIGN.sub(r" \g<0> ", text.translate(_PLAIN).replace("\0", " "))


def name_words(path: str, roots: Collection[str] = ()) -> tuple[str, str]:
    """The name of a file with its parts, and likewise the folders below the root that it was indexed under: what is put
    into ``names``. All folders where that is none of ``roots``.

    >>> name_words("/photos/LakeDistrict/IMG2024-113.jpg", {"/photos"})
    ('IMG2024-113.jpg IMG 2024-113.jpg', 'LakeDistrict Lake District')
    """
    folder, name = os.path.split(path)
    root = root_of(path, roots)
    if root is not None:
        folder = folder[len(root) :]
    return _with_parts(prepare(name)), " ".join(_with_parts(prepare(one)) for one in folder.split("/") if one)


def root_of(path: str, roots: Collection[str]) -> str | None:
    """The outermost of ``roots`` (files or folders, absolute) that ``path`` is, or lies below; None if it is none.

    >>> root_of("/photos/lake/a.jpg", {"/photos", "/photos/lake"}), root_of("/photos2/a.jpg", {"/photos"})
    ('/photos', None)
    """
    found = None
    while roots:
        if path in roots:
            found = path
        above = os.path.dirname(path)
        if above == path:
            break
        path = above
    return found


def phrases(question: str) -> list[Phrase]:
    """What a question asks for, in the order typed, each once: single words, and words joined by signs or in quotes.

    >>> phrases('invoice 2024-113 from "Anna Berg"')
    [('invoice',), ('2024', '113'), ('from',), ('Anna', 'Berg')]
    """
    found: dict[str, Phrase] = {}
    for i, part in enumerate(_QUOTED.split(question.translate(MARKS))):
        for piece in [part] if i % 2 else part.split():
            words = tuple(tokens(prepare(piece)))
            if words:
                found.setdefault(" ".join(words).lower(), words)
    return list(found.values())


def tokens(text: str) -> list[str]:
    """The words of a prepared text: its runs of letters and digits.

    Capitals, diacritics and endings stay; FTS5 takes them off on both sides, by tables of its own.
    """
    return "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text).split()


def match_all(asked: Iterable[Phrase], column: str | None = None) -> str:
    """The FTS5 expression for rows that hold all of these phrases; no character of a phrase means anything in it.

    Args:
        column: ``name`` or ``folders``, where only that one of ``names`` is to be looked at.
    """
    where = "" if column is None else f"{column} : "
    return " AND ".join(f'{where}"{" ".join(phrase)}"' for phrase in asked)


def match_any(words: Iterable[str]) -> str:
    """The FTS5 expression for rows that hold one of these words."""
    return " OR ".join(f'"{word}"' for word in words)


def _with_parts(name: str) -> str:
    """A name, and once more with camelCase and digits apart where it has any."""
    parts = _SPLIT.sub(" ", name)
    return name if parts == name else f"{name} {parts}"


# -- the tables ------------------------------------------------------------------------------------------------------


@cache
def available() -> bool:
    """Whether the SQLite of this Python has FTS5."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE probe USING fts5(text)")
        return True
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()


def forms(word: str, of: Sequence[str]) -> list[int]:
    """The places in ``of``, growing, of what has the same stem as ``word`` once it is in the tables.

    >>> forms("Dogs", ["cat", "dog", "dogged"])
    [1, 2]
    """
    connection, lock = _stems()
    with lock:
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO stems(rowid, text) VALUES (?, ?)", enumerate(of))
        found = connection.execute("SELECT rowid FROM stems WHERE stems MATCH ?", (match_all([(word,)]),)).fetchall()
        connection.execute("ROLLBACK")
    return [place for (place,) in found]


def stems(of: Sequence[str]) -> dict[str, list[str]]:
    """The stems that these words have once they are in the tables, each with its words.

    >>> stems(["dogs", "cat", "dog"])
    {'cat': ['cat'], 'dog': ['dogs', 'dog']}
    """
    connection, lock = _stems()
    found: dict[str, list[str]] = {}
    with lock:
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO stems(rowid, text) VALUES (?, ?)", enumerate(of))
        for stem, place in connection.execute("SELECT term, doc FROM terms ORDER BY term, doc").fetchall():
            found.setdefault(stem, []).append(of[place])
        connection.execute("ROLLBACK")
    return found


def known(connection: sqlite3.Connection, of: Sequence[str]) -> dict[str, int]:
    """Those of many words, alike or not, that have a stem in the tables, and how many rows have it.

    A stem that is looked for costs as much as dozens that are next to each other, and more the more it is used.
    """
    wanted = stems(of)
    begins = Counter(stem[:_BEGIN] for stem in wanted)
    single = [stem for stem in wanted if begins[stem[:_BEGIN]] < _MANY]
    rows: Counter[str] = Counter()
    for table in _TABLES:
        connection.execute(f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.{table}_terms USING fts5vocab(main, {table}, row)")
        query = f"SELECT term, doc FROM temp.{table}_terms WHERE term"
        found = connection.execute(f"{query} IN ({','.join('?' * len(single))})", single).fetchall()
        for begin in (begin for begin, count in begins.items() if count >= _MANY):
            found += connection.execute(f"{query} >= ? AND term < ?", (begin, begin + _LAST)).fetchall()
        rows.update(dict(found))
    return {word: rows[stem] for stem in wanted if stem in rows for word in wanted[stem]}


@cache
def _stems() -> tuple[sqlite3.Connection, threading.Lock]:
    """A table for words that are compared, empty between two uses."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.execute(f"CREATE VIRTUAL TABLE stems USING fts5(text, tokenize = '{TOKENIZER}')")
    connection.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(stems, instance)")
    return connection, threading.Lock()


def create(connection: sqlite3.Connection) -> None:
    """Make both tables, empty, in place of what is there."""
    for table, columns in _TABLES.items():
        connection.execute(f"DROP TABLE IF EXISTS {table}")
        connection.execute(f"CREATE VIRTUAL TABLE {table} USING fts5({columns}, tokenize = '{TOKENIZER}')")
        if sqlite3.sqlite_version_info >= SECURE_DELETE:
            connection.execute(f"INSERT INTO {table}({table}, rank) VALUES ('secure-delete', 1)")


def put_texts(connection: sqlite3.Connection, texts: Sequence[tuple[int, str]]) -> None:
    """Write passages under the numbers of their items."""
    rows = [(item_id, prepare(text)) for item_id, text in texts]
    if rows:
        connection.executemany("INSERT INTO words(rowid, text) VALUES (?, ?)", rows)


def put_name(connection: sqlite3.Connection, asset_id: int, path: str, roots: Collection[str] = ()) -> None:
    """Write the path of a file, or the key of what has none, in place of what stands under its number."""
    connection.execute("DELETE FROM names WHERE rowid = ?", (asset_id,))
    connection.execute("INSERT INTO names(rowid, name, folders) VALUES (?, ?, ?)", (asset_id, *name_words(path, roots)))


def remove(connection: sqlite3.Connection, item_ids: Sequence[int], asset_ids: Sequence[int]) -> None:
    """Take passages and names out."""
    for table, ids in (("words", item_ids), ("names", asset_ids)):
        if ids:
            connection.executemany(f"DELETE FROM {table} WHERE rowid = ?", [(one,) for one in ids])


def count_rows(connection: sqlite3.Connection, table: str) -> int:
    """Rows of a table, without a look at any.

    FTS5 keeps the number for BM25: a varint, seven bits a byte, at the start of its record 1 (the "averages record" in
    fts5_index.c); an empty one says 0. Counting 100,000 rows takes tens of milliseconds from a cold disk.
    """
    record = connection.execute(f"SELECT block FROM {table}_data WHERE id = 1").fetchone()[0]
    count = 0
    for byte in record:
        count = count << 7 | byte & 127
        if byte < 128:
            break
    return count


def wipe(connection: sqlite3.Connection) -> None:
    """Empty the tables without FTS5, for a writer that cannot keep them in step; ``create`` makes them again.

    Left are the two records of an empty index, without which FTS5 would not even drop them.
    """
    for table in _TABLES:
        for part in _parts(connection, table):
            if not part.endswith("_config"):
                connection.execute(f"DELETE FROM {part}")
            if part.endswith("_data"):
                connection.execute(f"INSERT INTO {part} VALUES (1, x''), (10, x'00000000000000')")


def clear_away(connection: sqlite3.Connection) -> None:
    """Take the tables out of the schema where they are too damaged for FTS5 to drop them."""
    for table in _TABLES:
        for part in _parts(connection, table):
            connection.execute(f"DROP TABLE {part}")
    connection.execute("PRAGMA writable_schema = ON")
    for table in _TABLES:
        connection.execute("DELETE FROM sqlite_master WHERE name = ? AND type = 'table'", (table,))
    connection.execute("PRAGMA writable_schema = RESET")


def _parts(connection: sqlite3.Connection, table: str) -> list[str]:
    """The plain tables that are there of those in which FTS5 keeps ``table``."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    parts = (f"{table}_{part}" for part in ("content", "data", "docsize", "idx", "config"))
    return [part for part in parts if part in names]


def rewrite(connection: sqlite3.Connection) -> None:
    """Write the tables anew as one piece each, without the words of what was deleted."""
    for table in _TABLES:
        connection.execute(f"INSERT INTO {table}({table}) VALUES ('optimize')")


def check(connection: sqlite3.Connection) -> None:
    """Let FTS5 hold its index against the texts in it; raises the database's error if they differ."""
    for table in _TABLES:
        connection.execute(f"INSERT INTO {table}({table}) VALUES ('integrity-check')")
