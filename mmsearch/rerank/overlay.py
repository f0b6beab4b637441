"""An explanation as a picture: the heat of all words over the photograph, below it one small panel for each word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from indexer.encoders import Box
    from mmsearch.rerank.explanation import Explanation

LARGE = 800
"""Pixels of the longer side of the large picture."""
COLUMNS, ROWS = 4, 2
"""Of small panels: there are as many as words, and at most so many."""
NARROWEST = 560
"""Pixels of the sheet's width at least, so that words have room."""
MARGIN, LINE = 12, 24
LETTERS = 16
PAPER, INK = (255, 255, 255), (20, 20, 20)
COLOURS = np.array(
    [(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], np.float64
)
"""Anchors, evenly spaced, of matplotlib's `inferno` (van der Walt and Smith 2015, CC0): its lightness only rises, so
that it can be read whatever colours one sees."""
FAINTEST, STRONGEST = 0.25, 0.8
"""How much of a pixel is heat where there is none and where there is most; the rest is the photograph, in grey since
its colours would be taken for heat."""


def draw(explanation: Explanation) -> Image.Image:
    """The whole sheet, RGB."""
    large = _within(explanation.image, LARGE, LARGE)
    width = max(large.width, NARROWEST) + 2 * MARGIN
    cell = (width - (COLUMNS + 1) * MARGIN) // COLUMNS
    small = _within(explanation.image, cell, cell)
    strongest = sorted(explanation.words, key=lambda word: -word.weight)[: COLUMNS * ROWS]
    rows = -(-len(strongest) // COLUMNS)
    top = MARGIN + LINE + large.height + MARGIN
    sheet = Image.new("RGB", (width, top + rows * (LINE + small.height + MARGIN)), PAPER)
    said = "" if explanation.probability is None else f"{explanation.probability:.2f}  "
    _write(sheet, said + explanation.question, MARGIN, MARGIN, width - 2 * MARGIN)
    sheet.paste(heated(large, explanation.heat, explanation.seen), ((width - large.width) // 2, MARGIN + LINE))
    for number, word in enumerate(strongest):
        row, column = divmod(number, COLUMNS)
        x, y = MARGIN + column * (cell + MARGIN), top + row * (LINE + small.height + MARGIN)
        _write(sheet, f"{word.word}  {100 * word.weight:.0f} %", x, y, cell)
        sheet.paste(heated(small, word.heat, explanation.seen), (x, y + LINE))
    return sheet


def heated(picture: Image.Image, heat: np.ndarray, seen: Box) -> Image.Image:
    """``picture`` in grey under a heat map ``(S, S)``, which lies over its part ``seen``; beside it is no heat."""
    left, top, right, bottom = (
        round(edge * length) for edge, length in zip(seen, (*picture.size, *picture.size), strict=True)
    )
    patch = Image.fromarray((heat / heat.max()).astype(np.float32))
    smooth = patch.resize((max(right - left, 1), max(bottom - top, 1)), Image.Resampling.BICUBIC)
    over = Image.new("F", picture.size)
    over.paste(smooth, (left, top))
    warmth = np.clip(np.asarray(over), 0, 1)[..., None]  # (H, W, 1)
    grey = np.asarray(picture.convert("L"), np.float64)[..., None]
    share = FAINTEST + (STRONGEST - FAINTEST) * warmth
    mixed = (1 - share) * grey + share * coloured(warmth[..., 0])
    return Image.fromarray(mixed.round().astype(np.uint8))


def coloured(warmth: np.ndarray) -> np.ndarray:
    """Numbers ``(…)`` between 0 and 1 to colours ``(…, 3)`` between 0 and 255, interpolated between the anchors."""
    anchors = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(warmth, anchors, COLOURS[:, channel]) for channel in range(3)], axis=-1)


def _within(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture, larger or smaller, so that it just fits."""
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def _write(sheet: Image.Image, text: str, x: int, y: int, width: int) -> None:
    """One line, cut with an ellipsis at ``width`` pixels."""
    font = ImageFont.load_default(LETTERS)
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text += "…"
    ImageDraw.Draw(sheet).text((x, y), text, INK, font)
