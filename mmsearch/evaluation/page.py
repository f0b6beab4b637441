"""A comparison as one HTML page: the table, and the questions that changed most with their pictures side by side.

The page needs nothing else: pictures are in it as small JPEGs, there are no scripts, and what comes from the data is
escaped and may load nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

from indexer.errors import DecodeError
from mmsearch.evaluation.comparison import CAPTION, HEADINGS, Change, Comparison, cells
from mmsearch.evaluation.gallery import read_picture
from mmsearch.evaluation.retrieval import Answer

THUMBNAIL = 160
"""Pixels of the longer side."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1b1b1b }
table { border-collapse: collapse } td, th { padding: .15rem .7rem; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left } thead th { border-bottom: 1px solid #888 }
.note { color: #555; max-width: 50rem } article { border-top: 1px solid #bbb; padding: 1rem 0 }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem }
ol { display: flex; flex-wrap: wrap; gap: .6rem; list-style: none; padding: 0; margin: .4rem 0 }
li { border: 3px solid #ddd; padding: .3rem; max-width: 10.5rem; overflow-wrap: anywhere; font-size: .85rem }
li.right { border-color: #2a8a3e } img { display: block; max-width: 100% }
.better { color: #2a8a3e } .worse { color: #b3261e }
"""

if TYPE_CHECKING:
    from mmsearch.datasets import Picture

Thumbnail = Callable[[str], "str | None"]
"""From the name of a picture to a data URI; None for what is no picture or cannot be read."""


def page(comparison: Comparison, thumbnail: Thumbnail) -> str:
    """The whole page."""
    first, second = (escape(name) for name in comparison.names)
    title = f"{first} and {second} on {escape(comparison.data)}"
    changes = "\n".join(_change(change, comparison.names, thumbnail) for change in comparison.changes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>A: {first}</p>
<p>B: {second}</p>
{_table(comparison)}
<p class="note">{escape(CAPTION)}</p>
<h2>Questions that changed most</h2>
<p class="note">A green frame marks a right answer.</p>
{changes or "<p>No question has another rank.</p>"}
</body>
</html>
"""


def thumbnails(pictures: Mapping[str, Picture]) -> Thumbnail:
    """Thumbnails of ``pictures`` by their names; each is read when it is first asked for."""
    made: dict[str, str | None] = {}

    def thumbnail(name: str) -> str | None:
        if name not in made:
            made[name] = _data_uri(pictures[name]) if name in pictures else None
        return made[name]

    return thumbnail


def _data_uri(picture: Picture) -> str | None:
    try:
        image = read_picture(picture, THUMBNAIL)
    except (DecodeError, OSError):
        return None
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _table(comparison: Comparison) -> str:
    parts = []
    for way in dict.fromkeys(row.way for row in comparison.rows):
        body = "\n".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>"
            for row in comparison.rows
            if row.way == way
        )
        head = "".join(f"<th>{escape(heading)}</th>" for heading in (way, *HEADINGS))
        parts.append(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>")
    return "\n".join(parts)


def _change(change: Change, names: tuple[str, str], thumbnail: Thumbnail) -> str:
    asks_with_picture = change.question == change.picture
    question = "" if asks_with_picture else f"<h3>“{escape(change.question)}”</h3>"
    label = "the question" if asks_with_picture else "the right one"
    verdict = "better" if change.rank_b < change.rank_a else "worse"
    left = _side(names[0], change.rank_a, change.answers_a, thumbnail)
    right = _side(names[1], change.rank_b, change.answers_b, thumbnail)
    return f"""<article>
<p class="note">{escape(change.way)}: rank {change.rank_a:,} → <b class="{verdict}">{change.rank_b:,}</b></p>
{question}
<ol><li>{_picture(change.picture, thumbnail)}{label}</li></ol>
<div class="sides">
{left}
{right}
</div>
</article>"""


def _side(name: str, rank: int, answers: tuple[Answer, ...], thumbnail: Thumbnail) -> str:
    items = "".join(
        f'<li class="{"right" if answer.right else "other"}">{_picture(answer.name, thumbnail)}</li>'
        for answer in answers
    )
    return f"<section><h4>{escape(name)}: rank {rank:,}</h4><ol>{items}</ol></section>"


def _picture(name: str, thumbnail: Thumbnail) -> str:
    """A picture with its name for those who cannot see it, or a text."""
    source = thumbnail(name)
    shown = escape(name)
    return f'<img src="{source}" alt="{shown}" title="{shown}">' if source else f"<span>{shown}</span>"
