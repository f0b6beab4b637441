"""What ``--device`` may say, and what is said of a device that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmsearch
from indexer.encoders.device import check_devices, gpu_numbers, gpus, missing, pick_device, split_devices
from indexer.errors import UsageError


def test_names_of_devices() -> None:
    assert split_devices(None) == ()
    assert split_devices("cpu") == ("cpu",)
    assert split_devices("cuda:0, cuda:12") == ("cuda:0", "cuda:12")
    for nonsense in ("gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:0,", "", "CUDA", "mps0"):
        with pytest.raises(UsageError, match="no device is called"):
            split_devices(nonsense)


def test_which_gpus_search() -> None:
    assert gpu_numbers(("cuda",)) is None
    assert gpu_numbers(("cuda:1", "cuda")) is None
    assert gpu_numbers(("cuda:3", "cuda:1", "cuda:3", "cpu")) == (1, 3)


@pytest.mark.parametrize(
    ("names", "cuda", "mps", "name", "there"),
    [
        (("cuda",), 0, False, "cuda", "cpu"),
        (("mps",), 0, False, "mps", "cpu"),
        (("cuda:7",), 2, False, "cuda:7", "cuda:0 and cuda:1 and cpu"),
        (("cuda:1", "cuda:2"), 2, False, "cuda:2", "cuda:0 and cuda:1 and cpu"),
        (("cuda",), 0, True, "cuda", "mps and cpu"),
        (("cpu:1",), 0, False, "cpu:1", "cpu"),
    ],
)
def test_a_device_that_is_not_there(names: tuple[str, ...], cuda: int, mps: bool, name: str, there: str) -> None:
    said = missing(names, cuda, mps)
    assert said is not None
    assert said.startswith(f"there is no device {name!r} on this machine, which has {there}: name one of these")


def test_devices_that_are_there() -> None:
    assert missing(("cuda", "cuda:0", "cuda:1", "cpu", "cpu:0"), 2, False) is None
    assert missing(("mps",), 0, True) is None
    assert missing((), 0, False) is None
    check_devices(("cpu", "cpu"))
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="one device is wanted here, not 'cpu,cpu'"):
        pick_device("cpu,cpu")


def test_the_driver_says_what_torch_says() -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is None and gpus():
        pytest.skip("torch was built without CUDA, and there is a GPU")
    assert gpus() in (None, torch.cuda.device_count())


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:77", "there is no device 'cuda:77' on this machine, which has "),
        ("tpu", "no device is called 'tpu': say "),
    ],
)
def test_a_library_is_not_opened_for_it(device: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        mmsearch.open(tmp_path / "index", device=device)


def test_the_command_says_so_before_it_does_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmsearch", "index", str(tmp_path), "--index", str(tmp_path / "index")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([*command, "--device", "cpu,cuda:77"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mmsearch: there is no device 'cuda:77' on this machine, which has ")
    assert not (tmp_path / "index").exists()
