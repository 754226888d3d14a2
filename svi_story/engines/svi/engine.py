"""The SVI engine: text first, then conditioning, sampling and decoding, each a plain function on tensors."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from svi_story.engines.anchor import open_anchor
from svi_story.engines.svi import conditioning, schedule, vae
from svi_story.engines.svi.attention import check_kernel, choose_kernel
from svi_story.engines.svi.embeddings import Embeddings, release
from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.identity import SviIdentity, extras_of, outfits_of, sha256_of
from svi_story.engines.svi.ladder import Ladder, measure, unless_full
from svi_story.engines.svi.layout import EXPERTS, find_layout, find_svi_pair
from svi_story.engines.svi.loading import Place, load_vae
from svi_story.engines.svi.lora import Use
from svi_story.engines.svi.memory import ITEM, Room
from svi_story.engines.svi.sampler import Inputs, denoise, guided
from svi_story.engines.svi.together import all_of
from svi_story.errors import InputError, RenderError
from svi_story.events import EngineSettled, ModelLoaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from diffusers import AutoencoderKLWan
    from torch import Tensor

    from svi_story.engines.base import Carry, Checkpoint, Frame, Latents, OnStep, Phase
    from svi_story.engines.svi.embeddings import Keep
    from svi_story.engines.svi.experts import Uses
    from svi_story.engines.svi.layout import Layout
    from svi_story.engines.svi.memory import Choice
    from svi_story.engines.svi.pairs import Digest
    from svi_story.enginespec.sampling import Lora, Variant
    from svi_story.events import Reporter
    from svi_story.plan.model import Anchor, Segment, Size

    AnchorPixels = Callable[[Anchor], Frame]
    """An anchor's picture as the model sees it: [height, width, 3], uint8, after fit."""

T = TypeVar("T")

DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Options:
    """What the machine and the user decide, besides the board."""

    root: Path
    """The models folder."""
    dtype: str = "bfloat16"
    """What the experts and the text encoder compute in; the VAE is always float32."""
    device: str = "auto"
    attention: str = "auto"
    checkpoint_every: int = 5
    """Steps between two checkpoints."""
    memory: str = "auto"
    """The memory rung to start on: auto, resident, offload or stream."""
    vae: str = "whole"
    """whole, or tiles: how the VAE works from the start."""
    room: Room | None = None
    """The free memory to reckon with; None measures it."""
    threads: int = 0
    """With how many threads the CPU computes, which decides the last bits; 0 leaves it to torch."""


@dataclass
class _Loaded:
    """What is in memory while the engine is entered."""

    layout: Layout
    place: Place
    kernel: str
    experts: Experts
    embeddings: Embeddings
    ladder: Ladder
    vae: AutoencoderKLWan | None = None


class Svi:
    """Stable Video Infinity 2.0 and 2.0 Pro on Wan 2.2 I2V A14B. See docs/svi.md.

    `digest` may remember the hashes of files, `keep_embedding` the embeddings of texts; `report` is told when
    memory makes the engine change its ways.
    """

    def __init__(
        self,
        options: Options,
        digest: Digest = sha256_of,
        anchor_pixels: AnchorPixels = open_anchor,
        keep_embedding: Keep = lambda _: None,
        report: Reporter = lambda _: None,
    ) -> None:
        if options.dtype not in DTYPES:
            raise InputError(f"--dtype {options.dtype}: use {' or '.join(DTYPES)}")
        self._options = options
        self._identity = SviIdentity(options.root, options.dtype, digest, options.vae)
        self._anchor_pixels = anchor_pixels
        self._keep_embedding = keep_embedding
        self._report = report
        self._loaded: _Loaded | None = None

    @property
    def identity(self) -> SviIdentity:
        """Name, revision and the inputs that frames depend on."""
        return self._identity

    def notes(self, segment: Segment) -> tuple[str, ...]:
        """What the user should know about a segment's LoRAs. Raises InputError for files in wrong places."""
        return self._identity.notes(segment)

    def __enter__(self) -> Self:
        import torch

        _quiet()
        if self._options.threads:
            torch.set_num_threads(self._options.threads)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in the VAE too
        layout = find_layout(self._options.root)
        device = torch.device(_device(self._options.device))
        place = Place(device, torch.float32 if self._options.dtype == "float32" else torch.bfloat16)
        kernel = choose_kernel(device, place.dtype, self._options.attention)
        experts = Experts(layout, place, kernel, report=self._report)
        check_kernel(kernel, device, place.dtype, experts.setting("high", "attention_head_dim"))
        embeddings = Embeddings(layout, place, self._keep_embedding)
        room = self._options.room
        free = partial(measure, device) if room is None else lambda: room
        ladder = Ladder(experts, layout, ITEM[self._options.dtype], free, self._report)
        ladder.on_choice = self._tell_choice
        self._loaded = _Loaded(layout, place, kernel, experts, embeddings, ladder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded = None
        release()

    def environment(self) -> Mapping[str, str]:
        """What may alter numbers besides the key's inputs: recorded with every entry, compared on reuse."""
        import torch

        loaded = self._running()
        device = loaded.place.device
        threads = {"threads": str(torch.get_num_threads())} if device.type == "cpu" else {}
        return {
            **threads,
            "attention": loaded.kernel,
            "vae": "tiled" if loaded.vae and loaded.vae.use_tiling else "untiled",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "none",
            **{package: version(package) for package in ("diffusers", "transformers", "ftfy")},
        }

    def prepare(self, segments: Sequence[Segment]) -> None:
        """Check all that these segments need; encode every prompt once, and free the text encoder.

        Raises InputError with all that is wrong: files, keys and shapes of every model and LoRA, numbers
        that are none in the VAE and the text encoder (the experts' own are read when first used).
        """
        if not segments:
            return
        sets = dict.fromkeys((one.sampler.variant, extras_of(one, self._options.root)) for one in segments)
        prompts = [prompt for one in segments for prompt in _prompts(one)]
        checks: list[Callable[[], object]] = [partial(self._start_with_text, segments, prompts)]
        checks += [partial(self._check_loras, *some) for some in sets]
        all_of(checks)

    @property
    def one_at_a_time(self) -> bool:
        """Whether the experts and the VAE take turns on the device."""
        choice = self._running().ladder.choice
        return choice is not None and choice.rung != "resident"

    def phases(self, segment: Segment) -> Sequence[Phase]:
        """The VAE encodes what the experts look at; then each expert takes its steps."""
        outfits = outfits_of(segment, self._options.root)
        high = sum(step.expert == "high" for step in schedule.make_steps(segment.sampler))
        return schedule.phases_of(segment.sampler, high, outfits)

    def advance(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep, phase: Phase
    ) -> None:
        """Sample to the end of a phase and keep the state; errors as in `sample`."""
        self._with_room(segment, partial(self._sample, segment, carry, checkpoint, on_step, phase.until))

    def sample(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep
    ) -> Latents:
        """The segment's final denoised latents: {"latents": [1, 16, (frames-1)/4 + 1, height/8, width/8]}.

        float32, normalised. Raises RenderError for wrong weights or LoRAs, and numbers that are not finite.
        """
        steps = segment.sampler.steps
        latents = self._with_room(segment, partial(self._sample, segment, carry, checkpoint, on_step, steps))
        if not np.isfinite(latents).all():
            raise RenderError(
                f"clip {segment.clip}: the latents hold NaN or infinite numbers; check the weights and the "
                "strengths of LoRAs and guidance"
            )
        return {"latents": latents}

    def decode(self, segment: Segment, latents: Latents) -> Iterator[Frame]:
        """The segment's frames, decoded in float32 and as a whole, in tiles only when memory runs out.

        Raises RenderError for a bad VAE, and when memory runs out in tiles too.
        """
        import torch

        latents_BCTHW = torch.tensor(latents["latents"])

        def run(model: AutoencoderKLWan) -> Tensor:
            return vae.to_frames(vae.decode(model, latents_BCTHW)).cpu()

        try:
            frames_FHWC = self._through_vae(segment.size, run).numpy()
        except InputError as error:
            raise RenderError(*error.problems) from error
        assert len(frames_FHWC) == segment.frames
        yield from frames_FHWC

    def _with_room(self, segment: Segment, attempt: Callable[[], T]) -> T:
        """What an attempt makes, on a lower memory rung when memory runs out."""
        try:
            self._settle([segment])
            while (made := unless_full(attempt)) is None:
                self._running().ladder.step_down(f"while sampling clip {segment.clip}")
        except InputError as error:
            raise RenderError(*error.problems) from error
        return made

    def _sample(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep, until: int
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """The latents after `until` steps; what comes before the last one is kept in the checkpoint."""
        import torch

        experts = self._running().experts
        experts.equip(self._uses(segment.sampler.variant, extras_of(segment, self._options.root)))
        steps = schedule.make_steps(segment.sampler)
        with torch.no_grad():
            state = checkpoint.load()
            inputs = self._inputs(segment, carry, steps, state)
            x_BCTHW, start = self._start(segment, state)

            def keep(done: int, x_BCTHW: Tensor) -> None:
                y_BCTHW = _to_numpy(inputs.y_BCTHW)
                checkpoint.save({"x": _to_numpy(x_BCTHW), "y": y_BCTHW, "step": np.array([done])})

            def after_step(done: int, x_BCTHW: Tensor) -> None:
                due = done % self._options.checkpoint_every == 0 or done == until
                if due and done < len(steps):
                    keep(done, x_BCTHW)
                on_step(done, len(steps))

            if state is None and until == 0:
                keep(0, x_BCTHW)
            last = max(until, start)
            return _to_numpy(denoise(x_BCTHW, steps[:last], guided(inputs, experts.use), after_step, start))

    def _inputs(
        self, segment: Segment, carry: Carry | None, steps: Sequence[schedule.Step], state: Latents | None
    ) -> Inputs:
        """All that stays the same through the steps, on the device and in the model's dtype."""
        import torch

        loaded = self._running()
        device, dtype = loaded.place.device, loaded.place.dtype
        positive_BLD, negative_BLD = (loaded.embeddings.context(prompt) for prompt in _prompts(segment))
        y_BCTHW = self._condition(segment, carry) if state is None else torch.tensor(state["y"])
        timestep_S = torch.tensor([step.timestep for step in steps]).to(dtype)
        return Inputs(y_BCTHW.to(device, dtype), positive_BLD, negative_BLD, timestep_S.to(device))

    def _condition(self, segment: Segment, carry: Carry | None) -> Tensor:
        """y_BCTHW: what the experts see besides the noise, float32."""
        picture = self._anchor_pixels(segment.anchor)

        def encode(video_BCFHW: Tensor) -> Tensor:
            return self._through_vae(segment.size, lambda model: vae.encode(model, video_BCFHW))

        return conditioning.condition(segment, carry, picture, encode)

    def _start(self, segment: Segment, state: Latents | None) -> tuple[Tensor, int]:
        """x_BCTHW and the step to go on with: from a checkpoint, else noise and 0."""
        import torch

        place = self._running().place
        if state is not None:
            return torch.tensor(state["x"]).to(place.device, place.dtype), int(state["step"][0])
        channels = self._running().experts.setting("high", "out_channels")
        shape = schedule.latent_shape(segment.frames, segment.size, channels)
        return schedule.make_noise(segment.seed, shape, place.dtype).to(place.device), 0

    def _uses(self, variant: Variant, extras: tuple[Lora, ...]) -> Uses:
        """Which LoRAs each expert gets: the variant's own pair, then the extra ones in the board's order."""
        pair = find_svi_pair(self._options.root, variant)
        return {
            expert: [
                Use(pair.of(expert), 1.0, whole=True),
                *(Use(lora.path, lora.strength(expert)) for lora in extras),
            ]
            for expert in EXPERTS
        }

    def _tell_choice(self, choice: Choice) -> None:
        about = self.environment()
        dtype, rung = self._options.dtype, choice.rung
        self._report(EngineSettled("svi", about["device"], dtype, about["attention"], rung))

    def _check_loras(self, variant: Variant, extras: tuple[Lora, ...]) -> None:
        self._running().experts.recipes(self._uses(variant, extras))

    def _settle(self, segments: Sequence[Segment]) -> None:
        """Choose the memory rung, if that is not done yet. Raises InputError when none can do."""
        loaded = self._running()
        loaded.embeddings.rung = loaded.ladder.start(self._options.memory, segments).rung

    def _start_with_text(self, segments: Sequence[Segment], prompts: Sequence[str]) -> None:
        self._settle(segments)
        checks: list[Callable[[], object]] = [self._vae, partial(self._encode, prompts)]
        all_of(checks)

    def _encode(self, prompts: Sequence[str]) -> None:
        """Encode prompts before the experts come; memory may run out here too."""
        loaded = self._running()
        while unless_full(partial(loaded.embeddings.prepare, prompts)) is None:
            loaded.embeddings.rung = loaded.ladder.step_down("while encoding the prompts").rung

    def _through_vae(self, size: Size, run: Callable[[AutoencoderKLWan], Tensor]) -> Tensor:
        def with_vae(tiled: bool) -> Tensor:  # noqa: FBT001 - the ladder's own word to us
            model = self._vae()
            asked = self._options.vae == "tiles"
            (model.enable_tiling if tiled or asked else model.disable_tiling)()
            return run(model)

        return self._running().ladder.through_vae(size, with_vae)

    def _vae(self) -> AutoencoderKLWan:
        import torch

        loaded = self._running()
        if loaded.vae is None:
            start = time.monotonic()
            loaded.vae = load_vae(loaded.layout.vae, Place(loaded.place.device, torch.float32))
            size = sum(parameter.nbytes for parameter in loaded.vae.parameters())
            self._report(ModelLoaded("vae", size, round(time.monotonic() - start, 3)))
        return loaded.vae

    def _running(self) -> _Loaded:
        assert self._loaded is not None, "enter the engine first"
        return self._loaded


def _prompts(segment: Segment) -> tuple[str, str]:
    return segment.prompt, segment.negative_prompt


def _to_numpy(x_BCTHW: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """float32 on the CPU; exact for bfloat16 too."""
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = x_BCTHW.float().cpu().numpy()
    return array


def _quiet() -> None:
    """Keep the libraries' advice, which is for programmers, off the user's terminal."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()


def _device(asked: str) -> str:
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked
