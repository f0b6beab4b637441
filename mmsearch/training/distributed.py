"""Training in several processes that step together, each with its part of every batch.

Each process computes the loss of the whole batch from the rows of all of them, and its gradients are averaged:

    image, text = gather(image_vectors), gather(text_vectors)      (B, D) from W processes of B/W rows each
    loss(image, text, gather(group)).backward()
    average_gradients(model.parameters())                           what one process with all B rows would have

Why this is the gradient of the whole batch: every process has the same loss, so what flows back through ``gather`` to
a row is W times its part, and the average over the processes divides by W. Without a process group every function here
does nothing or gives back what it got.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from indexer.errors import UsageError


@dataclass(frozen=True, slots=True)
class World:
    """Which of how many processes this one is; used with ``with``, which leaves the process group at the end."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """The number among the processes of this machine, and of the GPU that is this one's."""

    @classmethod
    def join(cls, device: str) -> World:
        """Meet the other processes, as ``torchrun`` describes them in the environment; alone if it does not.

        Args:
            device: ``cuda`` (the processes then talk through NCCL, and ``cuda`` means GPU ``local_rank`` from now on)
                or ``cpu`` (through Gloo).

        Raises:
            UsageError: the environment is incomplete, or there are more processes here than GPUs.
        """
        world = cls.from_environment()
        if world.size == 1:
            return world
        backend = "gloo"
        if torch.device(device).type == "cuda":
            if world.local_rank >= torch.cuda.device_count():
                raise UsageError(
                    f"process {world.local_rank} of this machine finds {torch.cuda.device_count()} GPUs; "
                    "start at most one process for each GPU"
                )
            torch.cuda.set_device(world.local_rank)
            backend = "nccl"
        try:
            dist.init_process_group(backend, rank=world.rank, world_size=world.size)
        except ValueError as exc:  # no MASTER_ADDR or MASTER_PORT
            raise UsageError(f"the processes cannot meet: {exc}; start them with torchrun") from exc
        return world

    @classmethod
    def from_environment(cls) -> World:
        """What the variables ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` say; one process alone without them.

        Raises:
            UsageError: only some of them are there, or one is not a number.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        values = {name: os.environ[name] for name in names if name in os.environ}
        if "RANK" not in values and values.get("WORLD_SIZE", "1") == "1":
            return cls()
        try:
            return cls(*(int(values[name]) for name in names))
        except KeyError as exc:
            raise UsageError(
                f"of {', '.join(names)} the environment lacks {exc}; start several processes with torchrun"
            ) from exc
        except ValueError as exc:
            raise UsageError(f"{', '.join(names)} in the environment must be numbers: {values}") from exc

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if joined():
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if joined():
            dist.destroy_process_group()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()


def joined() -> bool:
    """Whether this process is in a process group."""
    return dist.is_available() and dist.is_initialized()


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks: from ``(B/W, ...)`` to ``(B, ...)``.

    Gradients flow back to the process whose rows they are, summed over all processes.

    Raises:
        UsageError: the processes have different numbers of rows; raised in each of them.

    Example: two processes with the rows [[1]] and [[2]] both get [[1], [2]].
    """
    if not joined():
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = torch.cat(_from_all(count)).tolist()
    if len(set(counts)) > 1:
        raise UsageError(
            f"the processes have different parts of a batch: {', '.join(map(str, counts))} rows; "
            "leave out the rows of a last, incomplete batch"
        )
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Each gradient becomes its mean over all processes, where a process without one counts as zero.

    A parameter that has no gradient in any process keeps none: an optimiser must not decay what was not used.

    Args:
        parameters: the same ones in the same order in each process; frozen ones are passed over.
    """
    if not joined():
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return
    used = torch.tensor([parameter.grad is not None for parameter in trained], device=trained[0].device).int()
    dist.all_reduce(used, dist.ReduceOp.MAX)
    sums: list[Tensor] = []
    for parameter, has_gradient in zip(trained, used.tolist(), strict=True):
        if has_gradient:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            sums.append(parameter.grad)
    under_way = [dist.all_reduce(gradient, async_op=True) for gradient in sums]
    for work in under_way:
        work.wait()
    for gradient in sums:
        gradient.div_(dist.get_world_size())


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process what rank 0 has: in place, for the first weights and the buffers.

    Args:
        tensors: the same shapes in the same order in each process, as in ``model.state_dict().values()``.
    """
    if joined():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


class _Gather(torch.autograd.Function):
    """``all_gather`` with a gradient; that of ``torch.distributed.nn`` is deprecated."""

    @staticmethod
    def forward(_ctx: Any, rows: Tensor) -> Tensor:
        return torch.cat(_from_all(rows.contiguous()))

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may use what it handed in again
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def _from_all(rows: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return parts
