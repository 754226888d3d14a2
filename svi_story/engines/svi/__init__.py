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
    from svi_story.engines.svi.parts import Parts
    from svi_story.enginespec import EngineOptions
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment, Size

NEEDS = ("torch", "diffusers", "transformers", "ftfy")


def identity_of(options: EngineOptions, digest: Digest) -> SviIdentity:
    """What the frames depend on, found without loading weights."""
    from svi_story.engines.svi.identity import SviIdentity

    return SviIdentity(options.models, options.dtype, digest, options.vae)


def create_engine(options: EngineOptions, digest: Digest, keep: Keep, report: Reporter) -> Svi:
    """The engine, not entered yet. Raises InputError when a package is missing."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        what = f"the svi engine needs {', '.join(missing)}: pip install 'svi-story[svi]'"
        raise InputError(f"{what}; for a preview without them use --engine animatic")
    from svi_story.engines.svi.engine import Options, Svi

    text_key = identity_of(options, digest).text_key
    settings = Options(
        options.models,
        options.dtype,
        attention=options.attention,
        memory=options.memory,
        vae=options.vae,
        threads=options.threads,
    )
    return Svi(settings, digest, keep_embedding=lambda prompt: keep(text_key(prompt)), report=report)


def phases_of(options: EngineOptions, segment: Segment) -> Sequence[Phase]:
    """How a segment is sampled. Raises InputError for missing LoRAs."""
    from svi_story.engines.svi import schedule
    from svi_story.engines.svi.identity import outfits_of

    outfits = outfits_of(segment, options.models)
    return schedule.phases_of(segment.sampler, schedule.reckon_high(segment.sampler), outfits)


def memory_needs(options: EngineOptions, segments: Sequence[Segment]) -> Mapping[str, MemoryNeed]:
    """What each memory mode needs for these segments; empty without weights, which is reported elsewhere."""
    from svi_story.engines.svi.memory import ITEM, most, needs_of

    parts = _parts(options)
    if parts is None or not segments:
        return {}
    needs = needs_of(parts, ITEM[options.dtype], *most(segments))
    return {
        mode: MemoryNeed(
            gpu_bytes=need.gpu,
            gpu_sampling_bytes=need.sampling.total,
            gpu_decoding_bytes=need.decoding.total,
            gpu_text_bytes=need.text.total,
            ram_bytes=need.ram,
            ram_kept_bytes=need.ram_kept,
        )
        for mode, need in needs.items()
        if options.memory in ("auto", mode)
    }


def model_sizes(options: EngineOptions) -> ModelSizes | None:
    """How large the experts are in the dtype they compute in; None without weights."""
    from svi_story.engines.svi.layout import EXPERTS
    from svi_story.engines.svi.memory import ITEM

    parts = _parts(options)
    item = ITEM[options.dtype]
    return ModelSizes(EXPERTS, parts.expert * item, parts.blocks * item) if parts else None


def overlay_rows(_size: Size, _fps: Fraction) -> int:
    """Nothing is drawn over the picture."""
    return 0


def _parts(options: EngineOptions) -> Parts | None:
    from svi_story.engines.svi.layout import find_layout
    from svi_story.engines.svi.parts import read_parts

    try:
        return read_parts(find_layout(options.models))
    except InputError:
        return None
