"""The reader of the catalogue against a naive twin, which lets SQLAlchemy fetch whole tables and picks for itself."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from indexer import catalogue
from indexer import reader as reader_module
from indexer.catalogue import ASSETS, ITEMS, SKIPPED, Catalogue
from indexer.errors import IndexDamaged, StorageError
from indexer.reader import IN_CHUNK, ReadCatalogue, Reader
from indexer.records import Filter, NewItem, Stamp
from indexer.tokens import TokenFormat
from indexer.types import Asset, Item, Modality, Span

TABLES = (ASSETS, ITEMS, SKIPPED)
FOLDERS = ("/a", "/a/b", "/a-b", "/ä", "/a/\udcff", "/a0")
COUNT = 700
"""More than fit into one IN (...)."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of files and objects in all folders, of which every fifth has three pieces, and some are no more."""
    assert COUNT > IN_CHUNK
    path = tmp_path_factory.mktemp("catalogue") / "cata?log%ue#.db"
    made = Catalogue(path)
    rng = random.Random(1)
    rows = dict.fromkeys(Modality, 0)
    with made.write() as writer:
        writer.initialise()
        writer.set_token_format(TokenFormat("t", "f", 2, 4))
        ids = []
        for n in range(COUNT):
            kind = rng.choice(list(Modality))
            named = {"path": "", "key": f"key {n}"} if n % 7 == 0 else {"path": f"{rng.choice(FOLDERS)}/{n}.jpg"}
            taken = rng.choice([None, 1e9 + n])
            digest = rng.randrange(50).to_bytes(16, "little")
            asset = Asset(**named, modality=kind, size=n, mtime_ns=n * 10**9, digest=digest, taken=taken)
            ids.append(writer.put_asset(asset, complete=n % 11 > 0))
            pieces = []
            for ordinal in range(3 if n % 5 == 0 else 1):
                part = rng.choice(list(Modality))
                span = rng.choice(
                    [None, Span(1, 2), Span(page=3), Span(start=1.5, end=2.0, best=1.75, box=(0, 0.5, 1, 1))]
                )
                crc = rng.choice([None, n]) if part is not Modality.TEXT else None
                text, source = rng.choice([(None, None), ("words", "ocr"), ("words", None)])
                pieces.append(NewItem(ordinal, part, rows[part], n, span, text, source, crc))
                rows[part] += 1
            writer.put_items(ids[-1], pieces)
        for m, gone in writer.remove_assets(ids[::13]).items():
            writer.set_erased(m, gone[::2])
        for n in range(30):
            writer.put_skipped(f"{rng.choice(FOLDERS)}/bad {n}", n, n, f"reason {n}")
        writer.advance(rows)
    made.close()
    return path


@pytest.fixture
def reader(database: Path) -> Iterator[Reader]:
    opened = ReadCatalogue(database)
    with opened.read() as reader:
        yield reader
    opened.close()


@pytest.fixture(scope="module")
def tables(database: Path) -> dict[str, list[sa.Row]]:
    """Every row of every table."""
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(database))
    with engine.connect() as connection:
        return {table.name: list(connection.execute(sa.select(table))) for table in TABLES}


def below(path: bytes | None, folders: tuple[str, ...]) -> bool:
    names = [os.fsencode(folder).rstrip(b"/") for folder in folders]
    return path is not None and any(path == name or path.startswith(name + b"/") for name in names)


WHERE = [
    Filter(),
    Filter(under=("/a",)),
    Filter(under=("/a/b", "/ä/")),
    Filter(under=("/",)),
    Filter(under=("/nowhere",)),
    Filter(after=1e9 + 100, before=1e9 + 500),
    Filter(before=300.0),
    Filter(kinds=(Modality.VIDEO,)),
    Filter(under=("/a", "/a/b"), after=50.0, kinds=(Modality.IMAGE, Modality.TEXT)),
]


@pytest.mark.parametrize("few", [0, reader_module.FEW_ASSETS], ids=["many", "few"])
@pytest.mark.parametrize("where", WHERE)
def test_rows_that_pass_a_filter(
    reader: Reader, tables: dict[str, list[sa.Row]], where: Filter, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pass: few are looked up by their files, many by going through all."""
    monkeypatch.setattr(reader_module, "FEW_ASSETS", few)
    assets = {row.id: row for row in tables["assets"]}
    for modality in Modality:
        expected = []
        for item in tables["items"]:
            asset = assets[item.asset_id]
            when = asset.mtime_ns / 1e9 if asset.taken is None else asset.taken
            passes = (where.after is None or when >= where.after) and (where.before is None or when < where.before)
            passes &= not where.under or below(asset.path, where.under)
            passes &= not where.kinds or Modality(asset.modality) in where.kinds
            if item.modality == modality.value and passes:
                expected.append(item.row)
        assert reader.rows(modality, where).tolist() == sorted(expected)


@pytest.mark.parametrize("where", [Filter(under=("/a/b", "/x")), Filter(after=1e9), Filter(before=300.0)])
def test_a_filter_looks_at_what_passes_and_at_nothing_else(reader: Reader, where: Filter) -> None:
    """One file in ten thousand must not cost a walk through all of them: SQLite searches indexes and scans no table."""
    asked: list[str] = []
    reader._plain.set_trace_callback(asked.append)
    reader.rows(Modality.IMAGE, where)
    reader._plain.set_trace_callback(None)
    plans = [row[3] for query in asked for row in reader._plain.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert plans and not any(plan.startswith("SCAN") for plan in plans), plans
    assert any("assets_moment" in plan or "sqlite_autoindex_assets" in plan for plan in plans)
    assert all("asset_id=?" in plan for plan in plans if "items" in plan), plans


def test_an_older_index_gets_the_index_of_dates(database: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    shutil.copy(database, old)
    with contextlib.closing(sqlite3.connect(old)) as connection:
        connection.execute("DROP INDEX assets_moment")
        connection.commit()
    where = Filter(after=1e9)
    found = []
    for _ in range(2):
        reading = ReadCatalogue(old)
        with reading.read() as reader:
            found.append(reader.rows(Modality.IMAGE, where).tolist())
        reading.close()
        Catalogue(old).close()
    assert found[0] == found[1] and found[0]
    with contextlib.closing(sqlite3.connect(old)) as connection:
        assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'assets_moment'").fetchone()


def test_items_with_their_files(reader: Reader, tables: dict[str, list[sa.Row]]) -> None:
    assets = {row.id: row for row in tables["assets"]}
    for modality in Modality:
        of_kind = [item for item in tables["items"] if item.modality == modality.value]
        found = reader.items_at(modality, [item.row for item in of_kind] + [10**6])
        assert sorted(found) == sorted(item.row for item in of_kind)
        for item in of_kind:
            asset, got = assets[item.asset_id], found[item.row]
            box = None if item.box is None else (0, 0.5, 1, 1)
            span = Span(item.first_line, item.last_line, item.page, item.start, item.end, item.best, box)
            assert got == Item(item.id, got.asset, modality, None if span == Span() else span, item.text, item.source)
            assert got.asset.path == ("" if asset.path is None else os.fsdecode(asset.path))
            assert (got.asset.key, got.asset.size, got.asset.taken) == (asset.key, asset.size, asset.taken)
            assert (got.asset.modality, got.asset.digest) == (Modality(asset.modality), asset.digest)


def test_what_is_known_of_files(reader: Reader, tables: dict[str, list[sa.Row]]) -> None:
    for under in ((), ("/a",), ("/a/b", "/ä"), ("/",)):
        expected = {
            os.fsdecode(r.path): Stamp(None, r.size, r.mtime_ns, True)
            for r in tables["skipped"]
            if below(r.path, under)
        }
        expected |= {
            os.fsdecode(r.path): Stamp(r.id, r.size, r.mtime_ns, r.complete)
            for r in tables["assets"]
            if below(r.path, under)
        }
        assert reader.stamps(under) == expected
        ids = [r.id for r in tables["assets"] if below(r.path, under) or r.key in ("key 7", "key 14")]
        assert reader.asset_ids(under=under, keys=["key 7", "key 14", "none"]) == ids
    complete = [row for row in tables["assets"] if row.complete]
    assert reader.digests() == {row.digest for row in complete}
    digest = complete[0].digest
    assert [n for n, _ in reader.assets_with_digest(digest)] == [row.id for row in complete if row.digest == digest]
    assert [(s.path, s.reason) for s in reader.skipped()] == [
        (os.fsdecode(row.path), row.reason) for row in sorted(tables["skipped"], key=lambda row: row.path)
    ]


def test_items_of_one_file_counts_and_checksums(reader: Reader, tables: dict[str, list[sa.Row]]) -> None:
    items = tables["items"]
    asset_id = next(row.asset_id for row in items if row.ordinal == 2)
    own = sorted((row for row in items if row.asset_id == asset_id), key=lambda row: row.ordinal)
    found = reader.asset_items(asset_id)
    assert [(i.ordinal, i.row, i.crc, i.text, i.source, i.token_crc) for i in found] == [
        (r.ordinal, r.row, r.crc, r.text, r.source, r.token_crc) for r in own
    ]
    assert reader.last_item(asset_id) == (2, found[-1].span) and reader.last_item(10**6) is None
    for modality in Modality:
        of_kind = [row for row in items if row.modality == modality.value]
        crcs = {row.row: row.token_crc for row in of_kind if row.token_crc is not None}
        assert reader.token_checksums(modality) == crcs
        some = [row.row for row in of_kind][::3]
        assert reader.token_checksums(modality, some) == {row: crc for row, crc in crcs.items() if row in some}
        assert reader.rows_without_tokens(modality).tolist() == sorted({row.row for row in of_kind} - crcs.keys())
        kinds = {row.id: Modality(row.modality) for row in tables["assets"]}
        assert reader.kinds_of(modality) == {kinds[row.asset_id] for row in of_kind}
        assert reader.counts()[f"items:{modality}"] == len(of_kind)
        memory = {row.id for row in tables["assets"] if row.key is not None}
        assert reader.rows_from_memory(modality).tolist() == sorted(r.row for r in of_kind if r.asset_id in memory)
        freed = [set(reader.freed(modality, erased=erased).tolist()) for erased in (None, True, False)]
        assert freed[0] == freed[1] | freed[2] == set(range(reader.state().rows[modality])) - {r.row for r in of_kind}
        assert len(freed[1]) - len(freed[2]) in (0, 1)
    assert [(r.modality.value, r.row) for r in reader.item_rows()] == sorted((r.modality, r.row) for r in items)
    assert reader.integrity() == [] and reader.empty_assets() == []


def test_a_writer_reads_what_it_has_written_and_nobody_else_does(database: Path) -> None:
    made, opened = Catalogue(database), ReadCatalogue(database)
    with pytest.raises(KeyError), made.write() as writer:
        asset_id = writer.put_asset(Asset("/new", Modality.TEXT, 1, 1, b"d" * 16), complete=True)
        assert writer.asset(asset_id).path == "/new" and writer.empty_assets() == [asset_id]
        with opened.read() as reader:
            assert reader.empty_assets() == []
        raise KeyError
    with made.read() as reader:
        assert reader.empty_assets() == []
    made.close()
    opened.close()


def test_errors_are_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="unable to open"), ReadCatalogue(tmp_path / "none.db").read():
        pass
    (tmp_path / "bad.db").write_bytes(b"not a database at all" * 99)
    with pytest.raises(IndexDamaged, match="not a database"), ReadCatalogue(tmp_path / "bad.db").read() as reader:
        reader.state()


def test_reading_imports_no_sqlalchemy() -> None:
    code = "import sys, indexer.index, mmsearch.search; print('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert catalogue.Writer.__mro__[1] is Reader


@pytest.mark.parametrize("offset", [0, 3, 650, 10_000])
@pytest.mark.parametrize(
    "where",
    [
        Filter(kinds=tuple(Modality)),
        Filter(after=1e9 + 50),
        Filter(before=400.0, kinds=(Modality.TEXT, Modality.VIDEO)),
        Filter(("/a", "/ä/12.jpg")),
        Filter((*(f"/none/{n}" for n in range(1000)), "/a-b"), before=1e9),
    ],
    ids=["all", "after", "before", "under", "many"],
)
def test_files_newest_first(reader: Reader, tables: dict[str, list[sa.Row]], where: Filter, offset: int) -> None:
    def time(asset: sa.Row) -> float:
        return float(asset.mtime_ns / 1e9 if asset.taken is None else asset.taken)

    def passes(asset: sa.Row) -> bool:
        early = where.before is None or time(asset) < where.before
        late = where.after is None or time(asset) >= where.after
        kind = not where.kinds or Modality(asset.modality) in where.kinds
        return early and late and kind and (not where.under or below(asset.path, where.under))

    pieces = {one.asset_id: one for one in sorted(tables["items"], key=lambda one: one.ordinal, reverse=True)}
    files = [asset for asset in tables["assets"] if passes(asset)]
    files.sort(key=lambda one: (not one.mtime_ns and one.taken is None, -time(one), one.path or b"", one.key or ""))
    found = reader.newest(where, 40, offset)
    assert [item.id for item in found] == [pieces[one.id].id for one in files[offset : offset + 40]]
    assert reader.count_files(where) == len(files)
    for item, asset in zip(found, files[offset:], strict=False):
        assert (item.asset.path, item.asset.key) == (os.fsdecode(asset.path or b""), asset.key)
        assert item.span is None and item.source is None
        assert item.text == (pieces[asset.id].text if asset.modality == "text" else None)


def test_one_file_by_its_name(reader: Reader, tables: dict[str, list[sa.Row]]) -> None:
    for asset in tables["assets"]:
        found = reader.named(os.fsdecode(asset.path or b"/nowhere"), asset.key or "no key")
        assert found is not None and found[0] == asset.id and found[1].digest == asset.digest
    assert reader.named("/a", "no key") is None


def test_texts_in_the_same_picture_or_on_the_same_page(reader: Reader, tables: dict[str, list[sa.Row]]) -> None:
    items = tables["items"]
    expected = {
        one.id: sorted(
            other.row
            for other in items
            if other.asset_id == one.asset_id and other.page == one.page and other.modality == "text"
        )
        for one in items
    }
    found = reader.texts_beside([one.id for one in items])
    assert found == {item: rows for item, rows in expected.items() if rows} and len(found) < len(items)
