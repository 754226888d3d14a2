"""What changed since the last film, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

WORDS = {
    "anchor": "reference image",
    "anchor_pixels": "reference image",
    "size": "resolution",
    "frames": "length",
    "first_frame": "place within the clip",
    "clip": "id",
    "engine": "engine",
    "revision": "engine revision",
    "key_version": "key version",
}


@dataclass(frozen=True)
class MadeSegment:
    """A segment's key and all that went into it."""

    key: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class MadeClip:
    """A clip as it was made, or is about to be."""

    id: str
    segments: tuple[MadeSegment, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its segments, in order."""
        return tuple(segment.key for segment in self.segments)


def what_changed(old: Sequence[MadeClip], new: Sequence[MadeClip]) -> tuple[str, ...]:
    """Sentences such as `clip 3 (window): prompt changed; clips 4-9 follow it`; empty when nothing did."""
    before = {clip.id: clip for clip in old}
    lines: list[str] = []
    followers: list[int] = []
    for number, clip in enumerate(new, 1):
        known = before.pop(clip.id, None)
        if known is not None and known.keys == clip.keys:
            continue
        changes = ["new"] if known is None else _changes(known, clip)
        if changes:
            _close(lines, followers)
            lines.append(f"clip {number} ({clip.id}): {', '.join(changes)}")
        else:
            followers.append(number)
    _close(lines, followers)
    return (*lines, *(f"clip {clip_id}: removed" for clip_id in before))


def _close(lines: list[str], followers: list[int]) -> None:
    """Tell who follows the last change, and start counting anew."""
    if not followers:
        return
    one = len(followers) == 1
    runs = ", ".join(_runs(followers))
    lead = f"{lines.pop()}; " if lines else ""
    ending = f"clip {runs} follows it" if one else f"clips {runs} follow it"
    lines.append(lead + (ending if lead else ending.replace(" it", " a clip that was removed")))
    followers.clear()


def _runs(numbers: Sequence[int]) -> Iterator[str]:
    """`4, 5, 6, 9` as `4-6` and `9`."""
    start = previous = numbers[0]
    for number in [*numbers[1:], -1]:
        if number != previous + 1:
            yield str(start) if start == previous else f"{start}-{previous}"
            start = number
        previous = number


def _changes(old: MadeClip, new: MadeClip) -> list[str]:
    """A phrase for each input that differs, the parent's key aside."""
    phrases: list[str] = []
    if len(old.segments) != len(new.segments):
        phrases.append("length changed")
    for was, now in zip(old.segments, new.segments, strict=False):
        phrases += _differing(_flat(was.inputs), _flat(now.inputs))
    return list(dict.fromkeys(phrases))


def _flat(inputs: Mapping[str, Any]) -> dict[str, Any]:
    nested = inputs.get("inputs")
    rest = {name: value for name, value in inputs.items() if name not in ("inputs", "parent")}
    return {**rest, **nested} if isinstance(nested, dict) else rest


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if was.get("engine") != now.get("engine"):
        return [f"engine changed from {was.get('engine')} to {now.get('engine')}"]
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return [f"{WORDS.get(name, name.replace('_', ' '))} changed" for name in names]
