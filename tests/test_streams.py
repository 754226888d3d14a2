"""Standard error never stops anything, standard output fails clearly, and names never steer a terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from svi_story.cli.streams import _LossyFile
from svi_story.errors import Problem, on_one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., Any]
    Write = Callable[..., Path]

COMMAND = f"{sys.executable} -c 'from svi_story.cli import main; main()'"
RENDER = f"{COMMAND} render board.yaml --engine animatic -v"


def shell(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = ["bash", "-o", "pipefail", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    "script",
    [
        f"{RENDER} 2>/dev/full",
        f"{RENDER} 2>&1 | head -1",
        f"{RENDER} 2>&- >&- <&-",
        f"({RENDER} >/dev/null) 2>&1 | true",
    ],
    ids=["full", "head", "closed", "nobody"],
)
def test_a_render_goes_on_to_its_film_whatever_becomes_of_its_messages(
    write_board: Write, tmp_path: Path, script: str
) -> None:
    write_board(clips=[{"prompt": "A cat is running."}])
    done = shell(script)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "renders/board.mp4").exists()
    assert "Traceback" not in done.stderr


def test_events_that_cannot_be_told_end_no_render_but_are_an_error(
    write_board: Write, tmp_path: Path
) -> None:
    write_board(clips=[{"prompt": "A cat is running."}])
    done = shell(f"{RENDER} --json | head -1")
    assert done.returncode == 1
    assert json.loads(done.stdout)["event"] == "run_started"
    said = "standard output: Broken pipe: not every event could be written; what was rendered is kept\n"
    assert done.stderr == said
    assert (tmp_path / "renders/board.mp4").exists()


@pytest.mark.parametrize(
    ("words", "to", "said"),
    [
        ("plan board.yaml --engine animatic --json", ">/dev/full", "No space left"),
        ("plan board.yaml --engine animatic", ">&-", "Bad file descriptor"),
        ("--help", ">/dev/full", "No space left"),
        ("--version", ">&-", "Bad file descriptor"),
        ("schema", "| true", ""),
    ],
)
def test_an_answer_that_cannot_be_given_is_an_error(
    write_board: Write, words: str, to: str, said: str
) -> None:
    write_board()
    done = shell(f"{COMMAND} {words} {to}")
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_file_that_is_opened_is_never_taken_for_a_closed_stream() -> None:
    """The first file would be number 2: what a library tells a person would be written into it."""
    program = (
        "from svi_story.cli.streams import open_streams; open_streams(); print(open('x', 'wb').fileno())"
    )
    done = shell(f'{sys.executable} -c "{program}" 2>&- <&-')
    assert int(done.stdout) > 2


def test_a_log_goes_on_when_there_is_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a line that was cut short is ended first: nothing is added to it."""
    room, written = [100, 4, 0, 0, 100], bytearray()

    def write(_: int, data: bytes) -> int:
        taken = data[: room.pop(0)]
        if not taken:
            raise OSError(28, "No space left on device")
        written.extend(taken)
        return len(taken)

    monkeypatch.setattr(os, "write", write)
    log = io.TextIOWrapper(io.BufferedWriter(_LossyFile(2)), "utf-8", line_buffering=True)
    for line in ("one", "two and a half", "lost", "three"):
        log.write(f"{line}\n")
    assert written.decode() == "one\ntwo \nthree\n"


HOSTILE = "a\x1b[2J\x07\nb: a bug\r\u202e\u2066\u2028\u2029\x85\x9b1m\x7f"
ESCAPED = r"a\x1b[2J\x07\nb: a bug\r\u202e\u2066\u2028\u2029\x85\x9b1m\x7f"


def test_text_is_brought_onto_one_line_and_nothing_in_it_is_hidden() -> None:
    assert on_one_line(HOSTILE) == ESCAPED
    assert on_one_line("猫 naïve 🐈\u200d⬛ \\n") == "猫 naïve 🐈\u200d⬛ \\n"
    assert on_one_line("\ud800\t\0\u200f") == r"\ud800\t\x00\u200f"
    assert str(Problem(HOSTILE, HOSTILE, 3, HOSTILE)) == f"{ESCAPED}:3: {ESCAPED}: {ESCAPED}"


def seen(ended: Any) -> str:
    """All that was told; nothing of it steers a terminal, and nothing of a name begins a line."""
    for line in (ended.out + ended.err).split("\n"):
        assert line.isprintable(), ascii(line)
        assert not line.startswith("b: a bug"), line
    return str(ended.out + ended.err)


def test_names_of_files_never_reach_the_terminal_as_they_are(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    clips = [{"prompt": "A cat is running.\nAnd \u202eit jumps.", "caption": "x"}]
    board = write_board(
        f"storyboards/{HOSTILE}.yaml", reference="../anchor.png", title="\u202eFog", clips=clips
    )
    lacking = write_board(f"storyboards/{HOSTILE}2.yaml", reference=f"{HOSTILE}.png", clips=clips)
    animatic = ("--engine", "animatic")
    for words in (
        ("validate", "storyboards"),
        ("validate", lacking),
        ("plan", "storyboards", *animatic, "--why"),
        ("render", "storyboards", *animatic, "-v"),
        ("render", "storyboards", *animatic),
        ("status", "storyboards", *animatic),
        ("cache", "ls"),
        ("export", board, "--to", "srt", *animatic),
        ("models", "list", "--models", HOSTILE),
        ("validate", f"{HOSTILE}.yaml"),
        ("render", board, "--only", HOSTILE),
        ("render", board, f"--{HOSTILE}"),
        ("render", board, "--engine", HOSTILE),
        ("import", f"{HOSTILE}.txt", "-r", f"{HOSTILE}.png"),
        (HOSTILE,),
    ):
        assert seen(svi_story(*words)), words
    assert (tmp_path / f"renders/{HOSTILE}.mp4").exists()
    assert ESCAPED in seen(svi_story("validate", "storyboards"))
