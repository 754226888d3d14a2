"""Checks whether this machine can render: one check for each requirement, with a remedy if it is not met.

Works without torch, without a GPU and without weights, as it is needed most where these are missing.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

from svi_story.commands import suggest
from svi_story.enginespec import spec_of
from svi_story.errors import StoryError
from svi_story.units import GIB, gib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from svi_story.engines.svi.weights.locate import ModelFolders, Weights

    State = Literal["ok", "warn", "lacking"]

INSTALL = "pip install 'svi-story[svi]'"
CUDA_BUILD = "pip install torch --index-url https://download.pytorch.org/whl/cu128"
FLASH = "after torch: pip install flash-attn --no-build-isolation"
PREVIEW = "a preview needs none: --engine animatic"
UNTRIED = {
    "Darwin": "svi-story was not tried on a Mac. Animatics, reviews and exports should work. The svi "
    "engine needs CUDA, which Macs do not have; it does not use Apple's GPU (MPS)",
    "Windows": "svi-story was not tried on Windows. Everything but --ray should work; if not, use WSL 2",
}
"""By `platform.system()`."""
PACKAGES = ("diffusers", "transformers", "tokenizers", "ftfy", "safetensors")


@dataclass(frozen=True)
class Check:
    """One thing that rendering needs."""

    name: str
    state: State
    """ok; warn: it works, but not as well as it could; lacking: nothing can be rendered without it."""
    detail: str
    remedy: str = ""
    """What to do about it; empty where there is nothing to do."""


@dataclass(frozen=True)
class Places:
    """The folders that rendering reads and writes."""

    models: ModelFolders
    films: Path
    cache: Path
    precision: str = "bf16"
    """How experts are held in memory: bf16 or int8."""


def examine(engine: str, places: Places) -> Iterator[Check]:
    """Everything that an engine needs, one after the other."""
    yield check_system()
    yield check_ffmpeg()
    yield check_fonts()
    for name, folder in (("disk for films", places.films), ("disk for the cache", places.cache)):
        yield check_disk(name, folder)
    if not spec_of(engine).uses_weights:
        return
    from svi_story.engines.svi.weights.locate import find_weights

    weights = find_weights(places.models)
    expert = expert_bytes(weights, places.precision)
    yield check_memory(expert, places.precision)
    yield from check_torch(expert)
    yield from check_weights(weights)
    if places.precision == "int8":
        yield check_prepared(weights)


def check_system() -> Check:
    """Python and the operating system, with what does not work there."""
    untried = UNTRIED.get(platform.system(), "")
    detail = f"{platform.python_version()} on {platform.platform(terse=True)}"
    return Check("Python", "warn" if untried else "ok", detail, untried)


def check_ffmpeg() -> Check:
    """The ffmpeg that encodes films."""
    from svi_story.cut.ffmpeg import encoder_versions, ffmpeg_path

    try:
        return Check("ffmpeg", "ok", f"{encoder_versions()[0].split(' Copyright')[0]} ({ffmpeg_path()})")
    except (StoryError, ImportError) as error:
        return Check("ffmpeg", "lacking", str(error), "pip install --force-reinstall imageio-ffmpeg moviepy")


def check_fonts() -> Check:
    """The fonts that come with the package."""
    from svi_story.media.text import BUNDLED, FOLDER

    missing = [name for name in BUNDLED.values() if not (FOLDER / name).is_file()]
    if missing:
        what = f"{len(missing)} of {len(BUNDLED)} are missing, as {missing[0]}"
        return Check("fonts", "lacking", what, "install svi-story again: its files are incomplete")
    return Check("fonts", "ok", f"{len(BUNDLED)} bundled")


def check_disk(name: str, folder: Path) -> Check:
    """Free space where films or finished segments go; the folder need not exist yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        remedy = "name another folder (-o, --cache), or fix its permissions"
        return Check(name, "lacking", f"{there} cannot be written", remedy)
    free = shutil.disk_usage(there).free
    detail = f"{gib(free)} free at {folder}"
    remedy = f"free some space, or name another folder (-o, --cache); see {suggest('cache gc')}"
    if free < GIB // 2:
        return Check(name, "lacking", detail, remedy)
    return Check(name, "warn", detail, remedy) if free < 10 * GIB else Check(name, "ok", detail)


def check_memory(expert: int, precision: str = "bf16") -> Check:
    """RAM, compared with what one expert takes."""
    import psutil

    from svi_story.engines.svi.device import free_ram

    available = free_ram()
    detail = f"{gib(available)} of {gib(psutil.virtual_memory().total)} available"
    if expert and available < expert:
        remedy = "close other programs; experts that do not fit the GPU wait in RAM"
        held = "int8" if precision == "int8" else "bfloat16"
        return Check("RAM", "warn", f"{detail}; an expert takes {gib(expert)} in {held}", remedy)
    return Check("RAM", "ok", detail)


def expert_bytes(weights: Weights, precision: str = "bf16") -> int:
    """What one expert takes in memory, from its headers; 0 where there is none."""
    from math import prod

    from svi_story.engines.svi.weights.architecture import is_quantized
    from svi_story.engines.svi.weights.formats import read_shards

    if "high" not in weights.used:
        return 0
    entries = read_shards(weights.used["high"].files)
    int8 = precision == "int8"
    sizes = {name: 1 if int8 and is_quantized(name, entry.shape) else 2 for name, entry in entries.items()}
    return sum(size * prod(entries[name].shape) for name, size in sizes.items())


def check_torch(expert: int) -> Iterator[Check]:
    """torch, what comes with it, the GPU and the attention kernels."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of CUDA's that is not there
        yield Check("torch", "lacking", f"cannot be imported ({error})", f"{CUDA_BUILD}, then {INSTALL}")
        yield check_gpu(expert, cuda_build="")
        return
    build = torch.version.cuda or ""
    yield Check("torch", "ok", f"{torch.__version__}, built for {f'CUDA {build}' if build else 'the CPU'}")
    missing = [name for name in PACKAGES if _version(name) is None]
    found = ", ".join(f"{name} {_version(name)}" for name in PACKAGES if name not in missing)
    if missing:
        yield Check("libraries", "lacking", f"missing: {', '.join(missing)}", INSTALL)
    else:
        yield Check("libraries", "ok", found)
    gpu = check_gpu(expert, cuda_build=build)
    yield gpu
    if "diffusers" not in missing:
        yield check_attention()


def check_gpu(expert: int, cuda_build: str) -> Check:
    """The GPU that torch would use. Small weights run without one."""
    if cuda_build:
        import torch

        with warnings.catch_warnings(record=True) as caught:  # torch reports an old driver with a warning
            warnings.simplefilter("always")
            usable = torch.cuda.is_available()
        if usable:
            return _describe_gpu()
        why = str(caught[0].message).partition(".")[0] if caught else "torch finds no GPU"
    else:
        why = "this torch is built for the CPU alone"
    listed = ask_nvidia_smi()
    if platform.system() == "Darwin":
        why = "a Mac has no CUDA, and Apple's GPU (MPS) is not supported"
        remedy = f"use a machine with an NVIDIA GPU; {PREVIEW}"
    elif not listed:
        why = "no NVIDIA driver was found"
        remedy = f"use a machine with an NVIDIA GPU and its driver; {PREVIEW}"
    elif cuda_build:
        remedy = f"the driver is too old for CUDA {cuda_build}, or hidden (CUDA_VISIBLE_DEVICES, containers)"
    else:
        remedy = f"pip uninstall torch; {CUDA_BUILD}"
    detail = f"{why}; {listed}" if listed else why
    if 0 < expert < GIB:
        return Check("GPU", "warn", f"{detail}; these small weights run on the CPU", remedy)
    return Check("GPU", "lacking", detail, remedy)


def _describe_gpu() -> Check:
    import torch

    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    capability = f"{properties.major}.{properties.minor}"
    driver = ask_nvidia_smi().rpartition("driver ")[2] or "unknown"
    detail = f"{properties.name}, {gib(free)} of {gib(total)} free, compute {capability}, driver {driver}"
    if properties.major < 8 and not torch.version.hip:
        return Check("GPU", "warn", detail, "bfloat16 is slow before compute capability 8.0 (Ampere)")
    return Check("GPU", "ok", detail)


def ask_nvidia_smi() -> str:
    """The first GPU as nvidia-smi reports it; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own tool, without untrusted text
            command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=30
        )
        name, memory, driver = done.stdout.decode(errors="replace").splitlines()[0].split(", ")
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ""
    return f"{name}, {memory}, driver {driver}"


def check_attention() -> Check:
    """The attention kernel that would run, and those that could."""
    import torch

    from svi_story.engines.svi.attention import BACKENDS, CHANGES, choose_kernel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16
    chosen = choose_kernel(device, dtype)
    tried = {kernel: _kernel_problem(kernel, device, dtype) for kernel in BACKENDS}
    run = ", ".join(kernel for kernel, problem in tried.items() if not problem)
    if tried[chosen]:
        remedy = f"build it for this torch ({FLASH}), or choose another: --attention torch-flash"
        return Check("attention", "lacking", f"{tried[chosen]}; these run: {run or 'none'}", remedy)
    detail = f"{chosen} (these run: {run})"
    others = [f"{name} ({CHANGES[name]})" for name in CHANGES if name != chosen and not tried[name]]
    if others and device.type == "cuda":
        detail += f"; --attention may be faster with {', '.join(others)}"
    if device.type == "cuda" and not chosen.startswith("flash-attn"):
        return Check("attention", "warn", f"{detail}; the authors saw artifacts without flash-attn", FLASH)
    return Check("attention", "ok", detail)


def _kernel_problem(kernel: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why a kernel does not run here; empty when it does."""
    from svi_story.engines.svi.attention import check_kernel
    from svi_story.engines.svi.weights.architecture import HEAD_SIZE

    try:
        check_kernel(kernel, device, dtype, HEAD_SIZE)
    except StoryError as error:
        return str(error).partition(" (")[0]
    return ""


def check_weights(weights: Weights) -> Iterator[Check]:
    """The weights of each variant, by names, sizes and headers; one whole variant is enough."""
    from svi_story.engines.svi.weights.catalogue import VARIANTS, parts_for

    lacking = {variant: weights.missing(parts_for(variant)) for variant in VARIANTS}
    state: State = "lacking" if all(lacking.values()) else "warn"
    for variant, missing in lacking.items():
        name = f"weights of SVI {variant}"
        if missing:
            problems = [*weights.problems(missing), weights.not_found(missing)]
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            get, check = suggest("models download", "--variant", variant), suggest("models check")
            remedy = f"{get}; every problem: {check}"
            yield Check(name, state, f"{str(problems[0]).partition(';')[0]}{more}", remedy)
        else:
            statuses = [weights.status(part) for part in parts_for(variant)]
            files, size = sum(len(each.files) for each in statuses), sum(each.bytes for each in statuses)
            yield Check(name, "ok", f"{files} files, {size / 1e9:.1f} GB, headers complete")


def check_prepared(weights: Weights) -> Check:
    """The experts that were prepared in int8, whatever their LoRAs."""
    from svi_story.engines.svi.weights.prepared import read_manifest

    experts: list[str] = []
    problems: list[str] = []
    for file in weights.prepared:
        try:
            experts.append(read_manifest(file).origin.expert)
        except StoryError as error:
            problems.append(str(error))
    counts = ", ".join(f"{experts.count(name)} {name}-noise" for name in ("high", "low"))
    found = f"{counts} experts; the LoRAs decide which is used" if experts else "none"
    detail = "; ".join([found, *problems])
    ready = {*experts} == {"high", "low"} and not problems
    command = suggest("models prepare")
    remedy = "" if ready else f"{command}: else every start reads and quantises the sources"
    return Check("prepared weights", "ok" if ready else "warn", detail, remedy)


def check_every_byte(places: Places) -> Check:
    """The weights that are there, every byte of them: hashes, shapes, numbers."""
    from svi_story.engines.svi.weights.catalogue import PARTS
    from svi_story.engines.svi.weights.hashes import hash_each_once
    from svi_story.engines.svi.weights.inspection import inspect
    from svi_story.engines.svi.weights.locate import find_weights

    digest = hash_each_once()
    weights = find_weights(places.models, digest)
    there = [status for part in PARTS if (status := weights.status(part)).state != "missing"]
    report = inspect(weights, there, digest)
    known = sum(bool(file.known) for file in report.files)
    if report.problems:
        what = f"{report.problems[0]} ({len(report.problems)} problems)"
        return Check("every byte", "lacking", what, f"{suggest('models check')} lists all of them")
    return Check("every byte", "ok", f"{len(report.files)} files read, {known} known by their hash")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
