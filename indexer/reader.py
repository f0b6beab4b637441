"""Reading the catalogue: plain SQL over Python's sqlite3, because a question must not wait for SQLAlchemy's import.

What is written, and the tables themselves, are in ``indexer.catalogue``, whose writer reads by the same class.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from indexer import words
from indexer.content import Digest
from indexer.errors import IndexDamaged, StorageError, UsageError
from indexer.extras import PIP_INSTALL
from indexer.records import Filter, ItemRow, Likeness, NewItem, PieceRow, Stamp, State
from indexer.tokens import TokenFormat
from indexer.types import Asset, Item, Modality, Skipped, Span

SCHEMA_VERSION = 5
_FIRST_WITH_TOKENS = 2
"""A catalogue of schema 1 knows nothing of tokens: it is read as one without any, and migrated by the first writer."""
_FIRST_WITH_PLACES = 3
"""Before this one, a piece is a whole picture or some lines of a text."""
_FIRST_WITH_PICTURES = 5
"""Before this one, it is not said how pictures look."""

BANDS = ((0, 0x1FFF), (13, 0x1FFF), (26, 0x1FFF), (39, 0x1FFF), (52, 0xFFF))
"""The parts of a perceptual hash by their shifts and masks: two hashes that differ in at most four bits share one."""
BAND = "(phash >> {}) & {}"
"""Such a part in SQL; the writer makes an index of each."""
IN_CHUNK = 500
"""Values in one IN (...): SQLite allows 999 parameters in its older builds."""
MOMENT = "coalesce(taken, mtime_ns / 1e9)"
"""When a picture was taken, or else its file was changed; the writer makes an index of that."""
_NEWEST = f'taken IS NULL AND mtime_ns = 0, {MOMENT} DESC, path, "key"'
"""The order of a list of files: what has no time, as what was added from memory, comes last."""
FEW_ASSETS = 5000
"""Up to so many assets that pass a filter, their items are looked up one by one; else all items are gone through."""
UNDER_CHUNK = 100
"""Paths in one condition "at or below": SQLite allows expressions of depth 1,000."""
BUSY_SECONDS = 30
_NAME_WEIGHT = 4.0
"""Of a word in the name of a file, where one in the names of its folders weighs 1."""
_ASSET = 'id, path, "key", modality, size, mtime_ns, digest, taken, metadata'
_LIKENESS = "width, height, phash, detail"
_PLACE = 'first_line, last_line, page, start, "end", best, box'
"""Where in its file an item stands; see ``_span``."""
_OLD_PLACE = "first_line, last_line, NULL, NULL, NULL, NULL, NULL"


class ReadCatalogue:
    """One database, opened for reading; thread-safe."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened before the first ``read``."""
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of every connection."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A view of one moment: everything read through it belongs together.

        Raises:
            StorageError: the database cannot be opened or read.
        """
        connection = None
        try:
            connection = self._connection()
            connection.execute("BEGIN")
            yield Reader(connection)
            connection.execute("ROLLBACK")
            with self._lock:
                self._idle.append(connection)
            connection = None
        except sqlite3.Error as exc:
            raise translate(exc, self.path) from exc
        finally:
            if connection is not None:
                connection.close()

    def _connection(self) -> sqlite3.Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        # A folder that may not be written (a read-only disk, somebody else's index) cannot hold the shared memory file
        # of a WAL database. With no log to replay the database is read as it stands.
        log = self.path.with_name(self.path.name + "-wal")
        writable = os.access(self.path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
        settled = not writable and not (log.exists() and log.stat().st_size)
        name = str(self.path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        address = f"file:{name}?{'immutable=1' if settled else 'mode=ro'}"
        return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


class Reader:
    """Questions to the catalogue at one moment: the transaction that is open on ``connection``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._plain = connection

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._plain.execute(query, values).fetchall()

    def _column(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        return [row[0] for row in self._plain.execute(query, values)]

    def state(self) -> State:
        """The counters.

        Raises:
            IndexDamaged: they are missing, so the database was not finished or was tampered with.
        """
        values = dict(self._all("SELECT name, value FROM meta"))
        try:
            if not 1 <= values["schema"] <= SCHEMA_VERSION:
                raise IndexDamaged(
                    f"the catalogue has schema {values['schema']}, this version of mmsearch reads {SCHEMA_VERSION}; "
                    "update mmsearch"
                )
            rows = {m: values.get(f"rows:{m}", 0) for m in Modality}
            tokens = self._token_format() if values["schema"] >= _FIRST_WITH_TOKENS else None
            digest = Digest(values.get("digest", Digest.BLAKE2B))
            return State(values["version"], values["generation"], rows, tokens, digest)
        except KeyError as exc:
            raise IndexDamaged(f"the catalogue has lost its counter {exc}; delete the index and index again") from exc
        except ValueError as exc:
            raise IndexDamaged(f"the catalogue is damaged ({exc}); delete the index and index again") from exc

    def _token_format(self) -> TokenFormat | None:
        found = self._all("SELECT name, fingerprint, count, width FROM token_format LIMIT 1")
        try:
            return TokenFormat(*found[0]) if found else None
        except UsageError as exc:
            raise IndexDamaged(f"the catalogue tells of impossible image tokens: {exc}") from exc

    def token_checksums(self, modality: Modality, rows: Sequence[int] | None = None) -> dict[int, int]:
        """The checksums of image tokens by row, of all items of one modality that have some or of those at ``rows``.

        The catalogue must know of tokens: ``state().tokens`` is not None.
        """
        query = 'SELECT "row", token_crc FROM items WHERE modality = ? AND token_crc IS NOT NULL'
        if rows is None:
            return dict(self._all(query, (modality.value,)))
        checksums: dict[int, int] = {}
        for chunk in chunks(rows):
            checksums.update(self._all(f'{query} AND "row" IN {_marks(chunk)}', (modality.value, *chunk)))
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
        for chunk in chunks(under, UNDER_CHUNK):
            where, values = _below("path", chunk)
            query = f"SELECT path, size, mtime_ns, reason FROM skipped WHERE {where}"
            for path, size, mtime_ns, reason in self._all(query, values):
                # What lacked a package is tried again: that it was installed since does not show in the file.
                stamps[os.fsdecode(path)] = Stamp(None, size, mtime_ns, PIP_INSTALL not in reason)
            read = "id IN (SELECT asset_id FROM ocr_read)"
            query = f"SELECT path, id, size, mtime_ns, complete, {read} FROM assets WHERE {where}"
            for path, asset_id, size, mtime_ns, complete, ocr in self._all(query, values):
                stamps[os.fsdecode(path)] = Stamp(asset_id, size, mtime_ns, bool(complete), bool(ocr))
        return stamps

    def digests(self) -> set[bytes]:
        """The content digests of all complete assets."""
        return set(self._column("SELECT digest FROM assets WHERE complete"))

    def assets_with_digest(self, digest: bytes) -> list[tuple[int, Asset]]:
        """Complete assets with this content, oldest first, each with its number."""
        found = self._all(f"SELECT {_ASSET} FROM assets WHERE digest = ? AND complete ORDER BY id", (digest,))
        return [(row[0], _asset(row)) for row in found]

    def asset_ids(self, *, under: Sequence[str] = (), keys: Sequence[str] = ()) -> list[int]:
        """Numbers of the assets at or below the paths ``under``, or with one of the callers' ``keys``, sorted."""
        ids: set[int] = set()
        for chunk in chunks(under, UNDER_CHUNK):
            where, values = _below("path", chunk)
            ids.update(self._column(f"SELECT id FROM assets WHERE {where}", values))
        for chunk in chunks(keys):
            ids.update(self._column(f'SELECT id FROM assets WHERE "key" IN {_marks(chunk)}', chunk))
        return sorted(ids)

    def assets_with_digests(self, digests: Sequence[bytes]) -> dict[int, Asset]:
        """Complete assets with one of these contents, by number, oldest first."""
        assets: dict[int, Asset] = {}
        for chunk in chunks(digests):
            query = f"SELECT {_ASSET} FROM assets WHERE digest IN {_marks(chunk)} AND complete ORDER BY id"
            assets.update((row[0], _asset(row)) for row in self._all(query, chunk))
        return assets

    def assets(self, asset_ids: Sequence[int]) -> dict[int, Asset]:
        """The assets with these numbers."""
        assets: dict[int, Asset] = {}
        for chunk in chunks(asset_ids):
            query = f"SELECT {_ASSET} FROM assets WHERE id IN {_marks(chunk)}"
            assets.update((row[0], _asset(row)) for row in self._all(query, chunk))
        return assets

    def complete_assets(self, under: Sequence[str] = ()) -> dict[int, Asset]:
        """All complete assets, or those at or below the paths ``under``, by number."""
        query = f"SELECT {_ASSET} FROM assets WHERE complete"
        if not under:
            return {row[0]: _asset(row) for row in self._all(query)}
        assets: dict[int, Asset] = {}
        for chunk in chunks(under, UNDER_CHUNK):
            where, values = _below("path", chunk)
            assets.update((row[0], _asset(row)) for row in self._all(f"{query} AND {where}", values))
        return assets

    def knows_pictures(self) -> bool:
        """Whether this catalogue can say how pictures look; an old one cannot before it is indexed again."""
        schema = self._column("SELECT value FROM meta WHERE name = 'schema'")
        return bool(schema and schema[0] >= _FIRST_WITH_PICTURES)

    def likenesses(self, asset_ids: Sequence[int]) -> dict[int, Likeness]:
        """How the pictures in these assets look, by number; those of which it is known."""
        found: dict[int, Likeness] = {}
        for chunk in chunks(asset_ids) if self.knows_pictures() else ():
            query = f"SELECT asset_id, {_LIKENESS} FROM pictures WHERE asset_id IN {_marks(chunk)}"
            found.update((asset_id, _likeness(columns)) for asset_id, *columns in self._all(query, chunk))
        return found

    def sharing_bands(self, phashes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The pictures whose perceptual hash has one of its ``BANDS`` in common with one of ``phashes``: the numbers of
        their assets ``(P,)``, growing, and their hashes ``(P,)``."""
        found: dict[int, int] = {}
        for shift, mask in BANDS if phashes and self.knows_pictures() else ():
            for chunk in chunks(sorted({phash >> shift & mask for phash in phashes})):
                query = f"SELECT asset_id, phash FROM pictures WHERE ({BAND.format(shift, mask)}) IN {_marks(chunk)}"
                found.update(self._all(query, chunk))
        numbers = sorted(found)
        return np.array(numbers, np.int64), np.array([found[i] for i in numbers], np.int64).view(np.uint64)

    def without_likeness(self, under: Sequence[str] = ()) -> list[int]:
        """Numbers of the picture files, at or below the paths ``under`` if there are any, of which it is not known how
        they look."""
        known = " AND id NOT IN (SELECT asset_id FROM pictures)" if self.knows_pictures() else ""
        query = f"SELECT id FROM assets WHERE modality = 'image' AND complete AND path IS NOT NULL{known}"
        if not under:
            return sorted(self._column(query))
        ids: set[int] = set()
        for chunk in chunks(under, UNDER_CHUNK):
            where, values = _below("path", chunk)
            ids.update(self._column(f"{query} AND {where}", values))
        return sorted(ids)

    def picture_rows(self, asset_ids: Sequence[int]) -> dict[int, int]:
        """The row of the vector of each of these assets that is a picture."""
        rows: dict[int, int] = {}
        query = "SELECT asset_id, \"row\" FROM items WHERE ordinal = 0 AND modality = 'image' AND asset_id IN "
        for chunk in chunks(asset_ids):
            rows.update(self._all(query + _marks(chunk), chunk))
        return rows

    def assets_at(self, paths: Sequence[str]) -> dict[str, Asset]:
        """The assets of those of ``paths`` that are in the index, by path."""
        assets: dict[str, Asset] = {}
        for chunk in chunks([os.fsencode(path) for path in paths]):
            for row in self._all(f"SELECT {_ASSET} FROM assets WHERE path IN {_marks(chunk)}", chunk):
                assets[os.fsdecode(row[1])] = _asset(row)
        return assets

    def named(self, path: str, key: str) -> tuple[int, Asset] | None:
        """The file at ``path``, or else what was added as ``key``, with its number; None if neither is in the index."""
        for column, name in (("path", os.fsencode(path)), ('"key"', key)):
            for row in self._all(f"SELECT {_ASSET} FROM assets WHERE {column} = ?", (name,)):
                return row[0], _asset(row)
        return None

    def newest(self, where: Filter, limit: int, offset: int = 0) -> list[Item]:
        """The files that pass ``where``, each once: the latest first, then by path; without those before ``offset``.

        A file stands there as its first piece without a place in it, and with a text only if it is one.
        """
        ids = self._newest_ids(where, limit, offset)
        items: dict[int, Item] = {}
        for chunk in chunks(ids):
            some = f"IN {_marks(chunk)}"
            query = f"SELECT asset_id, min(ordinal), id, modality, text FROM items WHERE asset_id {some}"
            first = {row[0]: row[2:] for row in self._all(f"{query} GROUP BY asset_id", chunk)}
            for row in self._all(f"SELECT {_ASSET} FROM assets WHERE id {some}", chunk):
                asset, (item_id, modality, text) = _asset(row), first[row[0]]
                text = text if asset.modality is Modality.TEXT else None
                items[row[0]] = Item(item_id, asset, Modality(modality), None, text)
        return [items[one] for one in ids]

    def count_files(self, where: Filter) -> int:
        """How many files ``newest`` goes through."""
        source, values = self._files(where)
        return int(self._column(f"SELECT count(*) FROM {source}", values)[0])

    def _newest_ids(self, where: Filter, limit: int, offset: int) -> list[int]:
        source, values = self._files(where)
        end = offset + limit
        # What keeps the first so many in order takes longer than what sorts all, where these are many.
        most = f"LIMIT {end:d}" if end <= FEW_ASSETS else ""
        found = self._plain.execute(f"SELECT id FROM {source} ORDER BY {_NEWEST} {most}", values)
        return [row[0] for row in islice(found, offset, end)]

    def _files(self, where: Filter) -> tuple[str, list[Any]]:
        """The assets ``a`` that pass and have pieces, as a source of rows, and the values for that."""
        tests, values = _tests(where)
        tests.append("EXISTS (SELECT 1 FROM items WHERE asset_id = a.id)")
        if where.under:
            below = [_below("a.path", chunk) for chunk in chunks(where.under, UNDER_CHUNK)]
            tests.append(f"({' OR '.join(test for test, _ in below)})")
            values += [path for _, paths in below for path in paths]
        passing = f"WHERE {' AND '.join(tests)}"
        # To go through all assets in the order in which they are stored is quicker than by an index, unless few pass.
        some = self._column(f"SELECT 1 FROM assets AS a {passing} LIMIT ?", (*values, FEW_ASSETS + 1))
        return f"assets AS a {'NOT INDEXED ' if len(some) > FEW_ASSETS else ''}{passing}", values

    def asset(self, asset_id: int) -> Asset:
        """The asset with this number."""
        return _asset(self._all(f"SELECT {_ASSET} FROM assets WHERE id = ?", (asset_id,))[0])

    def asset_items(self, asset_id: int) -> list[NewItem]:
        """The items of one asset in their order, each with the row of its vector; for whoever writes."""
        columns = f'ordinal, modality, "row", crc, text, source, token_crc, {_PLACE}'
        found = self._all(f"SELECT {columns} FROM items WHERE asset_id = ? ORDER BY ordinal", (asset_id,))
        return [
            NewItem(ordinal, Modality(modality), row, crc, _span(place), text, source, token_crc)
            for ordinal, modality, row, crc, text, source, token_crc, *place in found
        ]

    def last_item(self, asset_id: int) -> tuple[int, Span | None] | None:
        """Place and span of the last stored item of an asset; None if it has none."""
        query = f"SELECT ordinal, {_PLACE} FROM items WHERE asset_id = ? ORDER BY ordinal DESC LIMIT 1"
        return next(((ordinal, _span(place)) for ordinal, *place in self._all(query, (asset_id,))), None)

    def page_begins(self, asset_id: int, page: int) -> int:
        """The place of the first stored item of a page."""
        query = "SELECT min(ordinal) FROM items WHERE asset_id = ? AND page = ?"
        return int(self._column(query, (asset_id, page))[0] or 0)

    def known_paths(self, paths: Sequence[str]) -> list[str]:
        """Those of ``paths`` that are files in the index, in the order given."""
        known: set[bytes] = set()
        names = list(map(os.fsencode, paths))
        for chunk in chunks(names):
            known.update(self._column(f"SELECT path FROM assets WHERE path IN {_marks(chunk)}", chunk))
        return [path for path, name in zip(paths, names, strict=True) if name in known]

    def kinds_of(self, modality: Modality) -> frozenset[Modality]:
        """What the files are that have items of ``modality``."""
        query = (
            "SELECT 1 FROM items AS i JOIN assets AS a ON a.id = i.asset_id WHERE i.modality = ? AND a.modality = ? "
            "LIMIT 1"
        )
        return frozenset(kind for kind in Modality if self._all(query, (modality.value, kind.value)))

    def rows(self, modality: Modality, where: Filter) -> np.ndarray:
        """Rows ``(R,)``, sorted, of the items of one modality that pass ``where``."""
        if where.is_open:
            return self._rows('SELECT "row" FROM items WHERE modality = ? ORDER BY "row"', (modality.value,))
        tests, values = _tests(where)
        if not where.under:
            dated = where.after is not None or where.before is not None
            return np.sort(self._rows_of(modality, tests, values, indexed=dated))
        found = [np.zeros(0, np.int64)]
        for chunk in chunks(where.under, UNDER_CHUNK):
            below, paths = _below("a.path", chunk)
            found.append(self._rows_of(modality, [*tests, below], [*values, *paths], indexed=True))
        return np.unique(np.concatenate(found))

    def _rows_of(self, modality: Modality, tests: Sequence[str], values: Sequence[Any], *, indexed: bool) -> np.ndarray:
        """Rows ``(R,)`` of the items of one modality whose assets pass ``tests``; ``indexed`` if one has an index."""
        of_assets = f"FROM assets AS a WHERE {' AND '.join(tests)}"
        if indexed:
            ids = self._column(f"SELECT a.id {of_assets} LIMIT ?", (*values, FEW_ASSETS + 1))
            if len(ids) <= FEW_ASSETS:
                # The plus keeps SQLite from going through all items of the modality by the index that begins with it.
                query = 'SELECT "row" FROM items WHERE +modality = ? AND asset_id IN '
                few = [self._rows(query + _marks(chunk), (modality.value, *chunk)) for chunk in chunks(ids)]
                return np.concatenate(few) if few else np.zeros(0, np.int64)
        query = 'SELECT i."row" FROM items AS i JOIN assets AS a ON a.id = i.asset_id WHERE i.modality = ?'
        return self._rows(f"{query} AND {' AND '.join(tests)}", (modality.value, *values))

    def _rows(self, query: str, values: Sequence[Any]) -> np.ndarray:
        return np.fromiter((row for (row,) in self._plain.execute(query, values)), dtype=np.int64)

    def rows_from_memory(self, modality: Modality) -> np.ndarray:
        """Rows ``(R,)``, sorted, of the items that belong to no file."""
        query = 'SELECT i."row" FROM items AS i JOIN assets AS a ON a.id = i.asset_id WHERE i.modality = ?'
        return self._rows(f'{query} AND a."key" IS NOT NULL ORDER BY i."row"', (modality.value,))

    def freed(self, modality: Modality, *, erased: bool | None = None) -> np.ndarray:
        """Rows ``(R,)``, sorted, that belong to nothing; with ``erased`` only those that are, or are not yet, zeros."""
        query, values = (
            'SELECT "row" FROM freed WHERE modality = ?',
            [modality.value, *([] if erased is None else [erased])],
        )
        return self._rows(f'{query}{"" if erased is None else " AND erased = ?"} ORDER BY "row"', values)

    def items_at(self, modality: Modality, rows: Sequence[int]) -> dict[int, Item]:
        """The items whose vectors stand at ``rows``, by row."""
        items: dict[int, Item] = {}
        assets: dict[int, Asset] = {}
        place = f"source, {_PLACE}" if self._schema() >= _FIRST_WITH_PLACES else f"NULL, {_OLD_PLACE}"
        query = f'SELECT id, asset_id, "row", text, {place} FROM items WHERE modality = ? AND "row" IN '
        for chunk in chunks(rows):
            found = self._all(query + _marks(chunk), (modality.value, *chunk))
            for part in chunks(sorted({asset_id for _, asset_id, *_ in found} - assets.keys())):
                for asset in self._all(f"SELECT {_ASSET} FROM assets WHERE id IN {_marks(part)}", part):
                    assets[asset[0]] = _asset(asset)
            for item_id, asset_id, row, text, source, *span in found:
                items[row] = Item(item_id, assets[asset_id], modality, _span(span), text, source)
        return items

    def texts_beside(self, ids: Sequence[int]) -> dict[int, list[int]]:
        """Rows, growing, of the texts in the same picture, or on the same page, as each of these items; by its number.

        What has no such text is left out.
        """
        found: dict[int, list[int]] = {}
        if not ids or self._schema() < _FIRST_WITH_PLACES:
            return found
        for chunk in chunks(ids):
            query = (
                'SELECT i.id, o."row" FROM items AS i JOIN items AS o ON o.asset_id = i.asset_id AND o.page IS i.page '
                f'WHERE i.id IN {_marks(chunk)} AND o.modality = ? ORDER BY o."row"'
            )
            for item_id, row in self._all(query, (*chunk, Modality.TEXT.value)):
                found.setdefault(item_id, []).append(row)
        return found

    def _schema(self) -> int:
        return int(self._column("SELECT value FROM meta WHERE name = 'schema'")[0])

    def item_rows(self) -> Iterator[ItemRow]:
        """Every item as the vector files see it, in the order of their rows."""
        query = 'SELECT id, asset_id, modality, "row", crc FROM items ORDER BY modality, "row"'
        for item_id, asset_id, modality, row, crc in self._plain.execute(query):
            yield ItemRow(item_id, asset_id, Modality(modality), row, crc)

    def has_words(self) -> bool:
        """Whether words can be searched: this Python can, and a writer has made the tables, in a form it can read."""
        return self.word_version() in words.READABLE

    def word_version(self) -> int | None:
        """The version of the tables of the word search; None where there are none that can be read."""
        found = self._column("SELECT value FROM meta WHERE name = 'words'") if words.available() else []
        try:
            for table in ("words", "names") if found else ():
                self._all(f"SELECT rowid FROM {table} WHERE {table} MATCH 'a' LIMIT 1")
        except sqlite3.Error:
            return None
        return found[0] if found else None

    def texts_with(self, match: str, limit: int = -1) -> np.ndarray:
        """Numbers ``(R,)``, growing, of the passages that hold what ``match`` (``words.match_all``) says."""
        return self._holders("words", match, limit)

    def names_with(self, match: str, limit: int = -1) -> np.ndarray:
        """Numbers ``(R,)``, growing, of the assets whose name and folders hold it."""
        return self._holders("names", match, limit)

    def of_kinds(self, asset_ids: Sequence[int], kinds: Collection[Modality]) -> set[int]:
        """Those of these assets that are files of such kinds."""
        found: set[int] = set()
        marks = ", ".join(f"'{kind.value}'" for kind in kinds)
        for chunk in chunks(asset_ids):
            query = f"SELECT id FROM assets WHERE modality IN ({marks}) AND id IN {_marks(chunk)}"
            found.update(self._column(query, chunk))
        return found

    def known(self, of: Sequence[str]) -> dict[str, int]:
        """Those of many words that are in texts or names in one of their forms, and in how many of both."""
        return words.known(self._plain, of)

    def some_texts(self, match: str, limit: int) -> list[str]:
        """Texts, and names with their folders, that hold what ``match`` says, so many of each at most; ``prepare``d."""
        texts = self._column("SELECT text FROM words WHERE words MATCH ? LIMIT ?", (match, limit))
        query = "SELECT name || ' ' || folders FROM names WHERE names MATCH ? LIMIT ?"
        return texts + self._column(query, (match, limit))

    def _holders(self, table: str, match: str, limit: int) -> np.ndarray:
        return self._numbers(f"SELECT rowid AS number FROM {table} WHERE {table} MATCH ? LIMIT ?", (match, limit))

    def _numbers(self, query: str, values: Sequence[Any]) -> np.ndarray:
        # As one string: a thousand rows of one number each cost four times as much.
        (numbers,) = self._column(f"SELECT group_concat(number) FROM ({query})", values)
        return np.array(numbers.split(",") if numbers else [], dtype=np.int64)

    def count_names(self, match: str) -> int:
        """How many assets there are of which ``names_with`` would give the numbers."""
        return int(self._column("SELECT count(*) FROM names WHERE names MATCH ?", (match,))[0])

    def rows_named(self, modality: Modality, match: str) -> np.ndarray:
        """Rows ``(R,)``, sorted, of the items of one modality that belong to those assets."""
        of_assets = (
            "FROM names CROSS JOIN items AS i ON i.asset_id = names.rowid WHERE names MATCH ? AND i.modality = ?"
        )
        return np.sort(self._numbers(f'SELECT i."row" AS number {of_assets}', (match, modality.value)))

    def ranked_texts(self, match: str) -> dict[int, float]:
        """The passages that hold it, each with its BM25 score; more is better."""
        return dict(self._all("SELECT rowid, -bm25(words) FROM words WHERE words MATCH ?", (match,)))

    def ranked_names(self, match: str) -> dict[int, float]:
        """The assets whose name and folders hold it, each with its BM25 score, in which the name counts more."""
        query = f"SELECT rowid, -bm25(names, {_NAME_WEIGHT}, 1.0) FROM names WHERE names MATCH ?"
        return dict(self._all(query, (match,)))

    def word_totals(self) -> tuple[int, int]:
        """How many passages and how many names there are to be searched."""
        return words.count_rows(self._plain, "words"), words.count_rows(self._plain, "names")

    def pieces(
        self,
        *,
        ids: Sequence[int] = (),
        of: Sequence[int] = (),
        first: int = 1,
        at: Mapping[Modality, Sequence[int]] | None = None,
    ) -> list[PieceRow]:
        """The items with these ``ids``, the ``first`` items ``of`` each of these assets, and those ``at`` these rows of
        a modality, by their numbers."""
        found: dict[int, PieceRow] = {}
        query = 'SELECT id, asset_id, modality, "row" FROM items WHERE'
        wanted: list[tuple[str, Sequence[int]]] = [
            (f"{query} id IN", ids),
            (f"{query} ordinal < {first:d} AND asset_id IN", of),
            *((f"{query} modality = '{kind.value}' AND \"row\" IN", rows) for kind, rows in (at or {}).items()),
        ]
        for where, values in wanted:
            for chunk in chunks(values):
                for item_id, asset_id, modality, row in self._all(f"{where} {_marks(chunk)}", chunk):
                    found[item_id] = PieceRow(item_id, asset_id, Modality(modality), row)
        return [found[one] for one in sorted(found)]

    def word_faults(self) -> int:
        """How many passages and names differ from what the word search holds of them; all if it is broken."""
        texts = "SELECT i.text, w.text FROM items i LEFT JOIN words w ON w.rowid = i.id WHERE i.text IS NOT NULL"
        names = 'SELECT a.path, a."key", n.name, n.folders FROM assets a LEFT JOIN names n ON n.rowid = a.id'
        ghosts = (
            "SELECT count(*) FROM words WHERE rowid NOT IN (SELECT id FROM items WHERE text IS NOT NULL)",
            "SELECT count(*) FROM names WHERE rowid NOT IN (SELECT id FROM assets)",
        )
        try:
            words.check(self._plain)
            faults = sum(1 for text, held in self._plain.execute(texts) if held != words.prepare(text))
            roots = self.roots()
            for path, key, name, folders in self._plain.execute(names):
                faults += (name, folders) != words.name_words(key if path is None else os.fsdecode(path), roots)
            return faults + sum(int(count) for query in ghosts for count in self._column(query))
        except sqlite3.Error:
            return sum(1 for _ in self.all_texts()) + sum(1 for _ in self.all_names())

    def all_texts(self) -> Iterator[tuple[int, str]]:
        """Every passage with its number."""
        yield from self._plain.execute("SELECT id, text FROM items WHERE text IS NOT NULL ORDER BY id")

    def all_names(self) -> Iterator[tuple[int, str]]:
        """The path, or the key, of every asset with its number."""
        for asset_id, path, key in self._plain.execute('SELECT id, path, "key" FROM assets'):
            yield asset_id, key if path is None else os.fsdecode(path)

    def roots(self) -> frozenset[str]:
        """The files and folders that were indexed as such, none of them below another; empty where it is not known."""
        return frozenset(os.fsdecode(path) for path in self._column("SELECT path FROM roots"))

    def word_traces(self) -> bool:
        """Whether words of what was removed may still stand in the tables."""
        return any(self._column("SELECT value FROM meta WHERE name = 'word_traces'"))

    def skipped(self) -> list[Skipped]:
        """Every file that was not taken, with the reason, in the order of their names."""
        found = self._all("SELECT path, reason FROM skipped ORDER BY path")
        return [Skipped(os.fsdecode(path), reason) for path, reason in found]

    def counts(self) -> dict[str, int]:
        """How many assets and items there are of each modality: ``assets:image``, ``items:image``, …"""
        counts = {f"{table}:{m}": 0 for table in ("assets", "items") for m in Modality}
        for table in ("assets", "items"):
            for modality, count in self._all(f"SELECT modality, count(*) FROM {table} GROUP BY modality"):
                counts[f"{table}:{modality}"] = count
        return counts

    def empty_assets(self) -> list[int]:
        """Assets that say they are complete and have no item."""
        query = "SELECT id FROM assets WHERE complete AND NOT EXISTS (SELECT 1 FROM items WHERE asset_id = assets.id)"
        return sorted(self._column(query))

    def asset_names(self, asset_ids: Sequence[int]) -> dict[int, tuple[str, str | None]]:
        """Path and key of these assets, by number."""
        names: dict[int, tuple[str, str | None]] = {}
        for chunk in chunks(asset_ids):
            query = f'SELECT id, path, "key" FROM assets WHERE id IN {_marks(chunk)}'
            for asset_id, path, key in self._all(query, chunk):
                names[asset_id] = (os.fsdecode(path or b""), key)
        return names

    def integrity(self) -> list[str]:
        """What SQLite itself finds wrong with the file; empty when it is sound."""
        lines = [str(line) for line in self._column("PRAGMA integrity_check(20)")]
        lines += [f"broken reference: {row}" for row in self._all("PRAGMA foreign_key_check")]
        return [line for line in lines if line != "ok"]


def chunks(values: Sequence[Any], size: int = IN_CHUNK) -> Iterator[Sequence[Any]]:
    """``values`` in parts that one statement can take."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def ranges(paths: Sequence[str]) -> list[tuple[bytes, bytes, bytes]]:
    """For each path the name itself, and the first and the end of the names below it: an index on names serves that."""
    names = [os.fsencode(path).rstrip(b"/") for path in paths]
    return [(name or b"/", name + b"/", name + b"0") for name in names]  # "0" is the byte after "/"


def _tests(where: Filter) -> tuple[list[str], list[Any]]:
    """What an asset ``a`` must pass to be of the time and the kinds of ``where``, and the values for that."""
    tests: list[str] = []
    values: list[Any] = []
    for sign, moment in ((">=", where.after), ("<", where.before)):
        if moment is not None:
            tests.append(f"{MOMENT} {sign} ?")
            values.append(moment)
    if where.kinds:
        tests.append(f"a.modality IN {_marks(where.kinds)}")
        values += [kind.value for kind in where.kinds]
    return tests, values


def _below(column: str, paths: Sequence[str]) -> tuple[str, list[bytes]]:
    """Whether a path column is one of ``paths`` or lies below it, and the values for that."""
    one = f"{column} = ? OR {column} >= ? AND {column} < ?"
    return f"({' OR '.join([one] * len(paths))})", [value for names in ranges(paths) for value in names]


def _marks(values: Sequence[Any]) -> str:
    return f"({','.join('?' * len(values))})"


def signed(number: int) -> int:
    """A number of 64 bits as SQLite keeps it."""
    return number - (number >> 63 << 64)


def _likeness(columns: Sequence[Any]) -> Likeness:
    width, height, phash, detail = columns
    return Likeness(width, height, None if phash is None else phash % (1 << 64), detail)


def _asset(row: Sequence[Any]) -> Asset:
    """An asset from the columns ``_ASSET``."""
    _, path, key, modality, size, mtime_ns, digest, taken, metadata = row
    return Asset(
        path=os.fsdecode(path) if path is not None else "",
        modality=Modality(modality),
        size=size,
        mtime_ns=mtime_ns,
        digest=digest,
        taken=taken,
        key=key,
        metadata=json.loads(metadata) if metadata else {},
    )


def _span(place: Sequence[Any]) -> Span | None:
    """A span from the columns ``_PLACE``."""
    first_line, last_line, page, start, end, best, box = place
    span = Span(first_line, last_line, page, start, end, best, tuple(json.loads(box)) if box else None)
    return None if span == Span() else span


def translate(exc: Exception, path: Path) -> StorageError:
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
