"""The device: what is free, errors that mean memory ran out, what errors keep alive, torch's settings."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import svi_support as support
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from svi_story.engines.svi import attention, device, vae
from svi_story.engines.svi.device import (
    ALLOCATOR,
    configure,
    free_ram,
    is_out_of_memory,
    measure,
    none_if_out_of_memory,
    set_allocator,
)
from svi_story.render.distributed.driver import workers_by_node
from svi_story.units import GIB

if TYPE_CHECKING:
    from pathlib import Path


# --- what is free


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=450 * GIB))


def group(folder: Path, limit: str, used: int, cached: int, prefix: str = "") -> None:
    """A control group; what it has cached belongs to what it uses."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if prefix else ("memory.max", "memory.current")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{text}\n")
    (folder / "memory.stat").write_text(
        f"anon {used - cached}\n{prefix}inactive_file {cached - 100}\n{prefix}active_file 100\n"
    )


@pytest.mark.usefixtures("machine")
def test_free_ram_is_what_all_control_groups_allow(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/slice/render\n")
    assert free_ram(tmp_path, own) == 450 * GIB
    group(tmp_path / "slice/render", "max", GIB, 200)
    assert free_ram(tmp_path, own) == 450 * GIB
    group(tmp_path / "slice", str(64 * GIB), 10 * GIB, 200)
    assert free_ram(tmp_path, own) == 54 * GIB + 200
    own.write_text("0::/gone/in/a/container\n")
    group(tmp_path, str(30 * GIB), 31 * GIB, 200)
    assert free_ram(tmp_path, own) == 0


@pytest.mark.usefixtures("machine")
def test_the_page_cache_is_free(tmp_path: Path) -> None:
    """After weights were hashed, a container's memory is full of their files."""
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    group(tmp_path, str(64 * GIB), 60 * GIB, 58 * GIB)
    assert free_ram(tmp_path, own) == 62 * GIB
    own.write_text("5:cpu:/a\n4:memory:/docker/abc\n")
    group(tmp_path / "memory", str(64 * GIB), 60 * GIB, 50 * GIB, "total_")
    assert free_ram(tmp_path, own) == 54 * GIB


@pytest.mark.usefixtures("machine")
def test_workers_on_one_host_share_its_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_ram", lambda: 120 * GIB)
    assert measure(support.CPU, 4).ram == measure(support.CPU).ram // 4 == 30 * GIB
    nodes: list[dict[str, Any]] = [
        {"NodeID": "a", "Resources": {"GPU": 8.0, "CPU": 64.0}},
        {"NodeID": "b", "Resources": {"CPU": 4.0}},
    ]
    assert workers_by_node(nodes, 6, 8) == {"a": 6, "b": 1}
    assert workers_by_node(nodes, 6, 0) == {"a": 6, "b": 4}


# --- out of memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
    ],
    ids=str,
)
def test_every_way_to_say_that_memory_ran_out(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_other_errors_are_not_out_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_what_a_call_held_is_given_back() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def run() -> int:
        tensor = torch.ones(3)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("full")

    assert none_if_out_of_memory(run) is None
    assert held[0]() is None


def test_an_error_that_is_kept_holds_no_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    forward = WanTransformerBlock.forward

    def failing(self: Any, *args: Any, **options: Any) -> torch.Tensor:
        out: torch.Tensor = forward(self, *args, **options)
        made.append(weakref.ref(out))
        if len(made) == 2:
            raise RuntimeError("a kernel failed")
        return out

    monkeypatch.setattr(WanTransformerBlock, "forward", failing)
    with support.engine() as svi:
        try:
            svi.sample(support.segment(), None, support.Memory(), support.ignore_step)
        except RuntimeError as error:
            kept = error
    assert str(kept) == "a kernel failed"
    assert [each() for each in made] == [None, None]


def test_the_vae_keeps_nothing_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = AutoencoderKLWan(base_dim=8).requires_grad_(requires_grad=False)
        video, latents = torch.empty(1, 3, 5, 32, 32), torch.empty(1, 16, 2, 4, 4)
    calls = 0
    forward = torch.nn.Conv3d.forward

    def failing(self: Any, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", failing)
    for run in (lambda: vae.decode(model, latents), lambda: vae.encode(model, video)):
        calls = 0
        assert none_if_out_of_memory(run) is None
        assert not any(isinstance(each, torch.Tensor) for each in (*model._feat_map, *model._enc_feat_map))


# --- settings


def test_float32_means_float32() -> None:
    """A variable of NVIDIA's containers switches TF32 on for matrix products."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = True
        configure()
        assert not matmul.allow_tf32
        assert not cudnn.allow_tf32
        assert not cudnn.benchmark
    finally:
        (matmul.allow_tf32, cudnn.allow_tf32), cudnn.benchmark = before, False


def test_the_allocator_is_set_once_and_the_user_s_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", chosen.append, raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    set_allocator.cache_clear()
    assert set_allocator() == "max_split_size_mb:512"
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    set_allocator.cache_clear()
    assert set_allocator() == set_allocator() == ALLOCATOR
    assert chosen == [ALLOCATOR]
    set_allocator.cache_clear()


def test_the_versions_of_kernels_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "version", {"flash_attn": "2.8.3"}.__getitem__)
    assert attention.kernel_versions("flash-attn-2") == {"flash_attn": "2.8.3"}
    assert attention.kernel_versions("torch-flash") == {}
