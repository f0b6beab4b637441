"""What a run leaves behind: the state that it resumes from, its settings, log, events, curve and model card."""

from __future__ import annotations

import builtins
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from indexer.errors import ModelError, StorageError, UsageError
from mmsearch.training import checkpoint
from mmsearch.training.checkpoint import load_state, save_state
from mmsearch.training.run import Facts, RunFolder, curve_points, model_card, read_settings, scalars, settings_text
from mmsearch.training.settings import DualSettings


def assert_same(found: Any, expected: Any) -> None:
    """Equal in value, type, dtype and every bit."""
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert bits(found) == bits(expected)
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected)
        assert found == expected or (found != found and expected != expected)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# The state


def test_every_kind_of_value_comes_back(tmp_path: Path):
    state = {
        "step": 7,
        7: {"7": [1, 2.5, "x", None, True], "empty": {}, "nothing": [], "pair": (1, (2.0,))},
        "floats": [0.1, 1e-320, -0.0, math.inf, -math.inf, math.nan],
        "large": 2**127 + 1,  # the state of numpy's generator
        "words": 'a "quoted" line\nand ünïcode / slashes',
        "tensors": {
            "scalar": torch.tensor(1.5),
            "none": torch.empty(0, 3),
            "nan": torch.tensor([math.nan, -0.0, math.inf]),
            "bool": torch.tensor([True, False]),
            "bfloat16": torch.tensor([1 / 3, 3e38], dtype=torch.bfloat16),
            "float16": torch.tensor([1 / 3], dtype=torch.float16),
            "float64": torch.tensor([1 / 3], dtype=torch.float64),
            "int64": torch.tensor([2**62 + 1]),
            "uint8": torch.tensor([[0, 255]], dtype=torch.uint8),
        },
    }
    save_state(tmp_path / "state", state)
    assert_same(load_state(tmp_path / "state"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_keys_that_would_have_one_name_are_kept_apart(tmp_path: Path):
    state = {
        1: torch.tensor(1),
        "1": torch.tensor(2),
        "a/b": torch.tensor(3),
        "a": {"b": torch.tensor(4), "b#": torch.tensor(5)},
    }
    save_state(tmp_path / "state", state)
    assert_same(load_state(tmp_path / "state"), state)
    for alone in (torch.tensor([1, 2]), "word", []):
        save_state(tmp_path / "state", alone)
        assert_same(load_state(tmp_path / "state"), alone)


def test_views_and_shared_tensors_come_back_as_values(tmp_path: Path):
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "again": whole, "column": whole[:, 1], "turned": whole.T, "parameter": nn.Parameter(whole)}
    save_state(tmp_path / "state", state)
    assert_same(load_state(tmp_path / "state"), {name: tensor.detach() for name, tensor in state.items()})
    assert (tmp_path / "state").stat().st_size < 4000  # a column alone, not the matrix that it is a view of


def test_an_optimiser_goes_on_as_if_it_had_never_stopped(tmp_path: Path):
    def steps(model: nn.Linear, optimiser: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            optimiser.zero_grad()
            model(torch.full((2, 3), float(step))).square().sum().backward()
            optimiser.step()

    def made() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        groups = [{"params": [model.weight], "weight_decay": 0.1, "name": "w"}, {"params": [model.bias], "lr": 0.01}]
        return model, torch.optim.AdamW(groups, lr=0.1)

    model, optimiser = made()
    steps(model, optimiser, 0, 3)
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    save_state(tmp_path / "state", state)
    loaded = load_state(tmp_path / "state")
    assert_same(loaded["optimiser"], state["optimiser"])
    assert loaded["optimiser"]["param_groups"][0]["betas"] == (0.9, 0.999)
    steps(model, optimiser, 3, 6)
    other, its_optimiser = made()
    other.load_state_dict(loaded["model"])
    its_optimiser.load_state_dict(loaded["optimiser"])
    steps(other, its_optimiser, 3, 6)
    assert_same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [0, {1, 2}]}, "/a/1 is of type set"),
        ({"a": {2.5: 1}}, "/a has the key 2.5"),
        ({True: 1}, "has the key True"),
        (object(), "/ is of type object"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, state: Any, message: str):
    with pytest.raises(UsageError, match=message):
        save_state(tmp_path / "state", state)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state"
    save_state(path, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device; what was there before is unchanged"):
            save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="cannot write"):
        save_state(tmp_path / "no" / "folder", {})


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(checkpoint.os, "fsync", lambda file: (seen.append("fsync"), fsync(file))[1])
    monkeypatch.setattr(checkpoint.os, "replace", lambda *names: (seen.append("replace"), rename(*names))[1])
    save_state(tmp_path / "state", {"t": torch.zeros(3)})
    assert seen[:2] == ["fsync", "replace"]


def test_damage_is_told_from_a_state(tmp_path: Path):
    """Each byte of a small file inverted in turn, the file cut at every length: none is ever read as something else."""
    path = tmp_path / "state"
    state = {"weights": torch.tensor([1.0, 2.0]), "step": 3}
    save_state(path, state)
    whole = path.read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        for damaged in (whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :], whole[:place]):
            path.write_bytes(damaged)
            try:
                assert_same(load_state(path), state)  # blanks after the header may change without harm
            except ModelError as exc:
                assert str(path) in str(exc) and "resume from another checkpoint" in str(exc)
            except AssertionError:
                unnoticed.append(place)
    assert unnoticed == []


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(ModelError, match="is not a checkpoint"):
        load_state(tmp_path / "weights")
    with pytest.raises(ModelError, match=r"cannot read the checkpoint .*missing"):
        load_state(tmp_path / "missing")


# The settings


@dataclass(frozen=True, slots=True)
class Loss:
    kind: Literal["infonce", "sigmoid"] = "infonce"
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Inner:
    learning_rates: dict[str, float] = field(default_factory=lambda: {"image": 1e-5, "text": 3e-4})
    alphas: tuple[float, ...] = (0.0, 0.5)
    betas: tuple[float, float] = (0.9, 0.98)
    loss: Loss = Loss()


@dataclass(frozen=True, slots=True)
class Settings:
    data: Path
    names: list[str] = field(default_factory=list)
    start: Path | None = None
    epochs: int = 6
    limit: int | float = 5
    resize: bool = False
    note: str = ""
    loss: Loss | None = None
    optimiser: Inner = Inner()


VALUES = [
    Settings(Path("flickr8k")),
    Settings(
        Path("/data/a b"),
        ["x", "y"],
        Path("runs/first"),
        9,
        2.5,
        True,
        'say "äh"\n\\o/',
        Loss("sigmoid", 0.2),
        Inner({"image": 1.0, "odd key": 2e-12}, (), (0.5, 1.0), Loss(margin=math.inf)),
    ),
]


@pytest.mark.parametrize("settings", VALUES)
def test_settings_come_back_equal(tmp_path: Path, settings: Settings):
    path = tmp_path / "config.toml"
    path.write_text(settings_text(settings), encoding="utf-8")
    assert read_settings(path, Settings) == settings


def test_every_value_is_written(tmp_path: Path):
    lines = settings_text(VALUES[0]).splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [
        'data = "flickr8k"',
        "names = []",
        'start = "none"',
        "epochs = 6",
        "limit = 5",
        "resize = false",
        'note = ""',
        'loss = "none"',
        "[optimiser]",
        "alphas = [",
        "    0.0,",
        "    0.5,",
        "]",
        "betas = [",
        "    0.9,",
        "    0.98,",
        "]",
        "[optimiser.learning_rates]",
        "image = 1e-05",
        "text = 0.0003",
        "[optimiser.loss]",
        'kind = "infonce"',
        'margin = "none"',
    ]


def test_the_real_settings_come_back(tmp_path: Path):
    settings = DualSettings(data="x", also=("a", "b"), loss="triplet", learning_rate=3e-5)
    (tmp_path / "config.toml").write_text(settings_text(settings), encoding="utf-8")
    assert read_settings(tmp_path / "config.toml", DualSettings) == settings


def test_what_a_file_does_not_mention_has_its_default(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text('data = "d"\n[optimiser]\nbetas = [1, 0]\n')
    assert read_settings(path, Settings) == Settings(Path("d"), optimiser=Inner(betas=(1.0, 0.0)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the setting data is missing"),
        ('data = "d"\nepoch = 3', "there is no setting epoch; did you mean epochs?"),
        ('data = "d"\n[optimiser]\nbeta = 3', "no setting optimiser.beta; did you mean betas?"),
        ('data = "d"\n[optimiser.loss]\nzzz = 3', "no setting optimiser.loss.zzz; there are kind, margin"),
        ('data = "d"\nepochs = 2.5', "epochs is 2.5; it must be int"),
        ('data = "d"\nepochs = true', "epochs is True; it must be int"),
        ('data = "d"\nresize = 1', "resize is 1; it must be bool"),
        ('data = 3', "data is 3; it must be Path"),
        ('data = "d"\nstart = 3', "start is 3; it must be pathlib.Path | None"),
        ('data = "d"\nnames = "x"', "names is 'x'; it must be list[str]"),
        ('data = "d"\nnames = ["x", 3]', "names[1] is 3; it must be str"),
        ('data = "d"\n[optimiser]\nbetas = [1.0]', "optimiser.betas is [1.0]; it must be tuple[float, float]"),
        ('data = "d"\n[optimiser.learning_rates]\nx = "y"', "optimiser.learning_rates.x is 'y'; it must be float"),
        ('data = "d"\n[loss]\nkind = "infonse"', "loss.kind is 'infonse'; it must be one of 'infonce', 'sigmoid'"),
        ('data = "d"\nloss = 3', "loss is 3; it must be "),
        ('data = "d"\noptimiser = 3', "optimiser is 3; it must be a table"),
        ('data = "d', "is no TOML: "),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        read_settings(path, Settings)
    assert str(raised.value).startswith(str(path))


def test_what_would_come_back_as_something_else_is_not_written():
    @dataclass(frozen=True)
    class Note:
        note: str | None = None

    with pytest.raises(UsageError, match="note is None there and 'none' now"):
        settings_text(Note("none"))
    with pytest.raises(UsageError, match=r"margin is nan there and nan now"):
        settings_text(Loss(margin=math.nan))


# The folder


def test_a_folder_is_begun_once(tmp_path: Path):
    settings = VALUES[0]
    path = tmp_path / "runs" / "one"
    with pytest.raises(UsageError, match="holds no run to resume"):
        RunFolder.create(path, settings, resume=True)
    assert not path.exists()
    with RunFolder.create(path, settings):
        assert read_settings(path / "config.toml", Settings) == settings
        assert [each.name for each in path.iterdir()] == ["config.toml"]
    with pytest.raises(UsageError, match="holds a run already; add --resume"):
        RunFolder.create(path, settings)
    RunFolder.create(path, settings, resume=True).close()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        RunFolder.create(tmp_path, VALUES[0])
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        RunFolder.create(tmp_path / "photo.jpg", VALUES[0])
    assert [each.name for each in tmp_path.iterdir()] == ["photo.jpg"]
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", VALUES[0]).close()


def test_a_run_does_not_go_on_with_other_settings(tmp_path: Path):
    RunFolder.create(tmp_path, VALUES[0]).close()
    other = replace(VALUES[0], epochs=7, optimiser=Inner(loss=Loss(margin=0.1)))
    message = r"epochs is 6 there and 7 now; optimiser\.loss\.margin is None there and 0\.1 now; resume with the same"
    with pytest.raises(UsageError, match=message):
        RunFolder.create(tmp_path, other, resume=True)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A new run that says nothing to TensorBoard."""
    folder = RunFolder.create(tmp_path / "run", VALUES[0], say=lambda line: pytest.fail(line))
    folder._writes_events = False
    return folder


def test_the_log_is_cut_where_the_checkpoint_is(run: RunFolder):
    log = run.path / "log.jsonl"
    for event in ({"start": "mini"}, {"step": 1}, {"step": 2}, {"note": "é"}, {"step": 3}, {"note": "late"}):
        run.log(event)
    assert run.events()[-1] == {"note": "late"}
    run.cut(3)
    assert len(run.events()) == 6
    run.cut(2)
    assert log.read_text() == '{"start": "mini"}\n{"step": 1}\n{"step": 2}\n{"note": "\\u00e9"}\n'
    run.log({"step": 3, "again": True})
    assert run.events()[-2:] == [{"note": "é"}, {"step": 3, "again": True}]
    run.cut(0)
    assert run.events() == [{"start": "mini"}]


def test_half_a_line_is_named_and_dropped(tmp_path: Path):
    said: list[str] = []
    run = RunFolder.create(tmp_path, VALUES[0], say=said.append)
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\n[1]\n{"epoch": 2, "lo')
    assert run.events() == [{"epoch": 1}]
    assert [line.partition("log.jsonl: ")[2] for line in said] == [
        "line 2 is not a JSON object and is left out",
        "line 3 is not a JSON object and is left out",
    ]
    run.cut(5)
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1}\n'


def test_a_loss_that_is_no_number_is_still_json(run: RunFolder):
    run.log({"step": 1, "loss": math.nan, "rates": [math.inf, 1.0], "deep": {"x": -math.inf}})
    text = (run.path / "log.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "rates": [None, 1.0], "deep": {"x": None}}
    assert "NaN" not in text


def test_scalars_by_hand():
    event = {"step": 8, "loss": 0.5, "best": True, "lr": {"image": 1e-3}, "text_to_image": [1, 2.5, 3], "note": "x"}
    assert list(scalars(event)) == [
        ("loss", 0.5),
        ("lr/image", 0.001),
        ("text_to_image/R@1", 1.0),
        ("text_to_image/R@5", 2.5),
        ("text_to_image/R@10", 3.0),
    ]


def test_tensorboard_has_the_same_numbers_once_after_a_resume(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunFolder.create(tmp_path, VALUES[0]) as run:
        for step in range(1, 5):
            run.log({"step": step, "loss": 1.0 / step})
    with RunFolder.create(tmp_path, VALUES[0], resume=True) as run:
        run.cut(2)
        for step in range(3, 5):
            run.log({"step": step, "loss": 10.0 * step})
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 30.0), (4, 40.0)]


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if they were not installed."""
    real = builtins.__import__

    def importing(name: str, *arguments: Any) -> Any:
        if name.startswith(modules):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", importing)


def test_without_the_extra_a_run_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    without(monkeypatch, "torch.utils.tensorboard", "matplotlib")
    with RunFolder.create(tmp_path, VALUES[0]) as run:
        run.log({"step": 1, "epoch": 1, "loss": 0.5})
        run.log({"step": 2, "epoch": 2, "loss": 0.25})
        assert run.draw_curve() is None
    assert len(run.events()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "no events for TensorBoard: it is not installed; pip install 'mmsearch[train]' brings it",
        "no curve.png: matplotlib is not installed; pip install 'mmsearch[train]' brings it",
    ]


EVENTS = [
    {"epoch": 0, "step": 0, "text_to_image": [10.0, 20.0, 30.0], "image_to_text": [15.0, 25.0, 35.0]},
    {"epoch": 0.5, "step": 4, "loss": 3.5},
    {"epoch": 1, "step": 8, "loss": 2.25, "text_to_image": [20.0, 40.0, 50.0], "image_to_text": [25.0, 45.0, 55.25]},
    {"epoch": 2, "step": 16, "loss": None},
    {"alpha": 0.5, "text_to_image": [90.0, 90.0, 90.0]},
    {"epoch": 3, "text_to_image": [1.0]},
]


def test_what_the_curve_shows():
    losses, recalls = curve_points(EVENTS)
    assert losses == [(0.5, 3.5), (1, 2.25)]
    assert recalls == {
        "text_to_image": [(0, [10.0, 20.0, 30.0]), (1, [20.0, 40.0, 50.0])],
        "image_to_text": [(0, [15.0, 25.0, 35.0]), (1, [25.0, 45.0, 55.25])],
    }


def test_the_curve_is_drawn_again_and_again(run: RunFolder):
    pytest.importorskip("matplotlib")
    run.log({"step": 1, "seconds": 3})
    assert run.draw_curve() is None  # nothing to draw yet
    sizes = []
    for event in EVENTS:
        run.log(event)
        path = run.draw_curve()
        assert path == run.path / "curve.png"
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert sizes == [(960, 480)] + [(960, 960)] * 5  # recall alone, then with the loss below it


# The model card

FACTS = Facts(
    title="A small model",
    what="Pictures and words in one space.",
    licence="apache-2.0",
    language=["en"],
    start={"name": "mini", "source": "the package", "licence": "Apache-2.0"},
    data=[
        {"name": "Flickr8k", "split": "train", "pictures": 5993, "captions": 29965, "licence": "research | only"},
        {"name": "mine", "split": "dev", "pictures": 20},
    ],
    command="mmsearch train dual --data flickr8k",
    machine="2 CPU cores",
    commit="abc1234",
    best={"epoch": 4, "alpha": 0.75, "mean recall": 43.21},
    quality=[
        {
            "data": "Flickr8k",
            "split": "test",
            "pictures": 1000,
            "captions": 5000,
            "text_to_image": (24.0, 54.4, 67.5),
            "image_to_text": (31.7, 62.1, 73.9),
        }
    ],
    limits=["It reads no text.", "English only."],
)

CARD = """\
---
library_name: mmsearch
license: "apache-2.0"
language: ["en"]
---

# A small model

Pictures and words in one space.

## Where it began

Training began with mini (the package), licence Apache-2.0.

## Data

| data | split | pictures | captions | licence |
|---|---|---|---|---|
| Flickr8k | train | 5,993 | 29,965 | research \\| only |
| mine | dev | 20 |  |  |

## How it was made

```bash
mmsearch train dual --data flickr8k
```

It ran on 2 CPU cores at commit `abc1234`.

Every setting:

```toml
epochs = 6
```

## Recall on dev

![Loss and recall over the epochs](curve.png)

| epoch | loss | caption → picture R@1 / 5 / 10 | picture → caption R@1 / 5 / 10 |
|---|---|---|---|
| 0 |  | 10.0 / 20.0 / 30.0 | 15.0 / 25.0 / 35.0 |
| 1 | 2.25 | 20.0 / 40.0 / 50.0 | 25.0 / 45.0 / 55.2 |

The model is the best point on dev: epoch 4, alpha 0.75, mean recall 43.21.

## Measured quality

Recall in per cent.

| data | split | pictures | caption → picture R@1 / 5 / 10 | captions | picture → caption R@1 / 5 / 10 |
|---|---|---|---|---|---|
| Flickr8k | test | 1,000 | 24.0 / 54.4 / 67.5 | 5,000 | 31.7 / 62.1 / 73.9 |

## Limits

- It reads no text.
- English only.

## Licence

The weights: apache-2.0.
"""


def test_the_card_says_all_of_it():
    assert model_card(FACTS, "epochs = 6\n", EVENTS, "curve.png") == CARD
    front = yaml.safe_load(CARD.split("---\n")[1])
    assert front == {"library_name": "mmsearch", "license": "apache-2.0", "language": ["en"]}


def test_without_facts_the_card_claims_nothing():
    assert model_card({}, "", [], None) == "---\nlibrary_name: mmsearch\n---\n\n# Model card\n"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"licens": "MIT"}, "no place for the fact 'licens'; did you mean licence?"),
        ({"data": [{"picture": 3}]}, "no place for the fact 'picture'; did you mean pictures?"),
        ({"quality": [{"recall": 3}]}, "no place for the fact 'recall'"),
        ({"start": {"url": "x"}}, "no place for the fact 'url'; there are licence, name, source"),
    ],
)
def test_no_fact_is_lost_in_silence(facts: Any, message: str):
    with pytest.raises(UsageError, match=re.escape(message)):
        model_card(facts, "", [], None)


def test_the_card_of_a_run_has_its_settings_log_and_curve(run: RunFolder):
    run.log(EVENTS[0])
    path = run.write_card(FACTS)
    text = path.read_text(encoding="utf-8")
    assert path == run.path / "README.md"
    assert 'data = "flickr8k"' in text and "# Every setting" not in text
    assert "10.0 / 20.0 / 30.0" in text and "curve.png" not in text
    (run.path / "curve.png").write_bytes(b"")
    run.write_card(FACTS)
    assert "(curve.png)" in path.read_text(encoding="utf-8")
