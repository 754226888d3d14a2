"""Workers given out, lost and replaced, without Ray: its calls are played by a script."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import ray
import svi_support as support
from ray.exceptions import RayActorError

from svi_story.enginespec import EngineOptions
from svi_story.errors import InputError, RenderError, TransientError
from svi_story.events import ChainGiven, SegmentStarted, WorkerLost
from svi_story.render.distributed import worker
from svi_story.render.distributed.driver import WorkerPool
from svi_story.render.distributed.worker import (
    Worker,
    WorkerBugError,
    WorkerSetup,
    WorkerState,
)
from svi_story.render.executor import SegmentFailed, SegmentReady
from svi_story.render.live import SegmentShown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from svi_story.events import Event
    from svi_story.plan.model import Segment
    from svi_story.render.distributed.worker import Message

FOREST = (("a", None), ("b", "a"), ("c", "b"), ("x", "a"), ("p", None), ("q", "p"))
BOARD = Path("board.yaml")


def wanted(key: str, parent: str | None) -> Segment:
    return replace(support.segment(), clip=key, key=key, parent=parent, board=BOARD)


@dataclass
class Stage:
    """Workers that do as they are told: `fault` says what happens when a key is tried for the n-th time."""

    fault: Callable[[str, int], Exception | None]
    one_at_a_time: bool = False
    refusal: Exception | None = None
    early_deaths: int = 0
    """How many workers die before they are ready."""
    tried: Counter[str] = field(default_factory=Counter)
    made: dict[str, Any] = field(default_factory=dict)
    told: list[Event] = field(default_factory=list)
    started: int = 0
    shown: list[str] = field(default_factory=list)
    """Keys of the previews that were passed on."""

    def start(self, _missing: Sequence[Segment]) -> tuple[Any, Iterator[Message]]:
        self.started += 1
        options = SimpleNamespace(remote=self._render)
        return SimpleNamespace(render=SimpleNamespace(options=lambda **_: options)), self._enter()

    def _enter(self) -> Iterator[Message]:
        if self.started <= self.early_deaths:
            raise RayActorError
        yield WorkerState("host", self.started, {})
        yield self.refusal or self._ready()

    def _ready(self) -> WorkerState:
        return WorkerState("host", self.started, {}, one_at_a_time=self.one_at_a_time)

    def _render(self, _before: Sequence[Segment], chains: Sequence[Sequence[Segment]]) -> Iterator[Message]:
        for each in (each for chain in chains for each in chain):
            key = each.key
            assert each.parent is None or each.parent in self.made, "parents come first"
            assert key not in self.made, "nothing is made twice"
            self.tried[key] += 1
            yield SegmentStarted(BOARD, key, 0, key, 5)
            yield SegmentShown(each, ())
            error = self.fault(key, self.tried[key])
            if isinstance(error, RayActorError):
                raise error
            if error:
                yield SegmentFailed(each, error)
                return
            self.made[key] = object()
            yield SegmentReady(each, self.made[key], fresh=True)
        yield self._ready()

    def run(self, workers: int = 2, later: str = "") -> tuple[set[str], dict[str, Exception]]:
        """What is made, and what is lost and why; `later` are keys of takes that no film uses."""
        store: Any = SimpleNamespace(entry=self.made.get, folder=Path, report=self.told.append)
        forest = {key: wanted(key, parent) for key, parent in FOREST}
        pool = WorkerPool(forest, {}, store, workers, self.start, lambda: "Killed", frozenset(later))
        ended = list(pool.render())
        self.shown = [each.segment.key for each in ended if isinstance(each, SegmentShown)]
        return (
            {each.segment.key for each in ended if isinstance(each, SegmentReady)},
            {each.segment.key: each.error for each in ended if isinstance(each, SegmentFailed)},
        )

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.told)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "wait", lambda streams, timeout: (streams[:1], streams[1:]))
    monkeypatch.setattr(ray, "get", lambda message: message)
    monkeypatch.setattr(ray, "kill", lambda actor: None)


@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 9])
def test_everything_is_made_once_by_no_more_workers_than_chains(workers: int, one_at_a_time: bool) -> None:
    stage = Stage(lambda key, time: None, one_at_a_time)
    assert stage.run(workers) == (set("abcxpq"), {})
    assert set(stage.tried.values()) == {1}
    assert stage.started <= min(workers, 3)
    assert stage.count(ChainGiven) == 3


def test_takes_come_after_films_unless_a_worker_would_be_idle() -> None:
    alone = Stage(lambda key, time: None)
    assert alone.run(1, later="pq") == (set("abcxpq"), {})
    assert [*alone.tried] == ["a", "b", "c", "x", "p", "q"], "though x is shorter than p and q"
    both = Stage(lambda key, time: None)
    both.run(2, later="pqx")
    given = [event.clip for event in both.told if isinstance(event, ChainGiven)]
    assert given == ["a", "p", "x"], "p can start at once, as no film has more to start"


def test_whoever_dies_once_costs_nothing_but_the_time() -> None:
    stage = Stage(lambda key, time: RayActorError() if time == 1 else None)
    assert stage.run() == (set("abcxpq"), {})
    assert stage.tried == Counter(dict.fromkeys("abcxpq", 2))
    assert Counter(stage.shown) == stage.tried
    assert stage.count(WorkerLost) == 6


def test_a_segment_over_which_three_die_is_lost_with_what_follows() -> None:
    stage = Stage(lambda key, time: RayActorError() if key == "b" else None)
    made, lost = stage.run()
    assert (made, set(lost)) == (set("axpq"), set("bc"))
    assert "3 workers died" in str(lost["b"])
    assert stage.tried["b"] == 3


def test_a_bug_is_tried_once_more_in_a_fresh_process() -> None:
    stage = Stage(lambda key, time: WorkerBugError("trace\nOops: bad") if key == "b" and time == 1 else None)
    assert stage.run() == (set("abcxpq"), {})
    assert stage.count(WorkerLost) == 1
    stage = Stage(lambda key, time: WorkerBugError("trace\nOops: bad") if key == "b" else None)
    made, lost = stage.run()
    assert (made, set(lost)) == (set("axpq"), set("bc"))
    assert isinstance(lost["b"], WorkerBugError)
    assert stage.tried["b"] == 2


def test_an_error_with_a_cure_is_told_at_once() -> None:
    stage = Stage(lambda key, time: RenderError("numbers that are none") if key == "a" else None)
    made, lost = stage.run()
    assert (made, set(lost)) == (set("pq"), set("abcx"))
    assert stage.tried["a"] == 1
    assert stage.count(WorkerLost) == 0


def test_workers_that_die_before_they_are_ready_are_replaced_and_then_it_is_worth_trying_later() -> None:
    assert Stage(lambda key, time: None, early_deaths=2).run() == (set("abcxpq"), {})
    made, lost = Stage(lambda key, time: None, early_deaths=9).run()
    assert (made, set(lost)) == (set(), set("abcxpq"))
    (error,) = set(lost.values())
    assert isinstance(error, TransientError)
    assert "died before they could work" in str(error)
    assert "(Killed)" in str(error)
    assert "--workers" in str(error)


def test_a_worker_that_says_what_is_wrong_is_believed() -> None:
    for refusal in (TransientError("disk full"), WorkerBugError("trace\nOops: bad")):
        stage = Stage(lambda key, time: None, refusal=refusal)
        made, lost = stage.run(workers=1)
        assert (made, set(lost.values()), stage.started) == (set(), {refusal}, 3)


def test_places_that_will_not_do_are_asked_once_each() -> None:
    stage = Stage(lambda key, time: None, refusal=InputError("no weights"))
    made, lost = stage.run(workers=2)
    assert (made, set(lost)) == (set(), set("abcxpq"))
    assert {str(error) for error in lost.values()} == {"no weights"}
    assert stage.started == 2


def test_a_worker_looks_at_its_place_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "VISIBLE_SECONDS", 0.1)
    setup = WorkerSetup(EngineOptions(), tmp_path / "cache", tmp_path / "cache/probe")
    monkeypatch.setattr("ray.init", pytest.fail)
    here, blind = Worker(setup).enter(())
    assert isinstance(here, WorkerState)
    assert isinstance(blind, InputError)
    assert "does not see the cache" in str(blind)
    setup.probe.parent.mkdir()
    setup.probe.touch()
    assert list(Worker(setup).enter(()))[1:] == [replace(here, one_at_a_time=False)]
    _, other = Worker(replace(setup, version="0.0.1")).enter(())
    assert isinstance(other, InputError)
    assert "install the same" in str(other)
