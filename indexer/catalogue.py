"""The catalogue: which files and pieces are in the index, in a database. It is the truth; all else is checked by it.

This is the only module that imports sqlalchemy, and it does the writing; what is read is in ``indexer.reader``.

    meta           the counters of the index: format, generation of the vector files, rows in each, version,
                   and the number of the digest by which content is recognised; BLAKE2b without one
    token_format   whose image tokens the index holds; one row or none
    assets         a file, or an object added from memory
    items          a searchable piece of an asset, the row of its vector, and the checksum of its image tokens, if any
    ocr_read       assets in whose pictures text was looked for, whether or not there is any
    pictures       how large a picture is, and its perceptual hashes; in an older index once it is indexed again
    skipped        a file that could not be read, with the reason; not tried again until it changes
    roots          the files and folders that were indexed as such, none below another; an older index knows them only
                   once it is indexed again
    freed          rows whose piece is gone and whose bytes must be, or are, zeros
    words, names   what is searched word by word, see ``indexer.words``; absent where SQLite lacks FTS5

Paths are stored as bytes, as the file system has them: a name need not be UTF-8.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from indexer import words
from indexer.content import Digest
from indexer.reader import (
    BAND,
    BANDS,
    BUSY_SECONDS,
    MOMENT,
    SCHEMA_VERSION,
    UNDER_CHUNK,
    Reader,
    chunks,
    ranges,
    signed,
    translate,
)
from indexer.records import Likeness, NewItem
from indexer.tokens import TokenFormat
from indexer.types import Asset, Modality, Span

_METADATA = sa.MetaData()

META = sa.Table(
    "meta",
    _METADATA,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
TOKEN_FORMAT = sa.Table(
    "token_format",
    _METADATA,
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
)
ASSETS = sa.Table(
    "assets",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("path", sa.LargeBinary, unique=True),
    sa.Column("key", sa.Text, unique=True),
    sa.Column("modality", sa.String(8), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.LargeBinary(16), nullable=False, index=True),
    sa.Column("taken", sa.Float),
    sa.Column("metadata", sa.Text),
    sa.Column("complete", sa.Boolean, nullable=False),
    sa.CheckConstraint("(path IS NULL) != (key IS NULL)"),
)
ITEMS = sa.Table(
    "items",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("asset_id", sa.ForeignKey("assets.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("modality", sa.String(8), nullable=False),
    sa.Column("row", sa.BigInteger, nullable=False),
    sa.Column("crc", sa.BigInteger, nullable=False),
    sa.Column("first_line", sa.Integer),
    sa.Column("last_line", sa.Integer),
    sa.Column("text", sa.Text),
    sa.Column("token_crc", sa.BigInteger),
    sa.Column("page", sa.Integer),
    sa.Column("start", sa.Float),
    sa.Column("end", sa.Float),
    sa.Column("best", sa.Float),
    sa.Column("box", sa.Text),
    sa.Column("source", sa.String(12)),
    sa.UniqueConstraint("modality", "row"),
    sa.UniqueConstraint("asset_id", "ordinal"),
    sqlite_autoincrement=True,
)
OCR_READ = sa.Table(
    "ocr_read",
    _METADATA,
    sa.Column("asset_id", sa.Integer, sa.ForeignKey("assets.id", ondelete="CASCADE"), primary_key=True),
)
PICTURES = sa.Table(
    "pictures",
    _METADATA,
    sa.Column("asset_id", sa.Integer, sa.ForeignKey("assets.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("phash", sa.BigInteger),
    sa.Column("detail", sa.LargeBinary(32)),
)
SKIPPED = sa.Table(
    "skipped",
    _METADATA,
    sa.Column("path", sa.LargeBinary, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
ROOTS = sa.Table("roots", _METADATA, sa.Column("path", sa.LargeBinary, primary_key=True))
FREED = sa.Table(
    "freed",
    _METADATA,
    sa.Column("modality", sa.String(8), primary_key=True),
    sa.Column("row", sa.BigInteger, primary_key=True),
    sa.Column("erased", sa.Boolean, nullable=False),
)

# What is done for every file is made once, and given its values by name: to make it again for each takes SQLAlchemy
# longer than SQLite takes to do it.
_PUT_ASSET = sa.insert(ASSETS)
_PUT_ITEMS = sa.insert(ITEMS)
_MARK_OCR_READ = sa.insert(OCR_READ)
_PUT_LIKENESS = sa.insert(PICTURES)
_FORGET_SKIPPED = sa.delete(SKIPPED).where(SKIPPED.c.path == sa.bindparam("b_path"))

_SPAN_FIELDS = tuple(field.name for field in fields(Span))

_WORDS_BATCH = 1000
"""Passages that are put into the word search at once when it is made again."""


class Catalogue:
    """One database, opened for writing, which belongs to whoever holds the lock of the index."""

    def __init__(self, path: Path) -> None:
        """Open the database at ``path``: it is created if it is not there, and migrated if it is old.

        Raises:
            StorageError: it cannot be opened.
        """
        self.path = path
        try:
            self._engine = sa.create_engine(
                sa.URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_SECONDS}
            )
            sa.event.listen(self._engine, "connect", _on_connect)
            sa.event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
            with self._engine.begin() as connection:
                _METADATA.create_all(connection)
                _migrate(connection)
                _bring_words(Writer(connection))
        except (SQLAlchemyError, sqlite3.Error, OSError) as exc:
            raise translate(exc, path) from exc

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A view of one moment: everything read through it belongs together."""
        try:
            with self._engine.connect() as connection, connection.begin():
                yield Reader(_plain(connection))
        except (DBAPIError, sqlite3.Error) as exc:
            raise translate(exc, self.path) from exc

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """One transaction: on any exception nothing of it has happened."""
        try:
            with self._engine.begin() as connection:
                yield Writer(connection)
        except (DBAPIError, sqlite3.Error) as exc:
            raise translate(exc, self.path) from exc

    def vacuum(self) -> None:
        """Give the space of deleted rows back to the file system."""
        try:
            connection = self._engine.raw_connection()  # outside the transactions that the begin event opens
            try:
                cursor = connection.cursor()
                cursor.execute("VACUUM")
                cursor.execute("PRAGMA busy_timeout = 0")  # a reader in the middle of a question delays this, no harm
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                cursor.close()
            finally:
                connection.close()
        except (DBAPIError, sqlite3.Error) as exc:
            raise translate(exc, self.path) from exc


class Writer(Reader):
    """Changes to the catalogue, all within one transaction; what is read through it sees them."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(_plain(connection))
        self._connection = connection
        self._roots: frozenset[str] | None = None

    def initialise(self) -> None:
        """Set the counters of a new catalogue; an initialised one stays as it is."""
        if self._connection.scalar(sa.select(sa.func.count()).select_from(META)):
            return
        counters = {"schema": SCHEMA_VERSION, "version": 0, "generation": 1, "digest": Digest.BLAKE3}
        for name, value in counters.items():
            self._set(name, value)
        _bring_words(self)

    def is_initialised(self) -> bool:
        """Whether the counters are set."""
        return self._connection.scalar(sa.select(META.c.value).where(META.c.name == "schema")) is not None

    def forget_words(self) -> None:
        """Empty the tables of the word search, which this SQLite cannot keep in step."""
        words.wipe(self._plain)
        self._connection.execute(sa.delete(META).where(META.c.name.in_(["words", "word_traces"])))

    def make_words(self) -> None:
        """Make the tables of the word search again from what the catalogue holds; nothing where there are none."""
        if words.available():
            _make_words(self)

    def clear_word_traces(self) -> None:
        """Let no word of what was removed stand in the tables."""
        words.rewrite(self._plain)
        self._set("word_traces", 0)

    def _leave_traces(self) -> None:
        if sqlite3.sqlite_version_info < words.SECURE_DELETE and not self.word_traces():
            self._set("word_traces", 1)

    def _set(self, name: str, value: int) -> None:
        changed = self._connection.execute(sa.update(META).where(META.c.name == name).values(value=value))
        if not changed.rowcount:
            self._connection.execute(sa.insert(META).values(name=name, value=value))

    def advance(self, rows: dict[Modality, int], *, generation: int | None = None) -> None:
        """Count the transaction and say how long the vector files are."""
        self._connection.execute(sa.update(META).where(META.c.name == "version").values(value=META.c.value + 1))
        for modality, count in rows.items():
            self._set(f"rows:{modality}", count)
        if generation is not None:
            self._set("generation", generation)

    def put_asset(self, asset: Asset, *, complete: bool) -> int:
        """Write an asset that the catalogue does not have, and return its number."""
        values = _asset_values(asset) | {"complete": complete}
        result = self._connection.execute(_PUT_ASSET, values)
        if asset.path:
            self.forget_skipped([asset.path])
        key = result.inserted_primary_key
        assert key is not None
        if words.available():
            self._put_name(int(key[0]), asset.path or asset.key or "")
        return int(key[0])

    def _put_name(self, asset_id: int, name: str) -> None:
        if self._roots is None:
            self._roots = self.roots()
        words.put_name(self._plain, asset_id, name, self._roots)

    def add_roots(self, paths: Sequence[str]) -> None:
        """Remember files and folders that are indexed as such, and let the names below them begin there.

        Of two of which one lies below the other it is the outer one that counts.
        """
        before = self.roots()
        every = before | set(paths)
        self._roots = frozenset(path for path in every if words.root_of(path, every) == path)
        self._forget_roots(before - self._roots)
        new = sorted(self._roots - before)
        if not new:
            return
        self._connection.execute(sa.insert(ROOTS), [{"path": os.fsencode(path)} for path in new])
        renamed = [(path, stamp.asset_id) for path, stamp in self.stamps(new).items() if stamp.asset_id is not None]
        if renamed and words.available():
            for path, asset_id in renamed:
                self._put_name(asset_id, path)
            self._leave_traces()

    def forget_roots_under(self, under: Sequence[str]) -> None:
        """Forget the roots at or below the paths ``under``, of which nothing is in the index any more."""
        self._forget_roots(path for path in self.roots() if words.root_of(path, under) is not None)
        self._roots = None

    def _forget_roots(self, paths: Iterable[str]) -> None:
        for chunk in chunks([os.fsencode(path) for path in paths]):
            self._connection.execute(sa.delete(ROOTS).where(ROOTS.c.path.in_(chunk)))

    def mark_ocr_read(self, asset_id: int) -> None:
        """Say that text was looked for in the pictures of an asset."""
        self._connection.execute(_MARK_OCR_READ, {"asset_id": asset_id})

    def put_likeness(self, asset_id: int, likeness: Likeness) -> None:
        """Say how the picture in an asset looks, of which it was not said before."""
        phash = None if likeness.phash is None else signed(likeness.phash)
        values = {"asset_id": asset_id, "phash": phash, "detail": likeness.detail}
        self._connection.execute(_PUT_LIKENESS, values | {"width": likeness.width, "height": likeness.height})

    def change_asset(self, asset_id: int, asset: Asset) -> None:
        """Give an asset another path or stamp; its items stay as they are."""
        before = self.asset(asset_id)
        if words.available() and (before.path, before.key) != (asset.path, asset.key):
            self._put_name(asset_id, asset.path or asset.key or "")
            self._leave_traces()
        self._connection.execute(sa.update(ASSETS).where(ASSETS.c.id == asset_id).values(_asset_values(asset)))
        if asset.path:
            self.forget_skipped([asset.path])

    def complete_asset(self, asset_id: int) -> None:
        """Say that the last item of an asset is written."""
        self._connection.execute(sa.update(ASSETS).where(ASSETS.c.id == asset_id).values(complete=True))

    def put_items(self, asset_id: int, items: Sequence[NewItem]) -> None:
        """Write items of an asset."""
        if not items:
            return
        self._connection.execute(
            _PUT_ITEMS,
            [
                {
                    "asset_id": asset_id,
                    "ordinal": item.ordinal,
                    "modality": item.modality.value,
                    "row": item.row,
                    "crc": item.crc,
                    "text": item.text,
                    "source": item.source,
                    "token_crc": item.token_crc,
                }
                | _span_values(item.span or Span())
                for item in items
            ],
        )

        texts = {item.ordinal: item.text for item in items if item.text is not None}
        if texts and words.available():
            where = (ITEMS.c.asset_id == asset_id) & (ITEMS.c.ordinal >= min(texts)) & (ITEMS.c.ordinal <= max(texts))
            numbers = self._connection.execute(sa.select(ITEMS.c.id, ITEMS.c.ordinal).where(where)).all()
            words.put_texts(self._plain, [(n, texts[o]) for n, o in numbers if o in texts])

    def set_token_format(self, tokens: TokenFormat) -> None:
        """Say whose image tokens the index holds from now on; no picture has any then."""
        self._connection.execute(sa.delete(TOKEN_FORMAT))
        values = {"fingerprint": tokens.fingerprint, "name": tokens.name, "count": tokens.count, "width": tokens.width}
        self._connection.execute(sa.insert(TOKEN_FORMAT).values(values))
        self._connection.execute(sa.update(ITEMS).where(ITEMS.c.token_crc.is_not(None)).values(token_crc=None))

    def set_token_checksums(self, modality: Modality, checksums: Mapping[int, int | None]) -> None:
        """Say of the items of one modality at these rows which tokens they have; None for none."""
        statement = (
            sa.update(ITEMS)
            .where(ITEMS.c.modality == modality.value, ITEMS.c.row == sa.bindparam("b_row"))
            .values(token_crc=sa.bindparam("b_crc"))
        )
        if checksums:
            self._connection.execute(statement, [{"b_row": row, "b_crc": crc} for row, crc in checksums.items()])

    def remove_assets(self, asset_ids: Sequence[int]) -> dict[Modality, list[int]]:
        """Delete assets with their items; return the rows that are now free, which must be erased."""
        freed: dict[Modality, list[int]] = {}
        for chunk in chunks(asset_ids):
            query = sa.select(ITEMS.c.id, ITEMS.c.modality, ITEMS.c.row, ITEMS.c.text.is_not(None)).where(
                ITEMS.c.asset_id.in_(chunk)
            )
            texts: list[int] = []
            for item_id, modality, row, worded in self._connection.execute(query):
                freed.setdefault(Modality(modality), []).append(row)
                texts += [item_id] if worded else []
            if words.available():
                words.remove(self._plain, texts, chunk)
                self._leave_traces()
            self._connection.execute(sa.delete(ITEMS).where(ITEMS.c.asset_id.in_(chunk)))
            self._connection.execute(sa.delete(OCR_READ).where(OCR_READ.c.asset_id.in_(chunk)))
            self._connection.execute(sa.delete(PICTURES).where(PICTURES.c.asset_id.in_(chunk)))
            self._connection.execute(sa.delete(ASSETS).where(ASSETS.c.id.in_(chunk)))
        for modality, rows in freed.items():
            self.free(modality, rows)
        return freed

    def free(self, modality: Modality, rows: Iterable[int]) -> None:
        """Mark rows as belonging to nothing and not erased yet."""
        values = [{"modality": modality.value, "row": row, "erased": False} for row in rows]
        if values:
            self._connection.execute(sa.insert(FREED), values)

    def drop_freed_from(self, modality: Modality, first: int) -> None:
        """Forget freed rows from ``first`` on: the file ends before them."""
        self._connection.execute(sa.delete(FREED).where(FREED.c.modality == modality.value, FREED.c.row >= first))

    def set_erased(self, modality: Modality, rows: Sequence[int]) -> None:
        """Say that the bytes of these freed rows are zeros."""
        for chunk in chunks(rows):
            where = (FREED.c.modality == modality.value) & FREED.c.row.in_(chunk)
            self._connection.execute(sa.update(FREED).where(where).values(erased=True))

    def put_skipped(self, path: str, size: int, mtime_ns: int, reason: str) -> None:
        """Remember that a file was not taken, and why."""
        self.forget_skipped([path])
        values = {"path": os.fsencode(path), "size": size, "mtime_ns": mtime_ns, "reason": reason}
        self._connection.execute(sa.insert(SKIPPED).values(values))

    def forget_skipped(self, paths: Sequence[str]) -> None:
        """Forget files that were skipped: they are gone, or taken now."""
        if paths:
            self._connection.execute(_FORGET_SKIPPED, [{"b_path": os.fsencode(path)} for path in paths])

    def forget_skipped_under(self, under: Sequence[str]) -> int:
        """Forget the skipped files at or below the paths ``under``; return how many there were."""
        return sum(
            self._connection.execute(sa.delete(SKIPPED).where(_below(SKIPPED.c.path, chunk))).rowcount
            for chunk in chunks(under, UNDER_CHUNK)
        )

    def renumber(self, modality: Modality, rows: Sequence[tuple[int, int]]) -> None:
        """Give items, ``(id, new row)`` in the order of their rows, smaller rows without gaps; no row is free then."""
        # In ascending order a new row is never one that a later item still holds.
        statement = sa.update(ITEMS).where(ITEMS.c.id == sa.bindparam("b_id")).values(row=sa.bindparam("b_row"))
        if rows:
            self._connection.execute(statement, [{"b_id": i, "b_row": row} for i, row in rows])
        self._connection.execute(sa.delete(FREED).where(FREED.c.modality == modality.value))


def _plain(connection: Connection) -> sqlite3.Connection:
    """What SQLAlchemy's connection is made of: the same transaction."""
    plain = connection.connection.dbapi_connection
    assert isinstance(plain, sqlite3.Connection)
    return plain


def _migrate(connection: Connection) -> None:
    """Bring a catalogue of an older schema to this one, in the transaction that is open."""
    there = {column["name"] for column in sa.inspect(connection).get_columns("items")}
    for column in ITEMS.c:
        if column.name not in there:
            declared = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE items ADD COLUMN {declared}")
    connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS assets_moment ON assets ({MOMENT})")
    for shift, mask in BANDS:
        band = BAND.format(shift, mask)
        connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS pictures_band_{shift} ON pictures ({band})")
    older = (META.c.name == "schema") & (META.c.value < SCHEMA_VERSION)
    connection.execute(sa.update(META).where(older).values(value=SCHEMA_VERSION))


def _bring_words(writer: Writer) -> None:
    """Make the tables of the word search where they are missing or old; empty what can no longer be kept in step."""
    if not writer.is_initialised():
        return  # a catalogue that is being made, see Writer.initialise
    if not words.available():
        writer.forget_words()
    elif writer.word_version() != words.VERSION:
        _make_words(writer)


def _make_words(writer: Writer) -> None:
    connection = writer._plain
    try:
        words.create(connection)
    except sqlite3.Error:
        words.clear_away(connection)
        words.create(connection)
    waiting: list[tuple[int, str]] = []
    for item_id, text in writer.all_texts():
        waiting.append((item_id, text))
        if len(waiting) == _WORDS_BATCH:
            words.put_texts(connection, waiting)
            waiting = []
    words.put_texts(connection, waiting)
    roots = writer.roots()
    for asset_id, name in writer.all_names():
        words.put_name(connection, asset_id, name, roots)
    writer._set("words", words.VERSION)
    writer._set("word_traces", 0)


def _on_connect(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun in words, see the begin event
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # what was committed is there after a power cut
    cursor.execute("PRAGMA secure_delete = ON")  # the text of a removed file leaves the disk too
    cursor.close()


def _below(column: sa.Column[Any], paths: Sequence[str]) -> sa.ColumnElement[bool]:
    """Whether a path column is one of ``paths`` or lies below it, as ranges that the index on the column serves."""
    below = [(column == name) | ((column >= first) & (column < end)) for name, first, end in ranges(paths)]
    return sa.or_(sa.false(), *below)


def _asset_values(asset: Asset) -> dict[str, Any]:
    return {
        "path": os.fsencode(asset.path) if asset.path else None,
        "key": asset.key,
        "modality": asset.modality.value,
        "size": asset.size,
        "mtime_ns": asset.mtime_ns,
        "digest": asset.digest,
        "taken": asset.taken,
        "metadata": json.dumps(dict(asset.metadata)) if asset.metadata else None,
    }


def _span_values(span: Span) -> dict[str, Any]:
    values = {name: getattr(span, name) for name in _SPAN_FIELDS}
    return values | {"box": json.dumps(span.box) if span.box else None}
