"""Measures and intervals: numbers worked out by hand, plain twins, trec_eval, and closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from mmsearch.evaluation import bootstrap, metrics
from mmsearch.evaluation.metrics import Judged, judge

Gains = dict[int, float]


def example() -> Judged:
    """The ranking [2, 0, 1] with items 0 and 1 relevant, and [0, 2] with item 1 relevant and never found."""
    return judge([[2, 0, 1], [0, 2]], [{0: 1, 1: 1}, {1: 1}])


class TestByHand:
    def test_where_the_relevant_items_stand(self) -> None:
        judged = example()
        assert judged.ranks.tolist() == [[2, 3], [math.inf, math.inf]]
        assert judged.gains.tolist() == [[1, 1], [1, 0]]
        assert judged.relevant.tolist() == [2, 1] and len(judged) == 2

    @pytest.mark.parametrize(
        ("measure", "expected"),
        [
            (lambda j: metrics.hit_rate(j, 1), [0, 0]),
            (lambda j: metrics.hit_rate(j, 2), [1, 0]),
            (lambda j: metrics.precision(j, 2), [1 / 2, 0]),
            (lambda j: metrics.precision(j, 10), [2 / 10, 0]),
            (lambda j: metrics.recall(j, 2), [1 / 2, 0]),
            (lambda j: metrics.recall(j, 3), [1, 0]),
            (lambda j: metrics.f1(metrics.precision(j, 3), metrics.recall(j, 3)), [2 * (2 / 3) / (2 / 3 + 1), 0]),
            (metrics.first_rank, [2, math.inf]),
            (metrics.reciprocal_rank, [1 / 2, 0]),
            (metrics.average_precision, [(1 / 2 + 2 / 3) / 2, 0]),
            (lambda j: metrics.ndcg(j, 2), [(1 / math.log2(3)) / (1 + 1 / math.log2(3)), 0]),
        ],
    )
    def test_every_measure(self, measure: Callable[[Judged], np.ndarray], expected: list[float]) -> None:
        assert measure(example()).tolist() == pytest.approx(expected)

    def test_graded_gains(self) -> None:
        """Gains 1 and 3 at ranks 1 and 2: (1 + 3 / log2 3) over (3 + 1 / log2 3); cut at 1 it is 1 of 3."""
        judged = judge([[7, 5]], [{5: 3, 7: 1, 9: 0}])
        assert judged.relevant.tolist() == [2]
        assert metrics.ndcg(judged, 1).tolist() == pytest.approx([1 / 3])
        assert metrics.ndcg(judged, 2).tolist() == pytest.approx([(1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))])

    def test_ties_go_to_the_smaller_number(self) -> None:
        assert metrics.ranking(np.array([[0.5, 0.9, 0.5, 0.9], [0, 0, 0, 0]])).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]

    def test_the_set_above_a_threshold(self) -> None:
        """Two of three returned are right, of four relevant; then nothing is returned. At the threshold counts."""
        scores = np.array([[0.9, 0.5, 0.7, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.0, 0.1]])
        relevant = np.array([[1, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]], dtype=bool)
        right, returned = metrics.count_above(scores, relevant, 0.5)
        assert (right.tolist(), returned.tolist()) == ([2, 0], [3, 0])
        precision = metrics.set_precision(right, returned)
        recall = metrics.set_recall(right, relevant.sum(axis=1))
        assert precision.tolist() == pytest.approx([2 / 3, 0]) and recall.tolist() == [0.5, 0]
        assert metrics.f1(precision, recall).tolist() == pytest.approx([4 / 7, 0])

    def test_the_oracle_puts_what_is_within_reach_first(self) -> None:
        judged = Judged.of([[3, 40], [11], [2, 5]])
        best = metrics.oracle(judged, 10)
        assert best.ranks.tolist() == [[1, 40], [11, math.inf], [1, 2]]
        for k in (1, 2, 10):
            assert metrics.hit_rate(best, k).tolist() == metrics.hit_rate(judged, 10).tolist()
        graded = metrics.oracle(judge([[4, 5]], [{4: 1, 5: 2}]), 2)
        assert (graded.ranks.tolist(), graded.gains.tolist()) == ([[1, 2]], [[2, 1]])

    def test_what_makes_no_sense(self) -> None:
        with pytest.raises(ValueError, match="nothing is relevant to question 1"):
            judge([[0], [0]], [{0: 1}, {0: 0}])
        with pytest.raises(ValueError, match="question 0 names an item twice"):
            judge([[0, 0]], [{0: 1}])
        with pytest.raises(ValueError, match=r"\(1, 2\) and gains \(1, 1\)"):
            Judged(np.ones((1, 2)), np.ones((1, 1)))
        for measure in (metrics.hit_rate, metrics.precision, metrics.recall, metrics.ndcg):
            with pytest.raises(ValueError, match="k is 0"):
                measure(example(), 0)


# -- plain twins -------------------------------------------------------------------------------------------------------


def cases() -> list[tuple[list[list[int]], list[Gains]]]:
    """Random rankings of odd sizes, cut off or not, from scores full of ties; graded and binary gains."""
    rng = np.random.default_rng(7)
    found = []
    for questions, items, levels, cut in ((1, 1, 1, 1), (7, 13, 3, 13), (11, 5, 2, 3), (9, 31, 50, 17)):
        scores = rng.integers(0, levels, (questions, items)) / 7
        rankings = [order[:cut].tolist() for order in metrics.ranking(scores)]
        relevant = [
            {int(item): float(rng.integers(1, 4)) for item in rng.permutation(items)[: rng.integers(1, items + 1)]}
            for _ in range(questions)
        ]
        found.append((rankings, relevant))
    return found


def plain_order(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda item: (-scores[item], item))


def plain_hit(ranking: list[int], gains: Gains, k: int) -> float:
    return float(any(item in gains for item in ranking[:k]))


def plain_precision(ranking: list[int], gains: Gains, k: int) -> float:
    return sum(item in gains for item in ranking[:k]) / k


def plain_recall(ranking: list[int], gains: Gains, k: int) -> float:
    return sum(item in gains for item in ranking[:k]) / len(gains)


def plain_f1(ranking: list[int], gains: Gains, k: int) -> float:
    precision, recall = plain_precision(ranking, gains, k), plain_recall(ranking, gains, k)
    return 2 * precision * recall / (precision + recall) if precision else 0.0


def plain_rank(ranking: list[int], gains: Gains) -> float:
    for rank, item in enumerate(ranking, 1):
        if item in gains:
            return rank
    return math.inf


def plain_average_precision(ranking: list[int], gains: Gains) -> float:
    total, right = 0.0, 0
    for rank, item in enumerate(ranking, 1):
        if item in gains:
            right += 1
            total += right / rank
    return total / len(gains)


def plain_ndcg(ranking: list[int], gains: Gains, k: int) -> float:
    gained = sum(gains.get(item, 0) / math.log2(rank + 1) for rank, item in enumerate(ranking[:k], 1))
    best = sorted(gains.values(), reverse=True)[:k]
    return gained / sum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, 1))


class TestPlainTwins:
    @pytest.mark.parametrize("case", cases())
    def test_every_measure_equals_its_twin(self, case: tuple[list[list[int]], list[Gains]]) -> None:
        rankings, relevant = case
        judged = judge(rankings, relevant)
        pairs = list(zip(rankings, relevant, strict=True))
        for k in (1, 2, 5, 10, 40):
            for fast, plain in (
                (metrics.hit_rate(judged, k), plain_hit),
                (metrics.precision(judged, k), plain_precision),
                (metrics.recall(judged, k), plain_recall),
                (metrics.f1(metrics.precision(judged, k), metrics.recall(judged, k)), plain_f1),
            ):
                assert fast.tolist() == [plain(ranking, gains, k) for ranking, gains in pairs]
            # The same terms added in another order may differ in the last bit.
            assert metrics.ndcg(judged, k).tolist() == pytest.approx([plain_ndcg(r, g, k) for r, g in pairs], rel=1e-14)
        assert metrics.first_rank(judged).tolist() == [plain_rank(r, g) for r, g in pairs]
        assert metrics.reciprocal_rank(judged).tolist() == [1 / plain_rank(r, g) for r, g in pairs]
        expected = [plain_average_precision(r, g) for r, g in pairs]
        assert metrics.average_precision(judged).tolist() == pytest.approx(expected, rel=1e-14)

    def test_the_order_equals_its_twin(self) -> None:
        rng = np.random.default_rng(3)
        for shape in ((1, 1), (5, 7), (3, 33)):
            scores = rng.integers(0, 4, shape).astype(float)
            assert metrics.ranking(scores).tolist() == [plain_order(row) for row in scores.tolist()]

    def test_the_set_above_a_threshold_equals_its_twin(self) -> None:
        rng = np.random.default_rng(4)
        scores, relevant = rng.integers(0, 5, (9, 17)) / 4, rng.random((9, 17)) < 0.3
        right, returned = metrics.count_above(scores, relevant, 0.5)
        for q in range(9):
            above = {n for n in range(17) if scores[q, n] >= 0.5}
            assert (right[q], returned[q]) == (len(above & set(np.flatnonzero(relevant[q]).tolist())), len(above))

    def test_agrees_with_trec_eval(self) -> None:
        """No ties here: trec_eval breaks them by the names of the documents."""
        pytrec_eval = pytest.importorskip("pytrec_eval")
        rng = np.random.default_rng(5)
        orders = [rng.permutation(23).tolist() for _ in range(15)]
        relevant = [{int(n): int(rng.integers(1, 4)) for n in rng.permutation(23)[: 1 + q]} for q in range(15)]
        asked = {"success.1,5,10", "P.1,5,10", "recall.1,5,10", "recip_rank", "map", "ndcg_cut.1,5,10"}
        judges = pytrec_eval.RelevanceEvaluator(
            {f"q{q}": {f"d{n}": gain for n, gain in gains.items()} for q, gains in enumerate(relevant)}, asked
        )
        theirs = judges.evaluate(
            {f"q{q}": {f"d{n}": float(-rank) for rank, n in enumerate(order)} for q, order in enumerate(orders)}
        )
        judged = judge(orders, relevant)
        ours = {"recip_rank": metrics.reciprocal_rank(judged), "map": metrics.average_precision(judged)}
        for k in (1, 5, 10):
            ours[f"success_{k}"] = metrics.hit_rate(judged, k)
            ours[f"P_{k}"] = metrics.precision(judged, k)
            ours[f"recall_{k}"] = metrics.recall(judged, k)
            ours[f"ndcg_cut_{k}"] = metrics.ndcg(judged, k)
        for name, values in ours.items():
            assert values.tolist() == pytest.approx([theirs[f"q{q}"][name] for q in range(15)]), name


# -- how sure ----------------------------------------------------------------------------------------------------------


def binomial_quantile(n: int, p: float, level: float) -> int:
    """The smallest count that at most so many of n have with probability ``level`` or more."""
    upto = 0.0
    for count in range(n + 1):
        upto += math.comb(n, count) * p**count * (1 - p) ** (n - count)
        if upto >= level:
            return count
    return n


class TestInterval:
    @pytest.mark.parametrize(("n", "right"), [(10, 3), (100, 30), (57, 50)])
    def test_of_a_share_is_binomial(self, n: int, right: int) -> None:
        """The number of right answers among n drawn with replacement is binomial; its quantiles are the bounds."""
        values = np.array([1.0] * right + [0.0] * (n - right))
        found = bootstrap.interval(values, np.arange(n), resamples=20_000)
        exact = [binomial_quantile(n, right / n, level) / n for level in (0.025, 0.975)]
        assert found.value == pytest.approx(right / n)
        assert [found.low, found.high] == pytest.approx(exact, abs=1.01 / n)  # one count: 20,000 draws have noise, too

    def test_the_example_of_the_docstring(self) -> None:
        found = bootstrap.interval(np.array([1.0] * 3 + [0.0] * 7), np.arange(10))
        assert (found.low, found.high) == pytest.approx((0.0, 0.6))

    def test_of_a_mean_is_as_wide_as_the_standard_error_says(self) -> None:
        values = np.random.default_rng(0).normal(5, 2, 400)
        found = bootstrap.interval(values, np.arange(400), resamples=20_000)
        error = values.std() / math.sqrt(400)
        assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
        assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)

    def test_five_captions_that_always_agree_are_one_witness(self) -> None:
        once = np.array([1.0] * 12 + [0.0] * 8)
        alone = bootstrap.interval(once, np.arange(20))
        assert bootstrap.interval(np.repeat(once, 5), np.repeat(np.arange(20), 5)) == alone
        naive = bootstrap.interval(np.repeat(once, 5), np.arange(100))
        assert naive.high - naive.low < 0.6 * (alone.high - alone.low)

    def test_groups_of_different_sizes_equal_the_plain_twin(self) -> None:
        """Every way to draw 3 of 3 groups, 27 in all, weighted alike; the bounds are quantiles of those 27 means."""
        groups = {"a": [1.0], "b": [0.0, 4.0, 5.0], "c": [2.0, 2.0]}
        means = sorted(
            np.mean([value for name in drawn for value in groups[name]])
            for drawn in itertools.product(groups, repeat=3)
        )
        values = np.array([value for some in groups.values() for value in some])
        names = np.array([name for name, some in groups.items() for _ in some])
        found = bootstrap.interval(values, names, level=0.8, resamples=30_000)
        exact = np.quantile(means, [0.1, 0.9], method="inverted_cdf")
        assert (found.low, found.high) == pytest.approx(tuple(exact))

    def test_of_a_median_equals_the_plain_twin(self) -> None:
        values = [1.0, 2.0, 4.0, 9.0]
        medians = [float(np.median(drawn)) for drawn in itertools.product(values, repeat=4)]
        found = bootstrap.interval(np.array(values)[[2, 0, 3, 1]], np.arange(4), statistic="median", resamples=30_000)
        assert found.value == 3.0
        assert (found.low, found.high) == tuple(np.quantile(medians, [0.025, 0.975], method="inverted_cdf"))

    def test_same_seed_same_numbers(self) -> None:
        values = np.random.default_rng(1).normal(size=50)
        first = bootstrap.interval(values, np.arange(50), seed=3)
        assert first == bootstrap.interval(values, np.arange(50), seed=3)
        assert first != bootstrap.interval(values, np.arange(50), seed=4)

    def test_in_blocks_as_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = np.random.default_rng(1).normal(size=50)
        at_once = bootstrap.interval(values, np.arange(50))
        monkeypatch.setattr(bootstrap, "_BLOCK", 170)
        found = bootstrap.interval(values, np.arange(50))
        assert (found.low, found.high) == pytest.approx((at_once.low, at_once.high), rel=1e-12)

    def test_nothing_to_be_sure_of(self) -> None:
        with pytest.raises(ValueError, match="0 values in 0 groups"):
            bootstrap.interval(np.array([]), np.array([]))
        with pytest.raises(ValueError, match="2 values in 3 groups"):
            bootstrap.sign_flip_p(np.ones(2), np.arange(3))


class TestSignFlip:
    @pytest.mark.parametrize("groups", [1, 2, 3, 8, 13])
    def test_all_better_is_two_patterns_of_all(self, groups: int) -> None:
        """Only all plus and all minus reach the mean that was observed."""
        assert bootstrap.sign_flip_p(np.ones(groups), np.arange(groups)) == 2 / 2**groups

    def test_exact_equals_the_plain_twin(self) -> None:
        apart = np.array([0.3, -0.1, 0.25, 0.5, -0.2, 0.1, 0.3])
        names = np.array([0, 0, 1, 2, 3, 3, 4])
        sums = [sum(apart[names == name].tolist()) for name in range(5)]
        patterns = list(itertools.product((1, -1), repeat=5))
        reached = [abs(np.dot(signs, sums)) >= abs(sum(sums)) - 1e-12 for signs in patterns]
        assert bootstrap.sign_flip_p(apart, names) == sum(reached) / 32

    def test_of_wins_and_losses_is_the_binomial_test(self) -> None:
        """30 questions won by one, 18 lost: twice the probability of 30 or more heads in 48; ties say nothing."""
        apart = np.array([1.0] * 30 + [-1.0] * 18 + [0.0] * 40)
        exact = 2 * sum(math.comb(48, heads) for heads in range(30, 49)) / 2**48
        assert bootstrap.sign_flip_p(apart, np.arange(88), flips=40_000) == pytest.approx(exact, abs=0.006)

    def test_no_difference_and_never_zero(self) -> None:
        assert bootstrap.sign_flip_p(np.zeros(9), np.arange(9)) == 1.0
        assert bootstrap.sign_flip_p(np.ones(200), np.arange(200), flips=999) == 1 / 1000

    def test_balanced_differences_are_as_likely_as_can_be(self) -> None:
        assert bootstrap.sign_flip_p(np.array([0.1, 0.2, -0.3]), np.arange(3)) == 1.0

    def test_a_difference_has_the_sign_of_a_minus_b(self) -> None:
        a, b = np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 0.0])
        found = bootstrap.difference(a, b, np.arange(4))
        assert found.value == 0.5 and found.low == 0.0 and found.high == 1.0
        assert found.p == 0.5  # two groups differ, both by +1: 2 of 4 patterns
        assert bootstrap.difference(b, a, np.arange(4)).value == -0.5


# -- calibration -------------------------------------------------------------------------------------------------------


def test_calibration_error_by_hand() -> None:
    """Two bins of two: confidences 0.2 and 0.4 with one right, 0.3 against 0.5; 0.8 and 1.0 with both right, 0.9."""
    confidence, right = np.array([1.0, 0.2, 0.8, 0.4]), np.array([True, False, True, True])
    assert metrics.calibration_error(confidence, right, bins=2) == pytest.approx((0.2 + 0.1) / 2)
    assert metrics.calibration_error(np.array([0.75] * 4), np.array([1, 1, 1, 0]), bins=1) == 0
    assert metrics.calibration_error(np.array([0.9]), np.array([False])) == pytest.approx(0.9)


def test_calibration_error_equals_a_loop_over_bins() -> None:
    rng = np.random.default_rng(2)
    confidence = rng.random(997).round(2)
    right = rng.random(997) < confidence**2
    pairs = sorted(zip(confidence.tolist(), range(997), right.tolist(), strict=True))
    total, start = 0.0, 0
    for size in [100] * 7 + [99] * 3:
        some = pairs[start : start + size]
        start += size
        total += abs(sum(c for c, _, _ in some) - sum(r for _, _, r in some)) / 997
    assert metrics.calibration_error(confidence, right) == pytest.approx(total)
