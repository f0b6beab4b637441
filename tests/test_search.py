"""Answers of the library, with an encoder whose every score can be worked out by hand."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_encoder import LINE, ColourEncoder, unit
from PIL import Image
from test_pipeline import counts

import mmsearch
from indexer.changes import Piece, Put
from indexer.encoders import Encoder
from indexer.index import Index
from indexer.reader import ReadCatalogue, Reader
from indexer.types import Asset, Modality
from mmsearch import background, calibration

pytestmark = pytest.mark.usefixtures("log_odds_alone")

Paint = Callable[..., Path]
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def names(hits: list[mmsearch.Hit]) -> list[str]:
    return [hit.path.name if hit.path else str(hit.key) for hit in hits]


def by_hand(cosine: float) -> float:
    """sigmoid(2 · (cosine - 0.5) / 0.1 - 6)"""
    return 1 / (1 + math.exp(-(2 * (cosine - 0.5) / 0.1 - 6)))


def test_the_colour_encoder_is_an_encoder() -> None:
    assert isinstance(ColourEncoder(), Encoder)


def test_words_find_pictures_and_texts_with_scores_worked_out_by_hand(library: mmsearch.Library, photos: Path) -> None:
    """ "red" against red is cosine 1; against green 0.5 · 0.5 / 1.25 = 0.2."""
    library.index(photos)
    hits = library.query("red", k=6)
    assert [h.rank for h in hits] == [1, 2, 3, 4, 5, 6]
    assert names(hits[:2]) == ["red.png", "notes.txt"]
    assert [h.score for h in hits] == pytest.approx([by_hand(1.0)] * 2 + [by_hand(0.2)] * 4, abs=1e-5)
    text = hits[1]
    assert (text.kind, text.text, text.lines) == ("text", "a red thing", mmsearch.Span(1, 1))
    assert hits[0].as_dict() == {
        "rank": 1,
        "score": round(by_hand(1.0), 6),
        "level": "clear",
        "reranked": False,
        "kind": "image",
        "path": str(photos / "red.png"),
    }


def test_a_picture_finds_pictures_and_the_texts_that_describe_it(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    by_path = library.query(image=photos / "green.png", k=2)
    by_image = library.query(image=Image.new("RGB", (50, 20), GREEN), k=2)
    assert names(by_path) == ["green.png", "notes.txt"]
    assert by_path[1].text == "a green thing"
    assert [h.item.id for h in by_path] == [h.item.id for h in by_image]
    assert [h.score for h in by_path] == pytest.approx([h.score for h in by_image])


def test_words_and_a_picture_ask_for_what_fits_both(library: mmsearch.Library, paint: Paint) -> None:
    for name, rgb in {"red": RED, "blue": BLUE, "violet": (255, 0, 255), "yellow": (255, 255, 0)}.items():
        folder = paint(f"{name}.png", rgb).parent
    library.index(folder)
    assert names(library.query("blue", image=folder / "red.png", k=1)) == ["violet.png"]
    assert names(library.query("green", image=folder / "red.png", k=1)) == ["yellow.png"]


def test_what_must_not_be_in_it_sinks_and_what_is_wanted_stays(library: mmsearch.Library, paint: Paint) -> None:
    for name, rgb in {"red": RED, "blue": BLUE, "violet": (255, 0, 255), "moss": (100, 150, 0)}.items():
        folder = paint(f"{name}.png", rgb).parent
    library.index(folder)
    assert names(library.query("red", k=2)) == ["red.png", "violet.png"]
    hits = library.query("red", without="blue", k=4)
    assert names(hits) == ["red.png", "moss.png", "violet.png", "blue.png"]
    # Red shows less blue than the four do on average, and is spared; violet shows more, and pays 3 for each deviation.
    assert hits[0].score == pytest.approx(by_hand(1.0), abs=1e-5)
    cosines = (
        unit(np.array([[0, 0, 1.0]])) @ unit(np.array([[1, 0, 0], [0, 0, 1], [1, 0, 1], [100 / 255, 150 / 255, 0]])).T
    )
    above = (cosines[0, 2] - cosines.mean()) / cosines.std()
    wanted = 2 * ((1 + 0.25) / math.sqrt(2.25 * 1.25) - 0.5) / 0.1 - 6
    assert hits[2].score == pytest.approx(1 / (1 + math.exp(-(wanted - 3 * above))), abs=1e-5)
    like_violet = folder / "violet.png"
    assert names(library.query(image=like_violet, without=["blue"], k=2)) == ["violet.png", "red.png"]
    assert names(library.query(image=like_violet, without=["red"], k=2)) == ["violet.png", "blue.png"]


def test_the_same_question_twice_gives_the_same_list_ties_included(library: mmsearch.Library, paint: Paint) -> None:
    for n in range(40):
        folder = paint(f"{n:02}.png", RED).parent
    library.index(folder)
    first = library.query("red", k=7, collapse=False)
    assert names(first) == [f"{n:02}.png" for n in range(7)]
    for _ in range(5):
        assert library.query("red", k=7, collapse=False) == first


def test_filters(library: mmsearch.Library, paint: Paint) -> None:
    for name in ("2020/a.png", "2021/a.png", "2021/b.png", "2021b/a.png"):
        folder = paint(name, RED).parent.parent
    (folder / "2021" / "a.txt").write_text("a red thing")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2001:02:03 04:05:06"
    Image.new("RGB", (9, 9), RED).save(folder / "2021" / "dated.jpg", exif=exif)
    for path in folder.rglob("*.*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))  # 13 September 2020
    os.utime(folder / "2020" / "a.png", (1_500_000_000, 1_500_000_000))  # 14 July 2017
    library.index(folder)

    def found(**asked: object) -> list[str]:
        hits = library.query("red", k=100, collapse=False, **asked)  # type: ignore[arg-type]
        return sorted(str(hit.path.relative_to(folder)) for hit in hits if hit.path)

    everything = ["2020/a.png", "2021/a.png", "2021/a.txt", "2021/b.png", "2021/dated.jpg", "2021b/a.png"]
    assert found() == everything
    assert found(kind="text") == ["2021/a.txt"]
    assert found(kind=["text", "image"]) == everything
    assert found(under=folder / "2021") == ["2021/a.png", "2021/a.txt", "2021/b.png", "2021/dated.jpg"]
    assert found(under=[folder / "2020", folder / "2021" / "b.png"]) == ["2020/a.png", "2021/b.png"]
    assert found(before="2010") == ["2021/dated.jpg"]
    assert found(after="2010", before="2018") == ["2020/a.png"]
    assert found(after="2001-02-03T04:05:06", before="2001-02-03T04:05:07") == ["2021/dated.jpg"]
    assert found(under=folder / "none") == []
    assert found(min_prob=0.999) == []


def test_thousands_of_paths_in_one_call(library: mmsearch.Library, paint: Paint) -> None:
    """As ``mmsearch query --paths -0 | xargs -0 mmsearch remove`` has them."""
    paths = [paint(f"{n}.png", RED, size=1) for n in range(300)]
    nowhere = [paths[0].parent / f"none{n}" for n in range(3000)]
    assert library.index(*paths).items == 300
    assert len(library.query("red", k=999, under=[*nowhere, *paths[:250]], collapse=False)) == 250
    assert library.remove(*nowhere, *paths[50:]) == 250
    left = names(library.query("red", k=999, collapse=False))
    assert sorted(left) == sorted(path.name for path in paths[:50])


def test_a_list_hides_nothing_unless_it_is_asked_to(library: mmsearch.Library, photos: Path) -> None:
    """Red matches with 0.982, green and blue with 0.000006; all are shown, and only the first two are clear."""
    library.index(photos)
    hits = library.query("red")
    assert len(hits) == 6 and names(hits)[:2] == ["red.png", "notes.txt"] and not hits.nothing_else_matches
    assert [hit.level for hit in hits] == ["clear", "clear", "weak", "weak", "weak", "weak"] and hits.clear
    assert [hit.probability for hit in hits] == [hit.score for hit in hits]
    assert hits.estimated_matches == pytest.approx(sum(hit.score for hit in hits))
    assert library.query("red", k=6) == hits == library.query("red", min_prob=0.0)
    for few in (library.query("red", k=6, min_prob=0.5), library.query("red", only_clear=True)):
        assert few == hits[:2] and few.nothing_else_matches
    assert library.query("red", k=1, min_prob=0.5).nothing_else_matches is False


def test_where_nothing_is_likely_the_nearest_five_are_shown(library: mmsearch.Library, photos: Path) -> None:
    """Black is as far from red as from green and blue."""
    library.index(photos)
    hits = library.query("black")
    assert len(hits) == 5 and {hit.level for hit in hits} == {"weak"} and not hits.clear
    assert hits == library.query("black", k=6)[:5]
    assert library.query("black", only_clear=True) == []


def test_nothing_matches_and_nothing_to_choose_from_are_two_things(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    nothing = library.query("red", min_prob=0.999)
    assert nothing == [] and nothing.nothing_else_matches
    empty = library.query("red", before="1900")
    assert empty == [] and not empty.nothing_else_matches
    assert nothing.as_dict() == {
        "hits": [],
        "clear": False,
        "estimated_matches": 2.0,
        "nothing_else_matches": True,
        "not_reranked": "there is no reranker for colours",
        "understood": None,
        "foreign": None,
    }
    assert empty.not_reranked is None


def test_more_answers_than_there_are(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    assert len({hit.item.id for hit in library.query("red", k=5000)}) == 6
    with pytest.raises(mmsearch.UsageError, match="k is 0"):
        library.query("red", k=0)


def test_nothing_indexed_yet(library: mmsearch.Library, tmp_path: Path) -> None:
    with pytest.raises(mmsearch.NoIndex, match="mmsearch index"):
        library.query("red")
    (tmp_path / "empty").mkdir()
    assert counts(library.index(tmp_path / "empty")) == {}
    assert library.query("red") == []


def test_the_picture_of_a_question_that_cannot_be_read(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    with pytest.raises(mmsearch.UsageError, match=r"no\.png.*No such file"):
        library.query(image=photos / "no.png")
    with pytest.raises(mmsearch.DecodeError, match=r"notes\.txt.*: not a picture"):
        library.query(image=photos / "notes.txt")


# -- from memory -------------------------------------------------------------------------------------------------------


def test_pictures_and_texts_from_memory_under_the_callers_keys(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    library.add(
        [
            mmsearch.Addition(
                "sku-1", image=Image.new("RGB", (9, 9), (255, 128, 0)), metadata={"price": 3, "tags": ["a"]}
            ),
            mmsearch.Addition("sku-2", text="a blue thing"),
        ]
    )
    orange = library.query(image=Image.new("RGB", (3, 3), (255, 128, 0)), k=1)[0]
    assert (orange.key, orange.path, orange.kind) == ("sku-1", None, "image")
    assert orange.metadata == {"price": 3, "tags": ["a"]}
    assert orange.as_dict()["key"] == "sku-1"
    assert "sku-2" in names(library.query("blue", k=3, kind="text"))
    assert counts(library.index(photos)) == {"unchanged": 4}
    assert library.query(image=Image.new("RGB", (3, 3), (255, 128, 0)), k=1)[0].key == "sku-1"


def test_adding_a_key_again_replaces_it(library: mmsearch.Library) -> None:
    library.add([mmsearch.Addition("a", image=Image.new("RGB", (9, 9), RED))])
    library.add([mmsearch.Addition("a", image=Image.new("RGB", (9, 9), BLUE))])
    (hit,) = library.query("blue")
    assert hit.key == "a" and hit.score == pytest.approx(by_hand(1.0), abs=1e-5)
    assert library.remove(keys=["a"]) == 1
    assert library.query("blue") == []
    assert library.verify().sound


# -- several threads ---------------------------------------------------------------------------------------------------


def test_questions_from_several_threads_while_the_index_changes(library: mmsearch.Library, paint: Paint) -> None:
    """A picture that is always there is always found, whatever is added, removed and compacted beside it."""
    folder = paint("keep/red.png", RED).parent
    library.index(folder)
    errors: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                best = library.query("red", k=1)[0]
                assert best.path == folder / "red.png"
                assert best.score == pytest.approx(by_hand(1.0), abs=1e-5)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(8):
            for n in range(20):
                other = paint(f"other/{turn}-{n}.png", (0, 12 * n, 31 * turn)).parent
            library.index(other)
            library.remove(other)
            library.compact()
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
    assert errors == [] and not any(thread.is_alive() for thread in threads)


# -- models ------------------------------------------------------------------------------------------------------------


def test_another_model_is_refused_and_the_index_stays(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)

    class Other(ColourEncoder):
        name = "others"
        fingerprint = "0ther"

    with mmsearch.open(library.folder, model=Other()) as other:
        (photos / "new.txt").write_text("a red thing")
        with pytest.raises(mmsearch.ModelMismatch, match="made by colours, not by others"):
            other.index(photos)
        with pytest.raises(mmsearch.ModelMismatch, match="made by colours, not by others"):
            other.query("red")
    with pytest.raises(mmsearch.ModelMismatch, match="made by colours, not by mini"):
        mmsearch.open(library.folder, model="mini")
    assert len(library.query("red", k=6)) == 6


def test_other_weights_under_the_same_name_are_noticed(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)

    class Newer(ColourEncoder):
        fingerprint = "newer"

    with (
        mmsearch.open(library.folder, model=Newer()) as newer,
        pytest.raises(mmsearch.ModelMismatch, match="colours with other weights"),
    ):
        newer.query("red")


def test_a_model_without_calibration_is_measured_on_the_index(tmp_path: Path, photos: Path) -> None:
    """Its own background, mini's slope and bias: for text→image, mean and spread of question · picture."""

    class Uncalibrated(ColourEncoder):
        calibration = None  # type: ignore[assignment]

        def encode_texts(self, texts):  # type: ignore[no-untyped-def]
            rng = np.random.default_rng(len(texts))
            if len(texts) == 1:
                return super().encode_texts(texts)
            rows = rng.standard_normal((len(texts), 4))
            return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    encoder = Uncalibrated()
    with mmsearch.open(tmp_path / "index", model=encoder) as library:
        library.index(photos)
        line = library.searcher().calibration[Modality.TEXT, Modality.IMAGE]
        pictures = encoder.encode_images([Image.new("RGB", (9, 9), rgb) for rgb in (RED, GREEN, BLUE)])
        cosines = encoder.encode_texts(calibration.everyday_questions()) @ pictures.T
        assert (line.mean, line.std) == pytest.approx((float(cosines.mean()), float(cosines.std())), abs=1e-6)
        assert names(library.query("red", k=1, kind="image")) == ["red.png"]


def test_what_was_measured_on_an_index_is_kept_and_measured_again_when_it_no_longer_holds(
    tmp_path: Path, photos: Path, paint: Callable[..., Path]
) -> None:
    class Uncalibrated(ColourEncoder):
        calibration = None  # type: ignore[assignment]

    def line() -> calibration.Line:
        with mmsearch.open(tmp_path / "index", model=Uncalibrated()) as library:
            return library.searcher().calibration[Modality.TEXT, Modality.IMAGE]

    with mmsearch.open(tmp_path / "index", model=Uncalibrated()) as library:
        library.index(photos)
    kept, file = line(), tmp_path / "index" / background.FILE
    values = json.loads(file.read_text())
    assert values["rows"] == 6
    assert values["lines"]["text->image"] == asdict(kept)
    values["lines"]["text->image"]["mean"] = 0.125
    file.write_text(json.dumps(values))
    assert line() == replace(kept, mean=0.125)  # read, and not measured
    for damaged in ("{", json.dumps(values | {"fingerprint": "another"}), json.dumps(values | {"rows": 13})):
        file.write_text(damaged)
        assert line() == kept
    file.write_text(json.dumps(values))
    for number in range(7):
        paint(f"more/{number}.png", (255 - number, 0, 0))
    with mmsearch.open(tmp_path / "index", model=Uncalibrated()) as library:
        library.index(photos)
    assert json.loads(file.read_text())["rows"] == 13
    assert line().mean not in (0.125, kept.mean)


@pytest.mark.parametrize("question", [{"text": "red"}, {"text": "red", "k": 20}, {"text": "red", "under": "/a"}])
def test_what_a_question_reads_of_the_catalogue_does_not_grow_with_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: dict[str, Any]
) -> None:
    """Hardly more steps of SQLite, and as many items, among 4,000 pictures as among 200; 31 are below /a."""
    steps, rows = [0], [0]
    connect, items_at = ReadCatalogue._connection, Reader.items_at

    def count_step() -> int:
        steps[0] += 1
        return 0

    def counting(self: ReadCatalogue) -> sqlite3.Connection:
        connection = connect(self)
        connection.set_progress_handler(count_step, 1)
        return connection

    def looked_up(self: Reader, modality: Modality, wanted: Sequence[int]) -> dict[int, mmsearch.Item]:
        rows[0] += len(wanted)
        return items_at(self, modality, wanted)

    monkeypatch.setattr(ReadCatalogue, "_connection", counting)
    monkeypatch.setattr(Reader, "items_at", looked_up)
    taken = []
    for count in (200, 4000):
        folder = tmp_path / str(count)
        rng = np.random.default_rng(1)
        vectors = unit(rng.random((count, 3)))
        with mmsearch.open(folder, model=ColourEncoder()) as library:
            library.add([mmsearch.Addition("note", text="a blue thing")])
        with Index.open(folder) as index, index.writing() as writer:
            for start in range(0, count, 200):
                writer.apply(
                    [
                        Put(
                            Asset(f"/{'ab'[i > 30]}/{i}.png", Modality.IMAGE, 1, 1, i.to_bytes(16, "big")),
                            [Piece(Modality.IMAGE)],
                            vectors[i, None],
                        )
                        for i in range(start, start + 200)
                    ]
                )
        with mmsearch.open(folder, model=ColourEncoder()) as library:
            library.query(**question)  # measures what it needs and keeps it
            steps[0] = rows[0] = 0
            assert len(library.query(**question)) == question.get("k", 10)
        taken.append((steps[0], rows[0]))
    (few_steps, few_rows), (many_steps, many_rows) = taken
    assert many_rows == few_rows <= 1 + question.get("k", 10)  # the note stands among the texts
    assert 100 < many_steps < 1.2 * few_steps


def test_calibration_equals_its_plain_twin() -> None:
    lines = calibration.read({"text->image": LINE})
    line = lines[Modality.TEXT, Modality.IMAGE]
    for cosine in (-1.0, 0.0, 0.3, 1.0):
        assert calibration.probability(line.gain * cosine + line.offset) == pytest.approx(by_hand(cosine))
    assert calibration.probability(-1000.0) == 0.0
    assert calibration.probability(1000.0) == 1.0
