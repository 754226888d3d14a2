"""From what the author wrote to what to make: defaults merged once, chains, seeds, passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.plan.finishing import Recordings, black_problems, cut_of, sounds_of
from svi_story.plan.lint import lints
from svi_story.plan.model import Anchor, FilmPlan, Guidance, Lora, Sampler, Segment, Shot, Size
from svi_story.plan.presets import PRESETS
from svi_story.plan.timing import (
    frames_of,
    nearest_contribution,
    overlap_frames,
    smallest_inside,
    split,
)
from svi_story.storyboard.transitions import Dip, Fade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import Distill
    from svi_story.storyboard.schema import Clip
    from svi_story.storyboard.schema import Guidance as WrittenGuidance
    from svi_story.storyboard.source import BoardFile

SEED_STRIDE = 42
LARGEST_SEED = 2**63 - 1
MOST_SEGMENTS = 20_000
"""More than a day of film at the usual length of a segment; a stranger's board must not plan for hours."""


@dataclass(frozen=True)
class Link:
    """Where a clip stands in its chain."""

    clip: Clip
    index: int
    """0-based place on the board."""
    place: int
    """0-based place within the chain."""
    reference: str
    """The chain's reference image, as written."""
    reference_at: tuple[str | int, ...]
    """Where on the board that reference is written."""

    @property
    def starts_chain(self) -> bool:
        """Whether nothing is carried over from the clip before."""
        return self.place == 0

    def at(self, *path: str | int) -> tuple[str | int, ...]:
        """A place within this clip on the board."""
        return ("clips", self.index, *path)


def plan_film(board: BoardFile, fingerprints: Fingerprints, engine: str | None = None) -> FilmPlan:
    """Resolve a board, optionally for another engine than it names. Raises InputError with every problem."""
    story = board.story
    preset = PRESETS[story.engine.preset]
    size = Size(story.resolution.width, story.resolution.height) if story.resolution else preset.size
    links = tuple(chain_links(board))
    anchors, problems = _anchors(board, links, fingerprints, size)
    recordings = Recordings(board, fingerprints)
    cut = cut_of(board, recordings)
    shots: list[Shot] = []
    segments = 0
    for link in links:
        found = list(_length_problems(board, link))
        problems += found
        if not found:
            shots.append(_shot(board, link, anchors[link.reference], recordings))
            segments += len(shots[-1].segments)
        if segments > MOST_SEGMENTS:
            what = f"up to here the film has {segments} segments, more than {MOST_SEGMENTS}; split the board"
            problems.append(board.problem(("clips", link.index), what))
            break
    if len(shots) == len(links):
        for check in (_seed_problems, _fade_problems, _latent_problems):
            problems += check(board, shots)
        problems += black_problems(board, shots, cut)
    problems += recordings.problems
    if problems:
        raise InputError(*problems)
    plan = FilmPlan(
        board=board.path,
        title=story.title or board.path.stem,
        size=size,
        fps=story.fps,
        engine=engine or story.engine.name,
        digest=board.digest,
        source=board.text,
        shots=tuple(shots),
        cut=cut,
    )
    return replace(plan, lints=lints(board, plan))


def chain_links(board: BoardFile) -> Iterator[Link]:
    """Every clip with its place in its chain; `cut` and `fade` start a new one with its own anchor."""
    place, reference = 0, board.story.reference
    where: tuple[str | int, ...] = ("reference",)
    for index, clip in enumerate(board.story.clips):
        if index == 0 or clip.transition not in (None, "continue"):
            place = 0
            reference = clip.reference or board.story.reference
            where = ("clips", index, "reference") if clip.reference else ("reference",)
        yield Link(clip, index, place, reference, where)
        place += 1


def sampler_of(board: BoardFile, guidance: WrittenGuidance | None) -> Sampler:
    """The sampler of a clip: its own guidance, else the board's settings, else the preset's."""
    engine = board.story.engine
    preset = PRESETS[engine.preset]
    scale = guidance or engine.guidance or preset.guidance
    return Sampler(
        variant=engine.variant,
        steps=preset.steps if engine.steps is None else engine.steps,
        guidance=Guidance(scale.high, scale.low),
        shift=preset.shift if engine.shift is None else engine.shift,
        boundary=preset.boundary if engine.boundary is None else engine.boundary,
        motion_latents=engine.motion_latents,
        distill=_distill(board, preset.distill),
    )


def _distill(board: BoardFile, preset: Distill | None) -> Distill | None:
    """The preset's distillation pair, from the files the board names if it does."""
    own = board.story.engine.distill
    if preset is None or own is None:
        return preset
    return replace(preset, files=(board.file(own.high), board.file(own.low)))


def _loras(board: BoardFile, clip: Clip) -> tuple[Lora, ...]:
    """The board's LoRAs, then the clip's."""
    written = (*board.story.engine.loras, *clip.loras)
    return tuple(Lora(board.file(lora.path), lora.high, lora.low) for lora in written)


def _anchors(
    board: BoardFile, links: tuple[Link, ...], fingerprints: Fingerprints, size: Size
) -> tuple[dict[str, Anchor], list[Problem]]:
    """Every chain's reference image, each opened once, and what is wrong with any."""
    anchors: dict[str, Anchor] = {}
    problems: list[Problem] = []
    for link in links:
        if link.reference in anchors:
            continue
        path = board.file(link.reference)
        try:
            anchors[link.reference] = fingerprints.anchor(path, size, board.story.fit)
        except InputError as error:
            anchors[link.reference] = Anchor(path, size, board.story.fit, pixels="")
            problems.append(board.problem(link.reference_at, error.problems[0].what))
    return anchors, problems


def _shot(board: BoardFile, link: Link, anchor: Anchor, recordings: Recordings) -> Shot:
    story, clip = board.story, link.clip
    overlap = overlap_frames(story.engine.variant, story.engine.motion_latents)
    asked, passes = _passes(board, link)
    clip_id = board.ids[link.index]
    prompt = " ".join(text for text in (clip.prompt.strip(), story.style.strip()) if text)
    seed = story.seed + SEED_STRIDE * link.place if clip.seed is None else clip.seed
    segments = []
    first_frame = 0 if link.starts_chain else -overlap
    for index, frames in enumerate(passes):
        segment = Segment(
            clip=clip_id,
            index=index,
            prompt=prompt,
            negative_prompt=story.negative_prompt,
            seed=seed + index,
            size=anchor.size,
            fps=story.fps,
            frames=frames,
            overlap=0 if link.starts_chain and index == 0 else overlap,
            first_frame=first_frame,
            anchor=anchor,
            sampler=sampler_of(board, clip.guidance),
            loras=_loras(board, clip),
        )
        segments.append(segment)
        first_frame += frames - overlap
    fade = frames_of(clip.transition.fade, story.fps) if isinstance(clip.transition, Fade) else 0
    dip = frames_of(clip.transition.dip, story.fps) if isinstance(clip.transition, Dip) else 0
    voices, sounds = sounds_of(link.index, board, recordings)
    return Shot(
        id=clip_id,
        prompt=prompt,
        seed=seed,
        asked_frames=asked,
        segments=tuple(segments),
        starts_chain=link.starts_chain,
        fade=fade,
        dip=dip,
        caption=clip.caption or "",
        voices=voices,
        sounds=sounds,
    )


def _passes(board: BoardFile, link: Link) -> tuple[int, tuple[int, ...]]:
    """The frames the author asked for, and what the model makes in each pass."""
    engine, clip = board.story.engine, link.clip
    if clip.duration is None:
        frames = clip.frames or engine.max_frames
        return frames, (frames,)
    asked = frames_of(clip.duration, board.story.fps)
    passes = split(
        nearest_contribution(asked, starts_chain=link.starts_chain),
        starts_chain=link.starts_chain,
        max_frames=engine.max_frames,
        overlap=overlap_frames(engine.variant, engine.motion_latents),
    )
    return asked, passes


def _length_problems(board: BoardFile, link: Link) -> Iterator[Problem]:
    """Passes too short to continue from, or to be continued."""
    engine, clip = board.story.engine, link.clip
    least = smallest_inside(overlap_frames(engine.variant, engine.motion_latents))
    why = f"a clip inside a chain needs {least} ({engine.variant}, {engine.motion_latents} motion latents)"
    continues = clip.duration is not None or not link.starts_chain
    if continues and engine.max_frames < least:
        what = f"{engine.max_frames} is too few: {why}; use {least} or more"
        yield board.problem(("engine", "max_frames"), what)
    elif not link.starts_chain and clip.frames is not None and clip.frames < least:
        yield board.problem(link.at("frames"), f"{clip.frames} is too few: {why}; use {least} or more")
    if isinstance(clip.transition, Fade) and frames_of(clip.transition.fade, board.story.fps) < 1:
        what = "shorter than half a frame; use a longer fade, or `transition: cut`"
        yield board.problem(link.at("transition", "fade"), what)
    if isinstance(clip.transition, Dip) and frames_of(clip.transition.dip, board.story.fps) < 2:
        what = "shorter than two frames; use a longer dip, or `transition: cut`"
        yield board.problem(link.at("transition", "dip"), what)


def _latent_problems(board: BoardFile, shots: list[Shot]) -> Iterator[Problem]:
    """Pro: a segment that is continued must hold the motion latents and one more."""
    engine = board.story.engine
    if engine.variant != "2.0-pro":
        return
    least = 4 * engine.motion_latents + 1
    for index, shot in enumerate(shots):
        last = shot.segments[-1]
        continued = index + 1 < len(shots) and not shots[index + 1].starts_chain
        if continued and last.frames < least:
            what = (
                f"makes {last.frames} frames, too few to carry {engine.motion_latents} motion latents "
                f"into the next clip; make it {least} frames or longer"
            )
            yield board.problem(("clips", index), what)


def _seed_problems(board: BoardFile, shots: list[Shot]) -> Iterator[Problem]:
    """Seeds out of range, and two segments of one chain that share one."""
    owners: dict[int, str] = {}
    for index, shot in enumerate(shots):
        if shot.starts_chain:
            owners = {}
        last = shot.seed + len(shot.segments) - 1
        if last > LARGEST_SEED:
            what = f"the clip's seeds reach {last}, more than {LARGEST_SEED}; use a smaller seed"
            yield board.problem(("clips", index, "seed"), what)
        clash = next((s.seed for s in shot.segments if s.seed in owners), None)
        if clash is not None and not board.story.allow_repeated_seeds:
            what = (
                f"seed {clash} is used by clip {owners[clash]} of the same chain too, which makes them look "
                "alike; give this clip another `seed`, or set `allow_repeated_seeds: true`"
            )
            yield board.problem(("clips", index, "seed"), what)
        owners |= {segment.seed: shot.id for segment in shot.segments}


def _fade_problems(board: BoardFile, shots: list[Shot]) -> Iterator[Problem]:
    """Fades longer than a clip they join, or two that overlap within one clip."""
    fades = [shot.fade for shot in shots] + [0]
    for index, shot in enumerate(shots):
        place = ("clips", index, "transition")
        before = shots[index - 1]
        for neighbour in (before, shot) if shot.fade else ():
            if shot.fade > neighbour.frames:
                what = (
                    f"a fade of {shot.fade} frames is longer than clip {neighbour.id} ({neighbour.frames}); "
                    "use a shorter fade or a longer clip"
                )
                yield board.problem(place, what)
        into, out_of = fades[index], fades[index + 1]
        if into and out_of and max(into, out_of) <= shot.frames < into + out_of:
            what = (
                f"the fade into clip {shot.id} ({into} frames) and the one out of it ({out_of}) overlap: "
                f"the clip has {shot.frames} frames; shorten one, or make the clip longer"
            )
            yield board.problem(place, what)
