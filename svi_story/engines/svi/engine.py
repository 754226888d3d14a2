"""The SVI engine: text first, then conditioning, sampling and decoding, each a plain function on tensors."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from svi_story.engines.base import open_anchor
from svi_story.engines.svi import conditioning, preview, vae
from svi_story.engines.svi.attention import check_kernel, choose_kernel, kernel_versions
from svi_story.engines.svi.compiled import check_compiler, is_compile_error
from svi_story.engines.svi.device import (
    FreeMemory,
    SideStream,
    configure,
    describe,
    errors_without_tensors,
    find_device,
    measure,
    none_if_out_of_memory,
    release,
    set_allocator,
    take_over_threads,
)
from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.identity import SviIdentity, lora_sets_of, sha256_of
from svi_story.engines.svi.memory import VALUE_BYTES
from svi_story.engines.svi.memory_manager import MemoryManager
from svi_story.engines.svi.sampler import (
    TIMESTEPS,
    Inputs,
    denoise,
    guided,
    latent_shape,
    make_noise,
    make_steps,
    phases_of,
)
from svi_story.engines.svi.text import Embeddings
from svi_story.engines.svi.vae import WHOLE
from svi_story.engines.svi.weights.loading import Placement, load_vae
from svi_story.engines.svi.weights.prepared import PreparedExperts, origin_of
from svi_story.enginespec import PRECISIONS
from svi_story.errors import InputError, RenderError, collect_problems
from svi_story.events import DeviceMemory, EngineSettled, ModelLoaded, ModelWorking
from svi_story.plan.keys import version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from diffusers import AutoencoderKLWan
    from torch import Tensor

    from svi_story.engines import Digest
    from svi_story.engines.base import Carry, Checkpoint, Frame, Latents, OnStep, Phase
    from svi_story.engines.svi.memory import MemoryPlan
    from svi_story.engines.svi.options import SviOptions
    from svi_story.engines.svi.preview import Factors
    from svi_story.engines.svi.sampler import Step
    from svi_story.engines.svi.text import Keep
    from svi_story.engines.svi.weights.candidates import Expert
    from svi_story.engines.svi.weights.catalogue import ModelPaths
    from svi_story.engines.svi.weights.loading import Blueprint
    from svi_story.engines.svi.weights.lora import LoraUse
    from svi_story.engines.svi.weights.tensors import StoredTensor
    from svi_story.events import Reporter
    from svi_story.plan.model import Anchor, Segment, Size

    AnchorPixels = Callable[[Anchor], Frame]
    """An anchor's picture as the model sees it: [height, width, 3], uint8, after fit."""

T = TypeVar("T")

MASK_CHANNELS = 4
"""Of y_BCTHW, before its latents."""
DTYPES = ("bfloat16", "float32")


@dataclass
class _Loaded:
    """What is in memory while the engine is entered."""

    paths: ModelPaths
    placement: Placement
    kernel: str
    experts: Experts
    embeddings: Embeddings
    memory: MemoryManager
    side_stream: SideStream
    vae: AutoencoderKLWan | None = None
    vae_strips: int = WHOLE
    """How the VAE worked last."""


class Svi:
    """Stable Video Infinity 2.0 and 2.0 Pro on Wan 2.2 I2V A14B. See docs/svi.md.

    `digest` may remember the hashes of files, `keep_embedding` the embeddings of texts; `report` gets the
    memory mode, and every change of it.
    """

    def __init__(
        self,
        options: SviOptions,
        digest: Digest = sha256_of,
        anchor_pixels: AnchorPixels = open_anchor,
        keep_embedding: Keep = lambda _: None,
        report: Reporter = lambda _: None,
    ) -> None:
        if options.dtype not in DTYPES:
            raise InputError(f"--dtype {options.dtype}: use {' or '.join(DTYPES)}")
        if options.precision not in PRECISIONS:
            raise InputError(f"--weights {options.precision}: use {' or '.join(PRECISIONS)}")
        self._options = options
        self._identity = SviIdentity(options.where, options.dtype, digest, options.vae, options.precision)
        self._anchor_pixels = anchor_pixels
        self._keep_embedding = keep_embedding
        self._report = report
        self._loaded: _Loaded | None = None
        self._prepared: PreparedExperts | None = None
        self._preview_factors: Factors | None = None
        self._predicted: Callable[[], Tensor] | None = None
        """Computes the clean latents that the last step predicts: x - sigma * velocity."""

    @property
    def identity(self) -> SviIdentity:
        """Name, revision and the inputs that frames depend on."""
        return self._identity

    def notes(self, segment: Segment) -> tuple[str, ...]:
        """What the user should know about a segment's LoRAs. Raises InputError for files in wrong places."""
        return self._identity.notes(segment)

    def __enter__(self) -> Self:
        import diffusers
        import torch
        import transformers

        for library in (diffusers, transformers):  # whose advice is for programmers
            library.utils.logging.set_verbosity_error()
        options = self._options
        configure(options.threads)
        paths = self._identity.found.models()
        device = find_device(options.device)
        placement = Placement(device, torch.float32 if options.dtype == "float32" else torch.bfloat16)
        kernel = choose_kernel(device, placement.dtype, options.attention)
        experts = Experts(
            *(paths, replace(placement, int8=options.precision == "int8"), kernel),
            report=self._report,
            find_prepared=self._find_prepared,
            compiled=options.compile,
        )
        if options.compile:
            check_compiler(device)
        check_kernel(kernel, device, placement.dtype, experts.setting("high", "attention_head_dim"))
        embeddings = Embeddings(paths, placement, self._keep_embedding, self._report)

        allocator = set_allocator() if device.type == "cuda" else ""

        def free_memory() -> FreeMemory:
            return options.free_memory or measure(device, options.workers_on_host)

        def settled(plan: MemoryPlan) -> None:
            about = self.environment()
            kernel, where = about["attention"], about["device"]
            settled = EngineSettled(
                *("svi", where, options.dtype, kernel, plan.mode, allocator, options.precision),
                compiled=options.compile,
                overlap=plan.beside,
            )
            self._report(settled)

        memory = MemoryManager(
            experts,
            paths,
            VALUE_BYTES[options.dtype],
            free_memory,
            self._report,
            on_plan=settled,
            vae=options.vae,
            int8=options.precision == "int8",
        )
        self._loaded = _Loaded(*(paths, placement, kernel, experts, embeddings, memory), SideStream(device))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.experts.close()
        release()

    def environment(self) -> Mapping[str, str]:
        """What may alter numbers besides the key's inputs: recorded with every entry, compared on reuse."""
        import torch

        loaded = self._running()
        device = loaded.placement.device
        if device.type == "cuda":
            cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # torch has no type for it
            about = {"cudnn": str(cudnn), **kernel_versions(loaded.kernel)}
        else:
            about = {}
        held = {} if self._options.precision == "bf16" else {"experts": self._options.precision}
        compiled = {"compile": "torch.compile"} if self._options.compile else {}
        return {
            **about,
            **compiled,
            "attention": loaded.kernel,
            "vae": vae.describe_strips(loaded.vae_strips),
            **describe(device),
            **held,
            **self._identity.found.environment(),
            **{package: version_of(package) for package in ("diffusers", "transformers", "ftfy")},
        }

    @errors_without_tensors()
    def prepare(self, segments: Sequence[Segment]) -> None:
        """Check all that these segments need; encode every prompt once, and free the text encoder.

        Raises InputError with all that is wrong: files, keys and shapes of every model and LoRA, NaN or Inf
        in the VAE and the text encoder (the experts' weights are read when first used).
        """
        if not segments:
            return
        lora_sets = {(one.sampler.variant, self._identity.extras(one)): one for one in segments}
        prompts = [prompt for one in segments for prompt in (one.prompt, one.negative_prompt)]

        def start_with_text() -> None:
            self._choose_memory(segments)
            with suppress(InputError):  # reported by the checks that follow
                experts = self._running().experts
                experts.set_loras(self._identity.lora_uses(segments[0]))
                experts.read_ahead("high")
            checks: list[Callable[[], object]] = [self._vae, partial(self._encode, prompts)]
            collect_problems(checks)

        def check_loras(segment: Segment) -> None:
            self._running().experts.recipes(self._identity.lora_uses(segment))

        checks: list[Callable[[], object]] = [start_with_text]
        checks += [partial(check_loras, one) for one in lora_sets.values()]
        collect_problems(checks)

    @property
    def one_at_a_time(self) -> bool:
        """Whether the experts and the VAE take turns on the device."""
        plan = self._running().memory.plan
        return plan is not None and plan.mode != "resident"

    @property
    def decodes_beside(self) -> bool:
        """Whether the VAE has room beside the experts while they sample."""
        plan = self._running().memory.plan
        return plan is not None and plan.beside

    def phases(self, segment: Segment) -> Sequence[Phase]:
        """The VAE encodes what the experts look at; then each expert takes its steps."""
        lora_sets = lora_sets_of(segment, lambda: self._identity.found)
        high = sum(step.expert == "high" for step in make_steps(segment.sampler))
        return phases_of(segment.sampler, high, lora_sets)

    @errors_without_tensors()
    def advance(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep, phase: Phase
    ) -> None:
        """Sample to the end of a phase and keep the state; errors as in `sample`."""
        self._with_memory(segment, partial(self._sample, segment, carry, checkpoint, on_step, phase.until))

    @errors_without_tensors()
    def sample(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep
    ) -> Latents:
        """The segment's final denoised latents: {"latents": [1, 16, (frames-1)/4 + 1, height/8, width/8]}.

        float32, normalised. Raises RenderError for wrong weights or LoRAs, and numbers that are not finite.
        """
        steps = segment.sampler.steps
        latents = self._with_memory(
            segment, partial(self._sample, segment, carry, checkpoint, on_step, steps)
        )
        if not np.isfinite(latents).all():
            raise RenderError(
                f"clip {segment.clip}: NaN or Inf in the latents; check the weights and the "
                "strengths of LoRAs and guidance"
            )
        return {"latents": latents}

    def decode(self, segment: Segment, latents: Latents) -> Iterator[Frame]:
        """The segment's frames, decoded in float32 and as a whole; in strips or tiles when memory runs out.

        Raises RenderError for a bad VAE, and when memory runs out in tiles too.
        """
        import torch

        loaded = self._running()
        take_over_threads()
        latents_BCTHW = torch.tensor(latents["latents"])

        def run(model: AutoencoderKLWan, strips: int) -> Tensor:
            with loaded.side_stream.used(self.decodes_beside):
                return vae.to_frames(vae.decode(model, latents_BCTHW, strips)).cpu()

        with errors_without_tensors():
            try:
                frames_FHWC = self._through_vae(segment.size, segment.frames, run).numpy()
            except InputError as error:
                raise RenderError(*error.problems) from error
        assert len(frames_FHWC) == segment.frames
        with suppress(Exception):  # a preview never stops a render
            self._preview_factors = preview.fit(np.asarray(latents["latents"])[0], list(frames_FHWC))
        yield from frames_FHWC

    def _with_memory(self, segment: Segment, attempt: Callable[[], T]) -> T:
        """What an attempt returns, in a smaller memory mode when memory runs out."""
        take_over_threads()
        try:
            self._choose_memory([segment])
            while (result := none_if_out_of_memory(attempt)) is None:
                self._running().memory.reduce(f"while sampling clip {segment.clip}")
        except InputError as error:
            raise RenderError(*error.problems) from error
        except RuntimeError as error:
            if self._options.compile and is_compile_error(error):
                reason = " ".join(str(error).split("\n\n")[0].split())
                what = f"torch cannot compile the experts here: {reason}"
                raise RenderError(f"{what}; render without --compile, or with another --attention") from error
            raise
        return result

    def _sample(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep, until: int
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """The latents after `until` steps; what comes before the last one is kept in the checkpoint."""
        import torch

        experts, memory = self._running().experts, self._running().memory
        steps = make_steps(segment.sampler)
        with torch.no_grad():
            state = checkpoint.load()
            inputs = self._inputs(segment, carry, steps, state)
            y_on_host = cache(partial(_to_numpy, inputs.y_BCTHW))
            placement = self._running().placement
            if state is None:
                channels = experts.setting("high", "out_channels")
                shape = latent_shape(segment.frames, segment.size, channels)
                x_BCTHW, start = make_noise(segment.seed, shape, placement.dtype).to(placement.device), 0
            else:
                x_BCTHW = torch.tensor(state["x"]).to(placement.device, placement.dtype)
                start = int(state["step"][0])

            def keep(done: int, x_BCTHW: Tensor) -> None:
                checkpoint.save({"x": _to_numpy(x_BCTHW), "y": y_on_host(), "step": np.array([done])})

            def after_step(done: int, x_BCTHW: Tensor, velocity_BCTHW: Tensor) -> None:
                due = done % self._options.checkpoint_every == 0 or done == until
                if due and done < len(steps):
                    keep(done, x_BCTHW)
                if placement.device.type == "cuda":
                    free, total = torch.cuda.mem_get_info(placement.device)
                    self._report(DeviceMemory(total - free, total))
                left = steps[done].timestep / TIMESTEPS if done < len(steps) else 0.0
                self._predicted = partial(torch.sub, x_BCTHW, velocity_BCTHW, alpha=left)
                on_step(done, len(steps))

            if state is None and until == 0:
                keep(0, x_BCTHW)
            last = max(until, start)
            self._fit_preview(segment, carry, inputs.y_BCTHW)
            with memory.experts_turn:
                experts.set_loras(self._identity.lora_uses(segment))
                try:
                    predict = guided(inputs, experts.use)
                    return _to_numpy(denoise(x_BCTHW, steps[:last], predict, after_step, start))
                finally:
                    self._predicted = None

    def _fit_preview(self, segment: Segment, carry: Carry | None, y_BCTHW: Tensor) -> None:
        """Fit the preview to the first latent of what the experts look at, whose picture is known."""
        if self._preview_factors is None:
            from_frame = carry if segment.sampler.variant == "2.0" else None
            with suppress(Exception):  # a preview never stops a render
                picture = from_frame.last_frame if from_frame else self._anchor_pixels(segment.anchor)
                self._preview_factors = preview.fit(_to_numpy(y_BCTHW)[0, MASK_CHANNELS:, :1], [picture])

    def preview(self) -> Sequence[Frame]:
        """The predicted clean latents, projected to RGB."""
        if self._predicted is None or self._preview_factors is None:
            return ()
        return preview.project(self._predicted(), self._preview_factors)

    def _inputs(
        self, segment: Segment, carry: Carry | None, steps: Sequence[Step], state: Latents | None
    ) -> Inputs:
        """All that stays the same through the steps, on the device and in the model's dtype."""
        import torch

        loaded = self._running()
        device, dtype = loaded.placement.device, loaded.placement.dtype
        self._encode((segment.prompt, segment.negative_prompt))
        positive_BLD, negative_BLD = (
            loaded.embeddings.context(prompt) for prompt in (segment.prompt, segment.negative_prompt)
        )
        y_BCTHW = self._condition(segment, carry) if state is None else torch.tensor(state["y"])
        timestep_S = torch.tensor([step.timestep for step in steps]).to(dtype)
        return Inputs(y_BCTHW.to(device, dtype), positive_BLD, negative_BLD, timestep_S.to(device))

    def _condition(self, segment: Segment, carry: Carry | None) -> Tensor:
        """y_BCTHW: what the experts see besides the noise, float32."""
        picture = self._anchor_pixels(segment.anchor)

        def encode(video_BCFHW: Tensor) -> Tensor:
            def run(model: AutoencoderKLWan, strips: int) -> Tensor:
                return vae.encode(model, video_BCFHW, strips)

            return self._through_vae(segment.size, video_BCFHW.shape[2], run)

        return conditioning.condition(segment, carry, picture, encode)

    def _find_prepared(
        self, expert: Expert, loras: Sequence[LoraUse], blueprint: Blueprint
    ) -> Mapping[str, StoredTensor] | None:
        """The parameters of an int8 expert with these LoRAs, where they were prepared."""
        files, loaded = self._identity.found.prepared, self._running()
        if not files or self._options.precision != "int8":
            return None
        if self._prepared is None:
            placement = replace(loaded.placement, int8=True)
            self._prepared = PreparedExperts(files, placement, self._identity.digest, self._report)
        made_with = describe(loaded.placement.device)
        sources = loaded.paths.expert(expert)
        origin = origin_of(expert, sources, loras, self._options.dtype, made_with, self._identity.digest)
        return self._prepared.find(origin, blueprint)

    def _choose_memory(self, segments: Sequence[Segment]) -> None:
        """Choose the memory mode, if that is not done yet. Raises InputError when none fits."""
        self._running().memory.start(self._options.memory, segments)

    def _encode(self, prompts: Sequence[str]) -> None:
        """Encode the prompts that are new, with as much of the text encoder on the device as fits there."""
        loaded = self._running()
        missing = loaded.embeddings.missing(prompts)
        while missing:
            blocks = loaded.memory.text_blocks()
            with loaded.memory.experts_turn:
                if none_if_out_of_memory(partial(loaded.embeddings.prepare, missing, blocks)) is not None:
                    return
            loaded.memory.reduce_text_blocks(blocks)

    def _through_vae(self, size: Size, frames: int, run: Callable[[AutoencoderKLWan, int], Tensor]) -> Tensor:
        loaded = self._running()

        def report(done: int, latents: int) -> None:
            if self._loaded is not loaded:
                raise RenderError("stopped while the VAE worked")  # in another thread than who waits for it
            self._report(ModelWorking("vae", done, latents))

        def with_vae(strips: int) -> Tensor:
            loaded.vae_strips = strips
            model, shape = self._vae(), latent_shape(frames, size, channels=1)[2:]
            with vae.reporting(model, shape, strips, report):
                return run(model, strips)

        return loaded.memory.run_vae(size, frames, with_vae)

    def _vae(self) -> AutoencoderKLWan:
        import torch

        loaded = self._running()
        if loaded.vae is None:
            start = time.monotonic()
            placement = Placement(loaded.placement.device, torch.float32)
            loaded.vae = load_vae(loaded.paths.vae, placement, self._report)
            size = sum(parameter.nbytes for parameter in loaded.vae.parameters())
            self._report(ModelLoaded("vae", size, round(time.monotonic() - start, 3)))
        return loaded.vae

    def _running(self) -> _Loaded:
        assert self._loaded is not None, "enter the engine first"
        return self._loaded


def _to_numpy(x_BCTHW: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """float32 on the CPU; exact for bfloat16 too."""
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = x_BCTHW.float().cpu().numpy()
    return array
