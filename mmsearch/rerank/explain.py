"""From words and a picture to an explanation: both are encoded as for a search, and the reranker looks at them."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer.encoders import Encoder, PlacedEncoder
from indexer.errors import DecodeError, ModelError, UsageError
from indexer.types import Modality
from mmsearch import calibration
from mmsearch.rerank import LookingReranker, PictureSide, Reranker
from mmsearch.rerank.explanation import (
    METHOD,
    METHODS,
    Explanation,
    attended,
    hidden,
    looks,
    missed,
    spread,
    whole_words,
)
from mmsearch.rerank.stage import DECIMALS, SecondStage

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A picture to explain: its RGB pixels, which may be fewer than ``size`` says, and where it comes from."""

    image: Image
    path: str | None
    size: tuple[int, int]


def show(picture: str | os.PathLike[str] | Image, size: int) -> Shown:
    """Open a picture, given as one or by its path, for a model that takes ``size`` pixels a side.

    Raises:
        UsageError: there is no such file.
        DecodeError: it is no picture.
    """
    from indexer.decode import decode_image, decode_opened

    if not isinstance(picture, (str, os.PathLike)):
        opened = decode_opened(picture, size=size)
        return Shown(opened.image, None, (opened.width, opened.height))
    path = os.fspath(picture)
    try:
        decoded = decode_image(Path(path).read_bytes(), size=size)
    except OSError as exc:
        raise UsageError(f"cannot read the picture {path!r}: {exc.strerror}") from exc
    except DecodeError as exc:
        raise DecodeError(f"cannot explain {path!r}: {exc}") from exc
    return Shown(decoded.image, path, (decoded.width, decoded.height))


def explain_alone(
    encoder: Encoder, reranker: Reranker | None, text: str, shown: Shown, method: str = METHOD
) -> Explanation:
    """What ``explain`` says where there is no index: a model without a calibration then leads to no probability.

    Raises:
        UsageError, ModelError: as ``explain``.
    """
    if reranker is None:
        raise no_reranker(encoder)
    lines = None if encoder.calibration is None else calibration.read(encoder.calibration)
    second = SecondStage(reranker, encoder, threading.Lock())
    line = None if lines is None else lines[Modality.TEXT, Modality.IMAGE]
    return explain(second, text, shown, method, asked=Modality.TEXT, line=line)


def no_reranker(encoder: Encoder) -> UsageError:
    """Why nothing can be explained, and what to do."""
    return UsageError(
        f"there is no reranker for {encoder.name}, and it is the reranker that explains; name the folder of one"
    )


def explain(
    second: SecondStage, text: str, shown: Shown, method: str, *, asked: Modality, line: calibration.Line | None
) -> Explanation:
    """Which parts of ``shown`` the words of ``text`` look at.

    Args:
        method: how the heat of all words together is made, one of ``METHODS``.
        asked: which of the two is the question; the calibration of the other direction may differ.
        line: the first stage's log-odds for that direction; None leaves the probability out.

    Raises:
        UsageError: there is no such method, the reranker or the model cannot explain, or there is no word.
        ModelError: the reranker fails, or does not say where its words look.
    """
    if method not in METHODS:
        raise UsageError(f"{method!r} is no way to explain; there are {', '.join(METHODS)}")
    reranker, encoder = second.reranker, second.encoder
    if not isinstance(reranker, LookingReranker):
        raise UsageError(f"the reranker {reranker.name} cannot explain: it does not say where words look")
    if not isinstance(encoder, PlacedEncoder):
        raise UsageError(f"{encoder.name} cannot explain: it does not say which words its token states are of")
    read, pieces = encoder.read_text(text)
    found = whole_words(read, pieces)
    if not found:
        raise UsageError(f"there is no word to explain in {text!r}")
    row, words, image_row, picture = second.encode_pair(text, shown.image)
    if words.states is None or picture.tokens is None:
        raise UsageError(f"the reranker {reranker.name} cannot explain: it reads no token states and no image tokens")
    if len(words.states) != len(pieces):
        raise ModelError(f"{encoder.name} gave {len(words.states)} token states for {len(pieces)} tokens of {text!r}")
    look = reranker.look(words, picture)
    logit = round(look.logit, DECIMALS)
    known = looks(found, look.attention, look.weights)
    if method == "attention":
        heat = spread(attended(known))
    else:
        parts = [picture, *map(PictureSide, hidden(picture.tokens))]
        pairs = np.stack([np.zeros(len(parts), np.int64), np.arange(len(parts))], axis=1)
        logits = reranker.score([words], parts, pairs)
        heat = missed(float(logits[0]), logits[1:])
    likely = None
    if line is not None:
        answered = Modality.TEXT if asked is Modality.IMAGE else Modality.IMAGE
        dual = line.gain * np.sum(image_row.astype(np.float64) * row, keepdims=True) + line.offset  # (1,)
        question, answer = (row, image_row) if asked is Modality.TEXT else (image_row, row)
        fused = second.log_odds(asked, answered, question, answer[None], dual, np.array([logit]))
        likely = calibration.probability(float(fused[0]))
    return Explanation(
        question=text,
        picture=shown.path,
        size=shown.size,
        probability=likely,
        logit=logit,
        method=method,
        seen=encoder.seen(*shown.image.size),
        words=known,
        heat=heat,
        image=shown.image,
    )
