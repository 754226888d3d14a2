"""The engine contract, for every engine: same key, same frames; exact counts; exact resume."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
import svi_support as support

from svi_story.engines.animatic import Animatic
from svi_story.engines.base import Carry
from svi_story.engines.svi.engine import Svi
from svi_story.engines.svi.options import SviOptions
from svi_story.enginespec.sampling import Guidance, Sampler
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.keys import canonical
from svi_story.plan.model import Segment, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from svi_story.engines.base import Engine, Latents


def tiny_svi() -> Svi:
    return Svi(SviOptions(support.folders(), dtype="float32", device="cpu"))


ENGINES: dict[str, Callable[[], Engine]] = {"animatic": Animatic, "svi": tiny_svi}


class Memory:
    """A checkpoint that remembers every state it was given."""

    def __init__(self, state: Latents | None = None) -> None:
        self.states = [] if state is None else [state]

    def load(self) -> Latents | None:
        return self.states[-1] if self.states else None

    def save(self, state: Latents) -> None:
        self.states.append({name: np.array(value) for name, value in state.items()})


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with ENGINES[request.param]() as entered:
        yield entered


@pytest.fixture
def segment(picture: Path, tmp_path: Path, engine: Engine) -> Segment:
    size = Size(64, 80)
    return Segment(
        clip="window",
        index=0,
        prompt="A cat is sitting by the window.",
        negative_prompt="rain",
        seed=7,
        size=size,
        fps=Fraction(24000, 1001),
        frames=9,
        overlap=0,
        first_frame=0,
        anchor=Fingerprints(tmp_path / "memo.json").anchor(picture, size, "crop"),
        engine=engine.identity.name,
        options=Sampler("2.0", 4, Guidance(5.0, 5.0), 5.0, 0.875, 1),
    )


def ignore(_step: int, _steps: int) -> None:
    """Take no notice of a step."""


def made(engine: Engine, segment: Segment, carry: Carry | None = None) -> tuple[Latents, np.ndarray]:
    latents = engine.sample(segment, carry, Memory(), ignore)
    return latents, np.stack(list(engine.decode(segment, latents)))


def following(segment: Segment, overlap: int = 1) -> Segment:
    return replace(segment, clip="door", overlap=overlap, first_frame=-overlap, seed=8)


def test_inputs_are_json_and_stable(engine: Engine, segment: Segment) -> None:
    identity = engine.identity
    assert canonical(dict(identity.inputs(segment))) == canonical(dict(identity.inputs(replace(segment))))
    assert identity.revision >= 1


def test_frames_have_the_promised_count_shape_and_type(engine: Engine, segment: Segment) -> None:
    latents, frames = made(engine, segment)
    assert frames.shape == (9, 80, 64, 3)
    assert frames.dtype == np.uint8
    assert all(value.dtype.kind == "f" for value in latents.values())


def test_same_segment_same_frames(engine: Engine, segment: Segment) -> None:
    latents, frames = made(engine, segment)
    carry = Carry(engine.identity.name, latents, list(frames[-1:]))
    later = made(engine, following(segment), carry)
    made(engine, replace(segment, seed=99, prompt="Something else."))
    again = made(engine, segment)
    assert all(np.array_equal(again[0][name], latents[name]) for name in latents)
    assert np.array_equal(again[1], frames)
    assert np.array_equal(made(engine, following(segment), carry)[1], later[1])


def test_a_fresh_engine_makes_the_same_frames(engine: Engine, segment: Segment) -> None:
    _, frames = made(engine, segment)
    with ENGINES[engine.identity.name]() as other:
        assert np.array_equal(made(other, segment)[1], frames)


def test_every_step_is_told_once_and_in_order(engine: Engine, segment: Segment) -> None:
    steps: list[tuple[int, int]] = []
    engine.sample(segment, None, Memory(), lambda step, total: steps.append((step, total)))
    total = steps[-1][1]
    assert steps == [(step, total) for step in range(1, total + 1)]


def test_sampling_goes_on_from_any_checkpoint(engine: Engine, segment: Segment) -> None:
    memory = Memory()
    whole = engine.sample(segment, None, memory, ignore)
    for state in memory.states:
        resumed = engine.sample(segment, None, Memory(state), ignore)
        assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


def test_phases_lead_from_the_first_step_to_the_last(engine: Engine, segment: Segment) -> None:
    engine.prepare([segment])
    phases = engine.phases(segment)
    places = [phase.place for phase in phases]
    assert places == sorted(set(places))
    ends = [phase.until for phase in phases]
    assert ends == sorted(ends)
    told: list[tuple[int, int]] = []
    engine.sample(segment, None, Memory(), lambda step, total: told.append((step, total)))
    assert ends[-1] == told[-1][1]


def test_phase_by_phase_makes_the_same_latents_as_at_once(engine: Engine, segment: Segment) -> None:
    first, frames = made(engine, segment)
    later, carry = following(segment), Carry(engine.identity.name, first, list(frames[-1:]))
    whole = engine.sample(later, carry, Memory(), ignore)
    others = [replace(segment, seed=seed, prompt=f"Prompt {seed}.") for seed in (1, 2)]
    jobs = [(each, None, Memory()) for each in others]
    chain: list[tuple[Segment, Carry | None, Memory]] = [(later, carry, Memory()), *jobs]
    told: list[int] = []
    for phase in engine.phases(later)[:-1]:
        for each, carried_array, memory in chain:
            on_step = (lambda step, _: told.append(step)) if each is later else ignore
            engine.advance(each, carried_array, memory, on_step, phase)
        if phase.until:
            assert told == list(range(1, phase.until + 1))
    memory = chain[0][2]
    resumed = engine.sample(later, carry, memory, lambda step, _: told.append(step))
    assert told == list(range(1, len(told) + 1))
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


def test_a_phase_that_is_done_is_not_done_again(engine: Engine, segment: Segment) -> None:
    memory, told = Memory(), list[int]()
    for phase in engine.phases(segment)[:-1]:
        engine.advance(segment, None, memory, ignore, phase)
    kept = len(memory.states)
    for phase in engine.phases(segment)[:-1]:
        engine.advance(segment, None, memory, lambda step, _: told.append(step), phase)
    assert told == []
    assert len(memory.states) == kept


def test_the_carry_counts(engine: Engine, segment: Segment) -> None:
    latents, frames = made(engine, segment)
    later = following(segment)
    with_carry = made(engine, later, Carry(engine.identity.name, latents, list(frames[-1:])))[1]
    other_latents, other_frames = made(engine, replace(segment, seed=1234))
    with_other = made(engine, later, Carry(engine.identity.name, other_latents, list(other_frames[-1:])))[1]
    assert not np.array_equal(with_carry, with_other)


def test_any_engine_continues_from_another_one(engine: Engine, segment: Segment) -> None:
    _, frames = made(engine, segment)
    later = following(segment)
    opaque = {"ticks": np.arange(7)}
    continued = made(engine, later, Carry("another", opaque, list(frames[-later.overlap :])))[1]
    assert len(continued) == later.frames


@pytest.mark.parametrize("field", ["prompt", "seed", "frames"])
def test_what_changes_frames_changes_the_inputs(engine: Engine, segment: Segment, field: str) -> None:
    changed = {
        "prompt": replace(segment, prompt="A dog."),
        "seed": replace(segment, seed=1234),
        "frames": replace(segment, frames=5),
    }[field]
    assert engine.identity.inputs(changed) != engine.identity.inputs(segment)
