"""Workers of a cluster: chains given out, what they tell, and what happens when one dies."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from svi_story.errors import PassingError, RenderError
from svi_story.events import ChainGiven, SegmentEvent, Warned, WorkerLost, WorkerStarted
from svi_story.render.chains import chains_of, ready, share
from svi_story.render.record import versions
from svi_story.render.segments import Line, Made
from svi_story.render.worker import (
    Batch,
    Failed,
    Finished,
    Here,
    Ready,
    WorkerBugError,
    absolute,
    see,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from svi_story.events import Event
    from svi_story.plan.keys import Task
    from svi_story.render.chains import Chain
    from svi_story.render.segments import Lost, Wanted
    from svi_story.render.stage import Studio
    from svi_story.render.worker import Message

DEATHS = 2
"""How many workers may die over a segment before it is given up with the third."""
LOOK_AROUND = 1.0
"""Seconds to wait for news before looking around."""


@dataclass
class Hand:
    """A worker, as its driver sees it."""

    number: int
    actor: Any
    """Ray's handle."""
    stream: Any
    """What it tells of what it does now; None when it does nothing."""
    host: str = ""
    ready: Ready | None = None
    """What it said when it had last done something; None before it can work."""
    left: list[str] = field(default_factory=list)
    """Keys it was given, and has not told the end of."""
    last: str = ""
    """The key that it told of last."""


@dataclass(frozen=True)
class Staff:
    """How many workers there are to be, and how one is started."""

    count: int
    start: Callable[[Sequence[Task]], tuple[Any, Any]]
    """From all that is missing to Ray's handle and what the worker tells while it enters its engine."""


class Pool(Line):
    """Segments on their way through workers."""

    def __init__(self, studio: Studio, wanted: dict[str, Wanted], staff: Callable[[], Staff]) -> None:
        super().__init__(studio, wanted)
        self._find_staff = staff
        self._staff: Staff | None = None
        self._hands: list[Hand] = []
        self._started = 0
        self._deaths: Counter[str] = Counter()
        self._bad_starts = 0
        self._reason = ""
        self._names = {
            (each.board, each.task.segment.clip, each.task.segment.index): key for key, each in wanted.items()
        }

    def run(self, order: Sequence[str]) -> Iterator[Made | Lost]:
        """Make what is missing, with as many workers as there is work for."""
        while missing := [key for key in order if self._is_missing(key)]:
            self._staff = self._staff or self._find_staff()
            self._hire(missing)
            if not self._hands:
                what = f"no worker can work: {self._reason}"
                yield from self._lose(missing, RenderError(what))
                return
            self._give_out(missing)
            yield from self._listen()

    def dismiss_all(self) -> None:
        """Stop every worker at once; what is under way is in its checkpoints."""
        for hand in tuple(self._hands):
            self._dismiss(hand)

    def _is_missing(self, key: str) -> bool:
        return key not in self.entries and key not in self.lost

    def _waiting(self, missing: Sequence[str]) -> list[Chain]:
        """The chains that can start now."""
        given = {key for hand in self._hands for key in hand.left}
        free = {key for key in missing if key not in given}
        return ready(chains_of([each.task for each in self.wanted.values()], free), {*missing})

    def _hire(self, missing: Sequence[str]) -> None:
        """Start workers, while there is more that can be done than hands to do it."""
        assert self._staff is not None
        idle = sum(not hand.left for hand in self._hands)
        needed = min(self._staff.count - len(self._hands), len(self._waiting(missing)) - idle)
        for _ in range(needed):
            self._started += 1
            actor, stream = self._staff.start([self.wanted[key].task for key in missing])
            self._hands.append(Hand(self._started, actor, stream))

    def _give_out(self, missing: Sequence[str]) -> None:
        """Give chains to those who have nothing to do."""
        assert self._staff is not None
        for hand in self._hands:
            if hand.stream is None and hand.ready is not None:
                waiting = self._waiting(missing)
                count = share(len(waiting), self._staff.count, one_at_a_time=hand.ready.one_at_a_time)
                if count:
                    self._give(hand, waiting[:count])

    def _give(self, hand: Hand, chains: Sequence[Chain]) -> None:
        hand.left = [key for chain in chains for key in chain.keys]
        hand.last = ""
        before = dict.fromkeys(chain.after for chain in chains if chain.after)
        batch = Batch(
            tuple(self._outfit(key) for key in before),
            tuple(tuple(self._outfit(key) for key in chain.keys) for chain in chains),
        )
        for chain in chains:
            board, segment = self.wanted[chain.keys[0]].board, chain.tasks[0].segment
            count = len(chain.tasks)
            self.studio.report(ChainGiven(board, segment.clip, segment.index, hand.number, count))
        hand.stream = hand.actor.make.options(num_returns="streaming").remote(batch)

    def _outfit(self, key: str) -> Wanted:
        """A segment as it travels: its files by absolute paths, its board by the name that the user gave."""
        each = self.wanted[key]
        return replace(each, task=absolute(each.task))

    def _listen(self) -> Iterator[Made | Lost]:
        """Hear what one of them has to tell next."""
        import ray
        from ray.exceptions import RayError

        busy = [hand for hand in self._hands if hand.stream is not None]
        told, _ = ray.wait([hand.stream for hand in busy], timeout=LOOK_AROUND)
        for hand in [hand for hand in busy if any(hand.stream is stream for stream in told)]:
            try:
                message = ray.get(next(hand.stream))
            except StopIteration:
                hand.stream = None
            except RayError as error:
                yield from self._bury(hand, reason_of(error))
            else:
                yield from self._hear(hand, message)

    def _hear(self, hand: Hand, message: Message) -> Iterator[Made | Lost]:
        match message:
            case Here():
                self._welcome(hand, message)
            case Ready():
                hand.ready = message
                self._bad_starts = 0
            case Finished(key, fresh):
                yield from self._take(hand, key, fresh=fresh)
            case Failed("", error):
                yield from self._bury(hand, str(error).strip().splitlines()[-1])
            case Failed(key, error):
                yield from self._fail(hand, key, error)
            case _:
                self._pass_on(hand, message)

    def _welcome(self, hand: Hand, here: Here) -> None:
        hand.host = here.host
        self.studio.report(WorkerStarted(hand.number, here.host, here.process))
        ours = versions()
        others = [f"{name} {it}, not {ours[name]}" for name, it in here.versions.items() if it != ours[name]]
        if others:
            what = f"worker {hand.number} on {here.host} has {', '.join(others)}: its frames may differ"
            self.studio.report(Warned(what))

    def _pass_on(self, hand: Hand, event: Event) -> None:
        if isinstance(event, SegmentEvent):
            hand.last = self._names.get((event.board, event.clip, event.segment), "")
        self.studio.report(event)

    def _take(self, hand: Hand, key: str, *, fresh: bool) -> Iterator[Made | Lost]:
        hand.left.remove(key)
        try:
            self.entries[key] = see(self.studio.store, key)
        except PassingError as error:
            yield from self._lose([key, *self._followers(key)], error)
        else:
            yield Made(self.wanted[key].task, self.entries[key], fresh)

    def _fail(self, hand: Hand, key: str, error: Exception) -> Iterator[Lost]:
        """A segment could not be made. What is nobody's fault but a bug's may be its process's illness."""
        if isinstance(error, WorkerBugError) and not self._deaths[key]:
            self._deaths[key] = DEATHS
            yield from self._bury(hand, str(error).strip().splitlines()[-1])
            return
        hand.left.remove(key)
        if key in self.lost:
            return
        lost = [key, *self._followers(key)]
        if isinstance(error, PassingError):
            self.lost.update(dict.fromkeys(lost, error))  # the worker has told it
        else:
            yield from self._lose(lost, error)

    def _bury(self, hand: Hand, reason: str) -> Iterator[Lost]:
        """A worker is gone: what it had not finished is free again; blame lies with what it was making."""
        assert self._staff is not None
        self._dismiss(hand)
        self._reason = reason
        self.studio.report(WorkerLost(hand.number, hand.host, reason))
        left = [key for key in hand.left if self._is_missing(key)]
        if hand.ready is None:
            self._bad_starts += 1
            if self._bad_starts > DEATHS:
                self._staff = replace(self._staff, count=0)
        elif left:
            blamed = hand.last if hand.last in left else left[0]
            self._deaths[blamed] += 1
            if self._deaths[blamed] > DEATHS:
                what = f"{self._deaths[blamed]} workers died while they made it, the last one so: {reason}"
                yield from self._lose([blamed, *self._followers(blamed)], RenderError(what))

    def _dismiss(self, hand: Hand) -> None:
        import ray

        self._hands.remove(hand)
        ray.kill(hand.actor)


def reason_of(error: Exception) -> str:
    """Why a worker is gone, on a line."""
    text = str(error)
    told = re.search(r"The actor (?:is dead|died) because (.*?)[.\n]", text)
    return told[1] if told else text.strip().splitlines()[-1]
