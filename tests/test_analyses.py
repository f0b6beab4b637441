"""The analyses beside retrieval: two modalities, two models, two wordings; and their commands."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from colour_encoder import ColourEncoder
from conftest import BLUE, GREEN, RED
from PIL import Image
from scipy.special import digamma
from typer.testing import CliRunner

from indexer.errors import UsageError
from mmsearch.datasets import Captioned, Picture, open_dataset
from mmsearch.evaluation.agreement import agreement, jaccard, kendall_tau, rank_biased_overlap, ranking
from mmsearch.evaluation.analyses import (
    embed_pictures,
    embed_split,
    measure_agreement,
    measure_consistency,
    measure_modalities,
    register,
)
from mmsearch.evaluation.consistency import ALTERATIONS, REWORDINGS, consistency, other_captions
from mmsearch.evaluation.modalities import (
    KNN_COMPONENTS,
    RIDGES,
    alignment,
    best_scale,
    choose_ridge,
    column_correlations,
    fit_cca,
    gaussian_information,
    halves,
    infonce_bound,
    knn_information,
    modalities,
    modality_gap,
    uniformity,
)


def correlated(count: int, correlations: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of standard Gaussians, column k of one correlated with column k of the other."""
    rng = np.random.default_rng(seed)
    rho = np.array(correlations)
    x = rng.normal(size=(count, len(rho)))
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)


def unit_rows(count: int, dim: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class TestCanonicalCorrelations:
    def test_known_correlations_are_found_whatever_the_axes(self) -> None:
        """Two shared directions of 0.8 and 0.5 among four and three, turned and stretched: unseen pairs show them."""
        x, y = correlated(20_000, [0.5, 0.8, 0.0])
        rng = np.random.default_rng(1)
        x = np.concatenate([x, rng.normal(size=(len(x), 1))], axis=1) @ rng.normal(size=(4, 4)) + 7
        y = y @ rng.normal(size=(3, 3))
        directions = fit_cca(x[:10_000], y[:10_000], ridge=1e-6)
        found = column_correlations(*directions.project(x[10_000:], y[10_000:]))
        assert found == pytest.approx([0.8, 0.5, 0.0], abs=0.03)

    @pytest.mark.parametrize("ridge", [0.0, 0.5])
    def test_the_fitted_directions_are_those_of_hotelling(self, ridge: float) -> None:
        """The squared correlations are the eigenvalues of Cxx^-1 Cxy Cyy^-1 Cyx, the ridge in Cxx and Cyy."""
        rng = np.random.default_rng(2)
        x = rng.normal(size=(31, 4))
        y = x[:, :3] + rng.normal(size=(31, 3))
        centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
        cxx, cyy = centred_x.T @ centred_x / 31, centred_y.T @ centred_y / 31
        cxx += ridge * np.trace(cxx) / 4 * np.eye(4)
        cyy += ridge * np.trace(cyy) / 3 * np.eye(3)
        cxy = centred_x.T @ centred_y / 31
        squares = np.linalg.eigvals(np.linalg.inv(cxx) @ cxy @ np.linalg.inv(cyy) @ cxy.T).real
        directions = fit_cca(x, y, ridge=ridge)
        u, v = directions.project(x, y)
        assert np.diag(u.T @ v / 31) == pytest.approx(np.sqrt(np.sort(squares)[::-1][:3]))
        assert directions.image_weights.T @ cxx @ directions.image_weights == pytest.approx(np.eye(3), abs=1e-9)

    def test_noise_correlates_where_it_was_fitted_and_not_elsewhere(self) -> None:
        rng = np.random.default_rng(3)
        x, y = rng.normal(size=(600, 80)), rng.normal(size=(600, 80))
        directions = fit_cca(x[:100], y[:100], ridge=1e-6, components=1)
        assert column_correlations(*directions.project(x[:100], y[:100]))[0] > 0.95
        assert abs(column_correlations(*directions.project(x[100:], y[100:]))[0]) < 0.15

    def test_a_flat_dimension_has_no_weight(self) -> None:
        x, y = correlated(200, [0.9])
        directions = fit_cca(np.concatenate([x, np.ones_like(x)], axis=1), y, ridge=0.0)
        assert directions.image_weights[1] == pytest.approx(0)
        assert np.isfinite(directions.image_weights).all()

    def test_column_correlations_by_hand(self) -> None:
        first = np.array([[1, 1, 4], [2, 2, 4], [3, 3, 4]], float)
        second = np.array([[1, 6, 1], [3, 4, 2], [2, 2, 3]], float)
        assert column_correlations(first, second) == pytest.approx([0.5, -1, 0])

    def test_the_ridge_is_the_one_that_does_best_on_pairs_it_has_not_seen(self) -> None:
        """One shared direction among forty, of sixty pairs: hardly any ridge fits noise, and a strong one does not."""
        x, y = correlated(60, [0.9] + [0.0] * 39)
        x[:, 0] *= 3
        y[:, 0] *= 3
        assert choose_ridge(x, y) > RIDGES[0]


class TestInformation:
    def test_gaussian_by_hand(self) -> None:
        assert gaussian_information(np.array([0.6])) == pytest.approx(-math.log(0.64) / 2)
        assert gaussian_information(np.array([0.6, -0.8])) == pytest.approx(-math.log(0.64 * 0.36) / 2)
        assert gaussian_information(np.array([0.0])) == 0

    def test_neighbours_by_hand(self) -> None:
        """0, 1, 3, 7 on both sides, k = 1: nobody is strictly nearer, so psi(1) + psi(4) - 2 psi(1) = 1 + 1/2 + 1/3."""
        rows = np.array([[0.0], [1.0], [3.0], [7.0]])
        assert knn_information(rows, rows, k=1) == pytest.approx(11 / 6)

    @pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
    def test_neighbours_agree_with_the_closed_form_of_gaussians(self, correlation: float) -> None:
        expected = -math.log(1 - correlation**2) / 2
        assert knn_information(*correlated(4000, [correlation])) == pytest.approx(expected, abs=0.05)

    def test_neighbours_do_not_mind_a_bent_scale(self) -> None:
        x, y = correlated(3000, [0.8])
        assert knn_information(np.exp(x), y**3) == pytest.approx(-math.log(0.36) / 2, abs=0.06)

    @pytest.mark.parametrize(("count", "dims", "k"), [(7, (1, 1), 1), (23, (2, 1), 3), (40, (2, 3), 4)])
    @pytest.mark.parametrize("ties", [False, True])
    def test_neighbours_as_counted_one_by_one(self, count: int, dims: tuple[int, int], k: int, ties: bool) -> None:
        rng = np.random.default_rng(count)
        x, y = rng.normal(size=(count, dims[0])), rng.normal(size=(count, dims[1]))
        if ties:
            x, y = x.round(), y.round()
        total = 0.0
        for i in range(count):
            others = [j for j in range(count) if j != i]
            in_x = [max(abs(x[i] - x[j])) for j in others]
            in_y = [max(abs(y[i] - y[j])) for j in others]
            distance = sorted(map(max, in_x, in_y))[k - 1]
            total += digamma(sum(d < distance for d in in_x) + 1) + digamma(sum(d < distance for d in in_y) + 1)
        assert knn_information(x, y, k=k) == pytest.approx(digamma(k) + digamma(count) - total / count)

    def test_too_few_to_have_neighbours(self) -> None:
        with pytest.raises(UsageError, match="3 pairs have no 3 neighbours"):
            knn_information(np.zeros((3, 1)), np.zeros((3, 1)))

    def test_infonce_by_hand(self) -> None:
        """Rows: losses log(1 + 1/e) and log(1 + e^-.5); columns: log(1 + e^-.5) and log(1 + 1/e)."""
        assert infonce_bound(np.eye(2), 1.0) == pytest.approx(math.log(2) - math.log(1 + math.exp(-1)))
        cosines = np.array([[1.0, 0.0], [0.5, 1.0]])
        loss = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-0.5))) / 2
        assert infonce_bound(cosines, 1.0) == pytest.approx(math.log(2) - loss)
        assert infonce_bound(cosines, 0.0) == pytest.approx(0)
        assert infonce_bound(np.eye(8), 500.0) == pytest.approx(math.log(8))  # and never more

    def test_infonce_stays_below_the_truth(self) -> None:
        """With the log-density ratio itself as the score, the bound comes near to -log(1 - rho^2) / 2 from below."""
        x, y = correlated(1500, [0.9])
        ratio = -((y.T - 0.9 * x) ** 2) / (2 * 0.19) + y.T**2 / 2
        truth = -math.log(0.19) / 2
        assert truth - 0.1 < infonce_bound(ratio, 1.0) < truth + 0.03

    def test_the_scale_is_the_best_of_a_grid(self) -> None:
        images = unit_rows(60, 5, 4)
        texts = images + 0.4 * unit_rows(60, 5, 5)
        cosines = images @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T
        best = best_scale(cosines)
        assert infonce_bound(cosines, best) >= max(infonce_bound(cosines, scale) for scale in np.arange(1, 100)) - 1e-6
        assert 1 < best < 100


class TestGeometry:
    def test_gap_by_hand(self) -> None:
        images, texts = np.tile([1.0, 0.0], (6, 1)), np.tile([0.0, 1.0], (6, 1))
        gap = modality_gap(images, texts)
        assert (gap.distance, gap.cosine, gap.separability) == pytest.approx((math.sqrt(2), 0, 1))

    def test_no_gap_between_equals(self) -> None:
        rows = unit_rows(400, 6, 6)
        gap = modality_gap(rows, rows)
        assert (gap.distance, gap.cosine, gap.separability) == pytest.approx((0, 1, 0.5))

    def test_a_gap_in_one_direction_is_seen_beside_much_spread_in_others(self) -> None:
        """Rows spread by 3 to all sides but one, where pictures are at 1 and texts at -1: no nearest centre does it."""
        rng = np.random.default_rng(7)
        images, texts = 3 * rng.normal(size=(300, 5)), 3 * rng.normal(size=(300, 5))
        images[:, 2], texts[:, 2] = 1, -1
        assert modality_gap(images, texts).separability == 1

    def test_alignment_by_hand(self) -> None:
        images = np.array([[1.0, 0.0], [0.0, 1.0]])
        assert alignment(images, np.array([[0.0, 1.0], [0.0, -1.0]])) == 3  # squared distances 2 and 4

    def test_uniformity_by_hand_and_one_by_one(self) -> None:
        assert uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)
        assert uniformity(np.ones((3, 2))) == 0
        rows = np.concatenate([unit_rows(9, 3, 8), unit_rows(2, 3, 8)])  # two rows stand twice
        terms = [math.exp(-2 * sum((rows[i] - rows[j]) ** 2)) for i in range(11) for j in range(i)]
        assert uniformity(rows) == pytest.approx(math.log(sum(terms) / len(terms)))

    def test_rows_that_are_no_pairs(self) -> None:
        with pytest.raises(UsageError, match="2 rows of pictures and 3 of texts"):
            alignment(np.ones((2, 2)), np.ones((3, 2)))


class TestModalities:
    def test_strangers_share_nothing(self) -> None:
        found = modalities(unit_rows(1000, 8, 9), unit_rows(1000, 8, 10))
        assert found.pairs == 1000
        assert max(map(abs, found.correlations)) < 0.2
        assert found.knn_information == pytest.approx(0, abs=0.1)
        assert found.infonce_bound == pytest.approx(0, abs=0.05)
        assert found.infonce_ceiling == math.log(500)
        assert found.alignment == pytest.approx(2, abs=0.1)

    def test_copies_share_everything(self) -> None:
        rows = unit_rows(200, 6, 11).astype(np.float32)
        found = modalities(rows, rows)
        assert min(found.correlations[:KNN_COMPONENTS]) > 0.99
        assert found.infonce_bound == pytest.approx(math.log(100), abs=0.01)
        assert found.alignment == 0
        assert found.image_uniformity == found.text_uniformity
        assert json.loads(json.dumps(found.as_dict()))["gap"]["distance"] == 0

    def test_what_is_measured_was_not_fitted(self) -> None:
        seen, unseen = halves(41)
        assert sorted([*seen, *unseen]) == list(range(41))
        assert (len(seen), len(unseen)) == (20, 21)

    def test_too_few_pairs(self) -> None:
        with pytest.raises(UsageError, match="19 pairs of a picture and a text are too few: at least 20"):
            modalities(unit_rows(19, 4, 0), unit_rows(19, 4, 1))


class TestAgreement:
    def test_ties_go_to_the_smaller_number(self) -> None:
        assert ranking(np.array([[0.2, 0.7, 0.2, 0.9]]), 3).tolist() == [[3, 1, 0]]

    def test_overlaps_by_hand(self) -> None:
        first, second = np.array([[4, 2, 7], [0, 1, 2], [0, 1, 2]]), np.array([[2, 9, 4], [0, 1, 2], [3, 4, 5]])
        assert jaccard(first, second) == pytest.approx([0.5, 1, 0])
        # 4 2 7 and 2 9 4: X is 0, 1, 2; 2/3 * .729 + .1/.9 * (0 + .5 * .81 + 2/3 * .729) = .585
        assert rank_biased_overlap(first, second) == pytest.approx([0.585, 1, 0])
        assert rank_biased_overlap(np.array([[0, 1]]), np.array([[1, 0]])) == pytest.approx([0.9])

    @pytest.mark.parametrize(("items", "k"), [(9, 1), (9, 4), (9, 7), (5, 5)])
    def test_overlaps_as_sets(self, items: int, k: int) -> None:
        rng = np.random.default_rng(items + k)
        first = np.stack([rng.permutation(items)[:k] for _ in range(11)])
        second = np.stack([rng.permutation(items)[:k] for _ in range(11)])
        for q in range(11):
            one, two = list(first[q]), list(second[q])
            assert jaccard(first, second)[q] == pytest.approx(len({*one} & {*two}) / len({*one} | {*two}))
            common = [len({*one[:d]} & {*two[:d]}) for d in range(1, k + 1)]
            series = sum(x / d * 0.7**d for d, x in enumerate(common, 1))
            expected = common[-1] / k * 0.7**k + 0.3 / 0.7 * series
            assert rank_biased_overlap(first, second, p=0.7)[q] == pytest.approx(expected)

    def test_tau_by_hand(self) -> None:
        """Of three pairs of items two stand alike: 2/3 - 1/3. The fourth item is in nobody's top and does not count."""
        first, second = np.array([[0.9, 0.8, 0.7, 0.1]]), np.array([[0.9, 0.5, 0.6, 0.2]])
        assert kendall_tau(first, second, np.array([[0, 1]]), np.array([[0, 2]])) == pytest.approx([1 / 3])
        assert kendall_tau(first, -second, np.array([[0, 1]]), np.array([[1, 2]])) == pytest.approx([-1 / 3])

    def test_tau_without_an_order(self) -> None:
        first, flat = np.array([[0.9, 0.8]]), np.array([[0.5, 0.5]])
        assert kendall_tau(first, flat, np.array([[0, 1]]), np.array([[0, 1]])) == [0]
        assert kendall_tau(first, flat, np.array([[0]]), np.array([[0]])) == [1]

    def test_two_models_by_hand(self) -> None:
        """Both find item 0 for question 0; for question 1, which is about item 1, only the first model is right."""
        gallery = np.eye(3)
        first = np.array([[0.9, 0.3, 0.1], [0.2, 0.9, 0.1]])
        second = np.array([[0.9, 0.3, 0.1], [0.2, 0.1, 0.9]])
        found = agreement((first, gallery), (second, gallery), (np.array([0, 1]), np.arange(3)), k=1)
        assert (found.questions, found.gallery, found.k) == (2, 3, 1)
        assert (found.jaccard, found.rank_biased_overlap, found.same_first) == (0.5, 0.5, 0.5)
        assert (found.both_right, found.only_first_right, found.only_second_right, found.neither_right) == (
            0.5,
            0.5,
            0,
            0,
        )
        assert found.kendall_tau == pytest.approx((1 - 1) / 2)  # one common item, then two in opposite order

    def test_questions_in_blocks_are_all_questions(self) -> None:
        """More questions than fit into one block, models of other sizes, and everything counted by plain loops."""
        sizes = {"questions": 301, "gallery": 13}
        first = (unit_rows(sizes["questions"], 4, 12), unit_rows(sizes["gallery"], 4, 13))
        second = (unit_rows(sizes["questions"], 6, 14), unit_rows(sizes["gallery"], 6, 15))
        about = np.arange(301) % 7, np.arange(13) % 7
        found = agreement(first, second, about, k=3)
        overlaps, both, same = [], 0, 0
        for q in range(301):
            tops = []
            for questions, gallery in (first, second):
                scores = [float(questions[q] @ row) for row in gallery]
                tops.append(sorted(range(13), key=lambda n, s=scores: (-s[n], n))[:3])
            overlaps.append(len({*tops[0]} & {*tops[1]}) / len({*tops[0], *tops[1]}))
            both += all(any(n % 7 == q % 7 for n in top) for top in tops)
            same += tops[0][0] == tops[1][0]
        assert found.jaccard == pytest.approx(np.mean(overlaps))
        assert (found.both_right, found.same_first) == pytest.approx((both / 301, same / 301))
        parts = (found.both_right, found.only_first_right, found.only_second_right, found.neither_right)
        assert sum(parts) == pytest.approx(1)

    def test_answers_to_other_questions_cannot_be_compared(self) -> None:
        rows = np.eye(3)
        with pytest.raises(UsageError, match="asked 3 questions about 3 items, the second 2 about 3"):
            agreement((rows, rows), (rows[:2], rows), (np.arange(3), np.arange(3)))
        with pytest.raises(UsageError, match="nothing to compare"):
            agreement((rows[:0], rows), (rows[:0], rows), (np.arange(0), np.arange(3)))


class TestConsistency:
    def test_by_hand(self) -> None:
        """The first question turns from its answer to the opposite corner, the second stays where it is."""
        gallery = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        before, after = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
        found = consistency("turned", before, after, gallery, (np.array([0, 2]), np.arange(3)), k=1)
        assert found is not None
        assert (found.change, found.questions, found.k) == ("turned", 2, 1)
        assert (found.cosine, found.overlap) == (0.5, 0.5)
        assert (found.right_before, found.right_after, found.lost, found.gained) == (1, 0.5, 0.5, 0)
        assert (found.rank_before, found.rank_after, found.rank_change) == (1, 2, 1)  # 1, 1 then 3, 1

    def test_the_best_of_several_right_answers_counts(self) -> None:
        gallery = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
        about = np.array([1]), np.array([0, 1, 1, 0])
        found = consistency("none", np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), gallery, about, k=10)
        assert found is not None
        assert (found.k, found.rank_before, found.rank_after) == (4, 2, 2)
        assert consistency("none", gallery[:0], gallery[:0], gallery, about) is None

    @pytest.mark.parametrize(
        ("change", "before", "after"),
        [
            ("lower case", "A Dog.", "a dog."),
            ("upper case", "A Dog.", "A DOG."),
            ("no punctuation", "A man's T-shirt, well ( worn ) .", "A man's T shirt well worn"),
            ("full stop", "A dog", "A dog."),
            ("full stop", "A dog!", "A dog!"),
            ("no article", "The dog and a cat in an attic", "dog and cat in attic"),
            ("no article", "Theatre at dawn", "Theatre at dawn"),
            ("a photo of", "The Eiffel tower.", "a photo of the Eiffel tower."),
            ("a photo of", "Another dog", "a photo of Another dog"),
        ],
    )
    def test_rewordings(self, change: str, before: str, after: str) -> None:
        assert REWORDINGS[change](before) == after

    def test_other_captions(self) -> None:
        assert other_captions([["a", "b", "c"], ["d"], ["e", "f"]]) == ["b", "c", "a", None, "f", "e"]

    def test_alterations(self) -> None:
        """A picture of 40 x 20, dark red on the left and dark blue on the right."""
        image = Image.new("RGB", (40, 20), (100, 50, 20))
        image.paste((20, 50, 100), (20, 0, 40, 20))
        changed = {name: change(image) for name, change in ALTERATIONS.items()}
        assert {name: one.size for name, one in changed.items()} == {
            "JPEG quality 50": (40, 20),
            "crop to 90 %": (36, 18),
            "mirrored": (40, 20),
            "20 % brighter": (40, 20),
            "half the size": (20, 10),
        }
        corner = {name: one.getpixel((0, 0)) for name, one in changed.items()}
        assert corner["crop to 90 %"] == corner["half the size"] == (100, 50, 20)
        assert corner["mirrored"] == (20, 50, 100)
        assert corner["20 % brighter"] == (120, 60, 24)
        assert corner["JPEG quality 50"] == pytest.approx((100, 50, 20), abs=12)
        assert changed["JPEG quality 50"].mode == "RGB"
        assert changed["JPEG quality 50"].tobytes() != image.tobytes()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures of one colour each and one that is none, with two captions each; a train split beside."""
    folder = tmp_path / "walls"
    (folder / "images").mkdir(parents=True)
    rows = ["image\tcaption"]
    for name, colour in {"red": RED, "green": GREEN, "blue": BLUE}.items():
        Image.new("RGB", (20, 20), colour).save(folder / "images" / f"{name}.png")
        rows += [f"{name}.png\tA {name} wall", f"{name}.png\t{name}. [bold]"]
        Image.new("RGB", (20, 20), tuple(c // 2 for c in colour)).save(folder / "images" / f"dark-{name}.png")
        rows.append(f"dark-{name}.png\tA dark {name} wall")
    (folder / "images" / "broken.png").write_bytes(b"no picture")
    rows.append("broken.png\tA wall")
    (folder / "captions.tsv").write_text("\n".join(rows) + "\n")
    (folder / "test.txt").write_text("red.png\nbroken.png\ngreen.png\nblue.png\n")
    (folder / "train.txt").write_text("dark-red.png\ndark-green.png\ndark-blue.png\n")
    return folder


@pytest.fixture
def split(data: Path) -> Captioned:
    return open_dataset(data).split("test")


class RedsOnly(ColourEncoder):
    """Sees how red something is and nothing else."""

    name = "reds"

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        return super().encode_prepared(batch * np.array([1, 0, 0], np.float32)[:, None, None])


class TestEmbedding:
    def test_what_cannot_be_read_is_named_and_left_out_with_its_captions(self, split: Captioned) -> None:
        found = embed_split(ColourEncoder(), split)
        assert found.names == ("red.png", "green.png", "blue.png")
        assert found.owner.tolist() == [0, 0, 1, 1, 2, 2]
        assert found.images == pytest.approx(np.eye(3, 4) * 0.8944 + np.array([0, 0, 0, 0.4472]), abs=1e-4)
        assert found.texts[[0, 2, 4]] == pytest.approx(found.images)
        ((name, reason),) = [(one.path, one.reason) for one in found.skipped]
        assert name == "broken.png"
        assert "not a picture in a known format" in reason

    def test_many_pictures_keep_their_order_through_batches_and_views(self, tmp_path: Path) -> None:
        """150 greys, every seventh unreadable: row n has the grey of its picture, and the view half of it."""
        pictures = []
        for number in range(150):
            path = tmp_path / f"{number:03}.png"
            Image.new("RGB", (2, 2), (number, number, number)).save(path)
            if number % 7 == 3:
                path.write_bytes(b"")
            pictures.append(Picture(path.name, path))
        seen = []
        found = embed_pictures(
            ColourEncoder(), pictures, changes=[lambda image: image.point(lambda p: p // 2)], report=seen.append
        )
        kept = [number for number in range(150) if number % 7 != 3]
        assert found.numbers.tolist() == kept
        grey = found.views[:, :, 0] / found.views[:, :, 3] * 0.5 * 255  # (V, N)
        assert grey[0] == pytest.approx(kept, abs=0.01)
        assert grey[1] == pytest.approx([number // 2 for number in kept], abs=0.01)
        assert [(one.done, one.total, one.skipped) for one in seen] == [(64, 150, 9), (128, 150, 18), (150, 150, 21)]

    def test_nothing_that_can_be_read(self, data: Path) -> None:
        with pytest.raises(UsageError, match=r"none of 1 pictures can be read; the first is x: not a picture"):
            embed_pictures(ColourEncoder(), [Picture("x", data / "images" / "broken.png")])


class TestMeasures:
    def test_agreement_of_a_model_that_sees_red_only(self, split: Captioned) -> None:
        """Green and blue pictures have one vector for the second model, (0, 0, 0, 1), and the first of equals is green.

        Both find red for "A red wall" and green for "A green wall"; for "A blue wall" the second finds green. Where a
        full stop hides the colour, all pictures are equal for the first model and it finds red; the second finds green.
        Asked with the green or the blue picture, the second finds the first caption without a colour, red's.
        """
        first, second = embed_split(ColourEncoder(), split), embed_split(RedsOnly(), split)
        found = measure_agreement(first, second, k=1)
        ask, back = found["text->image"], found["image->text"]
        assert (ask.questions, ask.gallery, back.questions, back.gallery) == (6, 3, 3, 6)
        assert [ask.both_right, ask.only_first_right, ask.only_second_right, ask.neither_right] == pytest.approx(
            [2 / 6, 2 / 6, 1 / 6, 1 / 6]
        )
        assert [back.both_right, back.only_first_right, back.only_second_right, back.neither_right] == pytest.approx(
            [1 / 3, 2 / 3, 0, 0]
        )
        assert (ask.same_first, back.same_first) == pytest.approx((2 / 6, 1 / 3))

    def test_agreement_of_a_model_with_itself(self, split: Captioned) -> None:
        once = embed_split(ColourEncoder(), split)
        for found in measure_agreement(once, once, k=2).values():
            assert (found.jaccard, found.rank_biased_overlap, found.same_first) == pytest.approx((1, 1, 1))

    def test_agreement_needs_the_same_pictures(self, data: Path, split: Captioned) -> None:
        other = embed_split(ColourEncoder(), open_dataset(data).split("train"))
        with pytest.raises(UsageError, match="different pictures"):
            measure_agreement(embed_split(ColourEncoder(), split), other)

    def test_consistency_of_colours(self, split: Captioned) -> None:
        """A full stop hides a colour from this encoder and its absence shows it: cosine 0.5 / sqrt(1.25) = 0.447."""
        embedded, found = measure_consistency(ColourEncoder(), split, k=1)
        assert len(embedded.views) == 1 + len(ALTERATIONS)
        words = {one.change: one for one in found["text->image"]}
        assert (words["upper case"].questions, words["upper case"].cosine) == pytest.approx((6, 1))
        assert words["lower case"].questions == 3  # the others have no capitals
        assert words["no punctuation"].questions == 3
        assert words["no punctuation"].cosine == pytest.approx(0.4472, abs=1e-4)
        assert words["no punctuation"].right_before == pytest.approx(1 / 3)  # without colour, the first is red
        assert words["no punctuation"].right_after == 1
        assert words["no punctuation"].gained == pytest.approx(2 / 3)
        assert words["no article"].overlap == 1
        assert words["another caption"].questions == 6
        for one in (*found["image->text"], *found["image->image"]):
            assert (one.questions, one.right_before) == (3, 1)
        assert [one.change for one in found["image->image"]] == list(ALTERATIONS)
        mirrored = found["image->image"][2]
        assert (mirrored.change, mirrored.overlap, mirrored.rank_after) == ("mirrored", 1, 1)
        assert mirrored.cosine == pytest.approx(1)

    def test_modalities_are_those_of_pictures_and_first_captions(self, tmp_path: Path) -> None:
        """24 pictures, half of them red: their first captions have their vectors, their second ones no colour."""
        pictures, captions = [], []
        for number in range(24):
            colour = number % 3
            path = tmp_path / f"{number}.png"
            Image.new("RGB", (4, 4), (RED, GREEN, BLUE)[colour]).save(path)
            pictures.append(Picture(path.name, path))
            captions.append([f"a {('red', 'green', 'blue')[colour]} wall", "a wall"])
        found = measure_modalities(embed_split(ColourEncoder(), Captioned(pictures, captions)))
        assert found.pairs == 24
        assert found.alignment == pytest.approx(0, abs=1e-9)
        assert found.gap.distance == pytest.approx(0, abs=1e-6)


# -- the commands ------------------------------------------------------------------------------------------------------

ENCODERS = {"colours": ColourEncoder, "reds": RedsOnly}


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """The subcommands, where ``--model`` names one of ``ENCODERS``."""
    monkeypatch.setattr("indexer.encoders.load.load_encoder", lambda model, device=None: ENCODERS[model]())
    app = typer.Typer()
    register(app)
    return app


def run(app: typer.Typer, *arguments: str | Path) -> tuple[str, str]:
    """What the command said on stdout and on stderr."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


class TestCommands:
    def test_consistency(self, app: typer.Typer, data: Path) -> None:
        out, talk = run(app, "consistency", "--data", data, "--model", "colours", "-k", "1", "--json")
        found = json.loads(out)
        assert (found["model"], found["split"], found["pictures"], found["captions"]) == ("colours", "test", 3, 6)
        assert [one["name"] for one in found["skipped"]] == ["broken.png"]
        assert "mmsearch: skipped broken.png: not a picture" in talk
        assert {one["change"]: one["overlap"] for one in found["text->image"]}["no article"] == 1
        out, _ = run(app, "consistency", "--data", data, "--model", "colours", "-k", "1")
        (line,) = [line for line in out.splitlines() if "no punctuation" in line]
        assert line.split() == ["no", "punctuation", "3", "0.447", "0.333", "33.3→100.0", "0.0", "2→1", "1"]

    def test_agreement(self, app: typer.Typer, data: Path) -> None:
        arguments = ("agreement", "--data", data, "--model", "colours", "--model", "reds", "-k", "1")
        found = json.loads(run(app, *arguments, "--json")[0])
        assert found["model"] == ["colours", "reds"]
        assert found["image->text"]["questions"] == 3
        out, _ = run(app, *arguments)
        (line,) = [line for line in out.splitlines() if "only colours right" in line]
        parts = [f"{found[way]['only_first_right']:.1%}" for way in ("text->image", "image->text")]
        assert line.split()[-2:] == parts

    def test_agreement_is_between_two(self, app: typer.Typer, data: Path) -> None:
        with pytest.raises(UsageError, match="given 1 times"):
            run(app, "agreement", "--data", data, "--model", "colours")

    def test_modalities_say_how_many_pairs_are_missing(self, app: typer.Typer, data: Path) -> None:
        with pytest.raises(UsageError, match="3 pairs of a picture and a text are too few"):
            run(app, "modalities", "--data", data, "--model", "colours")

    def test_modalities(self, app: typer.Typer, tmp_path: Path) -> None:
        rng = np.random.default_rng(16)
        rows = ["image\tcaption"]
        (tmp_path / "images").mkdir()
        for number in range(30):
            colour = number % 3
            shade = tuple(int(c) for c in np.array((RED, GREEN, BLUE)[colour]) * rng.uniform(0.6, 1))
            Image.new("RGB", (4, 4), shade).save(tmp_path / "images" / f"{number}.png")
            rows.append(f"{number}.png\ta {('red', 'green', 'blue')[colour]} wall")
        (tmp_path / "captions.tsv").write_text("\n".join(rows))
        found = json.loads(
            run(app, "modalities", "--data", tmp_path, "--split", "all", "--model", "colours", "--json")[0]
        )
        assert found["pairs"] == found["pictures"] == 30
        assert found["correlations"][0] > 0.9
        assert 0 < found["infonce_bound"] <= found["infonce_ceiling"] == pytest.approx(math.log(15))
        out, _ = run(app, "modalities", "--data", tmp_path, "--split", "all", "--model", "colours")
        assert f"≥ {found['infonce_bound']:.2f} nats" in out

    def test_every_command_has_an_example_and_every_option_a_help(self, app: typer.Typer) -> None:
        group = typer.main.get_command(app)
        names = sorted(group.commands)  # type: ignore[attr-defined]
        assert names == ["agreement", "classify", "consistency", "describe", "modalities"]
        for name in names:
            command = group.commands[name]  # type: ignore[attr-defined]
            assert f"Example: mmsearch eval {name}" in command.help
            assert [option.name for option in command.params if not option.help] == []

    def test_the_commands_load_nothing_heavy_before_they_run(self) -> None:
        code = "import sys, mmsearch.evaluation.analyses; print(*sys.modules)"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        heavy = {"torch", "faiss", "sqlalchemy", "scipy", "PIL", "matplotlib", "sacrebleu", "rich.table"}
        assert not heavy & set(found)
