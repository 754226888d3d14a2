"""Stable Video Infinity on Wan 2.2 I2V A14B."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from svi_story.engines import MemoryNeed, ModelSizes
from svi_story.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction

    from svi_story.engines import Digest, Keep
    from svi_story.engines.base import Phase
    from svi_story.engines.svi.engine import Svi
    from svi_story.engines.svi.identity import SviIdentity
    from svi_story.engines.svi.weights.architecture import ParameterCounts
    from svi_story.engines.svi.weights.locate import ModelFolders
    from svi_story.enginespec import EngineOptions
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment, Size

NEEDS = ("torch", "diffusers", "transformers", "ftfy")


def missing_packages() -> list[str]:
    """What the engine imports and the core does not install."""
    return [name for name in NEEDS if find_spec(name) is None]


def identity_of(options: EngineOptions, digest: Digest) -> SviIdentity:
    """What the frames depend on, found without loading weights."""
    from svi_story.engines.svi.identity import SviIdentity

    return SviIdentity(_folders(options), options.dtype, digest, options.vae, options.precision)


def create_engine(options: EngineOptions, digest: Digest, keep: Keep, report: Reporter) -> Svi:
    """The engine, not entered yet. Raises InputError when a package is missing."""
    if missing := missing_packages():
        what = f"the svi engine needs {', '.join(missing)}: pip install 'svi-story[svi]'"
        raise InputError(f"{what}; for a preview without them use --engine animatic")
    from svi_story.engines.svi.engine import Svi
    from svi_story.engines.svi.options import SviOptions

    text_key = identity_of(options, digest).text_key
    settings = SviOptions(
        _folders(options),
        options.dtype,
        attention=options.attention,
        compile=options.compile,
        memory=options.memory,
        vae=options.vae,
        precision=options.precision,
        threads=options.threads,
        workers_on_host=options.workers_on_host,
    )
    return Svi(settings, digest, keep_embedding=lambda prompt: keep(text_key(prompt)), report=report)


def phases_of(options: EngineOptions, segment: Segment) -> Sequence[Phase]:
    """How a segment is sampled. Raises InputError for missing LoRAs."""
    from svi_story.engines.svi import sampler
    from svi_story.engines.svi.identity import lora_sets_of
    from svi_story.engines.svi.weights.locate import find_weights

    lora_sets = lora_sets_of(segment, lambda: find_weights(_folders(options)))
    return sampler.phases_of(segment.sampler, sampler.count_high_noise_steps(segment.sampler), lora_sets)


def memory_needs(options: EngineOptions, segments: Sequence[Segment]) -> Mapping[str, MemoryNeed]:
    """What each memory mode needs for these segments; empty without weights, which is reported elsewhere."""
    from svi_story.engines.svi.memory import VALUE_BYTES, largest, needs_of

    parameters = _count_parameters(options)
    if parameters is None or not segments:
        return {}
    int8 = options.precision == "int8"
    needs = needs_of(parameters, VALUE_BYTES[options.dtype], *largest(segments), int8=int8)
    return {
        mode: MemoryNeed(
            gpu_bytes=need.gpu,
            gpu_sampling_bytes=need.sampling.total,
            gpu_decoding_bytes=need.decoding.total,
            gpu_text_bytes=need.text.total,
            ram_bytes=need.ram,
            ram_kept_bytes=need.ram_kept,
        )
        for mode, need in needs.modes.items()
        if options.memory in ("auto", mode)
    }


def model_sizes(options: EngineOptions) -> ModelSizes | None:
    """How large the experts are as they are held; None without weights."""
    from svi_story.engines.svi.memory import VALUE_BYTES, expert_size
    from svi_story.engines.svi.weights.candidates import EXPERTS

    parameters = _count_parameters(options)
    if parameters is None:
        return None
    size = expert_size(parameters, VALUE_BYTES[options.dtype], int8=options.precision == "int8")
    return ModelSizes(EXPERTS, size.whole, size.blocks * size.block)


def overlay_rows(_size: Size, _fps: Fraction) -> int:
    """Nothing is drawn over the picture."""
    return 0


def _folders(options: EngineOptions) -> ModelFolders:
    from svi_story.engines.svi.weights.locate import ModelFolders

    return ModelFolders(options.models, options.weights)


def _count_parameters(options: EngineOptions) -> ParameterCounts | None:
    from svi_story.engines.svi.weights.architecture import count_parameters
    from svi_story.engines.svi.weights.locate import find_weights

    try:
        return count_parameters(find_weights(_folders(options)).models())
    except InputError:
        return None
