"""Training a reranker: its losses, what it is shown, how it is judged, and a run from captions to reranked answers."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLES
from corner_encoder import CornerEncoder, write_corners
from PIL import Image
from test_cli import mmsearch
from test_fusion import model, shape, sides

from indexer.errors import UsageError
from indexer.types import Modality
from mmsearch.calibration import FusedLine, Line
from mmsearch.datasets import Picture, open_dataset
from mmsearch.rerank import PictureSide, TextSide
from mmsearch.rerank.fusion import Compressor
from mmsearch.rerank.fusion_onnx import FusionReranker
from mmsearch.training import features, rerank
from mmsearch.training.calibrate import fit_logistic
from mmsearch.training.checkpoint import load_state
from mmsearch.training.features import Patches, Words, picture_vectors
from mmsearch.training.group_losses import hinge_loss, list_loss, match_loss
from mmsearch.training.material import fold_of
from mmsearch.training.mining import NOBODY, alike, confused, drawn_groups, mean_vectors
from mmsearch.training.recovery import Recovery
from mmsearch.training.rerank import open_folds, readers_of, train_rerank
from mmsearch.training.reranked import TO_IMAGE, TO_TEXT, Scored, best_candidates, fused_line, ranks
from mmsearch.training.run import read_settings, settings_text
from mmsearch.training.settings import Augmentation, DualSettings, RerankSettings

pytestmark = pytest.mark.slow(reason="trains rerankers")

OFF = Augmentation(crop=0, aspect=0, mirror=0, colour=0)


def drawn_logits(groups: int = 3, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of groups, and some pairs in them, both ways round, that are to be ignored."""
    torch.manual_seed(1)
    ignored = torch.rand(groups, size, size) < 0.2
    ignored = (ignored | ignored.mT) & ~torch.eye(size, dtype=torch.bool)
    return 2 * torch.randn(groups, size, size), ignored


class TestLosses:
    def test_by_hand(self) -> None:
        """The examples of the docstrings."""
        nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
        logits = torch.eye(2)[None]
        assert list_loss(logits, nothing).item() == pytest.approx(math.log(1 + math.exp(-1)))
        assert list_loss(logits, nothing, 0.2).item() == pytest.approx(math.log(1 + math.exp(-1)) + 0.1)
        hinge = hinge_loss(torch.tensor([[[1, 0.7], [0, 1]]]), nothing, 0.5)
        assert hinge.item() == pytest.approx(0.2)
        matched = (math.log(1 + math.exp(-1)) + math.log(2)) / 2
        assert match_loss(logits, nothing).item() == pytest.approx(matched)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_list_loss_equals_its_plain_twin(self, smoothing: float) -> None:
        logits, ignored = drawn_logits()
        costs = []
        for group, skip in zip(logits.tolist(), ignored.tolist(), strict=True):
            for i in range(5):
                rows = (
                    [group[i][j] for j in range(5) if not skip[i][j]],
                    [group[j][i] for j in range(5) if not skip[j][i]],
                )
                for row in rows:
                    total = math.log(sum(map(math.exp, row)))
                    spread = sum(total - value for value in row) / len(row)
                    costs.append((1 - smoothing) * (total - group[i][i]) + smoothing * spread)
        assert list_loss(logits, ignored, smoothing).item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)

    def test_hinge_loss_equals_its_plain_twin(self) -> None:
        logits, ignored = drawn_logits()
        cost = 0.0
        for group, skip in zip(logits.tolist(), ignored.tolist(), strict=True):
            for i in range(5):
                others = [j for j in range(5) if j != i]
                cost += max([0.0] + [1 + group[i][j] - group[i][i] for j in others if not skip[i][j]])
                cost += max([0.0] + [1 + group[j][i] - group[i][i] for j in others if not skip[j][i]])
        assert hinge_loss(logits, ignored, 1.0).item() == pytest.approx(cost / 15, rel=1e-5)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_match_loss_equals_its_plain_twin(self, smoothing: float) -> None:
        logits, ignored = drawn_logits()
        own, wrong = [], []
        for group, skip in zip(logits.tolist(), ignored.tolist(), strict=True):
            for i, j in itertools.product(range(5), range(5)):
                label = (1 - smoothing) * (i == j) + smoothing / 2
                yes, no = math.log(1 + math.exp(-group[i][j])), math.log(1 + math.exp(group[i][j]))
                if not skip[i][j]:
                    (own if i == j else wrong).append(label * yes + (1 - label) * no)
        expected = (sum(own) / len(own) + sum(wrong) / len(wrong)) / 2
        assert match_loss(logits, ignored, smoothing).item() == pytest.approx(expected, rel=1e-5)

    def test_what_is_ignored_has_no_gradient(self) -> None:
        logits, ignored = drawn_logits()
        for loss in (list_loss(logits.requires_grad_(), ignored, 0.1), match_loss(logits, ignored, 0.1)):
            (gradient,) = torch.autograd.grad(loss, logits)
            assert (gradient[ignored] == 0).all() and (gradient[~ignored] != 0).all()


class TestMining:
    def test_confused_equals_its_plain_twin_and_leaves_out_what_says_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Pictures 3 and 8 are described alike: neither is a mistake for the other, however near it is."""
        monkeypatch.setattr("mmsearch.training.mining.CHUNK", 4)
        rng = np.random.default_rng(0)
        image, text = (rng.standard_normal((n, 6)).astype(np.float32) for n in (11, 22))
        text[16:18] = text[6:8] + 0.01
        image[8] = image[3]
        image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text))
        owner = np.repeat(np.arange(11), 2)
        means = mean_vectors(text, owner, 11)
        near = confused(image, means, 9, 0.92)
        for n in range(11):
            twin = {n, *({3, 8} if n in (3, 8) else ())}
            scores = {m: (text[2 * n] @ image[m] + text[2 * n + 1] @ image[m]) / 2 for m in range(11) if m not in twin}
            expected = sorted(scores, key=lambda m: -scores[m])[:9]
            assert near[n].tolist() == expected + [NOBODY] * (9 - len(expected)), n
        assert 8 not in near[3] and 3 not in near[8]

    def test_alike_pairs_of_a_group(self) -> None:
        means = np.array([[2.0, 0], [0, 1], [1, 0.1], [0, -1]])
        found = alike(means, np.array([[0, 1, 2], [3, 1, 0]]), 0.92)
        assert np.argwhere(found).tolist() == [[0, 0, 2], [0, 2, 0]]

    def test_groups_have_different_members_that_are_confused_with_each_other(self) -> None:
        near = np.array([[(n + 1) % 20, (n + 2) % 20, NOBODY] for n in range(20)], np.int32)
        groups = drawn_groups(near, 6, 3, 40, np.random.default_rng(3))
        assert groups.shape == (40, 6)
        for group in groups.tolist():
            assert len(set(group)) == 6 and NOBODY not in group
            assert {(group[1] - group[0]) % 20, (group[2] - group[0]) % 20} == {1, 2}  # the first seed's confusions
        again = drawn_groups(near, 6, 3, 40, np.random.default_rng(3))
        other = drawn_groups(near, 6, 3, 40, np.random.default_rng(4))
        assert (groups == again).all() and (groups != other).any()

    def test_without_confusions_every_picture_is_seen_once_before_any_is_seen_again(self) -> None:
        groups = drawn_groups(np.full((12, 1), NOBODY, np.int32), 4, 4, 6, np.random.default_rng(0))
        assert sorted(groups[:3].ravel().tolist()) == sorted(groups[3:].ravel().tolist()) == list(range(12))


class TestJudging:
    def test_ranks_by_hand(self) -> None:
        """Two questions of five answers, three candidates each; the right answers are 4, and 0 and 3."""
        scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.9, 0.8, 0.8, 0.7]])
        own = np.array([[0, 0, 0, 0, 1], [1, 0, 0, 1, 0]], bool)
        found = best_candidates(scores, own, 3)
        assert found.answers.tolist() == [[0, 1, 2], [1, 2, 3]]
        assert found.rank.tolist() == [4, 2]  # the tie with answer 2 counts against it
        assert found.shares == (1 / 3, 5 / 7)
        assert ranks(found, np.array([[1.0, 2, 3], [1.0, 0, 2]])).tolist() == [4, 0]
        assert ranks(found, np.array([[1.0, 2, 3], [1.0, 0, 1]])).tolist() == [4, 1]

    def test_ranks_equal_their_plain_twin(self) -> None:
        rng = np.random.default_rng(2)
        scores, own = rng.integers(0, 6, (40, 12)).astype(float), rng.random((40, 12)) < 0.2
        own[:, 0] |= ~own.any(axis=1)
        found = best_candidates(scores, own, 5)
        again = rng.integers(0, 4, (40, 5)).astype(float)
        for question, rank in enumerate(ranks(found, again).tolist()):
            value = dict(zip(found.answers[question].tolist(), again[question], strict=True))
            right = [value[n] for n in value if own[question, n]]
            if right:
                assert rank == sum(value[n] >= max(right) for n in value if not own[question, n])
            else:
                best = max(scores[question][own[question]])
                assert rank == max(5, sum(scores[question][n] >= best for n in range(12) if not own[question, n]))

    def test_both_stages_together_by_hand(self) -> None:
        """Log-odds 2 · cosine; the second answer is right, and the second stage says so if it counts enough."""
        found = best_candidates(np.array([[0.5, 0.3]]), np.array([[False, True]]), 2)
        scored = Scored("dev", found, np.array([[0.0, 0.5]]), found, np.array([[0.0, 0.5]]))
        first = dict.fromkeys((TO_IMAGE, TO_TEXT), Line(mean=0.0, std=0.5, slope=1.0, bias=0.0))
        lines = {TO_IMAGE: FusedLine(1.0, 0.5, 0.0), TO_TEXT: FusedLine(1.0, 1.0, 0.0)}
        assert scored.dual().as_dict() == {"text_to_image": [0, 100, 100], "image_to_text": [0, 100, 100]}
        assert scored.fused(first, lines).as_dict() == {
            "text_to_image": [0, 100, 100],
            "image_to_text": [100, 100, 100],
        }

    def test_the_bank_counts_by_answer_and_by_question(self) -> None:
        near, asked = np.array([0.1, 0.2, 0.4]), np.array([0.3])
        found = best_candidates(np.array([[0.1, 0.9, 0.5]]), np.array([[True, False, False]]), 2, near, asked)
        odds = found.log_odds(np.array([[1.0, 2.0]]), Line(0.0, 1.0, 1.0, 0.0), FusedLine(1.0, 1.0, -1.0, -2.0, 5.0))
        assert odds.tolist() == [pytest.approx([0.9 + 1 - 1 - 0.4 + 1.5, 0.5 + 2 - 1 - 0.8 + 1.5])]

    def test_log_odds_that_are_known_are_found(self) -> None:
        """At the prior of the gallery, they come out moved to that of one in a thousand."""
        rng = np.random.default_rng(0)
        cosines = np.sort(rng.normal(0.2, 0.1, (2000, 50)), axis=1)[:, ::-1]
        logits, near, asked = rng.normal(0, 2, (2000, 50)), rng.normal(0.3, 0.1, 50), rng.normal(0.3, 0.1, 2000)
        truth = 0.8 * logits + 8 * cosines - 6 * near + 3 * asked[:, None] - 4.5
        own = rng.random((2000, 50)) < 1 / (1 + np.exp(-truth))
        found = best_candidates(cosines, own, 50, near, asked)
        line = Line(mean=0.1, std=0.05, slope=2.0, bias=-5.0)
        fused = fused_line(found, logits, line)
        assert fused is not None
        odds = found.log_odds(logits, line, fused)
        moved = math.log(1 / 1000) - math.log(own.sum() / (~own).sum())
        assert np.abs(odds - (truth + moved)).max() < 0.6
        assert fused.fusion == pytest.approx(0.8, abs=0.08) and fused.answer == pytest.approx(-6, abs=0.6)
        assert fused.dual == pytest.approx(8 / line.gain, rel=0.1) and fused.question == pytest.approx(3, abs=0.6)

    def test_the_odds_are_those_of_what_stands_first(self) -> None:
        """Right answers of which nothing tells but that they are never second: what stands first is believed more."""
        rng = np.random.default_rng(3)
        scores = np.sort(rng.normal(0, 1, (3000, 10)), axis=1)[:, ::-1]
        own = np.zeros((3000, 10), bool)
        own[:, 0] = rng.random(3000) < 0.5
        own[:, 9] = ~own[:, 0] & (rng.random(3000) < 0.2)
        line = Line(0.0, 1.0, 1.0, 0.0)
        found = best_candidates(scores, own, 10)
        fused = fused_line(found, scores, line)
        assert fused is not None
        gallery = math.log(own.sum() / (~own).sum()) - math.log(1 / 1000)
        odds = found.log_odds(scores, line, fused)[:, 0] + gallery
        (slope,), bias = fit_logistic(scores.reshape(-1, 1), own.ravel(), np.ones(own.size))
        plain = slope * scores[:, 0] + bias
        believed, plainly, truth = ((1 / (1 + np.exp(-each))).mean() for each in (odds, plain, np.zeros(1)))
        assert abs(believed - truth) < 0.7 * abs(plainly - truth)

    def test_of_the_unrelated_the_candidates_have_their_share(self) -> None:
        """The same candidates of a gallery ten times as large are likelier matches, by log 10."""
        rng = np.random.default_rng(1)
        scores = rng.normal(0, 1, (300, 20))
        own = np.zeros((300, 20), bool)
        own[:, 0] = True
        scores[:, 0] += 2
        larger = np.concatenate([scores, np.full((300, 180), -9.0)], axis=1), np.pad(own, ((0, 0), (0, 180)))
        line = Line(0.0, 1.0, 1.0, 0.0)
        small, large = (
            fused_line(best_candidates(*each, 20), np.take_along_axis(scores, np.argsort(-scores), axis=1), line)
            for each in ((scores, own), larger)
        )
        assert small is not None and large is not None
        assert large.bias - small.bias == pytest.approx(math.log(199 / 19), abs=0.3)

    def test_a_reranker_that_tells_nothing_has_no_line(self) -> None:
        asked = best_candidates(np.array([[0.5, 0.3]] * 9), np.array([[True, False]] * 9), 2)
        assert fused_line(asked, np.array([[0.0, 1.0]] * 9), Line(0.0, 1.0, 1.0, 0.0)) is None
        certain = best_candidates(np.array([[0.5, 0.3]]), np.array([[True, True]]), 2)
        assert fused_line(certain, np.zeros((1, 2)), Line(0.0, 1.0, 1.0, 0.0)) is None


def painted(folder: Path, count: int) -> list[Picture]:
    """Pictures of four colours, and no two alike."""
    orders = list(itertools.permutations(("red", "green", "blue", "yellow", "cyan", "pink"), 4))
    data = write_corners(folder, orders[: count + 1], 1)
    return open_dataset(data).splits["train"].pictures


class TestFeatures:
    def test_the_patches_of_a_picture_come_from_the_run_that_has_not_seen_it(self, tmp_path: Path) -> None:
        """The three encoders make them 2, 3 and 4 times as bright as the first one does."""
        pictures = painted(tmp_path / "data", 30)
        folds = [CornerEncoder(f"f{n}", n + 1) for n in (1, 2, 3)]
        readers = readers_of(pictures, CornerEncoder(), folds)
        assert sorted(np.concatenate([numbers for _, numbers in readers]).tolist()) == list(range(30))
        arguments = {"name": "train", "folder": tmp_path, "views": 2, "augmentation": OFF, "seed": 0, "log": print}
        crossed, plain = (
            Patches(each, pictures, **arguments) for each in (readers, readers_of(pictures, CornerEncoder(), []))
        )
        numbers = np.arange(30)[::-1]
        expected = plain.rows(numbers) * torch.tensor([fold_of(pictures[n], 3) + 1.0 for n in numbers])[:, None, None]
        assert torch.equal(crossed.rows(numbers), expected)
        assert torch.equal(crossed.rows(numbers, np.arange(30) % 2), expected)  # the augmentation is off
        assert len({fold_of(picture, 3) for picture in pictures}) == 3

    def test_views_are_kept_and_not_computed_again(self, tmp_path: Path) -> None:
        pictures = painted(tmp_path / "data", 5)
        arguments = {"name": "train", "folder": tmp_path, "views": 3, "seed": 0, "log": print}

        class Counting(CornerEncoder):
            seen = 0

            def encode_prepared_patches(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                Counting.seen += len(batch)
                return super().encode_prepared_patches(batch)

        encoder, augmentation = Counting(), Augmentation(mirror=0.5, crop=0.9)
        for _ in range(2):
            patches = Patches([(encoder, np.arange(5))], pictures, augmentation=augmentation, **arguments)
        assert Counting.seen == 15
        plain, mixed = patches.rows(np.array([4, 4, 4])), patches.rows(np.array([4, 4, 4]), np.array([0, 1, 2]))
        assert torch.equal(plain[0], mixed[0]) and not torch.equal(mixed[1], mixed[2])
        assert np.allclose(
            patches.vectors(), CornerEncoder().encode_images([picture.open() for picture in pictures]), atol=1e-3
        )
        other = picture_vectors(CornerEncoder("c1"), pictures, name="train", folder=tmp_path)
        assert np.array_equal(other, patches.vectors())
        Patches([(encoder, np.arange(5))], pictures, augmentation=Augmentation(mirror=0), **arguments)
        assert Counting.seen == 25  # other changes make other views; the pictures as they are stay

    def test_words_are_what_the_encoder_says(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(features, "TEXT_BATCH", 2)
        texts = ["red topleft", "blue topleft, pink topright, green bottomleft", "cyan bottomright, red topleft"]
        vectors, states = CornerEncoder().encode_text_states(texts)
        for _ in range(2):
            words = Words(CornerEncoder(), texts, name="dev", folder=tmp_path)
            rows, mask = words.rows(np.array([2, 0]))
            assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
            assert np.array_equal(rows[0], states[2])
            assert np.array_equal(rows[1, :2], states[0]) and not rows[1, 2:].any()
            assert np.array_equal(words.vectors, vectors) and words.lengths.tolist() == [2, 6, 4]
        monkeypatch.setattr(features, "LONGEST", 3)
        assert np.array_equal(
            Words(CornerEncoder(), texts, name="dev", folder=tmp_path).rows(np.array([1]))[0][0], states[1][:3]
        )

    def test_folds_are_runs_that_left_out_their_part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = {}
        for name, fold in (("one", "1/2"), ("two", "2/2"), ("all", "")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.toml").write_text(settings_text(DualSettings(data="x", fold=fold)))
            found[str(tmp_path / name)] = CornerEncoder(name)
        monkeypatch.setattr(rerank, "load_encoder", lambda name, device: found[name])
        one, two, all_ = found
        device = torch.device("cpu")
        assert [each.fingerprint for each in open_folds([one, two], CornerEncoder(), device)] == ["one", "two"]
        with pytest.raises(UsageError, match="was trained with fold 2/2; number 1 of 2 folds"):
            open_folds([two, one], CornerEncoder(), device)
        with pytest.raises(UsageError, match="left out no part"):
            open_folds([one, all_], CornerEncoder(), device)
        found[two].patches = (9, 3)
        with pytest.raises(UsageError, match="gives patches of the form"):
            open_folds([one, two], CornerEncoder(), device)


class TestRecovery:
    def test_one_hidden_word_alone_is_certain_and_equal_words_are_no_rivals(self) -> None:
        fusion = model()
        recovery = Recovery(fusion)
        words, mask, tokens = sides(texts=3)
        hidden = torch.zeros(3, 6, dtype=torch.bool)
        assert recovery.words(fusion, words, mask, tokens, hidden).item() == 0
        hidden[1, 2] = True
        assert recovery.words(fusion, words, mask, tokens, hidden).item() == pytest.approx(0, abs=1e-6)
        hidden[2, 1] = True
        assert recovery.words(fusion, words, mask, tokens, hidden).item() > 0.01
        words[2, 1] = words[1, 2]
        assert recovery.words(fusion, words, mask, tokens, hidden).item() == pytest.approx(0, abs=1e-6)

    def test_what_is_hidden_is_not_seen(self) -> None:
        """The guess of a hidden word does not depend on it, nor that of a patch on its token."""
        fusion = model()
        recovery = Recovery(fusion)
        words, mask, tokens = sides(texts=3)
        seen: list[torch.Tensor] = []
        for layer in (recovery.guess, recovery.patch):
            layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        hidden, covered = torch.zeros(3, 6, dtype=torch.bool), torch.zeros(3, 9, dtype=torch.bool)
        hidden[:, 1] = covered[:, 4] = True
        other_words, other_tokens = words.clone(), tokens.clone()
        other_words[:, 1], other_tokens[:, 4] = torch.randn(3, 6), torch.randn(3, 8)
        for some in (words, other_words):
            recovery.words(fusion, some, mask, tokens, hidden)
        assert torch.allclose(seen[0], seen[1])
        for some in (tokens, other_tokens):
            recovery.tokens(fusion, words, mask, some, torch.randn(3, 9, 7), covered)
        assert torch.allclose(seen[2], seen[3])

    def test_both_exercises_teach_the_picture_side(self) -> None:
        torch.manual_seed(2)
        fusion, compressor = model(), Compressor(shape())
        recovery = Recovery(fusion)
        words, mask, _ = sides(texts=3)
        patches = torch.randn(3, 16, 7)
        hidden, covered = mask > 0, torch.rand(3, 9) < 0.5
        for loss in (
            recovery.words(fusion, words, mask, compressor(patches), hidden),
            recovery.tokens(fusion, words, mask, compressor(patches), torch.randn(3, 9, 7), covered),
        ):
            (gradient,) = torch.autograd.grad(loss, compressor.project.weight)
            assert gradient.abs().max() > 1e-6


class TestSettings:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"loss": "soup"}, "list, hinge, match"),
            ({"group": 1}, "group is 1"),
            ({"smoothing": 0.1, "loss": "hinge"}, "no labels to smooth"),
            ({"smoothing": 1.0}, "below 1"),
            ({"mlm": 0.1, "fusion": "gated"}, "leave out mlm"),
            ({"patches": -1.0}, "patches is -1"),
            ({"folds": ("one",)}, "at least two"),
        ],
    )
    def test_what_makes_no_sense_is_named(self, wrong: dict, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            RerankSettings(**wrong)


@pytest.fixture
def corners(monkeypatch: pytest.MonkeyPatch) -> Iterator[CornerEncoder]:
    """Whatever encoder a run asks for, it is this one."""
    encoder = CornerEncoder()
    monkeypatch.setattr(rerank, "load_encoder", lambda name, device: encoder)
    yield encoder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All orders of four of six colours, 300 to train on and 60 to judge by."""
    orders = list(itertools.permutations(("red", "green", "blue", "yellow", "cyan", "pink"), 4))
    np.random.default_rng(0).shuffle(orders)
    return write_corners(tmp_path_factory.mktemp("corners") / "data", [tuple(order) for order in orders], 60)


def toy(data: Path, **more: object) -> RerankSettings:
    plain = {
        "side": 4, "width": 16, "size": 32, "heads": 2, "products": 16, "epochs": 3, "groups": 2, "group": 8,
        "together": 6, "views": 1, "augmentation": OFF, "alike": 1.1, "learning_rate": 3e-3, "ema": 0.9, "seed": 3,
    }  # fmt: skip
    return RerankSettings(data=str(data), **(plain | more))  # type: ignore[arg-type]


def events(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


class TestRun:
    def test_a_reranker_learns_to_look(self, data: Path, corners: CornerEncoder, tmp_path: Path) -> None:
        """The vectors of pictures with the same colours are equal; where the colours are only the patches say."""
        out = train_rerank(tmp_path / "run", toy(data, epochs=20), cache=tmp_path, device="cpu")
        first, *_, last = events(out)
        assert first["text_to_image"][0] < 30 and first["image_to_text"][0] < 30
        assert last["text_to_image"][0] > 80 and last["image_to_text"][0] > 80
        reranker = FusionReranker(out)
        dev = open_dataset(data).split("dev")
        assert reranker.compressor is not None
        pixels = np.stack([corners.prepare(picture.open()) for picture in dev.pictures])
        tokens = reranker.compressor.compress(corners.encode_prepared_patches(pixels)[1])
        states = corners.encode_text_states([captions[0] for captions in dev.captions])[1]
        pairs = np.array(list(itertools.product(range(20), range(60))))
        scores = reranker.score([TextSide("", one) for one in states], [PictureSide(one) for one in tokens], pairs)
        right = scores.reshape(20, 60).argmax(axis=1) == np.arange(20)
        assert right.mean() > 0.7
        line = reranker.calibration[Modality.TEXT, Modality.IMAGE]
        assert line.fusion > 0 and line.dual >= 0

    def test_a_stopped_run_goes_on_bit_for_bit(
        self, data: Path, corners: CornerEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With all that has a state: dropout, an average, exercises, and confusions that the reranker itself found."""
        settings = toy(data, mlm=0.1, patches=0.1, refresh=1, epochs=3, pool=10)
        whole = train_rerank(tmp_path / "whole", settings, cache=tmp_path, device="cpu")
        advance = rerank._Run._advance

        def interrupted(self: rerank._Run, numbers: np.ndarray) -> float:
            if self._step == 18 + 6:
                os.kill(os.getpid(), signal.SIGINT)
            return advance(self, numbers)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(rerank._Run, "_advance", interrupted)
            train_rerank(tmp_path / "parts", settings, cache=tmp_path, device="cpu")
        assert load_state(tmp_path / "parts" / "checkpoints" / "last.safetensors")["step"] == 25
        assert not (tmp_path / "parts" / "config.json").exists()
        parts = train_rerank(tmp_path / "parts", settings, resume=True, cache=tmp_path, device="cpu")
        for name in ("compressor.safetensors", "fusion.safetensors", "calibration.json", "bank.safetensors"):
            assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
        logs = [[{k: v for k, v in event.items() if k != "seconds"} for event in events(run)] for run in (parts, whole)]
        assert logs[0] == logs[1] and logs[0][-2]["epoch"] == 3
        near = [load_state(run / "checkpoints" / "last.safetensors")["near"] for run in (parts, whole)]
        assert torch.equal(*near)

    @pytest.mark.parametrize(
        "more",
        [
            {"loss": "hinge"},
            {"loss": "match", "smoothing": 0.1},
            {"loss": "list"},
            {"fusion": "merged"},
            {"fusion": "gated"},
        ],
        ids=["hinge", "match", "list", "merged", "gated"],
    )
    def test_other_losses_and_fusions_learn(
        self, more: dict, data: Path, corners: CornerEncoder, tmp_path: Path
    ) -> None:
        out = train_rerank(tmp_path / "run", toy(data, epochs=4, **more), cache=tmp_path, device="cpu")
        losses = [event["loss"] for event in events(out) if "loss" in event]
        assert losses[-1] < 0.97 * losses[0]
        assert read_settings(out / "config.toml", RerankSettings) == toy(data, epochs=4, **more)

    def test_the_card_compares_both_stages(self, data: Path, corners: CornerEncoder, tmp_path: Path) -> None:
        settings = toy(data, epochs=1, judges=(str(data),))
        out = train_rerank(tmp_path / "run", settings, cache=tmp_path, device="cpu", command="mmsearch train rerank")
        card = (out / "README.md").read_text()
        for words in (
            "dev, first stage alone",
            "dev, reranked",
            "data, reranked",
            "mmsearch train rerank",
            "| train | 300 |",
        ):
            assert words in card, words

    def test_what_cannot_be_is_said_before_a_folder_is_made(
        self, data: Path, corners: CornerEncoder, tmp_path: Path
    ) -> None:
        for more, message in (
            ({"fusion": "soup"}, "cross, merged, gated"),
            ({"width": 2000}, "bytes a picture"),
            ({"heads": 5}, "5 heads cannot share"),
        ):
            with pytest.raises(UsageError, match=message):
                train_rerank(tmp_path / "run", toy(data, **more), device="cpu")
        corners.patches = (15, 3)
        with pytest.raises(UsageError, match="form no square"):
            train_rerank(tmp_path / "run", toy(data), device="cpu")
        assert not (tmp_path / "run").exists()

    def test_an_encoder_without_patches_is_refused(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from colour_encoder import ColourEncoder

        monkeypatch.setattr(rerank, "load_encoder", lambda name, device: ColourEncoder())
        with pytest.raises(UsageError, match="mini gives no patches"):
            train_rerank(tmp_path / "run", toy(data), device="cpu")


def test_from_captions_to_reranked_answers(tmp_path: Path) -> None:
    """The commands as a user would type them, with the embedded model and photographs."""
    photographs = sorted((SAMPLES / "photos").rglob("*.jpg"))[:7]
    rows = ["image\tcaption"]
    for path in photographs:
        name = path.stem.replace("-", " ")
        rows += [f"{path.name}\ta photograph of a {name}", f"{path.name}\t{name}"]
    (tmp_path / "data" / "images").mkdir(parents=True)
    for path in photographs:
        with Image.open(path) as photograph:
            photograph.resize((160, 120)).save(tmp_path / "data" / "images" / path.name)
    (tmp_path / "data" / "captions.tsv").write_text("\n".join(rows) + "\n")
    for split, some in (("train", photographs[:5]), ("dev", photographs[5:])):
        (tmp_path / "data" / f"{split}.txt").write_text("".join(f"{path.name}\n" for path in some))
    sizes = {"epochs": 1, "group": 3, "views": 2, "size": 32, "width": 16, "products": 16, "device": "cpu"}
    wanted = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    run = mmsearch("train", "rerank", "--data", tmp_path / "data", "--out", tmp_path / "run", *wanted)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{tmp_path / 'run'}\n"
    exported = mmsearch("train", "export", "--run", tmp_path / "run", "--out", tmp_path / "packaged")
    assert exported.returncode == 0, exported.stderr
    assert {path.name for path in (tmp_path / "packaged").iterdir()} == {
        *("bank.safetensors", "calibration.json", "compressor.safetensors", "config.json", "fusion.safetensors")
    }
    where = ["--index", tmp_path / "index", "--reranker", tmp_path / "packaged"]
    indexed = mmsearch("index", tmp_path / "data" / "images", *where)
    assert indexed.returncode == 0, indexed.stderr
    asked = mmsearch(
        "query", photographs[0].stem, "-k", "7", "--json", "--index", tmp_path / "index", "--reranker", tmp_path / "run"
    )
    assert asked.returncode == 0, asked.stderr
    hits = json.loads(asked.stdout)["hits"]
    assert len(hits) == 7 and all(hit["reranked"] for hit in hits)
    nothing = mmsearch("train", "rerank", "--out", tmp_path / "other")
    assert nothing.returncode == 2 and "say what to train on" in nothing.stderr
