"""Eight bits for the image tower of `mini`, where the chip is faster with them and computes what they were made for.

``image_int8.onnx`` in a model's folder is the tower of ``mini_onnx`` with weights and activations in eight bits (Jacob
et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference").
``mmsearch.training.models.mini_int8`` makes it. What it costs in recall is measured there; what it gains is another
matter on each chip, and some without instructions for it compute it wrongly, for their sums overflow. So the first
pictures that a model is ever given here go through both towers. What is stored of them is float32's; what came of it is
kept in the user's cache folder, for this model, this onnxruntime and this chip.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from indexer.encoders.mini_onnx import OnnxPictures
from indexer.encoders.precision import FLOAT32, INT8, Verdict, keep_verdict, kept_verdict, verdict_file
from indexer.encoders.rows import unit_rows

FILE = "image_int8.onnx"
FINGERPRINT = "fingerprint"
"""What the file calls that of the weights it was made of."""
WEIGHTS = ("classifier.weight", "classifier.bias", "class_embeddings")
"""What is as small as it is in float32, and is not in the file but in ``image.safetensors``."""
PICTURES = 32
"""So many are compared before eight bits are used."""
LEAST_COSINE, LEAST_MEAN, LEAST_GAIN = 0.9, 0.99, 1.1
"""What they have to reach: the cosine of the worst picture's two vectors, the mean of all, times as fast."""

_log = logging.getLogger(__name__)


class FastestPictures:
    """Prepared pictures to vectors and patches by the tower that is fastest here and finds the same. Thread-safe.

    Args:
        exact, light: open the tower in float32, and in eight bits; each is asked once at most.
        fingerprint: of the model.
    """

    def __init__(self, exact: Callable[[], OnnxPictures], light: Callable[[], OnnxPictures], fingerprint: str) -> None:
        self._open_exact = exact
        self._open_light = light
        self._lock = threading.Lock()
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._seconds: tuple[list[float], list[float]] = ([], [])
        self._file = file_of(fingerprint)
        self._verdict = kept_verdict(self._file)

    @property
    def verdict(self) -> Verdict:
        """What is used, and why."""
        return self._verdict or Verdict(FLOAT32, f"int8 is used once {PICTURES} pictures were compared")

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 ``(B, 3, 260, 260)`` to vectors ``(B, D)``, not yet normalised, and patches ``(B, 81, 352)``."""
        verdict = self._verdict
        if verdict is None:
            return self._compare(pixels)
        return (self._light if verdict.precision == INT8 else self._exact)(pixels)

    @cached_property
    def _exact(self) -> OnnxPictures:
        return self._open_exact()

    @cached_property
    def _light(self) -> OnnxPictures:
        return self._open_light()

    def _compare(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What float32 says, and a note of what eight bits say; with enough of them, decide."""
        with self._lock:
            exact, light = self._exact, self._opened()
        began = time.thread_time()
        rows, patches = exact(pixels)
        middle = time.thread_time()
        if light is None:
            return rows, patches
        found, _ = light(pixels)
        end = time.thread_time()
        with self._lock:
            if self._verdict is None:
                self._pairs.append((rows, found))
                self._seconds[0].append((middle - began) / len(pixels))
                self._seconds[1].append((end - middle) / len(pixels))
                if sum(len(one) for one, _ in self._pairs) >= PICTURES:
                    self._decide()
        return rows, patches

    def _opened(self) -> OnnxPictures | None:
        """The tower in eight bits; where it cannot be opened, float32 stays."""
        try:
            return self._light
        except Exception as exc:  # onnxruntime's errors have no base but this
            if self._verdict is None:
                said = " ".join(str(exc).split())[:120]
                self._verdict = Verdict(FLOAT32, f"the tower in int8 cannot be opened ({said})")
                _log.warning("pictures are computed in float32: %s", self._verdict.why)
            return None

    def _decide(self) -> None:
        exact, light = (np.concatenate(side) for side in zip(*self._pairs, strict=True))
        gain = float(np.median(self._seconds[0]) / max(np.median(self._seconds[1]), 1e-9))
        self._verdict = judge(exact, light, gain)
        self._pairs.clear()
        self.__dict__.pop("_exact" if self._verdict.precision == INT8 else "_light", None)  # it is not needed again
        keep_verdict(self._file, self._verdict)


def judge(exact: np.ndarray, light: np.ndarray, gain: float) -> Verdict:
    """Whether the vectors ``light`` ``(N, D)`` are as near to ``exact`` ``(N, D)`` as eight bits were made to be, and
    worth it, being had ``gain`` times as fast."""
    if not np.isfinite(light).all():
        return Verdict(FLOAT32, "int8 gives vectors that are not finite here", len(exact))
    cosines = (unit_rows(exact, "image") * unit_rows(light, "image")).sum(axis=1)
    worst, mean = float(cosines.min()), float(cosines.mean())
    said = f"cosine {mean:.4f}, at worst {worst:.4f}, {gain:.1f} times as fast, on {len(exact)} pictures"
    if worst < LEAST_COSINE or mean < LEAST_MEAN:
        return Verdict(FLOAT32, f"int8 gives other vectors here: {said}", len(exact), None, worst, gain)
    if gain < LEAST_GAIN:
        return Verdict(FLOAT32, f"int8 is no faster here: {said}", len(exact), None, worst, gain)
    return Verdict(INT8, f"int8 was held against float32: {said}", len(exact), None, worst, gain)


def file_of(fingerprint: str) -> Path:
    """Where the verdict on a model is kept: another onnxruntime and another chip are asked anew."""
    from importlib.metadata import version

    return verdict_file(fingerprint, "onnxruntime", version("onnxruntime"), _chip())


def _chip() -> str:
    """What the system says that the chip is, and can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = {line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))}
    return "|".join(sorted(told)) or platform.processor() or platform.machine()
