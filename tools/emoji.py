"""Make the sheets of emoji that lib/worlds/emoji_data holds from the packages that their drawings come in.

Get both with `npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0`, then
`python -m tools.emoji FOLDER` rewrites the two sheets and the table, byte for byte the same; `--check` only compares.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import tarfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib.record.files import UserError, write_atomic
from lib.worlds import emoji

PACKAGES = {  # house: the package's part of its name, SHA-256 of the file
    "noto": ("google", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
    "twemoji": ("twitter", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"),
}
TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
SHARES = {"test": 0.16, "source": 0.42, "target": 0.42}
# Man, woman, person, the signs that make one of a person, joiners, and "facing right": what near twins differ by.
TWINS = {"1F468", "1F469", "1F9D1", "2640", "2642", "200D", "FE0F", "27A1"}


def entries(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the table's rows from a package's emoji.json: what both houses draw, in the order of the standard."""
    rows = []
    for record in sorted(records, key=lambda record: record["sort_order"]):
        if record["category"] not in emoji.CATEGORIES or not _drawn(record):
            continue
        variants = record.get("skin_variations", {})
        tones = [k for k, tone in enumerate(TONES, 1) if tone in variants and _drawn(variants[tone])]
        files = [record["image"], *(variants[TONES[k - 1]]["image"] for k in tones)]
        row = {"name": record["short_name"], "code": record["unified"], "category": record["category"]}
        rows.append(row | {"kind": record["subcategory"], "tones": "".join(map(str, tones)), "files": " ".join(files)})
    return rows


def _drawn(record: dict[str, Any]) -> bool:
    return bool(record["has_img_google"] and record["has_img_twitter"])


def parts(rows: list[dict[str, str]]) -> list[str]:
    """Return each row's part; near twins (a man, a woman and a person at the same task) share theirs.

    Each kind is divided by the shares, the largest families of twins first, equal ones in an order drawn once.
    """
    family = ["-".join(sorted(set(row["code"].split("-")) - TWINS)) or row["code"] for row in rows]
    sizes, kinds = Counter(family), {name: row["kind"] for name, row in zip(family, rows, strict=True)}
    order = np.random.default_rng(0).permutation(sorted(sizes))
    given: dict[str, str] = {}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name in sorted(order, key=lambda name: -sizes[name]):  # stable: equal sizes stay in the drawn order
        count = counts[kinds[name]]
        given[name] = min(SHARES, key=lambda part: (count[part] + sizes[name]) / SHARES[part])
        count[given[name]] += sizes[name]
    return [given[name] for name in family]


def sheet(package: tarfile.TarFile, house: str, files: list[str]) -> bytes:
    """Return a house's drawings as one PNG: on white, Lanczos, `emoji.COLUMNS` a row."""
    size = emoji.SIZE
    rows = -(-len(files) // emoji.COLUMNS)
    whole = Image.new("RGB", (emoji.COLUMNS * size, rows * size), "white")
    for place, name in enumerate(files):
        with Image.open(_member(package, f"img/{PACKAGES[house][0]}/64/{name}")) as picture:
            drawn = picture.convert("RGBA")
        ground = Image.new("RGBA", drawn.size, "white")
        small = Image.alpha_composite(ground, drawn).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        whole.paste(small, (place % emoji.COLUMNS * size, place // emoji.COLUMNS * size))
    stream = io.BytesIO()
    whole.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _member(package: tarfile.TarFile, name: str) -> Any:
    return package.extractfile(f"package/{name}")


def build(folder: Path) -> dict[str, bytes]:
    """Return the files of `lib/worlds/emoji_data` by name, from the two packages in a folder."""
    files: dict[str, bytes] = {}
    for house, (word, digest) in PACKAGES.items():
        path = folder / f"emoji-datasource-{word}-16.0.0.tgz"
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise UserError(f"{path}: missing, or not the file that npm publishes; SHA-256 {digest}")
        with tarfile.open(path) as package:
            rows = entries(json.load(_member(package, "emoji.json")))
            files[f"{house}.png"] = sheet(package, house, [name for row in rows for name in row["files"].split()])
    text = io.StringIO()
    table = csv.DictWriter(text, ["name", "code", "category", "kind", "tones", "part"], lineterminator="\n")
    table.writeheader()
    for row, part in zip(rows, parts(rows), strict=True):
        table.writerow({key: value for key, value in row.items() if key != "files"} | {"part": part})
    return files | {"emoji.csv": text.getvalue().encode()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the two packages are")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file would change")
    given = parser.parse_args()
    for name, content in build(given.folder).items():
        path = emoji.FOLDER / name
        same = path.is_file() and path.read_bytes() == content
        if given.check and not same:
            raise SystemExit(f"{path}: differs from what the packages give")
        if not same:
            write_atomic(path, content)
        print(f"{name}: {len(content):,} bytes, {'the same' if same else 'written'}")


if __name__ == "__main__":
    main()
