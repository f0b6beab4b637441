"""How the pictures look that an earlier version indexed: read once more, and committed batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from indexer.decode import decode_image
from indexer.decode.likeness import likeness
from indexer.errors import DecodeError
from indexer.reading import open_regular, read_ahead
from indexer.records import Likeness
from indexer.reports import Progress
from indexer.types import Asset
from indexer.writer import IndexWriter

_BATCH = 256


def add_likenesses(
    writer: IndexWriter,
    under: Sequence[str],
    image_size: int,
    progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Note how each picture at or below the paths ``under`` looks of which it is not known; no model takes part.

    A file that is not as it was when its vector was made, or cannot be read, stays without. Killed or interrupted, the
    next call carries on.

    Raises:
        StorageError: the index cannot be written.
    """
    with writer.catalogue.read() as reader:
        ids = reader.without_likeness(under)
    if not ids:
        return
    say(f"looking once at {len(ids):,} pictures that an earlier version indexed, so that copies among them are found")

    def look(asset: Asset) -> Likeness | None:
        try:
            with open_regular(asset.path) as file:
                data = file.read()
            if writer.digest.of(data) != asset.digest:
                return None
            return likeness(decode_image(data, size=image_size))
        except (DecodeError, OSError, MemoryError):
            return None

    for start in range(0, len(ids), _BATCH):
        with writer.catalogue.read() as reader:
            assets = reader.assets(ids[start : start + _BATCH])
        found: dict[int, Likeness] = {}
        with closing(read_ahead(look, assets.values())) as looks:
            for done, (asset_id, look_of) in enumerate(zip(assets, looks, strict=True), start + 1):
                if look_of is not None:
                    found[asset_id] = look_of
                progress(Progress(done, len(ids), 0, assets[asset_id].path))
        writer.put_likenesses(found)
