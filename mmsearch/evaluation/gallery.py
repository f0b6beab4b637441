"""What is searched when a model is judged: a real index of the pictures and captions of one split, built or found.

Each picture and each caption becomes exactly one item, in the order of the data; a caption longer than the model reads
is cut off by the model, as a question is, and not into passages. Pictures are read as ``mmsearch index`` reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import mmsearch
from indexer.changes import Piece, Put, Skip
from indexer.decode import decode_image
from indexer.embedding import Embed, embedding
from indexer.encoders import Encoder
from indexer.encoders.load import load_encoder
from indexer.errors import StorageError, UsageError, fault_of
from indexer.index import Index, Snapshot
from indexer.pipeline import IMAGE_BATCH
from indexer.tokens import Compressor
from indexer.types import Asset, Item, Modality, Skipped
from mmsearch.rerank.load import check_reads, load_reranker

if TYPE_CHECKING:
    from PIL.Image import Image

    from indexer.writer import IndexWriter
    from mmsearch.datasets import Captioned, Picture
    from mmsearch.library import Library
    from mmsearch.rerank import Reranker

TEXT_BATCH = 256

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True, eq=False)
class Gallery:
    """The items of one kind that compete for an answer, in the order of their numbers in the index.

    Attributes:
        ids: ``(N,)`` numbers of the items, growing.
        rows: ``(N,)`` where their vectors stand in the index, and the image tokens of pictures.
        vectors: ``(N, D)`` float32 unit rows.
        names: what an answer is called: the name or path of a picture, the words of a text.
        pictures: ``(N,)`` which picture of the data an item is, -1 for texts and for pictures of others.
    """

    ids: np.ndarray
    rows: np.ndarray
    vectors: np.ndarray
    names: tuple[str, ...]
    pictures: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@contextmanager
def opened(
    subject: str | Path | Encoder,
    data: Captioned,
    cache: Path | None,
    device: str | None,
    progress: Progress,
    reranker: str | Path | Reranker | None = None,
) -> Iterator[Library]:
    """The library to be judged: that of a folder with an index, or else one with an index of ``data`` by a model.

    Such an index is kept in ``cache`` and found again by the fingerprints of the model and of the image tokens, and by
    what the data is: names, files, sizes and times of the pictures, and the captions. Without ``cache`` it is gone at
    the end of the block. It has the tokens of ``reranker``, or of the one that was trained for the model.

    Raises:
        UsageError, ModelError: there is no such model, or it cannot be loaded.
        StorageError: the index cannot be read or written.
    """
    if isinstance(subject, (str, Path)):
        if Index.exists(Path(subject)):
            with mmsearch.open(subject, device=device, reranker=reranker) as library:
                yield library
            return
        subject = load_encoder(str(subject), device)
    if reranker is None or isinstance(reranker, (str, Path)):
        reranker = load_reranker(reranker, subject, device)
    else:
        check_reads(reranker, subject)
    compressor = None if reranker is None else reranker.compressor
    with (
        indexed(subject, data, cache, progress, compressor) as folder,
        mmsearch.open(folder, model=subject, reranker=reranker) as library,
    ):
        yield library


@contextmanager
def indexed(
    encoder: Encoder,
    data: Captioned,
    cache: Path | None,
    progress: Progress,
    compressor: Compressor | None,
    *,
    captions: bool = True,
) -> Iterator[Path]:
    """The folder of an index that ``build`` made, kept in ``cache`` and found again as ``opened`` has it.

    Raises:
        UsageError, ModelError, StorageError: as in ``opened``.
    """
    with tempfile.TemporaryDirectory(prefix="mmsearch-eval-", dir=_made(cache)) as scratch:
        folder = Path(scratch) / "index"
        tokens = "" if compressor is None else f"-{compressor.format.fingerprint[:16]}"
        alone = "" if captions else "-pictures"
        kept = cache / f"{encoder.fingerprint[:16]}-{_digest(data)}{tokens}{alone}" if cache is not None else None
        if kept is not None and Index.exists(kept):
            yield kept
            return
        build(folder, encoder, data, progress, compressor, captions=captions)
        yield folder if kept is None else _moved(folder, kept)


def build(
    folder: Path,
    encoder: Encoder,
    data: Captioned,
    progress: Progress,
    compressor: Compressor | None = None,
    *,
    captions: bool = True,
) -> None:
    """Make an index of ``data`` in ``folder``, with image tokens if there is a ``compressor``.

    A picture that cannot be read is listed among the skipped files of the index, and its captions are left out; all
    are without ``captions``.

    Raises:
        ModelError: the model fails.
        StorageError: the index cannot be written.
    """
    index = Index.create(folder, encoder=encoder.name, fingerprint=encoder.fingerprint, dim=encoder.dim)
    with index, index.writing() as writer:
        read = _put_pictures(writer, encoder, embedding(writer, encoder, compressor), data.pictures, progress)
        if captions:
            _put_captions(writer, encoder, data.subset(read).flat()[0], progress)


def read_picture(picture: Picture, size: int) -> Image:
    """The picture as a model that takes ``size`` pixels a side should see it; may be called from several threads.

    Raises:
        DecodeError, OSError: it cannot be read.
    """
    return picture.open() if picture.box is not None else decode_image(picture.read(), size=size).image


def one_line(caption: str) -> str:
    """A caption as it is indexed, asked and compared: every run of white space one blank."""
    return " ".join(caption.split())


def galleries(library: Library, data: Captioned) -> dict[Modality, Gallery]:
    """All pictures and all texts of an index; pictures are known by their path, or by the key that ``build`` gave."""
    with library.searcher().index.snapshot() as snapshot:
        return {modality: gallery_of(snapshot, modality, data) for modality in Modality}


def skipped(library: Library, data: Captioned, gallery: Gallery) -> tuple[Skipped, ...]:
    """The pictures of ``data`` that are not in the gallery, by name, with the reason."""
    reasons = {one.path: one.reason for one in library.status().skipped}
    there = set(gallery.pictures.tolist())
    return tuple(
        Skipped(picture.name, reasons.get(_skip_path(picture), "is not in the index"))
        for number, picture in enumerate(data.pictures)
        if number not in there
    )


def gallery_of(snapshot: Snapshot, modality: Modality, data: Captioned) -> Gallery:
    """All items of one kind; pictures are known as in ``galleries``."""
    rows = sorted((item.id, item.row) for item in snapshot.reader.item_rows() if item.modality is modality)
    numbers = [row for _, row in rows]
    found = snapshot.reader.items_at(modality, numbers)
    items = [found[row] for row in numbers]
    pictures = _pictures_of(items, data) if modality is Modality.IMAGE else [-1] * len(items)
    names = [
        data.pictures[picture].name if picture >= 0 else _name(item)
        for item, picture in zip(items, pictures, strict=True)
    ]
    return Gallery(
        np.array([number for number, _ in rows], dtype=np.int64),
        np.array(numbers, dtype=np.int64),
        snapshot.vectors[modality].fetch(np.array(numbers, dtype=np.int64)),
        tuple(names),
        np.array(pictures, dtype=np.int64),
    )


def _pictures_of(items: Sequence[Item], data: Captioned) -> list[int]:
    """The number of the picture that each item is, or -1."""
    known: dict[str, int] = {}
    for number, picture in enumerate(data.pictures):
        known[_key(picture)] = number
        if _is_whole_file(picture):
            known.setdefault(os.path.abspath(picture.path), number)
    pictures = [known.get(item.asset.key or item.asset.path, -1) for item in items]
    missing = set(range(len(data.pictures))) - set(pictures)
    real = {os.path.realpath(data.pictures[n].path): n for n in missing if _is_whole_file(data.pictures[n])}
    if real:  # the index may know a picture by another way to it
        for i, item in enumerate(items):
            if pictures[i] < 0 and item.asset.path:
                pictures[i] = real.get(os.path.realpath(item.asset.path), -1)
    return pictures


def _name(item: Item) -> str:
    return item.text if item.text is not None else item.asset.path or str(item.asset.key)


def _put_pictures(
    writer: IndexWriter, encoder: Encoder, embed: Embed, pictures: Sequence[Picture], progress: Progress
) -> list[int]:
    """Read in threads ahead of the model, embed and store a batch at a time; return the numbers of what was stored."""
    waiting: deque[tuple[Picture, Future[np.ndarray | str]]] = deque()
    taken: set[str] = set()
    stored: list[int] = []
    done = 0
    progress("indexing pictures", 0, len(pictures))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="mmsearch-read") as pool:
        for number, picture in enumerate(pictures, 1):
            waiting.append((picture, pool.submit(_prepared, encoder, picture)))
            while len(waiting) >= 2 * IMAGE_BATCH or (number == len(pictures) and waiting):
                batch = [waiting.popleft() for _ in range(min(IMAGE_BATCH, len(waiting)))]
                read = [(picture, future.result()) for picture, future in batch]
                _put_batch(writer, embed, read, taken)
                stored += [done + i for i, (_, pixels) in enumerate(read) if isinstance(pixels, np.ndarray)]
                done += len(batch)
                progress("indexing pictures", done, len(pictures))
    return stored


def _put_captions(writer: IndexWriter, encoder: Encoder, captions: Sequence[str], progress: Progress) -> None:
    progress("indexing captions", 0, len(captions))
    for start in range(0, len(captions), TEXT_BATCH):
        texts = [one_line(caption) for caption in captions[start : start + TEXT_BATCH]]
        vectors = encoder.encode_texts(texts)
        writer.apply(
            [
                Put(_caption_asset(number, text), [Piece(Modality.TEXT, text=text)], vector[None])
                for number, (text, vector) in enumerate(zip(texts, vectors, strict=True), start)
            ]
        )
        progress("indexing captions", start + len(texts), len(captions))


def _prepared(encoder: Encoder, picture: Picture) -> np.ndarray | str:
    """A picture ``(C, H, W)`` as the model takes it, or why it cannot be had."""
    try:
        return encoder.prepare(read_picture(picture, encoder.image_size))
    except Exception as exc:  # whatever a decoder does with a hostile file, the other pictures are not its business
        return fault_of(exc)


def _put_batch(
    writer: IndexWriter, embed: Embed, batch: Sequence[tuple[Picture, np.ndarray | str]], taken: set[str]
) -> None:
    """Embed and commit one batch; ``taken`` are the paths that stand in the index by now."""
    read = [(picture, pixels) for picture, pixels in batch if isinstance(pixels, np.ndarray)]
    embedded = embed([pixels for _, pixels in read]) if read else []
    puts = [
        Put(
            _picture_asset(picture, taken),
            [Piece(Modality.IMAGE)],
            vector[None],
            tokens=None if tokens is None else tokens[None],
        )
        for (picture, _), (vector, tokens) in zip(read, embedded, strict=True)
    ]
    skips = [Skip(_skip_path(picture), 0, 0, reason) for picture, reason in batch if isinstance(reason, str)]
    writer.apply([*puts, *skips])


def _picture_asset(picture: Picture, taken: set[str]) -> Asset:
    """A whole file stands in the index under its path, so that whoever gets it as an answer can open it."""
    digest = _short_digest(_key(picture))
    path = os.path.abspath(picture.path)
    if not _is_whole_file(picture) or path in taken:
        return Asset("", Modality.IMAGE, 0, 0, digest, key=_key(picture))
    taken.add(path)
    found = picture.path.stat()
    return Asset(path, Modality.IMAGE, found.st_size, found.st_mtime_ns, digest)


def _caption_asset(number: int, text: str) -> Asset:
    return Asset("", Modality.TEXT, len(text.encode()), 0, _short_digest(text), key=f"caption:{number}")


def _key(picture: Picture) -> str:
    return f"picture:{picture.name}"


def _skip_path(picture: Picture) -> str:
    """A picture has no path of its own where a file holds several, so the list of skipped files has its name."""
    return picture.name


def _is_whole_file(picture: Picture) -> bool:
    return picture.box is None and picture.member is None


def _short_digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _digest(data: Captioned) -> str:
    """Hexadecimal digest of what the index of ``data`` depends on beside the model."""
    digest = hashlib.blake2b(digest_size=8)
    for picture, captions in zip(data.pictures, data.captions, strict=True):
        try:
            found = picture.path.stat()
            stamp = [found.st_size, found.st_mtime_ns]
        except OSError:
            stamp = []
        row = [picture.name, os.path.abspath(picture.path), picture.box, picture.member, stamp, captions]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _moved(folder: Path, kept: Path) -> Path:
    """Give a finished index its lasting name; where another process was quicker, its index is as good."""
    try:
        return folder.replace(kept)
    except OSError as exc:
        if not Index.exists(kept):
            raise StorageError(f"cannot keep the index in {kept}: {exc.strerror}") from exc
        return kept


def _made(cache: Path | None) -> Path | None:
    if cache is not None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise UsageError(f"cannot keep indexes in {cache}: {exc.strerror}; name another folder") from exc
    return cache
