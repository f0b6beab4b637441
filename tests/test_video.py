"""Videos on real files: clips, times, subtitles, moments; resumed, moved, changed, truncated, and not videos at all."""

from __future__ import annotations

import io
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from colour_encoder import ColourCompressor, ColourEncoder, PatchColourEncoder
from moving import Scene, picture, srt, write
from PIL import Image
from test_pipeline import counts
from test_survival import start

import mmsearch
from indexer import pooling
from indexer.decode import Passage, Picture, Source, decode, still
from indexer.decode.ahead import ahead
from indexer.errors import DecodeError
from indexer.index import Index
from indexer.pipeline import add_tokens, update
from indexer.types import Asset, Item, Modality, Span
from indexer.writer import IndexWriter
from mmsearch import moments, showing
from mmsearch.hits import Hit
from mmsearch.query import parse_query
from mmsearch.things import Scored

pytestmark = pytest.mark.slow(reason="encodes and decodes videos")

RED, GREEN, BLUE, YELLOW = (255, 30, 30), (30, 255, 30), (30, 30, 255), (250, 250, 30)
SCENES = [Scene(RED, 4), Scene(GREEN, 6), Scene(BLUE, 5, dissolve=1), Scene(RED, 3)]
CUTS = [4.0, 10.5, 15.0]


def source(path: Path, told: list[str] | None = None, stored: int = 0, last: Span | None = None) -> Source:
    encoder = ColourEncoder()
    report = [] if told is None else told
    return Source(
        str(path),
        io.BytesIO(path.read_bytes()),
        path.suffix,
        encoder.prepare,
        encoder.image_size,
        encoder.max_tokens,
        encoder.count_tokens,
        report.append,
        stored,
        last,
    )


def clips(path: Path, told: list[str] | None = None) -> list[Picture]:
    return [piece for piece in decode(source(path, told)) if isinstance(piece, Picture)]


def bounds(pictures: list[Picture]) -> list[tuple[float, float]]:
    return [(p.span.start or 0.0, p.span.end or 0.0) for p in pictures]


def edges(path: Path) -> list[float]:
    return [start for start, _ in bounds(clips(path))]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("film") / "film.mp4", SCENES, sound=True)


# -- decoding ----------------------------------------------------------------------------------------------------------


def test_a_clip_for_each_shot(film: Path) -> None:
    found = clips(film)
    assert [start for start, _ in bounds(found)] == pytest.approx([0, *CUTS], abs=0.4)
    assert [end for _, end in bounds(found)] == pytest.approx([*CUTS, 18], abs=0.4)
    colours = [np.mean(p.frames, axis=(0, 2, 3)).argmax() for p in found]
    assert colours == [0, 1, 2, 0]
    assert all(start < time < end for p, (start, end) in zip(found, bounds(found), strict=True) for time in p.times)


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.ts", "a.mov", "a.gif", "a.webm"])
def test_every_container(tmp_path: Path, name: str) -> None:
    codec = {"gif": "gif", "webm": "libvpx-vp9"}.get(name[2:], "mpeg4" if name == "a.avi" else "libx264")
    path = write(tmp_path / name, [Scene(RED, 3), Scene(GREEN, 3)], codec=codec)
    assert edges(path) == pytest.approx([0, 3], abs=0.3)
    assert bounds(clips(path))[-1][1] == pytest.approx(6, abs=0.3)


def test_an_animated_webp_and_a_still_one(tmp_path: Path, library: mmsearch.Library) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shown = [Image.fromarray(picture(rgb)) for rgb in (RED, GREEN)]
    shown[0].save(folder / "moves.webp", save_all=True, append_images=shown[1:], duration=[3000, 2000])
    shown[1].save(folder / "still.webp")
    shown[0].save(folder / "moves.gif", save_all=True, append_images=shown[1:], duration=[3000, 2000])
    shown[1].save(folder / "still.gif")
    for name in ("moves.webp", "moves.gif"):
        assert edges(folder / name) == pytest.approx([0, 3], abs=0.3)
    report = library.index(folder)
    assert report.skipped == () and report.added == 4
    assert library.status().files == {"image": 2, "video": 2, "text": 0}
    assert library.status().items == {"image": 2, "video": 4, "text": 0}
    assert counts(library.index(folder)) == {"unchanged": 4}


def test_times_follow_the_clock_of_the_file_not_its_frame_rate(tmp_path: Path) -> None:
    scenes = [Scene(RED, 2), Scene(GREEN, 2)]
    times = [n / 4 for n in range(24)] + [6 + n / 12 for n in range(24)]  # 4 frames a second, then 12
    path = write(tmp_path / "a.mp4", scenes, times=times)
    assert edges(path) == pytest.approx([0, 6], abs=0.3)


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])  # the latter does not say how long it is
def test_progress_moves_with_the_time_of_a_video(tmp_path: Path, library: mmsearch.Library, name: str) -> None:
    path = write(tmp_path / name, [Scene(c, 2) for c in (RED, GREEN, BLUE, RED)])
    seen: list[tuple[int, float]] = []
    library.index(path, progress=lambda p: seen.append((p.done, p.share)))
    assert [done for done, _ in seen] == [0, 0, 0, 0, 1]
    assert [share for _, share in seen] == pytest.approx([0.25, 0.5, 0.75, 1, 0], abs=0.05)


def test_a_slide_show_with_seconds_between_its_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", [Scene(c, 1) for c in (RED, GREEN, BLUE)], fps=1, times=[0, 5, 12])
    assert edges(path) == pytest.approx([0, 5, 12], abs=0.3)


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [Scene(RED, 1)])
    flat = still(str(path), ".mp4", Span(best=0.5), 100)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix: a b u, c d v, x y w, 16.16 and 2.30
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30)  # by 90 degrees
    path.write_bytes(data)
    turned = still(str(path), ".mp4", Span(best=0.5), 100)
    assert (flat.size, turned.size) == ((96, 64), (64, 96))
    difference = np.asarray(turned, int) - np.asarray(flat.rotate(-90, expand=True), int)  # clockwise
    assert np.abs(difference).mean() < 2


def test_blank_frames_are_frames_of_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [Scene((0, 0, 0), 3), Scene(RED, 3), Scene((0, 0, 0), 3)])
    assert bounds(clips(path)) == [pytest.approx((3, 6), abs=0.3)]
    with pytest.raises(DecodeError, match="every frame of it is blank"):
        clips(write(tmp_path / "b.mp4", [Scene((0, 0, 0), 3)]))


def test_a_long_still_shot_becomes_clips_of_bounded_length(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [Scene(RED, 130)], fps=5)
    assert bounds(clips(path)) == [(0, 60), (60, 120), (120, 130)]
    assert [len(clip.frames) for clip in clips(path)] == [1, 1, 1]


def test_what_is_no_video_is_said(tmp_path: Path, film: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{film}'\n")
    (tmp_path / "list.mkv").write_text(f"#EXTM3U\n#EXTINF:5,\n{film}\n#EXT-X-ENDLIST\n")
    for name in ("noise.mp4", "list.mp4", "list.mkv"):
        with pytest.raises(DecodeError, match="cannot be opened as a video"):
            clips(tmp_path / name)


def test_a_file_that_ends_early_gives_what_it_has(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mkv", SCENES)
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    told: list[str] = []
    found = bounds(clips(tmp_path / "cut.mkv", told))
    assert found[0] == pytest.approx((0, 4), abs=0.3)
    assert 4 < found[-1][1] < 14
    assert "cut short: it says 18 s" in told[0]


def test_decoding_goes_on_where_it_was_left(tmp_path: Path) -> None:
    scenes = [Scene(rgb, 5, dissolve=d) for rgb, d in zip([RED, GREEN, BLUE, YELLOW] * 3, (0, 1, 0) * 4, strict=True)]
    path = write(tmp_path / "a.mp4", scenes)
    whole = clips(path)
    assert len(whole) == 12
    for n in (1, 2, 5, 11):
        span = whole[n - 1].span
        stored = Span(start=span.start, end=span.end, best=span.start)
        rest = [piece for piece in decode(source(path, stored=n, last=stored)) if isinstance(piece, Picture)]
        assert [(p.span, p.times) for p in rest] == [(p.span, p.times) for p in whole[n:]]
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(rest, whole[n:], strict=True))


MEDIA = Path(__file__).with_name("media")


def test_real_videos() -> None:
    """Theora in Ogg, 1906, with one change of scene after 5.4 seconds; MPEG-2 with sound, one shot."""
    assert bounds(clips(MEDIA / "grand-prix.ogv")) == [
        pytest.approx((0, 5.4), abs=0.3),
        pytest.approx((5.4, 19.2), abs=0.3),
    ]
    assert bounds(clips(MEDIA / "hello.mpeg")) == [pytest.approx((0, 3), abs=0.2)]


# -- subtitles ---------------------------------------------------------------------------------------------------------

CUES = [(1.0, 2.5, "A red"), (2.6, 3.5, "balloon, <i>he</i> said."), (8.0, 9.0, "Green &amp; calm")]


def passages(path: Path) -> list[tuple[float | None, float | None, str]]:
    found = [piece for piece in decode(source(path)) if isinstance(piece, Passage)]
    assert all(passage.source == "subtitle" for passage in found)
    return [(passage.span.start, passage.span.end, passage.text) for passage in found]


def test_subtitles_become_passages_of_neighbouring_cues(tmp_path: Path) -> None:
    expected = [(1.0, 3.5, "A red balloon, he said."), (8.0, 9.0, "Green & calm")]
    (tmp_path / "a.srt").write_text(srt(CUES), encoding="utf-16")
    (tmp_path / "a.vtt").write_text("WEBVTT\n\nNOTE none\n\n" + re.sub(r"00:(\d\d:\d\d),", r"\1.", srt(CUES)))
    lines = [f"Dialogue: 0,0:00:0{a:.2f},0:00:0{b:.2f},Default,,0,0,0,,{{\\b1}}{text}" for a, b, text in CUES]
    head = (
        "[Script Info]\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
    )
    (tmp_path / "a.ass").write_text(head + "\n".join(lines))
    assert passages(tmp_path / "a.srt") == expected
    assert passages(tmp_path / "a.ass") == expected
    assert passages(tmp_path / "a.vtt") == expected
    (tmp_path / "b.srt").write_text("nothing of the kind")
    with pytest.raises(DecodeError, match="holds no subtitles"):
        passages(tmp_path / "b.srt")


def test_a_subtitle_track_inside_a_video_is_read_too(tmp_path: Path, film: Path) -> None:
    (tmp_path / "words.srt").write_text(srt(CUES))
    inside = tmp_path / "inside.mkv"
    with av.open(str(film)) as video, av.open(str(tmp_path / "words.srt")) as words, av.open(str(inside), "w") as made:
        streams = video.streams.video[0], words.streams.subtitles[0]
        tracks = [made.add_stream_from_template(stream) for stream in streams]
        for read, stream, track in zip((video, words), streams, tracks, strict=True):
            for packet in read.demux(stream):
                if packet.pts is not None:
                    packet.stream = track
                    made.mux(packet)
    assert passages(inside) == [(1.0, 3.5, "A red balloon, he said."), (8.0, 9.0, "Green & calm")]
    assert bounds(clips(inside)) == bounds(clips(film))


# -- in an index -------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path) -> mmsearch.Library:
    return mmsearch.open(tmp_path / "index", model=ColourEncoder())


@pytest.fixture
def folder(tmp_path: Path, film: Path) -> Path:
    made = tmp_path / "films"
    made.mkdir()
    shutil.copy(film, made / "film.mp4")
    return made


def stored(library: mmsearch.Library) -> list[tuple[str, float, float, list[float]]]:
    """Name, start, end and vector of every clip, by name and time."""
    found = []
    with library._need_index().snapshot() as snapshot:
        file = snapshot.vectors[Modality.VIDEO]
        rows = np.setdiff1d(np.arange(file.rows), snapshot.dead[Modality.VIDEO])
        for row, item in snapshot.reader.items_at(Modality.VIDEO, rows.tolist()).items():
            assert item.span is not None and item.span.start is not None and item.span.end is not None
            vector = file.fetch(np.array([row]))[0].round(3).tolist()
            found.append((Path(item.asset.path).name, item.span.start, item.span.end, vector))
    return sorted(found)


def test_words_and_a_still_find_the_moment(folder: Path, library: mmsearch.Library, film: Path) -> None:
    assert counts(library.index(folder)) == {"added": 1, "items": 4}
    hit = library.query("blue", k=3)[0]
    assert (hit.path, hit.kind) == (folder / "film.mp4", "video")
    assert (hit.start, hit.end) == pytest.approx((10.5, 15), abs=0.4)
    assert hit.best is not None and 11 < hit.best < 15
    assert hit.fragment == f"t={hit.start:g},{hit.end:g}"
    assert hit.as_dict()["best"] == hit.best and hit.as_dict()["kind"] == "video"
    frame = still(str(film), ".mp4", Span(best=7.0), 100)
    assert library.query(image=frame, k=1)[0].start == pytest.approx(4, abs=0.4)


def test_one_video_does_not_flood_the_list(folder: Path, library: mmsearch.Library) -> None:
    for rgb, name in ((BLUE, "b.png"), (GREEN, "g.png")):
        Image.fromarray(picture(rgb)).save(folder / name)
    library.index(folder)
    paths = [hit.path.name for hit in library.query("red", k=10) if hit.path]
    assert sorted(paths) == ["b.png", "film.mp4", "g.png"] and paths[0] == "film.mp4"
    several = library.query("red", k=10, moments=5)
    assert [hit.kind for hit in several].count("video") == 3  # green and blue are as unlikely, and one after the other
    assert {round(hit.start or 0) for hit in several[:2]} == {0, 15}
    assert [h.kind for h in library.query("red", k=10, kind="image")] == ["image", "image"]
    assert library.query("red", k=10, kind=["image,text", "video"])[0].kind == "video"


def test_a_spoken_phrase_leads_to_its_moment(folder: Path, library: mmsearch.Library) -> None:
    (folder / "film.en.srt").write_text(srt([(5.0, 7.0, "a blue green word"), (16.0, 17.0, "nothing")]))
    assert counts(library.index(folder)) == {"added": 2, "items": 6}
    hits = library.query("blue green", k=5, moments=9)
    assert (hits[0].path, hits[0].text, hits[0].source) == (folder / "film.mp4", "a blue green word", "subtitle")
    assert hits[0].start is not None and hits[0].start >= 4 - 0.4
    assert {hit.path for hit in hits} == {folder / "film.mp4"}
    (folder / "film.mp4").unlink()
    library.index(folder)
    alone = library.query("blue green", k=5)[0]
    assert (alone.path, alone.kind, alone.start, alone.end) == (folder / "film.en.srt", "video", 5.0, 7.0)


def test_unchanged_moved_copied_changed_and_removed(folder: Path, library: mmsearch.Library) -> None:
    library.index(folder)
    first = stored(library)
    assert counts(library.index(folder)) == {"unchanged": 1}
    (folder / "film.mp4").rename(folder / "other.mp4")
    assert counts(library.index(folder)) == {"moved": 1}
    assert stored(library) == [("other.mp4", *rest) for _, *rest in first]
    shutil.copy(folder / "other.mp4", folder / "again.mp4")
    assert counts(library.index(folder)) == {"duplicates": 1, "items": 4, "unchanged": 1}
    assert [rest for name, *rest in stored(library) if name == "again.mp4"] == [rest for _, *rest in first]
    write(folder / "again.mp4", [Scene(YELLOW, 3)])
    assert counts(library.index(folder)) == {"updated": 1, "items": 1, "unchanged": 1}
    (folder / "other.mp4").unlink()
    assert counts(library.index(folder)) == {"removed": 1, "unchanged": 1}
    assert [name for name, *_ in stored(library)] == ["again.mp4"]
    assert library.verify().sound
    library.compact()
    assert library.verify().sound and [name for name, *_ in stored(library)] == ["again.mp4"]


def test_a_run_that_dies_in_the_middle_of_a_video_goes_on_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "long.mp4", [Scene(rgb, 3) for rgb in [RED, GREEN, BLUE, YELLOW] * 12])
    (folder / "film.mp4").unlink()
    undisturbed = mmsearch.open(tmp_path / "whole", model=ColourEncoder())
    undisturbed.index(folder)
    assert len(stored(undisturbed)) == 48
    apply, calls = IndexWriter.apply, [0]

    def dies(writer: IndexWriter, changes: list) -> list[int]:  # type: ignore[type-arg]
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return apply(writer, changes)

    library = mmsearch.open(tmp_path / "index", model=ColourEncoder())
    with monkeypatch.context() as patch:
        patch.setattr(IndexWriter, "apply", dies)
        with pytest.raises(KeyboardInterrupt):
            library.index(folder)
    half = stored(library)
    assert 0 < len(half) < 48
    encoder = library.encoder
    assert isinstance(encoder, ColourEncoder)
    encoder.images_seen = 0
    assert library.index(folder).items == 48 - len(half)
    assert encoder.images_seen <= 48 - len(half) + 4
    assert stored(library) == stored(undisturbed)
    assert library.verify().sound


def test_a_kill_in_the_middle_of_a_video_loses_nothing(folder: Path, tmp_path: Path) -> None:
    """Killed for good as soon as the first clips are committed: they are there, and the next run makes the same index
    as one that was never disturbed, byte by byte."""
    write(folder / "long.mp4", [Scene(rgb, 3) for rgb in [RED, GREEN, BLUE, YELLOW] * 16])
    index = tmp_path / "index"
    with start(folder, index) as child:
        for _ in range(2000):
            if child.poll() is not None or clips_in(index):
                break
            time.sleep(0.005)
        child.kill()
        child.communicate(timeout=60)
    held = clips_in(index)
    assert held > 0
    with mmsearch.open(index, model=ColourEncoder()) as library:
        assert library.verify().sound
        assert clips_in(index) >= held
    for place in (index, tmp_path / "undisturbed"):
        child = start(folder, place)
        try:
            assert child.communicate(timeout=200)[0].splitlines()[-1] == "done"
        finally:
            child.kill()
    with mmsearch.open(index, model=ColourEncoder()) as library:
        assert library.verify().sound
        made = stored(library)
    with mmsearch.open(tmp_path / "undisturbed", model=ColourEncoder()) as library:
        assert made == stored(library) and len(made) == 68


def clips_in(folder: Path) -> int:
    if not Index.exists(folder):
        return 0
    with Index.open(folder) as index, index.snapshot() as snapshot:
        return snapshot.reader.counts()["items:video"]


def test_clips_have_the_tokens_of_their_best_frame(folder: Path, tmp_path: Path) -> None:
    encoder, compressor = PatchColourEncoder(), ColourCompressor()
    made = {"encoder": encoder.name, "fingerprint": encoder.fingerprint}
    with Index.create(tmp_path / "a", dim=4, **made) as index:
        update(index, encoder, [folder], compressor=compressor)
        with index.snapshot() as snapshot:
            tokens, there = snapshot.tokens(np.arange(4), Modality.VIDEO)
            items = snapshot.reader.items_at(Modality.VIDEO, range(4))
    assert there.all()
    for row, item in items.items():
        assert item.span is not None
        frame = still(item.asset.path, ".mp4", item.span, encoder.image_size)
        halves = np.stack([half.mean(axis=(1, 2)) for half in np.split(encoder.prepare(frame), 2, axis=1)])
        assert tokens[row][:, :3] == pytest.approx(halves, abs=0.03)
    with Index.create(tmp_path / "b", dim=4, **made) as index:
        update(index, encoder, [folder])
        assert add_tokens(index, encoder, compressor).added == 4
        with index.snapshot() as snapshot:
            later, there = snapshot.tokens(np.arange(4), Modality.VIDEO)
    assert there.all() and later == pytest.approx(tokens, abs=0.02)


def test_hostile_files_are_named_and_the_others_go_on(folder: Path, library: mmsearch.Library) -> None:
    whole = (folder / "film.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])
    spoilt = bytearray(whole)
    for at in range(2000, len(spoilt) - 4000, 97):
        spoilt[at] ^= 0xFF
    (folder / "spoilt.mp4").write_bytes(spoilt)
    Image.fromarray(picture(GREEN)).save(folder / "picture.mp4", "PNG")
    shutil.copy(folder / "film.mp4", folder / "film.jpg")
    report = library.index(folder)
    reasons = {Path(skipped.path).name: skipped.reason for skipped in report.skipped}
    assert reasons.keys() >= {"empty.mp4", "noise.mkv", "half.mp4"}
    assert reasons["empty.mp4"] == "the file is empty"
    kinds = {hit.path.name: hit.kind for hit in library.query("green", k=20) if hit.path}
    assert kinds["picture.mp4"] == "image" and kinds["film.jpg"] == "video" and kinds["film.mp4"] == "video"
    assert library.verify().sound


# -- ahead -------------------------------------------------------------------------------------------------------------


def test_values_are_made_a_few_ahead_in_one_thread_until_nobody_wants_them() -> None:
    made: list[int] = []
    threads, closed = set(), []

    def values() -> Iterator[int]:
        try:
            for value in range(100):
                threads.add(threading.get_ident())
                made.append(value)
                yield value
        finally:
            closed.append(True)

    with closing(ahead(values(), 3)) as taken:
        assert [next(taken) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert not closed
    assert closed and len(made) <= 5 + 3
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert list(ahead((value for value in range(7)), 3)) == [0, 1, 2, 3, 4, 5, 6]


def test_what_goes_wrong_ahead_is_raised_behind_what_came_before() -> None:
    def values() -> Iterator[int]:
        yield 1
        yield 2
        raise DecodeError("damaged")

    taken = ahead(values(), 4)
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(DecodeError, match="damaged"):
        next(taken)


# -- pooling and merging -----------------------------------------------------------------------------------------------


def test_a_clip_is_the_mean_of_its_frames_and_its_best_frame_is_the_most_central() -> None:
    frames = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 1, 0]], np.float32)
    assert pooling.most_central(frames) == 1
    assert pooling.mean(frames) == pytest.approx(np.array([1.6, 1.8, 0]) / np.hypot(1.6, 1.8))
    assert pooling.best_frame(frames).tolist() == frames[1].tolist()
    assert pooling.mean(np.array([[1, 0], [-1, 0]], np.float32)).tolist() == [1, 0]


FILM = Asset("/film.mp4", Modality.VIDEO, 1, 1, b"")


def piece(number: int, logit: float, start: float, end: float, text: str | None = None) -> Scored:
    span = Span(start=start, end=end, best=None if text else start + 1)
    modality = Modality.TEXT if text else Modality.VIDEO
    return Scored(logit, Item(number, FILM, modality, span, text, "subtitle" if text else None), False)


def spans(pieces: list[Scored]) -> list[tuple[int, float | None, float | None]]:
    return [(p.item.id, p.item.span.start, p.item.span.end) for p in pieces if p.item.span]


def test_neighbours_that_are_nearly_as_likely_are_one_moment() -> None:
    found = [piece(1, 2.0, 10, 20), piece(2, 1.5, 20, 25), piece(3, 1.4, 50, 60), piece(4, -3.0, 5, 10)]
    assert spans(moments.merge(found, 9)) == [(1, 10, 25), (3, 50, 60), (4, 5, 10)]
    assert spans(moments.merge(found, 1)) == [(1, 10, 25)]


def test_a_subtitle_inside_a_clip_is_its_words() -> None:
    (clip,) = moments.merge([piece(1, 2.0, 10, 20), piece(2, -3.0, 12, 14, "hello")], 9)
    assert (clip.item.text, clip.item.source, clip.item.span) == ("hello", "subtitle", Span(start=10, end=20, best=11))
    (spoken,) = moments.merge([piece(2, 2.0, 12, 14, "hello"), piece(1, -3.0, 10, 20)], 9)
    assert (spoken.item.text, spoken.item.span) == ("hello", Span(start=12, end=14, best=11))


def test_which_video_a_subtitle_file_belongs_to() -> None:
    assert "/a/holiday.mp4" in moments.beside("/a/holiday.srt")
    assert {"/a/holiday.en.mp4", "/a/holiday.mp4"} <= set(moments.beside("/a/holiday.en.srt"))
    assert moments.beside("/a/holiday.part.srt")[0].startswith("/a/holiday.part.")
    assert moments.beside("/a/holiday.txt") == []


# -- taking a moment away ----------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "mmsearch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_moment_is_taken_out_of_a_video(folder: Path, tmp_path: Path) -> None:
    hit, index = f"{folder / 'film.mp4'}#t=4.5,0:00:10", tmp_path / "none"
    done = run("show", hit, "--frame", tmp_path / "a.png", "--clip", tmp_path / "a.mp4", "--index", index)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    with Image.open(tmp_path / "a.png") as frame:
        assert frame.size == (96, 64)
        assert np.abs(np.asarray(frame, int) - picture(GREEN)).mean() < 12
    copied = clips(tmp_path / "a.mp4")
    assert bounds(copied)[-1][1] == pytest.approx(10, abs=0.5) or bounds(copied)[-1][1] == pytest.approx(6, abs=0.5)
    showing.save_clip(showing.parse_moment(hit), tmp_path / "exact.mp4", exact=True)
    assert bounds(clips(tmp_path / "exact.mp4")) == [pytest.approx((0, 5.5), abs=0.1)]
    with av.open(str(tmp_path / "exact.mp4")) as container:
        assert len(container.streams.audio) == 1
    assert run("show", folder / "film.mp4", "--frame", tmp_path / "b.png", "--index", index).returncode == 2
    assert run("show", f"{folder}/no.mp4#t=1,2", "--frame", tmp_path / "b.png", "--index", index).returncode == 2


def test_a_moment_is_named_as_it_is_listed(folder: Path) -> None:
    film = folder / "film.mp4"
    moment = showing.Moment(str(film), 4.0, 3610.0)
    for form in ("{}  0:00:04–1:00:10", "{} 0:04-1:00:10", "{}#t=4,3610", "{}#t=npt:0:00:04,1:00:10", "{}  0:04–60:10"):
        assert showing.parse_moment(form.format(film)) == moment
    for wrong in ("{}", "{}  4–10", "{}  0:00:04", "{}  0:10–0:04"):
        with pytest.raises(mmsearch.UsageError):
            showing.parse_moment(wrong.format(film))


def test_the_frame_of_a_hit_is_its_best_one(folder: Path, library: mmsearch.Library) -> None:
    library.index(folder)
    hit = library.query("blue", k=1)[0]
    assert library.moment(f"{hit.path}#{hit.fragment}").best == hit.best


def test_a_moment_in_plain_values() -> None:
    values = Hit(1, 0.5, piece(1, 0, 83.0, 95.25).item).as_dict()
    assert {name: values[name] for name in ("start", "end", "best", "fragment")} == {
        "start": 83.0,
        "end": 95.25,
        "best": 84.0,
        "fragment": "t=83,95.25",
    }
    assert parse_query("a", kind="image, video").kinds == (Modality.IMAGE, Modality.VIDEO)
