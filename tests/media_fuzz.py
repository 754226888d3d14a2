"""Mutated pictures, sounds and bundles, and what the public functions make of them.

benchmarks/fuzz_media.py runs tens of thousands of them; tests/test_guard.py some hundreds.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from bundle_support import bundle_of, honest, ignore, members_of, sealed, with_manifest
from PIL import Image
from sound_files import CODECS, noise, write_sound

from svi_story.bundle.unpack import unpack
from svi_story.errors import InputError
from svi_story.media import guard
from svi_story.media.audio_files import open_sound
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.keys import canonical

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

Seeds = dict[str, bytes]
"""Good files, by names with their endings."""

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 2**24, 2**20, 2**28)
"""What lengths and counts are set to."""


@dataclass
class Outcome:
    """What became of many files."""

    files: Counter[str] = field(default_factory=Counter)
    """How many of each kind."""
    read: int = 0
    refused: int = 0
    slow: int = 0
    """Refused because they took too long."""
    crashed: list[str] = field(default_factory=list)
    """Files that ended the process behind the guard, by name, which it survived."""
    unexpected: list[str] = field(default_factory=list)
    """Errors that are none of ours."""
    longest: float = 0.0
    """Seconds of the slowest file."""


def picture_seeds() -> Seeds:
    """One small picture of every kind, and of those whose decoders are others."""
    pixels = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC)
    frames = [image.rotate(90 * turn) for turn in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    several = {"save_all": True, "append_images": frames}
    kinds: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("rgb.png", image, {"exif": exif}),
        ("rgba.png", image.convert("RGBA"), {}),
        ("palette.png", image.convert("P"), {"transparency": 3}),
        ("wide.png", wide, {}),
        ("several.png", image, several),
        ("plain.jpg", image, {"exif": exif}),
        ("progressive.jpg", image, {"progressive": True}),
        ("cmyk.jpg", image.convert("CMYK"), {}),
        ("lossy.webp", image, {"exif": exif}),
        ("lossless.webp", image.convert("RGBA"), {"lossless": True}),
        ("several.webp", image, several),
        ("lossy.avif", image, {"exif": exif}),
        ("several.avif", image, several),
        ("plain.bmp", image, {}),
        ("palette.bmp", image.convert("P"), {}),
        ("plain.tiff", image, {}),
        ("lzw.tiff", image, {"compression": "tiff_lzw"}),
        ("deflate.tiff", wide, {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tiff", image, {"compression": "jpeg"}),
        ("group4.tiff", image.convert("1"), {"compression": "group4"}),
        ("plain.gif", image.convert("P"), {"comment": b"a comment" * 9}),
        ("several.gif", image, several),
    ]
    return {name: _saved(kind, name, options) for name, kind, options in kinds}


def _saved(image: Image.Image, name: str, options: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    kind = {"jpg": "JPEG"}.get(Path(name).suffix[1:], Path(name).suffix[1:].upper())
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sound_seeds(folder: Path) -> Seeds:
    """A fifth of a second in every kind of container."""
    paths = [write_sound(folder / f"sound.{suffix}", noise(9600, height=0.1)) for suffix in CODECS]
    return {path.name: path.read_bytes() for path in paths}


def mutated(rng: random.Random, seeds: Seeds, name: str) -> bytes:
    """A seed, changed once or a few times in one of the ways that files are damaged, or forged."""
    data = bytearray(seeds[name])
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice((_flip, _flip, _cut, _renumber, _renumber, _repeat, _splice))(rng, data, seeds)
    return bytes(data)


def _flip(rng: random.Random, data: bytearray, _seeds: Seeds) -> None:
    for _ in range(rng.randint(1, 4)):
        if data:
            data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray, _seeds: Seeds) -> None:
    start = _place(rng, data)
    del data[start : start + rng.choice((1, 4, rng.randint(1, 200), len(data)))]


def _renumber(rng: random.Random, data: bytearray, _seeds: Seeds) -> None:
    """A length or a count that is another."""
    kind = rng.choice((">H", "<H", ">I", "<I"))
    size = struct.calcsize(kind)
    start = _place(rng, data)
    number = rng.choice((*NUMBERS, len(data), rng.randrange(2**32)))
    data[start : start + size] = struct.pack(kind, number % 256**size)


def _repeat(rng: random.Random, data: bytearray, _seeds: Seeds) -> None:
    start = _place(rng, data)
    part = data[start : start + rng.choice((4, 12, 64, 400))]
    data[start:start] = part * rng.choice((1, 2, 50, 500))


def _splice(rng: random.Random, data: bytearray, seeds: Seeds) -> None:
    other = seeds[rng.choice(list(seeds))]
    start = _place(rng, data)
    data[start:] = other[rng.randrange(len(other)) :]


def _place(rng: random.Random, data: bytearray) -> int:
    """Mostly near the beginning, where headers are."""
    return min(int(len(data) * rng.random() ** 3), max(len(data) - 1, 0))


def pictures(rng: random.Random, count: int, folder: Path, outcome: Outcome) -> None:
    """Read so many mutated pictures."""
    seeds = picture_seeds()

    def read(path: Path) -> None:
        guard.fitted_picture(path, 64, 32, "crop")

    _try_all(rng, count, seeds, folder, outcome, read)


def sounds(rng: random.Random, count: int, folder: Path, outcome: Outcome) -> None:
    """Read so many mutated sounds."""

    def read(path: Path) -> None:
        with open_sound(path) as file:
            guard.count_samples(path, file)

    _try_all(rng, count, sound_seeds(folder), folder, outcome, read)


def _try_all(
    rng: random.Random,
    count: int,
    seeds: Seeds,
    folder: Path,
    outcome: Outcome,
    read: Callable[[Path], None],
) -> None:
    names = list(seeds)
    for number in range(count):
        name = names[number % len(names)]
        path = folder / f"mutated-{name}"
        path.write_bytes(mutated(rng, seeds, name))
        outcome.files[path.suffix[1:]] += 1
        _try_one(f"{number} {name}", path, read, outcome)


def _try_one(label: str, path: Path, read: Callable[[Path], None], outcome: Outcome) -> None:
    began = time.monotonic()
    try:
        read(path)
    except InputError as error:
        outcome.refused += 1
        text = str(error)
        outcome.slow += guard.SLOW in text
        if f"{guard.ENDED} (" in text:
            outcome.unexpected.append(f"{label}: {text}")
        elif guard.ENDED in text:
            outcome.crashed.append(label)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        outcome.unexpected.append(f"{label}: {error!r}")
    else:
        outcome.read += 1
    outcome.longest = max(outcome.longest, time.monotonic() - began)


def bundles(rng: random.Random, count: int, board: Path, outcome: Outcome) -> None:
    """Unpack so many mutated bundles of a board whose segments are in the cache, each into another cache.

    One in three is mutated as a zip. Of the others one member is, and its manifests vouch for it.
    """
    members = members_of(bundle_of(board, board.with_suffix(".zip"), entries=True))
    whole = board.with_suffix(".zip").read_bytes()
    names = sorted(members)
    path, cache = board.with_name("mutated.zip"), board.with_name("mutated-cache")
    for number in range(count):
        name = rng.choice(names)
        if number % 3 == 0:
            path.write_bytes(mutated(rng, {"zip": whole}, "zip"))
        else:
            seeds = {name: members[name]}
            honest(path, _vouched({**members, name: mutated(rng, seeds, name)}, name))
        outcome.files["zip"] += 1
        _try_one(
            f"{number} {name}",
            path,
            lambda path: _unpacked(path, cache),
            outcome,
        )
        shutil.rmtree(cache, ignore_errors=True)


def _unpacked(path: Path, cache: Path) -> None:
    unpack(path, cache, Fingerprints(cache / "memo.json", report=ignore))


def _vouched(members: dict[str, bytes], name: str) -> dict[str, bytes]:
    """The members with manifests that agree with one that was changed."""
    if name == "manifest.json":
        return members
    folder, _, file = name.rpartition("/")
    entry = f"{folder}/entry.json"
    if entry in members and entry != name:
        about = json.loads(members[entry])
        about["files"][file] = sealed(members[name])
        about.pop("sha256")
        about["sha256"] = sealed(canonical(about))["sha256"]
        members = {**members, entry: json.dumps(about).encode()}
    return with_manifest(members)


def peaks() -> tuple[float, float]:
    """The most memory in MB that this process had, and that any child had that ended."""
    return tuple(  # type: ignore[return-value]  # two of them
        resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
