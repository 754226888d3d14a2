"""Reading a board's file: what is no board, limits, line numbers, and speed."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from pathlib import Path

import pytest

from svi_story.errors import InputError
from svi_story.storyboard.source import load

HEAD = "version: 1\nreference: anchor.png\n"
CLIPS = "clips:\n  - prompt: A cat sits.\n"


@pytest.fixture(autouse=True)
def anchor(own_ground: Path) -> Path:
    """A file to refer to: `load` looks whether it is there, and no further."""
    path = own_ground / "anchor.png"
    path.write_bytes(b"no picture")
    return path


def board(text: str | bytes, name: str = "board.yaml") -> Path:
    path = Path(name)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        load(path)
    assert time.process_time() - start < 10
    return str(caught.value)


def test_a_board_knows_its_file_lines_ids_and_digest() -> None:
    text = (
        "# a comment\n\n"
        + HEAD
        + "clips:\n\n  - id: cat\n    prompt: |\n      A cat\n      sits.\n    frames: 81\n  - prompt: B\n"
    )
    path = board(text, "sub.yaml")
    read = load(path)
    assert (read.path, read.ids) == (path, ("cat", "clip-02"))
    assert read.digest == hashlib.sha256(text.encode()).hexdigest()
    assert read.lines.of(()) == 3
    assert read.lines.of(("clips",)) == 5
    assert read.lines.of(("clips", 0, "prompt")) == 8
    assert read.lines.of(("clips", 0, "frames")) == 11
    assert read.lines.of(("clips", 1)) == 12


def test_a_place_that_is_not_written_has_the_line_of_what_holds_it() -> None:
    read = load(board(HEAD + CLIPS))
    assert str(read.problem(("clips", 0, "frames"), "is odd")) == "board.yaml:4: clips[0].frames: is odd"
    assert str(read.problem(("clips", 3, "frames"), "is odd")) == "board.yaml:3: clips[3].frames: is odd"
    assert str(read.problem(("engine", "steps"), "is odd")) == "board.yaml:1: engine.steps: is odd"
    assert str(read.problem((), "is odd")) == "board.yaml:1: is odd"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_are_counted_whatever_ends_them(ending: str) -> None:
    text = "# Rain\n" + HEAD + "clips:\n  - prompt: |\n      A cat\n      sits.\n    frames: 80\n"
    assert refusal(board(text.replace("\n", ending))).startswith("board.yaml:8: clips[0].frames: ")


def test_messages_spell_the_path_as_the_user_did() -> None:
    Path("boards").mkdir()
    path = board(HEAD + CLIPS + "fps: 0\n", "boards/a.yaml")
    assert refusal(path).startswith("boards/a.yaml:2: reference: ")
    assert refusal(path.absolute()).startswith(f"{path.absolute()}:2: reference: ")


def test_references_are_relative_to_the_board_and_absolute_ones_stay() -> None:
    Path("boards").mkdir()
    load(board(HEAD.replace("anchor", "../anchor") + CLIPS, "boards/a.yaml"))
    load(board(HEAD.replace("anchor", f"{Path.cwd()}/anchor") + CLIPS, "boards/b.yaml"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.yaml", "does not exist"),
        ("anchor.png/board.yaml", "cannot be read (Not a directory)"),
        ("folder.yaml", "is a folder"),
        ("pipe.yaml", "is not a regular file"),
        ("socket.yaml", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        ("loop.yaml", "cannot be read (Too many levels of symbolic links)"),
        ("x" * 300 + ".yaml", "cannot be read (File name too long)"),
        ("nul\0.yaml", "cannot be read (its name contains NUL)"),
    ],
)
def test_what_is_no_file_is_refused_without_opening_it(name: str, reason: str) -> None:
    Path("folder.yaml").mkdir()
    os.mkfifo("pipe.yaml")
    Path("loop.yaml").symlink_to("loop.yaml")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.yaml")
        assert f"{reason}; check the path" in refusal(Path(name))


def test_an_unreadable_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = board(HEAD + CLIPS)
    monkeypatch.setattr("os.open", denied)  # root may read everything, so the mode alone proves nothing
    assert refusal(path) == "board.yaml: cannot be read (Permission denied); check its permissions"


def test_a_reference_that_is_no_file_is_refused_without_opening_it() -> None:
    os.mkfifo("pipe.png")
    assert '"pipe.png" is not a regular file' in refusal(board(HEAD.replace("anchor", "pipe") + CLIPS))
    assert '"/dev/zero" is not a regular file' in refusal(
        board(HEAD.replace("anchor.png", "/dev/zero") + CLIPS)
    )


def test_a_file_over_two_megabytes_is_refused() -> None:
    whole = HEAD + CLIPS
    load(board(whole + "#" * (2_000_000 - len(whole))))
    assert "is larger than 2,000,000 bytes" in refusal(board(whole + "#" * (2_000_001 - len(whole))))
    with Path("endless.yaml").open("wb") as file:
        file.truncate(10**12)
    assert "is larger than 2,000,000 bytes" in refusal(Path("endless.yaml"))


@pytest.mark.parametrize("levels", [48, 49])
def test_nesting_ends_at_fifty(levels: int) -> None:
    text = HEAD + CLIPS + "title: " + "[" * levels + "]" * levels + "\n"
    assert ("nested more than 50 levels" in refusal(board(text))) == (levels > 49)


def test_nesting_of_fifty_one_is_refused() -> None:
    text = HEAD + CLIPS + "title: " + "[" * 50 + "x" + "]" * 50 + "\n"
    assert "is nested more than 50 levels deep" in refusal(board(text))


def test_aliases_may_stand_for_ten_thousand_values() -> None:
    def text(uses: int) -> str:
        clips = "  - &clip\n" + "".join(f"    k{n}: x\n" for n in range(99)) + "  - *clip\n" * uses
        return HEAD + "clips:\n" + clips

    assert "aliases stand for" not in refusal(board(text(100)))
    assert "aliases stand for more than 10,000 values" in refusal(board(text(101)))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_900_000,
        "[" + "a," * 900_000 + "]",
        "- " * 900_000,
        "{a: " * 400_000,
        "".join(f"k{n}: 1\n" for n in range(20_000)),
        "a: 1\n" * 20_000,
        "&a " * 600_000,
        "".join(" " * n + "-\n" for n in range(1900)),
        "clips: [" + "{}, " * 20_000 + "]",
        "clips: [" + ",".join(f"{{k{n}: 1}}" for n in range(10_000)) + "]",
        "? " + "a" * 1_900_000 + "\n: b",
        "a: " + "9" * 1_900_000,
        "a: 0x" + "f" * 1_900_000,
        "%YAML 1." + "9" * 10_000 + "\n--- a",
        '"' + "\\x41" * 490_000,
    ],
    ids=lambda text: text[:12].strip(),
)
def test_hostile_files_are_refused_soon(text: str) -> None:
    assert len(refusal(board(text))) < 200_000


def test_many_problems_are_counted_not_listed() -> None:
    text = HEAD + "clips:\n" + "  - {prompt: A, frames: 80}\n" * 2000
    lines = refusal(board(text)).splitlines()
    assert len(lines) == 501
    assert lines[-1] == "board.yaml:504: clips[500].frames: and 1500 more like these"


def test_problems_come_in_the_order_of_their_lines() -> None:
    text = "fps: 0\nversion: 1\nseed: 1\nseed: 2\nreference: none.png\n" + CLIPS + "    frames: 80\n"
    lines = [problem.split(":")[1] for problem in refusal(board(text)).splitlines()]
    assert lines == ["1", "4", "5", "8"]


def test_one_wrong_alias_is_wrong_wherever_it_stands() -> None:
    text = HEAD + "clips:\n  - &clip\n    prompt: A\n    frames: 80\n  - *clip\n"
    assert refusal(board(text)).splitlines() == [
        "board.yaml:6: clips[0].frames: 80 is not 4k+1; use 81 (or 77)",
        "board.yaml:7: clips[1].frames: 80 is not 4k+1; use 81 (or 77)",
    ]


def test_a_thousand_clips_are_read_at_once() -> None:
    prompt = "the camera glides over old stone; " * 5
    clip = f"    prompt: {prompt}\n    duration: 5s\n    seed: "
    path = board(HEAD + "clips:\n" + "".join(f"  - id: clip{n}\n{clip}{n}\n" for n in range(1000)))
    start = time.process_time()
    assert len(load(path).ids) == 1000
    assert time.process_time() - start < 2  # 0.2 s on the machine it was written on
