"""The writer of an index: every change to its catalogue and files, the check of the whole, and compaction.

A change is: append vectors and image tokens and fsync, then commit the catalogue rows that name them, then erase the
bytes of what the change removed. Killed before the commit, the tail of a file is named by nothing and the next writer
cuts it off; killed after it, the next writer erases what the catalogue lists as freed. Either way the catalogue is
right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.catalogue import Catalogue, Writer
from indexer.changes import Change, Piece, Put, Remove, Restamp, Skip
from indexer.durable import sync_folder
from indexer.errors import IndexDamaged, StorageError, UsageError
from indexer.lists import discard, erase, header_path, open_lists, sweep
from indexer.records import Likeness, NewItem
from indexer.rowfile import RowFile
from indexer.tokens import TokenFile, TokenFormat, token_checksum, token_path
from indexer.types import VISUAL, Modality
from indexer.vectors import UNIT_TOLERANCE, VectorFile, check_vectors, checksum, vector_path
from indexer.words import root_of

_VERIFY_CHUNK = 4096
"""Rows read at a time while verifying or compacting: 8 MB of vectors of 512 numbers, at most 37 MB of tokens."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a check of the whole index found.

    ``repaired`` was put right; the files among it are embedded again by the next ``mmsearch index``, or, where only
    their image tokens were taken out, by ``mmsearch index --add-tokens``. ``lost`` cannot be put right from here.
    """

    vectors: int
    repaired: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing at all was wrong."""
        return not self.repaired and not self.lost


class IndexWriter:
    """All changes to an index. One at a time, from one thread; ``Index.writing()`` makes it."""

    def __init__(self, folder: Path, dim: int, catalogue: Catalogue) -> None:
        self.folder = folder
        self.dim = dim
        self.catalogue = catalogue
        self._vectors: dict[Modality, VectorFile] = {}
        self._tokens: dict[Modality, TokenFile] = {}
        self._recover()

    def _recover(self) -> None:
        """Bring the folder to what the catalogue says: cut, erase, and sweep what a dead process left."""
        with self.catalogue.read() as reader:
            state = reader.state()
            pending = {m: reader.freed(m, erased=False) for m in Modality}
        self._generation = state.generation
        for m in Modality:
            path = vector_path(self.folder, m, state.generation)
            self._vectors[m] = VectorFile(path, self.dim, state.rows[m], write=True)
        self.token_format = state.tokens
        self.digest = state.digest
        self._tokens = {}
        if state.tokens is not None:
            for m in VISUAL:
                path = token_path(self.folder, m, state.generation)
                self._tokens[m] = TokenFile(path, state.tokens, state.rows[m], write=True)
        self._erase({m: rows.tolist() for m, rows in pending.items() if len(rows)})
        current = {file.path.name for file in (*self._vectors.values(), *self._tokens.values())}
        for path in (self.folder / "vectors").iterdir():
            if path.name not in current:
                path.unlink()
        sweep(self.folder, self._generation)

    def finish(self) -> None:
        """Take the last words of what was removed out of the word search, where SQLite leaves some behind."""
        with self.catalogue.read() as reader:
            traces = reader.word_traces()
        if traces:
            with self.catalogue.write() as writer:
                writer.clear_word_traces()

    def _erase(self, freed: dict[Modality, list[int]]) -> None:
        if not freed:
            return
        for modality, rows in freed.items():
            self._vectors[modality].remove(np.array(rows, dtype=np.int64))
            erase(self.folder, modality, self._generation, self.dim, np.array(rows, dtype=np.int64))
            if modality in self._tokens:
                self._tokens[modality].remove(np.array(rows, dtype=np.int64))
        with self.catalogue.write() as writer:
            for modality, rows in freed.items():
                writer.set_erased(modality, rows)

    def apply(self, changes: Sequence[Change]) -> list[int]:
        """Make all of ``changes`` happen, or none; return the number of the asset that each ``Put`` wrote.

        Raises:
            UsageError: there are tokens of another format than that of the index; nothing was changed.
            ModelError: a vector is not a finite unit row; nothing was changed.
            StorageError: the disk is full or the folder cannot be written; nothing was changed.
        """
        puts = [change for change in changes if isinstance(change, Put)]
        new: dict[Modality, list[np.ndarray]] = {m: [] for m in Modality}
        tokens: dict[Modality, list[np.ndarray]] = {m: [] for m in VISUAL}
        for put in puts:
            source = f"the model, for {put.asset.path or put.asset.key},"
            vectors = check_vectors(put.vectors, self.dim, source)
            if len(vectors) != len(put.pieces):
                raise UsageError(f"{len(put.pieces)} pieces came with {len(vectors)} vectors")
            for piece, vector in zip(put.pieces, vectors, strict=True):
                new[piece.modality].append(vector)
            for piece, row in zip(put.pieces, self._token_rows(put), strict=True):
                if row is not None:
                    tokens[piece.modality].append(row)
        asset_ids: list[int] = []
        freed: dict[Modality, list[int]] = {}
        try:
            rows = {m: iter(self._vectors[m].add(np.stack(v)).tolist()) for m, v in new.items() if v}
            for m, packed in tokens.items():
                if packed:
                    self._tokens[m].append(np.stack(packed))
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

    def _token_rows(self, put: Put) -> list[np.ndarray | None]:
        """The row that each piece of ``put`` takes up in a token file: zeros without tokens, None if it has no row."""
        given = [None] * len(put.pieces) if put.tokens is None else list(put.tokens)
        if isinstance(put.tokens, np.ndarray):
            self._check_tokens(put.tokens, len(put.pieces))
        elif some := [row for row in given if row is not None]:
            self._check_tokens(np.stack(some), len(some))
        rows: list[np.ndarray | None] = []
        for piece, row in zip(put.pieces, given, strict=True):
            if row is not None:
                if piece.modality not in VISUAL:
                    raise UsageError("image tokens came with pieces that are no pictures")
            elif piece.modality in self._tokens:
                row = np.zeros(self._tokens[piece.modality].width, np.uint8)
            rows.append(row)
        return rows

    def _check_tokens(self, tokens: np.ndarray, count: int) -> None:
        expected = None if self.token_format is None else (count, self.token_format.row_bytes)
        if tokens.shape != expected or tokens.dtype != np.uint8:
            holds = "no image tokens" if expected is None else f"image tokens of shape {expected} for these pictures"
            raise UsageError(f"the index in {self.folder} holds {holds}; {tokens.shape} of {tokens.dtype} were given")

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
                    if change.ocr:
                        writer.mark_ocr_read(asset_id)
                    if change.likeness is not None:
                        writer.put_likeness(asset_id, change.likeness)
                else:
                    asset_id = change.extends
                    if change.complete:
                        writer.complete_asset(asset_id)
                writer.put_items(asset_id, _new_items(change, rows))
                asset_ids.append(asset_id)
                return freed

    def fetch_pieces(self, asset_id: int) -> tuple[list[Piece], np.ndarray, list[np.ndarray | None] | None]:
        """The pieces of an asset, their vectors ``(P, D)``, and the packed tokens of each, None where it has no sound
        ones, to be stored again under another path; no list if none has any."""
        with self.catalogue.read() as reader:
            items = reader.asset_items(asset_id)
        pieces = [Piece(item.modality, item.span, item.text, item.source) for item in items]
        vectors = np.empty((len(items), self.dim), dtype=np.float32)
        for i, item in enumerate(items):
            vectors[i] = self._vectors[item.modality].fetch(np.array([item.row]))[0]
        tokens: list[np.ndarray | None] = [None] * len(items)
        for i, item in enumerate(items):
            if item.token_crc is not None and item.modality in self._tokens:
                row = self._tokens[item.modality].fetch(np.array([item.row], dtype=np.int64))[0]
                # A copy would get a checksum of its own, and a decay would never be noticed.
                tokens[i] = row if token_checksum(row) == item.token_crc else None
        return pieces, vectors, tokens if any(row is not None for row in tokens) else None

    def adopt_tokens(self, tokens: TokenFormat) -> None:
        """Hold image tokens of this format from now on; no picture has any at first.

        Tokens of another format are gone with the transaction that names the new one. The vectors are then copied into
        a new generation beside the new token file, so that whoever is reading keeps the old pair.

        Raises:
            StorageError: there is no room for the new files; the index is as it was.
        """
        if self._tokens:
            self._rewrite(tokens)
            return
        with self.catalogue.write() as writer:
            writer.set_token_format(tokens)
            writer.advance({})
        self._recover()

    def put_tokens(self, rows: np.ndarray, tokens: np.ndarray, modality: Modality = Modality.IMAGE) -> None:
        """Give the pictures, or clips, at these rows ``(R,)``, which have none, the packed tokens ``(R, row_bytes)``.

        Raises:
            UsageError: they are of another format than that of the index.
            StorageError: they cannot be written; no picture has got any.
        """
        self._check_tokens(tokens, len(rows))
        # Killed before the commit, the bytes stand in the row of their own picture, which has no tokens as before.
        self._tokens[modality].overwrite(rows, tokens)
        with self.catalogue.write() as writer:
            writer.set_token_checksums(modality, dict(zip(rows.tolist(), map(token_checksum, tokens), strict=True)))
            writer.advance({})

    def put_likenesses(self, likenesses: Mapping[int, Likeness]) -> None:
        """Say how pictures look that are in the index, by the numbers of their assets."""
        with self.catalogue.write() as writer:
            for asset_id, likeness in likenesses.items():
                writer.put_likeness(asset_id, likeness)

    def announce(self) -> None:
        """Let readers look at the files again: what is derived from the vectors has changed."""
        with self.catalogue.write() as writer:
            writer.advance({})

    def add_roots(self, paths: Sequence[str]) -> None:
        """Remember the files and folders that are indexed as such: names in the word search begin below them."""
        with self.catalogue.read() as reader:
            roots = reader.roots()
        if any(root_of(path, roots) is None for path in paths):
            with self.catalogue.write() as writer:
                writer.add_roots(paths)

    def forget_under(self, under: Sequence[str]) -> int:
        """Forget the skipped files and the roots at or below the paths ``under``; return how many files there were."""
        with self.catalogue.write() as writer:
            writer.forget_roots_under(under)
            return writer.forget_skipped_under(under)

    def forget_skipped(self, paths: Sequence[str]) -> None:
        """Forget skipped files that are gone."""
        with self.catalogue.write() as writer:
            writer.forget_skipped(paths)

    def verify(self) -> VerifyReport:
        """Check every vector against its row and every row against its vector; repair what can be.

        A vector that decayed costs its file the place in the index: it is embedded again by the next run. What was
        added from memory cannot be, and is reported as lost. Rows that belong to nothing are erased.
        Tokens that decayed beside a sound vector cost their picture only the tokens.

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
            checksums = {m: reader.token_checksums(m) for m in self._tokens}
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
        decayed: dict[Modality, list[int]] = {}
        blank: dict[Modality, list[int]] = {}
        for m, tokens in self._tokens.items():
            decayed[m], blank[m] = _token_faults(tokens, checksums[m])
            # A live picture without tokens may have some bytes of them, from a run that was killed: that is no damage.
            outlived = np.intersect1d(blank[m], freed[m])
            if len(outlived):
                repaired.append(f"{len(outlived)} tokens in {tokens.path.name} outlived their picture; erased")
        repaired.extend(self._drop_damaged_lists())
        lost = self._repair(damaged, orphans, repaired)
        self._erase({m: rows for m, rows in stale.items() if rows})
        owners = {(item.modality, item.row): item.asset_id for item in items}
        for m, rows in decayed.items():
            self._drop_tokens(m, {r: owners[m, r] for r in rows if owners[m, r] not in damaged}, repaired, lost)
            if blank[m]:
                self._tokens[m].remove(np.array(blank[m], dtype=np.int64))
        self._verify_words(repaired)
        return VerifyReport(len(items), tuple(repaired), tuple(lost))

    def _drop_damaged_lists(self) -> list[str]:
        """Remove search lists that are not what was written, and say so; the next run makes them again."""
        dropped = []
        for m, file in self._vectors.items():
            path = header_path(self.folder, m, self._generation)
            lists = open_lists(self.folder, m, self._generation, self.dim)
            # A file that lost rows will get others in their place, of which the lists know nothing.
            if file.missing or (lists is not None and lists.faults()):
                if path.exists():
                    dropped.append(
                        f"the search lists beside {path.name} were damaged; the next 'mmsearch index' makes new ones"
                    )
                discard(self.folder, m, self._generation)
        return dropped

    def _verify_words(self, repaired: list[str]) -> None:
        """Hold the word search against the passages and names, and make it again if it differs."""
        with self.catalogue.write() as writer:  # the check is a command to a table, so it takes a writer
            faults = writer.word_faults() if writer.has_words() else 0
            if faults:
                writer.make_words()
                repaired.append(f"the word search differed from {faults:,} passages and names; made again")

    def _drop_tokens(
        self, modality: Modality, decayed: Mapping[int, int], repaired: list[str], lost: list[str]
    ) -> None:
        """Let the pictures or clips at these rows, of these assets, be without tokens, and say so."""
        if not decayed:
            return
        tokens = self._tokens[modality]
        with self.catalogue.write() as writer:
            names = writer.asset_names(sorted(set(decayed.values())))
            for row, asset_id in decayed.items():
                path, key = names[asset_id]
                fault = f"its tokens (row {row} of {tokens.path.name}) are not the ones that were written; taken out"
                if key is None:
                    repaired.append(f"{path}: {fault}, 'mmsearch index --add-tokens' makes them again")
                else:
                    lost.append(f"{key}: {fault}; it was added from memory, add it again")
            writer.set_token_checksums(modality, dict.fromkeys(decayed))
            writer.advance({})
        tokens.remove(np.array(list(decayed), dtype=np.int64))

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
        """Rewrite vectors and tokens without the erased rows and shrink the database; return the bytes saved.

        The new files are a new generation: until the one transaction that names it, the old one is the index.

        Raises:
            StorageError: there is no room for the new files; the index is as it was.
        """
        before = _folder_bytes(self.folder)
        self._rewrite(self.token_format)
        self.catalogue.vacuum()
        return before - _folder_bytes(self.folder)

    def _rewrite(self, tokens: TokenFormat | None) -> None:
        """Copy what is alive into a new generation that holds image tokens of the format ``tokens``."""
        generation = self._generation + 1
        renumbered: dict[Modality, list[tuple[int, int]]] = {m: [] for m in Modality}
        old_rows: dict[Modality, list[int]] = {m: [] for m in Modality}
        with self.catalogue.read() as reader:
            for item in reader.item_rows():
                renumbered[item.modality].append((item.id, len(renumbered[item.modality])))
                old_rows[item.modality].append(item.row)
            without = {m: reader.rows_without_tokens(m) for m in VISUAL}
        kept = self._tokens if tokens == self.token_format else {}
        try:
            for m, rows in old_rows.items():
                _copy_rows(self._vectors[m], np.array(rows, np.int64), vector_path(self.folder, m, generation))
            for m, file in kept.items():
                path = token_path(self.folder, m, generation)
                _copy_rows(file, np.array(old_rows[m], np.int64), path, blank=without[m])
            sync_folder(self.folder / "vectors")
            with self.catalogue.write() as writer:
                for m, pairs in renumbered.items():
                    writer.renumber(m, pairs)
                if tokens is not None and tokens != self.token_format:
                    writer.set_token_format(tokens)
                writer.advance({m: len(rows) for m, rows in old_rows.items()}, generation=generation)
        except OSError as exc:
            raise StorageError(f"cannot compact {self.folder}: {exc.strerror}") from exc
        finally:
            self._recover()


def _new_items(put: Put, rows: Mapping[Modality, Iterator[int]]) -> list[NewItem]:
    """The pieces of ``put``, each with the next of the rows that were written for its modality."""
    ordinals = range(len(put.pieces)) if put.ordinals is None else put.ordinals
    tokens = [None] * len(put.pieces) if put.tokens is None else put.tokens
    return [
        NewItem(
            ordinal,
            p.modality,
            next(rows[p.modality]),
            checksum(vector),
            p.span,
            p.text,
            p.source,
            None if row is None else token_checksum(row),
        )
        for ordinal, p, vector, row in zip(ordinals, put.pieces, put.vectors, tokens, strict=True)
    ]


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


def _token_faults(file: TokenFile, checksums: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """Rows whose tokens are not what was written, and rows without tokens that are not zeros."""
    decayed, strays = [], []
    for start in range(0, file.rows, _VERIFY_CHUNK):
        for row, tokens in enumerate(np.array(file.matrix()[start : start + _VERIFY_CHUNK]), start):
            if row not in checksums:
                if tokens.any():
                    strays.append(row)
            elif token_checksum(tokens) != checksums[row]:
                decayed.append(row)
    return decayed, strays


def _copy_rows(source: RowFile, rows: np.ndarray, target: Path, *, blank: np.ndarray | None = None) -> None:
    """Write these ``rows`` of ``source``, in this order, into the file ``target``; zeros for those in ``blank``."""
    with target.open("wb") as file:
        for start in range(0, len(rows), _VERIFY_CHUNK):
            chunk = rows[start : start + _VERIFY_CHUNK]
            values = source.fetch(chunk)
            if blank is not None:
                values[np.isin(chunk, blank)] = 0
            file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
