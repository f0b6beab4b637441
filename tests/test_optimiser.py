"""Learning rates, weight decay, schedule and averages of weights, each against numbers worked out by hand."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from indexer.errors import ModelError, UsageError
from mmsearch.training.average import Ema, best_point, interpolate, mean_state
from mmsearch.training.checkpoint import load_state, save_state
from mmsearch.training.optimiser import cosine_schedule, groups


class Attention(nn.Module):
    """A layer with every kind of parameter there is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm((2, 3))  # its weight has two dimensions and is a norm all the same
        self.batch_norm = nn.BatchNorm2d(2)
        self.table_bias = nn.Parameter(torch.zeros(4, 4))
        self.scale = nn.Parameter(torch.tensor(1.0))


def found_in(found: list[dict], parameter: nn.Parameter) -> dict:
    """The one group that has this very parameter."""
    (group,) = [group for group in found if any(parameter is other for other in group["params"])]
    return group


def test_rates_fall_towards_the_input_and_only_weights_decay():
    """Three stages at 1e-3 and 0.5: 2.5e-4, 5e-4, 1e-3. The text tower has a rate of its own."""
    embedding, attention, head = nn.Embedding(5, 3), Attention(), nn.Linear(2, 2)
    token, text = nn.Parameter(torch.zeros(3, 3)), nn.Linear(2, 2)
    found = groups(
        {"image": [[embedding, token], attention, head], "text": [text]},
        {"image": 1e-3, "text": 2e-5},
        layer_decay=0.5,
        weight_decay=0.1,
    )
    decayed = {
        token: 2.5e-4,
        attention.linear.weight: 5e-4,
        head.weight: 1e-3,
        text.weight: 2e-5,
    }
    plain = {
        embedding.weight: 2.5e-4,
        attention.linear.bias: 5e-4,
        attention.norm.weight: 5e-4,
        attention.norm.bias: 5e-4,
        attention.batch_norm.weight: 5e-4,
        attention.batch_norm.bias: 5e-4,
        attention.table_bias: 5e-4,
        attention.scale: 5e-4,
        head.bias: 1e-3,
        text.bias: 2e-5,
    }
    for parameters, decay in ((decayed, 0.1), (plain, 0.0)):
        for parameter, rate in parameters.items():
            group = found_in(found, parameter)
            assert (group["lr"], group["weight_decay"]) == (pytest.approx(rate), decay)
    assert sum(len(group["params"]) for group in found) == len(decayed) + len(plain)
    assert [group["name"] for group in found][:2] == ["image/0 decayed", "image/0 plain"]


def test_the_optimiser_takes_them_and_steps_by_their_rates():
    """Adam's first step is the rate itself, whatever the gradient: 0.1 and 0.05."""
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    optimiser = torch.optim.AdamW(groups({"t": [first, second]}, {"t": 0.1}, layer_decay=0.5, weight_decay=0.0))
    before = [first.weight.item(), second.weight.item()]
    (3 * first.weight + 7 * second.weight).sum().backward()
    optimiser.step()
    moved = [before[0] - first.weight.item(), before[1] - second.weight.item()]
    assert moved == pytest.approx([0.05, 0.1], abs=1e-6)


def test_frozen_parameters_and_empty_groups_are_left_out():
    frozen, open_ = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2, bias=False)
    found = groups({"t": [frozen, open_]}, {"t": 1.0}, layer_decay=0.5, weight_decay=0.1)
    assert [(group["name"], len(group["params"]), group["lr"]) for group in found] == [("t/1 decayed", 1, 1.0)]
    with pytest.raises(UsageError, match="every parameter is frozen"):
        groups({"t": [frozen]}, {"t": 1.0}, layer_decay=0.5, weight_decay=0.1)


def test_a_parameter_is_in_one_group():
    shared = nn.Linear(2, 2, bias=False)
    with pytest.raises(UsageError, match=r"\(2, 2\) is in image/0 and in text/1"):
        groups(
            {"image": [shared], "text": [nn.Linear(1, 1), shared]},
            {"image": 1.0, "text": 1.0},
            layer_decay=1,
            weight_decay=0,
        )
    tied = nn.Linear(2, 2, bias=False)
    tied.weight = shared.weight
    found = groups({"t": [[shared, tied]]}, {"t": 1.0}, layer_decay=1, weight_decay=0)
    assert [len(group["params"]) for group in found] == [1]


@pytest.mark.parametrize(
    ("rates", "layer_decay", "weight_decay", "message"),
    [
        ({"txt": 1.0}, 1.0, 0.0, "rates for txt and towers called text"),
        ({"text": 1.0}, 0.0, 0.0, "layer_decay is 0.0"),
        ({"text": 1.0}, 1.5, 0.0, "layer_decay is 1.5"),
        ({"text": 1.0}, 1.0, -0.1, "weight_decay is -0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(rates: dict[str, float], layer_decay: float, weight_decay: float, message: str):
    with pytest.raises(UsageError, match=message):
        groups({"text": [nn.Linear(1, 1)]}, rates, layer_decay=layer_decay, weight_decay=weight_decay)


def test_schedule_by_hand():
    """Warm-up 1/2, 2/2, then (1 + cos(π k/8)) / 2 for k = 0..7."""
    expected = [0.5, 1.0, 1.0, 0.96194, 0.85355, 0.69134, 0.5, 0.30866, 0.14645, 0.03806]
    assert [cosine_schedule(step, 10, 2) for step in range(10)] == pytest.approx(expected, abs=1e-5)
    assert cosine_schedule(10, 10, 2) == 0.0
    assert cosine_schedule(6, 10, 2, floor=0.2) == pytest.approx(0.6)  # 0.2 + 0.8 / 2
    assert cosine_schedule(99, 10, 2, floor=0.2) == 0.2


def test_schedule_at_its_edges():
    assert cosine_schedule(0, 4, 0) == 1.0
    assert [cosine_schedule(step, 2, 2) for step in range(3)] == [0.5, 1.0, 0.0]  # nothing but warm-up
    with pytest.raises(UsageError, match="11 steps to warm up"):
        cosine_schedule(0, 10, 11)


# Averages


def with_weight(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, value)
    return model


def weight_of(model: nn.Linear, ema: Ema) -> float:
    with ema.swapped(model):
        return model.weight.item()


def test_average_by_hand():
    """From 0, the weight 1 from then on: d = 1/10, then 2/11, then 3/12 gives 0.9, 0.98182, 0.99545."""
    model = with_weight(0.0)
    ema = Ema(model, 0.99)
    nn.init.constant_(model.weight, 1.0)
    seen = []
    for _ in range(3):
        ema.update(model)
        seen.append(weight_of(model, ema))
    left = [0.1, 0.1 * 2 / 11, 0.1 * 2 / 11 * 3 / 12]
    assert seen == pytest.approx([1 - part for part in left], abs=1e-6)


def test_average_settles_at_its_decay():
    """With a decay of 0.05 even the first update is by it: 0.95 of the new."""
    model = with_weight(0.0)
    ema = Ema(model, 0.05)
    nn.init.constant_(model.weight, 1.0)
    ema.update(model)
    assert weight_of(model, ema) == pytest.approx(0.95)


def test_swapping_gives_the_models_own_weights_back():
    model = with_weight(0.1234567)
    ema = Ema(with_weight(2.0), 0.9)
    own = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), ema.swapped(model):
        assert model.weight.item() == 2.0
        raise RuntimeError("inside")
    assert torch.equal(model.weight, own)


def test_small_steps_are_not_lost_in_bfloat16():
    """bfloat16 has no number between 1 and 1 + 1/128: by a thousandth of that an average in it would never move. After
    1,000 updates 1 - 0.999^1000 = 0.6323 of the way are behind it."""
    model = with_weight(1.0078125, torch.bfloat16)
    ema = Ema(model, 0.999)
    ema.load_state_dict({"updates": 10**6, "average": {"weight": torch.tensor([[1.0]])}})
    for _ in range(1000):
        ema.update(model)
    assert ema.state_dict()["average"]["weight"].item() == pytest.approx(1 + 0.6323 / 128, abs=1e-5)
    assert weight_of(model, ema) == 1.0078125  # which is nearer than 1, and the model is still bfloat16
    assert model.weight.dtype == torch.bfloat16


def test_counters_are_taken_over():
    model = nn.BatchNorm1d(2)
    ema = Ema(model, 0.9)
    model(torch.randn(4, 2))
    ema.update(model)
    assert ema.state_dict()["average"]["num_batches_tracked"].item() == 1


def test_average_goes_on_from_a_checkpoint(tmp_path: Path):
    model = with_weight(0.0)
    ema = Ema(model, 0.99)
    nn.init.constant_(model.weight, 1.0)
    ema.update(model)
    save_state(tmp_path / "state", ema.state_dict())
    other = Ema(with_weight(5.0), 0.99)
    other.load_state_dict(load_state(tmp_path / "state"))
    for one in (ema, other):
        one.update(model)
    assert weight_of(model, other) == weight_of(model, ema) == pytest.approx(1 - 0.1 * 2 / 11)
    with pytest.raises(UsageError, match="only one of them has 'bias'"):
        Ema(nn.Linear(1, 1), 0.9).load_state_dict(ema.state_dict())
    with pytest.raises(UsageError, match=r"'weight' is \(1, 2\) in one and \(1, 1\) in the other"):
        Ema(nn.Linear(2, 1, bias=False), 0.9).load_state_dict(ema.state_dict())
    with pytest.raises(UsageError, match="decay of the average is 1"):
        Ema(model, 1.0)


def test_interpolation_by_hand():
    first = {"w": torch.tensor([2.0, -1.0]), "n": torch.tensor(3)}
    last = {"w": torch.tensor([6.0, 1.0]), "n": torch.tensor(9)}
    quarter = interpolate(first, last, 0.25)
    assert quarter["w"].tolist() == [3.0, -0.5]
    assert [interpolate(first, last, alpha)["n"].item() for alpha in (0.0, 0.5, 0.51, 1.0)] == [3, 3, 9, 9]
    assert first["w"].tolist() == [2.0, -1.0]  # untouched


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_ends_are_exact(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    first, last = ({"w": (torch.randn(1000, generator=generator) * 1e3).to(dtype)} for _ in range(2))
    assert torch.equal(interpolate(first, last, 0.0)["w"], first["w"])
    assert torch.equal(interpolate(first, last, 1.0)["w"], last["w"])
    assert interpolate(first, last, 0.3)["w"].dtype == dtype


def test_the_best_point_and_ties():
    """The measure -(w - 0.6)² over w = alpha: 0.5 and 0.75 are nearest; then a plateau, of which the first is taken."""
    first, last = {"w": torch.tensor(0.0)}, {"w": torch.tensor(1.0)}
    alphas = [1.0, 0.0, 0.75, 0.5, 0.25]
    found = best_point(first, last, alphas, lambda state: -((state["w"].item() - 0.6) ** 2))
    assert (found.alpha, found.state["w"].item()) == (0.5, 0.5)
    assert [alpha for alpha, _ in found.measured] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found.measured[2][1] == found.value == pytest.approx(-0.01)
    tied = best_point(first, last, alphas, lambda state: float(state["w"].item() >= 0.25))
    assert tied.alpha == 0.25
    nothing = best_point(first, last, [0.5, 0.0], lambda state: math.nan if state["w"].item() == 0 else -5.0)
    assert nothing.alpha == 0.5


def test_points_that_cannot_be_compared_are_refused():
    state = {"w": torch.tensor(0.0)}
    with pytest.raises(UsageError, match="at least one point"):
        best_point(state, state, [], lambda _: 1.0)
    with pytest.raises(ModelError, match="not finite"):
        best_point(state, state, [0.0, 1.0], lambda _: math.nan)
    with pytest.raises(UsageError, match="only one of them has 'v'"):
        interpolate(state, {"v": torch.tensor(0.0)}, 0.5)


def test_the_average_of_a_real_run_is_that_of_its_weights():
    """A plain twin: the recurrence in Python floats over the weights of ten steps of gradient descent."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    twin = copy.deepcopy(model.state_dict())
    ema, optimiser = Ema(model, 0.6), torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(10):
        optimiser.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimiser.step()
        ema.update(model)
        d = min(0.6, (1 + step) / (10 + step))
        twin = {name: d * twin[name] + (1 - d) * tensor for name, tensor in model.state_dict().items()}
    with ema.swapped(model):
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor, twin[name], atol=1e-6)


def test_a_mean_of_states_by_hand() -> None:
    states = [{"w": torch.tensor([w], dtype=torch.bfloat16), "n": torch.tensor(n)} for w, n in ((1, 7), (2, 8), (6, 9))]
    mean = mean_state(states)
    assert mean["w"].item() == 3 and mean["w"].dtype == torch.bfloat16 and mean["n"].item() == 7
    with pytest.raises(UsageError, match="only one of them has 'n'"):
        mean_state([states[0], {"w": torch.tensor([1.0])}])
    with pytest.raises(UsageError, match="at least one model"):
        mean_state([])
