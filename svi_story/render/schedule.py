"""In which order work is done: a pure function of what is wanted, what is missing and what fits.

Segments of a chain follow each other; chains are independent. Where all models of an engine fit on the device
at once, work goes film by film, so that films are finished early. Where only one fits, every model change
moves gigabytes: then all segments that can be made take the same phase one after another, wave by wave, and
the number of changes grows with the longest chain, not with the number of chains.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from svi_story.engines.base import Phase
    from svi_story.plan.keys import Task

    Phases = Callable[[Task], Sequence[Phase]]
    """What is left to do of a segment before it can be decoded; empty when its latents are there."""

Kind = Literal["text", "sample", "decode", "encode", "cut"]

DECODER = "vae"
"""The model that decodes, by the name its phases have too."""


@dataclass(frozen=True)
class Work:
    """One thing to do."""

    kind: Kind
    key: str = ""
    """Of the segment; empty for the texts and for films."""
    phase: Phase | None = None
    """Of sampling."""
    last: bool = False
    """Whether sampling is done after it."""
    film: int = -1
    """0-based, for pieces and cuts."""

    @property
    def model(self) -> str:
        """What it needs loaded; empty for none."""
        if self.kind == "text":
            return "text"
        if self.kind == "decode":
            return DECODER
        return self.phase.model if self.phase else ""


def waves(wanted: Iterable[Task], missing: Collection[str]) -> tuple[tuple[Task, ...], ...]:
    """The missing segments, each once, by how many missing ones come before it in its chain."""
    depths: dict[str, int] = {}
    found: defaultdict[int, list[Task]] = defaultdict(list)
    for task in wanted:
        if task.key in missing and task.key not in depths:
            depths[task.key] = depths.get(task.parent or "", -1) + 1
            found[depths[task.key]].append(task)
    return tuple(tuple(found[depth]) for depth in sorted(found))


def segment_works(
    wanted: Sequence[Task], missing: Collection[str], phases: Phases, *, one_at_a_time: bool
) -> tuple[Work, ...]:
    """What makes the missing segments: parents come before those that continue from them.

    `wanted` lists parents first, as films do.
    """
    groups = waves(wanted, missing)
    if one_at_a_time:
        return tuple(work for wave in groups for work in _together(wave, phases))
    found = {task.key: task for wave in groups for task in wave}
    order = dict.fromkeys(task.key for task in wanted if task.key in found)
    return tuple(work for key in order for work in _together((found[key],), phases))


def _together(wave: Sequence[Task], phases: Phases) -> Iterator[Work]:
    """One phase of all segments after another; those that need the same LoRAs next to each other."""
    left = {task.key: tuple(phases(task)) for task in wave}
    places = sorted({phase.place for each in left.values() for phase in each})
    for place in places:
        due = [
            (phase, key, phase is each[-1])
            for key, each in left.items()
            for phase in each
            if phase.place == place
        ]
        firsts = {outfit: number for number, outfit in enumerate(dict.fromkeys(p.outfit for p, _, _ in due))}
        for phase, key, last in sorted(due, key=lambda each: firsts[each[0].outfit]):
            yield Work("sample", key, phase, last)
    yield from (Work("decode", task.key) for task in wave)


def schedule(
    films: Sequence[Sequence[Task]], missing: Collection[str], phases: Phases, *, one_at_a_time: bool
) -> tuple[Work, ...]:
    """Everything from the texts to the cut films, in order. A film is the segments it is made of.

    A film's pieces are encoded as its segments are finished, and it is cut right after its last one.
    """
    wanted = [task for film in films for task in film]
    segments = segment_works(wanted, missing, phases, one_at_a_time=one_at_a_time)
    works: list[Work] = [Work("text")] if any(work.kind == "sample" for work in segments) else []
    left = [{task.key for task in film} for film in films]
    for number, waiting in enumerate(left):
        works += _finish(number, waiting, {key for key in waiting if key not in missing})
    for work in segments:
        works.append(work)
        if work.kind == "decode":
            for number, waiting in enumerate(left):
                works += _finish(number, waiting, {work.key})
    return tuple(works)


def _finish(film: int, waiting: set[str], done: set[str]) -> Iterator[Work]:
    """What a film can do once these of its segments are there."""
    ready = waiting & done
    waiting -= ready
    yield from (Work("encode", key, film=film) for key in sorted(ready))
    if ready and not waiting:
        yield Work("cut", film=film)


def model_changes(works: Iterable[Work], models: Collection[str]) -> int:
    """How often one of these models follows another one on the device."""
    run = [name for name, _ in groupby(work.model for work in works if work.model in models)]
    return len(run)
