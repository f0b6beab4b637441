"""Precision: the race and the verdict by hand, what is decided and adopted, and where a model cannot be had in one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder
from PIL import Image

import mmsearch
from indexer.encoders.precision import (
    AUTO,
    BFLOAT16,
    CALIBRATION,
    FLOAT32,
    INT8,
    PRECISIONS,
    Bounds,
    Precision,
    Verdict,
    calibration_pictures,
    judge,
    precision_of,
    share_of_error,
)
from indexer.encoders.race import HOPELESS, Heat, Race, run_race
from indexer.errors import UsageError
from indexer.index import Index
from mmsearch.present import status_lines

BOUNDS = Bounds(error=0.1, cosine=0.99)


def units(*shape: int) -> np.ndarray:
    made = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


# -- the race ----------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only in what is computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ran = 0.0, []
        monkeypatch.setattr("indexer.encoders.race.time.perf_counter", lambda: self.now)

    def heat(self, name: str, exact: float, light: float, small: bool = False) -> Heat:
        def taking(seconds: float, what: str) -> None:
            self.now += seconds
            self.ran.append(what)

        return Heat(name, lambda: taking(exact, f"{name} exact"), lambda: taking(light, f"{name} light"), small)


def test_a_race_adds_up_the_times_of_what_a_model_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 + 10 ms beside 1 + 3: three times as fast. The small heat before them does not count."""
    clock = Clock(monkeypatch)
    heats = [clock.heat("tiny", 0.001, 0.002, small=True), clock.heat("a", 0.002, 0.001), clock.heat("b", 0.01, 0.003)]
    race = run_race(INT8, heats, seconds=1)
    assert race.gain == pytest.approx(3) and race.figures == "b: 3 ms, in float32 10 ms"
    assert race.seconds == pytest.approx(4 * (0.003 + 0.003 + 0.013))
    assert race.said() == (
        "products in int8 are 3.0 times as fast as in float32 on this chip (b: 3 ms, in float32 10 ms; "
        "measured in 0.08 s)"
    )


def test_what_is_hopeless_on_something_small_computes_nothing_large(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    heats = [clock.heat("tiny", 1e-5, 0.02, small=True), clock.heat("large", 0.01, 20)]
    race = run_race(INT8, heats)
    assert race.gain == 0 and "large light" not in clock.ran and race.seconds < 0.1
    assert race.said().startswith("int8 is far slower than float32 on this chip (tiny: 20 ms, in float32 0.01 ms")


def test_fixed_costs_of_a_small_product_are_not_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    heats = [clock.heat("tiny", 1e-6, 9e-5, small=True), clock.heat("large", 0.01, 0.002)]
    assert run_race(INT8, heats).gain == pytest.approx(5)


def test_a_race_ends_in_time_and_after_one_whole_heat_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    race = run_race(INT8, (clock.heat(str(n), 0.2, 0.1) for n in range(9)), seconds=0.25)
    assert race.gain == pytest.approx(2) and set(clock.ran) == {"0 exact", "0 light"}
    assert race.seconds == pytest.approx(2 * 0.3)  # what the first call sets up, and one round


@pytest.mark.parametrize("slower", [1.5, HOPELESS + 1])
def test_what_is_slower_loses(slower: float, monkeypatch: pytest.MonkeyPatch) -> None:
    race = run_race(BFLOAT16, [Clock(monkeypatch).heat("a", 0.01, 0.01 * slower)])
    assert race.gain == (0 if slower > HOPELESS else pytest.approx(1 / slower))


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_the_share_of_error_by_hand() -> None:
    """Scores 0, 2 have a spread of 1; differences of 0.1 and 0.3 one of 0.1, whatever is added to both."""
    exact = np.float32([[0, 2], [0, 2]])
    assert share_of_error(exact, exact + np.float32([[0.1, 0.3], [5.1, 5.3]])) == pytest.approx(0.1, rel=1e-4)
    assert share_of_error(exact, exact + np.float32([[0.1, 0.3], [0, 0]])) == pytest.approx(0.05, rel=1e-4)


def test_the_verdict_wants_the_same_scores_and_wants_them_faster() -> None:
    exact, questions = units(12, 12), units(3, 12)
    good = judge(exact, 3 * exact, questions, 2.0, BOUNDS, INT8)
    assert good == Verdict(
        INT8,
        "held against float32: cosine 1.0000, at worst 1.0000, error 0.0 % of the spread of scores, 2.0 times as fast, "
        "on 12 pictures",
    )
    slow = judge(exact, exact, questions, 1.0, BOUNDS, INT8)
    assert slow.precision == FLOAT32 and slow.why.startswith("int8 is no faster: cosine 1.0000")
    noisy = exact + np.random.default_rng(0).normal(scale=0.05, size=exact.shape).astype(np.float32)
    found = judge(exact, noisy, questions, 2.0, BOUNDS, BFLOAT16)
    assert found.precision == FLOAT32 and found.why.startswith("bfloat16 does not find the same: cosine 0.9")
    assert judge(exact, noisy, questions, 2.0, Bounds(error=0.5, cosine=0.9), BFLOAT16).precision == BFLOAT16
    one = exact.copy()
    one[5] = exact[6]  # one picture of twelve
    assert judge(exact, one, questions, 2.0, Bounds(error=9, cosine=0.99), INT8).precision == FLOAT32
    for broken in (np.zeros_like(exact), np.full_like(exact, np.nan)):
        assert (
            judge(exact, broken, questions, 2.0, BOUNDS, INT8).why == "int8 gives vectors that are zero or not finite"
        )


def test_calibration_pictures_are_there_and_differ() -> None:
    pictures = calibration_pictures(12)
    assert len(pictures) == 12 and all(one.mode == "RGB" and max(one.size) == 288 for one in pictures)
    assert len({one.tobytes() for one in pictures}) == 12
    listed = (CALIBRATION / "README.md").read_text()
    assert all(path.name in listed for path in CALIBRATION.iterdir() if path.suffix != ".md")
    assert [one.tobytes() for one in calibration_pictures(3)] == [one.tobytes() for one in pictures[:3]]


# -- what is decided and adopted ---------------------------------------------------------------------------------------


class Model(Precision):
    """Pictures to their mean colour. In int8 or bfloat16 it is ``gains[kind]`` times as fast, and what it says is wrong
    in those of ``wrong``; those of ``absent`` it does not have."""

    bounds = BOUNDS
    pictures = 12

    def __init__(self, gains: Mapping[str, float], wrong: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> None:
        super().__init__(tuple(gains), self._mean, None, "on this toy")
        self._gains, self._wrong, self._absent = gains, wrong, absent
        self.made: list[str] = []
        self.released = 0

    @staticmethod
    def _mean(picture: Image.Image) -> np.ndarray:
        return np.asarray(picture, np.float32).reshape(-1, 3).mean(axis=0)[:, None, None]

    def _race(self, kind: str) -> Race:
        return Race(kind, self._gains[kind], 0.1, "a: 1 ms, in float32 2 ms")

    def _learn(self, kind: str) -> None:
        if kind in self._absent:
            raise ValueError("no block is known")
        if kind == INT8:
            self.ranges = {"range": np.float32([1, 2])}

    def _make(self, kind: str) -> None:
        self.made.append(kind)

    def _release(self) -> None:
        self.released += 1

    def _vectors(self, kind: str, batch: np.ndarray) -> np.ndarray:
        end = time.perf_counter() + 0.002 / self._gains.get(kind, 1)
        while time.perf_counter() < end:
            pass
        rows = batch[:, :, 0, 0] - 128
        return rows[:, ::-1] if kind in self._wrong else rows


@pytest.mark.parametrize(
    ("model", "wanted", "why"),
    [
        (Model({INT8: 3, BFLOAT16: 2}), INT8, "products in int8 are 3.0 times as fast"),
        (Model({INT8: 3, BFLOAT16: 2}, wrong=(INT8,)), BFLOAT16, "products in bfloat16 are 2.0 times as fast"),
        (Model({INT8: 3, BFLOAT16: 2}, absent=(INT8,)), BFLOAT16, "products in bfloat16 are 2.0 times as fast"),
        (Model({INT8: 0, BFLOAT16: 2}), BFLOAT16, "products in bfloat16 are 2.0 times as fast"),
        (Model({INT8: 0, BFLOAT16: 1}), FLOAT32, "int8 is far slower than float32 on this chip (a: 1 ms"),
        (Model({INT8: 3}, wrong=(INT8,)), FLOAT32, "int8 does not find the same: cosine "),
        (Model({INT8: 3}, absent=(INT8,)), FLOAT32, "the model cannot be had in int8 (no block is known)"),
        (Model({}), FLOAT32, "nothing else is tried with this model on this toy"),
    ],
)
def test_the_best_that_is_faster_and_finds_the_same_is_decided(model: Model, wanted: str, why: str) -> None:
    assert model.decide(AUTO) == wanted == model.verdict.precision
    assert model.verdict.why.startswith(why) and model.released == 1
    assert model.is_settled(wanted, model.ranges)


def test_what_was_asked_for_is_decided_and_used_where_it_is_faster() -> None:
    quick, slow = Model({INT8: 3}), Model({INT8: 0.5})
    assert quick.decide(INT8) == slow.decide(INT8) == INT8
    assert (quick.verdict.precision, slow.verdict.precision) == (INT8, FLOAT32)
    assert slow.verdict.why.startswith("the index is in int8, but products in int8 are 0.5 times as fast")
    assert slow.made == [] and quick.ranges.keys() == {"range"} == slow.ranges.keys()
    assert quick.decide(FLOAT32) == FLOAT32 and quick.verdict == Verdict(FLOAT32, "the index is in float32")


def test_what_cannot_be_had_is_refused_when_it_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"no precision is called 'int4': say float32, bfloat16, int8 or auto"):
        Model({}).decide("int4")
    with pytest.raises(UsageError, match=r"cannot be computed in int8 on this toy; say float32 or auto"):
        Model({}).decide(INT8)
    with pytest.raises(UsageError, match=r"cannot be computed in int8: no block is known; say float32 or auto"):
        Model({INT8: 3}, absent=(INT8,)).decide(INT8)


def test_an_index_is_continued_in_its_precision_or_in_float32() -> None:
    ranges = {"range": np.float32([5, 6])}
    model = Model({INT8: 3})
    assert model.adopt(INT8, ranges).precision == INT8 and model.made == [INT8]
    assert np.array_equal(model.ranges["range"], [5, 6])
    assert model.is_settled(INT8, ranges) and not model.is_settled(INT8, {}) and not model.is_settled(FLOAT32, ranges)
    slow = Model({INT8: 0})
    assert slow.adopt(INT8, ranges).precision == FLOAT32 and slow.made == []
    assert slow.verdict.why.startswith("the index is in int8, but int8 is far slower than float32")
    other = Model({}).adopt(INT8, ranges)
    assert other == Verdict(FLOAT32, "the index is in int8, in which this model cannot be computed on this toy")
    lost = Model({INT8: 3})
    assert lost.adopt(INT8, {}).precision == INT8 and lost.ranges.keys() == {"range"}
    absent = Model({INT8: 3}, absent=(INT8,)).adopt(INT8, {})
    assert absent.precision == FLOAT32 and absent.why.endswith("the model cannot be had in it (no block is known)")


# -- an index ----------------------------------------------------------------------------------------------------------


class PreciseColours(ColourEncoder):
    """The colour encoder, which has a precision, and notes in which each picture was computed."""

    def __init__(self, gains: Mapping[str, float]) -> None:
        super().__init__()
        self.precision = Model(gains)
        self.computed: list[str] = []

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        self.computed += [self.precision.verdict.precision] * len(batch)
        return super().encode_prepared(batch)


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for users."""
    monkeypatch.delenv("MMSEARCH_PRECISION")


@pytest.mark.usefixtures("auto")
def test_every_picture_of_an_index_is_computed_in_what_was_decided_before_the_first(
    photos: Path, tmp_path: Path
) -> None:
    quick, slow = PreciseColours({INT8: 3}), PreciseColours({INT8: 0})
    assert precision_of(quick) is quick.precision and precision_of(ColourEncoder()) is None
    with mmsearch.open(tmp_path / "index", model=quick) as library:
        library.index(photos)
        assert quick.computed == [INT8] * 3 and library.status().precision == INT8
        assert "precision  int8" in status_lines(library.status())
        library.add([mmsearch.Addition("key", image=Image.new("RGB", (16, 16), "yellow"))])
        assert quick.computed == [INT8] * 4 and quick.precision.made == [INT8]  # nothing was done twice
        figures = library.performance()
        assert figures is not None and figures.precision == INT8 and "measured in 0.10 s" in figures.why
    Image.new("RGB", (16, 16), "white").save(photos / "white.png")
    said: list[str] = []
    with mmsearch.open(tmp_path / "index", model=slow) as library:  # another machine
        library.index(photos, say=said.append)
        assert slow.computed == [FLOAT32] and library.status().precision == INT8
    (line,) = said
    assert line.startswith("pictures are computed in float32 here: the index is in int8, but int8 is far slower")
    third = PreciseColours({INT8: 3})
    with mmsearch.open(tmp_path / "index", model=third, precision=AUTO) as library:
        Image.new("RGB", (16, 16), "black").save(photos / "black.png")
        library.index(photos)
    assert third.computed == [INT8]
    assert np.array_equal(third.precision.ranges["range"], [1, 2])


def test_a_precision_that_was_asked_for_is_kept(photos: Path, tmp_path: Path) -> None:
    encoder = PreciseColours({INT8: 3})
    with mmsearch.open(tmp_path / "index", model=encoder, precision=INT8) as library:
        library.index(photos)
    with mmsearch.open(tmp_path / "index", model=encoder, precision=FLOAT32) as library:
        for _ in range(2):  # also where there is nothing to be done
            with pytest.raises(UsageError, match=r"are computed in int8, and stay so; name another folder for float32"):
                library.index(photos)
            Image.new("RGB", (16, 16), "white").save(photos / "white.png")
    with pytest.raises(UsageError, match="no precision is called 'half'"):
        mmsearch.open(tmp_path / "other", precision="half")
    with (
        mmsearch.open(tmp_path / "other", model=ColourEncoder(), precision=INT8) as library,
        pytest.raises(UsageError, match="the model colours computes in float32 alone, not in int8"),
    ):
        library.index(photos)


@pytest.mark.usefixtures("auto")
def test_the_environment_says_what_a_new_index_is_in(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEARCH_PRECISION", BFLOAT16)
    for name, gains in (("a", {INT8: 3, BFLOAT16: 2}), ("b", {INT8: 3, BFLOAT16: 0.5})):
        encoder = PreciseColours(gains)
        with mmsearch.open(tmp_path / name, model=encoder) as library:
            library.index(photos)
            assert library.status().precision == BFLOAT16
        assert encoder.computed == [BFLOAT16 if name == "a" else FLOAT32] * 3
    monkeypatch.setenv("MMSEARCH_PRECISION", FLOAT32)
    with mmsearch.open(tmp_path / "a", model=PreciseColours({BFLOAT16: 2})) as library:  # has one: no matter
        Image.new("RGB", (16, 16), "white").save(photos / "white.png")
        assert library.index(photos).added == 1


@pytest.mark.usefixtures("auto")
def test_texts_alone_decide_nothing(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a red thing")
    encoder = PreciseColours({INT8: 3})
    with mmsearch.open(tmp_path / "index", model=encoder) as library:
        library.index(tmp_path / "texts")
        library.add([mmsearch.Addition("key", text="a blue thing")])
        assert library.status().precision is None and encoder.precision.made == []
        assert "precision  not decided before the first picture" in status_lines(library.status())


@pytest.mark.usefixtures("auto")
def test_damaged_ranges_are_observed_again(photos: Path, tmp_path: Path) -> None:
    with mmsearch.open(tmp_path / "index", model=PreciseColours({INT8: 3})) as library:
        library.index(photos)
    path = tmp_path / "index" / "int8.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    Image.new("RGB", (16, 16), "white").save(photos / "white.png")
    encoder = PreciseColours({INT8: 3})
    with mmsearch.open(tmp_path / "index", model=encoder) as library:
        library.index(photos)
    assert encoder.computed == [INT8] and path.read_bytes() == sound


def test_an_index_of_an_older_format_is_read_and_then_decided(photos: Path, tmp_path: Path) -> None:
    import json

    with mmsearch.open(tmp_path / "index", model=PreciseColours({})) as library:
        library.index(photos)
    path = tmp_path / "index" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("precision") == FLOAT32
    path.write_text(json.dumps(manifest | {"format": 4}))
    assert Index.open(tmp_path / "index").manifest.precision is None
    Image.new("RGB", (16, 16), "white").save(photos / "white.png")
    with mmsearch.open(tmp_path / "index", model=PreciseColours({INT8: 3}), precision=INT8) as library:
        library.index(photos)
    assert json.loads(path.read_text()) == manifest | {"format": 5, "precision": INT8}
    assert set(PRECISIONS) == {FLOAT32, BFLOAT16, INT8}
