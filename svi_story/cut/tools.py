"""moviepy and its ffmpeg, without what comes along when they are imported carelessly."""

from __future__ import annotations

import importlib
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from types import ModuleType

from svi_story.errors import RenderError


@cache
def ffmpeg_path() -> str:
    """The ffmpeg that encodes: imageio-ffmpeg's own, or the one IMAGEIO_FFMPEG_EXE names.

    Raises RenderError where there is none.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        return str(get_ffmpeg_exe())
    except RuntimeError as error:
        raise RenderError("no ffmpeg found; reinstall imageio-ffmpeg or set IMAGEIO_FFMPEG_EXE") from error


@cache
def encoder_versions() -> tuple[str, str]:
    """What ffmpeg and moviepy call their versions. Imports neither; raises RenderError without an ffmpeg."""
    return _said("-version").partition("\n")[0], version("moviepy")


@cache
def check_encoder(name: str) -> None:
    """Raises RenderError where the ffmpeg that encodes has not this encoder."""
    if f"Encoder {name} " not in _said("-hide_banner", "-h", f"encoder={name}"):
        what = f"{ffmpeg_path()} has no encoder {name}; write `codec: h264`, or set IMAGEIO_FFMPEG_EXE to one"
        raise RenderError(f"{what} that has")


def _said(*options: str) -> str:
    """What ffmpeg answers. Raises RenderError where it does not run."""
    command = [ffmpeg_path(), *options]
    try:
        done = subprocess.run(  # noqa: S603 - the program that is going to encode, and no text of a stranger
            command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        what = f"{command[0]} does not run ({error}); reinstall imageio-ffmpeg or set IMAGEIO_FFMPEG_EXE"
        raise RenderError(what) from error
    return done.stdout.decode(errors="replace")


@cache
def import_moviepy() -> None:
    """Import moviepy with its programs chosen.

    Its own `moviepy.config` takes them from the environment, to which it adds what a `.env` in any folder
    above it says, and runs them. The environment belongs to all threads, so that module is replaced.
    Raises RenderError where there is no ffmpeg that runs.
    """
    encoder_versions()
    config = ModuleType("moviepy.config")
    vars(config).update(FFMPEG_BINARY=ffmpeg_path(), FFPLAY_BINARY=ffmpeg_path())
    config = sys.modules.setdefault(config.__name__, config)  # somebody may have imported moviepy before
    vars(importlib.import_module("moviepy"))["config"] = config
