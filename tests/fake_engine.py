"""An engine for tests: instant, with phases and models like SVI's, and a plan of what goes wrong when."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from svi_story.engines.base import Phase
from svi_story.enginespec.sampling import Guidance, Sampler
from svi_story.plan.keys import key_of
from svi_story.plan.model import Anchor, Segment, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from svi_story.engines.base import Carry, Checkpoint, Frame, Latents, OnStep
    from svi_story.plan.keys import Json

SIZE = Size(32, 16)
STEPS = 4
PHASES = (Phase("vae", 0, 0, 0), Phase("high", 1, 2, 4), Phase("low", 2, STEPS, 4))


@dataclass(frozen=True)
class FakeIdentity:
    """The prompt is all that frames depend on, besides the parent."""

    name: str = "fake"
    revision: int = 1

    def inputs(self, segment: Segment) -> Mapping[str, Json]:
        """The prompt."""
        return {"prompt": segment.prompt}


def never(_call: str, _segment: Segment) -> None:
    """Nothing goes wrong."""


@dataclass
class Fake:
    """Frames are noise, seeded by the prompt and by what was carried over."""

    in_turns: bool = False
    fault: Callable[[str, Segment], None] = never
    """Called before everything that it does; may raise."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """What was done, with the prompt it was done for."""
    beside: bool = False
    """Whether it decodes while it samples."""
    needs_frames: bool = True

    @property
    def identity(self) -> FakeIdentity:
        return FakeIdentity()

    def notes(self, segment: Segment) -> tuple[str, ...]:
        return ()

    def environment(self) -> Mapping[str, str]:
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def prepare(self, segments: Sequence[Segment]) -> None:
        pass

    @property
    def one_at_a_time(self) -> bool:
        return self.in_turns

    @property
    def decodes_beside(self) -> bool:
        return self.beside

    def phases(self, segment: Segment) -> Sequence[Phase]:
        return tuple(replace(phase, needs_frames=self.needs_frames) for phase in PHASES)

    def advance(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep, phase: Phase
    ) -> None:
        self._do(phase.model, segment)
        checkpoint.save(self._state(segment, carry, checkpoint, on_step, phase.until))

    def sample(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep
    ) -> Latents:
        self._do("sample", segment)
        return {"x": self._state(segment, carry, checkpoint, on_step, STEPS)["x"]}

    def preview(self) -> Sequence[Frame]:
        return ()

    def decode(self, segment: Segment, latents: Latents) -> Iterator[Frame]:
        self._do("decode", segment)
        noise = np.random.default_rng(int(latents["x"][0]))
        for _ in range(segment.frames):
            self.fault("frame", segment)
            yield noise.integers(0, 255, (SIZE.height, SIZE.width, 3), dtype=np.uint8)

    def times(self, call: str) -> Counter[str]:
        """How often something was done, by prompt."""
        return Counter(prompt for name, prompt in self.calls if name == call)

    def _do(self, call: str, segment: Segment) -> None:
        self.fault(call, segment)
        self.calls.append((call, segment.prompt))

    def _state(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep, until: int
    ) -> Latents:
        state = checkpoint.load()
        start = int(state["step"][0]) if state else 0
        x = int(state["x"][0]) if state else _seed(segment, carry, frames=self.needs_frames)
        for step in range(start, until):
            x = _mixed(str(x), str(step))
            on_step(step + 1, STEPS)
        return {"x": np.array([x]), "step": np.array([max(until, start)])}


def _seed(segment: Segment, carry: Carry | None, *, frames: bool) -> int:
    carried = "" if carry is None else f"{carry.latents['x'][0]}"
    if carry is not None and frames:
        carried += carry.last_frame.tobytes().hex()
    return _mixed(segment.prompt, carried)


def _mixed(*texts: str) -> int:
    return int(hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8], 16)


def segment(prompt: str) -> Segment:
    """A small segment."""
    anchor = Anchor(Path("anchor.png"), SIZE, "crop", "0")
    sampler = Sampler("2.0", STEPS, Guidance(2.0, 2.0), 5.0, 0.9, 1)
    return Segment(
        clip=prompt,
        index=0,
        prompt=prompt,
        negative_prompt="",
        seed=0,
        size=SIZE,
        fps=Fraction(15),
        frames=5,
        overlap=0,
        first_frame=0,
        anchor=anchor,
        engine="svi",
        options=sampler,
    )


def film(words: Iterable[str]) -> tuple[Segment, ...]:
    """Chains as words: a segment for each letter, the same one wherever a chain begins alike."""
    segments: list[Segment] = []
    for word in words:
        parent = None
        for end in range(1, len(word) + 1):
            inputs: dict[str, Json] = {"prompt": word[:end], "parent": parent}
            segments.append(replace(segment(word[:end]), key=key_of(inputs), parent=parent, inputs=inputs))
            parent = segments[-1].key
    return tuple(segments)
