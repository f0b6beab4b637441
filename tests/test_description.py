"""Describing pictures by retrieval: the scores of captions worked out by hand, and the choice by consensus."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import typer
from colour_encoder import ColourEncoder
from conftest import GREEN, RED
from PIL import Image
from typer.testing import CliRunner

from indexer.errors import UsageError
from mmsearch.evaluation.analyses import register
from mmsearch.evaluation.description import (
    bleu,
    caption_scores,
    cider_d,
    cider_vectors,
    consensus,
    describe,
    rouge_l,
    words,
)

VOCABULARY = ["dog", "cat", "red", "runs", "the", "a", "in", "snow"]


def sentences(count: int, seed: int) -> list[str]:
    """Of one to nine of few words, so that they share and repeat some."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(VOCABULARY, size=rng.integers(1, 10))) for _ in range(count)]


def grams(text: str, order: int) -> list[tuple[str, ...]]:
    parts = text.split()
    return [tuple(parts[i : i + order]) for i in range(len(parts) - order + 1)]


def test_words() -> None:
    assert words("A man's best friend, well-known!") == ["a", "man's", "best", "friend", "well", "known"]
    assert words("'Über' dogs' 2 ") == ["über", "dogs", "2"]
    assert words(" . ") == []


class TestBleu:
    def test_by_hand(self) -> None:
        """Two of four words (``the`` counts once), one of three pairs, no triple; and as long as the reference."""
        assert bleu(["the the the cat"], [["The cat sat down."]]) == pytest.approx((0.5, math.sqrt(1 / 6), 0, 0))

    def test_too_short_is_punished(self) -> None:
        """Both words are right, and two are missing to the nearest reference: exp(1 - 4 / 2)."""
        references = ["a dog runs fast", "a dog runs fast in the snow"]
        assert bleu(["a dog"], [references])[:2] == pytest.approx((math.exp(-1), math.exp(-1)))

    def test_pictures_with_more_and_fewer_references(self) -> None:
        """Together five of six words are in some reference of their picture, and lengths 3 and 3 are met by 3 and 3."""
        found = bleu(["a red cat", "a big dog"], [["a red dog", "the cat sat there"], ["one big dog"]])
        assert found[0] == pytest.approx(5 / 6)

    @pytest.mark.parametrize("seed", range(4))
    def test_as_defined(self, seed: int) -> None:
        captions = sentences(13, seed)
        references = [sentences(1 + n % 3, 100 * seed + n + 7) for n in range(13)]
        length = sum(len(text.split()) for text in captions)
        nearest = sum(
            min((len(one.split()) for one in some), key=lambda n, c=text: (abs(n - len(c.split())), n))
            for text, some in zip(captions, references, strict=True)
        )
        brevity = 1.0 if length > nearest else math.exp(1 - nearest / length)
        logs = []
        for order in (1, 2):
            hits = total = 0
            for text, some in zip(captions, references, strict=True):
                for gram, count in Counter(grams(text, order)).items():
                    total += count
                    hits += min(count, max(grams(one, order).count(gram) for one in some))
            logs.append(math.log(hits / total))
        expected = [brevity * math.exp(logs[0]), brevity * math.exp(sum(logs) / 2)]
        assert bleu(captions, references)[:2] == pytest.approx(expected)


class TestRouge:
    def test_by_hand(self) -> None:
        assert rouge_l(["a", "dog", "runs", "fast"], [["a", "brown", "dog", "runs"]]) == pytest.approx(0.75)
        # L is 2 of 2 words and 2 of 4: (1 + 1.44) * 1 * 0.5 / (0.5 + 1.44 * 1)
        assert rouge_l(["a", "dog"], [["a", "dog", "runs", "fast"]]) == pytest.approx(1.22 / 1.94)
        assert rouge_l(["a", "dog"], [["cats"]]) == 0
        assert rouge_l([], [["cats"]]) == 0
        assert rouge_l(["cats"], [[]]) == 0

    def test_precision_and_recall_may_come_from_different_references(self) -> None:
        """P = 1 by the long reference, which holds the whole caption; R = 1 by the short one, which it holds."""
        assert rouge_l(["a", "dog", "runs"], [["a", "dog", "runs", "in", "the", "snow"], ["dog"]]) == pytest.approx(1)

    def test_as_the_longest_of_all_subsequences(self) -> None:
        def subsequences(parts: list[str]) -> set[tuple[str, ...]]:
            found: set[tuple[str, ...]] = {()}
            for part in parts:
                found |= {(*one, part) for one in found}
            return found

        pairs = [(a.split(), b.split()) for a, b in zip(sentences(40, 1), sentences(40, 2), strict=True)]
        for one, two in pairs:
            common = max(map(len, subsequences(one) & subsequences(two)))
            p, r = common / len(one), common / len(two)
            expected = 2.44 * p * r / (r + 1.44 * p) if common else 0
            assert rouge_l(one, [two]) == pytest.approx(expected)


class TestCider:
    def test_exact_words_by_hand(self) -> None:
        """Cosine 1 for words and pairs, nothing for longer ones: 10 * (1 + 1 + 0 + 0) / 4."""
        assert cider_d(["red car", "blue sky"], [["red car"], ["blue sky"]]) == pytest.approx([5, 5])

    def test_weights_by_hand(self) -> None:
        """``a`` is said of both pictures and weighs log(2/2) = 0; ``dog``, ``runs`` and ``cat`` weigh log 2 each.

        "a dog" against "a dog runs": words (0, l) and (0, l, l), cosine 1 / sqrt 2; pairs "a dog" against "a dog" and
        "dog runs", the same; no triple in the caption; one word shorter, so exp(-1 / 72).
        """
        expected = 10 * math.exp(-1 / 72) * (2 / math.sqrt(2)) / 4
        assert cider_d(["a dog", "a"], [["a dog runs"], ["a cat"]]) == pytest.approx([expected, 0])

    def test_repeating_a_good_word_does_not_pay(self) -> None:
        """``dog dog`` has 2 l of ``dog``, of which the reference has l: min(2, 1) * 1 / (2 * 1) = 1/2 for words."""
        once, twice = cider_d(["dog", "dog dog"], [["dog"], ["dog"]]), cider_d(["dog dog", "x"], [["dog"], ["cat"]])
        assert once == [0, 0]  # said of every picture
        assert twice[0] == pytest.approx(10 * math.exp(-1 / 72) * 0.5 / 4)

    def test_the_mean_over_references(self) -> None:
        assert cider_d(["red car", "blue sky"], [["red car", "no match"], ["blue sky"]]) == pytest.approx([2.5, 5])

    @pytest.mark.parametrize("seed", range(3))
    def test_as_defined(self, seed: int) -> None:
        captions = sentences(9, seed)
        references = [sentences(1 + n % 4, 50 * seed + n + 3) for n in range(9)]

        def weights(order: int) -> dict[tuple[str, ...], float]:
            every = {gram for some in references for one in some for gram in grams(one, order)}
            return {
                gram: math.log(9 / sum(any(gram in grams(one, order) for one in some) for some in references))
                for gram in every
            }

        expected = []
        for text, some in zip(captions, references, strict=True):
            total = 0.0
            for order in (1, 2, 3, 4):
                weight = weights(order)
                for one in some:
                    every = sorted({*grams(text, order), *grams(one, order)})
                    idf = np.array([weight.get(gram, math.log(9)) for gram in every])
                    c = np.array([grams(text, order).count(gram) for gram in every]) * idf
                    r = np.array([grams(one, order).count(gram) for gram in every]) * idf
                    norms = np.linalg.norm(c) * np.linalg.norm(r)
                    longer = len(text.split()) - len(one.split())
                    if norms:
                        total += math.exp(-(longer**2) / 72) * np.minimum(c, r) @ r / norms / 4 / len(some)
            expected.append(10 * total)
        assert cider_d(captions, references) == pytest.approx(expected)

    def test_vectors_by_hand(self) -> None:
        """Of three texts ``red`` and ``car`` are in two, so weigh log 1.5; ``sky`` and ``green`` log 3."""
        vectors = cider_vectors(["red car", "red sky", "green car"])
        shared, rare = math.log(1.5), math.log(3)
        cosine = shared**2 / (math.sqrt(2) * shared * math.hypot(shared, rare))
        likeness = (vectors @ vectors.T).toarray()
        assert likeness[0] == pytest.approx([0.5, cosine / 4, cosine / 4])  # with itself: words and pairs, of four
        assert likeness[1, 2] == 0

    def test_vectors_of_long_equal_texts_have_length_one(self) -> None:
        vectors = cider_vectors(["a dog runs in snow", "a dog runs in snow", "the cat sat on a mat"])
        assert (vectors @ vectors.T).toarray() == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]), abs=0.01)


class TestConsensus:
    def test_by_hand(self) -> None:
        """The third has most in common with the rest: the second half of the first, the first half of the fourth."""
        texts = ["birds fly over dogs", "xylophones", "dogs chase cats", "cats sleep", "noise alone"]
        assert consensus(cider_vectors(texts)) == 2

    def test_the_first_of_equals(self) -> None:
        assert consensus(cider_vectors(["red car", "blue sky", "green hill"])) == 0
        assert consensus(cider_vectors(["lone", "red car", "red car"])) == 1


class TestDescribe:
    IMAGES = np.array([[1.0, 0.0], [0.0, 1.0]])
    CORPUS = ("two dogs run", "brown dogs run home", "brown dogs sleep", "cats sit", "cats sit down")
    VECTORS = np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.0, 1.0]])

    def test_by_hand(self) -> None:
        """The first picture is nearest to text 0; among texts 0, 1 and 2, the middle one shares words with both."""
        references = [["brown dogs run home"], ["cats sit down"]]
        found = describe(self.IMAGES, references, self.CORPUS, self.VECTORS, candidates=3)
        assert found.top_captions == ("two dogs run", "cats sit down")
        assert found.consensus_captions[0] == "brown dogs run home"
        assert found.top.bleu[0] == pytest.approx(math.exp(1 - 7 / 6) * 5 / 6)  # dogs, run, cats, sit, down of six
        assert found.top == caption_scores(found.top_captions, references)
        assert found.consensus == caption_scores(found.consensus_captions, references)
        assert (found.pictures, found.corpus, found.candidates) == (2, 5, 3)

    def test_consensus_of_one_is_the_nearest(self) -> None:
        found = describe(self.IMAGES, [["dogs"], ["cats"]], self.CORPUS, self.VECTORS, candidates=1)
        assert found.consensus_captions == found.top_captions
        assert found.consensus == found.top

    def test_there_must_be_something_to_choose_from_and_to_compare_with(self) -> None:
        with pytest.raises(UsageError, match="2 pictures and a corpus of 0 texts"):
            describe(self.IMAGES, [["a"], ["b"]], (), np.zeros((0, 2)))
        with pytest.raises(UsageError, match="no caption to compare"):
            describe(self.IMAGES, [["a"], []], self.CORPUS, self.VECTORS)


class TestCommand:
    @pytest.fixture
    def app(self, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
        monkeypatch.setattr("indexer.encoders.load.load_encoder", lambda model, device=None: ColourEncoder())
        app = typer.Typer()
        register(app)
        return app

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        (tmp_path / "images").mkdir()
        rows = ["image\tcaption"]
        for name, colour in {"red": RED, "green": GREEN}.items():
            for split in ("test", "train"):
                Image.new("RGB", (4, 4), colour).save(tmp_path / "images" / f"{split}-{name}.png")
            rows += [f"test-{name}.png\ta {name} wall of bricks", f"train-{name}.png\tone {name} wall of [b]stone[/b]"]
        (tmp_path / "captions.tsv").write_text("\n".join(rows))
        (tmp_path / "test.txt").write_text("test-red.png\ntest-green.png\n")
        (tmp_path / "train.txt").write_text("train-red.png\ntrain-green.png\n")
        return tmp_path

    def run(self, app: typer.Typer, *arguments: str | Path) -> str:
        result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def test_captions_of_another_split(self, app: typer.Typer, data: Path) -> None:
        """Each picture gets the caption of its colour: 3 of 7 words (``b`` and ``stone`` are words here) are right."""
        found = json.loads(self.run(app, "describe", "--data", data, "--json"))
        assert found["names"] == ["test-red.png", "test-green.png"]
        assert found["top_captions"] == ["one red wall of [b]stone[/b]", "one green wall of [b]stone[/b]"]
        assert found["top"]["bleu"][0] == pytest.approx(3 / 7)
        out = self.run(app, "describe", "--data", data)
        (line,) = [line for line in out.splitlines() if line.strip().startswith("nearest  ")]
        assert line.split()[1] == "0.429"
        assert "one red wall of [b]stone[/b]" in " ".join(out.split())

    def test_captions_of_a_file(self, app: typer.Typer, data: Path) -> None:
        corpus = data / "lines.txt"
        corpus.write_text("\ufeffa green wall of bricks\n\n  a red wall of bricks \n")
        found = json.loads(self.run(app, "describe", "--data", data, "--corpus", corpus, "--json"))
        assert found["top_captions"] == ["a red wall of bricks", "a green wall of bricks"]
        assert (found["corpus"], found["candidates"], found["top"]["bleu"][0]) == (2, 2, 1)

    def test_pictures_are_not_described_by_their_own_captions(self, app: typer.Typer, data: Path) -> None:
        with pytest.raises(UsageError, match="the captions of 'test' would describe their own pictures"):
            self.run(app, "describe", "--data", data, "--corpus", "test")
