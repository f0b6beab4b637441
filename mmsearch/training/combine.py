"""One model from several runs: the average of their weights, and a vector no longer than it has to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
from mmsearch.training.run import RunFolder
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
    pictures and texts, of both alike, are largest. As one and the same orthogonal map turns both, all cosines stay
    what they were, but for what lies outside those directions.

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
    models = [load_trainable(run).to(where).eval() for run in settings.runs]
    model = models[0]
    if settings.size and not isinstance(model, MiniModel):
        raise UsageError(f"{settings.runs[0]} is no model of the kind of mini; only its vectors can be made compact")
    states = [_copy(each) for each in models]
    for other in states[1:]:
        check_alike(states[0], other)
    model.image.freeze(_shared([each.image for each in models]))
    model.text.freeze(_shared([each.text for each in models]))
    del models
    seen, judges, data = gathered(settings, log)
    folder = RunFolder.create(out, settings, say=log)
    reader = _Reader(model, cache or out / FEATURES, where, log)
    judged = [(name, readable(part, reader.cache, log)) for name, part in judges]
    scales: list[float] = []

    def surprise(state: Mapping[str, Tensor]) -> float:
        """The mean over the judges of the cross-entropy at the temperature that suits the first model."""
        model.load_state_dict(state)
        rows = [reader.rows(name, part) for name, part in judged]
        scales.extend(fitting_scale(*each) for each in rows[len(scales) :])
        found = float(np.mean([cross_entropy(*each, scale) for each, scale in zip(rows, scales, strict=True)]))
        named = {name: recalls(*each).as_dict() for (name, _), each in zip(judged, rows, strict=True)}
        folder.log({"cross_entropy": round(found, 4), **named})
        log(f"cross-entropy {found:.4f}, {named}")
        return found

    chosen = _greedy(states, surprise)
    log(f"averaged: {', '.join(settings.runs[number] for number in chosen)}")
    model.load_state_dict(mean_state([states[number] for number in chosen]))
    if settings.size:
        assert isinstance(model, MiniModel)
        image, text, _ = reader.rows("train", readable(seen, reader.cache, log))
        model.compact(principal(image, text, settings.size))
    measured = [Measured(name, part, recalls(*reader.rows(name, part))) for name, part in judged]
    log("the model: " + ", ".join(f"{each.name} {each.recall.as_dict()}" for each in measured))
    write_model(
        folder,
        model,
        measured=measured,
        data=data,
        start=settings.runs[0],
        best={"average of": ", ".join(Path(settings.runs[number]).name for number in chosen)},
        command=command,
        device=where,
        seed=settings.seed,
        log=log,
    )
    return out


def principal(image: np.ndarray, text: np.ndarray, size: int) -> np.ndarray:
    """The ``size`` orthonormal directions ``(size, D)`` that hold most of ``image: (N, D)`` and ``text: (M, D)``.

    Both count alike. Of two vectors mapped by it the product is theirs, less that of what lies outside: principal
    components, not centred (Jolliffe 2002, section 14.2.3).

    Raises:
        UsageError: ``size`` is not between 1 and D.
    """
    if not 1 <= size <= image.shape[1]:
        raise UsageError(f"the vectors have {image.shape[1]} numbers; they cannot be folded into {size}")
    spread = sum((rows.T.astype(np.float64) @ rows) / len(rows) for rows in (image, text))  # (D, D)
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
    """Vectors of datasets, computed by a model whose shared stages ran once."""

    def __init__(self, model: DualModel, cache: Path, device: torch.device, log: Callable[[str], None]) -> None:
        self.cache = cache
        self._model, self._device, self._log = model, device, log
        self._read: dict[str, tuple[Pictures, Texts]] = {}

    @torch.inference_mode()
    def rows(self, name: str, data: Captioned) -> Rows:
        """The vectors of a dataset, as the model is now."""
        if name not in self._read:
            self._read[name] = self._opened(name, data)
        pictures, texts = self._read[name]
        choices = [[(number, PLAIN) for number in chunk] for chunk in _chunks(len(pictures))]
        image = torch.cat([self._model.image.rest(state) for state in pictures.steps(choices)])
        text = torch.cat([self._model.text.rest(texts.rows(chunk)) for chunk in _chunks(len(texts))])
        return image.cpu().numpy(), text.cpu().numpy(), np.array(data.flat()[1])

    def _opened(self, name: str, data: Captioned) -> tuple[Pictures, Texts]:
        model = self._model
        pictures = Pictures(
            model,
            data.pictures,
            name=name,
            folder=self.cache,
            views=1,
            augmentation=Augmentation(),
            seed=0,
            device=self._device,
            run=model.image.trunk,
            log=self._log,
        )
        return pictures, Texts(model, data.flat()[0], name=name, folder=self.cache, device=self._device)


def _copy(model: DualModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _chunks(count: int) -> list[list[int]]:
    return [list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH)]
