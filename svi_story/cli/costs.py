"""What a plan would cost to make, for people and for scripts."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from svi_story.cli.jobs import store_of
from svi_story.engines import implementation_of
from svi_story.enginespec import spec_of
from svi_story.render.calibration import Calibration
from svi_story.render.cost import Batch, cost_of
from svi_story.render.runner import Group
from svi_story.units import gib

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from svi_story.cache.store import Store
    from svi_story.engines.base import Phase
    from svi_story.enginespec import EngineOptions
    from svi_story.enginespec.sampling import Lora
    from svi_story.plan.model import Segment
    from svi_story.render.cost import Cost
    from svi_story.render.jobs import Job


def costs_of(jobs: Sequence[Job], cache: Path) -> list[Cost]:
    """What making all that is missing costs, setup by setup; boards that cannot be keyed are left out."""
    calibration = Calibration.load(cache)
    setups: defaultdict[Group, list[Job]] = defaultdict(list)
    for job in jobs:
        if not job.missing:
            setups[Group((job.plan.engine,), job.options, job.place.cache)].append(job)
    return [_cost(setup, of, calibration) for setup, of in sorted(setups.items(), key=lambda x: x[0].engines)]


def _cost(setup: Group, jobs: Sequence[Job], calibration: Calibration) -> Cost:
    (engine,), options, store = setup.engines, setup.options, store_of(jobs[0])
    films = [job.segments for job in jobs]
    keys = {segment.key for film in films for segment in film}
    missing = frozenset(key for key in keys if store.state(key) != "cached")
    batch = Batch(
        engine, films, missing, _Left(engine, store, options), implementation_of(engine).model_sizes(options)
    )
    modes = spec_of(engine).memory_modes if options.memory == "auto" else (options.memory,)
    return cost_of(batch, modes, calibration, calibration.newest(engine, options.dtype, options.memory))


class _Left:
    """What is left to sample of a segment: all of it, unless its latents wait to be decoded."""

    def __init__(self, engine: str, store: Store, options: EngineOptions) -> None:
        self._engine, self._store, self._options = engine, store, options
        self._known: dict[tuple[object, tuple[Lora, ...]], Sequence[Phase]] = {}
        """They differ by these alone."""
        self._left: dict[str, Sequence[Phase]] = {}

    def __call__(self, segment: Segment) -> Sequence[Phase]:
        """A segment's phases."""
        if segment.key not in self._left:
            self._left[segment.key] = () if self._store.sampled(segment.key) else self._phases(segment)
        return self._left[segment.key]

    def _phases(self, segment: Segment) -> Sequence[Phase]:
        like = segment.options, segment.loras
        if like not in self._known:
            self._known[like] = implementation_of(self._engine).phases_of(self._options, segment)
        return self._known[like]


def as_json(costs: Sequence[Cost]) -> dict[str, Any]:
    """`schedule` of `plan --json`."""
    return {
        "segments": sum(cost.segments for cost in costs),
        "seconds": _sum(costs),
        "unknown": [what for cost in costs for what in cost.unknown],
        "engines": [_engine(cost) for cost in costs],
    }


def _engine(cost: Cost) -> dict[str, Any]:
    return {
        "engine": cost.engine,
        "segments": cost.segments,
        "waves": cost.waves,
        "forwards": dict(cost.forwards),
        "memory": {
            rung: {"expert_loads": moves.loads, "bytes_moved": moves.bytes}
            for rung, moves in cost.moves.items()
        },
        "seconds": cost.seconds,
        "unknown": list(cost.unknown),
    }


def _sum(costs: Sequence[Cost]) -> float | None:
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    return sum(known) if len(known) == len(costs) else None


def as_lines(costs: Sequence[Cost]) -> list[str]:
    """The last block of `plan`, for a person."""
    return [line for cost in costs for line in _lines(cost)]


def _lines(cost: Cost) -> list[str]:
    if not cost.segments:
        return [f"{cost.engine}: every segment is there"]
    head = f"{cost.engine}: {cost.segments} segments to make, {cost.waves} of them one after another at most"
    passes = ", ".join(f"{count} forward passes {expert}" for expert, count in cost.forwards.items())
    moves = [
        f"moved with --memory {rung}: {gib(moves.bytes)}, experts come to the device {moves.loads} times"
        for rung, moves in cost.moves.items()
    ]
    return [f"{head}; {passes}" if passes else head, *moves, _time(cost)]


def _time(cost: Cost) -> str:
    if cost.setting is None or cost.seconds is None:
        what = ", ".join(cost.unknown)
        return f"time: unknown until something like it was rendered ({what})"
    about = timedelta(seconds=max(1, round(cost.seconds)))
    setting = cost.setting
    where = ", ".join(
        part for part in (setting.device, setting.dtype, setting.attention, setting.rung) if part
    )
    return f"time: about {about}, as timed here before" + (f" ({where})" if where else "")
