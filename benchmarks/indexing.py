"""How fast, and in how much memory, the command indexes a folder, beside its peers; and what a little change costs.

    python benchmarks/indexing.py ../shared/data/flickr8k/images --files 2000
    python benchmarks/indexing.py FOLDER --files 2000 --model ViT-B-32 --rclip VENV/bin/rclip --tutorial
    python benchmarks/indexing.py FOLDER --large 500 --model ViT-B-32 --rclip VENV/bin/rclip --tutorial
    python benchmarks/indexing.py FOLDER --runs 1 --again 5
    python benchmarks/indexing.py --one-more 10000

Each run is a process of its own, start-up included, in a new index; memory is the peak resident size that the operating
system counted. Ours, rclip and open_clip as its tutorial does it (preprocess, batches of 32, encode) take turns. Every
turn is two runs, one with a few of the files: what the others take more than these is the rate "once running".

``--model ARCHITECTURE`` without a tag is open_clip's architecture with random weights: the time of a network does not
depend on them. rclip takes the weights that it finds in RCLIP_DATADIR, where ``rclip_weights.py`` puts random ones; it
answers a question after indexing, which the rate once running does not count. It computes at 256 pixels, a third more
than most models; ``--rclip-size 224`` has it compute at 224, with weights for that. ``--large N`` makes N JPEGs of 12
megapixels from the folder's pictures: enlarged, and with the noise of a sensor, without which they would be small files
that decode too fast. ``--again N`` also times ours where nothing has changed, ``--one-more N`` after one new photograph
in a folder of N that is indexed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cold
import numpy as np
from PIL import Image

FEW = 32
"""Files of the short run of a turn."""
LARGE, QUALITY, NOISE = (4000, 3000), 90, 4.0
RCLIP_AT = """
import sys
from rclip.utils import preprocess
preprocess.IMAGE_SIZE = int(sys.argv.pop(1))
from rclip.main import main
main()
"""
TUTORIAL = """
import sys, pathlib, numpy as np, open_clip, torch
from PIL import Image
model, _, preprocess = open_clip.create_model_and_transforms(sys.argv[1])
model.eval()
paths, rows = sorted(pathlib.Path(sys.argv[2]).iterdir()), []
with torch.no_grad():
    for start in range(0, len(paths), 32):
        batch = torch.stack([preprocess(Image.open(path)) for path in paths[start : start + 32]])
        features = model.encode_image(batch)
        rows.append((features / features.norm(dim=-1, keepdim=True)).numpy())
np.save(sys.argv[3], np.concatenate(rows))
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What one process took: seconds from start to end, peak megabytes, and what it printed."""

    seconds: float
    megabytes: float
    said: str


def run(command: list[str], cwd: Path | None = None, **environment: str) -> Run:
    """One process to its end.

    Raises:
        RuntimeError: it failed; its last line is the message.
    """
    with tempfile.TemporaryFile() as talk:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=cold.as_installed() | environment, stdout=subprocess.PIPE, stderr=talk, text=True
        )
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            talk.seek(0)
            raise RuntimeError((talk.read().decode(errors="replace").strip().splitlines() or ["it failed"])[-1])
    return Run(seconds, usage.ru_maxrss / 1024, said)


def index(folder: Path, index: Path, model: str, *, float32: bool = False) -> list[str]:
    """Our command; with ``float32``, as on a chip that is no faster in fewer bits."""
    command = [sys.executable, "-P", "-m", "mmsearch", "index", str(folder), "--index", str(index), "--json"]
    return [*command, "--model", model, "--precision", "float32" if float32 else "auto"]


def by_mmsearch(model: str, folder: Path, *, float32: bool = False) -> Run:
    """Ours, into a new index; all files must be in it."""
    with tempfile.TemporaryDirectory() as scratch:
        found = run(index(folder, Path(scratch, "index"), model, float32=float32))
    report = json.loads(found.said)
    if report["added"] != sum(1 for _ in folder.iterdir()):
        raise RuntimeError(f"{report['added']} added, {len(report['skipped'])} skipped")
    return found


def by_rclip(command: Path, size: int | None, folder: Path) -> Run:
    """rclip, with a new database and the weights of RCLIP_DATADIR; at another size than its own if one is given."""
    start = [str(command.absolute())]
    if size is not None:
        start = [str(command.absolute().with_name("python")), "-P", "-c", RCLIP_AT, str(size)]
    with tempfile.TemporaryDirectory() as scratch:
        for path in Path(os.environ["RCLIP_DATADIR"]).iterdir():
            if path.is_dir():
                Path(scratch, path.name).symlink_to(path.absolute())
        return run([*start, "-f", cold.QUESTION], folder, RCLIP_DATADIR=scratch)


def by_tutorial(architecture: str, folder: Path) -> Run:
    """open_clip in a loop."""
    with tempfile.TemporaryDirectory() as scratch:
        return run([sys.executable, "-c", TUTORIAL, architecture, str(folder), str(Path(scratch, "rows.npy"))])


def links(paths: list[Path], folder: Path) -> Path:
    """A folder of hard links to ``paths``, or of copies where the disk is another."""
    folder.mkdir()
    for path in paths:
        try:
            os.link(path, folder / path.name)
        except OSError:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def enlarge(folder: Path, number: int, path: Path) -> None:
    """A JPEG of 12 megapixels, with the noise of a sensor at a middling ISO."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(number).normal(0, NOISE, pixels.shape[:2]).astype(np.float32)
    noisy = np.rint(np.clip(pixels + noise[:, :, None], 0, 255)).astype(np.uint8)
    Image.fromarray(noisy).save(folder / f"IMG_{number:04d}.jpg", quality=QUALITY)


def enlarged(paths: list[Path], count: int, folder: Path) -> list[Path]:
    """``count`` large JPEGs of ``paths``, in turn; by other processes, for the memory of this one counts as that of
    those that it starts."""
    folder.mkdir()
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(enlarge, folder), range(count), [paths[i % len(paths)] for i in range(count)]))
    made = sorted(folder.iterdir())
    print(f"{count} JPEGs of {LARGE[0]} x {LARGE[1]}, {sum(p.stat().st_size for p in made) / count / 1e6:.1f} MB each")
    return made


def compare(takers: dict[str, Callable[[Path], Run]], all_: Path, few: Path, runs: int) -> None:
    """Let them index both folders in turn, and print medians; who fails is left out, and why is said."""
    count, less = (sum(1 for _ in folder.iterdir()) for folder in (all_, few))
    figures: dict[str, list[tuple[Run, Run]]] = {name: [] for name in takers}
    for _ in range(runs):
        for name in list(takers):
            try:
                figures[name].append((takers[name](few), takers[name](all_)))
            except (RuntimeError, OSError, KeyError) as exc:
                print(f"{name}: left out, {type(exc).__name__}: {exc}")
                del takers[name]
    print(f"{count:,} files, medians of {runs}, whole process, taking turns")
    for name in takers:
        seconds = statistics.median(whole.seconds for _, whole in figures[name])
        running = statistics.median((count - less) / (whole.seconds - part.seconds) for part, whole in figures[name])
        memory = statistics.median(whole.megabytes for _, whole in figures[name])
        print(
            f"{name:12s} {seconds:8.1f} s {count / seconds:7.1f} a second, {running:7.1f} once running {memory:7.0f} MB"
        )


def unchanged(folder: Path, model: str, runs: int) -> None:
    """Time ours where nothing has changed."""
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch, "index")
        run(index(folder, where, model))
        again = [run(index(folder, where, model)) for _ in range(runs)]
        counts = [json.loads(one.said)["unchanged"] for one in again]
        assert counts == runs * [sum(1 for _ in folder.iterdir())], counts
    seconds, memory = (statistics.median(getattr(one, what) for one in again) for what in ("seconds", "megabytes"))
    print(f"again, nothing changed: {seconds:.2f} s, {memory:.0f} MB (medians of {runs})")


def one_more(count: int, model: str, runs: int) -> None:
    """Time the command after one new photograph in a folder of ``count`` that is indexed.

    The folder's files are small PNGs, each with a content of its own. Their rows are written with vectors that nobody
    computed, for what is unchanged is not looked at; the new one is a JPEG of 12 megapixels.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder, where = Path(scratch, "pictures"), Path(scratch, "index")
        folder.mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:05d}.png")
        make = [
            sys.executable,
            "-c",
            f"import indexing; indexing.index_as_is({str(folder)!r}, {str(where)!r}, {model!r})",
        ]
        run(make, Path(__file__).parent)
        Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8)).save(Path(scratch, "source.png"))
        new = enlarged([Path(scratch, "source.png")], runs + 1, Path(scratch, "new"))
        figures = []
        for number, path in enumerate(new):  # the first is not counted
            path.rename(folder / path.name)
            figures.append(run(index(folder, where, model)))
            report = json.loads(figures[-1].said)
            assert (report["added"], report["unchanged"]) == (1, count + number), report
        again = [run(index(folder, where, model)) for _ in range(runs)]
    for name, some in ((f"one new photograph in {count:,} files", figures[1:]), ("nothing new", again)):
        seconds, memory = (statistics.median(getattr(one, what) for one in some) for what in ("seconds", "megabytes"))
        print(f"{name}, {model}: {seconds:.2f} s, {memory:.0f} MB (medians of {runs}, whole process)")


def index_as_is(folder: str, where: str, model: str) -> None:
    """Write rows of the files of ``folder`` as an index run leaves them, with vectors that nobody computed."""
    from indexer.content import Digest
    from indexer.types import Asset, Modality

    paths = sorted(Path(folder).iterdir())

    def asset(number: int) -> Asset:
        path = paths[number]
        status, digest = path.stat(), Digest.BLAKE3.of(path.read_bytes())
        return Asset(str(path), Modality.IMAGE, status.st_size, status.st_mtime_ns, digest)

    cold.make_index(Path(where), model, len(paths), asset=asset)


def main() -> None:
    """Index in turn from nothing, or add one to many."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="pictures")
    parser.add_argument("--model", default="mini", help="mini, an architecture of open_clip, or whatever --model takes")
    parser.add_argument("--files", type=int, help="so many of the pictures; else all")
    parser.add_argument("--large", type=int, metavar="N", help="N of 12 megapixels, made from them")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--again", type=int, default=0, metavar="N", help="then ours N times, nothing having changed")
    parser.add_argument("--float32", action="store_true", help="also ours without int8 and bfloat16")
    parser.add_argument("--rclip", type=Path, help="the command rclip of another environment")
    parser.add_argument(
        "--rclip-size", type=int, help="pixels a side that rclip computes with; its own, 256, if not given"
    )
    parser.add_argument("--tutorial", action="store_true", help="also open_clip as its tutorial does it")
    parser.add_argument("--one-more", type=int, metavar="N", help="one new photograph in a folder of N")
    options = parser.parse_args()
    if (options.folder is None) is (options.one_more is None):
        parser.error("name a folder, or --one-more")
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model != "mini" and "/" not in model:
            model = str(Path(scratch, "model"))
            code = "import sys, pathlib, cold; cold.random_checkpoint(pathlib.Path(sys.argv[1]), sys.argv[2])"
            run([sys.executable, "-c", code, model, options.model], Path(__file__).parent)
        if options.one_more is not None:
            one_more(options.one_more, model, options.runs)
            return
        paths = sorted(path for path in options.folder.iterdir() if path.is_file())
        if options.large:
            paths = enlarged(paths, options.large, Path(scratch, "large"))
        paths = paths[: options.files]
        takers: dict[str, Callable[[Path], Run]] = {"mmsearch": partial(by_mmsearch, model)}
        if options.float32:
            takers["in float32"] = partial(by_mmsearch, model, float32=True)
        if options.rclip:
            takers["rclip"] = partial(by_rclip, options.rclip, options.rclip_size)
        if options.tutorial:
            takers["open_clip"] = partial(by_tutorial, options.model)
        few = links(paths[: min(FEW, len(paths) // 2)], Path(scratch, "few"))
        compare(takers, links(paths, Path(scratch, "all")), few, options.runs)
        if options.again:
            unchanged(Path(scratch, "all"), model, options.again)


if __name__ == "__main__":
    main()
