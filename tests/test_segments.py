"""Segments made together: each once, the same frames in whatever order, whatever else goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count, groupby
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest
from fake_engine import Fake, film
from filelock import FileLock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from svi_story.cache.layout import LATENTS
from svi_story.cache.store import Store
from svi_story.errors import RenderError, TransientError
from svi_story.events import PhaseDone, SegmentDone, SegmentStarted, StepDone, Warned
from svi_story.render.executor import LocalExecutor, SegmentFailed, SegmentReady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from svi_story.cache.work import WorkFolder
    from svi_story.events import Event as Event_
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
    told: list[Event_] | None = None,
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


@given(words, st.booleans())
@example(["aab", "ab", "b"], False)
@few
def test_the_order_changes_no_frame_and_everything_is_made_once(
    chains: list[str], needs_frames: bool
) -> None:
    segments = film(chains)
    with room() as folder:
        one_by_one = Fake(needs_frames=needs_frames)
        calm = frames(run(segments, one_by_one, folder / "a"))
        assert calm.keys() == {segment.key for segment in segments}
        others = [replace(one_by_one, in_turns=turns, beside=True, calls=[]) for turns in (False, True)]
        others.append(Fake(in_turns=True, needs_frames=needs_frames))
        for number, engine in enumerate(others):
            assert frames(run(segments, engine, folder / str(number))) == calm
        for engine in (one_by_one, *others):
            for call in ("vae", "high", "sample", "decode"):
                assert set(engine.times(call).values()) == {1}
        again = Fake()
        made = run(segments, again, folder / "0")
        assert again.calls == []
        assert not any(each.fresh for each in made if isinstance(each, SegmentReady))


@given(words, st.integers(2, 9), st.booleans(), st.booleans())
@few
def test_what_was_begun_is_gone_on_with(
    chains: list[str], stride: int, needs_frames: bool, beside: bool
) -> None:
    """Interrupted again and again, a little later each time: no latents and no frames are made twice."""
    segments = film(chains)

    def stop(call: str, _segment: Segment) -> None:
        if len(engine.calls) == limit and call != "frame":
            raise KeyboardInterrupt

    with room() as folder:
        calm = frames(run(segments, Fake(needs_frames=needs_frames), folder / "calm"))
        engine = Fake(in_turns=True, fault=stop, beside=beside, needs_frames=needs_frames)
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


# --- a segment is sampled while the one before is decoded and stored


@pytest.mark.parametrize("beside", [False, True])
def test_sampling_goes_on_meanwhile(beside: bool) -> None:
    """Each waits for the other: were they not at the same time, this would end with a timeout."""
    next_one, waiting = Event(), list[str]()

    def fault(call: str, segment: Segment) -> None:
        if (call, segment.prompt) == ("high", "ab"):
            next_one.set()
        if (call, segment.prompt) == ("decode" if beside else "frame", "a"):
            waiting.append(call)
            if beside or len(waiting) == 2:  # else sampling waits for the first frame
                assert next_one.wait(20)

    engine = Fake(fault=fault, beside=beside, needs_frames=False)
    made = run(film(["abc"]), engine, Path("store"))
    assert [each.segment.prompt for each in made] == ["a", "ab", "abc"]
    assert frames(made) == frames(run(film(["abc"]), Fake(needs_frames=False), Path("calm")))


def test_frames_are_waited_for_where_they_are_needed() -> None:
    engine = Fake(beside=True)
    told: list[Event_] = []
    run(film(["ab"]), engine, Path("store"), told)
    kinds = [(type(event), event.clip) for event in told if isinstance(event, SegmentDone | SegmentStarted)]
    assert kinds == [(SegmentStarted, "a"), (SegmentDone, "a"), (SegmentStarted, "ab"), (SegmentDone, "ab")]


def test_no_other_process_that_decodes_is_waited_for_when_all_ends() -> None:
    class Taken(Store):
        @contextmanager
        def work(self, key: str, given_up: Callable[[], bool] | None = None) -> Iterator[WorkFolder]:
            if given_up:  # in the thread that decodes
                decoding.set()
                assert taken.wait(20)
            with super().work(key, given_up) as folder:
                yield folder

    (segment,), decoding, taken, waiting = film(["a"]), Event(), Event(), Event()
    store = Taken(Path("store"), lambda event: waiting.set() if isinstance(event, Warned) else None)
    other = FileLock(store.layout.lock(segment.key), thread_local=False)
    with LocalExecutor(lambda _: Fake(), [segment], store, lambda _: None) as executor:
        Thread(target=lambda: list(executor.render([segment])), daemon=True).start()
        assert decoding.wait(20)
        other.acquire()  # as another process would
        taken.set()
        assert waiting.wait(20)
    other.release()
    assert store.entry(segment.key) is None
    assert isinstance(run([segment], Fake(), Path("store"))[0], SegmentReady)


@pytest.mark.parametrize("call", ["decode", "frame"])
def test_what_fails_meanwhile_takes_only_what_continues_from_it(call: str) -> None:
    error, sampling = RenderError("bad"), Event()

    def fault(name: str, segment: Segment) -> None:
        if (name, segment.prompt) == ("high", "ab"):
            sampling.set()
        if (name, segment.prompt) == (call, "a"):
            assert sampling.wait(20)
            raise error

    engine = Fake(fault=fault, beside=True, needs_frames=False)
    ended = run(film(["ab", "c"]), engine, Path("store"))
    assert {each.segment.prompt: getattr(each, "error", None) for each in ended} == {
        "a": error,
        "ab": error,
        "c": None,
    }
    told: list[Event_] = []
    again = run(film(["ab", "c"]), Fake(beside=True, needs_frames=False), Path("store"), told)
    steps = [(event.clip, event.step) for event in told if isinstance(event, StepDone)]
    assert not {("ab", 1), ("ab", 2)} & set(steps), "what was sampled meanwhile is kept"
    assert frames(again) == frames(run(film(["ab", "c"]), Fake(needs_frames=False), Path("calm")))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("needs_frames", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_at_any_moment_of_it(needs_frames: bool) -> None:
    """SIGKILL at calls and frames, in whatever thread; what was made is as if nothing had happened."""
    segments = film(["abc"])
    calm = frames(run(segments, Fake(needs_frames=needs_frames), Path("calm")))

    def killed(after: int) -> bool:
        """Whether a process of its own was killed after so many calls; else it made everything."""
        left = count(after, -1)

        def fault(_call: str, _segment: Segment) -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        process = os.fork()
        if not process:
            with suppress(BaseException):
                run(segments, Fake(fault=fault, beside=True, needs_frames=needs_frames), Path("killed"))
            os._exit(0)
        return bool(os.WIFSIGNALED(os.waitpid(process, 0)[1]))

    for stop in range(2, 27, 4):
        shutil.rmtree("killed", ignore_errors=True)
        assert killed(stop)
        while killed(7):
            pass
        engine = Fake(needs_frames=needs_frames)
        assert frames(run(segments, engine, Path("killed"))) == calm
        assert engine.calls == []


def test_latents_that_are_damaged_before_the_next_one_begins_are_made_again() -> None:
    segments, engine = film(["ab"]), Fake(beside=True, needs_frames=False)
    damaged: list[Path] = []

    def report(event: Event_) -> None:
        if isinstance(event, PhaseDone) and (event.clip, event.model) == ("a", "low") and not damaged:
            damaged.append(store.layout.work(segments[0].key) / LATENTS)
            damaged[0].write_bytes(damaged[0].read_bytes()[:-1] + b"?")

    store = Store(Path("store"), report)
    with LocalExecutor(lambda _name: engine, segments, store, report) as executor:
        first = list(executor.render(segments))
        assert isinstance(first[0], SegmentFailed)
        assert isinstance(first[0].error, TransientError)  # so it is tried again
        assert [each.segment.prompt for each in first] == ["ab", "a"]
        again = list(executor.render(segments))
    assert engine.times("sample") == {"a": 2, "ab": 1}
    assert frames(again) == frames(run(segments, Fake(needs_frames=False), Path("calm")))
