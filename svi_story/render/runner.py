"""Films from boards: one engine for all, and a board that fails never stops the others.

`BatchRunner.run` is the whole way: boards are grouped by what they are rendered with, an executor renders
their segments, and every segment is handed to the films that it is part of (`render/film.py`).
"""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Literal

from svi_story.cache.outputs import Outputs
from svi_story.cache.quarantine import FORCED
from svi_story.cache.store import Store
from svi_story.engines import implementation_of
from svi_story.errors import InputError, Problem, StoryError, TransientError
from svi_story.events import (
    BoardDelayed,
    BoardFailed,
    BoardRefused,
    RunDone,
    RunStarted,
    SegmentReused,
    Warned,
)
from svi_story.render.cost import Calibration, Timed, Timings
from svi_story.render.executor import LocalExecutor, SegmentFailed, system_error
from svi_story.render.film import Films, RenderContext, report_finished
from svi_story.render.jobs import Rejected, film_of_clip, select, with_parents
from svi_story.render.live import LivePreview, Previews
from svi_story.render.outputs import check_films
from svi_story.render.record import is_finished
from svi_story.render.remaining import RemainingTime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor as ThreadExecutor
    from pathlib import Path

    from svi_story.engines.base import Engine
    from svi_story.enginespec import EngineOptions
    from svi_story.events import Reporter
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import Segment
    from svi_story.render.cost import Name
    from svi_story.render.distributed.executor import Cluster
    from svi_story.render.executor import Executor, Result
    from svi_story.render.jobs import Job

    MakeExecutor = Callable[["Group", Store], Executor]

Ending = Literal["done", "failed", "bug", "refused"]

PREVIEW_EVERY = 5
LONGER = 4
"""How much longer every pause between retries is than the one before."""


@dataclass(frozen=True)
class RenderRequest:
    """What to render of every board."""

    only: tuple[str, ...] = ()
    """Render these clips and what they continue from, and a film of each; the whole film when empty."""
    force: tuple[str, ...] = ()
    """Render these clips again, or `all`. Clips are named as for `select`."""
    retries: int = 2
    """How often a board that failed transiently is tried again, after all others."""
    preview_every: int = PREVIEW_EVERY
    """Steps between two live previews; 0 for none."""
    pause: float = 5.0
    """Seconds before the first retry; every later pause is LONGER times as long."""


@dataclass(frozen=True)
class Outcome:
    """How a board ended."""

    board: Path
    ending: Ending
    message: str = ""
    """The errors; the traceback for a bug."""
    films: tuple[Path, ...] = ()
    """What is complete: the film, or a film of each clip and take."""


@dataclass(frozen=True)
class BoardRequest:
    """A request for one board."""

    job: Job
    films: tuple[Job, ...]
    """The films to make: the board's, or one of each take of the clips that are wanted."""
    wanted: tuple[Segment, ...]
    """Every segment of the board's film that is needed for them, in film order."""
    takes: tuple[Segment, ...]
    """Every segment of takes that the board's film does not use; they are rendered after all others."""
    forced: tuple[Segment, ...]

    @classmethod
    def of(cls, job: Job, request: RenderRequest) -> BoardRequest:
        """Raises InputError when the board's engine is missing something, or the board has no such clip."""
        job.require_keys()
        board = job.place.board
        ids = [shot.id for shot in job.plan.shots]
        clips = select(ids, request.only, board)
        wanted = with_parents(job, clips) if clips else job.segments
        chosen = {ids[clip] for clip in clips or range(len(ids))}
        takes = tuple(segment for segment in job.plan.other_segments if segment.clip in chosen)
        within = {segment.clip for segment in wanted}
        again = [name for name in request.force if name != "all" or name in ids]
        forced = (
            within if len(again) < len(request.force) else {ids[clip] for clip in select(ids, again, board)}
        )
        if outside := forced - within:
            what = f"--force {', '.join(sorted(outside))}: not among the clips that --only renders"
            raise InputError(Problem(what, file=str(board)))
        return cls(
            job,
            films_of(job, request.only),
            wanted,
            takes,
            tuple(segment for segment in (*wanted, *takes) if segment.clip in forced),
        )

    def left(self, store: Store) -> BoardRequest:
        """The same without films that are up to date and takes that are there, and without what they need."""
        films = tuple(film for film in self.films if not is_finished(film, store))
        in_films = {segment.key for film in self.films for segment in film.segments}
        due = [segment.key for film in films for segment in film.segments]
        due += [
            take.key for take in self.takes if take.key not in in_films and store.state(take.key) != "cached"
        ]
        parents = {segment.key: segment.parent for segment in (*self.wanted, *self.takes)}
        needed: set[str] = set()
        for key in due:
            above: str | None = key
            while above and above not in needed:
                needed.add(above)
                above = parents[above]
        wanted, takes = (
            tuple(segment for segment in some if segment.key in needed) for some in (self.wanted, self.takes)
        )
        return replace(self, films=films, wanted=wanted, takes=takes)

    @property
    def done(self) -> Outcome:
        """How it ends when all goes well."""
        return Outcome(self.job.place.board, "done", films=tuple(each.place.film for each in self.films))


def films_of(job: Job, only: Sequence[str]) -> tuple[Job, ...]:
    """The films that a request makes of a board: its own, or one of each take of clips; as `select`."""
    if not only:
        return (job,)
    shots = job.plan.shots
    return tuple(
        film_of_clip(job, clip, take)
        for clip in select([shot.id for shot in shots], only, job.place.board)
        for take in shots[clip].takes
    )


@dataclass(frozen=True)
class Group:
    """Boards that are rendered together: same engines, options and cache."""

    engines: tuple[str, ...]
    options: EngineOptions
    cache: Path
    fallbacks: tuple[Path, ...] = ()
    requests: tuple[BoardRequest, ...] = field(default=(), compare=False)

    @property
    def wanted(self) -> tuple[Segment, ...]:
        """Every segment of its boards."""
        return tuple(segment for each in self.requests for segment in (*each.wanted, *each.takes))


def render_boards(
    jobs: Sequence[Job],
    rejected: Sequence[Rejected],
    request: RenderRequest,
    fingerprints: Fingerprints,
    report: Reporter,
    cluster: Cluster | None = None,
) -> list[Outcome]:
    """Render every board that can be rendered, here or on a cluster; how each ended.

    Raises InputError when the cluster cannot be joined.
    """
    outputs_of = cache(Outputs)
    films: dict[Path, tuple[Job, ...]] = {}
    for job in jobs:
        with suppress(InputError):  # clips that the board does not have are reported with its request
            films[job.place.board] = films_of(job, request.only)
    jobs, refused_boards = check_films(jobs, films, outputs_of, report, forced=bool(request.force))
    rejected = [*rejected, *refused_boards]
    requests, outcomes = requests_of(jobs, rejected, request, report)
    if requests:
        fingerprints.save()
        timings = Timings(_timed(requests))
        with ExitStack() as stack:
            stack.callback(fingerprints.save)  # of files that engines read, too
            if cluster is None:  # events of several workers are interleaved, and include each other's loading
                stack.callback(timings.learnt.save)
            shown = {each.job.place.board: each.job.place.film for each in requests}
            live = stack.enter_context(closing(LivePreview(shown, report)))
            previews = Previews(request.preview_every, live.show)
            listener = _with_time_left(requests, timings, live)

            def make_executor(group: Group, store: Store) -> Executor:
                def create(name: str) -> Engine:
                    return implementation_of(name).create_engine(
                        group.options, fingerprints.file, store.embedding, listener
                    )

                if cluster is not None:
                    return cluster.executor(create, group, store, previews)
                return LocalExecutor(create, group.wanted, store, listener, previews)

            runner = BatchRunner(request, make_executor, listener, outputs_of)
            outcomes = [*runner.run(requests), *outcomes]
    endings = [outcome.ending for outcome in outcomes]
    failed = endings.count("failed") + endings.count("bug")
    report(RunDone(endings.count("done"), failed, endings.count("refused")))
    return outcomes


def _with_time_left(requests: Sequence[BoardRequest], timings: Timings, report: Reporter) -> Reporter:
    """A reporter that passes everything on, and reports how much time is left."""
    films = [film.plan for each in requests for film in each.films]
    return RemainingTime(
        timings,
        shown={segment.key for plan in films for segment in plan.segments},
        frames=sum(plan.frames for plan in films),
        pixels=sum(plan.frames * plan.size.width * plan.size.height for plan in films),
        films=len(films),
        known=Calibration.load(dict.fromkeys(each.job.place.settings.cache for each in requests)),
        report=report,
    )


def _timed(requests: Sequence[BoardRequest]) -> dict[Name, Timed]:
    """Every segment that is wanted."""
    return {
        segment.name: Timed(
            segment.engine,
            segment,
            partial(implementation_of(segment.engine).phases_of, each.job.options, segment),
        )
        for each in requests
        for segment in (*each.wanted, *each.takes)
    }


def requests_of(
    jobs: Sequence[Job], rejected: Sequence[Rejected], request: RenderRequest, report: Reporter
) -> tuple[list[BoardRequest], list[Outcome]]:
    """What can be rendered, and the outcomes of the boards that cannot; those are reported at once."""
    requests: list[BoardRequest] = []
    refused_boards = list(rejected)
    for job in jobs:
        try:
            requests.append(BoardRequest.of(job, request))
        except InputError as error:
            refused_boards.append(Rejected(job.place.board, error))
    for each in refused_boards:
        report(BoardRefused(each.board, tuple(map(str, each.error.problems))))
    return requests, [Outcome(each.board, "refused", str(each.error)) for each in refused_boards]


class BatchRunner:
    """Renders boards together: a segment that several of them share is rendered once.

    A board that fails transiently is started again after all others have ended; its finished segments are in
    the cache.
    """

    def __init__(
        self,
        request: RenderRequest,
        make_executor: MakeExecutor,
        report: Reporter,
        outputs_of: Callable[[Path], Outputs] = Outputs,
    ) -> None:
        self._request = request
        self._make_executor = make_executor
        self._report = report
        self._outputs_of = outputs_of

    def run(self, requests: Sequence[BoardRequest]) -> Iterator[Outcome]:
        """Render everything that can be rendered; yields how each board ended, as soon as it has."""
        count = sum(len(each.wanted) + len(each.takes) for each in requests)
        self._report(RunStarted(len(requests), count))
        with _encoder_threads() as encoder:
            for group in _groups(requests):
                store = Store(group.cache, self._report, group.fallbacks)
                with self._make_executor(group, store) as executor:
                    outputs = self._outputs_of(group.requests[0].job.place.settings.cache)
                    context = RenderContext(executor, store, encoder, self._report, outputs)
                    yield from self._run_group(group, context)

    def _run_group(self, group: Group, context: RenderContext) -> Iterator[Outcome]:
        forced: set[str] = set()
        delayed: dict[Path, TransientError] = {}
        requests = {each.job.place.board: each for each in group.requests}
        yield from self._run_once(list(requests.values()), context, forced, delayed)
        for number in range(self._request.retries):
            if not delayed:
                return
            pause = self._request.pause * LONGER**number
            what = f"boards that failed for now: {len(delayed)}; trying again in {pause:g} s"
            self._report(Warned(what))
            wait(pause)
            again = [requests[board] for board in delayed]
            delayed.clear()
            context.executor.retry()
            yield from self._run_once(again, context, forced, delayed)
        for board, error in delayed.items():
            yield self._failed(requests[board], error, context.store)

    def _run_once(
        self,
        requests: Sequence[BoardRequest],
        context: RenderContext,
        forced: set[str],
        delayed: dict[Path, TransientError],
    ) -> Iterator[Outcome]:
        """Start every board, render the segments of all, and hand each to the boards that want it."""
        films: dict[Path, Films] = {}
        wanted: list[Segment] = []
        takes: list[Segment] = []
        boards_of: defaultdict[str, list[Path]] = defaultdict(list)

        def fail(board: Path, error: Exception) -> Iterator[Outcome]:
            film = films.pop(board, None)
            if film:
                film.cancel()
            error = system_error(error, board)
            if isinstance(error, TransientError) and self._request.retries:
                delayed[board] = error
                self._report(BoardDelayed(board, str(error)))
            else:
                yield self._failed(requested[board], error, context.store)

        requested = {each.job.place.board: each for each in requests}
        for board, each in requested.items():
            try:
                left = self._left(each, context, forced)
                if not left.films and not left.takes:
                    yield each.done
                    continue
                film = Films(each.job, left.films, left.wanted, left.takes, context)
                film.start(len(each.wanted) + len(each.takes))
            except Exception as error:  # noqa: BLE001 - one board must not stop the others
                yield from fail(board, error)
                continue
            films[board] = film
            wanted += left.wanted
            takes += left.takes
            for key in dict.fromkeys(segment.key for segment in (*left.wanted, *left.takes)):
                boards_of[key].append(board)
        for result in context.executor.render(wanted, takes):
            boards = boards_of[result.segment.key]
            for board in [board for board in boards if board in films]:
                try:
                    complete = self._add(films[board], board, result, first=board == boards[0])
                except Exception as error:  # noqa: BLE001 - as above
                    yield from fail(board, error)
                    continue
                if complete:
                    del films[board]
                    yield requested[board].done

    def _add(self, film: Films, board: Path, result: Result, *, first: bool) -> bool:
        """Add a segment to the films; whether all is over. Raises the error of one that failed."""
        if isinstance(result, SegmentFailed):
            is_over = film.fail(result.segment.key, result.error)
        else:
            if not result.fresh or not first:
                self._report(_reused(board, result.segment))
            is_over = film.add(result)
        if is_over and film.failure:
            raise film.failure
        return is_over

    def _left(self, request: BoardRequest, context: RenderContext, forced: set[str]) -> BoardRequest:
        """What is left of a request; what is there is reported. `forced` are the keys set aside so far."""
        if request.forced:
            for segment in request.forced:  # once, whichever boards share it and are started again
                if segment.key not in forced:
                    context.store.quarantine(segment.key, FORCED)
                    forced.add(segment.key)
            return request
        left = request.left(context.store)
        for film in request.films:
            if film not in left.films:
                report_finished(film, context)
        if left.films or left.takes:
            needed = {segment.key for segment in (*left.wanted, *left.takes)}
            for segment in (*request.wanted, *request.takes):
                if segment.key not in needed:
                    self._report(_reused(request.job.place.board, segment))
        return left

    def _failed(self, request: BoardRequest, error: Exception, store: Store) -> Outcome:
        board = request.job.place.board
        films: list[Path] = []
        with suppress(StoryError, OSError):
            films = [each.place.film for each in request.films if is_finished(each, store)]
        known = isinstance(error, StoryError)
        message = str(error) if known else "".join(traceback.format_exception(error))
        self._report(BoardFailed(board, message))
        return Outcome(board, "failed" if known else "bug", message, tuple(films))


def _reused(board: Path, segment: Segment) -> SegmentReused:
    return SegmentReused(board, segment.clip, segment.index, segment.key, take=segment.take)


def wait(seconds: float) -> None:
    """Wait before a retry; ^C ends it at once."""
    time.sleep(seconds)


def _groups(requests: Sequence[BoardRequest]) -> list[Group]:
    groups: dict[Group, list[BoardRequest]] = {}
    for each in requests:
        engines = tuple(sorted({segment.engine for segment in each.job.segments}))
        place = each.job.place
        groups.setdefault(Group(engines, each.job.options, place.cache, place.fallbacks), []).append(each)
    found = [replace(group, requests=tuple(some)) for group, some in groups.items()]
    return sorted(found, key=lambda group: group.engines)


@contextmanager
def _encoder_threads() -> Iterator[ThreadExecutor]:
    """Two: the next piece begins while the queue of the last one's encoder empties."""
    encoder = ThreadPoolExecutor(max_workers=2, thread_name_prefix="encoder")
    try:
        yield encoder
    finally:
        encoder.shutdown(cancel_futures=True)
