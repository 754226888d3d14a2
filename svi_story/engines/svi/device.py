"""The device: torch's settings, free memory, and errors that mean that memory ran out."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

T = TypeVar("T")

ALLOCATOR = "expandable_segments:True"
"""Segments that grow keep large activations from failing in fragmented memory."""

OUT_OF_MEMORY = (
    "alloc_failed",  # cuBLAS and cuDNN 8
    "allocation_failed",  # cuDNN 9, on the device and on the host
    "cublas_status_not_initialized",  # its handle needs memory
    "out of memory",  # CUDA's runtime and driver, Triton, pinned memory
    "can't allocate memory",  # torch's allocator of the CPU
    "unable to find an engine",  # cuDNN, when no workspace fits
)
"""Parts of messages, in lower case, by which libraries say that memory ran out."""


@dataclass(frozen=True)
class FreeMemory:
    """In bytes."""

    vram: int
    ram: int
    shared: bool = False
    """Whether both are the same memory, as on the CPU."""


def configure(threads: int = 0) -> None:
    """torch's settings that change numbers, whatever the environment or a container's image set before.

    float32 means float32, in matrix products and convolutions, and no kernel is chosen by how fast it ran.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def take_over_threads() -> None:
    """Have this thread compute with as many threads as were set for all; the last bits depend on it."""
    import torch

    torch.get_num_threads()  # which sets them in a thread that has not computed yet


@cache
def set_allocator() -> str:
    """Set up torch's allocator of GPU memory, once per process; returns its settings. The user's go first."""
    import torch

    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if chosen := os.environ.get(name):
            return chosen
    name = "_accelerator_setAllocatorSettings"  # of newer versions, where the old name warns
    getattr(torch._C, name, torch.cuda.memory._set_allocator_settings)(ALLOCATOR)
    return ALLOCATOR


def describe(device: torch.device) -> dict[str, str]:
    """What the last bits of a sum on a device depend on, by name."""
    import torch

    is_gpu = device.type == "cuda"
    return {
        **({} if is_gpu else {"threads": str(torch.get_num_threads())}),
        "device": torch.cuda.get_device_name(device) if is_gpu else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }


def find_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the GPU where there is one."""
    import torch

    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if name == "auto" else name)


def none_if_out_of_memory(run: Callable[[], T]) -> T | None:
    """What a call returns; None when memory ran out, with all that the call held given back."""
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release()  # outside of the except clause: the error holds the call's frames, and so its tensors
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that GPU memory or RAM ran out."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY)


@contextmanager
def errors_without_tensors() -> Iterator[None]:
    """Let no error that leaves hold tensors: who keeps it would keep a pass's activations alive."""
    try:
        yield
    except BaseException as error:
        part: BaseException | None = error
        while part is not None:
            traceback.clear_frames(part.__traceback__)
            part = part.__cause__ or part.__context__
        raise


class SideStream:
    """A stream of a GPU besides the usual one, for a thread whose work nobody else waits for.

    One for all such work: memory that was used in a stream is kept for its next use there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def used(self, wanted: bool) -> Iterator[None]:  # noqa: FBT001 - it says where the work is done
        """Do what is done inside in this stream, if that is wanted and there are streams."""
        import torch

        if not wanted or self._device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch has no types
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # weights may be on their way
        with torch.cuda.stream(self._stream):
            yield


def release() -> None:
    """Give freed memory back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(device: torch.device, sharing: int = 1) -> FreeMemory:
    """What is free now on the device, and this process's part of the free RAM of its machine.

    `sharing` is the number of worker processes there, which all measure before any of them loads a model.
    """
    import torch

    ram = free_ram() // sharing
    if device.type != "cuda":
        return FreeMemory(ram, ram, shared=True)
    release()
    return FreeMemory(torch.cuda.mem_get_info(device)[0], ram)


def free_ram(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of RAM that this process may still take, within the limits of its control groups.

    The page cache counts as free: a group that has read large files is full of it, and gives it up.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    version_2 = ("memory.max", "memory.current", "")
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    try:
        groups = [line.split(":", 2) for line in own.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return free
    for _, controllers, path in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (cgroups / "memory", version_1) if controllers else (cgroups, version_2)
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            free = min(free, _free_in_group(root / folder, *names))
    return max(0, free)


def _free_in_group(folder: Path, limit_name: str, used_name: str, prefix: str) -> int:
    """Bytes below a control group's limit; a huge number where it has none."""
    try:
        limit, used = (int((folder / name).read_text("ascii")) for name in (limit_name, used_name))
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
        counts = {name: int(count) for name, _, count in (line.partition(" ") for line in lines)}
    except (OSError, ValueError):  # no such group, or "max"
        return sys.maxsize
    cached = sum(counts.get(f"{prefix}{part}_file", 0) for part in ("inactive", "active"))
    return limit - max(0, used - cached)
