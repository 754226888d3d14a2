"""Which clip is which: default ids count places, so they move when a clip is inserted or removed."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.plan.made import MadeClip


def partners_of(old: Sequence[MadeClip], new: Sequence[MadeClip]) -> dict[int, int]:
    """The old clip that each new one was, both by 0-based place: same written id, else same prompt."""
    pairs = _same_written_ids(old, new)
    olds = [place for place in range(len(old)) if place not in pairs.values()]
    news = [place for place in range(len(new)) if place not in pairs]
    texts = ([old[place].prompt for place in olds], [new[place].prompt for place in news])
    blocks = SequenceMatcher(None, *texts, autojunk=False).get_opcodes()
    edited = []
    for kind, start, stop, new_start, new_stop in blocks:
        if kind == "equal":
            pairs.update(zip(news[new_start:new_stop], olds[start:stop], strict=True))
        else:
            edited.append((olds[start:stop], news[new_start:new_stop]))
    pairs |= _moved(old, new, edited)
    for was, now in edited:
        taken = set(pairs.values())
        left = [place for place in was if place not in taken], [place for place in now if place not in pairs]
        pairs |= _edited(old, new, *left)
    return pairs


def _same_written_ids(old: Sequence[MadeClip], new: Sequence[MadeClip]) -> dict[int, int]:
    places = {clip.id: place for place, clip in enumerate(old)}
    same = {place: places[clip.id] for place, clip in enumerate(new) if clip.id in places}
    return {
        now: was
        for now, was in same.items()
        if not (_by_default(new[now], now) and _by_default(old[was], was))
    }


def _by_default(clip: MadeClip, place: int) -> bool:
    """Whether the id is the one that a clip without any gets at this place."""
    return clip.id == f"clip-{place + 1:02d}"


def _moved(
    old: Sequence[MadeClip], new: Sequence[MadeClip], edited: Sequence[tuple[list[int], list[int]]]
) -> dict[int, int]:
    """Clips with the same prompt in another order."""
    free: dict[str, list[int]] = {}
    for was, _ in edited:
        for place in was:
            free.setdefault(old[place].prompt, []).append(place)
    places = [place for _, now in edited for place in now]
    return {place: free[new[place].prompt].pop(0) for place in places if free.get(new[place].prompt)}


def _edited(
    old: Sequence[MadeClip], new: Sequence[MadeClip], was: list[int], now: list[int]
) -> dict[int, int]:
    """Clips with other prompts between the same neighbours: in order, or by id where some came or went."""
    if len(was) != len(now):
        ids = {old[place].id: place for place in was}
        return {place: ids[new[place].id] for place in now if new[place].id in ids}
    pairs = zip(now, was, strict=True)
    return {a: b for a, b in pairs if _by_default(new[a], a) or _by_default(old[b], b)}
