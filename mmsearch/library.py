"""The library: one index, one model, and everything a caller does with them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.embedding import check_same_model
from indexer.encoders import Encoder
from indexer.encoders.load import is_mini, load_encoder
from indexer.encoders.precision import AUTO, PRECISIONS
from indexer.errors import DecodeError, IndexBusy, ModelMismatch, NoIndex, StorageError, UsageError
from indexer.index import Index
from indexer.text_tower import FOLDER as TEXT_TOWER
from indexer.tokens import Compressor
from indexer.types import VISUAL, Modality, Skipped
from mmsearch import background, calibration
from mmsearch.captioned import with_pictures
from mmsearch.hits import Hits
from mmsearch.query import parse_query
from mmsearch.rerank import Reranker
from mmsearch.rerank.load import check_reads, load_reranker
from mmsearch.search import Searcher, plain_hits
from mmsearch.spelling import read_words, with_words
from mmsearch.understanding import Understood, understand

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = Image | str | os.PathLike[str]

    from indexer.add import Addition
    from indexer.derive import Say, Tuning
    from indexer.performance import Performance
    from indexer.reports import AddReport, Progress, TokensReport, UpdateReport
    from indexer.writer import VerifyReport
    from mmsearch.duplicates import Duplicates
    from mmsearch.rerank.explanation import Explanation
    from mmsearch.showing import Moment

DEFAULT_MODEL = "mini"
ANSWERS = 10
"""Answers to a question that does not say how many."""
NEAREST = 5
"""Answers to one of these where none is likely to match."""


@dataclass(frozen=True, slots=True)
class Status:
    """What an index holds, which model made its vectors, how large it is on disk, and what was skipped and why."""

    folder: str
    model: str
    fingerprint: str
    dim: int
    created: str
    precision: str | None
    """What pictures are computed in: ``float32``, ``bfloat16`` or ``int8``; None before the first of them."""
    files: Mapping[str, int]
    items: Mapping[str, int]
    erased: int
    """Vectors that are zeros now and take up space until ``compact``."""
    bytes: int
    tokens: str | None
    """Whose image tokens the index holds, as the reranker is called; None if it holds none."""
    without_tokens: int
    """Pictures and clips that have none."""
    lists: Mapping[str, int]
    """Into how many lists a large number of vectors is sorted; a question looks into some. One is scanned whole."""
    skipped: tuple[Skipped, ...]

    def as_dict(self) -> dict[str, Any]:
        """The status in plain values, for JSON."""
        return asdict(self)


def default_folder() -> Path:
    """Where the index lives when none is named: ``MMSEARCH_INDEX``, else the user's data folder."""
    named = os.environ.get("MMSEARCH_INDEX")
    if named:
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_data_dir("mmsearch", appauthor=False)) / "index"


def open(  # named as callers say it: mmsearch.open
    path: str | os.PathLike[str] | None = None,
    *,
    model: str | Encoder | None = None,
    device: str | None = None,
    reranker: str | os.PathLike[str] | Reranker | None = None,
    precision: str | None = None,
) -> Library:
    """Open the library whose index is, or will be, in the folder ``path``.

    Args:
        path: the index folder; by default ``MMSEARCH_INDEX`` or the user's data folder.
        model: ``mini``, an open_clip name, a checkpoint folder or an ``Encoder``. By default the model that made the
            index, and ``mini`` for a new one.
        device: ``cuda`` (the first GPU for the model, any of them for the search), ``cuda:1``, ``mps`` or ``cpu``; by
            default the best there is. With several, as in ``cuda:0,cuda:1``, ``index`` embeds many pictures in a
            process for each; a program of yours then needs its ``if __name__ == "__main__"``.
        reranker: the folder of a reranker, the name of one (``blip-itm-base-coco``; ``load_reranker`` lists them), or a
            ``Reranker``. By default the one that was trained for the model, if there is one; it is loaded when it is
            first needed.
        precision: in which a new index has its pictures computed: ``float32``, ``bfloat16``, ``int8``, or ``auto``, as
            for None: the fastest on this chip that finds the same as float32. An index keeps the one that it has.

    Raises:
        ModelMismatch: the index was made by another model.
        UsageError, ModelError: there is no such model or device, or it cannot be loaded.
        StorageError: the index cannot be read.
    """
    return Library(Path(path) if path is not None else default_folder(), model, device, reranker, precision)


class Library:
    """An index and the model it was made with. May be used from several threads; ``with`` closes it."""

    def __init__(
        self,
        folder: Path,
        model: str | Encoder | None = None,
        device: str | None = None,
        reranker: str | os.PathLike[str] | Reranker | None = None,
        precision: str | None = None,
    ) -> None:
        """Use ``mmsearch.open``."""
        if precision not in (None, AUTO, *PRECISIONS):
            raise UsageError(f"no precision is called {precision!r}: say {', '.join(PRECISIONS)} or {AUTO}")
        self._precision = precision
        self._devices: tuple[str, ...] = ()
        if device is not None:
            from indexer.encoders.device import check_devices, split_devices

            self._devices = split_devices(device)
            check_devices(self._devices)
            device = self._devices[0]
        self.folder = Path(os.path.abspath(folder))
        self._index: Index | None = Index.open(self.folder) if Index.exists(self.folder) else None
        if isinstance(model, str):
            made_by = self._index.manifest.encoder if self._index else model
            if model != made_by and not _same_folder(model, made_by):
                raise ModelMismatch(
                    f"the index in {self.folder} was made by {made_by}, not by {model}, and vectors of two models "
                    f"cannot be compared; name another folder for {model}, or leave the model out"
                )
            model = load_encoder(model, device) if self._index is None else None  # else when it is needed
        self._encoder = model
        self._questioner: Encoder | None = None
        self.slower: str | None = None
        """Why questions in words wait for torch; None if they do not, or nobody asked yet."""
        self._device = device
        if self._index is not None:
            self._use_gpus(self._index)
        self._asked_reranker = reranker
        self._searcher: Searcher | None = None
        self._searcher_rows = 0
        self._lock = threading.Lock()

    @property
    def encoder(self) -> Encoder:
        """The model; loaded when it is first needed, so that looking after an index needs no weights.

        Raises:
            ModelError: its weights are not here and cannot be had.
        """
        if self._encoder is None:
            made_by = self._index.manifest.encoder if self._index else DEFAULT_MODEL
            self._encoder = load_encoder(made_by, self._device)
        return self._encoder

    @property
    def questioner(self) -> Encoder:
        """The model as questions use it: where the index holds its text tower, words do not wait for torch.

        Raises:
            ModelError: its weights are not here and cannot be had.
        """
        if self._encoder is not None or self._index is None:
            return self.encoder
        if self._questioner is None:
            made = self._index.manifest
            if is_mini(made.encoder):
                return self.encoder
            from indexer.text_tower.encoder import ExportedEncoder
            from indexer.text_tower.folder import read

            tower = read(self.folder / TEXT_TOWER, made.fingerprint)
            if isinstance(tower, str):
                self.slower = tower
                return self.encoder
            self._questioner = ExportedEncoder(made.encoder, made.fingerprint, tower, self._origin)
        return self._questioner

    def _origin(self) -> Encoder:
        """The model behind an exported text tower."""
        check_same_model(self._need_index(), self.encoder)
        return self.encoder

    @cached_property
    def reranker(self) -> Reranker | None:
        """What looks again at the first answers; None if there is no reranker for this model.

        Raises:
            UsageError: there is no reranker of the name, or in the folder, that was given.
            ModelMismatch: it was trained for another model.
            ModelError: it, or the model, cannot be loaded.
        """
        asked = self._asked_reranker
        if asked is None or isinstance(asked, (str, os.PathLike)):
            return load_reranker(asked, self.questioner, self._device)
        check_reads(asked, self.questioner)
        return asked

    def close(self) -> None:
        """Let go of the files."""
        if self._index is not None:
            self._index.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def index(
        self,
        *paths: str | os.PathLike[str],
        exclude: Sequence[str] = (),
        max_text_bytes: int | None = None,
        fps: float | None = None,
        tokens: bool = True,
        ocr: bool = False,
        recall: float | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        say: Say = lambda _: None,
    ) -> UpdateReport:
        """Bring the index to what the folders and files ``paths`` hold now; see ``indexer.pipeline.update``.

        The index is made if there is none. Unchanged files cost one ``stat``, files that are gone are purged, and a
        file that cannot be read is a line in the report. Where the model has a reranker, pictures get the image tokens
        that it reads; in an index that has pictures and no tokens, ``add_tokens`` begins with that.

        Args:
            max_text_bytes: larger texts are skipped; by default 20 MB, ``indexer.pipeline.MAX_TEXT_BYTES``.
            fps: how many frames of a second of video are looked at, at most; by default ``indexer.decode.streams.FPS``.
            tokens: False leaves new pictures without image tokens; they are not reranked.
            ocr: Read the text in pictures and on scanned pages; seconds for each.
            recall: as in ``prepare``, which ends the run.
            say: told what ``prepare`` is at, and why it could not do it; the index can be searched all the same. Told
                too when the memory suffices only for smaller batches.

        Raises:
            UsageError: ``ocr`` without the extra of that name.
            ModelMismatch: the index holds the tokens of another reranker.
            UsageError: no path, or one that does not exist; or a recall that is none.
            IndexBusy: another process is indexing.
            StorageError: the index cannot be written; it holds what was committed.
        """
        from indexer.background_lists import BackgroundLists
        from indexer.decode.ocr import load_ocr
        from indexer.decode.streams import FPS
        from indexer.pipeline import MAX_TEXT_BYTES, update

        fps = FPS if fps is None else fps
        if not paths:
            raise UsageError("nothing to index: name a folder or a file")
        if not 0.1 <= fps <= 60:
            raise UsageError(f"{fps:g} frames a second cannot be looked at; between 0.1 and 60 can")
        for path in paths:
            if not os.path.exists(path):
                raise UsageError(f"there is no {os.fspath(path)!r}; nothing was indexed")
        _check_recall(recall)
        roots = [os.fspath(path) for path in paths]
        index = self._index_with_tower()
        report = update(
            index,
            self.encoder,
            roots,
            exclude=exclude,
            max_text_bytes=MAX_TEXT_BYTES if max_text_bytes is None else max_text_bytes,
            fps=fps,
            compressor=self._compressor() if tokens else None,
            ocr=load_ocr() if ocr else None,
            devices=self._devices,
            precision=self._precision,
            lists=BackgroundLists(index, self._everyday, say),
            progress=progress,
            say=say,
        )
        self._prepare_if_possible(recall, say)
        return report

    def prepare(self, recall: float | None = None, say: Say = lambda _: None) -> bool:
        """Make a large index quick to search, if it is not by now; whether anything was done.

        Above some 150,000 vectors of a kind a question looks only into a part of them; see ``indexer.derive``. Every
        ``index`` and ``add`` ends with this.

        Args:
            recall: the share of the best 10 answers that is to be found on the whole, up to 1 for all of them always;
                kept for later runs. 0.99 if it was never given.
            say: told what it is at.

        Raises:
            NoIndex: nothing was indexed yet.
            UsageError: ``recall`` is not above 0 and at most 1.
            IndexBusy: another process is indexing.
            StorageError: the lists cannot be written; the index is as quick as before.
        """
        _check_recall(recall)
        from indexer.derive import derive

        index = self._need_index()
        if not is_mini(index.manifest.encoder) and background.wanted(index) and self.questioner.calibration is None:
            background.keep(index, self._everyday(), mini_calibration())
        return derive(index, recall=recall, questions=self._everyday, say=say)

    def tune(self) -> list[Tuning]:
        """What a question costs for which recall, measured on the vectors of the index.

        Raises:
            NoIndex: nothing was indexed yet.
        """
        from indexer.derive import tune

        return tune(self._need_index(), self._everyday)

    def _prepare_if_possible(self, recall: float | None, say: Say) -> None:
        try:
            self.prepare(recall, say)
        except IndexBusy:
            return  # whoever has it ends with this too
        except StorageError as exc:
            say(f"{exc}; until the next run, questions take longer")

    def _everyday(self) -> np.ndarray:
        """The vectors of everyday questions; an exported text tower remembers them."""
        from indexer.text_tower.folder import read

        questions = calibration.everyday_questions()
        tower = read(self.folder / TEXT_TOWER, self._need_index().manifest.fingerprint)
        if not isinstance(tower, str) and all(question in tower.remembered for question in questions):
            return np.stack([tower.remembered[question] for question in questions])
        return self.questioner.encode_texts(questions)

    def add_tokens(
        self, progress: Callable[[Progress], None] = lambda _: None, say: Say = lambda _: None
    ) -> TokensReport:
        """Give every picture in the index the image tokens that the reranker reads; see ``indexer.add_tokens``.

        Files are read again; vectors stay as they are. Tokens of another reranker are replaced.
        ``say`` is told when the memory suffices only for smaller batches.

        Raises:
            NoIndex: nothing was indexed yet.
            UsageError: there is no reranker for this model, or one that reads no tokens.
            IndexBusy: another process is indexing.
            StorageError: the index cannot be written; it holds what was committed.
        """
        from indexer.pipeline import add_tokens

        index = self._need_index()
        compressor = self._compressor()
        if compressor is None:
            raise UsageError(
                f"there is no reranker for {self.encoder.name} that reads image tokens, so there are none to make; "
                "name the folder of one with --reranker"
            )
        return add_tokens(index, self.encoder, compressor, progress, say)

    def add(self, items: Sequence[Addition], *, tokens: bool = True, say: Say = lambda _: None) -> AddReport:
        """Make images and texts from memory searchable under the caller's own keys; a key that is there is replaced.

        Many at once cost far less than one after the other: the model is given them in batches. An item that cannot be
        taken is named in the report, with the reason, and the others are stored; see ``indexer.add.add``.

        Args:
            tokens: as in ``index``.

        Raises:
            UsageError: ``items`` is not a sequence of ``Addition``; nothing was stored.
            ModelMismatch: the index holds the tokens of another reranker.
            ModelError: the model fails on everything.
            IndexBusy, StorageError: the index cannot be written; it holds what was committed.
        """
        from indexer.add import add

        report = add(
            self._index_with_tower(),
            self.encoder,
            items,
            compressor=self._compressor() if tokens else None,
            precision=self._precision,
            say=say,
        )
        self._prepare_if_possible(None, lambda _: None)
        return report

    def query(
        self,
        text: str | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        like: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        weights: Sequence[float] | None = None,
        without: str | Sequence[str] = (),
        k: int | None = None,
        offset: int = 0,
        kind: str | Sequence[str] | None = None,
        under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        after: str | datetime | None = None,
        before: str | datetime | None = None,
        min_prob: float | None = None,
        only_clear: bool = False,
        rerank: bool = True,
        candidates: int | None = None,
        exact: bool = False,
        literal: bool = False,
        moments: int = 1,
        collapse: bool = True,
    ) -> Hits:
        """The items that fit best, best first; the same question gives the same list.

        ``Hits`` is a list that also says whether any answer is a ``clear`` match, how many items match in all
        (``estimated_matches``), what could not be reranked, and what was ``understood`` of the words: a time ("in
        summer 2021") and unwanted things ("without people") are no words to look for, but ``after``, ``before`` and
        ``without``; see ``mmsearch.understanding``. A misspelt word that nothing here holds is asked as the one that is
        meant; see ``mmsearch.spelling``.

        =====================================  ===========================================================
        ``query("a cat on a sofa")``           pictures and texts that fit the words
        ``query(image="cat.jpg")``             pictures like it, and texts that describe it
        ``query("at night", image="a.jpg")``   what fits both; also several, in a list
        ``query(like="photos/cat.jpg")``       what is like a file of the index; itself is left out
        ``query(after="2021")``                all files from then on, newest first; no model takes part
        ``query("beach", without="people")``   what fits the words and does not show people
        ``query("beach", kind="image")``       pictures only; also ``under``, ``after``, ``before``
        ``query("beach house", exact=True)``   what holds both words, in its text or its name
        =====================================  ===========================================================

        Args:
            image: a PIL image or the path of one, or several.
            like: a file of the index, or several: a path, the key of what was added from memory, or a moment of a video
                as ``FILE#t=83,95``. What is stored of it asks, so it is neither opened nor embedded.
            weights: of ``text``, of each ``image`` and of each ``like``, in this order, as far as they are given; they
                count by their shares of the sum. The same for all by default.
            offset: leave out so many answers, which come before these: the next page of the same list.
            k: how many, however unlikely the last of them are. By default 10 (``ANSWERS``), and 5 (``NEAREST``) where
                not even the best is likely to match.
            after, before: a ``datetime`` or ``2021``, ``2021-05``, ``2021-05-17``; the date in the picture's EXIF data
                counts, else that of the file.
            min_prob: leave out what is less likely to match, between 0 and 1; with or without ``k``.
            only_clear: leave out what is no clear match (``Hit.clear``).
            rerank: whether the reranker, if there is one, looks again at the first answers.
            candidates: how many of the first answers of each kind it looks at; by default what its model says.
            exact: search by words alone, without a model: an answer holds all of them, in whatever form ("receipts" for
                "receipt"), those in quotes side by side.
                Its ``score`` is then no probability but its BM25 score as a share of that of the first answer.
            literal: whether every word of ``text`` is one to look for; with ``exact`` it is so anyway. A time is
                read out of the words only where neither ``after`` nor ``before`` says one.
            moments: how many moments of one video may be among the answers.
            collapse: whether files with the same bytes, and one picture saved, resized or encoded again, are one
                answer, whose ``copies`` names the others.

        Raises:
            UsageError: the question makes no sense, or ``like`` names what is not in the index; the message says why.
            NoIndex: nothing was indexed yet.
            StorageError: with ``exact``, there is no word search in this index, or in this Python.
            DecodeError: the picture of the question cannot be read.
            ModelError: the model or the reranker fails.
        """
        said, foreign = None, None
        text = (text or "").strip() or None
        if text is not None and not literal and not exact:
            said = understand(text, date.today(), dates=after is None and before is None)
            foreign, said = self._read_words(text, said)
        without = [without] if isinstance(without, str) else without
        open_list = k is None and min_prob is None and not offset
        if said is not None:
            pictures = bool(image) or bool(like)
            if said.text:
                text = said.text
            elif pictures or not (without or min_prob is not None):  # a time alone has no words to look for
                text, weights = None, None if weights is None else weights[1:]
            without, open_list = [*without, *said.without], open_list and bool(said.text)
            after, before = (after, before) if said.limits == (None, None) else said.limits
        query = parse_query(
            text,
            image=image if exact else self._read_images(image),  # type: ignore[arg-type]
            like=_names(like),
            weights=weights,
            without=without,
            kind=kind,
            under=under,
            after=after,
            before=before,
            min_prob=min_prob,
            only_clear=only_clear,
            unsure=NEAREST if open_list else None,
            rerank=rerank,
            candidates=candidates,
            exact=exact,
            moments=moments,
            collapse=collapse,
        )
        k = ANSWERS if k is None else k
        if not query.compares:
            index = self._need_index()
            hits = plain_hits(index, query, k, offset)
        else:
            searcher = self.searcher()
            index, hits = searcher.index, searcher.search(query, k, offset)
        hits.understood, hits.foreign = said, foreign
        return hits if query.lists else with_pictures(hits, index)

    def _read_images(self, image: Picture | Sequence[Picture] | None) -> list[Image]:
        """The pictures that ask, as the model takes them."""
        if image is None:
            return []
        pictures = [image] if isinstance(image, (str, os.PathLike)) or not isinstance(image, Sequence) else image
        return [_read_image(one, self.questioner.image_size) for one in pictures]

    def _read_words(self, text: str, said: Understood | None) -> tuple[str | None, Understood | None]:
        """The language of a question if the model does not know it; what was understood, with its words respelled."""
        asked = text if said is None else said.text
        if self._index is None or not asked.strip():
            return None, said
        with self._index.catalogue.read() as reader:
            language, instead = read_words(asked, reader, self.questioner)
        if instead:
            respelt = with_words(asked, instead)
            said = replace(
                Understood(respelt) if said is None else said, text=respelt, respelled=tuple(instead.items())
            )
        return language, said

    def explain(
        self, question: str, picture: Image | str | os.PathLike[str], *, method: str | None = None
    ) -> Explanation:
        """Which parts of ``picture`` the words of ``question`` look at, as a map of heat that can be saved as a PNG.

        The picture need not be in the index, and there need be none; where it is, it is still read from its file.

        Args:
            picture: a PIL image or the path of one.
            method: ``attention`` (where the words looked) or ``occlusion`` (what the score hangs on); see
                ``mmsearch.rerank.explanation.METHOD``, which it is for None.

        Raises:
            UsageError: there is no word or no such picture, or there is no reranker, or one that cannot explain.
            DecodeError: the picture cannot be read.
            ModelError: the model or the reranker fails, or the reranker does not say where words look.
        """
        from mmsearch.rerank.explain import explain_alone, show
        from mmsearch.rerank.explanation import METHOD

        shown = show(picture, self.questioner.image_size)
        if Index.exists(self.folder):
            return self.searcher().explain(question, shown, method)
        return explain_alone(self.encoder, self.reranker, question, shown, method or METHOD)

    def moment(self, hit: str) -> Moment:
        """The moment that a hit names as ``FILE#t=START,END``, with its best frame if the file is in the index.

        Raises:
            UsageError: it names none, or there is no such file.
        """
        from mmsearch.showing import parse_moment, with_best_frame

        moment = parse_moment(hit)
        if not Index.exists(self.folder):
            return moment
        with self._need_index().snapshot() as snapshot:
            return with_best_frame(moment, snapshot.reader)

    def duplicates(self, *, under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = ()) -> Duplicates:
        """Files of the index that are the same, or nearly so, in groups; see ``mmsearch.duplicates.find``.

        Nothing is deleted, and no model is loaded.

        Args:
            under: only files below this folder, or one of several.

        Raises:
            NoIndex: nothing was indexed yet.
            StorageError: the index cannot be read.
        """
        from mmsearch.duplicates import find

        index = self._need_index()
        folders = [under] if isinstance(under, (str, os.PathLike)) else list(under)
        if is_mini(index.manifest.encoder):
            lines: calibration.Calibration | None = mini_calibration()
        else:
            lines = background.read(index, background.rows_of(index))
        with index.snapshot() as snapshot:
            return find(snapshot, lines, tuple(os.path.abspath(folder) for folder in folders))

    def remove(self, *paths: str | os.PathLike[str], keys: Sequence[str] = ()) -> int:
        """Take files, everything below folders, and added ``keys`` out of the index; return how many files there were.

        The files themselves are not touched. Their vectors and texts are erased from the index.

        Raises:
            NoIndex: nothing was indexed yet.
            IndexBusy, StorageError: the index cannot be written.
        """
        from indexer.changes import Remove

        index = self._need_index()
        under = [os.path.abspath(path) for path in paths]
        with index.writing() as writer:
            with index.catalogue.read() as reader:
                ids = reader.asset_ids(under=under, keys=list(keys))
            if ids:
                writer.apply([Remove(ids)])
            forgotten = writer.forget_under(under)
        return len(ids) + forgotten

    def status(self) -> Status:
        """What the index holds.

        Raises:
            NoIndex: nothing was indexed yet.
        """
        index = self._need_index()
        with index.snapshot() as snapshot:
            counts = snapshot.reader.counts()
            skipped = snapshot.reader.skipped()
            erased = sum(len(dead) for dead in snapshot.dead.values())
            tokens = snapshot.state.tokens
            without_tokens = sum(len(snapshot.reader.rows_without_tokens(m)) for m in VISUAL)
            lists = {str(m): file.lists.count for m, file in snapshot.vectors.items() if file.lists is not None}
        made = index.manifest
        return Status(
            folder=str(self.folder),
            model=made.encoder,
            fingerprint=made.fingerprint,
            dim=made.dim,
            created=made.created,
            precision=made.precision,
            files={str(m): counts[f"assets:{m}"] for m in Modality},
            items={str(m): counts[f"items:{m}"] for m in Modality},
            erased=erased,
            bytes=sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()),
            tokens=None if tokens is None else tokens.name,
            without_tokens=without_tokens,
            lists=lists,
            skipped=tuple(skipped),
        )

    def performance(self) -> Performance | None:
        """How the last run of ``index`` with new pictures spent its time, also one that was killed; None before that.

        Raises:
            NoIndex: nothing was indexed yet.
        """
        from indexer import performance

        return performance.load(self._need_index().folder)

    def verify(self) -> VerifyReport:
        """Check every vector and row against each other and repair what can be; see ``VerifyReport``.

        Raises:
            NoIndex: nothing was indexed yet.
            IndexDamaged: the database itself is broken.
        """
        from indexer.text_tower.folder import verify

        with self._need_index().writing() as writer:
            report = writer.verify()
        repaired = verify(self.folder / TEXT_TOWER)
        return report if repaired is None else replace(report, repaired=(*report.repaired, repaired))

    def compact(self) -> int:
        """Give the space of removed files back; return the bytes saved."""
        with self._need_index().writing() as writer:
            return writer.compact()

    def searcher(self) -> Searcher:
        """The searcher behind ``query``, for callers that build a ``Query`` themselves.

        Raises:
            NoIndex: nothing was indexed yet.
            ModelMismatch: the index was made by other weights of this model.
        """
        index, encoder = self._need_index(), self.questioner
        with self._lock:
            if encoder.calibration is not None:
                if self._searcher is None:
                    check_same_model(index, encoder)
                    self._searcher = Searcher(index, encoder, calibration.read(encoder.calibration), self.reranker)
                return self._searcher
            rows = background.rows_of(index)
            if self._searcher is None or not background.holds(self._searcher_rows, rows):
                check_same_model(index, encoder)
                lines = background.read(index, rows)
                if lines is None:
                    lines = background.measure(index, self._everyday(), mini_calibration())
                self._searcher = Searcher(index, encoder, lines, self.reranker)
                self._searcher_rows = rows
            return self._searcher

    def _use_gpus(self, index: Index) -> None:
        if self._device is not None and self._device.startswith("cuda"):
            from indexer.encoders.device import gpu_numbers

            index.search_on_gpus(gpu_numbers(self._devices))

    def _compressor(self) -> Compressor | None:
        return None if self.reranker is None else self.reranker.compressor

    def _need_index(self) -> Index:
        if self._index is None:
            with self._lock:
                if self._index is None:
                    self._index = Index.open(self.folder)
                    self._use_gpus(self._index)
        return self._index

    def _index_with_tower(self) -> Index:
        """The index, made if there is none, with the model's text tower beside it for questions to come."""
        from indexer.text_tower.folder import ExportableEncoder, export, wanted

        index, encoder = self._make_index(), self.encoder
        folder = self.folder / TEXT_TOWER
        if isinstance(encoder, ExportableEncoder):
            check_same_model(index, encoder)
            if wanted(folder, encoder.fingerprint):
                export(encoder, folder, calibration.everyday_questions())
        return index

    def _make_index(self) -> Index:
        with self._lock:
            if self._index is None:
                try:
                    self._index = Index.open(self.folder)
                except NoIndex:
                    encoder = self.encoder
                    self._index = Index.create(
                        self.folder, encoder=encoder.name, fingerprint=encoder.fingerprint, dim=encoder.dim
                    )
        return self._index


def mini_calibration() -> dict[tuple[Modality, Modality], calibration.Line]:
    """The calibration that ``mini`` carries, fitted on the dev split of Flickr8k."""
    from indexer.encoders.mini import CALIBRATION, PACKAGED

    return calibration.read(json.loads((PACKAGED / CALIBRATION).read_text(encoding="utf-8")))


def _names(like: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    return [os.fspath(one) for one in ([like] if isinstance(like, (str, os.PathLike)) else like)]


def _read_image(image: Picture, size: int) -> Image:
    from indexer.decode import decode_image, decode_opened  # Pillow is only needed when a picture asks

    if not isinstance(image, (str, os.PathLike)):
        return decode_opened(image, size=size).image
    try:
        data = Path(image).read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read the picture {os.fspath(image)!r}: {exc.strerror}") from exc
    try:
        return decode_image(data, size=size).image
    except DecodeError as exc:
        raise DecodeError(f"cannot read the picture {os.fspath(image)!r}: {exc}") from exc


def _check_recall(recall: float | None) -> None:
    if recall is not None and not 0 < recall <= 1:
        raise UsageError(f"the recall is {recall}; it is a share, above 0 and at most 1")


def _same_folder(name: str, other: str) -> bool:
    return os.path.isdir(name) and os.path.realpath(name) == os.path.realpath(other)
