"""Which attention kernel runs, chosen by name. Never another one silently, never one from a hub.

The SVI authors saw artifacts without flash-attn, so it is preferred; torch's own kernels follow by name.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from svi_story.errors import InputError

if TYPE_CHECKING:
    import torch
    from diffusers import WanTransformer3DModel

BACKENDS = {
    "flash-attn-3": "_flash_3",
    "flash-attn-2": "flash",
    "torch-flash": "_native_flash",
    "torch-cudnn": "_native_cudnn",
    "torch-efficient": "_native_efficient",
    "torch-math": "_native_math",
}
"""Kernels by our names -> diffusers'."""
_PACKAGES = {"flash-attn-3": "flash_attn_3", "flash-attn-2": "flash_attn"}
"""Modules of the kernels that come in packages of their own, which have the same names."""


def choose_kernel(device: torch.device, dtype: torch.dtype, requested: str = "auto") -> str:
    """The kernel to use: the requested one, else the first of those installed that suits device and dtype.

    Raises InputError for an unknown name.
    """
    import torch

    if requested != "auto":
        if requested not in BACKENDS:
            raise InputError(f"no attention kernel {requested!r}; use one of auto, {', '.join(BACKENDS)}")
        return requested
    if device.type != "cuda":
        return "torch-flash"
    if dtype == torch.float32:
        return "torch-efficient"  # the flash kernels know 16-bit numbers only
    if torch.cuda.get_device_capability(device)[0] == 9 and find_spec(_PACKAGES["flash-attn-3"]):
        return "flash-attn-3"  # written for Hopper
    return "flash-attn-2" if find_spec(_PACKAGES["flash-attn-2"]) else "torch-flash"


def check_kernel(kernel: str, device: torch.device, dtype: torch.dtype, head_size: int) -> None:
    """Run a kernel once on little data. Raises InputError when it cannot run here."""
    import torch
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    some_BLHD = torch.ones(1, 16, 1, head_size, device=device, dtype=dtype)
    try:
        with torch.no_grad(), attention_backend(BACKENDS[kernel]):
            dispatch_attention_fn(some_BLHD, some_BLHD, some_BLHD)
    except (ImportError, RuntimeError, ValueError, TypeError) as error:
        what = f"the attention kernel {kernel} cannot be used here: {error}"
        remedy = f"build it for this torch, or choose another: --attention {' | '.join(BACKENDS)}"
        raise InputError(f"{what} ({remedy})") from error


def kernel_versions(kernel: str) -> dict[str, str]:
    """The package that a kernel comes from and its version, which may change bits; empty for torch's own."""
    package = _PACKAGES.get(kernel)
    if package is None:
        return {}
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {package: "unknown"}


def use_kernel(model: WanTransformer3DModel, kernel: str) -> None:
    """Make a model use one kernel and no other."""
    model.set_attention_backend(BACKENDS[kernel])
