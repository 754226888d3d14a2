"""The record of what a film was made from, the captions beside it, and whether the film is up to date."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from svi_story import __version__
from svi_story.cache.layout import Layout
from svi_story.cache.outputs import Outputs, is_plain
from svi_story.cut.audio import audio_inputs, soundtrack_of
from svi_story.cut.captions import srt
from svi_story.cut.encode import encoding_of, piece_inputs
from svi_story.cut.extras import extras_of
from svi_story.cut.timeline import pieces_of, ranges_of
from svi_story.events import Warned
from svi_story.fields import JsonModel
from svi_story.files import UnfitError, disk, read_regular, sha256_file
from svi_story.plan.diff import (
    ClipDescription,
    FilmDescription,
    SegmentDescription,
)
from svi_story.plan.keys import key_of, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cache.store import Store
    from svi_story.cut.extras import Cue
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Segment, Shot
    from svi_story.render.jobs import Job


RECORD_VERSION: Literal[2] = 2

LARGEST = 128 * 2**20
"""Bytes of a record; one of 1,000 clips has about 3 MB."""

NOT_UTF_8 = "backslashreplace"
"""A file name that is not UTF-8 is written with escapes that JSON knows."""


def partial_film(film: Path) -> Path:
    """The path of the film with the clips that are finished so far."""
    return film.with_suffix(".partial.mp4")


def record_path(film: Path) -> Path:
    """The path of a film's record."""
    return film.with_suffix(".json")


class ReferenceRecord(JsonModel):
    """A reference image."""

    path: str
    sha256: str | None = Field(description="of the file; null where it was gone already")
    fit: str
    pixels: str = Field(description="sha256 of what the model saw")


class LoraRecord(JsonModel):
    """A LoRA of a clip."""

    path: str
    high: int | float
    low: int | float
    sha256: str | None = Field(description="null where the engine uses none")


class SegmentRecord(JsonModel):
    """A segment."""

    key: str
    frames: int = Field(0, description="what the model rendered")
    contributes: int = Field(0, description="what reached the film")
    seed: int = 0
    inputs: dict[str, Any] = Field(
        description="all that went into the key: every sampler setting, the hashes of weights and LoRAs"
    )
    maker: int = Field(0, description="what rendered it, by its place in `makers`")
    seconds: dict[str, Any] = Field({}, description="`sampling`, `decoding`; null where it was not noted")


class TakeRecord(JsonModel):
    """A take of a clip that the film does not use, but that was to be rendered after it."""

    number: int = Field(description="from 1")
    seed: int
    keys: tuple[str, ...] = Field(description="of its segments")


class ClipRecord(JsonModel):
    """A clip."""

    id: str
    prompt: str = Field(description="joined with the style")
    negative_prompt: str = ""
    seed: int = 0
    asked_frames: int = Field(0, description="what the author asked for")
    reference: str = ""
    loras: tuple[LoraRecord, ...] = ()
    fade: int = Field(description="frames it shares with the clip before")
    dip: int = Field(0, description="frames that go through black between the clip before and it")
    finish: dict[str, Any] = Field(
        {}, description="`caption`, `voices` and `sounds` (recordings as in `music`)"
    )
    segments: tuple[SegmentRecord, ...]
    pick: int = Field(1, description="the number of the take that the film uses: `segments` are its own")
    other_takes: tuple[TakeRecord, ...] = Field((), description="the other takes")


class Record(JsonModel):
    """What a film was made from."""

    version: Literal[1, 2] = Field(description="2; version 1 (fewer fields) is still read")
    film: str = Field("", description="the film's name")
    bytes: int = Field(description="the size that its file must have to count as up to date")
    sha256: str = Field(description="the hash that its file must have to count as up to date")
    captions_sha256: tuple[str, ...] = Field(
        (), description="of the captions that were written beside it, and of those before them"
    )
    recipe: str = Field(description="one hash of everything that decides the film's bytes, and of `bundle`")
    bundle: str | None = Field(
        None,
        description="sha256 of the bundle whose own segments the film is made of; null where they are of the "
        "usual cache",
    )
    title: str
    board: str = Field("", description="the absolute path of the board, or of the bundle")
    board_sha256: str = Field(description="of the board's bytes")
    storyboard: str = Field("", description="the board's text")
    engine: str = ""
    frames: int = 0
    seconds: int | float = 0
    fps: Any = Field("", description="the film's frame rate, as text")
    width: int = 0
    height: int = 0
    board_fps: str = Field("", description="the board's frame rate, as text")
    cut: dict[str, Any] = Field(
        description="every setting with its defaults filled in: `fps`, `codec`, `crf`, `preset`, `captions` "
        "(`burn`, `srt`, `both`, `off`), `fade_in`, `fade_out`, `title_card` and `end_card` (`text`, "
        "`frames`), `music` (`path`, `sha256`, `volume`, `start`, `fade_in`, `fade_out`, `loop`, `duck`; "
        "times in seconds)"
    )
    references: tuple[ReferenceRecord, ...] = Field((), description="every reference image, each once")
    clips: tuple[ClipRecord, ...]
    makers: tuple[dict[str, Any], ...] = Field(
        (),
        description="what rendered the segments, each once: `versions` of the packages, `environment` (GPU, "
        "torch, attention kernel, ...)",
    )
    versions: dict[str, str] = Field({}, description="of the packages that cut the film")

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, found: Any) -> Any:
        """Version 1 knew of the cut its fps, crf and fades; it is read so that `plan --why` can compare."""
        if isinstance(found, dict) and found.get("version") == 1:
            return {**found, "cut": {"fps": found["fps"], "crf": found["crf"]}}
        return found

    @property
    def made(self) -> FilmDescription:
        """What `plan --why` compares."""
        clips = (
            ClipDescription(
                clip.id,
                clip.prompt,
                tuple(SegmentDescription(each.key, each.inputs) for each in clip.segments),
                clip.fade,
                clip.dip,
                clip.finish,
                clip.pick,
                1 + len(clip.other_takes),
            )
            for clip in self.clips
        )
        return FilmDescription(self.title, self.board_sha256, self.cut, tuple(clips))


def read_record(film: Path) -> Record | None:
    """The record of a film; None if there is none, or it is damaged."""
    try:
        return Record.model_validate(json.loads(read_regular(record_path(film), LARGEST)))
    except (OSError, ValueError, LookupError, RecursionError):
        return None


def is_up_to_date(film: Path, recipe: str) -> bool:
    """Whether the film at this path was made by this recipe and has not changed since."""
    record = read_record(film)
    if record is None or record.recipe != recipe:
        return False
    try:
        return film.stat().st_size == record.bytes and sha256_file(film) == record.sha256
    except OSError:
        return False


def write_record(
    job: Job,
    recipe: str,
    entries: Mapping[str, Entry],
    captions: tuple[str, ...],
    outputs: Outputs | None = None,
) -> None:
    """Write the record of a film that was just written; `entries` are its segments by key.

    `captions` as `Record.captions_sha256`.
    """
    film, plan = job.place.film, job.plan
    makers = _Makers(entries)
    clips = tuple(_clip(shot, job, makers) for shot in plan.shots)
    record = Record(
        version=RECORD_VERSION,
        film=film.name,
        bytes=film.stat().st_size,
        sha256=sha256_file(film),
        captions_sha256=captions,
        recipe=recipe,
        bundle=Layout(job.place.cache).origin,
        title=plan.title,
        board=str(job.place.board.resolve()),
        board_sha256=plan.digest,
        storyboard=plan.source,
        engine=plan.engine,
        frames=plan.frames,
        seconds=plan.seconds,
        fps=str(plan.cut.fps),
        width=plan.size.width,
        height=plan.size.height,
        board_fps=str(plan.fps),
        cut=plan.cut.describe(plan.resolver),
        references=_references(job),
        clips=clips,
        makers=tuple(makers.known),
        versions=versions(),
    )
    text = json.dumps(record.model_dump(), indent=1, ensure_ascii=False)
    with disk(record_path(film), "writing the film's record"):
        (outputs or Outputs()).write(record_path(film), text.encode("utf-8", NOT_UTF_8) + b"\n")


class _Makers:
    """The versions and machines that rendered the segments, each listed once."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self.known: list[dict[str, Any]] = []

    def of(self, segment: Segment) -> dict[str, Any]:
        """The index in `known` of what rendered a segment, and how long it took."""
        notes = self._entries[segment.key].notes
        maker: dict[str, Any] = {name: notes.get(name, {}) for name in ("versions", "environment")}
        if maker not in self.known:
            self.known.append(maker)
        seconds = {name: notes.get(f"{name}_seconds") for name in ("sampling", "decoding")}
        return {"maker": self.known.index(maker), "seconds": seconds}


def _references(job: Job) -> tuple[ReferenceRecord, ...]:
    """Every chain's reference image, each once."""
    found = []
    for anchor in dict.fromkeys(segment.anchor for shot in job.plan.shots for segment in shot.segments):
        sha256 = None
        with suppress(OSError):  # the file was removed since its pixels were read
            sha256 = sha256_file(anchor.path)
        name = job.plan.resolver.name(anchor.path)
        found.append(ReferenceRecord(path=name, sha256=sha256, fit=anchor.fit, pixels=anchor.pixels))
    return tuple(found)


def _clip(shot: Shot, job: Job, makers: _Makers) -> ClipRecord:
    first, resolver = shot.segments[0], job.plan.resolver
    return ClipRecord(
        id=shot.id,
        prompt=shot.prompt,
        negative_prompt=first.negative_prompt,
        seed=shot.seed,
        asked_frames=shot.asked_frames,
        reference=resolver.name(first.anchor.path),
        loras=tuple(_loras(first, job)),
        fade=shot.fade,
        dip=shot.dip,
        finish=shot.describe_finish(resolver),
        segments=tuple(
            SegmentRecord(
                key=segment.key,
                frames=segment.frames,
                contributes=segment.contributes,
                seed=segment.seed,
                inputs=dict(segment.inputs),
                **makers.of(segment),
            )
            for segment in shot.segments
        ),
        pick=shot.pick,
        other_takes=tuple(
            TakeRecord(
                number=take.number, seed=take.seed, keys=tuple(segment.key for segment in take.segments)
            )
            for take in shot.other_takes
        ),
    )


def _loras(segment: Segment, job: Job) -> Iterator[LoraRecord]:
    """The LoRAs that the board asks for, with their hashes where the engine used them."""
    inputs = segment.inputs.get("inputs")
    found = inputs.get("loras") if isinstance(inputs, dict) else None
    hashed = found if isinstance(found, list) else []
    used = [lora for lora in segment.loras if lora.high or lora.low]
    hashes = dict(zip(reversed(used), reversed(hashed), strict=False))  # a preset's own come before them
    for lora in segment.loras:
        entry = hashes.get(lora)
        digest = entry.get("sha256") if isinstance(entry, dict) else None
        path = job.plan.resolver.name(lora.path)
        yield LoraRecord(
            path=path, high=lora.high, low=lora.low, sha256=digest if isinstance(digest, str) else None
        )


def versions() -> dict[str, str]:
    """Versions of every package that can change a frame."""
    packages = ("numpy", "pillow", "av", "moviepy", "imageio-ffmpeg", "typst")
    return {
        "svi-story": __version__,
        "python": platform.python_version(),
        **{package: version_of(package) for package in packages},
    }


LARGEST_CAPTIONS = 16 * 2**20
"""Bytes of captions; all the texts of a board take 2 MB."""
HASH = 64
"""Characters of a sha256."""


@dataclass(frozen=True)
class Captions:
    """The caption file beside a film.

    The record is written first and has the hashes of the new and the old captions, so that both are
    recognised as ours after a kill between the two writes.
    """

    path: Path
    data: bytes
    """Empty if there should be none."""
    ours: tuple[str, ...]
    """sha256 of `data`, and of captions that were written before."""

    def write(self, outputs: Outputs, report: Reporter) -> None:
        """Write or remove the file. An edited one is kept, with a warning. RenderError if the disk fails."""
        if outputs.keeps(self.path):
            return
        existing = _hash(self.path)
        ours = existing in self.ours or outputs.is_ours(self.path)
        if self.data and os.path.lexists(self.path) and not (ours and is_plain(self.path)):
            how = "was changed by hand" if len(existing) in (0, HASH) else existing
            what = f"{how} and is kept; remove it to get the board's captions"
            report(Warned(f"{self.path}: {what}"))
        elif self.data and existing != self.ours[0]:
            with disk(self.path, "writing the captions"):
                outputs.allow(self.path)
                outputs.write(self.path, self.data)
        elif not self.data and existing in self.ours and is_plain(self.path):
            with suppress(OSError):
                self.path.unlink()

    @property
    def is_current(self) -> bool:
        """Whether there is nothing to write or remove."""
        existing = _hash(self.path)
        if self.data:
            return existing == self.ours[0] or (existing != "" and existing not in self.ours)
        return existing not in self.ours


def captions_beside(job: Job, cues: Sequence[Cue]) -> Captions:
    """The captions of a film whose record is about to be written."""
    path = job.place.film.with_suffix(".srt")
    record = read_record(job.place.film)
    data = srt(cues, job.plan.cut.fps).encode() if cues else b""
    new = [hashlib.sha256(data).hexdigest()] if data else []
    before = record.captions_sha256[:2] if record else ()
    return Captions(path, data, tuple(dict.fromkeys([*new, *before])))


def _hash(path: Path) -> str:
    """A file's sha256; for anything but a file what it is, as `is a folder`; empty if there is nothing."""
    try:
        return sha256_file(path, LARGEST_CAPTIONS)
    except UnfitError as error:
        return error.strerror or ""
    except OSError:
        return ""


def is_finished(job: Job, store: Store) -> bool:
    """Whether the film exists as it would be rendered, and no segment has to be rendered again by force."""
    if store.pending_forced([segment.key for segment in job.segments]) or not is_up_to_date(
        job.place.film, recipe_of(job)
    ):
        return False
    return captions_beside(job, extras_of(job.plan, ranges_of(job.plan)).captions).is_current


def recipe_of(job: Job) -> str:
    """One hash of everything that the film's bytes depend on.

    It includes the bundle that brought segments, as those may be forged under valid keys.
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
