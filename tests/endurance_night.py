"""A long night on purpose: many boards, and a plan of what goes wrong. Run as a program, it is that night."""

from __future__ import annotations

import errno
import json
import os
import signal
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from svi_story.events import Event

    Events = list[dict[str, Any]]

CLIPS = 5
TROUBLES = {
    3: "no picture",
    7: "bad picture",
    11: "engine error",
    13: "bug",
    16: "always out of memory",
    18: "once out of memory",
}
"""What is wrong with a board, by its number modulo 20."""
LOST = ("engine error", "bug", "always out of memory")
REFUSED = ("no picture", "bad picture")


@dataclass(frozen=True)
class Faults:
    """What goes wrong in one night besides the boards' own troubles; counted in finished segments."""

    kill_after: int = 0
    """SIGKILL; 0 for never."""
    full_after: int = 0
    """The disk is full from here on, until the renderer waits for the first time; 0 for never."""
    healed: bool = False
    """Whether the boards' own troubles are over."""


@dataclass(frozen=True)
class Sample:
    """What the process held at a finished segment."""

    rss: int
    """Bytes."""
    files: int


@dataclass
class Night:
    """How a night went."""

    status: int
    events: Events = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    errors: str = ""

    def of(self, kind: str) -> Events:
        """The events of one kind."""
        return [event for event in self.events if event["event"] == kind]

    def made(self) -> Counter[str]:
        """How often each segment was made, by key."""
        return Counter(event["key"] for event in self.of("segment_done"))


def trouble_of(number: int) -> str:
    """What is wrong with a board; empty for nothing."""
    return TROUBLES.get(number % 20, "")


def write_boards(folder: Path, count: int) -> list[Path]:
    """Boards of five clips; every tenth begins like the one before. Some of them are in trouble."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (9, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64)).save(folder / "good.png")
    (folder / "bad.png").write_bytes((folder / "good.png").read_bytes()[:100])
    pictures = {"no picture": "missing.png", "bad picture": "bad.png"}
    return [_write_board(folder, number, pictures) for number in range(count)]


def _write_board(folder: Path, number: int, pictures: dict[str, str]) -> Path:
    trouble = trouble_of(number)
    owner = number - 1 if number % 10 == 2 else number
    whose = [owner, owner, number, number, number]
    clips = [{"prompt": f"{one} {clip}", "seed": 100 * one + clip} for clip, one in enumerate(whose)]
    if trouble in (*LOST, "once out of memory"):
        clips[3]["prompt"] = f"{clips[3]['prompt']} {trouble}"
    board = {
        "version": 1,
        "reference": pictures.get(trouble, "good.png"),
        "resolution": "64x64",
        "engine": {"name": "animatic", "max_frames": 5},
        "clips": clips,
    }
    path = folder / f"board-{number:03}.yaml"
    path.write_text(yaml.safe_dump(board), "utf-8")
    return path


def heal(folder: Path) -> None:
    """Put the pictures right."""
    for name in ("missing.png", "bad.png"):
        (folder / name).write_bytes((folder / "good.png").read_bytes())


def render(boards: Path, faults: Faults = Faults()) -> Night:
    """One night in a process of its own, in the current folder."""
    command = [sys.executable, __file__, str(boards), json.dumps(asdict(faults))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    night = Night(done.returncode, errors=done.stderr)
    for line in done.stdout.splitlines():
        event = json.loads(line)
        if event["event"] == "sample":
            night.samples.append(Sample(event["rss"], event["files"]))
        else:
            night.events.append(event)
    return night


def quarters(values: Sequence[int]) -> tuple[float, float]:
    """The medians of the first and the last quarter."""
    share = len(values) // 4
    return statistics.median(values[:share]), statistics.median(values[-share:])


class Trouble:
    """What the plan says, played on the process it runs in."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._done = 0
        self._full = False
        self._was_full = False
        self._out_of_memory: set[str] = set()

    def listen(self, report: Callable[[Event], None]) -> Callable[[Event], None]:
        """A reporter that also counts, samples, fills the disk and kills."""
        from svi_story.events import SegmentDone

        def told(event: Event) -> None:
            report(event)
            if isinstance(event, SegmentDone):
                self._done += 1
                self._sample()
                self._full = self._full or self._done == self._faults.full_after
                if self._done == self._faults.kill_after:
                    sys.stdout.flush()
                    os.kill(os.getpid(), signal.SIGKILL)

        return told

    def _sample(self) -> None:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        files = sum(1 for _ in Path("/proc/self/fd").iterdir())
        held = {"rss": pages * os.sysconf("SC_PAGE_SIZE"), "files": files}
        sys.stdout.write(json.dumps({"event": "sample", **held}) + "\n")

    def wait(self, seconds: float) -> None:
        """Somebody frees the disk while the renderer waits."""
        assert seconds > 1
        self._full = False

    def fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        """What the disk says."""

        def synced(descriptor: int) -> None:
            if self._full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        return synced

    def decode(self, real: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """What the engine does with boards in trouble."""
        from svi_story.errors import RenderError

        def decoded(engine: object, segment: Any, latents: object) -> Iterator[Any]:
            prompt: str = segment.prompt
            if "engine error" in prompt:
                raise RenderError("the engine failed on purpose; try another prompt")
            if prompt.endswith("bug"):
                raise ZeroDivisionError("on purpose")
            if "always out of memory" in prompt:
                raise MemoryError
            if "once out of memory" in prompt and prompt not in self._out_of_memory:
                self._out_of_memory.add(prompt)
                raise MemoryError
            yield from real(engine, segment, latents)

        return decoded


def main(boards: str, faults: Faults) -> None:
    """Render a folder while the plan plays."""
    from svi_story.cli import console
    from svi_story.cli import main as svi_story
    from svi_story.engines.animatic import Animatic
    from svi_story.render import runner

    trouble = Trouble(faults)
    console.to_json = trouble.listen(console.to_json)  # type: ignore[assignment]  # a callable like it
    os.fsync = trouble.fsync(os.fsync)  # type: ignore[assignment]  # the disk of this process
    runner.wait = trouble.wait
    if not faults.healed:
        Animatic.decode = trouble.decode(Animatic.decode)  # type: ignore[method-assign]  # planted
    sys.argv = ["svi-story", "render", boards, "--json"]
    svi_story()


if __name__ == "__main__":
    main(sys.argv[1], Faults(**json.loads(sys.argv[2])))
