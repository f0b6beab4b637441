"""From prepared pictures and texts to what is stored of them: the model, and a reranker's compressor, on one batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from indexer.encoders import Encoder, PatchEncoder, has_patches
from indexer.encoders.precision import AUTO, FLOAT32, INT8, precision_of
from indexer.errors import MmsearchError, ModelError, ModelMismatch, UsageError
from indexer.fitting import Fitting
from indexer.index import Index
from indexer.tokens import Compressor, pack_checked
from indexer.types import VISUAL

if TYPE_CHECKING:
    from indexer.writer import IndexWriter

DEFAULT_PRECISION = "MMSEARCH_PRECISION"
"""Names the precision of a new index for which nobody asks for one."""

T = TypeVar("T")
Embed = Callable[[list[np.ndarray]], list[tuple[np.ndarray, np.ndarray | None]]]
"""Prepared pictures, each ``(C, H, W)``, to the vector ``(D,)`` of each and its packed tokens, if they are stored."""


def check_same_model(index: Index, encoder: Encoder) -> None:
    """Raise ModelMismatch unless ``encoder`` made the vectors of ``index``."""
    made = index.manifest
    if made.fingerprint == encoder.fingerprint:
        return
    if made.encoder != encoder.name:
        difference, way_out = f"by {made.encoder}, not by {encoder.name}", f"or use --model {made.encoder}"
    else:
        difference, way_out = f"by {made.encoder} with other weights than the ones here", "and index into that"
    raise ModelMismatch(
        f"the index in {index.folder} was made {difference}, and vectors of two models cannot be compared; nothing was "
        f"changed: name another folder with --index, {way_out}"
    )


def check_precision(index: Index, asked: str | None) -> None:
    """Raise UsageError if the pictures of ``index`` are computed in another precision than was asked for."""
    held = index.manifest.precision
    if held is not None and asked not in (None, AUTO, held):
        raise UsageError(
            f"the pictures of the index in {index.folder} are computed in {held}, and stay so; name another folder for "
            f"{asked}"
        )


def settle_precision(
    index: Index, encoder: Encoder, asked: str | None = None, say: Callable[[str], None] = lambda _: None
) -> None:
    """Let ``encoder`` compute pictures in the precision of ``index``, which is decided now if it was not before.

    Call it while the index is open for writing, before the first picture is embedded. ``say`` is told where this
    machine computes in float32 what the index has in fewer bits.

    Args:
        asked: one of ``precision.PRECISIONS``, or ``auto`` for what the index has, or the fastest; None for ``auto``,
            but a new index has what ``MMSEARCH_PRECISION`` says, if it says something.

    Raises:
        UsageError: the index has another precision, or the model cannot be had in the one that was asked for.
    """
    check_precision(index, asked)
    held = index.manifest.precision
    own = precision_of(encoder)
    if held is None:
        chosen = asked or os.environ.get(DEFAULT_PRECISION) or AUTO
        if own is None and chosen not in (AUTO, FLOAT32):
            raise UsageError(f"the model {encoder.name} computes in float32 alone, not in {chosen}")
        decided = FLOAT32 if own is None else own.decide(chosen)
        index.keep_precision(decided, own.ranges if own is not None and decided == INT8 else {})
        return
    ranges = index.ranges() if held == INT8 else {}
    if own is None or own.is_settled(held, ranges):
        return
    if own.adopt(held, ranges).precision != held:
        say(f"pictures are computed in float32 here: {own.verdict.why}")
    elif own.ranges and not ranges:  # lost, and observed again
        index.keep_precision(held, own.ranges)


def embedding(
    writer: IndexWriter, encoder: Encoder, compressor: Compressor | None, say: Callable[[str], None] = lambda _: None
) -> Embed:
    """How pictures are embedded for this index: with tokens if it holds those of ``compressor`` or has no pictures.

    In batches that fit into memory; ``say`` is told when they are made smaller.

    Raises:
        ModelMismatch: the index holds other tokens, or ``compressor`` reads patches of another encoder.
    """
    return embed_with(encoder, adopted(writer, encoder, compressor), say)


def adopted(writer: IndexWriter, encoder: Encoder, compressor: Compressor | None) -> Compressor | None:
    """``compressor`` if the index takes its tokens, having no others and no picture without, else None.

    Raises:
        ModelMismatch: as ``embedding`` does.
    """
    if compressor is None:
        return None
    check_reads_patches_of(encoder, compressor)
    held = writer.token_format
    if held != compressor.format:
        with writer.catalogue.read() as reader:
            counts = reader.counts()
        pictures = sum(counts[f"items:{m}"] for m in VISUAL)
        if pictures:
            if held is None:
                return None
            raise ModelMismatch(
                f"the index in {writer.folder} holds image tokens of other weights ({held.name}) than the ones here "
                f"({compressor.format.name}); nothing was changed: 'mmsearch index --add-tokens' replaces them, "
                "--no-tokens indexes new pictures without"
            )
        writer.adopt_tokens(compressor.format)
    return compressor


def embed_with(
    encoder: Encoder, compressor: Compressor | None, say: Callable[[str], None] = lambda _: None
) -> Fitting[tuple[np.ndarray, np.ndarray | None]]:
    """How pictures are embedded by ``encoder``, with tokens of ``compressor`` if there is one.

    Raises:
        ModelMismatch: ``compressor`` reads patches of another encoder.
    """
    reader = None if compressor is None else check_reads_patches_of(encoder, compressor)

    def embed(prepared: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        if compressor is None or reader is None:
            return [(vector, None) for vector in encoder.encode_prepared(np.stack(prepared))]
        vectors, patches = reader.encode_prepared_patches(np.stack(prepared))
        return list(zip(vectors, pack_checked(compressor, patches), strict=True))

    return Fitting(embed, "pictures", say)


def check_reads_patches_of(encoder: Encoder, compressor: Compressor) -> PatchEncoder:
    """Return ``encoder``, or raise ModelMismatch unless ``compressor`` reads its patches."""
    if not has_patches(encoder) or compressor.encoder != encoder.fingerprint:
        raise ModelMismatch(
            f"{compressor.format.name} makes image tokens from the patches of another model than {encoder.name}; "
            "nothing was changed: use the model that it was trained with, or --no-tokens"
        )
    return encoder


def encode_each(encode: Callable[[list[Any]], Iterable[T]], batch: list[Any]) -> list[T | str]:
    """What ``encode`` makes of a batch, one result each; where the batch fails, each goes alone, with the reason in the
    place of the ones that fail.

    Raises:
        ModelError: every one of several fails, so it is the model and not the pictures.
    """
    if not batch:
        return []
    try:
        return list(encode(batch))
    except Exception as exc:
        if not isinstance(exc, (ModelError, RuntimeError, ValueError)):
            raise
        first = exc
    results: list[T | str] = []
    for one in batch:
        try:
            results.extend(encode([one]))
        except (ModelError, RuntimeError, ValueError) as exc:
            results.append(f"the model cannot take it: {exc}")
    if len(batch) > 1 and all(isinstance(result, str) for result in results):
        if isinstance(first, MmsearchError):
            raise first
        raise ModelError(f"the model fails on every file: {first}") from first
    return results
