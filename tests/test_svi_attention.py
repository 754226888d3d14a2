"""Kernels that come in packages of their own: which builds are taken, and torch's switch between them."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch.nn import attention as of_torch

from svi_story.engines.svi import attention
from svi_story.errors import InputError
from svi_story.render import doctor

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = torch.device("cpu")


def check(kernel: str) -> None:
    attention.check_kernel(kernel, CPU, torch.bfloat16, 64)


class Handle:
    """What torch keeps of a kernel that it switched to."""

    removed = False

    def remove(self) -> None:
        self.removed = True


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Handle]:
    """A build of flash-attn 4 that torch accepts; on a CPU torch's own kernel still computes."""
    made = Handle()
    monkeypatch.setitem(of_torch._registry._FLASH_ATTENTION_IMPLS, "FA4", lambda: made)
    yield made
    of_torch.restore_flash_attention_impl(_raise_warn=False)


def test_torch_switches_to_flash_attn_and_back(handle: Handle) -> None:
    check("flash-attn-4")
    check("flash-attn-4")
    assert of_torch.current_flash_attention_impl() == "FA4"
    assert not handle.removed
    check("torch-flash")
    assert of_torch.current_flash_attention_impl() is None
    assert handle.removed


def test_a_missing_build_is_an_error_and_leaves_torch_as_it_was() -> None:
    for kernel in ("flash-attn-4", "flash-attn-3", "flash-attn-2"):
        with pytest.raises(
            InputError, match=f"the attention kernel {kernel} cannot be used here: .*flash.attn"
        ):
            check(kernel)
    assert of_torch.current_flash_attention_impl() is None


def test_an_older_torch_cannot_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(of_torch, "activate_flash_attention_impl")
    with pytest.raises(InputError, match="this torch cannot switch to it"):
        check("flash-attn-4")
    check("torch-flash")


def test_sage_1_from_pypi_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="sageattention is not installed; build version 2 from https"):
        check("sage-2")
    monkeypatch.setattr(attention, "version", lambda _: "1.0.6")
    with pytest.raises(
        InputError, match=r"sageattention 1\.0\.6 is version 1, another kernel, and all that PyPI"
    ):
        check("sage-2")
    monkeypatch.setattr(attention, "version", lambda _: "2.2.0")
    with pytest.raises(InputError, match="sage-2 cannot be used here") as found:
        check("sage-2")  # diffusers looks for the package itself
    assert "version 1" not in str(found.value)


class Blackwell(ModuleType):
    """What a build of SageAttention 3 does, but for 4-bit numbers. It changes the keys that it is given."""

    def __init__(self) -> None:
        super().__init__("sageattn3")
        self.seen: list[tuple[int, ...]] = []

    def sageattn3_blackwell(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool = False, **_: Any
    ) -> torch.Tensor:
        assert not is_causal
        self.seen.append(tuple(q.shape))
        k -= k.mean(dim=-2, keepdim=True)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def test_sage_3_comes_from_a_build_and_takes_self_attention_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"sage-3 cannot be used here: sageattn3 is not inst.* from https"):
        check("sage-3")
    build = Blackwell()
    monkeypatch.setitem(sys.modules, "sageattn3", build)
    hub = attention_dispatch._HUB_KERNELS_REGISTRY[AttentionBackendName.SAGE_BLACKWELL_HUB]
    monkeypatch.setattr(hub, "kernel_fn", None)
    check("sage-3")
    assert build.seen.pop() == (1, 1, 16, 64)
    for dtype, head in ((torch.float32, 64), (torch.bfloat16, 256)):
        with pytest.raises(InputError, match="it takes bfloat16 and heads of 64 or 128, not"):
            attention.check_kernel("sage-3", CPU, dtype, head)
    sizes = {"num_attention_heads": 1, "ffn_dim": 64, "num_layers": 2, "text_dim": 32}
    model = WanTransformer3DModel(in_channels=36, **sizes).to(torch.bfloat16)
    inputs = (torch.ones(1, 36, 1, 4, 4), torch.ones(1), torch.ones(1, 512, 32))
    made = {}
    for kernel in ("torch-flash", "sage-3", "torch-math"):
        attention.use_kernel(model, kernel)
        with torch.no_grad():
            video, time, words = (part.to(torch.bfloat16) for part in inputs)
            made[kernel] = model(video, time, words, return_dict=False)[0].float()
    assert build.seen == [(1, 1, 4, 128)] * 2
    assert (made["sage-3"] - made["torch-flash"]).abs().max() < 0.05 * made["torch-flash"].std()
    monkeypatch.setattr(attention_dispatch, "AttentionBackendName", object())
    with pytest.raises(RuntimeError, match="update diffusers"):
        attention._sage_3()


def test_versions_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        known = {"sageattention": "2.2.0", "sageattn3": "1.0.0", "flash-attn-4": "4.0.1"}
        if name not in known:
            raise PackageNotFoundError
        return known[name]

    monkeypatch.setattr(attention, "version", version)
    assert attention.kernel_versions("sage-2") == {"sageattention": "2.2.0"}
    assert attention.kernel_versions("sage-3") == {"sageattn3": "1.0.0"}
    assert attention.kernel_versions("flash-attn-4") == {"flash-attn-4": "4.0.1"}
    assert attention.kernel_versions("flash-attn-3") == {"flash_attn_3": "unknown"}


def test_the_doctor_says_what_may_be_faster_and_what_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("svi_story.engines.svi.attention.choose_kernel", lambda *_: "flash-attn-3")

    def problem(kernel: str, *_: Any) -> str:
        return "" if kernel in {"flash-attn-3", "torch-cudnn", "sage-2", "sage-3"} else "missing"

    monkeypatch.setattr(doctor, "_kernel_problem", problem)
    found = doctor.check_attention()
    assert found.state == "ok"
    assert "may be faster with torch-cudnn (exact attention, other rounding), sage-2 (8-bit" in found.detail
    assert "sage-3 (4-bit products in self-attention, so other pictures" in found.detail
