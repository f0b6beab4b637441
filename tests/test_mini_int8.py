"""The image tower of `mini` in eight bits: near to float32, used where that pays, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES
from PIL import Image

from indexer.embedding import DEFAULT_PRECISION
from indexer.encoders.mini import PACKAGED, MiniEncoder
from indexer.encoders.mini_int8 import FILE, WEIGHTS
from indexer.encoders.precision import FLOAT32, INT8
from indexer.encoders.race import Race
from indexer.errors import UsageError

pytestmark = pytest.mark.slow(reason="writes a network and runs commands")

PHOTOS = sorted((SAMPLES / "photos").rglob("*.jpg"))


# -- the tower ---------------------------------------------------------------------------------------------------------


def test_it_says_of_photographs_what_float32_says() -> None:
    model = MiniEncoder("cpu")
    prepared = np.stack([model.prepare(Image.open(path)) for path in PHOTOS[:24]])
    exact, light = model._exact_pictures(), model._light_pictures()
    pairs = [(exact(one[None]), light(one[None])) for one in prepared]

    def cosines(which: int) -> np.ndarray:
        wanted, found = (np.concatenate([side[which] for side in sides]) for sides in zip(*pairs, strict=True))
        return (wanted * found).sum(-1) / np.linalg.norm(wanted, axis=-1) / np.linalg.norm(found, axis=-1)

    assert cosines(0).mean() > 0.99 and cosines(0).min() > 0.97
    assert cosines(1).mean() > 0.99
    assert all(not np.array_equal(one[0], other[0]) for one, other in pairs)


def test_its_file_is_what_the_weights_become(tmp_path: Path) -> None:
    """Rounded weights hardly depend on the pictures on which ranges are measured: a channel's scale does where its bias
    would overflow."""
    import onnx
    from onnx import numpy_helper

    from mmsearch.training.models.mini_int8 import EXACT_CONVOLUTIONS, write_int8

    shutil.copytree(PACKAGED, tmp_path / "model")
    (tmp_path / "model" / FILE).unlink()
    model = MiniEncoder("cpu", tmp_path / "model")
    again = write_int8(tmp_path / "model", [model.prepare(Image.open(path)) for path in PHOTOS[:4]])
    made, packaged = (onnx.load(path, load_external_data=False) for path in (again, PACKAGED / FILE))
    assert [p.value for p in made.metadata_props] == [p.value for p in packaged.metadata_props] == [model.fingerprint]
    tensors = [{one.name: one for one in each.graph.initializer} for each in (made, packaged)]
    assert tensors[0].keys() == tensors[1].keys()
    rounded = [name for name in tensors[0] if name.endswith(".weight_quantized")]
    convolutions = sum(node.op_type == "Conv" for node in packaged.graph.node)
    assert len(rounded) == convolutions - EXACT_CONVOLUTIONS > 50
    for name in rounded:
        one, other = (numpy_helper.to_array(each[name]) for each in tensors)
        assert one.dtype == other.dtype == np.int8 and one.shape == other.shape
        assert (one == other).mean() > 0.9, name
    assert all(not tensors[1][name].raw_data for name in WEIGHTS)
    assert (PACKAGED / FILE).stat().st_size < 6_000_000
    found = MiniEncoder("cpu", tmp_path / "model")._light_pictures()
    assert found.metadata == {"fingerprint": model.fingerprint}


def test_without_pictures_there_are_no_ranges(tmp_path: Path) -> None:
    from mmsearch.training.models.mini_int8 import write_int8

    with pytest.raises(UsageError, match="no pictures to measure the ranges of layers on"):
        write_int8(PACKAGED, [])


# -- when it is used ---------------------------------------------------------------------------------------------------


def test_float32_is_computed_until_something_else_is_decided_and_then_that_alone_is_held() -> None:
    model = MiniEncoder("cpu")
    precision = model.precision
    assert precision is not None and precision.kinds == (INT8,)
    prepared = np.stack([model.prepare(Image.open(path)) for path in PHOTOS[:2]])
    exact = model.encode_prepared(prepared)
    precision._race = lambda kind: Race(kind, 2.0, 0.1, "a: 1 ms, in float32 2 ms")  # type: ignore[method-assign]
    assert precision.adopt(INT8, {}).precision == INT8
    assert "_exact" not in vars(precision) and "_light" in vars(precision)
    light = model.encode_prepared(prepared)
    assert not np.array_equal(exact, light) and (exact * light).sum(axis=1).min() > 0.95
    assert precision.adopt(FLOAT32, {}).precision == FLOAT32
    assert "_light" not in vars(precision) and np.array_equal(model.encode_prepared(prepared), exact)


def test_a_race_tells_how_fast_it_is_here() -> None:
    precision = MiniEncoder("cpu").precision
    assert precision is not None
    race = precision._race(INT8)
    assert race.kind == INT8 and race.gain >= 0 and race.figures.startswith("a picture: ")


def test_a_file_that_cannot_be_opened_or_is_of_other_weights_leaves_float32_and_is_named(tmp_path: Path) -> None:
    shutil.copytree(PACKAGED, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"fingerprint": "another"}))
    for content, why in ((None, "was made of other weights"), (b"no network", "its file cannot be opened: ")):
        if content is not None:
            (tmp_path / "model" / FILE).write_bytes(content)
        precision = MiniEncoder("cpu", tmp_path / "model").precision
        assert precision is not None and precision.decide() == FLOAT32 and why in precision.verdict.why
        with pytest.raises(UsageError, match=why):
            precision.decide(INT8)
    (tmp_path / "model" / FILE).unlink()
    absent = MiniEncoder("cpu", tmp_path / "model").precision
    assert absent is not None and absent.decide() == FLOAT32
    with pytest.raises(UsageError, match="cannot be computed in int8 with the files that it has"):
        absent.decide(INT8)


def test_a_run_says_what_it_computed_in(tmp_path: Path) -> None:
    """The command, as a new user has it; the index says it, and the next run goes on in it."""
    (tmp_path / "photos").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != DEFAULT_PRECISION}

    def run(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "mmsearch", *arguments, "--index", str(tmp_path / "index")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == status, done.stderr
        return done.stdout or done.stderr

    shutil.copy(PHOTOS[0], tmp_path / "photos" / "a.jpg")
    run("index", str(tmp_path / "photos"), "--device", "cpu", "--precision", "int8")
    assert "precision  int8" in run("status")
    said = run("status", "--performance")
    assert "the index is in int8" in said and "float32 on this chip (a picture: " in said
    shutil.copy(PHOTOS[1], tmp_path / "photos" / "b.jpg")
    run("index", str(tmp_path / "photos"), "--device", "cpu")
    assert json.loads(run("status", "--json"))["precision"] == "int8"
    refused = run("index", str(tmp_path / "photos"), "--precision", "float32", status=2)
    assert "are computed in int8, and stay so" in refused
