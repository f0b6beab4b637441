"""The folder of an exported text tower: written whole or not at all, opened without reading it, checked on demand."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from indexer.durable import write_durably
from indexer.encoders import Encoder, has_patches
from indexer.encoders.rows import unit_rows
from indexer.errors import ModelError, StorageError
from indexer.text_tower.mapped import map_tensors
from indexer.text_tower.numpy_tower import NumpyTower, Plan
from indexer.text_tower.words import BytePairs, LibraryWords, Words

if TYPE_CHECKING:
    from indexer.text_tower.parts import Parts

DESCRIPTION, WEIGHTS, TOKENIZER = "tower.json", "tower.safetensors", "tokenizer.json"
FORMAT = 1
MAX_DISTANCE = 1e-3
"""How far from 1 the cosine between the torch tower's vector of a text and this one's may be."""
REMEMBERED = "remembered"
PROBES = (
    "a",
    "a dog runs on the beach",
    "Two men in orange vests repair a road; a third one, in a hard hat, watches! don't they? 1,234.50",
    "ein Hund läuft — 犬が走る 🐕 naïve &amp; caf\u00e9",
    "word after word " * 100,
)
"""Texts on which an export is compared with its origin: short, odd and too long."""
AT_ONCE = 32
"""Texts that are computed together; more would only take more memory."""
COMPARED = 8
"""So many of those that it remembers are compared, too; all take torch longer than all else that is done here."""


@runtime_checkable
class ExportableEncoder(Encoder, Protocol):
    """An encoder whose text tower can be taken apart."""

    def text_parts(self) -> Parts:
        """The text tower without torch.

        Raises:
            NoTower: NumPy cannot run it.
        """


@dataclass(frozen=True, slots=True)
class Tower:
    """An opened export: what the encoder is, its tower, its words, and vectors of texts that are asked for often."""

    about: Mapping[str, Any]
    numpy: NumpyTower
    words: Words
    remembered: Mapping[str, np.ndarray]

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 unit rows ``(B, D)``."""
        return self.rows_and_states(texts)[0]

    def rows_and_states(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Texts to float32 unit rows ``(B, D)`` and, for each, its token states ``(L, W)``."""
        ids = [self.words.ids(text) for text in texts]
        parts = [self.numpy.features_and_states(ids[start : start + AT_ONCE]) for start in range(0, len(ids), AT_ONCE)]
        rows = unit_rows(np.concatenate([features for features, _ in parts]), "text")
        return rows, [one for _, states in parts for one in states]


def export(encoder: Encoder, folder: Path, remembered: Sequence[str] = ()) -> str | None:
    """Write the text tower of ``encoder`` into ``folder``, with the vectors of the texts ``remembered``.

    Returns:
        None, or why NumPy cannot run it; the folder remembers that too.

    Raises:
        StorageError: the folder cannot be written.
    """
    from indexer.text_tower.parts import NoTower

    description: dict[str, Any] = {"format": FORMAT, "fingerprint": encoder.fingerprint}
    try:
        folder.mkdir(exist_ok=True)
        (folder / DESCRIPTION).unlink(missing_ok=True)
        try:
            if not isinstance(encoder, ExportableEncoder):
                raise NoTower(f"{type(encoder).__name__} does not give its text tower away")
            description |= _written(encoder, encoder.text_parts(), folder, list(dict.fromkeys(remembered)))
        except ModelError as exc:
            for name in (WEIGHTS, TOKENIZER):
                (folder / name).unlink(missing_ok=True)
            description["unable"] = str(exc)
        write_durably(
            folder / DESCRIPTION, json.dumps(description | {"checksum": _checksum(description)}, indent=1).encode()
        )
    except OSError as exc:
        raise StorageError(f"cannot write the text tower into {folder}: {exc.strerror}") from exc
    return description.get("unable")


def _written(encoder: Encoder, parts: Parts, folder: Path, remembered: list[str]) -> dict[str, Any]:
    """Write and check the files; what there is to say of them."""
    from threadpoolctl import threadpool_limits

    from indexer.text_tower.parts import NoTower

    if parts.tokenizer is not None:
        write_durably(folder / TOKENIZER, parts.tokenizer.encode())
    about: dict[str, Any] = {
        "encoder": {
            name: getattr(encoder, name)
            for name in ("dim", "image_size", "max_tokens", "calibration", "patches", "state_size")
            if hasattr(encoder, name)
        },
        "plan": asdict(parts.plan),
        "words": asdict(parts.words),
        "remembered": remembered,
    }
    try:
        tower = _tower(folder, about, parts.weights, {})
        with threadpool_limits(1, user_api="blas"):  # products of a few tokens: threads would only wait for each other
            distance = _distance(encoder, tower, [*PROBES, *remembered[:COMPARED]])
            if not distance <= MAX_DISTANCE:
                raise NoTower(f"in NumPy the cosine to its vectors falls to {1 - distance:.4f}")
            rows = tower.rows(remembered) if remembered else np.zeros((0, encoder.dim), np.float32)
    except (KeyError, ValueError, IndexError, TypeError) as exc:
        raise NoTower(f"NumPy cannot run it as it is ({type(exc).__name__}: {exc})") from exc
    weights = {name: np.ascontiguousarray(one) for name, one in (parts.weights | {REMEMBERED: rows}).items()}
    write_durably(folder / WEIGHTS, lambda fresh: _save(weights, fresh))
    files = (WEIGHTS, TOKENIZER) if parts.tokenizer is not None else (WEIGHTS,)
    about["files"] = {
        name: {"bytes": (folder / name).stat().st_size, "blake2b": _digest(folder / name)} for name in files
    }
    return about | {"cosine": 1 - distance}


def _distance(encoder: Encoder, tower: Tower, texts: list[str]) -> float:
    """How far from 1 the cosines fall between what ``encoder`` says of texts, and of their tokens, and what ``tower``
    says; 2 if they do not even agree on the tokens."""
    if any(encoder.count_tokens(text) != tower.words.count(text) for text in texts):
        return 2.0
    found, expected = tower.rows(texts), encoder.encode_texts(texts)
    cosines = [np.sum(found.astype(np.float64) * expected, axis=1)]
    if has_patches(encoder):
        texts = texts[: len(PROBES)]
        for one, other in zip(tower.rows_and_states(texts)[1], encoder.encode_text_states(texts)[1], strict=True):
            if one.shape != other.shape:
                return 2.0
            cosines.append(np.sum(unit_rows(one, "token").astype(np.float64) * unit_rows(other, "token"), axis=1))
    return float(1 - np.concatenate(cosines).min())


def read(folder: Path, fingerprint: str) -> Tower | str:
    """The tower in ``folder`` of the encoder with this fingerprint, or why there is none. Its weights are mapped."""
    again = "the next 'mmsearch index' exports it"
    description = describe(folder)
    if description is None:
        return f"its text tower was not exported; {again}"
    if description.get("format") != FORMAT or description.get("fingerprint") != fingerprint:
        return f"the exported text tower is one of another model or version; {again}"
    if "unable" in description:
        return str(description["unable"])
    try:
        for name, file in description["files"].items():
            if (folder / name).stat().st_size != file["bytes"]:
                raise ValueError(f"{name} is not as long as it was")
        return _open(folder, description)
    except (OSError, KeyError, ValueError, TypeError, ModelError) as exc:
        return f"the exported text tower is damaged ({exc}); {again}"


def wanted(folder: Path, fingerprint: str) -> bool:
    """Whether the tower of the encoder with this fingerprint should be exported: nobody tried, or it is damaged."""
    description = describe(folder) or {}
    if description.get("format") != FORMAT or description.get("fingerprint") != fingerprint:
        return True
    return "unable" not in description and isinstance(read(folder, fingerprint), str)


def verify(folder: Path) -> str | None:
    """Check every byte of an export; what is damaged is taken away, and said."""
    description = describe(folder)
    if not folder.is_dir() or (description is not None and "unable" in description):
        return None
    try:
        if description is not None and all(
            _digest(folder / name) == file["blake2b"] for name, file in description["files"].items()
        ):
            return None
    except (OSError, KeyError, TypeError, AttributeError):
        pass  # damaged like the rest
    try:
        for name in (DESCRIPTION, WEIGHTS, TOKENIZER):
            (folder / name).unlink(missing_ok=True)
    except OSError as exc:
        raise StorageError(f"cannot remove the damaged text tower in {folder}: {exc.strerror}") from exc
    return "the exported text tower was damaged and is removed; the next 'mmsearch index' exports it again"


def describe(folder: Path) -> dict[str, Any] | None:
    """What ``tower.json`` says; None if there is none, or it is not as it was written."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        checksum = description.pop("checksum", None)
        return description if checksum == _checksum(description) else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _open(folder: Path, about: Mapping[str, Any]) -> Tower:
    weights = map_tensors(folder / WEIGHTS)
    return _tower(folder, about, weights, dict(zip(about["remembered"], weights[REMEMBERED], strict=True)))


def _tower(
    folder: Path, about: Mapping[str, Any], weights: Mapping[str, np.ndarray], remembered: Mapping[str, np.ndarray]
) -> Tower:
    plan, settings = dict(about["plan"]), about["words"]
    plan["head"] = tuple(plan["head"])
    words: Words
    if settings["kind"] == "byte-pairs":
        tables = (weights[f"words.{name}"] for name in ("pairs", "ranks", "letters"))
        words = BytePairs(*tables, clean=settings["clean"], limit=settings["limit"])
    else:
        words = LibraryWords(
            folder / TOKENIZER, clean=settings["clean"], limit=settings["limit"], without=settings["without"]
        )
    return Tower(about, NumpyTower(Plan(**plan), weights), words, remembered)


def _checksum(description: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _save(weights: Mapping[str, np.ndarray], path: Path) -> None:
    """Write tensors, without a second copy of them in memory.

    Raises:
        OSError: they cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(weights), path)
    except SafetensorError as exc:  # what it says of a full disk, too
        raise OSError(errno.EIO, str(exc)) from exc
