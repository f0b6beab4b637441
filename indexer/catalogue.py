"""The catalogue: which files and pieces are in the index, in a database. It is the truth; all else is checked by it.

This is the only module that imports sqlalchemy.

    meta           the counters of the index: format, generation of the vector files, rows in each, version
    token_format   whose image tokens the index holds; one row or none
    assets         a file, or an object added from memory
    items          a searchable piece of an asset, the row of its vector, and the checksum of its image tokens, if any
    skipped        a file that could not be read, with the reason; not tried again until it changes
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from indexer import words
from indexer.errors import IndexDamaged, StorageError, UsageError
from indexer.records import Filter, ItemRow, NewItem, PieceRow, Stamp, State
from indexer.tokens import TokenFormat
from indexer.types import Asset, Item, Modality, Skipped, Span

SCHEMA_VERSION = 3
_FIRST_WITH_TOKENS = 2
"""A catalogue of schema 1 knows nothing of tokens: it is read as one without any, and migrated by the first writer."""
_FIRST_WITH_PLACES = 3
"""Before this one, a piece is a whole picture or some lines of a text."""

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
SKIPPED = sa.Table(
    "skipped",
    _METADATA,
    sa.Column("path", sa.LargeBinary, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
FREED = sa.Table(
    "freed",
    _METADATA,
    sa.Column("modality", sa.String(8), primary_key=True),
    sa.Column("row", sa.BigInteger, primary_key=True),
    sa.Column("erased", sa.Boolean, nullable=False),
)

_PLACES = ("page", "start", "end", "best", "box", "source")
_ITEM = tuple(column for column in ITEMS.c if column is not ITEMS.c.token_crc)
_OLD_ITEM = tuple(sa.null().label(c.name) if c.name in _PLACES else c for c in _ITEM)
"""An item as catalogues before ``_FIRST_WITH_PLACES`` have it."""
_IN_CHUNK = 500
"""Values in one IN (...): SQLite allows 999 parameters in its older builds."""
_WORDS_BATCH = 1000
"""Passages that are put into the word search at once when it is made again."""
_NAME_WEIGHT = 4.0
"""Of a word in the name of a file, where one in the names of its folders weighs 1."""
_UNDER_CHUNK = 100
"""Paths in one condition "at or below": SQLite allows expressions of depth 1,000."""


class Catalogue:
    """One database. Reading is thread-safe; writing belongs to whoever holds the lock of the index."""

    def __init__(self, path: Path, *, write: bool) -> None:
        """Open the database at ``path``; with ``write`` it is created if it is not there, and migrated if it is old.

        Raises:
            StorageError: it cannot be opened.
        """
        self.path = path
        try:
            if write:
                query = ""
            else:
                # A folder that may not be written (a read-only disk, somebody else's index) cannot hold the shared
                # memory file of a WAL database. With no log to replay the database is read as it stands.
                log = path.with_name(path.name + "-wal")
                writable = os.access(path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
                settled = not writable and not (log.exists() and log.stat().st_size)
                query = "?immutable=1&uri=true" if settled else "?mode=ro&uri=true"
            name = "file:" + _quote(path) if query else str(path)
            self._engine = sa.create_engine("sqlite:///" + name + query, connect_args={"timeout": 30})
            sa.event.listen(self._engine, "connect", _on_connect_writer if write else _on_connect_reader)
            sa.event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
            if write:
                with self._engine.begin() as connection:
                    _METADATA.create_all(connection)
                    _migrate(connection)
                    _bring_words(connection)
        except (SQLAlchemyError, OSError) as exc:
            raise _translate(exc, path) from exc

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A view of one moment: everything read through it belongs together."""
        try:
            with self._engine.connect() as connection, connection.begin():
                yield Reader(connection)
        except DBAPIError as exc:
            raise _translate(exc, self.path) from exc

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """One transaction: on any exception nothing of it has happened."""
        try:
            with self._engine.begin() as connection:
                yield Writer(connection)
        except DBAPIError as exc:
            raise _translate(exc, self.path) from exc

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
            raise _translate(exc, self.path) from exc


class Reader:
    """Questions to the catalogue at one moment."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def state(self) -> State:
        """The counters.

        Raises:
            IndexDamaged: they are missing, so the database was not finished or was tampered with.
        """
        values = {row.name: row.value for row in self._connection.execute(sa.select(META))}
        try:
            if not 1 <= values["schema"] <= SCHEMA_VERSION:
                raise IndexDamaged(
                    f"the catalogue has schema {values['schema']}, this version of mmsearch reads {SCHEMA_VERSION}; "
                    "update mmsearch"
                )
            rows = {m: values.get(f"rows:{m}", 0) for m in Modality}
            tokens = self._token_format() if values["schema"] >= _FIRST_WITH_TOKENS else None
            return State(values["version"], values["generation"], rows, tokens)
        except KeyError as exc:
            raise IndexDamaged(f"the catalogue has lost its counter {exc}; delete the index and index again") from exc

    def _token_format(self) -> TokenFormat | None:
        found = self._connection.execute(sa.select(TOKEN_FORMAT)).first()
        if found is None:
            return None
        fingerprint, name, count, width = found
        try:
            return TokenFormat(name, fingerprint, count, width)
        except UsageError as exc:
            raise IndexDamaged(f"the catalogue tells of impossible image tokens: {exc}") from exc

    def token_checksums(self, modality: Modality, rows: Sequence[int] | None = None) -> dict[int, int]:
        """The checksums of image tokens by row, of all items of one modality that have some or of those at ``rows``.

        The catalogue must know of tokens: ``state().tokens`` is not None.
        """
        query = sa.select(ITEMS.c.row, ITEMS.c.token_crc).where(
            ITEMS.c.modality == modality.value, ITEMS.c.token_crc.is_not(None)
        )
        if rows is None:
            return dict(self._connection.execute(query).all())
        checksums: dict[int, int] = {}
        for chunk in _chunks(rows):
            checksums.update(self._connection.execute(query.where(ITEMS.c.row.in_(chunk))).all())
        return checksums

    def rows_without_tokens(self, modality: Modality = Modality.IMAGE) -> np.ndarray:
        """Rows ``(R,)``, sorted, of the pictures, or the clips, that have no image tokens."""
        rows = self.rows(modality, Filter())
        if self.state().tokens is None:
            return rows
        return np.setdiff1d(rows, np.fromiter(self.token_checksums(modality), dtype=np.int64))

    def stamps(self, under: Sequence[str]) -> dict[str, Stamp]:
        """What is known of every file at or below the paths ``under``, skipped ones included."""
        stamps: dict[str, Stamp] = {}
        for chunk in _chunks(under, _UNDER_CHUNK):
            for path, size, mtime_ns in self._connection.execute(
                sa.select(SKIPPED.c.path, SKIPPED.c.size, SKIPPED.c.mtime_ns).where(_below(SKIPPED.c.path, chunk))
            ):
                stamps[os.fsdecode(path)] = Stamp(None, size, mtime_ns, True)
            columns = (ASSETS.c.path, ASSETS.c.id, ASSETS.c.size, ASSETS.c.mtime_ns, ASSETS.c.complete)
            for path, asset_id, size, mtime_ns, complete in self._connection.execute(
                sa.select(*columns).where(ASSETS.c.path.is_not(None), _below(ASSETS.c.path, chunk))
            ):
                stamps[os.fsdecode(path)] = Stamp(asset_id, size, mtime_ns, complete)
        return stamps

    def digests(self) -> set[bytes]:
        """The content digests of all complete assets."""
        return set(self._connection.scalars(sa.select(ASSETS.c.digest).where(ASSETS.c.complete)))

    def assets_with_digest(self, digest: bytes) -> list[tuple[int, Asset]]:
        """Complete assets with this content, oldest first, each with its number."""
        where = (ASSETS.c.digest == digest) & ASSETS.c.complete
        found = self._connection.execute(sa.select(ASSETS).where(where).order_by(ASSETS.c.id))
        return [(row.id, _asset(row)) for row in found]

    def asset_ids(self, *, under: Sequence[str] = (), keys: Sequence[str] = ()) -> list[int]:
        """Numbers of the assets at or below the paths ``under``, or with one of the callers' ``keys``, sorted."""
        ids: set[int] = set()
        for chunk in _chunks(under, _UNDER_CHUNK):
            query = sa.select(ASSETS.c.id).where(ASSETS.c.path.is_not(None), _below(ASSETS.c.path, chunk))
            ids.update(self._connection.scalars(query))
        for chunk in _chunks(keys):
            ids.update(self._connection.scalars(sa.select(ASSETS.c.id).where(ASSETS.c.key.in_(chunk))))
        return sorted(ids)

    def assets_at(self, paths: Sequence[str]) -> dict[str, Asset]:
        """The assets of those of ``paths`` that are in the index, by path."""
        assets: dict[str, Asset] = {}
        for chunk in _chunks([os.fsencode(path) for path in paths]):
            for row in self._connection.execute(sa.select(ASSETS).where(ASSETS.c.path.in_(chunk))):
                assets[os.fsdecode(row.path)] = _asset(row)
        return assets

    def asset(self, asset_id: int) -> Asset:
        """The asset with this number."""
        return _asset(self._connection.execute(sa.select(ASSETS).where(ASSETS.c.id == asset_id)).one())

    def asset_items(self, asset_id: int) -> list[NewItem]:
        """The items of one asset in their order, each with the row of its vector; for whoever writes."""
        rows = self._connection.execute(sa.select(ITEMS).where(ITEMS.c.asset_id == asset_id).order_by(ITEMS.c.ordinal))
        return [
            NewItem(r.ordinal, Modality(r.modality), r.row, r.crc, _span(r), r.text, r.source, r.token_crc)
            for r in rows
        ]

    def last_item(self, asset_id: int) -> tuple[int, Span | None] | None:
        """Place and span of the last stored item of an asset; None if it has none."""
        query = sa.select(ITEMS).where(ITEMS.c.asset_id == asset_id).order_by(ITEMS.c.ordinal.desc()).limit(1)
        row = self._connection.execute(query).first()
        return None if row is None else (row.ordinal, _span(row))

    def kinds_of(self, modality: Modality) -> frozenset[Modality]:
        """What the files are that have items of ``modality``."""
        query = sa.select(ITEMS.c.id).join(ASSETS).where(ITEMS.c.modality == modality.value).limit(1)
        kinds = (kind for kind in Modality if self._connection.scalar(query.where(ASSETS.c.modality == kind.value)))
        return frozenset(kinds)

    def rows(self, modality: Modality, where: Filter) -> np.ndarray:
        """Rows ``(R,)``, sorted, of the items of one modality that pass ``where``."""
        query = sa.select(ITEMS.c.row).join(ASSETS).where(ITEMS.c.modality == modality.value)
        when = sa.func.coalesce(ASSETS.c.taken, ASSETS.c.mtime_ns / 1e9)
        if where.after is not None:
            query = query.where(when >= where.after)
        if where.before is not None:
            query = query.where(when < where.before)
        if where.kinds:
            query = query.where(ASSETS.c.modality.in_([kind.value for kind in where.kinds]))
        if not where.under:
            return np.fromiter(self._connection.scalars(query.order_by(ITEMS.c.row)), dtype=np.int64)
        rows: set[int] = set()
        for chunk in _chunks(where.under, _UNDER_CHUNK):
            below = query.where(ASSETS.c.path.is_not(None), _below(ASSETS.c.path, chunk))
            rows.update(self._connection.scalars(below))
        return np.array(sorted(rows), dtype=np.int64)

    def rows_from_memory(self, modality: Modality) -> np.ndarray:
        """Rows ``(R,)``, sorted, of the items that belong to no file."""
        query = sa.select(ITEMS.c.row).join(ASSETS).where(ITEMS.c.modality == modality.value, ASSETS.c.key.is_not(None))
        return np.fromiter(self._connection.scalars(query.order_by(ITEMS.c.row)), dtype=np.int64)

    def freed(self, modality: Modality, *, erased: bool | None = None) -> np.ndarray:
        """Rows ``(R,)``, sorted, that belong to nothing; with ``erased`` only those that are, or are not yet, zeros."""
        query = sa.select(FREED.c.row).where(FREED.c.modality == modality.value)
        if erased is not None:
            query = query.where(FREED.c.erased == erased)
        return np.fromiter(self._connection.scalars(query.order_by(FREED.c.row)), dtype=np.int64)

    def items_at(self, modality: Modality, rows: Sequence[int]) -> dict[int, Item]:
        """The items whose vectors stand at ``rows``, by row."""
        items: dict[int, Item] = {}
        assets: dict[int, Asset] = {}
        columns = self._item_columns()
        for chunk in _chunks(rows):
            query = sa.select(*columns).where(ITEMS.c.modality == modality.value, ITEMS.c.row.in_(chunk))
            found = self._connection.execute(query).all()
            wanted = sorted({r.asset_id for r in found} - assets.keys())
            for part in _chunks(wanted):
                for asset in self._connection.execute(sa.select(ASSETS).where(ASSETS.c.id.in_(part))):
                    assets[asset.id] = _asset(asset)
            for r in found:
                items[r.row] = Item(r.id, assets[r.asset_id], modality, _span(r), r.text, r.source)
        return items

    def _item_columns(self) -> tuple[sa.ColumnElement[Any], ...]:
        schema = self._connection.scalar(sa.select(META.c.value).where(META.c.name == "schema"))
        return _ITEM if schema is not None and schema >= _FIRST_WITH_PLACES else _OLD_ITEM

    def item_rows(self) -> Iterator[ItemRow]:
        """Every item as the vector files see it, in the order of their rows."""
        columns = (ITEMS.c.id, ITEMS.c.asset_id, ITEMS.c.modality, ITEMS.c.row, ITEMS.c.crc)
        for r in self._connection.execute(sa.select(*columns).order_by(ITEMS.c.modality, ITEMS.c.row)):
            yield ItemRow(r.id, r.asset_id, Modality(r.modality), r.row, r.crc)

    def has_words(self) -> bool:
        """Whether words can be searched: this Python can, and a writer has made the tables."""
        return words.available() and _words_ready(self._connection)

    def texts_with(self, match: str, limit: int = -1) -> np.ndarray:
        """Numbers ``(R,)``, growing, of the passages that hold what ``match`` (``words.match_all``) says."""
        return self._holders("words", match, limit)

    def names_with(self, match: str, limit: int = -1) -> np.ndarray:
        """Numbers ``(R,)``, growing, of the assets whose name and folders hold it."""
        return self._holders("names", match, limit)

    def _holders(self, table: str, match: str, limit: int) -> np.ndarray:
        # As one string: a thousand rows of one number each cost four times as much.
        query = f"SELECT group_concat(rowid) FROM (SELECT rowid FROM {table} WHERE {table} MATCH ? LIMIT ?)"
        numbers = self._connection.exec_driver_sql(query, (match, limit)).scalar_one()
        return np.array(numbers.split(",") if numbers else [], dtype=np.int64)

    def ranked_texts(self, match: str) -> dict[int, float]:
        """The passages that hold it, each with its BM25 score; more is better."""
        query = "SELECT rowid, -bm25(words) FROM words WHERE words MATCH ?"
        return dict(self._connection.exec_driver_sql(query, (match,)).all())

    def ranked_names(self, match: str) -> dict[int, float]:
        """The assets whose name and folders hold it, each with its BM25 score, in which the name counts more."""
        query = f"SELECT rowid, -bm25(names, {_NAME_WEIGHT}, 1.0) FROM names WHERE names MATCH ?"
        return dict(self._connection.exec_driver_sql(query, (match,)).all())

    def word_totals(self) -> tuple[int, int]:
        """How many passages and how many names there are to be searched."""
        return words.count_rows(self._connection, "words"), words.count_rows(self._connection, "names")

    def pieces(self, *, ids: Sequence[int] = (), of: Sequence[int] = (), first: int = 1) -> list[PieceRow]:
        """The items with these ``ids``, and the ``first`` items ``of`` each of these assets, by their numbers."""
        found: dict[int, PieceRow] = {}
        query = sa.select(ITEMS.c.id, ITEMS.c.asset_id, ITEMS.c.modality, ITEMS.c.row)
        for where, column, values in (
            (query, ITEMS.c.id, ids),
            (query.where(ITEMS.c.ordinal < first), ITEMS.c.asset_id, of),
        ):
            for chunk in _chunks(values):
                for item_id, asset_id, modality, row in self._connection.execute(where.where(column.in_(chunk))):
                    found[item_id] = PieceRow(item_id, asset_id, Modality(modality), row)
        return [found[one] for one in sorted(found)]

    def word_faults(self) -> int:
        """How many passages and names differ from what the word search holds of them; all if it is broken."""
        ask = self._connection.exec_driver_sql
        texts = "SELECT i.text, w.text FROM items i LEFT JOIN words w ON w.rowid = i.id WHERE i.text IS NOT NULL"
        names = "SELECT a.path, a.key, n.name, n.folders FROM assets a LEFT JOIN names n ON n.rowid = a.id"
        ghosts = (
            "SELECT count(*) FROM words WHERE rowid NOT IN (SELECT id FROM items WHERE text IS NOT NULL)",
            "SELECT count(*) FROM names WHERE rowid NOT IN (SELECT id FROM assets)",
        )
        try:
            words.check(self._connection)
            faults = sum(1 for text, held in ask(texts) if held != words.prepare(text))
            for path, key, name, folders in ask(names):
                faults += (name, folders) != words.name_words(key if path is None else os.fsdecode(path))
            return faults + sum(int(ask(query).scalar_one()) for query in ghosts)
        except DBAPIError:
            return sum(1 for _ in self._all_texts()) + sum(1 for _ in self._all_names())

    def _all_texts(self) -> Iterator[tuple[int, str]]:
        query = sa.select(ITEMS.c.id, ITEMS.c.text).where(ITEMS.c.text.is_not(None)).order_by(ITEMS.c.id)
        yield from ((item_id, text) for item_id, text in self._connection.execute(query))

    def _all_names(self) -> Iterator[tuple[int, str]]:
        for asset_id, path, key in self._connection.execute(sa.select(ASSETS.c.id, ASSETS.c.path, ASSETS.c.key)):
            yield asset_id, key if path is None else os.fsdecode(path)

    def word_traces(self) -> bool:
        """Whether words of what was removed may still stand in the tables."""
        return bool(self._connection.scalar(sa.select(META.c.value).where(META.c.name == "word_traces")))

    def skipped(self) -> list[Skipped]:
        """Every file that was not taken, with the reason, in the order of their names."""
        query = sa.select(SKIPPED.c.path, SKIPPED.c.reason).order_by(SKIPPED.c.path)
        return [Skipped(os.fsdecode(path), reason) for path, reason in self._connection.execute(query)]

    def counts(self) -> dict[str, int]:
        """How many assets and items there are of each modality: ``assets:image``, ``items:image``, …"""
        counts = {f"{table.name}:{m}": 0 for table in (ASSETS, ITEMS) for m in Modality}
        for table in (ASSETS, ITEMS):
            query = sa.select(table.c.modality, sa.func.count()).group_by(table.c.modality)
            for modality, count in self._connection.execute(query):
                counts[f"{table.name}:{modality}"] = count
        return counts

    def empty_assets(self) -> list[int]:
        """Assets that say they are complete and have no item."""
        empty = ~sa.exists().where(ITEMS.c.asset_id == ASSETS.c.id)
        return sorted(self._connection.scalars(sa.select(ASSETS.c.id).where(ASSETS.c.complete, empty)))

    def asset_names(self, asset_ids: Sequence[int]) -> dict[int, tuple[str, str | None]]:
        """Path and key of these assets, by number."""
        names: dict[int, tuple[str, str | None]] = {}
        for chunk in _chunks(asset_ids):
            query = sa.select(ASSETS.c.id, ASSETS.c.path, ASSETS.c.key).where(ASSETS.c.id.in_(chunk))
            for asset_id, path, key in self._connection.execute(query):
                names[asset_id] = (os.fsdecode(path or b""), key)
        return names

    def integrity(self) -> list[str]:
        """What SQLite itself finds wrong with the file; empty when it is sound."""
        lines = [str(line) for (line,) in self._connection.exec_driver_sql("PRAGMA integrity_check(20)")]
        dangling = self._connection.exec_driver_sql("PRAGMA foreign_key_check")
        lines += [f"broken reference: {tuple(row)}" for row in dangling]
        return [line for line in lines if line != "ok"]


class Writer(Reader):
    """Changes to the catalogue, all within one transaction."""

    def initialise(self) -> None:
        """Set the counters of a new catalogue; an initialised one stays as it is."""
        if self._connection.scalar(sa.select(sa.func.count()).select_from(META)):
            return
        for name, value in (("schema", SCHEMA_VERSION), ("version", 0), ("generation", 1)):
            self._set(name, value)
        _bring_words(self._connection)

    def make_words(self) -> None:
        """Make the tables of the word search again from what the catalogue holds; nothing where there are none."""
        if words.available():
            _make_words(self._connection)

    def clear_word_traces(self) -> None:
        """Let no word of what was removed stand in the tables."""
        words.rewrite(self._connection)
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
        result = self._connection.execute(sa.insert(ASSETS).values(values))
        if asset.path:
            self.forget_skipped([asset.path])
        key = result.inserted_primary_key
        assert key is not None
        if words.available():
            words.put_name(self._connection, int(key[0]), asset.path or asset.key or "")
        return int(key[0])

    def change_asset(self, asset_id: int, asset: Asset) -> None:
        """Give an asset another path or stamp; its items stay as they are."""
        before = self.asset(asset_id)
        if words.available() and (before.path, before.key) != (asset.path, asset.key):
            words.put_name(self._connection, asset_id, asset.path or asset.key or "")
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
            sa.insert(ITEMS),
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
            words.put_texts(self._connection, [(n, texts[o]) for n, o in numbers if o in texts])

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
        for chunk in _chunks(asset_ids):
            query = sa.select(ITEMS.c.id, ITEMS.c.modality, ITEMS.c.row, ITEMS.c.text.is_not(None)).where(
                ITEMS.c.asset_id.in_(chunk)
            )
            texts: list[int] = []
            for item_id, modality, row, worded in self._connection.execute(query):
                freed.setdefault(Modality(modality), []).append(row)
                texts += [item_id] if worded else []
            if words.available():
                words.remove(self._connection, texts, chunk)
                self._leave_traces()
            self._connection.execute(sa.delete(ITEMS).where(ITEMS.c.asset_id.in_(chunk)))
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
        for chunk in _chunks(rows):
            where = (FREED.c.modality == modality.value) & FREED.c.row.in_(chunk)
            self._connection.execute(sa.update(FREED).where(where).values(erased=True))

    def put_skipped(self, path: str, size: int, mtime_ns: int, reason: str) -> None:
        """Remember that a file was not taken, and why."""
        self.forget_skipped([path])
        values = {"path": os.fsencode(path), "size": size, "mtime_ns": mtime_ns, "reason": reason}
        self._connection.execute(sa.insert(SKIPPED).values(values))

    def forget_skipped(self, paths: Sequence[str]) -> None:
        """Forget files that were skipped: they are gone, or taken now."""
        for chunk in _chunks([os.fsencode(path) for path in paths]):
            self._connection.execute(sa.delete(SKIPPED).where(SKIPPED.c.path.in_(chunk)))

    def forget_skipped_under(self, under: Sequence[str]) -> int:
        """Forget the skipped files at or below the paths ``under``; return how many there were."""
        return sum(
            self._connection.execute(sa.delete(SKIPPED).where(_below(SKIPPED.c.path, chunk))).rowcount
            for chunk in _chunks(under, _UNDER_CHUNK)
        )

    def renumber(self, modality: Modality, rows: Sequence[tuple[int, int]]) -> None:
        """Give items, ``(id, new row)`` in the order of their rows, smaller rows without gaps; no row is free then."""
        # In ascending order a new row is never one that a later item still holds.
        statement = sa.update(ITEMS).where(ITEMS.c.id == sa.bindparam("b_id")).values(row=sa.bindparam("b_row"))
        if rows:
            self._connection.execute(statement, [{"b_id": i, "b_row": row} for i, row in rows])
        self._connection.execute(sa.delete(FREED).where(FREED.c.modality == modality.value))


def _migrate(connection: Connection) -> None:
    """Bring a catalogue of an older schema to this one, in the transaction that is open."""
    there = {column["name"] for column in sa.inspect(connection).get_columns("items")}
    for column in ITEMS.c:
        if column.name not in there:
            declared = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE items ADD COLUMN {declared}")
    older = (META.c.name == "schema") & (META.c.value < SCHEMA_VERSION)
    connection.execute(sa.update(META).where(older).values(value=SCHEMA_VERSION))


def _words_ready(connection: Connection) -> bool:
    """Whether the tables of the word search are there, in a form that this SQLite reads."""
    if connection.scalar(sa.select(META.c.value).where(META.c.name == "words")) != words.VERSION:
        return False
    try:
        for table in ("words", "names"):
            connection.exec_driver_sql(f"SELECT rowid FROM {table} WHERE {table} MATCH 'a' LIMIT 1").all()
    except DBAPIError:
        return False
    return True


def _bring_words(connection: Connection) -> None:
    """Make the tables of the word search where they are missing or old; empty what can no longer be kept in step."""
    if connection.scalar(sa.select(META.c.value).where(META.c.name == "schema")) is None:
        return  # a catalogue that is being made, see Writer.initialise
    if not words.available():
        words.wipe(connection)
        connection.execute(sa.delete(META).where(META.c.name.in_(["words", "word_traces"])))
    elif not _words_ready(connection):
        _make_words(connection)


def _make_words(connection: Connection) -> None:
    writer = Writer(connection)
    try:
        words.create(connection)
    except DBAPIError:
        words.clear_away(connection)
        words.create(connection)
    waiting: list[tuple[int, str]] = []
    for item_id, text in writer._all_texts():
        waiting.append((item_id, text))
        if len(waiting) == _WORDS_BATCH:
            words.put_texts(connection, waiting)
            waiting = []
    words.put_texts(connection, waiting)
    for asset_id, name in writer._all_names():
        words.put_name(connection, asset_id, name)
    writer._set("words", words.VERSION)
    writer._set("word_traces", 0)


def _on_connect_reader(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun in words, see the begin event
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _on_connect_writer(connection: Any, record: object) -> None:
    _on_connect_reader(connection, record)
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # what was committed is there after a power cut
    cursor.execute("PRAGMA secure_delete = ON")  # the text of a removed file leaves the disk too
    cursor.close()


def _quote(path: Path) -> str:
    """A path inside a SQLite URI."""
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _below(column: sa.Column[Any], paths: Sequence[str]) -> sa.ColumnElement[bool]:
    """Whether a path column is one of ``paths`` or lies below it, as ranges that the index on the column serves."""
    clauses: list[sa.ColumnElement[bool]] = []
    for path in paths:
        name = os.fsencode(path).rstrip(b"/")
        clauses.append(column == (name or b"/"))
        clauses.append(sa.and_(column >= name + b"/", column < name + b"0"))  # "0" is the byte after "/"
    return sa.or_(sa.false(), *clauses)


def _asset(row: Any) -> Asset:
    return Asset(
        path=os.fsdecode(row.path) if row.path is not None else "",
        modality=Modality(row.modality),
        size=row.size,
        mtime_ns=row.mtime_ns,
        digest=row.digest,
        taken=row.taken,
        key=row.key,
        metadata=json.loads(row.metadata) if row.metadata else {},
    )


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


def _span(row: Any) -> Span | None:
    box = tuple(json.loads(row.box)) if row.box else None
    span = Span(row.first_line, row.last_line, row.page, row.start, row.end, row.best, box)
    return None if span == Span() else span


def _span_values(span: Span) -> dict[str, Any]:
    return asdict(span) | {"box": json.dumps(span.box) if span.box else None}


def _chunks(values: Sequence[Any], size: int = _IN_CHUNK) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _translate(exc: Exception, path: Path) -> StorageError:
    """An error of the database in words: what happened, to which file, what to do."""
    words = str(getattr(exc, "orig", None) or exc)
    if "readonly" in words or "unable to open" in words:
        return StorageError(f"cannot write {path}: {words}; is the folder read-only, or somebody else's?")
    if "disk is full" in words or "disk I/O error" in words:
        return StorageError(f"cannot write {path}: {words}; free some space and run the same command again")
    if "malformed" in words or "not a database" in words:
        return IndexDamaged(f"{path} is damaged ({words}); delete the index folder and index again")
    if "locked" in words:
        return StorageError(f"{path} is locked by another program: {words}")
    return StorageError(f"{path}: {words}")
