"""The cost of a schedule: passes, model changes, bytes moved, and time as measured in earlier renders."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import AliasChoices, Field

from svi_story.engines import implementation_of
from svi_story.enginespec import spec_of
from svi_story.errors import RenderError
from svi_story.events import (
    EngineSettled,
    FilmDone,
    JoinStarted,
    ModelLoaded,
    ModelMoved,
    PhaseDone,
    PhaseStarted,
    PieceDone,
    SegmentDone,
)
from svi_story.fields import JsonModel
from svi_story.files import make_folder, read_regular, write_atomic
from svi_story.render.schedule import loads, schedule, seconds_of, waves
from svi_story.settings import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from svi_story.cache.store import Store
    from svi_story.engines import ModelSizes
    from svi_story.engines.base import Phase
    from svi_story.enginespec import EngineOptions
    from svi_story.enginespec.sampling import Lora
    from svi_story.events import Event
    from svi_story.plan.model import Segment
    from svi_story.render.jobs import Job
    from svi_story.render.runner import Group
    from svi_story.render.schedule import Phases, Work

    Name = tuple[Path, str, int, int]
    """Of a segment: board, clip, take, index."""


FILE = "calibration.json"
LARGEST = 4 * 2**20
KEPT = 15
"""Newest times of one kind; their median counts, so that a disturbed one does not."""


class Timed(NamedTuple):
    """A segment whose rendering is timed."""

    engine: str
    segment: Segment
    phases: Callable[[], Sequence[Phase]]
    """How it is sampled."""


@dataclass(frozen=True)
class Setting:
    """What an engine worked on, and how."""

    engine: str
    device: str = ""
    dtype: str = ""
    attention: str = ""
    memory: Annotated[str, Field(validation_alias=AliasChoices("memory", "rung"))] = ""
    weights: str = "bf16"
    compiled: bool = False
    overlap: bool = False
    """Whether segments were decoded while others were sampled."""

    @classmethod
    def of(cls, event: EngineSettled) -> Setting:
        """The setting that an engine chose."""
        about = (event.engine, event.device, event.dtype, event.attention, event.memory)
        return cls(*about, event.weights, event.compiled, event.overlap)


@dataclass(frozen=True)
class WorkKind:
    """What took some time."""

    work: str
    """A model's pass or the VAE's encoding, by its name; `decode`, `store`; `load high`, `move low`."""
    size: str = ""
    frames: int = 0
    """Of the segment; of no segment for loads."""


class CalibrationRow(JsonModel):
    """Times of one kind in one setting, in seconds, the newest last."""

    setting: Setting
    kind: WorkKind
    seconds: tuple[float, ...]


class CalibrationFile(JsonModel):
    """The file in the user's cache folder."""

    format: Literal[1] = 1
    rows: tuple[CalibrationRow, ...]


@dataclass
class Calibration:
    """Seconds by setting and kind; the setting that was used last comes last."""

    times: dict[Setting, dict[WorkKind, list[float]]] = field(default_factory=dict)

    @classmethod
    def load(cls, caches: Iterable[Path] = ()) -> Calibration:
        """What was measured on this machine, and what older versions kept in these caches."""
        found = cls()
        for folder in (*caches, user_cache()):
            with suppress(OSError, ValueError, RecursionError):
                kept = CalibrationFile.model_validate(json.loads(read_regular(folder / FILE, LARGEST)))
                for row in kept.rows:
                    for seconds in row.seconds:
                        found.add(row.setting, row.kind, seconds)
        return found

    def add(self, setting: Setting, kind: WorkKind, seconds: float) -> None:
        """Remember one more time."""
        kinds = self.times[setting] = self.times.pop(setting, {})
        kinds[kind] = [*kinds.get(kind, []), seconds][-KEPT:]

    def merge(self, newer: Calibration) -> None:
        """Add what another one found later."""
        for setting, kinds in newer.times.items():
            for kind, times in kinds.items():
                for seconds in times:
                    self.add(setting, kind, seconds)

    def save(self) -> None:
        """Add it to this machine's file, if that can be written."""
        if not self.times:
            return
        every = Calibration.load()
        every.merge(self)
        rows = tuple(
            CalibrationRow(setting=setting, kind=kind, seconds=tuple(times))
            for setting, kinds in every.times.items()
            for kind, times in kinds.items()
        )
        text = json.dumps(CalibrationFile(rows=rows).model_dump(), indent=1, ensure_ascii=False)
        with suppress(OSError, RenderError):
            make_folder(user_cache())
            write_atomic(user_cache() / FILE, text.encode("utf-8"))

    def newest(
        self, engine: str, dtype: str, mode: str, weights: str = "bf16", *, compiled: bool = False
    ) -> Setting | None:
        """The setting that was used last and is like this one; `auto` is any mode."""
        like = [
            setting
            for setting in self.times
            if setting.engine == engine
            and setting.dtype in ("", dtype)
            and (setting.weights, setting.compiled) == (weights, compiled)
            and (mode == "auto" or setting.memory in ("", mode))
        ]
        return like[-1] if like else None

    def seconds(self, setting: Setting, kind: WorkKind) -> float | None:
        """What it usually takes; None until it was done once."""
        times = self.times.get(setting, {}).get(kind)
        return statistics.median(times) if times else None


ASSEMBLY = Setting("assembly")
"""The setting of what follows the engine: encoding and joining."""


class Timings:
    """Measures from events how long things take."""

    def __init__(self, segments: Mapping[Name, Timed]) -> None:
        self.segments = segments
        self._settings: dict[str, Setting] = {}
        """By engine; the one that was used last comes last."""
        self._loading = 0.0
        """Seconds of the current phase that were spent on loading."""
        self._phases: dict[object, Sequence[Phase]] = {}
        """They differ by engine, options and LoRAs alone."""
        self._sizes = {board: str(timed.segment.size) for (board, *_), timed in segments.items()}
        self._joining: dict[Path, float] = {}
        """When the joining of a board's film started."""
        self.learnt = Calibration()

    def phases(self, timed: Timed) -> Sequence[Phase]:
        """How a segment is sampled. Raises StoryError."""
        like = timed.engine, timed.segment.options, timed.segment.loras
        if like not in self._phases:
            self._phases[like] = timed.phases()
        return self._phases[like]

    def setting(self, engine: str) -> Setting:
        """How an engine works now, as far as it is known."""
        return self._settings.get(engine, Setting(engine))

    def __call__(self, event: Event) -> None:
        """Learn from an event."""
        match event:
            case EngineSettled():
                self._settings[event.engine] = Setting.of(event)
            case ModelLoaded():
                self._load("load", event)
            case ModelMoved():
                self._load("move", event)
            case PhaseStarted() if event.model != "decode":
                self._loading = 0.0
            case PhaseDone():
                self._phase(event)
            case SegmentDone():
                self._learn(event.name, "decode", event.decoding - event.storing)
                if event.storing:
                    self._learn(event.name, "store", event.storing)
            case PieceDone():
                self._learn_assembly("encode", event.board, event.seconds / max(event.frames, 1))
            case JoinStarted():
                self._joining[event.board] = time.monotonic()
            case FilmDone() if event.board in self._joining:
                self._learn_assembly("join", event.board, time.monotonic() - self._joining.pop(event.board))
            case _:
                pass

    def _learn_assembly(self, work: str, board: Path, seconds: float) -> None:
        if board in self._sizes:
            self.learnt.add(ASSEMBLY, WorkKind(work, self._sizes[board]), round(seconds, 6))

    def _load(self, how: str, event: ModelLoaded | ModelMoved) -> None:
        self._loading += event.seconds
        if self._settings:
            engine = list(self._settings)[-1]
            self.learnt.add(self._settings[engine], WorkKind(f"{how} {event.model}"), event.seconds)

    def _phase(self, event: PhaseDone) -> None:
        name = event.name
        spent, self._loading = max(event.seconds - self._loading, 0.0), 0.0
        if name not in self.segments:
            return
        before = 0
        for phase in self.phases(self.segments[name]):
            steps = phase.until - before
            if phase.model == event.model and event.steps == steps:
                self._learn(name, event.model, spent / max(phase.passes, 1))
            before = phase.until

    def _learn(self, name: Name, work: str, seconds: float) -> None:
        if name in self.segments:
            engine, segment, _ = self.segments[name]
            self.learnt.add(self.setting(engine), kind_of(work, segment), round(seconds, 6))


SHARED = ("offload", "stream")
"""Memory modes in which the experts take turns on the device."""


@dataclass(frozen=True)
class Moves:
    """What a memory mode costs."""

    loads: int
    """Times that an expert comes to the device."""
    bytes: int
    """That the experts bring there."""


@dataclass(frozen=True)
class Cost:
    """The cost of rendering everything that is missing with one engine."""

    engine: str
    segments: int
    """Those of `takes` among them."""
    takes: int
    """Segments of takes that no film uses."""
    waves: int
    """Missing segments of the longest chain."""
    forwards: Mapping[str, int]
    """Passes by expert."""
    moves: Mapping[str, Moves]
    """By mode; empty for an engine without experts."""
    setting: Setting | None
    """Where the times were measured."""
    seconds: float | None
    """None as long as something is unknown."""
    unknown: tuple[str, ...]
    """What was never timed."""


@dataclass(frozen=True)
class Batch:
    """The films of one engine, and which of their segments are missing."""

    engine: str
    films: Sequence[Sequence[Segment]]
    missing: frozenset[str]
    phases: Phases
    sizes: ModelSizes | None
    """None for an engine without experts."""
    takes: Sequence[Segment] = ()
    """Of all takes that the films do not use."""

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of its experts."""
        return self.sizes.names if self.sizes else ()

    @property
    def segments(self) -> dict[str, Segment]:
        """The missing segments, each once, parents first."""
        every = [*(segment for film in self.films for segment in film), *self.takes]
        return {segment.key: segment for segment in every if segment.key in self.missing}

    def works(self, mode: str, *, beside: bool = False) -> tuple[Work, ...]:
        """All the work, in the order in which it is done in a memory mode; `beside` as in `schedule`."""
        how = {"one_at_a_time": mode in SHARED, "beside": beside}
        return schedule(self.films, self.missing, self.phases, **how, takes=self.takes)


def cost_of(batch: Batch, modes: Iterable[str], calibration: Calibration, setting: Setting | None) -> Cost:
    """The cost of a batch in each of these memory modes; its time in the setting that was measured last."""
    segments = batch.segments
    beside = bool(setting and setting.overlap)
    works = batch.works(setting.memory if setting else "resident", beside=beside)
    forwards = _forwards(works, batch.experts)
    passes = sum(forwards.values())
    moves = {mode: _moves(batch, batch.sizes, mode, passes) for mode in modes if batch.sizes}
    due = _due(works, batch, setting)
    times = {kind: _seconds(calibration, setting, kind) for kind in due}
    unknown = tuple(
        dict.fromkeys(
            f"{kind.work} at {kind.size}, {kind.frames} frames" if kind.size else kind.work
            for kind, seconds in times.items()
            if seconds is None
        )
    )

    def seconds_each(work: Work) -> tuple[float, float]:
        if work.phase:
            kind = kind_of(work.phase.model, segments[work.key])
            return (times[kind] or 0.0) * max(work.phase.passes, 1), 0.0
        if work.kind != "decode":
            return 0.0, 0.0
        decode, store = (kind_of(each, segments[work.key]) for each in ("decode", "store"))
        return times[decode] or 0.0, _seconds(calibration, setting, store) or 0.0

    known = seconds_of(works, seconds_each)
    known += sum(count * (times[kind] or 0.0) for kind, count in due.items() if not kind.size)  # loads
    return Cost(
        engine=batch.engine,
        segments=len(segments),
        takes=len(segments.keys() - {segment.key for film in batch.films for segment in film}),
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


def _moves(batch: Batch, sizes: ModelSizes, mode: str, passes: int) -> Moves:
    works = batch.works(mode)
    used = {work.model for work in works} & set(batch.experts)
    if mode == "offload":
        count = loads(works, sizes.names)
        return Moves(count, count * sizes.expert)
    streamed = passes * sizes.blocks if mode == "stream" else 0
    still = sizes.expert - (sizes.blocks if mode == "stream" else 0)
    return Moves(len(used), len(used) * still + streamed)


def _due(works: Sequence[Work], batch: Batch, setting: Setting | None) -> Counter[WorkKind]:
    """How often everything is done that takes time."""
    due = Counter[WorkKind]()
    segments = batch.segments
    for work in works:
        if work.phase:
            due[kind_of(work.phase.model, segments[work.key])] += max(work.phase.passes, 1)
        elif work.kind == "decode":
            due[kind_of("decode", segments[work.key])] += 1
    if setting and setting.memory:
        for model in sorted({work.model for work in works} & set(batch.experts)):
            again = loads(works, (model,)) - 1 if setting.memory == "offload" else 0
            due[WorkKind(f"load {model}")] += 1
            due[WorkKind(f"move {model}")] += again
    return +due


def kind_of(work: str, segment: Segment) -> WorkKind:
    """Something that is done with a segment."""
    return WorkKind(work, str(segment.size), segment.frames)


def _seconds(calibration: Calibration, setting: Setting | None, kind: WorkKind) -> float | None:
    """What a kind of work takes; where RAM is too small to move an expert from, it is loaded every time."""
    if setting is None:
        return None
    seconds = calibration.seconds(setting, kind)
    if seconds is None and kind.work.startswith("move "):
        return calibration.seconds(setting, WorkKind(kind.work.replace("move", "load", 1)))
    return seconds


def costs_of(jobs: Sequence[Job], store_of: Callable[[Job], Store]) -> list[Cost]:
    """The cost of everything that is missing, for each group of boards; boards without keys are left out."""
    from svi_story.render.runner import Group

    calibration = Calibration.load(dict.fromkeys(job.place.settings.cache for job in jobs))
    setups: defaultdict[Group, list[Job]] = defaultdict(list)
    for job in jobs:
        if not job.missing:
            setups[Group((job.plan.engine,), job.options, job.place.cache, job.place.fallbacks)].append(job)
    return [
        _cost(setup, of, store_of(of[0]), calibration)
        for setup, of in sorted(setups.items(), key=lambda x: x[0].engines)
    ]


def _cost(setup: Group, jobs: Sequence[Job], store: Store, calibration: Calibration) -> Cost:
    (engine,), options = setup.engines, setup.options
    keys = {segment.key for job in jobs for segment in job.every_segment}
    missing = frozenset(key for key in keys if store.state(key) != "cached")
    batch = Batch(
        engine,
        [job.segments for job in jobs],
        missing,
        _Left(engine, store, options),
        implementation_of(engine).model_sizes(options),
        [segment for job in jobs for segment in job.plan.other_segments],
    )
    modes = spec_of(engine).memory_modes if options.memory == "auto" else (options.memory,)
    about = (engine, options.dtype, options.memory, options.precision)
    setting = calibration.newest(*about, compiled=options.compile)
    cost = cost_of(batch, modes, calibration, setting)
    seconds = None if cost.seconds is None else _with_assembly(cost.seconds, jobs, missing, calibration)
    return replace(cost, seconds=seconds)


def _with_assembly(
    rendering: float, jobs: Sequence[Job], missing: Collection[str], calibration: Calibration
) -> float:
    """The seconds that it takes to render segments and to assemble their films, as far as it was measured.

    Pieces are encoded beside the rendering, all but the last.
    """
    encoding = last = joining = 0.0
    for job in jobs:
        plan = job.plan
        due = [segment.contributes for segment in job.segments if segment.key in missing]
        if due:
            per_frame = calibration.seconds(ASSEMBLY, WorkKind("encode", str(plan.size))) or 0.0
            per_frame *= float(plan.cut.fps / plan.fps)
            encoding += per_frame * sum(due)
            last = max(last, per_frame * due[-1])
            joining += calibration.seconds(ASSEMBLY, WorkKind("join", str(plan.size))) or 0.0
    return max(rendering + last, encoding) + joining


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
