"""A small film for `gpu_day.py`, rendered by a process that may be killed: `gpu_film.py CACHE DEVICE`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import svi_support as support

from svi_story.cache.store import Store
from svi_story.engines.base import Carry
from svi_story.engines.svi.engine import Svi
from svi_story.engines.svi.options import SviOptions
from svi_story.plan.keys import key_of

if TYPE_CHECKING:
    from svi_story.engines.base import Frame, Latents

CLIPS, STEPS = 3, 12


def start(folder: Path, device: str) -> subprocess.Popen[str]:
    """A process that renders the chain and prints a line for each step."""
    command = [sys.executable, __file__, str(folder), device]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_after(process: subprocess.Popen[str], steps: int) -> int:
    """Kill a process after so many lines; how many there were."""
    assert process.stdout
    done = 0
    for _ in process.stdout:
        done += 1
        if done == steps:
            process.kill()
            break
    process.wait()
    process.stdout.close()
    return done


def render(folder: Path, device: str) -> None:
    """Render the clips into a cache, each continuing from the one before; a line for each step."""
    store = Store(folder, lambda _: None)
    settings = support.sampler("2.0-pro", steps=STEPS)
    segments = [support.segment(clip, "2.0-pro", settings) for clip in range(CLIPS)]
    dtype = "float32" if device == "cpu" else "bfloat16"
    given = SviOptions(support.folders(), dtype=dtype, device=device)

    def picture(_anchor: object) -> Frame:
        return support.anchor_picture()

    def on_step(done: int, _steps: int) -> None:
        print(done, flush=True)

    before: Carry | None = None
    with Svi(given, anchor_pixels=picture) as svi:
        svi.prepare(segments)
        for segment in segments:
            inputs = {"clip": segment.clip}
            key = key_of(inputs)
            entry = store.entry(key)
            if entry is None:
                with store.work(key) as work:
                    latents: Latents | None = work.latents()
                    if latents is None:
                        latents = svi.sample(segment, before, work.checkpoint, on_step)
                        work.save_latents(latents)
                    work.write_frames(svi.decode(segment, latents), segment.fps, segment.frames)
                    entry = work.publish(inputs, {})
            with entry.frames() as frames:
                before = Carry("svi", entry.latents(), [frames.last()])


def hashes(cache: Path) -> dict[str, str]:
    """The sha256 of all latents and frames in a cache."""
    found = [path for path in cache.glob("entries/**/*") if path.suffix in (".safetensors", ".avi")]
    return {str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


if __name__ == "__main__":
    render(Path(sys.argv[1]), sys.argv[2])
