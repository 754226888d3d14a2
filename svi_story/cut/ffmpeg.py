"""moviepy and its ffmpeg, started without side effects and with a controlled environment."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from functools import cache
from importlib import resources
from importlib.metadata import version
from types import ModuleType

from svi_story.errors import RenderError

ENVIRONMENT = (
    *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
    *("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"),
    *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT"),
)
"""The environment variables that ffmpeg gets: where programs and libraries are, and where to put files."""

ASM = "SSE4.2"
"""The instructions that x264 may use. Its AVX-512 code for `mbtree` takes 16 macroblocks at a time: where a
row has no multiple of 16, it also takes what lies behind the row, memory that nobody wrote among it. Its code
for SSSE3, SSE4.2 and AVX2 takes the row only; these three make the same bytes."""


@cache
def ffmpeg_path() -> str:
    """The ffmpeg that encodes: imageio-ffmpeg's own, or the one IMAGEIO_FFMPEG_EXE names.

    imageio-ffmpeg is asked only where it brings none: to try one, it starts it with the whole environment.
    Raises RenderError where there is none.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    files = sorted(resources.files("imageio_ffmpeg.binaries").iterdir(), key=str)
    bundled = [str(file) for file in files if file.name.startswith("ffmpeg-")]
    if bundled and not os.environ.get("IMAGEIO_FFMPEG_EXE"):
        return bundled[0]
    try:
        return str(get_ffmpeg_exe())
    except RuntimeError as error:
        raise RenderError("no ffmpeg found; reinstall imageio-ffmpeg or set IMAGEIO_FFMPEG_EXE") from error


@cache
def encoder_versions() -> tuple[str, str]:
    """The versions of ffmpeg and moviepy. Imports neither; raises RenderError without an ffmpeg."""
    return _answer("-version").partition("\n")[0], version("moviepy")


@cache
def check_encoder(name: str) -> None:
    """Raises RenderError where the ffmpeg that encodes has not this encoder."""
    if f"Encoder {name} " not in _answer("-hide_banner", "-h", f"encoder={name}"):
        what = f"{ffmpeg_path()} has no encoder {name}; write `codec: h264`, or set IMAGEIO_FFMPEG_EXE to one"
        raise RenderError(f"{what} that has")


def ffmpeg_environment() -> dict[str, str]:
    """The environment that ffmpeg starts with: an allow-list, so that the film does not depend on the rest.

    What an allocator does with memory (MALLOC_*, GLIBC_TUNABLES, LD_PRELOAD), where ffmpeg writes a report
    (FFREPORT) and which language it speaks are not for the environment to say.
    """
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | {"LC_ALL": "C"}


@cache
def portable_options(encoder: str) -> tuple[str, ...]:
    """Options that make an encoder's output the same on every CPU and whatever is in memory.

    They change what an encoder gets wrong and nothing else, so no content address holds them. x264 says
    itself which instructions it found and which it will use. That is read first and afterwards, because it
    believes whoever says that a CPU has some, and uses none at all where it does not know a name. Raises
    RenderError where ffmpeg does not run.
    """
    if encoder != "libx264" or ASM not in _instructions():
        return ()
    chosen = ("-x264opts", f"asm={ASM}")
    used = _instructions(*chosen)
    return chosen if ASM in used and not any(name.startswith("AVX") for name in used) else ()


def _instructions(*options: str) -> list[str]:
    """What x264 says it will use of this CPU: such as SSSE3, AVX2, NEON; empty if it does not say."""
    black = ("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", "16x16", "-i", "-")
    encode = ("-c:v", "libx264", *options, "-f", "null", "-")
    log = _run("-hide_banner", "-nostats", "-loglevel", "info", *black, *encode, data=bytes(384)).stderr
    found = re.search(rb"using cpu capabilities: (.*)", log)
    return found[1].decode(errors="replace").split() if found else []


def _answer(*options: str) -> str:
    """What ffmpeg answers. Raises RenderError where it does not run."""
    return _run(*options).stdout.decode(errors="replace")


def _run(*options: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg to its end. Raises RenderError where that fails."""
    command = [ffmpeg_path(), *options]
    try:
        return subprocess.run(  # noqa: S603 - the program that is going to encode, and no untrusted text
            command, input=data, env=ffmpeg_environment(), capture_output=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        what = f"{command[0]} does not run ({error}); reinstall imageio-ffmpeg or set IMAGEIO_FFMPEG_EXE"
        raise RenderError(what) from error


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
    config = sys.modules.setdefault(config.__name__, config)  # moviepy may have been imported before
    vars(importlib.import_module("moviepy"))["config"] = config
