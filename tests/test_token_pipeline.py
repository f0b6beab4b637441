"""Image tokens from files: each picture its own, made with its vector or later, whatever happens to the files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourCompressor, ColourEncoder, PatchColourEncoder
from conftest import BLUE, GREEN, RED, SAMPLES
from PIL import Image

from indexer import reading
from indexer.add import Addition, add
from indexer.changes import Remove
from indexer.decode import decode_image
from indexer.discover import Found
from indexer.encoders.mini import MiniEncoder
from indexer.errors import ModelError, ModelMismatch
from indexer.index import Index
from indexer.pipeline import add_tokens, update
from indexer.reading import IMAGE_BATCH
from indexer.reports import Progress, TokensReport
from indexer.tokens import TokenFormat, pack, unpack
from indexer.types import Modality

Paint = Callable[..., Path]


def tokens_of(index: Index) -> dict[str, list[list[float]] | None]:
    """The tokens of every picture, by its name or key; None where it has none."""
    with index.snapshot() as snapshot:
        rows = np.setdiff1d(np.arange(snapshot.state.rows[Modality.IMAGE]), snapshot.dead[Modality.IMAGE])
        items = snapshot.reader.items_at(Modality.IMAGE, rows.tolist())
        tokens, present = snapshot.tokens(rows)
        return {
            Path(items[row].asset.path).name or str(items[row].asset.key): (tokens[i].tolist() if present[i] else None)
            for i, row in enumerate(rows.tolist())
        }


def vectors_of(index: Index) -> bytes:
    with index.snapshot() as snapshot:
        return snapshot.vectors[Modality.IMAGE].matrix().tobytes()


def halves(upper: tuple[int, int, int], lower: tuple[int, int, int] | None = None) -> list[list[float]]:
    """The tokens of a picture in one colour, or in two, one above the other, as they come back from a file."""
    tokens = np.array([[*upper, 255], [*(lower or upper), 255]]) / 255
    found: list[list[float]] = unpack(pack(tokens[None]), ColourCompressor().format)[0].tolist()
    return found


def report_of(report: TokensReport) -> dict[str, int]:
    """What a report counts, without zeros and without time."""
    names = ("added", "present", "changed", "missing", "from_memory")
    found = {name: getattr(report, name) for name in names} | {"skipped": len(report.skipped)}
    return {name: count for name, count in found.items() if count}


@pytest.fixture
def encoder() -> PatchColourEncoder:
    return PatchColourEncoder()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index", encoder="colours", fingerprint="c0104125", dim=4) as index:
        yield index


def sound(index: Index) -> bool:
    with index.writing() as writer:
        return writer.verify().sound


# -- with the vectors --------------------------------------------------------------------------------------------------


def test_every_picture_has_its_own_tokens_with_broken_ones_in_between(
    index: Index, encoder: PatchColourEncoder, paint: Paint
) -> None:
    """75 pictures, a red half above one of its own grey, in three batches; every seventh is broken."""
    expected = {}
    for n in range(75):
        path = paint(f"{n:02}.png", RED)
        image = Image.new("RGB", (16, 16), RED)
        image.paste((n, n, n), (0, 8, 16, 16))
        image.save(path)
        if n % 7 == 3:
            path.write_bytes(path.read_bytes()[:40])
        else:
            expected[path.name] = halves(RED, (n, n, n))
    report = update(index, encoder, [path.parent], compressor=ColourCompressor())
    assert report.added == 64 and len(report.skipped) == 11
    assert tokens_of(index) == expected
    assert encoder.images_seen == 64  # one pass gives both
    assert sound(index)


def test_the_vectors_are_those_without_tokens(
    index: Index, tmp_path: Path, encoder: PatchColourEncoder, photos: Path
) -> None:
    update(index, encoder, [photos], compressor=ColourCompressor())
    with Index.create(tmp_path / "plain", encoder="colours", fingerprint="c0104125", dim=4) as plain:
        update(plain, ColourEncoder(), [photos])
        assert vectors_of(index) == vectors_of(plain)
        assert tokens_of(plain) == dict.fromkeys(["red.png", "green.png", "blue.png"])


def test_tokens_follow_changed_moved_copied_and_removed_files(
    index: Index, encoder: PatchColourEncoder, photos: Path
) -> None:
    update(index, encoder, [photos], compressor=ColourCompressor())
    seen = encoder.images_seen
    (photos / "red.png").rename(photos / "rouge.png")
    shutil.copy(photos / "blue.png", photos / "bleu.png")
    update(index, encoder, [photos], compressor=ColourCompressor())
    assert encoder.images_seen == seen
    expected = {
        "rouge.png": halves(RED),
        "green.png": halves(GREEN),
        "blue.png": halves(BLUE),
        "bleu.png": halves(BLUE),
    }
    assert tokens_of(index) == expected
    Image.new("RGB", (16, 16), (9, 9, 9)).save(photos / "green.png")
    (photos / "blue.png").unlink()
    update(index, encoder, [photos], compressor=ColourCompressor())
    assert tokens_of(index) == {"rouge.png": halves(RED), "green.png": halves((9, 9, 9)), "bleu.png": halves(BLUE)}
    blank = np.fromfile(index.folder / "vectors" / "image-00001.tokens", np.uint8).reshape(-1, 12)
    assert [row.any() for row in blank] == [False, False, True, True, True]  # blue, green as it was, red, bleu, green
    assert sound(index)


def test_without_a_compressor_new_pictures_have_no_tokens(
    index: Index, encoder: PatchColourEncoder, photos: Path, paint: Paint
) -> None:
    update(index, encoder, [photos], compressor=ColourCompressor())
    paint("grey.png", (9, 9, 9))
    update(index, encoder, [photos])
    assert tokens_of(index)["grey.png"] is None
    assert tokens_of(index)["red.png"] == halves(RED)


def test_an_index_with_pictures_and_no_tokens_stays_without(
    index: Index, encoder: PatchColourEncoder, photos: Path, paint: Paint
) -> None:
    update(index, encoder, [photos])
    paint("grey.png", (9, 9, 9))
    update(index, encoder, [photos], compressor=ColourCompressor())
    assert set(tokens_of(index).values()) == {None}
    with index.snapshot() as snapshot:
        assert snapshot.state.tokens is None


def test_an_index_whose_pictures_are_all_gone_takes_on_another_format(
    index: Index, encoder: PatchColourEncoder, photos: Path
) -> None:
    update(index, encoder, [photos], compressor=ColourCompressor())
    with index.writing() as writer:
        writer.apply([Remove([1, 2, 3])])
    update(index, encoder, [photos], compressor=ColourCompressor("0the4"))
    assert tokens_of(index)["red.png"] == halves(RED)
    with index.snapshot() as snapshot:
        assert snapshot.state.tokens is not None and snapshot.state.tokens.fingerprint == "0the4"


def test_tokens_of_another_compressor_are_refused_with_a_way_out(
    index: Index, encoder: PatchColourEncoder, photos: Path, paint: Paint
) -> None:
    update(index, encoder, [photos], compressor=ColourCompressor())
    paint("grey.png", (9, 9, 9))
    with pytest.raises(ModelMismatch, match=r"--add-tokens.*--no-tokens"):
        update(index, encoder, [photos], compressor=ColourCompressor("0the4"))
    with pytest.raises(ModelMismatch, match=r"--add-tokens"):
        add(index, encoder, [Addition("k", image=Image.new("RGB", (8, 8)))], compressor=ColourCompressor("0the4"))
    assert sorted(tokens_of(index)) == ["blue.png", "green.png", "red.png"]


def test_a_compressor_for_another_encoder_is_refused(index: Index, photos: Path) -> None:
    foreign = ColourCompressor()
    foreign.encoder = "m1n1"
    for encoder, compressor in ((PatchColourEncoder(), foreign), (ColourEncoder(), ColourCompressor())):
        for attempt in (
            lambda e=encoder, c=compressor: update(index, e, [photos], compressor=c),
            lambda e=encoder, c=compressor: add(index, e, [Addition("k", text="red")], compressor=c),
            lambda e=encoder, c=compressor: add_tokens(index, e, c),
        ):
            with pytest.raises(ModelMismatch, match="halves makes image tokens from the patches of another model"):
                attempt()
    assert tokens_of(index) == {}


def test_tokens_of_another_shape_than_the_format_says_end_the_run(
    index: Index, encoder: PatchColourEncoder, photos: Path
) -> None:
    compressor = ColourCompressor()
    compressor.format = TokenFormat("halves", "70e5", 2, 5)
    with pytest.raises(ModelError, match=r"shape \(3, 2, 4\) for 3 pictures; its format says 2 of 5"):
        update(index, encoder, [photos], compressor=compressor)
    assert sound(index)


def test_a_picture_whose_tokens_are_unusable_is_named(index: Index, encoder: PatchColourEncoder, photos: Path) -> None:
    class NoGreen(ColourCompressor):
        def compress(self, patches: np.ndarray) -> np.ndarray:
            tokens = super().compress(patches)
            tokens[tokens[:, 0, 1] > 0.9] = np.nan
            return tokens

    report = update(index, encoder, [photos], compressor=NoGreen())
    ((path, reason),) = [(one.path, one.reason) for one in report.skipped]
    assert path.endswith("green.png") and "unusable image tokens" in reason
    assert tokens_of(index) == {"red.png": halves(RED), "blue.png": halves(BLUE)}


def test_pictures_from_memory_get_tokens(index: Index, encoder: PatchColourEncoder) -> None:
    picture = Image.new("RGB", (16, 16), RED)
    picture.paste(BLUE, (0, 8, 16, 16))
    add(index, encoder, [Addition("flag", image=picture), Addition("t", text="red")], compressor=ColourCompressor())
    assert tokens_of(index) == {"flag": halves(RED, BLUE)}
    add(index, encoder, [Addition("flag", image=Image.new("RGB", (9, 9), GREEN))], compressor=ColourCompressor())
    assert tokens_of(index) == {"flag": halves(GREEN)}
    assert sound(index)


# -- afterwards --------------------------------------------------------------------------------------------------------


def test_tokens_are_added_and_the_vectors_are_not_touched(
    index: Index, encoder: PatchColourEncoder, photos: Path, tmp_path: Path
) -> None:
    update(index, encoder, [photos])
    before = vectors_of(index)
    seen: list[Progress] = []
    report = add_tokens(index, encoder, ColourCompressor(), seen.append)
    assert report_of(report) == {"added": 3}
    assert [(p.done, p.total, p.skipped, Path(p.path).name) for p in seen] == [
        (1, 3, 0, "blue.png"),
        (2, 3, 0, "green.png"),
        (3, 3, 0, "red.png"),
    ]
    assert vectors_of(index) == before
    assert tokens_of(index) == {"red.png": halves(RED), "green.png": halves(GREEN), "blue.png": halves(BLUE)}
    assert sound(index)
    assert report_of(add_tokens(index, encoder, ColourCompressor())) == {"present": 3}
    with Index.create(tmp_path / "at-once", encoder="colours", fingerprint="c0104125", dim=4) as at_once:
        update(at_once, encoder, [photos], compressor=ColourCompressor())
        files = [folder / "vectors" / "image-00001.tokens" for folder in (index.folder, at_once.folder)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_only_what_is_as_it_was_gets_tokens(index: Index, encoder: PatchColourEncoder, photos: Path) -> None:
    """One picture was painted over, one is gone, one broken, one only touched, one came from memory."""
    Image.new("RGB", (16, 16), (9, 9, 9)).save(photos / "grey.png")
    update(index, encoder, [photos])
    add(index, encoder, [Addition("mine", image=Image.new("RGB", (8, 8)))])
    Image.new("RGB", (16, 16), BLUE).save(photos / "red.png")
    (photos / "green.png").unlink()
    (photos / "grey.png").write_bytes(b"")
    os.utime(photos / "blue.png", (1, 1))
    report = add_tokens(index, encoder, ColourCompressor())
    assert report_of(report) == {"added": 1, "changed": 1, "missing": 1, "from_memory": 1, "skipped": 1}
    assert [(Path(one.path).name, one.reason) for one in report.skipped] == [("grey.png", "the file is empty")]
    assert {name for name, tokens in tokens_of(index).items() if tokens} == {"blue.png"}
    with index.snapshot() as snapshot:
        assert snapshot.reader.skipped() == []  # what becomes of them is for the next update to say
    update(index, encoder, [photos], compressor=ColourCompressor())
    assert tokens_of(index) == {"blue.png": halves(BLUE), "red.png": halves(BLUE), "mine": None}


def test_tokens_of_another_compressor_are_replaced(index: Index, encoder: PatchColourEncoder, photos: Path) -> None:
    class Upside(ColourCompressor):
        def compress(self, patches: np.ndarray) -> np.ndarray:
            return super().compress(patches)[..., ::-1]

    update(index, encoder, [photos], compressor=ColourCompressor())
    before = vectors_of(index)
    assert report_of(add_tokens(index, encoder, Upside("0the4"))) == {"added": 3}
    assert tokens_of(index)["red.png"] == [token[::-1] for token in halves(RED)]
    assert vectors_of(index) == before
    assert sound(index)


def test_a_run_that_is_interrupted_carries_on(index: Index, encoder: PatchColourEncoder, paint: Paint) -> None:
    """Ctrl-C in the third of four batches: the first two are there, and the next run makes only the rest."""
    for n in range(4 * IMAGE_BATCH):
        folder = paint(f"{n:03}.png", (n, 0, 0)).parent
    update(index, encoder, [folder])

    class Interrupted(ColourCompressor):
        batches = 0

        def compress(self, patches: np.ndarray) -> np.ndarray:
            self.batches += 1
            if self.batches == 3:
                raise KeyboardInterrupt
            return super().compress(patches)

    with pytest.raises(KeyboardInterrupt):
        add_tokens(index, encoder, Interrupted())
    assert sum(tokens is not None for tokens in tokens_of(index).values()) == 2 * IMAGE_BATCH
    assert sound(index)
    assert report_of(add_tokens(index, encoder, ColourCompressor())) == {"added": 64, "present": 64}
    assert tokens_of(index) == {f"{n:03}.png": halves((n, 0, 0)) for n in range(4 * IMAGE_BATCH)}


def test_a_compressor_that_fails_on_everything_ends_the_run(
    index: Index, encoder: PatchColourEncoder, photos: Path
) -> None:
    class Broken(ColourCompressor):
        def compress(self, patches: np.ndarray) -> np.ndarray:
            raise RuntimeError("out of luck")

    update(index, encoder, [photos])
    with pytest.raises(ModelError, match="fails on every file: out of luck"):
        add_tokens(index, encoder, Broken())
    assert sound(index)


def test_a_file_that_vanishes_on_the_way_is_counted(
    index: Index, encoder: PatchColourEncoder, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(index, encoder, [photos])
    original = reading.read_file

    def delete_and_read(found: Found, *rest: object, **options: object) -> object:
        if found.path.endswith("green.png"):
            Path(found.path).unlink()
        return original(found, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("indexer.add_tokens.read_file", delete_and_read)
    assert report_of(add_tokens(index, encoder, ColourCompressor())) == {"added": 2, "missing": 1}


# -- with the embedded model -------------------------------------------------------------------------------------------


class RandomCompressor:
    """16 tokens of 32 numbers: mini's patches, mixed and narrowed by fixed random matrices."""

    def __init__(self, encoder: MiniEncoder) -> None:
        rng = np.random.default_rng(7)
        self.encoder = encoder.fingerprint
        self.format = TokenFormat("random", "7a4d", 16, 32)
        self._mix = rng.standard_normal((16, 81)).astype(np.float32) / 9
        self._narrow = rng.standard_normal((352, 32)).astype(np.float32) / 18

    def compress(self, patches: np.ndarray) -> np.ndarray:
        tokens: np.ndarray = self._mix @ patches @ self._narrow
        return tokens


def test_tokens_of_photographs_by_the_embedded_model(tmp_path: Path) -> None:
    mini = MiniEncoder("cpu")
    compressor = RandomCompressor(mini)
    paths = sorted((SAMPLES / "photos").glob("*.jpg"))[:3]
    with Index.create(tmp_path / "i", encoder="mini", fingerprint=mini.fingerprint, dim=mini.dim) as index:
        update(index, mini, paths, compressor=compressor)
        assert sound(index)
        with index.snapshot() as snapshot:
            rows = np.arange(3)
            items = snapshot.reader.items_at(Modality.IMAGE, rows.tolist())
            tokens, present = snapshot.tokens(rows)
            vectors = snapshot.vectors[Modality.IMAGE].fetch(rows)
        assert present.all()
        for row in rows.tolist():
            picture = decode_image(Path(items[row].asset.path).read_bytes(), size=mini.image_size).image
            alone, patches = mini.encode_prepared_patches(mini.prepare(picture)[None])
            expected = compressor.compress(patches)[0]
            step = np.abs(expected).max(axis=1, keepdims=True) / 127
            assert (np.abs(tokens[row] - expected) < 0.6 * step).all()
            assert vectors[row] == pytest.approx(alone[0], abs=1e-5)
        assert np.abs(tokens[0] - tokens[1]).max() > 1  # the photographs do differ: the test could fail
