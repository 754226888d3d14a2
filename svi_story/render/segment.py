"""One segment: look it up, else make it. The carry always comes from the store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from svi_story.engines.base import Carry
from svi_story.events import FramesDone, SegmentDone, SegmentReused, SegmentStarted, StepDone
from svi_story.render.record import versions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cache.work import Work
    from svi_story.engines.base import Frame, Latents
    from svi_story.plan.keys import Json, Task
    from svi_story.render.stage import Studio


def ensure(task: Task, parent: Entry | None, board: Path, studio: Studio) -> Entry:
    """The segment's verified entry, made now if it is not there: look up, lock, look up again, build."""
    name = (board, task.segment.clip, task.segment.index)
    entry = studio.store.entry(task.key)
    if entry is None:
        with studio.store.work(task.key) as work:
            entry = studio.store.entry(task.key)
            if entry is None:
                studio.report(SegmentStarted(*name, task.key, task.segment.frames))
                start = time.monotonic()
                entry = _make(task, parent, work, board, studio)
                studio.report(SegmentDone(*name, task.key, round(time.monotonic() - start, 3)))
                return entry
    studio.report(SegmentReused(*name, task.key))
    return entry


def _make(task: Task, parent: Entry | None, work: Work, board: Path, studio: Studio) -> Entry:
    """Sample unless the latents were saved already, decode, publish."""
    segment, engine = task.segment, studio.stage.entered()
    start = time.monotonic()
    latents: Latents | None = work.latents()
    if latents is None:
        latents = _sample(task, parent, work, board, studio)
        work.save_latents(latents)
    sampled = time.monotonic()
    frames = _told(engine.decode(segment, latents), task, board, studio)
    work.write_frames(frames, segment.fps, segment.frames)
    notes: dict[str, Json] = {
        "clip": segment.clip,
        "prompt": segment.prompt,
        "sampling_seconds": round(sampled - start, 3),
        "decoding_seconds": round(time.monotonic() - sampled, 3),
        "versions": {**versions()},
        "environment": {**engine.environment()},
    }
    return work.publish(task.inputs, notes)


def _told(frames: Iterator[Frame], task: Task, board: Path, studio: Studio) -> Iterator[Frame]:
    """The same frames, telling of every tenth of them."""
    segment = task.segment
    for done, frame in enumerate(frames, 1):
        yield frame
        if done * 10 // segment.frames > (done - 1) * 10 // segment.frames:
            studio.report(FramesDone(board, segment.clip, segment.index, done, segment.frames))


def _sample(task: Task, parent: Entry | None, work: Work, board: Path, studio: Studio) -> Latents:
    segment = task.segment

    def on_step(step: int, steps: int) -> None:
        studio.report(StepDone(board, segment.clip, segment.index, step, steps))

    carry = None if parent is None else carry_of(parent)
    return studio.stage.entered().sample(segment, carry, work.checkpoint, on_step)


def carry_of(entry: Entry) -> Carry:
    """What a finished segment hands over."""
    with entry.frames() as frames:
        return Carry(entry.latents(), frames[len(frames) - 1])
