"""Pictures and texts from memory on their way into the index: embedded in batches that they share, stored in order.

check, prepare (threads, ahead) ─► embed ─► put together what belongs to each ─► commit
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.changes import Piece, Put, Remove
from indexer.decode import decode_opened, iter_passages
from indexer.decode.likeness import likeness
from indexer.embedding import check_same_model, embedding, encode_each, settle_precision
from indexer.encoders import Encoder
from indexer.errors import MmsearchError, UsageError
from indexer.fitting import Fitting
from indexer.index import Index
from indexer.lanes import Embedded, Lanes
from indexer.reading import IMAGE_BATCH, read_ahead
from indexer.records import Likeness
from indexer.reports import AddReport, SkippedAddition
from indexer.streams import TEXT_BATCH
from indexer.tokens import Compressor
from indexer.types import Asset, Modality
from indexer.writer import IndexWriter

if TYPE_CHECKING:
    from PIL.Image import Image

_PATIENCE = 256
"""Additions that may come after one until its batch goes to the model, full or not: what is done waits behind it."""


@dataclass(frozen=True, slots=True)
class Addition:
    """An image or a text from memory that is to be searchable under the caller's own ``key``.

    An image that PIL opened is read when it is added, and indexed as its file would be; PIL then keeps its pixels for
    as long as the caller keeps the image. Any other image is what its pixels are.
    """

    key: str
    image: Image | None = None
    text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def add(
    index: Index,
    encoder: Encoder,
    additions: Sequence[Addition],
    *,
    compressor: Compressor | None = None,
    precision: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> AddReport:
    """Store objects from memory, in their order; one with a key that is there already, or came before, takes its place.

    Pictures get tokens as in ``update``, and are embedded as there, ``IMAGE_BATCH`` at once and several batches side by
    side; passages ``TEXT_BATCH`` at once, of however many texts.

    An addition is stored as a whole or not at all. In the report, each with its reason, are those that cannot be: the
    key is missing, it is not exactly one of image and text, the metadata is not JSON, the image cannot be read, the
    text holds no words, or the model does not take it. Killed or interrupted, the index holds every batch committed.

    Args:
        precision: as in ``update``, and ``say`` likewise.

    Raises:
        UsageError: ``additions`` is not a sequence of ``Addition``, or the pictures of the index have another
            precision; nothing was stored.
        ModelMismatch: as in ``update``; nothing was stored.
        ModelError: the model fails on everything.
        IndexBusy, StorageError: the index cannot be written.
    """
    started = time.monotonic()
    additions = _checked(additions)
    check_same_model(index, encoder)
    with index.writing() as writer:
        if any(addition.image is not None for addition in additions):
            settle_precision(index, encoder, precision, say)
        embed = embedding(writer, encoder, compressor, say)
        batches = -(-sum(addition.image is not None for addition in additions) // IMAGE_BATCH)
        with Lanes(embed, encoder, max(1, batches)) as lanes:
            run = _Run(writer, encoder, lanes, additions)
            run.prepare_and_store()
        return run.report(time.monotonic() - started)


@dataclass(slots=True, eq=False)
class _Item:
    """An addition on its way, the ``number``-th: what there is to embed of it, and what the model made of its pieces.

    Only with a ``fault`` it has no asset.
    """

    number: int
    key: str
    asset: Asset | None = None
    prepared: np.ndarray | None = None  # (C, H, W), until the model has it
    likeness: Likeness | None = None
    text: bytes = b""
    fault: str | None = None
    pieces: Sequence[Piece] = ()
    made: list[Embedded] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether nothing is to come any more."""
        return self.fault is not None or len(self.made) == len(self.pieces)

    def take(self, embedded: Embedded) -> None:
        """What the model made of the next piece, or why it did not take it."""
        self.made.append(embedded)
        if isinstance(embedded, str) and self.fault is None:
            self.fault = embedded


class _Run:
    """The state of one run of ``add``."""

    def __init__(self, writer: IndexWriter, encoder: Encoder, lanes: Lanes, additions: Sequence[Addition]) -> None:
        self._writer = writer
        self._encoder = encoder
        self._lanes = lanes
        self._additions = additions
        # PIL reads one picture in one thread at a time, and it may stand under several keys.
        self._reading = {id(addition.image): threading.Lock() for addition in additions}
        self._encode_texts: Fitting[np.ndarray] = Fitting(encoder.encode_texts, "texts")
        self._waiting: deque[_Item] = deque()
        self._pictures: list[_Item] = []
        self._passages: list[tuple[_Item, str]] = []
        self._sent: deque[tuple[list[_Item], Future[list[Embedded]]]] = deque()
        self._added = self._updated = self._pieces = 0
        self._skipped: list[SkippedAddition] = []

    def prepare_and_store(self) -> None:
        """Prepare everything ahead of the model, and store it batch by batch."""
        with closing(read_ahead(self._prepare, enumerate(self._additions))) as items:
            for item in items:
                self._take(item)
        self._send_pictures()
        self._embed_passages()
        while self._sent:
            self._receive()
        self._store()

    # -- in threads, ahead of the model ------------------------------------------------------------------------------

    def _prepare(self, numbered: tuple[int, Addition]) -> _Item:
        """The addition to the point where the model takes over; raises nothing for a bad one."""
        number, addition = numbered
        try:
            _check(addition)
            if addition.image is not None:
                return self._picture(number, addition, addition.image)
            return self._text(number, addition, _utf8(addition.text, "text"))
        except Exception as exc:  # whatever PIL or a caller's object does, the other additions are not its business
            return _Item(number, str(addition.key), fault=_reason(exc))

    def _picture(self, number: int, addition: Addition, image: Image) -> _Item:
        with self._reading[id(image)]:
            decoded = decode_opened(image, size=self._encoder.image_size)
            pixels = (image if image.mode == "RGB" else image.convert("RGB")).tobytes()
        digest = self._writer.digest.of(repr(image.size).encode() + pixels)
        asset = _asset(addition, Modality.IMAGE, len(pixels), digest)
        prepared = self._encoder.prepare(decoded.image)
        return _Item(number, addition.key, asset, prepared, likeness(decoded), pieces=[Piece(Modality.IMAGE)])

    def _text(self, number: int, addition: Addition, data: bytes) -> _Item:
        if not data:
            raise UsageError("its text is empty")
        asset = _asset(addition, Modality.TEXT, len(data), self._writer.digest.of(data))
        return _Item(number, addition.key, asset, text=data)

    # -- in the main thread ------------------------------------------------------------------------------------------

    def _take(self, item: _Item) -> None:
        self._waiting.append(item)
        if item.prepared is not None:
            self._pictures.append(item)
        elif item.fault is None:
            self._cut(item)
        if len(self._pictures) >= IMAGE_BATCH or (self._pictures and _overdue(self._pictures[0], item)):
            self._send_pictures()
        if self._passages and _overdue(self._passages[0][0], item):
            self._embed_passages()

    def _cut(self, item: _Item) -> None:
        """A text to passages, which go to the model with those of other texts."""
        encoder, stream = self._encoder, io.BytesIO(item.text)
        try:
            passages = list(
                iter_passages(stream, suffix=".txt", capacity=encoder.max_tokens, count_tokens=encoder.count_tokens)
            )
        except Exception as exc:  # as in _prepare; here, for the tokenizer is used by one thread at a time
            item.fault = _reason(exc)
            return
        item.pieces = [Piece(Modality.TEXT, passage.span, passage.text) for passage in passages]
        for passage in passages:
            self._passages.append((item, passage.text))
            if len(self._passages) >= TEXT_BATCH:
                self._embed_passages()

    def _embed_passages(self) -> None:
        passages, self._passages = self._passages, []
        made = encode_each(self._encode_texts, [text for _, text in passages])
        for (item, _), one in zip(passages, made, strict=True):
            item.take(one if isinstance(one, str) else (one, None))
        self._store()

    def _send_pictures(self) -> None:
        """Give the pictures that wait to the model, and store what it has made meanwhile of earlier ones."""
        items, self._pictures = self._pictures, []
        if items:
            self._sent.append((items, self._lanes.submit([i.prepared for i in items if i.prepared is not None])))
        for item in items:
            item.prepared = None
        # One batch more than there are lanes, so that none waits while another's is stored.
        while self._sent and (len(self._sent) > self._lanes.count + 1 or self._sent[0][1].done()):
            self._receive()

    def _receive(self) -> None:
        """Store the oldest batch of pictures that the model was given, once it is done with it."""
        items, result = self._sent.popleft()
        for item, embedded in zip(items, result.result(), strict=True):
            item.take(embedded)
        self._store()

    def _store(self) -> None:
        """Commit what is done, up to the first that is not."""
        sound: list[_Item] = []
        while self._waiting and self._waiting[0].done:
            item = self._waiting.popleft()
            if item.fault is None:
                sound.append(item)
            else:
                self._skipped.append(SkippedAddition(item.key, item.fault))
        if sound:
            new = self._commit({item.key: _put(item) for item in sound})
            self._added += new
            self._updated += len(sound) - new
            self._pieces += sum(len(item.pieces) for item in sound)

    def _commit(self, puts: Mapping[str, Put]) -> int:
        """Store these under their keys; return how many of the keys are new."""
        with self._writer.catalogue.read() as reader:
            replaced = reader.asset_ids(keys=list(puts))
        removed = [Remove(replaced)] if replaced else []
        self._writer.apply([*removed, *puts.values()])
        return len(puts) - len(replaced)

    def report(self, seconds: float) -> AddReport:
        """What was done."""
        return AddReport(self._added, self._updated, self._pieces, seconds, tuple(self._skipped))


# -- at the door -------------------------------------------------------------------------------------------------------


def _checked(additions: Sequence[Addition]) -> list[Addition]:
    """The additions, or a UsageError unless it is a sequence of them."""
    if not isinstance(additions, Sequence):
        raise UsageError(f"a list of Addition can be added, not one {type(additions).__name__}")
    for number, one in enumerate(additions):
        if not isinstance(one, Addition):
            raise UsageError(f"a list of Addition can be added; item {number} of this one is a {type(one).__name__}")
    return list(additions)


def _check(addition: Addition) -> None:
    """Raise UsageError for what is not whole; what an image or a text holds is seen later."""
    if not _utf8(addition.key, "key"):
        raise UsageError("it has no key; give it one by which you know it")
    if (addition.image is None) == (addition.text is None):
        raise UsageError("it is not exactly one of an image and a text; give one of them")
    if addition.image is not None:
        from PIL.Image import Image

        if not isinstance(addition.image, Image):
            raise UsageError(f"its image is a {type(addition.image).__name__}; give a PIL.Image.Image")


def _utf8(value: object, what: str) -> bytes:
    if not isinstance(value, str):
        raise UsageError(f"its {what} is a {type(value).__name__}; give a str")
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise UsageError(f"its {what} holds half of a surrogate pair at {exc.start}, which is no character") from exc


def _asset(addition: Addition, modality: Modality, size: int, digest: bytes) -> Asset:
    try:
        # As it will be read; later the caller may change what is theirs.
        metadata = json.loads(json.dumps(dict(addition.metadata))) if addition.metadata else {}
    except Exception as exc:
        raise UsageError(f"its metadata is not JSON: {exc}") from exc
    return Asset("", modality, size, time.time_ns(), digest, key=addition.key, metadata=metadata)


def _reason(exc: Exception) -> str:
    if isinstance(exc, MmsearchError):
        return str(exc)
    if isinstance(exc, MemoryError):
        return "it does not fit into memory"
    return f"it cannot be prepared for the model: {type(exc).__name__}: {exc}"


# -- on the way --------------------------------------------------------------------------------------------------------


def _overdue(oldest: _Item, latest: _Item) -> bool:
    """Whether the oldest of a batch has waited for long enough for the rest of it."""
    return latest.number - oldest.number >= _PATIENCE


def _put(item: _Item) -> Put:
    assert item.asset is not None
    made = [one for one in item.made if not isinstance(one, str)]
    vectors, tokens = [vector for vector, _ in made], [row for _, row in made]
    return Put(item.asset, item.pieces, np.stack(vectors), tokens=tokens, likeness=item.likeness)
