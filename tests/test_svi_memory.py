"""Memory: what modes need, which is taken, the same bits on all, and what happens when it runs out."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import svi_support as support
import torch
from hypothesis import given
from hypothesis import strategies as st
from svi_support import Memory
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from svi_story.engines.svi import sampler, vae
from svi_story.engines.svi.device import FreeMemory
from svi_story.engines.svi.engine import Options, Svi
from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.memory import (
    MODES,
    MemoryPlan,
    choose,
    choose_smaller,
    decoding_activations,
    largest,
    needs_of,
    sampling_activations,
)
from svi_story.engines.svi.weights.architecture import A14B, count_parameters, counts_of
from svi_story.engines.svi.weights.catalogue import find_models
from svi_story.engines.svi.weights.loading import Placement, load_text_encoder, load_vae
from svi_story.enginespec.sampling import Lora
from svi_story.errors import InputError, RenderError
from svi_story.events import Warned
from svi_story.plan.model import Size
from svi_story.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from svi_story.engines.base import Latents
    from svi_story.engines.svi.memory import MemoryMode, Needs
    from svi_story.events import Event
    from svi_story.plan.model import Segment

SMALL, LARGE = Size(832, 480), Size(1280, 720)
PLENTY = FreeMemory(1000 * GIB, 1000 * GIB)


def published(size: Size = SMALL) -> Needs:
    return needs_of(A14B, 2, size, 81)


# --- what modes need


def test_the_published_models_are_counted_right() -> None:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        expert = WanTransformer3DModel(in_channels=36)  # its other defaults are Wan's 14B
        text = UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24)
        )
        autoencoder = AutoencoderKLWan()
    assert values(expert) == A14B.expert == 14_288_901_184
    assert values(expert.blocks) == A14B.blocks
    assert values(expert.blocks[0]) == A14B.block
    assert values(text) == A14B.text
    assert values(autoencoder) == A14B.vae
    assert autoencoder.encoder.conv_in.weight.shape[0] == A14B.vae_width
    assert counts_of(shapes(expert), shapes(autoencoder), shapes(text)) == A14B


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def values(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_headers_tell_what_the_models_hold() -> None:
    layout = find_models(support.MODELS)
    read = count_parameters(layout)
    place = Placement(support.CPU, torch.float32)
    expert = Experts(layout, place, "torch-flash").use("high")
    assert read.expert == values(expert)
    assert read.blocks == values(expert.blocks)
    assert read.width == expert.config.num_attention_heads * expert.config.attention_head_dim
    assert read.inner == expert.config.ffn_dim
    assert read.vae == values(load_vae(layout.vae, place))
    assert read.text == values(load_text_encoder(layout.text_encoder, place))


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types none of it
    """Counts the bytes of the tensors that an operation makes, as long as they live."""

    def __init__(self, *known: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        held = [tensor for model in known for tensor in (*model.parameters(), *model.buffers())]
        self.seen = {tensor.untyped_storage()._cdata for tensor in held}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map(self._count, made)
        return made

    def _count(self, made: object) -> None:
        if not isinstance(made, torch.Tensor) or made.untyped_storage()._cdata in self.seen:
            return
        storage = made.untyped_storage()
        self.seen.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, name: int, count: int) -> None:
        self.seen.discard(name)
        self.now -= count


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("frames", [5, 81])
def test_the_vae_holds_what_is_computed(size: Size, frames: int) -> None:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        model = AutoencoderKLWan().requires_grad_(requires_grad=False)
        latents = torch.empty(1, 16, (frames - 1) // 4 + 1, size.height // 8, size.width // 8)
        video = torch.empty(1, 3, frames, size.height, size.width)
    with Live(model) as decoding:
        vae.to_frames(vae.decode(model, latents))
    with Live(model) as encoding:
        vae.encode(model, video)
    work = decoding_activations(A14B, size, frames)
    assert encoding.peak < decoding.peak <= work < 1.1 * decoding.peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_pass_holds_what_is_computed(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers import transformer_wan

    def attend(query: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.empty_like(query)  # as a kernel does that keeps no matrix

    monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", attend)
    with torch.device("meta"):
        model = WanTransformer3DModel(in_channels=36, num_layers=2).requires_grad_(requires_grad=False)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        x = torch.empty(1, 36, 21, 90, 160, dtype=dtype)
        text = torch.empty(1, 512, 4096, dtype=dtype)
    with Live(model) as live:
        model(x, torch.empty(1, device="meta", dtype=dtype), text, return_dict=False)
    work = sampling_activations(A14B, dtype.itemsize, LARGE, 81)
    assert live.peak <= work < 1.15 * live.peak


@given(
    st.integers(1, 200).map(lambda n: 16 * n),
    st.integers(1, 200).map(lambda n: 16 * n),
    st.integers(0, 40).map(lambda k: 4 * k + 1),
    st.sampled_from([2, 4]),
)
def test_every_smaller_mode_needs_less_on_the_gpu_and_more_never_needs_less(
    width: int, height: int, frames: int, item: int
) -> None:
    needs = needs_of(A14B, item, Size(width, height), frames)
    assert needs["resident"].gpu > needs["offload"].gpu >= needs["stream"].gpu
    assert all(need.ram <= need.ram_kept for need in needs.values())
    more = needs_of(A14B, item, Size(width + 16, height), frames + 4)
    assert all(more[mode].gpu >= needs[mode].gpu for mode in MODES)


def test_the_largest_segment_counts() -> None:
    small = support.segment(frames=9)
    large = support.segment(frames=5, size=Size(160, 128))
    assert largest([small, large, small]) == (Size(160, 128), 5)


# --- which mode is taken


@pytest.mark.parametrize(
    ("vram", "ram", "mode", "keep"),
    [
        (80, 16, "resident", True),
        (48, 64, "offload", True),
        (48, 16, "offload", False),
        (24, 128, "stream", True),
        (24, 64, "stream", False),
    ],
)
def test_auto_takes_the_first_that_fits_and_says_why(vram: int, ram: int, mode: str, keep: bool) -> None:
    choice = choose("auto", FreeMemory(vram * GIB, ram * GIB), published())
    assert (choice.mode, choice.keep) == (mode, keep)
    assert f"{vram}.0 GiB free on the GPU" in choice.why
    assert ("read from its files again" in choice.why) != keep
    assert ("resident needs 63.6 GiB" in choice.why) == (mode != "resident")


def test_too_little_for_any_mode_is_an_error_with_numbers() -> None:
    with pytest.raises(InputError, match=r"stream: needs 7\.7 GiB of 6\.0 GiB free on the GPU.*smaller size"):
        choose("auto", FreeMemory(6 * GIB, 128 * GIB), published())
    with pytest.raises(InputError, match=r"44\.4 GiB of 16\.0 GiB free RAM"):
        choose("auto", FreeMemory(24 * GIB, 16 * GIB), published())


def test_a_mode_asked_for_is_refused_only_when_it_cannot_fit() -> None:
    need = published()["offload"]
    bare = need.sampling.minimum
    assert choose("offload", FreeMemory(bare, 64 * GIB), published()).mode == "offload"
    with pytest.raises(InputError, match=r"--memory offload cannot fit: .*--memory auto"):
        choose("offload", FreeMemory(bare - 1, 64 * GIB), published())
    with pytest.raises(InputError, match="use one of auto, resident, offload, stream"):
        choose("both", PLENTY, published())


def test_untiled_decoding_may_turn_out_too_large() -> None:
    choice = choose("auto", FreeMemory(16 * GIB, 128 * GIB), published(LARGE))
    assert choice.mode == "stream"
    assert "decoding untiled needs 22.1 GiB: it is tiled if memory runs out" in choice.why


def test_where_both_are_one_memory_nothing_is_kept_beside() -> None:
    needs = published()
    room = FreeMemory(60 * GIB, 60 * GIB, shared=True)
    assert choose("auto", room, needs) == replace(choose("auto", room, needs), mode="offload", keep=False)
    assert choose_smaller("resident", room, needs) is not None
    assert choose_smaller("stream", room, needs) is None


@given(st.integers(0, 120), st.integers(0, 200), st.sampled_from(MODES))
def test_down_is_always_further_down(vram: int, ram: int, mode: MemoryMode) -> None:
    room = FreeMemory(vram * GIB, ram * GIB)
    choice = choose_smaller(mode, room, published())
    assert choice is None or MODES.index(choice.mode) > MODES.index(mode)


# --- the same bits on every mode


def tiny() -> Needs:
    return needs_of(count_parameters(find_models(support.MODELS)), 4, Size(80, 64), 5)


def least(mode: MemoryMode) -> FreeMemory:
    """Room for a mode with only one expert in memory."""
    return FreeMemory(PLENTY.vram, tiny()[mode].ram)


@dataclass
class Told:
    """A reporter that remembers."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def __str__(self) -> str:
        return "\n".join(str(event) for event in self.events if isinstance(event, Warned))


def made_by(report: Told, **options: Any) -> Svi:
    options = {"dtype": "float32", "device": "cpu", "checkpoint_every": 1, "free_memory": PLENTY, **options}
    return Svi(
        Options(support.MODELS, **options), anchor_pixels=lambda _: support.anchor_picture(), report=report
    )


def switching() -> list[Segment]:
    """Three clips; the second has LoRAs of its own."""
    style = Lora(support.lora_file(support.MODELS, "low", "2.0-pro"), 0.5, 1.0)
    settings = support.sampler("2.0-pro", steps=3)
    clips = [support.segment(i, "2.0-pro", settings, frames=5) for i in range(3)]
    return [clips[0], replace(clips[1], loras=(style,)), clips[2]]


@pytest.fixture(scope="module")
def resident() -> list[support.Made]:
    with made_by(Told()) as svi:
        return support.render(svi, switching())


@pytest.mark.parametrize("mode", ["offload", "stream"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_mode_never_changes_numbers(resident: list[support.Made], mode: MemoryMode, keep: bool) -> None:
    with made_by(Told(), memory=mode, free_memory=PLENTY if keep else least(mode)) as svi:
        svi.prepare(switching())
        made = support.render(svi, switching())
        experts = svi._running().experts
        assert len(experts.held) == (2 if keep else {"offload": 0, "stream": 1}[mode])
    for got, wanted in zip(made, resident, strict=True):
        assert np.array_equal(got.latents, wanted.latents)
        assert np.array_equal(got.frames, wanted.frames)


def test_streamed_weights_are_those_of_the_loras_asked_for() -> None:
    settings = support.sampler("2.0-pro", steps=2)
    plain = support.segment(0, "2.0-pro", settings, frames=5)
    styled = replace(plain, loras=switching()[1].loras)
    with made_by(Told(), memory="stream") as svi:
        first, other, again = (support.render(svi, [one])[0].latents for one in (plain, styled, plain))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_stream_without_accelerate_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svi_story.engines.svi.memory.find_spec", lambda _: None)
    with (
        made_by(Told(), memory="stream") as svi,
        pytest.raises(InputError, match="--memory stream needs accelerate: pip install"),
    ):
        svi.prepare([support.segment()])


def test_auto_tells_why_it_is_not_resident() -> None:
    told = Told()
    room = FreeMemory(tiny()["resident"].gpu - 1, PLENTY.ram)
    with made_by(told, memory="auto", free_memory=room) as svi:
        support.render(svi, switching()[:1])
    assert str(told).startswith("warning: memory: offload: one expert on the GPU at a time (resident needs")


def test_too_little_memory_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svi_story.engines.svi.text.load_text_encoder", None)
    with (
        made_by(Told(), memory="auto", free_memory=FreeMemory(0, GIB)) as svi,
        pytest.raises(InputError) as caught,
    ):
        svi.prepare([support.segment()])
    assert "too little memory for any memory mode" in str(caught.value)


# --- memory runs out


@dataclass
class Full:
    """Calls a function, and lets some of the calls fail as if memory ran out."""

    call: Callable[..., Any]
    fails: set[int]
    error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory (a test)")
    calls: int = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls in self.fails:
            raise self.error()
        return self.call(*args, **options)


@pytest.fixture
def full_sampling(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let certain steps fail."""

    def plant(*fails: int, **error: Any) -> None:
        counted = Full(lambda predict, *args: predict(*args), set(fails), **error)

        def guided(*args: Any) -> Any:
            predict = original(*args)
            return lambda *inner: counted(predict, *inner)

        monkeypatch.setattr("svi_story.engines.svi.engine.guided", guided)

    original = sampler.guided
    return plant


def sampled(svi: Svi, steps: list[int]) -> Latents:
    return svi.sample(switching()[0], None, Memory(), lambda done, _: steps.append(done))


def test_a_full_device_steps_down_and_goes_on_from_the_checkpoint(
    resident: list[support.Made], full_sampling: Callable[..., None]
) -> None:
    told, steps = Told(), list[int]()
    full_sampling(2, 4)
    with made_by(told) as svi:
        latents = sampled(svi, steps)
    assert np.array_equal(latents["latents"], resident[0].latents)
    assert steps == [1, 2, 3]
    assert "memory ran out while sampling clip clip-0; continuing with --memory offload" in str(told)
    assert "memory ran out while sampling clip clip-0; continuing with --memory stream" in str(told)


def test_other_errors_are_not_taken_for_a_full_device(full_sampling: Callable[..., None]) -> None:
    full_sampling(1, error=lambda: RuntimeError("shapes do not fit"))
    with made_by(Told()) as svi, pytest.raises(RuntimeError, match="shapes do not fit"):
        sampled(svi, [])


def test_below_the_last_mode_the_board_fails_and_the_engine_goes_on(
    resident: list[support.Made], full_sampling: Callable[..., None]
) -> None:
    full_sampling(1)
    with made_by(Told(), memory="stream") as svi:
        with pytest.raises(
            RenderError, match=r"ran out while sampling clip clip-0 with --memory stream.*close"
        ):
            sampled(svi, [])
        assert not svi._running().experts.held
        assert np.array_equal(sampled(svi, [])["latents"], resident[0].latents)


def test_a_mode_for_which_ram_is_too_small_is_not_taken(full_sampling: Callable[..., None]) -> None:
    full_sampling(1)
    with made_by(Told(), free_memory=FreeMemory(PLENTY.vram, 5 * GIB // 1)) as svi:
        loaded = svi._running()
        assert loaded.memory.start("auto", [switching()[0]]).mode == "resident"
        loaded.memory.needs = published()
        loaded.memory.measure = lambda: FreeMemory(PLENTY.vram, GIB)
        with pytest.raises(RenderError, match=r"no smaller memory mode fits.*1\.0 GiB of RAM"):
            sampled(svi, [])


def test_a_full_device_while_encoding_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    counted = Full(load_text_encoder, {1, 2})
    monkeypatch.setattr("svi_story.engines.svi.text.load_text_encoder", counted)
    with made_by(told) as svi:
        svi.prepare([support.segment()])
        context = svi._running().embeddings.context(support.SETTINGS["prompts"][0])
    assert "memory ran out while encoding the prompts; continuing with --memory stream" in str(told)
    assert (context - support.units()["text/context0"]).abs().max() < 1e-4


def test_a_streamed_expert_is_not_in_the_vae_s_way(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(vae, "decode", Full(vae.decode, {1}))
    with made_by(told, memory="stream") as svi:
        list(svi.decode(switching()[0], sampled(svi, [])))
        assert svi._running().experts.held == {"high", "low"}
        assert svi.environment()["vae"] == "tiled"


@pytest.mark.parametrize(("fails", "tiled"), [({1}, False), ({1, 2}, True)])
def test_a_full_device_while_decoding(
    resident: list[support.Made], monkeypatch: pytest.MonkeyPatch, fails: set[int], tiled: bool
) -> None:
    one, told = switching()[0], Told()
    counted = Full(vae.decode, fails)
    monkeypatch.setattr(vae, "decode", counted)
    with made_by(told) as svi:
        latents = sampled(svi, [])
        frames = np.stack(list(svi.decode(one, latents)))
        assert not svi._running().experts.held  # the next clip uses them one at a time
        assert svi.environment()["vae"] == ("tiled" if tiled else "untiled")
        list(svi.decode(one, latents))
        assert counted.calls == len(fails) + 2  # a size that did not fit is tiled at once
        assert np.array_equal(sampled(svi, [])["latents"], resident[0].latents)
    assert np.array_equal(frames, resident[0].frames)  # so small a picture is a single tile
    assert "trying again without the experts beside it (--memory offload from here on)" in str(told)
    assert ("it works in tiles from here on" in str(told)) == tiled


def test_a_device_too_small_for_tiles_fails_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    one = switching()[0]
    monkeypatch.setattr(vae, "decode", Full(vae.decode, {1, 2, 3}))
    with made_by(Told()) as svi:
        latents = sampled(svi, [])
        with pytest.raises(RenderError, match="in tiles and alone on the device"):
            list(svi.decode(one, latents))
        assert len(list(svi.decode(one, latents))) == 5


def test_other_sizes_stay_untiled(monkeypatch: pytest.MonkeyPatch) -> None:
    one = switching()[0]
    other = replace(one, size=Size(64, 64))
    monkeypatch.setattr(vae, "decode", Full(vae.decode, {1}))
    with made_by(Told()) as svi:
        latents = {"latents": np.zeros((1, 16, 2, 8, 10), np.float32)}
        smaller = {"latents": np.zeros((1, 16, 2, 8, 8), np.float32)}
        list(svi.decode(one, latents))
        assert svi.environment()["vae"] == "tiled"  # there were no experts to send away
        list(svi.decode(other, smaller))
        assert svi.environment()["vae"] == "untiled"


def test_an_expert_that_waits_elsewhere_is_where_the_choice_says() -> None:
    layout = find_models(support.MODELS)
    experts = Experts(
        layout, Placement(support.CPU, torch.float32), "torch-flash", MemoryPlan("offload", keep=False)
    )
    experts.use("high")
    experts.use("low")
    assert experts.held == {"low"}
    experts.set_plan(MemoryPlan("resident"))
    assert not experts.held
    experts.use("low")
    experts.use("high")
    experts.leave_device()
    assert experts.held == {"low", "high"}
