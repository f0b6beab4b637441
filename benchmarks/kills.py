"""Kill the real command again and again while it indexes, and count what is lost.

    python benchmarks/kills.py ../shared/data/flickr8k/images --files 2000 --kills 50

After every kill -9 the index must verify and must not have shrunk, and the next run must carry on; in the end its
answers must be those of an index that was never disturbed. Exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mmsearch

QUESTIONS = ("a dog runs through the snow", "two people on a bench", "a red car", "children play in water", "a crowd")


def answers(index: Path) -> list[list[tuple[object, ...]]]:
    """Names, places and scores of the best ten for each question."""
    with mmsearch.open(index) as library:
        lists = [library.query(question, k=10) for question in QUESTIONS]
    return [
        [(hit.path.name if hit.path else "", hit.page, hit.start, round(hit.score, 4)) for hit in hits]
        for hits in lists
    ]


def held_by(library: mmsearch.Library) -> int:
    """Pieces of every kind."""
    return sum(library.status().items.values())


def main() -> None:
    """Kill, verify, carry on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=2000, help="how many of its files (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    losses = kills = 0
    with tempfile.TemporaryDirectory() as scratch:
        photos, index, undisturbed = Path(scratch, "photos"), Path(scratch, "index"), Path(scratch, "undisturbed")
        photos.mkdir()
        for path in sorted(options.folder.iterdir())[: options.files]:
            (photos / path.name).symlink_to(path.resolve())
        command = [sys.executable, "-m", "mmsearch", "index", str(photos), "--index"]
        held = 0
        while kills < options.kills:
            run = subprocess.Popen([*command, str(index)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.2, 12))
            if run.poll() is not None:  # everything is indexed: take a part out, so that there is work to interrupt
                with mmsearch.open(index) as library:
                    library.remove(*rng.sample(sorted(photos.iterdir()), options.files // 2))
                    held = held_by(library)
                continue
            run.kill()
            run.wait()
            kills += 1
            if not (index / "manifest.json").exists():
                continue
            with mmsearch.open(index) as library:
                report = library.verify()
                now = held_by(library)
            if not report.sound or now < held:
                losses += 1
                print(f"kill {kills}: {held} held before, {now} after, {report}", file=sys.stderr)
            held = now
        subprocess.run([*command, str(index)], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*command, str(undisturbed)], check=True, stdout=subprocess.DEVNULL)
        same = answers(index) == answers(undisturbed)
    print(f"{kills} kills, {losses} losses; answers as undisturbed: {'yes' if same else 'no'}")
    sys.exit(0 if same and not losses else 1)


if __name__ == "__main__":
    main()
