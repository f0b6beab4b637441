"""What an optimiser is told: each parameter's learning rate and weight decay, and how the rates move over a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from indexer.errors import UsageError

Part = nn.Module | nn.Parameter
Stage = Part | Sequence[Part]
"""A stage is one module, one bare parameter (a class token, a scale), or several of these."""

NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,  # the common ancestor of all batch norms and of no other layer
    nn.modules.instancenorm._InstanceNorm,
)


def groups(
    towers: Mapping[str, Sequence[Stage]],
    learning_rates: Mapping[str, float],
    *,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """The parameter groups of ``torch.optim.AdamW``: what is near the input moves less.

    Stage s of S of a tower learns at ``learning_rate · layer_decay^(S - 1 - s)`` (Howard and Ruder 2018, section 3.2;
    Clark et al. 2020, appendix A). Weights are decayed; not decayed are norms, biases, whatever has at most one
    dimension, and the tables of ``nn.Embedding``: a step's captions name few words, and decay would shrink all the
    others. Frozen parameters are left out. A parameter that two modules of one stage share is there once.

    Args:
        towers: for each tower its stages from the input to the output, the head last.
        learning_rates: for each tower the rate of its last stage.
        layer_decay: above 0, at most 1; at 1 all stages learn alike.
        weight_decay: at least 0.

    Returns:
        A dictionary for each stage and kind that has parameters: ``params``, ``lr``, ``weight_decay`` and ``name``,
        which says ``image/0 decayed`` or ``image/0 plain``.

    Raises:
        UsageError: the towers and the rates have different names, a number is out of range, two stages share a
            parameter, or nothing is there to be trained.

    Example: three stages at 1e-3 and a layer decay of 0.5 learn at 2.5e-4, 5e-4 and 1e-3.
    """
    if towers.keys() != learning_rates.keys():
        raise UsageError(
            f"there are learning rates for {', '.join(learning_rates) or 'nothing'} and towers called "
            f"{', '.join(towers) or 'nothing'}; give each tower its rate"
        )
    if not 0 < layer_decay <= 1:
        raise UsageError(f"layer_decay is {layer_decay}; it must be above 0 and at most 1")
    if weight_decay < 0:
        raise UsageError(f"weight_decay is {weight_decay}; it must be at least 0")
    found: list[dict[str, Any]] = []
    owners: dict[nn.Parameter, str] = {}
    for tower, stages in towers.items():
        for number, stage in enumerate(stages):
            place = f"{tower}/{number}"
            decayed: list[nn.Parameter] = []
            plain: list[nn.Parameter] = []
            for parameter, decays in _trainable(stage):
                owner = owners.setdefault(parameter, place)
                if owner != place:
                    raise UsageError(
                        f"a parameter of shape {tuple(parameter.shape)} is in {owner} and in {place}; "
                        "name it in one stage only"
                    )
                if not any(parameter is other for other in (*decayed, *plain)):
                    (decayed if decays else plain).append(parameter)
            rate = learning_rates[tower] * layer_decay ** (len(stages) - 1 - number)
            for kind, parameters, decay in (("decayed", decayed, weight_decay), ("plain", plain, 0.0)):
                if parameters:
                    found.append({"params": parameters, "lr": rate, "weight_decay": decay, "name": f"{place} {kind}"})
    if not found:
        raise UsageError("there is nothing to train: every parameter is frozen")
    return found


def cosine_schedule(step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """What the learning rates are multiplied by in step ``step``, counted from 0.

    It rises in a line, reaching 1 in the last of ``warmup`` steps, then falls along half a cosine (Loshchilov and
    Hutter 2017, eq. 5) to ``floor``, which it would reach in step ``total``, the one after the last.

    Raises:
        UsageError: the warm-up is longer than the run, or negative.

    Example: ten steps, two of them to warm up: 0.5, 1, 1, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04.
    """
    if not 0 <= warmup <= total:
        raise UsageError(f"{warmup} steps to warm up do not fit into {total} steps; give fewer")
    if step < warmup:
        return (step + 1) / warmup
    if step >= total:
        return floor
    done = (step - warmup) / (total - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def _trainable(stage: Stage) -> Iterator[tuple[nn.Parameter, bool]]:
    """The parameters of a stage that are not frozen, and whether each is decayed."""
    for part in stage if isinstance(stage, Sequence) else (stage,):
        if isinstance(part, nn.Parameter):
            if part.requires_grad:
                yield part, part.ndim > 1
            continue
        for module in part.modules():
            spared = isinstance(module, (*NORMS, nn.Embedding, nn.EmbeddingBag))
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    yield parameter, not (spared or name.endswith("bias") or parameter.ndim <= 1)
