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
FILM = ".mp4"


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
    places: dict[str, Place] = {}
    for path in paths:
        try:
            found = _found(path, skip=(films, cache))
            for place in (Place(board, films / film) for board, film in found):
                places.setdefault(os.path.realpath(place.board), place)
        except InputError as error:
            problems += error.problems
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            problems.append(Problem(f"cannot be opened: {reason}; check the path", file=str(path)))
    problems += _clashes(places.values())
    if problems:
        raise InputError(*problems)
    return tuple(places.values())


def _found(path: Path, skip: tuple[Path, ...]) -> list[tuple[Path, Path]]:
    """The boards that a path names, and their films' places below the output folder."""
    if not path.is_dir():
        path.stat()
        return [(path, Path(path.name).with_suffix(FILM))]
    boards = list(_boards_in(path, skip))
    if not boards:
        raise InputError(Problem("holds no storyboard; put a *.yaml file into it", file=str(path)))
    return [(board, board.relative_to(path).with_suffix(FILM)) for board in boards]


def _boards_in(folder: Path, skip: tuple[Path, ...]) -> Iterator[Path]:
    """Every board below a folder, in order of name; hidden folders and the output folders are skipped."""
    skipped = {os.path.realpath(path) for path in skip}
    for parent, names, files in os.walk(folder):
        here = Path(parent)
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".") and os.path.realpath(here / name) not in skipped
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


def select(job: Job, clips: Sequence[str]) -> tuple[Task, ...]:
    """The tasks of these clips and of all they continue from. Raises InputError for clips the board lacks."""
    ids = [shot.id for shot in job.plan.shots]
    unknown = [clip for clip in clips if clip not in ids]
    if unknown:
        what = f"has no clip {', '.join(unknown)}; its clips are {', '.join(ids)}"
        raise InputError(Problem(what, file=str(job.place.board)))
    chosen: set[int] = set()
    for last in map(ids.index, clips):
        first = max(index for index in range(last + 1) if job.plan.shots[index].starts_chain)
        chosen.update(range(first, last + 1))
    return tuple(task for index in sorted(chosen) for task in job.tasks[index])
