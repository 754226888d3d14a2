"""What the bundle tests share: packing through the functions, and zips written as a stranger likes."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from svi_story.bundle.pack import pack
from svi_story.cache.store import Store
from svi_story.enginespec import EngineOptions
from svi_story.events import Warned
from svi_story.plan.fingerprints import Fingerprints
from svi_story.render.jobs import Job, find_places, prepare

if TYPE_CHECKING:
    from svi_story.events import Event, Reporter

CACHE = Path("renders/.cache")
MODE = 0o100644 << 16


def ignore(event: Event) -> None:
    """A reporter for what nobody asks about."""


def job_of(
    board: Path, engine: str | None = "animatic", options: EngineOptions | None = None, cache: Path = CACHE
) -> Job:
    """A board as the commands plan it."""
    options = options or EngineOptions((Path("no-models"),))
    places = find_places([board], {"engine": engine, "models": options.models, "cache": cache})
    asked = {"dtype": options.dtype, "vae": options.vae}
    jobs, rejected = prepare(places, Fingerprints(cache / "memo.json"), asked)
    assert not rejected, rejected[0].error
    (job,) = jobs
    return job


def warnings_to(heard: list[str]) -> Reporter:
    """A reporter that keeps warnings."""
    return lambda event: heard.append(event.message) if isinstance(event, Warned) else None


def bundle_of(board: Path, target: Path, *, entries: bool = False, **about: Any) -> Path:
    """Pack a board as `export --to bundle` does."""
    job = job_of(board, **about)
    return pack_job(job, target, Store(job.place.cache, ignore) if entries else None)


def pack_job(job: Job, target: Path, store: Store | None = None, prints: Fingerprints | None = None) -> Path:
    """Pack a board that is planned."""
    prints = prints or Fingerprints(Path("memo.json"))
    return pack(job.plan, job.options, target, prints, missing=job.missing, store=store)


def members_of(bundle: Path) -> dict[str, bytes]:
    """What a bundle holds."""
    with ZipFile(bundle) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def sealed(raw: bytes) -> dict[str, Any]:
    """How a manifest vouches for a member."""
    return {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def with_manifest(members: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """The members with a manifest that agrees with all of them, and these changes."""
    manifest = json.loads(members["manifest.json"])
    rest = {name: raw for name, raw in members.items() if name != "manifest.json"}
    manifest |= {"members": {name: sealed(raw) for name, raw in rest.items()}, **changes}
    return {"manifest.json": json.dumps(manifest).encode(), **rest}


def changed(held: dict[str, bytes], /, **changes: Any) -> dict[str, bytes]:
    """The members, with these fields of the manifest changed (None: taken out)."""
    manifest = {**json.loads(held["manifest.json"]), **changes}
    manifest = {name: value for name, value in manifest.items() if value is not None}
    return {**held, "manifest.json": json.dumps(manifest).encode()}


@dataclass
class Raw:
    """One member as a hostile zip may have it; what is None is told truly."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    attributes: int = MODE
    compressed: bytes | None = None
    size: int | None = None
    compressed_size: int | None = None
    offset: int | None = None
    local_name: bytes | None = None
    extra: bytes = b""
    system: int = 3


def raw_zip(
    members: list[Raw], *, before: bytes = b"", between: bytes = b"", after: bytes = b"", comment: bytes = b""
) -> bytes:
    """A zip written byte by byte, with any lie in it."""
    out, central = bytearray(before), bytearray()
    for each in members:
        stored = each.data if each.compressed is None else each.compressed
        size = len(each.data) if each.size is None else each.size
        small = len(stored) if each.compressed_size is None else each.compressed_size
        offset = len(out) - len(before) if each.offset is None else each.offset
        local = each.name if each.local_name is None else each.local_name
        crc = zlib.crc32(each.data)
        common = (each.flags, each.method, 0, 33, crc, small, size)
        out += struct.pack("<4sHHHHHLLLHH", b"PK\x03\x04", 20, *common, len(local), 0)
        out += local + stored + between
        central += struct.pack(
            "<4sBBHHHHHLLLHHHHHLL",
            *(b"PK\x01\x02", 20, each.system, 20, *common),
            *(len(each.name), len(each.extra), 0, 0, 0, each.attributes, offset),
        )
        central += each.name + each.extra
    place = len(out) - len(before)
    count = min(len(members), 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(central), place, len(comment))
    return bytes(out + central + end + comment + after)


def raws(members: dict[str, bytes]) -> list[Raw]:
    """Members as svi-story writes them."""
    return [Raw(name.encode(), data) for name, data in members.items()]


def honest(path: Path, members: dict[str, bytes]) -> Path:
    """A zip as svi-story writes it, of any members."""
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for name, raw in members.items():
            info = ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, MODE
            archive.writestr(info, raw)
    return path
