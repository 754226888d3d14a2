"""Resolves a board into a film plan: defaults merged once, chains, seeds, model passes, sound, encoding."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING

from svi_story.enginespec import spec_of
from svi_story.enginespec.sampling import Lora
from svi_story.errors import InputError, Problem
from svi_story.plan.lint import lints
from svi_story.plan.model import (
    Anchor,
    Card,
    Cut,
    FilmPlan,
    Music,
    Recording,
    Segment,
    Shot,
    Size,
    Sound,
    Take,
)
from svi_story.plan.timing import frames_of, nearest_contribution, smallest_inside, split
from svi_story.storyboard.cut_schema import (
    CardSettings,
    Dip,
    Fade,
    MusicSettings,
    SoundSettings,
    TimedCaption,
)
from svi_story.storyboard.schema import SIDES, Resolution

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from svi_story.fields import Loc
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.storyboard.schema import Clip
    from svi_story.storyboard.source import BoardFile

SEED_STRIDE = 42
"""Between the seeds of clips."""
TAKE_STRIDE = 1_000_003
"""Between the seeds of a clip's takes."""
LARGEST_SEED = 2**63 - 1
MOST_SEGMENTS = 20_000
"""More than a day of film at the usual length of a segment; limits the time spent on an untrusted board."""

DEFAULT_CRF = {"h264": 18, "av1": 30}
DEFAULT_PRESET = {"h264": "medium", "av1": "8"}


def plan_film(
    board: BoardFile, fingerprints: Fingerprints, engine: str | None = None, name: Path | None = None
) -> FilmPlan:
    """Resolve a board, optionally for another engine than it names. Raises InputError with every problem.

    `name` is what the user calls the board, where that is not the path of its file.
    """
    return _Planner(board, fingerprints, engine, name or board.path).film()


def draft_of(board: BoardFile) -> BoardFile:
    """A board as a draft: preset `draft`, half the size, one take, without the steps, guidance and shift."""
    story = board.story
    spec = spec_of(story.engine.name)
    size = (story.resolution.width, story.resolution.height) if story.resolution else spec.size
    width, height = (max((side // 2 + 8) // 16 * 16, SIDES[0]) for side in size)
    sampler = {"preset": "draft", "steps": None, "guidance": None, "shift": None}
    own = {name: value for name, value in sampler.items() if name in spec.settings.model_fields}
    plain = {"steps": None, "guidance": None, "takes": 1, "pick": 1}
    clips = tuple(clip.model_copy(update=plain) for clip in story.clips)
    changes = {
        "engine": story.engine.model_copy(update=own),
        "resolution": Resolution(width=width, height=height),
        "clips": clips,
    }
    return replace(board, story=story.model_copy(update=changes))


def with_takes(board: BoardFile, takes: Mapping[int, int]) -> BoardFile:
    """The board with other numbers of takes, by clip; not less than the number of the picked one."""
    clips = tuple(
        clip.model_copy(update={"takes": max(takes.get(index, clip.takes), clip.pick)})
        for index, clip in enumerate(board.story.clips)
    )
    return replace(board, story=board.story.model_copy(update={"clips": clips}))


class _Planner:
    """Plans the film of one board and collects every problem found on the way."""

    def __init__(self, board: BoardFile, fingerprints: Fingerprints, engine: str | None, name: Path) -> None:
        self.board = board
        self.name = name
        self.story = board.story
        self.fingerprints = fingerprints
        own = spec_of(board.story.engine.name)
        self.spec = spec_of(engine) if engine else own
        self.timing = own if self.spec.follows_board else self.spec
        """The engine whose frame grid, overlap and size the film has: a preview has the board's."""
        self.overlap = self.timing.overlap(board.story.engine)
        written = board.story.resolution
        self.size = (
            Size(written.width, written.height)
            if written
            else Size(*(self.timing.preset_size(board.story.engine) or self.timing.size))
        )
        self.anchors: dict[str, Anchor] = {}
        self.problems: list[Problem] = []

    def film(self) -> FilmPlan:
        """The whole film. Raises InputError."""
        board, story = self.board, self.story
        cut = self.cut()
        known: list[Shot | None] = []
        place, segments = 0, 0
        reference = story.reference
        reference_at: Loc = ("reference",)
        for index, clip in enumerate(story.clips):
            if index == 0 or clip.transition not in (None, "continue"):  # a new chain, with its own anchor
                place, reference = 0, clip.reference or story.reference
                reference_at = ("clips", index, "reference") if clip.reference else ("reference",)
            anchor = self.anchor(reference, reference_at)
            found = list(self.length_problems(index, clip, starts_chain=place == 0))
            self.problems += found
            shot = None if found else self.shot(index, clip, place, anchor)
            known.append(shot)
            segments += len(shot.segments) * clip.takes if shot else 0
            if segments > MOST_SEGMENTS:
                of_takes = " with all takes" if any(each.takes > 1 for each in story.clips) else ""
                what = f"up to here the film has {segments} segments{of_takes}, more than {MOST_SEGMENTS}"
                what += "; split the board"
                self.problems.append(board.problem(("clips", index), what))
                break
            place += 1
        shots = [shot for shot in known if shot]
        self.problems += _fade_problems(board, known, cut)
        if len(shots) == len(story.clips):
            self.problems += [
                *_seed_problems(board, shots),
                *_carry_problems(board, shots, self.timing.continued(story.engine)),
            ]
        if self.problems:
            raise InputError(*sorted(self.problems, key=lambda problem: problem.line))
        plan = FilmPlan(
            board=board.path,
            title=story.title or board.path.stem,
            size=self.size,
            fps=story.rate,
            engine=self.spec.name,
            digest=board.digest,
            source=board.text,
            resolver=board.resolver,
            shots=tuple(shots),
            cut=cut,
            same_scene=story.same_scene,
        )
        return replace(plan, lints=lints(board, plan))

    def anchor(self, name: str, loc: Loc) -> Anchor:
        """A reference image, opened once however many chains start from it."""
        if name not in self.anchors:
            path, fit = self.board.file(name), self.story.fit
            try:
                self.anchors[name] = self.fingerprints.anchor(path, self.size, fit)
            except InputError as error:
                self.anchors[name] = Anchor(path, self.size, fit, pixels="")
                self.problems.append(self.board.problem(loc, error.problems[0].what))
        return self.anchors[name]

    def sound(self, written: SoundSettings | MusicSettings, loc: Loc) -> Sound:
        """A recording with its settings."""
        path = self.board.file(written.path)
        try:
            recording = self.fingerprints.recording(path)
        except InputError as error:
            self.problems.append(self.board.problem(loc, error.problems[0].what))
            recording = Recording(path, "", 0)
        start = Fraction(0) if isinstance(written, MusicSettings) else written.start
        return Sound(recording, written.volume, written.fade_in, written.fade_out, start)

    def cut(self) -> Cut:
        """The board's `cut` with all defaults."""
        cut, fps = self.story.cut, self.story.rate

        def card(written: CardSettings | None) -> Card | None:
            return Card(written.text, max(frames_of(written.duration, fps), 1)) if written else None

        music = None
        if cut.audio is not None:
            music = Music(self.sound(cut.audio, ("cut", "audio")), cut.audio.loop, cut.audio.duck)
        return Cut(
            codec=cut.codec,
            crf=DEFAULT_CRF[cut.codec] if cut.crf is None else cut.crf,
            preset=DEFAULT_PRESET[cut.codec] if cut.preset is None else str(cut.preset),
            fps=cut.fps or fps,
            burnt=cut.captions in ("burn", "both"),
            soft=cut.captions in ("srt", "both"),
            fade_in=frames_of(cut.fade_in or Fraction(0), fps),
            fade_out=frames_of(cut.fade_out or Fraction(0), fps),
            title_card=card(cut.title_card),
            end_card=card(cut.end_card),
            music=music,
        )

    def shot(self, index: int, clip: Clip, place: int, anchor: Anchor) -> Shot:
        """A clip whose length is valid; `place` is its 0-based place within its chain."""
        board, story, overlap = self.board, self.story, self.overlap
        starts_chain = place == 0
        voices = () if clip.voice is None else (self.sound(clip.voice, ("clips", index, "voice")),)
        if clip.duration is None:
            asked = clip.frames or story.engine.max_frames
            passes: tuple[int, ...] = (asked,)
        else:
            spoken = clip.duration == "voice"
            if clip.duration == "voice":
                asked = ceil(max((voice.end for voice in voices), default=Fraction(0)) * story.rate)
            else:
                asked = frames_of(clip.duration, story.rate)
            grid = self.timing.grid
            passes = split(
                nearest_contribution(asked, starts_chain=starts_chain, grid=grid, at_least=spoken),
                starts_chain=starts_chain,
                max_frames=story.engine.max_frames,
                overlap=overlap,
                grid=grid,
            )
        prompt = " ".join(text for text in (clip.prompt.strip(), story.style.strip()) if text)
        negative_prompt = story.negative_prompt if clip.negative_prompt is None else clip.negative_prompt
        seed = story.seed + SEED_STRIDE * place if clip.seed is None else clip.seed
        options = self.spec.options(story.engine, clip, board.file)
        loras = tuple(
            Lora(board.file(lora.path), lora.high, lora.low) for lora in (*story.engine.loras, *clip.loras)
        )
        segments: list[Segment] = []
        overlaps = overlap * (len(passes) - starts_chain)
        first_frame = 0 if starts_chain else -overlap
        for number, frames in enumerate(passes):
            segment = Segment(
                clip=board.ids[index],
                index=number,
                prompt=prompt,
                negative_prompt=negative_prompt,
                seed=seed + number,
                size=self.size,
                fps=story.rate,
                frames=frames,
                overlap=0 if starts_chain and number == 0 else overlap,
                first_frame=first_frame,
                anchor=anchor,
                engine=self.spec.name,
                options=options,
                board=self.name,
                loras=loras,
            )
            segments.append(segment)
            first_frame += frames - overlap
        sounds = (self.sound(each, ("clips", index, "sounds", n)) for n, each in enumerate(clip.sounds))
        are_too_many = clip.takes * len(segments) > MOST_SEGMENTS  # then it is refused, and one will do
        numbers = (clip.pick,) if are_too_many else range(1, clip.takes + 1)
        takes = {number: _take(number, segments) for number in numbers}
        return Shot(
            id=board.ids[index],
            prompt=prompt,
            seed=takes[clip.pick].seed,
            asked_frames=asked,
            segments=takes[clip.pick].segments,
            starts_chain=starts_chain,
            fade=frames_of(clip.transition.fade, story.rate) if isinstance(clip.transition, Fade) else 0,
            dip=frames_of(clip.transition.dip, story.rate) if isinstance(clip.transition, Dip) else 0,
            caption=clip.caption.text if isinstance(clip.caption, TimedCaption) else clip.caption or "",
            caption_frames=self.caption_frames(index, clip.caption, sum(passes) - overlaps),
            voices=voices,
            sounds=tuple(sounds),
            pick=clip.pick,
            other_takes=tuple(take for take in takes.values() if take.number != clip.pick),
        )

    def caption_frames(
        self, index: int, caption: str | TimedCaption | None, frames: int
    ) -> tuple[int, int] | None:
        """The frames of a clip of `frames` frames that show its caption; None for all of them."""
        if not isinstance(caption, TimedCaption):
            return None
        fps, at = self.story.rate, ("clips", index, "caption")
        first = frames_of(caption.from_, fps)
        stop = frames if caption.to is None else frames_of(caption.to, fps)
        length = f"the clip has {float(frames / fps):.2f} s"
        if first >= frames:
            self.problems.append(self.board.problem((*at, "from"), f"{length}; use an earlier time"))
        elif stop > frames + self.timing.grid:  # the clip may be a little shorter than asked for
            self.problems.append(self.board.problem((*at, "to"), f"{length}; use an earlier time, or none"))
        elif stop <= first:
            self.problems.append(self.board.problem(at, "is shown for less than a frame; show it longer"))
        return None if (first, min(stop, frames)) == (0, frames) else (first, min(stop, frames))

    def length_problems(self, index: int, clip: Clip, *, starts_chain: bool) -> Iterator[Problem]:
        """Passes that the engine cannot render, or that are too short to continue or be continued."""
        board, engine, timing = self.board, self.story.engine, self.timing
        max_frames: Loc = ("engine", "max_frames")
        written: Loc = ("clips", index, "frames") if clip.frames is not None else max_frames
        # Only for another engine than the board's: `storyboard.rules` checks the board's own.
        for frames, loc in ((clip.frames or engine.max_frames, written), (engine.max_frames, max_frames)):
            if not timing.makes(frames):
                first, second = timing.nearest(frames)
                what = f"{frames} is not {timing.grid}k+1, as {timing.name} needs; use {first} (or {second})"
                yield board.problem(loc, what)
                return
        least = smallest_inside(self.overlap, timing.grid)
        cause = f"{timing.name} repeats {self.overlap} frames"
        if "motion_latents" in timing.settings.model_fields:
            cause = f"{engine.variant}, {engine.motion_latents} motion latents"
        why = f"a clip inside a chain needs {least} ({cause})"
        continues = clip.duration is not None or not starts_chain
        if continues and engine.max_frames < least:
            what = f"{engine.max_frames} is too few: {why}; use {least} or more"
            yield board.problem(max_frames, what)
        elif not starts_chain and clip.frames is not None and clip.frames < least:
            yield board.problem(written, f"{clip.frames} is too few: {why}; use {least} or more")
        transition, fps = clip.transition, self.story.rate
        if isinstance(transition, Fade) and frames_of(transition.fade, fps) < 1:
            what = "shorter than half a frame; use a longer fade, or `transition: cut`"
            yield board.problem(("clips", index, "transition", "fade"), what)
        if isinstance(transition, Dip) and frames_of(transition.dip, fps) < 2:
            what = "shorter than two frames; use a longer dip, or `transition: cut`"
            yield board.problem(("clips", index, "transition", "dip"), what)


def _take(number: int, segments: Sequence[Segment]) -> Take:
    """A take of the clip whose first take has these segments."""
    offset = TAKE_STRIDE * (number - 1)
    own = tuple(replace(segment, seed=segment.seed + offset, take=number) for segment in segments)
    return Take(number, own[0].seed, own)


def _carry_problems(board: BoardFile, shots: list[Shot], least: int) -> Iterator[Problem]:
    """Segments that are continued and have fewer than `least` frames to carry over."""
    for index, shot in enumerate(shots):
        last = shot.segments[-1]
        continued = index + 1 < len(shots) and not shots[index + 1].starts_chain
        if continued and last.frames < least:
            what = (
                f"its last pass has {last.frames} frames, too few to carry "
                f"{board.story.engine.motion_latents} motion latents into the next clip; "
                f"make it {least} frames or longer"
            )
            yield board.problem(("clips", index), what)


def _seed_problems(board: BoardFile, shots: list[Shot]) -> Iterator[Problem]:
    """Seeds out of range, and two clips of one chain that share one; those of all takes."""
    owners: dict[int, str] = {}
    for index, shot in enumerate(shots):
        if shot.starts_chain:
            owners = {}
        last = max(take.seed for take in shot.takes) + len(shot.segments) - 1
        if last > LARGEST_SEED:
            what = f"the clip's seeds reach {last}, more than {LARGEST_SEED}; use a smaller seed"
            yield board.problem(("clips", index, "seed"), what)
        seeds = [segment.seed for take in shot.takes for segment in take.segments]
        shared = next((seed for seed in seeds if seed in owners), None)
        if shared is not None and not board.story.allow_repeated_seeds:
            what = (
                f"seed {shared} is used by clip {owners[shared]} of the same chain too, which makes them "
                "look alike; give this clip another `seed`, or set `allow_repeated_seeds: true`"
            )
            yield board.problem(("clips", index, "seed"), what)
        owners |= dict.fromkeys(seeds, shot.id)


def _fade_problems(board: BoardFile, shots: Sequence[Shot | None], cut: Cut) -> Iterator[Problem]:
    """Fades and dips that are longer than the clips they join or the film, or that overlap in a clip.

    Clips whose length is not known (None) are left out.
    """
    film = sum(shot.frames for shot in shots if shot)
    for index, shot in enumerate(shots):
        before = shots[index - 1] if index else None
        if shot and before and shot.fade <= min(before.frames, shot.frames):
            film -= shot.fade
    fps = board.story.rate

    def seconds(frames: int) -> str:
        """As an author writes them, rounded down: no more frames than these."""
        return f"{float(Fraction(floor(100 * frames / fps), 100)):g}s"

    for name, frames in (("fade_in", cut.fade_in), ("fade_out", cut.fade_out)):
        if frames > film and all(shots):
            what = f"{seconds(frames)} is more than the film has; use {seconds(film)} or less"
            yield board.problem(("cut", name), what)
    fades = [shot.fade if shot else 0 for shot in shots] + [0]
    for index, shot in enumerate(shots):
        if shot is None:
            continue
        transition = ("clips", index, "transition")
        joined = [each for each in (shots[index - 1], shot) if each] if index else []
        for kind, frames, times in (("a fade", shot.fade, 1), ("half of a dip", shot.dip, 2)):
            most = times * min((each.frames for each in joined), default=0)
            if frames > most and joined:
                needed = -(-frames // times)
                short = (
                    f"clip {each.id} ({seconds(each.frames)})" for each in joined if needed > each.frames
                )
                what = f"{kind} of {seconds(frames)} is longer than {' and '.join(short)}"
                yield board.problem(transition, f"{what}; use {seconds(most)} or less, or a longer clip")
        into, out_of = fades[index], fades[index + 1]
        if into and out_of and max(into, out_of) <= shot.frames < into + out_of:
            what = (
                f"the fade into clip {shot.id} ({seconds(into)}) and the one out of it ({seconds(out_of)}) "
                f"overlap; use {seconds(shot.frames)} or less for both together, or make the clip longer"
            )
            yield board.problem(transition, what)
