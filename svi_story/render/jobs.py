"""From the paths a user types to resolved boards, each with its film's place."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.engines import EngineOptions, identity_of
from svi_story.errors import InputError, Problem
from svi_story.plan.keys import tasks_of
from svi_story.plan.shots import plan_film
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.keys import Identity, Task
    from svi_story.plan.model import FilmPlan

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Place:
    """A board and where its film goes."""

    board: Path
    film: Path


@dataclass(frozen=True)
class Job:
    """One board, resolved and keyed."""

    place: Place
    plan: FilmPlan
    tasks: tuple[tuple[Task, ...], ...]
    """Every clip's segments, in film order; empty where `lacks` says why they cannot be keyed."""
    lacks: InputError | None = None
    """What the engine is missing; None when it can work."""

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """Every segment, in film order."""
        return tuple(task for clip in self.tasks for task in clip)


@dataclass(frozen=True)
class Rejected:
    """A board that cannot be planned."""

    board: Path
    error: InputError


def find_places(paths: Sequence[Path], films: Path, cache: Path) -> tuple[Place, ...]:
    """The boards that the paths name; folders are searched. Raises InputError for paths without a board."""
    problems: list[Problem] = []
    places: dict[Path, Place] = {}
    for path in paths:
        found = list(_boards_in(path, skip=(films, cache)) if path.is_dir() else [path])
        if not found:
            problems.append(Problem("holds no storyboard; put a *.yaml file into it", file=str(path)))
        if not path.exists():
            problems.append(Problem("no such file or folder; check the path", file=str(path)))
        root = path if path.is_dir() else path.parent
        for board in found:
            film = films / board.relative_to(root).with_suffix(".mp4")
            places.setdefault(board.resolve(), Place(board, film))
    problems += _clashes(places.values())
    if problems:
        raise InputError(*problems)
    return tuple(places.values())


def _boards_in(folder: Path, skip: tuple[Path, ...]) -> Iterator[Path]:
    """Every board below a folder, in order of name; hidden folders and the output folders are skipped."""
    skipped = {path.resolve() for path in skip}
    for parent, names, files in os.walk(folder):
        here = Path(parent)
        names[:] = sorted(
            name for name in names if not name.startswith(".") and (here / name).resolve() not in skipped
        )
        for name in sorted(files):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield here / name


def _clashes(places: Iterable[Place]) -> Iterator[Problem]:
    """Boards that would write one film."""
    boards: defaultdict[Path, list[str]] = defaultdict(list)
    for place in places:
        boards[place.film].append(str(place.board))
    for film, names in boards.items():
        if len(names) > 1:
            what = f"{' and '.join(names)} would both write this film; rename one, or render them apart"
            yield Problem(what, file=str(film))


@dataclass(frozen=True)
class Choice:
    """The engine a user wants, and how."""

    name: str | None = None
    """None: the one that each board names."""
    options: EngineOptions = field(default_factory=EngineOptions)


def resolve(
    places: Iterable[Place], fingerprints: Fingerprints, engine: str | None
) -> tuple[list[tuple[Place, FilmPlan]], list[Rejected]]:
    """Load and plan every board; what is wrong with one does not touch the others."""
    plans: list[tuple[Place, FilmPlan]] = []
    rejected: list[Rejected] = []
    for place in places:
        try:
            plans.append((place, plan_film(load(place.board), fingerprints, engine)))
        except InputError as error:
            rejected.append(Rejected(place.board, error))
    return plans, rejected


def prepare(
    places: Iterable[Place], fingerprints: Fingerprints, choice: Choice
) -> tuple[list[Job], list[Rejected]]:
    """Load, plan and key every board."""
    plans, rejected = resolve(places, fingerprints, choice.name)
    identity = cache(lambda name: identity_of(name, choice.options, fingerprints.file))
    return [_keyed(place, plan, identity(plan.engine)) for place, plan in plans], rejected


def _keyed(place: Place, plan: FilmPlan, identity: Identity) -> Job:
    try:
        return Job(place, plan, tasks_of(plan, identity))
    except InputError as error:
        return Job(place, plan, (), lacks=error)


def select(job: Job, clip: str) -> tuple[Task, ...]:
    """The tasks of a clip and of all it continues from. Raises InputError when the board has no such clip."""
    ids = [shot.id for shot in job.plan.shots]
    if clip not in ids:
        what = f"has no clip {clip!r}; its clips are {', '.join(ids)}"
        raise InputError(Problem(what, file=str(job.place.board)))
    last = ids.index(clip)
    first = max(index for index in range(last + 1) if job.plan.shots[index].starts_chain)
    return tuple(task for clip in job.tasks[first : last + 1] for task in clip)
