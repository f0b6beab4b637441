"""Several processes for one model: the same vectors as one, and no hang and no orphan when one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import two_processes
from colour_encoder import ColourCompressor, PatchColourEncoder
from PIL import Image

from indexer.embedding import encode_each
from indexer.encoders.load import load_encoder
from indexer.encoders.precision import FLOAT32
from indexer.errors import MmsearchError, ModelError, UsageError
from indexer.index import Index
from indexer.lanes import in_parts
from indexer.pipeline import update
from indexer.processes import Make, Model, Processes, load_embed
from indexer.reading import IMAGE_BATCH
from indexer.types import Modality


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return list(rng.random((count, 3, 8, 8), np.float32))


def environment() -> dict[str, str]:
    """That of a program which finds what the tests find."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_two_processes_make_what_one_makes_in_order_and_share_the_work() -> None:
    said: list[str] = []
    batch = pictures(70)
    with Processes(two_processes.means, ["cpu", "cpu"], said.append) as two:
        assert two.count == 2
        found = in_parts(two, batch, 3) + in_parts(two, batch[:40], 40)
        uneven = [np.ones((3, 2, 2), np.float32), np.ones((3, 4, 4), np.float32)]
        assert [one[0].tolist() for one in two.submit(uneven).result()] == [[1, 1, 1]] * 2
        assert two.meter.stage().count == 70 + 40 + 2
    assert said == ["cpu: loaded", "cpu: loaded"]
    wanted = [vector for vector, _ in two_processes.means("cpu", said.append)(batch)]
    np.testing.assert_array_equal([vector for vector, _ in found], wanted + wanted[:40])
    assert len({tokens.tobytes() for _, tokens in found}) == 2


def test_a_process_that_is_killed_is_an_error_that_says_so() -> None:
    with (
        pytest.raises(ModelError, match=r"embedded on ill was ended by SIGKILL; the system does so where memory"),
        Processes(two_processes.dying, ["well", "ill"]) as two,
    ):
        in_parts(two, pictures(8), 1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (two_processes.missing, ModelError, r"^no weights for box$"),
        (two_processes.nowhere, UsageError, r"^there is no box here$"),
        (two_processes.broken, ModelError, r"^the model fails on box: KeyError: 'box'$"),
        (lambda device, say: None, ModelError, r"^cannot start a process that embeds.*; name one device$"),
    ],
)
def test_a_model_that_cannot_be_loaded_there_is_an_error_that_says_so(
    make: Make, error: type[MmsearchError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught, Processes(make, ["box"]) as one:
        in_parts(one, pictures(4), 1)
    assert caught.type is error


def test_a_script_that_does_not_ask_whether_it_is_the_main_one_is_an_error_that_says_so(tmp_path: Path) -> None:
    """The process ends while it is sent more than the pipe takes at once."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np, two_processes\n"
        "with two_processes.Processes(two_processes.means, ['cpu']) as one:\n"
        "    one.submit([np.zeros((3, 512, 512), np.float32)]).result()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment(), timeout=60)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "the process that embedded on cpu was ended with exit code 1; the system" in last
    assert 'if __name__ == "__main__":' in last


def test_a_process_with_little_memory_halves_its_batches() -> None:
    said: list[str] = []
    batch = pictures(12)
    with Processes(two_processes.five_at_most, ["cpu"], said.append) as one:
        found = one.submit(batch).result() + one.submit(batch).result()
    plain = encode_each(two_processes.means("cpu", said.append), batch)
    np.testing.assert_array_equal([v for v, _ in found], [v for v, _ in plain * 2])
    assert [line for line in said if "memory" in line] == [
        "cpu: out of memory with 12 pictures at a time; going on with 6",
        "cpu: out of memory with 6 pictures at a time; going on with 3",
    ]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_no_process_is_left_when_the_program_is_stopped(how: str) -> None:
    """Ctrl-C goes to all of them, a kill to the first alone; what they are at is not waited for."""
    program = subprocess.Popen(
        [sys.executable, two_processes.__file__, "600", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )
    assert program.stdout is not None
    theirs = [int(program.stdout.readline().rpartition(" ")[2]) for _ in range(2)]
    assert all(_runs(pid) for pid in theirs)
    if how == "interrupt":
        os.killpg(program.pid, signal.SIGINT)
    else:
        program.kill()
    _, errors = program.communicate(timeout=20)
    assert program.returncode == (1 if how == "interrupt" else -signal.SIGKILL) and "Traceback" not in errors
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in theirs):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_index_made_by_two_processes_is_the_one_made_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With image tokens; a broken file is a line in the report, and few files are done without further processes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(2 * IMAGE_BATCH + 1):
        Image.fromarray(rng.integers(0, 255, (2, 2, 3), np.uint8)).save(folder / f"{n:03}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr("indexer.pipeline.load_embed", two_processes.colours)
    encoder, held, seen = PatchColourEncoder(), [], []
    made = {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "dim": encoder.dim}
    for devices in (("cpu",), ("cpu", "cpu")):
        with Index.create(tmp_path / str(len(devices)), **made) as index:
            report = update(index, encoder, [folder], compressor=ColourCompressor(), devices=devices)
            assert report.added == 2 * IMAGE_BATCH + 1 and len(report.skipped) == 1
            seen.append(encoder.images_seen)
            (folder / "late.png").write_bytes((folder / "000.png").read_bytes() + devices[-1].encode())
            assert update(index, encoder, [folder], compressor=ColourCompressor(), devices=devices).added == 1
            (folder / "late.png").unlink()
            with index.snapshot() as snapshot:
                rows = np.arange(2 * IMAGE_BATCH + 2)
                held.append((snapshot.vectors[Modality.IMAGE].matrix().copy(), *snapshot.tokens(rows)))
    assert seen == [2 * IMAGE_BATCH + 1, 2 * IMAGE_BATCH + 2]  # here the second run asked for one picture, the first
    for one, two in zip(*held, strict=True):
        np.testing.assert_array_equal(two, one)


def test_a_process_loads_the_model_of_the_index_or_says_that_it_is_another() -> None:
    encoder = load_encoder("mini", "cpu")
    prepared = encoder.prepare(Image.new("RGB", (40, 30), "teal"))
    ((vector, tokens),) = load_embed(Model("mini", encoder.fingerprint, FLOAT32, {}), None, "cpu", print)([prepared])
    np.testing.assert_allclose(vector, encoder.encode_prepared(prepared[None])[0], atol=1e-6)
    assert tokens is None
    with pytest.raises(ModelError, match="the model mini was changed while it was loaded"):
        load_embed(Model("mini", "c0ffee", FLOAT32, {}), None, "cpu", print)
