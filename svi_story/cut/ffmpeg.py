"""moviepy and its ffmpeg, started without side effects and with a controlled environment."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from functools import cache
from importlib import resources
from types import ModuleType

from svi_story.errors import RenderError
from svi_story.plan.keys import version_of

ENVIRONMENT = (
    *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
    *("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"),
    *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT"),
)
"""The environment variables that ffmpeg gets: where programs and libraries are, and where to put files."""

ASM = "SSE4.2"
"""The instructions that x264 may use. Its AVX-512 code for `mbtree` reads 16 macroblocks at once: if a row's
length is no multiple of 16, it also reads uninitialised memory behind the row. Its code for SSSE3, SSE4.2 and
AVX2 reads only the row; these three write the same bytes."""


@cache
def ffmpeg_path() -> str:
    """The ffmpeg that encodes: imageio-ffmpeg's own, or the one that IMAGEIO_FFMPEG_EXE names.

    imageio-ffmpeg searches for one only if none is bundled, because it runs what it finds with the whole
    environment. Raises RenderError if there is none.
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
    return _output_of("-version").partition("\n")[0], version_of("moviepy")


@cache
def check_encoder(name: str) -> None:
    """Raises RenderError if ffmpeg does not have this encoder."""
    if f"Encoder {name} " not in _output_of("-hide_banner", "-h", f"encoder={name}"):
        what = f"{ffmpeg_path()} has no encoder {name}; write `codec: h264`, or set IMAGEIO_FFMPEG_EXE to one"
        raise RenderError(f"{what} that has")


def ffmpeg_environment() -> dict[str, str]:
    """The environment that ffmpeg starts with: an allow-list, so that the film does not depend on the rest.

    The environment must not change how memory is allocated (MALLOC_*, GLIBC_TUNABLES, LD_PRELOAD), where
    ffmpeg writes reports (FFREPORT), or the language of its messages.
    """
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | {"LC_ALL": "C"}


@cache
def portable_options(encoder: str) -> tuple[str, ...]:
    """Options that make an encoder's output the same on every CPU, and independent of uninitialised memory.

    They only avoid errors of the encoder, so they are in no key. x264 logs the instructions that it uses.
    They are compared before and after, because x264 uses instructions that it was given even if the CPU lacks
    them, and none at all if it does not know a name. Raises RenderError if ffmpeg does not run.
    """
    if encoder != "libx264" or ASM not in _instructions():
        return ()
    chosen = ("-x264opts", f"asm={ASM}")
    used = _instructions(*chosen)
    return chosen if ASM in used and not any(name.startswith("AVX") for name in used) else ()


def _instructions(*options: str) -> list[str]:
    """The CPU instructions that x264 will use, such as SSSE3, AVX2, NEON; empty if its log lists none."""
    black = ("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", "16x16", "-i", "-")
    encode = ("-c:v", "libx264", *options, "-f", "null", "-")
    log = _run("-hide_banner", "-nostats", "-loglevel", "info", *black, *encode, data=bytes(384)).stderr
    found = re.search(rb"using cpu capabilities: (.*)", log)
    return found[1].decode(errors="replace").split() if found else []


def _output_of(*options: str) -> str:
    """The standard output of ffmpeg. Raises RenderError if it does not run."""
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
    """Import moviepy, with the programs that it uses already chosen.

    The real `moviepy.config` takes them from the environment, into which it loads a `.env` file from any
    folder above, and runs them. The environment is shared by all threads, so the module is replaced.
    Raises RenderError if no ffmpeg runs.
    """
    encoder_versions()
    config = ModuleType("moviepy.config")
    vars(config).update(FFMPEG_BINARY=ffmpeg_path(), FFPLAY_BINARY=ffmpeg_path())
    config = sys.modules.setdefault(config.__name__, config)  # moviepy may have been imported before
    vars(importlib.import_module("moviepy"))["config"] = config
