"""One index in one folder: catalogue and vector files kept in step, whatever happens to the process.

    manifest.json              what this is and whose vectors it holds; written last, so a folder with one is an index
    int8.safetensors           what int8 knows of the numbers in the model, where pictures are in int8
    catalogue.db               the truth: files, pieces, and the row of each vector
    vectors/image-00001.f32    the rows, one file for each modality; the number is the generation
    vectors/image-00001.tokens the image tokens of the same rows, of pictures and of clips, where the index holds any
    text/                      the model's text tower, for questions; derived, see ``indexer.text_tower``
    lists/image-00001.json     what spares a large index from scanning all vectors; derived, see ``indexer.lists``
    lock                       held by the one process that writes

A folder of format 1 has no tokens and a catalogue that knows nothing of them, one of format 2 has no videos, one of
format 3 knows files by another digest than newer ones, one of format 4 does not say in which precision its pictures
were computed. It is read as it is; the first writer brings it to this format, in which its digests stay what they are.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer.durable import write_durably
from indexer.errors import IndexBusy, IndexDamaged, NoIndex, StorageError, UsageError
from indexer.gpu import GpuSearch
from indexer.lists import Lists, header_path, open_lists, read_recall
from indexer.reader import ReadCatalogue, Reader
from indexer.records import State
from indexer.tokens import TokenFile, token_checksum, token_path, unpack
from indexer.types import VISUAL, Modality
from indexer.vectors import VectorFile, vector_path

if TYPE_CHECKING:
    from indexer.writer import IndexWriter

FORMAT = 5
RANGES = "int8.safetensors"

_SNAPSHOT_TRIES = 5


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an index is: the format of the folder, the model whose vectors it holds, and the precision in which its
    pictures are computed; None until that is decided, before the first of them."""

    encoder: str
    fingerprint: str
    dim: int
    created: str
    format: int = FORMAT
    precision: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The index at one moment: rows that ``reader`` names are in ``vectors``, whatever a writer does meanwhile.

    All but ``reader`` serves every snapshot of the same state.
    """

    reader: Reader
    state: State
    vectors: dict[Modality, VectorFile]
    dead: dict[Modality, np.ndarray]
    token_files: dict[Modality, TokenFile]
    """For each of ``VISUAL``; empty without tokens."""
    kinds: dict[Modality, frozenset[Modality]]
    """What ``kinds_of`` has answered."""

    def tokens(self, rows: np.ndarray, modality: Modality = Modality.IMAGE) -> tuple[np.ndarray, np.ndarray]:
        """The image tokens ``(R, T, W)`` float32 of the pictures, or the clips, at these rows ``(R,)``, and which of
        them have any, ``(R,)``.

        A picture without tokens has zeros; so has one whose tokens decayed or were erased meanwhile, for each is held
        against its checksum. Without tokens in the index, T and W are 0.
        """
        present = np.zeros(len(rows), dtype=bool)
        format = self.state.tokens
        if format is None:
            return np.zeros((len(rows), 0, 0), np.float32), present
        checksums = self.reader.token_checksums(modality, rows.tolist())
        matrix = self.token_files[modality].matrix()
        packed = np.zeros((len(rows), format.row_bytes), np.uint8)
        for i, row in enumerate(rows.tolist()):
            if row in checksums and row < len(matrix):
                packed[i] = matrix[row]
                present[i] = token_checksum(packed[i]) == checksums[row]
        packed[~present] = 0
        return unpack(packed, format), present

    def kinds_of(self, modality: Modality) -> frozenset[Modality]:
        """What the files are that have pieces of ``modality``."""
        if modality not in self.kinds:
            self.kinds[modality] = self.reader.kinds_of(modality) if self.state.rows[modality] else frozenset()
        return self.kinds[modality]


class Index:
    """A folder with an index in it, opened for reading. Thread-safe. ``writing()`` gives the one writer."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Use ``open`` or ``create``."""
        self.folder = folder
        self.manifest = manifest
        self.catalogue = ReadCatalogue(folder / "catalogue.db")
        self._latest: Snapshot | None = None
        self._latest_lock = threading.Lock()
        self._lists: dict[Path, tuple[tuple[int, int], Lists | None]] = {}
        self._gpu: dict[Path, GpuSearch] | None = None
        self._gpu_numbers: Sequence[int] | None = None

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
        from indexer.catalogue import Catalogue

        ours = re.compile(r"catalogue\.db(-wal|-shm|-journal)?|lock|vectors|text|manifest\.json(\.\d+)?\.new")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            foreign = sorted(name for name in os.listdir(folder) if not ours.fullmatch(name))
            if foreign:
                raise UsageError(
                    f"{folder} is not an index and not empty (it holds {foreign[0]!r}); name an empty or new folder"
                )
            with _lock(folder):
                catalogue = Catalogue(folder / "catalogue.db")
                try:
                    with catalogue.write() as writer:
                        writer.initialise()
                finally:
                    catalogue.close()
                (folder / "vectors").mkdir(exist_ok=True)
                created = datetime.now(timezone.utc).isoformat(timespec="seconds")
                manifest = Manifest(encoder, fingerprint, dim, created)
                _write_manifest(folder, manifest)
        except OSError as exc:
            raise StorageError(f"cannot make an index in {folder}: {exc.strerror}") from exc
        return cls(folder, manifest)

    def close(self) -> None:
        """Let go of the database and the mapped files."""
        self.catalogue.close()
        self._latest = None
        self._lists.clear()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def search_on_gpus(self, numbers: Sequence[int] | None = None) -> None:
        """Answer questions without a filter on GPUs of these ``numbers``, or on any, where there are some; see
        ``indexer.gpu``."""
        self._gpu = {}
        self._gpu_numbers = numbers
        self._latest = None

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The index as it is now, for as long as the block runs.

        Raises:
            IndexDamaged: a vector file is shorter than the catalogue says.
        """
        for last_try in (*[False] * (_SNAPSHOT_TRIES - 1), True):
            with self.catalogue.read() as reader:
                snapshot = self._current(reader)
                # A compaction that ends between the two looks takes the files away; the next look sees the new ones.
                short = any(file.missing for file in snapshot.vectors.values())
                # Tokens that are lost for good leave every vector searchable.
                no_tokens = any(file.missing for file in snapshot.token_files.values())
                if short or (no_tokens and not last_try):
                    self._latest = None
                    continue
                yield snapshot
                return
        raise IndexDamaged(f"{self.folder} has lost vectors that its catalogue lists; 'mmsearch verify' repairs it")

    def _current(self, reader: Reader) -> Snapshot:
        state = reader.state()
        with self._latest_lock:
            latest = self._latest
            if latest is None or latest.state != state:
                vectors = {}
                for m, rows in state.rows.items():
                    path = vector_path(self.folder, m, state.generation)
                    vectors[m] = VectorFile(path, self.manifest.dim, rows)
                    vectors[m].lists = self._open_lists(m, state.generation)
                    if self._gpu is not None:
                        vectors[m].gpu = self._gpu.setdefault(path, GpuSearch(self._gpu_numbers))
                    vectors[m].matrix()  # mapped now: a mapped file stays readable when a compaction removes it
                if self._gpu is not None:  # copies of an older generation make room
                    current = {file.path for file in vectors.values()}
                    self._gpu = {path: copy for path, copy in self._gpu.items() if path in current}
                token_files = {}
                if state.tokens is not None:
                    for m in VISUAL:
                        path = token_path(self.folder, m, state.generation)
                        token_files[m] = TokenFile(path, state.tokens, state.rows[m])
                        token_files[m].matrix()
                dead = {m: reader.freed(m) for m in vectors}
                latest = self._latest = Snapshot(reader, state, vectors, dead, token_files, {})
            return replace(latest, reader=reader)

    def _open_lists(self, modality: Modality, generation: int) -> Lists | None:
        """The lists of one modality; those that were open already, if their header is still the same file."""
        path = header_path(self.folder, modality, generation)
        try:
            status = path.stat()
        except OSError:
            return None
        stamp = (status.st_ino, status.st_mtime_ns)
        kept = self._lists.get(path)
        if kept is None or kept[0] != stamp:
            kept = self._lists[path] = (stamp, open_lists(self.folder, modality, generation, self.manifest.dim))
        if kept[1] is not None:
            kept[1].recall = read_recall(self.folder)
        return kept[1]

    @contextmanager
    def writing(self) -> Iterator[IndexWriter]:
        """The right to change the index, for as long as the block runs. A folder of an older format is migrated.

        Raises:
            IndexBusy: another process has it.
            StorageError: the folder cannot be written.
        """
        from indexer.catalogue import Catalogue
        from indexer.writer import IndexWriter

        with _lock(self.folder):
            catalogue = Catalogue(self.folder / "catalogue.db")
            try:
                self._raise_format()
                writer = IndexWriter(self.folder, self.manifest.dim, catalogue)
                writer.finish()  # what a dead process left
                yield writer
                writer.finish()
            finally:
                catalogue.close()

    def keep_precision(self, precision: str, ranges: Mapping[str, np.ndarray]) -> None:
        """Keep the precision of all pictures to come, and what int8 knows of the model; call it while ``writing``.

        Raises:
            StorageError: the folder cannot be written.
        """
        from safetensors.numpy import save

        self._keep({RANGES: save(dict(ranges))} if ranges else {}, replace(self.manifest, precision=precision))

    def ranges(self) -> dict[str, np.ndarray]:
        """What ``keep_precision`` kept; empty if there is nothing, or it is damaged, for it can be observed again."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(self.folder / RANGES)
        except (OSError, SafetensorError, ValueError):
            return {}

    def _raise_format(self) -> None:
        """Say in the manifest what the catalogue, which opening for writing has migrated, is by now."""
        if self.manifest.format != FORMAT:
            self._keep({}, replace(self.manifest, format=FORMAT))

    def _keep(self, files: Mapping[str, bytes], manifest: Manifest) -> None:
        """Write these files, and then the manifest that tells of them."""
        try:
            for name, content in files.items():
                write_durably(self.folder / name, content)
            _write_manifest(self.folder, manifest)
        except OSError as exc:
            raise StorageError(f"cannot write to {self.folder}: {exc.strerror}") from exc
        self.manifest = manifest


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


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_durably(folder / "manifest.json", (json.dumps(asdict(manifest), indent=2) + "\n").encode())


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the index for writing; the operating system lets go of it when the process dies."""
    from filelock import FileLock, Timeout

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
