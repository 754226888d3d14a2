"""How long does loading an expert take, and how much memory, beside reading its file and beside diffusers?"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import QUEUEING, Finding, Result, Table, finish, options, progress, run_alone, shown, workplace
from wan import NOT_ON_A_GPU, Shape, random_expert

from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.weights.catalogue import ModelFiles, ModelPaths
from svi_story.engines.svi.weights.loading import Placement
from svi_story.engines.svi.weights.lora import SVI_TARGETS, LoraUse

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from common import Cell
    from torch import Tensor

WEIGHTS, LORA, OUT = "diffusion_pytorch_model.safetensors", "lora.safetensors", "took.json"
RANK = 128
"""As SVI's own LoRAs have."""
READ, OURS, MERGED, DIFFUSERS = "read", "ours", "lora", "diffusers"
NAMES = {
    READ: "read the file",
    OURS: "ours",
    MERGED: f"ours, a LoRA of rank {RANK} on every layer",
    DIFFUSERS: "diffusers, from_pretrained(low_cpu_mem_usage=True)",
}
ABOUT = (
    "Each in a process of its own; the libraries are imported before the clock starts. The peak is what the "
    "process held at most (VmHWM, mapped pages of the file included) beyond what it held before. *read the "
    "file* reads it in pieces of 16 MB and keeps nothing: no peak, the least time any loader can take. The "
    "file is bfloat16 and becomes bfloat16; ours copies every weight, checks each for NaN and infinity, and "
    "diffusers keeps a few small modules in float32. diffusers leaves the weights mapped: its seconds and "
    "peak do not include reading them, which happens at their first use. So the two are not alike."
)


def prepare(folder: Path, shape: Shape) -> None:
    """Write an expert in diffusers' layout, and a LoRA for every layer that SVI's change."""
    import torch
    from safetensors.torch import save_file

    expert = random_expert(shape, torch.device("cpu"), torch.bfloat16)
    expert.save_pretrained(folder, max_shard_size="100GB")
    factors: dict[str, Tensor] = {}
    targets = {*SVI_TARGETS, *(name.replace("attn1", "attn2") for name in SVI_TARGETS)}
    for name, weight in expert.named_parameters():
        module = name.removesuffix(".weight")
        if re.sub(r"^blocks\.\d+\.", "", module) in targets and name != module:
            out, inner = weight.shape
            factors[f"{module}.lora_A.weight"] = torch.randn(RANK, inner, dtype=torch.bfloat16)
            factors[f"{module}.lora_B.weight"] = torch.randn(out, RANK, dtype=torch.bfloat16) * 1e-3
    save_file(factors, folder / LORA)


def read(folder: Path) -> None:
    """The file from beginning to end, nothing kept."""
    piece = bytearray(16_000_000)
    with (folder / WEIGHTS).open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def load_ours(folder: Path, uses: list[LoraUse]) -> object:
    """The expert as the engine loads it."""
    import torch

    files, none = ModelFiles((folder / WEIGHTS,), folder / "config.json"), ModelFiles((), None)
    experts = Experts(
        ModelPaths(files, files, none, none, folder),
        Placement(torch.device("cpu"), torch.bfloat16),
        "torch-flash",
    )
    experts.set_loras({"high": uses, "low": []})
    return experts.use("high")


def load_theirs(folder: Path) -> object:
    """The expert as diffusers loads it."""
    import torch
    from diffusers import WanTransformer3DModel

    loaded: object = WanTransformer3DModel.from_pretrained(
        folder, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True
    )
    return loaded


def child(way: str, folder: Path) -> None:
    """Load once, and leave seconds and MB in a file."""
    ways: dict[str, Callable[[], object]] = {
        READ: partial(read, folder),
        OURS: partial(load_ours, folder, []),
        MERGED: partial(load_ours, folder, [LoraUse(folder / LORA, 1.0, whole=True)]),
        DIFFUSERS: partial(load_theirs, folder),
    }
    if way != READ:
        import diffusers.loaders.single_file_utils
        from diffusers import WanTransformer3DModel  # noqa: F401 - so that importing is not measured

        assert diffusers.loaders.single_file_utils
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak starts anew
    before, start = _status("VmRSS"), time.perf_counter()
    kept = ways[way]()
    took = {"seconds": time.perf_counter() - start, "peak": _status("VmHWM") - before}
    del kept
    (folder / OUT).write_text(json.dumps(took), "utf-8")


def _status(name: str) -> float:
    """A figure of this process in MB."""
    text = Path("/proc/self/status").read_text("ascii")
    return int(re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[0]) * 1024 / 1e6


def measure(folder: Path, chosen: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Every way's seconds and peak MB, taking turns."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in NAMES}
    for number in range(chosen.runs):
        for way, took in runs.items():
            progress(f"run {number + 1} of {chosen.runs}: {NAMES[way]}")
            if chosen.cold:
                _forget(folder)
            run_alone((sys.executable, __file__, "--child", way, "--folder", folder), folder)
            took.append(json.loads((folder / OUT).read_text("utf-8")))
    return runs


def _forget(folder: Path) -> None:
    """Take the files out of the page cache."""
    for path in (folder / WEIGHTS, folder / LORA):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def report(runs: dict[str, list[dict[str, float]]], megabytes: float, chosen: argparse.Namespace) -> Result:
    middle = {
        way: {key: statistics.median(run[key] for run in each) for key in ("seconds", "peak")}
        for way, each in runs.items()
    }
    least = {way: min(run["seconds"] for run in each) for way, each in runs.items()}
    rows: list[tuple[Cell, ...]] = [
        (
            NAMES[way],
            it["seconds"],
            least[way],
            it["seconds"] / middle[READ]["seconds"],
            it["peak"],
            it["peak"] / megabytes,
        )
        for way, it in middle.items()
    ]
    cache = "out of" if chosen.cold else "in"
    return Result(
        name="load",
        question="how long does loading an expert take, and how much memory?",
        settings={
            "runs": chosen.runs,
            "width": chosen.dim,
            "layers": chosen.layers,
            "file MB": round(megabytes),
            "file": f"{cache} the page cache",
        },
        tables=(
            Table(
                f"An expert of {megabytes:.0f} MB, bfloat16, median of {chosen.runs} runs",
                ("what", "s", "least s", "x reading", "peak MB", "x the file"),
                tuple(rows),
            ),
        ),
        findings=tuple(_finding(row, megabytes) for row in rows),
        notes=(NOT_ON_A_GPU, f"The file lies {cache} the page cache.", ABOUT, QUEUEING),
    )


def _finding(row: tuple[Cell, ...], megabytes: float) -> Finding:
    name, seconds, _, beside, peak, share = row
    figure = (
        f"{shown(seconds)} s ({shown(beside)} x reading), peak {shown(peak)} MB ({shown(share)} x the file)"
    )
    return Finding(f"load {megabytes:.0f} MB: {name} (CPU, small)", figure)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dim", type=int, default=2048, help="a multiple of 128")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--cold", action="store_true", help="take the files out of the page cache every time")
    parser.add_argument("--child", choices=(*NAMES, "prepare"), help="what this process does, for its parent")
    parser.add_argument("--folder", type=Path, help="where the child finds the files")
    chosen = parser.parse_args()
    if chosen.child == "prepare":
        prepare(chosen.folder, Shape(chosen.dim, 4 * chosen.dim, chosen.layers))
    elif chosen.child:
        child(chosen.child, chosen.folder)
    else:
        with workplace() as folder:
            progress("write an expert")
            sizes = ("--dim", str(chosen.dim), "--layers", str(chosen.layers))
            run_alone((sys.executable, __file__, "--child", "prepare", "--folder", folder, *sizes), folder)
            runs = measure(folder, chosen)
            megabytes = (folder / WEIGHTS).stat().st_size / 1e6
        finish(report(runs, megabytes, chosen), write=chosen.write)


if __name__ == "__main__":
    main()
