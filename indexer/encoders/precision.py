"""Half the bits where the chip computes with them: bfloat16 for an image tower, once it was held against float32.

Chips with AMX or AVX512-BF16 multiply bfloat16 more than twice as fast. Its 8 bits of mantissa suffice for the towers
that we know, but a tower may be one that we do not. So the first pictures that a model is ever given go through both:
what is stored of them is float32's, and with their vectors the same questions are asked of both. What came of it is
kept in the user's cache folder, for this model, this torch and this chip. Where bfloat16 finds something else, or is
no faster, the model stays in float32.

The weights are converted, once; autocast would convert them again for every batch. Questions in words are not touched,
nor are a few pictures at a time. Vectors of both kinds may stand in one index.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders.rows import unit_rows

if TYPE_CHECKING:
    import torch

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
"""What makes bfloat16 fast on a CPU, as torch and Linux call it."""
PICTURES = 128
"""So many are compared before bfloat16 is used."""
FEW = 8
"""Fewer pictures at a time are not worth converting the weights for."""
ANSWERS = 10
LEAST_RECALL, LEAST_COSINE, LEAST_GAIN = 0.99, 0.99, 1.1
"""What bfloat16 has to reach: recall@10, the cosine of the worst picture's two vectors, times as fast."""
TIE = 5e-4
"""Answers whose cosines differ by less are equally good: a sixtieth of the spread of CLIP's from words to pictures."""
QUESTIONS = (
    "a dog",
    "a child playing",
    "two people talking",
    "a group of people at a table",
    "a house with a garden",
    "a car on the road",
    "mountains and a lake",
    "food on a plate",
    "a red shirt",
    "a screen with text",
    "the sea at night",
    "flowers",
)
"""Words are what pictures are searched by, so words ask, too."""
CACHE = "MMSEARCH_CACHE"
"""Names another folder than the user's own for what can be measured again."""

Compute = Callable[[Any, "torch.Tensor"], tuple[np.ndarray, ...]]
"""A model and prepared pictures ``(B, 3, H, W)`` to vectors ``(B, D)``, not normalised, and whatever else is wanted."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether bfloat16, or int8, takes the place of float32, and why."""

    precision: str
    why: str
    pictures: int = 0
    recall: float | None = None
    cosine: float | None = None
    gain: float | None = None


class Precision:
    """One model in the precision that is fastest here and finds the same. Thread-safe.

    Args:
        model: computes in float32; has its image tower as ``visual``.
        fingerprint: of its weights.
        questions: gives the vectors ``(Q, D)`` of ``QUESTIONS``; asked once at most.
    """

    def __init__(self, model: Any, device: torch.device, fingerprint: str, questions: Callable[[], np.ndarray]) -> None:
        self._model = model
        self._device = device
        self._questions = questions
        self._light: Any = None
        self._lock = threading.Lock()
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._speeds: tuple[list[float], list[float]] = ([], [])
        self._file: Path | None = None
        self._verdict: Verdict | None
        if device.type != "cpu":
            self._verdict = Verdict(FLOAT32, f"nothing else is tried on {device.type}")
        elif not bfloat16_instructions():
            self._verdict = Verdict(FLOAT32, "this chip has no bfloat16")
        else:
            self._file = _file(fingerprint)
            self._verdict = kept_verdict(self._file)

    @property
    def verdict(self) -> Verdict:
        """What is used, and why."""
        return self._verdict or Verdict(FLOAT32, f"bfloat16 is used once {PICTURES} pictures were compared")

    def run(self, batch: np.ndarray, compute: Compute) -> tuple[np.ndarray, ...]:
        """What ``compute`` makes of prepared pictures ``(B, 3, H, W)`` float32."""
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
        verdict = self._verdict
        with torch.inference_mode():
            if len(batch) < FEW or (verdict is not None and verdict.precision == FLOAT32):
                return compute(self._model, pixels)
            if verdict is not None:
                return compute(self._converted(), pixels.bfloat16())
            began = time.thread_time()
            exact = compute(self._model, pixels)
            seconds = time.thread_time() - began
            self._compare(exact[0], pixels, compute, len(batch) / max(seconds, 1e-9))
            return exact

    def _converted(self) -> Any:
        """The model with an image tower of bfloat16 weights, which shares everything else."""
        import torch

        with self._lock:
            if self._light is None:
                light = copy.copy(self._model)
                visual = copy.deepcopy(self._model.visual).to(torch.bfloat16)
                light._modules = {**self._model._modules, "visual": visual}
                self._light = light
            return self._light

    def _compare(self, exact: np.ndarray, pixels: torch.Tensor, compute: Compute, speed: float) -> None:
        """Take note of what bfloat16 makes of the same pictures; with enough of them, decide."""
        try:
            light = self._converted()
            began = time.thread_time()
            found = compute(light, pixels.bfloat16())[0]
            seconds = time.thread_time() - began
        except (RuntimeError, TypeError, ValueError) as exc:  # an operation that torch does not have in bfloat16
            self._decide(Verdict(FLOAT32, f"the model fails in bfloat16 ({' '.join(str(exc).split())[:120]})"))
            return
        with self._lock:
            self._pairs.append((exact, found))
            self._speeds[0].append(speed)
            self._speeds[1].append(len(exact) / max(seconds, 1e-9))
            if self._verdict is not None or sum(len(one) for one, _ in self._pairs) < PICTURES:
                return
            pairs, self._pairs = self._pairs, []
            gain = max(self._speeds[1]) / max(self._speeds[0])
        ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))
        self._decide(judge(ours, theirs, self._questions(), gain))

    def _decide(self, verdict: Verdict) -> None:
        with self._lock:
            if self._verdict is not None:
                return
            self._verdict = verdict
            if verdict.precision == FLOAT32:
                self._light = None
        if verdict.precision == FLOAT32:
            _log.warning("pictures are computed in float32: %s", verdict.why)
        if self._file is not None:
            keep_verdict(self._file, verdict)


def judge(exact: np.ndarray, light: np.ndarray, questions: np.ndarray, gain: float) -> Verdict:
    """Whether the vectors ``light`` ``(N, D)`` can stand for ``exact`` ``(N, D)``, ``gain`` times as fast to have.

    Every picture asks for those like it, and the ``questions`` ``(Q, D)`` ask, too, all in float32. Recall is the share
    of the ten answers of ``light`` that are as near as the tenth of ``exact``, by ``exact``.
    """
    if not np.isfinite(light).all():
        return Verdict(FLOAT32, "bfloat16 gives vectors that are not finite", len(exact))
    exact, light = unit_rows(exact, "image"), unit_rows(light, "image")
    cosine = float((exact * light).sum(axis=1).min())
    hits = [recalls(exact, exact, light, own=True), recalls(questions, exact, light)]
    recall = min(float(one.mean()) for one in hits)
    said = f"recall@{ANSWERS} {recall:.3f}, cosine {cosine:.4f}, {gain:.1f} times as fast, on {len(exact)} pictures"
    good = recall >= LEAST_RECALL and cosine >= LEAST_COSINE
    if good and gain >= LEAST_GAIN:
        return Verdict(BFLOAT16, f"bfloat16 was held against float32: {said}", len(exact), recall, cosine, gain)
    why = "bfloat16 is no faster" if good else "bfloat16 does not find the same"
    return Verdict(FLOAT32, f"{why}: {said}", len(exact), recall, cosine, gain)


def recalls(questions: np.ndarray, exact: np.ndarray, light: np.ndarray, *, own: bool = False) -> np.ndarray:
    """For each question ``(Q, D)`` the share of ``light``'s answers that are as good as those of ``exact``, ``(Q,)``.

    With ``own`` the questions are the rows of ``exact``, which do not answer themselves.
    """
    true, found = questions @ exact.T, questions @ light.T  # (Q, N)
    if own:
        np.fill_diagonal(true, -np.inf)
        np.fill_diagonal(found, -np.inf)
    k = min(ANSWERS, true.shape[1] - own)
    least = -np.sort(-true, axis=1)[:, k - 1 : k] - TIE
    answers = np.argsort(-found, axis=1, kind="stable")[:, :k]
    shares: np.ndarray = (np.take_along_axis(true, answers, axis=1) >= least).mean(axis=1)
    return shares


@lru_cache(maxsize=1)
def bfloat16_instructions() -> tuple[str, ...]:
    """Which of ``INSTRUCTIONS`` this chip has."""
    return tuple(name for name in INSTRUCTIONS if name in _chip()[1])


@lru_cache(maxsize=1)
def _chip() -> tuple[str, frozenset[str]]:
    """The chip's name and what it can do."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):  # since torch 2.10
        known = torch.cpu.get_capabilities()
        return str(known.get("cpu_name", "")), frozenset(name for name, value in known.items() if value is True)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", frozenset()
    fields = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    return fields.get("model name", "").strip(), frozenset(fields.get("flags", "").split())


def _file(fingerprint: str) -> Path:
    """Where the verdict on a model is kept: another torch and another chip are asked anew."""
    import torch

    return verdict_file(fingerprint, str(torch.__version__), _chip()[0], *bfloat16_instructions())


def verdict_file(*key: str) -> Path:
    """Where the verdict is kept that depends on all of ``key``."""
    folder = os.environ.get(CACHE)
    if folder is None:
        import platformdirs

        folder = platformdirs.user_cache_dir("mmsearch", appauthor=False)
    return Path(folder) / "precision" / f"{hashlib.blake2b('|'.join(key).encode(), digest_size=16).hexdigest()}.json"


def kept_verdict(path: Path) -> Verdict | None:
    """The verdict in a file; None if nobody has decided."""
    try:
        verdict = Verdict(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return verdict if verdict.precision in (FLOAT32, BFLOAT16, INT8) else None


def keep_verdict(path: Path, verdict: Verdict) -> None:
    """Keep the verdict; where that is not possible, the next process finds it again."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(asdict(verdict), indent=1), encoding="utf-8")
        fresh.replace(path)
    except OSError as exc:
        _log.info("cannot keep %s: %s", path, exc.strerror)
