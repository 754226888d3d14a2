"""Memory: what modes need, which is taken, the same bits on all, and what happens when it runs out."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from statistics import median
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import svi_support as support
import torch
from hypothesis import given
from hypothesis import strategies as st
from svi_support import Full, Live, Memory, Recorder

from svi_story.engines.svi import memory, sampler, vae
from svi_story.engines.svi.device import FreeMemory
from svi_story.engines.svi.engine import Svi
from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.memory import (
    MODES,
    MemoryPlan,
    choose,
    choose_smaller,
    largest,
    needs_of,
    sampling_activations,
    text_blocks,
)
from svi_story.engines.svi.options import SviOptions
from svi_story.engines.svi.weights.architecture import A14B, count_parameters, counts_of
from svi_story.engines.svi.weights.loading import Placement, load_text_encoder, load_vae
from svi_story.enginespec.sampling import Lora
from svi_story.errors import InputError, RenderError
from svi_story.events import ModelMoved, ModelWorking
from svi_story.plan.model import Size
from svi_story.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from svi_story.engines.base import Latents
    from svi_story.engines.svi.memory import MemoryMode, Needs
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
    layout = support.find_models(support.MODELS)
    read = count_parameters(layout)
    place = Placement(support.CPU, torch.float32)
    expert = Experts(layout, place, "torch-flash").use("high")
    assert read.expert == values(expert)
    assert read.blocks == values(expert.blocks)
    assert read.width == expert.config.num_attention_heads * expert.config.attention_head_dim
    assert read.inner == expert.config.ffn_dim
    assert read.vae == values(load_vae(layout.vae, place))
    assert read.text == values(load_text_encoder(layout.text_encoder, place))


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
    assert all(need.ram <= need.ram_kept for need in needs.modes.values())
    more = needs_of(A14B, item, Size(width + 16, height), frames + 4)
    assert all(more[mode].gpu >= needs[mode].gpu for mode in MODES)


def test_the_largest_segment_counts() -> None:
    small = support.segment(frames=9)
    large = support.segment(frames=5, size=Size(160, 128))
    assert largest([small, large, small]) == (Size(160, 128), 5)


# --- which mode is taken


@pytest.mark.parametrize(
    ("vram", "ram", "mode", "keep", "blocks"),
    [
        (80, 16, "resident", True, 0),
        (48, 64, "offload", True, 0),
        (48, 16, "offload", False, 0),
        (24, 64, "stream", True, 25),
        (24, 32, "stream", False, 25),
        (15, 29, "stream", False, 11),
        (11, 29, "stream", False, 5),
    ],
)
def test_auto_takes_the_first_that_fits_and_says_why(
    vram: int, ram: int, mode: str, keep: bool, blocks: int
) -> None:
    choice = choose("auto", FreeMemory(vram * GIB, ram * GIB), published())
    assert (choice.mode, choice.keep, choice.resident_blocks) == (mode, keep, blocks)
    assert (f"{blocks} of 40 blocks stay on the GPU" in choice.why) == (mode == "stream")
    assert f"{vram}.0 GiB free on the GPU" in choice.why
    assert ("read from its files again" in choice.why) != keep
    assert ("resident needs 63.6 GiB" in choice.why) == (mode != "resident")


def test_too_little_for_any_mode_is_an_error_with_numbers() -> None:
    with pytest.raises(InputError, match=r"stream: needs 7\.3 GiB of 6\.0 GiB free on the GPU.*smaller size"):
        choose("auto", FreeMemory(6 * GIB, 128 * GIB), published())
    with pytest.raises(InputError, match=r"21\.7 GiB of 16\.0 GiB free RAM"):
        choose("auto", FreeMemory(16 * GIB, 16 * GIB), published())


def test_a_mode_asked_for_is_refused_only_when_it_cannot_fit() -> None:
    need = published()["offload"]
    bare = need.sampling.minimum
    assert choose("offload", FreeMemory(bare, 64 * GIB), published()).mode == "offload"
    with pytest.raises(InputError, match=r"--memory offload cannot fit: .*--memory auto"):
        choose("offload", FreeMemory(bare - 1, 64 * GIB), published())
    with pytest.raises(InputError, match="use one of auto, resident, offload, stream"):
        choose("both", PLENTY, published())


def test_decoding_as_a_whole_may_turn_out_too_large() -> None:
    choice = choose("auto", FreeMemory(16 * GIB, 128 * GIB), published(LARGE))
    assert choice.mode == "stream"
    assert "decoding as a whole needs 22.1 GiB: it is done in strips if memory runs out" in choice.why


def test_where_both_are_one_memory_nothing_is_kept_beside() -> None:
    needs = published()
    room = FreeMemory(60 * GIB, 60 * GIB, shared=True)
    assert choose("auto", room, needs) == replace(choose("auto", room, needs), mode="offload", keep=False)
    assert choose_smaller(MemoryPlan("resident"), room, needs) is not None
    assert choose_smaller(MemoryPlan("stream"), room, needs) is None


@given(st.integers(0, 120), st.integers(0, 200), st.sampled_from(MODES), st.integers(0, 40))
def test_after_memory_ran_out_less_is_used(vram: int, ram: int, mode: MemoryMode, blocks: int) -> None:
    room = FreeMemory(vram * GIB, ram * GIB)
    plan = choose_smaller(MemoryPlan(mode, resident_blocks=blocks), room, published())
    assert plan is None or MODES.index(plan.mode) > MODES.index(mode) or plan.resident_blocks < blocks


@given(st.integers(5, 200), st.integers(1, 200))
def test_what_a_plan_puts_on_the_device_fits(tenths: int, ram: int) -> None:
    free, needs = FreeMemory(tenths * GIB // 5, ram * GIB), published()
    try:
        plan = choose("auto", free, needs)
    except InputError:
        return
    blocks, expert = plan.resident_blocks, needs.expert
    if plan.mode == "stream":
        use = needs["stream"].sampling.total + blocks * expert.block
        assert use <= free.vram
        streamed = (expert.blocks - blocks) * expert.block
        assert memory.HOST + (2 * expert.whole if plan.keep else streamed) <= free.ram
    text = text_blocks(free, needs)
    whole = needs["resident"].text.total <= free.vram
    assert (text == needs.text_encoder.blocks) == whole
    assert whole or needs["stream"].text.total + text * needs.text_encoder.block <= free.vram


# --- the same bits on every mode


def tiny() -> Needs:
    return needs_of(count_parameters(support.find_models(support.MODELS)), 4, Size(80, 64), 5)


def room(mode: MemoryMode, *, keep: bool = True, needs: Needs | None = None) -> FreeMemory:
    """Room for a mode, without `keep` for one expert in memory; to stream, for none of its blocks."""
    needs = needs or tiny()
    vram = needs["stream"].sampling.total - 1 if mode == "stream" else PLENTY.vram
    return FreeMemory(vram, PLENTY.ram if keep else needs[mode].ram)


def made_by(report: Recorder, **options: Any) -> Svi:
    options = {"dtype": "float32", "device": "cpu", "checkpoint_every": 1, "free_memory": PLENTY, **options}
    return Svi(
        SviOptions(support.folders(), **options),
        anchor_pixels=lambda _: support.anchor_picture(),
        report=report,
    )


def switching() -> list[Segment]:
    """Three clips; the second has LoRAs of its own."""
    style = Lora(support.lora_file(support.MODELS, "low", "2.0-pro"), 0.5, 1.0)
    settings = support.sampler("2.0-pro", steps=3)
    clips = [support.segment(i, "2.0-pro", settings, frames=5) for i in range(3)]
    return [clips[0], replace(clips[1], loras=(style,)), clips[2]]


@pytest.fixture(scope="module")
def resident() -> list[support.Made]:
    with made_by(Recorder()) as svi:
        return support.render(svi, switching())


@pytest.mark.parametrize(
    ("mode", "keep"),
    [
        *(("offload", True), ("stream", False)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("offload", False), ("stream", True))),
    ],
)
def test_a_mode_never_changes_numbers(resident: list[support.Made], mode: MemoryMode, keep: bool) -> None:
    with made_by(Recorder(), memory=mode, free_memory=room(mode, keep=keep)) as svi:
        svi.prepare(switching())
        made = support.render(svi, switching())
        experts = svi._running().experts
        assert len(experts.held) == (2 if keep else 0)
    for got, wanted in zip(made, resident, strict=True):
        assert np.array_equal(got.latents, wanted.latents)
        assert np.array_equal(got.frames, wanted.frames)


def test_streamed_weights_are_those_of_the_loras_asked_for() -> None:
    settings = support.sampler("2.0-pro", steps=2)
    plain = support.segment(0, "2.0-pro", settings, frames=5)
    styled = replace(plain, loras=switching()[1].loras)
    with made_by(Recorder(), memory="stream", free_memory=room("stream")) as svi:
        first, other, again = (support.render(svi, [one])[0].latents for one in (plain, styled, plain))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_auto_tells_why_it_is_not_resident() -> None:
    told = Recorder()
    room = FreeMemory(tiny()["resident"].gpu - 1, PLENTY.ram)
    with made_by(told, memory="auto", free_memory=room) as svi:
        support.render(svi, switching()[:1])
    assert str(told).startswith("warning: memory: offload: one expert on the GPU at a time (resident needs")


def test_too_little_memory_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svi_story.engines.svi.text.load_text_encoder", None)
    with (
        made_by(Recorder(), memory="auto", free_memory=FreeMemory(0, GIB)) as svi,
        pytest.raises(InputError) as caught,
    ):
        svi.prepare([support.segment()])
    assert "too little memory for any memory mode" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("mode", MODES)
def test_ram_stays_the_same_over_a_hundred_segments(mode: MemoryMode, precision: str) -> None:
    needs = needs_of(
        count_parameters(support.find_models(support.MODELS)),
        *(4, Size(80, 64), 5),
        int8=precision == "int8",
    )
    clip = support.segment(0, "2.0-pro", support.sampler("2.0-pro", steps=2), frames=5)
    process, used = psutil.Process(), list[int]()
    free = room(mode, keep=False, needs=needs)
    with made_by(Recorder(), memory=mode, precision=precision, free_memory=free) as svi:
        for seed in range(100):
            one = replace(clip, seed=seed)
            list(svi.decode(one, svi.sample(one, None, Memory(), support.ignore_step)))
            with suppress(AttributeError, OSError, TypeError):
                ctypes.CDLL(None).malloc_trim(0)  # of what is freed, glibc keeps up to 100 MB, as it happens
            used.append(process.memory_info().rss)
    before, after = median(used[20:40]), median(used[80:])
    assert after - before < 4 * 2**20


# --- memory runs out


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
    told, steps = Recorder(), list[int]()
    full_sampling(2, 4)
    with made_by(told) as svi:
        latents = sampled(svi, steps)
    assert np.array_equal(latents["latents"], resident[0].latents)
    assert steps == [1, 2, 3]
    assert "memory ran out while sampling clip clip-0; continuing with --memory offload" in str(told)
    assert "memory ran out while sampling clip clip-0; continuing with --memory stream" in str(told)


@pytest.mark.parametrize("full", ["sampling", "decoding"])
def test_memory_runs_out_while_one_is_sampled_and_another_decoded(
    full: str, resident: list[support.Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one waits for the other from then on, in the same memory mode and with the same numbers."""
    one, told, apart = switching()[0], Recorder(), "continuing with decoding and sampling one after the other"
    stepping, failed = Event(), Event()
    decode, guided = vae.decode, sampler.guided

    def fail() -> None:
        failed.set()
        raise torch.OutOfMemoryError("out of memory")

    def decode_meanwhile(*args: Any) -> Any:
        if not failed.is_set():
            assert stepping.wait(20)
            if full == "decoding":
                fail()
            assert failed.wait(20)
        return decode(*args)

    def sample_meanwhile(*args: Any) -> Any:
        predict = guided(*args)

        def step(*inner: Any) -> Any:
            stepping.set()
            if full == "sampling" and not failed.is_set():
                fail()
            until = time.monotonic() + 20
            while full == "decoding" and apart not in str(told) and time.monotonic() < until:
                time.sleep(0.001)
            return predict(*inner)

        return step

    monkeypatch.setattr(vae, "decode", decode_meanwhile)
    monkeypatch.setattr("svi_story.engines.svi.engine.guided", sample_meanwhile)
    with made_by(told) as svi, ThreadPoolExecutor(1) as other:
        svi.prepare([one])
        before = svi.decodes_beside
        begun = Memory()
        svi.advance(one, None, begun, support.ignore_step, svi.phases(one)[0])  # the VAE encodes before
        decoding = other.submit(lambda: list(svi.decode(one, {"latents": resident[0].latents})))
        latents = svi.sample(one, None, begun, support.ignore_step)
        assert np.array_equal(decoding.result(), resident[0].frames)
        assert (before, svi.decodes_beside, svi.one_at_a_time) == (True, False, False)
    assert np.array_equal(latents["latents"], resident[0].latents)
    assert str(told).count("memory ran out") == str(told).count(apart) == 1


def test_a_decoding_ends_when_the_engine_is_left(resident: list[support.Made]) -> None:
    one = switching()[0]
    begun, left = Event(), Event()

    def report(event: object) -> None:
        if isinstance(event, ModelWorking) and event.model == "vae":
            begun.set()
            left.wait(20)

    with ThreadPoolExecutor(1) as other:
        with made_by(report) as svi:  # type: ignore[arg-type]  # a reporter is enough
            svi.prepare([one])
            decoding = other.submit(lambda: list(svi.decode(one, {"latents": resident[0].latents})))
            assert begun.wait(20)
        left.set()
        with pytest.raises(RenderError, match="stopped"):
            decoding.result()


@pytest.mark.parametrize(("vram", "modes"), [(67, ()), (68, ("resident",)), (41, ()), (42, ("offload",))])
def test_it_decodes_beside_the_sampling_where_both_fit(vram: int, modes: tuple[str, ...]) -> None:
    plan = choose("auto", FreeMemory(vram * GIB, 64 * GIB), published())
    assert ((plan.mode,) if plan.beside else ()) == modes


def test_other_errors_are_not_taken_for_a_full_device(full_sampling: Callable[..., None]) -> None:
    full_sampling(1, error=lambda: RuntimeError("shapes do not fit"))
    with made_by(Recorder()) as svi, pytest.raises(RuntimeError, match="shapes do not fit"):
        sampled(svi, [])


def test_below_the_last_mode_the_board_fails_and_the_engine_goes_on(
    resident: list[support.Made], full_sampling: Callable[..., None]
) -> None:
    full_sampling(1)
    with made_by(Recorder(), memory="stream", free_memory=room("stream")) as svi:
        with pytest.raises(
            RenderError, match=r"ran out while sampling clip clip-0 with --memory stream.*close"
        ):
            sampled(svi, [])
        assert not svi._running().experts.held
        assert np.array_equal(sampled(svi, [])["latents"], resident[0].latents)


def test_a_mode_for_which_ram_is_too_small_is_not_taken(full_sampling: Callable[..., None]) -> None:
    full_sampling(1)
    with made_by(Recorder(), free_memory=FreeMemory(PLENTY.vram, 5 * GIB // 1)) as svi:
        loaded = svi._running()
        assert loaded.memory.start("auto", [switching()[0]]).mode == "resident"
        loaded.memory.needs = published()
        loaded.memory.measure = lambda: FreeMemory(PLENTY.vram, GIB)
        with pytest.raises(RenderError, match=r"no smaller memory mode fits.*1\.0 GiB of RAM"):
            sampled(svi, [])


def test_a_full_device_while_encoding_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Recorder()
    counted = Full(load_text_encoder, {1, 2, 3})
    monkeypatch.setattr("svi_story.engines.svi.text.load_text_encoder", counted)
    with made_by(told) as svi:
        svi.prepare([support.segment()])
        context = svi._running().embeddings.context(support.SETTINGS["prompts"][0])
    assert str(told).splitlines() == [
        "warning: memory ran out while encoding the prompts; continuing with "
        f"{blocks} blocks of the text encoder on the GPU"
        for blocks in (1, 0)
    ] + [str(told).splitlines()[-1]]
    assert "memory ran out while encoding the prompts; continuing with --memory offload" in str(told)
    assert (context - support.units()["text/context0"]).abs().max() < 1e-4


def test_a_full_device_while_decoding(resident: list[support.Made], monkeypatch: pytest.MonkeyPatch) -> None:
    one, told = switching()[0], Recorder()
    monkeypatch.setattr(vae, "decode", Full(vae.decode, {1}))
    with made_by(told) as svi:
        latents = sampled(svi, [])
        frames = np.stack(list(svi.decode(one, latents)))
        assert not svi._running().experts.held  # the next clip uses them one at a time
        assert svi.environment()["vae"] == "untiled"
        assert np.array_equal(sampled(svi, [])["latents"], resident[0].latents)
    assert np.array_equal(frames, resident[0].frames)
    assert "trying again without the experts beside it (--memory offload from here on)" in str(told)


def test_an_expert_that_waits_elsewhere_is_where_the_choice_says() -> None:
    layout = support.find_models(support.MODELS)
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


def test_an_expert_s_way_to_the_device_is_reported() -> None:
    told = Recorder()
    short = support.segment(settings=support.sampler(steps=2))
    with support.engine(memory="offload", report=told, free_memory=PLENTY) as svi:
        svi.prepare([short])
        for _ in range(2):
            svi.sample(short, None, Memory(), support.ignore_step)
    moves = [event for event in told.events if isinstance(event, ModelMoved)]
    assert moves
    for moved in moves:
        working = [e for e in told.events if isinstance(e, ModelWorking) and e.model == moved.model]
        arrived = [e.done for e in working]
        assert arrived == sorted(arrived)
        assert {e.total for e in working} == {arrived[-1]} == {moved.bytes}
        assert len(arrived) > 2
