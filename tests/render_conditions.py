"""Renders under circumstances that a film must not depend on: memory, CPUs, hash seed, locale, time zone.

Boards and everything they use are made here. benchmarks/determinism.py does the same a hundred times.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import wave
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

from svi_story.cut.ffmpeg import ffmpeg_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BOARDS = ("av1", "many", "words")
"""What the boards are called: one is encoded as AV1, one has many clips, one music, a voice and captions."""

FILLER = r"""
/* Preloaded, it fills all fresh memory with the byte FILL. */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

extern void *__libc_malloc(size_t);
extern void *__libc_memalign(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

static void *filled(void *block, size_t from, size_t size)
{
    static int byte = -1;
    if (byte < 0) {
        const char *chosen = getenv("FILL");
        byte = chosen ? atoi(chosen) & 255 : 0;
    }
    if (block && from < size)
        memset((char *)block + from, byte, size - from);
    return block;
}

void *malloc(size_t size) { return filled(__libc_malloc(size), 0, size); }
void *memalign(size_t align, size_t size) { return filled(__libc_memalign(align, size), 0, size); }
void *aligned_alloc(size_t align, size_t size) { return memalign(align, size); }

void *realloc(void *block, size_t size)
{
    size_t before = block ? malloc_usable_size(block) : 0;
    return filled(__libc_realloc(block, size), before, size);
}

int posix_memalign(void **place, size_t align, size_t size)
{
    void *block = memalign(align, size);
    if (!block)
        return ENOMEM;
    *place = block;
    return 0;
}
"""

PROOF = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
assert ctypes.string_at(libc.malloc(50_000), 50_000) == bytes([171]) * 50_000
"""

PROGRAM = """
import json, os, sys
cpus, niceness = json.loads(sys.argv.pop(1))
if cpus:
    os.sched_setaffinity(0, cpus)
os.nice(niceness)
from svi_story.cli import main
main()
"""


@dataclass(frozen=True)
class Condition:
    """What a render finds around it."""

    name: str
    memory: Mapping[str, str] = field(default_factory=dict)
    """Variables that decide what fresh memory holds; ffmpeg gets them too, however it is started."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Other variables."""
    cpus: tuple[int, ...] = ()
    """Those that it may use; empty for all."""
    niceness: int = 0


PERTURBED = tuple(Condition(f"MALLOC_PERTURB_={n}", {"MALLOC_PERTURB_": str(n)}) for n in (1, 85, 170))


def filled(filler: Path, byte: int) -> Condition:
    """All fresh memory holds a byte."""
    return Condition(f"memory filled with {byte}", {"LD_PRELOAD": str(filler), "FILL": str(byte)})


def compile_filler(folder: Path) -> Path | None:
    """The memory-filling allocator, tried; None without a C compiler or where the C library is not glibc."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    source, library = folder / "filler.c", folder / "filler.so"
    source.write_text(FILLER)
    build = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source)]
    if subprocess.run(build, capture_output=True, check=False).returncode:
        return None
    environment = {**os.environ, **filled(library, 171).memory}
    tried = subprocess.run([sys.executable, "-c", PROOF], env=environment, capture_output=True, check=False)
    return library if tried.returncode == 0 else None


def varied(number: int, filler: Path | None) -> Condition:
    """The conditions of a render, different for every number and the same every time."""
    dice = random.Random(f"render {number}")
    kinds = ["as it is", "perturbed", *(["filled"] if filler else [])]
    kind, byte = kinds[number % len(kinds)], dice.randrange(256)
    memory: dict[str, str] = {"MALLOC_PERTURB_": str(byte)} if kind == "perturbed" else {}
    if kind == "filled" and filler:
        memory = dict(filled(filler, byte).memory)
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    used = tuple(sorted(dice.sample(cpus, dice.randint(1, len(cpus))))) if cpus else ()
    variables = {
        "PYTHONHASHSEED": str(dice.randrange(2**32)),
        "LC_ALL": dice.choice(["C", "POSIX", "C.UTF-8", "en_US.UTF-8", "de_DE.UTF-8", "tr_TR.UTF-8"]),
        "TZ": dice.choice(["UTC", "Asia/Tokyo", "America/Los_Angeles", "Asia/Kathmandu", "<X>-14"]),
        **({"COLUMNS": "40"} if dice.random() < 0.5 else {}),
    }
    niceness = dice.choice([0, 0, 1, 5, 10, 19])
    name = f"{kind} {byte}, CPUs {used}, niceness {niceness}, {variables}"
    return Condition(name, memory, variables, used, niceness)


def render(boards: list[Path], folder: Path, condition: Condition) -> dict[str, str]:
    """Render boards afresh with the CLI into an empty folder; each film's sha256 by the board's name.

    RuntimeError with what the command said when it fails.
    """
    folder.mkdir(parents=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SVI_STORY_", "LC_"))},
        **condition.variables,
        **condition.memory,
        "FFREPORT": f"file={folder / 'ffmpeg.log'}",
    }
    if condition.memory:
        environment["IMAGEIO_FFMPEG_EXE"] = str(forced(folder / "ffmpeg", condition.memory))
    setting = json.dumps([condition.cpus, condition.niceness])
    options = ["-q", "--engine", "animatic", "-o", folder / "films", "--cache", folder / "cache"]
    command = [sys.executable, "-c", PROGRAM, setting, "render", *boards, *options]
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{condition.name}: ended with {done.returncode}: {done.stderr[-2000:]}")
    if (folder / "ffmpeg.log").exists():
        raise RuntimeError(f"{condition.name}: FFREPORT reached an ffmpeg")
    return {
        board.stem: hashlib.sha256((folder / "films" / f"{board.stem}.mp4").read_bytes()).hexdigest()
        for board in boards
    }


def forced(path: Path, variables: Mapping[str, str]) -> Path:
    """A program that is our ffmpeg with these variables set, as ours is started without them."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    path.write_text("\n".join(["#!/bin/sh", *exports, f'exec {shlex.quote(ffmpeg_path())} "$@"', ""]))
    path.chmod(0o755)
    return path


def write_boards(folder: Path, size: str = "208x112") -> list[Path]:
    """Three boards in a new folder with their picture and sounds. Pictures 13 or 52 macroblocks wide show
    x264's fault."""
    folder.mkdir(parents=True)
    dice = np.random.default_rng(0)
    pixels = dice.integers(0, 255, (9, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((320, 180), Image.Resampling.BICUBIC).save(folder / "picture.png")
    moments = np.arange(3 * 24_000) / 24_000
    _write_wav(folder / "music.wav", np.sin(moments * 1400) * 0.9 + dice.normal(0, 0.1, len(moments)))
    _write_wav(folder / "voice.wav", np.sin(moments[:12_000] * 4000 * (1 + moments[:12_000])) * 0.7)
    head: dict[str, Any] = {
        "version": 1,
        "reference": "picture.png",
        "resolution": size,
        "fps": 12,
        "engine": {"name": "animatic", "max_frames": 9},
    }
    fade = {"transition": {"fade": "0.25s"}}
    story: list[dict[str, Any]] = [
        {"prompt": "The cat is sitting by the window.", "caption": "It has been raining for days."},
        {"prompt": "The cat is turning to the rain.", "caption": "Since Tuesday.", "voice": "voice.wav"},
        {"prompt": "A dog is barking in the yard.", **fade},
    ]
    music = {"audio": {"path": "music.wav", "volume": 0.9, "loop": True}}
    cuts: dict[str, Any] = {
        "words": {**music, "captions": "both", "title_card": {"text": "Rain", "duration": "0.5s"}},
        "av1": {"codec": "av1", "fade_out": "0.3s"},
    }
    bare = [
        {name: value for name, value in clip.items() if name not in ("caption", "voice")} for clip in story
    ]
    boards = {
        "av1": {**head, "title": "AV1", "cut": cuts["av1"], "clips": bare},
        "many": {**head, "title": "Many", "clips": [_short(number) for number in range(8)]},
        "words": {**head, "title": "Words", "cut": cuts["words"], "clips": story},
    }
    for name, board in boards.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(board, sort_keys=False), "utf-8")
    return [folder / f"{name}.yaml" for name in BOARDS]


def _short(number: int) -> dict[str, Any]:
    clip: dict[str, Any] = {"prompt": f"The boat number {number} is passing the pier.", "frames": 5}
    return {**clip, "transition": "cut"} if number % 3 == 2 else clip


def _write_wav(path: Path, samples: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes((np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes())
