"""Folders of boards: found, kept apart, rendered whatever happens to one of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")
REFERENCE = "../anchor.png"


def clips(*prompts: str) -> list[dict[str, Any]]:
    return [{"prompt": prompt} for prompt in prompts]


def test_every_board_below_a_folder_gets_its_own_film(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    write_board("boards/a.yaml", reference=REFERENCE, clips=clips("One fog."))
    write_board("boards/deep/er/a.yml", reference="../../../anchor.png", clips=clips("Two fogs."))
    write_board("boards/.hidden/b.yaml", reference="broken")
    ended = svi_story("render", "boards", *ANIMATIC)
    assert ended.code == 0, ended.err
    assert sorted(ended.out.split()) == ["renders/a.mp4", "renders/deep/er/a.mp4"]
    assert (tmp_path / "renders/deep/er/a.mp4").stat().st_size > 0
    assert "boards/a.yaml" in ended.err


def test_output_folders_are_not_searched(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    write_board("a.yaml", clips=clips("One fog."))
    write_board("renders/old.yaml", reference="broken")
    write_board("films/old.yaml", reference="broken")
    write_board("kept/old.yaml", reference="broken")
    ended = svi_story("render", ".", *ANIMATIC, "-o", "films", "--cache", "kept")
    assert ended.code == 1  # renders/ is no output folder of this run
    assert "films/old.yaml" not in ended.err
    assert "kept/old.yaml" not in ended.err


def test_a_broken_board_does_not_stop_the_others(write_board: Write, svi_story: Run) -> None:
    write_board("boards/a.yaml", reference=REFERENCE, clips=clips("One fog."))
    write_board("boards/b.yaml", reference=REFERENCE, clips=clips("   "))
    write_board("boards/c.yaml", reference=REFERENCE, clips=clips("Three fogs."))
    ended = svi_story("render", "boards", *ANIMATIC)
    assert ended.code == 1
    assert ended.out.split() == ["renders/a.mp4", "renders/c.mp4"]
    assert "boards/b.yaml:" in ended.err
    assert "refused" in ended.err


def test_without_a_valid_board_nothing_is_started(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    write_board("boards/b.yaml", reference=REFERENCE, clips=[])
    before = sorted(tmp_path.rglob("*"))
    assert svi_story("render", "boards", *ANIMATIC).code == 2
    assert svi_story("render", "nowhere.yaml", *ANIMATIC).code == 2
    assert svi_story("plan", "boards").code == 2
    assert svi_story("validate", "boards").code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_two_boards_with_one_film_are_an_error(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    write_board("boards/a.yaml", reference=REFERENCE)
    write_board("boards/a.yml", reference=REFERENCE)
    write_board("more/a.yaml", reference=REFERENCE)
    for paths in (["boards"], ["boards/a.yaml", "more/a.yaml"]):
        ended = svi_story("render", *paths, *ANIMATIC)
        assert ended.code == 2
        assert "would both write this film" in ended.err
    assert not (tmp_path / "renders").exists()


def test_equal_beginnings_are_made_once(write_board: Write, svi_story: Run) -> None:
    write_board("boards/a.yaml", reference=REFERENCE, clips=clips("One fog.", "Two fogs.", "Three fogs."))
    write_board("boards/b.yaml", reference=REFERENCE, clips=clips("One fog.", "Two fogs.", "The sun."))
    ended = svi_story("render", "boards", *ANIMATIC, "--json")
    told = [json.loads(line) for line in ended.out.splitlines()]
    made = [(e["board"], e["clip"]) for e in told if e["event"] == "segment_done"]
    assert made == [
        ("boards/a.yaml", "clip-01"), ("boards/a.yaml", "clip-02"), ("boards/a.yaml", "clip-03"),
        ("boards/b.yaml", "clip-03"),
    ]  # fmt: skip


def test_a_board_named_twice_is_rendered_once(write_board: Write, svi_story: Run) -> None:
    write_board("boards/a.yaml", reference=REFERENCE, clips=clips("One fog."))
    ended = svi_story("render", "boards", "boards/a.yaml", *ANIMATIC)
    assert (ended.code, ended.out) == (0, "renders/a.mp4\n")


def test_links_that_lead_in_circles_are_told(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    write_board("boards/a.yaml", reference=REFERENCE, clips=clips("One fog."))
    (tmp_path / "boards/loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "boards/deeper").symlink_to(".")
    ended = svi_story("render", "boards", *ANIMATIC)
    assert (ended.code, ended.out) == (1, "renders/a.mp4\n")
    assert "boards/loop.yaml" in ended.err
    assert svi_story("validate", "boards/loop.yaml").code == 2
