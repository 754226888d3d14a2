"""What does everything around the model cost? One segment of 81 frames, beside the model's own time."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from common import (
    QUEUEING,
    Finding,
    Result,
    Table,
    Took,
    finish,
    median,
    options,
    progress,
    shown,
    timed,
    within,
    workplace,
)
from footage import footage

from svi_story.cache.layout import FRAMES
from svi_story.cache.store import Store
from svi_story.cut.encode import Encoding, encode_piece, piece_inputs
from svi_story.cut.extras import Extras
from svi_story.cut.join import join
from svi_story.cut.timeline import Piece, Span
from svi_story.files import sha256_file
from svi_story.plan.keys import key_of
from svi_story.render.executor import carry_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from common import Cell
    from footage import Frame

    from svi_story.cache.entry import Entry
    from svi_story.plan.keys import Json

T = TypeVar("T")

COUNT, WIDTH, HEIGHT, FPS = 81, 832, 480, Fraction(15)
LATENTS = (1, 16, 21, 60, 104)
STEPS = 50
JOINS = (1, 10, 50)
CRF = 18
FASTEST, USUAL = 5.18, 9.77
"""Published seconds per guided step; see COMPUTED."""
BUDGET = 2.0
"""Percent of a clip of 50 steps."""


COMPUTED = (
    f"The model's time is computed, not measured: {STEPS} steps at {FASTEST} s (LightX2V) or {USUAL} s "
    "(diffusers), from the table in LightX2V's README: one H100, 81 frames at 480p, Wan 2.1 I2V 14B, as "
    "large as one expert of Wan 2.2. An H200 computes as fast as an H100."
)
SUM = (
    "The sum is the worst case: a checkpoint after every step, nothing of it done while the GPU works, and "
    f"the preview that follows the {JOINS[-1]}th clip. Verifying happens only when an entry is used again; "
    "reading every frame is part of encoding the piece, the hash a part of publishing. The piece's ffmpeg "
    "queues as well: in the sum without queueing, the piece counts with its CPU seconds."
)


class Watch:
    """Keeps what each named step took."""

    def __init__(self) -> None:
        self.took: dict[str, Took] = {}

    def step(self, name: str, work: Callable[[], T]) -> T:
        """Do it, remember what it took, give back what it gave."""
        given: list[T] = []
        self.took[name] = timed(lambda: given.append(work()))
        return given[0]


def one_round(folder: Path, frames: list[Frame], number: int) -> dict[str, Took]:
    """A segment's way from the sampler to the film, in a cache of its own."""
    watch = Watch()
    store = Store(folder / f"cache-{number}", lambda _event: None)
    entry = _keep(watch, store, frames, {"segment": number})
    watch.step("verify an entry", lambda: store.entry(entry.key))
    watch.step("read the carry", lambda: carry_of(entry, 1))
    watch.step("read every frame", lambda: _read(entry))
    _cut(watch, store, entry, folder)
    return watch.took


def _keep(watch: Watch, store: Store, frames: list[Frame], inputs: Mapping[str, Json]) -> Entry:
    latents = {"latents": np.random.default_rng(0).normal(size=LATENTS).astype(np.float32)}
    with store.work(key_of(inputs)) as work:
        watch.step("save a checkpoint", lambda: work.checkpoint.save(latents))
        watch.step("save the latents", lambda: work.save_latents(latents))
        watch.step("write lossless frames", lambda: work.write_frames(iter(frames), FPS, COUNT))
        entry = watch.step("hash, seal, publish", lambda: work.publish(inputs, {}))
    watch.step("sha256 of the frames", lambda: sha256_file(entry.folder / FRAMES))
    return entry


def _read(entry: Entry) -> int:
    with entry.frames() as frames:
        return sum(1 for _ in frames)


def _cut(watch: Watch, store: Store, entry: Entry, folder: Path) -> None:
    encoding = Encoding(WIDTH, HEIGHT, FPS, CRF)
    piece = Piece((Span(entry.key, 0, COUNT),))
    inputs = piece_inputs(piece, encoding)

    def build(target: Path) -> None:
        encode_piece(piece, lambda _key: entry.frames(), encoding, target, lambda _done, _all: None)

    made = watch.step("encode and publish a piece", lambda: store.make_piece(key_of(inputs), build, inputs))
    for count in JOINS:
        film = folder / f"film-{count}.mp4"
        watch.step(
            f"join {count}", partial(join, [made] * count, encoding, film, Extras({"title": "around"}))
        )


def a_segment(took: Mapping[str, Took]) -> Took:
    """The last of 50 clips: everything once, a checkpoint after every step, a preview of the whole film."""
    once = ("save the latents", "write lossless frames", "hash, seal, publish", "read the carry")
    parts = [*(took[name] for name in (*once, f"join {JOINS[-1]}")), *[took["save a checkpoint"]] * STEPS]
    piece = took["encode and publish a piece"]
    # Its ffmpeg queues too, and nobody counts that: without the others it takes what it computes, at most.
    parts.append(replace(piece, queued=max(piece.queued, piece.wall - piece.cpu)))
    return Took(*(sum(getattr(part, name) for part in parts) for name in ("wall", "queued", "cpu")))


def report(took: Mapping[str, Took], runs: int) -> Result:
    model = {"LightX2V": FASTEST * STEPS, "diffusers": USUAL * STEPS}
    segment = a_segment(took)
    named = {**took, f"a segment: {STEPS} checkpoints, join {JOINS[-1]}": segment}
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (name, each.wall, each.queued, each.cpu, *(100 * each.wall / seconds for seconds in model.values()))
        for name, each in named.items()
    )
    columns = ("step", "wall s", "queued s", "CPU s", *(f"% of {each:.0f} s" for each in model.values()))
    return Result(
        name="around",
        question="what does everything around the model cost?",
        settings={
            "rounds": runs,
            "frames": COUNT,
            "size": f"{WIDTH}x{HEIGHT}",
            "latents MB": 8.4,
            "crf": CRF,
        },
        tables=(Table(f"One segment, median of {runs} rounds", columns, rows),),
        findings=tuple(_finding(segment, name, seconds) for name, seconds in model.items()),
        notes=(QUEUEING, COMPUTED, SUM, "A GPU's host has more and faster cores than this machine."),
    )


def _finding(segment: Took, name: str, seconds: float) -> Finding:
    wall, free = (100 * each / seconds for each in (segment.wall, segment.free))
    what = f"around a segment, beside a clip of {STEPS} steps with {name}"
    figure = f"{shown(free)} % ({shown(segment.free)} s of {shown(seconds)} s; wall {shown(wall)} %)"
    return Finding(what, figure, f"< {BUDGET:g} %", within(segment, seconds * BUDGET / 100))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    frames = list(footage(COUNT, WIDTH, HEIGHT, seed=0))
    with workplace() as folder:
        rounds = []
        for number in range(chosen.rounds):
            progress(f"round {number + 1} of {chosen.rounds}")
            rounds.append(one_round(folder, frames, number))
    took = {name: median([each[name] for each in rounds]) for name in rounds[0]}
    finish(report(took, chosen.rounds), write=chosen.write)


if __name__ == "__main__":
    main()
