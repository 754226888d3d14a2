"""An engine unlike the ones that ship: another frame grid, another rate, and a carry that no other one reads.

Every frame is a generation of Conway's game of life, its first one drawn from the seed; a continuing segment
begins eight generations before its parent's end. After another engine's segment it begins with what is bright
in that one's last frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

import numpy as np

from svi_story.engines.base import Phase
from svi_story.errors import RenderError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from fractions import Fraction
    from types import TracebackType

    from numpy.typing import NDArray

    from life_engine.spec import LifeOptions
    from svi_story.engines import Digest, Keep, MemoryNeed
    from svi_story.engines.base import Carry, Checkpoint, Frame, Latents, OnStep
    from svi_story.enginespec import EngineOptions
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Segment, Size

    Cells = NDArray[np.bool_]


@dataclass(frozen=True)
class LifeIdentity:
    """What frames depend on."""

    name: str = "life"
    revision: int = 1

    def inputs(self, segment: Segment) -> Mapping[str, Json]:
        """Seed, size and length; no picture and no prompt."""
        size = segment.size
        return {
            "seed": segment.seed,
            "size": [size.width, size.height],
            "frames": segment.frames,
            "cell": _options(segment).cell,
        }


class Life:
    """The engine."""

    @property
    def identity(self) -> LifeIdentity:
        return LifeIdentity()

    def notes(self, segment: Segment) -> tuple[str, ...]:
        return ()

    def environment(self) -> Mapping[str, str]:
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to free."""

    def prepare(self, segments: Sequence[Segment]) -> None:
        """Nothing serves several segments."""

    @property
    def one_at_a_time(self) -> bool:
        return False

    @property
    def decodes_beside(self) -> bool:
        return True

    def phases(self, segment: Segment) -> Sequence[Phase]:
        return (Phase("life", place=0, until=segment.frames, passes=segment.frames),)

    def advance(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep, phase: Phase
    ) -> None:
        """There is one phase."""

    def sample(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep
    ) -> Latents:
        cells = _first(segment, carry)
        start = cells
        for step in range(1, segment.frames):
            if step == segment.frames - 8:
                checkpoint.save({"cells": np.packbits(cells), "step": np.array([step])})
            cells = _next(cells)
            on_step(step, segment.frames)
            if step == segment.frames - 9:
                handed_over = cells
        on_step(segment.frames, segment.frames)
        if segment.frames == 9:
            handed_over = start
        shape = np.array(start.shape)
        return {"start": np.packbits(start), "handed over": np.packbits(handed_over), "shape": shape}

    def preview(self) -> Sequence[Frame]:
        return ()

    def decode(self, segment: Segment, latents: Latents) -> Iterator[Frame]:
        cells = _unpacked(latents, "start")
        for _ in range(segment.frames):
            yield _drawn(cells, segment)
            cells = _next(cells)


def identity_of(_options: EngineOptions, _digest: Digest) -> LifeIdentity:
    return LifeIdentity()


def create_engine(_options: EngineOptions, _digest: Digest, _keep: Keep, _report: Reporter) -> Life:
    return Life()


def phases_of(_options: EngineOptions, segment: Segment) -> Sequence[Phase]:
    return Life().phases(segment)


def memory_needs(_options: EngineOptions, _segments: Sequence[Segment]) -> Mapping[str, MemoryNeed]:
    return {}


def model_sizes(_options: EngineOptions) -> None:
    """There is no model."""


def overlay_rows(_size: Size, _fps: Fraction) -> int:
    return 0


def _options(segment: Segment) -> LifeOptions:
    return cast("LifeOptions", segment.options)


def _first(segment: Segment, carry: Carry | None) -> Cells:
    cell = _options(segment).cell
    shape = (segment.size.height // cell, segment.size.width // cell)
    if carry is None:
        return np.random.default_rng(segment.seed).random(shape) < 0.35
    if carry.engine != "life":
        corners = carry.last_frame[: shape[0] * cell : cell, : shape[1] * cell : cell]
        return cast("Cells", corners.mean(axis=2) > 127)
    cells = _unpacked(carry.latents, "handed over")
    if cells.shape != shape:
        raise RenderError(f"{segment.clip} continues from another size")
    return cells


def _unpacked(latents: Latents, name: str) -> Cells:
    rows, columns = (int(side) for side in latents["shape"])
    bits = np.unpackbits(latents[name].astype(np.uint8), count=rows * columns)
    return bits.reshape(rows, columns).astype(bool)


def _next(cells: Cells) -> Cells:
    around = sum(
        np.roll(cells, (down, right), (0, 1)).astype(np.uint8)
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        if (down, right) != (0, 0)
    )
    return cast("Cells", (around == 3) | (cells & (around == 2)))


def _drawn(cells: Cells, segment: Segment) -> Frame:
    cell = _options(segment).cell
    picture = np.zeros((segment.size.height, segment.size.width, 3), np.uint8)
    lit = np.kron(cells, np.ones((cell, cell), bool))
    picture[: lit.shape[0], : lit.shape[1]][lit] = 230
    return picture
