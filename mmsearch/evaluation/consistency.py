"""Whether a model answers alike when a question is asked in other words, or with a picture that was saved again."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.evaluation.agreement import blocks, jaccard, ranking

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Consistency:
    """What one change of the questions did. Shares are of ``questions``, cosine and overlap are means over them."""

    change: str
    questions: int
    """Those that the change leaves different: lower case does nothing to what has no capitals."""
    k: int
    cosine: float
    """Of a question and its changed self."""
    overlap: float
    """Common items of both top k, of all items in either (Jaccard)."""
    right_before: float
    """A right answer is in the top k of the question as it was."""
    right_after: float
    lost: float
    """It was in the top k and is not any more."""
    gained: float
    rank_before: float
    """Median place of the best right answer, from 1."""
    rank_after: float
    rank_change: float
    """Median of by how many places it moves, up or down."""

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def consistency(
    change: str,
    before: np.ndarray,
    after: np.ndarray,
    gallery: np.ndarray,
    right: tuple[np.ndarray, np.ndarray],
    *,
    k: int = 10,
) -> Consistency | None:
    """Compare the answers to questions ``before`` and ``after`` a change, both ``(Q, D)``; None without questions.

    Args:
        change: its name.
        gallery: ``(N, D)``, what is searched.
        right: what each question ``(Q,)`` and each item of the gallery ``(N,)`` is about. Each question needs at least
            one item that is about the same.
        k: how many answers are looked at.
    """
    if not len(before):
        return None
    k = min(k, len(gallery))
    overlaps, ranks_before, ranks_after = [], [], []
    for block in blocks(len(before)):
        old, new = ranking(before[block] @ gallery.T), ranking(after[block] @ gallery.T)  # (Q, N)
        overlaps.append(jaccard(old[:, :k], new[:, :k]))
        asked = right[0][block][:, None]  # (Q, 1)
        ranks_before.append((right[1][old] == asked).argmax(axis=1) + 1)
        ranks_after.append((right[1][new] == asked).argmax(axis=1) + 1)
    rank_before, rank_after = np.concatenate(ranks_before), np.concatenate(ranks_after)  # (Q,)
    found_before, found_after = rank_before <= k, rank_after <= k
    return Consistency(
        change=change,
        questions=len(before),
        k=k,
        cosine=float(np.einsum("qd,qd->q", before, after).mean()),
        overlap=float(np.concatenate(overlaps).mean()),
        right_before=float(found_before.mean()),
        right_after=float(found_after.mean()),
        lost=float((found_before & ~found_after).mean()),
        gained=float((~found_before & found_after).mean()),
        rank_before=float(np.median(rank_before)),
        rank_after=float(np.median(rank_after)),
        rank_change=float(np.median(np.abs(rank_after - rank_before))),
    )


# --- words


def _without_articles(text: str) -> str:
    """``A dog on the grass`` is ``dog on grass``."""
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", text, flags=re.IGNORECASE).split())


def _without_punctuation(text: str) -> str:
    """Hyphens part words, other marks go; apostrophes stay, for they belong to their word."""
    return " ".join(re.sub(r"[^\w\s']", " ", text).split())


def _as_photo(text: str) -> str:
    """``A dog.`` is ``a photo of a dog.``; only the case of an article changes, as the rest may be a name."""
    return "a photo of " + re.sub(r"^(?:An?|The)\b", lambda article: article[0].lower(), text)


REWORDINGS: Mapping[str, Callable[[str], str]] = {
    "lower case": str.lower,
    "upper case": str.upper,
    "no punctuation": _without_punctuation,
    "full stop": lambda text: text if text.endswith((".", "!", "?")) else text + ".",
    "no article": _without_articles,
    "a photo of": _as_photo,
}
"""Changes by rule that leave a caption meaning what it meant."""


def other_captions(captions: Sequence[Sequence[str]]) -> list[str | None]:
    """For every caption of every picture, in a row, the next one of the same picture; the last gets the first.

    ``[["a", "b"], ["c"]]`` gives ``["b", "a", None]``: what was said once has no other words.
    """
    return [
        some[(number + 1) % len(some)] if len(some) > 1 else None for some in captions for number in range(len(some))
    ]


# --- pictures


def _recompressed(image: Image) -> Image:
    from PIL import Image as images

    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=50)
    return images.open(stream).convert("RGB")


def _cropped(image: Image) -> Image:
    """The middle nine tenths of each side."""
    left, top = image.width // 20, image.height // 20
    return image.crop((left, top, image.width - left, image.height - top))


def _mirrored(image: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.mirror(image)


def _brighter(image: Image) -> Image:
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(image).enhance(1.2)


def _halved(image: Image) -> Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)))


ALTERATIONS: Mapping[str, Callable[[Image], Image]] = {
    "JPEG quality 50": _recompressed,
    "crop to 90 %": _cropped,
    "mirrored": _mirrored,
    "20 % brighter": _brighter,
    "half the size": _halved,
}
"""Changes that leave a picture showing what it showed."""
