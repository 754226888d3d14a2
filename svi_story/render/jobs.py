"""From the paths a user types to resolved boards, each with its film's place."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svi_story.bundle.board import bundle_of, difference, load_bundled
from svi_story.bundle.format import is_bundle, settings_of
from svi_story.bundle.unpack import unpack
from svi_story.cache.garbage import Requested
from svi_story.cache.layout import LONGEST_PATH, TAG_NAME, Layout, check_length
from svi_story.cache.outputs import place_of
from svi_story.cache.store import Store
from svi_story.engines import implementation_of
from svi_story.enginespec import EngineOptions, spec_of
from svi_story.errors import InputError, Problem, RenderError
from svi_story.events import BundleOpened, Warned
from svi_story.files import folds_case, short_path
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.keys import with_keys
from svi_story.plan.resolve import draft_of, plan_film, with_takes
from svi_story.render.record import partial_film
from svi_story.settings import STORYBOARDS, load_settings, project_root
from svi_story.storyboard.files import absent
from svi_story.storyboard.source import is_storyboard, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from svi_story.events import Event, Reporter
    from svi_story.plan.keys import Identity
    from svi_story.plan.model import FilmPlan, Segment, Take
    from svi_story.settings import Settings
    from svi_story.storyboard.source import BoardFile

    NumbersOfTakes = Callable[[BoardFile], Mapping[int, int]]
    """How many takes of clips to make instead of the board's number, by 0-based place in the film."""

SUFFIXES = (".yaml", ".yml")
CACHE = Path("renders") / ".cache"
"""The cache's default place in a project."""
FILM = ".mp4"
DRAFT = ".draft.mp4"
"""The ending of what exists so far of a film."""
MOST_NAMED = 12
"""Clips that a message lists."""
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
    """Relative where it is below the working directory, so that messages are short."""
    settings: Settings
    """Of its project."""
    cache: Path
    """The project's; a bundle that brings segments has its own, once it is unpacked."""
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
    is_clip: bool = False
    """Whether it is a film of one clip alone."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every segment of the film, in order."""
        return self.plan.segments

    @property
    def every_segment(self) -> tuple[Segment, ...]:
        """Every segment of the film, then those of the takes that are not picked."""
        return (*self.plan.segments, *self.plan.other_segments)

    def require_keys(self) -> None:
        """Raises InputError when the engine is missing something."""
        if self.missing is not None:
            raise self.missing


def find_places(
    paths: Sequence[Path],
    options: Mapping[str, object] | None = None,
    report: Reporter = lambda _event: None,
) -> tuple[Place | Rejected, ...]:
    """The boards that the paths name, each once; folders are searched.

    `options` are those of the command line, by field of `Settings`. A path that cannot be opened, a folder
    that cannot be searched and boards that cannot have a film of their own are rejected without affecting the
    others. Raises InputError for invalid settings, and where projects disagree about the machine.
    """
    options = options or {}
    settings_of = cache(partial(load_settings, options=options))
    root_of = cache(partial(project_root, report=report))

    def place_of_board(board: Path) -> Place:
        root = Path(os.path.realpath(board.parent)) if is_bundle(board) else root_of(board.parent)
        settings = settings_of(root)
        within = place_of(board).relative_to(root)
        if within.parent.parts[:1] == (STORYBOARDS,):
            within = within.relative_to(STORYBOARDS)
        output = settings.output if "output" in options else short_path(settings.output)
        fallbacks = _old_caches(settings.cache) if settings.cache == root / CACHE else ()
        return Place(board, output / within.with_suffix(FILM), settings, settings.cache, fallbacks)

    def is_output(folder: Path) -> bool:
        """Whether films or segments go there."""
        settings = settings_of(root_of(folder.parent))
        return os.path.realpath(folder) in map(os.path.realpath, (settings.output, settings.cache))

    found: dict[str, Place | Rejected] = {}
    for path in paths:
        searched = os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a folder above is closed
        boards: list[Path | Rejected] = list(_boards_in(path, is_output, report)) if searched else [path]
        if not boards:
            boards = [_rejected(path, "holds no storyboard; put a *.yaml file into it")]
        for each in boards:
            if isinstance(each, Rejected):
                found.setdefault(str(each.board.absolute()), each)
                continue
            reason = absent(each)
            place = _rejected(each, f"{reason}; check the path") if reason else place_of_board(each)
            found.setdefault(os.path.realpath(each), place)
    places = [each for each in found.values() if isinstance(each, Place)]
    _check_agreement(places)
    refused: dict[Path, Rejected] = {}
    for rejected in (*_not_folders(places), *_too_long(places), *_clashes(places)):
        refused.setdefault(rejected.board, rejected)
    return tuple(refused.get(each.board, each) for each in found.values())


def _old_caches(cache: Path) -> tuple[Path, ...]:
    """The cache below the working directory, where segments were kept before there were projects."""
    old = CACHE.absolute()
    is_other = os.path.realpath(old) != os.path.realpath(cache)
    return (old,) if is_other and Layout(old).is_tagged() else ()


def _check_agreement(places: Sequence[Place]) -> None:
    """Raises InputError where boards of several projects differ in a setting of the whole command."""
    problems = []
    for name in ("memory", "attention", "compile", "workers"):
        first: dict[object, Path] = {}
        for place in places:
            first.setdefault(getattr(place.settings, name), place.board)
        if len(first) > 1:
            values = ", ".join(f"{value} for {board}" for value, board in first.items())
            what = f"the projects of these boards disagree about `{name}`: {values}"
            problems.append(Problem(f"{what}; run them apart, or decide with --{name}"))
    if problems:
        raise InputError(*problems)


def _rejected(path: Path, what: str) -> Rejected:
    return Rejected(path, InputError(Problem(what, file=str(path))))


def _boards_in(
    folder: Path, is_output: Callable[[Path], bool], report: Reporter
) -> Iterator[Path | Rejected]:
    """Every board below a folder, in order of name; hidden folders and the output folders are skipped.

    A folder that is called like a board is searched, and comes too.
    """
    unread: list[OSError] = []
    others: list[Path] = []
    for parent, names, files in os.walk(folder, onerror=unread.append):
        here = Path(parent)
        if TAG_NAME in files and here != folder:  # a cache holds the boards of bundles that were unpacked
            names.clear()
            continue
        names[:] = sorted(name for name in names if not name.startswith(".") and not is_output(here / name))
        for name in sorted((*files, *names)):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                if is_storyboard(here / name):
                    yield here / name
                else:
                    others.append(here / name)
    for error in unread:
        what = f"cannot be searched: {error.strerror}; make it readable for you, or move it away"
        yield _rejected(Path(error.filename), what)
    if others:
        files_ = "1 YAML file that is" if len(others) == 1 else f"{len(others)} YAML files that are"
        what = f"{folder}: skipped {files_} not a storyboard (no `version` and `clips`), such as {others[0]}"
        report(Warned(what))


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


def _not_folders(places: Iterable[Place]) -> Iterator[Rejected]:
    """Boards whose films or segments would go into something that is not a folder."""
    for place in places:
        for folder, option in ((place.film.parent, "-o"), (place.cache, "--cache")):
            above = (each for each in (folder, *folder.parents) if os.path.lexists(each))
            first = next(above, None)
            if first is not None and not os.path.isdir(first):  # noqa: PTH112 - Path.is_dir may raise
                problem = Problem(f"is not a folder; name one with {option}", file=str(first))
                yield Rejected(place.board, InputError(problem))


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


def fingerprints_for(places: Iterable[Place | Rejected], report: Reporter) -> Fingerprints:
    """Hashes of the files of these boards, memoised; computing one the first time is reported.

    Raises InputError for a cache whose path is too long for this system.
    """
    found = [place for place in places if isinstance(place, Place)]
    for folder in dict.fromkeys(place.settings.cache for place in found):
        check_length(folder, LONGEST_PATH)
    caches = (path for place in found for path in (*place.fallbacks, place.settings.cache))
    return Fingerprints.of_this_machine(report, dict.fromkeys(caches))


def resolve(
    places: Iterable[Place | Rejected],
    fingerprints: Fingerprints,
    *,
    find_weights: bool = False,
    draft: bool = False,
    takes: NumbersOfTakes | None = None,
) -> tuple[list[tuple[Place, FilmPlan]], list[Rejected]]:
    """Load and plan every board, bundles unpacked; errors in one do not affect the others.

    With `find_weights`, a bundle's LoRAs are looked for below the project's models. `draft`: as
    a draft, with a film of its own. `takes` changes how many takes clips have.
    """
    plans: list[tuple[Place, FilmPlan]] = []
    rejected: list[Rejected] = []
    for given in places:
        if isinstance(given, Rejected):
            rejected.append(given)
            continue
        try:
            place, board, engine = _loaded(given, fingerprints, find_weights=find_weights)
            if draft:
                board = draft_of(board)
            elif takes:
                board = with_takes(board, takes(board))
            film = given.film.with_suffix(DRAFT) if draft else given.film
            plan = plan_film(board, fingerprints, engine, place.board)
            plans.append((replace(place, film=film), plan))
        except InputError as error:
            rejected.append(Rejected(given.board, error))
        except RenderError as error:
            rejected.append(Rejected(given.board, InputError(*error.problems)))
        except OSError as error:  # of a file that changes while it is looked at
            what = f"cannot be read: {error.strerror}; solve this and run the same command again"
            rejected.append(
                Rejected(given.board, InputError(Problem(what, str(error.filename or given.board))))
            )
    return plans, rejected


def _loaded(
    place: Place, fingerprints: Fingerprints, *, find_weights: bool
) -> tuple[Place, BoardFile, str | None]:
    """A board, its place once it is unpacked, and the engine that the user or its bundle asks for."""
    engine = place.settings.engine
    if not is_bundle(place.board):
        return place, load(place.board), engine
    bundle = unpack(place.board, place.cache, fingerprints)
    engine = engine or bundle.manifest.settings.engine
    models = place.settings.models if find_weights and spec_of(engine).uses_weights else ()
    board = load_bundled(bundle, models, fingerprints)
    if bundle.cache:
        place = replace(place, cache=bundle.cache, fallbacks=())
    return place, board, engine


def prepare(
    places: Iterable[Place | Rejected],
    fingerprints: Fingerprints,
    asked: Mapping[str, Any] | None = None,
    *,
    draft: bool = False,
    takes: NumbersOfTakes | None = None,
) -> tuple[list[Job], list[Rejected]]:
    """Load, plan and key every board; `draft` and `takes` are as in `resolve`.

    `asked` are the fields of EngineOptions that the user asked for, besides settings; for others a bundle may
    have been packed with other values.
    """
    plans, rejected = resolve(places, fingerprints, find_weights=True, draft=draft, takes=takes)

    @cache
    def identity(name: str, options: EngineOptions) -> Identity:
        return implementation_of(name).identity_of(options, fingerprints.file)

    jobs = []
    for place, plan in plans:
        bundle = bundle_of(plan)
        packed = bundle.manifest.settings.options if bundle else {}
        settings = place.settings
        held = {"precision": settings.weights.precision} if settings.weights.precision else {}
        options = EngineOptions(
            models=tuple(map(short_path, settings.models)),
            weights=settings.weights.files,
            attention=settings.attention,
            compile=settings.compile,
            memory=settings.memory,
            **{**packed, **held, **(asked or {})},
        )
        try:
            jobs.append(Job(place, with_keys(plan, partial(identity, options=options)), options))
        except InputError as error:
            problems = dict.fromkeys(map(plan.resolver.rephrase, error.problems))
            jobs.append(Job(place, plan, options, InputError(*problems)))
    return jobs, rejected


def notices(jobs: Iterable[Job]) -> Iterator[Event]:
    """What to know before boards are used: how bundles were packed, and which other caches are read."""
    fallbacks: set[Path] = set()
    for job in jobs:
        bundle = bundle_of(job.plan)
        if bundle is not None:
            settings = settings_of(job.plan.engine, job.options)
            yield BundleOpened(bundle.zip, bundle.board, str(settings), str(bundle.manifest.settings))
            if not job.missing and (other := difference(bundle, job.segments)):
                yield Warned(other)
        for folder in job.place.fallbacks:
            other_cache = Layout(folder)
            if folder not in fallbacks and any(
                segment.key and other_cache.entry(segment.key).is_dir() for segment in job.every_segment
            ):
                fallbacks.add(folder)
                what = f"segments are also taken from {short_path(folder)}, where they were kept before"
                yield Warned(f"{what}; new ones go to {short_path(job.place.cache)}")


def select(ids: Sequence[str], names: Sequence[str], board: Path) -> tuple[int, ...]:
    """Those of a board's clips that a user names, by 0-based place in the film, each once and in film order.

    A name is a clip's id, else a number from 1, else a range of them: `window`, `3`, `2-4`, `window-street`.
    Raises InputError for clips that the board does not have.
    """
    places = {clip: place for place, clip in enumerate(ids)}

    def place_of_clip(name: str) -> int | None:
        is_number = name.isdecimal() and 1 <= int(name) <= len(places)
        return places.get(name, int(name) - 1 if is_number else None)

    chosen: set[int] = set()
    unknown: list[str] = []
    for name in names:
        place = place_of_clip(name)
        ends = (name[:at] for at, char in enumerate(name) if char == "-")
        ranges = ((place_of_clip(first), place_of_clip(name[len(first) + 1 :])) for first in ends)
        found = [(first, last) for first, last in ranges if first is not None and last is not None]
        if place is not None:
            chosen.add(place)
        elif found and found[0][0] <= found[0][1]:
            chosen.update(range(found[0][0], found[0][1] + 1))
        else:
            unknown.append(name)
    if unknown:
        named = [f"{place + 1} ({clip})" for clip, place in places.items()]
        clips = ", ".join(named if len(named) <= MOST_NAMED else [*named[: MOST_NAMED - 1], "...", named[-1]])
        what = f"has no clip {', '.join(unknown)}; name one by id or number, or several as 2-4: {clips}"
        raise InputError(Problem(what, file=str(board)))
    return tuple(sorted(chosen))


def with_parents(job: Job, clips: Iterable[int]) -> tuple[Segment, ...]:
    """The film's segments of these clips and of all that they continue from, in order."""
    shots = job.plan.shots
    wanted: set[int] = set()
    for last in clips:
        first = max(index for index in range(last + 1) if shots[index].starts_chain)
        wanted.update(range(first, last + 1))
    return tuple(segment for index in sorted(wanted) for segment in shots[index].segments)


def path_of_clip(job: Job, clip: int, take: int = 0) -> Path:
    """Where a film of one clip goes, in a folder beside the film: of its picked take, or of another one."""
    name = f"{clip + 1}-{job.plan.shots[clip].id}" + (f"~take{take}" if take else "")
    return job.place.film.with_suffix(".clips") / f"{name}{FILM}"


def film_of_clip(job: Job, clip: int, take: Take) -> Job:
    """A film of one take of a clip alone, with the clip's captions and sounds."""
    plan, shot = job.plan, job.plan.shots[clip]
    title, number = f"{plan.title}: {shot.id}", 0
    if take.number != shot.pick:
        title, number = f"{title}, take {take.number}", take.number
    return replace(
        job,
        is_clip=True,
        place=replace(job.place, film=path_of_clip(job, clip, number)),
        plan=replace(
            plan,
            title=title,
            shots=(replace(shot.only(take), fade=0, dip=0, starts_chain=True),),
            cut=replace(plan.cut, fade_in=0, fade_out=0, title_card=None, end_card=None, music=None),
        ),
    )


def protect(job: Job, store: Store, pieces: Iterable[str] | None) -> None:
    """Protect what a film is made of, and all takes, from `cache gc`; None keeps the pieces it had.

    Until the film and its board are deleted; a film of a clip protects nothing once it is deleted itself.
    """
    settings = str(settings_of(job.plan.engine, job.options))
    requested = [
        Requested(segment.base_key, segment.key, segment.take, settings) for segment in job.every_segment
    ]
    keys = [segment.key for segment in job.segments]
    film = job.place.film
    store.remember_film(film, film if job.is_clip else job.place.board, keys, pieces, requested)
