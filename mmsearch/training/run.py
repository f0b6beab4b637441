"""The folder of a training run: its settings, its log, its curves and its model card.

    config.toml      every setting, written once and compared when the run goes on
    log.jsonl        one JSON object a line, in the order of events
    events/          the same numbers for TensorBoard, if that is installed
    curve.png        loss and recall on dev over the epochs, if matplotlib is installed
    README.md        the model card

Of the events in the log these names mean something here: ``step`` (int) and ``epoch`` (may be a fraction), ``loss``,
and ``text_to_image`` and ``image_to_text``, each R@1, R@5 and R@10 on dev in per cent. Others are only written down.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard, TypeVar

from indexer.errors import StorageError, UsageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CONFIG, LOG, EVENTS, CURVE, CARD = "config.toml", "log.jsonl", "events", "curve.png", "README.md"
DIRECTIONS = {"text_to_image": "caption → picture", "image_to_text": "picture → caption"}
RECALLS = ("R@1", "R@5", "R@10")
NOTHING = "none"
"""TOML has no word for None; where a setting may be None, this stands for it."""
HEADER = f'# Every setting of this run. "{NOTHING}" stands for nothing where a setting may be left open.\n\n'
INSTALL = "pip install 'mmsearch[train]'"

Settings = TypeVar("Settings")


class Start(TypedDict, total=False):
    """The model that training began with."""

    name: str
    source: str
    licence: str


class Data(TypedDict, total=False):
    """What was trained or chosen on."""

    name: str
    split: str
    pictures: int
    captions: int
    source: str
    licence: str


class Quality(TypedDict, total=False):
    """One measurement: a caption is sought among ``pictures``, a picture's caption among ``captions``."""

    data: str
    split: str
    pictures: int
    captions: int
    text_to_image: Sequence[float]
    image_to_text: Sequence[float]


class Facts(TypedDict, total=False):
    """What a model card is written from; what is not given is not mentioned."""

    title: str
    what: str
    licence: str
    language: Sequence[str]
    start: Start
    data: Sequence[Data]
    command: str
    machine: str
    commit: str
    best: Mapping[str, float | int | str]
    quality: Sequence[Quality]
    limits: Sequence[str]


class RunFolder:
    """The files of one run in ``path``; used with ``with``, by the main process alone."""

    def __init__(self, path: Path, say: Callable[[str], None] | None = None) -> None:
        """
        Args:
            path: the folder; ``create`` makes it.
            say: takes a line for the user; stderr by default.
        """
        self.path = path
        self._say = say or _to_stderr
        self._writer: SummaryWriter | None = None
        self._writes_events = True
        self._purge_step: int | None = None

    @classmethod
    def create(
        cls, path: Path, settings: Any, *, resume: bool = False, say: Callable[[str], None] | None = None
    ) -> RunFolder:
        """Begin a run in a new or empty folder; with ``resume`` go on with the one that is there.

        Args:
            path: the folder.
            settings: a dataclass with everything that the outcome depends on; written into ``config.toml``.
            resume: there must be a run, begun with equal settings.
            say: takes a line for the user; stderr by default.

        Raises:
            UsageError: the folder holds something else, or a run and ``resume`` was not asked for, or no run and it
                was, or a run with other settings.
            StorageError: the folder cannot be written.
        """
        config = path / CONFIG
        if resume:
            if not config.is_file():
                raise UsageError(f"{path} holds no run to resume; begin one without --resume")
            differences = _differences(read_settings(config, type(settings)), settings, "")
            if differences:
                more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
                raise UsageError(
                    f"{config} says otherwise: {'; '.join(differences[:3])}{more}; resume with the same settings, "
                    "or begin another run"
                )
            return cls(path, say)
        if config.exists():
            raise UsageError(f"{path} holds a run already; add --resume to go on with it, or name another folder")
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UsageError(f"{path} is not empty and holds no run; name a new folder")
            text = settings_text(settings)
            path.mkdir(parents=True, exist_ok=True)
            _write(config, text)
        except OSError as exc:
            raise StorageError(f"cannot begin a run in {path}: {exc.strerror}") from exc
        return cls(path, say)

    def log(self, event: Mapping[str, Any]) -> None:
        """Add an event to the log, and its numbers to TensorBoard if it has a ``step``.

        A number that is not finite is written as ``null``, which every reader of JSON knows.

        Raises:
            StorageError: the log cannot be written.
        """
        line = json.dumps(_finite(event), allow_nan=False)
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as exc:
            raise StorageError(f"cannot write {self.path / LOG}: {exc.strerror}") from exc
        if isinstance(event.get("step"), int):
            self._write_scalars(event["step"], event)

    def cut(self, step: int) -> None:
        """Forget what was logged after the checkpoint of step ``step``: the run repeats it.

        The log loses its first event of a later step and all that follow it, and whatever is no JSON (half a line, if
        the process was killed while it wrote). TensorBoard is told to do likewise.
        """
        kept: list[dict[str, Any]] = []
        for event in self.events():
            if _is_number(event.get("step")) and event["step"] > step:
                break
            kept.append(event)
        try:
            _write(self.path / LOG, "".join(json.dumps(event) + "\n" for event in kept))
        except OSError as exc:
            raise StorageError(f"cannot write {self.path / LOG}: {exc.strerror}") from exc
        self._purge_step = step + 1

    def events(self) -> list[dict[str, Any]]:
        """The log. A line that is no JSON object is named and left out."""
        try:
            lines = (self.path / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise StorageError(f"cannot read {self.path / LOG}: {exc.strerror}") from exc
        found = []
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict):
                found.append(event)
            else:
                self._say(f"{self.path / LOG}: line {number} is not a JSON object and is left out")
        return found

    def draw_curve(self) -> Path | None:
        """Draw ``curve.png`` from the log; None, and a word about it, where matplotlib is not installed.

        None also where no event has an epoch and something to draw.
        """
        losses, recalls = curve_points(self.events())
        if not losses and not any(recalls.values()):
            return None
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError:
            self._say(f"no {CURVE}: matplotlib is not installed; {INSTALL} brings it")
            return None
        # A figure of its own, not pyplot's: no display is looked for and nothing global is left behind.
        panels = int(any(recalls.values())) + int(bool(losses))
        figure = Figure(figsize=(8, 4 * panels), layout="constrained")
        axes = list(figure.subplots(panels, squeeze=False, sharex=True)[:, 0])
        if any(recalls.values()):
            plot = axes.pop(0)
            for (direction, words), style in zip(DIRECTIONS.items(), ("-", "--"), strict=True):
                for cut, name in enumerate(RECALLS):
                    points = [(epoch, values[cut]) for epoch, values in recalls[direction]]
                    if points:
                        x, y = zip(*points, strict=True)
                        plot.plot(x, y, style, marker="o", markersize=3, color=f"C{cut}", label=f"{words} {name}")
            plot.set(ylabel="recall on dev (%)", ylim=(0, 100))
            plot.legend(ncols=2, fontsize="small")
        if losses:
            plot = axes.pop(0)
            plot.plot(*zip(*losses, strict=True), marker="o", markersize=3, color="C3")
            plot.set(ylabel="training loss")
        for plot in figure.axes:
            plot.grid(alpha=0.3)
            plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.axes[-1].set_xlabel("epoch")
        path = self.path / CURVE
        try:
            figure.savefig(path, dpi=120, format="png")
        except OSError as exc:
            raise StorageError(f"cannot write {path}: {exc.strerror}") from exc
        return path

    def write_card(self, facts: Facts) -> Path:
        """Write ``README.md`` from ``facts``, the settings and the log.

        Raises:
            UsageError: a fact has a name that the card does not know.
            StorageError: the card cannot be written, or the settings cannot be read.
        """
        path = self.path / CARD
        try:
            settings = (self.path / CONFIG).read_text(encoding="utf-8").removeprefix(HEADER)
            _write(path, model_card(facts, settings, self.events(), CURVE if (self.path / CURVE).is_file() else None))
        except OSError as exc:
            raise StorageError(f"cannot write {path}: {exc.strerror}") from exc
        return path

    def close(self) -> None:
        """Finish what TensorBoard still has to write."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def _write_scalars(self, step: int, event: Mapping[str, Any]) -> None:
        if self._writer is None and self._writes_events:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._writes_events = False
                self._say(f"no events for TensorBoard: it is not installed; {INSTALL} brings it")
            else:
                self._writer = SummaryWriter(str(self.path / EVENTS), purge_step=self._purge_step)
        if self._writer is not None:
            for tag, value in scalars(event):
                self._writer.add_scalar(tag, value, step)


def settings_text(settings: Any) -> str:
    """Every value of a dataclass, those of dataclasses in it as tables, as TOML.

    Raises:
        UsageError: a value would not come back equal.

    Example: ``Settings(epochs=3, start=None, loss=Loss(margin=0.2))`` is::

        epochs = 3
        start = "none"

        [loss]
        margin = 0.2
    """
    import tomli_w

    text = HEADER + tomli_w.dumps(_table(settings))
    differences = _differences(_parse(text, type(settings), Path(CONFIG)), settings, "")
    if differences:
        raise UsageError(f"a setting cannot be kept in {CONFIG}: {'; '.join(differences)}")
    return text


def read_settings(path: Path, kind: type[Settings]) -> Settings:
    """The dataclass ``kind`` with the values of a TOML file; what the file does not mention has its default.

    Fields may be bool, int, float, str, ``Path``, ``Literal``, dataclasses, lists, tuples and dictionaries of these, or
    one of several with ``|``, one of them a dataclass at most. A whole number will do for a float.

    Raises:
        UsageError: the file cannot be read or is no TOML, has a key that no field has (the message names the nearest
            ones), a value of another type, or lacks one without default.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read the settings in {path}: {exc}") from exc
    return _parse(text, kind, path)


def curve_points(
    events: Iterable[Mapping[str, Any]],
) -> tuple[list[tuple[float, float]], dict[str, list[tuple[float, Sequence[float]]]]]:
    """What a curve shows: ``(epoch, loss)``, and for each direction ``(epoch, (R@1, R@5, R@10))``.

    Events without an epoch, and numbers that were not finite, are passed over.
    """
    losses: list[tuple[float, float]] = []
    recalls: dict[str, list[tuple[float, Sequence[float]]]] = {direction: [] for direction in DIRECTIONS}
    for event in events:
        epoch, loss = event.get("epoch"), event.get("loss")
        if not _is_number(epoch):
            continue
        if _is_number(loss):
            losses.append((epoch, loss))
        for direction in DIRECTIONS:
            values = event.get(direction)
            if _are_recalls(values):
                recalls[direction].append((epoch, values))
    return losses, recalls


def scalars(event: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of an event and what TensorBoard calls them; ``step`` itself is none of them.

    Example: ``{"step": 8, "loss": 0.5, "lr": {"image": 1e-3}, "text_to_image": [1, 2, 3]}`` gives ``loss``,
    ``lr/image``, ``text_to_image/R@1``, ``text_to_image/R@5`` and ``text_to_image/R@10``.
    """
    for name, value in event.items():
        tag = f"{prefix}{name}"
        if tag == "step":
            continue
        if isinstance(value, Mapping):
            yield from scalars(value, f"{tag}/")
        elif name in DIRECTIONS and _are_recalls(value):
            yield from ((f"{tag}/{cut}", float(number)) for cut, number in zip(RECALLS, value, strict=True))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield tag, float(value)


def model_card(facts: Facts, settings: str, events: Sequence[Mapping[str, Any]], curve: str | None) -> str:
    """The model card in Markdown: what the facts say and nothing else.

    Args:
        facts: see ``Facts``.
        settings: the run's settings as TOML.
        events: the run's log.
        curve: the name of the picture of the curves beside the card, if there is one.

    Raises:
        UsageError: a fact has a name that the card does not know: it would be lost.
    """
    _refuse_unknown(facts, Facts)
    for name, kind in (("data", Data), ("quality", Quality)):
        for item in typing.cast("Sequence[Mapping[str, Any]]", facts.get(name, ())):
            _refuse_unknown(item, kind)
    _refuse_unknown(facts.get("start", {}), Start)
    parts = [_front_matter(facts), f"# {facts.get('title', 'Model card')}", facts.get("what", "")]
    if "start" in facts:
        parts += ["## Where it began", _start_sentence(facts["start"])]
    if "data" in facts:
        parts += ["## Data", _data_table(facts["data"])]
    made = _made(facts, settings)
    parts += ["## How it was made", made] if made else []
    measured = _epoch_table(events)
    if measured or curve:
        parts += ["## Recall on dev", f"![Loss and recall over the epochs]({curve})" if curve else "", measured]
    if "best" in facts:
        best = ", ".join(f"{name} {_number(value)}" for name, value in facts["best"].items())
        parts += [f"The model is the best point on dev: {best}."]
    if "quality" in facts:
        parts += ["## Measured quality", "Recall in per cent.", _quality_table(facts["quality"])]
    if "limits" in facts:
        parts += ["## Limits", "\n".join(f"- {limit}" for limit in facts["limits"])]
    if "licence" in facts:
        parts += ["## Licence", f"The weights: {facts['licence']}."]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _front_matter(facts: Facts) -> str:
    """What model hubs read; a JSON string or list is YAML too."""
    lines = ["---", "library_name: mmsearch"]
    if "licence" in facts:
        lines.append(f"license: {json.dumps(facts['licence'])}")
    if "language" in facts:
        lines.append(f"language: {json.dumps(list(facts['language']))}")
    return "\n".join([*lines, "---"])


def _start_sentence(start: Start) -> str:
    text = f"Training began with {start.get('name', 'another model')}"
    text += f" ({start['source']})" if "source" in start else ""
    return text + (f", licence {start['licence']}." if "licence" in start else ".")


def _data_table(data: Sequence[Data]) -> str:
    rows = [
        (
            item.get("name", ""),
            item.get("split", ""),
            _number(item.get("pictures", "")),
            _number(item.get("captions", "")),
            item.get("source", ""),
            item.get("licence", ""),
        )
        for item in data
    ]
    return _markdown(("data", "split", "pictures", "captions", "source", "licence"), rows)


def _made(facts: Facts, settings: str) -> str:
    place = [f"on {facts['machine']}"] if "machine" in facts else []
    place += [f"at commit `{facts['commit']}`"] if "commit" in facts else []
    parts = [_fenced("bash", facts["command"])] if "command" in facts else []
    parts += [f"It ran {' '.join(place)}."] if place else []
    parts += ["Every setting:", _fenced("toml", settings)] if settings.strip() else []
    return "\n\n".join(parts)


def _epoch_table(events: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (_number(event["epoch"]), _number(event.get("loss", "")), *(_recalls(event.get(way)) for way in DIRECTIONS))
        for event in events
        if _is_number(event.get("epoch")) and any(_are_recalls(event.get(way)) for way in DIRECTIONS)
    ]
    return _markdown(("epoch", "loss", *(f"{way} R@1 / 5 / 10" for way in DIRECTIONS.values())), rows) if rows else ""


def _quality_table(quality: Sequence[Quality]) -> str:
    rows = [
        (
            item.get("data", ""),
            item.get("split", ""),
            *(
                cell
                for way, gallery in (("text_to_image", "pictures"), ("image_to_text", "captions"))
                for cell in (_number(item.get(gallery, "")), _recalls(item.get(way)))
            ),
        )
        for item in quality
    ]
    way, back = DIRECTIONS.values()
    cuts = "R@1 / 5 / 10"
    return _markdown(("data", "split", "pictures", f"{way} {cuts}", "captions", f"{back} {cuts}"), rows)


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, without the columns of which no row says anything."""
    kept = [column for column in zip(header, *rows, strict=True) if any(column[1:])]

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    first, *others = (line(cells) for cells in zip(*kept, strict=True))
    return "\n".join([first, "|" + "---|" * len(kept), *others])


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _recalls(values: Any) -> str:
    return " / ".join(f"{value:.1f}" for value in values) if _are_recalls(values) else ""


def _number(value: Any) -> str:
    """Thousands with commas, four digits after the point at most; a word as it is, None as nothing."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_recalls(values: Any) -> TypeGuard[Sequence[float]]:
    return isinstance(values, (list, tuple)) and len(values) == len(RECALLS) and all(map(_is_number, values))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _table(value: Any) -> Any:
    """As TOML has it."""
    if value is None:
        return NOTHING
    if is_dataclass(value):
        return {field.name: _table(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _table(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_table(item) for item in value]
    return value.as_posix() if isinstance(value, Path) else value


def _parse(text: str, kind: type[Settings], path: Path) -> Settings:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found: Settings = _read(tomllib.loads(text), kind, "", path)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{path} is no TOML: {exc}") from exc
    return found


def _read(value: Any, kind: Any, place: str, path: Path) -> Any:
    """``value``, as TOML has it, as the type ``kind``; ``place`` is the name of the setting."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return _read_dataclass(value, kind, place, path)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and value == NOTHING:
            return None
        for one in arguments:
            try:
                return _read(value, one, place, path)
            except UsageError:
                if is_dataclass(one) and isinstance(value, dict):
                    raise  # nothing else can be meant, and the message about what is in the table says more
    elif origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise UsageError(f"{path}: {place} is {value!r}; it must be one of {', '.join(map(repr, arguments))}")
    elif origin in (list, tuple) and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if origin is list or arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            items = zip(value, kinds, strict=True)
            return origin(_read(item, one, f"{place}[{number}]", path) for number, (item, one) in enumerate(items))
    elif origin is dict and isinstance(value, dict):
        return {name: _read(item, arguments[1], f"{place}.{name}", path) for name, item in value.items()}
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind in (bool, int, str) and type(value) is kind:
        return value
    raise UsageError(f"{path}: {place} is {value!r}; it must be {_kind_name(kind)}")


def _read_dataclass(table: dict[str, Any], kind: type[Any], place: str, path: Path) -> Any:
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}
    begin = f"{place}." if place else ""
    for name in table:
        if name not in known:
            raise UsageError(f"{path}: there is no setting {begin}{name}{_nearest(name, known)}")
    for name, field in known.items():
        if name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{path}: the setting {begin}{name} is missing")
    return kind(**{name: _read(value, hints[name], f"{begin}{name}", path) for name, value in table.items()})


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(sorted(known))}"


def _kind_name(kind: Any) -> str:
    """``float``, ``int | None`` or ``tuple[float, ...]``, as it is written in the source."""
    if is_dataclass(kind):
        return "a table"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _differences(there: Any, wanted: Any, place: str) -> list[str]:
    """The settings that are not equal, each in words."""
    found = []
    for field in fields(wanted):
        one, other = getattr(there, field.name), getattr(wanted, field.name)
        if is_dataclass(one) and type(one) is type(other):
            found += _differences(one, other, f"{place}{field.name}.")
        elif one != other:
            found.append(f"{place}{field.name} is {one!r} there and {other!r} now")
    return found


def _refuse_unknown(facts: Mapping[str, Any], kind: Any) -> None:
    known = typing.get_type_hints(kind)
    for name in facts:
        if name not in known:
            raise UsageError(f"the model card has no place for the fact {name!r}{_nearest(name, known)}")


def _write(path: Path, text: str) -> None:
    """The new file or the former one, never half of it."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8", newline="\n")
    fresh.replace(path)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
