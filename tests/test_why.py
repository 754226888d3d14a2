"""What changed since the last film, in words a person would use."""

from __future__ import annotations

from typing import Any

import pytest

from svi_story.plan.why import MadeClip, MadeSegment, what_changed


def film(*clips: tuple[str, dict[str, Any]]) -> tuple[MadeClip, ...]:
    """A chain of one-segment clips, keyed as the real ones: by their inputs and their parent's key."""
    made: list[MadeClip] = []
    parent = ""
    for clip_id, inputs in clips:
        parent = f"{sorted(inputs.items())} after {parent}"
        full = {"engine": "animatic", "revision": 1, "inputs": {"clip": clip_id, **inputs}, "parent": parent}
        made.append(MadeClip(clip_id, (MadeSegment(parent, full),)))
    return tuple(made)


def chain(**changed: dict[str, Any]) -> tuple[MadeClip, ...]:
    return film(*((name, {"prompt": name, "seed": 0, **changed.get(name, {})}) for name in "abcdef"))


def test_nothing_changed() -> None:
    assert what_changed(chain(), chain()) == ()


def test_one_change_and_its_followers() -> None:
    assert what_changed(chain(), chain(c={"prompt": "new"})) == (
        "clip 3 (c): prompt changed; clips 4-6 follow it",
    )


def test_two_changes_share_no_followers() -> None:
    assert what_changed(chain(), chain(a={"seed": 1}, e={"prompt": "x", "frames": 5})) == (
        "clip 1 (a): seed changed; clips 2-4 follow it",
        "clip 5 (e): prompt changed, length changed; clip 6 follows it",
    )


def test_new_and_removed_clips() -> None:
    assert what_changed(chain()[:4], chain()) == ("clip 5 (e): new", "clip 6 (f): new")
    assert what_changed(chain(), chain()[:5]) == ("clip f: removed",)


def test_another_engine() -> None:
    other = MadeClip("a", (MadeSegment("k", {"engine": "svi", "inputs": {"prompt": "a", "steps": 50}}),))
    assert what_changed(chain()[:1], (other,)) == ("clip 1 (a): engine changed from animatic to svi",)


@pytest.mark.parametrize("removed", [0, 2])
def test_clips_after_a_removed_one_follow_it(removed: int) -> None:
    names = [name for name in "abcd" if name != "abcd"[removed]]
    old = film(*((name, {"prompt": name}) for name in "abcd"))
    new = film(*((name, {"prompt": name}) for name in names))
    lines = what_changed(old, new)
    assert lines[-1] == f"clip {'abcd'[removed]}: removed"
    assert "removed" in lines[0]
