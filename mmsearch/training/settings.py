"""What a training run depends on besides its files; nothing heavy is imported here, for the command line's sake."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from indexer.errors import UsageError

LOSSES = ("infonce", "sigmoid", "triplet")
RERANK_LOSSES = ("mixed", "list", "hinge", "match")
PARTS = ("heads", "last", "lora", "all")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How strongly pictures are changed; 0 switches a change off, exactly.

    Raises:
        UsageError: a strength is out of range.
    """

    crop: float = 0.5
    """Part of a picture's area that a crop loses at most: at 0.5 between none and half, uniformly."""
    aspect: float = 1.67
    """A crop's width by its height lies between 1/aspect and aspect, log-uniformly; at 0 it is that of the picture.
    The models squeeze every picture to a square and must not mind. Without ``crop`` there is nothing to shape."""
    mirror: float = 0.5
    """Probability of the mirror image."""
    colour: float = 0.25
    """How far brightness, contrast and saturation each move, up or down: at 0.25 factors from 0.75 to 1.25."""
    grey: float = 0.0
    """Probability of losing all colour."""
    cutout: float = 0.0
    """Part of the area that is painted over in grey at most, as one rectangle."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "aspect":
                if value != 0 and not 1 <= value < math.inf:
                    raise UsageError(f"aspect is {value}; it must be 0 (off) or at least 1")
            elif not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; it must be from 0 (off) to 1")


@dataclass(frozen=True, slots=True)
class DualSettings:
    """All that the outcome of a run depends on besides the files; ``config.toml`` in the run's folder.

    Raises:
        UsageError: a setting makes no sense.
    """

    data: str = ""
    """Captioned pictures, in any format that ``mmsearch data inspect`` reads."""
    images: str = ""
    """Where the pictures of ``data`` are, if they are not beside it."""
    also: tuple[str, ...] = ()
    """More of them, trained on beside ``data``: all splits but dev, val and test."""
    judges: tuple[str, ...] = ()
    """More captioned pictures to choose by: the value of a model is its mean recall, averaged over these and dev."""
    fold: str = ""
    """``2/4`` leaves out the second of four parts of the training pictures, for a model that has not seen them."""
    start: str = "mini"
    """What training starts from: see ``load_trainable``."""
    fresh_head: bool = False
    """Begin with random heads on the start's towers."""

    train: str = "last"
    """``heads``; ``last``, which adds the last blocks; ``lora``, low-rank additions to every attention; ``all``."""
    image_blocks: int = 2
    """Blocks before the head of the image tower that ``last`` trains."""
    text_blocks: int = 0
    """Likewise of the text tower."""
    lora_rank: int = 8

    loss: str = "infonce"
    """``infonce`` (CLIP), ``sigmoid`` (SigLIP) or ``triplet`` (VSE++)."""
    margin: float = 0.2
    """Of the triplet loss."""
    epochs: int = 10
    """Times that every picture is seen."""
    batch: int = 64
    """Pictures a step, of all processes together; all pictures where there are fewer."""
    micro_batch: int = 0
    """Pictures that go through the model at once; 0 for all of a step. It saves memory and changes no gradient."""
    captions: int = 5
    """Captions of each picture a step, at most."""

    learning_rate: float = 1e-4
    """Of the heads and the temperature."""
    tower_rate: float = 5e-5
    """Of the last block before a head."""
    text_rate: float = 0.0
    """Of the last block of the text tower, if that is to learn at another rate; 0 for ``tower_rate``."""
    layer_decay: float = 0.8
    """What the rate is multiplied by from a block to the one before it."""
    weight_decay: float = 0.05
    warmup: float = 0.1
    """Part of the steps in which the rates rise."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for none."""
    ema: float = 0.99
    """Decay of the moving average of the weights that is judged and kept; 0 for the weights themselves."""
    interpolate: bool = True
    """Take the best point between the start and the end of training, not the best epoch; never with a fresh head."""
    precision: str = "float32"
    """``float32``, or ``bfloat16`` for what is trained, by autocast."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them."""

    views: int = 4
    """Changed versions of each picture, itself the first, that are prepared once and kept; 0 to change it anew each
    time it is seen."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    word_dropout: float = 0.0
    """Probability of leaving out each word of a caption."""
    noise: float = 0.4
    """Noise on what `mini`'s heads read, in standard deviations of it."""
    dropout: float = 0.1
    """In `mini`'s heads."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("train", PARTS), ("loss", LOSSES), ("precision", PRECISIONS)):
            if getattr(self, name) not in values:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(values)}")
        for name, least in (("epochs", 1), ("batch", 2), ("micro_batch", 0), ("captions", 1), ("views", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.fold:
            parse_fold(self.fold)
        if self.train == "last" and not (self.image_blocks or self.text_blocks):
            raise UsageError("train is 'last' without a number of blocks; set image_blocks, text_blocks or both")


@dataclass(frozen=True, slots=True)
class CombineSettings:
    """What one model is made of that several runs become, besides the files."""

    runs: tuple[str, ...] = ()
    """Folders of runs that began with the same weights."""
    data: str = ""
    """As in ``DualSettings``, likewise the next three."""
    images: str = ""
    also: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    size: int = 0
    """Numbers of a vector of `mini`; 0 for as many as the runs have."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RerankSettings:
    """All that the outcome of a run of ``train rerank`` depends on besides the files.

    Raises:
        UsageError: a setting makes no sense.
    """

    data: str = ""
    """As in ``DualSettings``, likewise the next three."""
    images: str = ""
    also: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    start: str = "mini"
    """The dual encoder behind which the reranker will stand: whatever ``--model`` takes, if it gives patches."""
    folds: tuple[str, ...] = ()
    """Runs of ``train dual`` with fold 1/n to n/n, in this order: the patches of a training picture come from the one
    that has not seen it. (An encoder's patches of the pictures that it was trained on match their captions too well.)
    Without, they come from the start itself."""

    fusion: str = "cross"
    """``cross``, ``merged`` or ``gated``; see ``FusionShape``, likewise the next six."""
    side: int = 8
    """Never more than the patches have."""
    width: int = 128
    hidden: int = 0
    size: int = 192
    layers: int = 1
    heads: int = 4
    products: int = 128

    loss: str = "mixed"
    """``list``, ``hinge`` or ``match``, see ``group_losses``; ``mixed`` is the sum of the first and the last: lists say
    what is better, which makes the order, and matches what is good, which makes the odds."""
    margin: float = 1.0
    """Of the hinge loss."""
    smoothing: float = 0.0
    """Of the labels of the others."""
    mlm: float = 0.0
    """What finding hidden words counts beside the loss; see ``recovery``."""
    patches: float = 0.0
    """Likewise of finding hidden tokens."""

    epochs: int = 8
    """Each shows as many pictures as there are."""
    groups: int = 2
    """A step has so many groups of pictures."""
    group: int = 16
    """Pictures of a group, each with one caption; all pairs in it are scored."""
    together: int = 8
    """Pictures of a group that are confused with each other."""
    pool: int = 40
    """Pictures most confused with one, from which those are drawn."""
    alike: float = 0.92
    """Two pictures whose captions' mean vectors have a larger cosine are no mistake for each other."""
    refresh: int = 0
    """After so many epochs the reranker itself says which pictures are confused; 0 for never."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    """Part of the steps in which the rate rises."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for none."""
    ema: float = 0.995
    """Decay of the moving average of the weights that is judged and kept; 0 for the weights themselves."""
    dropout: float = 0.1

    views: int = 4
    """Changed versions of each picture, itself the first, whose patches are kept."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    candidates: int = 50
    """How many of the first answers are reranked, when it is judged and afterwards."""
    bank: int = 1024
    """So many texts and pictures of each training set are the bank, see ``mmsearch.rerank.bank``; 0 for none."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in RERANK_LOSSES:
            raise UsageError(f"loss is {self.loss!r}; it must be one of {', '.join(RERANK_LOSSES)}")
        least = {"epochs": 1, "groups": 1, "group": 2, "together": 1, "pool": 1, "refresh": 0, "views": 1}
        for name, value in (least | {"candidates": 1, "bank": 0}).items():
            if getattr(self, name) < value:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {value}")
        for name in ("mlm", "patches", "margin"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing is {self.smoothing}; it must be from 0 (off) to below 1")
        if self.smoothing and self.loss == "hinge":
            raise UsageError("the hinge loss has no labels to smooth; use another loss, or smoothing 0")
        if self.mlm and self.fusion == "gated":
            raise UsageError("in the gated fusion words meet no patches, and cannot be found by them; leave out mlm")
        if len(self.folds) == 1:
            raise UsageError(f"folds names {self.folds[0]} alone; there are at least two parts, each with its run")


def parse_fold(text: str) -> tuple[int, int]:
    """``"2/4"`` to its numbers: the second of four.

    Raises:
        UsageError: it is not of that form, or not a part of two or more.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) and int(count) > 1):
        raise UsageError(f"fold is {text!r}; write 2/4 to leave out the second of four parts")
    return int(number), int(count)
