"""Fewer bits where the chip computes with them: int8 or bfloat16 for an image tower, once held against float32.

Chips with VNNI or AMX multiply bytes four times as fast as float32, and those with AMX or AVX512-BF16 bfloat16 more
than twice as fast. For the towers that we know these suffice, but a tower may be one that we do not. So the first
pictures that a model is ever given go through all of them: what is stored is float32's, and with the vectors of each
the same questions are asked. What came of it is kept in the user's cache folder, for this model, this torch and this
chip. What finds something else, or is no faster, is not used. Whole numbers need to know how large the numbers are that
they stand for: that is observed on a first batch, which is not among the pictures that are compared.

The weights are converted, once; autocast would convert them again for every batch. Questions in words are not touched,
nor are a few pictures at a time. Vectors of all kinds may stand in one index.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders.rows import unit_rows

if TYPE_CHECKING:
    import torch

    from indexer.encoders.integers import Ranges

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
INSTRUCTIONS = {INT8: ("amx_int8", "avx512_vnni", "avx_vnni"), BFLOAT16: ("amx_bf16", "avx512_bf16")}
"""What makes them fast on a CPU, as torch and Linux call it."""
PICTURES = 128
"""So many are compared before fewer bits are used."""
FEW = 8
"""Fewer pictures at a time are not worth converting the weights for."""
ANSWERS = 10
LEAST_RECALL, LEAST_COSINE, LEAST_GAIN = 0.99, 0.99, 1.1
"""What they have to reach: recall@10, the cosine of the worst picture's two vectors, times as fast."""
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
RANGES = ".safetensors"
"""Ends the name of the file beside the verdict for int8."""
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
        model: computes in float32.
        fingerprint: of its weights.
        questions: gives the vectors ``(Q, D)`` of ``QUESTIONS``; asked once at most.
        towers: what the modules of the model are called that pictures go through, the image tower first.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        fingerprint: str,
        questions: Callable[[], np.ndarray],
        towers: Sequence[str] = ("visual",),
    ) -> None:
        self._model = model
        self._towers = {name: getattr(model, name) for name in towers}
        self._device = device
        self._questions = questions
        self._light: dict[str, Any] = {}
        self._failed: dict[str, str] = {}
        self._lock = threading.Lock()
        self._ranges: Ranges | None = None
        self._observing = threading.Lock()
        self._exact: list[np.ndarray] = []
        self._found: dict[str, list[np.ndarray]] = {}
        self._speeds: dict[str, list[float]] = {}
        self._file: Path | None = None
        self._kinds = kinds() if device.type == "cpu" else ()
        self._verdict: Verdict | None
        if device.type != "cpu":
            self._verdict = Verdict(FLOAT32, f"nothing else is tried on {device.type}")
        elif not self._kinds:
            self._verdict = Verdict(FLOAT32, "this chip has neither int8 nor bfloat16")
        else:
            self._file = _file(fingerprint)
            self._verdict = kept_verdict(self._file)
            if self._verdict is not None and self._verdict.precision == INT8:
                self._ranges = kept_ranges(self._file)
                if self._ranges is None:
                    self._verdict = None

    @property
    def verdict(self) -> Verdict:
        """What is used, and why."""
        tried = " or ".join(self._kinds)
        return self._verdict or Verdict(FLOAT32, f"{tried} is used once {PICTURES} pictures were compared")

    def run(self, batch: np.ndarray, compute: Compute) -> tuple[np.ndarray, ...]:
        """What ``compute`` makes of prepared pictures ``(B, 3, H, W)`` float32."""
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
        verdict = self._verdict
        with torch.inference_mode():
            if len(batch) < FEW or (verdict is not None and verdict.precision == FLOAT32):
                return compute(self._model, pixels)
            if verdict is not None:
                return compute(self._converted(verdict.precision), _given(pixels, verdict.precision))
            if (observed := self._observed(pixels, compute)) is not None:
                return observed
            began = time.thread_time()
            exact = compute(self._model, pixels)
            speeds = {FLOAT32: len(batch) / max(time.thread_time() - began, 1e-9)}
            found: dict[str, np.ndarray] = {}
            for kind in self._kinds:
                began = time.thread_time()
                rows = self._tried(kind, pixels, compute)
                if rows is not None:
                    found[kind] = rows
                    speeds[kind] = len(batch) / max(time.thread_time() - began, 1e-9)
            self._note(exact[0], found, speeds)
            return exact

    def _observed(self, pixels: torch.Tensor, compute: Compute) -> tuple[np.ndarray, ...] | None:
        """What float32 makes of these pictures, if they are the ones by which whole numbers learn their ranges."""
        if INT8 not in self._kinds:
            return None
        with self._observing:
            if self._ranges is not None or INT8 in self._light or INT8 in self._failed:
                return None
            from indexer.encoders.integers import observe

            try:
                self._ranges, exact = observe(next(iter(self._towers.values())), lambda: compute(self._model, pixels))
            except ValueError as exc:  # a tower of a kind that is not known
                self._failed[INT8] = f"the model cannot be had in int8 ({exc})"
                return None
            return exact

    def _converted(self, kind: str) -> Any:
        """The model with towers of such weights, which shares everything else."""
        import torch

        with self._lock:
            if kind not in self._light:
                towers = dict(self._towers)
                first = next(iter(towers))
                if kind == INT8:
                    from indexer.encoders.integers import in_integers

                    # A copy that shares all weights: those that are rounded are other tensors, the rest stays as it is.
                    shared = copy.deepcopy(towers[first], {id(one): one for one in towers[first].parameters()})
                    halves = torch.bfloat16 if instructions(BFLOAT16) else torch.float32
                    towers[first] = in_integers(shared, self._ranges or {}, halves)
                else:
                    towers = {name: copy.deepcopy(one).to(torch.bfloat16) for name, one in towers.items()}
                light = copy.copy(self._model)
                light._modules = {**self._model._modules, **towers}
                self._light[kind] = light
            return self._light[kind]

    def _tried(self, kind: str, pixels: torch.Tensor, compute: Compute) -> np.ndarray | None:
        """What fewer bits make of the same pictures; None if the model cannot compute with them."""
        if kind in self._failed:
            return None
        try:
            return compute(self._converted(kind), _given(pixels, kind))[0]
        except (
            RuntimeError,
            TypeError,
            LookupError,
            ValueError,
            AttributeError,
        ) as exc:  # what this torch does not have
            self._failed[kind] = f"the model fails in {kind} ({' '.join(str(exc).split())[:120]})"
            return None

    def _note(self, exact: np.ndarray, found: dict[str, np.ndarray], speeds: dict[str, float]) -> None:
        """Take note of what came of one batch; with enough of them, decide."""
        with self._lock:
            if self._verdict is not None:
                return
            self._exact.append(exact)
            for kind, rows in found.items():
                self._found.setdefault(kind, []).append(rows)
            for kind, speed in speeds.items():
                self._speeds.setdefault(kind, []).append(speed)
            if found and sum(map(len, self._exact)) < PICTURES:
                return
        self._decide(self._judged() if found else [])

    def _judged(self) -> list[Verdict]:
        """What is to be said of each kind."""
        exact, questions = np.concatenate(self._exact), self._questions()
        best = max(self._speeds[FLOAT32])
        return [
            judge(exact, np.concatenate(rows), questions, max(self._speeds[kind]) / best, kind)
            for kind, rows in self._found.items()
            if kind not in self._failed
        ]

    def _decide(self, judged: list[Verdict]) -> None:
        """The fastest that is good; else float32, and why not the others."""
        good = [one for one in judged if one.precision != FLOAT32]
        if good:
            verdict = max(good, key=lambda one: one.gain or 0)
        elif len(judged) == 1 and not self._failed:
            (verdict,) = judged
        else:
            verdict = Verdict(FLOAT32, "; ".join([*(one.why for one in judged), *self._failed.values()]))
        with self._lock:
            if self._verdict is not None:
                return
            self._verdict = verdict
            self._light = {kind: light for kind, light in self._light.items() if kind == verdict.precision}
            self._exact, self._found = [], {}
        if verdict.precision == FLOAT32:
            _log.warning("pictures are computed in float32: %s", verdict.why)
        if self._file is not None:
            if verdict.precision == INT8 and self._ranges is not None:
                keep_ranges(self._file, self._ranges)
            keep_verdict(self._file, verdict)


def _given(pixels: torch.Tensor, kind: str) -> torch.Tensor:
    """Pixels as a tower of that kind takes them."""
    return pixels.bfloat16() if kind == BFLOAT16 else pixels


def judge(exact: np.ndarray, light: np.ndarray, questions: np.ndarray, gain: float, kind: str = BFLOAT16) -> Verdict:
    """Whether such a tower's vectors ``light`` ``(N, D)`` can stand for ``exact`` ``(N, D)``, ``gain`` times as fast to
    have.

    Every picture asks for those like it, and the ``questions`` ``(Q, D)`` ask, too, all in float32. Recall is the share
    of the ten answers of ``light`` that are as near as the tenth of ``exact``, by ``exact``.
    """
    if not np.isfinite(light).all() or not light.any(axis=1).all():
        return Verdict(FLOAT32, f"{kind} gives vectors that are zero or not finite", len(exact))
    exact, light = unit_rows(exact, "image"), unit_rows(light, "image")
    cosine = float((exact * light).sum(axis=1).min())
    hits = [recalls(exact, exact, light, own=True), recalls(questions, exact, light)]
    recall = min(float(one.mean()) for one in hits)
    said = f"recall@{ANSWERS} {recall:.3f}, cosine {cosine:.4f}, {gain:.1f} times as fast, on {len(exact)} pictures"
    good = recall >= LEAST_RECALL and cosine >= LEAST_COSINE
    if good and gain >= LEAST_GAIN:
        return Verdict(kind, f"{kind} was held against float32: {said}", len(exact), recall, cosine, gain)
    why = f"{kind} is no faster" if good else f"{kind} does not find the same"
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


def kinds() -> tuple[str, ...]:
    """What this chip computes with faster than with float32, and torch can."""
    import torch

    able = {INT8: hasattr(torch.ops.onednn, "qlinear_pointwise"), BFLOAT16: True}
    return tuple(kind for kind in INSTRUCTIONS if able[kind] and instructions(kind))


def instructions(kind: str) -> tuple[str, ...]:
    """Which of ``INSTRUCTIONS`` this chip has."""
    return tuple(name for name in INSTRUCTIONS[kind] if name in _chip()[1])


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

    able = (name for kind in INSTRUCTIONS for name in instructions(kind))
    return verdict_file(fingerprint, str(torch.__version__), _chip()[0], *able)


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


def kept_ranges(path: Path) -> Ranges | None:
    """The ranges that belong to the verdict in ``path``; None if they are not there, or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path.with_suffix(RANGES))
    except (OSError, SafetensorError):
        return None


def keep_ranges(path: Path, ranges: Ranges) -> None:
    """Keep them beside the verdict; where that is not possible, the next process observes again."""
    from safetensors.torch import save

    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(save(dict(ranges)))
        fresh.replace(path.with_suffix(RANGES))
    except OSError as exc:
        _log.info("cannot keep %s: %s", path.with_suffix(RANGES), exc.strerror)
