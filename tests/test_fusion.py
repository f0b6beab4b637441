"""The fusion model in torch: two ways to compute one thing, what must not matter, and the folder that queries read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from indexer.errors import ModelError, UsageError
from indexer.types import Modality
from mmsearch.rerank import PictureSide, TextSide, export
from mmsearch.rerank.fusion import FUSIONS, Compressor, Fusion, FusionShape, pooled
from mmsearch.rerank.fusion_numpy import FUSION
from mmsearch.rerank.fusion_onnx import OUTPUTS, FusionReranker, open_session

pytestmark = pytest.mark.slow(reason="builds and exports networks")

LINES = {
    "text->image": {"dual": 1.0, "fusion": 2.0, "bias": -1.0},
    "image->text": {"dual": 1.5, "fusion": 2.5, "bias": -2.0},
}
SHAPES = [(fusion, layers) for fusion in FUSIONS for layers in (1, 2)]


def shape(fusion: str = "cross", layers: int = 1, **more: int) -> FusionShape:
    sizes = {"grid": 4, "patch_size": 7, "state_size": 6, "side": 3, "width": 8, "size": 12, "heads": 3, "products": 5}
    return FusionShape(fusion=fusion, layers=layers, **(sizes | more))


def model(fusion: str = "cross", layers: int = 1, **more: int) -> Fusion:
    """With weights large enough to matter: those it begins with say nearly the same of all pairs."""
    torch.manual_seed(3)
    made = Fusion(shape(fusion, layers, **more)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


def sides(texts: int = 4, words: int = 6, pictures: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Words, of which all texts but the first have fewer, their mask, and tokens."""
    torch.manual_seed(4)
    mask = torch.zeros(texts, words)
    for row in range(texts):
        mask[row, : words - row] = 1
    return torch.randn(texts, words, 6), mask, torch.randn(pictures, 9, 8)


def all_pairs(texts: int, pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(texts).repeat_interleave(pictures), torch.arange(pictures).repeat(texts)


class TestShape:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"fusion": "soup"}, "cross, merged, gated"),
            ({"size": 10}, "3 heads cannot share"),
            ({"side": 5}, "only 4 a side"),
            ({"layers": 0}, "layers is 0"),
            ({"hidden": -1}, "hidden is -1"),
        ],
    )
    def test_what_does_not_fit_is_named(self, wrong: dict, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            shape(**wrong)


class TestCompressor:
    def test_tokens_are_of_mean_0_and_variance_1(self) -> None:
        torch.manual_seed(0)
        tokens = Compressor(shape())(5 + 3 * torch.randn(2, 16, 7))
        assert tokens.shape == (2, 9, 8)
        assert tokens.mean(dim=-1).abs().max() < 1e-6
        assert torch.allclose(tokens.var(dim=-1, unbiased=False), torch.ones(2, 9), atol=1e-3)

    def test_pooling_by_hand(self) -> None:
        """3 by 3 to 2 by 2: each token is the mean of four patches, and neighbours share some."""
        patches = torch.arange(9.0).reshape(1, 9, 1)
        assert pooled(patches, 3, 2).flatten().tolist() == [2, 3, 5, 6]
        assert pooled(patches, 3, 3) is patches

    def test_a_hidden_layer_adds_to_the_projection(self) -> None:
        torch.manual_seed(0)
        compressor = Compressor(shape(hidden=10))
        patches = torch.randn(2, 16, 7)
        with torch.no_grad():
            before = compressor(patches)
            compressor.down.weight.zero_()
            plain = Compressor(shape())
            plain.load_state_dict({k: v for k, v in compressor.state_dict().items() if k.startswith(("norm", "proj"))})
            assert torch.equal(compressor(patches), plain(patches))
        assert (before - plain(patches)).abs().max() > 0.01


class TestFusion:
    def test_cross_by_hand(self) -> None:
        """Without a head the logit is e^fine times the cosine of what each word is and what it found.

        One head, everything the identity but for the norms: two tokens (1, -1) and (-1, 1) (already normed), words
        that norm to the same; with a sharpness of log 3 a word's look goes to the tokens as e³ : e⁻³.
        """
        fusion = Fusion(
            FusionShape(grid=2, patch_size=2, state_size=2, side=1, width=2, size=2, heads=1, products=2)
        ).eval()
        fusion.places = torch.nn.Parameter(torch.zeros(2, 2))  # two tokens, so that there is something to choose
        look, compare = fusion.meeting.looks[0], fusion.meeting.compare
        with torch.no_grad():
            for linear in (
                fusion.words[2],
                fusion.tokens[0],
                look.query,
                look.key,
                look.value,
                compare.word,
                compare.found,
            ):
                linear.weight.copy_(torch.eye(2))
                if linear.bias is not None:
                    linear.bias.zero_()
            look.sharpness.fill_(math.log(3))
            compare.alone.weight.zero_()
            compare.head[3].weight.zero_()
            compare.head[3].bias.zero_()
            compare.fine.fill_(math.log(2))
            tokens = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]], [[1.0, -1.0], [1.0, -1.0]]])
            words, mask = torch.tensor([[[4.0, 2.0], [0.0, 6.0]]]), torch.ones(1, 2)
            seen = fusion.pairs(words, mask, tokens, torch.tensor([0, 0]), torch.tensor([0, 1]))
        sure = math.exp(3) / (math.exp(3) + math.exp(-3))
        assert torch.allclose(seen.attention[0], torch.tensor([[sure, 1 - sure], [1 - sure, sure]]), atol=1e-5)
        assert torch.allclose(seen.attention[1], torch.full((2, 2), 0.5), atol=1e-6)
        # picture 0: both words find what they are; picture 1 has what the first is, and the opposite of the second
        assert seen.logits.tolist() == pytest.approx([2.0, 0.0], abs=1e-4)

    @pytest.mark.parametrize(("fusion", "layers"), SHAPES)
    def test_groups_equal_pairs(self, fusion: str, layers: int) -> None:
        made = model(fusion, layers)
        words, mask, tokens = sides(texts=6, pictures=4)
        with torch.no_grad():
            grouped = made.groups(
                words.unflatten(0, (2, 3)), mask.unflatten(0, (2, 3)), tokens.unflatten(0, (2, 2))
            )  # 2 groups of 3 texts and 2 pictures
            text, picture = all_pairs(6, 4)
            paired = made.pairs(words, mask, tokens, text, picture).logits.reshape(6, 4)
        expected = torch.stack([paired[:3, :2], paired[3:, 2:]])
        assert grouped.shape == (2, 3, 2)
        assert torch.allclose(grouped, expected, atol=1e-5)
        assert paired.std() > 0.01  # it says something

    @pytest.mark.parametrize(("fusion", "layers"), SHAPES)
    def test_their_gradients_are_equal_too(self, fusion: str, layers: int) -> None:
        words, mask, tokens = sides(texts=3)
        weigh = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
        found = []
        for grouped in (True, False):
            made = model(fusion, layers)
            logits = (
                made.groups(words[None], mask[None], tokens[None])[0]
                if grouped
                else made.pairs(words, mask, tokens, *all_pairs(3, 3)).logits.reshape(3, 3)
            )
            (logits * weigh).sum().backward()
            found.append({name: parameter.grad for name, parameter in made.named_parameters()})
        for name, gradient in found[0].items():
            assert torch.allclose(gradient, found[1][name], atol=1e-4), name

    @pytest.mark.parametrize(("fusion", "layers"), SHAPES)
    def test_padding_changes_nothing(self, fusion: str, layers: int) -> None:
        made = model(fusion, layers)
        words, mask, tokens = sides()
        text, picture = all_pairs(4, 3)
        longer = torch.cat([words, 9 * torch.randn(4, 5, 6)], dim=1)
        padded = torch.cat([mask, torch.zeros(4, 5)], dim=1)
        noise = torch.where(padded[..., None] > 0, longer, torch.randn(longer.shape))
        with torch.no_grad():
            plain = made.pairs(words, mask, tokens, text, picture)
            for other in (longer, noise):
                seen = made.pairs(other, padded, tokens, text, picture)
                assert torch.allclose(seen.logits, plain.logits, atol=1e-5)
                real = padded[text] > 0
                assert (seen.weights[~real] == 0).all()
                assert torch.allclose(seen.weights[:, :6], plain.weights, atol=1e-6)
                kept = mask[text] > 0
                assert torch.allclose(seen.attention[:, :6][kept], plain.attention[kept], atol=1e-6)

    @pytest.mark.parametrize(("fusion", "layers"), SHAPES)
    def test_permuted_candidates_have_permuted_logits(self, fusion: str, layers: int) -> None:
        made = model(fusion, layers)
        words, mask, tokens = sides()
        text, picture = all_pairs(4, 3)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
        pictures = torch.tensor([2, 0, 1])
        with torch.no_grad():
            plain = made.pairs(words, mask, tokens, text, picture)
            shuffled = made.pairs(words, mask, tokens, text[order], picture[order])
            turned = made.pairs(words, mask, tokens[pictures], text, pictures.argsort()[picture])
        for one, other in zip(plain, shuffled, strict=True):
            assert torch.allclose(one[order], other, atol=1e-6)
        assert torch.allclose(plain.logits, turned.logits, atol=1e-6)

    @pytest.mark.parametrize(("fusion", "layers"), SHAPES)
    def test_looks_and_weights_are_parts_of_one(self, fusion: str, layers: int) -> None:
        words, mask, tokens = sides()
        with torch.no_grad():
            seen = model(fusion, layers).pairs(words, mask, tokens, *all_pairs(4, 3))
        assert seen.attention.shape == (12, 6, 9) and seen.weights.shape == (12, 6)
        assert seen.attention.min() >= 0 and seen.weights.min() >= 0
        assert torch.allclose(seen.attention.sum(dim=-1), torch.ones(12, 6), atol=1e-5)
        assert torch.allclose(seen.weights.sum(dim=-1), torch.ones(12), atol=1e-5)

    @pytest.mark.parametrize("fusion", ["cross", "merged"])
    def test_matched_words_know_their_own_picture_alone(self, fusion: str) -> None:
        made = model(fusion, 2)
        words, mask, tokens = sides(texts=3)
        with torch.no_grad():
            x, y = made.sides(words, tokens)
            plain = made.matched(x, mask, y)
            y[2] = -y[2]
            changed = made.matched(x, mask, y)
        assert torch.equal(plain[:2], changed[:2]) and (plain[2] - changed[2]).abs().max() > 1e-3

    def test_in_the_late_fusion_words_meet_no_patches(self) -> None:
        made = model("gated")
        words, mask, tokens = sides(texts=3)
        with pytest.raises(UsageError, match="use cross or merged"):
            made.matched(*made.sides(words, tokens)[:1], mask, tokens)

    def test_an_empty_text_gives_no_nan(self) -> None:
        words, mask, tokens = sides()
        for fusion, layers in SHAPES:
            with torch.no_grad():
                seen = model(fusion, layers).pairs(words, 0 * mask, tokens, *all_pairs(4, 3))
            assert torch.isfinite(seen.logits).all(), (fusion, layers)


def exported(folder: Path, fusion: Fusion, compressor: Compressor, **more: object) -> Path:
    arguments = {"name": "small", "encoder": "e0", "candidates": 30, "calibration": LINES}
    return export.export(folder, compressor, fusion, **(arguments | more))  # type: ignore[arg-type]


class TestExport:
    @pytest.mark.parametrize(("fusion", "layers"), SHAPES)
    def test_the_folder_says_what_torch_says(self, fusion: str, layers: int, tmp_path: Path) -> None:
        """Texts of other lengths, other numbers of everything, than the export has seen."""
        torch.manual_seed(6)
        made, compressor = model(fusion, layers), Compressor(shape(fusion, layers, hidden=4))
        folder = exported(tmp_path, made, compressor)
        reranker = FusionReranker(folder)
        assert (reranker.name, reranker.encoder, reranker.candidates) == ("small", "e0", 30)
        assert reranker.calibration[Modality.IMAGE, Modality.TEXT].fusion == 2.5
        rng = np.random.default_rng(0)
        patches = rng.standard_normal((3, 16, 7)).astype(np.float32)
        states = [rng.standard_normal((length, 6)).astype(np.float32) for length in (8, 1, 3, 5, 2)]
        assert reranker.compressor is not None
        tokens = reranker.compressor.compress(patches)
        with torch.no_grad():
            assert np.allclose(tokens, compressor(torch.from_numpy(patches)).numpy(), atol=1e-5)
            for texts in (states, states[1:2]):
                pairs = np.array([(t, p) for t in range(len(texts)) for p in (2, 0)])
                found = reranker.score(
                    [TextSide("", one) for one in texts], [PictureSide(one) for one in tokens], pairs
                )
                for logit, (text, picture) in zip(found, pairs, strict=True):
                    one = torch.from_numpy(texts[text])[None]
                    seen = made.pairs(
                        one,
                        torch.ones(one.shape[:2]),
                        torch.from_numpy(tokens[picture])[None],
                        *2 * [torch.tensor([0])],
                    )
                    assert logit == pytest.approx(seen.logits.item(), abs=1e-4)

    def test_a_folder_of_before_has_a_graph_and_says_the_same(self, tmp_path: Path) -> None:
        made = model()
        folder = exported(tmp_path, made, Compressor(shape()))
        rng = np.random.default_rng(0)
        text = TextSide("", rng.standard_normal((4, 6)).astype(np.float32))
        pictures = [PictureSide(rng.standard_normal((9, 8)).astype(np.float32)) for _ in range(3)]
        pairs = np.array([(0, 2), (0, 0), (0, 1)])
        new = FusionReranker(folder)
        scores, look = new.score([text], pictures, pairs), new.look(text, pictures[1])
        assert np.ptp(scores) > 0.1
        (folder / "fusion.safetensors").unlink()
        export._write_onnx(folder / "fusion.onnx", made)
        old = FusionReranker(folder)
        assert np.allclose(old.score([text], pictures, pairs), scores, rtol=0, atol=1e-5)
        again = old.look(text, pictures[1])
        assert again.logit == pytest.approx(look.logit, abs=1e-5)
        assert np.allclose(again.attention, look.attention, atol=1e-6)
        assert np.allclose(again.weights, look.weights, atol=1e-6)
        assert not isinstance(old.network, type(new.network))

    @pytest.mark.parametrize(("fusion", "layers"), SHAPES)
    def test_every_output_is_that_of_torch(self, fusion: str, layers: int, tmp_path: Path) -> None:
        made = model(fusion, layers)
        words, mask, tokens = sides(texts=5, words=7, pictures=2)
        text, picture = torch.tensor([4, 0, 2]), torch.tensor([1, 1, 0])
        export._write_onnx(tmp_path / "fusion.onnx", made)
        networks = [open_session(tmp_path / "fusion.onnx")]
        if fusion == FUSION:
            exported(tmp_path / "new", made, Compressor(shape(fusion, layers)))
            networks.append(FusionReranker(tmp_path / "new").network)
        inputs = {"words": words, "mask": mask, "tokens": tokens, "text": text, "picture": picture}
        given = {name: value.numpy() for name, value in inputs.items()}
        with torch.no_grad():
            expected = made.pairs(words, mask, tokens, text, picture)
        for network in networks:
            for one, other in zip(network.run(list(OUTPUTS), given), expected, strict=True):
                assert one.shape == tuple(other.shape) and np.allclose(one, other.numpy(), atol=1e-5)

    def test_a_model_that_is_being_trained_is_exported_without_its_dropout(self, tmp_path: Path) -> None:
        """It is then in evaluation mode, and stays so."""
        made = Fusion(shape(), dropout=0.5).train()
        exported(tmp_path, made, Compressor(shape()).train())
        assert not any(module.training for module in made.modules())

    @pytest.mark.parametrize(("fusion", "file"), [("cross", "fusion.safetensors"), ("gated", "fusion.onnx")])
    def test_large_weights_are_stored_short(
        self, fusion: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = model(fusion, size=96, products=64)
        long = (exported(tmp_path / "long", made, Compressor(shape())) / file).stat().st_size
        monkeypatch.setattr(export, "LARGEST", 1000)
        folder = exported(tmp_path / "short", made, Compressor(shape()))
        assert 0.4 < (folder / file).stat().st_size / long < 0.75
        words, mask, tokens = sides()
        text, picture = all_pairs(4, 3)
        inputs = {"words": words, "mask": mask, "tokens": tokens, "text": text, "picture": picture}
        given = {name: value.numpy() for name, value in inputs.items()}
        (found,) = FusionReranker(folder).network.run(["logits"], given)
        with torch.no_grad():
            expected = made.pairs(words, mask, tokens, text, picture).logits.numpy()
        difference = np.abs(found - expected).max()
        assert 0 < difference < 0.02 * np.abs(expected).max()

    def test_fingerprints_say_what_changed(self, tmp_path: Path) -> None:
        """Other words leave the tokens as they are; another compressor or encoder makes other tokens."""
        torch.manual_seed(6)
        made, compressor = model(), Compressor(shape())
        configs = []
        for number, change in enumerate(("nothing", "nothing", "fusion", "compressor", "encoder")):
            with torch.no_grad():
                if change == "fusion":
                    made.meeting.compare.fine += 0.5
                if change == "compressor":
                    compressor.project.bias += 0.5
            folder = exported(tmp_path / str(number), made, compressor, encoder="e1" if change == "encoder" else "e0")
            configs.append(json.loads((folder / "config.json").read_text()))
        marks = [(config["fingerprint"], config["tokens"]["fingerprint"]) for config in configs]
        assert marks[0] == marks[1]
        assert marks[2][0] != marks[1][0] and marks[2][1] == marks[1][1]
        assert len({mark for mark, _ in marks}) == 4 and len({tokens for _, tokens in marks}) == 3

    def test_what_computes_otherwise_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The folder is then no reranker: it has no config."""
        write = export._write_network

        def wrong(folder: Path, fusion: Fusion, *, short: bool) -> Path:
            other = Fusion(fusion.shape).eval()
            other.load_state_dict(fusion.state_dict())
            with torch.no_grad():
                other.meeting.get_parameter("compare.head.3.bias" if kind == "cross" else "head.3.bias").add_(0.01)
            return write(folder, other, short=short)

        monkeypatch.setattr(export, "_write_network", wrong)
        for kind in ("cross", "merged"):
            with monkeypatch.context() as right:
                right.setattr(export, "_write_network", write)
                exported(tmp_path, model(kind), Compressor(shape(kind)))
            with pytest.raises(ModelError, match=r"exported logits differ from those of torch by 0\.01"):
                exported(tmp_path, model(kind), Compressor(shape(kind)))
            assert not (tmp_path / "config.json").exists()

    def test_an_export_of_another_kind_leaves_nothing_of_the_first(self, tmp_path: Path) -> None:
        """The folder of a run, and that to which it is copied."""
        for kind, file, other in (
            ("cross", "fusion.safetensors", "fusion.onnx"),
            ("gated", "fusion.onnx", "fusion.safetensors"),
            ("cross", "fusion.safetensors", "fusion.onnx"),
        ):
            run = exported(tmp_path / "run", model(kind), Compressor(shape(kind)))
            export.copy_reranker(run, tmp_path / "out")
            for folder in (run, tmp_path / "out"):
                assert (folder / file).exists() and not (folder / other).exists(), kind

    def test_tokens_that_an_index_has_no_room_for(self, tmp_path: Path) -> None:
        large = shape(width=2000)
        with pytest.raises(UsageError, match="bytes a picture"):
            exported(tmp_path, Fusion(large), Compressor(large))

    def test_a_copy_holds_what_a_package_needs(self, tmp_path: Path) -> None:
        run = exported(tmp_path / "run", model(), Compressor(shape()))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "bank.safetensors").write_bytes(b"of another reranker")
        (run / "log.jsonl").write_text("{}\n")
        export.copy_reranker(run, tmp_path / "out")
        names = ["calibration.json", "compressor.safetensors", "config.json", "fusion.safetensors"]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
        for name in names:
            assert (tmp_path / "out" / name).read_bytes() == (run / name).read_bytes()
        assert set(load_file(run / "compressor.safetensors")) == {
            "norm.weight",
            "norm.bias",
            "project.weight",
            "project.bias",
        }
        with pytest.raises(ModelError, match=r"config\.json"):
            export.copy_reranker(tmp_path / "nothing", tmp_path / "other")
        (run / "fusion.safetensors").unlink()
        with pytest.raises(ModelError, match=r"cannot load the reranker .*fusion\.onnx"):
            export.copy_reranker(run, tmp_path / "other")
