"""Can this machine render? One finding for each thing that is needed, and the cure for each lack.

Works without torch, without a GPU and without weights: that is when it is needed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from svi_story.enginespec import spec_of
from svi_story.errors import StoryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from svi_story.engines.svi.stock import Holding

    State = Literal["ok", "warn", "lacking"]

INSTALL = "pip install 'svi-story[svi]'"
CUDA_BUILD = "pip install torch --index-url https://download.pytorch.org/whl/cu128"
FLASH = "after torch: pip install flash-attn --no-build-isolation"
PREVIEW = "a preview needs none: --engine animatic"
PACKAGES = ("diffusers", "transformers", "tokenizers", "ftfy", "safetensors")
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that rendering needs."""

    name: str
    state: State
    """ok; warn: it works, but not as well as it could; lacking: nothing can be rendered without it."""
    detail: str
    cure: str = ""
    """What to do about it; empty where there is nothing to do."""


@dataclass(frozen=True)
class Places:
    """The folders that rendering reads and writes."""

    models: Path
    films: Path
    cache: Path


def examine(engine: str, places: Places) -> Iterator[Finding]:
    """Everything that an engine needs, one after the other."""
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield check_ffmpeg()
    yield check_fonts()
    for name, folder in (("disk for films", places.films), ("disk for the cache", places.cache)):
        yield check_disk(name, folder)
    if not spec_of(engine).uses_weights:
        return
    from svi_story.engines.svi.stock import survey

    holdings = survey(places.models)
    yield check_memory(expert_bytes(holdings))
    yield from check_torch(expert_bytes(holdings))
    yield from check_weights(holdings)


def check_ffmpeg() -> Finding:
    """The ffmpeg that encodes films."""
    from svi_story.cut.tools import encoder_versions, ffmpeg_path

    try:
        return Finding("ffmpeg", "ok", f"{encoder_versions()[0].split(' Copyright')[0]} ({ffmpeg_path()})")
    except (StoryError, ImportError) as error:
        return Finding(
            "ffmpeg", "lacking", str(error), "pip install --force-reinstall imageio-ffmpeg moviepy"
        )


def check_fonts() -> Finding:
    """The fonts that come with the package."""
    from svi_story.media.text import BUNDLED, FOLDER

    missing = [name for name in BUNDLED.values() if not (FOLDER / name).is_file()]
    if missing:
        what = f"{len(missing)} of {len(BUNDLED)} are missing, as {missing[0]}"
        return Finding("fonts", "lacking", what, "install svi-story again: its files are not whole")
    return Finding("fonts", "ok", f"{len(BUNDLED)} bundled")


def check_disk(name: str, folder: Path) -> Finding:
    """Room where films or finished segments go; the folder need not be there yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        cure = "name another folder (-o, --cache), or mend its permissions"
        return Finding(name, "lacking", f"{there} cannot be written", cure)
    free = shutil.disk_usage(there).free
    detail = f"{_gib(free)} free at {folder}"
    cure = "free some, or name another folder (-o, --cache); see svi-story cache gc"
    if free < GIB // 2:
        return Finding(name, "lacking", detail, cure)
    return Finding(name, "warn", detail, cure) if free < 10 * GIB else Finding(name, "ok", detail)


def check_memory(expert: int) -> Finding:
    """RAM, beside what one expert takes in bfloat16."""
    total, available = _memory()
    detail = f"{_gib(available)} of {_gib(total)} available"
    if expert and available < expert:
        cure = "close other programs; experts that do not fit the GPU wait in RAM"
        return Finding("RAM", "warn", f"{detail}; an expert takes {_gib(expert)} in bfloat16", cure)
    return Finding("RAM", "ok", detail)


def _memory() -> tuple[int, int]:
    """Bytes of RAM: in all, and available."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, available = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # not Linux: the system's own count is good enough
    return total, available


def expert_bytes(holdings: Sequence[Holding]) -> int:
    """What one expert takes in bfloat16, from its headers; 0 where there is none."""
    from math import prod

    from svi_story.engines.svi.tensors import read_header

    high = next(held for held in holdings if held.part.name == "high")
    if high.state != "ready":
        return 0
    shards = (file for file in high.files if file.suffix == ".safetensors")
    return sum(2 * prod(entry.shape) for file in shards for entry in read_header(file).values())


def check_torch(expert: int) -> Iterator[Finding]:
    """torch, what comes with it, the GPU and the attention kernels."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of CUDA's that is not there
        yield Finding("torch", "lacking", f"cannot be imported ({error})", f"{CUDA_BUILD}, then {INSTALL}")
        yield check_gpu(expert, cuda_build="")
        return
    build = torch.version.cuda or ""
    yield Finding("torch", "ok", f"{torch.__version__}, built for {f'CUDA {build}' if build else 'the CPU'}")
    missing = [name for name in PACKAGES if _version(name) is None]
    found = ", ".join(f"{name} {_version(name)}" for name in PACKAGES if name not in missing)
    if missing:
        yield Finding("libraries", "lacking", f"missing: {', '.join(missing)}", INSTALL)
    else:
        yield Finding("libraries", "ok", found)
    gpu = check_gpu(expert, cuda_build=build)
    yield gpu
    if "diffusers" not in missing:
        yield check_attention()


def check_gpu(expert: int, cuda_build: str) -> Finding:
    """The GPU that torch would use. Small weights do without one."""
    if cuda_build:
        import torch

        with warnings.catch_warnings(record=True) as said:  # torch tells of an old driver by a warning
            warnings.simplefilter("always")
            usable = torch.cuda.is_available()
        if usable:
            return _describe_gpu()
        why = str(said[0].message).partition(".")[0] if said else "torch finds no GPU"
    else:
        why = "this torch is built for the CPU alone"
    listed = ask_nvidia_smi()
    if not listed:
        why, cure = "no NVIDIA driver answers", f"use a machine with an NVIDIA GPU and its driver; {PREVIEW}"
    elif cuda_build:
        cure = f"the driver is too old for CUDA {cuda_build}, or hidden (CUDA_VISIBLE_DEVICES, containers)"
    else:
        cure = CUDA_BUILD
    detail = f"{why}; {listed}" if listed else why
    if 0 < expert < GIB:
        return Finding("GPU", "warn", f"{detail}; these small weights run on the CPU", cure)
    return Finding("GPU", "lacking", detail, cure)


def _describe_gpu() -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    capability = f"{properties.major}.{properties.minor}"
    driver = ask_nvidia_smi().rpartition("driver ")[2] or "unknown"
    detail = f"{properties.name}, {_gib(free)} of {_gib(total)} free, compute {capability}, driver {driver}"
    if properties.major < 8 and not torch.version.hip:
        return Finding("GPU", "warn", detail, "bfloat16 is slow before compute capability 8.0 (Ampere)")
    return Finding("GPU", "ok", detail)


def ask_nvidia_smi() -> str:
    """The first GPU as the driver's own tool tells it; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own tool, and no text of a stranger
            command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=30
        )
        name, memory, driver = done.stdout.decode(errors="replace").splitlines()[0].split(", ")
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ""
    return f"{name}, {memory}, driver {driver}"


def check_attention() -> Finding:
    """The attention kernel that would run, and those that could."""
    import torch

    from svi_story.engines.svi.attention import BACKENDS, choose_kernel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16
    chosen = choose_kernel(device, dtype)
    tried = {kernel: _kernel_problem(kernel, device, dtype) for kernel in BACKENDS}
    run = ", ".join(kernel for kernel, problem in tried.items() if not problem)
    if tried[chosen]:
        cure = f"build it for this torch ({FLASH}), or choose another: --attention torch-flash"
        return Finding("attention", "lacking", f"{tried[chosen]}; these run: {run or 'none'}", cure)
    detail = f"{chosen} (these run: {run})"
    if device.type == "cuda" and not chosen.startswith("flash-attn"):
        return Finding("attention", "warn", f"{detail}; the authors saw artifacts without flash-attn", FLASH)
    return Finding("attention", "ok", detail)


def _kernel_problem(kernel: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why a kernel does not run here; empty when it does."""
    from svi_story.engines.svi.architecture import HEAD_SIZE
    from svi_story.engines.svi.attention import check_kernel

    try:
        check_kernel(kernel, device, dtype, HEAD_SIZE)
    except StoryError as error:
        return str(error).partition(" (")[0]
    return ""


def check_weights(holdings: Sequence[Holding]) -> Iterator[Finding]:
    """The weights of each variant, by names, sizes and headers; one whole variant is enough."""
    from svi_story.engines.svi.catalog import VARIANTS, parts_for
    from svi_story.engines.svi.stock import lacks

    lacking = {variant: lacks(holdings, variant) for variant in VARIANTS}
    state: State = "lacking" if all(lacking.values()) else "warn"
    for variant, problems in lacking.items():
        name = f"weights of SVI {variant}"
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            cure = f"svi-story models download --variant {variant}; all that is wrong: svi-story models check"
            yield Finding(name, state, f"{str(problems[0]).partition(';')[0]}{more}", cure)
        else:
            parts = [held for held in holdings if held.part in parts_for(variant)]
            files, size = sum(len(held.files) for held in parts), sum(held.bytes for held in parts)
            yield Finding(name, "ok", f"{files} files, {size / 1e9:.1f} GB, headers whole")


def check_every_byte(places: Places) -> Finding:
    """The weights that are there, every byte of them: hashes, shapes, numbers."""
    from svi_story.engines.svi.inspection import inspect
    from svi_story.engines.svi.stock import survey

    there = [held for held in survey(places.models) if held.state != "missing"]
    report = inspect(places.models, there)
    known = sum(bool(file.known) for file in report.files)
    if report.problems:
        what = f"{report.problems[0]} ({len(report.problems)} problems)"
        return Finding("every byte", "lacking", what, "svi-story models check tells all of them")
    return Finding("every byte", "ok", f"{len(report.files)} files read, {known} known by their hash")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
