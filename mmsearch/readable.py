"""What is read in a picture, or on a page, that was found by its look: the text in it that is nearest to the question.

It is looked up for what is shown, and not only found among the first texts: so an answer says the same in any list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from indexer.reader import Reader
from indexer.types import Modality
from mmsearch.things import Thing, thing_of


def with_texts(reader: Reader, found: Sequence[Thing], score: Callable[[np.ndarray], np.ndarray]) -> list[Thing]:
    """The things, those without a text with the best that they have; at the same score with the older one.

    Args:
        score: how near the texts at rows ``(R,)`` are to the question, ``(R,)``.
    """
    silent = [one.best.item for one in found if one.worded is None]
    texts = reader.texts_beside([item.id for item in silent if thing_of(item) != item.id])
    if not texts:
        return list(found)
    nearest = {one: rows[int(np.argmax(score(np.array(rows))))] for one, rows in texts.items()}
    items = reader.items_at(Modality.TEXT, sorted(nearest.values()))
    return [replace(one, worded=items[nearest[i]]) if (i := one.best.item.id) in nearest else one for one in found]
