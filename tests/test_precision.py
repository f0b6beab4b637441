"""int8 and bfloat16 beside float32: what the check says by hand, that it is made once, and where it fails."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest

from indexer.encoders import precision
from indexer.encoders.precision import (
    BFLOAT16,
    FLOAT32,
    INT8,
    PICTURES,
    TIE,
    Precision,
    Verdict,
    instructions,
    judge,
    recalls,
)

torch = pytest.importorskip("torch")
BATCH = PICTURES // 4


class Model(torch.nn.Module):
    """Pictures ``(B, 3, 2, 2)`` to vectors ``(B, 12)``: a matrix product, plus ``offset`` in every number."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = torch.nn.Linear(12, 12)
        self.visual.bias.data.fill_(offset)


class OnlyFloat32(torch.nn.Linear):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.dtype is not torch.float32:
            raise RuntimeError("no kernel for this type")
        return super().forward(pixels)


def compute(model: Model, pixels: torch.Tensor) -> tuple[np.ndarray, ...]:
    return (model.visual(pixels.flatten(1)).float().numpy(), np.array([model.visual.weight.dtype is torch.bfloat16]))


def pictures(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 2, 2)).astype(np.float32)


def units(*shape: int) -> np.ndarray:
    made = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def chip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any chip computes in bfloat16, if slowly; verdicts are kept in the test's own folder."""
    monkeypatch.setattr(precision, "kinds", lambda: (BFLOAT16,))
    monkeypatch.setattr(precision, "LEAST_GAIN", 0.0)
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "cache"))


def made(model: Model, fingerprint: str = "f") -> Precision:
    return Precision(model, torch.device("cpu"), fingerprint, lambda: units(3, 12))


def kept(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("*.json")]


# -- the verdict ---------------------------------------------------------------------------------------------------


def test_recall_is_what_ten_naive_lines_say() -> None:
    exact, questions = units(40, 12), units(7, 12)
    light = exact + np.random.default_rng(3).normal(scale=0.1, size=exact.shape).astype(np.float32)
    for own, asked in ((False, questions), (True, exact)):
        wanted = []
        for number, question in enumerate(asked):
            others = [i for i in range(40) if not (own and i == number)]
            tenth = sorted((float(question @ exact[i]) for i in others), reverse=True)[9]
            answers = sorted(others, key=lambda i: -float(question @ light[i]))[:10]
            wanted.append(sum(float(question @ exact[i]) >= tenth - TIE for i in answers) / 10)
        found = recalls(asked, exact, light, own=own)
        assert found == pytest.approx(wanted) and found.min() < 1


def test_answers_as_good_as_the_right_ones_are_right() -> None:
    """Eleven pictures are equally near to the question: each ten of them are its best."""
    exact = np.tile(np.float32([1, 0]), (11, 1))
    exact = np.concatenate([exact, np.float32([[0, 1]])])
    light = exact.copy()
    light[0] = [0.9999, 0.0141]
    assert recalls(np.float32([[1, 0]]), exact, light).tolist() == [1]
    light[:3] = [[0, 1], [0, 1], [0.5, 0.5]]
    light[11] = [0.9, 0.1]  # is found in their place
    assert recalls(np.float32([[1, 0]]), exact, light).tolist() == [0.9]


def test_the_verdict_wants_the_same_answers_and_wants_them_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LEAST_GAIN", 1.1)
    exact, questions = units(64, 12), units(3, 12)
    assert judge(exact, exact, questions, 2.0) == Verdict(
        BFLOAT16,
        "bfloat16 was held against float32: recall@10 1.000, cosine 1.0000, 2.0 times as fast, on 64 pictures",
        64,
        1.0,
        pytest.approx(1.0),
        2.0,
    )
    slow = judge(exact, exact, questions, 1.0)
    assert slow.precision == FLOAT32 and slow.why.startswith("bfloat16 is no faster: recall@10 1.000")
    other = judge(exact, exact[::-1], questions, 2.0)
    assert other.precision == FLOAT32 and other.why.startswith("bfloat16 does not find the same: recall@10 0.")
    assert judge(exact, np.zeros_like(exact), questions, 2.0).precision == FLOAT32
    assert (
        judge(exact, np.full_like(exact, np.nan), questions, 2.0).why
        == "bfloat16 gives vectors that are zero or not finite"
    )


# -- its use -------------------------------------------------------------------------------------------------------


def test_the_first_pictures_get_float32s_vectors_and_the_next_bfloat16s(tmp_path: Path) -> None:
    tower, plain = made(Model()), Model()
    for number in range(4):
        assert tower.verdict.precision == FLOAT32 and not kept(tmp_path)
        batch = pictures(BATCH, number)
        rows, reduced = tower.run(batch, compute)
        with torch.inference_mode():
            assert np.array_equal(rows, compute(plain, torch.from_numpy(batch))[0]) and not reduced[0]
    assert tower.verdict.precision == BFLOAT16 and tower.verdict.pictures == PICTURES
    batch = pictures(BATCH, 9)
    rows, reduced = tower.run(batch, compute)
    with torch.inference_mode():
        wanted = compute(plain, torch.from_numpy(batch))[0]
    assert reduced[0] and not np.array_equal(rows, wanted)
    assert rows == pytest.approx(wanted, abs=0.05)
    few, reduced = tower.run(batch[:3], compute)
    assert not reduced[0] and few == pytest.approx(wanted[:3], abs=1e-6)


def test_the_verdict_is_kept_for_this_model_alone(tmp_path: Path) -> None:
    first = made(Model())
    for number in range(4):
        first.run(pictures(BATCH, number), compute)
    assert [one["precision"] for one in kept(tmp_path)] == [BFLOAT16]
    again = made(Model())
    assert again.verdict == first.verdict
    assert again.run(pictures(BATCH), compute)[1][0]
    assert made(Model(), "another").verdict.precision == FLOAT32


def test_a_tower_that_loses_its_answers_stays_in_float32_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The numbers are near 1,000, where bfloat16 has only multiples of 4."""
    tower = made(Model(offset=1000.0))
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            tower.run(pictures(BATCH, number), compute)
    assert tower.verdict.precision == FLOAT32
    (line,) = caplog.messages
    assert line.startswith("pictures are computed in float32: bfloat16 does not find the same: recall@10 0.")
    assert not tower.run(pictures(BATCH), compute)[1][0]
    assert made(Model(offset=1000.0)).verdict == tower.verdict == Verdict(**kept(tmp_path)[0])  # type: ignore[arg-type]


def test_a_tower_that_has_no_bfloat16_stays_in_float32(tmp_path: Path) -> None:
    model = Model()
    model.visual = OnlyFloat32(12, 12)
    tower = made(model)
    assert tower.run(pictures(BATCH), compute)[0].shape == (BATCH, 12)
    assert tower.verdict == Verdict(FLOAT32, "the model fails in bfloat16 (no kernel for this type)")
    assert len(kept(tmp_path)) == 1


def test_a_damaged_or_unwritable_cache_only_costs_the_check(tmp_path: Path) -> None:
    first = made(Model())
    (tmp_path / "cache").write_text("a file where the folder should be")
    for number in range(4):
        first.run(pictures(BATCH, number), compute)
    assert first.verdict.precision == BFLOAT16
    (tmp_path / "cache").unlink()
    second = made(Model())
    for number in range(4):
        second.run(pictures(BATCH, number), compute)
    (path,) = (tmp_path / "cache").rglob("*.json")
    path.write_text('{"precision": "int3", "why": ""}')
    assert made(Model()).verdict.precision == FLOAT32


def test_a_chip_without_either_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(precision, "kinds", tuple)
    tower = made(Model())
    for number in range(5):
        assert not tower.run(pictures(BATCH, number), compute)[1][0]
    assert tower.verdict == Verdict(FLOAT32, "this chip has neither int8 nor bfloat16") and not kept(tmp_path)


def test_the_chip_is_known_by_its_instructions() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        pytest.skip("the system does not list what the chip can do")
    words = set(cpuinfo.read_text().split())
    assert set(instructions(BFLOAT16)) == {"amx_bf16", "avx512_bf16"} & words
    assert set(instructions(INT8)) == {"amx_int8", "avx512_vnni", "avx_vnni"} & words


# -- of several the fastest --------------------------------------------------------------------------------------------


def light(kind: str, right: bool, seconds: float) -> Model:
    """A model that says which kind it is, is right or not and takes so long."""
    model = Model()
    model.kind, model.right, model.seconds = kind, right, seconds  # type: ignore[assignment]
    return model


def compute_slowly(model: Model, pixels: torch.Tensor) -> tuple[np.ndarray, ...]:
    end = time.thread_time() + getattr(model, "seconds", 0.004) * len(pixels) / BATCH
    rows = model.visual(pixels.flatten(1).float()).numpy()
    while time.thread_time() < end:
        pass
    return rows if getattr(model, "right", True) else rows[:, ::-1], np.array([getattr(model, "kind", FLOAT32)])


@pytest.mark.parametrize(
    ("integers", "halves", "wanted"),
    [
        ((True, 0.001), (True, 0.002), INT8),
        ((True, 0.002), (True, 0.001), BFLOAT16),
        ((False, 0.001), (True, 0.002), BFLOAT16),
        ((True, 0.001), (False, 0.0005), INT8),
        ((False, 0.001), (False, 0.001), FLOAT32),
    ],
)
def test_the_fastest_that_finds_the_same_is_used(
    integers: tuple[bool, float], halves: tuple[bool, float], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "kinds", lambda: (INT8, BFLOAT16))
    monkeypatch.setattr(precision, "_given", lambda pixels, kind: pixels)
    tower = made(Model())
    tower._light = {INT8: light(INT8, *integers), BFLOAT16: light(BFLOAT16, *halves)}
    for number in range(4):
        assert tower.verdict.why == f"int8 or bfloat16 is used once {PICTURES} pictures were compared"
        assert tower.run(pictures(BATCH, number), compute_slowly)[1][0] == FLOAT32
    assert tower.verdict.precision == wanted
    if wanted == FLOAT32:
        said = tower.verdict.why
        assert said.startswith("int8 does not find the same: ") and "; bfloat16 does not find the same: " in said
    else:
        assert tower.verdict.why.startswith(f"{wanted} was held against float32: ")
        assert list(tower._light) == [wanted]
        assert tower.run(pictures(BATCH, 9), compute_slowly)[1][0] == wanted


# -- what whole numbers must know -----------------------------------------------------------------------------------


class Tower(torch.nn.Module):
    """Pictures ``(B, 3, 2, 2)`` to vectors ``(B, 16)`` by a block of open_clip's vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        transformer = pytest.importorskip("open_clip").transformer
        torch.manual_seed(0)
        self.visual = torch.nn.Sequential(transformer.ResidualAttentionBlock(16, 2)).eval()


def compute_tower(model: Tower, pixels: torch.Tensor) -> tuple[np.ndarray, ...]:
    rows = model.visual(pixels.flatten(1).repeat(1, 4).view(-1, 3, 16)).mean(dim=1)
    return rows.numpy(), np.array([type(model.visual[0]).__name__ == "IntegerBlock"])


@pytest.mark.skipif(not hasattr(torch.ops.onednn, "qlinear_pointwise"), reason="this torch has no products of bytes")
def test_ranges_are_observed_on_a_batch_that_is_not_compared_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "kinds", lambda: (INT8,))
    monkeypatch.setattr(precision, "LEAST_RECALL", 0.9)
    monkeypatch.setattr(precision, "LEAST_COSINE", 0.9)
    tower = Precision(Tower(), torch.device("cpu"), "f", lambda: units(3, 16))
    for number in range(5):
        assert tower.verdict.precision == FLOAT32
        rows, reduced = tower.run(pictures(BATCH, number), compute_tower)
        with torch.inference_mode():
            assert not reduced[0] and np.array_equal(
                rows, compute_tower(Tower(), torch.from_numpy(pictures(BATCH, number)))[0]
            )
    assert (tower.verdict.precision, tower.verdict.pictures) == (INT8, PICTURES)
    rows, reduced = tower.run(pictures(BATCH, 9), compute_tower)
    assert reduced[0]

    again = Precision(Tower(), torch.device("cpu"), "f", lambda: units(3, 16))
    assert again.verdict == tower.verdict
    assert np.array_equal(again.run(pictures(BATCH, 9), compute_tower)[0], rows)

    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])  # damaged: everything is asked anew
    third = Precision(Tower(), torch.device("cpu"), "f", lambda: units(3, 16))
    assert third.verdict.precision == FLOAT32 and "is used once" in third.verdict.why
    path.unlink()
    fourth = Precision(Tower(), torch.device("cpu"), "f", lambda: units(3, 16))
    for number in range(5):
        fourth.run(pictures(BATCH, number), compute_tower)
    assert fourth.verdict.precision == INT8 and path.is_file()
