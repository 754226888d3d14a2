"""Which memory mode is in use, and what happens when memory runs out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, TypeVar

from svi_story.engines.svi.device import FreeMemory, none_if_out_of_memory
from svi_story.engines.svi.memory import (
    REMEDY,
    choose,
    choose_smaller,
    largest,
    needs_of,
    text_blocks,
    vae_need,
)
from svi_story.engines.svi.vae import STRIPS, TILES, WHOLE
from svi_story.engines.svi.weights.architecture import count_parameters
from svi_story.errors import TransientError
from svi_story.events import Warned
from svi_story.units import gib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from svi_story.engines.svi.experts import Experts
    from svi_story.engines.svi.memory import MemoryPlan, Needs
    from svi_story.engines.svi.weights.catalogue import ModelPaths
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment, Size

T = TypeVar("T")


@dataclass
class MemoryManager:
    """Decides where models are. Changes memory, never numbers but by strips and tiles, which it reports.

    One thread may sample while another one decodes. Who waits for both locks takes `vae_turn` first.
    """

    experts: Experts
    paths: ModelPaths
    value_bytes: int
    """Bytes of a value that the experts compute with."""
    measure: Callable[[], FreeMemory]
    report: Reporter
    on_plan: Callable[[MemoryPlan], None] = lambda _: None
    """Called with every plan that is adopted."""
    plan: MemoryPlan | None = None
    vae: str = "whole"
    """How the VAE works from the start: whole, strips or tiles."""
    int8: bool = False
    """Whether the linear layers of the experts' blocks are held in int8."""
    strips: dict[Size, int] = field(default_factory=dict)
    """In how many strips the VAE works at the sizes that do not fit as a whole; TILES: in tiles."""
    needs: Needs | None = None
    """What the modes need; None until `start`."""
    experts_turn: RLock = field(default_factory=RLock)
    """Held by who uses the experts, or needs the device without them."""
    vae_turn: RLock = field(default_factory=RLock)
    """Held by who uses the VAE."""
    _is_beside: bool = False
    """Whether the VAE works now, and who samples need not wait for it."""
    _most_text_blocks: int | None = None
    """How many of the text encoder's blocks may stay on the device, after memory ran out with more."""

    def start(self, requested: str, segments: Sequence[Segment]) -> MemoryPlan:
        """Choose the mode for all of these segments, once. Raises InputError when none fits."""
        if self.plan is None or self.needs is None:
            counts = count_parameters(self.paths)
            self.needs = needs_of(counts, self.value_bytes, *largest(segments), int8=self.int8)
            plan = choose(requested, self.measure(), self.needs)
            self._adopt(plan)
            if requested == "auto" and plan.mode != "resident":
                self.report(Warned(f"memory: {plan.mode}: {plan.why}"))
            return plan
        return self.plan

    def reduce(self, doing: str) -> MemoryPlan:
        """Take the next smaller mode, after memory ran out. Raises TransientError when there is none.

        Transient, for what cannot fit was refused at the start: another process took the memory since.
        """
        assert self.plan is not None and self.needs is not None, "start comes first"  # noqa: PT018
        if self._is_beside:
            with self.vae_turn:  # what is decoded gives its memory back
                return self._separate(doing)
        with self.experts_turn:
            return self._reduce(self.plan, self.needs, doing)

    def _reduce(self, old: MemoryPlan, needs: Needs, doing: str) -> MemoryPlan:
        self.experts.free()
        before, free = old.mode, self.measure()
        plan = choose_smaller(old, free, needs)
        if plan is None:
            raise TransientError(
                f"memory ran out {doing} with --memory {before}, and no smaller memory mode fits: "
                f"{gib(free.vram)} are free on the GPU (this needs about {gib(needs[before].gpu)}) and "
                f"{gib(free.ram)} of RAM; {REMEDY}. What was sampled is kept"
            )
        self._adopt(plan)
        self.report(Warned(f"memory ran out {doing}; continuing with --memory {plan.mode}: {plan.why}"))
        return plan

    def _separate(self, doing: str) -> MemoryPlan:
        """Decode and sample one after the other from here on."""
        assert self.plan is not None
        if self.plan.beside:
            self.plan = replace(self.plan, beside=False)
            self.on_plan(self.plan)
            what = "continuing with decoding and sampling one after the other"
            self.report(Warned(f"memory ran out {doing}; {what}"))
        return self.plan

    def _adopt(self, plan: MemoryPlan) -> None:
        self.experts.set_plan(plan)
        self.plan = plan
        self.on_plan(plan)

    def text_blocks(self) -> int:
        """How many of the text encoder's blocks fit on the device now, where experts may leave it."""
        assert self.needs is not None, "start comes first"
        with self.experts_turn:
            self.experts.leave_device()
        blocks = text_blocks(self.measure(), self.needs)
        return blocks if self._most_text_blocks is None else min(blocks, self._most_text_blocks)

    def reduce_text_blocks(self, used: int) -> None:
        """Have half as many of them on the device, after memory ran out; with none left, as `reduce`."""
        doing = "while encoding the prompts"
        if used == 0:
            self.reduce(doing)
            return
        self._most_text_blocks = used // 2
        self.report(
            Warned(
                f"memory ran out {doing}; continuing with {used // 2} blocks of the text encoder on the GPU"
            )
        )

    def run_vae(self, size: Size, frames: int, run: Callable[[int], T]) -> T:
        """The result of `run(strips)`: of whole pictures; when memory runs out of strips, at last of tiles.

        Where there is no room beside them, experts on the device leave it first, when they have sampled.
        Raises TransientError when memory runs out in tiles too.
        """
        start = TILES if self.vae == "tiles" else WHOLE
        with self.vae_turn:
            if self.vae == "strips":
                self.strips.setdefault(size, self._next_strips(WHOLE, size, frames))
            if self.plan is None or not self.plan.beside:
                with self.experts_turn:
                    return self._run_vae_alone(size, frames, run, start)
            self._is_beside = True
            try:
                result = none_if_out_of_memory(partial(run, self.strips.get(size, start)))
            finally:
                self._is_beside = False
            if result is not None:
                return result
            is_alone = self.experts_turn.acquire(blocking=False)
            if not is_alone:
                self._separate(f"in the VAE at {size}")
                self.experts_turn.acquire()
            try:
                failed = is_alone and self.plan.mode == "resident"
                return self._run_vae_alone(size, frames, run, start, failed=failed)
            finally:
                self.experts_turn.release()

    def _run_vae_alone(
        self, size: Size, frames: int, run: Callable[[int], T], start: int, *, failed: bool = False
    ) -> T:
        """The same while nobody samples; `failed`: memory ran out as it is."""
        self.experts.leave_device()
        again = True
        while failed or (result := none_if_out_of_memory(partial(run, self.strips.get(size, start)))) is None:
            failed = False
            used = self.strips.get(size, start)
            if self.plan is not None and self.plan.mode == "resident" and self.experts.held:
                self._clear_device(size)
            elif again and used == WHOLE and self._vae_fits(size, frames):
                again = False  # memory was in pieces, which has been given back
            elif used == TILES:
                raise TransientError(
                    f"memory ran out in the VAE at {size}, in tiles and alone on the device, with "
                    f"{gib(self.measure().vram)} free; {REMEDY}. What was sampled is kept"
                )
            else:
                self.strips[size] = self._next_strips(used, size, frames)
                what = f"{self.strips[size]} strips"
                if self.strips[size] == TILES:
                    what = "tiles, which may show on still backgrounds"
                self.report(
                    Warned(
                        f"memory ran out in the VAE at {size}; from here on it works in {what}; this is "
                        "recorded with every clip"
                    )
                )
        return result

    def _vae_fits(self, size: Size, frames: int) -> bool:
        """Whether it should work on whole pictures now, with a margin."""
        return vae_need(count_parameters(self.paths), size, frames, WHOLE).total <= self.measure().vram

    def _next_strips(self, used: int, size: Size, frames: int) -> int:
        """The fewest strips, but more than `used`, that may fit into what is free; TILES where none may."""
        free, parameters = self.measure().vram, count_parameters(self.paths)
        for strips in STRIPS:
            if strips > used and vae_need(parameters, size, frames, strips).minimum <= free:
                return strips
        return TILES

    def _clear_device(self, size: Size) -> None:
        """Take the experts off the device, now and whenever the VAE works."""
        self.experts.free()
        assert self.plan is not None and self.needs is not None  # noqa: PT018
        plan = choose_smaller(self.plan, self.measure(), self.needs)
        if plan is not None:
            self._adopt(plan)
        changed = "" if plan is None else f" (--memory {plan.mode} from here on)"
        self.report(
            Warned(
                f"memory ran out in the VAE at {size}; trying again without the experts beside it{changed}"
            )
        )
