"""What a model costs: time for a question, pictures indexed in a second, memory, and room on the disk.

Every model is measured in a process of its own, so that its peak of memory is its own and nothing that another one has
loaded helps it. Times are those of warm questions through the whole library: decode, embed, search, merge.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.decode import IMAGE_EXTENSIONS
from indexer.errors import ModelError

if TYPE_CHECKING:
    from mmsearch.datasets import Captioned

QUESTIONS = 40
"""Questions of each kind that are timed, after ``WARM`` that are not."""
WARM = 3
INDEXED = 64
"""Pictures whose indexing is timed."""
SECONDS = 20.0
"""A slow model is asked no more once this has passed; at least one question is timed."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Times in milliseconds, sizes in bytes; None where it cannot be known here."""

    text_ms_p50: float
    text_ms_p95: float
    image_ms_p50: float
    image_ms_p95: float
    images_per_second: float
    peak_bytes: int | None
    model_bytes: int | None
    index_bytes: int

    def cells(self) -> dict[str, str]:
        """The cost as rows of a table."""
        return {
            "ms per text question, median / 95 %": f"{self.text_ms_p50:,.1f} / {self.text_ms_p95:,.1f}",
            "ms per picture question, median / 95 %": f"{self.image_ms_p50:,.1f} / {self.image_ms_p95:,.1f}",
            "pictures indexed per second": f"{self.images_per_second:,.1f}",
            "peak memory": _size(self.peak_bytes),
            "model on disk": _size(self.model_bytes),
            "index on disk": _size(self.index_bytes),
        }


def measure_cost(
    index: Path, data: Captioned, *, device: str | None = None, rerank: bool = True, reranker: str | None = None
) -> Cost:
    """Measure, in a new process, the model that made ``index`` with questions and pictures of ``data``.

    With ``rerank``, that is with the ``reranker`` of that name or in that folder, or the one that was trained for the
    model, if there is.

    Raises:
        ModelError: the process failed; its last words are in the message.
    """
    chosen = np.linspace(0, len(data.pictures) - 1, min(len(data.pictures), INDEXED)).astype(int).tolist()
    with tempfile.TemporaryDirectory(prefix="mmsearch-cost-") as scratch:
        pictures = []
        for number in chosen:
            path = data.pictures[number].path
            whole = data.pictures[number].box is None and data.pictures[number].member is None
            if not whole or path.suffix.lower().lstrip(".") not in IMAGE_EXTENSIONS:
                path = Path(scratch) / f"{number}.png"
                data.pictures[number].open().save(path)
            pictures.append(str(path.absolute()))
        task = {
            "index": str(index.absolute()),
            "texts": [data.captions[number][0] for number in chosen],
            "pictures": pictures,
            "device": device,
            "rerank": rerank,
            "reranker": reranker,
        }
        command = [sys.executable, "-m", "mmsearch.evaluation.cost"]
        run = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True)
    if run.returncode != 0:
        words = run.stderr.strip().splitlines()
        raise ModelError(f"the process that measures the cost failed: {words[-1] if words else run.returncode}")
    return Cost(**json.loads(run.stdout.splitlines()[-1]))


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The median and the 95th percentile, in milliseconds: of 1, 2, …, 100 ms they are 50.5 and 95.05."""
    middle, high = np.percentile(1000 * np.asarray(seconds), [50, 95])
    return float(middle), float(high)


def model_bytes(name: str) -> int | None:
    """Bytes of the files of a model: the packaged one, a folder, or what the Hugging Face hub has left in its cache."""
    from indexer.encoders.mini import PACKAGED

    folder = PACKAGED if name == "mini" else Path(name).expanduser()
    if folder.is_dir():
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    repository = _repository(name)
    return None if repository is None else _cached_bytes(repository)


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _measure(task: dict[str, Any]) -> Cost:
    """What the new process does."""
    import mmsearch

    reranker, rerank = task["reranker"], bool(task["rerank"])
    with mmsearch.open(task["index"], device=task["device"], reranker=reranker) as library:
        made_by = library.status()
        text = percentiles(_times(lambda words: library.query(words, rerank=rerank), task["texts"]))
        image = percentiles(_times(lambda path: library.query(image=path, rerank=rerank), task["pictures"]))
        with (
            tempfile.TemporaryDirectory(prefix="mmsearch-cost-") as scratch,
            mmsearch.open(Path(scratch) / "index", model=library.encoder, reranker=reranker) as fresh,
        ):
            report = fresh.index(*dict.fromkeys(task["pictures"]), tokens=rerank)
    return Cost(
        *text,
        *image,
        images_per_second=(report.added + report.duplicates) / max(report.seconds, 1e-9),
        peak_bytes=peak_memory(),
        model_bytes=model_bytes(made_by.model),
        index_bytes=made_by.bytes,
    )


def _times(ask: Callable[[str], object], questions: Sequence[str]) -> list[float]:
    """Seconds of each question, asked in turn after some that are not counted."""
    for question in questions[:WARM]:
        ask(question)
    times: list[float] = []
    while len(times) < QUESTIONS and (not times or sum(times) < SECONDS):
        question = questions[(WARM + len(times)) % len(questions)]
        started = time.perf_counter()
        ask(question)
        times.append(time.perf_counter() - started)
    return times


def _repository(name: str) -> str | None:
    """The repository of the hub that holds the weights of an open_clip model."""
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    import open_clip

    architecture, _, tag = name.rpartition("/")
    config = open_clip.get_pretrained_cfg(architecture, tag) if architecture else {}
    hub = str(config.get("hf_hub") or "")
    return "/".join(hub.split("/")[:2]) or None


def _cached_bytes(repository: str) -> int | None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = scan_cache_dir()
    except CacheNotFound:
        return None
    return next((one.size_on_disk for one in cached.repos if one.repo_id == repository), None)


def _size(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(json.load(sys.stdin)))))
