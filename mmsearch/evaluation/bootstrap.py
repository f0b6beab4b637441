"""How sure a mean over questions is, and whether two systems differ: resampling, seeded, over groups of questions.

The five captions of one picture are no five independent witnesses, so whole groups are drawn, not single questions:
where groups have one question each this is the ordinary procedure, and where all of a group agree the interval is as
wide as if each group had been asked once.

* ``interval``: the percentile bootstrap (Efron, "Bootstrap methods: another look at the jackknife", 1979; Efron and
  Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3), of groups (Field and Welsh, "Bootstrapping
  clustered data", 2007).
* ``calibration_interval``: the same of an expected calibration error, which is no mean.
* ``sign_flip_p``: the paired permutation test, which turns the sign of a group's difference (Smucker, Allan and
  Carterette, "A comparison of statistical significance tests for information retrieval evaluation", CIKM 2007,
  section 3.1; they recommend it before the sign and the Wilcoxon test).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

RESAMPLES = 2000
FLIPS = 10_000
EXACT_GROUPS = 13
"""Up to so many groups all sign patterns are tried: 2^13 are fewer than ``FLIPS``."""
_BLOCK = 1 << 22
"""Numbers that one block of resamples may hold: 32 MB."""
_TIE = 1e-9
"""Sums whose difference is in their last bits are equal, relative to the size of what is summed."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds between which it lies in 95 of 100 resamples (or another ``level``)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A - B over the same questions: the mean, its interval, and how often chance alone makes one as large."""

    value: float
    low: float
    high: float
    p: float


def interval(
    values: np.ndarray,
    groups: np.ndarray,
    *,
    statistic: Literal["mean", "median"] = "mean",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean or median of ``values: (Q,)`` and its bootstrap interval, drawing whole ``groups: (Q,)``.

    Ten questions, each in its own group, three of them right: the resampled means are binomial, and the interval of
    0.3 is (0.0, 0.6).

    Raises:
        ValueError: there is no value, or the two are not of one length.
    """
    values, member = _checked(values, groups)
    rng = np.random.default_rng(seed)
    count = int(member.max()) + 1
    if statistic == "mean":
        sums, sizes = np.bincount(member, values), np.bincount(member)
        drawn = np.concatenate([w @ sums / (w @ sizes) for w in _weights(rng, count, resamples)])
        value = float(values.mean())
    else:
        order = np.argsort(values, kind="stable")
        values, member = values[order], member[order]
        drawn = np.array([_median(values, row[member]) for w in _weights(rng, count, resamples) for row in w])
        value = float(np.median(values))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(value, float(low), float(high))


def calibration_interval(
    confidence: np.ndarray,
    right: np.ndarray,
    groups: np.ndarray,
    *,
    bins: int = 10,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The expected calibration error of probabilities ``(Q,)`` of being ``right`` ``(Q,)``, and its interval.

    That of Guo et al., "On Calibration of Modern Neural Networks" (2017), section 2, over ``bins`` of equal width: the
    distance of mean confidence and share of right ones in a bin, weighted by how many are in it. Of 0.05, wrong, and
    0.9 and 0.92, of which one is right, it is (0.05 + 2 · 0.41) / 3 = 0.29. Whole groups are drawn, as in ``interval``;
    noise makes such an error larger and never smaller, so that the value tends to the lower end of its interval.

    Raises:
        ValueError: as in ``interval``.
    """
    confidence, member = _checked(confidence, groups)
    count = int(member.max()) + 1
    gaps, sizes = np.zeros((count, bins)), np.bincount(member)
    inside = np.minimum((confidence * bins).astype(int), bins - 1)  # 1 belongs to the last bin
    np.add.at(gaps, (member, inside), confidence - np.asarray(right, dtype=np.float64))
    drawn = np.concatenate(
        [np.abs(w @ gaps).sum(axis=1) / (w @ sizes) for w in _weights(np.random.default_rng(seed), count, resamples)]
    )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(float(np.abs(gaps.sum(axis=0)).sum() / len(confidence)), float(low), float(high))


def difference(a: np.ndarray, b: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> Difference:
    """The mean of ``a - b``, both ``(Q,)`` over the same questions, with its interval and p-value.

    Raises:
        ValueError: as in ``interval``.
    """
    apart = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    found = interval(apart, groups, seed=seed)
    return Difference(found.value, found.low, found.high, sign_flip_p(apart, groups, seed=seed))


def sign_flip_p(differences: np.ndarray, groups: np.ndarray, *, flips: int = FLIPS, seed: int = 0) -> float:
    """How likely a mean at least as far from 0 is, were each group's difference as likely of the other sign.

    Two-sided. With few groups every pattern of signs is tried; three groups that all differ by +1 give 2 / 2^3 = 0.25.
    With more, ``flips`` random patterns are, and the one that was observed counts as one of them, so that p is never 0
    (Phipson and Smyth, "Permutation p-values should never be zero", 2010).

    Raises:
        ValueError: as in ``interval``.
    """
    differences, member = _checked(differences, groups)
    sums = np.bincount(member, differences)
    sums = sums[sums != 0]  # a group without a difference keeps it under either sign
    if not len(sums):
        return 1.0
    needed = abs(sums.sum()) - _TIE * np.abs(sums).sum()
    if len(sums) <= EXACT_GROUPS:
        patterns = (np.arange(1 << len(sums))[:, None] >> np.arange(len(sums))) & 1  # (2^G, G)
        return float(np.mean(np.abs((2 * patterns - 1) @ sums) >= needed))
    rng = np.random.default_rng(seed)
    reached, block = 0, max(1, _BLOCK // len(sums))
    for start in range(0, flips, block):
        signs = 2.0 * rng.integers(0, 2, (min(block, flips - start), len(sums)), dtype=np.int8) - 1
        reached += int((np.abs(signs @ sums) >= needed).sum())
    return (1 + reached) / (1 + flips)


def _checked(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values as float64 and the number of each one's group, counted from 0: both ``(Q,)``."""
    values, groups = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if not len(values) or values.shape != groups.shape:
        raise ValueError(f"{len(values)} values in {len(groups)} groups; give one group for each of at least one value")
    return values, np.unique(groups, return_inverse=True)[1]


def _weights(rng: np.random.Generator, groups: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each group is drawn in each resample, in blocks ``(B, G)``."""
    block = max(1, _BLOCK // groups)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, groups, (size, groups)) + groups * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups)


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    """The median of sorted ``values: (Q,)``, each taken ``weights: (Q,)`` times."""
    upto = np.cumsum(weights)
    middle = [(upto[-1] - 1) // 2, upto[-1] // 2]
    low, high = values[np.searchsorted(upto, middle, side="right")]
    return float((low + high) / 2)
