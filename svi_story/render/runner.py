"""Films from boards: one engine for all, and a board that fails never stops the others.

`BatchRunner.run` is the whole way: boards are grouped by what they are rendered with, an executor renders
their segments, and every segment is handed to the films that it is part of (`render/film.py`).
"""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
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
from svi_story.render.cost import Calibration, Timed, calibrated
from svi_story.render.executor import LocalExecutor, SegmentFailed, system_error
from svi_story.render.film import Films, RenderContext, finish_if_up_to_date
from svi_story.render.jobs import Rejected, film_of_clip, select, with_parents
from svi_story.render.live import LivePreview, Previews
from svi_story.render.outputs import check_films
from svi_story.render.remaining import RemainingTime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """What was rendered: the film, or a film of each clip."""


@dataclass(frozen=True)
class BoardRequest:
    """A request for one board."""

    job: Job
    films: tuple[Job, ...]
    """The films to make: the board's, or one of each clip that is wanted."""
    wanted: tuple[Segment, ...]
    """Every segment that must be in the cache in the end, in film order."""
    forced: tuple[Segment, ...]

    @classmethod
    def of(cls, job: Job, request: RenderRequest) -> BoardRequest:
        """Raises InputError when the board's engine is missing something, or the board has no such clip."""
        job.require_keys()
        clips = select(job, request.only)
        wanted = with_parents(job, clips) if clips else job.segments
        within = {segment.clip for segment in wanted}
        ids = [shot.id for shot in job.plan.shots]
        again = [name for name in request.force if name != "all" or name in ids]
        forced = within if len(again) < len(request.force) else {ids[clip] for clip in select(job, again)}
        if outside := forced - within:
            what = f"--force {', '.join(sorted(outside))}: not among the clips that --only renders"
            raise InputError(Problem(what, file=str(job.place.board)))
        return cls(
            job,
            films_of(job, request.only),
            wanted,
            tuple(segment for segment in wanted if segment.clip in forced),
        )

    @property
    def done(self) -> Outcome:
        """How it ends when all goes well."""
        return Outcome(self.job.place.board, "done", films=tuple(each.place.film for each in self.films))


def films_of(job: Job, only: Sequence[str]) -> tuple[Job, ...]:
    """The films that a request makes of a board: its own, or one of each clip. Raises as `select`."""
    return tuple(film_of_clip(job, clip) for clip in select(job, only)) if only else (job,)


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
        return tuple(segment for request in self.requests for segment in request.wanted)


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
        # the events of several workers come interleaved, and would time each other's loading
        segments = _timed(requests)
        timed = calibrated(segments, report) if cluster is None else nullcontext(report)
        with timed as calibrating, ExitStack() as stack:
            shown = {each.job.place.board: each.job.place.film for each in requests}
            live = stack.enter_context(closing(LivePreview(shown, calibrating)))
            previews = Previews(request.preview_every, live.show)
            listener = _with_time_left(requests, segments, live)

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


def _with_time_left(
    requests: Sequence[BoardRequest], segments: Mapping[Name, Timed], report: Reporter
) -> Reporter:
    """A reporter that passes everything on, and reports how much time is left."""
    films = [film.plan for each in requests for film in each.films]
    return RemainingTime(
        segments,
        frames=sum(plan.frames for plan in films),
        pixels=sum(plan.frames * plan.size.width * plan.size.height for plan in films),
        films=len(films),
        known=Calibration.load(dict.fromkeys(each.job.place.settings.cache for each in requests)),
        report=report,
    )


def _timed(requests: Sequence[BoardRequest]) -> dict[Name, Timed]:
    """Every segment that is wanted, for the calibration to listen to."""
    return {
        (segment.board, segment.clip, segment.index): Timed(
            segment.engine,
            segment,
            partial(implementation_of(segment.engine).phases_of, each.job.options, segment),
        )
        for each in requests
        for segment in each.wanted
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
        self._report(RunStarted(len(requests), sum(len(each.wanted) for each in requests)))
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
            yield self._failed(board, error)

    def _run_once(
        self,
        requests: Sequence[BoardRequest],
        context: RenderContext,
        forced: set[str],
        delayed: dict[Path, TransientError],
    ) -> Iterator[Outcome]:
        """Start every board, render the segments of all, and hand each to the boards that want it."""
        films: dict[Path, Films] = {}
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
                yield self._failed(board, error)

        requested = {each.job.place.board: each for each in requests}
        for board, each in requested.items():
            try:
                if not each.forced and finish_if_up_to_date(each.films, context):
                    yield each.done
                    continue
                for segment in each.forced:  # once, whichever boards share it and are started again
                    if segment.key not in forced:
                        context.store.quarantine(segment.key, FORCED)
                        forced.add(segment.key)
                film = Films(each.job, each.films, each.wanted, context)
                film.start()
            except Exception as error:  # noqa: BLE001 - one board must not stop the others
                yield from fail(board, error)
                continue
            films[board] = film
            for key in dict.fromkeys(segment.key for segment in each.wanted):
                boards_of[key].append(board)
        wanted = [segment for each in requests if each.job.place.board in films for segment in each.wanted]
        for result in context.executor.render(wanted):
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
        """Add a segment to the films; whether all are complete. Raises the segment's error."""
        if isinstance(result, SegmentFailed):
            raise result.error
        if not result.fresh or not first:
            segment = result.segment
            self._report(SegmentReused(board, segment.clip, segment.index, segment.key))
        return film.add(result)

    def _failed(self, board: Path, error: Exception) -> Outcome:
        known = isinstance(error, StoryError)
        message = str(error) if known else "".join(traceback.format_exception(error))
        self._report(BoardFailed(board, message))
        return Outcome(board, "failed" if known else "bug", message)


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
