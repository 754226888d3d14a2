"""From what the author wrote to what to make: defaults merged once, chains, seeds, passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from svi_story.enginespec import spec_of
from svi_story.enginespec.sampling import Lora
from svi_story.errors import InputError, Problem
from svi_story.plan.finishing import Recordings, black_problems, cut_of, sounds_of
from svi_story.plan.lint import lints
from svi_story.plan.model import Anchor, FilmPlan, Segment, Shot, Size
from svi_story.plan.timing import (
    frames_of,
    nearest_contribution,
    smallest_inside,
    split,
)
from svi_story.storyboard.transitions import Dip, Fade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.enginespec import EngineSpec
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.storyboard.schema import Clip
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


@dataclass(frozen=True)
class Maker:
    """The engine that makes a film's frames, and the one whose timing the film has."""

    spec: EngineSpec
    timing: EngineSpec
    overlap: int
    """Leading frames of a continuing segment that repeat its parent's last ones."""

    @classmethod
    def of(cls, board: BoardFile, engine: str | None) -> Maker:
        """For a board, optionally for another engine than it names."""
        own = spec_of(board.story.engine.name)
        spec = spec_of(engine) if engine else own
        timing = own if spec.follows_board else spec
        return cls(spec, timing, timing.overlap(board.story.engine))

    def size(self, board: BoardFile) -> tuple[int, int]:
        """The film's width and height."""
        written = board.story.resolution
        if written:
            return written.width, written.height
        return self.timing.preset_size(board.story.engine) or self.timing.size


def plan_film(board: BoardFile, fingerprints: Fingerprints, engine: str | None = None) -> FilmPlan:
    """Resolve a board, optionally for another engine than it names. Raises InputError with every problem."""
    story = board.story
    maker = Maker.of(board, engine)
    size = Size(*maker.size(board))
    links = tuple(chain_links(board))
    anchors, problems = _anchors(board, links, fingerprints, size)
    recordings = Recordings(board, fingerprints)
    cut = cut_of(board, recordings)
    shots: list[Shot] = []
    segments = 0
    for link in links:
        found = list(_length_problems(board, link, maker))
        problems += found
        if not found:
            shots.append(_shot(board, link, anchors[link.reference], recordings, maker))
            segments += len(shots[-1].segments)
        if segments > MOST_SEGMENTS:
            what = f"up to here the film has {segments} segments, more than {MOST_SEGMENTS}; split the board"
            problems.append(board.problem(("clips", link.index), what))
            break
    if len(shots) == len(links):
        problems += [*_seed_problems(board, shots), *_fade_problems(board, shots)]
        problems += _carry_problems(board, shots, maker)
        problems += black_problems(board, shots, cut)
    problems += recordings.problems
    if problems:
        raise InputError(*problems)
    plan = FilmPlan(
        board=board.path,
        title=story.title or board.path.stem,
        size=size,
        fps=story.rate,
        engine=maker.spec.name,
        digest=board.digest,
        source=board.text,
        shots=tuple(shots),
        cut=cut,
        resolver=board.resolver,
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


def _shot(board: BoardFile, link: Link, anchor: Anchor, recordings: Recordings, maker: Maker) -> Shot:
    story, clip = board.story, link.clip
    overlap = maker.overlap
    asked, passes = _passes(board, link, maker)
    clip_id = board.ids[link.index]
    prompt = " ".join(text for text in (clip.prompt.strip(), story.style.strip()) if text)
    seed = story.seed + SEED_STRIDE * link.place if clip.seed is None else clip.seed
    options = maker.spec.options(story.engine, clip.guidance, board.file)
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
            fps=story.rate,
            frames=frames,
            overlap=0 if link.starts_chain and index == 0 else overlap,
            first_frame=first_frame,
            anchor=anchor,
            engine=maker.spec.name,
            options=options,
            board=board.path,
            loras=_loras(board, clip),
        )
        segments.append(segment)
        first_frame += frames - overlap
    fade = frames_of(clip.transition.fade, story.rate) if isinstance(clip.transition, Fade) else 0
    dip = frames_of(clip.transition.dip, story.rate) if isinstance(clip.transition, Dip) else 0
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


def _passes(board: BoardFile, link: Link, maker: Maker) -> tuple[int, tuple[int, ...]]:
    """The frames the author asked for, and what the engine makes in each pass."""
    engine, clip, grid = board.story.engine, link.clip, maker.timing.grid
    if clip.duration is None:
        frames = clip.frames or engine.max_frames
        return frames, (frames,)
    asked = frames_of(clip.duration, board.story.rate)
    passes = split(
        nearest_contribution(asked, starts_chain=link.starts_chain, grid=grid),
        starts_chain=link.starts_chain,
        max_frames=engine.max_frames,
        overlap=maker.overlap,
        grid=grid,
    )
    return asked, passes


def _length_problems(board: BoardFile, link: Link, maker: Maker) -> Iterator[Problem]:
    """Passes that the engine cannot make, or that are too short to continue from, or to be continued."""
    engine, clip, spec = board.story.engine, link.clip, maker.timing
    frames, written = (clip.frames or engine.max_frames), clip.frames is not None
    at = link.at("frames") if written else ("engine", "max_frames")
    if not spec.makes(frames) or not spec.makes(
        engine.max_frames
    ):  # asked for another engine than the board's
        odd = frames if not spec.makes(frames) else engine.max_frames
        first, second = spec.nearest(odd)
        what = f"{odd} is not {spec.grid}k+1, as {spec.name} needs; use {first} (or {second})"
        yield board.problem(at if odd == frames else ("engine", "max_frames"), what)
        return
    least = smallest_inside(maker.overlap, spec.grid)
    why = f"a clip inside a chain needs {least} ({_of_overlap(board, maker)})"
    continues = clip.duration is not None or not link.starts_chain
    if continues and engine.max_frames < least:
        what = f"{engine.max_frames} is too few: {why}; use {least} or more"
        yield board.problem(("engine", "max_frames"), what)
    elif not link.starts_chain and clip.frames is not None and clip.frames < least:
        yield board.problem(link.at("frames"), f"{clip.frames} is too few: {why}; use {least} or more")
    if isinstance(clip.transition, Fade) and frames_of(clip.transition.fade, board.story.rate) < 1:
        what = "shorter than half a frame; use a longer fade, or `transition: cut`"
        yield board.problem(link.at("transition", "fade"), what)
    if isinstance(clip.transition, Dip) and frames_of(clip.transition.dip, board.story.rate) < 2:
        what = "shorter than two frames; use a longer dip, or `transition: cut`"
        yield board.problem(link.at("transition", "dip"), what)


def _of_overlap(board: BoardFile, maker: Maker) -> str:
    """Why an overlap is as long as it is."""
    engine = board.story.engine
    if "motion_latents" in maker.timing.settings.model_fields:
        return f"{engine.variant}, {engine.motion_latents} motion latents"
    return f"{maker.timing.name} repeats {maker.overlap} frames"


def _carry_problems(board: BoardFile, shots: list[Shot], maker: Maker) -> Iterator[Problem]:
    """Segments that are continued and too short for what they hand over."""
    least = maker.timing.continued(board.story.engine)
    for index, shot in enumerate(shots):
        last = shot.segments[-1]
        continued = index + 1 < len(shots) and not shots[index + 1].starts_chain
        if continued and last.frames < least:
            what = (
                f"makes {last.frames} frames, too few to carry {board.story.engine.motion_latents} motion "
                f"latents into the next clip; make it {least} frames or longer"
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
