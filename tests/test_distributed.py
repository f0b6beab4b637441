"""Two processes that share a batch have the loss and the gradients of one process that has all of it.

Run as ``python test_distributed.py FOLDER`` this file is one of the two processes; the tests start it as torchrun does.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indexer.errors import UsageError
from mmsearch.training.checkpoint import load_state, save_state
from mmsearch.training.distributed import World, average_gradients, broadcast, gather
from mmsearch.training.losses import multi_positive_info_nce, sigmoid_loss, triplet_loss

pytestmark = pytest.mark.slow(reason="runs several processes that train")

SIZE = 2
GROUP = torch.tensor([0, 1, 2, 0, 3, 1, 1, 4])
"""Pictures 0 and 1 have captions in both halves of the batch."""


class Model(nn.Module):
    """Two towers of two layers, and what a loss learns; ``unused`` has no gradient, ``once`` only in the first half."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.image = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        self.text = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
        self.scale = nn.Parameter(torch.tensor(7.0))
        self.bias = nn.Parameter(torch.tensor(-1.5))
        self.once = nn.Parameter(torch.tensor(0.0))
        self.unused = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.tensor(1.0), requires_grad=False)

    def forward(self, image: Tensor, text: Tensor, first_half: bool) -> tuple[Tensor, Tensor]:
        """Unit rows ``(B, 3)`` each."""
        shift = self.once if first_half else 0.0
        return F.normalize(self.image(image) + shift, dim=1), F.normalize(self.text(text), dim=1)

    def loss(self, name: str, image: Tensor, text: Tensor, group: Tensor) -> Tensor:
        if name == "infonce":
            return multi_positive_info_nce(image, text, group, self.scale)
        if name == "sigmoid":
            return sigmoid_loss(image, text, group, self.scale, self.bias)
        return triplet_loss(image, text, group, margin=0.4)

    def gradients(self) -> dict[str, Tensor | None]:
        return {name: None if p.grad is None else p.grad.clone() for name, p in self.named_parameters()}


def batch() -> tuple[Tensor, Tensor]:
    """Eight pictures ``(8, 5)`` and captions ``(8, 4)``."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 5, generator=generator), torch.randn(8, 4, generator=generator)


def child(folder: Path) -> None:
    """One of the processes: whatever the tests ask about is written into its file."""
    found: dict[str, Any] = {}
    with World.join("cpu") as world:
        found["world"] = [world.rank, world.size, world.local_rank, world.is_main]
        model = Model(seed=world.rank)  # different weights, until rank 0 gives out its own
        broadcast(model.state_dict().values())
        image, text = batch()
        half = slice(4 * world.rank, 4 * world.rank + 4)
        for name in ("infonce", "sigmoid", "triplet"):
            model.zero_grad()
            vectors = model(image[half], text[half], first_half=world.rank == 0)
            loss = model.loss(name, *map(gather, vectors), gather(GROUP[half]))
            loss.backward()
            average_gradients(model.parameters())
            found[name] = {"loss": loss.item(), "gradients": model.gradients()}
        found["gathered"] = [
            gather(torch.tensor([[world.rank, 1], [10 + world.rank, 1]])),
            gather(torch.tensor([world.rank == 0])),
            gather(torch.full((1, 2, 1), world.rank + 0.5, dtype=torch.bfloat16)),
            gather(torch.arange(6.0).reshape(2, 3).T + world.rank),  # not contiguous
        ]
        try:
            gather(torch.zeros(3 + world.rank, 2))
        except UsageError as exc:
            found["unequal"] = str(exc)
        world.barrier()
    found["after"] = gather(torch.tensor([3.0]))
    save_state(folder / f"{os.environ['RANK']}.safetensors", found)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(SIZE):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": SIZE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(folder)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [load_state(folder / f"{rank}.safetensors") for rank in range(SIZE)]


@pytest.mark.parametrize("name", ["infonce", "sigmoid", "triplet"])
def test_loss_and_every_gradient_are_those_of_one_process(both: list[dict[str, Any]], name: str):
    model = Model(seed=0)
    image, text = batch()
    halves = [model(image[:4], text[:4], first_half=True), model(image[4:], text[4:], first_half=False)]
    loss = model.loss(name, *(torch.cat(rows) for rows in zip(*halves, strict=True)), GROUP)
    loss.backward()
    expected = model.gradients()
    assert expected["image.0.weight"] is not None and expected["image.0.weight"].abs().max() > 1e-3
    for found in both:
        assert found[name]["loss"] == pytest.approx(loss.item(), abs=1e-6)
        assert found[name]["gradients"].keys() == expected.keys()
        for parameter, gradient in expected.items():
            if gradient is None:
                assert found[name]["gradients"][parameter] is None, parameter
            else:
                assert torch.allclose(found[name]["gradients"][parameter], gradient, rtol=0, atol=1e-6), parameter


def test_what_nothing_used_has_no_gradient_and_what_one_process_used_has_one(both: list[dict[str, Any]]):
    gradients = both[1]["sigmoid"]["gradients"]  # of the process that did not use ``once``
    assert gradients["unused"] is None and gradients["frozen"] is None
    assert gradients["once"].abs() > 1e-3


def test_each_process_knows_its_place(both: list[dict[str, Any]]):
    assert [found["world"] for found in both] == [[0, 2, 0, True], [1, 2, 1, False]]


def test_rows_come_in_the_order_of_ranks_and_keep_their_type(both: list[dict[str, Any]]):
    for found in both:
        numbers, truths, halves, columns = found["gathered"]
        assert numbers.tolist() == [[0, 1], [10, 1], [1, 1], [11, 1]]
        assert truths.tolist() == [True, False]
        assert halves.tolist() == [[[0.5], [0.5]], [[1.5], [1.5]]] and halves.dtype == torch.bfloat16
        assert columns.tolist() == [[0, 3], [1, 4], [2, 5], [1, 4], [2, 5], [3, 6]]


def test_unequal_parts_are_refused_everywhere(both: list[dict[str, Any]]):
    for found in both:
        assert "3, 4 rows" in found["unequal"]


def test_a_process_that_has_left_is_alone(both: list[dict[str, Any]]):
    assert both[1]["after"].tolist() == [3.0]


# One process


def test_alone_everything_is_as_it_was(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with World.join("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        world.barrier()
        rows = torch.eye(2, requires_grad=True)
        assert gather(rows) is rows
        parameter = nn.Parameter(torch.tensor(2.0))
        parameter.square().backward()
        broadcast([parameter])
        average_gradients([parameter])
        assert (parameter.item(), parameter.grad) == (2.0, torch.tensor(4.0))


def test_torchrun_with_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with World.join("cpu") as world:
        assert world == World(0, 1, 0)
        assert gather(torch.tensor([1])).tolist() == [1]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "lacks 'LOCAL_RANK'"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "lacks 'RANK'"),
        ({"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}, "must be numbers"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "start them with torchrun"),
    ],
)
def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        World.join("cpu")


if __name__ == "__main__":
    child(Path(sys.argv[1]))
