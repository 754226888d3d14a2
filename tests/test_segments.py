"""Segments made together: each once, the same frames in whatever order, whatever else goes wrong."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_engine import Fake, film
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from svi_story.cache.store import Store
from svi_story.errors import RenderError, TransientError
from svi_story.events import PhaseDone, SegmentDone, SegmentStarted
from svi_story.render.executor import LocalExecutor, SegmentFailed, SegmentReady

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svi_story.events import Event
    from svi_story.plan.model import Segment
    from svi_story.render.executor import Result

words = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3)
few = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def room() -> Iterator[Path]:
    """A folder for one example's store."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        yield Path(folder)


def run(
    segments: Sequence[Segment],
    engine: Fake,
    root: Path,
    told: list[Event] | None = None,
    later: Sequence[Segment] = (),
) -> list[Result]:
    """Make segments in a store."""
    report = (told if told is not None else []).append
    store = Store(root, report)
    with LocalExecutor(lambda _name: engine, segments, store, report) as executor:
        return list(executor.render(segments, later))


def frames(made: Sequence[Result]) -> dict[str, str]:
    """What is in the frames, by key."""
    return {each.segment.key: each.entry.frames_sha256 for each in made if isinstance(each, SegmentReady)}


@given(words)
@example(["aab", "ab", "b"])
@few
def test_the_order_changes_no_frame_and_everything_is_made_once(chains: list[str]) -> None:
    segments = film(chains)
    with room() as folder:
        one_by_one, in_turns = Fake(), Fake(in_turns=True)
        calm = frames(run(segments, one_by_one, folder / "a"))
        assert frames(run(segments, in_turns, folder / "b")) == calm
        assert calm.keys() == {segment.key for segment in segments}
        for engine in (one_by_one, in_turns):
            for call in ("vae", "high", "sample", "decode"):
                assert set(engine.times(call).values()) == {1}
        again = Fake()
        made = run(segments, again, folder / "b")
        assert again.calls == []
        assert not any(each.fresh for each in made if isinstance(each, SegmentReady))


@given(words, st.integers(2, 9))
@few
def test_what_was_begun_is_gone_on_with(chains: list[str], stride: int) -> None:
    """Interrupted again and again, a little later each time: no latents and no frames are made twice."""
    segments = film(chains)

    def stop(_call: str, _segment: Segment) -> None:
        if len(engine.calls) == limit:
            raise KeyboardInterrupt

    with room() as folder:
        calm = frames(run(segments, Fake(), folder / "calm"))
        engine = Fake(in_turns=True, fault=stop)
        made: list[Result] = []
        for attempt in range(1, 40):
            limit = len(engine.calls) + stride * attempt
            with suppress(KeyboardInterrupt):
                made = run(segments, engine, folder / "stopped")
                break
        assert frames(made) == calm
        assert set(engine.times("decode").values()) == {1}
        assert set(engine.times("sample").values()) == {1}


def test_each_model_works_for_a_whole_wave() -> None:
    engine, told = Fake(in_turns=True), list[object]()
    run(film(["a1", "b1", "c1"]), engine, Path("store"), told)  # type: ignore[arg-type]  # events are objects
    calls = [(name, len(list(run))) for name, run in groupby(name for name, _ in engine.calls)]
    assert calls == [("vae", 3), ("high", 3), ("sample", 3), ("decode", 3)] * 2
    phases = [event for event in told if isinstance(event, PhaseDone)]
    assert [(event.model, event.steps) for event in phases[::3]] == [("vae", 0), ("high", 2), ("low", 2)] * 2
    assert sum(isinstance(event, SegmentStarted) for event in told) == 6
    assert sum(isinstance(event, SegmentDone) for event in told) == 6


@pytest.mark.parametrize("in_turns", [False, True])
def test_what_comes_later_is_made_after_all_others_and_together(in_turns: bool) -> None:
    films, engine = film(["a1", "b12"]), Fake(in_turns=in_turns)
    takes = [each for each in film(["ax", "by", "az"]) if each.key not in {one.key for one in films}]
    made = run([*films, *films], engine, Path("store"), later=[*takes, films[0]])
    order = [each.segment.key for each in made]
    assert sorted(order[: len(films)]) == sorted(each.key for each in films)
    assert sorted(order[len(films) :]) == sorted(each.key for each in takes)
    if in_turns:
        last = [name for name, _ in engine.calls[-12:]]
        assert last == ["vae"] * 3 + ["high"] * 3 + ["sample"] * 3 + ["decode"] * 3


@pytest.mark.parametrize("in_turns", [False, True])
@pytest.mark.parametrize("call", ["vae", "high", "sample", "decode"])
@pytest.mark.parametrize("error", [RenderError("bad"), TransientError("full"), ZeroDivisionError("bug")])
def test_what_fails_takes_only_what_continues_from_it(call: str, error: Exception, in_turns: bool) -> None:
    def fault(name: str, segment: Segment) -> None:
        if (name, segment.prompt) == (call, "ab"):
            raise error

    engine = Fake(in_turns, fault)
    ended = run(film(["abc", "abd", "ac", "b"]), engine, Path("store"))
    lost = {each.segment.prompt: each.error for each in ended if isinstance(each, SegmentFailed)}
    assert lost == dict.fromkeys(("ab", "abc", "abd"), error)
    assert {each.segment.prompt for each in ended if isinstance(each, SegmentReady)} == {"a", "ac", "b"}
    healed = Fake(in_turns)
    made = run(film(["abc", "abd", "ac", "b"]), healed, Path("store"))
    assert frames(made) == frames(run(film(["abc", "abd", "ac", "b"]), Fake(), Path("calm")))
    assert healed.times("decode").keys() == {"ab", "abc", "abd"}


def test_an_engine_that_cannot_be_entered_loses_what_is_missing_only() -> None:
    run(film(["ab"]), Fake(), Path("store"))

    class Broken(Fake):
        def prepare(self, segments: Sequence[Segment]) -> None:
            raise RenderError("no memory")

    ended = run(film(["abc", "b"]), Broken(), Path("store"))
    assert [each.segment.prompt for each in ended if isinstance(each, SegmentReady)] == ["a", "ab"]
    assert [each.segment.prompt for each in ended if isinstance(each, SegmentFailed)] == ["abc", "b"]


def test_when_memory_changes_the_engine_s_ways_the_rest_is_scheduled_anew() -> None:
    def shrink(call: str, segment: Segment) -> None:
        engine.in_turns = engine.in_turns or (call, segment.prompt) == ("high", "b")

    engine = Fake(fault=shrink)
    ended = run(film(["a", "b", "c", "d"]), engine, Path("store"))
    assert all(isinstance(each, SegmentReady) for each in ended)
    calls = [name for name, _ in engine.calls]
    assert calls[:6] == ["vae", "high", "sample", "decode", "vae", "high"]
    assert [(name, len(list(run))) for name, run in groupby(calls[6:])] == [
        *(("vae", 2), ("high", 2)),
        *(("sample", 3), ("decode", 3)),
    ]
