"""A folder of everything: photographs, films, animations, documents, texts, subtitles; whole, and damaged.

    python benchmarks/media.py PHOTOGRAPHS OUT [--files 300]             whole, for kills.py and the like
    python benchmarks/media.py PHOTOGRAPHS OUT [--files 300] --damaged   damaged, indexed, and judged

Damaged files are cut short at a random byte, have random bytes in the middle, another file's ending, or another file's
beginning. They are indexed by `mmsearch index` in a process of its own, half of them and then all: each must be in the
index or be named with a reason, the process must end by itself, and its peak memory must not grow with their number.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
from PIL import Image

from indexer.reading import is_script_file

REAL = Path(__file__).parent.parent / "tests" / "media"
SIZE = (160, 120)
FPS = 8
VIDEOS = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".mov": "libx264", ".ts": "libx264", ".webm": "libvpx"}


def film(path: Path, photographs: list[Path]) -> None:
    """Each photograph for three seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(VIDEOS[path.suffix], rate=FPS)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for photograph in photographs:
            with Image.open(photograph) as opened:
                frame = av.VideoFrame.from_image(opened.convert("RGB").resize(SIZE))
            for _ in range(3 * FPS):
                frame.pts = None
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def animation(path: Path, photographs: list[Path]) -> None:
    """Each photograph for half a second, as GIF or WebP."""
    frames = [Image.open(photograph).convert("RGB").resize(SIZE) for photograph in photographs]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)


def pages(path: Path, photographs: list[Path]) -> None:
    """A PDF with a photograph on each page."""
    images = [Image.open(photograph).convert("RGB") for photograph in photographs]
    images[0].save(path, save_all=True, append_images=images[1:])


def subtitles(path: Path, count: int) -> None:
    lines = [
        f"{n + 1}\n00:00:{3 * n:02d},000 --> 00:00:{3 * n + 2:02d},500\nsentence {n} of {path.stem}\n"
        for n in range(count)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def prose(rng: random.Random) -> str:
    """Sixty short sentences, not those of any other text: equal ones would tie."""
    things = ("harbour", "meadow", "violin", "ladder", "kettle", "bridge", "candle", "orchard", "parcel", "tunnel")
    return " ".join(
        f"The {rng.choice(things)} {rng.randrange(1000)} is by the {rng.choice(things)}." for _ in range(60)
    )


def mixed(folder: Path, photographs: list[Path], files: int, rng: random.Random) -> None:
    """Fill ``folder`` with so many files of all kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    makers: list[Callable[[int], None]] = [
        *(
            lambda n, end=end: film(folder / f"film{n}{end}", rng.sample(photographs, rng.randint(2, 5)))
            for end in VIDEOS
        ),
        lambda n: animation(folder / f"animation{n}.gif", rng.sample(photographs, 3)),
        lambda n: animation(folder / f"animation{n}.webp", rng.sample(photographs, 3)),
        lambda n: pages(folder / f"scan{n}.pdf", rng.sample(photographs, 3)),
        lambda n: subtitles(folder / f"talk{n}.srt", 12),
        lambda n: (folder / f"notes{n}.md").write_text(f"# Notes {n}\n\n{prose(rng)}"),
        lambda n: (folder / f"page{n}.html").write_text(f"<html><title>Page {n}</title><p>{prose(rng)}</html>"),
    ]
    for real in sorted(REAL.iterdir()):
        if real.suffix != ".md":
            (folder / real.name).write_bytes(real.read_bytes())
    for n in range(files):
        if n % 2:
            makers[n // 2 % len(makers)](n)
        else:
            with Image.open(rng.choice(photographs)) as opened:
                opened.save(folder / f"photo{n}{rng.choice(('.jpg', '.png', '.webp', '.tiff'))}")


def damage(whole: Path, folder: Path, files: int, rng: random.Random) -> None:
    """Fill ``folder`` with damaged files made of those in ``whole``."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(whole.iterdir())
    for n in range(files):
        source, other = sources[n % len(sources)], rng.choice(sources)
        data, suffix = bytearray(source.read_bytes()), source.suffix
        way = n % 4
        if way == 0:
            del data[rng.randrange(len(data)) :]
        elif way == 1:
            for _ in range(max(4, len(data) // 2000)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif way == 2:
            suffix = other.suffix
        else:
            head = other.read_bytes()[: rng.randrange(16, 4096)]
            data[: len(head)] = head
        (folder / f"{n:03d}-{('cut', 'bytes', 'ending', 'beginning')[way]}{suffix}").write_bytes(data)


def indexed(folders: list[Path], index: Path) -> tuple[int, float, dict[str, object]]:
    """Exit code, peak memory in MB, and the report of one run."""
    command = [sys.executable, "-m", "mmsearch", "index", *map(str, folders), "--index", str(index), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 1024, json.loads(answer) if answer else {}


def judge(folder: Path, scratch: Path) -> bool:
    """Index the damaged files in ``folder``, half of them and then all; whether all is as it should be."""
    names = sorted(path.name for path in folder.iterdir())
    half = scratch / "half"
    half.mkdir()
    for name in names[: len(names) // 2]:
        (half / name).write_bytes((folder / name).read_bytes())
    _, small, _ = indexed([half], scratch / "index-half")
    code, peak, report = indexed([folder], scratch / "index")
    skipped: list[dict[str, str]] = report.get("skipped", [])  # type: ignore[assignment]
    named = {Path(one["path"].split(", second ")[0].split(", page ")[0]).name for one in skipped}
    import mmsearch

    with mmsearch.open(scratch / "index") as library, library._need_index().snapshot() as snapshot:
        taken = {Path(path).name for path, stamp in snapshot.reader.stamps([str(folder)]).items() if stamp.asset_id}
    texts = {name for name in names if is_script_file(str(folder / name))}  # no video
    lost = [name for name in names if name not in named | taken | texts]
    unsaid = [one for one in skipped if not one["reason"].strip()]
    ways = Counter((name.split("-")[1].split(".")[0], name in taken) for name in names)
    print(f"{len(names)} damaged files: exit code {code}, {len(taken)} in the index, {len(named - taken)} named, ")
    print(f"{len(named & taken)} in part; {len(lost)} neither, {len(unsaid)} without a reason")
    print(
        ", ".join(
            f"{way}: {ways[way, True]} taken and {ways[way, False]} not"
            for way in ("cut", "bytes", "ending", "beginning")
        )
    )
    print(f"peak memory {small:,.0f} MB with {len(names) // 2} files, {peak:,.0f} MB with {len(names)}")
    for name in lost:
        print(f"lost: {name}")
    return code == 0 and not lost and not unsaid


def main() -> None:
    """Make the folder, and with ``--damaged`` index it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--damaged", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    photographs = sorted(options.photographs.iterdir())
    if not options.damaged:
        mixed(options.out, photographs, options.files, rng)
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        mixed(scratch / "whole", photographs, 48, rng)
        damage(scratch / "whole", options.out, options.files, rng)
        sys.exit(0 if judge(options.out, scratch) else 1)


if __name__ == "__main__":
    main()
