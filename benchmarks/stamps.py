"""The stamps of Tux Paint as a dataset: 800 cut-out things with a sentence each, to choose models by beside Flickr8k.

    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb deb
    python benchmarks/stamps.py deb/usr/share/tuxpaint/stamps stamps
    mmsearch eval --data stamps --split all

They are as unlike Flickr8k's photographs as a user's scans, drawings and product pictures may be: a model that only
got better at Flickr8k gets worse here. Nobody trains on them. Each is laid on white; the first line of the text beside
it is its caption.
"""

import argparse
from pathlib import Path

from PIL import Image

WHITE = (255, 255, 255, 255)


def lay_out(stamps: Path, out: Path) -> int:
    """Write ``out/images`` and ``out/captions.tsv``; the number of stamps."""
    (out / "images").mkdir(parents=True)
    rows = ["image\tcaption"]
    for text in sorted(stamps.rglob("*.txt")):
        picture = text.with_suffix(".png")
        caption = text.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
        if not picture.is_file() or not caption:
            continue
        with Image.open(picture) as opened:
            stamp = opened.convert("RGBA")
        sheet = Image.new("RGBA", stamp.size, WHITE)
        sheet.alpha_composite(stamp)
        name = "-".join(picture.relative_to(stamps).with_suffix(".jpg").parts)
        sheet.convert("RGB").save(out / "images" / name, quality=92)
        rows.append(f"{name}\t{' '.join(caption.split())}")
    (out / "captions.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return len(rows) - 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stamps", type=Path, help="usr/share/tuxpaint/stamps of the package")
    parser.add_argument("out", type=Path, help="folder to make")
    asked = parser.parse_args()
    print(lay_out(asked.stamps, asked.out), "stamps")
