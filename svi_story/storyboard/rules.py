"""Rules between fields: each value is valid alone, but not together with the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.enginespec import spec_of, specs
from svi_story.fields import Loc, format_path, format_value
from svi_story.storyboard.cut_schema import LARGEST_X264_CRF, SVT_PRESETS, X264_PRESETS, TimedCaption

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svi_story.storyboard.schema import Clip, Storyboard


MANY_FRAMES = 1_000_000
"""More frames than any engine renders in one pass."""


@dataclass(frozen=True)
class Conflict:
    """Fields that contradict each other."""

    loc: Loc
    what: str
    """What is wrong; `{other}` stands for the other place."""
    compared: tuple[Loc, ...]
    """The fields that were compared; when one of them is invalid, the conflict is not reported."""
    other: Loc = ()

    def text(self, line: int = 0) -> str:
        """What is wrong, with the line of the other place where it is known."""
        other = format_path(self.other) + (f" (line {line})" if line else "")
        return self.what.format(other=other)


def find_conflicts(story: Storyboard, ids: Sequence[str]) -> Iterator[Conflict]:
    """Every contradiction between fields of a board."""
    engine, spec = story.engine, spec_of(story.engine.name)
    previews = (other.settings.model_fields for other in specs() if other.follows_board)
    for name in sorted(engine.model_fields_set.difference({"name"}, spec.settings.model_fields, *previews)):
        owners = " and ".join(other.name for other in specs() if name in other.settings.model_fields)
        loc: Loc = ("engine", name)
        yield Conflict(loc, f"is an option of {owners}, not of {engine.name}; remove it", (loc,))
    passes: list[tuple[Loc, int | None]] = [(("engine", "max_frames"), engine.max_frames)]
    passes += [(("clips", index, "frames"), clip.frames) for index, clip in enumerate(story.clips)]
    for loc, frames in passes:
        if frames is None:
            continue
        if frames > MANY_FRAMES:
            what = f"{format_value(frames)} is far more than one model pass can have; use `duration`"
            yield Conflict(loc, what, (loc,))
        elif not spec.makes(frames):
            first, second = spec.nearest(frames)
            yield Conflict(loc, f"{frames} is not {spec.grid}k+1; use {first} (or {second})", (loc,))
    for index, clip in enumerate(story.clips):
        yield from _clip_conflicts(index, clip, story)
    yield from _repeated_ids(ids)
    yield from _cut_conflicts(story)


def _clip_conflicts(index: int, clip: Clip, story: Storyboard) -> Iterator[Conflict]:
    transition, reference = ("clips", index, "transition"), ("clips", index, "reference")
    if index == 0 and clip.transition is not None:
        what = "the first clip has no clip before it; remove the transition"
        yield Conflict(transition, what, (transition,))
    if index > 0 and clip.reference is not None and clip.transition in (None, "continue"):
        what = "a reference cannot change within a chain; add `transition: cut` or a fade, or remove it"
        yield Conflict(reference, what, (transition, reference))
    frames, duration = ("clips", index, "frames"), ("clips", index, "duration")
    if clip.duration == "voice" and clip.voice is None:
        what = "the clip has no `voice`; add one, or write the length, as `duration: 5s`"
        yield Conflict(duration, what, (duration, ("clips", index, "voice")))
    if clip.pick > clip.takes:
        pick, takes = ("clips", index, "pick"), ("clips", index, "takes")
        what = f"{clip.pick} is more than `takes` ({clip.takes}); use a smaller one, or `takes: {clip.pick}`"
        yield Conflict(pick, what, (pick, takes))
    caption = clip.caption
    if isinstance(caption, TimedCaption) and caption.to is not None and caption.to <= caption.from_:
        what = f"`to` ({float(caption.to):g} s) is not after `from` ({float(caption.from_):g} s)"
        yield Conflict(
            ("clips", index, "caption"), f"{what}; use a later one", (("clips", index, "caption"),)
        )
    if clip.frames is None:
        return
    if clip.duration is not None:
        what = "`frames` and `duration` both set the length; keep one"
        yield Conflict(frames, what, (frames, duration))
        return
    max_frames, makes = story.engine.max_frames, spec_of(story.engine.name).makes
    if MANY_FRAMES >= clip.frames > max_frames and makes(clip.frames) and makes(max_frames):
        what = f"{clip.frames} is more than engine.max_frames ({max_frames}); use `duration` instead"
        yield Conflict(frames, what, (frames, ("engine", "max_frames")))


def _cut_conflicts(story: Storyboard) -> Iterator[Conflict]:
    cut = story.cut
    codec, crf, preset = ("cut", "codec"), ("cut", "crf"), ("cut", "preset")
    if cut.codec == "h264" and cut.crf is not None and cut.crf > LARGEST_X264_CRF:
        what = f"{cut.crf} is more than h264 allows; use {LARGEST_X264_CRF} or less, 18 is very good"
        yield Conflict(crf, what, (crf, codec))
    if cut.codec == "av1" and cut.crf == 0:
        yield Conflict(crf, "0 is less than av1 allows; use 1 or more, 30 is good", (crf, codec))
    h264 = cut.codec == "h264"
    if cut.preset is not None and cut.preset not in (X264_PRESETS if h264 else SVT_PRESETS):
        choices = ", ".join(X264_PRESETS) if h264 else f"a number from {SVT_PRESETS[-1]} (quick) to 0"
        what = f"{format_value(cut.preset)} is not a preset of {cut.codec}; use {choices}"
        yield Conflict(preset, what, (preset, codec))
    if cut.fps is not None and cut.fps < story.rate:
        what = f"{cut.fps} is less than the board's fps, so frames would be dropped; use {story.rate} or more"
        yield Conflict(("cut", "fps"), what, (("cut", "fps"), ("fps",)))


def _repeated_ids(ids: Sequence[str]) -> Iterator[Conflict]:
    first: dict[str, int] = {}
    for index, clip_id in enumerate(ids):
        before = first.setdefault(clip_id, index)
        if before != index:
            loc, other = ("clips", index, "id"), ("clips", before)
            what = f'"{clip_id}" is the id of {{other}} too; give each clip its own'
            yield Conflict(loc, what, (loc, ("clips", before, "id")), other)
