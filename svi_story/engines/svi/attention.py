"""Which attention kernel runs, chosen by name. Never another one silently, never one from a hub.

The SVI authors saw artifacts without flash-attn, so it is preferred; torch's own kernels follow by name.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from svi_story.errors import InputError

if TYPE_CHECKING:
    import torch
    from diffusers import WanTransformer3DModel

BACKENDS = {
    "flash-attn-4": "_native_flash",
    "flash-attn-3": "_flash_3",
    "flash-attn-2": "flash",
    "sage-2": "sage",
    "sage-3": "_native_flash",
    "torch-flash": "_native_flash",
    "torch-cudnn": "_native_cudnn",
    "torch-efficient": "_native_efficient",
    "torch-math": "_native_math",
}
"""Kernels by our names -> diffusers'. torch can put flash-attn 4 in the place of its own flash kernel.

With sage-3 this one computes the attention to the text, which is short.
"""
_SWITCHES = {"flash-attn-4": "FA4", "flash-attn-3": "FA3"}
"""Kernels that newer versions of torch run in place of their own flash kernel, by torch's names."""
_PACKAGES = {
    "flash-attn-4": "flash-attn-4",
    "flash-attn-3": "flash_attn_3",
    "flash-attn-2": "flash_attn",
    "sage-2": "sageattention",
    "sage-3": "sageattn3",
}
"""Packages that kernels come in."""
SAGE = "https://github.com/thu-ml/SageAttention"

CHANGES = {
    "flash-attn-4": "exact attention, other rounding",
    "flash-attn-3": "exact attention, other rounding",
    "torch-cudnn": "exact attention, other rounding",
    "sage-2": "8-bit products, so other pictures, which nobody has judged over a long film",
    "sage-3": "4-bit products in self-attention, so other pictures, which nobody has judged over a long film",
}
"""Kernels that may be faster than the one that `auto` takes, and what each changes."""


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
    if torch.cuda.get_device_capability(device)[0] == 9 and find_spec("flash_attn_3"):
        return "flash-attn-3"  # written for Hopper
    return "flash-attn-2" if find_spec("flash_attn") else "torch-flash"


def check_kernel(kernel: str, device: torch.device, dtype: torch.dtype, head_size: int) -> None:
    """Run a kernel once on little data. Raises InputError when it cannot run here."""
    import torch
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    some_BLHD = torch.ones(1, 16, 1, head_size, device=device, dtype=dtype)
    try:
        with torch.no_grad(), attention_backend(_backend(kernel)):
            dispatch_attention_fn(some_BLHD, some_BLHD, some_BLHD)
            if kernel == "sage-3":
                _check_sage_3(dtype, head_size)
                dispatch_attention_fn(some_BLHD, some_BLHD, some_BLHD, backend=_sage_3())
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
    """Make a model use one kernel and no other. torch's own switch, where it is needed, is the process's."""
    model.set_attention_backend(_backend(kernel))
    if kernel == "sage-3":
        for block in model.blocks:
            block.attn1.processor._attention_backend = _sage_3()


def _backend(kernel: str) -> str:
    """diffusers' name of a kernel, with torch's switch set as the kernel needs it.

    Raises ImportError or RuntimeError where the kernel's package is missing or unfit.
    """
    from torch.nn import attention

    if kernel == "sage-2":
        _check_sage()
    wanted = _SWITCHES.get(kernel)
    if not hasattr(attention, "activate_flash_attention_impl"):  # torch before 2.11
        if kernel == "flash-attn-4":
            raise RuntimeError("this torch cannot switch to it; 2.11 and newer can")
        return BACKENDS[kernel]
    if attention.current_flash_attention_impl() != wanted:
        attention.restore_flash_attention_impl(_raise_warn=False)
        if wanted:
            attention.activate_flash_attention_impl(wanted)
    return "_native_flash" if wanted else BACKENDS[kernel]


def _check_sage() -> None:
    """Refuse SageAttention 1, which has the same name and is all that PyPI offers."""
    try:
        found = version("sageattention")
    except PackageNotFoundError:
        raise ImportError(f"sageattention is not installed; build version 2 from {SAGE}") from None
    if int(found.partition(".")[0]) < 2:
        raise ImportError(
            f"sageattention {found} is version 1, another kernel, and all that PyPI has; build 2 from {SAGE}"
        )


def _check_sage_3(dtype: torch.dtype, head_size: int) -> None:
    """Refuse what SageAttention 3 does not: it would compute something else, or with another kernel."""
    import torch

    if dtype != torch.bfloat16 or head_size not in (64, 128):
        raise ValueError(f"it takes bfloat16 and heads of 64 or 128, not {dtype} and {head_size}")


def _sage_3() -> Any:
    """diffusers' name of SageAttention 3, with the build that is installed in the place of a hub's.

    Raises ImportError or RuntimeError where there is none, or diffusers is older than its name.
    """
    from diffusers.models import attention_dispatch

    try:
        build = import_module("sageattn3")
    except ImportError as error:
        how = f"build it on a Blackwell GPU from {SAGE}, folder sageattention3_blackwell"
        raise ImportError(f"sageattn3 is not installed ({error}); {how}") from error
    name = getattr(attention_dispatch.AttentionBackendName, "SAGE_BLACKWELL_HUB", None)
    if name is None:
        raise RuntimeError("this diffusers does not know it; update diffusers")
    attention_dispatch._HUB_KERNELS_REGISTRY[name].kernel_fn = build.sageattn3_blackwell
    return name
