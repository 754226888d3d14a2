"""torch.compile for the blocks of the experts: one graph for all of them, in both experts.

Weights are inputs of the graph, and lengths are symbols in it. So other LoRAs, sizes and memory modes, and
buffers through which blocks are streamed, compile nothing again. Hooks stay outside.
"""

from __future__ import annotations

import os
from types import MethodType
from typing import TYPE_CHECKING, Any

from svi_story.errors import InputError
from svi_story.settings import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from diffusers import WanTransformer3DModel
    from torch import Tensor

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable by which torch finds compiled kernels. The user's own value stays."""


def check_compiler(device: torch.device) -> None:
    """Raises InputError where torch cannot compile for a device; sets where compiled kernels are kept."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE) in (None, "", default_cache_dir()):  # torch sets it, too
        os.environ[CACHE] = str(user_cache() / "compiled")
    reason = _reason_against(device)
    if reason:
        raise InputError(f"--compile cannot be used here: {reason}; install it, or leave out --compile")


def _reason_against(device: torch.device) -> str:
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "torch finds no Triton that suits this GPU"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return "torch finds no C++ compiler"
    return ""


def compile_blocks(model: WanTransformer3DModel) -> None:
    """Compile a model's blocks when they first compute. Raises torch's errors then."""
    for block in model.blocks:
        block.forward = MethodType(_compiled(type(block).forward), block)
    model.rope.register_forward_hook(_own_memory)


def _compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    import torch

    # a graph break would be silent, and slow: fullgraph makes it an error
    return torch.compile(forward, fullgraph=True, dynamic=True)


def _own_memory(_module: Any, _inputs: Any, rotary: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Positions that are no views: torch compiles again where the sizes of what was viewed differ."""
    return tuple(each.clone() for each in rotary)


def is_compile_error(error: BaseException) -> bool:
    """Whether compiling failed, and not computing."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
