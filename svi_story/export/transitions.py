"""The film as editors think of it: items one after another, trimmed, with transitions across their joins.

Our fade is frames that two clips share; an editor's is frames around a join, half of them from beyond the
end of the outgoing item (its handle), half from before the start of the incoming one. Same frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

TransitionKind = Literal["dissolve", "black"]
"""Of one picture into the other; or into black and out of it again."""


@dataclass(frozen=True)
class Transition:
    """How an item follows the one before, or begins or ends the film."""

    look: TransitionKind
    before: int
    """Frames of the transition before the join."""
    after: int

    @property
    def handles(self) -> tuple[int, int]:
        """Frames beyond their ends that the outgoing and the incoming item need for the transition."""
        return (self.after, self.before) if self.look == "dissolve" else (0, 0)


def dissolve(frames: int) -> Transition:
    """A fade of so many frames, its join in the middle."""
    return Transition("dissolve", frames // 2, frames - frames // 2)


@dataclass
class TrackItem:
    """A clip or a card on the track, with the transitions at its ends."""

    runs: tuple[int, ...]
    """How many frames each of its files holds for it, in order."""
    head: int = 0
    """Frames before its start that the transition there needs: a handle."""
    tail: int = 0
    reach_in: int = 0
    """How far the transition at its start reaches into it, `head` included."""
    reach_out: int = 0

    @property
    def frames(self) -> int:
        """All its frames, handles included."""
        return sum(self.runs)

    @property
    def untouched(self) -> int:
        """Frames that no transition touches."""
        return self.frames - self.reach_in - self.reach_out

    @property
    def nested(self) -> bool:
        """Whether a transition reaches beyond its first or last file: then it is one track of its own."""
        return self.reach_in > self.runs[0] or self.reach_out > self.runs[-1]


@dataclass
class EditedTrack:
    """Items in order, and the transitions that fit: `transitions[i]` precedes item i."""

    items: list[TrackItem]
    transitions: list[Transition | None] = field(init=False)

    def __post_init__(self) -> None:
        self.transitions = [None] * (len(self.items) + 1)

    def set(self, index: int, join: Transition) -> bool:
        """Put a transition before item `index`, unless it meets another; whether it was put there."""
        before = self.items[index - 1] if index > 0 else None
        after = self.items[index] if index < len(self.items) else None
        tail, head = join.handles
        out, into = join.before + tail, join.after + head
        if (
            self.transitions[index]
            or (before and before.untouched < out)
            or (after and after.untouched < into)
        ):
            return False
        if before:
            before.tail, before.reach_out = tail, out
        if after:
            after.head, after.reach_in = head, into
        self.transitions[index] = join
        return True

    @property
    def starts(self) -> tuple[int, ...]:
        """Where the film begins to show each item, in its transition: the first frame that has some of it."""
        starts, cut = [], 0
        for item in self.items:
            starts.append(cut - item.head)
            cut += item.frames - item.head - item.tail
        return tuple(starts)

    @property
    def frames(self) -> int:
        """The film's length."""
        return sum(item.frames - item.head - item.tail for item in self.items)


def trimmed(runs: Sequence[int], head: int, tail: int) -> list[tuple[int, int]]:
    """[start, stop) of each run, without so many frames at both ends of all."""
    ranges = [(0, frames) for frames in runs]
    ranges[0] = (head, ranges[0][1])
    ranges[-1] = (ranges[-1][0], ranges[-1][1] - tail)
    return ranges
