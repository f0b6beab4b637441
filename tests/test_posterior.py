"""What log-odds mean for a question and a library, and how many match in all."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from indexer.types import Modality
from mmsearch import posterior
from mmsearch.posterior import CLEAR, LIKELY, SIGNS, Posterior, Scale, level, one_expected, signs_of
from mmsearch.rerank.load import PACKAGED
from mmsearch.sampling import SIZE, Sample, matches_beyond, spread_places, spread_rows

TO_IMAGE = (Modality.TEXT, Modality.IMAGE)


def made_up(seed: int = 0, units: int = 3) -> Posterior:
    rng, count = np.random.default_rng(seed), len(SIGNS)
    return Posterior(
        np.full(count, -2.0),
        np.full(count, 2.0),
        rng.normal(size=count),
        rng.uniform(0.5, 2, count),
        rng.normal(size=(units, count)),
        rng.normal(size=units),
        rng.normal(size=(2, units)),
        rng.normal(size=2),
        np.array([-6.0, 3.0]),
    )


@pytest.mark.parametrize(
    ("probability", "word"),
    [(1.0, "clear"), (CLEAR, "clear"), (CLEAR - 1e-9, "likely"), (LIKELY, "likely"), (0, "weak")],
)
def test_a_word_for_each_probability(probability: float, word: str) -> None:
    assert level(probability) == word


def test_signs_one_by_one() -> None:
    logits = np.arange(0.0, -50.0, -1.0)  # 0, -1, … -49
    first = logits - 10
    background = np.array([-62.0, -60.0, -58.0])
    found = dict(zip(SIGNS, signs_of(2, 700, logits[::-1], first, background, 0.25), strict=True))
    spread = math.sqrt(8 / 3)
    assert found == pytest.approx(
        {
            "length": math.log(2),
            "one word": 0,
            "items": math.log(700),
            "first": 0,
            "first 3": -1,
            "first 10": -4.5,
            "16th": -15,
            "median": -24.5,
            "41st": -40,
            "ahead first": 50 / spread,
            "ahead first 3": 49 / spread,
            "ahead first 10": 45.5 / spread,
            "ahead 21st": 30 / spread,
            "ahead 46th": 5 / spread,
            "spread": spread,
            "nearness": 0.25,
        }
    )


def test_signs_of_a_library_of_one_and_of_a_very_long_question() -> None:
    found = signs_of(1, 1, np.array([-3.0]), np.array([-3.0]), np.array([-3.0]), 0.0)
    assert np.isfinite(found).all() and found[1] == 1
    long = signs_of(5000, 1, np.array([-3.0]), np.array([-3.0]), np.array([-3.0]), 0.0)
    assert long[0] == math.log(32)


@pytest.mark.parametrize("seed", range(5))
def test_the_scale_is_what_the_network_says_sign_by_sign(seed: int) -> None:
    fitted, signs = made_up(seed), np.random.default_rng(seed + 100).normal(scale=3, size=len(SIGNS))
    slope, offset = fitted.out_bias
    for unit in range(3):
        total = fitted.hidden_bias[unit]
        for i, sign in enumerate(signs):
            clipped = min(max(sign, fitted.low[i]), fitted.high[i])
            total += fitted.hidden[unit, i] * (clipped - fitted.mean[i]) / fitted.std[i]
        slope += fitted.out[0, unit] * math.tanh(total)
        offset += fitted.out[1, unit] * math.tanh(total)
    scale = fitted.scale(signs)
    assert scale.slope > 0
    for logit in (-20.0, -5.0, 3.0):
        plain = math.log1p(math.exp(slope)) * (logit + 6) / 3 + offset
        assert scale.log_odds(np.array([logit]))[0] == pytest.approx(plain)
        assert scale.probabilities(np.array([logit]))[0] == pytest.approx(1 / (1 + math.exp(-plain)))


def test_what_is_written_is_read() -> None:
    fitted = made_up()
    (found,) = posterior.read(json.loads(posterior.write({TO_IMAGE: fitted}))).values()
    for field in fields(Posterior):
        assert getattr(found, field.name) == pytest.approx(getattr(fitted, field.name), abs=1e-5)


@pytest.mark.parametrize("change", [{"low": [1.0]}, {"hidden": [[1.0]]}, {"out": None}])
def test_numbers_that_do_not_fit_together(change: dict[str, object]) -> None:
    values = json.loads(posterior.write({TO_IMAGE: made_up()}))
    values["text->image"] |= change
    with pytest.raises((ValueError, TypeError)):
        posterior.read(values)


@pytest.mark.parametrize(("items", "odds"), [(1, 19), (20, 19), (100, 99), (1000, 999), (10**6, 999)])
def test_one_match_is_expected_where_nothing_was_fitted(items: int, odds: float) -> None:
    assert one_expected(items).log_odds(np.array([0.0]))[0] == pytest.approx(math.log(999 / odds))
    assert one_expected(items, 0.5).log_odds(np.array([2.0]))[0] == pytest.approx((2 + math.log(999 / odds)) / 2)


def test_the_order_of_answers_stays_with_what_is_shipped() -> None:
    """Whatever the signs are, the slope is positive: more log-odds are never less likely."""
    rng = np.random.default_rng(3)
    shipped = [posterior.first_stage()[TO_IMAGE], posterior.read(json.loads(_shipped()))[TO_IMAGE]]
    for fitted in shipped:
        for _ in range(200):
            signs = rng.uniform(fitted.low - 1, fitted.high + 1)
            assert fitted.scale(signs).slope > 0.01


def _shipped() -> str:
    return (Path(PACKAGED) / "mini" / "posterior.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [0, 1, SIZE, SIZE + 1, 5000, 1_000_003])
def test_places_are_spread_evenly(count: int) -> None:
    places = spread_places(count)
    assert len(places) == min(count, SIZE) and (np.diff(places) >= 0).all()
    if count > 2 * SIZE:
        assert len(set(places.tolist())) == SIZE
    if count:
        assert places[0] == 0 and places[-1] == count - 1


@pytest.mark.parametrize(("count", "every"), [(10, 3), (3000, 2), (50_000, 7), (50_000, 1)])
def test_no_row_of_a_sample_is_dead(count: int, every: int) -> None:
    """Of few rows all that are alive, of many a sample; with ``every`` 1 all but one are dead."""
    dead = np.arange(0, count, every) if every > 1 else np.arange(1, count)
    rows = spread_rows(count, dead)
    alive = count - len(dead)
    assert not np.isin(rows, dead).any() and (np.diff(rows) > 0).all()
    assert min(alive, SIZE // 2) <= len(rows) <= SIZE


def test_how_many_match_behind_the_best_is_what_counting_gives() -> None:
    """A library of 4,000 of which the first 900 by the first stage match; 50 of them are counted already."""
    items = 4000
    rows = spread_places(items)
    first = -rows.astype(float)
    sample = Sample(rows, items, lambda asked: np.zeros((len(asked), 1)))
    scale = Scale(0.05, 45.0)  # a match is as likely as not at -900
    asked: list[int] = []

    def probabilities(places: np.ndarray) -> np.ndarray:
        asked.extend(places.tolist())
        return scale.probabilities(first[places])

    found = matches_beyond(sample, first, np.arange(50), probabilities)
    everything = float(scale.probabilities(-np.arange(50.0, items)).sum())
    assert everything == pytest.approx(850, rel=0.02)
    assert found == pytest.approx(everything, rel=0.1)
    assert len(asked) <= 24


def test_nothing_matches_behind_the_best_of_a_library_that_is_all_counted() -> None:
    sample = Sample(np.arange(5), 5, lambda asked: np.zeros((len(asked), 1)))
    assert matches_beyond(sample, np.zeros(5), np.arange(5), lambda places: np.ones(len(places))) == 0.0
