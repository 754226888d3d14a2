"""The differences between the previous film and a plan, as sentences."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from svi_story.fields import format_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from svi_story.plan.keys import Json
    from svi_story.plan.model import FilmPlan

    Clips = Sequence["ClipDescription"]
    Matches = Mapping[int, int]
    """The old clip that each new one was, both by 0-based place."""

INPUT_NAMES = {
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
"""Key inputs by the names that authors know."""

OPTIONAL_PARTS = {
    "fade_in": "fade from black",
    "fade_out": "fade to black",
    "title_card": "title card",
    "end_card": "end card",
    "music": "music",
}
"""Parts of the cut that are added, changed or removed."""

CODEC_SETTINGS = ("crf", "preset")
"""Settings whose values mean something else to another codec."""

ONLY_CUT = "; the film is assembled again, no frame is rendered"


@dataclass(frozen=True)
class SegmentDescription:
    """A segment's key and everything that went into it."""

    key: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class ClipDescription:
    """A clip."""

    id: str
    prompt: str
    segments: tuple[SegmentDescription, ...]
    fade: int = 0
    """Frames it shares with the previous clip."""
    dip: int = 0
    """Frames that go through black between the previous clip and it."""
    finish: Mapping[str, Json] = field(default_factory=dict)
    """Its `caption`, `caption_frames`, `voices` and `sounds`; unknown ones are left out."""
    pick: int = 1
    """The number of the take that the film uses."""
    takes: int = 1
    """How many takes it has."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its segments, in order."""
        return tuple(segment.key for segment in self.segments)

    @property
    def starts_chain(self) -> bool:
        """Whether nothing is carried over from the previous clip."""
        return not self.segments or self.segments[0].inputs.get("parent") is None


@dataclass(frozen=True)
class FilmDescription:
    """A film."""

    title: str
    digest: str
    """sha256 of its board's bytes."""
    cut: Mapping[str, Json]
    """Its settings from `Cut.describe`; unknown ones are left out."""
    clips: tuple[ClipDescription, ...]


@dataclass(frozen=True)
class Change:
    """Why a clip is rendered again, is new, or was removed."""

    number: int
    """1-based place in the new film; in the old one for a clip that was removed."""
    id: str
    old_id: str
    shift: int
    """How many places it moved up since the old film."""
    reasons: Mapping[str, str]
    """Each with the old and the new value, or nothing; empty where it only follows the change before."""


def describe_film(plan: FilmPlan) -> FilmDescription:
    """A plan with keys as it would be rendered."""
    clips = tuple(
        ClipDescription(
            shot.id,
            shot.prompt,
            tuple(SegmentDescription(segment.key, segment.inputs) for segment in shot.segments),
            shot.fade,
            shot.dip,
            shot.describe_finish(plan.resolver),
            shot.pick,
            len(shot.takes),
        )
        for shot in plan.shots
    )
    return FilmDescription(plan.title, plan.digest, plan.cut.describe(plan.resolver), clips)


def what_changed(old: FilmDescription, new: FilmDescription) -> tuple[str, ...]:
    """Sentences such as `clip 3 (window): prompt changed; clips 4-9 follow it`; empty when nothing did."""
    matches = match_clips(old.clips, new.clips)
    changes = _clip_changes(old.clips, new.clips, matches)
    reported = {reason for change in changes for reason in change.reasons}
    lines = [*_setting_changes(old, new, reported), *_cut_changes(old.clips, new.clips, matches, reported)]
    takes = list(_take_changes(old.clips, new.clips, matches))
    if changes:
        return (*_sentences(changes), *lines, *takes)
    if not lines and not takes and old.digest != new.digest:
        lines = ["a setting that affects no frame of this engine, or a comment, changed"]
    return (*(f"{line}{ONLY_CUT}" for line in lines), *takes)


# Which clip is which. Default ids count places, so they move when a clip is inserted or removed.


def match_clips(old: Clips, new: Clips) -> dict[int, int]:
    """Match clips by the same written id, then by the same prompt, then by place among their neighbours."""
    places = {clip.id: place for place, clip in enumerate(old)}
    matches = {
        now: places[clip.id]
        for now, clip in enumerate(new)
        if clip.id in places
        and not (_has_default_id(clip, now) and _has_default_id(old[places[clip.id]], places[clip.id]))
    }
    taken = set(matches.values())
    olds = [place for place in range(len(old)) if place not in taken]
    news = [place for place in range(len(new)) if place not in matches]
    prompts = [old[place].prompt for place in olds], [new[place].prompt for place in news]
    edited = []
    for kind, start, stop, new_start, new_stop in SequenceMatcher(
        None, *prompts, autojunk=False
    ).get_opcodes():
        if kind == "equal":
            matches.update(zip(news[new_start:new_stop], olds[start:stop], strict=True))
        else:
            edited.append((olds[start:stop], news[new_start:new_stop]))
    # clips with the same prompt in another order
    free: dict[str, list[int]] = {}
    for place in (place for was, _ in edited for place in was):
        free.setdefault(old[place].prompt, []).append(place)
    for place in (place for _, now in edited for place in now):
        if free.get(new[place].prompt):
            matches[place] = free[new[place].prompt].pop(0)
    # clips with another prompt between the same neighbours: in order, or by id where some came or went
    for was, now in edited:
        taken = set(matches.values())
        was_left = [place for place in was if place not in taken]
        now_left = [place for place in now if place not in matches]
        if len(was_left) == len(now_left):
            matches |= {
                a: b
                for a, b in zip(now_left, was_left, strict=True)
                if _has_default_id(new[a], a) or _has_default_id(old[b], b)
            }
        else:
            ids = {old[place].id: place for place in was_left}
            matches |= {place: ids[new[place].id] for place in now_left if new[place].id in ids}
    return matches


def _has_default_id(clip: ClipDescription, place: int) -> bool:
    return clip.id == f"clip-{place + 1:02d}"


# What changed in the clips.


def _clip_changes(old: Clips, new: Clips, matches: Matches) -> list[Change]:
    """Every clip with other keys than before, in film order."""

    def removed(place: int) -> Change:
        return Change(place + 1, old[place].id, old[place].id, 0, {"removed": ""})

    changes: list[Change] = []
    kept = set(matches.values())
    gone = [place for place in range(len(old)) if place not in kept]
    for now, clip in enumerate(new):
        was = matches.get(now)
        if was is None:
            changes.append(Change(now + 1, clip.id, clip.id, 0, {"new": ""}))
            continue
        while gone and gone[0] < was:
            changes.append(removed(gone.pop(0)))
        if old[was].keys != clip.keys:
            reasons = _reasons(old[was], clip)
            before = matches.get(now - 1)
            reordered = before is not None and before != was - 1 and was - 1 in kept
            if not reasons and (reordered or not changes):
                reasons = {"order changed": ""}
            changes.append(Change(now + 1, clip.id, old[was].id, was - now, reasons))
    return [*changes, *map(removed, gone)]


def _reasons(old: ClipDescription, new: ClipDescription) -> dict[str, str]:
    """A phrase for each key input that differs, except for the parent's key, and how it differs."""

    def engine(clip: ClipDescription) -> object:
        return clip.segments[0].inputs.get("engine") if clip.segments else None

    if engine(old) != engine(new):
        return {"engine changed": _from_to(engine(old), engine(new))}
    values: dict[str, str] = {}
    if len(old.segments) != len(new.segments):
        values["frames"] = ""
    for before, after in zip(old.segments, new.segments, strict=False):
        was, now = _flat(before.inputs), _flat(after.inputs)
        for name in {**was, **now}:
            if was.get(name) != now.get(name):
                values.setdefault(name, _from_to(was.get(name), now.get(name)))
    names = list(values)
    chain = {}
    if old.starts_chain != new.starts_chain:
        chain["starts a chain now" if new.starts_chain else "continues the clip before now"] = ""
    for consequence in ("first_frame", "overlap"):  # of another change, unless it is the only one
        rest = [name for name in names if name != consequence]
        names = rest if rest or chain else names
    words: dict[str, str] = {}
    for name in names:
        words.setdefault(INPUT_NAMES.get(name, name.replace("_", " ")), values[name])
    if "resolution" in words:  # the pixels of the reference image are hashed after it is fitted to it
        words.pop("reference image", None)
        words["resolution"] = _from_to(_size(old), _size(new))
    if old.pick != new.pick and "seed" in words:
        words = {("pick" if word == "seed" else word): value for word, value in words.items()}
        words["pick"] = _from_to(old.pick, new.pick)
    for word in ("id", "reference image"):  # the sentence names both ids; pixels are hashed
        if word in words:
            words[word] = ""
    return {**chain, **{f"{word} changed": value for word, value in words.items()}}


def _size(clip: ClipDescription) -> object:
    """The resolution, from the key inputs of any engine."""
    inputs = _flat(clip.segments[0].inputs) if clip.segments else {}
    sides = inputs.get("size") or [inputs.get("width"), inputs.get("height")]
    return "x".join(map(str, sides)) if isinstance(sides, list) else sides


LONGEST_VALUE = 60
_HASH = re.compile("[0-9a-f]{64}")


def _from_to(was: object, now: object) -> str:
    """A change of a value: ` from 0 to 5`, `: "raising" became "rising"`; empty for values like hashes."""
    if isinstance(was, str) and isinstance(now, str) and " " in was + now:
        return _words_that_changed(was.split(), now.split())
    shown = [_shown(each) for each in (was, now)]
    return f" from {shown[0]} to {shown[1]}" if all(shown) and shown[0] != shown[1] else ""


def _words_that_changed(was: list[str], now: list[str]) -> str:
    start = 0
    while start < min(len(was), len(now)) and was[start] == now[start]:
        start += 1
    end = 0
    while end < min(len(was), len(now)) - start and was[-1 - end] == now[-1 - end]:
        end += 1
    before, after = (" ".join(words[start : len(words) - end]) for words in (was, now))
    if not before or not after:
        return f": {format_value(after or before)} {'added' if after else 'removed'}"
    return f": {format_value(before)} became {format_value(after)}"


def _shown(value: object) -> str:
    """A value in a few characters; empty for one that means nothing to authors, such as a hash."""
    if isinstance(value, dict):
        value = value.get("text") or value.get("path")
    if isinstance(value, list):
        return ", ".join(filter(None, map(_shown, value)))[:LONGEST_VALUE]
    if isinstance(value, str) and not _HASH.fullmatch(value):
        return value if re.fullmatch(r"[\w./-]+", value) else format_value(value)
    return str(value) if isinstance(value, int | float) else ""


def _flat(inputs: Mapping[str, Any]) -> dict[str, Any]:
    nested = inputs.get("inputs")
    rest = {name: value for name, value in inputs.items() if name not in ("inputs", "parent")}
    return {**rest, **nested} if isinstance(nested, dict) else rest


# What changed in the cut.


def _setting_changes(old: FilmDescription, new: FilmDescription, reported: set[str]) -> Iterator[str]:
    if old.title != new.title:
        yield f"title changed{_from_to(old.title, new.title)}"
    another_codec = old.cut.get("codec", new.cut.get("codec")) != new.cut.get("codec")
    for name, now in new.cut.items():
        was = old.cut.get(name, now)
        if _content(was) == _content(now) or (another_codec and name in CODEC_SETTINGS):
            continue
        if name in OPTIONAL_PARTS:
            yield f"{OPTIONAL_PARTS[name]} {_change(was, now)}"
        elif f"{name} changed" not in reported:
            yield f"{name} changed from {was} to {now}"


def _change(was: Json, now: Json) -> str:
    if was and now:
        return f"changed{_from_to(was, now)}"
    return "added" if now else "removed"


def _content(value: Json) -> Json:
    """A recording or several, without file names, as only their content counts."""
    if isinstance(value, list):
        return [_content(each) if isinstance(each, dict) else each for each in value]
    if isinstance(value, dict):
        return {name: part for name, part in value.items() if name != "path"}
    return value


def _cut_changes(old: Clips, new: Clips, matches: Matches, reported: set[str]) -> Iterator[str]:
    order = [matches[place] for place in sorted(matches)]
    if any(later < place for place, later in pairwise(order)) and "order changed" not in reported:
        yield "the order of the clips changed"
    for now, was in sorted(matches.items()):
        before, after = old[was], new[now]
        clip = f"clip {now + 1} ({after.id})"
        if now and was and before.starts_chain and after.starts_chain:
            (kind, frames), (kind_now, frames_now) = _transition(before), _transition(after)
            if kind != kind_now:
                length = f" of {frames_now} frames" if frames_now else ""
                yield f"the {kind} into {clip} became a {kind_now}{length}"
            elif frames != frames_now:
                yield f"the {kind} into {clip} changed from {frames} to {frames_now} frames"
        when, when_now = (_caption_time(each) for each in (before, after))
        if when and when_now and when != when_now:
            yield f"the caption of {clip} is shown {when_now} instead of {when}"
        for name, value in after.finish.items():
            had = before.finish.get(name, value)
            if name != "caption_frames" and _content(had) != _content(value):
                yield f"{'voice' if name == 'voices' else name} of {clip} {_change(had, value)}"


def _caption_time(clip: ClipDescription) -> str:
    """When a clip shows its caption; empty where it has none."""
    frames = clip.finish.get("caption_frames")
    if not clip.finish.get("caption"):
        return ""
    return f"in frames {frames[0]} to {frames[1]}" if isinstance(frames, list) else "in all frames"


def _take_changes(old: Clips, new: Clips, matches: Matches) -> Iterator[str]:
    for now, was in sorted(matches.items()):
        before, after = old[was].takes, new[now].takes
        if before != after:
            yield f"takes of clip {now + 1} ({new[now].id}) changed from {before} to {after}"


def _transition(clip: ClipDescription) -> tuple[str, int]:
    """How a clip that starts a chain follows the previous clip, and over how many frames."""
    if clip.fade:
        return "fade", clip.fade
    return ("dip", clip.dip) if clip.dip else ("cut", 0)


# Sentences.


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
        reasons = ", ".join(_reason(name, group) for name in group[0].reasons)
        yield _subject(group) + reasons + _following(followers, group)


def _reason(name: str, group: Sequence[Change]) -> str:
    """A reason with the old and the new value; of the first clip where the others have different ones."""
    values = [change.reasons[name] for change in group]
    if len(set(values)) == 1 or not values[0]:
        return name + values[0]
    return f"{name} (clip {group[0].number}: {values[0].lstrip(': ')})"


def _alike(one: Change, other: Change) -> bool:
    """Whether one sentence can report both."""
    renamed = one.id != one.old_id, other.id != other.old_id
    moved_alike = renamed == (False, False) or (renamed == (True, True) and one.shift == other.shift)
    return list(one.reasons) == list(other.reasons) and one.number + 1 == other.number and moved_alike


def _subject(group: Sequence[Change]) -> str:
    first, last = group[0], group[-1]
    renamed = first.id != first.old_id
    if first is last:
        return f"clip {first.number} ({first.id}{f', was {first.old_id}' if renamed else ''}): "
    were = f" (were {first.old_id} to {last.old_id})" if renamed else ""
    return f"clips {first.number}-{last.number}{were}: "


def _following(followers: Sequence[int], group: Sequence[Change]) -> str:
    """The clause about the clips that only follow: `; clips 4-6, 9 follow it`."""
    if not followers:
        return ""
    runs: list[str] = []
    start = previous = followers[0]
    for number in [*followers[1:], -1]:
        if number != previous + 1:
            runs.append(str(start) if start == previous else f"{start}-{previous}")
            start = number
        previous = number
    changed = "it" if len(group) == 1 else "them"
    plural = len(followers) > 1
    return f"; clip{'s' * plural} {', '.join(runs)} follow{'s' * (not plural)} {changed}"
