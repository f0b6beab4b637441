"""Training a dual encoder by contrast: any start, any part of it, in one process or several, stopped and resumed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indexer.encoders.device import pick_device
from indexer.errors import ModelError, UsageError
from mmsearch.datasets import Captioned
from mmsearch.training.average import Ema, best_point
from mmsearch.training.checkpoint import load_state, save_state
from mmsearch.training.distributed import World, average_gradients, broadcast, gather
from mmsearch.training.finish import Measured, write_model
from mmsearch.training.heap import keep_freed_memory
from mmsearch.training.interrupt import Stop
from mmsearch.training.losses import multi_positive_info_nce, sigmoid_loss, triplet_loss
from mmsearch.training.material import fold_of, gathered, readable
from mmsearch.training.models import DualModel, State, Tower
from mmsearch.training.models.load import load_trainable
from mmsearch.training.models.lora import add_lora, merge_lora
from mmsearch.training.optimiser import cosine_schedule, groups
from mmsearch.training.retrieval import Recall, cross_entropy, fitting_scale, recalls
from mmsearch.training.run import RunFolder
from mmsearch.training.settings import DualSettings, parse_fold
from mmsearch.training.sources import PLAIN, Choice, Pictures, Texts

CHECKPOINTS, LAST, BEST, FEATURES = "checkpoints", "last.safetensors", "best.safetensors", "features"
CHECKPOINT_SECONDS = 300.0
ALPHAS = tuple(tenths / 10 for tenths in range(11))
"""Points between the starting weights and the trained ones that are measured (Wortsman et al. 2022)."""
SAMPLE = 1024
"""Pictures and texts that the model looks at before training, to standardise what its heads read."""
JUDGE_BATCH = 64
SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0
"""With which the sigmoid loss begins (Zhai et al. 2023, section 3.2)."""


def train_dual(
    out: Path,
    settings: DualSettings,
    *,
    resume: bool = False,
    cache: Path | None = None,
    device: str | None = None,
    compiled: bool = False,
    command: str = "",
    log: Callable[[str], None] = print,
) -> Path:
    """Train on ``settings.data``, judge each epoch on its dev split, and leave the best model in ``out``.

    Under ``torchrun`` each process takes its part of every batch; the loss is that of the whole batch.

    Args:
        out: the run's folder: what ``RunFolder`` describes, ``checkpoints/``, and a model that ``load_encoder`` opens.
        settings: what to do; on ``resume`` it must be what ``out/config.toml`` says.
        resume: go on from the last checkpoint, bit for bit as if nothing had happened.
        cache: where to keep what frozen stages say of the data; ``out/features`` for None.
        device: ``cuda``, ``mps``, ``cpu``, or None for the best here.
        compiled: run the frozen image stages through ``torch.compile``: needs a C++ compiler, is faster on a CPU.
        command: what the user typed, for the model card.
        log: takes a line of progress.

    Returns:
        ``out``.

    Raises:
        UsageError: the data, the start or the settings do not fit.
        KeyboardInterrupt: after a checkpoint was written from which ``resume`` goes on.
    """
    where = pick_device(device)
    keep_freed_memory()
    with World.join(where.type) as world:
        say = log if world.is_main else _silent
        run = _Run(out, settings, world, where, cache or out / FEATURES, compiled, resume, say)
        run.fit()
        if world.is_main:
            run.finish(command)
        world.barrier()
    return out


@dataclass(frozen=True, slots=True)
class _Judged:
    """Captioned pictures that a model is measured on."""

    name: str
    pictures: Pictures
    texts: Texts
    owner: np.ndarray


class _Run:
    """One training run: what is read, where it stands, and what it writes."""

    def __init__(
        self,
        out: Path,
        settings: DualSettings,
        world: World,
        device: torch.device,
        cache: Path,
        compiled: bool,
        resume: bool,
        log: Callable[[str], None],
    ) -> None:
        self._settings, self._world, self._device, self._log = settings, world, device, log
        seen, judges, self._data = gathered(settings, log)
        torch.manual_seed(settings.seed)
        self._model = load_trainable(
            settings.start, fresh_head=settings.fresh_head, dropout=settings.dropout, noise=settings.noise
        ).to(device)
        _choose_what_trains(self._model, settings)
        self._trained = _Trained(self._model)
        if world.is_main:
            self._folder = RunFolder.create(out, settings, resume=resume, say=log)
            (out / CHECKPOINTS).mkdir(exist_ok=True)
        seen = readable(seen, cache, log)
        judges = [(name, readable(part, cache, log)) for name, part in judges]
        self._judged_by = judges
        self._kept = _kept(seen, settings.fold)
        self._batch = min(settings.batch, len(self._kept)) // world.size * world.size
        if self._batch < 2:
            raise UsageError(f"there are {len(self._kept)} pictures to train on; {max(2, world.size)} are the least")
        self._each = min(settings.captions, max(map(len, seen.captions)))
        first = np.cumsum([0, *(len(some) for some in seen.captions)]).tolist()
        self._captions = [np.arange(begin, end) for begin, end in itertools.pairwise(first)]
        self._caption_owner = np.array(seen.flat()[1])
        self._pictures, self._texts, self._judges = self._read(seen, judges, cache, compiled)
        self._begin()
        broadcast(self._model.state_dict().values())
        self._first = _copy(self._trained)
        self._optimiser = torch.optim.AdamW(_groups(self._model, settings))
        self._rates = [group["lr"] for group in self._optimiser.param_groups]
        self._ema = Ema(self._trained, settings.ema) if settings.ema else None
        self._steps = len(self._kept) // self._batch
        self._step = 0
        self._losses: list[float] = []
        self._best = -1.0
        if resume:
            self._restore(out)

    def fit(self) -> None:
        """All steps that are left.

        Raises:
            KeyboardInterrupt: asked to stop; a checkpoint was written.
        """
        settings = self._settings
        if self._step == 0 and not settings.fresh_head:
            self._judge({"epoch": 0, "step": 0})
        with Stop() as stop:
            saved = time.monotonic()
            # An epoch whose last step was the last before a stop has still to be judged: it has losses.
            for epoch in range((self._step - bool(self._losses)) // self._steps, settings.epochs):
                began = time.monotonic()
                done = self._step - epoch * self._steps
                for texts, images in self._batches(epoch, done):
                    self._losses.append(self._advance(texts, images, epoch))
                    if stop.asked:
                        self._save()
                        self._log(
                            f"stopped after step {self._step} of {self._steps * settings.epochs}; go on with --resume"
                        )
                        raise KeyboardInterrupt
                    if time.monotonic() - saved > CHECKPOINT_SECONDS:
                        self._save()
                        saved = time.monotonic()
                event = {
                    "epoch": epoch + 1,
                    "step": self._step,
                    "loss": round(float(np.mean(self._losses)), 4),
                    "scale": round(self._model.logit_scale.exp().item(), 2),
                }
                self._judge(event | {"seconds": round(time.monotonic() - began, 1)})
                self._losses = []
                self._save()
                saved = time.monotonic()

    def finish(self, command: str) -> None:
        """Write the best model, its calibration, its curve and its card.

        It is the best point between start and end (WiSE-FT), or, without a start that is worth keeping, the best epoch.
        """
        out = self._folder.path
        best: dict[str, float | int | str] = {}
        if self._settings.interpolate and not self._settings.fresh_head:
            best["alpha"] = self._interpolated()
        else:
            self._trained.load_state_dict(load_state(out / CHECKPOINTS / BEST)["model"])
        value, measured = self._measure()
        best["mean recall"] = round(value, 2)
        if self._settings.train == "lora":
            merge_lora(self._model.image)
            merge_lora(self._model.text)
        write_model(
            self._folder,
            self._model,
            measured=[
                Measured(name, data, recall) for (name, data), recall in zip(self._judged_by, measured, strict=True)
            ],
            data=self._data,
            start=self._settings.start,
            best=best,
            command=command,
            device=self._device,
            seed=self._settings.seed,
            log=self._log,
        )

    def _read(
        self, seen: Captioned, judges: Sequence[tuple[str, Captioned]], cache: Path, compiled: bool
    ) -> tuple[Pictures, Texts, list[_Judged]]:
        """Everything that the frozen stages have to say; the main process computes it, the others read it."""
        model, settings = self._model, self._settings
        run: Callable[[State], State] = model.image.trunk
        if compiled and model.image.frozen:
            run = torch.compile(_Trunk(model.image).eval(), options={"freezing": True})

        def pictures(name: str, data: Captioned, views: int) -> Pictures:
            return Pictures(
                model,
                data.pictures,
                name=name,
                folder=cache,
                views=views,
                augmentation=settings.augmentation,
                seed=settings.seed,
                device=self._device,
                run=run,
                log=self._log,
            )

        def texts(name: str, data: Captioned, drop: float = 0.0) -> Texts:
            return Texts(
                model, data.flat()[0], name=name, folder=cache, device=self._device, drop=drop, seed=settings.seed
            )

        if not self._world.is_main:
            self._world.barrier()
            return pictures("train", seen, settings.views), texts("train", seen, settings.word_dropout), []
        with torch.inference_mode():
            found = pictures("train", seen, settings.views), texts("train", seen, settings.word_dropout)
            judged = [
                _Judged(name, pictures(name, data, 1), texts(name, data), np.array(data.flat()[1]))
                for name, data in judges
            ]
        self._world.barrier()
        return *found, judged

    def _begin(self) -> None:
        """Let the heads look at a sample of the training data."""
        rng = np.random.default_rng([self._settings.seed, 1])
        pictures = rng.permutation(len(self._pictures))[:SAMPLE]
        texts = rng.permutation(len(self._texts))[:SAMPLE]
        chunks = [pictures[start : start + JUDGE_BATCH] for start in range(0, len(pictures), JUDGE_BATCH)]
        with torch.no_grad():
            states = list(self._pictures.steps([[(int(number), PLAIN) for number in chunk] for chunk in chunks]))
            image = tuple(torch.cat(parts) for parts in zip(*states, strict=True))
            self._model.begin(image, self._texts.rows(texts))

    def _batches(self, epoch: int, done: int) -> Iterator[tuple[np.ndarray, list[State]]]:
        """The steps of an epoch after the first ``done``: the captions of this process's pictures ``(B/W, c)``, and the
        pictures in micro-batches.

        All that is random depends on the seed, the epoch and the place in it, so that a resumed run repeats it.
        """
        settings, world = self._settings, self._world
        share = self._batch // world.size
        micro = settings.micro_batch or share
        order = np.random.default_rng([settings.seed, 2, epoch]).permutation(self._kept)
        chosen: list[list[Choice]] = []
        captions: list[np.ndarray] = []
        for step in range(self._steps):
            rng = np.random.default_rng([settings.seed, 3, epoch, step])
            batch = order[step * self._batch : (step + 1) * self._batch]
            views = [self._pictures.view(rng) for _ in batch]
            texts = np.stack([_some(self._captions[picture], self._each, rng) for picture in batch])  # (B, c)
            mine = slice(world.rank * share, (world.rank + 1) * share)
            if step >= done:
                chosen.append(list(zip(batch[mine].tolist(), views[mine], strict=True)))
                captions.append(texts[mine])
        pieces = [[step[start : start + micro] for start in range(0, share, micro)] for step in chosen]
        states = self._pictures.steps([piece for step in pieces for piece in step])
        for texts, parts in zip(captions, pieces, strict=True):
            yield texts, [next(states) for _ in parts]

    def _advance(self, texts: np.ndarray, images: list[State], epoch: int) -> float:
        """One step of the optimiser; the loss of the whole batch.

        With several micro-batches the vectors are computed first without gradients, the gradient of the loss by the
        vectors is taken, and then each micro-batch is computed again and given its part (Gao et al. 2021, GradCache).
        """
        settings, model = self._settings, self._model
        model.train()
        micro = len(images[0][0])
        pieces = [texts[start : start + micro] for start in range(0, len(texts), micro)]

        def vectors(number: int) -> tuple[Tensor, Tensor]:
            torch.manual_seed(_number(settings.seed, self._step, number, self._world.rank))  # dropout, again the same
            with self._precision():
                image = model.image.rest(images[number])  # (b, D)
                parts, places = self._texts.parts(pieces[number].ravel(), epoch)
                text = torch.cat([model.text.rest(part) for part in parts])[places.to(self._device)]  # (b·c, D)
            return image.repeat_interleave(self._each, dim=0), text

        group = gather(self._owner(texts))  # (B·c,)
        factor = cosine_schedule(
            self._step, self._steps * settings.epochs, round(settings.warmup * self._steps * settings.epochs)
        )
        for parameters, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            parameters["lr"] = rate * factor
        self._optimiser.zero_grad()
        if len(images) == 1:
            image, text = vectors(0)
            loss = self._loss(gather(image), gather(text), group)
            loss.backward()
        else:
            loss = self._backward_in_pieces(vectors, len(images), group)
        moved = [parameter for parameter in self._trained.parameters() if parameter.requires_grad]
        average_gradients(moved)
        if settings.clip:
            nn.utils.clip_grad_norm_(moved, settings.clip)
        self._optimiser.step()
        model.clamp()
        self._step += 1
        if self._ema is not None:
            self._ema.update(self._trained)
        value = loss.item()
        if not math.isfinite(value):
            raise ModelError(
                f"the loss is no longer a number in step {self._step}; lower the learning rate or use float32, "
                "and resume from the last checkpoint"
            )
        return value

    def _backward_in_pieces(self, vectors: Callable[[int], tuple[Tensor, Tensor]], count: int, group: Tensor) -> Tensor:
        with torch.no_grad():
            pairs = [vectors(number) for number in range(count)]
        image = torch.cat([pair[0] for pair in pairs]).requires_grad_()
        text = torch.cat([pair[1] for pair in pairs]).requires_grad_()
        loss = self._loss(gather(image), gather(text), group)
        loss.backward()
        assert image.grad is not None and text.grad is not None
        start = 0
        for number in range(count):
            piece_image, piece_text = vectors(number)
            end = start + len(piece_image)
            torch.autograd.backward([piece_image, piece_text], [image.grad[start:end], text.grad[start:end]])
            start = end
        return loss

    def _loss(self, image: Tensor, text: Tensor, group: Tensor) -> Tensor:
        model, settings = self._model, self._settings
        if settings.loss == "triplet":
            return triplet_loss(image, text, group, settings.margin)
        if settings.loss == "sigmoid":
            return sigmoid_loss(image, text, group, model.logit_scale.exp(), model.logit_bias)
        return multi_positive_info_nce(image, text, group, model.logit_scale.exp())

    def _owner(self, texts: np.ndarray) -> Tensor:
        """The number of the picture of each caption."""
        return torch.from_numpy(self._caption_owner[texts.ravel()]).to(self._device)

    def _precision(self) -> Any:
        if self._settings.precision == "bfloat16":
            return torch.autocast(self._device.type, torch.bfloat16)
        return nullcontext()

    def _judge(self, event: dict[str, Any]) -> None:
        """Measure, write it down, and keep the model if it is the best so far."""
        if not self._world.is_main:
            return
        with self._ema.swapped(self._trained) if self._ema is not None else nullcontext():
            value, measured = self._measure()
            self._record(event | self._named(measured))
            if value > self._best:
                self._best = value
                save_state(self._folder.path / CHECKPOINTS / BEST, {"model": _copy(self._trained)})

    def _measure(self) -> tuple[float, list[Recall]]:
        """The mean recall over all that is judged by, and the recalls of each."""
        measured = [recalls(*rows) for rows in self._rows()]
        return float(np.mean([recall.mean for recall in measured])), measured

    def _rows(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of all that is judged by, the vectors of the pictures and of the texts, and the picture of each text."""
        self._model.eval()
        found = []
        with torch.inference_mode():
            for judged in self._judges:
                chosen = [[(int(number), PLAIN) for number in chunk] for chunk in _chunks(len(judged.pictures))]
                image = torch.cat([self._model.image.rest(state) for state in judged.pictures.steps(chosen)])
                chunks = _chunks(len(judged.texts))
                text = torch.cat([self._model.text.rest(judged.texts.rows(chunk)) for chunk in chunks])
                found.append((image.cpu().numpy(), text.cpu().numpy(), judged.owner))
        return found

    def _interpolated(self) -> float:
        """Put the best point between the start and the end of training into the model; its alpha.

        The best is the one that is surprised least by what it is judged by, at the temperature that suits the start:
        a user's dev split is often too small for recall to tell two points apart.
        """
        last = load_state(self._folder.path / CHECKPOINTS / LAST)
        self._trained.load_state_dict(self._first)
        scales = [fitting_scale(*rows) for rows in self._rows()]
        alphas = iter(ALPHAS)

        def measure(state: dict[str, Tensor]) -> float:
            self._trained.load_state_dict(state)
            rows = self._rows()
            surprise = float(np.mean([cross_entropy(*each, scale) for each, scale in zip(rows, scales, strict=True)]))
            found = self._named([recalls(*each) for each in rows])
            self._record({"alpha": next(alphas), "cross_entropy": round(surprise, 4), **found})
            return -surprise

        end = last["model"] if last["ema"] is None else last["ema"]["average"]
        found = best_point(self._first, end, ALPHAS, measure)
        self._trained.load_state_dict(found.state)
        return found.alpha

    def _named(self, measured: Sequence[Recall]) -> dict[str, Any]:
        """Recalls as the log has them: those on dev, and by their names those on other data."""
        others = zip(self._judges[1:], measured[1:], strict=True)
        return {**measured[0].as_dict(), **{judged.name: recall.as_dict() for judged, recall in others}}

    def _record(self, event: dict[str, Any]) -> None:
        self._folder.log(event)
        self._log(" ".join(f"{name} {value}" for name, value in event.items()))

    def _save(self) -> None:
        if not self._world.is_main:
            return
        state = {
            "model": self._trained.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "ema": self._ema.state_dict() if self._ema is not None else None,
            "step": self._step,
            "losses": self._losses,
            "best": self._best,
        }
        save_state(self._folder.path / CHECKPOINTS / LAST, state)

    def _restore(self, out: Path) -> None:
        path = out / CHECKPOINTS / LAST
        if not path.is_file():  # stopped before the first checkpoint: begin anew
            if self._world.is_main:
                self._folder.cut(-1)
            return
        state = load_state(path)
        self._trained.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        self._step, self._losses, self._best = state["step"], state["losses"], state["best"]
        if self._world.is_main:
            self._folder.cut(self._step)
        self._log(f"going on after step {self._step} of {self._steps * self._settings.epochs}")


class _Trained(nn.Module):
    """The stages of a model that are trained, and its temperature: what checkpoints hold and averages average."""

    def __init__(self, model: DualModel) -> None:
        super().__init__()
        self.image = nn.ModuleList(list(model.image.stages)[model.image.frozen :])
        self.text = nn.ModuleList(list(model.text.stages)[model.text.frozen :])
        self.logit_scale, self.logit_bias = model.logit_scale, model.logit_bias


class _Trunk(nn.Module):
    """The frozen stages alone, for ``torch.compile``."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.stages = nn.ModuleList(list(tower.stages)[: tower.frozen])

    def forward(self, state: State) -> State:
        for stage in self.stages:
            state = stage(state)
        return state


def _choose_what_trains(model: DualModel, settings: DualSettings) -> None:
    for tower, blocks in ((model.image, settings.image_blocks), (model.text, settings.text_blocks)):
        last = len(tower.stages) - 1
        tower.recompute = settings.recompute
        if settings.train == "lora":
            add_lora(tower, settings.lora_rank, 2 * settings.lora_rank)
        else:
            trained = {"heads": 0, "last": min(blocks, last), "all": last}[settings.train]
            tower.freeze(last - trained)
    if settings.loss == "sigmoid" and model.logit_bias.item() == 0:  # a start that never saw this loss
        model.logit_bias.data.fill_(SIGMOID_BIAS)
        model.logit_scale.data.fill_(math.log(SIGMOID_SCALE))
    model.logit_bias.requires_grad_(settings.loss == "sigmoid")
    model.logit_scale.requires_grad_(settings.loss != "triplet")


def _groups(model: DualModel, settings: DualSettings) -> list[dict[str, Any]]:
    """What AdamW is told: heads and temperature at one rate, the blocks before them at another that falls."""
    towers: dict[str, list[Any]] = {}
    rates: dict[str, float] = {}
    of_text = settings.text_rate or settings.tower_rate
    for name, tower, rate in (("image", model.image, settings.tower_rate), ("text", model.text, of_text)):
        towers[f"{name} head"], rates[f"{name} head"] = [tower.stages[-1]], settings.learning_rate
        towers[name], rates[name] = list(tower.stages[:-1]), rate
    towers["scale"], rates["scale"] = [[model.logit_scale, model.logit_bias]], settings.learning_rate
    return groups(towers, rates, layer_decay=settings.layer_decay, weight_decay=settings.weight_decay)


def _kept(seen: Captioned, fold: str) -> np.ndarray:
    """The numbers of the pictures that are trained on: all, or all but a part that is left out."""
    if not fold:
        return np.arange(len(seen))
    left_out, count = parse_fold(fold)
    return np.array([n for n, picture in enumerate(seen.pictures) if fold_of(picture, count) != left_out])


def _some(captions: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` different captions of a picture; of a picture with fewer, some more than once."""
    return rng.permutation(captions)[np.arange(count) % len(captions)]


def _chunks(count: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + JUDGE_BATCH, count)) for start in range(0, count, JUDGE_BATCH)]


def _number(*parts: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _silent(_line: str) -> None:
    """What a process that is not the main one says."""
