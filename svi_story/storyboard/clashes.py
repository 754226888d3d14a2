"""Rules between fields: each is fine alone, together they make no sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.enginespec import spec_of, specs
from svi_story.fields import Loc, shown, spelled
from svi_story.storyboard.cutting import LARGEST_X264_CRF, SVT_PRESETS, X264_PRESETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svi_story.storyboard.cutting import CutSettings
    from svi_story.storyboard.schema import Clip, Storyboard


MANY_FRAMES = 1_000_000
"""No engine makes as many in one pass."""


@dataclass(frozen=True)
class Clash:
    """Fields that contradict each other."""

    loc: Loc
    what: str
    """What is wrong; `{other}` stands for the other place."""
    needs: tuple[Loc, ...]
    """The fields that were compared; when one of them is wrong already, this says nothing new."""
    other: Loc = ()

    @property
    def place(self) -> str:
        """The field, as an author reads it."""
        return spelled(self.loc)

    def text(self, line: int = 0) -> str:
        """What is wrong, with the line of the other place where it is known."""
        other = spelled(self.other) + (f" (line {line})" if line else "")
        return self.what.format(other=other)


def of(story: Storyboard, ids: Sequence[str]) -> Iterator[Clash]:
    """Everything in a board that contradicts something else in it."""
    yield from _foreign_options(story)
    yield from _off_grid(story)
    for index, clip in enumerate(story.clips):
        yield from _transitions(index, clip)
        yield from _lengths(index, clip, story)
    yield from _repeated_ids(ids)
    yield from _encodings(story.cut)
    yield from _rates(story)


def _foreign_options(story: Storyboard) -> Iterator[Clash]:
    """Options of another engine than the board's."""
    own = {"name", *spec_of(story.engine.name).settings.model_fields}
    for name in sorted(story.engine.model_fields_set - own):
        owners = " and ".join(spec.name for spec in specs() if name in spec.settings.model_fields)
        loc = ("engine", name)
        yield Clash(loc, f"is an option of {owners}, not of {story.engine.name}; remove it", (loc,))


def _off_grid(story: Storyboard) -> Iterator[Clash]:
    """Frames that the engine cannot make in one pass."""
    spec = spec_of(story.engine.name)
    places: list[tuple[Loc, int | None]] = [(("engine", "max_frames"), story.engine.max_frames)]
    places += [(("clips", index, "frames"), clip.frames) for index, clip in enumerate(story.clips)]
    for loc, frames in places:
        if frames is None:
            continue
        if frames > MANY_FRAMES:
            what = f"{shown(frames)} is far more than one model pass makes; use `duration`"
            yield Clash(loc, what, (loc,))
        elif not spec.makes(frames):
            first, second = spec.nearest(frames)
            yield Clash(loc, f"{frames} is not {spec.grid}k+1; use {first} (or {second})", (loc,))


def _transitions(index: int, clip: Clip) -> Iterator[Clash]:
    transition, reference = ("clips", index, "transition"), ("clips", index, "reference")
    if index == 0 and clip.transition is not None:
        yield Clash(transition, "nothing comes before the first clip; remove the transition", (transition,))
    if index > 0 and clip.reference is not None and clip.transition in (None, "continue"):
        what = "a new reference cannot come in mid-chain; add `transition: cut` or a fade, or remove it"
        yield Clash(reference, what, (transition, reference))


def _lengths(index: int, clip: Clip, story: Storyboard) -> Iterator[Clash]:
    frames, duration = ("clips", index, "frames"), ("clips", index, "duration")
    if clip.frames is None:
        return
    if clip.duration is not None:
        what = "`frames` and `duration` say the same thing twice; keep one"
        yield Clash(frames, what, (frames, duration))
        return
    max_frames, makes = story.engine.max_frames, spec_of(story.engine.name).makes
    if MANY_FRAMES >= clip.frames > max_frames and makes(clip.frames) and makes(max_frames):
        what = f"{shown(clip.frames)} is more than engine.max_frames ({max_frames}); use `duration` instead"
        yield Clash(frames, what, (frames, ("engine", "max_frames")))


def _encodings(cut: CutSettings) -> Iterator[Clash]:
    codec = ("cut", "codec")
    if cut.codec == "h264" and cut.crf is not None and cut.crf > LARGEST_X264_CRF:
        what = f"{cut.crf} is more than h264 knows; use {LARGEST_X264_CRF} or less, 18 is very good"
        yield Clash(("cut", "crf"), what, (("cut", "crf"), codec))
    if cut.codec == "av1" and cut.crf == 0:
        yield Clash(
            ("cut", "crf"), "0 is not known to av1; use 1 or more, 30 is good", (("cut", "crf"), codec)
        )
    h264 = cut.codec == "h264"
    if cut.preset is not None and cut.preset not in (X264_PRESETS if h264 else SVT_PRESETS):
        choices = ", ".join(X264_PRESETS) if h264 else f"a number from {SVT_PRESETS[-1]} (quick) to 0"
        what = f"{shown(cut.preset)} is no preset of {cut.codec}; use {choices}"
        yield Clash(("cut", "preset"), what, (("cut", "preset"), codec))


def _rates(story: Storyboard) -> Iterator[Clash]:
    rate = story.cut.fps
    if rate is not None and rate < story.rate:
        least = story.rate
        what = f"{rate} is less than the board's fps, and frames would be lost; use {least} or more"
        yield Clash(("cut", "fps"), what, (("cut", "fps"), ("fps",)))


def _repeated_ids(ids: Sequence[str]) -> Iterator[Clash]:
    first: dict[str, int] = {}
    for index, clip_id in enumerate(ids):
        before = first.setdefault(clip_id, index)
        if before != index:
            loc, other = ("clips", index, "id"), ("clips", before)
            what = f'"{clip_id}" is the id of {{other}} too; give each clip its own'
            yield Clash(loc, what, (loc, ("clips", before, "id")), other)
