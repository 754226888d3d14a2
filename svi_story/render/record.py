"""What a film was made from: the record and the captions beside it, and whether the film is up to date."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from svi_story import __version__
from svi_story.cache.layout import Layout
from svi_story.cache.outputs import Outputs, is_plain
from svi_story.cut.audio import audio_inputs
from svi_story.cut.captions import srt
from svi_story.cut.edit_list import encoding_of, pieces_of, ranges_of, soundtrack_of
from svi_story.cut.encode import piece_inputs
from svi_story.events import Warned
from svi_story.files import UnfitError, disk, read_regular, sha256_file
from svi_story.plan.description import (
    ClipDescription,
    FilmDescription,
    SegmentDescription,
    describe_cut,
    describe_finish,
)
from svi_story.plan.keys import key_of
from svi_story.render.metadata import extras_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cache.store import Store
    from svi_story.cut.extras import Cue
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Anchor, Segment, Shot
    from svi_story.render.jobs import Job


RECORD_VERSION = 2
"""Version 1 knew of the cut its fps, crf and fades; it is still read, so that `plan --why` can compare."""

LARGEST = 128 * 2**20
"""Bytes of a record; one of 1,000 clips has about 3 MB."""

ODD_NAMES = "backslashreplace"
"""A file name that is no UTF-8 becomes an escape that JSON knows."""


def partial_film(film: Path) -> Path:
    """Where what exists so far of a film can be watched."""
    return film.with_suffix(".partial.mp4")


def record_path(film: Path) -> Path:
    """Where a film's record lies: beside it."""
    return film.with_suffix(".json")


@dataclass(frozen=True)
class Record:
    """What a film was made from, as far as later runs need it."""

    recipe: str
    size: int
    """The film's bytes."""
    sha256: str
    captions: tuple[str, ...]
    """sha256 of the captions that were written beside it, and of those before them."""
    made: FilmDescription
    bundle: str | None = None
    """sha256 of the bundle that brought the film's segments; None where they are of the usual cache."""
    film: str = ""
    """The film's name."""
    board: str = ""
    """The absolute path of the board, or of the bundle, that it was made from."""
    version: int = RECORD_VERSION


def read_record(film: Path) -> Record | None:
    """The record beside a film; None where there is none, or one that cannot be understood."""
    try:
        found = json.loads(read_regular(record_path(film), LARGEST))
        if found["version"] not in (1, RECORD_VERSION):
            return None
        captions = tuple(map(str, found.get("captions_sha256") or ()))
        about = (found["recipe"], found["bytes"], found["sha256"], captions)
        name, board = (str(found.get(each, "")) for each in ("film", "board"))
        return Record(*about, _made(found), found.get("bundle"), name, board, found["version"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _made(found: dict[str, Any]) -> FilmDescription:
    known = {"fps": found["fps"], "crf": found["crf"]} if found["version"] == 1 else dict(found["cut"])
    clips = tuple(_made_clip(clip) for clip in found["clips"])
    return FilmDescription(str(found["title"]), str(found["board_sha256"]), known, clips)


def _made_clip(clip: dict[str, Any]) -> ClipDescription:
    segments = tuple(SegmentDescription(str(part["key"]), dict(part["inputs"])) for part in clip["segments"])
    finish = dict(clip.get("finish", {}))
    fade, dip = int(clip["fade"]), int(clip.get("dip", 0))
    return ClipDescription(str(clip["id"]), str(clip["prompt"]), segments, fade, dip, finish)


def is_up_to_date(film: Path, recipe: str) -> bool:
    """Whether the film at that place was made by this recipe and is still the file that was made."""
    record = read_record(film)
    if record is None or record.recipe != recipe:
        return False
    try:
        return film.stat().st_size == record.size and sha256_file(film) == record.sha256
    except OSError:
        return False


def write_record(
    job: Job,
    recipe: str,
    entries: Mapping[str, Entry],
    captions: tuple[str, ...],
    outputs: Outputs | None = None,
) -> None:
    """Describe the film that was just put in place; `entries` are its segments by key.

    `captions` is as in `Record`.
    """
    film, plan = job.place.film, job.plan
    makers = _Makers(entries)
    record = {
        "version": RECORD_VERSION,
        "film": film.name,
        "bytes": film.stat().st_size,
        "sha256": sha256_file(film),
        "captions_sha256": list(captions),
        "recipe": recipe,
        "bundle": Layout(job.place.cache).origin,
        "title": plan.title,
        "board": str(job.place.board.resolve()),
        "board_sha256": plan.digest,
        "storyboard": plan.source,
        "engine": plan.engine,
        "frames": plan.frames,
        "seconds": plan.seconds,
        "fps": str(plan.cut.fps),
        "width": plan.size.width,
        "height": plan.size.height,
        "board_fps": str(plan.fps),
        "cut": describe_cut(plan),
        "references": _references(job),
        "clips": [_clip(shot, job, makers) for shot in plan.shots],
        "makers": makers.known,
        "versions": versions(),
    }
    with disk(record_path(film), "describing the film"):
        (outputs or Outputs()).write(
            record_path(film),
            json.dumps(record, indent=1, ensure_ascii=False).encode("utf-8", ODD_NAMES) + b"\n",
        )


class _Makers:
    """What made the segments: versions and machines, each told once."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self.known: list[Json] = []

    def of(self, segment: Segment) -> dict[str, Json]:
        """A segment's maker, by its place in `known`, and the seconds that it took."""
        notes = self._entries[segment.key].notes
        maker: Json = {name: notes.get(name, {}) for name in ("versions", "environment")}
        if maker not in self.known:
            self.known.append(maker)
        seconds: dict[str, Json] = {name: notes.get(f"{name}_seconds") for name in ("sampling", "decoding")}
        return {"maker": self.known.index(maker), "seconds": seconds}


def _references(job: Job) -> list[Json]:
    """Every chain's reference image, each once."""
    anchors = dict.fromkeys(segment.anchor for shot in job.plan.shots for segment in shot.segments)
    return [
        {
            "path": job.plan.resolver.name(anchor.path),
            "sha256": _file_hash(anchor),
            "fit": anchor.fit,
            "pixels": anchor.pixels,
        }
        for anchor in anchors
    ]


def _file_hash(anchor: Anchor) -> str | None:
    """The image file's sha256; None where it was taken away since its pixels were read."""
    try:
        return sha256_file(anchor.path)
    except OSError:
        return None


def _clip(shot: Shot, job: Job, makers: _Makers) -> dict[str, Any]:
    return {
        "id": shot.id,
        "prompt": shot.prompt,
        "negative_prompt": shot.segments[0].negative_prompt,
        "seed": shot.seed,
        "asked_frames": shot.asked_frames,
        "reference": job.plan.resolver.name(shot.segments[0].anchor.path),
        "loras": list(_loras(shot.segments[0], job)),
        "fade": shot.fade,
        "dip": shot.dip,
        "finish": describe_finish(shot, job.plan.resolver),
        "segments": [
            {
                "key": segment.key,
                "frames": segment.frames,
                "contributes": segment.contributes,
                "seed": segment.seed,
                "inputs": segment.inputs,
                **makers.of(segment),
            }
            for segment in shot.segments
        ],
    }


def _loras(segment: Segment, job: Job) -> Iterator[Json]:
    """The LoRAs that the board asks for, with their hashes where the engine used them."""
    inputs = segment.inputs.get("inputs")
    found = inputs.get("loras") if isinstance(inputs, dict) else None
    hashed = found if isinstance(found, list) else []
    used = [lora for lora in segment.loras if lora.high or lora.low]
    hashes = dict(zip(reversed(used), reversed(hashed), strict=False))  # a preset's own come before them
    for lora in segment.loras:
        entry = hashes.get(lora)
        digest = entry.get("sha256") if isinstance(entry, dict) else None
        yield {
            "path": job.plan.resolver.name(lora.path),
            "high": lora.high,
            "low": lora.low,
            "sha256": digest,
        }


def versions() -> dict[str, str]:
    """Versions of everything that can touch a frame."""
    packages = ("numpy", "pillow", "av", "moviepy", "imageio-ffmpeg", "typst")
    return {
        "svi-story": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


LARGEST = 16 * 2**20
"""Bytes of captions; all the texts of a board take 2 MB."""
HASH = 64
"""Characters of a sha256."""


@dataclass(frozen=True)
class Captions:
    """What is to lie beside a film, and what may lie there that is ours.

    The record is written first and names both: killed between the two, the next run knows what it finds.
    """

    path: Path
    data: bytes
    """Empty where there are to be none."""
    ours: tuple[str, ...]
    """sha256 of what is to lie there, and of what we put there before."""

    def put(self, outputs: Outputs, report: Reporter) -> None:
        """Make it so. What somebody changed by hand is kept, with a warning. RenderError from the disk."""
        if outputs.keeps(self.path):
            return
        there = _hash(self.path)
        ours = there in self.ours or outputs.is_ours(self.path)
        if self.data and os.path.lexists(self.path) and not (ours and is_plain(self.path)):
            how = "was changed by hand" if len(there) in (0, HASH) else there
            what = f"{how} and is kept; remove it to get the board's captions"
            report(Warned(f"{self.path}: {what}"))
        elif self.data and there != self.ours[0]:
            with disk(self.path, "writing the captions"):
                outputs.allow(self.path)
                outputs.write(self.path, self.data)
        elif not self.data and there in self.ours and is_plain(self.path):
            with suppress(OSError):
                self.path.unlink()

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        there = _hash(self.path)
        if self.data:
            return there == self.ours[0] or (there != "" and there not in self.ours)
        return there not in self.ours


def captions_beside(job: Job, cues: Sequence[Cue]) -> Captions:
    """The captions of a film that is about to be recorded."""
    path = job.place.film.with_suffix(".srt")
    record = read_record(job.place.film)
    data = srt(cues, job.plan.cut.fps).encode() if cues else b""
    new = [hashlib.sha256(data).hexdigest()] if data else []
    before = record.captions[:2] if record else ()
    return Captions(path, data, tuple(dict.fromkeys([*new, *before])))


def _hash(path: Path) -> str:
    """A file's sha256; why it can be none of ours, as `is a folder`; empty where there is none."""
    try:
        return sha256_file(path, LARGEST)
    except UnfitError as error:
        return error.strerror or ""
    except OSError:
        return ""


def is_finished(job: Job, store: Store) -> bool:
    """Whether the film is there as it would be made, and no segment waits for being made again by force."""
    if store.pending_forced([segment.key for segment in job.segments]) or not is_up_to_date(
        job.place.film, recipe_of(job)
    ):
        return False
    return captions_beside(job, extras_of(job.plan, ranges_of(job.plan)).captions).settled


def recipe_of(job: Job) -> str:
    """One hash of everything that decides the film's bytes.

    Segments that a bundle brought may be forged under honest keys: whose they are counts too.
    """
    encoding, pieces = encoding_of(job.plan), pieces_of(job.plan)
    inputs: dict[str, Json] = {
        "pieces": [dict(piece_inputs(piece, encoding)) for piece in pieces],
        "sound": audio_inputs(soundtrack_of(job.plan)),
        "extras": extras_of(job.plan, ranges_of(job.plan)).identity(),
    }
    origin = Layout(job.place.cache).origin
    if origin:
        inputs["bundle"] = origin
    return key_of(inputs)
