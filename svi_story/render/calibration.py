"""How long things took here: found by listening to renders, kept beside the cache, read by plans."""

from __future__ import annotations

import json
import statistics
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from svi_story.events import EngineSettled, ModelLoaded, ModelMoved, PhaseDone, SegmentDone
from svi_story.files import make_folder, read_regular, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from svi_story.engines.base import Phase
    from svi_story.events import Event, Reporter
    from svi_story.plan.model import Segment

    Name = tuple[Path, str, int]
    """Of a segment: board, clip, index."""

FILE = "calibration.json"
LARGEST = 4 * 2**20
KEPT = 15
"""Newest times of one kind; their median counts, so that a disturbed one does not."""


class Timed(NamedTuple):
    """A segment whose making is listened to."""

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
    rung: str = ""


@dataclass(frozen=True)
class Kind:
    """What took some time."""

    work: str
    """A model's forward pass or the VAE's encoding by the model's name; `decode`; `load high`, `move low`."""
    size: str = ""
    frames: int = 0
    """Of the segment; of no segment for loads."""


class CalibrationRow(BaseModel):
    """Times of one kind in one setting, in seconds, the newest last."""

    model_config = ConfigDict(frozen=True)

    setting: Setting
    kind: Kind
    seconds: tuple[float, ...]


class CalibrationFile(BaseModel):
    """The file in a cache."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    rows: tuple[CalibrationRow, ...]


@dataclass
class Calibration:
    """Seconds by setting and kind; the setting that was used last comes last."""

    times: dict[Setting, dict[Kind, list[float]]] = field(default_factory=dict)

    @classmethod
    def load(cls, cache: Path) -> Calibration:
        """What a cache's file holds; an unreadable one is empty."""
        found = cls()
        with suppress(OSError, ValueError, RecursionError):
            kept = CalibrationFile.model_validate(json.loads(read_regular(cache / FILE, LARGEST)))
            for row in kept.rows:
                for seconds in row.seconds:
                    found.add(row.setting, row.kind, seconds)
        return found

    def add(self, setting: Setting, kind: Kind, seconds: float) -> None:
        """Remember one more time."""
        kinds = self.times[setting] = self.times.pop(setting, {})
        kinds[kind] = [*kinds.get(kind, []), seconds][-KEPT:]

    def merge(self, newer: Calibration) -> None:
        """Add what another one found later."""
        for setting, kinds in newer.times.items():
            for kind, times in kinds.items():
                for seconds in times:
                    self.add(setting, kind, seconds)

    def save(self, cache: Path) -> None:
        """Add it to a cache's file. One that cannot be written is done without."""
        if not self.times:
            return
        every = Calibration.load(cache)
        every.merge(self)
        rows = tuple(
            CalibrationRow(setting=setting, kind=kind, seconds=tuple(times))
            for setting, kinds in every.times.items()
            for kind, times in kinds.items()
        )
        text = json.dumps(CalibrationFile(rows=rows).model_dump(), indent=1, ensure_ascii=False)
        with suppress(OSError):
            make_folder(cache)
            write_atomic(cache / FILE, text.encode("utf-8"))

    def newest(self, engine: str, dtype: str, rung: str) -> Setting | None:
        """The setting that was used last and is like this one; `auto` is any rung."""
        like = [
            setting
            for setting in self.times
            if setting.engine == engine
            and setting.dtype in ("", dtype)
            and (rung == "auto" or setting.rung in ("", rung))
        ]
        return like[-1] if like else None

    def seconds(self, setting: Setting, kind: Kind) -> float | None:
        """What it usually takes; None until it was done once."""
        times = self.times[setting].get(kind)
        return statistics.median(times) if times else None


@contextmanager
def calibrated(cache: Path, segments: Mapping[Name, Timed], report: Reporter) -> Iterator[Reporter]:
    """A reporter that passes everything on, and keeps what it learns when all is over, interrupted or not."""
    listener = Listener(segments, report)
    try:
        yield listener
    finally:
        listener.learnt.save(cache)


class Listener:
    """Learns from events how long things take."""

    def __init__(self, segments: Mapping[Name, Timed], report: Reporter) -> None:
        self._segments = segments
        self._report = report
        self._settings: dict[str, Setting] = {}
        """By engine, the one at work last."""
        self._loading = 0.0
        """Seconds of a phase under way that went into loading."""
        self.learnt = Calibration()

    def __call__(self, event: Event) -> None:
        """Pass an event on, and learn from it."""
        self._report(event)
        match event:
            case EngineSettled():
                about = (event.engine, event.device, event.dtype, event.attention, event.rung)
                self._settings[event.engine] = Setting(*about)
            case ModelLoaded():
                self._load("load", event)
            case ModelMoved():
                self._load("move", event)
            case PhaseDone():
                self._phase(event)
            case SegmentDone():
                self._learn((event.board, event.clip, event.segment), "decode", event.decoding)
                self._loading = 0.0
            case _:
                pass

    def _load(self, how: str, event: ModelLoaded | ModelMoved) -> None:
        self._loading += event.seconds
        if self._settings:
            engine = list(self._settings)[-1]
            self.learnt.add(self._settings[engine], Kind(f"{how} {event.model}"), event.seconds)

    def _phase(self, event: PhaseDone) -> None:
        name = (event.board, event.clip, event.segment)
        spent, self._loading = max(event.seconds - self._loading, 0.0), 0.0
        if name not in self._segments:
            return
        before = 0
        for phase in self._segments[name].phases():
            steps = phase.until - before
            if phase.model == event.model and event.steps == steps:
                self._learn(name, event.model, spent / max(phase.passes, 1))
            before = phase.until

    def _learn(self, name: Name, work: str, seconds: float) -> None:
        if name in self._segments:
            engine, segment, _ = self._segments[name]
            setting = self._settings.get(engine, Setting(engine))
            self.learnt.add(setting, Kind(work, str(segment.size), segment.frames), round(seconds, 6))
