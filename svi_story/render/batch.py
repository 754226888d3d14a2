"""A folder of films: one engine for all; a failing board never stops the others."""

from __future__ import annotations

import traceback
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from svi_story.cache.store import Store
from svi_story.errors import InputError, Problem, StoryError
from svi_story.events import BoardFailed, BoardRefused, RunStarted
from svi_story.render.film import render_clips, render_film
from svi_story.render.jobs import Rejected, select
from svi_story.render.stage import Stage, Studio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from svi_story.engines import EngineOptions
    from svi_story.engines.base import Engine
    from svi_story.events import Reporter
    from svi_story.plan.keys import Task
    from svi_story.render.jobs import Job

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
    tasks: tuple[Task, ...]
    """What to make when only clips are wanted; empty for the whole film."""
    forced: tuple[Task, ...]

    @property
    def wanted(self) -> tuple[Task, ...]:
        """Every segment that must be there in the end."""
        return self.tasks or self.job.all_tasks

    @property
    def setup(self) -> Setup:
        """The engine and the cache it is made with."""
        return Setup(self.job.plan.engine, self.job.options, self.job.place.cache)


def order(job: Job, wish: Wish) -> Order:
    """A wish for one board. Raises InputError when its engine or a clip is missing."""
    if job.lacks is not None:
        raise job.lacks
    item = Order(job, select(job, wish.only), ())
    return replace(item, forced=_forced(item, wish.force))


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


def _forced(item: Order, force: tuple[str, ...]) -> tuple[Task, ...]:
    """The segments to make again, which must be among those that are made."""
    clips = {task.segment.clip for task in item.wanted} if "all" in force else set(force)
    select(item.job, tuple(sorted(clips)))
    outside = clips - {task.segment.clip for task in item.wanted}
    if outside:
        what = f"--force {', '.join(sorted(outside))}: not among the clips that --only makes"
        raise InputError(Problem(what, file=str(item.job.place.board)))
    return tuple(task for task in item.wanted if task.segment.clip in clips)


def render_orders(
    orders: Sequence[Order], engines: Mapping[Setup, Engine], report: Reporter
) -> Iterator[Outcome]:
    """Render board after board, grouped by setup, with engines not entered yet; yields how each ended."""
    report(RunStarted(len(orders), sum(len(item.wanted) for item in orders)))
    groups: defaultdict[Setup, list[Order]] = defaultdict(list)
    for item in sorted(orders, key=lambda item: item.setup.engine):
        groups[item.setup].append(item)
    for setup, items in groups.items():
        wanted = tuple(task for item in items for task in item.wanted)
        store = Store(setup.cache, report)
        with Stage(engines[setup], wanted, store) as stage:
            for item in items:
                yield _render(item, Studio(stage, store, report))


def _render(item: Order, studio: Studio) -> Outcome:
    board = item.job.place.board
    try:
        if item.tasks:
            render_clips(item.job, item.tasks, item.forced, studio)
        else:
            render_film(item.job, item.forced, studio)
    except StoryError as error:
        outcome = Outcome(board, "failed", str(error))
    except Exception:  # noqa: BLE001 - a bug in one board must not cost the night's other boards
        outcome = Outcome(board, "bug", traceback.format_exc())
    else:
        return Outcome(board, "done")
    studio.report(BoardFailed(board, outcome.message))
    return outcome
