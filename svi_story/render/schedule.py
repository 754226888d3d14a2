"""In which order work is done: pure functions of what is wanted, what is missing and what fits.

Segments of a chain follow each other; chains are independent. Where all models of an engine fit on the device
at once, work goes film by film, so that films are finished early; only where a segment would wait for the
frames of the one before it, which is still being decoded, another chain's comes between. Where only one fits,
every model change moves gigabytes: then all segments that can be rendered take the same phase one after
another, wave by wave, and the number of changes grows with the longest chain, not with the number of chains.

Two things are done at a time: the main thread samples, and a second one decodes and stores what is sampled.
They share the device where there is room for both; else sampling goes on when only storing is left. Both go
through the same list in order, and wait for what a step names in `after`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from svi_story.engines.base import Phase
    from svi_story.plan.model import Segment

    Phases = Callable[[Segment], Sequence[Phase]]
    """What is left to do of a segment before it can be decoded; empty when its latents are there."""


Kind = Literal["text", "sample", "decode", "encode", "cut"]

DECODER = "vae"
"""The model that decodes, by the name its phases have too."""
FIRST = -1
"""The place before all work on segments."""


@dataclass(frozen=True)
class Work:
    """One step of the schedule."""

    kind: Kind
    key: str = ""
    """Of the segment; empty for the texts and for films."""
    phase: Phase | None = None
    """Of sampling."""
    last: bool = False
    """Whether sampling is done after it."""
    film: int = -1
    """0-based, for pieces and cuts."""
    after: str = ""
    """Of sampling: the segment that must be stored before, as its frames are needed; empty for none."""
    beside: bool = False
    """Whether other models stay on the device meanwhile; what follows then does not wait for a decoding."""

    @property
    def model(self) -> str:
        """What it needs loaded; empty for none."""
        if self.kind == "text":
            return "text"
        if self.kind == "decode":
            return DECODER
        return self.phase.model if self.phase else ""


def schedule(
    films: Sequence[Sequence[Segment]],
    missing: Collection[str],
    phases: Phases,
    *,
    one_at_a_time: bool,
    beside: bool = False,
    takes: Sequence[Segment] = (),
) -> tuple[Work, ...]:
    """Everything from the texts to the cut films and the other takes, in order.

    A film is the segments it is made of; its pieces are encoded as its segments are finished, and it is cut
    right after its last one. `takes` are the segments of takes that no film uses: they come after all films.
    """
    made = [segment for film in films for segment in film]
    later = {segment.key for segment in takes}.difference(segment.key for segment in made)
    how = {"one_at_a_time": one_at_a_time, "beside": beside}
    segments = segment_works([*made, *takes], missing, phases, **how, later=later)
    after = _edits(films, {work.key: place for place, work in enumerate(segments) if work.kind == "decode"})
    works = [Work("text")] if any(work.kind == "sample" for work in segments) else []
    works += after[FIRST]
    for place, work in enumerate(segments):
        works += [work, *after[place]]
    return tuple(works)


def segment_works(
    wanted: Sequence[Segment],
    missing: Collection[str],
    phases: Phases,
    *,
    one_at_a_time: bool,
    beside: bool = False,
    later: Collection[str] = (),
) -> tuple[Work, ...]:
    """What makes the missing segments: parents come before those that continue from them.

    `wanted` lists parents first, as films do. `later` are keys that come after all others: no other segment
    continues from theirs. `beside`: whether there is room to decode a segment while another one is sampled.
    """
    segments = {segment.key: segment for segment in wanted if segment.key in missing}
    works: list[Work] = []
    for is_later in (False, True):
        due = [segment for key, segment in segments.items() if (key in later) == is_later]
        if one_at_a_time:
            groups = waves(due)
        else:
            groups = [(segment,) for segment in (_in_turns(due, phases) if beside else due)]
        some = [
            _work_after(work, segments)
            for number, group in enumerate(groups)
            for work in _together(group, phases, backwards=number % 2 == 1)
        ]
        works += _decoded_beside(some) if beside else some
    return tuple(works)


def _in_turns(due: Sequence[Segment], phases: Phases) -> list[Segment]:
    """The same segments, parents first. None comes right after its parent if it needs that one's frames and
    there is another that can come between.
    """
    waiting = {segment.key: segment for segment in due}
    order: list[Segment] = []
    while waiting:
        ready = [each for each in waiting.values() if each.parent not in waiting]
        last = order[-1] if order else None
        apart = (
            each
            for each in ready
            if last is None or each.parent != last.key or not _needs_frames(each, last, phases(each))
        )
        order.append(waiting.pop(next(apart, ready[0]).key))
    return order


def _needs_frames(segment: Segment, parent: Segment, due: Sequence[Phase]) -> bool:
    """Whether what is left to do of a segment needs its parent's frames, not its latents alone."""
    return bool(due) and (parent.engine != segment.engine or any(phase.needs_frames for phase in due))


def _work_after(work: Work, segments: Mapping[str, Segment]) -> Work:
    """The work with the parent that it waits for, if it needs frames of one that is missing."""
    segment = segments[work.key]
    parent = segments.get(segment.parent or "")
    if parent is None or work.phase is None or not _needs_frames(segment, parent, [work.phase]):
        return work
    return replace(work, after=parent.key)


def _decoded_beside(works: Sequence[Work]) -> list[Work]:
    """The same work, each segment decoded as soon as it is sampled.

    What the VAE encodes next comes before, unless that needs the frames: then it is not in use while others
    wait for it.
    """
    sampled = {work.key for work in works if work.kind == "sample"}
    ordered: list[Work] = []
    for work in works:
        if work.kind == "sample" or work.key not in sampled:
            ordered.append(work)
        if work.last:
            ordered.append(Work("decode", work.key))
    placed: list[Work] = []
    waiting: list[Work] = []
    for work in (replace(each, beside=each.model == DECODER) for each in ordered):
        if work.kind == "decode":
            waiting.append(work)
            continue
        if work.model != DECODER or work.after in [each.key for each in waiting]:
            placed += waiting
            waiting = []
        placed.append(work)
    return placed + waiting


def waves(missing: Iterable[Segment]) -> list[tuple[Segment, ...]]:
    """Missing segments, parents first, by how many of them come before each in its chain."""
    depths: dict[str | None, int] = {}
    found: defaultdict[int, list[Segment]] = defaultdict(list)
    for segment in missing:
        depths[segment.key] = depths.get(segment.parent, -1) + 1
        found[depths[segment.key]].append(segment)
    return [tuple(found[depth]) for depth in sorted(found)]


def loads(works: Iterable[Work], models: Collection[str]) -> int:
    """How often one of these models has to be moved to the device, where only one of them fits."""
    moving = (work.model for work in works if work.model and not work.beside)
    return sum(model in models for model, _ in groupby(moving))


def seconds_of(works: Iterable[Work], seconds: Callable[[Work], tuple[float, float]]) -> float:
    """How long it takes until all is done, with sampling and decoding at the same time where they are.

    `seconds` are those of a step on the device, and those in which it is stored after that.
    """
    now = stored = 0.0
    stored_at: dict[str, float] = {}
    for work in works:
        on_device, storing = seconds(work)
        if work.kind == "decode":
            start = max(now, stored)  # one at a time
            now = start if work.beside else start + on_device
            stored = stored_at[work.key] = start + on_device + storing
        else:
            now = max(now, stored_at.get(work.after, 0.0)) + on_device
    return max(now, stored)


def _together(group: Sequence[Segment], phases: Phases, *, backwards: bool) -> list[Work]:
    """One phase of all segments after another, those that need the same LoRAs next to each other.

    Every other group takes the LoRAs in reverse order, to begin with those that are loaded.
    """
    left = {segment.key: tuple(phases(segment)) for segment in group}
    samples = [
        (phase, Work("sample", key, phase, last=phase is due[-1]))
        for key, due in left.items()
        for phase in due
    ]
    lora_sets = sorted({phase.lora_set for phase, _ in samples}, reverse=backwards)
    samples.sort(key=lambda each: (each[0].place, lora_sets.index(each[0].lora_set)))
    return [*(work for _, work in samples), *(Work("decode", segment.key) for segment in group)]


def _edits(films: Sequence[Sequence[Segment]], decoded: dict[str, int]) -> defaultdict[int, list[Work]]:
    """The pieces and cuts that can be made after a place in the order, by that place."""
    after: defaultdict[int, list[Work]] = defaultdict(list)
    for number, film in enumerate(films):
        places = {segment.key: decoded.get(segment.key, FIRST) for segment in film}
        for key, place in places.items():
            after[place].append(Work("encode", key, film=number))
        after[max(places.values())].append(Work("cut", film=number))
    return after


@dataclass(frozen=True)
class Chain:
    """Missing segments, each of which continues from the one before."""

    segments: tuple[Segment, ...]
    length: int
    """Of the longest path from its first segment to an end, including chains that branch off."""

    @property
    def after(self) -> str | None:
        """The key of the segment that it continues from; None if it starts from a picture."""
        return self.segments[0].parent

    @property
    def keys(self) -> tuple[str, ...]:
        """Its segments' keys, in order."""
        return tuple(segment.key for segment in self.segments)


def chains_of(
    wanted: Sequence[Segment], missing: Collection[str], later: Collection[str] = ()
) -> tuple[Chain, ...]:
    """The missing segments as chains, the longest first, those of `later` (keys) after all others.

    `wanted` lists parents first. Where two segments continue from one, the longer branch stays in its chain,
    and the other one starts a chain of its own.
    """
    segments = {segment.key: segment for segment in wanted if segment.key in missing}
    children: defaultdict[str | None, list[str]] = defaultdict(list)
    length: dict[str, int] = {}
    for key, segment in reversed(segments.items()):
        length[key] = 1 + max((length[child] for child in children[key]), default=0)
        children[segment.parent].insert(0, key)
    following = {key: max(children[key], key=length.__getitem__) for key in segments if children[key]}
    starts = [key for key, segment in segments.items() if following.get(segment.parent or "") != key]
    chains: list[Chain] = []
    for start in starts:
        keys = [start]
        while keys[-1] in following:
            keys.append(following[keys[-1]])
        chains.append(Chain(tuple(segments[key] for key in keys), length[start]))
    return tuple(sorted(chains, key=lambda chain: (chain.keys[0] in later, -chain.length)))


def ready(chains: Iterable[Chain], missing: Collection[str]) -> list[Chain]:
    """Those that can start now, because what they continue from is not missing."""
    return [chain for chain in chains if chain.after not in missing]


def share(waiting: int, workers: int, *, one_at_a_time: bool) -> int:
    """How many of the waiting chains a free worker takes.

    One, where all models fit its device. Where they take turns, several, as each change of models then serves
    all of them: half of an even share, so that the last shares are small and all workers finish together.
    """
    return ceil(waiting / (2 * workers)) if one_at_a_time and waiting else min(waiting, 1)
