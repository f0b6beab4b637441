"""The commands: parse, call the library, present. Answers go to stdout, talk to stderr."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from indexer.errors import NoIndex, UsageError
from mmsearch import asking
from mmsearch.asking import say

if TYPE_CHECKING:
    from indexer.reports import TokensReport, UpdateReport

LATER = {
    "data": "mmsearch.datasets.command",
    "train": "mmsearch.training.command",
    "eval": "mmsearch.evaluation.command",
}
"""Groups of commands by the module that has them, which is not imported before it is asked for."""


class Commands(TyperGroup):
    """The commands of this file and those of ``LATER``, each built when it is asked for.

    A command takes some milliseconds to build, and a question needs one of them.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Unbuilt()


class _Unbuilt(Mapping[str, Any]):
    """The commands by name, in the order in which help shows them."""

    def __init__(self) -> None:
        self._here = {
            info.name or getattr(info.callback, "__name__", ""): info for info in commands.registered_commands
        }
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            parent = typer.Typer(**STYLE)
            if name in LATER:
                parent.add_typer(import_module(LATER[name]).app, name=name)
                self._built[name] = typer.main.get_group(parent).commands[name]
            else:
                if name == shell.__name__:
                    _give_shell_its_options()
                parent.registered_commands = [self._here[name]]
                self._built[name] = typer.main.get_command(parent)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._here, *LATER])

    def __len__(self) -> int:
        return len(self._here) + len(LATER)


STYLE: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,  # plain help in a third of the time
}
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    **STYLE,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Search your own pictures and texts in words or with a picture.\n\n"
    "Example: mmsearch index ./photos, then mmsearch query 'a cat on a sofa'",
)
commands = typer.Typer(**STYLE)
"""What ``Commands`` builds the commands of this file from."""

IndexOption = Annotated[
    Path | None,
    typer.Option(
        "--index", envvar="MMSEARCH_INDEX", metavar="DIR", help="The index folder; else one in your data folder."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="mini, an open_clip name such as ViT-B-32/laion2b_s34b_b79k, or a folder."),
]
DeviceOption = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="cuda, cuda:1, mps or cpu; else the best there is.")
]
RerankerOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="A reranker's folder, or blip-itm-base-coco and such; else the one trained for the model."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@commands.command()
def index(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", help="Folders and files to index.", show_default=False)
    ] = None,
    index: IndexOption = None,
    model: ModelOption = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="cuda, cuda:1, mps or cpu; cuda:0,cuda:1 for a process on each; else the best there is.",
        ),
    ] = None,
    reranker: RerankerOption = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What a new index has pictures computed in: float32, bfloat16, int8 or auto, the fastest that finds "
            "the same.",
        ),
    ] = None,
    no_tokens: Annotated[
        bool, typer.Option("--no-tokens", help="Store no image tokens of new pictures; they are not reranked.")
    ] = False,
    add_tokens: Annotated[
        bool,
        typer.Option(
            "--add-tokens", help="Make the image tokens that pictures of the index lack; PATH may be left out."
        ),
    ] = False,
    ocr: Annotated[
        bool,
        typer.Option("--ocr", help="Read the text in pictures and on scanned pages too; seconds for each."),
    ] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave out, as in .gitignore; repeatable.")
    ] = None,
    fps: Annotated[
        float, typer.Option(metavar="N", help="Look at so many frames of a second of video, at most.")
    ] = 4.0,
    max_text_mb: Annotated[float, typer.Option(min=0, help="Skip text files above this many megabytes.")] = 20.0,
    recall: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the best 10 that searching a large index is to find, from now on; else 0.99.",
        ),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Print what a question costs for which recall; PATH may be left out.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Bring the index to what folders and files hold now.

    Unchanged files cost nothing, removed ones are purged. Folders may hold a .mmsearchignore, which reads like
    .gitignore.

    Example: mmsearch index ~/Pictures ~/notes --exclude '*.png'
    """
    from mmsearch.present import report_lines, tokens_lines, tuning_lines
    from mmsearch.progress import ProgressLine

    if no_tokens and add_tokens:
        raise UsageError("--no-tokens and --add-tokens exclude each other")
    tokens, report, tunings = None, None, []
    try:
        with _open(index, model, device, reranker, precision) as library:
            if add_tokens:
                try:
                    with ProgressLine() as progress:
                        tokens = library.add_tokens(progress, say)
                except NoIndex:
                    if not paths:
                        raise  # else a new index has tokens from its first picture on
            if paths or not (add_tokens or tune or recall is not None):
                with ProgressLine() as progress:
                    report = library.index(
                        *paths or (),
                        exclude=exclude or (),
                        max_text_bytes=int(max_text_mb * 1e6),
                        fps=fps,
                        tokens=not no_tokens,
                        ocr=ocr,
                        recall=recall,
                        progress=progress,
                        say=say,
                    )
            elif recall is not None or tune:
                library.prepare(recall, say)
            if tune:
                tunings = library.tune()
    except KeyboardInterrupt:
        say("stopped; what was committed is in the index, and the same command carries on from there")
        raise typer.Exit(1) from None
    lines = [tokens_lines(tokens)] if tokens else []
    lines += [report_lines(report)] if report else []
    for *skipped, _ in lines:
        for line in skipped:
            say(line)
    if json_:
        values = _report_values(report) if report else {}
        values |= {"tokens": _report_values(tokens)} if tokens else {}
        values |= {"tuning": [asdict(one) for one in tunings]} if tune else {}
        print(json.dumps(values, indent=2))
    else:
        for *_, summary in lines:
            print(summary)
        for line in tuning_lines(tunings):
            print(line)


@commands.command()
def query(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORDS", help="What to look for, with or without quotes; - for many questions, a line each."
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A picture to look for; repeatable, and with words all of them."),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Ask with what the index holds of FILE, or FILE#t=START,END; repeatable."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--not", metavar="WORDS", help="What must not be in it; repeatable.")
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "-k", min=1, help="So many answers, however unlikely; else up to 10 that match.", show_default=False
        ),
    ] = None,
    offset: Annotated[
        int, typer.Option(min=0, metavar="N", help="Leave out the first N answers, for the next page of a list.")
    ] = 0,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="image|video|text", help="Only these kinds; repeatable, or a,b.")
    ] = None,
    under: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Only below this folder; repeatable.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="DATE", help="Taken on or after 2021, 2021-05 or 2021-05-17.")
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="DATE", help="Taken before that date.")] = None,
    min_prob: Annotated[
        float | None, typer.Option(min=0, max=1, metavar="P", help="Leave out what is less likely to match.")
    ] = None,
    only_clear: Annotated[bool, typer.Option("--only-clear", help="Leave out what is no clear match.")] = False,
    no_rerank: Annotated[
        bool, typer.Option("--no-rerank", help="Leave the order of the first stage as it is.")
    ] = False,
    candidates: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rerank so many of the first answers; else what pays.")
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help='By words alone: answers hold all, "side by side" if in quotes; scores are shares of the best.',
        ),
    ] = False,
    literal: Annotated[
        bool,
        typer.Option(
            "--literal",
            help='Look for every word as it is: "in 2019" is no filter, "*2" no weight, and none is respelled.',
        ),
    ] = False,
    moments: Annotated[int, typer.Option(min=1, metavar="N", help="Show up to so many moments of one video.")] = 1,
    all_: Annotated[
        bool, typer.Option("--all", help="List every copy of a file; else copies are one answer, and counted.")
    ] = False,
    reranker: RerankerOption = None,
    json_: JsonOption = False,
    paths: Annotated[bool, typer.Option("--paths", help="Print paths only, one a line.")] = False,
    null: Annotated[bool, typer.Option("-0", help="With --paths: end each with a NUL, for xargs -0.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the best answer in the program for it.")] = False,
    index: IndexOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
) -> None:
    """Find pictures and texts by words, by pictures, or by both; without them, list files, newest first.

    The percentage of a line is how likely it is to match, and the word beside it what that means: clear, likely or
    weak. Unless -k says otherwise the best ten are shown, and the nearest five where not even the best is likely.

    A time ("in summer 2021") and what must not be there ("without people") are read out of the words, and shown. Where
    a question has several parts, a weight may end each of them: 'at night*2' --image 'a.jpg*0.5'.

    Example: mmsearch query 'a cat on a sofa' --not people --after 2021 -k 5
    """
    best = asking.query(
        " ".join(text) if text else None,
        image=image,
        like=like,
        without=without,
        k=k,
        offset=offset,
        kind=kind,
        under=under,
        after=after,
        before=before,
        min_prob=min_prob,
        only_clear=only_clear,
        no_rerank=no_rerank,
        candidates=candidates,
        exact=exact,
        literal=literal,
        moments=moments,
        all_=all_,
        reranker=reranker,
        json_=json_,
        paths=paths,
        null=null,
        open_=open_,
        index=index,
        model=model,
        device=device,
    )
    if best is not None:
        typer.launch(str(best))


def shell(**options: Any) -> None:
    """Answer one question after the other, a line each, and keep everything warm.

    Takes the options of `mmsearch query`, for all questions. Ctrl-D leaves. From a pipe it is `mmsearch query -`.

    Example: mmsearch shell --kind image
    """
    query([asking.STDIN], **options)


commands.command()(shell)
_OF_ONE = ("text", "open_")
"""What only a single question has."""


def _give_shell_its_options() -> None:
    """Those of ``query``, for all questions; reading them all takes some milliseconds, which only ``shell`` needs."""
    shared = [one for one in inspect.signature(query, eval_str=True).parameters.values() if one.name not in _OF_ONE]
    shell.__signature__ = inspect.Signature(shared)  # type: ignore[attr-defined]
    shell.__annotations__ = {one.name: one.annotation for one in shared}


@commands.command()
def explain(
    question: Annotated[str, typer.Argument(metavar="WORDS", help="What to look for in the picture.")],
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture, which need not be in an index.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Write to this file; else to PICTURE.explained.png, here.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="attention|occlusion", help="How the heat of all words together is made.")
    ] = None,
    json_: JsonOption = False,
    reranker: RerankerOption = None,
    index: IndexOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
) -> None:
    """Show which parts of a picture each word looks at.

    Prints how likely it is that the two match and, for each word, how much it counts and where it looks most; writes a
    PNG with the heat laid over the picture. With --json the maps are printed, and a PNG is written where --out says so.

    Example: mmsearch explain 'a dog in the snow' photo.jpg
    """
    from mmsearch import present
    from mmsearch.rerank.explain import explain_alone, show
    from mmsearch.rerank.explanation import METHOD, check_writable

    if out is None and not json_:
        out = Path(f"{picture.stem}.explained.png")
    if out is not None:
        check_writable(out, str(picture))
    if model is not None and index is None:  # the index of another model must not be in the way
        from indexer.encoders.load import load_encoder
        from mmsearch.rerank.load import load_reranker

        encoder = load_encoder(model, device)
        shown = show(picture, encoder.image_size)
        found = explain_alone(encoder, load_reranker(reranker, encoder), question, shown, method or METHOD)
    else:
        with _open(index, model, device, reranker) as library:
            found = library.explain(question, picture, method=method)
    if out is not None:
        found.save(out)
    if json_:
        print(json.dumps(found.as_dict()))
    else:
        print("\n".join(present.explanation_lines(found)))
    if out is not None:
        say(f"wrote {present.display_path(str(out))}")


@commands.command()
def show(
    hit: Annotated[str, typer.Argument(metavar="HIT", help="A moment, as it is listed, or FILE#t=START,END.")],
    frame: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Write its best frame to this picture.")
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(metavar="FILE.mp4", help="Write it to this video, from the key frame before it.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="With --clip: encode it again, so that it begins with the moment.")
    ] = False,
    index: IndexOption = None,
) -> None:
    """Take a moment of a video out of it, as a picture or as a video of its own.

    Example: mmsearch show 'holiday.mp4#t=83,95' --frame beach.png --clip beach.mp4
    """
    from mmsearch import showing

    if frame is None and clip is None:
        raise UsageError("nothing to make of it: name a picture with --frame, a video with --clip, or both")
    if exact and clip is None:
        raise UsageError("--exact goes with --clip")
    with _open(index) as library:
        moment = library.moment(hit)
    if frame is not None:
        showing.save_frame(moment, frame)
        say(f"wrote {frame}")
    if clip is not None:
        showing.save_clip(moment, clip, exact=exact)
        say(f"wrote {clip}")


@commands.command()
def duplicates(
    under: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Only below this folder; repeatable.")
    ] = None,
    index: IndexOption = None,
    json_: JsonOption = False,
) -> None:
    """List files that are the same, and pictures that nearly are; nothing is deleted.

    In three kinds of groups: identical (the same bytes), resaved (one picture saved, resized or encoded again), similar
    (shots of one thing, minutes apart). The best of each group comes first; the later kinds have only that one of a
    group of an earlier kind.

    Example: mmsearch duplicates --under ~/Pictures
    """
    from mmsearch import present

    with _open(index) as library:
        found = library.duplicates(under=under or ())
    if json_:
        print(json.dumps(found.as_dict(), indent=2))
    elif found.groups:
        print("\n".join(present.duplicates_lines(found)))
    else:
        say("nothing is there twice")
    if found.without_hash:
        say(
            f"of {found.without_hash:,} pictures it is not known how they look: an earlier version indexed them; "
            "'mmsearch index' of their folders finds it out"
        )


@commands.command()
def status(
    index: IndexOption = None,
    performance: Annotated[
        bool, typer.Option("--performance", help="Say instead how the last run that embedded pictures spent its time.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Say what is indexed, by which model, and what was skipped.

    Example: mmsearch status --json
    """
    from mmsearch import present

    with _open(index) as library:
        if performance:
            figures = library.performance()
            values = None if figures is None else figures.as_dict()
            lines = present.performance_lines(figures)
        else:
            found = library.status()
            values, lines = found.as_dict(), present.status_lines(found)
    print(json.dumps(values, indent=2) if json_ else "\n".join(lines))


@commands.command()
def remove(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Files and folders to forget.")],
    index: IndexOption = None,
) -> None:
    """Take files and folders out of the index; they stay on disk.

    Example: mmsearch remove ~/Pictures/private
    """
    with _open(index) as library:
        count = library.remove(*paths)
    if not count:
        say("nothing of that is in the index")
    print(f"{count:,} files removed from the index")


@commands.command()
def verify(index: IndexOption = None, json_: JsonOption = False) -> None:
    """Check vectors and rows against each other, and repair.

    Example: mmsearch verify
    """
    with _open(index) as library:
        report = library.verify()
    if json_:
        print(
            json.dumps({name: getattr(report, name) for name in report.__slots__} | {"sound": report.sound}, indent=2)
        )
    else:
        for line in report.repaired:
            print(f"repaired: {line}")
        for line in report.lost:
            print(f"lost: {line}")
        state = "all sound" if report.sound else f"{len(report.repaired)} repaired, {len(report.lost)} lost"
        print(f"{report.vectors:,} vectors checked: {state}")
    if report.lost:
        raise typer.Exit(1)


@commands.command()
def compact(index: IndexOption = None) -> None:
    """Give the space of removed files back.

    Example: mmsearch compact
    """
    with _open(index) as library:
        saved = library.compact()
    print(f"{max(saved, 0) / 1e6:,.1f} MB given back")


def _open(
    index: Path | None,
    model: str | None = None,
    device: str | None = None,
    reranker: str | None = None,
    precision: str | None = None,
) -> Any:
    import mmsearch

    return mmsearch.open(index, model=model, device=device, reranker=reranker, precision=precision)


def _report_values(report: UpdateReport | TokensReport) -> dict[str, Any]:
    values = {name: getattr(report, name) for name in report.__slots__}
    values["skipped"] = [{"path": s.path, "reason": s.reason} for s in report.skipped]
    from indexer.reports import UpdateReport

    if isinstance(report, UpdateReport):
        values["performance"] = None if report.performance is None else report.performance.as_dict()
    return values


def _version(value: bool) -> None:
    if value:
        from mmsearch import __version__

        print(f"mmsearch {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass
