"""How long a run will still take: from its own pace, from earlier runs, with encoding and joining."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fake_engine import PHASES, film

from svi_story.events import (
    Event,
    PhaseDone,
    PhaseStarted,
    PieceDone,
    SegmentDone,
    SegmentReused,
    StepDone,
    TimeLeft,
    WorkerStarted,
)
from svi_story.render.cost import Calibration, Setting, Timed, Timings, WorkKind
from svi_story.render.remaining import RemainingTime

if TYPE_CHECKING:
    from svi_story.plan.model import Segment

SEGMENTS = film(["abcd"])


def remaining(known: Calibration | None = None, frames: int = 0) -> tuple[RemainingTime, list[Event]]:
    seen: list[Event] = []
    wanted = {each.name: Timed("svi", each, lambda: PHASES) for each in SEGMENTS}
    shown = {each.key for each in SEGMENTS}
    found = RemainingTime(
        Timings(wanted), shown, frames, frames * 512, 0, known or Calibration(), seen.append
    )
    return found, seen


def sampled(segment: Segment, vae: float, high: float, low: float, decoding: float) -> list[Event]:
    about = (segment.board, segment.clip, segment.index)
    phases = [
        PhaseDone(*about, model, steps, seconds)
        for model, steps, seconds in (("vae", 0, vae), ("high", 2, high), ("low", 2, low))
    ]
    return [*phases, SegmentDone(*about, segment.key, vae + high + low + decoding, high, decoding)]


def test_each_segment_takes_as_long_as_those_before() -> None:
    found, seen = remaining()
    for event in sampled(SEGMENTS[0], 0.0, 40.0, 60.0, 10.0):
        found(event)
    left = found.estimate(time.monotonic())
    assert left.seconds == pytest.approx(3 * 110, abs=1)
    assert not left.at_least
    assert isinstance(seen[-2], TimeLeft)  # before the line that shows it


def test_before_anything_was_done_it_takes_as_long_as_in_earlier_runs() -> None:
    known = Calibration()
    size = str(SEGMENTS[0].size)
    for work, seconds in (("vae", 0.0), ("high", 10.0), ("low", 15.0), ("decode", 10.0)):
        known.add(Setting("svi"), WorkKind(work, size, 5), seconds)
    found, _ = remaining(known)
    assert found.estimate(0.0).seconds == pytest.approx(4 * 110, abs=1)
    assert remaining()[0].estimate(0.0).at_least


def test_a_phase_under_way_counts_at_its_own_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    long = (replace(PHASES[1], until=40, passes=80),)
    first = SEGMENTS[0]
    wanted = {first.name: Timed("svi", first, lambda: long)}
    found = RemainingTime(Timings(wanted), {first.key}, 0, 0, 0, Calibration(), lambda _event: None)
    found(PhaseStarted(first.board, first.clip, first.index, "high"))
    for step in range(1, 11):
        now += 5.0
        found(StepDone(first.board, first.clip, first.index, step, 40))
    assert found.estimate(now).seconds == pytest.approx(30 * 5.0, abs=1)


def test_what_is_cached_takes_no_time_and_workers_share_the_rest() -> None:
    found, _ = remaining()
    for event in sampled(SEGMENTS[0], 0.0, 40.0, 60.0, 10.0):
        found(event)
    found(SegmentReused(SEGMENTS[1].board, SEGMENTS[1].clip, 0, SEGMENTS[1].key))
    assert found.estimate(0.0).seconds == pytest.approx(220, abs=1)
    for worker in (1, 2):
        found(WorkerStarted(worker, "host", worker))
    assert found.estimate(0.0).seconds == pytest.approx(110, abs=1)


def test_encoding_and_joining_are_included() -> None:
    found, _ = remaining(frames=1000)
    found.films = 1
    for event in (each for segment in SEGMENTS for each in sampled(segment, 0.0, 1.0, 1.0, 1.0)):
        found(event)
    found(PieceDone(SEGMENTS[0].board, "a", 100, 10.0))
    assert found.estimate(0.0).seconds == pytest.approx(900 * 0.1 + 1.5, abs=0.1)
