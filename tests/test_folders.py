"""Folders of boards: found, kept apart, rendered whatever happens to one of them."""

from __future__ import annotations

import json
import os
import socket
from contextlib import chdir
from typing import TYPE_CHECKING, Any

import pytest

from svi_story.files import folds_case

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")
REFERENCE = "../anchor.png"
QUICK = {"name": "animatic", "max_frames": 5}


def clips(*prompts: str) -> list[dict[str, Any]]:
    return [{"prompt": prompt} for prompt in prompts]


def test_every_board_below_a_folder_gets_its_own_film(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    write_board("storyboards/a.yaml", reference=REFERENCE, clips=clips("One fog."))
    write_board("storyboards/deep/er/a.yml", reference="../../../anchor.png", clips=clips("Two fogs."))
    write_board("storyboards/.hidden/b.yaml", reference="broken")
    ended = svi_story("render", "storyboards", *ANIMATIC)
    assert ended.code == 0, ended.err
    assert sorted(ended.out.split()) == ["renders/a.mp4", "renders/deep/er/a.mp4"]
    assert (tmp_path / "renders/deep/er/a.mp4").stat().st_size > 0
    assert "storyboards/a.yaml" in ended.err


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
    write_board("storyboards/a.yaml", reference=REFERENCE, clips=clips("One fog."))
    write_board("storyboards/b.yaml", reference=REFERENCE, clips=clips("   "))
    write_board("storyboards/c.yaml", reference=REFERENCE, clips=clips("Three fogs."))
    ended = svi_story("render", "storyboards", *ANIMATIC)
    assert ended.code == 1
    assert ended.out.split() == ["renders/a.mp4", "renders/c.mp4"]
    assert "storyboards/b.yaml:" in ended.err
    assert "refused" in ended.err


def test_without_a_valid_board_nothing_is_started(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    write_board("storyboards/b.yaml", reference=REFERENCE, clips=[])
    before = sorted(tmp_path.rglob("*"))
    assert svi_story("render", "storyboards", *ANIMATIC).code == 2
    assert svi_story("render", "nowhere.yaml", *ANIMATIC).code == 2
    assert svi_story("plan", "storyboards").code == 2
    assert svi_story("validate", "storyboards").code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_two_boards_with_one_film_are_rejected(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    write_board("storyboards/a.yaml", reference=REFERENCE)
    write_board("storyboards/a.yml", reference=REFERENCE)
    write_board("more/a.yaml", reference=REFERENCE)
    for paths in (["storyboards"], ["storyboards/a.yaml", "more/a.yaml"]):
        ended = svi_story("render", *paths, *ANIMATIC, "-o", "renders")
        assert ended.code == 2
        assert "storyboards/a.yaml: would write renders/a.mp4, and so would " in ended.err
    assert "more/a.yaml: would write renders/a.mp4, and so would storyboards/a.yaml; rename one" in ended.err
    assert not (tmp_path / "renders").exists()


def test_a_film_in_the_place_of_an_unfinished_one(write_board: Write, svi_story: Run) -> None:
    write_board("storyboards/a.yaml", reference=REFERENCE)
    write_board("storyboards/a.partial.yaml", reference=REFERENCE)
    ended = svi_story("status", "storyboards", *ANIMATIC)
    assert ended.code == 2
    assert (
        "storyboards/a.partial.yaml: would write renders/a.partial.mp4, and so would storyboards/a.yaml"
        in ended.err
    )
    assert "storyboards/a.yaml: would write renders/a.partial.mp4" in ended.err


@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("names", [("Fog", "fog"), ("caf\u00e9", "cafe\u0301")])
def test_names_that_some_file_systems_take_for_one(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str], folds: bool
) -> None:
    monkeypatch.setattr("svi_story.render.jobs.folds_case", lambda _folder: folds)
    boards = [write_board(f"{place}/{name}.yaml", reference=REFERENCE) for place, name in enumerate(names)]
    boards.append(write_board("other.yaml"))
    ended = svi_story("validate", *boards, "-o", "films")
    assert ended.code == int(folds)
    assert ended.out.count(": valid: ") == (1 if folds else len(boards))
    assert ended.err.count("; rename one, or render them apart") == (2 if folds else 0)


def test_whether_a_file_system_folds_case_is_told_by_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "1").touch()
    (tmp_path / "Name").touch()
    (tmp_path / "nAME").touch()  # on a file system that folds case it is the same
    folds = len(list(tmp_path.iterdir())) == 2
    (tmp_path / "other").touch()
    assert folds_case(tmp_path / "not" / "there") == folds
    (tmp_path / "nAME").unlink()
    assert folds_case(tmp_path) == folds


def odd_boards(folder: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Put everything into a folder that is no board, beside a good one; what is to be said of each."""
    text = good.read_bytes()
    longest = "n" * 241
    for name in ("dup.yaml", "dup.yml", f"{longest}.yaml", "grows.yaml"):
        (folder / name).write_bytes(text)
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    (folder / "large.yaml").write_bytes(b"#" * 2_000_001)
    (folder / "dangling.yaml").symlink_to("nowhere")
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "endless.yaml").symlink_to("/dev/zero")
    (folder / "folder.yaml").mkdir()
    (folder / "locked").mkdir()
    os.mkfifo(folder / "pipe.yaml")
    os.mkfifo(folder / "good.yml")  # it would have the good one's film, were it a board
    with chdir(folder), socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.yaml")
    scandir, fstat, grows = os.scandir, os.fstat, (folder / "grows.yaml").stat()

    def denied(path: Any) -> Any:
        if str(path).endswith("locked"):  # root may read everything, so the mode alone proves nothing
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def growing(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if status.st_ino == grows.st_ino:
            os.truncate(folder / "grows.yaml", status.st_size + 1)
        return status

    monkeypatch.setattr(os, "scandir", denied)
    monkeypatch.setattr(os, "fstat", growing)
    return {
        "dup.yaml": "and so would storyboards/dup.yml; rename one",
        "dup.yml": "and so would storyboards/dup.yaml; rename one",
        f"{longest}.yaml": "its name is 241 bytes long",
        "grows.yaml": "changed while it was read; run the same command again",
        "binary.yaml": "is not UTF-8",
        "large.yaml": "is larger than 2,000,000 bytes; split it",
        "dangling.yaml": "does not exist; check the path",
        "loop.yaml": "cannot be read (Too many levels of symbolic links)",
        "endless.yaml": "is not a regular file",
        "folder.yaml": "is a folder",
        "locked": "cannot be searched: Permission denied; make it readable for you",
        "pipe.yaml": "is not a regular file",
        "good.yml": "is not a regular file",
        "socket.yaml": "is not a regular file",
    }


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("validate",), "storyboards/good.yaml: valid: "),
        (("plan", "--json"), '"board": "storyboards/good.yaml"'),
        (("status",), "storyboards/good.yaml  missing"),
        (("preview",), "renders/good.preview.png"),
        (("render", *ANIMATIC), "renders/good.mp4"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_nothing_that_lies_beside_a_board_stops_it(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], shown: str
) -> None:
    good = write_board("storyboards/good.yaml", reference=REFERENCE, clips=clips("One fog."), engine=QUICK)
    reasons = odd_boards(good.parent, good, monkeypatch)
    ended = svi_story(*command, "storyboards", "nowhere.yaml")
    assert ended.code == 1, ended.err
    assert shown in ended.out
    lines = ended.err.splitlines()
    for name, reason in {**reasons, "../nowhere.yaml": "does not exist; check the path"}.items():
        place = os.path.normpath(f"storyboards/{name}")
        assert any(line.startswith(place) and reason in line for line in lines), name
    assert not any(line.startswith("storyboards/good.yaml: ") and "would write" in line for line in lines)


@pytest.mark.parametrize("command", [("review",), ("export", "--to", "srt")])
def test_commands_for_one_board_take_the_only_one_of_a_folder(
    write_board: Write, svi_story: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    about = {"reference": REFERENCE, "engine": QUICK, "clips": [{"prompt": "One fog.", "caption": "Fog"}]}
    write_board("storyboards/good.yaml", **about)
    os.mkfifo(tmp_path / "storyboards/pipe.yaml")
    assert svi_story("render", "storyboards/good.yaml").code == 0
    ended = svi_story(*command, "storyboards")
    assert (ended.code, "storyboards/pipe.yaml: is not a regular file" in ended.err) == (0, True)
    assert ended.out.startswith("renders/good.")
    write_board("storyboards/other.yaml", **about)
    ended = svi_story(*command, "storyboards")
    both = "storyboards/good.yaml, storyboards/other.yaml"
    assert (ended.code, ended.err) == (2, f"storyboards: holds 2 boards; name one of them: {both}\n")


def test_a_path_that_is_not_there_stops_no_other(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    ended = svi_story("validate", "nowhere.yaml", board, "nowhere.zip")
    assert ended.code == 1
    assert "board.yaml: valid: " in ended.out
    assert ended.err.splitlines()[:2] == [
        "nowhere.yaml: does not exist; check the path",
        "nowhere.zip: does not exist; check the path",
    ]
    assert svi_story("validate", "nowhere.yaml", "nowhere.zip").code == 2


def test_equal_beginnings_are_made_once(write_board: Write, svi_story: Run) -> None:
    write_board(
        "storyboards/a.yaml", reference=REFERENCE, clips=clips("One fog.", "Two fogs.", "Three fogs.")
    )
    write_board("storyboards/b.yaml", reference=REFERENCE, clips=clips("One fog.", "Two fogs.", "The sun."))
    ended = svi_story("render", "storyboards", *ANIMATIC, "--json")
    told = [json.loads(line) for line in ended.out.splitlines()]
    made = [(e["board"], e["clip"]) for e in told if e["event"] == "segment_done"]
    assert made == [
        *(("storyboards/a.yaml", f"clip-0{number}") for number in (1, 2, 3)),
        ("storyboards/b.yaml", "clip-03"),
    ]


def test_a_board_named_twice_is_rendered_once(write_board: Write, svi_story: Run) -> None:
    write_board("storyboards/a.yaml", reference=REFERENCE, clips=clips("One fog."))
    ended = svi_story("render", "storyboards", "storyboards/a.yaml", *ANIMATIC)
    assert (ended.code, ended.out) == (0, "renders/a.mp4\n")


def test_links_that_lead_in_circles_are_told(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    write_board("storyboards/a.yaml", reference=REFERENCE, clips=clips("One fog."))
    (tmp_path / "storyboards/loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "storyboards/deeper").symlink_to(".")
    ended = svi_story("render", "storyboards", *ANIMATIC)
    assert (ended.code, ended.out) == (1, "renders/a.mp4\n")
    assert "storyboards/loop.yaml" in ended.err
    assert svi_story("validate", "storyboards/loop.yaml").code == 2
