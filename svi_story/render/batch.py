"""A folder of films: one engine for all; a failing board never stops the others."""

from __future__ import annotations

import traceback
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from svi_story.cache.outputs import Outputs
from svi_story.cache.store import Store
from svi_story.engines import implementation_of
from svi_story.errors import InputError, PassingError, Problem, StoryError
from svi_story.events import BoardDelayed, BoardFailed, BoardRefused, RunStarted, SegmentReused, Warned
from svi_story.files import refused
from svi_story.render.calibration import Timed
from svi_story.render.film import Clips, Film, still_good
from svi_story.render.jobs import Rejected, select
from svi_story.render.retry import Retry
from svi_story.render.segments import Lost, Wanted, make
from svi_story.render.stage import Stage, Studio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from svi_story.engines.base import Engine
    from svi_story.enginespec import EngineOptions
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment
    from svi_story.render.calibration import Name
    from svi_story.render.jobs import Job
    from svi_story.render.segments import Made

Ending = Literal["done", "failed", "bug", "refused"]


@dataclass(frozen=True)
class Outcome:
    """How a board ended."""

    board: Path
    ending: Ending
    message: str = ""
    """What went wrong, for a person; the traceback of a bug."""


@dataclass(frozen=True)
class Wish:
    """What a user wants of every board."""

    only: tuple[str, ...] = ()
    """Make these clips and what they continue from, and no film; all of the film when empty."""
    force: tuple[str, ...] = ()
    """Make these clips again, or `all`."""


@dataclass(frozen=True)
class Setup:
    """What boards have in common that are made together."""

    engine: str
    options: EngineOptions
    cache: Path


@dataclass(frozen=True)
class Order:
    """One board's share of a wish."""

    job: Job
    segments: tuple[Segment, ...]
    """What to make when only clips are wanted; empty for the whole film."""
    forced: tuple[Segment, ...]

    @property
    def wanted(self) -> tuple[Segment, ...]:
        """Every segment that must be there in the end."""
        return self.segments or self.job.segments

    @property
    def setup(self) -> Setup:
        """The engine and the cache it is made with."""
        return Setup(self.job.plan.engine, self.job.options, self.job.place.cache)


def order(job: Job, wish: Wish) -> Order:
    """A wish for one board. Raises InputError when its engine or a clip is missing."""
    job.require_keys()
    item = Order(job, select(job, wish.only), ())
    return replace(item, forced=_forced(item, wish.force))


def segments_of(orders: Sequence[Order]) -> dict[Name, Timed]:
    """Every segment that is wanted."""
    return {
        (item.job.place.board, segment.clip, segment.index): Timed(
            item.setup.engine,
            segment,
            partial(implementation_of(item.setup.engine).phases_of, item.setup.options, segment),
        )
        for item in orders
        for segment in item.wanted
    }


def take_orders(
    jobs: Sequence[Job], rejected: Sequence[Rejected], wish: Wish, report: Reporter
) -> tuple[list[Order], list[Outcome]]:
    """What can be rendered, and how the boards end that cannot; they are told at once."""
    orders: list[Order] = []
    refused = list(rejected)
    for job in jobs:
        try:
            orders.append(order(job, wish))
        except InputError as error:
            refused.append(Rejected(job.place.board, error))
    for each in refused:
        report(BoardRefused(each.board, tuple(map(str, each.error.problems))))
    return orders, [Outcome(each.board, "refused", str(each.error)) for each in refused]


def _forced(item: Order, force: tuple[str, ...]) -> tuple[Segment, ...]:
    """The segments to make again, which must be among those that are made."""
    clips = {segment.clip for segment in item.wanted} if "all" in force else set(force)
    select(item.job, tuple(sorted(clips)))
    outside = clips - {segment.clip for segment in item.wanted}
    if outside:
        what = f"--force {', '.join(sorted(outside))}: not among the clips that --only makes"
        raise InputError(Problem(what, file=str(item.job.place.board)))
    return tuple(segment for segment in item.wanted if segment.clip in clips)


class Hands(Protocol):
    """Who makes the segments."""

    def stage(self, setup: Setup, engine: Engine, wanted: Sequence[Segment], store: Store) -> Stage:
        """The engine on its stage, not entered yet."""
        ...

    def make(self, wanted: Sequence[Wanted], studio: Studio) -> Iterator[Made | Lost]:
        """Make sure of all these segments, each once; tells of each as soon as it is known."""
        ...


class Ours:
    """This process makes them."""

    def stage(self, setup: Setup, engine: Engine, wanted: Sequence[Segment], store: Store) -> Stage:
        """The engine works here."""
        assert setup.engine == engine.identity.name
        return Stage(engine, wanted, store)

    def make(self, wanted: Sequence[Wanted], studio: Studio) -> Iterator[Made | Lost]:
        """One after another."""
        return make(wanted, studio)


OURS = Ours()
RETRY = Retry()


def render_orders(
    orders: Sequence[Order],
    engines: Mapping[Setup, Engine],
    report: Reporter,
    retry: Retry = RETRY,
    hands: Hands = OURS,
    outputs: Outputs | None = None,
) -> Iterator[Outcome]:
    """Render boards, grouped by setup, with engines not entered yet; yields how each ended."""
    outputs = outputs or Outputs()
    report(RunStarted(len(orders), sum(len(item.wanted) for item in orders)))
    groups: defaultdict[Setup, list[Order]] = defaultdict(list)
    for item in sorted(orders, key=lambda item: item.setup.engine):
        groups[item.setup].append(item)
    with _encoder() as encoder:
        for setup, items in groups.items():
            wanted = tuple(segment for item in items for segment in item.wanted)
            store = Store(setup.cache, report)
            with hands.stage(setup, engines[setup], wanted, store) as stage:
                studio = Studio(stage, store, encoder, report, outputs)
                yield from Night(items, studio, retry, hands).run()


@contextmanager
def _encoder() -> Iterator[Executor]:
    encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
    try:
        yield encoder
    finally:
        encoder.shutdown(cancel_futures=True)


class Night:
    """Boards of one engine, rendered together: what they share is made once.

    A board that fails by what may pass is put off until all others have ended, and begun anew then: what was
    made of it is in the store.
    """

    def __init__(
        self, orders: Sequence[Order], studio: Studio, retry: Retry = RETRY, hands: Hands = OURS
    ) -> None:
        self._orders = {order.job.place.board: order for order in orders}
        self._studio = studio
        self._retry = retry
        self._hands = hands
        self._open: dict[Path, Film | Clips] = {}
        """By board."""
        self._takers: defaultdict[str, list[Path]] = defaultdict(list)
        """The boards that want a segment, by its key."""
        self._delayed: dict[Path, PassingError] = {}
        """Boards that failed for now."""

    def run(self) -> Iterator[Outcome]:
        """Make everything that can be made; yields how each board ended, as soon as it has."""
        yield from self._round(list(self._orders.values()))
        for pause in self._retry.pauses:
            if not self._delayed:
                return
            told = f"boards that failed for now: {len(self._delayed)}; trying again in {pause:g} s"
            self._studio.report(Warned(told))
            self._retry.wait(pause)
            again = [self._orders[board] for board in self._delayed]
            self._delayed.clear()
            self._studio.stage.forgive()
            yield from self._round(again)
        for board, error in self._delayed.items():
            yield self._failed(board, error)

    def _round(self, orders: Sequence[Order]) -> Iterator[Outcome]:
        self._takers.clear()
        for order in orders:
            yield from self._begin(order)
        for told in self._hands.make(self._wanted(), self._studio):
            for board in self._takers[told.segment.key]:
                if board in self._open:
                    yield from self._hand_over(board, told)

    def _wanted(self) -> list[Wanted]:
        return [Wanted(segment, board) for board in self._open for segment in self._orders[board].wanted]

    def _begin(self, order: Order) -> Iterator[Outcome]:
        """Open a board; how it ended, if it has already."""
        job, studio = order.job, self._studio
        board = job.place.board
        try:
            if not order.segments and not order.forced and still_good(job, studio):
                yield Outcome(board, "done")
                return
            work = Clips(job, order.segments, studio) if order.segments else Film(job, studio)
            work.start(order.forced)
        except Exception as error:  # noqa: BLE001 - one board must not cost the night's other boards
            yield from self._drop(board, error)
            return
        self._open[board] = work
        for key in dict.fromkeys(segment.key for segment in order.wanted):
            self._takers[key].append(board)

    def _hand_over(self, board: Path, told: Made | Lost) -> Iterator[Outcome]:
        """Give a finished segment to a board that wants it, or the news that it cannot be had."""
        if isinstance(told, Lost):
            yield from self._drop(board, told.error)
            return
        if not told.fresh or board != self._takers[told.segment.key][0]:
            segment = told.segment
            self._studio.report(SegmentReused(board, segment.clip, segment.index, told.segment.key))
        try:
            complete = self._open[board].take(told)
        except Exception as error:  # noqa: BLE001 - as above
            yield from self._drop(board, error)
            return
        if complete:
            del self._open[board]
            yield Outcome(board, "done")

    def _drop(self, board: Path, error: Exception) -> Iterator[Outcome]:
        """Give up a board: for now, where what went wrong may pass by itself."""
        work = self._open.pop(board, None)
        if work:
            work.drop()
        if isinstance(error, MemoryError):
            error = PassingError(f"RAM ran out; {NO_RAM}")
        if isinstance(error, OSError):  # of the system, wherever it came from: not a bug
            error = refused(error, Path(error.filename or board), "reading or writing")
        if isinstance(error, PassingError) and self._retry.times:
            self._delayed[board] = error
            self._studio.report(BoardDelayed(board, str(error)))
        else:
            yield self._failed(board, error)

    def _failed(self, board: Path, error: Exception) -> Outcome:
        known = isinstance(error, StoryError)
        message = str(error) if known else "".join(traceback.format_exception(error))
        self._studio.report(BoardFailed(board, message))
        return Outcome(board, "failed" if known else "bug", message)


NO_RAM = "close what else uses it, then run the same command again: everything rendered so far is kept"
