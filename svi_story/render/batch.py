"""A folder of films: one engine for all; a failing board never stops the others."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from svi_story.errors import StoryError
from svi_story.events import BoardFailed, RunStarted
from svi_story.render.film import render_clips, render_film
from svi_story.render.jobs import select
from svi_story.render.stage import Stage, Studio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from svi_story.cache.store import Store
    from svi_story.engines.base import Engine
    from svi_story.events import Reporter
    from svi_story.plan.keys import Task
    from svi_story.render.jobs import Job

Ending = Literal["done", "failed", "bug"]


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

    only: str = ""
    """Make this clip and what it continues from, and no film; all of the film when empty."""
    force: str = ""
    """Make this clip again, or `all`; nothing when empty."""


@dataclass(frozen=True)
class Order:
    """One board's share of a wish."""

    job: Job
    tasks: tuple[Task, ...]
    """What to make when only a clip is wanted; empty for the whole film."""
    forced: tuple[Task, ...]

    @property
    def wanted(self) -> tuple[Task, ...]:
        """Every segment that must be there in the end."""
        return self.tasks or self.job.all_tasks


def order(job: Job, wish: Wish) -> Order:
    """A wish for one board. Raises InputError when its engine or the clip is missing."""
    if job.lacks is not None:
        raise job.lacks
    tasks = select(job, wish.only) if wish.only else ()
    return Order(job, tasks, _forced(job, wish.force))


def _forced(job: Job, force: str) -> tuple[Task, ...]:
    if force == "all":
        return job.all_tasks
    if not force:
        return ()
    return tuple(task for task in select(job, force) if task.segment.clip == force)


def render_orders(
    orders: Sequence[Order], engines: Mapping[str, Engine], store: Store, report: Reporter
) -> Iterator[Outcome]:
    """Render board after board, grouped by engine, with engines not entered yet; yields how each ended."""

    def engine_of(item: Order) -> str:
        return item.job.plan.engine

    report(RunStarted(len(orders), sum(len(item.wanted) for item in orders)))
    for name, group in groupby(sorted(orders, key=engine_of), key=engine_of):
        items = list(group)
        wanted = tuple(task for item in items for task in item.wanted)
        with Stage(engines[name], wanted, store) as stage:
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
