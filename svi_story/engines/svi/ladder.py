"""The memory rung in use, one down when memory runs out, and the VAE's own way to make do with less."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from svi_story.engines.svi import memory
from svi_story.engines.svi.embeddings import release
from svi_story.engines.svi.memory import Choice, Room
from svi_story.engines.svi.parts import read_parts
from svi_story.engines.svi.streaming import check_streaming
from svi_story.errors import InputError, RenderError, TransientError
from svi_story.events import Warned
from svi_story.units import gib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from svi_story.engines.svi.experts import Experts
    from svi_story.engines.svi.layout import Layout
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment, Size

    Measure = Callable[[], Room]
    """What is free now."""

T = TypeVar("T")


@dataclass
class Ladder:
    """Decides where the experts are. Changes memory, never numbers, except by tiling, which it tells."""

    experts: Experts
    layout: Layout
    item: int
    """Bytes of a value that the experts compute with."""
    measure: Measure
    report: Reporter
    choice: Choice | None = None
    tiled: set[Size] = field(default_factory=set)
    """Sizes at which the VAE did not fit whole."""
    needs: memory.Needs = field(default_factory=dict)
    on_choice: Callable[[Choice], None] = lambda _: None
    """Hears every rung that is taken."""

    def start(self, asked: str, segments: Sequence[Segment]) -> Choice:
        """Choose the rung for all of these segments, once. Raises InputError when none can do."""
        if self.choice is None:
            self.needs = memory.needs_of(read_parts(self.layout), self.item, *memory.most(segments))
            choice = memory.choose(asked, self.measure(), self.needs)
            self._settle(choice)
            if asked == "auto" and choice.rung != "resident":
                self.report(Warned(f"memory: {choice.rung}: {choice.why}"))
            return choice
        return self.choice

    def step_down(self, doing: str) -> Choice:
        """Take the next rung, after memory ran out. Raises TransientError when there is none.

        Passing, for what cannot fit was refused at the start: somebody else took the memory since.
        """
        assert self.choice is not None, "start comes first"
        self.experts.free()
        release()
        before, room = self.choice.rung, self.measure()
        choice = memory.lower(before, room, self.needs)
        if choice is None:
            need = self.needs[before]
            raise TransientError(
                f"memory ran out {doing} with --memory {before}, and there is no rung below that fits: "
                f"{gib(room.vram)} are free on the GPU (this needs about {gib(need.gpu)}) and "
                f"{gib(room.ram)} of RAM; {memory.CURE}. What was sampled is kept"
            )
        try:
            self._settle(choice)
        except InputError as error:
            raise RenderError(*error.problems) from error
        self.report(Warned(f"memory ran out {doing}; going on with --memory {choice.rung}: {choice.why}"))
        return choice

    def _settle(self, choice: Choice) -> None:
        if choice.rung == "stream":
            check_streaming()
        self.experts.settle(choice)
        self.choice = choice
        self.on_choice(choice)

    def through_vae(self, size: Size, run: Callable[[bool], T]) -> T:
        """What the VAE makes: whole; when memory runs out, with no expert beside it; then in tiles.

        `run` is told whether to tile. Raises TransientError when memory runs out in tiles too.
        """
        if self.experts.leave_device():
            release()
        while True:
            result = unless_full(partial(run, size in self.tiled))
            if result is not None:
                return result
            self._relieve(size)

    def _relieve(self, size: Size) -> None:
        if self.choice is not None and self.choice.rung == "resident" and self.experts.held:
            self._clear_device(size)
            return
        if size in self.tiled:
            room = gib(self.measure().vram)
            raise TransientError(
                f"memory ran out in the VAE at {size}, in tiles and alone on the device, with {room} free; "
                f"{memory.CURE}. What was sampled is kept"
            )
        self.tiled.add(size)
        self.report(
            Warned(
                f"memory ran out in the VAE at {size} again: it works in tiles from here on, which may show "
                "on still backgrounds; it is recorded with every clip"
            )
        )

    def _clear_device(self, size: Size) -> None:
        """Take the experts off the device, now and whenever the VAE works."""
        self.experts.free()
        release()
        choice = memory.lower("resident", self.measure(), self.needs)
        if choice is not None:
            self._settle(choice)
        kept = "" if choice is None else f" (--memory {choice.rung} from here on)"
        self.report(
            Warned(f"memory ran out in the VAE at {size}; trying again without the experts beside it{kept}")
        )


def unless_full(run: Callable[[], T]) -> T | None:
    """What a call returns; None when memory ran out, with all that the call held given back."""
    import torch

    try:
        return run()
    except torch.OutOfMemoryError:
        pass  # the exception holds the call's frames, and so its tensors: leave it before giving back
    except RuntimeError as error:
        if not any(sign in str(error) for sign in SIGNS):
            raise
    release()
    return None


SIGNS = ("ALLOC_FAILED", "CUDA error: out of memory")
"""How cuBLAS, cuDNN and pinned memory say that memory ran out."""


def measure(device: torch.device) -> Room:
    """What is free now, on the device and in RAM."""
    import torch

    ram = free_ram()
    if device.type != "cuda":
        return Room(ram, ram, shared=True)
    release()
    return Room(torch.cuda.mem_get_info(device)[0], ram)


def free_ram(root: Path = Path("/")) -> int:
    """Bytes of RAM that this process may still take, by /proc/meminfo and the control group's limit."""
    free = 2**63
    try:
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        pass  # not Linux: taken for enough
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (int((group / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no control group, or "max"
        return free
    return max(0, min(free, limit - used))
