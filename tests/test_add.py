"""Pictures and texts from memory: in batches that they share, in order, each with its own vector or its reason."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_encoder import ColourCompressor, ColourEncoder, PatchColourEncoder, unit
from conftest import BLUE, GREEN, RED, SAMPLES
from PIL import Image, ImageFile, ImageOps

import mmsearch
from indexer import add as adding
from indexer.decode.image import decode_image, decode_opened
from indexer.encoders.mini import MiniEncoder
from indexer.errors import DecodeError, ModelError
from indexer.index import Index
from indexer.pipeline import update
from indexer.reading import IMAGE_BATCH
from indexer.streams import TEXT_BATCH
from indexer.types import Modality
from mmsearch import Addition, AddReport, SkippedAddition


class Counting(ColourEncoder):
    """Keeps the sizes of the batches that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[int] = []
        self.texts: list[int] = []

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        self.pictures.append(len(batch))
        return super().encode_prepared(batch)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.texts.append(len(texts))
        return super().encode_texts(texts)


class Streams(Counting):
    """Computes two batches side by side."""

    streams = 2


class Picky(Counting):
    """Takes no picture that is all black, and no text about nothing."""

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        if not batch.any(axis=(1, 2, 3)).all():
            raise ValueError("it is black")
        return super().encode_prepared(batch)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        if any("nothing" in text for text in texts):
            raise ValueError("it is about nothing")
        return super().encode_texts(texts)


def plain(rgb: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (9, 9), rgb)


def colour(n: int) -> tuple[int, int, int]:
    return (n * 37 % 256, n * 91 % 256, n * 151 % 256)


def vector(rgb: tuple[int, int, int]) -> list[float]:
    return unit(np.array([rgb]) / 255)[0].round(4).tolist()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def create(folder: Path, encoder: ColourEncoder) -> Index:
    return Index.create(folder, encoder=encoder.name, fingerprint=encoder.fingerprint, dim=encoder.dim)


def rows_of(index: Index, modality: Modality) -> list[tuple[str, list[float]]]:
    """The name or key of everything of one kind with its vector, in the order of the rows."""
    with index.snapshot() as snapshot:
        file = snapshot.vectors[modality]
        rows = sorted(set(range(file.rows)) - set(snapshot.dead[modality].tolist()))
        items = snapshot.reader.items_at(modality, rows)
        return [
            (Path(items[r].asset.path).name or str(items[r].asset.key), file.fetch(np.array([r]))[0].round(4).tolist())
            for r in rows
        ]


def without_time(report: AddReport) -> dict[str, Any]:
    values = report.as_dict()
    assert values.pop("seconds") > 0
    return {name: value for name, value in values.items() if value}


def reasons(report: AddReport) -> dict[str, str]:
    return {one.key: one.reason for one in report.skipped}


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "warming"), [(Counting, []), (Streams, [1])], ids=["one stream", "two streams"])
def test_pictures_go_to_the_model_in_batches(tmp_path: Path, kind: type[Counting], warming: list[int]) -> None:
    """Two batches and three more pictures; of several streams the first begins with one picture, as in update."""
    encoder = kind()
    colours = {f"{n:03}": colour(n) for n in range(2 * IMAGE_BATCH + 3)}
    with create(tmp_path / "index", encoder) as index:
        report = adding.add(index, encoder, [Addition(key, image=plain(rgb)) for key, rgb in colours.items()])
        assert without_time(report) == {"added": len(colours), "items": len(colours)}
        assert rows_of(index, Modality.IMAGE) == [(key, vector(rgb)) for key, rgb in colours.items()]
    assert sorted(encoder.pictures) == sorted([*warming, 3, IMAGE_BATCH, IMAGE_BATCH])


def test_a_single_batch_is_computed_by_all_cores(tmp_path: Path) -> None:
    """There is nothing to compute beside it, so no stream is set up for it, nor warmed."""
    encoder = Streams()
    with create(tmp_path / "index", encoder) as index:
        adding.add(index, encoder, [Addition(f"{n}", image=plain(colour(n))) for n in range(IMAGE_BATCH)])
    assert encoder.pictures == [IMAGE_BATCH]


def test_texts_share_batches(tmp_path: Path) -> None:
    encoder = Counting()
    with create(tmp_path / "index", encoder) as index:
        report = adding.add(index, encoder, [Addition(f"{n:03}", text="a red thing") for n in range(300)])
        assert without_time(report) == {"added": 300, "items": 300}
        assert rows_of(index, Modality.TEXT) == [(f"{n:03}", vector(RED)) for n in range(300)]
    assert encoder.texts == [TEXT_BATCH] * 4 + [300 - 4 * TEXT_BATCH]


def test_a_long_text_spans_batches_and_keeps_its_passages_together(tmp_path: Path) -> None:
    """A paragraph each: 150 passages of one text between two short ones, in three batches."""
    encoder = Counting()
    long = "\n\n".join(f"the {('red', 'green', 'blue')[n % 3]} thing that is number {n} of many" for n in range(150))
    texts = {"before": "a green thing", "long": long, "after": "a blue thing"}
    with create(tmp_path / "index", encoder) as index:
        report = adding.add(index, encoder, [Addition(key, text=text) for key, text in texts.items()])
        assert without_time(report) == {"added": 3, "items": 152}
        colours = [GREEN, *((RED, GREEN, BLUE)[n % 3] for n in range(150)), BLUE]
        names = ["before", *["long"] * 150, "after"]
        assert rows_of(index, Modality.TEXT) == [(n, vector(c)) for n, c in zip(names, colours, strict=True)]
    assert encoder.texts == [TEXT_BATCH, TEXT_BATCH, 152 - 2 * TEXT_BATCH]


def test_pictures_and_texts_in_turn_are_stored_in_their_order(tmp_path: Path) -> None:
    encoder = Streams()
    additions = [
        Addition(f"{n:03}", image=plain(colour(n))) if n % 2 else Addition(f"{n:03}", text="green") for n in range(200)
    ]
    with create(tmp_path / "index", encoder) as index:
        assert without_time(adding.add(index, encoder, additions)) == {"added": 200, "items": 200}
        with index.snapshot() as snapshot:
            keys = [snapshot.reader.asset(number).key for number in snapshot.reader.asset_ids(keys=_keys(additions))]
        assert rows_of(index, Modality.IMAGE) == [(f"{n:03}", vector(colour(n))) for n in range(1, 200, 2)]
        assert rows_of(index, Modality.TEXT) == [(f"{n:03}", vector(GREEN)) for n in range(0, 200, 2)]
    assert keys == _keys(additions)
    assert encoder.texts == [TEXT_BATCH, 100 - TEXT_BATCH]
    assert sorted(encoder.pictures) == sorted([1, *[IMAGE_BATCH] * (100 // IMAGE_BATCH), 100 % IMAGE_BATCH])


def _keys(additions: Sequence[Addition]) -> list[str]:
    return [addition.key for addition in additions]


def test_one_text_among_many_pictures_does_not_keep_them_from_being_stored(tmp_path: Path) -> None:
    """The model fails for good at the eleventh batch; 8 batches after the text it was not waited for any longer."""

    class Failing(Counting):
        def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
            if self.images_seen >= 10 * IMAGE_BATCH:
                raise ModelError("the model is gone")
            return super().encode_prepared(batch)

    encoder = Failing()
    pictures = [Addition(f"{n:03}", image=plain(colour(n))) for n in range(12 * IMAGE_BATCH)]
    with create(tmp_path / "index", encoder) as index:
        with pytest.raises(ModelError, match="the model is gone"):
            adding.add(index, encoder, [Addition("text", text="red"), *pictures])
        assert len(rows_of(index, Modality.IMAGE)) >= 8 * IMAGE_BATCH
        assert rows_of(index, Modality.TEXT) == [("text", vector(RED))]
        with index.writing() as writer:
            assert writer.verify().sound


def test_a_batch_that_does_not_fit_into_memory_is_halved(tmp_path: Path) -> None:
    class Small(Counting):
        def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
            if len(batch) > IMAGE_BATCH // 2:
                self.pictures.append(len(batch))
                raise MemoryError
            return super().encode_prepared(batch)

        def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
            if len(texts) > TEXT_BATCH // 2:
                self.texts.append(len(texts))
                raise MemoryError
            return super().encode_texts(texts)

    encoder = Small()
    pictures = [Addition(f"p{n}", image=plain(colour(n))) for n in range(IMAGE_BATCH)]
    texts = [Addition(f"t{n}", text="blue") for n in range(TEXT_BATCH)]
    with create(tmp_path / "index", encoder) as index:
        assert adding.add(index, encoder, [*pictures, *texts]).added == IMAGE_BATCH + TEXT_BATCH
        assert rows_of(index, Modality.IMAGE) == [(f"p{n}", vector(colour(n))) for n in range(IMAGE_BATCH)]
    assert encoder.pictures == [IMAGE_BATCH, IMAGE_BATCH // 2, IMAGE_BATCH // 2]
    assert encoder.texts == [TEXT_BATCH, TEXT_BATCH // 2, TEXT_BATCH // 2]


def test_pictures_are_prepared_in_other_threads_and_not_far_ahead(tmp_path: Path) -> None:
    """While the model is at the first batch, no more than its own and two further ones, and one a thread, are ready."""

    class Watched(ColourEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.prepared = 0
            self.ahead = 0
            self.threads: set[str] = set()

        def prepare(self, image: Image.Image) -> np.ndarray:
            self.prepared += 1
            self.threads.add(threading.current_thread().name)
            return super().prepare(image)

        def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
            self.ahead = max(self.ahead, self.prepared - self.images_seen)
            return super().encode_prepared(batch)

    encoder = Watched()
    with create(tmp_path / "index", encoder) as index:
        adding.add(index, encoder, [Addition(f"{n}", image=plain(colour(n))) for n in range(20 * IMAGE_BATCH)])
    assert all(name.startswith("mmsearch-read") for name in encoder.threads)
    # Of one stream: the batch that is computed, two that wait for it, one that is gathered, and what reads ahead.
    assert encoder.ahead <= 4 * IMAGE_BATCH + 2 * IMAGE_BATCH + 4


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_that_are_there_are_replaced_and_counted(library: mmsearch.Library) -> None:
    first = library.add([Addition("a", image=plain(RED)), Addition("b", text="a red thing")])
    assert without_time(first) == {"added": 2, "items": 2}
    second = library.add(
        [Addition("b", image=plain(GREEN)), Addition("a", text="blue\n\nand then green"), Addition("c", text="red")]
    )
    assert without_time(second) == {"added": 1, "updated": 2, "items": 4}
    index = library._need_index()
    assert rows_of(index, Modality.IMAGE) == [("b", vector(GREEN))]
    assert [name for name, _ in rows_of(index, Modality.TEXT)] == ["a", "a", "c"]
    assert library.verify().sound


@pytest.mark.parametrize("between", [0, IMAGE_BATCH, 3 * IMAGE_BATCH])
def test_of_a_key_that_occurs_twice_the_last_wins(tmp_path: Path, between: int) -> None:
    """In the same batch, or in another."""
    encoder = Streams()
    others = [Addition(f"{n:03}", image=plain(colour(n))) for n in range(between)]
    twice = [Addition("a", image=plain(RED)), *others, Addition("a", image=plain(BLUE))]
    with create(tmp_path / "index", encoder) as index:
        report = adding.add(index, encoder, twice)
        assert without_time(report) == {"added": between + 1, "updated": 1, "items": between + 2}
        expected = {"a": vector(BLUE)} | {f"{n:03}": vector(colour(n)) for n in range(between)}
        assert dict(rows_of(index, Modality.IMAGE)) == expected
        assert len(rows_of(index, Modality.IMAGE)) == between + 1
        with index.writing() as writer:
            assert writer.verify().sound


def test_what_cannot_be_taken_does_not_replace_what_is_there(library: mmsearch.Library) -> None:
    library.add([Addition("a", image=plain(RED))])
    report = library.add([Addition("a", text=" "), Addition("b", image=plain(BLUE)), Addition("b", text="")])
    assert without_time(report)["added"] == 1 and list(reasons(report)) == ["a", "b"]
    assert rows_of(library._need_index(), Modality.IMAGE) == [("a", vector(RED)), ("b", vector(BLUE))]


# -- one bad item ------------------------------------------------------------------------------------------------------


class Hostile:
    """A mapping that cannot be looked into."""

    def __iter__(self) -> Any:
        raise RuntimeError("no way in")


def truncated() -> Image.Image:
    return opened(saved(Image.effect_noise((64, 64), 90))[:900])


def closed() -> Image.Image:
    with opened(saved(plain(RED))) as image:
        return image


BAD: dict[str, tuple[Addition, str]] = {
    "no key": (Addition("", text="red"), "it has no key"),
    "a key that is none": (Addition(7, text="red"), "its key is a int; give a str"),  # type: ignore[arg-type]
    "half a character for a key": (Addition("\ud800", text="red"), "its key holds half of a surrogate pair at 0"),
    "neither": (Addition("bad"), "not exactly one of an image and a text"),
    "both": (Addition("bad", image=plain(RED), text="red"), "not exactly one of an image and a text"),
    "metadata": (Addition("bad", text="red", metadata={"when": object()}), "its metadata is not JSON: Object of type"),
    "metadata that raises": (Addition("bad", text="red", metadata=Hostile()), "not JSON: no way in"),  # type: ignore[arg-type]
    "image metadata": (Addition("bad", image=plain(RED), metadata={(1, 2): 3}), "its metadata is not JSON: keys must"),
    "no image": (Addition("bad", image="red.png"), "its image is a str; give a PIL.Image.Image"),  # type: ignore[arg-type]
    "truncated": (Addition("bad", image=truncated()), "the picture cannot be read: "),
    "closed": (Addition("bad", image=closed()), "the picture cannot be read: "),
    "empty image": (Addition("bad", image=Image.new("RGB", (0, 3))), "the picture has no pixels"),
    "black": (Addition("bad", image=plain((0, 0, 0))), "the model cannot take it: it is black"),
    "no text": (Addition("bad", text=b"red"), "its text is a bytes; give a str"),  # type: ignore[arg-type]
    "empty text": (Addition("bad", text=""), "its text is empty"),
    "no words": (Addition("bad", text=" \n\n "), "holds no words"),
    "not text": (Addition("bad", text="\x00\x01\x02" * 50), "not text"),
    "half a character": (Addition("bad", text="red \udc80"), "its text holds half of a surrogate pair at 4"),
    "nothing": (Addition("bad", text="red\n\nnothing at all of it"), "the model cannot take it: it is about nothing"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_item_is_named_and_the_others_are_stored(tmp_path: Path, kind: str) -> None:
    bad, reason = BAD[kind]
    encoder = Picky()
    good = [Addition("red", image=plain(RED)), Addition("blue", text="a blue thing")]
    with create(tmp_path / "index", encoder) as index:
        report = adding.add(index, encoder, [good[0], bad, good[1]])
        (skipped,) = report.skipped
        assert isinstance(skipped, SkippedAddition) and skipped.key == str(bad.key) and reason in skipped.reason
        assert (report.added, report.updated, report.items) == (2, 0, 2)
        assert rows_of(index, Modality.IMAGE) == [("red", vector(RED))]
        assert rows_of(index, Modality.TEXT) == [("blue", vector(BLUE))]
        alone = adding.add(index, encoder, [bad])
        assert (alone.added, alone.items, len(alone.skipped)) == (0, 0, 1)
        with index.writing() as writer:
            assert writer.verify().sound


def test_bad_items_are_named_in_their_order(tmp_path: Path) -> None:
    """The reasons are found at different times: at the door, in a thread, by the model."""
    names = list(BAD)
    bad = [Addition(name, a.image, a.text, a.metadata) for name, (a, _) in BAD.items() if a.key == "bad"]
    encoder = Picky()
    mixed = [one for n, a in enumerate(bad) for one in (Addition(f"{n}", image=plain(colour(n + 1))), a)]
    with create(tmp_path / "index", encoder) as index:
        report = adding.add(index, encoder, mixed)
    assert [one.key for one in report.skipped] == [name for name in names if BAD[name][0].key == "bad"]
    assert report.added == len(bad)
    assert json.loads(json.dumps(report.as_dict()))["skipped"][0] == {
        "key": "neither",
        "reason": "it is not exactly one of an image and a text; give one of them",
    }


def test_an_image_that_prepare_does_not_take_is_named(tmp_path: Path) -> None:
    class Unprepared(ColourEncoder):
        def prepare(self, image: Image.Image) -> np.ndarray:
            prepared = super().prepare(image)
            if prepared[2].all():
                raise RuntimeError("blue again")
            return prepared

    encoder = Unprepared()
    with create(tmp_path / "index", encoder) as index:
        report = adding.add(index, encoder, [Addition("blue", image=plain(BLUE)), Addition("red", image=plain(RED))])
        assert reasons(report) == {"blue": "it cannot be prepared for the model: RuntimeError: blue again"}
        assert rows_of(index, Modality.IMAGE) == [("red", vector(RED))]


@pytest.mark.parametrize(
    "additions", [Addition("a", text="red"), "red", {"a": "red"}, iter([]), [Addition("a", text="red"), "blue"]]
)
def test_what_is_no_sequence_of_additions_is_refused(library: mmsearch.Library, additions: Any) -> None:
    with pytest.raises(mmsearch.UsageError, match="a list of Addition can be added"):
        library.add(additions)
    assert library.query("red") == []


def test_nothing_to_add(library: mmsearch.Library) -> None:
    assert without_time(library.add([])) == {}


def test_a_model_that_fails_on_everything_ends_the_run(tmp_path: Path) -> None:
    encoder = Picky()
    with create(tmp_path / "index", encoder) as index:
        with pytest.raises(ModelError, match="it is black"):
            adding.add(index, encoder, [Addition(f"{n}", image=plain((0, 0, 0))) for n in range(3)])
        assert rows_of(index, Modality.IMAGE) == []


# -- as from a file ----------------------------------------------------------------------------------------------------


def test_the_vectors_and_tokens_are_those_of_the_files(tmp_path: Path, paint: Any) -> None:
    """Three batches in two streams, beside one stream over the files."""
    for n in range(2 * IMAGE_BATCH + 5):
        folder = paint(f"{n:03}.png", RED).parent
        image = plain(colour(n)).resize((30 + n, 40))
        image.paste(colour(n + 1), (0, 0, 12, 12))
        image.save(folder / f"{n:03}.png")

    class Encoder(PatchColourEncoder):
        streams = 2

    additions = [Addition(path.name, image=Image.open(path)) for path in sorted(folder.iterdir())]
    with create(tmp_path / "memory", Encoder()) as memory, create(tmp_path / "files", Encoder()) as files:
        report = adding.add(memory, Encoder(), additions, compressor=ColourCompressor())
        assert report.added == len(additions)
        update(files, PatchColourEncoder(), [folder], compressor=ColourCompressor())
        for name in ("image-00001.f32", "image-00001.tokens"):
            written = [(index.folder / "vectors" / name).read_bytes() for index in (memory, files)]
            assert written[0] == written[1] and len(set(written[0])) > 50
        assert rows_of(memory, Modality.IMAGE) == rows_of(files, Modality.IMAGE)


def test_photographs_by_the_embedded_model_are_those_of_the_files(tmp_path: Path) -> None:
    """The same pixels lead to the same vectors; as PNG, since a JPEG is shrunk while it is read from a file."""
    mini = MiniEncoder("cpu")
    paths = sorted((SAMPLES / "photos").glob("*.jpg"))[:4]
    (tmp_path / "photos").mkdir()
    for path in paths:
        with Image.open(path) as photo:
            photo.convert("RGB").save(tmp_path / "photos" / f"{path.stem}.png")
    with (
        mmsearch.open(tmp_path / "memory", model=mini) as memory,
        mmsearch.open(tmp_path / "files", model=mini) as files,
    ):
        files.index(tmp_path / "photos")
        memory.add([Addition(path.name, image=Image.open(path)) for path in sorted((tmp_path / "photos").iterdir())])
        found = [dict(rows_of(library._need_index(), Modality.IMAGE)) for library in (memory, files)]
        assert len(found[0]) == 4 and found[0].keys() == found[1].keys()
        for name, row in found[0].items():
            assert row == pytest.approx(found[1][name], abs=1e-3)


HALVES = Image.new("RGB", (16, 16), RED)
HALVES.paste(BLUE, (0, 8, 16, 16))


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(HALVES.resize((20, 10), Image.Resampling.NEAREST), exif=exif)


def _transparent() -> bytes:
    image = HALVES.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((16, 16)))
    return saved(image)


@pytest.mark.parametrize(
    "data",
    [
        saved(HALVES),
        _turned(),
        _transparent(),
        saved(HALVES.convert("P")),
        saved(HALVES.convert("LA")),
        saved(HALVES.convert("CMYK"), "TIFF"),
        saved(Image.fromarray(np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16))),
        saved(HALVES.resize((90, 70))),
    ],
    ids=["RGB", "turned", "transparent", "palette", "grey with alpha", "CMYK", "16 bits", "large"],
)
def test_what_pil_opened_is_what_its_file_is(data: bytes) -> None:
    expected, found = decode_image(data, size=8), decode_opened(opened(data), size=8)
    assert found.image.tobytes() == expected.image.tobytes() and found.image.mode == "RGB"
    assert (found.width, found.height, found.taken) == (expected.width, expected.height, expected.taken)


def test_what_the_caller_made_is_what_its_pixels_are() -> None:
    """Turned by hand, as one does who knows of the tag, which PIL leaves in the picture."""
    turned = opened(_turned())
    by_hand = turned.transpose(Image.Transpose.ROTATE_270)
    assert by_hand.getexif().get(0x0112) == 6
    assert decode_opened(by_hand, size=8).image.tobytes() == ImageOps.exif_transpose(turned).tobytes()


def test_a_picture_that_pil_opened_and_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.decode.image.MAX_PIXELS", 255)
    image = opened(saved(HALVES))
    monkeypatch.setattr(image, "load", lambda: pytest.fail("it was read"))
    with pytest.raises(DecodeError, match="too large: 16 x 16 pixels; the limit is 255"):
        decode_opened(image, size=8)


def test_a_picture_that_asks_is_what_its_file_is(library: mmsearch.Library, tmp_path: Path) -> None:
    """By its path, and opened by PIL; where it is cut short, that is said."""
    (tmp_path / "turned.png").write_bytes(_transparent())
    library.add([Addition("a", image=opened(_transparent()))])
    (by_path,) = library.query(image=tmp_path / "turned.png")
    assert library.query(image=opened(_transparent())) == [by_path]
    with pytest.raises(DecodeError, match="cannot be read"):
        library.query(image=truncated())


def test_one_picture_under_several_keys_is_read_by_one_thread_at_a_time(tmp_path: Path) -> None:
    class Slow(ImageFile.ImageFile):
        at_once = 0
        most = 0

        def _open(self) -> None:
            self._size, self._mode = (9, 9), "RGB"

        def load(self) -> Any:
            Slow.at_once += 1
            Slow.most = max(Slow.most, Slow.at_once)
            threading.Event().wait(0.01)
            Slow.at_once -= 1
            self.im = plain(GREEN).im
            return Image.Image.load(self)

    image = Slow(io.BytesIO(b"x"))
    encoder = ColourEncoder()
    with create(tmp_path / "index", encoder) as index:
        report = adding.add(index, encoder, [Addition(f"{n:02}", image=image) for n in range(20)])
        assert report.added == 20 and Slow.most == 1
        assert rows_of(index, Modality.IMAGE) == [(f"{n:02}", vector(GREEN)) for n in range(20)]


def test_the_files_of_pictures_that_pil_opened_are_closed(library: mmsearch.Library, photos: Path) -> None:
    images = {path.name: Image.open(path) for path in photos.glob("*.png")}
    assert all(image.fp is not None for image in images.values())
    assert library.add([Addition(key, image=image) for key, image in images.items()]).added == 3
    assert all(getattr(image, "fp", None) is None for image in images.values())


# -- several threads ---------------------------------------------------------------------------------------------------


def test_several_threads_add_at_once(tmp_path: Path) -> None:
    """One waits for the other or is told that the index is busy; what is reported as stored is."""
    encoder = ColourEncoder()
    create(tmp_path / "index", encoder).close()
    stored: list[str] = []
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for n in range(5):
                keys = [f"{name}{n}{i}" for i in range(4)]
                additions = [Addition(key, image=plain(RED)) for key in keys[:2]]
                additions += [Addition(key, text="a green thing") for key in keys[2:]]
                try:
                    assert library.add(additions).added == 4
                    stored.extend(keys)
                except mmsearch.IndexBusy:
                    continue
        except BaseException as exc:
            errors.append(exc)

    with mmsearch.open(tmp_path / "index", model=encoder) as library:
        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == [] and stored
        index = library._need_index()
        found = [key for m in (Modality.IMAGE, Modality.TEXT) for key, _ in rows_of(index, m)]
        assert sorted(found) == sorted(stored)
        assert library.verify().sound


def test_metadata_is_what_it_was_when_it_was_given(library: mmsearch.Library) -> None:
    """And a number for a name becomes a word, as JSON has it."""
    metadata: dict[Any, Any] = {"tags": ["a", "ü"], 1: None}
    library.add([Addition("k", text="red", metadata=metadata)])
    (hit,) = library.query("red")
    assert hit.metadata == {"tags": ["a", "ü"], "1": None}
