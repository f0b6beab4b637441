"""Describing pictures by retrieval: the captions of other pictures that fit best, and how good they are as captions.

Measured as captioning is: by words in common with what people said of the picture. Texts are split here into lower-case
words without punctuation; the published scores of Flickr8k and COCO were made with the tokeniser of the Penn Treebank
and differ a little, so compare with those to the first digit only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from indexer.errors import UsageError
from mmsearch.evaluation.agreement import blocks, ranking

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CANDIDATES = 50
"""Captions of which consensus chooses one: what is further down the list hardly describes the picture any more."""
ORDERS = (1, 2, 3, 4)
"""Lengths of the n-grams of BLEU and CIDEr."""
_BETA = 1.2  # how much ROUGE-L prefers recall, as in the evaluation of COCO captions (Chen et al. 2015, section 3.3)
_SIGMA = 6.0  # of CIDEr-D's penalty on length (Vedantam et al. 2015, section 6)

Ngram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """How good a caption for each picture is; all from 0 to 1 but CIDEr-D, which goes from 0 to 10."""

    bleu: tuple[float, float, float, float]
    rouge_l: float
    cider_d: float


@dataclass(frozen=True, slots=True)
class Description:
    """A caption for each of N pictures, chosen in two ways, each judged against everything people said of it."""

    pictures: int
    corpus: int
    candidates: int
    top: CaptionScores
    """The caption with the highest score."""
    consensus: CaptionScores
    """Of the best ``candidates``, the one most like the others."""
    top_captions: tuple[str, ...]
    consensus_captions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return asdict(self)


def describe(
    images: np.ndarray,
    references: Sequence[Sequence[str]],
    corpus: Sequence[str],
    corpus_vectors: np.ndarray,
    *,
    candidates: int = CANDIDATES,
) -> Description:
    """Choose a caption of ``corpus`` for each picture, and score it against what was really said of the picture.

    Args:
        images: ``(N, D)`` unit rows.
        references: the captions of each of the N pictures.
        corpus: T texts to choose from; those of the same pictures should not be among them.
        corpus_vectors: ``(T, D)`` unit rows.
        candidates: of how many of the best the consensus is taken.

    Raises:
        UsageError: no picture, an empty corpus, or a picture without references.
    """
    if not len(images) or not corpus:
        raise UsageError(f"{len(images)} pictures and a corpus of {len(corpus)} texts: there is nothing to describe")
    if not all(references):
        raise UsageError("a picture has no caption to compare a description with")
    candidates = min(candidates, len(corpus))
    vectors = cider_vectors(corpus)
    top, agreed = [], []
    for block in blocks(len(images)):
        for best in ranking(images[block] @ corpus_vectors.T, candidates):  # (K,)
            top.append(corpus[best[0]])
            agreed.append(corpus[best[consensus(vectors[best])]])
    return Description(
        pictures=len(images),
        corpus=len(corpus),
        candidates=candidates,
        top=caption_scores(top, references),
        consensus=caption_scores(agreed, references),
        top_captions=tuple(top),
        consensus_captions=tuple(agreed),
    )


def consensus(vectors: csr_matrix) -> int:
    """The number of the text most like all the others; the first of equals.

    This is the consensus of Devlin et al. (2015, nearest-neighbour captioning) with CIDEr for likeness. Of the
    likenesses ((1, .5, 0), (.5, 1, .2), (0, .2, 1)) the second text has most in common with the rest: 0.7.

    Args:
        vectors: rows ``(K, V)`` whose products are likenesses, best candidate first.
    """
    likeness = (vectors @ vectors.T).toarray()  # (K, K)
    np.fill_diagonal(likeness, 0)
    return int(likeness.sum(axis=1).round(9).argmax())  # rounded: sums in another order must not part equals


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """BLEU-1 to 4, ROUGE-L and CIDEr-D of a caption for each picture against all references of the picture."""
    rouge = [
        rouge_l(words(text), [words(one) for one in some]) for text, some in zip(captions, references, strict=True)
    ]
    return CaptionScores(
        bleu=bleu(captions, references),
        rouge_l=float(np.mean(rouge)),
        cider_d=float(np.mean(cider_d(captions, references))),
    )


def words(text: str) -> list[str]:
    """``A man's best friend, well-known!`` is ``a man's best friend well known``."""
    return re.findall(r"\w+(?:'\w+)*", text.lower())


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 of all captions together, from 0 to 1, without smoothing (Papineni et al. 2002).

    ``the the the cat`` against ``the cat sat down`` shares two of four words and one of three pairs: BLEU-1 is 0.5 and
    BLEU-2 the square root of 1/2 * 1/3, 0.408.
    """
    from sacrebleu.metrics.bleu import BLEU

    split = [[" ".join(words(one)) for one in some] for some in references]
    most = max(map(len, split))
    streams = [[some[number] if number < len(some) else None for some in split] for number in range(most)]
    found = BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(
        [" ".join(words(text)) for text in captions],
        cast("list[list[str]]", streams),  # the types of sacrebleu leave out what its documentation allows: None
    )
    one, two, three, four = (
        BLEU.compute_bleu(
            found.counts, found.totals, found.sys_len, found.ref_len, smooth_method="none", max_ngram_order=order
        ).score
        for order in ORDERS
    )
    return min(one / 100, 1.0), min(two / 100, 1.0), min(three / 100, 1.0), min(four / 100, 1.0)  # 100.00000000000004


def rouge_l(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption, as words, against several (Lin 2004, section 3), from 0 to 1.

    With the longest common subsequence L, precision is the best L / length of the caption, recall the best L / length
    of the reference, over all references; the score is (1 + b^2) P R / (R + b^2 P) with b = 1.2.

    ``a dog runs fast`` against ``a brown dog runs``: L is 3, P = R = 0.75, and so is the score.
    """
    if not caption:
        return 0.0
    pairs = [(_common_length(caption, one), len(one)) for one in references if one]
    precision = max((common / len(caption) for common, _ in pairs), default=0.0)
    recall = max((common / length for common, length in pairs), default=0.0)
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Of the longest common subsequence, row by row of the usual table."""
    above = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for place, other in enumerate(second):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[-1]))
        above = row
    return above[-1]


# --- CIDEr


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption against the references of its picture, from 0 to 10 (Vedantam et al. 2015, section 6).

    For n = 1 to 4, a text is the vector g of its n-gram counts, each times log(N / pictures of whose references one
    holds it). Against one reference,

        CIDEr-D_n = 10 exp(-(difference of lengths)^2 / 72) min(g_c, g_r) . g_r / (|g_c| |g_r|)

    and the score is the mean over n and over the references. What every picture is called weighs nothing, so one
    picture alone always scores 0.

    Two pictures, ``red car`` and ``blue sky``, described in just these words: of both n = 1 and n = 2 the cosine is 1
    and of the longer ones 0, so each scores 10 * (1 + 1 + 0 + 0) / 4 = 5.
    """
    sets = [[_ngrams(words(one)) for one in some] for some in references]
    documents = Counter(gram for some in sets for gram in set().union(*some))
    weight = _Weights(documents, len(sets))
    return [
        float(np.mean([_cider_d_of_pair(_ngrams(words(text)), one, weight) for one in some]))
        for text, some in zip(captions, sets, strict=True)
    ]


def cider_vectors(texts: Sequence[str]) -> csr_matrix:
    """Rows ``(T, V)`` whose products are CIDEr (section 3), from 0 to 1, each text its own document.

    Each order of n-grams takes its own columns and a quarter of the row, so that one product is the mean of the four
    cosines. ``red car``, ``red sky`` and ``green car``: the first two share ``red``, which weighs log(3/2) as ``car``
    does; ``sky`` weighs log 3. Their cosine of single words is 0.405^2 / (0.573 * 1.171) = 0.245, their product 0.061.
    """
    from scipy.sparse import csr_matrix

    grams = [_ngrams(words(text)) for text in texts]
    weight = _Weights(Counter(gram for some in grams for gram in some), len(grams))
    column: dict[Ngram, int] = {}
    data, columns, ends = [], [], [0]
    for some in grams:
        norms = _norms(some, weight)
        for gram, count in some.items():
            if norms[len(gram) - 1]:
                data.append(count * weight(gram) / norms[len(gram) - 1] / math.sqrt(len(ORDERS)))
                columns.append(column.setdefault(gram, len(column)))
        ends.append(len(data))
    return csr_matrix((data, columns, ends), shape=(len(grams), len(column)), dtype=np.float64)


class _Weights:
    """Inverse document frequency: the logarithm of documents per document that holds the n-gram."""

    def __init__(self, documents: Counter[Ngram], count: int) -> None:
        self._documents = documents
        self._log_count = math.log(count)

    def __call__(self, gram: Ngram) -> float:
        return self._log_count - math.log(max(1, self._documents[gram]))


def _ngrams(text: Sequence[str]) -> Counter[Ngram]:
    """All n-grams of all ``ORDERS``, counted."""
    return Counter(tuple(text[i : i + order]) for order in ORDERS for i in range(len(text) - order + 1))


def _norms(grams: Counter[Ngram], weight: _Weights) -> list[float]:
    """The length of the vector of each order."""
    squares = [0.0] * len(ORDERS)
    for gram, count in grams.items():
        squares[len(gram) - 1] += (count * weight(gram)) ** 2
    return [math.sqrt(square) for square in squares]


def _cider_d_of_pair(caption: Counter[Ngram], reference: Counter[Ngram], weight: _Weights) -> float:
    products = [0.0] * len(ORDERS)
    for gram, count in caption.items():
        products[len(gram) - 1] += min(count, reference[gram]) * reference[gram] * weight(gram) ** 2
    lengths = zip(_norms(caption, weight), _norms(reference, weight), strict=True)
    cosines = [product / (a * b) if a and b else 0.0 for product, (a, b) in zip(products, lengths, strict=True)]
    longer = sum(count for gram, count in caption.items() if len(gram) == 1) - sum(
        count for gram, count in reference.items() if len(gram) == 1
    )
    return 10 * math.exp(-(longer**2) / (2 * _SIGMA**2)) * sum(cosines) / len(ORDERS)
