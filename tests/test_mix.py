"""A film whose clips were made in different environments says so, once, at its end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from svi_story.engines.animatic import Animatic
from svi_story.render.film import mixed_environments as mixed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pytest
    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

HERE = {"torch": "2.7.1", "vae": "untiled"}


def test_alike_is_nothing_to_tell() -> None:
    assert mixed([]) == ""
    assert mixed([("a", {}), ("b", {})]) == ""
    assert mixed([("a", HERE), ("b", dict(HERE))]) == ""


def test_what_differs_is_told_with_its_clips() -> None:
    told = mixed([("a", HERE), ("b", {**HERE, "vae": "tiled"}), ("a", HERE)])
    assert "vae: untiled (a); tiled (b)" in told
    assert "torch" not in told
    assert "unknown (b)" in mixed([("a", HERE), ("b", {"torch": "2.7.1"})])


def test_many_clips_are_counted() -> None:
    made = [(str(number), HERE) for number in range(12)]
    told = mixed([*made, ("last", {**HERE, "torch": "2.8.0"})])
    assert "2.7.1 (0, 1, 2, 3, 4 and 7 more); 2.8.0 (last)" in told


def test_a_film_begun_elsewhere_tells_so_once(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def environment(_: Animatic) -> Mapping[str, str]:
        return {"device": device}

    monkeypatch.setattr(Animatic, "environment", environment)
    clips = [{"id": name, "prompt": f"A {name} is drifting by."} for name in ("boat", "cloud", "bird")]
    board, device = write_board(clips=clips), "old card"
    assert svi_story("render", board, "--engine", "animatic", "--only", "boat").code == 0
    device = "new card"
    ended = svi_story("render", board, "--engine", "animatic", "--json")
    assert ended.code == 0, ended.err
    told = [json.loads(line) for line in ended.out.splitlines()]
    (warning,) = [each["message"] for each in told if each["event"] == "warned"]
    assert warning.startswith(f"{board}: ")
    assert "device: old card (boat); new card (cloud, bird)" in warning
    alike = svi_story("render", board, "--engine", "animatic", "--json", "--force", "all")
    assert "warned" not in alike.out
