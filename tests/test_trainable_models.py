"""Models that can be trained: their stages compute what the model computes, what is saved opens, adapters fold in."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AlignConfig,
    AlignModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from indexer.encoders import Encoder
from indexer.encoders.load import load_encoder
from indexer.encoders.mini import PACKAGED
from indexer.errors import ModelError, UsageError
from mmsearch.training.models import DualModel, State, Tower
from mmsearch.training.models.huggingface import HuggingFacePair
from mmsearch.training.models.load import load_trainable
from mmsearch.training.models.lora import add_lora, merge_lora
from mmsearch.training.models.openclip import OpenClipModel

pytestmark = pytest.mark.slow(reason="builds models of every kind")

WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "a", "dog", "red", "car", "and", "the", "sea"]
TEXTS = ["a dog", "the red car and the sea", "sea"]
OWN_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
LOCAL_TOKENS = {"hf_tokenizer_name": "local", "tokenizer_kwargs": {"clean": "canonicalize"}, "vocab_size": 11}
LOCAL_TEXT = {**OWN_TEXT, **LOCAL_TOKENS, "pool_type": "eos", "eos_id": 3}


def timm_config(name: str, **more: Any) -> dict[str, Any]:
    vision = {"image_size": 96, "timm_model_name": name, "timm_pool": "", "timm_proj": "linear", **more}
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": LOCAL_TEXT}


OPEN_CLIP: dict[str, tuple[dict[str, Any], int, int]] = {
    # name: configuration, image stages, text stages
    "clip": (
        {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
            "text_cfg": OWN_TEXT,
        },
        1 + 2 + 1,
        1 + 2 + 1,
    ),
    "siglip": (
        {
            "embed_dim": 64,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
            "text_cfg": {
                **LOCAL_TOKENS,
                "context_length": 12,
                "width": 64,
                "heads": 2,
                "layers": 2,
                "no_causal_mask": True,
                "proj_bias": True,
                "pool_type": "last",
            },
        },
        1 + 6 + 1,
        1 + 2 + 1,
    ),
    "resnet": (
        {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8, "head_width": 32},
            "text_cfg": LOCAL_TEXT,
        },
        1 + 4 + 1,
        4,
    ),
    "coca": (
        {
            "embed_dim": 24,
            "custom_text": True,
            "vision_cfg": {
                "image_size": 32,
                "layers": 2,
                "width": 64,
                "patch_size": 16,
                "head_width": 32,
                "attentional_pool": True,
                "attn_pooler_queries": 5,
                "attn_pooler_heads": 4,
                "output_tokens": True,
            },
            "text_cfg": {**LOCAL_TEXT, "pad_id": 1, "context_length": 15, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": {"context_length": 15, "width": 24, "heads": 2, "layers": 1, "vocab_size": 11},
        },
        4,
        4,
    ),
    "convnext": (timm_config("test_convnext"), 1 + 4 + 1, 4),
    "efficientnet": (timm_config("test_efficientnet", timm_pool="avg"), 1 + 5 + 1, 4),
    "timm-resnet": (timm_config("test_resnet", timm_pool="avg"), 1 + 4 + 1, 4),
    "relpos": (timm_config("test_vit_relpos", image_size=160), 1 + 1, 4),
}


def tokenizer() -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **special)


@torch.no_grad()
def stir(module: nn.Module) -> None:
    """Move every parameter and statistic: in a new model many are zero or one, which hides mistakes."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and "logit" not in name and "temperature" not in name:
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator) - 0.1)


def pictures(count: int = 3) -> list[Image.Image]:
    """Dark, grey and light noise, of different heights."""
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(80 * n, 80 * n + 90, (50 + 9 * n, 80, 3), np.uint8)) for n in range(count)]


def pixels(model: DualModel, count: int = 3) -> State:
    return (torch.from_numpy(np.stack([model.prepare(picture) for picture in pictures(count)])),)


def rows(model: DualModel) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and texts as the stages embed them."""
    with torch.inference_mode():
        return model.image(pixels(model)).numpy(), model.text(model.tokens(TEXTS)).numpy()


def assert_same_vectors(encoder: Encoder, model: DualModel) -> None:
    image, text = rows(model)
    assert encoder.encode_images(pictures()) == pytest.approx(image, abs=1e-5)
    assert encoder.encode_texts(TEXTS) == pytest.approx(text, abs=1e-5)
    assert np.abs(image[0] - image[1]).max() > 1e-4 and np.abs(text[0] - text[1]).max() > 1e-4  # it could fail


def assert_states_begin_with_the_batch(tower: Tower, state: State, size: int) -> None:
    with torch.inference_mode():
        for stage in tower.stages:
            state = stage(state)
            assert [len(part) for part in state] == [size] * len(state)


def from_nothing(folder: Path, name: str) -> OpenClipModel:
    config = copy.deepcopy(OPEN_CLIP[name][0])
    if "hf_tokenizer_name" in config["text_cfg"]:
        tokenizer().save_pretrained(folder)
    (folder / "small.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    model = load_trainable(str(folder / "small.json"))
    assert isinstance(model, OpenClipModel)
    stir(model._whole[0])
    return model


class TestOpenClip:
    @pytest.mark.parametrize("name", OPEN_CLIP)
    def test_stages_compute_what_the_saved_model_computes(self, name: str, tmp_path: Path):
        """The library, given the folder, makes its own model and runs its own forward pass."""
        _, image_stages, text_stages = OPEN_CLIP[name]
        model = from_nothing(tmp_path, name)
        assert (len(model.image.stages), len(model.text.stages)) == (image_stages, text_stages)
        model.save(tmp_path / "saved")

        plain, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'saved'}")
        plain.eval()
        tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'saved'}")(TEXTS)
        with torch.inference_mode():
            image = plain.encode_image(torch.stack([transform(p) for p in pictures()]), normalize=True).numpy()
            text = plain.encode_text(tokens, normalize=True).numpy()
        got_image, got_text = rows(model)
        assert got_image == pytest.approx(image, abs=1e-5)
        assert got_text == pytest.approx(text, abs=1e-5)
        assert_same_vectors(load_encoder(str(tmp_path / "saved"), "cpu"), model)

    @pytest.mark.parametrize("name", OPEN_CLIP)
    def test_every_parameter_of_the_towers_is_in_one_stage(self, name: str, tmp_path: Path):
        model = from_nothing(tmp_path, name)
        staged = [p for tower in (model.image, model.text) for stage in tower.stages for p in stage.parameters()]
        assert len({id(p) for p in staged}) == len(staged)
        towers = {
            id(parameter)
            for part, parameter in model._whole[0].named_parameters()
            if not part.startswith(("logit_", "text_decoder."))
        }
        assert {id(p) for p in staged} == towers
        assert_states_begin_with_the_batch(model.image, pixels(model), 3)
        assert_states_begin_with_the_batch(model.text, model.tokens(TEXTS), 3)

    @pytest.mark.parametrize(
        ("pooler", "kind"), [("mean_pooler", "linear"), ("cls_pooler", "mlp"), ("cls_last_hidden_state_pooler", None)]
    )
    def test_a_text_tower_of_transformers(self, pooler: str, kind: str | None, tmp_path: Path):
        text = tmp_path / "roberta"
        small(RobertaConfig, max_position_embeddings=20, pad_token_id=1).save_pretrained(text)
        tokenizer().save_pretrained(tmp_path)
        config = copy.deepcopy(OPEN_CLIP["clip"][0])
        config["embed_dim"] = 32
        config["text_cfg"] = {
            "hf_model_name": str(text),
            "hf_tokenizer_name": "local",
            "hf_pooler_type": pooler,
            "hf_proj_type": kind,
            "context_length": 10,
        }
        (tmp_path / "small.json").write_text(json.dumps(config))
        model = OpenClipModel(str(tmp_path / "small.json"))
        stir(model._whole[0])
        assert len(model.text.stages) == 4
        model.save(tmp_path / "saved")
        assert_same_vectors(load_encoder(str(tmp_path / "saved"), "cpu"), model)

    def test_training_changes_what_is_saved_and_the_temperature_comes_back(self, tmp_path: Path):
        model = from_nothing(tmp_path, "clip")
        assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07) and model.logit_bias.item() == 0
        before = {name: tensor.clone() for name, tensor in model._whole[0].state_dict().items()}
        model.image.freeze(3)
        model.text.freeze(2)
        (model.image(pixels(model)) @ model.text(model.tokens(TEXTS)).T).trace().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
            model.logit_scale.fill_(3.0)
            model.logit_bias.fill_(-2.5)
        model.save(tmp_path / "saved")
        after = load_file(tmp_path / "saved" / "open_clip_model.safetensors")
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {
            "logit_scale",
            "visual.proj",
            "visual.ln_post.weight",
            "visual.ln_post.bias",
            "ln_final.weight",
            "ln_final.bias",
            "text_projection",
            *(name for name in before if name.startswith("transformer.resblocks.1.")),
        }
        again = load_trainable(str(tmp_path / "saved"))
        assert again.logit_scale.item() == 3.0 and again.logit_bias.item() == -2.5
        assert_same_vectors(load_encoder(str(tmp_path / "saved"), "cpu"), model)

    def test_a_bias_of_its_own(self, tmp_path: Path):
        assert from_nothing(tmp_path, "siglip").logit_bias.item() == -10

    def test_the_pictures_settings_are_kept(self, tmp_path: Path):
        settings = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.25], "interpolation": "bilinear"}
        described = {"model_cfg": OPEN_CLIP["clip"][0], "preprocess_cfg": {**settings, "resize_mode": "squash"}}
        (tmp_path / "small.json").write_text(json.dumps(described))
        model = OpenClipModel(str(tmp_path / "small.json"))
        white = Image.new("RGB", (40, 30), (255, 255, 255))
        assert model.prepare(white)[:, 3, 3] == pytest.approx([1.8, 1.6, 2.8])  # (1 - 0.1) / 0.5 and so on
        model.save(tmp_path / "saved")
        assert load_encoder(str(tmp_path / "saved"), "cpu").prepare(white)[:, 3, 3] == pytest.approx([1.8, 1.6, 2.8])

    def test_an_architecture_by_its_name(self, monkeypatch: pytest.MonkeyPatch):
        """The built-in architectures are large: a small one takes the place of one of them."""
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", OPEN_CLIP["clip"][0])
        model = load_trainable("ViT-B-32")
        assert rows(model)[1].shape == (3, 24)
        assert model.licence.startswith("none")

    def test_a_copy_is_independent(self, tmp_path: Path):
        model = from_nothing(tmp_path, "clip")
        twin = copy.deepcopy(model)
        image, _ = rows(model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_().add_(0.01)
        assert rows(model)[0] == pytest.approx(image, abs=0)
        twin.save(tmp_path / "twin")
        assert load_file(tmp_path / "twin" / "open_clip_model.safetensors")["visual.proj"].unique().tolist() == [
            pytest.approx(0.01)
        ]


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDED = {"vocab_size": len(WORDS), "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
SMALL_VISION = {**SIZES, "image_size": 32, "patch_size": 8}
SMALL_TEXT = {**SIZES, **WORDED, "max_position_embeddings": 12}


def small(config: Callable[..., Any], **more: Any) -> Any:
    return config(**{**SIZES, "vocab_size": len(WORDS), **more})


def clip(eos: int = 3) -> CLIPModel:
    text = {**SMALL_TEXT, "eos_token_id": eos}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=SMALL_VISION, projection_dim=24))


def siglip() -> SiglipModel:
    return SiglipModel(SiglipConfig(text_config=SMALL_TEXT, vision_config=SMALL_VISION))


def align() -> AlignModel:
    vision = {
        "image_size": 64,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "kernel_sizes": [3, 5],
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "depthwise_padding": [],
        "strides": [1, 2],
        "num_block_repeats": [1, 2],
        "expand_ratios": [1, 6],
        "hidden_dim": 24,
    }
    return AlignModel(AlignConfig(text_config=SMALL_TEXT, vision_config=vision, projection_dim=24))


WHOLE: dict[str, tuple[Callable[[], Any], Any, int, int]] = {
    # name: model, image processor, image stages, text stages
    "clip": (
        clip,
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        1 + 2 + 1,
        1 + 2 + 1,
    ),
    "clip-legacy": (
        lambda: clip(eos=2),
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        4,
        4,
    ),
    "siglip": (siglip, SiglipImageProcessor(size={"height": 32, "width": 32}), 4, 4),
    "align": (align, ViTImageProcessor(size={"height": 64, "width": 64}), 1 + 3 + 1, 4),
}


def whole_folder(folder: Path, name: str) -> Path:
    make, processor, _, _ = WHOLE[name]
    torch.manual_seed(1)
    model = make()
    stir(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # else each of a random network's layers makes differences smaller
            module.running_var.mul_(0.01)
    for part in (model, processor, tokenizer()):
        part.save_pretrained(folder)
    return folder


VISION: dict[str, tuple[Callable[[], Any], int]] = {
    "vit": (lambda: ViTModel(ViTConfig(**SMALL_VISION)), 4),
    "clip": (clip, 4),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**SMALL_VISION)), 2),
}
LANGUAGE: dict[str, tuple[Callable[[], Any], int]] = {
    "bert": (lambda: BertModel(BertConfig(**SMALL_TEXT)), 4),
    "roberta": (lambda: RobertaModel(RobertaConfig(**{**SMALL_TEXT, "max_position_embeddings": 14})), 4),
}


def half_folders(folder: Path, vision: str = "vit", text: str = "bert") -> str:
    torch.manual_seed(2)
    image_model, text_model = VISION[vision][0](), LANGUAGE[text][0]()
    for model in (image_model, text_model):
        stir(model)
    image_model.save_pretrained(folder / "v")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "v")
    text_model.save_pretrained(folder / "t")
    tokenizer().save_pretrained(folder / "t")
    return f"hf:{folder / 'v'}+{folder / 't'}"


class TestHuggingFace:
    @pytest.mark.parametrize("name", WHOLE)
    def test_stages_compute_what_the_model_computes(self, name: str, tmp_path: Path):
        """The encoder calls the model's own ``get_image_features`` and ``get_text_features``."""
        _, _, image_stages, text_stages = WHOLE[name]
        model = load_trainable(str(whole_folder(tmp_path / "m", name)))
        assert isinstance(model, HuggingFacePair)
        assert (len(model.image.stages), len(model.text.stages)) == (image_stages, text_stages)
        encoder = load_encoder(str(tmp_path / "m"), "cpu")
        assert_same_vectors(encoder, model)
        assert_states_begin_with_the_batch(model.image, pixels(model), 3)
        assert_states_begin_with_the_batch(model.text, model.tokens(TEXTS), 3)

        model.save(tmp_path / "saved")
        saved = load_encoder(str(tmp_path / "saved"), "cpu")
        assert_same_vectors(saved, model)
        assert saved.fingerprint == encoder.fingerprint  # nothing was trained, and the place does not matter

    @pytest.mark.parametrize(("vision", "text"), [("vit", "bert"), ("clip", "roberta"), ("dinov2", "bert")])
    def test_a_new_pair(self, vision: str, text: str, tmp_path: Path):
        model = load_trainable(half_folders(tmp_path, vision, text))
        assert (len(model.image.stages), len(model.text.stages)) == (VISION[vision][1], LANGUAGE[text][1])
        assert model.logit_scale.item() == pytest.approx(2.6592)
        model.save(tmp_path / "saved")
        encoder = load_encoder(str(tmp_path / "saved"), "cpu")
        assert encoder.dim == 512 and encoder.max_tokens == 12  # RoBERTa's 14 positions begin at 2
        assert_same_vectors(encoder, model)
        again = load_trainable(f"hf:{tmp_path / 'saved'}")
        assert rows(again)[0] == pytest.approx(rows(model)[0], abs=1e-6)

    @pytest.mark.parametrize("name", WHOLE)
    def test_every_parameter_is_in_one_stage(self, name: str, tmp_path: Path):
        model = load_trainable(str(whole_folder(tmp_path, name)))
        staged = [id(p) for tower in (model.image, model.text) for p in tower.parameters()]
        assert len(set(staged)) == len(staged)
        unused = ("logit_scale", "logit_bias", "temperature", "text_model.pooler.dense.weight")
        names = {id(p): part for part, p in model._pair.model.named_parameters()}
        assert {names[p] for p in staged} >= {
            part for part in names.values() if part not in (*unused, "text_model.pooler.dense.bias")
        }

    @pytest.mark.parametrize(("name", "bias"), [("clip", 0.0), ("siglip", -3.0), ("align", 0.0)])
    def test_temperature_and_bias_come_back(self, name: str, bias: float, tmp_path: Path):
        model = load_trainable(str(whole_folder(tmp_path / "m", name)))
        with torch.no_grad():
            model.logit_scale.fill_(1.5)
            model.logit_bias.fill_(bias)
        model.save(tmp_path / "saved")
        again = load_trainable(str(tmp_path / "saved"))
        assert again.logit_scale.item() == pytest.approx(1.5) and again.logit_bias.item() == bias

    def test_training_changes_what_is_saved(self, tmp_path: Path):
        model = load_trainable(half_folders(tmp_path))
        model.image.freeze(2)
        model.text.freeze(3)
        before, _ = rows(model)
        (model.image(pixels(model)) @ model.text(model.tokens(TEXTS)).T).trace().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.add_(parameter.grad)
        model.save(tmp_path / "saved")
        tensors, first = (load_file(tmp_path / folder / "model.safetensors") for folder in ("saved", "v"))
        moved = {name for name in first if not torch.equal(first[name], tensors[f"vision_model.{name}"])}
        assert moved and all("1." in name or name.startswith(("layernorm", "pooler")) for name in moved)
        encoder = load_encoder(str(tmp_path / "saved"), "cpu")
        assert np.abs(encoder.encode_images(pictures()) - before).max() > 1e-3
        assert_same_vectors(encoder, model)

    @pytest.mark.parametrize("name", ["clip", "align"])
    def test_padding_is_not_read(self, name: str, tmp_path: Path):
        model = load_trainable(str(whole_folder(tmp_path, name)))
        with torch.inference_mode():
            alone = torch.cat([model.text(model.tokens([text])) for text in TEXTS]).numpy()
        assert rows(model)[1] == pytest.approx(alone, abs=1e-5)

    def test_encoder_says_what_it_is(self, tmp_path: Path):
        encoder = load_encoder(str(whole_folder(tmp_path / "m", "clip")), "cpu")
        assert isinstance(encoder, Encoder)
        assert (encoder.name, encoder.dim, encoder.image_size) == (str(tmp_path / "m"), 24, 32)
        assert encoder.max_tokens == 12 and encoder.count_tokens("a dog") == 4 and encoder.calibration is None
        assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, 24)
        longest = "a dog and " * 4
        assert encoder.encode_texts([longest]) == pytest.approx(encoder.encode_texts([longest + "the sea"]), abs=1e-6)
        assert load_encoder(f"hf:{tmp_path / 'm'}", "cpu").fingerprint == encoder.fingerprint

    def test_fingerprint_follows_the_weights_the_words_and_the_pictures(self, tmp_path: Path):
        seen = {load_encoder(str(whole_folder(tmp_path / "m", "siglip")), "cpu").fingerprint}
        for name, old, new in (
            ("preprocessor_config.json", "0.5", "0.25"),
            ("tokenizer.json", '"dog"', '"cat"'),
            ("config.json", "gelu_pytorch_tanh", "relu"),
        ):
            folder = whole_folder(tmp_path / name, "siglip")
            text = (folder / name).read_text()
            assert old in text
            (folder / name).write_text(text.replace(old, new))
            seen.add(load_encoder(str(folder), "cpu").fingerprint)
        stirred = siglip()
        for part in (stirred, WHOLE["siglip"][1], tokenizer()):
            part.save_pretrained(tmp_path / "other")
        seen.add(load_encoder(str(tmp_path / "other"), "cpu").fingerprint)
        assert len(seen) == 5

    def test_weights_that_are_missing_or_damaged(self, tmp_path: Path):
        folder = whole_folder(tmp_path, "clip")
        (folder / "model.safetensors").write_bytes(b"not a tensor in sight")
        with pytest.raises(ModelError, match="cannot load model"):
            load_encoder(str(folder), "cpu")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"no \*.safetensors"):
            load_trainable(str(folder))

    @pytest.mark.parametrize("model", ["hf:nobody/nothing", "hf:nobody/v+nobody/t"])
    def test_no_network_is_one_line(self, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        """The hub is a port on which nobody listens, and its cache is empty."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ModelError, match="cannot load model") as caught:
            load_trainable(model)
        assert "\n" not in str(caught.value)


class TestLoad:
    def test_mini_and_a_folder_of_it(self, tmp_path: Path):
        model = load_trainable("mini", dropout=0.3, noise=0.7)
        assert model.image.stages[-1].noise == 0.7
        assert any(module.p == 0.3 for module in model.image.stages[-1].modules() if isinstance(module, nn.Dropout))
        shutil.copytree(PACKAGED, tmp_path / "run")
        assert type(load_trainable(str(tmp_path / "run"))) is type(model)

    @pytest.mark.parametrize(
        ("start", "said"),
        [
            ("miny", "did you mean mini"),
            ("ViT-B-33", "ViT-B-32"),
            ("ViT-B-32/laion2b_s34b_b79", "ViT-B-32/laion2b_s34b_b79k"),
            ("qqqqqqqqqqqqqqqqq", ".json"),
            ("nowhere.json", "no folder or file"),
            ("hf:owner", "hf:owner/name"),
            ("hf:+owner/name", "hf:VISION+TEXT"),
            ("hf:a/a+b/b+c/c", "hf:VISION+TEXT"),
        ],
    )
    def test_names_that_are_none(self, start: str, said: str):
        with pytest.raises(UsageError) as caught:
            load_trainable(start)
        assert said in str(caught.value) and start in str(caught.value)

    def test_folders_and_files_that_hold_none(self, tmp_path: Path):
        with pytest.raises(UsageError, match="no model in folder"):
            load_trainable(str(tmp_path))
        with pytest.raises(UsageError, match=r"no config.json"):
            load_trainable(f"hf:{tmp_path}")
        file = tmp_path / "some.json"
        for text, said in (("{", "cannot read"), ('{"embed_dim": 3}', "vision_cfg"), ("[]", "embed_dim")):
            file.write_text(text)
            with pytest.raises(UsageError, match=said):
                load_trainable(str(file))

    def test_a_configuration_that_fits_no_model(self, tmp_path: Path):
        file = tmp_path / "some.json"
        file.write_text(json.dumps({"embed_dim": 8, "vision_cfg": {"nonsense": 1}, "text_cfg": {}}))
        with pytest.raises(ModelError, match="nonsense"):
            load_trainable(str(file))

    def test_only_mini_has_a_head_to_begin_afresh(self, tmp_path: Path):
        with pytest.raises(UsageError, match="fresh head"):
            load_trainable(str(whole_folder(tmp_path, "clip")), fresh_head=True)

    def test_pairs_that_are_none(self, tmp_path: Path):
        half_folders(tmp_path)
        whole_folder(tmp_path / "siglip", "siglip")
        with pytest.raises(UsageError, match="both towers already"):
            load_trainable(f"hf:{tmp_path / 'siglip'}+{tmp_path / 't'}")
        distil = DistilBertModel(DistilBertConfig(vocab_size=len(WORDS), dim=32, n_heads=2, n_layers=1, hidden_dim=64))
        distil.save_pretrained(tmp_path / "distil")
        tokenizer().save_pretrained(tmp_path / "distil")
        with pytest.raises(UsageError, match="distil gives no pooled output"):
            load_trainable(f"hf:{tmp_path / 'v'}+{tmp_path / 'distil'}")
        with pytest.raises(UsageError, match=r"'bert'.*no two towers"):
            load_trainable(f"hf:{tmp_path / 't'}")


def adapted_models(folder: Path, name: str) -> DualModel:
    if name in OPEN_CLIP:
        return from_nothing(folder, name)
    return load_trainable(half_folders(folder, "clip") if name == "clip+bert" else half_folders(folder))


class TestLora:
    @pytest.mark.parametrize(
        ("name", "image", "text"),
        [
            ("clip", (2, 1), (2, 1)),  # adapters, frozen stages: open_clip's blocks have one layer for all three
            ("siglip", (6, 1), (2, 1)),
            ("coca", (2, 1), (2, 1)),
            ("convnext", (0, 5), (2, 1)),
            ("relpos", (9, 0), (2, 1)),
            ("vit+bert", (6, 1), (6, 1)),  # two layers of three
            ("clip+bert", (6, 1), (6, 1)),
        ],
    )
    def test_adapters_say_nothing_then_learn_then_fold_in(
        self, name: str, image: tuple[int, int], text: tuple[int, int], tmp_path: Path
    ):
        model = adapted_models(tmp_path, name)
        first_image, first_text = rows(model.eval())
        names = [list(tower.state_dict()) for tower in (model.image, model.text)]
        frozen = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        assert (add_lora(model.image, 3, 6.0), model.image.frozen) == image
        assert (add_lora(model.text, 3, 6.0), model.text.frozen) == text
        assert rows(model.eval())[0] == pytest.approx(first_image, abs=1e-5)
        assert rows(model)[1] == pytest.approx(first_text, abs=1e-5)

        for tower in (model.image, model.text):
            for number, stage in enumerate(tower.stages):
                head = number == len(tower.stages) - 1
                for key, parameter in stage.named_parameters():
                    assert parameter.requires_grad is (head or "lora_" in key), key
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.1)
        model.train()
        weights = torch.arange(9.0).reshape(3, 3)
        ((model.image(pixels(model)) @ model.text(model.tokens(TEXTS)).T) * weights).sum().backward()
        learning = {key: p for key, p in model.named_parameters() if "lora_" in key}
        assert len(learning) == 2 * (image[0] + text[0])
        for key, parameter in learning.items():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

        model.eval()
        changed_image, changed_text = rows(model)
        assert np.abs(changed_text - first_text).max() > 1e-3
        assert bool(np.abs(changed_image - first_image).max() > 1e-3) is bool(image[0])
        for tower in (model.image, model.text):
            merge_lora(tower)
        assert rows(model)[0] == pytest.approx(changed_image, abs=1e-5)
        assert rows(model)[1] == pytest.approx(changed_text, abs=1e-5)
        assert [list(tower.state_dict()) for tower in (model.image, model.text)] == names
        same = {key for key, tensor in model.state_dict().items() if torch.equal(tensor, frozen[key])}
        moved = {key.rpartition(".")[0].rpartition(".")[2] for key in set(frozen) - same}
        assert moved <= {"qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value", "attn"}
        model.save(tmp_path / "saved")
        assert_same_vectors(load_encoder(str(tmp_path / "saved"), "cpu"), model)

    def test_one_adapter_by_hand(self, tmp_path: Path):
        """The merged weight is W + (alpha / rank) B A, here with A all 1, B all 2: W + 6 / 3 * (3 * 2 * 1) = W + 12."""
        model = from_nothing(tmp_path, "siglip")
        weight = model.image.stages[1].module.attn.qkv.weight
        before = weight.detach().clone()
        add_lora(model.image, 3, 6.0)
        with torch.no_grad():
            for key, parameter in model.image.named_parameters():
                if "lora_" in key:
                    parameter.fill_(2.0 if "lora_B" in key else 1.0)
        merge_lora(model.image)
        assert model.image.stages[1].module.attn.qkv.weight is weight
        assert torch.allclose(weight, before + 12.0)

    def test_calls_leave_the_frozen_weights_alone(self, tmp_path: Path):
        model = from_nothing(tmp_path, "clip")
        add_lora(model.image, 2, 2.0)
        with torch.no_grad():
            for key, parameter in model.image.named_parameters():
                if "lora_B" in key:
                    parameter.normal_()
        before = {key: tensor.clone() for key, tensor in model.image.state_dict().items()}
        model.image.recompute = True
        model.train()
        for _ in range(3):
            model.image(pixels(model)).sum().backward()
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.image.state_dict().items())

    def test_recomputed_gradients_are_the_gradients(self, tmp_path: Path):
        model = from_nothing(tmp_path, "clip")
        add_lora(model.text, 2, 2.0)
        model.train()
        found = []
        for recompute in (False, True):
            model.text.recompute = recompute
            model.zero_grad()
            model.text(model.tokens(TEXTS))[:, 0].sum().backward()
            found.append([p.grad.clone() for p in model.text.parameters() if p.grad is not None])
        assert len(found[0]) == 2 * 2 + 3  # two adapters; the head's norm and projection
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))

    def test_mini(self):
        model = load_trainable("mini")
        assert add_lora(model.image, 2, 4.0) == 0 and model.image.frozen == len(model.image.stages) - 1
        assert add_lora(model.text, 2, 4.0) == 18 and model.text.frozen == 1

    def test_what_makes_no_sense(self, monkeypatch: pytest.MonkeyPatch):
        tower = Tower([nn.Identity()])
        for rank, alpha in ((0, 1.0), (4, 0.0)):
            with pytest.raises(UsageError, match=f"rank is {rank} and alpha is {alpha}"):
                add_lora(tower, rank, alpha)
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(UsageError, match=r"pip install mmsearch\[train\]"):
            add_lora(tower, 4, 8.0)
