"""What `gpu_day.py` measures, each part in a process of its own: `gpu_parts.py PART OUT DEVICE SCALE`.

The folder `tests` must be on PYTHONPATH. Every figure is kept as soon as it is known, and not measured again.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import gpu_film
import numpy as np
import svi_support as support
import torch
from step import Bench, Case, difference, full_models, random_models
from wan import Shape, wait

from svi_story.engines.svi import vae
from svi_story.engines.svi.attention import BACKENDS, check_kernel, kernel_versions
from svi_story.engines.svi.compiled import check_compiler, compile_blocks
from svi_story.engines.svi.device import FreeMemory, release, set_allocator
from svi_story.engines.svi.engine import Svi
from svi_story.engines.svi.memory import MODES, VALUE_BYTES, DeviceUse, choose, needs_of, vae_need
from svi_story.engines.svi.options import SviOptions
from svi_story.engines.svi.weights.architecture import count_parameters
from svi_story.engines.svi.weights.loading import Placement
from svi_story.enginespec.sampling import Guidance
from svi_story.errors import InputError
from svi_story.events import ModelLoaded, ModelMoved, Warned
from svi_story.plan.model import Size
from svi_story.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from svi_story.engines.base import Frame, Latents
    from svi_story.engines.svi.memory import MemoryMode
    from svi_story.engines.svi.weights.catalogue import ModelPaths
    from svi_story.events import Event
    from svi_story.plan.model import Segment

    Row = dict[str, str | int | float | None]

TESTS = Path(__file__).parents[1] / "tests"
REPEATS = 5  # of the film that is killed
TIMED = 2
"""Steps of a turn, of which the first one warms up."""
CARD = FreeMemory(int(23.5 * GIB), 100 * GIB)
"""What `stream` is measured with: a card of 24 GB."""


class Notes:
    """The figures of a part in a file, written after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[str, Row] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def keep(self, name: str, row: Row) -> None:
        """Write a figure down."""
        self.rows[name] = row
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(self.rows, indent=1, ensure_ascii=False), "utf-8")
        draft.replace(self._path)

    def take(self, name: str, measure: Callable[[], Row]) -> None:
        """Measure something, unless that was done. An error is a result too; it is tried again."""
        if "error" not in self.rows.get(name, {"error": ""}):
            return
        try:
            row = measure()
        except Exception as error:  # noqa: BLE001 - the rest is measured all the same
            row = {"error": f"{type(error).__name__}: {error}"[:400]}
        gc.collect()
        release()
        self.keep(name, row)


@dataclass(frozen=True)
class Scale:
    """The size of everything."""

    tiny: bool
    size: Size
    large: Size
    frames: int


SCALES = {
    "full": Scale(tiny=False, size=Size(832, 480), large=Size(1280, 720), frames=81),
    "tiny": Scale(tiny=True, size=Size(64, 64), large=Size(96, 64), frames=5),
}
"""For a large GPU, and for what a CPU does in seconds."""


@dataclass(frozen=True)
class Context:
    """What every part gets."""

    device: torch.device
    scale: Scale
    notes: Notes
    folder: Path
    """For files that nobody needs later."""

    @property
    def place(self) -> Placement:
        """bfloat16 on a GPU, as films are rendered; float32 on a CPU."""
        return Placement(self.device, torch.float32 if self.device.type == "cpu" else torch.bfloat16)

    def case(self, size: Size) -> Case:
        """Random experts."""
        if self.scale.tiny:
            return random_models(Shape(128, 256, 2), self.place, size, self.scale.frames)
        return replace(full_models(self.place), size=size)


def step(context: Context) -> None:
    """Seconds per guided step: eager, diffusers, compiled, and with every other kernel."""
    bench = Bench(context.case(context.scale.size), context.place, TIMED)
    chosen, notes, eager = bench.kernel, context.notes, list[torch.Tensor]()

    def ours() -> Row:
        turn = bench.ours()
        row: Row = {
            "s per guided step": turn.step,
            "first step s": turn.first,
            "decode s": turn.decode,
            "% of matrix peak": bench.share(turn.step),
            **kernel_versions(bench.kernel),
        }
        if eager:
            row["% difference from eager"] = difference(bench.latents, eager[0])
        return row

    def theirs() -> Row:
        turn = bench.theirs()
        return {"s per guided step": turn.step, "first step s": turn.first, "decode s": turn.decode}

    notes.take(f"eager, {chosen}", ours)
    notes.take("diffusers' pipeline", theirs)
    if not hasattr(bench, "latents"):  # the figure was kept by an earlier run
        bench.ours()
    eager.append(bench.latents)
    take_compiled(context, bench, ours)
    head = bench.case.high.config.attention_head_dim
    for kernel in BACKENDS:
        if kernel not in (chosen, "torch-math"):  # whose matrix does not fit

            def with_kernel(kernel: str = kernel) -> Row:
                check_kernel(kernel, context.device, context.place.dtype, head)
                bench.kernel = kernel
                return ours()

            notes.take(f"eager, {kernel}", with_kernel)


def take_compiled(context: Context, bench: Bench, measure: Callable[[], Row]) -> None:
    """Measure with blocks compiled as by `--compile`; tiny: they run as they are written all the same."""
    name = f"compiled, {bench.kernel}"
    try:
        if not context.scale.tiny:
            check_compiler(context.device)
    except InputError as error:
        context.notes.keep(name, {"error": str(error)})
        return
    experts = {id(expert): expert for expert in (bench.case.high, bench.case.low)}.values()
    for expert in experts:
        compile_blocks(expert)
    with torch.compiler.set_stance("force_eager") if context.scale.tiny else nullcontext():
        context.notes.take(name, measure)
    for block in (block for expert in experts for block in expert.blocks):
        del block.forward


def large(context: Context) -> None:
    """A pass at 720p, eager and compiled. A guided step has two."""
    bench = Bench(context.case(context.scale.large), context.place, TIMED, guidance=1.0)

    def ours() -> Row:
        turn = bench.ours()
        return {"s per pass": turn.step, "first pass s": turn.first, "decode s": turn.decode}

    context.notes.take(f"eager, {bench.kernel}", ours)
    take_compiled(context, bench, ours)


@dataclass
class Meter:
    """What a phase took."""

    device: torch.device
    events: list[Event]
    start: float = 0.0

    def reset(self) -> None:
        """A phase begins."""
        wait(self.device)
        self.events.clear()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.start = time.perf_counter()

    def row(self, claimed: int, planned: int) -> Row:
        """The phase is over; `claimed` bytes are what should live, `planned` what is kept free for it."""
        wait(self.device)
        seconds = time.perf_counter() - self.start
        came = [event for event in self.events if isinstance(event, ModelLoaded | ModelMoved)]
        row: Row = {
            "s": seconds,
            "live GiB": None,
            "claimed GiB": claimed / GIB,
            "reserved GiB": None,
            "used GiB": None,
            "planned GiB": planned / GIB,
            "moved GiB": sum(event.bytes for event in came) / GIB,
            "loading s": sum(event.seconds for event in came),
            "warnings": warnings_of(self.events),
        }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            row["live GiB"] = torch.cuda.max_memory_allocated(self.device) / GIB
            row["reserved GiB"] = torch.cuda.max_memory_reserved(self.device) / GIB
            row["used GiB"] = (total - free) / GIB
        return row


def warnings_of(events: list[Event]) -> str:
    """What an engine warned of."""
    return "; ".join(str(event) for event in events if isinstance(event, Warned))


def memory(context: Context) -> None:
    """Each memory mode phase by phase beside what `memory.py` claims; the VAE whole and in strips."""
    root = models_for(context)
    for mode in MODES:
        by_mode(context, root, mode)
    strips(context, support.find_models(root))


def int8(context: Context) -> None:
    """As `memory`, with the experts' weights as 8-bit integers."""
    by_mode(context, models_for(context), "resident", precision="int8")


def models_for(context: Context) -> Path:
    """The published models as files without content; tiny: the tests' own."""
    if context.scale.tiny:
        return support.MODELS
    from fake_gpu import write_models

    root = context.folder / "models"
    if not root.exists():
        write_models(root, 40, "BF16")
    return root


def by_mode(context: Context, root: Path, mode: MemoryMode, precision: str = "bf16") -> None:
    """A clip of two steps, one of each expert, without guidance."""
    notes, names = context.notes, ("text", "vae", "high", "low", "decode")
    label = mode if precision == "bf16" else f"{mode}, {precision}"
    if all(f"{label}: {name}" in notes.rows for name in names):
        return
    segment = small_segment(context, steps=2)
    events: list[Event] = []
    meter = Meter(context.device, events)
    item = VALUE_BYTES["float32" if context.device.type == "cpu" else "bfloat16"]
    parameters = count_parameters(support.find_models(root))
    needs = needs_of(parameters, item, segment.size, segment.frames, int8=precision == "int8")
    need, free, resident = needs[mode], None, 0
    if mode == "stream" and context.device.type == "cuda":
        free = CARD
        resident = choose(mode, free, needs).resident_blocks * needs.expert.block

    def phase(name: str, run: Callable[[], Any]) -> Any:
        meter.reset()
        made = run()
        use, more = need.sampling, resident
        if name not in ("high", "low"):
            use, more = needs["resident"].text if name == "text" else need.decoding, 0
            if name != "text" and svi.decodes_beside:  # the experts stay
                use = DeviceUse(need.sampling.weights, need.decoding.activations)
        if name == "together":
            use = need.together
        notes.keep(f"{label}: {name}", meter.row(use.minimum + more, use.total + more))
        return made

    options = {"memory": mode, "precision": precision, "free_memory": free}
    try:
        with engine(context, root, events.append, **options) as svi:
            phase("text", lambda: svi.prepare([segment]))
            checkpoint = support.Memory()
            *early, last = svi.phases(segment)
            for each in early:
                phase(each.model, partial(svi.advance, segment, None, checkpoint, support.ignore_step, each))
            sample = partial(svi.sample, segment, None, checkpoint, support.ignore_step)
            latents = phase(last.model, sample)
            phase("decode", lambda: list(svi.decode(segment, latents)))
            if svi.decodes_beside:
                phase("together", partial(decode_and_sample, svi, segment, latents))
    except Exception as error:  # noqa: BLE001 - the next mode may fit
        notes.keep(f"{label}: failed", {"error": f"{type(error).__name__}: {error}"[:400]})
    gc.collect()
    release()


def decode_and_sample(svi: Svi, segment: Segment, latents: Latents) -> None:
    """Decode a segment while another one is sampled."""
    with ThreadPoolExecutor(max_workers=1) as other:
        decoding = other.submit(lambda: list(svi.decode(segment, latents)))
        svi.sample(segment, None, support.Memory(), support.ignore_step)
        decoding.result()


def small_segment(context: Context, steps: int) -> Segment:
    """A clip whose steps are divided between the experts; it needs no guidance to be measured."""
    one = Guidance(1.0, 1.0)
    settings = support.sampler("2.0-pro", steps=steps, guidance=one, shift=1.0, boundary=0.9)
    return support.segment(0, "2.0-pro", settings, frames=context.scale.frames, size=context.scale.size)


def engine(context: Context, root: Path, report: Callable[[Event], None], **options: Any) -> Svi:
    """The engine as a film gets it, with a grey picture for anchor."""
    size = context.scale.size

    def picture(_anchor: object) -> Frame:
        return np.full((size.height, size.width, 3), 128, np.uint8)

    dtype = "float32" if context.device.type == "cpu" else "bfloat16"
    given = SviOptions(support.folders(root), dtype=dtype, device=context.device.type, **options)
    return Svi(given, digest=str, anchor_pixels=picture, report=report)


def strips(context: Context, paths: ModelPaths) -> None:
    """Decoding alone on the device: whole, in strips, in tiles."""
    from diffusers import AutoencoderKLWan

    size, frames = context.scale.size, context.scale.frames
    with torch.device(context.device):
        model = (
            AutoencoderKLWan().requires_grad_(requires_grad=False).eval() if not context.scale.tiny else None
        )
    if model is None:
        model = random_models(Shape(128, 256, 1), context.place, size, frames).vae
    parameters = count_parameters(paths)
    shape = (1, 16, (frames - 1) // 4 + 1, size.height // 8, size.width // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(context.device)
    meter, whole = Meter(context.device, []), list[torch.Tensor]()

    def claimed(count: int) -> tuple[int, int]:
        if count == vae.TILES:
            return 0, 0  # the last resort, of which nothing is claimed
        need = vae_need(parameters, size, frames, count)
        return need.minimum, need.total

    for count in (vae.WHOLE, *vae.STRIPS[:2], vae.TILES):

        def decode(count: int = count) -> Row:
            meter.reset()
            video = vae.decode(model, latents, count)
            row = meter.row(*claimed(count))
            video = video.cpu()
            if count == vae.WHOLE:
                whole.append(video)
            elif whole:
                row["largest difference"] = float((video - whole[0]).abs().max())
            return {name: cell for name, cell in row.items() if name not in ("moved GiB", "loading s")}

        context.notes.take(f"decoding, {vae.describe_strips(count)}", decode)


PLACES = {
    "text": "UMT5Block",
    "vae": "WanEncoder3d",
    "sampling": "WanTransformerBlock",
    "decode": "WanDecoder3d",
}
"""Modules in whose first call memory runs out, by phase."""


def oom(context: Context) -> None:
    """Memory runs out once in every phase, by a request that no device can grant: are the frames the same?"""
    undisturbed: list[tuple[Latents, list[Frame]]] = []

    def film(module: str | None) -> Row:
        events: list[Event] = []
        segment = small_segment(context, steps=4)
        with (
            too_large_in(module, context.device) as due,
            engine(context, support.MODELS, events.append) as svi,
        ):
            svi.prepare([segment])
            latents = svi.sample(segment, None, support.Memory(), support.ignore_step)
            frames = list(svi.decode(segment, latents))
        if not undisturbed:
            undisturbed.append((latents, frames))
        wanted, pictures = undisturbed[0]
        return {
            "ran out": str(not due),
            "same latents": str(np.array_equal(latents["latents"], wanted["latents"])),
            "same frames": str(np.array_equal(frames, pictures)),
            "warnings": warnings_of(events),
        }

    film(None)
    for phase, module in PLACES.items():
        context.notes.take(phase, partial(film, module))


@contextmanager
def too_large_in(module: str | None, device: torch.device) -> Iterator[list[str | None]]:
    """Have the first call of a class of modules ask for more memory than there is; yields who has not yet."""
    due = [module]

    def before(called: torch.nn.Module, _given: object) -> None:
        if type(called).__name__ in due:
            due.clear()
            torch.empty(2**46, dtype=torch.uint8, device=device)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(before)
    try:
        yield due
    finally:
        hook.remove()


def film(context: Context) -> None:
    """A chain of three clips; killed at five places with SIGKILL, and resumed: are the bytes the same?"""
    repeats, total = 1 if context.scale.tiny else REPEATS, gpu_film.CLIPS * gpu_film.STEPS
    places = {f"killed {n + 1}": (n + 1) * total // (repeats + 1) for n in range(repeats)}
    rows = context.notes.rows

    def is_same(name: str) -> bool:
        row = rows.get(name, {})
        return (row.get("same bytes"), row.get("exit code")) == ("True", 0)

    due = [name for name in places if not is_same(name)]
    if not due:
        return
    start = partial(gpu_film.start, device=context.device.type)
    whole = start(context.folder / "whole")
    whole.communicate()
    wanted = gpu_film.hashes(context.folder / "whole")
    context.notes.keep("undisturbed", {"entries": len(wanted), "exit code": whole.returncode})

    def kill_and_resume(name: str) -> None:
        folder = context.folder / name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)  # of a try that failed
        done, again = gpu_film.kill_after(start(folder), places[name]), start(folder)
        told, _ = again.communicate()
        row: Row = {
            "killed after steps": done,
            "steps then": len(told.split()),
            "of": total,
            "same bytes": str(bool(wanted) and gpu_film.hashes(folder) == wanted),
            "exit code": again.returncode,
        }
        context.notes.keep(name, row)

    with ThreadPoolExecutor(repeats) as pool:
        list(pool.map(kill_and_resume, due))
    if not all(map(is_same, places)):
        sys.exit("the films differ, or could not be rendered")


def tests(context: Context) -> None:
    """The tests that need a GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        str(TESTS / "test_svi_gpu.py"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parent)
    told = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    context.notes.keep("pytest", {"exit code": done.returncode, "said": " / ".join(told[-12:])[-1500:]})
    if done.returncode:
        sys.exit("\n".join(told))


PARTS: dict[str, Callable[[Context], None]] = {
    "step": step,
    "film": film,
    "memory": memory,
    "oom": oom,
    "int8": int8,
    "large": large,
    "tests": tests,
}


def main(part: str, out: str, device: str, scale: str) -> None:
    if device == "cuda":
        set_allocator()
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    notes = Notes(Path(out) / f"{part}.json")
    with TemporaryDirectory(prefix="svi-story-gpu-day-") as folder:
        PARTS[part](Context(torch.device(device), SCALES[scale], notes, Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
