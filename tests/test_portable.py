"""Nothing that Windows lacks is needed; real Windows and macOS are not simulated beyond that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sound_files import noise, write_sound

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

PROGRAM = Path(__file__).with_name("windows_like.py")


def as_on_windows(*commands: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run commands in one process without what Windows lacks, and on a console with code page 1252."""
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1]), "PYTHONIOENCODING": "cp1252"}
    return subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", str(PROGRAM), str(Path.cwd()), json.dumps(commands)],
        capture_output=True,
        check=False,
        env=environment,
    )


def test_a_film_is_made_without_what_windows_lacks(
    write_board: Callable[..., Path], svi_story: Callable[..., object]
) -> None:
    """From a board to everything that can be made of its film; the film is the one that Linux makes."""
    write_sound(Path("voice.wav"), noise(4800))
    board = write_board(
        title="Łódź 猫 →",
        clips=[
            {"prompt": "猫 is drifting through the fog.", "frames": 9, "voice": "voice.wav", "caption": "猫"},
            {"id": "con", "prompt": "Fog.", "frames": 9, "transition": {"fade": "0.2s"}},
        ],
        cut={"captions": "both", "title_card": "Łódź"},
    )
    done = as_on_windows(
        ["new", "first"],
        ["validate", "board.yaml"],
        ["plan", "board.yaml", "--engine", "animatic"],
        ["render", "board.yaml", "--engine", "animatic"],
        ["render", "board.yaml", "--engine", "animatic", "--force", "all"],
        ["status", "board.yaml", "--engine", "animatic"],
        ["review", "board.yaml", "--engine", "animatic"],
        ["preview", "board.yaml", "--engine", "animatic"],
        ["export", "board.yaml", "--engine", "animatic", "--to", "otio", "--media", "prores"],
        ["export", "board.yaml", "--engine", "animatic", "--to", "srt", "--as", "other.srt"],
        ["export", "board.yaml", "--engine", "animatic", "--to", "bundle", "--entries", "--as", "packed.zip"],
        ["render", "packed.zip"],
        ["pick", "first", "1", "2", "--engine", "animatic"],
        ["cache", "verify"],
        ["cache", "gc", "--yes"],
        ["doctor", "--engine", "animatic"],
    )
    assert done.returncode == 0, done.stderr.decode("cp1252") + done.stdout.decode("cp1252")
    assert b"Traceback" not in done.stderr
    assert b"pick: 2" in Path("first/first.yaml").read_bytes()
    film = Path("renders/board.mp4").read_bytes()
    assert svi_story("render", board, "--engine", "animatic", "-o", "other", "--cache", "cache")
    assert film == Path("other/board.mp4").read_bytes()


def test_a_cache_whose_path_is_too_long_for_windows_is_refused(
    write_board: Callable[..., Path], svi_story: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    board = write_board()
    packed = svi_story("render", board, "--engine", "animatic", "-o", "films", "--cache", "c")
    packed = svi_story("export", board, "--engine", "animatic", "--to", "bundle", "--entries", "--cache", "c")
    monkeypatch.setattr("svi_story.cache.layout.longest_path", lambda: len(str(Path.cwd())) + 200)
    assert svi_story("plan", board, "--cache", "c" * 20).code == 0
    for path, cache in ((board, "c" * 60), (packed.out.strip(), "c")):
        ended = svi_story("plan", path, "--cache", cache)
        assert ended.code == 2
        assert "that Windows allows; enable long paths" in ended.err
