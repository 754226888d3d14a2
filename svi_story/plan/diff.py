"""What changed since the last film, in words."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from svi_story.plan.description import MadeClip, MadeFilm
    from svi_story.plan.keys import Json


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


WORDS = {
    "anchor": "reference image",
    "anchor_pixels": "reference image",
    "size": "resolution",
    "width": "resolution",
    "height": "resolution",
    "frames": "length",
    "first_frame": "place within the clip",
    "clip": "id",
    "engine": "engine",
    "revision": "engine revision",
    "key_version": "key version",
}

PARTS = {
    "fade_in": "fade from black",
    "fade_out": "fade to black",
    "title_card": "title card",
    "end_card": "end card",
    "music": "music",
}
"""What a film may have or lack."""

OF_CODEC = ("crf", "preset")
"""Settings that mean something else to another codec."""

FINISH = {"voices": "voice"}

CUT_AGAIN = "; it is cut again, no frame is made"


@dataclass(frozen=True)
class Change:
    """Why a clip is made anew, is there for the first time, or is there no more."""

    number: int
    """1-based place in the new film; in the old one for a clip that was removed."""
    id: str
    was: str
    """Its id in the old film."""
    shift: int
    """How many places it moved up since the old film."""
    reasons: tuple[str, ...]
    """Empty where it only follows the change before."""

    @property
    def name(self) -> str:
        """Its id, and the one it had."""
        return self.id if self.id == self.was else f"{self.id}, was {self.was}"


def what_changed(old: MadeFilm, new: MadeFilm) -> tuple[str, ...]:
    """Sentences such as `clip 3 (window): prompt changed; clips 4-9 follow it`; empty when nothing did."""
    partners = partners_of(old.clips, new.clips)
    changes = _clip_changes(old.clips, new.clips, partners)
    told = {reason for change in changes for reason in change.reasons}
    lines = [*_setting_changes(old, new, told), *_cut_changes(old.clips, new.clips, partners, told)]
    if changes:
        return (*_sentences(changes), *lines)
    if not lines and old.digest != new.digest:
        lines = ["a setting that touches no frame of this engine, or a comment, changed"]
    return tuple(f"{line}{CUT_AGAIN}" for line in lines)


# What changed in them.


def _clip_changes(
    old: Sequence[MadeClip], new: Sequence[MadeClip], partners: Mapping[int, int]
) -> list[Change]:
    """Every clip that is not what it was, in film order."""
    changes: list[Change] = []
    gone = [place for place in range(len(old)) if place not in partners.values()]
    for now, clip in enumerate(new):
        was = partners.get(now)
        if was is None:
            changes.append(Change(now + 1, clip.id, clip.id, 0, ("new",)))
            continue
        while gone and gone[0] < was:
            changes.append(_removed(old, gone.pop(0)))
        if old[was].keys != clip.keys:
            reasons = _reasons(old[was], clip)
            if not reasons and (_reordered(partners, now) or not changes):
                reasons = ("order changed",)
            changes.append(Change(now + 1, clip.id, old[was].id, was - now, reasons))
    return [*changes, *(_removed(old, place) for place in gone)]


def _removed(old: Sequence[MadeClip], place: int) -> Change:
    return Change(place + 1, old[place].id, old[place].id, 0, ("removed",))


def _reordered(partners: Mapping[int, int], now: int) -> bool:
    """Whether the clips before it, then and now, are two that both films have."""
    before, before_then = partners.get(now - 1), partners[now] - 1
    return before is not None and before != before_then and before_then in partners.values()


def _reasons(old: MadeClip, new: MadeClip) -> tuple[str, ...]:
    """A phrase for each input that differs, the parent's key aside."""
    if _engine(old) != _engine(new):
        return (f"engine changed from {_engine(old)} to {_engine(new)}",)
    names: list[str] = []
    if len(old.segments) != len(new.segments):
        names.append("frames")
    for was, now in zip(old.segments, new.segments, strict=False):
        names += _differing(_flat(was.inputs), _flat(now.inputs))
    chain = []
    if old.starts_chain != new.starts_chain:
        chain = ["starts a chain now" if new.starts_chain else "continues the clip before now"]
    names = _telling(names, explained=bool(chain))
    return (*chain, *(f"{word} changed" for word in _words(names)))


def _engine(clip: MadeClip) -> object:
    return clip.segments[0].inputs.get("engine") if clip.segments else None


def _flat(inputs: Mapping[str, Any]) -> dict[str, Any]:
    nested = inputs.get("inputs")
    rest = {name: value for name, value in inputs.items() if name not in ("inputs", "parent")}
    return {**rest, **nested} if isinstance(nested, dict) else rest


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in {**was, **now} if was.get(name) != now.get(name)]


def _telling(names: list[str], *, explained: bool) -> list[str]:
    """The inputs without those that only go along with a change that is told anyway."""
    for along in ("first_frame", "overlap"):
        rest = [name for name in names if name != along]
        names = rest if rest or explained else names
    return names


def _words(names: Sequence[str]) -> list[str]:
    words = list(dict.fromkeys(WORDS.get(name, name.replace("_", " ")) for name in names))
    # the pixels of a reference image are those after it was brought to the film's size
    return [word for word in words if not (word == "reference image" and "resolution" in words)]


# What changed in the cut.


def _setting_changes(old: MadeFilm, new: MadeFilm, told: set[str]) -> Iterator[str]:
    if old.title != new.title:
        yield "title changed"
    another_codec = old.cut.get("codec", new.cut.get("codec")) != new.cut.get("codec")
    for name, now in new.cut.items():
        was = old.cut.get(name, now)
        if _content(was) == _content(now) or (another_codec and name in OF_CODEC):
            continue
        if name in PARTS:
            yield f"{PARTS[name]} {_how(was, now)}"
        elif f"{name} changed" not in told:
            yield f"{name} changed from {was} to {now}"


def _how(was: Json, now: Json) -> str:
    """What became of something that a film may have or lack."""
    if was and now:
        return "changed"
    return "added" if now else "removed"


def _content(value: Json) -> Json:
    """A recording, or several, without the files' names: what is in them counts."""
    if isinstance(value, list):
        return [_content(each) if isinstance(each, dict) else each for each in value]
    if isinstance(value, dict):
        return {name: part for name, part in value.items() if name != "path"}
    return value


def _cut_changes(
    old: Sequence[MadeClip], new: Sequence[MadeClip], partners: Mapping[int, int], told: set[str]
) -> Iterator[str]:
    order = [partners[place] for place in sorted(partners)]
    if any(later < place for place, later in pairwise(order)) and "order changed" not in told:
        yield "the order of the clips changed"
    for now, was in sorted(partners.items()):
        before, after = old[was], new[now]
        clip = f"clip {now + 1} ({after.id})"
        if now and was and before.starts_chain and after.starts_chain:
            yield from _join_changes(before, after, clip)
        for name, value in after.finish.items():
            had = before.finish.get(name, value)
            if _content(had) != _content(value):
                yield f"{FINISH.get(name, name)} of {clip} {_how(had, value)}"


def _join_changes(before: MadeClip, after: MadeClip, clip: str) -> Iterator[str]:
    (was, frames), (now, frames_now) = _join(before), _join(after)
    if was != now:
        yield f"the {was} into {clip} became a {now}" + (f" of {frames_now} frames" if frames_now else "")
    elif frames != frames_now:
        yield f"the {was} into {clip} changed from {frames} to {frames_now} frames"


def _join(clip: MadeClip) -> tuple[str, int]:
    """How it follows the clip before, and over how many frames."""
    if clip.fade:
        return "fade", clip.fade
    return ("dip", clip.dip) if clip.dip else ("cut", 0)


# In words.


def _sentences(changes: Sequence[Change]) -> Iterator[str]:
    """A sentence for every run of clips that changed alike, with those that only follow it."""
    groups: list[tuple[list[Change], list[int]]] = []
    for change in changes:
        if not change.reasons:
            groups[-1][1].append(change.number)
        elif groups and not groups[-1][1] and _alike(groups[-1][0][-1], change):
            groups[-1][0].append(change)
        else:
            groups.append(([change], []))
    for group, followers in groups:
        yield _subject(group) + ", ".join(group[0].reasons) + _following(followers, group)


def _alike(one: Change, other: Change) -> bool:
    """Whether one clause tells both."""
    renamed = one.id != one.was, other.id != other.was
    moved_alike = renamed == (False, False) or (renamed == (True, True) and one.shift == other.shift)
    return one.reasons == other.reasons and one.number + 1 == other.number and moved_alike


def _subject(group: Sequence[Change]) -> str:
    first, last = group[0], group[-1]
    if first is last:
        return f"clip {first.number} ({first.name}): "
    were = f" (were {first.was} to {last.was})" if first.id != first.was else ""
    return f"clips {first.number}-{last.number}{were}: "


def _following(followers: Sequence[int], group: Sequence[Change]) -> str:
    if not followers:
        return ""
    runs = ", ".join(_runs(followers))
    followed = "it" if len(group) == 1 else "them"
    return f"; clip {runs} follows {followed}" if len(followers) == 1 else f"; clips {runs} follow {followed}"


def _runs(numbers: Sequence[int]) -> Iterator[str]:
    """`4, 5, 6, 9` as `4-6` and `9`."""
    start = previous = numbers[0]
    for number in [*numbers[1:], -1]:
        if number != previous + 1:
            yield str(start) if start == previous else f"{start}-{previous}"
            start = number
        previous = number
