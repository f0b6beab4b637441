"""Misspelt words of a question, and questions in a language that the model does not know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from colour_encoder import ColourEncoder

import mmsearch
from indexer.words import stems
from mmsearch import asking
from mmsearch.language import foreign, is_english_only
from mmsearch.present import foreign_line, hits_json, understood_lines
from mmsearch.spelling import one_slip, respelled, with_words
from mmsearch.understanding import Understood

KNOWN = {"vet", "hound", "sari", "umbrella"}


class Speller(ColourEncoder):
    """A model to which a few words are one token and every other is one for each letter."""

    name = "mini"
    max_tokens = 400

    def count_tokens(self, text: str) -> int:
        return 2 + sum(1 if word in KNOWN else len(word) for word in text.split())


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[mmsearch.Library]:
    """Six texts in folders, one of them called Harvest."""
    texts = {
        "vet.txt": "The red dog was vaccinated against rabies.",
        "a.txt": "Two raccoons and a red harmonica, with umbrellas.",
        "b.txt": "The marmot and the marmot again.",
        "c.txt": "A marmot, and a carrot.",
        "Harvest/d.txt": "blue",
        "caf\u00e9.txt": "The Caf\u00e9 Florian in Piazza.",
    }
    for name, text in texts.items():
        (tmp_path / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / name).write_text(text)
    with mmsearch.open(tmp_path / "index", model=Speller()) as library:
        library.index(tmp_path / "notes")
        yield library


def read(library: mmsearch.Library, question: str) -> dict[str, str]:
    assert library._index is not None
    with library._index.catalogue.read() as reader:
        return respelled(question, reader, Speller())


# --- what is one slip away


def test_one_slip_by_hand() -> None:
    """Of "ab": "a" and "b", "ba", 50 with another letter and 76 with one more, "aa" and "bb" among the latter none."""
    near = one_slip("ab")
    assert {"a", "b", "ba", "ac", "zb", "abc", "xab", "axb"} <= near and len(near) == 2 + 1 + 50 + 76
    assert "ab" not in near and "abcd" not in near


def distance(one: str, other: str) -> int:
    """Damerau's distance (optimal string alignment), cell by cell."""
    rows = [[i + j if 0 in (i, j) else 0 for j in range(len(other) + 1)] for i in range(len(one) + 1)]
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            change = rows[i - 1][j - 1] + (one[i - 1] != other[j - 1])
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, change)
            if i > 1 and j > 1 and one[i - 2 : i] == other[j - 2 : j][::-1]:
                rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


def test_one_slip_agrees_with_the_distance() -> None:
    words = ["rabies", "rabeis", "rabie", "arbies", "rabiess", "rubies", "rabis", "babies", "ruby", "rabbies", "sabie"]
    for word in words:
        assert {other for other in words if other in one_slip(word)} == {w for w in words if distance(w, word) == 1}


# --- which words are taken for which


@pytest.mark.parametrize(
    ("question", "instead"),
    [
        ("vaccinated against rabeis", {"rabeis": "rabies"}),
        ("three raccooons, please", {"raccooons": "raccoons"}),
        ("dogz", {"dogz": "dog"}),
        ("xabies", {"xabies": "rabies"}),
        ("harmonika", {"harmonika": "harmonica"}),
        ("poeple on the baech", {"poeple": "people", "baech": "beach"}),
        ("umbrela", {"umbrela": "umbrella"}),
        ("harvets", {"harvets": "harvest"}),
        ("piaza", {"piaza": "piazza"}),
        ("flroian", {"flroian": "florian"}),
        ("marrot", {"marrot": "marmot"}),
    ],
)
def test_a_word_that_nobody_knows_is_asked_as_the_nearest(
    question: str, instead: dict[str, str], notes: mmsearch.Library
) -> None:
    assert read(notes, question) == instead


@pytest.mark.parametrize(
    "question",
    [
        "vaccination against rabies",  # stands there, in another form
        "hounds and the hound",  # the model knows it
        "walking people",  # is common English, in a form of its own
        "Rabeis RABEIS rabeiS",  # names
        "rabeis2 rab7eis 2024-113",  # codes
        "rabeis-free",
        '"rabeis" and “rabeis”',
        "dgo ct",  # too short
        "hund",  # four letters are a slip away from "hand" by chance
        "raccooon",  # only the plural of what is meant stands here
        "raebis",  # two slips
        "zzzzzzzz",
        "",
    ],
)
def test_words_that_stay_as_they_are(question: str, notes: mmsearch.Library) -> None:
    assert read(notes, question) == {}


def test_the_most_frequent_here_is_meant_and_of_two_alike_none(notes: mmsearch.Library, tmp_path: Path) -> None:
    """ "carmot" is a slip away from the marmot of two texts and from the carrot of one."""
    assert read(notes, "carmot") == {"carmot": "marmot"}
    (tmp_path / "notes" / "e.txt").write_text("carrot")
    notes.index(tmp_path / "notes")
    assert read(notes, "carmot") == {}


def test_other_words_stand_in_their_place() -> None:
    assert with_words('a rabeis-test, "rabeis": rabeis!', {"rabeis": "rabies"}) == 'a rabies-test, "rabeis": rabies!'


def test_words_are_known_by_their_stems(notes: mmsearch.Library) -> None:
    assert stems(["dogs", "dogged", "dog"]) == {"dog": ["dogs", "dogged", "dog"]}
    assert notes._index is not None
    begin_alike = [f"mar{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + [f"ma{i}" for i in range(20)]
    here = {"marmots": 2, "marmot": 2, "carrots": 1, "vaccination": 1, "harvests": 1}
    with notes._index.catalogue.read() as reader:
        assert reader.known([*here, "dragons"]) == here
        assert reader.known([*here, *begin_alike]) == here  # looked for side by side
        assert reader.known([]) == {}


# --- what is said


def test_the_question_says_what_it_was_asked_as(notes: mmsearch.Library) -> None:
    hits = notes.query("red rabeis in summer 2100 -blue", k=3)
    assert hits.understood == Understood("red rabies in summer 2100", ("blue",), respelled=(("rabeis", "rabies"),))
    plain = notes.query("red rabeis", k=3)
    assert plain == notes.query("red rabies", k=3) and plain.foreign is None
    assert plain.understood == Understood("red rabies", respelled=(("rabeis", "rabies"),))
    assert json.loads(hits_json(plain))["understood"]["respelled"] == {"rabeis": "rabies"}
    assert understood_lines(plain.understood) == ['asked as "rabies" (nothing here says "rabeis")']
    assert notes.query("red rabeis", literal=True).understood is None
    assert notes.query("red rabeis", exact=True).understood is None


def test_the_command_says_it_on_stderr(
    notes: mmsearch.Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mmsearch, "open", lambda *_, **__: notes)
    asking.query("rabeis", k=1)
    asking.query("ein Hund mit Ball", k=1)
    out, err = capsys.readouterr()
    assert 'mmsearch: asked as "rabies" (nothing here says "rabeis")\n' in err and "asked" not in out
    assert f"mmsearch: {foreign_line('German', 'mini')}\n" in err


# --- languages


ENGLISH = {
    "am",
    "strand",
    "a",
    "in",
    "the",
    "dog",
    "street",
    "of",
    "beach",
    "la",
    "on",
    "pain",
    "au",
    "der",
    "chocolate",
}


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("ein Hund am Strand", "German"),
        ("zwei hunde spielen im schnee", "German"),
        ("un chien sur la plage", "French"),
        ("perros jugando en la nieve", "Spanish"),
        ("NIÑOS EN LA PLAYA", "Spanish"),
        ("uomo con un cane", "Italian"),
        ("um cachorro na praia", "Portuguese"),
        ("een hond op het strand", "Dutch"),
        ("犬", "Chinese"),
        ("海の写真", "Japanese"),
        ("바다", "Korean"),
        ("собака на пляже", "Cyrillic letters"),
        ("σκύλος", "Greek"),
        ("a dog on the beach", None),
        ("hund", None),
        ("rue de la paix", None),
        ("las palmas de gran canaria", None),
        ("der dog", None),
        ("mit campus", None),
        ("2024-113", None),
        ("IMG_2041.jpg", None),
        ("Łódź Škoda", None),
        ("the chien of the street", None),
        ("", None),
    ],
)
def test_the_language_of_a_question(question: str, language: str | None) -> None:
    assert foreign(question, ENGLISH.__contains__, lambda _: False) == language


def test_words_that_stand_in_the_index_are_found_there() -> None:
    assert foreign("собака", ENGLISH.__contains__, {"собака"}.__contains__) is None
    assert foreign("ein Hund am Strand", ENGLISH.__contains__, {"ein", "hund"}.__contains__) is None


def test_which_models_know_english_only() -> None:
    english = ["mini", "ViT-B-32/laion2b_s34b_b79k", "ViT-L-14/openai"]
    others = ["xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", "nllb-clip-base/v1", "ViT-B-16-SigLIP2/webli"]
    unknown = ["/models/mine", "hf:owner/clip", "colours", "./run", "ViT-B-16-SigLIP-i18n-256/webli"]
    assert [is_english_only(model) for model in english + others + unknown] == [True] * 3 + [False] * 8


def test_a_model_that_may_know_the_language_is_not_accused(notes: mmsearch.Library) -> None:
    assert notes.query("ein Hund mit Ball", k=1).foreign == "German"
    assert notes.query("ein Hund mit Ball", k=1).as_dict()["foreign"] == "German"
    assert notes.query("ein Hund mit Ball", k=1, literal=True).foreign is None
    notes.questioner.name = "colours"
    assert notes.query("ein Hund mit Ball", k=1).foreign is None
