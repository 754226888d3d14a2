"""What can be done at the same time: chains of missing segments, and how many a worker takes at once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from svi_story.plan.model import Segment


@dataclass(frozen=True)
class Chain:
    """Missing segments, each of which continues from the one before."""

    segments: tuple[Segment, ...]
    length: int
    """Of the longest way from its first segment to an end, other chains that hang on it included."""

    @property
    def after(self) -> str | None:
        """The segment it continues from: there, or of another chain; None where a picture is the start."""
        return self.segments[0].parent

    @property
    def keys(self) -> tuple[str, ...]:
        """Its segments' keys, in order."""
        return tuple(segment.key for segment in self.segments)


def chains_of(wanted: Sequence[Segment], missing: Collection[str]) -> tuple[Chain, ...]:
    """The missing segments as chains, the longest first.

    `wanted` lists parents first. Where two segments continue from one, the longer way goes on in its chain,
    and the other one starts a chain of its own.
    """
    segments = {segment.key: segment for segment in wanted if segment.key in missing}
    children: defaultdict[str | None, list[str]] = defaultdict(list)
    length: dict[str, int] = {}
    for key, segment in reversed(segments.items()):
        length[key] = 1 + max((length[child] for child in children[key]), default=0)
        children[segment.parent].insert(0, key)
    heirs = {key: max(children[key], key=length.__getitem__) for key in segments if children[key]}
    starts = [key for key, segment in segments.items() if heirs.get(segment.parent or "") != key]
    chains = [Chain(tuple(_from(start, segments, heirs)), length[start]) for start in starts]
    return tuple(sorted(chains, key=lambda chain: -chain.length))


def _from(start: str, segments: dict[str, Segment], heirs: dict[str, str]) -> Iterable[Segment]:
    key: str | None = start
    while key is not None:
        yield segments[key]
        key = heirs.get(key)


def ready(chains: Iterable[Chain], missing: Collection[str]) -> list[Chain]:
    """Those that can start now, because what they continue from is not missing."""
    return [chain for chain in chains if chain.after not in missing]


def share(waiting: int, workers: int, *, one_at_a_time: bool) -> int:
    """How many of the waiting chains a free worker takes.

    One, where all models fit its device. Where they take turns, several share each change of models: half of
    an even share, so that the last ones to be given are small and all workers end at about the same time.
    """
    return ceil(waiting / (2 * workers)) if one_at_a_time and waiting else min(waiting, 1)
