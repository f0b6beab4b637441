"""Training the fusion model behind a dual encoder: from kept patches and word states, in groups of what it confuses."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indexer.encoders import PatchEncoder, has_patches
from indexer.encoders.device import pick_device
from indexer.encoders.load import load_encoder
from indexer.errors import ModelError, UsageError
from indexer.tokens import TokenFormat, pack, unpack
from indexer.types import Modality
from mmsearch import calibration
from mmsearch.calibration import FusedLine
from mmsearch.library import mini_calibration
from mmsearch.rerank.bank import QueryBank
from mmsearch.rerank.export import check_exportable, export
from mmsearch.rerank.fusion import Compressor, Fusion, FusionShape, pooled
from mmsearch.rerank.fusion_numpy import FUSION
from mmsearch.training.average import Ema
from mmsearch.training.checkpoint import load_state, save_state
from mmsearch.training.features import Patches, Reader, Words, picture_vectors
from mmsearch.training.group_losses import hinge_loss, list_loss, match_loss
from mmsearch.training.heap import keep_freed_memory
from mmsearch.training.interrupt import Stop
from mmsearch.training.material import fold_of, gathered, readable
from mmsearch.training.mining import NOBODY, alike, confused, drawn_groups, mean_vectors
from mmsearch.training.optimiser import cosine_schedule, groups
from mmsearch.training.recovery import TOKENS, WORDS, Recovery
from mmsearch.training.reranked import ALONE, Direction, Scored, best_candidates
from mmsearch.training.retrieval import Recall
from mmsearch.training.run import CONFIG, Data, Facts, Quality, RunFolder, Start, read_settings
from mmsearch.training.settings import DualSettings, RerankSettings

CHECKPOINTS, LAST, BEST, FEATURES = "checkpoints", "last.safetensors", "best.safetensors", "features"
CHECKPOINT_SECONDS = 300.0
BETAS = (0.9, 0.98)
JUDGED, JUDGED_AT_LAST = 500, 5000
"""Questions of either kind, of each dataset, that are asked after an epoch and at the end."""
PAIRS = 512
"""Pairs that are scored at once."""
PICTURES = 64
"""Pictures that are compressed at once."""


def train_rerank(
    out: Path,
    settings: RerankSettings,
    *,
    resume: bool = False,
    cache: Path | None = None,
    device: str | None = None,
    command: str = "",
    log: Callable[[str], None] = print,
) -> Path:
    """Train on ``settings.data``, judge each epoch on its dev split, and leave the best reranker in ``out``.

    Args:
        out: the run's folder: what ``RunFolder`` describes, ``checkpoints/``, and a reranker that ``--reranker`` takes;
            as the folder ``reranker`` inside that of a model it is that model's own.
        settings: what to do; on ``resume`` it must be what ``out/config.toml`` says.
        resume: go on from the last checkpoint, bit for bit as if nothing had happened.
        cache: where to keep patches and word states; ``out/features`` for None.
        device: ``cuda``, ``mps``, ``cpu``, or None for the best here.
        command: what the user typed, for the model card.
        log: takes a line of progress.

    Returns:
        ``out``.

    Raises:
        UsageError: the data, the encoder, the folds or the settings do not fit.
        KeyboardInterrupt: after a checkpoint was written from which ``resume`` goes on.
    """
    if settings.fusion != FUSION:
        check_exportable()
    keep_freed_memory()
    run = _Run(out, settings, pick_device(device), cache or out / FEATURES, resume, log)
    run.fit()
    run.finish(command)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Captioned pictures that a reranker is measured on."""

    name: str
    patches: Patches
    words: Words
    image: np.ndarray
    """Vectors ``(N, D)``."""
    owner: np.ndarray
    """The picture of each text ``(M,)``."""


class _Trained(nn.Module):
    """All that is trained: what checkpoints hold and averages average."""

    def __init__(self, shape: FusionShape, settings: RerankSettings) -> None:
        super().__init__()
        self.compressor = Compressor(shape)
        self.fusion = Fusion(shape, settings.dropout)
        self.recovery = Recovery(self.fusion) if settings.mlm or settings.patches else None


class _Run:
    """One training run: what is read, where it stands, and what it writes."""

    def __init__(
        self,
        out: Path,
        settings: RerankSettings,
        device: torch.device,
        cache: Path,
        resume: bool,
        log: Callable[[str], None],
    ) -> None:
        self._settings, self._device, self._log = settings, device, log
        self._encoder = _opened(settings.start, device)
        folds = open_folds(settings.folds, self._encoder, device)
        self._shape = _shape(self._encoder, settings)
        self._format = TokenFormat("the reranker", "", self._shape.side**2, self._shape.width)
        seen, judges, self._data = gathered(settings, log)
        self._folder = RunFolder.create(out, settings, resume=resume, say=log)
        (out / CHECKPOINTS).mkdir(exist_ok=True)
        part_of = _parts(seen.pictures, self._data)
        seen = readable(seen, cache, log)
        judges = [(name, readable(part, cache, log)) for name, part in judges]
        self._judged_by = judges
        self._group = min(settings.group, len(seen))
        if self._group < 2:
            raise UsageError("there is one picture to train on; two are the least")

        def patches(name: str, pictures: Sequence[Any], readers: Sequence[Reader], views: int) -> Patches:
            return Patches(
                readers,
                pictures,
                name=name,
                folder=cache,
                views=views,
                augmentation=settings.augmentation,
                seed=settings.seed,
                log=log,
            )

        self._patches = patches("train", seen.pictures, readers_of(seen.pictures, self._encoder, folds), settings.views)
        texts, owners = seen.flat()
        self._words = Words(self._encoder, texts, name="train", folder=cache)
        first = np.cumsum([0, *map(len, seen.captions)]).tolist()
        self._captions = [np.arange(begin, end) for begin, end in itertools.pairwise(first)]
        self._image = (
            picture_vectors(self._encoder, seen.pictures, name="train", folder=cache)
            if folds
            else self._patches.vectors()
        )
        self._means = mean_vectors(self._words.vectors, np.array(owners), len(seen))
        self._bank = _bank(
            self._words.vectors,
            self._image,
            np.array(owners),
            np.array([part_of[id(picture)] for picture in seen.pictures]),
            settings,
        )
        self._near = confused(self._image, self._means, min(settings.pool, len(seen) - 1), settings.alike)
        self._judges = []
        for name, part in judges:
            texts, owners = part.flat()
            found = patches(name, part.pictures, [(self._encoder, np.arange(len(part)))], 1)
            words = Words(self._encoder, texts, name=name, folder=cache)
            self._judges.append(_Judged(name, found, words, found.vectors(), np.array(owners)))

        self._first = self._lines()
        torch.manual_seed(settings.seed)
        self._model = _Trained(self._shape, settings).to(device)
        self._optimiser = torch.optim.AdamW(
            groups(
                {"reranker": [self._model]},
                {"reranker": settings.learning_rate},
                layer_decay=1.0,
                weight_decay=settings.weight_decay,
            ),
            betas=BETAS,
        )
        self._ema = Ema(self._model, settings.ema) if settings.ema else None
        self._steps = max(1, len(seen) // (settings.groups * self._group))
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
        if self._step == 0:
            self._record({"epoch": 0, "step": 0, **self._first_stage()})
        with Stop() as stop:
            saved = time.monotonic()
            # An epoch whose last step was the last before a stop has still to be judged: it has losses.
            for epoch in range((self._step - bool(self._losses)) // self._steps, settings.epochs):
                began = time.monotonic()
                for numbers in self._batches(epoch, self._step - epoch * self._steps):
                    self._losses.append(self._advance(numbers))
                    if stop.asked:
                        self._save()
                        self._log(
                            f"stopped after step {self._step} of {self._steps * settings.epochs}; go on with --resume"
                        )
                        raise KeyboardInterrupt
                    if time.monotonic() - saved > CHECKPOINT_SECONDS:
                        self._save()
                        saved = time.monotonic()
                with self._averaged():
                    if settings.refresh and (epoch + 1) % settings.refresh == 0 and epoch + 1 < settings.epochs:
                        self._near = self._confused_by_reranker(epoch)
                    scored = self._scored(JUDGED)
                    recalls = self._fused(scored, scored[0].lines(self._first))
                    value = float(np.mean([each.mean for each in recalls.values()]))
                    event = {"epoch": epoch + 1, "step": self._step, "loss": round(float(np.mean(self._losses)), 4)}
                    event |= {"seconds": round(time.monotonic() - began, 1)}
                    self._record(event | _flat(recalls))
                    if value > self._best:
                        self._best = value
                        save_state(self._folder.path / CHECKPOINTS / BEST, {"model": self._model.state_dict()})
                self._losses = []
                self._save()
                saved = time.monotonic()

    def finish(self, command: str) -> None:
        """Write the best reranker, its calibration, its curve and its card."""
        out = self._folder.path
        self._model.load_state_dict(load_state(out / CHECKPOINTS / BEST)["model"])
        scored = self._scored(JUDGED_AT_LAST)
        lines = scored[0].lines(self._first)
        for (asked, answered), line in lines.items():
            if line == ALONE:
                self._log(f"{asked}->{answered}: on dev the reranker tells no match; the first stage will decide alone")
        recalls = self._fused(scored, lines)
        self._record(_flat(recalls))
        export(
            out,
            self._model.compressor,
            self._model.fusion,
            name=out.name,
            encoder=self._encoder.fingerprint,
            candidates=self._settings.candidates,
            calibration={
                f"{asked}->{answered}": {name: getattr(line, name) for name in FusedLine.__slots__}
                for (asked, answered), line in lines.items()
            },
            bank=self._bank,
        )
        self._folder.draw_curve()
        self._folder.write_card(self._facts(scored, recalls, command))
        self._folder.close()

    def _fused(self, scored: Sequence[Scored], lines: Mapping[Direction, FusedLine]) -> dict[str, Recall]:
        """The recalls of both stages together, by dataset."""
        return {each.name: each.fused(self._first, lines) for each in scored}

    def _batches(self, epoch: int, done: int) -> Iterator[np.ndarray]:
        """The groups of pictures ``(G, n)`` of the steps of an epoch after the first ``done``.

        All that is random depends on the seed, the epoch and the place in it, so that a resumed run repeats it.
        """
        settings = self._settings
        rng = np.random.default_rng([settings.seed, 1, epoch])
        drawn = drawn_groups(self._near, self._group, settings.together, self._steps * settings.groups, rng)
        yield from drawn.reshape(self._steps, settings.groups, self._group)[done:]

    def _advance(self, numbers: np.ndarray) -> float:
        """One step of the optimiser on groups of pictures ``(G, n)``; its loss."""
        settings, model = self._settings, self._model
        rng = np.random.default_rng([settings.seed, 2, self._step])
        torch.manual_seed(int(rng.integers(2**62)))  # dropout
        captions = np.array([rng.choice(self._captions[number]) for number in numbers.flat])
        views = rng.integers(settings.views, size=numbers.size)
        patches = self._patches.rows(numbers.ravel(), views).to(self._device)  # (G·n, P, F)
        words, mask = (part.to(self._device) for part in self._words.rows(captions))  # (G·n, L, S), (G·n, L)
        ignored = torch.from_numpy(alike(self._means, numbers, settings.alike)).to(self._device)  # (G, n, n)

        factor = cosine_schedule(
            self._step, self._steps * settings.epochs, round(settings.warmup * self._steps * settings.epochs)
        )
        for parameters in self._optimiser.param_groups:
            parameters["lr"] = settings.learning_rate * factor
        self._optimiser.zero_grad()
        model.train()
        tokens = model.compressor(patches)  # (G·n, T, W)
        logits = model.fusion.groups(*(part.unflatten(0, numbers.shape) for part in (words, mask, tokens)))  # (G, n, n)
        loss = self._loss(logits, ignored)
        if model.recovery is not None:
            loss = loss + self._recovered(model.recovery, patches, words, mask, tokens, rng)
        torch.autograd.backward(loss)
        if settings.clip:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        self._optimiser.step()
        self._step += 1
        if self._ema is not None:
            self._ema.update(model)
        value = loss.item()
        if not math.isfinite(value):
            raise ModelError(
                f"the loss is no longer a number in step {self._step}; lower the learning rate, "
                "and resume from the last checkpoint"
            )
        return value

    def _loss(self, logits: Tensor, ignored: Tensor) -> Tensor:
        settings = self._settings
        if settings.loss == "hinge":
            return hinge_loss(logits, ignored, settings.margin)
        listed, matched = (
            list_loss(logits, ignored, settings.smoothing),
            match_loss(logits, ignored, settings.smoothing),
        )
        return {"list": listed, "match": matched, "mixed": listed + matched}[settings.loss]

    def _recovered(
        self,
        recovery: Recovery,
        patches: Tensor,
        words: Tensor,
        mask: Tensor,
        tokens: Tensor,
        rng: np.random.Generator,
    ) -> Tensor:
        """The loss of the exercises, weighed."""
        settings, fusion, shape = self._settings, self._model.fusion, self._shape
        total = words.new_zeros(())
        if settings.mlm:
            hidden = torch.from_numpy(rng.random(mask.shape) < WORDS).to(self._device) & (mask > 0)
            total = total + settings.mlm * recovery.words(fusion, words, mask, tokens, hidden)
        if settings.patches:
            hidden = torch.from_numpy(rng.random(tokens.shape[:2]) < TOKENS).to(self._device)
            truth = pooled(patches, shape.grid, shape.side)
            total = total + settings.patches * recovery.tokens(fusion, words, mask, tokens, truth, hidden)
        return total

    def _averaged(self) -> Any:
        return self._ema.swapped(self._model) if self._ema is not None else nullcontext()

    @torch.inference_mode()
    def _confused_by_reranker(self, epoch: int) -> np.ndarray:
        """As ``confused``, but by the reranker: the better half of the pictures that the dual encoder confuses."""
        settings = self._settings
        rng = np.random.default_rng([settings.seed, 3, epoch])
        near = confused(self._image, self._means, min(2 * settings.pool, len(self._captions) - 1), settings.alike)
        captions = np.array([rng.choice(some) for some in self._captions])
        question, place = np.nonzero(near != NOBODY)
        tokens = self._tokens(self._patches)
        logits = np.full(near.shape, -np.inf, np.float32)
        logits[question, place] = self._logits(self._words, tokens, captions[question], near[question, place])
        order = np.argsort(-logits, axis=1, kind="stable")[:, : settings.pool]
        worst: np.ndarray = np.take_along_axis(near, order, axis=1)
        return worst

    @torch.inference_mode()
    def _scored(self, most: int) -> list[Scored]:
        """What both stages say of at most so many questions of each kind."""
        found = []
        for judged in self._judges:
            tokens = self._tokens(judged.patches)
            texts, pictures = _sample(len(judged.words), most), _sample(len(judged.image), most)
            count = self._settings.candidates
            near = self._nearness(judged.words.vectors, Modality.IMAGE), self._nearness(judged.image, Modality.TEXT)
            asked = best_candidates(
                judged.words.vectors[texts] @ judged.image.T,
                judged.owner[texts][:, None] == np.arange(len(judged.image)),
                count,
                near[1],
                near[0][texts],
            )
            shown = best_candidates(
                judged.image[pictures] @ judged.words.vectors.T,
                pictures[:, None] == judged.owner,
                count,
                near[0],
                near[1][pictures],
            )
            shape = asked.answers.shape, shown.answers.shape
            by_text = self._logits(judged.words, tokens, np.repeat(texts, shape[0][1]), asked.answers.ravel()).reshape(
                shape[0]
            )
            by_picture = self._logits(
                judged.words, tokens, shown.answers.ravel(), np.repeat(pictures, shape[1][1])
            ).reshape(shape[1])
            found.append(Scored(judged.name, asked, by_text, shown, by_picture))
        return found

    def _nearness(self, vectors: np.ndarray, to: Modality) -> np.ndarray:
        return np.zeros(len(vectors)) if self._bank is None else self._bank.nearness(vectors, to)

    def _tokens(self, patches: Patches) -> Tensor:
        """The tokens ``(N, T, W)`` of pictures, as an index keeps them: rounded."""
        self._model.eval()
        rounded = []
        for start in range(0, len(patches), PICTURES):
            rows = patches.rows(np.arange(start, min(start + PICTURES, len(patches))))
            tokens = self._model.compressor(rows.to(self._device))
            rounded.append(unpack(pack(tokens.cpu().numpy()), self._format))
        return torch.from_numpy(np.concatenate(rounded))

    def _logits(self, words: Words, tokens: Tensor, text: np.ndarray, picture: np.ndarray) -> np.ndarray:
        """The logits ``(K,)`` of pairs of texts and pictures, texts of like length together."""
        self._model.eval()
        order = np.lexsort((text, words.lengths[text]))
        logits = np.empty(len(text), np.float32)
        for start in range(0, len(order), PAIRS):
            pairs = order[start : start + PAIRS]
            asked, of_text = np.unique(text[pairs], return_inverse=True)
            shown, of_picture = np.unique(picture[pairs], return_inverse=True)
            inputs = (*words.rows(asked), tokens[shown], torch.from_numpy(of_text), torch.from_numpy(of_picture))
            logits[pairs] = self._model.fusion(*(part.to(self._device) for part in inputs)).logits.cpu().numpy()
        return logits

    def _first_stage(self) -> dict[str, Any]:
        """The recalls of the dual encoder alone, on the questions that are asked after every epoch."""
        found = {}
        for judged in self._judges:
            texts, pictures = _sample(len(judged.words), JUDGED), _sample(len(judged.image), JUDGED)
            own = judged.owner[texts][:, None] == np.arange(len(judged.image))
            asked = best_candidates(judged.words.vectors[texts] @ judged.image.T, own, 1)
            own = pictures[:, None] == judged.owner
            shown = best_candidates(judged.image[pictures] @ judged.words.vectors.T, own, 1)
            none = np.zeros((0, 0))
            found[judged.name] = Scored(judged.name, asked, none, shown, none).dual()
        return _flat(found)

    def _lines(self) -> calibration.Calibration:
        """The dual encoder's calibration; for one that brings none, what an index of the dev pictures would measure."""
        if self._encoder.calibration is not None:
            return calibration.read(self._encoder.calibration)
        questions = self._encoder.encode_texts(calibration.everyday_questions())
        return calibration.measure(questions, {Modality.IMAGE: self._judges[0].image}, mini_calibration())

    def _facts(self, scored: Sequence[Scored], recalls: Mapping[str, Recall], command: str) -> Facts:
        quality: list[Quality] = []
        for (name, data), each in zip(self._judged_by, scored, strict=True):
            for words, recall in (
                (f"{name}, first stage alone", each.dual()),
                (f"{name}, reranked", recalls[name]),
            ):
                quality.append(
                    Quality(
                        data=words,
                        pictures=len(data),
                        captions=sum(map(len, data.captions)),
                        text_to_image=recall.text_to_image,
                        image_to_text=recall.image_to_text,
                    )
                )
        return Facts(
            title=f"{self._folder.path.name}: a reranker trained with mmsearch",
            what=(
                f"Looks again at the best {self._settings.candidates} pictures or texts that the dual encoder "
                f"{self._settings.start} finds. `mmsearch query --reranker` takes this folder."
            ),
            start=Start(name=self._settings.start),
            data=self._data,
            command=command,
            best={"mean recall": round(float(np.mean([each.mean for each in recalls.values()])), 2)},
            quality=quality,
            limits=[
                "The dev split chose the epoch and what each stage counts; measure on another one before comparing.",
                f"It reads the patches of {self._settings.start} with these very weights, and of no other model.",
            ],
        )

    def _record(self, event: dict[str, Any]) -> None:
        self._folder.log(event)
        self._log(", ".join(f"{name} {value}" for name, value in event.items()))

    def _save(self) -> None:
        state = {
            "model": self._model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
            "near": torch.from_numpy(self._near),
            "step": self._step,
            "losses": self._losses,
            "best": self._best,
        }
        save_state(self._folder.path / CHECKPOINTS / LAST, state)

    def _restore(self, out: Path) -> None:
        path = out / CHECKPOINTS / LAST
        if not path.is_file():  # stopped before the first checkpoint: begin anew
            self._folder.cut(-1)
            return
        state = load_state(path)
        self._model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        self._near = state["near"].numpy()
        self._step, self._losses, self._best = state["step"], state["losses"], state["best"]
        self._folder.cut(self._step)
        self._log(f"going on after step {self._step} of {self._steps * self._settings.epochs}")


def open_folds(runs: Sequence[str], encoder: PatchEncoder, device: torch.device) -> list[PatchEncoder]:
    """The encoders of runs of ``train dual``, of which run k of n left out part k of the pictures.

    Raises:
        UsageError: a run left out something else, or its patches are of another form than those of ``encoder``.
    """
    found = []
    for number, run in enumerate(runs, 1):
        fold = read_settings(Path(run) / CONFIG, DualSettings).fold
        if fold != f"{number}/{len(runs)}":
            said = f"was trained with fold {fold}" if fold else "left out no part"
            raise UsageError(
                f"{run} {said}; number {number} of {len(runs)} folds must be a run with --fold {number}/{len(runs)}"
            )
        opened = _opened(run, device)
        if opened.patches != encoder.patches:
            raise UsageError(f"{run} gives patches of the form {opened.patches}, {encoder.name} {encoder.patches}")
        found.append(opened)
    return found


def readers_of(pictures: Sequence[Any], encoder: PatchEncoder, folds: Sequence[PatchEncoder]) -> list[Reader]:
    """Which encoder reads which of the training pictures: each the one that has not seen it."""
    if not folds:
        return [(encoder, np.arange(len(pictures)))]
    part = np.array([fold_of(picture, len(folds)) for picture in pictures])
    return [(fold, np.flatnonzero(part == number)) for number, fold in enumerate(folds, 1)]


def _opened(name: str, device: torch.device) -> PatchEncoder:
    encoder = load_encoder(name, device.type)
    if not has_patches(encoder):
        raise UsageError(
            f"{name} gives no patches, from which a reranker could be trained; use mini or a ViT of open_clip"
        )
    return encoder


def _shape(encoder: PatchEncoder, settings: RerankSettings) -> FusionShape:
    patches, size = encoder.patches
    grid = math.isqrt(patches)
    if grid * grid != patches:
        raise UsageError(f"the {patches} patches of {encoder.name} form no square, which a reranker needs")
    return FusionShape(
        grid=grid,
        patch_size=size,
        state_size=encoder.state_size,
        side=min(settings.side, grid),
        width=settings.width,
        hidden=settings.hidden,
        fusion=settings.fusion,
        size=settings.size,
        layers=settings.layers,
        heads=settings.heads,
        products=settings.products,
    )


def _sample(count: int, most: int) -> np.ndarray:
    """At most ``most`` of the numbers below ``count``, always the same, in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def _parts(pictures: Sequence[Any], data: Sequence[Data]) -> dict[int, int]:
    """For each picture, by its ``id``, the number of the training set that it is of."""
    sizes = [each["pictures"] for each in data if each["split"] == "train"]
    parts = np.repeat(np.arange(len(sizes)), sizes).tolist()
    return {id(picture): part for picture, part in zip(pictures, parts, strict=True)}


def _bank(
    texts: np.ndarray, pictures: np.ndarray, owner: np.ndarray, part: np.ndarray, settings: RerankSettings
) -> QueryBank | None:
    """As many texts and pictures of each training set, so that none of them is all the world.

    Args:
        texts, pictures: vectors ``(M, D)`` and ``(N, D)``.
        owner: the picture of each text ``(M,)``.
        part: the training set of each picture ``(N,)``.
    """
    if not settings.bank:
        return None
    rng = np.random.default_rng([settings.seed, 4])

    def some(of: np.ndarray) -> np.ndarray:
        sets = [np.flatnonzero(of == number) for number in range(part.max() + 1)]
        return np.concatenate([rng.permutation(numbers)[: settings.bank] for numbers in sets])

    return QueryBank({Modality.TEXT: texts[some(part[owner])], Modality.IMAGE: pictures[some(part)]})


def _flat(recalls: Mapping[str, Recall]) -> dict[str, Any]:
    """The recalls on dev, which is first, as they are; those on further sets by name."""
    first, *others = recalls
    return {**recalls[first].as_dict(), **{name: recalls[name].as_dict() for name in others}}
