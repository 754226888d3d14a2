"""The takes of a board's clips: how far they are, which one the film uses, and how another one is picked."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from svi_story.bundle.format import is_bundle
from svi_story.cache.entry import ENTRY, read_manifest
from svi_story.commands import suggest
from svi_story.errors import InputError, Problem
from svi_story.fields import JsonModel
from svi_story.files import CorruptError
from svi_story.plan.resolve import plan_film
from svi_story.render.jobs import path_of_clip, select
from svi_story.render.record import read_record
from svi_story.storyboard.edit import pick_take
from svi_story.storyboard.files import changed_meanwhile
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from svi_story.cache.store import Store
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import Segment, Take
    from svi_story.render.jobs import Job
    from svi_story.storyboard.edit import Edit


class TakeState(JsonModel):
    """A take."""

    number: int = Field(description="from 1")
    seed: int
    picked: bool = Field(description="whether the film uses it")
    state: Literal["cached", "partial", "to-render"] | None = Field(
        description="null where the cache keys cannot be computed"
    )
    seconds: float | None = Field(description="that its rendering took; null unless it is `cached`")
    file: str | None = Field(description="its film, if `render --only` has written one; null otherwise")
    command: str = Field(description="the command that picks it")


class ClipTakes(JsonModel):
    """A clip. Its takes are those of the board, and those that were ever requested with `--takes`."""

    id: str
    number: int = Field(description="its place in the film, from 1")
    prompt: str = Field(description="joined with the style")
    takes: tuple[TakeState, ...]


class TakesSummary(JsonModel):
    """What `takes --json` prints."""

    board: str
    film: str = Field(description="the film's path")
    clips: tuple[ClipTakes, ...]


def requested_takes(job: Job, store: Store) -> dict[int, int]:
    """How many takes clips have that had more than on the board, by 0-based place."""
    highest: dict[str, int] = {}
    for each in store.requested(job.place.film):
        highest[each.base_key] = max(each.take, highest.get(each.base_key, 1))
    numbers = {place: highest.get(shot.segments[0].base_key, 1) for place, shot in enumerate(job.plan.shots)}
    return {place: number for place, number in numbers.items() if number > len(job.plan.shots[place].takes)}


def takes_of(job: Job, store: Store, clips: Sequence[str]) -> TakesSummary:
    """The takes of the clips that are named as for `select`, or of all. Raises InputError for others."""
    shots = job.plan.shots
    ids = [shot.id for shot in shots]
    return TakesSummary(
        board=str(job.place.board),
        film=str(job.place.film),
        clips=tuple(
            ClipTakes(
                id=shots[place].id,
                number=place + 1,
                prompt=shots[place].prompt,
                takes=tuple(_take(job, place, take, store) for take in shots[place].takes),
            )
            for place in select(ids, clips or ids, job.place.board)
        ),
    )


def _take(job: Job, place: int, take: Take, store: Store) -> TakeState:
    shot = job.plan.shots[place]
    state: Literal["cached", "partial", "to-render"] | None = None
    if not job.missing:
        states = {store.state(segment.key) for segment in take.segments}
        state = states.pop() if len(states) == 1 else "partial"
    paths = (path_of_clip(job, place), path_of_clip(job, place, take.number))
    file = next((path for path in paths if _shows(path, take)), None)
    return TakeState(
        number=take.number,
        seed=take.seed,
        picked=take.number == shot.pick,
        state=state,
        seconds=_seconds(take.segments, store) if state == "cached" else None,
        file=str(file) if file else None,
        command=suggest("pick", shot.id, str(take.number), path=job.place.board),
    )


def _shows(film: Path, take: Take) -> bool:
    """Whether there is a film, and it is one of this take."""
    record = read_record(film)
    keys = [segment.key for clip in record.clips for segment in clip.segments] if record else []
    return film.is_file() and keys == [segment.key for segment in take.segments]


def _seconds(segments: Sequence[Segment], store: Store) -> float | None:
    """How long the rendering of these segments took, as far as it was noted."""
    found: list[float] = []
    for segment in segments:
        with suppress(CorruptError, OSError):
            notes = read_manifest(store.folder(segment.key) / ENTRY.manifest).get("notes")
            for name in ("sampling_seconds", "decoding_seconds"):
                spent = notes.get(name) if isinstance(notes, dict) else None
                found += [spent] if isinstance(spent, int | float) else []
    return round(sum(found), 3) if found else None


def edit_pick(job: Job, clip: str, take: int, fingerprints: Fingerprints) -> tuple[int, Edit | None]:
    """A clip's 0-based place, and its board with a take of it picked; None where it is picked already.

    `clip` is an id, else a number from 1. Nothing is written. Raises InputError, also where the board cannot
    be planned with that take.
    """
    path = job.place.board
    if is_bundle(path):
        pack = suggest("export", "--to", "bundle", path="BOARD")
        what = f"a bundle is never changed; pick the take in the board that it was packed from, then `{pack}`"
        raise InputError(Problem(what, file=str(path)))
    places = select([shot.id for shot in job.plan.shots], [clip], path)
    if len(places) > 1:
        raise InputError(Problem(f"{clip} is {len(places)} clips; name one of them", file=str(path)))
    board = load(path)
    if board.digest != job.plan.digest:  # the clip may be at another place in it, or gone
        raise changed_meanwhile(path)
    edit = pick_take(board, places[0], take)
    if edit is not None:
        plan_film(edit.board, fingerprints, job.place.settings.engine)
    return places[0], edit
