"""The resolved film as frozen values: all defaults are filled in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from svi_story.enginespec.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from svi_story.enginespec.sampling import Lora
    from svi_story.errors import Problem
    from svi_story.plan.keys import Json
    from svi_story.storyboard.source import Resolver

SAMPLE_RATE = 48_000
"""Samples per second of all sound."""

Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True)
class Size:
    """A picture's size in pixels; both sides are multiples of 16."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Anchor:
    """The reference image of a chain, fitted to the film's size."""

    path: Path
    size: Size
    fit: Fit
    pixels: str
    """sha256 of the RGB bytes after fit (height x width x 3, uint8, row-major)."""
    source: Size | None = field(default=None, compare=False)
    """The picture's size before fit, where it is known; for warnings only."""


@dataclass(frozen=True)
class Segment:
    """One pass of the engine."""

    clip: str
    """The clip's id."""
    index: int
    """0-based place within the clip."""
    prompt: str
    """The joined prompt: the clip's, a space, the board's style."""
    negative_prompt: str
    seed: int
    size: Size
    fps: Fraction
    frames: int
    """Frames of the pass, overlap included."""
    overlap: int
    """Leading frames that repeat the parent's last ones and never reach the film; 0 where a chain starts."""
    first_frame: int
    """Frame 0's place within the clip; negative where the overlap reaches back into the clip before."""
    anchor: Anchor
    engine: str
    """The name of the engine that renders it."""
    options: object
    """The engine's own settings, from `EngineSpec.options`."""
    loras: tuple[Lora, ...] = ()
    """The board's, then the clip's."""
    take: int = 1
    """The number of the take that it belongs to; only the seed depends on it."""
    key: str = ""
    """Its cache key, 64 hex digits; empty while the engine is missing something that the key depends on."""
    parent: str | None = None
    """The key of the segment it continues from; None where a chain starts."""
    base_key: str = ""
    """The key that it would have if every clip had its first take only: the same whatever is picked."""
    inputs: Mapping[str, Json] = field(default_factory=dict, compare=False, repr=False)
    """Everything that went into the key."""
    board: Path = field(default=Path(), compare=False)
    """Its board, as the user named it; used in events."""

    @property
    def name(self) -> tuple[Path, str, int, int]:
        """Board, clip, take and index: the same as of its events."""
        return self.board, self.clip, self.take, self.index

    @property
    def sampler(self) -> Sampler:
        """The options, for an engine that samples."""
        assert isinstance(self.options, Sampler), f"{self.engine} does not sample"
        return self.options

    @property
    def contributes(self) -> int:
        """Frames that reach the film (before fades overlap them)."""
        return self.frames - self.overlap


@dataclass(frozen=True)
class Recording:
    """An audio file that was read completely once."""

    path: Path
    sha256: str
    samples: int
    """Its length at 48 kHz."""


@dataclass(frozen=True)
class Sound:
    """A recording in the film; lengths in seconds."""

    recording: Recording
    volume: float
    fade_in: Fraction
    fade_out: Fraction
    start: Fraction = Fraction(0)
    """Delay after its clip's first frame, or the film's."""

    @property
    def end(self) -> Fraction:
        """When it ends, in seconds after its clip's first frame."""
        return self.start + Fraction(self.recording.samples, SAMPLE_RATE)

    def describe(self, resolver: Resolver) -> dict[str, Json]:
        """The sound as JSON, with the file name that the board uses."""
        return {
            "path": resolver.name(self.recording.path),
            "sha256": self.recording.sha256,
            "volume": self.volume,
            "start": str(self.start),
            "fade_in": str(self.fade_in),
            "fade_out": str(self.fade_out),
        }


@dataclass(frozen=True)
class Music:
    """The music under the whole film."""

    sound: Sound
    loop: bool
    duck: float
    """Factor on its volume under a voice."""


@dataclass(frozen=True)
class Card:
    """Text on black."""

    text: str
    frames: int
    """At the board's rate."""


@dataclass(frozen=True)
class Cut:
    """How the film is assembled. Frames are counted at the board's rate."""

    codec: Literal["h264", "av1"]
    crf: int
    preset: str
    fps: Fraction
    """The film's rate."""
    burnt: bool
    """Whether captions are drawn into the picture (burned in)."""
    soft: bool
    """Whether captions are a subtitle track and a file beside the film."""
    fade_in: int
    """From black."""
    fade_out: int
    """To black."""
    title_card: Card | None
    end_card: Card | None
    music: Music | None

    def describe(self, resolver: Resolver) -> dict[str, Json]:
        """All settings as JSON, for the film's record; frames are counted at the board's rate."""

        def card(card: Card | None) -> Json:
            return None if card is None else {"text": card.text, "frames": card.frames}

        music: dict[str, Json] | None = None
        if self.music:
            music = self.music.sound.describe(resolver)
            music |= {"loop": self.music.loop, "duck": self.music.duck}
        captions = {(True, True): "both", (True, False): "burn", (False, True): "srt", (False, False): "off"}
        return {
            "fps": str(self.fps),
            "codec": self.codec,
            "crf": self.crf,
            "preset": self.preset,
            "captions": captions[self.burnt, self.soft],
            "fade_in": self.fade_in,
            "fade_out": self.fade_out,
            "title_card": card(self.title_card),
            "end_card": card(self.end_card),
            "music": music,
        }


@dataclass(frozen=True)
class Take:
    """One version of a clip. Takes differ by their seeds alone, and all continue from the same segment."""

    number: int
    """From 1."""
    seed: int
    """Of its first segment."""
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Shot:
    """One clip of the board, resolved: its segments, its sound and how it follows the previous clip."""

    id: str
    prompt: str
    seed: int
    """Of the picked take."""
    asked_frames: int
    """The frames that the author asked for, before rounding to the engine's grid."""
    segments: tuple[Segment, ...]
    """Of the picked take."""
    starts_chain: bool
    fade: int = 0
    """Frames this clip shares with the previous one; 0 unless `transition: {fade: ...}`."""
    dip: int = 0
    """Frames that go through black, half of them in the previous clip; 0 unless `transition: {dip: ...}`."""
    caption: str = ""
    caption_frames: tuple[int, int] | None = None
    """The clip's frames that show it, [first, stop); None for all of them."""
    voices: tuple[Sound, ...] = ()
    sounds: tuple[Sound, ...] = ()
    pick: int = 1
    """The number of the take that the film uses, and that the next clip continues from."""
    other_takes: tuple[Take, ...] = ()
    """The takes that are not picked, by number."""

    @property
    def takes(self) -> tuple[Take, ...]:
        """Every take, by number, the picked one among them."""
        picked = Take(self.pick, self.seed, self.segments)
        return tuple(sorted((picked, *self.other_takes), key=lambda take: take.number))

    def with_takes(self, takes: Sequence[Take]) -> Shot:
        """The shot with these takes, the picked one among them, in the place of its own."""
        picked = next(take for take in takes if take.number == self.pick)
        others = tuple(take for take in takes if take.number != self.pick)
        return replace(self, seed=picked.seed, segments=picked.segments, other_takes=others)

    def only(self, take: Take) -> Shot:
        """The shot as if this were its only take."""
        return replace(self, seed=take.seed, segments=take.segments, pick=take.number, other_takes=())

    @property
    def frames(self) -> int:
        """Frames this clip contributes (before fades overlap them)."""
        return sum(segment.contributes for segment in self.segments)

    def describe_finish(self, resolver: Resolver) -> dict[str, Json]:
        """Its caption and sound as JSON: what is added after rendering."""
        return {
            "caption": self.caption,
            **({"caption_frames": [*self.caption_frames]} if self.caption_frames else {}),
            "voices": [each.describe(resolver) for each in self.voices],
            "sounds": [each.describe(resolver) for each in self.sounds],
        }


@dataclass(frozen=True)
class Lint:
    """A warning about a known mistake; a board can ignore it by name."""

    name: str
    problem: Problem


@dataclass(frozen=True)
class FilmPlan:
    """One board, resolved."""

    board: Path
    title: str
    size: Size
    fps: Fraction
    """The board's rate, at which clips are rendered; the film's rate is the cut's."""
    engine: str
    digest: str
    """sha256 of the board file's bytes."""
    source: str
    """The board file's text."""
    shots: tuple[Shot, ...]
    cut: Cut
    lints: tuple[Lint, ...] = ()
    same_scene: bool | None = None
    """Whether the film is to keep its scene and light; None if that follows from its prompts."""
    resolver: Resolver = field(compare=False, repr=False, kw_only=True)
    """Maps paths to the names on the board, and back."""

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Every segment of the film, in order."""
        return tuple(segment for shot in self.shots for segment in shot.segments)

    @cached_property
    def other_segments(self) -> tuple[Segment, ...]:
        """Every segment of the takes that are not picked, in film order, then by take."""
        return tuple(segment for shot in self.shots for take in shot.other_takes for segment in take.segments)

    @property
    def frames(self) -> int:
        """Frames of the finished film, cards included, at the film's rate."""
        cards = sum(card.frames for card in (self.cut.title_card, self.cut.end_card) if card)
        frames = cards + sum(shot.frames - shot.fade for shot in self.shots)
        return ceil(frames * self.cut.fps / self.fps)

    @property
    def seconds(self) -> float:
        """Length of the finished film in seconds."""
        return float(self.frames / self.cut.fps)
