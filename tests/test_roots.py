"""Roots: the names of files in the word search begin below what was indexed, wherever that lies."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from colour_encoder import ColourEncoder

import mmsearch

Paint = Callable[..., Path]


@pytest.fixture
def lake(paint: Paint) -> Path:
    """A folder with ``north/boat.png`` and ``north/shore/notes.txt``."""
    folder = paint("lake/north/boat.png", (255, 0, 0)).parent
    (folder / "shore").mkdir()
    (folder / "shore" / "notes.txt").write_text("a red thing by the water")
    return folder.parent


def folders(library: mmsearch.Library) -> dict[str, str]:
    """What the word search holds of the folders of each file, by its name."""
    with sqlite3.connect(library.folder / "catalogue.db") as database:
        found = dict(database.execute("SELECT name, folders FROM names"))
    database.close()
    return found


def roots(library: mmsearch.Library) -> set[str]:
    with sqlite3.connect(library.folder / "catalogue.db") as database:
        found = {path.decode() for (path,) in database.execute("SELECT path FROM roots")}
    database.close()
    return found


def test_the_same_library_in_two_places_gives_the_same_scores(tmp_path: Path, lake: Path) -> None:
    other = tmp_path / "garmisch" / "north shore boat"
    shutil.copytree(lake, other)
    answers = []
    for n, folder in enumerate((lake, other)):
        with mmsearch.open(tmp_path / f"index-{n}", model=ColourEncoder()) as library:
            library.index(folder)
            found = []
            for question in ("boat", "north", "shore", "garmisch", "red boat by the shore", "lake"):
                hits = library.query(question, k=9)
                exact = library.query(question, k=9, exact=True)
                found.append([(hit.path.relative_to(folder), hit.score) for hit in (*hits, *exact) if hit.path])
            answers.append(found)
    assert answers[0] == answers[1]
    assert [path.name for path, _ in answers[0][2][:1]] == ["notes.txt"]  # a folder below the root speaks for its files
    assert len(answers[0][3]) == 2 and len(answers[0][0]) == 3  # "garmisch" is no word of it, "boat" of one file


def test_of_two_roots_the_outer_one_counts_whichever_came_first(library: mmsearch.Library, lake: Path) -> None:
    inner = lake / "north"
    library.index(inner)
    assert folders(library) == {"boat.png": "", "notes.txt": "shore"}
    library.index(inner / "shore" / "notes.txt")
    assert roots(library) == {str(inner)}
    library.index(lake)
    both = {"boat.png": "north", "notes.txt": "north shore"}
    assert (folders(library), roots(library)) == (both, {str(lake)})
    library.index(inner)
    assert (folders(library), roots(library)) == (both, {str(lake)})
    assert library.verify().sound


def test_a_file_that_moves_or_is_named_alone(library: mmsearch.Library, lake: Path, paint: Paint) -> None:
    library.index(lake)
    (lake / "south").mkdir()
    (lake / "north" / "boat.png").rename(lake / "south" / "boat.png")
    library.index(lake)
    assert folders(library)["boat.png"] == "south"
    library.index(paint("alone/blue.png", (0, 0, 255)))
    assert folders(library)["blue.png"] == ""
    library.index(lake.parent)
    assert folders(library) == {"boat.png": "lake south", "notes.txt": "lake north shore", "blue.png": "alone"}


def test_a_root_is_forgotten_with_what_was_below_it(library: mmsearch.Library, lake: Path) -> None:
    library.index(lake)
    library.remove(lake / "north")
    assert roots(library) == {str(lake)}
    library.remove(lake)
    assert roots(library) == set()


def test_an_index_from_before_there_were_roots(library: mmsearch.Library, lake: Path) -> None:
    """Every folder counts, as it did, until it is indexed again."""
    library.index(lake)
    library.close()
    with sqlite3.connect(library.folder / "catalogue.db") as database:
        database.execute("DROP TABLE roots")
        database.execute("UPDATE names SET folders = 'photos lake ' || folders")
    database.close()
    with mmsearch.open(library.folder, model=ColourEncoder()) as old:
        assert len(old.query("lake north", exact=True)) == 2
        old.index(lake)
        assert folders(old) == {"boat.png": "north", "notes.txt": "north shore"}
        assert old.query("lake north", exact=True) == [] and old.verify().sound
