"""The second stage of a search: what a reranker is given, and what becomes of the first stage's order.

Of each kind, the first stage's best are the *candidates*. Those that the reranker scores get new log-odds. What it does
not score keeps those of the first stage, and may not gain by that: see ``fused_order``.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from indexer.encoders import Encoder, PatchEncoder
from indexer.errors import ModelError
from indexer.index import Snapshot
from indexer.tokens import pack_checked, unpack
from indexer.types import VISUAL, Item, Modality, Span
from mmsearch.calibration import line_for
from mmsearch.rerank import PictureSide, Reranker, TextSide
from mmsearch.rerank.load import check_reads

if TYPE_CHECKING:
    from PIL.Image import Image

STATES_BYTES = 128_000_000
"""Token states of the texts that were candidates lately; a caption of `mini` has 20 kB, so these are some thousands."""
DECIMALS = 4
"""Of a logit that count: sums in float32 differ in their last bits by place in a batch, and equal pictures must tie."""


class SecondStage:
    """A reranker, and the encoder whose token states and patches it reads. May be used from several threads.

    Args:
        encoding: held while the encoder works, which takes one thread at a time.

    Raises:
        ModelMismatch: the reranker reads the patches of another encoder.
    """

    def __init__(self, reranker: Reranker, encoder: Encoder, encoding: threading.Lock) -> None:
        check_reads(reranker, encoder)
        self.reranker = reranker
        self.encoder = encoder
        self._encoding = encoding
        self._states: OrderedDict[str, np.ndarray] = OrderedDict()
        self._states_bytes = 0

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[np.ndarray, TextSide]]:
        """The vector ``(D,)`` of each text, as the encoder gives it, and its side of a pair; ``encoding`` is held."""
        if self.reranker.compressor is None:
            return [(row, TextSide(text)) for row, text in zip(self.encoder.encode_texts(texts), texts, strict=True)]
        rows, states = self._patch_encoder.encode_text_states(texts)
        return [(row, TextSide(text, one)) for row, text, one in zip(rows, texts, states, strict=True)]

    def encode_images(self, images: Sequence[Image]) -> list[tuple[np.ndarray, PictureSide]]:
        """The vector ``(D,)`` of each picture and its side of a pair; ``encoding`` is held.

        Its tokens are what the index would keep of it, so that a pair has one score, whichever side asks.
        """
        from indexer.reading import IMAGE_BATCH  # and Pillow, which words do without

        compressor = self.reranker.compressor
        if compressor is None:
            rows = self.encoder.encode_images(images)
            return [(row, PictureSide(image=image)) for row, image in zip(rows, images, strict=True)]
        encoded: list[tuple[np.ndarray, PictureSide]] = []
        for start in range(0, len(images), IMAGE_BATCH):
            batch = np.stack([self.encoder.prepare(image) for image in images[start : start + IMAGE_BATCH]])
            rows, patches = self._patch_encoder.encode_prepared_patches(batch)
            tokens = unpack(pack_checked(compressor, patches), compressor.format)  # (B, T, W)
            encoded += [(row, PictureSide(one)) for row, one in zip(rows, tokens, strict=True)]
        return encoded

    def encode_pair(self, text: str, image: Image) -> tuple[np.ndarray, TextSide, np.ndarray, PictureSide]:
        """The vector ``(D,)`` and the side of a text, and those of a picture."""
        with self._encoding:
            (row, words), (image_row, picture) = self.encode_texts([text])[0], self.encode_images([image])[0]
        return row, words, image_row, picture

    def stored_side(self, snapshot: Snapshot, row: int, item: Item) -> PictureSide | None:
        """The side of a picture or clip of the index that asks; None if there is none."""
        if item.modality not in VISUAL or self.obstacle(snapshot) is not None:
            return None
        sides, _ = self._picture_sides(snapshot, np.array([row]), {row: item}, item.modality)
        return sides[0] if sides else None

    def obstacle(self, snapshot: Snapshot) -> str | None:
        """Why no picture of the index can be reranked, and what to do; None if some may be."""
        compressor, held = self.reranker.compressor, snapshot.state.tokens
        if compressor is None or held == compressor.format:
            return None
        if held is None:
            return "the index holds no image tokens; 'mmsearch index --add-tokens' makes them"
        return (
            f"the image tokens in the index are those of {held.name}, not those of {self.reranker.name} as it is here; "
            "'mmsearch index --add-tokens' replaces them"
        )

    def lack(self, missing: int, of: int) -> str:
        """What it says that so many of the candidates have no score."""
        if self.reranker.compressor is None:
            return f"{missing:,} of the {of:,} best pictures cannot be opened"
        return f"{missing:,} of the {of:,} best pictures have no image tokens; 'mmsearch index --add-tokens' makes them"

    def logits(
        self,
        snapshot: Snapshot,
        asked: TextSide | PictureSide,
        rows: np.ndarray,
        items: Mapping[int, Item],
        answered: Modality,
    ) -> np.ndarray:
        """How well what was asked fits each of the items at ``rows`` ``(C,)``: ``(C,)``, NaN for what has no score.

        A text is held against pictures and a picture against texts.

        Raises:
            ModelError: the reranker fails; so does whatever else it raises.
        """
        found = np.full(len(rows), np.nan)
        if isinstance(asked, PictureSide):
            texts = self._text_sides([items[row].text or "" for row in rows.tolist()])
            pairs = np.stack([np.arange(len(rows)), np.zeros(len(rows), np.int64)], axis=1)
            return self._score(texts, [asked], pairs)
        pictures, there = self._picture_sides(snapshot, rows, items, answered)
        if there.any():
            pairs = np.stack([np.zeros(len(pictures), np.int64), np.arange(len(pictures))], axis=1)
            found[there] = self._score([asked], pictures, pairs)
        return found

    def log_odds(
        self,
        asked: Modality,
        answered: Modality,
        question: np.ndarray,
        answers: np.ndarray,
        dual: np.ndarray,
        logits: np.ndarray,
    ) -> np.ndarray:
        """Those of a match by all that is known of pairs: ``(C,)``.

        Args:
            question: its vector ``(D,)``; ``answers`` likewise ``(C, D)``.
            dual: log-odds of the first stage ``(C,)``.
            logits: of the reranker ``(C,)``.
        """
        fused, bank = line_for(self.reranker.calibration, asked, answered), self.reranker.bank
        if bank is None:
            return fused.log_odds(dual, logits)
        near = bank.nearness(answers, asked).round(DECIMALS)
        return fused.log_odds(dual, logits, near, self.nearness(question, answered))

    def nearness(self, question: np.ndarray, answered: Modality) -> float:
        """How near a question ``(D,)`` is to the reranker's bank of such answers; 0 without a bank."""
        bank = self.reranker.bank
        return 0.0 if bank is None else float(bank.nearness(question[None], _bank_of(answered))[0])

    def _score(self, texts: Sequence[TextSide], pictures: Sequence[PictureSide], pairs: np.ndarray) -> np.ndarray:
        logits = np.asarray(self.reranker.score(texts, pictures, pairs), dtype=np.float64)
        opens = self.reranker.compressor is None  # and may have found a picture gone
        if logits.shape != (len(pairs),) or np.isinf(logits).any() or (np.isnan(logits).any() and not opens):
            raise ModelError(
                f"the reranker {self.reranker.name} gave unusable logits of shape {logits.shape} for {len(pairs)} pairs"
            )
        return logits.round(DECIMALS)

    def _picture_sides(
        self, snapshot: Snapshot, rows: np.ndarray, items: Mapping[int, Item], answered: Modality
    ) -> tuple[list[PictureSide], np.ndarray]:
        """The sides of those pictures at ``rows`` ``(C,)`` that have one, and which these are ``(C,)``."""
        if self.reranker.compressor is None:
            found = [items[row] for row in rows.tolist()]
            sides = [_side(item) for item in found if item.asset.path]
            return sides, np.array([bool(item.asset.path) for item in found])
        tokens, there = snapshot.tokens(rows, answered)
        return [PictureSide(one) for one in tokens[there]], there

    def _text_sides(self, texts: Sequence[str]) -> list[TextSide]:
        """The sides of texts, of which those that were asked for lately are kept."""
        if self.reranker.compressor is None:
            return [TextSide(text) for text in texts]
        with self._encoding:
            new = [text for text in dict.fromkeys(texts) if text not in self._states]
            if new:
                for text, one in zip(new, self._patch_encoder.encode_text_states(new)[1], strict=True):
                    self._states[text] = one
                    self._states_bytes += one.nbytes
            for text in texts:
                self._states.move_to_end(text)
            sides = [TextSide(text, self._states[text]) for text in texts]
            while self._states_bytes > STATES_BYTES:
                self._states_bytes -= self._states.popitem(last=False)[1].nbytes
        return sides

    @property
    def _patch_encoder(self) -> PatchEncoder:
        assert isinstance(self.encoder, PatchEncoder)  # checked by the constructor
        return self.encoder


def _side(item: Item) -> PictureSide:
    """Where a reranker that reads no tokens gets the picture of an item from."""
    if item.asset.modality is Modality.IMAGE:
        return PictureSide(path=item.asset.path)
    return PictureSide(path=item.asset.path, span=item.span or Span(), kind=item.asset.modality)


def _bank_of(modality: Modality) -> Modality:
    """Among which of a bank's vectors a piece belongs: a clip among pictures."""
    return Modality.IMAGE if modality in VISUAL else Modality.TEXT


def fused_order(first: np.ndarray, again: np.ndarray) -> np.ndarray:
    """The log-odds ``(N,)`` by which N answers of one kind stand in the list after the first C of them were reranked.

    Args:
        first: those of the first stage ``(N,)``, falling.
        again: those that the reranker led to ``(C,)``, NaN for a candidate that it did not score.

    A reranker spreads log-odds: it finds most candidates out. What it did not score has not been tried, and would rise
    past what has been; that must not count as merit. Therefore:

    - A candidate without a score keeps its log-odds, for they are those of a match, at the same prior; but it stays
      below every candidate that the first stage put before it and that the reranker holds for a match (above 0, more
      likely than not). Past what the reranker rejected it may go.
    - What lies beyond the candidates stays behind all of them: as a whole it is lowered until its first is below the
      last candidate. So the list of k answers is the beginning of every longer one.

    If nothing was scored, everything is as it was.

        first 2, 1, 0, -1, again 3, -5, NaN: the third stays 0 and passes the second, the fourth becomes just below -5
    """
    scored = ~np.isnan(again)
    if not scored.any():
        return first
    confirmed = np.minimum.accumulate(np.where(scored & (again > 0), again, np.inf))  # (C,) the lowest one so far
    kept = np.minimum(first[: len(again)], np.nextafter(confirmed, -np.inf))
    candidates = np.where(scored, again, kept)
    beyond = first[len(again) :]
    highest = np.nextafter(candidates.min(), -np.inf)
    if len(beyond) and beyond[0] > highest:
        beyond = highest - (beyond[0] - beyond)
    return np.concatenate([candidates, beyond])
