"""What a schedule costs: passes, model changes, bytes moved, and time, where something like it was timed."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.engines import implementation_of
from svi_story.enginespec import spec_of
from svi_story.render.calibration import Calibration, Kind
from svi_story.render.schedule import loads, schedule, waves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from svi_story.cache.store import Store
    from svi_story.engines import ModelSizes
    from svi_story.engines.base import Phase
    from svi_story.enginespec import EngineOptions
    from svi_story.enginespec.sampling import Lora
    from svi_story.plan.model import Segment
    from svi_story.render.calibration import Setting
    from svi_story.render.jobs import Job
    from svi_story.render.runner import Group
    from svi_story.render.schedule import Phases, Work

SHARED = ("offload", "stream")
"""Memory modes in which the experts take turns on the device."""


@dataclass(frozen=True)
class Moves:
    """What a memory rung costs."""

    loads: int
    """Times that an expert comes to the device."""
    bytes: int
    """That the experts bring there."""


@dataclass(frozen=True)
class Cost:
    """What making everything that is missing costs one engine."""

    engine: str
    segments: int
    waves: int
    """Missing segments of the longest chain."""
    forwards: Mapping[str, int]
    """Passes by expert."""
    moves: Mapping[str, Moves]
    """By rung; empty for an engine without experts."""
    setting: Setting | None
    """Where the times were measured."""
    seconds: float | None
    """None as long as something is unknown."""
    unknown: tuple[str, ...]
    """What was never timed."""


@dataclass(frozen=True)
class Batch:
    """The films of one engine, and how far they are."""

    engine: str
    films: Sequence[Sequence[Segment]]
    missing: frozenset[str]
    phases: Phases
    sizes: ModelSizes | None
    """None for an engine without experts."""

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of its experts."""
        return self.sizes.names if self.sizes else ()

    @property
    def segments(self) -> dict[str, Segment]:
        """The missing segments, each once, parents first."""
        return {
            segment.key: segment for film in self.films for segment in film if segment.key in self.missing
        }

    def works(self, rung: str) -> tuple[Work, ...]:
        """All the work, in the order that a rung asks for."""
        return schedule(self.films, self.missing, self.phases, one_at_a_time=rung in SHARED)


def cost_of(batch: Batch, rungs: Iterable[str], calibration: Calibration, setting: Setting | None) -> Cost:
    """What a batch costs, on each of these rungs; its time in the setting where it was measured last."""
    segments = batch.segments
    works = batch.works(setting.rung if setting else "resident")
    forwards = _forwards(works, batch.experts)
    passes = sum(forwards.values())
    moves = {rung: _moves(batch, batch.sizes, rung, passes) for rung in rungs if batch.sizes}
    due = _due(works, batch, setting)
    times = {kind: _seconds(calibration, setting, kind) for kind in due}
    unknown = tuple(dict.fromkeys(_words(kind) for kind, seconds in times.items() if seconds is None))
    known = sum(count * (times[kind] or 0.0) for kind, count in due.items())
    return Cost(
        engine=batch.engine,
        segments=len(segments),
        waves=len(waves(segments.values())),
        forwards=forwards,
        moves=moves,
        setting=setting,
        seconds=None if unknown else known,
        unknown=unknown,
    )


def _forwards(works: Iterable[Work], experts: Sequence[str]) -> dict[str, int]:
    """Passes by expert; no expert that has none."""
    phases = [work.phase for work in works if work.phase]
    passes = {model: sum(phase.passes for phase in phases if phase.model == model) for model in experts}
    return {model: count for model, count in passes.items() if count}


def _moves(batch: Batch, sizes: ModelSizes, rung: str, passes: int) -> Moves:
    works = batch.works(rung)
    used = {work.model for work in works} & set(batch.experts)
    if rung == "offload":
        count = loads(works, sizes.names)
        return Moves(count, count * sizes.expert)
    streamed = passes * sizes.blocks if rung == "stream" else 0
    still = sizes.expert - (sizes.blocks if rung == "stream" else 0)
    return Moves(len(used), len(used) * still + streamed)


def _due(works: Sequence[Work], batch: Batch, setting: Setting | None) -> Counter[Kind]:
    """How often everything is done that takes time."""
    due = Counter[Kind]()
    segments = batch.segments
    for work in works:
        if work.phase:
            due[_kind(work.phase.model, segments[work.key])] += max(work.phase.passes, 1)
        elif work.kind == "decode":
            due[_kind("decode", segments[work.key])] += 1
    if setting and setting.rung:
        for model in sorted({work.model for work in works} & set(batch.experts)):
            again = loads(works, (model,)) - 1 if setting.rung == "offload" else 0
            due[Kind(f"load {model}")] += 1
            due[Kind(f"move {model}")] += again
    return +due


def _kind(work: str, segment: Segment) -> Kind:
    return Kind(work, str(segment.size), segment.frames)


def _seconds(calibration: Calibration, setting: Setting | None, kind: Kind) -> float | None:
    """What a kind of work takes; where RAM is too small to move an expert from, it is loaded every time."""
    if setting is None:
        return None
    seconds = calibration.seconds(setting, kind)
    if seconds is None and kind.work.startswith("move "):
        return calibration.seconds(setting, Kind(kind.work.replace("move", "load", 1)))
    return seconds


def _words(kind: Kind) -> str:
    return f"{kind.work} at {kind.size}, {kind.frames} frames" if kind.size else kind.work


def costs_of(jobs: Sequence[Job], cache: Path, store_of: Callable[[Job], Store]) -> list[Cost]:
    """What making all that is missing costs, setup by setup; boards without keys are left out."""
    from svi_story.render.runner import Group

    calibration = Calibration.load(cache)
    setups: defaultdict[Group, list[Job]] = defaultdict(list)
    for job in jobs:
        if not job.missing:
            setups[Group((job.plan.engine,), job.options, job.place.cache)].append(job)
    return [
        _cost(setup, of, store_of(of[0]), calibration)
        for setup, of in sorted(setups.items(), key=lambda x: x[0].engines)
    ]


def _cost(setup: Group, jobs: Sequence[Job], store: Store, calibration: Calibration) -> Cost:
    (engine,), options = setup.engines, setup.options
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
