"""What every test stands on: a folder of its own, no network, no home, and short ways to the CLI."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest
import yaml
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typer import Typer

# torch's threads wait for each other without sleeping: beside other processes, all take several times as long
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A parent that ignores SIGINT (`nohup make test &`) passes that on to every process that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
# by default relative to the working directory, which is another one for every test
set_hypothesis_home_dir(Path(__file__).parents[1] / ".hypothesis")
MEMORY = Path("/dev/shm")
frozen: set[str] = set()
"""Modules that were imported before the last freeze."""


def pytest_configure() -> None:
    """Keep the tests' files in memory where there is room: a disk needs minutes to remove 100,000 of them."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker neighbouring tests: they share what their module sets up. Idle ones take some over."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_runtest_setup() -> None:
    """Keep imported modules out of garbage collections: with torch's, a full one takes a quarter second."""
    if len(sys.modules) > len(frozen) + 100:
        gc.collect()
        gc.freeze()
        frozen.update(sys.modules)


@pytest.fixture(autouse=True)
def own_ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Tests work in an empty folder, write nothing at home, reach no network and start Ray in no worker."""

    def refuse(*args: object) -> NoReturn:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(os, "fsync", os.fstat)  # fails as it does, but does not wait for the disk
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith(("SVI_STORY_", "XDG_", "COLUMNS"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    ray = sys.modules.get("ray")
    assert not (ray and ray.is_initialized()), "a test started Ray in this process"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A reference image with detail in every corner."""
    path = tmp_path / "anchor.png"
    if not path.exists():
        pixels = np.random.default_rng(0).integers(0, 255, (9, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((160, 96), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def write_board(tmp_path: Path, picture: Path) -> Callable[..., Path]:
    """Write a small valid board, changed by keyword arguments (None leaves a field out); returns its path."""

    def write(name: str = "board.yaml", **changes: Any) -> Path:
        board = {
            "version": 1,
            "reference": picture.name,
            "resolution": "64x64",
            "engine": {"max_frames": 13},
            "clips": [{"prompt": f"Clip {n} is drifting through the fog."} for n in (1, 2, 3)],
            **changes,
        }
        board = {field: value for field, value in board.items() if value is not None}
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(board, allow_unicode=True, sort_keys=False), "utf-8")
        return path

    return write


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@cache
def command_line(app: Typer) -> Any:
    """The commands, built once: Typer evaluates the annotations of all of them each time."""
    return get_command(app)


@pytest.fixture
def svi_story(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run a command of the CLI in this process."""
    from svi_story.cli.app import app

    monkeypatch.setattr("typer.testing._get_command", command_line)

    def run(*args: object) -> Ended:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run
