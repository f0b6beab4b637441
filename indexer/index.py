"""One index in one folder: catalogue and vector files kept in step, whatever happens to the process.

    manifest.json              what this is and whose vectors it holds; written last, so a folder with one is an index
    catalogue.db               the truth: files, pieces, and the row of each vector
    vectors/image-00001.f32    the rows, one file for each modality; the number is the generation
    lock                       held by the one process that writes

A change is: append the vectors and fsync, then commit the catalogue rows that name them, then erase the bytes of what
the change removed. Killed before the commit, the tail of a vector file is named by nothing and the next writer cuts it
off; killed after it, the next writer erases what the catalogue lists as freed. Either way the catalogue is right.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from indexer.catalogue import Catalogue, NewItem, Reader, State, Writer
from indexer.durable import sync_folder
from indexer.errors import IndexBusy, IndexDamaged, NoIndex, StorageError, UsageError
from indexer.types import Asset, Modality, Span
from indexer.vectors import UNIT_TOLERANCE, VectorFile, check_vectors, checksum

FORMAT = 1

_VERIFY_CHUNK = 4096
"""Rows read at a time while verifying or compacting: 14 MB at 896 numbers a row."""


_SNAPSHOT_TRIES = 5


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an index is: the format of the folder and the model whose vectors it holds."""

    encoder: str
    fingerprint: str
    dim: int
    created: str
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an asset that is to be stored; its vector travels beside it."""

    modality: Modality
    span: Span | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """Store an asset with its pieces, ``vectors`` ``(P, D)``, in place of the assets ``replaces``.

    With ``extends`` the pieces are further ones of an asset that is already there, from ``first_ordinal`` on.
    ``complete`` says that they are the last.
    """

    asset: Asset
    pieces: Sequence[Piece]
    vectors: np.ndarray
    replaces: Sequence[int] = ()
    extends: int | None = None
    first_ordinal: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Restamp:
    """The content of an asset is as it was, its path or stamp is not."""

    asset_id: int
    asset: Asset
    replaces: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """A file could not be read; whatever was known under its path is gone."""

    path: str
    size: int
    mtime_ns: int
    reason: str
    replaces: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Remove:
    """Assets are gone."""

    asset_ids: Sequence[int]


Change = Put | Restamp | Skip | Remove


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a check of the whole index found.

    ``repaired`` was put right; the files among it are embedded again by the next ``mmsearch index``. ``lost`` cannot be
    put right from here.
    """

    vectors: int
    repaired: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing at all was wrong."""
        return not self.repaired and not self.lost


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The index at one moment: rows that ``reader`` names are in ``vectors``, whatever a writer does meanwhile."""

    reader: Reader
    state: State
    vectors: dict[Modality, VectorFile]
    dead: dict[Modality, np.ndarray]


@dataclass(slots=True)
class _View:
    state: State
    vectors: dict[Modality, VectorFile]
    dead: dict[Modality, np.ndarray] = field(default_factory=dict)


class Index:
    """A folder with an index in it, opened for reading. Thread-safe. ``writing()`` gives the one writer."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Use ``open`` or ``create``."""
        self.folder = folder
        self.manifest = manifest
        self.catalogue = Catalogue(folder / "catalogue.db", write=False)
        self._view: _View | None = None
        self._view_lock = threading.Lock()

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether ``folder`` holds an index."""
        return (folder / "manifest.json").is_file()

    @classmethod
    def open(cls, folder: Path) -> Index:
        """Open the index in ``folder``.

        Raises:
            NoIndex: there is none.
            IndexDamaged: its manifest cannot be read.
            StorageError: it is of a newer format, or cannot be opened.
        """
        if not cls.exists(folder):
            raise NoIndex(f"there is no index in {folder}; make one with 'mmsearch index FOLDER'")
        return cls(folder, _read_manifest(folder / "manifest.json"))

    @classmethod
    def create(cls, folder: Path, *, encoder: str, fingerprint: str, dim: int) -> Index:
        """Make an empty index in ``folder``, which is created if need be.

        Raises:
            UsageError: the folder holds something else.
            StorageError: it cannot be written.
        """
        ours = re.compile(r"catalogue\.db(-wal|-shm|-journal)?|lock|vectors|manifest\.json\.new")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            foreign = sorted(name for name in os.listdir(folder) if not ours.fullmatch(name))
            if foreign:
                raise UsageError(
                    f"{folder} is not an index and not empty (it holds {foreign[0]!r}); name an empty or new folder"
                )
            with _lock(folder):
                catalogue = Catalogue(folder / "catalogue.db", write=True)
                try:
                    with catalogue.write() as writer:
                        writer.initialise()
                finally:
                    catalogue.close()
                (folder / "vectors").mkdir(exist_ok=True)
                created = datetime.now(timezone.utc).isoformat(timespec="seconds")
                manifest = Manifest(encoder, fingerprint, dim, created)
                _write_durably(folder / "manifest.json", json.dumps(asdict(manifest), indent=2) + "\n")
        except OSError as exc:
            raise StorageError(f"cannot make an index in {folder}: {exc.strerror}") from exc
        return cls(folder, manifest)

    def close(self) -> None:
        """Let go of the database and the mapped files."""
        self.catalogue.close()
        self._view = None

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The index as it is now, for as long as the block runs.

        Raises:
            IndexDamaged: a vector file is shorter than the catalogue says.
        """
        for _ in range(_SNAPSHOT_TRIES):
            with self.catalogue.read() as reader:
                view = self._current_view(reader)
                # A compaction that ends between the two looks takes the files away; the next look sees the new ones.
                if any(file.missing for file in view.vectors.values()):
                    self._view = None
                    continue
                yield Snapshot(reader, view.state, view.vectors, view.dead)
                return
        raise IndexDamaged(f"{self.folder} has lost vectors that its catalogue lists; 'mmsearch verify' repairs it")

    def _current_view(self, reader: Reader) -> _View:
        state = reader.state()
        with self._view_lock:
            view = self._view
            if view is None or view.state != state:
                vectors = {}
                for m, rows in state.rows.items():
                    path = _vector_path(self.folder, m, state.generation)
                    vectors[m] = VectorFile(path, self.manifest.dim, rows)
                    vectors[m].matrix()  # mapped now: a mapped file stays readable when a compaction removes it
                view = self._view = _View(state, vectors, {m: reader.freed(m) for m in vectors})
            return view

    @contextmanager
    def writing(self) -> Iterator[IndexWriter]:
        """The right to change the index, for as long as the block runs.

        Raises:
            IndexBusy: another process has it.
            StorageError: the folder cannot be written.
        """
        with _lock(self.folder):
            catalogue = Catalogue(self.folder / "catalogue.db", write=True)
            try:
                yield IndexWriter(self.folder, self.manifest, catalogue)
            finally:
                catalogue.close()


class IndexWriter:
    """All changes to an index. One at a time, from one thread; ``Index.writing()`` makes it."""

    def __init__(self, folder: Path, manifest: Manifest, catalogue: Catalogue) -> None:
        self.folder = folder
        self.manifest = manifest
        self.catalogue = catalogue
        self._vectors: dict[Modality, VectorFile] = {}
        self._recover()

    def _recover(self) -> None:
        """Bring the folder to what the catalogue says: cut, erase, and sweep what a dead process left."""
        with self.catalogue.read() as reader:
            state = reader.state()
            pending = {m: reader.freed(m, erased=False) for m in Modality}
        self._generation = state.generation
        for m in Modality:
            path = _vector_path(self.folder, m, state.generation)
            self._vectors[m] = VectorFile(path, self.manifest.dim, state.rows[m], write=True)
        self._erase({m: rows.tolist() for m, rows in pending.items() if len(rows)})
        current = {file.path.name for file in self._vectors.values()}
        for path in (self.folder / "vectors").iterdir():
            if path.name not in current:
                path.unlink()

    def _erase(self, freed: dict[Modality, list[int]]) -> None:
        if not freed:
            return
        for modality, rows in freed.items():
            self._vectors[modality].remove(np.array(rows, dtype=np.int64))
        with self.catalogue.write() as writer:
            for modality, rows in freed.items():
                writer.set_erased(modality, rows)

    def apply(self, changes: Sequence[Change]) -> list[int]:
        """Make all of ``changes`` happen, or none; return the number of the asset that each ``Put`` wrote.

        Raises:
            ModelError: a vector is not a finite unit row; nothing was changed.
            StorageError: the disk is full or the folder cannot be written; nothing was changed.
        """
        puts = [change for change in changes if isinstance(change, Put)]
        new: dict[Modality, list[np.ndarray]] = {m: [] for m in Modality}
        for put in puts:
            source = f"the model, for {put.asset.path or put.asset.key},"
            vectors = check_vectors(put.vectors, self.manifest.dim, source)
            if len(vectors) != len(put.pieces):
                raise UsageError(f"{len(put.pieces)} pieces came with {len(vectors)} vectors")
            for piece, vector in zip(put.pieces, vectors, strict=True):
                new[piece.modality].append(vector)
        asset_ids: list[int] = []
        freed: dict[Modality, list[int]] = {}
        try:
            rows = {m: iter(self._vectors[m].add(np.stack(v)).tolist()) for m, v in new.items() if v}
            with self.catalogue.write() as writer:
                for change in changes:
                    for modality, gone in self._record(writer, change, rows, asset_ids).items():
                        freed.setdefault(modality, []).extend(gone)
                writer.advance({m: file.rows for m, file in self._vectors.items()})
        except BaseException:
            # Also after Ctrl-C: whether the commit happened is a question to the catalogue, not to this code.
            self._recover()
            raise
        self._erase(freed)
        return asset_ids

    def _record(
        self, writer: Writer, change: Change, rows: dict[Modality, Iterator[int]], asset_ids: list[int]
    ) -> dict[Modality, list[int]]:
        """Write one change into the open transaction; return the rows it frees."""
        match change:
            case Remove():
                return writer.remove_assets(change.asset_ids)
            case Skip():
                freed = writer.remove_assets(change.replaces)
                writer.put_skipped(change.path, change.size, change.mtime_ns, change.reason)
                return freed
            case Restamp():
                freed = writer.remove_assets(change.replaces)
                writer.change_asset(change.asset_id, change.asset)
                return freed
            case Put():
                freed = writer.remove_assets(change.replaces)
                if change.extends is None:
                    asset_id = writer.put_asset(change.asset, complete=change.complete)
                else:
                    asset_id = change.extends
                    if change.complete:
                        writer.complete_asset(asset_id)
                items = [
                    NewItem(ordinal, p.modality, next(rows[p.modality]), checksum(vector), p.span, p.text)
                    for ordinal, (p, vector) in enumerate(
                        zip(change.pieces, change.vectors, strict=True), change.first_ordinal
                    )
                ]
                writer.put_items(asset_id, items)
                asset_ids.append(asset_id)
                return freed

    def fetch_pieces(self, asset_id: int) -> tuple[list[Piece], np.ndarray]:
        """The pieces of an asset and their vectors ``(P, D)``, to be stored again under another path."""
        with self.catalogue.read() as reader:
            items = reader.asset_items(asset_id)
        pieces = [Piece(item.modality, item.span, item.text) for item in items]
        vectors = np.empty((len(items), self.manifest.dim), dtype=np.float32)
        for i, item in enumerate(items):
            vectors[i] = self._vectors[item.modality].fetch(np.array([item.row]))[0]
        return pieces, vectors

    def forget_skipped_under(self, under: Sequence[str]) -> int:
        """Forget the skipped files at or below the paths ``under``."""
        with self.catalogue.write() as writer:
            return writer.forget_skipped_under(under)

    def forget_skipped(self, paths: Sequence[str]) -> None:
        """Forget skipped files that are gone."""
        with self.catalogue.write() as writer:
            writer.forget_skipped(paths)

    def verify(self) -> VerifyReport:
        """Check every vector against its row and every row against its vector; repair what can be.

        A vector that decayed costs its file the place in the index: it is embedded again by the next run. What was
        added from memory cannot be, and is reported as lost. Rows that belong to nothing are erased.

        Raises:
            IndexDamaged: the database itself is broken.
        """
        repaired: list[str] = []
        with self.catalogue.read() as reader:
            broken = reader.integrity()
            if broken:
                raise IndexDamaged(
                    f"{self.catalogue.path} is damaged ({broken[0]}); delete {self.folder} and index again"
                )
            items = list(reader.item_rows())
            freed = {m: reader.freed(m) for m in Modality}
            # An incomplete asset is no damage: a run was interrupted, and the next one carries on.
            damaged = dict.fromkeys(reader.empty_assets(), "it has no item")
        by_modality: dict[Modality, list[tuple[int, int, int]]] = {m: [] for m in Modality}
        for item in items:
            by_modality[item.modality].append((item.row, item.crc, item.asset_id))
        orphans: dict[Modality, list[int]] = {}
        stale: dict[Modality, list[int]] = {}
        for m, file in self._vectors.items():
            present = file.rows - file.missing
            if file.missing:
                repaired.append(f"{file.path.name} was {file.missing} vectors short")
            for row, fault, asset_id in _faults(file, by_modality[m], present):
                damaged.setdefault(asset_id, f"its vector (row {row} of {file.path.name}) {fault}")
            named = np.array([row for row, _, _ in by_modality[m]], dtype=np.int64)
            orphans[m] = np.setdiff1d(np.arange(present), np.concatenate([named, freed[m]])).tolist()
            stale[m] = [row for row in freed[m].tolist() if row < present and file.matrix()[row].any()]
            if orphans[m]:
                repaired.append(f"{len(orphans[m])} vectors in {file.path.name} belonged to nothing; erased")
            if stale[m]:
                repaired.append(f"{len(stale[m])} vectors in {file.path.name} outlived their file; erased")
        lost = self._repair(damaged, orphans, repaired)
        self._erase({m: rows for m, rows in stale.items() if rows})
        return VerifyReport(len(items), tuple(repaired), tuple(lost))

    def _repair(self, damaged: dict[int, str], orphans: dict[Modality, list[int]], repaired: list[str]) -> list[str]:
        """Take damaged assets out, cut files to what is there, erase orphans; return what is lost for good."""
        lost: list[str] = []
        short = any(file.missing for file in self._vectors.values())
        if not damaged and not short and not any(orphans.values()):
            return lost
        with self.catalogue.write() as writer:
            names = writer.asset_names(sorted(damaged))
            for asset_id, fault in damaged.items():
                path, key = names[asset_id]
                if key is None:
                    repaired.append(f"{path}: {fault}; taken out, the next 'mmsearch index' embeds it again")
                else:
                    lost.append(f"{key}: {fault}; it was added from memory, add it again")
            writer.remove_assets(sorted(damaged))
            for m, rows in orphans.items():
                writer.free(m, rows)
            present = {m: file.rows - file.missing for m, file in self._vectors.items()}
            for m, count in present.items():
                writer.drop_freed_from(m, count)
            writer.advance(present)
        self._recover()
        return lost

    def compact(self) -> int:
        """Rewrite the vector files without the erased rows and shrink the database; return the bytes saved.

        The new files are a new generation: until the one transaction that names it, the old one is the index.

        Raises:
            StorageError: there is no room for the new files; the index is as it was.
        """
        before = _folder_bytes(self.folder)
        generation = self._generation + 1
        renumbered: dict[Modality, list[tuple[int, int]]] = {m: [] for m in Modality}
        old_rows: dict[Modality, list[int]] = {m: [] for m in Modality}
        with self.catalogue.read() as reader:
            for item in reader.item_rows():
                renumbered[item.modality].append((item.id, len(renumbered[item.modality])))
                old_rows[item.modality].append(item.row)
        try:
            for m, rows in old_rows.items():
                _copy_rows(self._vectors[m], np.array(rows, np.int64), _vector_path(self.folder, m, generation))
            sync_folder(self.folder / "vectors")
            with self.catalogue.write() as writer:
                for m, pairs in renumbered.items():
                    writer.renumber(m, pairs)
                writer.advance({m: len(rows) for m, rows in old_rows.items()}, generation=generation)
        except OSError as exc:
            raise StorageError(f"cannot compact {self.folder}: {exc.strerror}") from exc
        finally:
            self._recover()
        self.catalogue.vacuum()
        return before - _folder_bytes(self.folder)


def _faults(file: VectorFile, items: Sequence[tuple[int, int, int]], present: int) -> Iterator[tuple[int, str, int]]:
    """Items ``(row, crc, asset)`` whose vector is not what was written: ``(row, what is wrong, asset)``."""
    matrix = file.matrix()
    for start in range(0, len(items), _VERIFY_CHUNK):
        chunk = items[start : start + _VERIFY_CHUNK]
        for row, _, asset_id in chunk:
            if row >= present:
                yield row, "is missing", asset_id
        chunk = [item for item in chunk if item[0] < present]
        vectors = np.array(matrix[[row for row, _, _ in chunk]]).reshape(-1, file.dim)
        off = np.abs(np.linalg.norm(vectors, axis=1) - 1) <= UNIT_TOLERANCE
        for (row, crc, asset_id), vector, unit in zip(chunk, vectors, off, strict=True):
            if checksum(vector) != crc:
                yield row, "is not the one that was written", asset_id
            elif not unit:
                yield row, "is not of length 1", asset_id


def _copy_rows(source: VectorFile, rows: np.ndarray, target: Path) -> None:
    with target.open("wb") as file:
        for start in range(0, len(rows), _VERIFY_CHUNK):
            file.write(source.fetch(rows[start : start + _VERIFY_CHUNK]).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _vector_path(folder: Path, modality: Modality, generation: int) -> Path:
    return folder / "vectors" / f"{modality}-{generation:05d}.f32"


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _read_manifest(path: Path) -> Manifest:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] > FORMAT:
            raise StorageError(
                f"{path.parent} has format {values['format']}, this version of mmsearch reads {FORMAT}; update mmsearch"
            )
        return Manifest(**values)
    except OSError as exc:
        raise StorageError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise IndexDamaged(f"{path} is damaged ({exc}); delete {path.parent} and index again") from exc


def _write_durably(path: Path, text: str) -> None:
    """Write a file so that after a crash it is there whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the index for writing; the operating system lets go of it when the process dies."""
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as exc:
        raise IndexBusy(
            f"another mmsearch process is writing to {folder}; wait until it has finished, then run this again"
        ) from exc
    except OSError as exc:
        raise StorageError(f"cannot write to {folder}: {exc.strerror}; is it read-only, or somebody else's?") from exc
    try:
        yield
    finally:
        lock.release()


__all__ = [
    "Change",
    "Index",
    "IndexWriter",
    "Manifest",
    "Piece",
    "Put",
    "Remove",
    "Restamp",
    "Skip",
    "Snapshot",
    "VerifyReport",
]
