"""One model from several runs: the average of their weights, and a vector no longer than it has to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexer.encoders.device import pick_device
from indexer.errors import UsageError
from mmsearch.datasets import Captioned
from mmsearch.training.average import check_alike, mean_state
from mmsearch.training.finish import Measured, write_model
from mmsearch.training.material import gathered, readable
from mmsearch.training.models import DualModel, Tower
from mmsearch.training.models.load import load_trainable
from mmsearch.training.models.mini import MiniModel
from mmsearch.training.retrieval import cross_entropy, fitting_scale, recalls
from mmsearch.training.run import Data, RunFolder
from mmsearch.training.settings import Augmentation, CombineSettings
from mmsearch.training.sources import PLAIN, Pictures, Texts, digest

FEATURES = "features"
BATCH = 64

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Vectors of pictures ``(N, D)`` and of texts ``(M, D)``, and the picture of each text ``(M,)``."""


def combine(
    out: Path,
    settings: CombineSettings,
    *,
    cache: Path | None = None,
    device: str | None = None,
    command: str = "",
    log: Callable[[str], None] = print,
) -> Path:
    """Average the runs that are better together than apart, and leave one model in ``out``.

    The runs must have begun with the same weights; then their averages are models, better ones than each (Wortsman et
    al. 2022, "Model soups"). They are tried in the order of what each is worth on its own, and one that makes the
    average no better is left out (algorithm 1, the greedy soup). The worth of a model is how little it is surprised by
    the dev split and the other judges.

    With a size, `mini`'s vectors are folded into so many numbers: the directions in which the vectors of the training
    pictures, of their texts and of the words of the vocabulary are largest, the three of them alike; captions alone
    would drop what sentences about anything else differ in. As one and the same orthogonal map turns pictures and
    texts, all cosines stay what they were, but for what lies outside those directions.

    Args:
        out: new folder of a run, as ``train_dual`` leaves one, but without checkpoints.
        settings: which runs, and what to choose by.
        cache: where to keep what stages say that all runs share; ``out/features`` for None.
        device: ``cuda``, ``mps``, ``cpu``, or None for the best here.
        command: what the user typed, for the model card.
        log: takes a line of progress.

    Returns:
        ``out``.

    Raises:
        UsageError: the runs are not of one model, or a size is asked for of a model that has no compact vectors.
    """
    where = pick_device(device)
    models = open_alike(settings, where)
    material = gathered(settings, log)
    folder = RunFolder.create(out, settings, say=log)
    made = mixed(models, settings, material, cache or out / FEATURES, where, log, folder.log)
    write_model(
        folder,
        made.model,
        measured=made.measured,
        data=made.data,
        start=settings.runs[0],
        best={"average of": ", ".join(Path(run).name for run in made.runs)},
        command=command,
        device=where,
        seed=settings.seed,
        log=log,
    )
    return out


@dataclass(frozen=True, slots=True)
class Mixed:
    """A model made of several, the runs that went into it, and how it did."""

    model: DualModel
    runs: tuple[str, ...]
    measured: tuple[Measured, ...]
    data: list[Data]


def open_alike(settings: CombineSettings, device: torch.device) -> list[DualModel]:
    """The models of the runs.

    Raises:
        UsageError: they are not of one architecture, or cannot have the size that is asked for.
    """
    models = [load_trainable(run).to(device).eval() for run in settings.runs]
    for other in models[1:]:
        check_alike(models[0].state_dict(), other.state_dict())
    if settings.size:
        if not isinstance(models[0], MiniModel):
            raise UsageError(
                f"{settings.runs[0]} is no model of the kind of mini; only its vectors can be made compact"
            )
        if not 1 <= settings.size <= models[0].dim:
            raise UsageError(f"the vectors have {models[0].dim} numbers; they cannot be folded into {settings.size}")
    return models


def mixed(
    models: Sequence[DualModel],
    settings: CombineSettings,
    material: tuple[Captioned, list[tuple[str, Captioned]], list[Data]],
    cache: Path,
    device: torch.device,
    log: Callable[[str], None],
    record: Callable[[dict[str, Any]], None],
) -> Mixed:
    """The average of ``models`` with compact vectors, in the first of them, not yet rounded to what a file holds.

    ``material`` is what ``gathered`` gives; ``record`` takes each measurement.
    """
    seen, judges, data = material
    model = models[0]
    model.image.freeze(_shared([each.image for each in models]))
    model.text.freeze(_shared([each.text for each in models]))
    states = [{name: tensor.detach().clone() for name, tensor in each.state_dict().items()} for each in models]
    reader = _Reader(model, cache, device, log)
    judged = [(name, readable(part, cache, log)) for name, part in judges]
    scales: list[float] = []

    def surprise(state: Mapping[str, Tensor]) -> float:
        """The mean over the judges of the cross-entropy at the temperature that suits the first model."""
        model.load_state_dict(state)
        rows = [reader.rows(name, part) for name, part in judged]
        scales.extend(fitting_scale(*each) for each in rows[len(scales) :])
        found = float(np.mean([cross_entropy(*each, scale) for each, scale in zip(rows, scales, strict=True)]))
        named = {name: recalls(*each).as_dict() for (name, _), each in zip(judged, rows, strict=True)}
        record({"cross_entropy": round(found, 4), **named})
        log(f"cross-entropy {found:.4f}, {named}")
        return found

    chosen = _greedy(states, surprise)
    runs = tuple(settings.runs[number] for number in chosen)
    log(f"averaged: {', '.join(runs)}")
    model.load_state_dict(mean_state([states[number] for number in chosen]))
    if settings.size:
        assert isinstance(model, MiniModel)
        image, text, _ = reader.rows("train", readable(seen, cache, log))
        words = model.vocabulary()
        model.compact(principal([image, text, reader.texts("vocabulary", words)], settings.size))
    measured = tuple(Measured(name, part, recalls(*reader.rows(name, part))) for name, part in judged)
    log("the model: " + ", ".join(f"{each.name} {each.recall.as_dict()}" for each in measured))
    return Mixed(model, runs, measured, data)


def principal(parts: Sequence[np.ndarray], size: int) -> np.ndarray:
    """The ``size`` orthonormal directions ``(size, D)`` that hold most of ``parts``, each ``(N, D)`` with its own N.

    The parts count alike. Of two vectors mapped by it the product is theirs, less that of what lies outside: principal
    components, not centred (Jolliffe 2002, section 14.2.3).
    """
    spread = sum((rows.T.astype(np.float64) @ rows) / len(rows) for rows in parts)  # (D, D)
    _, directions = np.linalg.eigh(spread)  # columns, the largest last
    return directions[:, ::-1][:, :size].T.astype(np.float32)


def _greedy(states: Sequence[Mapping[str, Tensor]], surprise: Callable[[Mapping[str, Tensor]], float]) -> list[int]:
    """The numbers of the states whose mean surprises least: the best one, and each next best that helps."""
    alone = [surprise(state) for state in states]
    first, *others = sorted(range(len(states)), key=lambda number: alone[number])
    chosen, least = [first], alone[first]
    for number in others:
        found = surprise(mean_state([states[member] for member in (*chosen, number)]))
        if found <= least:
            chosen, least = [*chosen, number], found
    return chosen


def _shared(towers: Sequence[Tower]) -> int:
    """How many stages, from the input on, are the same in all towers; the heads are never shared."""
    for number, stages in enumerate(zip(*(tower.stages[:-1] for tower in towers), strict=True)):
        if len({digest([stage]) for stage in stages}) > 1:
            return number
    return len(towers[0].stages) - 1


class _Reader:
    """Vectors of datasets, computed by a model whose shared stages run once."""

    def __init__(self, model: DualModel, cache: Path, device: torch.device, log: Callable[[str], None]) -> None:
        self._model, self._cache, self._device, self._log = model, cache, device, log
        self._read: dict[str, tuple[Pictures, Texts]] = {}

    @torch.inference_mode()
    def rows(self, name: str, data: Captioned) -> Rows:
        """The vectors of a dataset, as the model is now."""
        if name not in self._read:
            self._read[name] = self._opened(name, data)
        pictures, texts = self._read[name]
        choices = [[(number, PLAIN) for number in chunk] for chunk in _chunks(len(pictures))]
        image = torch.cat([self._model.image.rest(state) for state in pictures.steps(choices)])
        return image.cpu().numpy(), self._vectors(texts), np.array(data.flat()[1])

    @torch.inference_mode()
    def texts(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """The vectors of texts alone, as the model is now."""
        return self._vectors(Texts(self._model, texts, name=name, folder=self._cache, device=self._device))

    def _vectors(self, texts: Texts) -> np.ndarray:
        parts, places = texts.parts(np.arange(len(texts)))
        return torch.cat([self._model.text.rest(part) for part in parts])[places].cpu().numpy()

    def _opened(self, name: str, data: Captioned) -> tuple[Pictures, Texts]:
        model = self._model
        pictures = Pictures(
            model,
            data.pictures,
            name=name,
            folder=self._cache,
            views=1,
            augmentation=Augmentation(),
            seed=0,
            device=self._device,
            run=model.image.trunk,
            log=self._log,
        )
        return pictures, Texts(model, data.flat()[0], name=name, folder=self._cache, device=self._device)


def _chunks(count: int) -> list[list[int]]:
    return [list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH)]
