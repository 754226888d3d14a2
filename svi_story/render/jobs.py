"""From the paths a user types to resolved boards, each with its film's place."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svi_story.bundle.board import bundle_of, difference, load_bundled
from svi_story.bundle.format import is_bundle, settings_of
from svi_story.bundle.unpack import unpack
from svi_story.cache.layout import TAG_NAME
from svi_story.cache.store import Store
from svi_story.engines import implementation_of
from svi_story.enginespec import EngineOptions, spec_of
from svi_story.errors import InputError, Problem, RenderError
from svi_story.events import BundleOpened, Warned
from svi_story.files import folds_case
from svi_story.plan.keys import with_keys
from svi_story.plan.resolve import plan_film
from svi_story.render.record import partial_film
from svi_story.storyboard.files import absent
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from svi_story.events import Event, Reporter
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.keys import Identity
    from svi_story.plan.model import FilmPlan, Segment

SUFFIXES = (".yaml", ".yml")
FILM = ".mp4"
"""The ending of what exists so far of a film."""
LONGEST_NAME = 255
"""Bytes that file systems take."""
LONGEST_BESIDE = ".preview-99.png"
"""The longest ending of what is written beside a film."""


@dataclass(frozen=True)
class Place:
    """A board, where its film goes, and where its segments are kept."""

    board: Path
    """As the user gave it: a board's file, or a bundle."""
    film: Path
    cache: Path
    """The user's; a bundle that brings segments has its own, once it is unpacked."""
    fallbacks: tuple[Path, ...] = ()
    """Other caches, which are only read: see `Store`."""

    def store(self, report: Reporter) -> Store:
        """The store in which its segments are looked up and kept."""
        return Store(self.cache, report, self.fallbacks)


@dataclass(frozen=True)
class Rejected:
    """A board that cannot be planned, or a path where no board can be found."""

    board: Path
    error: InputError


@dataclass(frozen=True)
class Job:
    """One board, resolved."""

    place: Place
    plan: FilmPlan
    """Its segments have keys unless `missing` says why not."""
    options: EngineOptions
    """The user's, with what a bundle was packed for where the user asked for nothing else."""
    missing: InputError | None = None
    """What the engine is missing, so that no cache key can be computed; None when nothing is."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every segment, in film order."""
        return self.plan.segments

    def require_keys(self) -> None:
        """Raises InputError when the engine is missing something."""
        if self.missing is not None:
            raise self.missing


def find_places(paths: Sequence[Path], films: Path, cache: Path) -> tuple[Place | Rejected, ...]:
    """The boards that the paths name, each once; folders are searched.

    A path that cannot be opened, a folder that cannot be searched and boards that cannot have a film of their
    own are rejected without affecting the others.
    """
    found: dict[str, Place | Rejected] = {}
    for path in paths:
        for each in _found(path, films, cache):
            name = each.board.absolute() if isinstance(each, Rejected) else os.path.realpath(each.board)
            found.setdefault(str(name), each)
    places = [each for each in found.values() if isinstance(each, Place)]
    refused: dict[Path, Rejected] = {}
    for each in (*_too_long(places), *_clashes(places)):
        refused.setdefault(each.board, each)
    return tuple(refused.get(each.board, each) for each in found.values())


def _found(path: Path, films: Path, cache: Path) -> Iterator[Place | Rejected]:
    """What a path names, with the films' places below the output folder."""
    searched = os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a folder above is closed
    found = list(_boards_in(path, skip=(films, cache))) if searched else [path]
    if not found:
        yield _rejected(path, "holds no storyboard; put a *.yaml file into it")
    for each in found:
        if isinstance(each, Rejected):
            yield each
        elif reason := absent(each):
            yield _rejected(each, f"{reason}; check the path")
        else:
            film = each.relative_to(path) if searched else Path(each.name)
            yield Place(each, films / film.with_suffix(FILM), cache)


def _rejected(path: Path, what: str) -> Rejected:
    return Rejected(path, InputError(Problem(what, file=str(path))))


def _boards_in(folder: Path, skip: tuple[Path, ...]) -> Iterator[Path | Rejected]:
    """Every board below a folder, in order of name; hidden folders and the output folders are skipped.

    A folder that is called like a board is searched, and comes too.
    """
    skipped = {os.path.realpath(path) for path in skip}
    unread: list[OSError] = []
    for parent, names, files in os.walk(folder, onerror=unread.append):
        here = Path(parent)
        if TAG_NAME in files and here != folder:  # a cache holds the boards of bundles that were unpacked
            names.clear()
            continue
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".") and os.path.realpath(here / name) not in skipped
        )
        for name in sorted((*files, *names)):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield here / name
    for error in unread:
        what = f"cannot be searched: {error.strerror}; make it readable for you, or move it away"
        yield _rejected(Path(error.filename), what)


def _clashes(places: Iterable[Place]) -> Iterator[Rejected]:
    """Boards that would write one file: the film, or what exists so far of it."""
    writers: defaultdict[str, list[tuple[Path, Place]]] = defaultdict(list)
    for place in places:
        for path in (place.film, partial_film(place.film)):
            folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())
            writers[folded].append((path, place))  # some file systems take such names for the same
    for written in writers.values():
        for path, place in written:
            others = [
                str(other.board)
                for same, other in written
                if other is not place and (same == path or folds_case(path.parent))
            ]
            if others:
                what = f"would write {path}, and so would {' and '.join(others)}"
                yield _rejected(place.board, f"{what}; rename one, or render them apart")


def _too_long(places: Iterable[Place]) -> Iterator[Rejected]:
    """Boards whose films, or files beside them, would have names that are too long for file systems."""
    for place in places:
        size, most = len(os.fsencode(place.film.stem)), LONGEST_NAME - len(LONGEST_BESIDE)
        if size > most:
            what = (
                f"its name is {size} bytes long without its ending; rename it to {most} at most: the files "
                "beside its film have longer names, and file systems take no more"
            )
            yield _rejected(place.board, what)


@dataclass(frozen=True)
class Choice:
    """The engine a user wants, and how."""

    name: str | None = None
    """None: the one that each board names."""
    options: EngineOptions = field(default_factory=EngineOptions)
    asked: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Those of the options that the user asked for; for the others a bundle may have others."""


def resolve(
    places: Iterable[Place | Rejected],
    fingerprints: Fingerprints,
    engine: str | None,
    models: Path | None = None,
) -> tuple[list[tuple[Place, FilmPlan]], list[Rejected]]:
    """Load and plan every board, bundles unpacked; errors in one do not affect the others.

    A bundle's weights are looked for below `models`.
    """
    plans: list[tuple[Place, FilmPlan]] = []
    rejected: list[Rejected] = []
    for place in places:
        if isinstance(place, Rejected):
            rejected.append(place)
            continue
        try:
            plans.append(_resolved(place, fingerprints, engine, models))
        except InputError as error:
            rejected.append(Rejected(place.board, error))
        except RenderError as error:
            rejected.append(Rejected(place.board, InputError(*error.problems)))
        except OSError as error:  # of a file that changes while it is looked at
            what = f"cannot be read: {error.strerror}; solve this and run the same command again"
            rejected.append(
                Rejected(place.board, InputError(Problem(what, str(error.filename or place.board))))
            )
    return plans, rejected


def _resolved(
    place: Place, fingerprints: Fingerprints, engine: str | None, models: Path | None
) -> tuple[Place, FilmPlan]:
    if not is_bundle(place.board):
        return place, plan_film(load(place.board), fingerprints, engine)
    bundle = unpack(place.board, place.cache, fingerprints)
    engine = engine or bundle.manifest.settings.engine
    board = load_bundled(bundle, models if spec_of(engine).uses_weights else None, fingerprints)
    if bundle.cache:
        place = replace(place, cache=bundle.cache, fallbacks=())
    return place, plan_film(board, fingerprints, engine)


def prepare(
    places: Iterable[Place | Rejected], fingerprints: Fingerprints, choice: Choice
) -> tuple[list[Job], list[Rejected]]:
    """Load, plan and key every board."""
    plans, rejected = resolve(places, fingerprints, choice.name, choice.options.models)

    @cache
    def identity(name: str, options: EngineOptions) -> Identity:
        return implementation_of(name).identity_of(options, fingerprints.file)

    jobs = []
    for place, plan in plans:
        bundle = bundle_of(plan)
        packed = bundle.manifest.settings.options if bundle else {}
        options = replace(choice.options, **{**packed, **choice.asked})
        shots = (
            replace(shot, segments=tuple(replace(each, board=place.board) for each in shot.segments))
            for shot in plan.shots
        )
        named = replace(plan, shots=tuple(shots))  # events name the board as the user does
        try:
            jobs.append(Job(place, with_keys(named, partial(identity, options=options)), options))
        except InputError as error:
            problems = dict.fromkeys(map(plan.resolver.rephrase, error.problems))
            jobs.append(Job(place, named, options, InputError(*problems)))
    return jobs, rejected


def notices(job: Job) -> Iterator[Event]:
    """Events about a bundle before it is used; none for a board in a folder."""
    bundle = bundle_of(job.plan)
    if bundle is None:
        return
    settings = settings_of(job.plan.engine, job.options)
    yield BundleOpened(bundle.zip, bundle.board, str(settings), str(bundle.manifest.settings))
    if not job.missing and (other := difference(bundle, job.segments)):
        yield Warned(other)


def select(job: Job, clips: Sequence[str]) -> tuple[Segment, ...]:
    """The segments of these clips and of all they continue from.

    Raises InputError for clips that the board does not have.
    """
    ids = [shot.id for shot in job.plan.shots]
    unknown = [clip for clip in clips if clip not in ids]
    if unknown:
        what = f"has no clip {', '.join(unknown)}; its clips are {', '.join(ids)}"
        raise InputError(Problem(what, file=str(job.place.board)))
    chosen: set[int] = set()
    for last in map(ids.index, clips):
        first = max(index for index in range(last + 1) if job.plan.shots[index].starts_chain)
        chosen.update(range(first, last + 1))
    return tuple(segment for index in sorted(chosen) for segment in job.plan.shots[index].segments)
