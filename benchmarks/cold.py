"""Time a question from the shell, from the start of the process to its end, and its peak memory.

    python benchmarks/cold.py --items 100000
    python benchmarks/cold.py --model ViT-B-32 --items 2000 --rclip VENV/bin/rclip --pictures FOLDER --tutorial

The index is made of vectors around random centres, with image tokens of random bytes where the model has a reranker:
the time of a question does not depend on what pictures show. ``--model ARCHITECTURE`` without a tag is open_clip's
architecture with random weights, for the same reason. Ours, rclip and open_clip as its tutorial does it (import, load
the model, encode the words, one matrix product) are asked in turn; what is not installed, or fails, is left out, and
its last line says why. rclip indexes ``--pictures`` first, with the weights that it finds in its own data folder;
``rclip_weights.py`` puts random ones there.
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
from pathlib import Path

import numpy as np

import mmsearch
from indexer.add import Addition
from indexer.changes import Piece, Put
from indexer.index import Index
from indexer.types import Asset, Modality

QUESTION = "a dog runs through the snow"
CENTRES, SPREAD, BATCH = 1000, 0.5, 2000
TUTORIAL = """
import sys, numpy as np, open_clip, torch
model, _, _ = open_clip.create_model_and_transforms(sys.argv[1], pretrained=sys.argv[2] or None)
tokenizer = open_clip.get_tokenizer(sys.argv[1])
with torch.no_grad():
    words = model.eval().encode_text(tokenizer([sys.argv[4]]))
    words = (words / words.norm(dim=-1, keepdim=True)).numpy()
vectors = np.fromfile(sys.argv[3], np.float32).reshape(-1, words.shape[1])
print(np.argsort(-(vectors @ words[0]))[:10])
"""


def random_checkpoint(folder: Path, architecture: str) -> str:
    """open_clip's ``architecture`` with random weights, as a folder that ``--model`` takes."""
    import open_clip
    import torch
    from safetensors.torch import save_model

    torch.manual_seed(0)
    folder.mkdir()
    save_model(open_clip.create_model(architecture), str(folder / "open_clip_model.safetensors"))
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


def nowhere(number: int) -> Asset:
    """A picture that is no file."""
    return Asset(f"/pictures/{number:07d}.jpg", Modality.IMAGE, 1, 1, number.to_bytes(16, "little"))


def make_index(
    folder: Path, model: str, items: int, *, asset: Callable[[int], Asset] = nowhere, with_tokens: bool = True
) -> None:
    """An index of ``items`` pictures by ``model``, with vectors and tokens that nobody computed."""
    rng = np.random.default_rng(0)
    with mmsearch.open(folder, model=model) as library:
        note = Addition(key="note", text="a note about nothing")
        library.add([note], tokens=with_tokens)  # makes the index, and exports its text tower
        dim, reranker = library.encoder.dim, library.reranker
    compressor = None if reranker is None or not with_tokens else reranker.compressor
    tokens = None if compressor is None else compressor.format
    centres = rng.normal(size=(CENTRES, dim)).astype(np.float32)
    with Index.open(folder) as index, index.writing() as writer:
        if tokens is not None:
            writer.adopt_tokens(tokens)
        for start in range(0, items, BATCH):
            count = min(BATCH, items - start)
            vectors = centres[rng.integers(CENTRES, size=count)]
            vectors = vectors + SPREAD * rng.normal(size=vectors.shape).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            packed: list[np.ndarray | None] = [None] * count
            if tokens is not None:
                rows = rng.integers(-99, 100, (count, tokens.row_bytes), np.int8)
                rows[:, tokens.count * tokens.width :] = np.full(tokens.count, 0.01, "<f2").view(np.int8)
                packed = list(rows.view(np.uint8))
            writer.apply(
                [
                    Put(
                        asset(i),
                        [Piece(Modality.IMAGE)],
                        vector[None],
                        tokens=[row],
                    )
                    for i, (vector, row) in enumerate(zip(vectors, packed, strict=True), start)
                ]
            )
    with mmsearch.open(folder) as library:
        library.prepare()  # the lists that a run of ``mmsearch index`` ends with


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds from start to end, seconds of processor, and peak megabytes of one process.

    Raises:
        RuntimeError: it failed; its last line is the message.
    """
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode:
            raise RuntimeError((said.read().decode(errors="replace").strip().splitlines() or ["it failed"])[-1])
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def as_installed() -> dict[str, str]:
    """The environment of a command from this checkout, whose modules are compiled once, as those of a package are."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def main() -> None:
    """Make the index, ask in turn, print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="mini, or an architecture of open_clip (default: %(default)s)")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--rclip", type=Path, help="the command rclip of another environment")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures for rclip")
    parser.add_argument("--tutorial", action="store_true", help="also open_clip as its tutorial does it")
    parser.add_argument("--index", type=Path, help="keep the index here, and use it if it is there")
    parser.add_argument("--make", action="store_true", help="only make the index")
    options = parser.parse_args()
    environment = as_installed()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.index or Path(scratch, "index")
        if options.make:
            model = options.model
            if model != "mini":
                model = random_checkpoint(folder.with_name(folder.name + "-model"), model)
            make_index(folder, model, options.items)
            return
        if not Index.exists(folder):  # by another process: a child's peak begins with what its parent holds
            make = [sys.executable, __file__, "--make", "--index", str(folder), "--model", options.model]
            subprocess.run([*make, "--items", str(options.items)], check=True, env=environment)
        ours = [sys.executable, "-P", "-m", "mmsearch", "query", QUESTION, "--index", str(folder), "-k", "10"]
        commands = {"mmsearch": ours, "mmsearch --no-rerank": [*ours, "--no-rerank"]}
        if options.tutorial:
            (vectors,) = (folder / "vectors").glob("image-*.f32")
            commands["open_clip"] = [sys.executable, "-c", TUTORIAL, options.model, "", str(vectors), QUESTION]
        if options.rclip:
            commands["rclip"] = ["sh", "-c", 'cd "$1" && exec "$2" --no-indexing "$3"', "sh"]
            commands["rclip"] += [str(options.pictures), str(options.rclip.absolute()), QUESTION]
            subprocess.run([str(options.rclip.absolute()), QUESTION], cwd=options.pictures, stdout=subprocess.DEVNULL)
        figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for turn in range(options.runs + 1):  # the first is not counted
            for name, command in list(commands.items()):
                try:
                    figure = run(command, environment)
                except (RuntimeError, OSError) as exc:
                    print(f"{name}: left out, {exc}")
                    del commands[name]
                    continue
                if turn:
                    figures[name].append(figure)
    print(f"{options.items:,} items, {options.model}, medians of {options.runs}, whole process")
    for name in commands:
        wall, processor, memory = (statistics.median(column) for column in zip(*figures[name], strict=True))
        print(f"{name:22s} {wall:6.2f} s {processor:6.2f} s of processor {memory:7.0f} MB")


if __name__ == "__main__":
    main()
