"""Workers of a cluster: chains given out, what they tell, and what happens when one dies."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any

from svi_story.errors import PassingError, RenderError, StoryError
from svi_story.events import ChainGiven, Event, SegmentEvent, Warned, WorkerLost, WorkerStarted
from svi_story.render.chains import chains_of, ready, share
from svi_story.render.record import versions
from svi_story.render.segments import Made, Progress
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

    from svi_story.cache.entry import Entry
    from svi_story.cache.store import Store
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment
    from svi_story.render.chains import Chain
    from svi_story.render.segments import Lost, Wanted
    from svi_story.render.worker import Message

DEATHS = 2
"""How many workers may die over a segment before it is given up with the third."""
LOOK_AROUND = 1.0
"""Seconds to wait for news before looking around."""
SLOW_START = 60.0
"""Seconds after which it is told that no worker comes."""
CURE = "if RAM runs out there, ask for fewer with --workers; Ray's log of the workers may say more"


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

    def hear(self) -> Message | None:
        """What it has to tell next; None when it is done. Raises RayError when it is gone."""
        import ray

        try:
            ref = next(self.stream)
        except StopIteration:
            return None
        message: Message = ray.get(ref)
        return message


@dataclass(frozen=True)
class Staff:
    """How many workers there are to be, and how one is started."""

    count: int
    start: Callable[[Sequence[Segment]], tuple[Any, Any]]
    """From all that is missing to Ray's handle and what the worker tells while it enters its engine."""
    last_words: Callable[[], str] = str
    """The last line that a worker process wrote to its log; empty where that is not to be seen."""


class Pool(Progress):
    """Segments on their way through workers."""

    def __init__(
        self,
        wanted: dict[str, Wanted],
        entries: dict[str, Entry],
        store: Store,
        report: Reporter,
        staff: Staff,
    ) -> None:
        super().__init__(wanted, entries)
        self._store = store
        self._report = report
        self._staff = staff
        self._hands: list[Hand] = []
        self._started = 0
        self._deaths: Counter[str] = Counter()
        self._bad_starts = 0
        self._failure: Exception = RenderError("no worker could be started")
        """Why there is nobody left, when there is nobody left."""
        self._since = 0.0
        """When the first worker was asked for; infinite once it has come, or somebody was told."""
        self._names = {
            (each.board, each.segment.clip, each.segment.index): key for key, each in wanted.items()
        }

    def make(self) -> Iterator[Made | Lost]:
        """Make what is missing, with as many workers as there is work for."""
        while missing := [key for key in self.wanted if self.is_missing(key)]:
            self._hire(missing)
            if not self._hands:
                yield from self.lose(missing, self._failure)
                return
            self._give_out(missing)
            yield from self._news()

    def dismiss_all(self) -> None:
        """Stop every worker at once; what is under way is in its checkpoints."""
        for hand in tuple(self._hands):
            self._dismiss(hand)

    def _waiting(self, missing: Sequence[str]) -> list[Chain]:
        """The chains that can start now."""
        given = {key for hand in self._hands for key in hand.left}
        free = {key for key in missing if key not in given}
        return ready(chains_of([each.segment for each in self.wanted.values()], free), {*missing})

    def _hire(self, missing: Sequence[str]) -> None:
        """Start workers, while there is more that can be done than hands to do it."""
        idle = sum(not hand.left for hand in self._hands)
        needed = min(self._staff.count - len(self._hands), len(self._waiting(missing)) - idle)
        self._since = self._since or time.monotonic()
        for _ in range(needed):
            self._started += 1
            actor, stream = self._staff.start([self.wanted[key].segment for key in missing])
            self._hands.append(Hand(self._started, actor, stream))

    def _give_out(self, missing: Sequence[str]) -> None:
        """Give chains to those who have nothing to do."""
        workers = max(self._staff.count, len(self._hands))
        for hand in self._hands:
            if hand.stream is None and hand.ready is not None:
                waiting = self._waiting(missing)
                count = share(len(waiting), workers, one_at_a_time=hand.ready.one_at_a_time)
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
            board, segment = self.wanted[chain.keys[0]].board, chain.segments[0]
            count = len(chain.segments)
            self._report(ChainGiven(board, segment.clip, segment.index, hand.number, count))
        hand.stream = hand.actor.make.options(num_returns="streaming").remote(batch)

    def _outfit(self, key: str) -> Wanted:
        """A segment as it travels: its files by absolute paths, its board by the name that the user gave."""
        each = self.wanted[key]
        return replace(each, segment=absolute(each.segment))

    def _news(self) -> Iterator[Made | Lost]:
        """Wait for what changes what can be done; what happens meanwhile is passed on."""
        from ray.exceptions import RayError

        while True:
            hand = self._next_to_tell()
            try:
                message = hand.hear()
            except RayError as error:
                yield from self._bury(hand, reason_of(error))
                return
            if isinstance(message, Event):
                self._pass_on(hand, message)
            else:
                yield from self._take_in(hand, message)
                return

    def _next_to_tell(self) -> Hand:
        """Somebody who has something to tell, or is done."""
        import ray

        busy = [hand for hand in self._hands if hand.stream is not None]
        while True:
            told, _ = ray.wait([hand.stream for hand in busy], timeout=LOOK_AROUND)
            if told:
                return next(hand for hand in busy if hand.stream is told[0])
            self._wonder()

    def _wonder(self) -> None:
        """Say, once, that no worker comes."""
        if time.monotonic() > self._since + SLOW_START:
            import ray

            free = ray.available_resources()
            told = ", ".join(f"{free.get(name, 0):g} {name}s" for name in ("GPU", "CPU"))
            what = f"no worker has started yet: the cluster has {told} free; waiting (^C loses nothing)"
            self._report(Warned(what))
            self._since = inf

    def _take_in(self, hand: Hand, message: Here | Ready | Finished | Failed | None) -> Iterator[Made | Lost]:
        match message:
            case None if any(map(self.is_missing, hand.left)):
                yield from self._bury(hand, "it ended before its work")
            case None:
                hand.stream, hand.left = None, []
            case Here():
                self._welcome(hand, message)
            case Ready():
                hand.ready = message
                self._bad_starts = 0
            case Finished(key, fresh):
                yield from self._take(hand, key, fresh=fresh)
            case Failed("", error):
                self._refuse(hand, error)
                yield from self._bury(hand, last_line(error), error)
            case Failed(key, error):
                yield from self._fail(hand, key, error)

    def _refuse(self, hand: Hand, error: Exception) -> None:
        """A worker says that its place will not do: there is one place less."""
        if hand.ready is None and isinstance(error, StoryError) and not isinstance(error, PassingError):
            self._failure = error
            self._staff = replace(self._staff, count=self._staff.count - 1)
            self._bad_starts -= 1  # it is not asked again

    def _welcome(self, hand: Hand, here: Here) -> None:
        hand.host = here.host
        self._since = inf
        self._report(WorkerStarted(hand.number, here.host, here.process))
        ours = versions()
        others = [
            f"{name} {it}, not {ours.get(name)}" for name, it in here.versions.items() if it != ours.get(name)
        ]
        if others:
            what = f"worker {hand.number} on {here.host} has {', '.join(others)}: its frames may differ"
            self._report(Warned(what))

    def _pass_on(self, hand: Hand, event: Event) -> None:
        if isinstance(event, SegmentEvent):
            hand.last = self._names.get((event.board, event.clip, event.segment), "")
        self._report(event)

    def _take(self, hand: Hand, key: str, *, fresh: bool) -> Iterator[Made | Lost]:
        hand.left.remove(key)
        try:
            self.entries[key] = see(self._store, key)
        except PassingError as error:
            yield from self.lose([key, *self.followers(key)], error)
        else:
            yield Made(self.wanted[key].segment, self.entries[key], fresh)

    def _fail(self, hand: Hand, key: str, error: Exception) -> Iterator[Lost]:
        """A segment could not be made. What is nobody's fault but a bug's may be its process's illness."""
        if isinstance(error, WorkerBugError) and not self._deaths[key]:
            self._deaths[key] = DEATHS - 1  # with this one, the next is the last
            yield from self._bury(hand, last_line(error))
            return
        hand.left.remove(key)
        if key in self.lost:
            return
        yield from self.lose([key, *self.followers(key)], error)

    def _bury(self, hand: Hand, reason: str, error: Exception | None = None) -> Iterator[Lost]:
        """A worker is gone: what it had not finished is free again; blame lies with what it was making.

        `error` is its own account, where it could give one.
        """
        self._dismiss(hand)
        self._report(WorkerLost(hand.number, hand.host, reason))
        left = [key for key in hand.left if self.is_missing(key)]
        if hand.ready is None:
            self._bad_starts += 1
            if self._bad_starts > DEATHS:
                self._failure = error or self._died_early(reason)
                self._staff = replace(self._staff, count=0)
        elif left:
            blamed = hand.last if hand.last in left else left[0]
            self._deaths[blamed] += 1
            if self._deaths[blamed] > DEATHS:
                what = f"{self._deaths[blamed]} workers died while they made it, the last one so: {reason}"
                yield from self.lose([blamed, *self.followers(blamed)], RenderError(what))

    def _died_early(self, reason: str) -> PassingError:
        """Why there is no worker, where none lives long enough to say so itself."""
        said = self._staff.last_words()
        what = f"{self._bad_starts} workers died before they could work, the last one so: {reason}"
        return PassingError(f"{what}{f' ({said})' if said else ''}; {CURE}")

    def _dismiss(self, hand: Hand) -> None:
        import ray

        self._hands.remove(hand)
        ray.kill(hand.actor)


def reason_of(error: Exception) -> str:
    """Why a worker is gone, on a line."""
    told = re.search(r"The actor (?:is dead|died) because (its .*?)[.\n]", str(error))
    return told[1] if told else last_line(error)


def last_line(error: Exception) -> str:
    """What an error says in the end; of a traceback, the error itself."""
    return re.sub(r"\x1b\[\d*m", "", str(error).strip() or type(error).__name__).splitlines()[-1]
